"""Several processes, and half precision, as far as a CPU goes: two processes by gloo, on loopback.

What needs a GPU (synchronised batch norm, NCCL, fp16 and bfloat16 on one) is not tested here; the
list is in `launch/README.md`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.distributed.run import get_args_parser
from torch.utils.data import DataLoader, TensorDataset

from ckdlite import data, distill, runs
from ckdlite.cli import main
from ckdlite.datamodules import SceneData
from ckdlite.networks import ResNet
from ckdlite.runs import RunError, checkpoint, history, keep, read, resume
from ckdlite.training import KD, NLD, SAMD, Distil, Teacher

LAUNCH = Path(__file__).parent.parent / "launch"
PLAIN = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
PLAIN |= {f"enable_{what}": False for what in ("progress_bar", "model_summary")}
QUIET = PLAIN | {"logger": False, "enable_checkpointing": False}

# Where most steps are left out, as float16 does at first with so large a scale.
no_step = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning")
no_validation = pytest.mark.filterwarnings(
    "ignore:You defined a .validation_step. but have no .val_dataloader.:UserWarning"
)


def made(kind=Distil, normalise="sample", **options):
    """A small run's module, the same each time."""
    torch.manual_seed(0)
    teacher, student = ResNet((1,), (4,)), ResNet((1,), (4,), timesteps=2)
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)} | options
    terms = {"samd": SAMD(weight=1.0, normalise=normalise), "nld": NLD(weight=1.0)}
    return kind(student, teacher, "stage1", "stage1", gradient_norms_every=0, **terms, **options)


def images(n=8):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, 8, 8, generator=draw, dtype=torch.float64)
    noise = torch.randn(n, 10, generator=draw, dtype=torch.float64)
    return TensorDataset(x, torch.randint(10, (n,), generator=draw), noise)


# ---------------------------------------------------------------- one step on two processes


class PerSample(Distil):
    """Each image brings its own noise; batch norm in eval mode; the step's gradients are kept."""

    path = ""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def training_step(self, batch, index):
        x, labels, noise = batch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distill, "nld", partial(distill.nld, noise=noise))
            return super().training_step((x, labels), index)

    def on_before_optimizer_step(self, _optimizer):
        if self.global_rank == 0:
            found = {n: p.grad for n, p in self.named_parameters() if p.grad is not None}
            torch.save(found, self.path)


