"""What a full run costs, estimated before it starts: operations counted, hours derived from them.

Two limits bound a training step: arithmetic, and the wait for the processor that sends it layer by
layer. Both were measured on one GPU with one network; every hour here is an **estimate** with a
range, not a measurement. The page on cost derives it, and says where it fails.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import results

#: Most operations a second, in TFLOP/s, as NVIDIA's data sheets publish them. Tensor cores without
#: sparsity, in 16 bits (float16 on the T4, bfloat16 on the A100 and the H100 SXM).
PEAKS = {"H100": 989.0, "A100": 312.0, "T4": 65.0}


class Counted(NamedTuple):
    """Floating-point operations of one training step, for one image.

    A multiply-accumulate is two operations.

    Attributes:
        student: forward and backward of the network that is trained.
        teacher: forward of its teacher; 0 without one.
    """

    student: int
    teacher: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.student + self.teacher


class Hours(NamedTuple):
    """An estimated time of a run, in hours.

    Attributes:
        low: arithmetic at the best rate measured, and the waits hidden behind it, or it behind
            them.
        high: arithmetic at the worst rate measured, and every wait on top.
    """

    low: float
    high: float


def training_flops(
    student: nn.Module, teacher: nn.Module | None, images: Float[Tensor, "..."]
) -> Counted:
    r"""Count the operations of a training step, for one image.

    A convolution with weights `[D, C / groups, k, k]` and an output `[B, D, H, W]` takes

    .. math:: 2 \cdot B D H W \cdot (C / \text{groups}) \, k^2

    forward, as many for the gradient of its weights, and as many for that of its input, where one
    is wanted. Linear layers and products of matrices count alike. What is done element by element
    (neurons, batch norm, losses) does not count: it is bound by memory, not by arithmetic.

    Both networks are copied, so that neither changes; the count runs on a CPU.

    Args:
        student: gives logits; a student's T counts. Or a teacher that is trained itself.
        teacher: gives logits of the same images, or `None`.
        images: `[B, C, H, W]`, or event frames `[T, B, C, H, W]`, whose sum over T the teacher
            sees. Batch norm wants B of at least 2. The values do not matter.

    Raises:
        ValueError: images of other axes, or none.
    """
    if images.dim() not in (4, 5) or not images.numel():
        raise ValueError(
            f"images: got shape {list(images.shape)}, wanted [B, C, H, W] or [T, B, C, H, W] "
            "with nothing empty"
        )
    batch = images.shape[-4]
    trained = _count(student, images, backward=True)
    still = images.sum(0) if images.dim() == 5 else images
    watched = 0 if teacher is None else _count(teacher, still, backward=False)
    return Counted(trained // batch, watched // batch)


def layers(network: nn.Module) -> int:
    """How many convolutions and linear layers a network has."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return sum(isinstance(module, kinds) for module in network.modules())


def find(recipe: str, timesteps: int | None = None) -> results.Row:
    """The row of a recipe in `assets/costs.csv`; without T, that which the recipe has itself.

    `experiments/count_recipes.py` counted the file. Operations are for one image.

    Raises:
        ValueError: no such recipe, or not counted at that T.
    """
    rows = results.read("costs.csv")
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    found = [row for row in rows if row["recipe"] == recipe]
    if not found:
        raise ValueError(f"recipe: got {recipe!r}, wanted one of {', '.join(names)}")
    counted = [row.get("timesteps") for row in found]
    if timesteps is None:
        return found[0]
    if timesteps not in counted:
        known = " or ".join("none (a teacher)" if t is None else f"{t:.0f}" for t in counted)
        raise ValueError(f"timesteps: got {timesteps}, {recipe} is counted at {known}")
    return found[counted.index(timesteps)]


class Limits(NamedTuple):
    """What was measured on one H100 with ResNet-19, and bounds an estimate.

    Attributes:
        rates: lowest and highest operations a second that a training step reached.
        waits: fewest and most seconds a layer of a student, in steps that wait for the processor.
        teacher_wait: seconds a layer of an ANN; at most so much of it was waiting.
    """

    rates: tuple[float, float]
    waits: tuple[float, float]
    teacher_wait: float


def limits() -> Limits:
    """Derive the limits from `assets/epoch-cuda.csv` and the operations of ResNet-19.

    At T = 1 a step is too small for the GPU, so its time a layer is the wait; the rows of neurons
    and losses bound it. The rates are those of the ANN and of the compiled neuron.
    """
    name = "cifar10-resnet19"
    measured = results.read("epoch-cuda.csv")
    measured = [row for row in measured if row.get("precision") == "bf16-mixed"]
    speeds = {(row["case"], row.get("timesteps")): row["images_per_second"] for row in measured}
    ann = speeds["ANN", None]
    rates = [ann * find(f"{name}-teacher")["step_flops"]]
    rates += [speeds["ckdlite compiled", t] * find(name, t)["step_flops"] for t in (1, 4)]
    small = [
        speed
        for (case, t), speed in speeds.items()
        if t == 1 and (case == "ckdlite compiled" or case.startswith("loss "))
    ]
    depth = find(name)["layers"]
    batch = measured[0]["batch"]
    waits = (batch / max(small) / depth, batch / min(small) / depth)
    return Limits((min(rates), max(rates)), waits, batch / ann / depth)


def hours(recipe: str, timesteps: int | None = None, gpu: str = "H100") -> Hours:
    r"""Estimate the hours of a recipe's run on one GPU: at least, at most.

    With F operations an image, batch B, D layers, a rate R and a wait w a layer, a step takes

    .. math::

        \text{low} &= \max(F B / R_{\max}, \; D w_{\min}) \\
        \text{high} &= F B / R_{\min} + D w_{\max}

    seconds. Rates and waits: see `limits`. On another GPU the rates are scaled by the ratio of the
    published peaks and the waits stay: a guess, measured on none of them. The data path, validation
    and the check-points are left out.

    Args:
        recipe: a name in `assets/costs.csv`, as `"cifar10-resnet19"`.
        timesteps: T; without it, that of the recipe.
        gpu: a key of `PEAKS`.

    Raises:
        ValueError: no such recipe, T or GPU.
    """
    if gpu not in PEAKS:
        raise ValueError(f"gpu: got {gpu!r}, wanted one of {', '.join(PEAKS)}")
    row, known = find(recipe, timesteps), limits()
    waits = known.waits if "timesteps" in row else (known.teacher_wait, known.teacher_wait)
    scale = PEAKS[gpu] / PEAKS["H100"]
    work = (row["step_flops"] + row["teacher_flops"]) * row["batch"] / scale
    low = max(work / known.rates[1], row["layers"] * waits[0])
    high = work / known.rates[0] + row["layers"] * waits[1]
    steps = row["epochs"] * math.ceil(row["images"] / row["batch"])
    return Hours(low * steps / 3600, high * steps / 3600)


def _count(network: nn.Module, images: Tensor, backward: bool) -> int:
    # Train mode, because some neurons of other libraries have no gradient in eval mode.
    network = copy.deepcopy(network).cpu().train()
    images = images.detach().cpu()
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with counter, torch.set_grad_enabled(backward):
        logits = network(images)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def _convolution_backward(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    # PyTorch's own count (2.14) is too high for a grouped convolution: it takes the gradient of the
    # weights for one of all channels with all.
    transposed, wanted = rest[4], rest[7]
    forward = 2 * math.prod(x if transposed else grad) * math.prod(weight[1:])
    return forward * (wanted[0] + wanted[1])
