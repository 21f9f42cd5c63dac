"""The command line: every recipe runs, every mistake is named, nothing is done twice."""

import csv
import dataclasses
import functools
import json
import math
import os
import signal
import subprocess
import sys

import lightning.pytorch as L
import pytest
import torch
from PIL import Image
from torch import nn

from ckdlite import __version__, cli, data, distill, runs, training
from ckdlite.cli import RECIPES, main
from ckdlite.datamodules import SceneData
from ckdlite.lif import LIF
from ckdlite.networks import pretrained
from ckdlite.runs import checkpoint, history, read
from ckdlite.training import Distil, Teacher

NAMES = sorted(p.stem for p in RECIPES.glob("*.yaml"))
# Those over the scenes; `tests/test_recipes.py` has the bases for CIFAR and what goes over them,
# `tests/test_scale.py` those for ImageNet.
OVERLAYS = [
    *("attention-transfer", "both", "feature-mse", "kd", "label-only", "nld", "paper"),
    *("released", "samd", "teacher"),
]

SMALL = """\
trainer:
  accelerator: cpu
  max_epochs: 1
  check_val_every_n_epoch: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
data: {init_args: {images: 32, batch_size: 16}}
"""
STUDENT = """\
model:
  init_args:
    student: {init_args: {timesteps: 1, neuron: {init_args: {compiled: false}}}}
    gradient_norms_every: 1
"""

whole = data.cluttered


@functools.cache
def few(split, n=None, *, clutter=6):
    return whole(split, 40 if n is None else n, clutter=clutter)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A folder to work in, with a small overlay, and few scenes to validate and test on."""
    monkeypatch.setattr(data, "cluttered", few)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "student.yaml").write_text(STUDENT)


def configs(*names):
    return [word for name in names for word in ("--config", name)]


def fit(*recipes, run="run", small=True, options=()):
    small = ["small.yaml", *(() if "teacher" in recipes else ["student.yaml"])] if small else []
    return main(["fit", *configs("scenes", *recipes, *small), "--run", str(run), *options])


def last(run="run"):
    return read(checkpoint(run, "last"))["state_dict"]


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def complaint(capsys, status):
    """What a command that failed said, on standard error, without a traceback."""
    said = capsys.readouterr().err
    assert status == 1
    lines = [line for line in said.splitlines() if line.startswith("ckdlite: ")]
    assert lines
    assert "Traceback" not in said
    assert "Namespace(" not in said and "<class 'NoneType'>" not in said
    return said[said.index("ckdlite: ") :]


# ---------------------------------------------------------------- every recipe


def test_the_recipes_are_there():
    """Each is tried somewhere: here over the scenes, in tests of its own, or in chapter 4.1."""
    elsewhere = {name for name in NAMES if name.startswith(("cifar", "imagenet"))}
    elsewhere |= {"folder", "short", "tiny"}
    assert set(NAMES) == {"scenes", "photos", *OVERLAYS} | elsewhere


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_every_recipe_runs(tmp_path, overlay):
    """Over the base: two steps, a validation, and what they leave."""
    assert fit(*([overlay] if overlay else [])) == 0
    run = tmp_path / "run"
    saved = read(checkpoint(run, "last"))
    assert saved["global_step"] == 2
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    names = set().union(*history(run))
    assert {"val/accuracy", "val/ce", "val/peak_on_object", "val/mass_on_object"} <= names
    if saved["recipe"]["module"] == "Distil":
        assert {"train/loss", "val/divergence", "val/firing_rate", "rate/stem_act"} <= names
        terms = ("kd", "samd", "nld", "feature_mse", "attention_transfer")
        for term in terms:
            on = saved["recipe"][term]["weight"] > 0
            assert (f"train/{term}" in names) == (f"gradient/{term}" in names) == on
    assert list(run.glob("tensorboard/version_0/events*"))
    assert main(["test", "--run", "run"]) == 0


def test_photographs_in_place_of_scenes(tmp_path, capsys):
    """A teacher of one's own is wanted, and taken from where the recipe says."""
    for part, count in (("train", 10), ("test", 2)):
        for label in range(10):
            (tmp_path / "mine" / part / str(label)).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (40, 32), (20 * label, 20 * i, 90))
                picture.save(tmp_path / "mine" / part / str(label) / f"{i}.png")
    options = ["--data.root", "mine", "--data.images", "16"]
    assert "runs/photos-teacher is missing" in complaint(
        capsys, fit("photos", "kd", options=options)
    )
    assert fit("photos", "teacher", run="runs/photos-teacher", options=options) == 0
    assert fit("photos", "kd", options=options) == 0
    names = set().union(*history(tmp_path / "run"))
    assert {"val/accuracy", "val/divergence"} <= names and "val/peak_on_object" not in names
    assert main(["test", "--run", "run"]) == 0
    assert set(json.loads((tmp_path / "run" / "test.json").read_text())["scores"]) >= {"accuracy"}


