"""The engine against plain PyTorch: what it runs, what it learns, what it logs, what it refuses."""

import copy
import dataclasses
import functools
import inspect
import math

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from ckdlite import data, datamodules, distill, training
from ckdlite.datamodules import CIFARData, FolderData, SceneData
from ckdlite.lif import LIF, repeat
from ckdlite.measure import firing_rates
from ckdlite.networks import ResNet, pretrained, record
from ckdlite.runs import RunError, checkpoint, history, keep
from ckdlite.saliency import (
    cam,
    grad_cam,
    map_divergence,
    mask_overlap,
    pointing_game,
    rank_correlation,
    spike_map,
)
from ckdlite.training import (
    KD,
    NLD,
    SAMD,
    AttentionTransfer,
    Distil,
    FeatureMSE,
    Teacher,
    load_weights,
)

# Many of these runs do not look how they do.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")

OFF = {"kd": KD(), "samd": SAMD(), "nld": NLD()}
PAPER = {"samd": SAMD(weight=1.0), "nld": NLD(weight=1.0)}
ALL = {"kd": KD(weight=0.7), "samd": SAMD(weight=0.5), "nld": NLD(weight=2.0)}
RELEASED = {
    "samd": SAMD(
        weight=1.0, normalise="batch", square=False, teacher_map="cam", target="predicted"
    ),
    "nld": NLD(weight=1.0, spread="variance", mix="probabilities", detach_statistics=False),
}

whole = data.cluttered


@functools.cache
def few(split, n=None, *, clutter=6):
    return whole(split, 60 if n is None else n, clutter=clutter)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few scenes to validate and test on, made once."""
    monkeypatch.setattr(data, "cluttered", few)
    torch.manual_seed(0)


ATTENTION = {"attention_transfer": AttentionTransfer(weight=2.0, power=1.5)}
FEATURES = ATTENTION | {"feature_mse": FeatureMSE(weight=0.5)}


class Eye(nn.Module):
    """A teacher of somebody else's: other names, 8x8 images, in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        )
        self.drop = nn.Dropout(0.5)
        self.read = nn.Linear(6, 10)

    def forward(self, x):
        return self.read(self.drop(self.body(x).mean((2, 3))))


class Brain(nn.Module):
    """A student of somebody else's."""

    def __init__(self, timesteps=2):
        super().__init__()
        self.timesteps = timesteps
        self.wire = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5))
        self.cells = LIF()
        self.vote = nn.Linear(5, 10)
        nn.init.constant_(self.wire[1].bias, 0.5)  # or it would be silent

    def forward(self, x):
        spikes = self.cells(repeat(self.wire(x), self.timesteps))
        return self.vote(spikes.mean((-2, -1)))


NAMES = {"student_layer": "cells", "teacher_layer": "body", "teacher_head": "read"}


def distil(student=None, teacher=None, **options):
    own = {**NAMES, "optimizer": slow, "gradient_norms_every": 0}
    return Distil(student or Brain(), teacher or Eye(), **(own | options))


def slow(parameters):
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def images(n=12, side=8, seed=5):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, side, side, generator=draw)
    y = torch.randint(10, (n,), generator=draw)
    return x, y, torch.rand(n, side, side, generator=draw) > 0.7


def loader(batch_size=4, masks=False, **options):
    return DataLoader(TensorDataset(*images(**options)[: 3 if masks else 2]), batch_size)


def trainer(epochs=1, **options):
    plain = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(max_epochs=epochs, **(plain | options))


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def differing(a, b):
    return {k for k in a if not torch.equal(a[k], b[k])}


# ---------------------------------------------------------------- any networks, one forward pass


def watch(network):
    """The mode of each forward pass."""
    modes = []
    network.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    return modes


@pytest.mark.parametrize(
    ("terms", "looks"),
    [
        (OFF, 0),
        ({"kd": KD(weight=1.0)}, 1),
        ({"nld": NLD(weight=1.0)}, 1),
        ({"samd": SAMD(weight=1.0)}, 1),
        (ALL, 1),
        (RELEASED, 1),
        (ATTENTION, 1),
        (ALL | ATTENTION, 1),
    ],
    ids=["labels", "kd", "nld", "samd", "all", "released", "attention", "attention and all"],
)
def test_one_forward_pass_a_step(terms, looks):
    module = distil(**terms, gradient_norms_every=1)
    student, teacher = watch(module.student), watch(module.teacher)
    before = state(module.student)
    trainer().fit(module, loader())
    assert student == [True] * 3
    assert teacher == [False] * 3 * looks
    assert len(differing(before, module.student.state_dict())) == len(before)


def test_an_ordinary_network_can_be_the_student():
    """Logits [B, K] and features [B, C, H, W] count as one timestep."""
    student = Eye()
    module = Distil(student, Eye(), "body", "body", "read", **ALL, optimizer=slow)
    before = state(student)
    trainer().fit(module, loader(), loader(masks=True))
    assert differing(before, state(student))


def test_any_layers_of_a_resnet():
    student = ResNet((1, 1), (4, 6), timesteps=2)
    module = distil(
        student, ResNet((1, 1), (4, 6)), student_layer="stage1.0.act2", teacher_layer="stem", **ALL
    )
    trainer().fit(module, loader())