def gradients(path, processes, normalise):
    module = made(PerSample, normalise)
    module.path = path
    several = {"devices": processes, "strategy": "ddp_spawn"} if processes > 1 else {}
    trainer = L.Trainer(max_epochs=1, precision="64-true", **(QUIET | several))
    # Lightning shares the images out: process r of n gets every n-th.
    trainer.fit(module, DataLoader(images(), 8 // processes))
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@no_validation
@pytest.mark.parametrize("normalise", ["sample", "batch"])
def test_one_steps_gradients_are_those_of_one_process(monkeypatch, tmp_path, normalise):
    """To rounding, in float64, where nothing is taken over a batch; else they differ."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    alone = gradients(tmp_path / "alone", 1, normalise)
    two = gradients(tmp_path / "two", 2, normalise)
    assert alone.keys() == two.keys() and len(alone) == 11
    assert all(name.startswith("student.") for name in alone)
    largest = max(float((alone[n] - two[n]).abs().max() / alone[n].abs().max()) for n in alone)
    assert largest < 1e-12 if normalise == "sample" else largest > 1e-6


# ---------------------------------------------------------------- a run by torchrun

SMALL = """\
trainer:
  accelerator: cpu
  max_epochs: 3
  check_val_every_n_epoch: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
data: {init_args: {images: 37, batch_size: 6}}
model: {init_args: {student: {init_args: {timesteps: 1, neuron: {init_args: {compiled: false}}}}}}
"""
# The command, but for few images to validate and test on, a note of what each process is given,
# and what breaks.
COMMAND = """\
import os, resource, signal, sys

import torch
from ckdlite import cli, data, datamodules, training

rank, breaks = os.environ["RANK"], os.environ.get("BREAKS", "")
whole, order = data.cluttered, datamodules._Order.__iter__
seed = training._Learner.on_train_batch_start
data.cluttered = lambda split, n=None, *, clutter=6: whole(split, n or 501, clutter=clutter)


def noted(self):
    given = list(order(self))
    with open(f"given-{rank}.txt", "a") as file:
        print(self.epoch, *(place for place, _ in given), file=file)
    return iter(given)


def broken(module, batch, index):
    if module.global_step == 4:
        if breaks == "sigterm" and rank == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        if breaks == "disk" and rank == "0":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        if breaks == "nan" and rank == "1":
            torch.nn.init.constant_(module.student.head.bias, float("nan"))
    seed(module, batch, index)


datamodules._Order.__iter__ = noted
training._Learner.on_train_batch_start = broken
sys.exit(cli.main())
"""


def torchrun(folder, *arguments, breaks=""):
    """Two processes of the command in a folder."""
    (folder / "small.yaml").write_text(SMALL)
    (folder / "command.py").write_text(COMMAND)
    words = [*"-m torch.distributed.run --standalone --nproc_per_node=2 -- command.py".split()]
    return subprocess.run(
        [sys.executable, *words, *arguments, "--trainer.devices", "2"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "BREAKS": breaks},
        capture_output=True,
        text=True,
        timeout=300,
    )


def fit(folder, run, *options, breaks=""):
    configs = "--config scenes --config paper --config small.yaml --run".split()
    return torchrun(folder, "fit", *configs, run, *options, breaks=breaks)


def weights(run, which="last"):
    return read(checkpoint(run, which))["state_dict"]


def given(folder, rank):
    lines = (folder / f"given-{rank}.txt").read_text().splitlines()
    return [[int(word) for word in line.split()] for line in lines]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with a run of two processes that chose its best epoch on the test images."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "said").write_text(
        (done := fit(folder, "run", "--select_on_test", "true")).stderr + done.stdout
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_processes_share_one_run(two):
    run, said = two / "run", (two / "said").read_text()
    assert {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} >= {
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "csv/version_0/metrics.csv",
    }
    # One process writes: one log, and one of each line.
    assert len(list(run.rglob("metrics.csv"))) == len(list(run.rglob("events*"))) == 1
    for line in (
        "effective batch 12 = 6 images x 2 devices x 1 machines x 1 accumulated",
        "learning rate 0.1, as given; the linear rule would make it 0.2 (--model.base_batch 6)",
        "batch norm per process, over its 6 images; --trainer.sync_batchnorm true: over all",
        "precision 32-true",
        "WARNING: --select_on_test: the best epoch is chosen on the test images. What this run "
        "scores on them is too good; test.json says so",
    ):
        assert said.count(f"ckdlite: {line}\n") == 1
    # No image twice an epoch, another order in the next one; 37 // 2 for each.
    parts = [given(two, rank) for rank in (0, 1)]
    for (epoch, *first), (same, *second) in zip(*parts, strict=True):
        assert epoch == same and len(first) == len(second) == 18
        assert len({*first, *second}) == 36 and {*first, *second} <= {*range(37)}
    assert [line[0] for line in parts[0]] == [0, 1, 2] and parts[0][0][1:] != parts[0][1][1:]
    assert read(checkpoint(run, "last"))["global_step"] == 3 * (18 // 6)


@pytest.mark.slow
def test_two_processes_score_as_one_does(two, monkeypatch):
    """Validation inside the run, its test by two, and its test by one: each image once.

    Of 501 images, in batches of 250, one process has two batches and the other one.
    """
    monkeypatch.chdir(two)
    logged = [row for row in history("run") if "val/accuracy" in row][-1]
    by_two = torchrun(two, "test", "--run", "run", "--checkpoint", "last")
    assert by_two.returncode == 0, by_two.stderr
    scores = [json.loads(Path("run/test.json").read_text())]
    Path("run/test.json").unlink()
    whole = data.cluttered
    monkeypatch.setattr(data, "cluttered", lambda split, n=None, **_: whole(split, n or 501))
    one = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert main(["test", "--run", "run", "--checkpoint", "last", *one]) == 0
    scores.append(json.loads(Path("run/test.json").read_text()))
    for said in scores:
        assert said["selected_on"] == "test"
        for name in ("ce", "accuracy", "mass_on_object", "firing_rate"):
            assert said["scores"][name] == pytest.approx(logged[f"val/{name}"], rel=1e-5), name
        assert said["scores"]["accuracy"] * 501 == pytest.approx(
            round(said["scores"]["accuracy"] * 501), abs=1e-4
        )


@pytest.mark.slow
def test_two_processes_told_to_end_go_on(two):
    ended = fit(two, "ended", "--select_on_test", "true", breaks="sigterm")
    assert ended.returncode != 0
    assert (
        "ckdlite: stopped by SIGTERM; the epoch in hand is lost. The same command goes on from "
        "the last whole epoch\n"
    ) in ended.stderr
    assert "exitcode  : 143" in ended.stderr
    assert read(checkpoint(two / "ended", "last"))["epoch"] == 0
    again = fit(two, "ended", "--select_on_test", "true")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("ckdlite: ended holds a run; going on with it\n") == 1
    for which in ("last", "best"):
        mine, its = (weights(two / run, which) for run in ("ended", "run"))
        assert [name for name in its if not torch.equal(mine[name], its[name])] == []


@pytest.mark.slow
@pytest.mark.bad_input
def test_a_run_goes_on_with_as_many_processes(two, monkeypatch, capsys):
    """Fewer are another effective batch and another order of the images."""
    monkeypatch.chdir(two)
    monkeypatch.setattr(data, "cluttered", few)
    same = ["fit", "--config", "run/config.yaml", "--run", "run"]
    assert main([*same, "--trainer.devices", "1"]) == 1
    said = capsys.readouterr().err
    assert "saved by a run of another recipe" in said and "processes: saved 2, now 1" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ("disk", "MB could not be written: File too large; "),
        ("nan", "ckdlite: training diverged: NaN or infinity in the student's logits, epoch 1"),
    ],
)
def test_what_stops_one_process_is_said_and_stops_both(tmp_path, breaks, said):
    """The first process alone, which writes, or the other alone."""
    stopped = fit(tmp_path, "run", breaks=breaks)
    assert stopped.returncode != 0
    assert said in stopped.stderr
    assert read(checkpoint(tmp_path / "run", "last"))["epoch"] == 0


# ---------------------------------------------------------------- who sees what


@cache
def few(split, n=None, *, clutter=6):
    return whole(split, 20 if n is None else n, clutter=clutter)


whole = data.cluttered


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "cluttered", few)


class Ranks:
    """As much of a trainer as a data module asks for."""

    def __init__(self, rank, ranks):
        self.global_rank, self.world_size = rank, ranks


@pytest.mark.parametrize("split", ["val", "test"])
def test_each_image_is_scored_once(small, split):
    seen = []
    for rank in range(3):
        scenes = SceneData(images=12, batch_size=2)
        scenes.trainer = Ranks(rank, 3)
        seen += [batch[0] for batch in getattr(scenes, f"{split}_dataloader")()]
    images = few("validation" if split == "val" else "test")[0]
    found = {image.numpy().tobytes() for batch in seen for image in batch}
    assert sum(map(len, seen)) == len(images) == len(found) == 20


def test_lightning_leaves_the_order_alone(small):
    """Whether it is told to share out the images or not."""
    for sampler in (True, False):
        trainer = L.Trainer(use_distributed_sampler=sampler, **QUIET)
        scenes = SceneData(images=12, batch_size=2)
        for loader in (scenes.train_dataloader(), scenes.val_dataloader()):
            assert isinstance(loader.sampler, torch.utils.data.DistributedSampler)
            assert trainer._data_connector._prepare_dataloader(loader, False, "fit") is loader


@pytest.mark.bad_input
def test_fewer_images_than_one_batch_a_process(small):
    scenes = SceneData(images=12, batch_size=8)
    scenes.trainer = Ranks(0, 2)
    with pytest.raises(ValueError, match="batch_size: got 8, wanted at most the 6 .* of 2 proc"):
        scenes.train_dataloader()


@pytest.mark.bad_input
def test_fewer_images_to_score_than_processes(small):
    scenes = SceneData(images=12, batch_size=2)
    scenes.trainer = Ranks(0, 21)
    with pytest.raises(ValueError, match="test: got 20 images, wanted at least one .* 21 proc"):
        scenes.test_dataloader()


def test_the_test_images_validate_where_that_is_wanted(small):
    scenes = SceneData(images=12, batch_size=2)
    before = scenes.recipe()
    assert torch.equal(next(iter(scenes.val_dataloader()))[0], few("validation")[0])
    scenes.select_on_test = True
    assert torch.equal(next(iter(scenes.val_dataloader()))[0], few("test")[0])
    assert scenes.recipe() == before | {"select_on_test": True} != before


# ---------------------------------------------------------------- batch, rate, chance


class Seeds(L.Callback):
    def __init__(self):
        self.seeds, self.rates = [], []

    def on_train_epoch_start(self, trainer, _module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, *_):
        self.seeds.append(torch.initial_seed())


class StopAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyError


def fitted(run=None, epochs=2, callbacks=(), batch_size=3, **changes):
    """Train over twelve scenes."""
    options = {k: changes.pop(k) for k in ("base_batch",) if k in changes}
    module, seen = made(**options), Seeds()
    kept = {"callbacks": []} | (keep(run) if run else QUIET)
    kept["callbacks"] = [seen, *callbacks, *kept["callbacks"]]
    trainer = L.Trainer(max_epochs=epochs, **(PLAIN | kept | {"log_every_n_steps": 1} | changes))
    scenes = SceneData(images=12, batch_size=batch_size)
    trainer.fit(module, scenes, ckpt_path=resume(run) if run else None)
    return module, seen


@pytest.mark.parametrize(
    ("changes", "rate", "said"),
    [
        ({}, 0.1, "learning rate 0.1, as given\n"),
        (
            {"accumulate_grad_batches": 2},
            0.1,
            "learning rate 0.1, as given; the linear rule would make it 0.2 (--model.base_batch 3)",
        ),
        (
            {"accumulate_grad_batches": 2, "base_batch": 4},
            0.15,
            "learning rate 0.15 = 0.1 x 6 / 4, the linear rule, without a warm-up\n",
        ),
        ({"base_batch": 3}, 0.1, "learning rate 0.1 = 0.1 x 3 / 3, the linear rule"),
    ],
)
def test_the_rate_is_scaled_where_that_is_wanted(small, changes, rate, said):
    module, seen = fitted(**changes)
    assert seen.rates == pytest.approx([rate, rate / 2])  # the cosine's, after one of two epochs
    accumulated = changes.get("accumulate_grad_batches", 1)
    assert module.about().startswith(
        f"effective batch {3 * accumulated} = 3 images x 1 devices x 1 machines x "
        f"{accumulated} accumulated\n{said}"
    )
    assert "\nbatch norm over the 3 images of a batch\nprecision 32-true" in module.about()
    assert module.recipe()["base_batch"] == changes.get("base_batch")


@pytest.mark.bad_input
@no_validation
def test_a_base_batch_that_is_none(small):
    for kind in (made, partial(Teacher, ResNet((1,), (4,)), "stage1")):
        with pytest.raises(ValueError, match="base_batch: got 0, wanted at least one image"):
            kind(base_batch=0)
    with pytest.raises(RunError, match="the data module has no batch_size"):
        loader = DataLoader(TensorDataset(*few("train", 4)))
        L.Trainer(max_epochs=1, **QUIET).fit(made(base_batch=4), loader)


def test_every_accumulated_batch_has_its_own_chance(small, tmp_path):
    """And a run that was stopped draws what an unbroken one does."""

    options = {"accumulate_grad_batches": 2, "batch_size": 2}  # six batches, three steps an epoch
    _, unbroken = fitted(tmp_path / "unbroken", **options)
    assert len(set(unbroken.seeds)) == len(unbroken.seeds) == 12
    with pytest.raises(KeyError):
        fitted(tmp_path / "run", callbacks=[StopAt(4)], **options)
    _, rest = fitted(tmp_path / "run", **options)
    assert rest.seeds == unbroken.seeds[6:]
    a, b = (weights(tmp_path / run) for run in ("unbroken", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- synchronised batch norm


class Synchronise(L.Callback):
    """What Lightning does with `sync_batchnorm`, after it has read a checkpoint."""

    def on_fit_start(self, _trainer, module):
        nn.SyncBatchNorm.convert_sync_batchnorm(module)


def test_synchronised_batch_norm_is_the_same_run(small, tmp_path):
    """On one process it changes nothing: not the names, not the recipe, not what is resumed."""
    plain, _ = fitted(tmp_path / "plain")
    with pytest.raises(KeyError):
        fitted(tmp_path / "sync", callbacks=[Synchronise(), StopAt(5)])
    sync, _ = fitted(tmp_path / "sync", callbacks=[Synchronise()])
    assert isinstance(sync.student.stem[1], nn.SyncBatchNorm)
    assert not sync.teacher.training and "synchronised, over 3 images" in sync.about()
    assert sync.recipe() == plain.recipe()
    a, b = (weights(tmp_path / run) for run in ("plain", "sync"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("there", "native", "accelerator", "wanted"),
    [
        (False, False, "auto", "32-true"),
        (True, True, "auto", "bf16-mixed"),
        (True, False, "gpu", "16-mixed"),
        (True, True, "cpu", "32-true"),
        (True, True, "mps", "32-true"),
    ],
)
def test_precision_by_device(monkeypatch, there, native, accelerator, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)

    def supported(including_emulation=True):
        return native or including_emulation  # a T4 would only imitate it

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert runs.precision(accelerator) == wanted


class Watched(L.Callback):
    def __init__(self):
        self.norms, self.losses = [], []

    def on_before_optimizer_step(self, _trainer, module, _optimizer):
        found = [p.grad for p in module.parameters() if p.grad is not None]
        self.norms.append(float(nn.utils.get_total_norm(found)))

    def on_train_batch_end(self, _trainer, _module, output, *_):
        self.losses.append(float(output["loss"]))


def half(**options):
    """float16 with its scaler, on this machine; Lightning's own choice for a CPU is bfloat16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **options))


@pytest.mark.parametrize("kind", ["bf16-mixed", "16-mixed"])
def test_gradient_norms_in_half_precision(small, tmp_path, kind):
    """Those logged are those of the step, near those in full precision, small ones too."""
    found = {}
    for precision in ("32-true", kind):
        seen = Watched()
        plugin = {"precision": precision} if precision != "16-mixed" else {}
        kept = keep(tmp_path / precision)
        if not plugin:
            kept["plugins"].append(half())
        kept["callbacks"].append(seen)
        torch.manual_seed(0)
        teacher, student = ResNet((1,), (4,)), ResNet((1,), (4,), timesteps=2)
        options = {"kd": KD(weight=1e-6), "gradient_norms_every": 1}
        module = Distil(student, teacher, "stage1", "stage1", **options)
        L.Trainer(max_epochs=1, **PLAIN, **kept, **plugin).fit(module, SceneData(12, 3))
        assert module.recipe()["precision"] == precision
        rows = [row for row in history(tmp_path / precision) if "gradient/ce" in row]
        found[precision] = [[row[f"gradient/{name}"] for row in rows] for name in ("ce", "kd")]
        assert found[precision][0] == pytest.approx(seen.norms, rel=1e-3) and len(rows) == 4
    for mine, full in zip(found[kind], found["32-true"], strict=True):
        assert mine == pytest.approx(full, rel=0.05)


@no_step
def test_a_step_whose_gradient_overflows_is_left_out(small):
    """Normal in float16: the run goes on, with a smaller scale."""
    seen, before = Watched(), made().state_dict()
    module, _ = fitted(callbacks=[seen], plugins=[half(init_scale=2.0**22)], epochs=3)
    finite = [norm < float("inf") for norm in seen.norms]
    assert not finite[0] and finite[-1] and len(finite) == 12
    scale = module.trainer.precision_plugin.scaler.get_scale()
    assert scale == 2.0 ** (22 - finite.count(False))
    after = module.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before["student.head.weight"], after["student.head.weight"])


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, grad):
        return grad * float("nan")