def test_from_teacher_to_students_score(tmp_path, capsys):
    """The commands of the help, in their order; scenes as large as they are."""
    data.cluttered = whole  # the fixture puts it back
    limits = ["--trainer.limit_val_batches", "0.15", "--trainer.limit_test_batches", "0.1"]
    assert fit("teacher", run="runs/teacher", options=limits) == 0
    teacher = last("runs/teacher")
    options = [*limits, "--model.teacher_weights", "runs/teacher"]
    assert fit("paper", run="runs/paper", options=options) == 0
    student = last("runs/paper")
    for name, value in teacher.items():
        assert torch.equal(value, student[name.replace("network.", "teacher.")])
    (tmp_path / "runs" / "teacher").rename("gone")  # the student's checkpoint holds the teacher
    assert main(["validate", "--run", "runs/paper"]) == 0
    assert "val/divergence" in capsys.readouterr().out
    assert main(["test", "--run", "runs/paper"]) == 0
    assert "test/divergence" in capsys.readouterr().out
    said = json.loads((tmp_path / "runs" / "paper" / "test.json").read_text())
    assert said["checkpoint"] == "best.ckpt" and said["epoch"] == 0
    assert said["torch"] == torch.__version__ and said["ckdlite"] == __version__
    assert said["scores"].keys() == {
        *("ce", "accuracy", "divergence", "rank_correlation", "firing_rate"),
        *("peak_on_object", "mass_on_object"),
    }
    assert (tmp_path / "runs" / "paper" / "config.yaml").exists()


def test_a_score_is_the_same_for_a_file_and_for_the_last_one(tmp_path):
    assert fit("kd") == 0
    assert main(["test", "--run", "run", "--checkpoint", "last"]) == 0
    first = json.loads((tmp_path / "run" / "test.json").read_text())
    (tmp_path / "run" / "test.json").unlink()
    path = str(checkpoint("run", "last"))
    assert main(["test", "--run=run", "--checkpoint", path]) == 0
    second = json.loads((tmp_path / "run" / "test.json").read_text())
    assert first["checkpoint"] == second["checkpoint"] == "last.ckpt"
    same = {k: v for k, v in first["scores"].items() if not math.isnan(v)}
    assert same and {k: second["scores"][k] for k in same} == same


# ---------------------------------------------------------------- the differences of chapter 3.5


def spy(patch, where, name):
    """The calls of a function."""
    real, calls = getattr(where, name), []

    @functools.wraps(real)
    def noted(*args, **kwargs):
        calls.append((args, kwargs))
        return real(*args, **kwargs)

    patch.setattr(where, name, noted)
    return calls


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_differences_reach_the_losses(monkeypatch, recipe):
    released = recipe == "released"
    cams, grad_cams = (spy(monkeypatch, training, name) for name in ("cam", "grad_cam"))
    samds, nlds, kds = (spy(monkeypatch, distill, name) for name in ("samd", "nld", "kd"))
    guides, modes = spy(monkeypatch, Distil, "_guide"), []
    step = Distil.training_step

    @functools.wraps(step)
    def watched(module, *args):
        modes.append(module.teacher.training)
        return step(module, *args)

    monkeypatch.setattr(Distil, "training_step", watched)
    # One step, and no validation: every call is of that step.
    options = ["--data.images", "16", "--trainer.check_val_every_n_epoch", "2"]
    assert fit(recipe, options=options) == 0
    (((module, images, labels), _),) = guides
    teacher = pretrained("teacher").train(released).to(memory_format=torch.channels_last)
    with torch.no_grad():
        predicted = teacher(images).argmax(1)
    assert not torch.equal(predicted, labels)  # or the classes would not tell them apart
    # 1: the kind of the teacher's map, and its class
    if released:
        (((_, weight, target), _),) = cams
        assert torch.equal(weight, teacher.head.weight)
        assert torch.equal(target, predicted)
        assert grad_cams == []
    else:
        (((network, layer, seen, target), _),) = grad_cams
        assert network is module.teacher and layer == "stage3" and seen is images
        assert torch.equal(target, labels)
        assert cams == []
    # 2 and 3
    ((_, options),) = samds
    assert options == {
        "temperature": 2.0,
        "normalise": "batch" if released else "sample",
        "square": not released,
    }
    # 5, 6 and 7
    ((_, options),) = nlds
    assert options == {
        "strength": 0.1,
        "temperature": 2.0,
        "draws": 1,
        "mix": "probabilities" if released else "logits",
        "spread": "variance" if released else "std",
        "detach_statistics": not released,
    }
    assert kds == []
    # 4 and 9: the student
    student = module.student
    assert isinstance(student.stage3[-1].act2, nn.ReLU if released else LIF)
    assert isinstance(student.stage2[-1].act2, LIF)
    linear = [m for m in student.modules() if isinstance(m, nn.Linear)]
    widths = [(m.in_features, m.out_features) for m in linear]
    assert widths == ([(64, 256), (256, 10)] if released else [(64, 10)])
    # 8: the teacher's batch norm
    assert modes == [released]


