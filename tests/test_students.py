"""Networks of other libraries as teacher and student, by the lines of the page that shows them."""

import re
import warnings
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from ckdlite import training
from ckdlite.networks import OverTime, record
from ckdlite.runs import RunError

PAGE = Path(__file__).parents[1] / "book" / "your-own.md"
SECTION = re.compile(r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", re.DOTALL | re.MULTILINE)
BLOCKS = dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))
STUDENTS = ("SpikingJelly", "snnTorch")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def names(library):
    """What the page's lines define, for one student."""
    torch.manual_seed(0)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those libraries' own, at import
        exec(BLOCKS["A teacher from torchvision"], found)
        exec(BLOCKS[f"A student from {library}"], found)
        exec(BLOCKS["Distil"], found)
    return found


def images(count=8, size=64):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=draw), torch.arange(count) % 4


def test_the_page_has_about_ten_lines_for_each():
    assert set(BLOCKS) == {
        *("A teacher from torchvision", "Distil"),
        *(f"A student from {library}" for library in STUDENTS),
    }
    assert all(len(block.strip().splitlines()) <= 15 for block in BLOCKS.values())


@pytest.mark.slow
@pytest.mark.parametrize(("library", "steps"), [("SpikingJelly", 15), ("snnTorch", 40)])
def test_a_student_learns_and_its_teacher_stays(library, steps):
    """The page's lines, some steps on one batch with SAMD and NLD on."""
    found = names(library)
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
        student.reset = lambda network: None
        assert not torch.equal(student(x), once)


@pytest.mark.parametrize("library", STUDENTS)
def test_the_gradient_goes_through_time(library):
    student = names(library)["student"]
    frames = torch.stack([images(2)[0]] * 3).requires_grad_()
    logits = student(frames)
    assert logits.shape == (3, 2, 10)
    F.cross_entropy(logits[-1], torch.tensor([0, 1])).backward()
    # The last step's answer depends on the first frame, through the potentials alone.
    assert frames.grad[0].abs().sum() > 0


def test_a_layer_that_runs_several_times_is_stacked():
    layer = torch.nn.Linear(3, 3)
    student = OverTime(torch.nn.Sequential(layer), 2, reset=lambda network: None, stepwise=True)
    frames = torch.randn(2, 4, 3, 5, 3)
    with record(student, "network.0") as features:
        student(frames)
    assert torch.equal(features["network.0"], layer(frames))


@pytest.mark.bad_input
def test_what_a_student_over_time_refuses():
    net = torch.nn.Identity()
    with pytest.raises(ValueError, match="timesteps"):
        OverTime(net, 0, reset=lambda network: None)
    with pytest.raises(ValueError, match=r"got shape \[3, 4, 4\], wanted \[B, C, H, W\] or"):
        OverTime(net, 2, reset=lambda network: None)(torch.zeros(3, 4, 4))


@pytest.mark.bad_input
def test_layers_of_other_sizes_are_named():
    module = names("snnTorch")["distil"]
    module.teacher_layer = "layer2"
    with pytest.raises(
        RunError, match=r"'network.5' are 16 x 16, those of teacher_layer 'layer2' 8 x 8; wanted"
    ):
        module.log = module.log_dict = lambda *_args, **_options: None
        module.training_step(images(2), 0)
