"""The recipes for ImageNet: each documented combination trains on generated images of its shape."""

import os
import shutil
import sys

import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import resnet34
from torchvision.transforms import v2

from ckdlite import data, students
from ckdlite.cli import RECIPES, main
from ckdlite.datamodules import FolderData
from ckdlite.networks import OverTime, record
from ckdlite.runs import checkpoint, history, read

BASES = ("imagenet-sew-resnet18", "imagenet-sew-resnet34", "imagenet-spikformer")
METHODS = {"label-only": set(), "kd": {"kd"}, "paper": {"samd", "nld"}}
# The recipe, but for its size and the teacher's trained weights, which lie elsewhere.
SMALL = """\
trainer:
  max_epochs: 1
  check_val_every_n_epoch: 1
  log_every_n_steps: 1
  limit_train_batches: 2
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
data: {init_args: {root: images, batch_size: 2, workers: 0}}
model:
  init_args:
    student: {init_args: {classes: 4}}
    teacher: {init_args: {weights: null, num_classes: 4}}
    gradient_norms_every: 0
"""
SHAPES = {
    "sew_resnet18": ("network.layer4", [2, 2, 512, 7, 7]),
    "sew_resnet34": ("network.layer4", [2, 2, 512, 7, 7]),
    "spikformer": ("network.blocks.5", [2, 2, 384, 14, 14]),
}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Four classes in ImageNet's folders: photographs lying and standing, JPEG."""
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    for part, count in (("train", 3), ("val", 1)):
        for label in range(4):
            where = tmp_path / "images" / part / f"n{label}"
            where.mkdir(parents=True)
            for i in range(count):
                size = (300, 260, 3) if i % 2 else (230, 320, 3)
                pixels = torch.randint(256, size, generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(where / f"{i}.JPEG")
    (tmp_path / "small.yaml").write_text(SMALL)
    # Networks of this size make large checkpoints; the wait for the disk is no part of the tests.
    monkeypatch.setattr(os, "fsync", lambda _file: None)
    yield
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


def fit(base, *overlays, options=()):
    configs = [word for name in (base, *overlays, "small.yaml") for word in ("--config", name)]
    return main(["fit", "--run", "runs/one", *configs, *options])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", BASES)
def test_every_method_trains_over_every_base(base, method):
    """Two steps, a validation, a test; T is one option."""
    steps = 2 if base == "imagenet-sew-resnet18" else 1
    assert fit(base, method, options=["--model.student.timesteps", str(steps)]) == 0
    saved = read(checkpoint("runs/one", "last"))
    assert saved["global_step"] == 2 and saved["recipe"]["module"] == "Distil"
    assert saved["recipe"]["student"].startswith(f"OverTime( timesteps={steps} ")
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    names = set().union(*history("runs/one"))
    assert {"val/accuracy", "val/divergence", "val/rank_correlation"} <= names
    for term in ("kd", "samd", "nld"):
        assert (f"train/{term}" in names) == (term in METHODS[method])
    assert main(["test", "--run", "runs/one"]) == 0


@pytest.mark.parametrize("base", BASES)
def test_the_recipe_as_it_stands(capsys, base):
    """Without the changes above: a trained teacher of 1000 classes, T = 4."""
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", base, "--config", "paper", "--run", "runs/one", "--print_config"])
    assert end.value.code in (0, None)
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["teacher"]["init_args"]["weights"] == "IMAGENET1K_V1"
    assert model["student"]["init_args"] == {"timesteps": 4, "classes": 1000}
    assert model["samd"]["weight"] > 0 and model["nld"]["weight"] > 0


def test_the_bases_of_one_kind_of_student_differ_in_its_depth_alone():
    one, other = ((RECIPES / f"{base}.yaml").read_text() for base in BASES[:2])
    assert one.replace("18", "34") == other.replace("18", "34") and one != other


@pytest.mark.parametrize("name", SHAPES)
def test_a_student_forgets_and_its_map_is_as_large_as_its_teachers(name):
    torch.manual_seed(0)
    images, (layer, shape) = torch.randn(2, 3, 224, 224), SHAPES[name]
    student = getattr(students, name)(timesteps=2, classes=4)
    with torch.no_grad(), record(student, layer) as features:
        once = student(images)
        spikes = features[layer]
        assert torch.equal(student(images), once)
    assert isinstance(student, OverTime) and list(once.shape) == [2, 2, 4]
    assert list(spikes.shape) == shape
    assert spikes.any() and torch.equal(spikes, spikes.round()) and not (spikes < 0).any()
    teacher = resnet34(weights=None, num_classes=4).eval()
    with torch.no_grad(), record(teacher, "layer3", "layer4") as features:
        teacher(images[:1])
    assert list(features["layer4" if shape[-1] == 7 else "layer3"].shape[2:]) == shape[3:]


def test_a_network_for_1000_classes_is_the_default():
    for name, millions in (("sew_resnet18", 11.7), ("sew_resnet34", 21.8), ("spikformer", 13.2)):
        count = sum(p.numel() for p in getattr(students, name)(timesteps=4).parameters())
        assert round(count / 1e6, 1) == millions
        assert f"{millions} million parameters" in getattr(students, name).__doc__


def test_images_of_many_sizes():
    """Cut at random in training; resized and cut out of the middle for a score."""
    crop = v2.RandomResizedCrop(224)
    options = {"size": 224, "resize": 256, "test": "val", "batch_size": 2, "memory": False}
    module = FolderData("images", augment=[crop], **options)
    order = module.train_dataloader()
    order.sampler.set_epoch(0)
    first = next(iter(order))[0]
    assert list(first.shape) == [2, 3, 224, 224] and first.dtype == torch.uint8
    assert torch.equal(next(iter(order))[0], first)  # seed and epoch alone decide
    order.sampler.set_epoch(1)
    assert not torch.equal(next(iter(order))[0], first)
    # By Pillow's own resize, to 256 at the shorter side.
    images, labels = next(iter(module.test_dataloader()))
    with Image.open("images/val/n0/0.JPEG") as picture:
        wide = round(256 * picture.width / picture.height - 0.5)
        middle = picture.resize((wide, 256), Image.Resampling.BILINEAR)
    left = round((wide - 224) / 2)
    middle = v2.functional.pil_to_tensor(middle.crop((left, 16, left + 224, 240)))
    assert torch.equal(images[0], middle) and labels.tolist() == [0, 1]
    assert len(module.val_dataloader().dataset) == 4  # one of each class
    assert module.recipe() != FolderData("images", augment=[crop]).recipe()


# ---------------------------------------------------------------- what is said wrong


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("overlays", "options", "wanted"),
    [
        (
            ["kd"],
            ["--model.teacher.num_classes", "10"],
            ["the student has 4 classes, the teacher 10; wanted the same classes"],
        ),
        (
            ["paper"],
            ["--model.student.classes", "3", "--data.batch_size", "8"],
            ["the data has label 3, the student 3 classes, numbered from 0"],
        ),
        (["label-only"], ["--model.teacher.num_classes", "10"], ["4 classes, the teacher 10"]),
        (
            ["paper"],
            ["--model.teacher_layer", "layer3"],
            ["'network.layer4' are 7 x 7", "'layer3' 14 x 14", "Nothing is resampled"],
        ),
        (
            ["paper"],
            ["--model.student_layer", "network.layer5"],
            ["got 'network.layer5', which OverTime has not; near it are", "network.layer4"],
        ),
        (["paper"], ["--model.teacher_layer", "stage3"], ["got 'stage3', which ResNet has not"]),
        (["released"], [], ["ckdlite.students.sew_resnet18", "'relu_last' is not accepted"]),
        (["paper"], ["--model.student.steps", "2"], ["sew_resnet18", "steps"]),
        (["paper"], ["--model.student.timesteps", "0"], ["timesteps: got 0"]),
        (["paper"], ["--model.student.classes", "0"], ["classes: got 0, wanted at least 1"]),
        (["paper"], ["--data.root", "nowhere"], ["nowhere/train is missing"]),
        (["paper"], ["--data.test", "test"], ["images/test is missing"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else "-",
)
def test_a_wrong_setting(capsys, overlays, options, wanted):
    assert fit("imagenet-sew-resnet18", *overlays, options=options) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for part in wanted:
        assert part in said


@pytest.mark.bad_input
def test_a_missing_spikingjelly_is_named(capsys, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "spikingjelly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    assert fit("imagenet-spikformer", "paper") == 1
    said = capsys.readouterr().err
    assert "students for ImageNet want SpikingJelly: pip install 'ckdlite[peers]'" in said
    assert "Traceback" not in said
    with pytest.raises(ImportError, match=r"ckdlite\[peers\]"):
        students.sew_resnet34(timesteps=1)


@pytest.mark.bad_input
def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="resize: got 256, .* wanted a step in augment that cuts"):
        FolderData("images", size=224, resize=256, batch_size=2)
    with pytest.raises(ValueError, match="resize is 200; it must be from 224 to"):
        data.folder("images", "test", size=224, resize=200, test="val")
    with pytest.raises(ValueError, match="resize is 256 without a size"):
        data.folder("images", "test", resize=256, test="val")
    os.makedirs("images/val/more")
    with pytest.raises(ValueError, match="train and val must have the same classes; .* more"):
        data.folder("images", "test", test="val")
