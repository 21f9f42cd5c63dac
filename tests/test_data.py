"""The shipped scenes against committed digests and an exact reference; loaders against files."""

import functools
import hashlib
import io
import json
import pickle
import shutil
import tarfile
import threading
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from ckdlite import _assets, data
from ckdlite.data import CLASSES, SPLITS, cast, cifar, cluttered, folder, normalise


def digest(scenes):
    sha = hashlib.sha256()
    for tensor in scenes:
        sha.update(tensor.numpy().astype(tensor.numpy().dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("entry", _assets.read_json("scenes.json"), ids=lambda e: str(e["n"]))
def test_the_same_bytes_as_everywhere(entry):
    assert digest(cluttered(entry["split"], entry["n"])) == entry["sha256"]


def test_shipped_pieces_are_small_and_whole():
    pieces = [p for split in _assets.read_json("fashion.json").values() for p in split]
    sizes = [(_assets.FOLDER / piece["name"]).stat().st_size for piece in pieces]
    assert max(sizes) < 4 * 2**20 and sum(sizes) <= 8_000_000
    assert sum(piece["items"] for piece in pieces) == 20_000
    for piece in pieces:
        _assets.read(piece["name"], piece["sha256"])


def test_shapes_types_and_labels():
    scenes = cluttered("validation", 30)
    assert scenes.images.shape == (30, 3, 32, 32) and scenes.images.dtype == torch.uint8
    assert scenes.masks.shape == (30, 32, 32) and scenes.masks.dtype == torch.bool
    assert scenes.labels.tolist() == [i % 10 for i in range(30)]
    assert len(CLASSES) == 10
    batch = next(iter(DataLoader(TensorDataset(*scenes), batch_size=4)))
    assert [list(b.shape) for b in batch] == [[4, 3, 32, 32], [4], [4, 32, 32]]


def test_every_item_once_by_default_and_new_scenes_after_the_last():
    assert [len(data._items(split)) for split in SPLITS] == [14_000, 2_000, 4_000]
    scenes = cluttered("validation", 2_003)
    assert scenes.labels[2_000:].tolist() == scenes.labels[:3].tolist()
    assert not torch.equal(scenes.images[2_000:], scenes.images[:3])
    assert len(cluttered("validation").labels) == 2_000
    assert len(cluttered("test", 0).labels) == 0


def test_a_scene_does_not_depend_on_the_others():
    few, many = cluttered("test", 5), cluttered("test", 300)
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b[:5])


def test_seeds_and_splits_give_other_scenes():
    first, second = cluttered("train", 20), cluttered("train", 20, seed=1)
    assert torch.equal(first.labels, second.labels)
    assert not any(torch.equal(a, b) for a, b in zip(first.images, second.images, strict=True))


def test_no_item_is_in_two_splits():
    seen = [{item.tobytes() for item in data._items(split)} for split in SPLITS]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_masks_cover_about_a_fifth():
    scenes = cluttered("test", 1000)
    cover = scenes.masks.double().mean((1, 2))
    assert 0.17 < cover.mean() < 0.22
    assert cover.min() > 0.01 and cover.max() < 0.5


def test_the_object_lies_on_top_of_the_clutter():
    # Under the mask nothing changes when the clutter does; around it much does.
    none, much = cluttered("test", 200, clutter=0), cluttered("test", 200, clutter=12)
    assert torch.equal(none.masks, much.masks)
    solid = none.masks[:, None].expand_as(none.images)
    difference = (none.images.int() - much.images.int()).abs().double()
    # The rim lets a little of the ground through.
    assert difference[solid].mean() < 4 < 20 < difference[~solid].mean()


def test_more_clutter_keeps_what_was_there():
    six, seven = cluttered("test", 100, clutter=6), cluttered("test", 100, clutter=7)
    same = (six.images == seven.images).double().mean()
    assert 0.85 < same < 1


@pytest.mark.parametrize("option", ["noise", "clouds"])
def test_the_ground_can_be_calmed(option):
    calm, wild = (cluttered("test", 50, clutter=0, **{option: amount}) for amount in (0, 90))
    spread = [s.images.double().std((2, 3)).mean() for s in (calm, wild)]
    assert spread[0] < spread[1]


@pytest.mark.parametrize("size", [18, 20, 22])
def test_resize_is_the_exact_area_average(size):
    item = np.random.RandomState(size).randint(0, 256, (28, 28)).astype(np.uint8)
    grid = np.arange(22)[None]
    got = data._resize(item[None], np.array([size]), grid, grid)[0]
    scale = Fraction(28, size)

    def overlap(new, old):
        return max(Fraction(0), min(scale * (new + 1), old + 1) - max(scale * new, old))

    weights = [[overlap(i, k) for k in range(28)] for i in range(size)]
    for i, j in [(0, 0), (3, 7), (size // 2, size - 1), (size - 1, size - 1)]:
        area = sum(
            weights[i][k] * weights[j][m] * int(item[k, m])
            for k in range(28)
            for m in range(28)
            if weights[i][k] and weights[j][m]
        )
        exact = area / scale**2
        assert got[i, j] == int(exact + Fraction(1, 2))  # half rounds up
    assert not got[size:].any() and not got[:, size:].any()


def test_normalise_centres_the_training_images():
    images = cluttered("train").images.double() / 255
    assert images.mean((0, 2, 3)).tolist() == pytest.approx(data.MEAN, abs=1e-3)
    assert images.std((0, 2, 3)).tolist() == pytest.approx(data.STD, abs=1e-3)
    one = normalise(torch.full((3, 2, 2), 255, dtype=torch.uint8))
    want = (1 - torch.tensor(data.MEAN)) / torch.tensor(data.STD)
    assert one.dtype == torch.float32
    assert torch.allclose(one[:, 0, 0], want)
    grey = torch.full((3, 2, 2), 51, dtype=torch.uint8)
    other = normalise(grey, (0.1, 0.2, 0.3), (0.1, 1.0, 2.0))
    assert other[:, 1, 1].tolist() == pytest.approx([1, 0, -0.05], abs=1e-6)


def test_cast_are_six_test_scenes():
    scenes, names = cast()
    members = _assets.read_json("cast.json")
    whole = cluttered("test", max(m["index"] for m in members) + 1)
    assert len(set(names)) == 6 and len(scenes.labels.unique()) == 6
    for i, member in enumerate(members):
        assert names[i] == member["name"] and member["why"]
        assert torch.equal(scenes.images[i], whole.images[member["index"]])
        assert scenes.labels[i] == whole.labels[member["index"]]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split is 'val'; it must be one of train, validation, test"),
        ({"split": "test", "n": -1}, "n is -1; it must be from 0"),
        ({"split": "test", "n": 1.5}, "n is 1.5; it must be a whole number"),
        ({"split": "test", "n": 1, "clutter": -1}, "clutter is -1"),
        ({"split": "test", "n": 1, "noise": 256}, "noise is 256; it must be from 0 to 255"),
        ({"split": "test", "n": 1, "clouds": -1}, "clouds is -1"),
        ({"split": "test", "n": 1, "seed": -1}, "seed is -1"),
    ],
)
def test_bad_amounts(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluttered(**arguments)


@pytest.mark.bad_input
def test_bad_images_to_normalise():
    with pytest.raises(ValueError, match=r"torch\.float32; normalise wants torch\.uint8"):
        normalise(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\); normalise wants"):
        normalise(torch.zeros(1, 4, 4, dtype=torch.uint8))
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for mean in ((0.5, 0.5), (0.5, 0.5, float("nan")), (0.5, 0.5, float("inf"))):
        with pytest.raises(ValueError, match=r"mean is .*; normalise wants three finite numbers"):
            normalise(image, mean)
    for std in ((0.5, 0.5), (0.5, 0.5, 0.0), (-1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match=r"std is .*three finite numbers above 0"):
            normalise(image, std=std)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A copy of the shipped files that a test may damage."""
    copy = tmp_path / "assets"
    shutil.copytree(_assets.FOLDER, copy)
    monkeypatch.setattr(_assets, "FOLDER", copy)
    data._items.cache_clear()
    yield copy
    data._items.cache_clear()


@pytest.mark.bad_input
def test_missing_and_damaged_pieces_are_named(shipped):
    piece = shipped / "fashion-validation.xz"
    raw = bytearray(piece.read_bytes())
    raw[1000] ^= 1
    piece.write_bytes(raw)
    with pytest.raises(ValueError, match=r"fashion-validation\.xz is damaged; reinstall ckdlite"):
        cluttered("validation", 1)
    piece.unlink()
    with pytest.raises(FileNotFoundError, match=r"fashion-validation\.xz is missing.*git checkout"):
        cluttered("validation", 1)


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["", "{", "[]", '{"test": 3}', '{"test": [{"name": "x"}]}'])
def test_damaged_manifest_is_named(shipped, content):
    (shipped / "fashion.json").write_text(content)
    with pytest.raises(ValueError, match=r"fashion\.json is damaged"):
        cluttered("test", 1)


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["[", '[{"name": "x"}]', '[{"name": "x", "index": -1}]', "3"])
def test_damaged_cast_is_named(shipped, content):
    (shipped / "cast.json").write_text(content)
    with pytest.raises(ValueError, match=r"cast\.json is damaged"):
        cast()


class FakeCifar:
    """Stands for torchvision's class: the official files are not here, and need not be."""

    base_folder = "cifar-10-batches-py"

    def __init__(self, root, train, transform, download):
        if root == "nowhere" and not download:
            raise RuntimeError("Dataset not found or corrupted.")
        self.train, self.transform, self.download = train, transform, download
        self.targets = [i * 7 % 10 for i in range(50_000 if train else 10_000)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return i, self.targets[i]


def test_cifar_holds_out_a_balanced_tenth(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", FakeCifar)
    for name in ("cifar10", "cifar100"):
        train, held, test = (cifar(name, "root", split) for split in SPLITS)
        assert [len(train), len(held), len(test)] == [45_000, 5_000, 10_000]
        assert not set(train.indices) & set(held.indices)
        counts = np.bincount([held.dataset.targets[i] for i in held.indices])
        assert counts.tolist() == [500] * 10
        assert held.dataset.train and not test.dataset.train
    again = cifar("cifar10", "root", "validation", transform=str, download=True)
    assert again.indices == held.indices
    assert again.dataset.transform is str and again.dataset.download


@pytest.mark.bad_input
def test_cifar_says_what_is_missing(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py.*download=True"):
        cifar("cifar10", tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="cifar-100-python"):
        cifar("cifar100", tmp_path, "test")
    with pytest.raises(ValueError, match="name is 'cifar'; it must be one of cifar10, cifar100"):
        cifar("cifar", tmp_path, "train")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address on this machine at which its files are served."""
    folder = tmp_path / "served"
    folder.mkdir()
    serve = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_words: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def archive(monkeypatch, served, files):
    """CIFAR-10's archive with these files, served in place of the official one."""
    from torchvision.datasets import CIFAR10

    path = served[0] / CIFAR10.filename
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            about = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    rest = {name: sums[name] for name in files if name != "batches.meta"}
    monkeypatch.setattr(CIFAR10, "url", f"{served[1]}/{path.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [(n, s) for n, s in rest.items() if n != "test"])
    monkeypatch.setattr(CIFAR10, "test_list", [("test", sums["test"])])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return path


def pickles():
    labels = [i % 10 for i in range(20)]
    part = {"data": np.arange(20 * 3072, dtype=np.uint32).astype(np.uint8), "labels": labels}
    part["data"] = part["data"].reshape(20, 3072)
    files = {"one": part, "test": part, "batches.meta": {"label_names": [*"abcdefghij"]}}
    return {name: pickle.dumps(content) for name, content in files.items()}


def test_cifar_is_fetched_once_with_progress_and_checked(monkeypatch, served, tmp_path, capsys):
    there = archive(monkeypatch, served, pickles())
    train = cifar("cifar10", tmp_path / "here", "train", download=True)
    assert len(train) == 10 and train[0][0].size == (32, 32)
    assert "100%" in capsys.readouterr().err  # the bar
    there.unlink()
    assert len(cifar("cifar10", tmp_path / "here", "test", download=True)) == 20
    # A file that has changed since is found at the next start.
    (tmp_path / "here" / "cifar-10-batches-py" / "one").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="missing or damaged in .*cifar-10-batches-py"):
        cifar("cifar10", tmp_path / "here", "train")


@pytest.mark.bad_input
def test_a_damaged_archive_and_no_network_are_named(monkeypatch, served, tmp_path):
    there = archive(monkeypatch, served, pickles())
    there.write_bytes(there.read_bytes()[:-40])  # a fetch that was cut short
    with pytest.raises(FileNotFoundError, match=r"is not the official archive: .* another MD5"):
        cifar("cifar10", tmp_path / "here", "train", download=True)
    assert not (tmp_path / "here" / "cifar-10-batches-py").exists()  # nothing was unpacked
    there.unlink()
    with pytest.raises(FileNotFoundError, match=r"could not be fetched .*without a network, put"):
        cifar("cifar10", tmp_path / "here", "train", download=True)


@pytest.fixture
def pictures(tmp_path):
    """A folder of images of several sizes, kinds and classes."""
    for part, count in (("train", 12), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            where = tmp_path / part / name
            where.mkdir(parents=True)
            for i in range(count):
                size = (40 + 8 * i, 24 + 4 * label)
                colour = (10 * i, 100 * label, 50)
                Image.new("RGB", size, colour).save(where / f"{i}.{'png' if i % 2 else 'jpg'}")
    Image.new("L", (9, 30)).save(tmp_path / "test" / "ant" / "grey.png")
    return tmp_path


def test_folder_reads_images_of_any_size(pictures):
    train, held, test = (folder(pictures, split) for split in SPLITS)
    assert [len(train), len(held), len(test)] == [22, 2, 7]
    assert not set(train.indices) & set(held.indices)
    assert sorted(held.dataset.targets[i] for i in held.indices) == [0, 1]
    assert test.dataset.classes == ["ant", "bee"]
    assert {image.mode for image, _ in test} == {"RGB"}
    assert len({image.size for image, _ in test}) > 3
    assert folder(pictures, "validation").indices == held.indices


def test_folder_resizes_then_transforms(pictures):
    sizes = {image.size for image, _ in folder(pictures, "test", size=16)}
    assert sizes == {(16, 16)}
    seen = folder(pictures, "test", size=16, transform=lambda image: image.size)
    assert seen[0] == ((16, 16), 0)


@pytest.mark.bad_input
def test_folder_says_what_is_wrong(pictures):
    with pytest.raises(FileNotFoundError, match=r"missing; expected .*<class>/<image>"):
        folder(pictures / "nowhere", "train")
    with pytest.raises(ValueError, match="size is 0"):
        folder(pictures, "train", size=0)
    with pytest.raises(ValueError, match="split is 'dev'"):
        folder(pictures, "dev")
    (pictures / "train" / "cat").mkdir()
    with pytest.raises(ValueError, match="only one of them has cat"):
        folder(pictures, "train")
    (pictures / "test" / "cat").mkdir()
    with pytest.raises(ValueError, match="cat has 0 images; a class wants at least 2"):
        folder(pictures, "train")
    shutil.rmtree(pictures / "test")
    (pictures / "test").mkdir()
    with pytest.raises(ValueError, match="has no class folders"):
        folder(pictures, "test")


def test_manifests_are_plain_json():
    for path in _assets.FOLDER.glob("*.json"):
        json.loads(path.read_text())


@pytest.mark.bad_input
@pytest.mark.parametrize("keep", [0, 100, 400])
def test_a_damaged_image_is_named(pictures, keep):
    broken = pictures / "test" / "bee" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:keep])
    test = folder(pictures, "test")
    with pytest.raises(ValueError, match=r"bee/0\.jpg is damaged or no image"):
        list(test)
