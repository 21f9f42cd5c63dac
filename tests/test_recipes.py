"""The recipes for CIFAR: every documented combination trains on generated images of its shape."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import Dataset

from ckdlite import data, datamodules, runs
from ckdlite.cli import RECIPES, main
from ckdlite.runs import checkpoint, history, read

BASES = [f"cifar{n}-resnet{depth}" for n in (10, 100) for depth in (19, 20)]
METHODS = ("label-only", "kd", "paper", "released")
CLASSES = {"cifar10": 10, "cifar100": 100}
# The recipe, but for its size and the compiler.
SMALL = [
    *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
    *("--data.batch_size", "4", "--data.images", "8", "--data.workers", "0"),
]
PLAIN = ["--model.student.neuron.compiled", "false", "--model.gradient_norms_every", "1"]


class Generated(Dataset):
    """Random images of CIFAR's shape, each class in turn."""

    def __init__(self, name, split, transform, count=12):
        self.classes, self.count, self.transform = CLASSES[name], count, transform
        self.seed = len(split)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        draw = torch.Generator().manual_seed(100 * self.seed + i)
        pixels = torch.randint(256, (32, 32, 3), generator=draw, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy())
        label = (7 * i) % self.classes
        return (self.transform(image) if self.transform else image), label


@pytest.fixture(autouse=True)
def generated(monkeypatch, tmp_path):
    def cifar(name, root, split, *, download=False, transform=None):
        return Generated(name, split, transform)

    monkeypatch.setattr(data, "cifar", cifar)
    monkeypatch.chdir(tmp_path)


def fit(base, *overlays, run, options=()):
    configs = [word for name in (base, *overlays) for word in ("--config", name)]
    return main(["fit", "--run", run, *configs, *SMALL, *options])


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_every_method_trains_over_every_base(base):
    """A teacher, and each method with it: two steps, a validation, a test."""
    assert fit(base, f"{base}-teacher", run=f"runs/{base}-teacher") == 0
    classes = CLASSES[base.partition("-")[0]]
    teacher = read(checkpoint(f"runs/{base}-teacher", "last"))
    assert teacher["state_dict"]["network.head.weight"].shape[0] == classes
    for method in METHODS:
        assert fit(base, method, run=f"runs/{method}", options=PLAIN) == 0
        saved = read(checkpoint(f"runs/{method}", "last"))
        assert saved["global_step"] == 2
        weights = saved["state_dict"]
        last = "student.head.1.weight" if method == "released" else "student.head.weight"
        assert weights[last].shape[0] == classes
        # The teacher came from where the recipe says, and its weights have not moved.
        best = read(checkpoint(f"runs/{base}-teacher", "best"))["state_dict"]
        own = {k: v for k, v in weights.items() if k.startswith("teacher.") and "running" not in k}
        for name, value in own.items():
            if "num_batches" not in name:
                assert torch.equal(value, best["network." + name.removeprefix("teacher.")])
        names = set().union(*history(f"runs/{method}"))
        wanted = {"kd": {"kd"}, "paper": {"samd", "nld"}, "released": {"samd", "nld"}}
        for term in ("kd", "samd", "nld"):
            assert (f"train/{term}" in names) == (term in wanted.get(method, ()))
        assert main(["test", "--run", f"runs/{method}"]) == 0


def test_the_bases_differ_in_data_network_and_timesteps_alone():
    """They are files that read alone; what they share must not drift apart."""
    for suffix in ("", "-teacher"):
        texts = set()
        for base in BASES:
            text = (RECIPES / f"{base}{suffix}.yaml").read_text()
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            text = "\n".join(lines).replace("cifar100", "cifar10").replace("resnet19", "resnet20")
            text = re.sub(r" +init_args: \{classes: 100\}\n| +classes: 100\n", "", text)
            texts.add(re.sub(r"timesteps: \d", "timesteps: T", text))
        assert len(texts) == 1


def test_timesteps_and_a_short_run_are_one_option_each():
    base = "cifar10-resnet20"
    assert fit(base, f"{base}-teacher", "short", run=f"runs/{base}-teacher") == 0
    options = [*PLAIN, "--model.student.timesteps", "4"]
    assert fit(base, "paper", "short", run="runs/paper", options=options) == 0
    kept = yaml.safe_load(Path("runs/paper/config.yaml").read_text())
    assert kept["model"]["init_args"]["student"]["init_args"]["timesteps"] == 4
    names = [step["class_path"].rpartition(".")[2] for step in kept["data"]["init_args"]["augment"]]
    assert names == ["RandomCrop", "RandomHorizontalFlip"]
    short = yaml.safe_load((RECIPES / "short.yaml").read_text())
    assert short["trainer"]["max_epochs"] == 20


def test_a_student_without_its_teacher_says_which_folder_is_missing(capsys):
    assert fit("cifar100-resnet20", "kd", run="runs/kd", options=PLAIN) == 1
    assert "runs/cifar100-resnet20-teacher is missing" in capsys.readouterr().err


def test_a_folder_in_place_of_the_official_files(tmp_path):
    """The same recipe, on JPEG files, kept in memory or not: the same batches."""
    for part, count in (("train", 10), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "mine" / part / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (25 * label, 20 * i, 90)).save(folder / f"{i}.jpg")
    base, options = "cifar10-resnet20", ["--data.root", "mine"]
    teacher = f"runs/{base}-teacher"
    for memory in ("false", "true"):
        more = [*options, "--data.memory", memory]
        run = teacher if memory == "true" else "runs/unlike"
        assert fit(base, "folder", f"{base}-teacher", run=run, options=more) == 0
    one, other = (read(checkpoint(run, "last"))["state_dict"] for run in (teacher, "runs/unlike"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert fit(base, "folder", "paper", run="runs/paper", options=[*options, *PLAIN]) == 0
    assert runs.resume("runs/paper")


def test_images_of_several_sizes_are_not_kept_in_memory(tmp_path):
    for part, count in (("train", 2), ("test", 1)):
        for label in range(2):
            folder = tmp_path / "mine" / part / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 30 + label)).save(folder / f"{i}.png")
    module = datamodules.FolderData("mine", size=None, batch_size=2, memory=True)
    with pytest.raises(ValueError, match=r"mine: images of 2 sizes .* give a size"):
        module.train_dataloader()


def test_more_images_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"images: got 13, wanted at most the 12 training images"):
        datamodules.CIFARData(images=13, batch_size=4).train_dataloader()
    with pytest.raises(ValueError, match=r"at least one image"):
        datamodules.CIFARData(images=3, batch_size=4)


def test_every_setting_but_where_the_files_lie_belongs_to_the_run():
    one, other = datamodules.CIFARData(root="here"), datamodules.CIFARData(root="there")
    assert one.recipe() == other.recipe()
    assert datamodules.CIFARData("cifar100").recipe() != one.recipe()
