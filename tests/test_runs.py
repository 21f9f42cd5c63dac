"""A run's folder: what stops a run leaves a whole one, and the same command ends it the same."""

import contextlib
import csv
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import ckdlite
from ckdlite import data, runs
from ckdlite.datamodules import SceneData
from ckdlite.networks import ResNet, record
from ckdlite.runs import RunError, checkpoint, history, keep, read, resume
from ckdlite.training import NLD, SAMD, Distil, Teacher

STEPS, EPOCHS = 3, 3  # an epoch, a run
whole = data.cluttered


@cache
def few(split, n=None, *, clutter=6):
    return whole(split, 20 if n is None else n, clutter=clutter)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(data, "cluttered", few)


class Stop(Exception):
    """What ends a run here: a kill, seen from inside."""


class StopAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Stop


def build(teacher_seed=0, student=(4,), samd=1.0, rate=0.1, seed=0, kind=Distil, **scenes):
    """Networks, module and data of a small run, from the same seed each time."""
    torch.manual_seed(teacher_seed)
    teacher = ResNet((1,), (4,))
    torch.manual_seed(1)
    network = ResNet((1,) * len(student), student, timesteps=1)
    steps = [v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4)]
    scenes = SceneData(**({"images": 12, "batch_size": 4, "augment": steps, "seed": seed} | scenes))
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9)
    if kind is Teacher:
        return Teacher(teacher, "stage1", optimizer=optimizer, seed=seed), scenes
    losses = {"samd": SAMD(weight=samd), "nld": NLD(weight=1.0)}
    layers = {"student_layer": "stage1", "teacher_layer": "stage1"}
    return Distil(network, teacher, **layers, **losses, optimizer=optimizer, seed=seed), scenes


def trainer(run, epochs=EPOCHS, callbacks=(), **options):
    kept = keep(run)
    kept["callbacks"] = [*callbacks, *kept["callbacks"]]
    plain = {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    plain |= {f"enable_{what}": False for what in ("progress_bar", "model_summary")}
    return L.Trainer(max_epochs=epochs, num_sanity_val_steps=0, **(plain | kept | options))


def start(run, *callbacks, epochs=EPOCHS, **changes):
    """The same command: begin the run, or go on with it."""
    module, scenes = build(**changes)
    trainer(run, epochs, callbacks).fit(module, datamodule=scenes, ckpt_path=resume(run))
    return module


def weights(run, which="last"):
    return read(checkpoint(run, which))["state_dict"]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "cluttered", few)
        start(run)
    return run


def assert_ended_as(unbroken, run):
    """Nothing shows that the run was stopped."""
    for which in ("last", "best"):
        mine, its = read(checkpoint(run, which)), read(checkpoint(unbroken, which))
        assert_same(mine["state_dict"], its["state_dict"])
        for key in ("epoch", "global_step", "recipe", "lr_schedulers"):
            assert mine[key] == its[key]
    assert str(history(run)) == str(history(unbroken))  # a NaN is not itself
    assert not list(Path(run).rglob("*.part"))


# ---------------------------------------------------------------- what a run leaves


def test_what_is_in_the_folder(unbroken):
    assert {str(p.relative_to(unbroken)) for p in unbroken.rglob("*") if p.is_file()} >= {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "csv/version_0/metrics.csv",
        "starts.jsonl",
    }
    assert list(unbroken.glob("tensorboard/version_0/events*"))
    assert len(list(unbroken.rglob("*.ckpt"))) == 2
    assert resume(unbroken) == checkpoint(unbroken, "last")
    assert checkpoint(unbroken) == checkpoint(str(unbroken), "best")


def test_every_start_says_what_trained(tmp_path, monkeypatch):
    with pytest.raises(Stop):
        start(tmp_path, StopAt(5))
    monkeypatch.setenv("PATH", "")  # no git
    start(tmp_path)
    lines = (tmp_path / "starts.jsonl").read_text().splitlines()
    assert len(lines) == 2
    for line, commit in zip(lines, (True, False), strict=True):
        said = json.loads(line)
        assert said["ckdlite"] == ckdlite.__version__ and said["torch"] == torch.__version__
        assert (said["device"], said["processes"]) == ("cpu", 1)
        here = (Path(ckdlite.__file__).parents[1] / ".git").exists()
        assert bool(said["commit"]) == (commit and here)