@no_step
@pytest.mark.bad_input
def test_a_gradient_that_is_never_finite_stops_the_run(small, tmp_path):
    """The scaler leaves out every step: nobody would see that nothing is learnt."""
    module = made()
    module.student.head.register_forward_hook(lambda _m, _i, out: BadBackward.apply(out))
    kept = keep(tmp_path)
    kept["plugins"].append(half(init_scale=2.0**-10))
    with pytest.raises(RunError, match="diverged: the gradient is NaN or infinite at every scale"):
        L.Trainer(max_epochs=3, **PLAIN, **kept).fit(module, SceneData(12, 3))


@no_step
def test_float16_goes_on_where_it_was(small, tmp_path):
    """The scale is part of the checkpoint."""

    def start(run, *callbacks):
        module, kept = made(), keep(run)
        kept["plugins"].append(half(init_scale=2.0**21))
        kept["callbacks"] = [*callbacks, *kept["callbacks"]]
        trainer = L.Trainer(max_epochs=3, **PLAIN, **kept)
        trainer.fit(module, SceneData(12, 3), ckpt_path=resume(run))
        return trainer.precision_plugin.scaler.get_scale()

    scale = start(tmp_path / "unbroken")
    assert scale < 2.0**21
    with pytest.raises(KeyError):
        start(tmp_path / "run", StopAt(6))
    assert start(tmp_path / "run") == scale
    a, b = (weights(tmp_path / run) for run in ("unbroken", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- the files that launch a run


@pytest.mark.parametrize(
    ("file", "environment", "devices", "machines"),
    [
        ("one-gpu.sh", {}, 1, 1),
        ("one-node.sh", {}, 8, 1),
        ("slurm.sh", {"SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "8"}, 8, 4),
    ],
)
def test_what_launches_a_run(tmp_path, monkeypatch, capsys, file, environment, devices, machines):
    """Its words reach the command, and the command takes them."""
    path = LAUNCH / file
    subprocess.run(["bash", "-n", path], check=True)
    for program in ("srun", "torchrun", "ckdlite", "scontrol"):
        (tmp_path / program).write_text(
            '#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@" > words\n'
        )
        (tmp_path / program).chmod(0o755)
    environment = os.environ | environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    mine = "runs/mine --config scenes --config paper --model.samd.weight 2".split()
    subprocess.run(["bash", path, *mine], check=True, cwd=tmp_path, env=environment, timeout=60)
    words = (tmp_path / "words").read_text().splitlines()
    if words[0] == "torchrun":  # which takes a word such as --run for its own unless told
        read_by_torchrun = get_args_parser().parse_args(words[1:])
        assert read_by_torchrun.nproc_per_node == str(devices) and read_by_torchrun.standalone
        assert read_by_torchrun.training_script == "ckdlite.cli" and read_by_torchrun.module
    with pytest.raises(SystemExit) as ended:
        main([*words[words.index("fit") :], "--print_config"])
    assert ended.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["run"] == "runs/mine"
    assert settings["model"]["init_args"]["samd"]["weight"] == 2
    trainer = settings["trainer"]
    assert (trainer["devices"], trainer["num_nodes"]) in (
        (devices, machines),
        (str(devices), machines),
    )


def test_a_job_whose_time_is_over_goes_back_into_the_queue(tmp_path):
    """The shell gets SIGUSR1 and asks for it; the processes are SLURM's to end."""
    (tmp_path / "srun").write_text("#!/bin/sh\ntouch started\nexec sleep 60\n")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > asked\n')
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    there = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    environment = os.environ | there | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sh", "run"], cwd=tmp_path, env=environment, process_group=0
    )
    try:
        while not (tmp_path / "started").exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(30) == 128 + signal.SIGUSR1
    finally:
        os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