def test_the_recipes_of_one_term_have_that_one(monkeypatch):
    wanted = {"label-only": set(), "kd": {"kd"}, "samd": {"samd"}, "nld": {"nld"}}
    wanted |= {"paper": {"samd", "nld"}, "released": {"samd", "nld"}}
    wanted |= {name: {name.replace("-", "_")} for name in ("feature-mse", "attention-transfer")}
    for name, terms in wanted.items():
        found = []

        @functools.wraps(L.Trainer.fit)  # the parser reads its signature
        def look(_trainer, module, *_, found=found, **__):
            found.append(module)

        monkeypatch.setattr(L.Trainer, "fit", look)
        assert fit(name, run=f"run-{name}") == 0
        (module,) = found
        on = {name for name, term in module.terms.items() if term.weight}
        assert on == terms, name
        if name != "released":  # everything else is the library's default, which is the paper
            for term, given in module.terms.items():
                assert dataclasses.replace(given, weight=0.0) == type(given)(), (name, term)


# ---------------------------------------------------------------- seeds and settings


def test_one_seed_fixes_everything(tmp_path):
    """Weights to begin with, order, augmentation and noise."""
    assert fit("nld", run="a") == 0
    torch.manual_seed(77)  # what was drawn before does not matter
    assert fit("nld", run="b") == 0
    assert fit("nld", run="c", options=["--seed_everything", "1"]) == 0
    a, b, c = last("a"), last("b"), last("c")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert {k for k in a if k.startswith("student.") and k.endswith("0.weight")} <= {
        k for k in a if not torch.equal(a[k], c[k])
    }
    first = [row["train/loss"] for row in history("a") if "train/loss" in row]
    assert first == [row["train/loss"] for row in history("b") if "train/loss" in row]
    assert "seed: 1\n" in (tmp_path / "c" / "config.yaml").read_text()


def test_the_written_settings_are_those_of_the_run(tmp_path):
    """The run's config.yaml alone repeats it."""
    assert fit("nld", options=["--model.nld.strength", "0.3", "--seed_everything", "5"]) == 0
    assert main(["fit", "--config", "run/config.yaml", "--run", "again"]) == 0
    a, b = last("run"), last("again")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert read(checkpoint("again", "last"))["recipe"]["nld"]["strength"] == 0.3