def test_checkpoints_are_tensors_and_plain_values(unbroken, tmp_path):
    start(tmp_path, kind=Teacher, epochs=1)
    for run, module in ((unbroken, "Distil"), (tmp_path, "Teacher")):
        for which in ("best", "last"):
            saved = torch.load(checkpoint(run, which), weights_only=True)
            assert saved["recipe"]["module"] == module
            assert saved["recipe"]["data"]["images"] == 12


def test_the_best_epoch_is_the_one_with_the_highest_accuracy(unbroken):
    accuracy = [row["val/accuracy"] for row in history(unbroken) if "val/accuracy" in row]
    assert len(accuracy) == EPOCHS
    assert read(checkpoint(unbroken, "best"))["epoch"] == accuracy.index(max(accuracy))
    assert read(checkpoint(unbroken, "last"))["epoch"] == EPOCHS - 1


def test_a_checkpoint_scores_what_its_epoch_did(unbroken):
    """In other settings too: to score a network, its weights are enough."""
    rows = [row for row in history(unbroken) if "val/ce" in row]
    module, scenes = build(samd=0.0, seed=9, rate=1.0, images=4)
    for which in ("best", "last"):
        path = checkpoint(unbroken, which)
        (scores,) = trainer(unbroken, logger=False).validate(
            module, datamodule=scenes, ckpt_path=path, verbose=False
        )
        row = rows[read(path)["epoch"]]
        for name in ("ce", "accuracy", "peak_on_object", "firing_rate"):
            assert scores[f"val/{name}"] == pytest.approx(row[f"val/{name}"], rel=1e-6)


