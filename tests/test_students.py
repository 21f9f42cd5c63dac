"""Networks of other libraries as teacher and student, by the lines of the page that shows them."""

import copy
import re
import warnings
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckdlite import training
from ckdlite.networks import OverTime, record
from ckdlite.runs import RunError
from ckdlite.saliency import grad_cam

PAGE = Path(__file__).parents[1] / "book" / "your-own.md"
SECTION = re.compile(r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", re.DOTALL | re.MULTILINE)
BLOCKS = dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))
STUDENTS = ("SpikingJelly", "snnTorch")
TEACHERS = ("torchvision", "timm")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def names(library, teacher="torchvision"):
    """What the page's lines define, for one student and one teacher."""
    torch.manual_seed(0)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those libraries' own, at import
        exec("import torch\n" + BLOCKS[f"A teacher from {teacher}"], found)
        exec(BLOCKS[f"A student from {library}"], found)
        exec(BLOCKS["Does it forget?"], found)
        exec(BLOCKS["Distil"], found)
    return found


def images(count=8, size=64):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=draw), torch.arange(count) % 4


def test_the_page_has_about_ten_lines_for_each():
    assert set(BLOCKS) == {
        *("Does it forget?", "Distil"),
        *(f"A teacher from {library}" for library in TEACHERS),
        *(f"A student from {library}" for library in STUDENTS),
    }
    assert all(len(block.strip().splitlines()) <= 22 for block in BLOCKS.values())