def test_settings_of_my_own(tmp_path, monkeypatch):
    """A network from a module of mine, short names of the library's classes, another logger."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self, width: int = 3):\n"
        "        super().__init__()\n"
        "        eyes = torch.nn.Conv2d(3, width, 3, stride=4)\n"
        "        self.eyes = torch.nn.Sequential(eyes, torch.nn.ReLU())\n"
        "        self.mouth = torch.nn.Linear(width, 10)\n"
        "    def forward(self, x):\n"
        "        return self.mouth(self.eyes(x).mean((2, 3)))\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "trainer:\n"
        "  accelerator: cpu\n"
        "  max_epochs: 1\n"
        "  log_every_n_steps: 1\n"
        "  enable_progress_bar: false\n"
        "  logger:\n"
        "    class_path: CSVLogger\n"
        "    init_args: {save_dir: elsewhere}\n"
        "  callbacks:\n"
        "    - class_path: LearningRateMonitor\n"
        "data:\n"
        "  class_path: SceneData\n"
        "  init_args: {images: 8, batch_size: 4}\n"
        "model:\n"
        "  class_path: Distil\n"
        "  init_args:\n"
        "    student: {class_path: mine.Mine, init_args: {width: 4}}\n"
        "    teacher: {class_path: mine.Mine}\n"
        "    student_layer: eyes\n"
        "    teacher_layer: eyes\n"
        "    samd: {weight: 2.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["fit", "--config=mine.yaml", "--run=run"]) == 0
    assert last()["student.eyes.0.weight"].shape == (4, 3, 3, 3)
    assert "train/samd" in set().union(*history("run"))
    (other,) = (tmp_path / "elsewhere").rglob("metrics.csv")
    with other.open() as lines:
        assert "lr-SGD" in next(csv.reader(lines))


# ---------------------------------------------------------------- a folder that is there


def test_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    options = ["--trainer.max_epochs", "2"]
    assert fit("nld", run="unbroken", options=options) == 0

    class Stop(Exception):
        pass

    def stop(module, *_):
        if module.global_step == 3:
            raise Stop
        seed(module, *_)

    seed = training._Learner.on_train_batch_start
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training._Learner, "on_train_batch_start", stop)
        fit("nld", options=options)
    settings = (tmp_path / "run" / "config.yaml").read_bytes()
    capsys.readouterr()
    assert fit("nld", options=options) == 0
    assert "ckdlite: run holds a run; going on with it" in capsys.readouterr().err
    a, b = last("unbroken"), last("run")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert str(history("unbroken")) == str(history("run"))  # NaN is not itself
    assert (tmp_path / "run" / "config.yaml").read_bytes() == settings

    # Now it has ended: the same command does nothing more.
    before = contents(tmp_path / "run" / "checkpoints")
    assert fit("nld", options=options) == 0
    assert contents(tmp_path / "run" / "checkpoints") == before
    assert str(history("unbroken")) == str(history("run"))  # NaN is not itself


def test_a_run_that_never_got_to_a_checkpoint_begins_anew(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed_every")  # cut off by a kill
    assert fit("kd") == 0
    assert "seed_everything: 0" in (folder / "config.yaml").read_text()


@pytest.mark.bad_input
def test_other_settings_in_its_folder_are_refused(tmp_path, capsys):
    mine = ["--model.samd.weight", "1.5"]
    assert fit("samd", options=mine) == 0
    assert fit("teacher", run="teacher") == 0
    before = contents(tmp_path / "run" / "checkpoints")
    settings = (tmp_path / "run" / "config.yaml").read_bytes()
    for options, said in (
        (["--model.samd.weight", "2"], "samd.weight: saved 1.5, now 2.0"),
        (["--seed_everything", "3"], "seed: saved 0, now 3"),
        (["--trainer.max_epochs", "2"], "max_epochs: saved 1, now 2"),
        (["--data.images", "48"], "data.images: saved 32, now 48"),
        (["--model.teacher_weights", "teacher"], "teacher_weights: saved "),
        (
            ["--model.student.init_args.timesteps", "2"],
            "student: saved ResNet( timesteps=1 (stem): Frames( (0): Conv2d(3, 16, kerne, now "
            "ResNet( timesteps=2",
        ),
        (["--model.student.init_args.head_width", "8"], "student.head.0.weight: saved (not there)"),
    ):
        capsys.readouterr()
        text = complaint(capsys, fit("samd", options=[*mine, *options]))
        assert said in text
        assert "give the settings of that run, or another folder" in text
    assert contents(tmp_path / "run" / "checkpoints") == before
    assert (tmp_path / "run" / "config.yaml").read_bytes() == settings
    # What changes no result may change.
    free = ["--model.gradient_norms_every", "0", "--trainer.log_every_n_steps", "2"]
    assert fit("samd", options=[*mine, *free]) == 0


@pytest.mark.bad_input
def test_the_test_set_answers_once(tmp_path, capsys):
    assert fit("kd") == 0
    assert main(["test", "--run", "run"]) == 0
    first = (tmp_path / "run" / "test.json").read_text()
    capsys.readouterr()
    for options in ([], ["--checkpoint", "last"]):
        text = complaint(capsys, main(["test", "--run", "run", *options]))
        assert first in text and "remove the file if you mean it" in text
    assert (tmp_path / "run" / "test.json").read_text() == first


# ---------------------------------------------------------------- what is chosen, and what on


def test_the_test_images_choose_where_that_is_wanted(tmp_path, capsys):
    """It is said aloud, belongs to the run, and stands in its scores."""
    chosen = {}
    for flag in ("true", "false"):
        assert fit("kd", run=flag, options=["--select_on_test", flag]) == 0
        warned = "WARNING: --select_on_test: the best epoch is chosen on the test images"
        assert (warned in capsys.readouterr().err) == (flag == "true")
        assert main(["test", "--run", flag]) == 0
        assert (warned in capsys.readouterr().err) == (flag == "true")
        written = json.loads((tmp_path / flag / "test.json").read_text())
        chosen[flag] = written["selected_on"]
        (row,) = (row for row in history(flag) if "val/accuracy" in row)
        same = written["scores"]["mass_on_object"] == pytest.approx(row["val/mass_on_object"])
        assert same == (flag == "true")
    assert chosen == {"true": "test", "false": "validation"}
    assert fit("kd", run="true") == 1  # without the flag it is another run
    assert "data.select_on_test: saved True, now False" in capsys.readouterr().err
    (tmp_path / "false" / "test.json").unlink()
    assert main(["test", "--run", "false", "--checkpoint", "last"]) == 0
    written = json.loads((tmp_path / "false" / "test.json").read_text())
    assert written["selected_on"] == "nothing: the last epoch"


@pytest.mark.bad_input
def test_data_that_cannot_choose_on_its_test_images(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(
        "import lightning.pytorch as L\nclass Own(L.LightningDataModule):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flag = ["--select_on_test", "true", "--data", "own.Own"]
    assert main(["fit", *configs("scenes"), "--run", "run", *flag]) == 1
    assert "--select_on_test: Own cannot validate on its test images" in capsys.readouterr().err


def test_what_a_run_is_begins_its_output(capsys):
    assert fit("kd", options=["--model.base_batch", "8"]) == 0
    assert (
        "ckdlite: effective batch 16 = 16 images x 1 devices x 1 machines x 1 accumulated\n"
        "ckdlite: learning rate 0.2 = 0.1 x 16 / 8, the linear rule, without a warm-up\n"
        "ckdlite: batch norm over the 16 images of a batch\n"
        "ckdlite: precision 32-true\n"
    ) in capsys.readouterr().err


def test_a_gpu_gets_half_precision_unless_told(monkeypatch):
    class Made(Exception):
        pass

    def made(_cli, settings, _callbacks):
        raise Made(settings["precision"])

    monkeypatch.setattr(cli._CLI, "_instantiate_trainer", made)
    monkeypatch.setattr(cli, "precision", lambda accelerator: f"chosen for {accelerator}")
    for options, wanted in (
        ([], "chosen for cpu"),
        (["--trainer.precision", "64-true"], "64-true"),
    ):
        with pytest.raises(Made, match=f"^{wanted}$"):
            fit("kd", options=options)


# ---------------------------------------------------------------- what goes wrong in a run


def test_a_run_leaves_signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    assert fit("kd") == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.bad_input
def test_a_process_that_loads_data_is_killed(tmp_path, monkeypatch, capsys):
    """As where memory is short. The same command goes on."""
    (tmp_path / "dies.py").write_text(
        "import os, signal, torch\n"
        "class Dies(torch.nn.Module):\n"
        "    def forward(self, image):\n"
        "        if torch.utils.data.get_worker_info() and os.path.exists('short'):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return image\n"
    )
    (tmp_path / "dies.yaml").write_text(
        "data: {init_args: {augment: [{class_path: dies.Dies}], workers: 1}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "short").touch()
    dies = ["--config", "dies.yaml"]
    assert fit("kd", options=dies) == 1
    said = capsys.readouterr().err
    assert "ckdlite: a process that loads data has ended: DataLoader worker (pid" in said
    assert "--data.workers" in said and "/dev/shm" in said and "The same command goes on" in said
    (tmp_path / "short").unlink()
    assert fit("kd", options=dies) == 0


@pytest.mark.bad_input
def test_an_error_of_somebody_elses_is_not_the_loaders(monkeypatch):
    def fails(*_args, **_options):
        raise RuntimeError("mine")

    monkeypatch.setattr(L.Trainer, "fit", fails)
    with pytest.raises(RuntimeError, match="^mine$"):
        fit("kd")


@pytest.mark.bad_input
@pytest.mark.parametrize("recipe", ["teacher", "paper", "released"])
def test_a_run_that_diverges(tmp_path, capsys, recipe):
    options = ["--model.optimizer.lr", "1e30", "--trainer.max_epochs", "4"]
    text = complaint(capsys, fit(recipe, options=options))
    assert "training diverged: " in text and ", epoch " in text and ", step " in text
    assert "a lower learning rate (--model.optimizer.lr)" in text
    for path in tmp_path.rglob("*.ckpt"):
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert all(v.isfinite().all() for v in saved.values())


@pytest.mark.bad_input
def test_a_full_disk(tmp_path, monkeypatch, capsys):
    def full(_file):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", full)
        text = complaint(capsys, fit("kd"))
    assert "could not be written: No space left on device; none is kept. Free some space" in text
    assert not list(tmp_path.rglob("*.part"))
    assert fit("kd") == 0


@pytest.mark.bad_input
def test_a_disk_too_full_for_a_log(monkeypatch, capsys):
    """Not only checkpoints are written."""

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("lightning.fabric.loggers.csv_logs._ExperimentWriter.save", full)
    text = complaint(capsys, fit("kd"))
    assert "No space left on device" in text and "give the same command again" in text


@pytest.mark.bad_input
def test_a_damaged_checkpoint(capsys):
    assert fit("kd") == 0
    for which in ("last", "best"):
        path = checkpoint("run", which)
        path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    assert "last.ckpt is damaged" in complaint(capsys, fit("kd"))
    for command in ("validate", "test"):
        text = complaint(capsys, main([command, "--run", "run"]))
        assert "best.ckpt is damaged" in text and "Remove it, or take the other" in text


@pytest.mark.bad_input
def test_nothing_to_score(tmp_path, capsys):
    for command in ("validate", "test"):
        text = complaint(capsys, main([command, "--run", "nowhere"]))
        assert "nowhere/config.yaml is missing: no run is there" in text
        text = complaint(capsys, main([command, "--run", "nowhere", *configs("scenes")]))
        assert "holds no run whose first epoch has ended" in text
    assert fit("kd", options=["--trainer.check_val_every_n_epoch", "2"]) == 0
    capsys.readouterr()
    text = complaint(capsys, main(["test", "--run", "run"]))
    assert "no epoch was validated yet" in text and "--checkpoint last" in text
    text = complaint(capsys, main(["test", "--run", "run", "--checkpoint", "run/no.ckpt"]))
    assert "run/no.ckpt is missing" in text
    assert main(["test", "--run", "run", "--checkpoint", "last"]) == 0
    assert not (tmp_path / "nowhere" / "checkpoints").exists()


# ---------------------------------------------------------------- what is said wrong

WRONG = {
    "an unknown key": (["--model.samd.nosuch", "1"], ["samd.nosuch"]),
    "an unknown key of the data": (["--data.imagess", "8"], ["imagess", "SceneData"]),
    "an unknown key of the trainer": (["--trainer.max_epoch", "1"], ["--trainer.max_epoch"]),
    "an unknown key at all": (["--nosuch", "1"], ["--nosuch"]),
    "a word for a number": (["--model.samd.weight", "many"], ["samd.weight", "float", "many"]),
    "a word that is no choice": (
        ["--model.samd.normalise", "samples"],
        ["samd.normalise", "'sample', 'batch', 'zscore'", "samples"],
    ),
    "a number out of range": (
        ["--model.samd.weight", "-1"],
        ["ckdlite: samd.weight: got -1.0, wanted a finite number of at least 0"],
    ),
    "an unknown layer": (
        ["--model.student_layer", "stage9"],
        ["ckdlite: layer: got 'stage9', which ResNet has not; near it are stage3"],
    ),
    "an unknown layer of the teacher": (["--model.teacher_layer", "body"], ["got 'body', which"]),
    "an unknown class": (["--model.student.class_path", "ckdlite.networks.resnet9"], ["resnet9"]),
    "an unknown shipped network": (
        ["--model.teacher.init_args.name", "student"],
        ["pretrained: got 'student', wanted one of teacher, label-only"],
    ),
    "no teacher": (["--model.teacher_weights", "nowhere"], ["ckdlite: nowhere is missing"]),
    "too few images": (["--data.images", "10"], ["images and batch_size: got 10 and 16"]),
    "no such device": (["--trainer.accelerator", "abacus"], ["abacus"]),
    "no epochs": (["--trainer.max_epochs", "-1"], ["max_epochs: got -1, wanted at least 1"]),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_option(capsys, mistake):
    options, wanted = WRONG[mistake]
    text = complaint(capsys, fit(options=options))
    for part in wanted:
        assert part in text
    assert len(text) < 1500


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("model: {init_args: {samd: {wieght: 1.0}}}", ["wieght", "samd"]),
        ("model: {init_args: {samd: {weight: lots}}}", ["samd.weight", "lots"]),
        ("modle: {init_args: {seed: 1}}", ["modle"]),
        ("trainer: {max_epoch: 3}", ["max_epoch"]),
        ("data: {init_args: {augment: 3}}", ["augment"]),
        ("model: [1, {", ["parsing"]),
    ],
    ids=["key", "type", "part", "trainer", "list", "yaml"],
)
def test_a_wrong_file(tmp_path, capsys, content, wanted):
    (tmp_path / "wrong.yaml").write_text(content)
    text = complaint(capsys, fit("wrong.yaml"))
    for part in wanted:
        assert part in text


@pytest.mark.bad_input
def test_an_unknown_recipe(capsys):
    for name, said in (
        ("scene", "got 'scene', which is neither a file nor a recipe; near it is scenes"),
        ("relased", "near it is released"),
        ("xyz.yaml", f"recipes are {', '.join(NAMES)}"),
    ):
        for given in (["--config", name], [f"--config={name}"], ["-c", name]):
            assert said in complaint(capsys, main(["fit", *given, "--run", "run"]))


@pytest.mark.bad_input
def test_a_command_that_is_not_whole(capsys):
    for arguments, said in (
        ([], "fit,validate,test"),
        (["fti"], "invalid choice: 'fti'"),
        (["fit", "--run", "run"], "required: fit.data, fit.model"),
        (["fit", "--config", "scenes"], "required: fit.run"),
        (["fit", "--run", "run", "--config"], "expected one argument"),
        (["test"], "required: "),
    ):
        assert said in complaint(capsys, main(arguments))


# ---------------------------------------------------------------- help


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_names_the_recipes(capsys):
    for text in (shown(capsys, "--help"), shown(capsys, "fit", "--help")):
        words = text.replace(",", " ").replace(".", " ").split()
        assert set(NAMES) <= set(words)
        assert "ckdlite fit --config scenes --config teacher --run runs/teacher" in text


def test_the_help_of_a_class_explains_its_settings(capsys):
    text = shown(capsys, "fit", "--model.help", "ckdlite.training.Distil")
    for word in ("teacher_drifts", "samd.normalise", "Difference 2", "nld.strength", "--model.kd"):
        assert word in text


def test_the_settings_can_be_shown(capsys):
    text = shown(capsys, "fit", *configs("scenes", "released"), "--run", "run", "--print_config")
    assert "teacher_drifts: true" in text and "normalise: batch" in text


def test_the_version(capsys):
    assert shown(capsys, "--version").split()[-1] == __version__


@pytest.mark.slow
def test_as_a_command(tmp_path):
    """From any folder, with the status of `main`."""

    def said(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "ckdlite.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    helped = said("--help")
    assert helped.returncode == 0 and "released" in helped.stdout and not helped.stderr
    wrong = said("fit", "--config", "scene", "--run", "run")
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.splitlines() == [
        "ckdlite: --config: got 'scene', which is neither a file nor a recipe; near it is scenes"
    ]


def test_the_recipes_say_what_the_classes_take():
    """All of a recipe's values are checked by the parser; the base names every part."""
    text = (RECIPES / "scenes.yaml").read_text()
    for kind in (Distil, SceneData):
        assert f"class_path: {kind.__module__}.{kind.__name__}" in text
    assert (
        f"class_path: ckdlite.training.{Teacher.__name__}" in (RECIPES / "teacher.yaml").read_text()
    )