def test_before_the_first_validation_there_is_a_last_checkpoint(tmp_path):
    module, scenes = build()
    trainer(tmp_path, 1, check_val_every_n_epoch=2).fit(module, datamodule=scenes)
    assert resume(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt is missing: .*last\.ckpt"):
        checkpoint(tmp_path)


# ---------------------------------------------------------------- stopped from inside


@pytest.mark.parametrize("step", range(1, STEPS * EPOCHS + 1))
def test_stopped_after_any_step(unbroken, tmp_path, step):
    with pytest.raises(Stop):
        start(tmp_path, StopAt(step))
    whole_epochs = (step - 1) // STEPS
    assert (resume(tmp_path) is None) == (whole_epochs == 0)
    if whole_epochs:
        assert read(resume(tmp_path))["global_step"] == whole_epochs * STEPS
    start(tmp_path)
    assert_ended_as(unbroken, tmp_path)


def test_stopped_again_and_again(unbroken, tmp_path):
    for step in (2, 3, 3, 4, 8, 5, 7, 9):
        # Where the run is past the step already, this start ends it.
        with contextlib.suppress(Stop):
            start(tmp_path, StopAt(step))
    start(tmp_path)
    assert_ended_as(unbroken, tmp_path)


@pytest.mark.parametrize("write", range(1, 2 * EPOCHS + 1))
@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_at_any_write_of_a_checkpoint(monkeypatch, unbroken, tmp_path, write, when):
    """Between the best checkpoint and the last one too."""
    real, count = os.fsync, 0

    def stop(file):
        nonlocal count
        count += 1
        if count == write and when == "before":
            raise Stop
        real(file)

    def stop_after(part, path):
        place(part, path)
        if count == write and when == "after":
            raise Stop

    place = Path.replace
    monkeypatch.setattr(runs.os, "fsync", stop)
    monkeypatch.setattr(Path, "replace", stop_after)
    with contextlib.suppress(Stop):  # not every epoch is the best so far
        start(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(data, "cluttered", few)
    start(tmp_path)
    assert_ended_as(unbroken, tmp_path)


def test_a_run_that_has_ended_is_left_alone(unbroken, tmp_path):
    start(tmp_path)
    before = contents(tmp_path)
    start(tmp_path)
    after = contents(tmp_path)
    kept = [p for p in before if "tensorboard" not in p.parts]
    assert {p: after[p] for p in kept} == {p: before[p] for p in kept}
    assert_ended_as(unbroken, tmp_path)


def test_one_seed_fixes_everything(unbroken, tmp_path):
    start(tmp_path / "same")
    assert_ended_as(unbroken, tmp_path / "same")
    start(tmp_path / "other", seed=1)
    assert not torch.equal(
        weights(unbroken)["student.head.weight"], weights(tmp_path / "other")["student.head.weight"]
    )


# ---------------------------------------------------------------- killed from outside

SMALL = """\
trainer:
  accelerator: cpu
  max_epochs: 3
  check_val_every_n_epoch: 1
  limit_val_batches: 0.15
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
data: {init_args: {images: 128, batch_size: 32}}
model: {init_args: {student: {init_args: {timesteps: 1, neuron: {init_args: {compiled: false}}}}}}
"""


def command(run, said, **environment):
    (run.parent / "small.yaml").write_text(SMALL)
    arguments = "fit --config scenes --config paper --config small.yaml --run".split()
    return subprocess.Popen(
        [sys.executable, "-m", "ckdlite.cli", *arguments, run.name],
        cwd=run.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=said,
        stderr=subprocess.STDOUT,
    )


def wait_for(process, is_so, seconds=300):
    """Whether it became so before the process ended."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if is_so():
            return True
        assert time.monotonic() < end, "the command is stuck"
        time.sleep(0.005)
    return False


def steps_logged(files):
    found = 0
    for file in files:
        with contextlib.suppress(KeyError, ValueError, TypeError), file.open(newline="") as lines:
            found = max([found, *(int(row["step"]) + 1 for row in csv.DictReader(lines))])
    return found


def ended(process, seconds=300):
    try:
        return process.wait(seconds)
    finally:
        process.kill()


TOTAL = 12  # steps of the command's run


@pytest.fixture(scope="module")
def unbroken_command(tmp_path_factory):
    run = tmp_path_factory.mktemp("command") / "unbroken"
    with (run.parent / "said").open("w+") as said:
        status = ended(command(run, said))
        said.seek(0)
        assert status == 0, said.read()
    return run


def assert_ended_as_the_command(unbroken, run):
    assert len(list(run.glob("csv/version_*"))) > 1
    for which in ("last", "best"):
        assert_same(weights(unbroken, which), weights(run, which))
    losses = [
        [(row["step"], row["train/loss"]) for row in history(run) if "train/loss" in row]
        for run in (unbroken, run)
    ]
    assert [step for step, _ in losses[0]] == list(range(TOTAL))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_killed_three_times(unbroken_command, tmp_path):
    """SIGKILL at three random moments of training: the same weights, bit for bit."""
    seed = int(os.environ.get("CKDLITE_KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CKDLITE_KILL_SEED={seed}")
    draw = random.Random(seed)
    killed = tmp_path / "killed"
    with (tmp_path / "said").open("w+") as said:
        for moment in sorted(draw.uniform(0, TOTAL) for _ in range(3)):
            old = set(killed.glob("csv/*/metrics.csv"))
            process = command(killed, said)
            try:
                if wait_for(
                    process,
                    lambda at=int(moment), old=old: (
                        (new := set(killed.glob("csv/*/metrics.csv")) - old)
                        and steps_logged(new) >= at
                    ),
                ):
                    time.sleep(draw.uniform(0, 0.3))  # about one step
                process.send_signal(signal.SIGKILL)
                status = process.wait(60)
            finally:
                process.kill()
            print(f"killed after {moment:.2f} of {TOTAL} steps: {status}")
            assert status in (-signal.SIGKILL, 0)
            if (path := resume(killed)) is not None:
                torch.load(path, weights_only=True)
        status = ended(command(killed, said))
        said.seek(0)
        assert status == 0, said.read()
    assert_ended_as_the_command(unbroken_command, killed)


# What a job of one process has around it.
SLURM = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"}
SLURM |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "run", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "environment"),
    [(signal.SIGTERM, {}), (signal.SIGTERM, SLURM), (signal.SIGUSR1, SLURM)],
    ids=["SIGTERM", "SIGTERM in SLURM", "SIGUSR1 in SLURM"],
)
def test_told_to_end(unbroken_command, tmp_path, number, environment):
    """Pre-emption: it says what to do, ends with a status of its own, and can go on."""
    run = tmp_path / "run"
    with (tmp_path / "said").open("w+") as said:
        process = command(run, said, **environment)
        logs = partial(run.glob, "csv/*/metrics.csv")
        wait_for(process, lambda: steps_logged(logs()) >= TOTAL // 2)
        process.send_signal(number)
        assert ended(process) == 128 + number
        said.seek(0)
        assert said.read().endswith(
            f"\nckdlite: stopped by {number.name}; the epoch in hand is lost. The same command "
            "goes on from the last whole epoch\n"
        )
        # No checkpoint from the middle of an epoch, which Lightning would write in SLURM.
        found = {path.name for path in tmp_path.rglob("*.ckpt")}
        assert found == {"best.ckpt", "last.ckpt"}
        assert read(checkpoint(run, "last"))["global_step"] < TOTAL
        status = ended(command(run, said, **environment))
        said.seek(0)
        assert status == 0, said.read()
    assert_ended_as_the_command(unbroken_command, run)


# ---------------------------------------------------------------- a disk that is full


def heavy(network):
    """Weights that no log file is as large as."""
    network.student.ballast = nn.Parameter(torch.zeros(100_000))
    return network


def save_in(run, **options):
    module, scenes = build()
    trainer(run, **options).fit(heavy(module), datamodule=scenes, ckpt_path=resume(run))


@contextlib.contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused_write(error, cause):
    text = str(error.value)
    assert "a checkpoint of 0.4 MB could not be written: " + cause in text
    assert "Free some space, then give the same command again" in text
    return text


def test_no_space_for_the_first_checkpoint(tmp_path):
    with largest_file(200_000), pytest.raises(RunError) as error:
        save_in(tmp_path)
    assert "; none is kept. " in refused_write(error, "File too large")
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("how", ["limit", "fsync"])
def test_no_space_for_a_later_checkpoint(monkeypatch, tmp_path, how):
    save_in(tmp_path / "unbroken")
    run = tmp_path / "full"
    with pytest.raises(Stop):
        save_in(run, callbacks=[StopAt(STEPS + 1)])
    before = contents(run / "checkpoints")
    assert len(before) == 2
    with pytest.raises(RunError) as error:
        if how == "limit":
            with largest_file(200_000):
                save_in(run)
        else:

            def full(_file):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as patch:
                patch.setattr(runs.os, "fsync", full)
                save_in(run)
    cause = "File too large" if how == "limit" else "No space left on device"
    assert "last.ckpt is still that of an earlier epoch. " in refused_write(error, cause)
    after = contents(run / "checkpoints")
    assert after.keys() == before.keys()
    last = run / "checkpoints" / "last.ckpt"
    assert after[last] == before[last]
    assert read(last)["global_step"] == STEPS
    save_in(run)
    assert_ended_as(tmp_path / "unbroken", run)


def test_a_part_of_a_killed_write_is_in_nobodys_way(unbroken, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for which in ("best", "last"):
        (tmp_path / "checkpoints" / f"{which}.ckpt.part").write_bytes(b"half")
    start(tmp_path)
    assert_ended_as(unbroken, tmp_path)


# ---------------------------------------------------------------- what is refused


@pytest.mark.bad_input
def test_a_folder_that_holds_a_run_is_not_written_over(unbroken):
    before = contents(unbroken)
    module, scenes = build()
    with pytest.raises(RunError, match=r"holds a run, .*ckpt_path=runs\.resume\(folder\), or"):
        trainer(unbroken).fit(module, datamodule=scenes)
    after = contents(unbroken)
    assert {p: after[p] for p in before} == before
    new = after.keys() - before.keys()  # an empty log, which a trainer opens before it asks anyone
    assert all("tensorboard" in p.parts for p in new)
    assert_ended_as(unbroken, unbroken)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samd": 2.0}, ["samd.weight: saved 1.0, now 2.0"]),
        ({"seed": 1}, ["data.seed: saved 0, now 1", "seed: saved 0, now 1"]),
        ({"epochs": 4}, ["max_epochs: saved 3, now 4"]),
        ({"teacher_seed": 7}, ["teacher_weights: saved "]),
        ({"rate": 0.2}, ["optimizer: saved "]),
        ({"images": 16}, ["data.images: saved 12, now 16"]),
        ({"batch_size": 6}, ["data.batch_size: saved 4, now 6"]),
        ({"augment": []}, ["data.augment: saved ['RandomHorizontalFlip"]),
        ({"samd": 2.0, "images": 16}, ["data.images: saved 12", "samd.weight: saved 1.0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_recipe(unbroken, changes, said):
    """The message names what differs, and nothing else."""
    before = contents(unbroken / "checkpoints")
    with pytest.raises(RunError, match="saved by a run of another recipe; give the set") as error:
        start(unbroken, **changes)
    _, *lines = str(error.value).splitlines()
    assert len(lines) == len(said)
    for line, text in zip(lines, said, strict=True):
        assert line.strip().startswith(text)
    if "rate" in changes:
        assert "'lr': 0.1" in lines[0] and "'lr': 0.2" in lines[0]
    assert contents(unbroken / "checkpoints") == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": (6,)}, "student.head.weight: saved [10, 4], now [10, 6]"),
        ({"student": (4, 4)}, "student.stage2.0.conv1.0.weight: saved (not there), now [4, 4, 3"),
        ({"kind": Teacher}, "network.head.weight: saved (not there), now [10, 4]"),
    ],
    ids=["wider", "deeper", "teacher"],
)
def test_a_checkpoint_of_another_network(unbroken, changes, said):
    with pytest.raises(RunError, match="saved by a run of another network") as error:
        start(unbroken, **changes)
    assert said in str(error.value)
    module, scenes = build(**changes)
    with pytest.raises(RunError, match="saved by a run of another network"):
        trainer(unbroken, logger=False).test(
            module, datamodule=scenes, ckpt_path=checkpoint(unbroken)
        )


@pytest.mark.bad_input
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_damaged_checkpoint(unbroken, tmp_path, share):
    start(tmp_path, epochs=1)
    path = checkpoint(tmp_path, "last")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(RunError, match=r"last\.ckpt is damaged .* Remove it, or take the other"):
        start(tmp_path, epochs=1)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.bad_input
def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "evil": Evil()}, "evil.ckpt")
    with pytest.raises(RunError, match=r"evil\.ckpt is damaged or no checkpoint of tensors"):
        read("evil.ckpt")
    module, scenes = build()
    with pytest.raises(RunError, match="no checkpoint of tensors and plain values"):
        trainer("run").fit(module, datamodule=scenes, ckpt_path="evil.ckpt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.bad_input
def test_a_checkpoint_of_somebody_else(tmp_path):
    class Other(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)

        def training_step(self, batch, _index):
            return self.net(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    other = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    other.fit(Other(), DataLoader(TensorDataset(torch.ones(1, 1))))
    other.save_checkpoint(tmp_path / "other.ckpt")
    module, scenes = build()
    with pytest.raises(RunError, match="has no recipe in it: ckdlite did not write it"):
        trainer(tmp_path / "run").fit(module, datamodule=scenes, ckpt_path=tmp_path / "other.ckpt")


@pytest.mark.bad_input
def test_what_is_not_there(tmp_path):
    assert resume(tmp_path) is None
    assert resume(tmp_path / "nowhere") is None
    for which in ("best", "last"):
        with pytest.raises(FileNotFoundError, match=rf"{which}\.ckpt is missing: .* holds no run"):
            checkpoint(tmp_path, which)
    with pytest.raises(FileNotFoundError, match="a checkpoint was wanted"):
        read(tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match="a checkpoint was wanted"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="a run's folder wanted"):
        history(tmp_path)


# ---------------------------------------------------------------- the history, from its files


def write(run, version, text):
    file = run / "csv" / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text(text)


def test_what_was_done_again_counts_once(tmp_path):
    write(tmp_path, 0, "step,train/loss,val/ce\n0,5,\n1,4,\n1,,9\n2,3,\n3,2,\n")
    write(tmp_path, 1, "step,train/loss\n2,30\n")
    write(tmp_path, 2, "step,train/loss\n")  # stopped before it logged
    write(tmp_path, 10, "extra,step,train/loss\n,2,31\n7,3,21\n")  # after 2, not before
    assert history(tmp_path) == [
        {"step": 0, "train/loss": 5},
        {"step": 1, "train/loss": 4},
        {"step": 1, "val/ce": 9},
        {"step": 2, "train/loss": 31},
        {"step": 3, "train/loss": 21, "extra": 7},
    ]
    assert history(str(tmp_path)) == history(tmp_path)


def test_values_that_are_not_finite_are_history_too(tmp_path):
    write(tmp_path, 0, "step,val/rank_correlation\n0,nan\n")
    (row,) = history(tmp_path)
    assert row["val/rank_correlation"] != row["val/rank_correlation"]


@pytest.mark.bad_input
@pytest.mark.parametrize("tail", ["", "1", "1,", "1,0.", "1,-", "1,0.4,1"])
def test_a_line_that_was_cut_off(tmp_path, tail):
    """A killed start may have written half a line."""
    write(tmp_path, 0, f"epoch,train/loss,step\n0,0.5,0\n{tail}")
    assert history(tmp_path) == [{"epoch": 0, "train/loss": 0.5, "step": 0}]


def test_a_table_without_rows(tmp_path):
    write(tmp_path, 0, "")
    assert history(tmp_path) == []


def test_features_are_not_kept_between_steps():
    """No hook is left on a network after a run has been stopped in the middle."""
    module, _ = build()
    with pytest.raises(ValueError), record(module.student, "stage1"):
        module.student(torch.zeros(1))
    assert not any(m._forward_hooks for m in module.student.modules())