@pytest.mark.slow
@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize(("library", "steps"), [("SpikingJelly", 15), ("snnTorch", 40)])
def test_a_student_learns_and_its_teacher_stays(library, steps, teacher):
    """The page's lines, some steps on one batch with SAMD and NLD on."""
    found = names(library, teacher)
    module, x, y = found["distil"], *images()
    module.make_optimizer = lambda parameters: training.sgd(parameters, lr=0.05)
    before = {k: v.clone() for k, v in module.teacher.state_dict().items()}
    start = {k: v.clone() for k, v in module.student.state_dict().items()}
    losses = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_rest):
            seen = {k: float(v) for k, v in trainer.callback_metrics.items() if "train/" in k}
            losses.append(seen)

    trainer = L.Trainer(
        max_epochs=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, on workers and eval mode
        trainer.fit(module, DataLoader(TensorDataset(x, y), len(x)))
    assert len(losses) == steps
    for seen in losses:
        assert seen.keys() >= {"train/loss", "train/ce", "train/samd", "train/nld"}
        assert all(torch.tensor(value).isfinite() for value in seen.values())
        assert seen["train/samd"] > 0
    first, last = ([s["train/ce"] for s in part] for part in (losses[:3], losses[-3:]))
    assert sum(last) < 0.8 * sum(first)
    assert all(torch.equal(before[k], v) for k, v in module.teacher.state_dict().items())
    moved = [k for k, v in module.student.named_parameters() if not torch.equal(start[k], v)]
    assert len(moved) == len(list(module.student.parameters()))


@pytest.mark.parametrize("library", STUDENTS)
def test_a_student_forgets_the_image_before(library):
    found = names(library)
    student, layer = found["student"], found["student_layer"]  # in train mode they fire
    x, _ = images(2)
    with torch.no_grad(), record(student, layer) as features:
        once = student(x)
        seen = features[layer]
        again = student(x)
        assert torch.equal(once, again) and torch.equal(seen, features[layer])
        assert once.shape == (4, 2, 10) and seen.dim() == 5 and seen.shape[:2] == (4, 2)
        assert not torch.equal(once[0], once[-1])  # time does something
        # And without the reset it would not forget.
        student.to_rest = nothing
        student(x)
        assert not torch.equal(student(x), once)


@pytest.mark.parametrize("library", STUDENTS)
def test_the_check_of_the_page_finds_a_student_that_remembers(library):
    found = names(library)
    found["student"].to_rest = nothing
    with pytest.raises(AssertionError, match="it remembers the images before"):
        exec(BLOCKS["Does it forget?"], found)


def test_the_reset_that_the_page_warns_of():
    """If this fails, snnTorch has mended it, and the page can say less."""
    from snntorch import utils

    found = names("snnTorch")
    for network in (nn.Sequential(found["network"]), copy.deepcopy(found["network"])):
        student = OverTime(network, 4, utils.reset, [*dict(network.named_modules())][-5])
        with pytest.raises(AssertionError, match="it remembers"):
            exec(BLOCKS["Does it forget?"], found | {"student": student})


@pytest.mark.parametrize("library", STUDENTS)
def test_the_gradient_goes_through_time(library):
    student = names(library)["student"]
    frames = torch.stack([images(2)[0]] * 3).requires_grad_()
    logits = student(frames)
    assert logits.shape == (3, 2, 10)
    F.cross_entropy(logits[-1], torch.tensor([0, 1])).backward()
    # The last step's answer depends on the first frame, through the potentials alone.
    assert frames.grad[0].abs().sum() > 0


def nothing(network):
    pass


def test_each_step_has_its_place_in_the_stack():
    """The layer runs twice a step: as ever, its last output counts."""
    layer = nn.Linear(3, 3)
    network = nn.Sequential(layer, layer, nn.Flatten())
    student = OverTime(network, 2, nothing, each_step="0")
    frames = torch.randn(2, 4, 3, 5, 3)
    with record(student, "spikes") as features:
        logits = student(frames)
    assert torch.equal(features["spikes"], layer(layer(frames)))
    assert torch.equal(logits, features["spikes"].flatten(2))


def test_a_module_used_in_two_places_is_not_taken_for_time():
    from torchvision.models import resnet18

    network = resnet18(num_classes=10).eval()
    with torch.no_grad(), record(network, "layer1.0.relu", "layer1.0") as features:
        network(torch.randn(2, 3, 32, 32))
        assert torch.equal(features["layer1.0.relu"], features["layer1.0"])
        network.layer1(torch.ones(2, 64, 8, 8))  # a part that is run by itself
    assert features["layer1.0"].shape == (2, 64, 8, 8)


@pytest.mark.parametrize("library", STUDENTS)
def test_a_student_can_be_copied_after_a_step(library):
    student = names(library)["student"]
    x, _ = images(2)
    logits = student(x)
    logits.square().sum().backward()
    twin = copy.deepcopy(student.eval())
    with torch.no_grad():
        assert torch.equal(twin(x), student(x)) and torch.equal(twin(x), student(x))
        assert twin(x[:1]).shape == (4, 1, 10)  # a last batch that is smaller


def test_what_resets_does_not_meet_what_spikingjelly_calls():
    from spikingjelly.activation_based import functional

    student = names("SpikingJelly")["student"]
    functional.reset_net(student)  # calls `reset` of every module that has one


def test_two_runs_of_other_timesteps_are_not_one_run():
    found = {training._text(OverTime(nn.Linear(2, 2), steps, nothing)) for steps in (2, 3)}
    assert len(found) == 2


class Two(nn.Module):
    """Gives its potential too."""

    def forward(self, x):
        return x, x


class Idle(nn.Linear):
    """Has a layer that it does not use."""

    def __init__(self):
        super().__init__(4, 4)
        self.spare = nn.ReLU()


@pytest.mark.bad_input
def test_what_a_student_over_time_refuses():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.zeros(2, 1, 4, 4)
    for make, said in (
        (lambda: OverTime(net, 0, nothing), "timesteps: got 0"),
        (lambda: OverTime(net, 2, nothing, "7"), "got '7', which Sequential has not; it has 0, 1"),
        (lambda: OverTime(net, 2, nothing)(x[0]), r"got shape \[1, 4, 4\], wanted \[B, C, H, W\] "),
        (
            # One step alone would be taken for all of them.
            lambda: OverTime(nn.Flatten(), 3, nothing)(x),
            r"network: gave shape \[3, 32\], wanted logits \[T, B, K\], here \[3, 2, K\]",
        ),
        (
            lambda: OverTime(nn.Sequential(net, Two()), 3, nothing, "0")(x),
            r"network: gave a tuple, wanted logits \[B, K\] of each step, here \[2, K\]",
        ),
        (
            lambda: OverTime(nn.Sequential(Two()), 3, nothing, "0")(x),
            "record: layer '0' gave a tuple, wanted one tensor",
        ),
        (
            lambda: OverTime(nn.Sequential(Idle(), nn.Flatten()), 3, nothing, "0.spare")(x),
            "each_step: layer '0.spare' did not run",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            make()


def step(module):
    module.log = module.log_dict = lambda *_args, **_options: None
    return module.training_step(images(2), 0)


@pytest.mark.bad_input
def test_layers_that_have_no_map_are_named():
    module = names("SpikingJelly")["distil"]
    module.student_layer = "network.fc"
    said = r"'network.fc' gave \[4, 2, 10\], wanted \[T, B, C, H, W\], .* with B = 2: name another"
    with pytest.raises(RunError, match=said):
        step(module)

    class Folds(nn.Module):
        """Runs all steps as one batch inside."""

        def __init__(self):
            super().__init__()
            self.inside, self.read = nn.Conv2d(3, 5, 3, 32, 1), nn.Linear(5, 10)

        def forward(self, x):
            return self.read(self.inside(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2]))

    module.student, module.student_layer = OverTime(Folds(), 4, nothing), "network.inside"
    with pytest.raises(RunError, match=r"'network.inside' gave \[8, 5, 2, 2\], wanted"):
        step(module)


@pytest.mark.bad_input
def test_a_teacher_without_height_and_width_is_refused():
    import timm

    module = names("SpikingJelly")["distil"]
    size = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    module.teacher = timm.models.VisionTransformer(**size, num_classes=10)
    module.teacher_layer = "blocks.0"
    with pytest.raises(
        ValueError, match=r"layer 'blocks.0' gave \[2, 17, 24\] and .* wanted \[B, C"
    ):
        step(module)


@pytest.mark.bad_input
def test_the_page_shows_the_messages_of_wrong_layers():
    found, page = {}, PAGE.read_text(encoding="utf-8")
    exec(BLOCKS["A teacher from torchvision"], found)
    x, _ = images(2)
    for name in ("layer5", "layer1.0.relu"):
        with pytest.raises(ValueError) as error:
            grad_cam(found["teacher"], name, x)
        said = str(error.value).partition(" layer4")[0]  # the names that come near are not shown
        assert f"| `{said}" in page, said


@pytest.mark.bad_input
def test_layers_of_other_sizes_are_named():
    module = names("snnTorch")["distil"]
    module.teacher_layer = "layer2"
    with pytest.raises(
        RunError, match=r"'spikes' are 16 x 16, those of teacher_layer 'layer2' 8 x 8; wanted"
    ):
        step(module)