def test_half_precision():
    module = distil(**ALL)
    fit = trainer(precision="bf16-mixed")
    fit.fit(module, loader(), loader(masks=True))
    assert all(v.isfinite().all() for v in state(module.student).values())
    assert fit.callback_metrics["val/divergence"].isfinite()


def test_double_precision():
    """No term, and no score, falls back to single."""
    terms = {"train/loss", "train/ce", *(f"train/{name}" for name in ALL)}
    for module, wanted in ((distil(**ALL), terms), (Teacher(Eye(), "body"), {"train/ce"})):
        seen = {}
        module.log = lambda key, value, seen=seen, **_: seen.update({key: value})
        module.log_dict = lambda values, seen=seen, **_: seen.update(values)
        trainer(precision="64-true").fit(module, loader(), loader(masks=True))
        assert {seen[key].dtype for key in wanted | {"val/ce"}} == {torch.float64}


def test_channels_last():
    student, teacher, other = Brain(), Eye(), Eye()
    assert not student.wire[0].weight.is_contiguous(memory_format=torch.channels_last)
    module = distil(student, teacher, channels_last=True, **ALL)
    lone = Teacher(other, "body", channels_last=True, optimizer=slow)
    for weight in (student.wire[0].weight, teacher.body[0].weight, other.body[0].weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)
    trainer().fit(module, loader())
    trainer().fit(lone, loader())


# ---------------------------------------------------------------- the frozen teacher


def test_nothing_of_the_teacher_moves():
    teacher = Eye()
    before = state(teacher)
    module = distil(teacher=teacher, **ALL, gradient_norms_every=1)
    modes = watch(teacher)
    module.train()
    fit = trainer(2)
    fit.fit(module, loader(), loader(masks=True))
    fit.test(module, loader(masks=True), verbose=False)
    assert modes and not any(modes)
    assert not any(m.training for m in teacher.modules())
    assert_same(before, state(teacher))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_student_is_in_train_mode_only_where_it_learns():
    module = distil(**ALL)
    modes = watch(module.student)
    trainer(2).fit(module, loader(), loader(masks=True))
    assert modes == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3


@pytest.mark.parametrize("terms", [OFF, {"kd": KD(weight=1.0)}, ALL, RELEASED])
def test_a_drifting_teacher(terms):
    """Difference 8: the running statistics follow the batches, and nothing else moves."""
    teacher = Eye()
    before, alone = state(teacher), copy.deepcopy(teacher).train()
    for x, _ in loader():
        alone(x)
    module = distil(teacher=teacher, teacher_drifts=True, **terms)
    modes = watch(teacher)
    trainer().fit(module, loader(), loader())
    assert modes == [True] * 3 + [False] * 3  # train, then validation
    norm = {f"body.1.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")}
    assert differing(before, state(teacher)) == norm
    assert_same(state(alone), state(teacher))
    assert all(p.grad is None for p in teacher.parameters())


def test_the_optimiser_holds_the_student_alone():
    student = Brain()
    student.wire[0].requires_grad_(False)
    frozen = state(student.wire[0])
    module = distil(student, **ALL)
    fit = trainer()
    fit.fit(module, loader())
    held = [id(p) for group in fit.optimizers[0].param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in student.parameters() if p.requires_grad)
    assert len(held) == 4
    assert_same(frozen, state(student.wire[0]))


def test_the_optimiser_of_ckdsnn_is_the_default():
    made = training.sgd([nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.SGD)
    wanted = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    assert {k: made.defaults[k] for k in wanted} == wanted
    assert inspect.signature(Distil).parameters["optimizer"].default is training.sgd


# ---------------------------------------------------------------- the same as a plain loop


def spiking():
    """A student whose deep layers fire from the start."""
    net = ResNet((1, 1), (4, 6), timesteps=2)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.bias, 0.5)
    return net


def scenes(**options):
    steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    return SceneData(**({"images": 40, "batch_size": 16, "augment": steps} | options))


def noise_seed(seed, step):
    """One seed from the run's seed and the step, on the first device."""
    return int(np.random.SeedSequence((seed, step, 0)).generate_state(1, np.uint64)[0] >> 1)


def losses(terms, student, teacher, x, y):
    """The whole loss in plain lines; differences 1 and 8 are options of the module."""
    with record(student, "stage2") as features:
        logits = student(x).mean(0)
    total = F.cross_entropy(logits, y)
    options = {name: dataclasses.asdict(term) for name, term in terms.items()}
    weights = {name: each.pop("weight") for name, each in options.items()}
    if not any(weights.values()):
        return total
    with torch.no_grad(), record(teacher, "stage2") as seen:
        guide = teacher(x)
    if "attention_transfer" in terms:
        ours, theirs = features["stage2"].mean(0), seen["stage2"]
        total = total + weights["feature_mse"] * distill.feature_mse(ours, theirs)
        attention = distill.attention_transfer(ours, theirs, **options["attention_transfer"])
        total = total + weights["attention_transfer"] * attention
    if "kd" in terms:
        total = total + weights["kd"] * distill.kd(logits, guide, **options["kd"])
    if "samd" in terms:
        kind, target = options["samd"].pop("teacher_map"), options["samd"].pop("target")
        assert not options["samd"].pop("fade")
        target = y if target == "label" else guide.argmax(1)
        if kind == "cam":
            maps = cam(seen["stage2"], teacher.head.weight, target)
        else:
            maps, _ = grad_cam(copy.deepcopy(teacher), "stage2", x, target)
        own = spike_map(features["stage2"])
        total = total + weights["samd"] * distill.samd(own, maps, **options["samd"])
    if "nld" in terms:
        total = total + weights["nld"] * distill.nld(logits, guide, **options["nld"])
    return total


