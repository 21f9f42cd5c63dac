"""The benchmark of the data path compares like with like, and its table is whole."""

import csv
import random
from importlib import import_module

import data_path
import numpy
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ckdlite import _assets, datamodules
from ckdlite.cli import RECIPES


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 12), ("test", 1)):
        for label in range(2):
            (tmp_path / part / str(label)).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (32, 32), (25 * label, 9 * i, 90))
                picture.save(tmp_path / part / str(label) / f"{i}.jpg")
    return tmp_path


def images(count=6):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)


def test_a_batch_is_cut_as_its_images_are():
    batch = images()
    top, left = torch.tensor([[0, 8, 4, 1, 7, 3], [8, 0, 4, 2, 6, 5]])
    flip = torch.tensor([False, True, False, True, True, False])
    found = data_path.cut(batch, top, left, flip)
    for image, own, y, x, mirrored in zip(batch, found, top, left, flip, strict=True):
        image = functional.pad(image, [data_path.PADDING])
        image = functional.crop(image, int(y), int(x), 32, 32)
        assert torch.equal(own, functional.horizontal_flip(image) if mirrored else image)


def test_a_batch_is_erased_as_its_images_are():
    batch = images(3)
    top, left, high, wide = torch.tensor([[0, 20, 5], [3, 10, 5], [4, 12, 0], [7, 22, 9]])
    found = data_path.erase(batch, top, left, high, wide)
    for image, own, y, x, h, w in zip(batch, found, top, left, high, wide, strict=True):
        grey = torch.full((3, int(h), int(w)), data_path.GREY, dtype=torch.uint8)
        assert torch.equal(own, functional.erase(image, int(y), int(x), int(h), int(w), grey))


def test_on_a_batch_as_much_is_erased_as_by_the_recipe():
    torch.manual_seed(0)
    batch = torch.full((4000, 3, 32, 32), 255, dtype=torch.uint8)  # padding is 0
    shares = [
        (erased == data_path.GREY).float().mean((1, 2, 3))
        for erased in (
            data_path.on_batch(batch),
            torch.stack([data_path.ERASE(image) for image in batch]),
        )
    ]
    for share in shares:
        assert share.gt(0).float().mean().sub(0.5).abs() < 0.03
    assert shares[0].mean().sub(shares[1].mean()).abs() < 0.004


def test_every_case_runs_and_has_its_row(folder, tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.csv"
    words = [str(folder), "--images", "8", "--rounds", "1", "--table", str(table)]
    monkeypatch.setattr("sys.argv", ["data_path", *words])
    threads = torch.get_num_threads()
    data_path.main()
    torch.set_num_threads(threads)
    for path in (table, _assets.FOLDER / "data-path-cpu.csv"):
        with path.open(newline="") as file:
            rows = {row["case"]: row for row in csv.DictReader(file)}
        assert list(rows) == list(data_path.cases(folder, 8))
        assert rows[data_path.RECIPE]["ratio"] == "1.0"
        for row in rows.values():
            least, middle, most = (float(row[n]) for n in ("least", "microseconds", "most"))
            assert 0 < least <= middle <= most


def test_both_paths_end_in_a_batch_of_bytes(folder):
    timed = data_path.cases(folder, 8)
    for name in (data_path.RECIPE, "whole path, three on the batch", "kept in memory, by itself"):
        found = timed[name]()
        assert found.shape == (8, 3, 32, 32) and found.dtype == torch.uint8


def test_the_decision_quotes_the_table():
    with (_assets.FOLDER / "data-path-cpu.csv").open(newline="") as file:
        ratio = {row["case"]: float(row["ratio"]) for row in csv.DictReader(file)}
    said = " ".join(datamodules._Augmented.__doc__.split())
    batch, memory = ratio["whole path, three on the batch"], ratio["kept in memory, by itself"]
    assert f"would take {batch:.2f} of the time" in said
    assert f"images kept in memory {memory:.2f}" in said


def test_no_augmentation_of_a_recipe_draws_from_numpy_or_python(folder):
    """Neither moves, and one seed gives one image, so the number of workers cannot matter."""
    texts = [path.read_text() for path in sorted(RECIPES.glob("*.yaml"))]
    given = [(yaml.safe_load(text).get("data") or {}).get("init_args", {}) for text in texts]
    found = {str(own["augment"]): own["augment"] for own in given if own.get("augment")}
    assert len(found) > 1
    for steps in found.values():
        augment = []
        for step in steps:
            module, _, name = step["class_path"].rpartition(".")
            options = dict(step.get("init_args", {}))
            if "policy" in options:
                options["policy"] = v2.AutoAugmentPolicy[options["policy"]]
            augment.append(getattr(import_module(module), name)(**options))
        pictures = datamodules._Augmented([(images(1)[0], 0)], augment)
        states = numpy.random.get_state()[1].tolist(), random.getstate()
        seen = [pictures[0, seed][0] for seed in range(20)]
        assert (numpy.random.get_state()[1].tolist(), random.getstate()) == states
        assert any(not torch.equal(seen[0], one) for one in seen[1:])
        again = [pictures[0, seed][0] for seed in range(20)]
        assert all(torch.equal(*pair) for pair in zip(seen, again, strict=True))