@pytest.mark.parametrize(
    ("terms", "drifts"),
    [(OFF, False), (PAPER, False), (ALL, False), (RELEASED, True), (FEATURES | PAPER, False)],
    ids=["labels", "paper", "all", "released", "features"],
)
def test_the_engine_is_a_plain_loop(terms, drifts):
    """Two epochs, augmented, with SGD and a cosine: bit for bit the same student."""
    seed, epochs = 3, 2
    student, teacher = spiking(), ResNet((1, 1), (4, 6)).eval()
    engine = copy.deepcopy(student)
    module = distil(
        engine,
        copy.deepcopy(teacher),
        student_layer="stage2",
        teacher_layer="stage2",
        teacher_head="head",
        teacher_drifts=drifts,
        optimizer=training.sgd,
        gradient_norms_every=1,
        seed=seed,
        **terms,
    )
    trainer(epochs).fit(module, datamodule=scenes(seed=seed))

    batches = scenes(seed=seed).train_dataloader()
    optimiser = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    student.train()
    teacher.train(drifts)
    step = 0
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        for x, y in batches:
            torch.manual_seed(noise_seed(seed, step))
            value = losses(terms, student, teacher, data.normalise(x), y)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            step += 1
        schedule.step()
    assert step == 4
    assert_same(state(student), state(engine))


def test_a_teacher_is_trained_as_by_a_plain_loop():
    network = Eye()
    engine = copy.deepcopy(network)
    trainer(2).fit(Teacher(engine, "body", optimizer=slow, seed=7), loader(), loader(masks=True))

    optimiser = slow(network.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 2)
    step = 0
    for _ in range(2):
        for x, y in loader():
            torch.manual_seed(noise_seed(7, step))  # the dropout's
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
            step += 1
        schedule.step()
    assert_same(state(network), state(engine))


def test_the_seed_fixes_the_noise():
    student, teacher = Brain(), Eye()

    def learned(seed, **options):
        networks = copy.deepcopy((student, teacher))
        torch.rand(seed)  # what was drawn before does not matter
        module = distil(*networks, nld=NLD(weight=1.0), seed=seed, **options)
        trainer().fit(module, loader(), loader(masks=True))
        return state(module.student)

    first = learned(1)
    assert_same(first, learned(1))
    assert_same(first, learned(1, gradient_norms_every=1))
    assert differing(first, learned(2))


# ---------------------------------------------------------------- every option arrives


def spy(monkeypatch, where, name):
    calls, real = [], getattr(where, name)

    @functools.wraps(real)
    def noted(*args, **kwargs):
        calls.append((args, kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, noted)
    return calls


OTHERS = {
    "kd": {"temperature": 3.0},
    "samd": {"temperature": 3.0, "normalise": "zscore", "square": False},
    "nld": {
        "strength": 0.3,
        "temperature": 3.0,
        "draws": 2,
        "spread": "variance",
        "mix": "probabilities",
        "detach_statistics": False,
    },
}


@pytest.mark.parametrize(("name", "kind"), [("kd", KD), ("samd", SAMD), ("nld", NLD)])
def test_every_option_of_a_loss(monkeypatch, name, kind):
    """Differences 2, 3, 5, 6 and 7: each option alone, and all together."""
    options = {f.name: f.default for f in dataclasses.fields(kind)}
    weight = options.pop("weight")
    assert weight == 0
    for not_of_the_loss in ("teacher_map", "target", "fade"):
        options.pop(not_of_the_loss, None)
    # What the function takes, the module offers, with the same default.
    taken = {
        p.name: p.default
        for p in inspect.signature(getattr(distill, name)).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("noise", "generator")
    }
    assert taken == options
    assert OTHERS[name].keys() == options.keys()
    assert all(OTHERS[name][k] != v for k, v in options.items())

    calls = spy(monkeypatch, distill, name)
    given = [{}, *({k: v} for k, v in OTHERS[name].items()), OTHERS[name]]
    for some in given:
        module = distil(**{name: kind(weight=1.0, **some)})
        trainer(limit_train_batches=1).fit(module, loader())
    assert [kwargs for _, kwargs in calls] == [options | some for some in given]


@pytest.mark.parametrize("target", ["label", "predicted"])
@pytest.mark.parametrize("kind", ["grad_cam", "cam"])
def test_the_teachers_map_and_its_class(monkeypatch, kind, target):
    """Difference 1."""
    calls = spy(monkeypatch, distill, "samd")
    module = distil(samd=SAMD(weight=1.0, teacher_map=kind, target=target))
    trainer(limit_train_batches=1).fit(module, loader())
    (((own, guide), _),) = calls
    x, y = next(iter(loader()))
    teacher = module.teacher.eval()
    with torch.no_grad(), record(teacher, "body") as seen:
        logits = teacher(x)
    said = y if target == "label" else logits.argmax(1)
    assert not torch.equal(y, logits.argmax(1))  # or the test would not tell them apart
    if kind == "cam":
        want = cam(seen["body"], teacher.read.weight, said)
    else:
        want, _ = grad_cam(teacher, "body", x, said)
    assert torch.equal(guide, want)
    assert own.requires_grad and not guide.requires_grad


def test_the_weights_of_the_terms(tmp_path):
    module = distil(**ALL, gradient_norms_every=1)
    trainer(logger=keep(tmp_path)["logger"]).fit(module, loader())
    rows = [row for row in history(tmp_path) if "train/loss" in row]
    assert len(rows) == 3
    for row in rows:
        want = row["train/ce"]
        want += sum(ALL[name].weight * row[f"train/{name}"] for name in ALL)
        assert row["train/loss"] == pytest.approx(want, rel=1e-6)


# ---------------------------------------------------------------- what is logged


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run of one epoch, the student that it began with, and what it logged."""
    torch.manual_seed(1)
    run = tmp_path_factory.mktemp("logged")
    module = distil(**ALL, gradient_norms_every=2)
    first = copy.deepcopy(module.student)
    kept = keep(run)
    fit = trainer(enable_checkpointing=True, **kept)
    fit.fit(module, loader(), loader(masks=True))
    (scores,) = fit.test(module, loader(masks=True), verbose=False)
    return run, first, module, scores


TRAIN = {"train/loss", "train/ce", "train/kd", "train/samd", "train/nld", "train/accuracy"}
GRADIENT = {"gradient/ce", "gradient/kd", "gradient/samd", "gradient/nld"}
SCORES = {
    "ce",
    "accuracy",
    "divergence",
    "rank_correlation",
    "peak_on_object",
    "mass_on_object",
    "firing_rate",
}


def test_csv_and_tensorboard_hold_everything(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _, _, scores = logged
    want = TRAIN | GRADIENT | {f"val/{s}" for s in SCORES} | {"rate/cells"}
    rows = [row for row in history(run) if not any(key.startswith("test/") for key in row)]
    assert set().union(*rows) - {"epoch", "step"} == want
    assert scores.keys() == {f"test/{s}" for s in SCORES}
    found = EventAccumulator(str(run / "tensorboard" / "version_0")).Reload()
    assert want <= set(found.Tags()["scalars"])
    for name in ("train/loss", "gradient/samd", "val/divergence", "rate/cells"):
        board = [(event.step, event.value) for event in found.Scalars(name)]
        table = [(row["step"], row[name]) for row in rows if name in row]
        np.testing.assert_allclose(board, table, rtol=1e-6)


def test_terms_that_are_off_are_not_logged(tmp_path):
    module = distil(samd=SAMD(weight=1.0), gradient_norms_every=1)
    trainer(logger=keep(tmp_path)["logger"]).fit(module, loader())
    found = set().union(*history(tmp_path))
    assert {k for k in found if "/" in k} == {
        "train/loss",
        "train/ce",
        "train/samd",
        "train/accuracy",
        "gradient/ce",
        "gradient/samd",
    }


def test_gradient_norms_are_those_by_hand(logged):
    run, first, module, _ = logged
    rows = [row for row in history(run) if "gradient/ce" in row]
    assert [row["step"] for row in rows] == [0, 2]  # each at its own step, and no other
    x, y = next(iter(loader()))
    first.train()
    torch.manual_seed(noise_seed(0, 0))
    with record(first, "cells") as features:
        logits = first(x).mean(0)
    maps, guide = grad_cam(module.teacher, "body", x, y)
    parts = {
        "ce": F.cross_entropy(logits, y),
        "kd": 0.7 * distill.kd(logits, guide),
        "samd": 0.5 * distill.samd(spike_map(features["cells"]), maps),
        "nld": 2.0 * distill.nld(logits, guide),
    }
    for name, part in parts.items():
        first.zero_grad()
        part.backward(retain_graph=True)
        flat = torch.cat([p.grad.flatten() for p in first.parameters() if p.grad is not None])
        assert rows[0][f"gradient/{name}"] == pytest.approx(flat.norm().item(), rel=1e-5)
        assert flat.norm() > 0


@pytest.mark.parametrize("stage", ["val", "test"])
def test_scores_are_those_by_hand(logged, stage):
    run, _, module, scores = logged
    rows = history(run)
    if stage == "val":
        (scores,) = [row for row in rows if "val/ce" in row]
        rates = firing_rates(module.student, images()[0])
        assert scores["rate/cells"] == pytest.approx(rates["cells"], rel=1e-5)
    x, y, masks = images()
    student, teacher = module.student.eval(), module.teacher
    with torch.no_grad(), record(student, "cells") as features:
        logits = student(x).mean(0)
    own, guide = spike_map(features["cells"]), grad_cam(teacher, "body", x, y)[0]
    want = {
        "ce": F.cross_entropy(logits, y),
        "accuracy": (logits.argmax(1) == y).float().mean(),
        "divergence": map_divergence(own, guide).mean(),
        "rank_correlation": rank_correlation(own, guide).nanmean(),
        "peak_on_object": pointing_game(own, masks).mean(),
        "mass_on_object": mask_overlap(own, masks).mean(),
        "firing_rate": features["cells"].mean(),
    }
    assert want.keys() == SCORES
    for name, value in want.items():
        assert scores[f"{stage}/{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


def test_scores_of_a_teacher_are_those_by_hand():
    network = Eye()
    module = Teacher(network, "body", optimizer=slow)
    (scores,) = trainer().test(module, loader(batch_size=5, masks=True), verbose=False)
    x, y, masks = images()
    maps, logits = grad_cam(network.eval(), "body", x, y)
    assert scores == pytest.approx(
        {
            "test/ce": F.cross_entropy(logits, y).item(),
            "test/accuracy": (logits.argmax(1) == y).float().mean().item(),
            "test/peak_on_object": pointing_game(maps, masks).mean().item(),
            "test/mass_on_object": mask_overlap(maps, masks).mean().item(),
        },
        rel=1e-4,
        abs=1e-6,
    )


def test_flat_maps_have_no_rank_correlation_to_count():
    """Batches of which one has no map at all: the mean is over the others."""
    x, y, masks = images(8)
    module = distil()
    nn.init.constant_(module.student.wire[1].weight, 0)
    nn.init.constant_(module.student.wire[1].bias, 0)
    batches = DataLoader(TensorDataset(x, y, masks), 4)
    (scores,) = trainer().validate(module, batches, verbose=False)
    assert math.isnan(scores["val/rank_correlation"])
    assert scores["val/firing_rate"] == 0
    assert scores["val/mass_on_object"] == pytest.approx(
        masks.float().mean((1, 2)).mean().item(), rel=1e-5
    )


def test_without_masks_and_with_maps_of_another_size():
    """No map to compare with, no mask to lie on: the other scores are still there."""
    student = ResNet((1, 1), (4, 6), timesteps=1)
    module = distil(student, student_layer="stem_act")
    (scores,) = trainer().validate(module, loader(), verbose=False)
    assert scores.keys() == {"val/ce", "val/accuracy", "val/firing_rate"} | {
        f"rate/{name}" for name, m in student.named_modules() if isinstance(m, LIF)
    }


# ---------------------------------------------------------------- what stops a run


class Breaks(Brain):
    """A student that goes wrong at a given step of training."""

    def __init__(self, how, at):
        super().__init__()
        self.how, self.at, self.count = how, at, 0

    def forward(self, x):
        self.count += self.training
        wrong = self.how if self.training and self.count > self.at else None
        if wrong == "statistics":  # which only evaluation reads
            self.wire[1].running_mean[0] = float("nan")
        logits = super().forward(x)
        if wrong == "logits":
            logits = logits * float("nan")
        if wrong == "gradient":  # finite values, but the slope of the root at 0
            hidden = self.wire[0].weight.flatten()[0]
            logits = logits + (hidden - hidden.detach()).abs().sqrt()
        return logits


def diverged(error, epoch, step):
    text = str(error.value)
    assert text.startswith("training diverged: ")
    assert f", epoch {epoch}, step {step}; " in text
    assert "lower learning rate (--model.optimizer.lr)" in text
    return text


@pytest.mark.parametrize("how", ["logits", "gradient", "statistics"])
def test_what_is_not_finite_reaches_no_checkpoint(tmp_path, how):
    """Even where the neurons hide it: a NaN crosses no threshold."""
    module = distil(Breaks(how, at=5), kd=KD(weight=1.0))
    fit = trainer(4, enable_checkpointing=True, **keep(tmp_path))
    with pytest.raises(RunError) as error:
        fit.fit(module, loader(), loader(masks=True))
    # Three steps an epoch. A NaN of the last step is met where the epoch ends.
    text = diverged(error, 1, 5 if how == "logits" else 6)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"{last} holds the last whole epoch" in text
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 3
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    assert not list(tmp_path.rglob("*.part"))


def test_what_is_not_finite_before_the_first_epoch_has_ended(tmp_path):
    module = distil(Breaks("logits", at=1))
    fit = trainer(enable_checkpointing=True, **keep(tmp_path))
    with pytest.raises(RunError) as error:
        fit.fit(module, loader())
    assert "no epoch was whole to be kept" in diverged(error, 0, 1)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("rate", [1e30, 1e18, 1e8])
@pytest.mark.parametrize("terms", [OFF, PAPER, RELEASED], ids=["labels", "paper", "released"])
def test_a_learning_rate_far_too_high(tmp_path, terms, rate):
    """Wherever it overflows first, in a loss or a map, the run says so and what to do."""

    def fast(parameters):
        return torch.optim.SGD(parameters, rate, momentum=0.9)

    student = ResNet((1,), (4,), timesteps=1, relu_last=True)
    names = {"student_layer": "stage1", "teacher_layer": "stem", "teacher_head": "head"}
    teacher = ResNet((1,), (4,)).eval()
    module = Distil(student, teacher, **names, **terms, optimizer=fast)
    fit = trainer(20, enable_checkpointing=True, **keep(tmp_path))
    with pytest.raises(RunError, match=r"training diverged: .* epoch \d+, step \d+; "):
        fit.fit(module, loader(), loader(masks=True))
    for path in tmp_path.rglob("*.ckpt"):
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert all(v.isfinite().all() for v in saved.values())


@pytest.mark.parametrize("batch_size", [4, 12])
@pytest.mark.parametrize("rate", [1e30, 1e12])
def test_a_teachers_learning_rate_far_too_high(tmp_path, rate, batch_size):
    def fast(parameters):
        return torch.optim.SGD(parameters, rate)

    fit = trainer(20, enable_checkpointing=True, **keep(tmp_path))
    with pytest.raises(RunError, match=r"training diverged: .* epoch \d+, step \d+; "):
        fit.fit(Teacher(Eye(), "body", optimizer=fast), loader(batch_size), loader(masks=True))


# ---------------------------------------------------------------- what is refused


@pytest.mark.bad_input
def test_layers_that_are_not_there():
    with pytest.raises(ValueError, match="got 'cell', which Brain has not; near it are cells"):
        distil(student_layer="cell")
    with pytest.raises(ValueError, match="got 'stage3', which Eye has not"):
        distil(teacher_layer="stage3")
    with pytest.raises(ValueError, match="got 'head', which Eye has not; near it are read"):
        distil(teacher_head="head", samd=SAMD(weight=1.0, teacher_map="cam"))
    distil(teacher_head="head", samd=SAMD(weight=1.0))  # nobody reads it
    with pytest.raises(ValueError, match="got 'stage3', which Eye has not"):
        Teacher(Eye())


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [KD, SAMD, NLD])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(kind, weight):
    name = kind.__name__.lower()
    with pytest.raises(ValueError, match=rf"{name}\.weight: got {weight}, wanted a finite number"):
        kind(weight=weight)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [KD, SAMD, NLD])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_are_none(kind, temperature):
    name = kind.__name__.lower()
    with pytest.raises(ValueError, match=rf"{name}\.temperature: got {temperature}, wanted"):
        kind(temperature=temperature)


@pytest.mark.bad_input
def test_options_that_the_losses_refuse():
    for terms, said in (
        ({"nld": NLD(weight=1.0, strength=-1.0)}, "strength: got -1.0"),
        ({"nld": NLD(weight=1.0, draws=0)}, "draws: got 0"),
        ({"attention_transfer": AttentionTransfer(weight=1.0, power=0.0)}, "power: got 0.0"),
    ):
        with pytest.raises(ValueError, match=said):
            trainer().fit(distil(**terms), loader())


@pytest.mark.bad_input
def test_maps_of_different_size():
    student = ResNet((1,), (4,), timesteps=1)
    module = distil(student, student_layer="stage1", samd=SAMD(weight=1.0))
    with pytest.raises(RunError, match=r"student_layer 'stage1' are 8 x 8, .* 'body' 4 x 4;"):
        trainer().fit(module, loader())
    for term in ("feature_mse", "attention_transfer"):
        weight = {"feature_mse": FeatureMSE(1.0), "attention_transfer": AttentionTransfer(1.0)}
        other = distil(student, student_layer="stage1", **{term: weight[term]})
        with pytest.raises(RunError, match="the features cannot be compared"):
            trainer().fit(other, loader())


@pytest.mark.bad_input
def test_trainers_that_do_not_fit():
    with pytest.raises(RunError, match="max_epochs: got -1, wanted at least 1 for the cosine"):
        trainer(-1, max_steps=2).fit(distil(), loader())
    # `runs.keep` sets it.
    with pytest.raises(ValueError, match="called in inference_mode"):
        trainer(inference_mode=True).validate(distil(), loader(), verbose=False)


# ---------------------------------------------------------------- weights from elsewhere


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher's run, and a student's from it."""
    torch.manual_seed(2)
    root = tmp_path_factory.mktemp("made")
    network, student = Eye(), Brain()
    kept = {"enable_checkpointing": True, **keep(root / "teacher")}
    trainer(1, **kept).fit(Teacher(network, "body", optimizer=slow), loader(), loader(masks=True))
    module = distil(student, teacher_weights=root / "teacher", **PAPER)
    kept = {"enable_checkpointing": True, **keep(root / "student")}
    trainer(1, **kept).fit(module, loader(), loader(masks=True))
    save_file(state(network), root / "network.safetensors")
    return root, state(network), state(student), state(module.teacher)


def test_a_run_is_the_teacher_of_another(made):
    _, network, _, teacher = made
    assert_same(network, teacher)


@pytest.mark.parametrize(
    "source", ["teacher", "teacher/checkpoints/last.ckpt", "network.safetensors"]
)
def test_weights_of_a_teacher(made, source):
    root, network, *_ = made
    fresh = Eye()
    load_weights(fresh, root / source)
    assert_same(network, state(fresh))
    load_weights(fresh, str(root / source))


@pytest.mark.parametrize("source", ["student", "student/checkpoints/best.ckpt"])
def test_weights_of_a_student(made, source):
    root, _, student, _ = made
    fresh = Brain()
    load_weights(fresh, root / source)
    assert_same(student, state(fresh))


def test_weights_of_a_folder_are_the_best_ones(made, tmp_path):
    root, *_ = made
    (tmp_path / "checkpoints").mkdir()
    source = checkpoint(root / "teacher").read_bytes()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(source)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    load_weights(Eye(), tmp_path)


@pytest.mark.bad_input
def test_weights_that_do_not_fit(made, tmp_path):
    root, network, *_ = made
    for source in ("teacher", "network.safetensors"):
        with pytest.raises(RunError, match=r"another network") as error:
            load_weights(Brain(), root / source)
        assert "body.0.weight: saved [6, 3, 3, 3], now (not there)" in str(error.value)
        assert "and 10 more" in str(error.value)
    wide = Eye()
    wide.read = nn.Linear(6, 7)
    before = state(wide)
    with pytest.raises(RunError, match=r"read\.weight: saved \[10, 6\], now \[7, 6\]"):
        load_weights(wide, root / "teacher")
    with pytest.raises(RunError, match="read.weight"):
        distil(teacher=wide, teacher_weights=root / "teacher")
    assert_same(before, state(wide))
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing"):
        load_weights(Eye(), tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load_weights(Eye(), tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_weights(Eye(), tmp_path)
    torch.save(network, tmp_path / "bare.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    for name in ("bare", "list"):
        with pytest.raises(RunError, match=rf"{name}\.ckpt is no checkpoint of a run"):
            load_weights(Eye(), tmp_path / f"{name}.ckpt")


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["network.safetensors", "teacher/checkpoints/best.ckpt"])
def test_damaged_weights(made, tmp_path, name):
    root, *_ = made
    raw = (root / name).read_bytes()
    for cut in (0, 10, len(raw) // 2, len(raw) - 1):
        path = tmp_path / f"cut.{name[-4:]}".replace("sors", "safetensors")
        path.write_bytes(raw[:cut])
        with pytest.raises(RunError, match=r"cut\..* is damaged"):
            load_weights(Eye(), path)


# ---------------------------------------------------------------- the scenes


class Speckle(nn.Module):
    """An augmentation that no two draws of agree in."""

    def forward(self, image):
        return torch.randint(256, image.shape, dtype=torch.uint8)


def read_epoch(module, epoch):
    """Training batches of an epoch, by image: `{position: augmented image}`."""
    batches = module.train_dataloader()
    batches.sampler.set_epoch(epoch)
    places = [place for place, _ in batches.sampler]
    found = torch.cat([x for x, _ in batches])
    return dict(zip(places, found, strict=True))


def test_masks_are_for_looking_not_for_learning():
    module = scenes()
    x, y = next(iter(module.train_dataloader()))
    assert x.shape == (16, 3, 32, 32) and x.dtype == torch.uint8 and y.dtype == torch.int64
    for batches in (module.val_dataloader(), module.test_dataloader()):
        x, y, masks = next(iter(batches))
        assert x.shape == (60, 3, 32, 32) and masks.shape == (60, 32, 32)
        assert masks.dtype == torch.bool
    assert torch.equal(x, few("test").images)
    sent = module.on_after_batch_transfer([x, y, masks], 0)
    assert torch.equal(sent[0], data.normalise(x)) and sent[1] is y and sent[2] is masks


def test_the_scenes_are_the_ones_asked_for(monkeypatch):
    calls = spy(monkeypatch, data, "cluttered")
    module = scenes(clutter=2)
    for _ in range(2):  # each split is made once
        module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    assert calls == [
        (("train", 40), {"clutter": 2}),
        (("validation", None), {"clutter": 2}),
        (("test", None), {"clutter": 2}),
    ]


def test_whole_batches_only():
    module = scenes(images=40, batch_size=16)
    assert len(module.train_dataloader()) == 2
    assert [len(y) for _, y in module.train_dataloader()] == [16, 16]


def test_order_and_augmentation_by_seed_epoch_and_image():
    module = scenes(augment=[Speckle()], batch_size=20)
    first = read_epoch(module, 0)
    assert sorted(first) == list(range(40))
    assert_same(first, read_epoch(module, 0))
    assert_same(first, read_epoch(scenes(augment=[Speckle()], batch_size=10), 0))
    for other in (
        read_epoch(module, 1),
        read_epoch(scenes(augment=[Speckle()], batch_size=20, seed=1), 0),
    ):
        assert list(other) != list(first)
        assert len(differing(first, other)) == 40
    plain = read_epoch(scenes(augment=[], batch_size=20), 0)
    assert list(plain) == list(first)
    assert all(torch.equal(x, few("train", 40).images[i]) for i, x in plain.items())


def test_the_labels_go_with_their_images():
    batches = scenes(batch_size=40, augment=[]).train_dataloader()
    places = [place for place, _ in batches.sampler]
    ((x, y),) = list(batches)
    assert torch.equal(y, few("train", 40).labels[places])
    assert torch.equal(x, few("train", 40).images[places])


def test_augmentation_leaves_other_chance_alone():
    dataset = scenes(augment=[Speckle()]).train_dataloader().dataset
    before = torch.get_rng_state()
    dataset[3, 17]
    assert torch.equal(before, torch.get_rng_state())
    assert len(dataset) == 40


# Later versions of Python warn of any fork, and PyTorch where there are fewer cores.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_the_number_of_workers_does_not_matter():
    def loaded(workers):
        batches = scenes(workers=workers).train_dataloader()
        found = []
        for epoch in (0, 1):
            batches.sampler.set_epoch(epoch)
            found += [part for batch in batches for part in batch]
        return found

    alone, two = loaded(0), loaded(2)
    assert len(alone) == len(two) == 8
    assert all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))


@pytest.mark.parametrize(("count", "ranks"), [(12, 1), (12, 2), (13, 2), (14, 3), (2, 3)])
def test_ranks_share_the_images_out(count, ranks):
    alone = list(datamodules._Order(count, 5, 0, 1))
    assert [i for i, _ in alone] != sorted(i for i, _ in alone) or count < 3
    for epoch in (0, 4):
        parts = []
        for rank in range(ranks):
            order = datamodules._Order(count, 5, rank, ranks)
            order.set_epoch(epoch)
            parts.append(list(order))
            assert len(parts[-1]) == len(order) == count // ranks
        seen = [place for part in parts for place, _ in part]
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(count))
        if ranks == 1:
            assert sorted(seen) == list(range(count))
        seeds = [seed for part in parts for _, seed in part]
        assert len(set(seeds)) == len(seeds)


def photos(root, count=12, classes=("cat", "dog"), size=(40, 32)):
    """A folder of images, each of one colour, which says its class and its number."""
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", size, (label * 100, i, 200))
                picture.save(root / part / name / f"{i:03}.png")
    return root


def which(images, labels):
    """Label and number of each image."""
    return list(zip(labels.tolist(), images[:, 1, 0, 0].round().int().tolist(), strict=True))


def test_a_folder_of_images(tmp_path):
    root = photos(tmp_path)
    steps = [v2.RandomHorizontalFlip()]
    module = FolderData(root, batch_size=4, augment=steps, mean=(0.0,) * 3, std=(1.0,) * 3)
    seen = []
    for batch in module.train_dataloader():
        images, labels = module.on_after_batch_transfer(batch, 0)
        assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
        assert torch.equal((images[:, 0, 0, 0] * 255 / 100).round().long(), labels)
        seen += which(images * 255, labels)
    held = [one for batch in module.val_dataloader() for one in which(*batch)]
    # Two of 24 are held out, one a class; five batches of four are made of the other 22.
    assert len(set(seen)) == len(seen) == 20 and len(held) == 2 and not set(seen) & set(held)
    assert sum(len(labels) for _, labels in module.test_dataloader()) == 24


def test_fewer_images_are_the_same_for_every_seed(tmp_path):
    root = photos(tmp_path)

    def shown(**options):
        batches = FolderData(root, batch_size=3, **options).train_dataloader()
        return [one for batch in batches for one in which(*batch)]

    first, second = shown(images=6, seed=0), shown(images=6, seed=1)
    assert len(first) == 6 and first != second and sorted(first) == sorted(second)
    assert shown(images=6, seed=0) == first
    assert shown(images=6, workers=2) == first
    assert {label for label, _ in shown(images=12)} == {0, 1}


def test_a_student_learns_from_photographs(tmp_path):
    """The engine takes images without masks, and logs what can be known without them."""
    module = FolderData(photos(tmp_path), batch_size=8)
    fitted = trainer()
    fitted.fit(distil(samd=SAMD(weight=1.0)), module)
    logged = fitted.callback_metrics
    assert "val/accuracy" in logged and "val/divergence" in logged
    assert not [name for name in logged if "object" in name]


@pytest.mark.bad_input
def test_folders_that_do_not_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing; expected"):
        FolderData(tmp_path / "nowhere").train_dataloader()
    root = photos(tmp_path)
    with pytest.raises(ValueError, match="images: got 23, wanted at most the 22 training images"):
        FolderData(root, images=23, batch_size=4).train_dataloader()
    with pytest.raises(ValueError, match="images and batch_size: got 3 and 4"):
        FolderData(root, images=3, batch_size=4)


def test_samd_fades_in_a_straight_line():
    """The weight of epoch e of n is 1 - e / n of its value; the other terms keep theirs."""
    found = []

    class Watched(Distil):
        def log_dict(self, terms, **options):
            self.seen = {k.removeprefix("train/"): v.item() for k, v in terms.items()}
            super().log_dict(terms, **options)

        def training_step(self, batch, index):
            total = super().training_step(batch, index)
            rest = total.item() - self.seen["ce"] - 2 * self.seen["nld"]
            found.append((self.current_epoch, rest / self.seen["samd"]))
            return total

    terms = {"samd": SAMD(weight=3.0, fade=True), "nld": NLD(weight=2.0)}
    module = Watched(Brain(), Eye(), **NAMES, gradient_norms_every=0, **terms)
    trainer(4).fit(module, loader())
    assert {epoch for epoch, _ in found} == {0, 1, 2, 3}
    for epoch, weight in found:
        assert weight == pytest.approx(3 * (1 - epoch / 4), abs=1e-3)


@pytest.mark.bad_input
def test_sizes_that_make_no_batch():
    for given in ({"images": 3, "batch_size": 4}, {"batch_size": 0}, {"images": 0}):
        with pytest.raises(ValueError, match="images and batch_size: got .*, wanted a batch of"):
            SceneData(**given)
    with pytest.raises(ValueError, match="clutter is -1; it must be from 0"):
        scenes(clutter=-1).train_dataloader()


def test_every_setting_of_the_data_is_in_its_recipe():
    """A new setting must be named here: all parts of one run share it, or it changes nothing."""
    # A run may go on where the images lie elsewhere, and be loaded another way.
    free = {"workers", "root", "test", "memory", "download"}
    for module in (scenes(), FolderData("photos"), CIFARData()):
        settings = set(inspect.signature(type(module)).parameters)
        assert module.recipe().keys() == settings - free | {"select_on_test"}


def test_every_setting_of_the_modules_is_in_their_recipe():
    free = {"channels_last", "gradient_norms_every", "layer"}  # speed, and what is looked at
    for module in (distil(), Teacher(Eye(), "body")):
        trainer().fit(module, loader())
        settings = set(inspect.signature(type(module)).parameters)
        assert settings <= module.recipe().keys() | free


def test_a_shipped_teacher_is_a_teacher():
    module = Distil(spiking(), pretrained("teacher"), "stage1.0.act2", "stage3", samd=SAMD())
    assert not module.teacher.training
