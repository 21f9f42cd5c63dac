"""What a full run costs, estimated before it starts: operations counted, hours derived from them.

Two limits bound a training step: arithmetic, and the wait for the processor that sends it layer by
layer. Both were measured on one GPU with one network; hours, and how many images fit, are
**estimates** with a range, not measurements. The page on cost derives them, and says where they
fail.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import memory, results
from .saliency import grad_cam

#: Most operations a second, in TFLOP/s, as NVIDIA's data sheets publish them. Tensor cores without
#: sparsity, in 16 bits (float16 on the T4, bfloat16 on the A100 and the H100 SXM).
PEAKS = {"H100": 989.0, "A100": 312.0, "T4": 65.0}


class Counted(NamedTuple):
    """Floating-point operations of one training step, for one image.

    A multiply-accumulate is two operations.

    Attributes:
        student: forward and backward of the network that is trained.
        teacher: forward of its teacher, and its map where that is asked for; 0 without one.
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
    student: nn.Module,
    teacher: nn.Module | None,
    images: Float[Tensor, "..."],
    teacher_layer: str | None = None,
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
        images: `[B, C, H, W]`, or event frames `[T, B, C, H, W]`, which the teacher sees too.
            Batch norm wants B of at least 2. The values do not matter.
        teacher_layer: for SAMD, the layer of the teacher's Grad-CAM: the gradient from the logits
            back to it counts too. `None` leaves it out.

    Raises:
        ValueError: images of other axes, or none; no such layer.
    """
    _check(images)
    batch = images.shape[-4]
    student, images = _copy(student), images.detach().cpu()
    with _counter() as trained:
        student(images).sum().backward()
    if teacher is None:
        return Counted(trained.get_total_flops() // batch, 0)
    teacher = _copy(teacher)
    with _counter() as watched:
        if teacher_layer is None:
            with torch.no_grad():
                teacher(images)
        else:
            grad_cam(teacher.requires_grad_(False), teacher_layer, images)
    return Counted(trained.get_total_flops() // batch, watched.get_total_flops() // batch)


def kept_bytes(student: nn.Module, images: Float[Tensor, "..."]) -> int:
    """Bytes that a training step in bfloat16 keeps for its backward pass, for one image.

    The difference of two batches, so that what does not grow with the batch (the weights' copies
    in 16 bits) falls out. Counted by `memory.saved`, on a CPU, under autocast.

    Args:
        student: gives logits. Its own neurons are run, and a compiled one keeps less.
        images: as for `training_flops`, at least 2 of them.

    Raises:
        ValueError: images of other axes, or fewer than 2.
    """
    _check(images)
    batch = images.shape[-4]
    if batch < 2:
        raise ValueError(f"images: got a batch of {batch}, wanted at least 2")
    student, images = _copy(student), images.detach().cpu()
    found = []
    for many in (images, torch.cat([images, images], -4)):
        with memory.saved() as kept, torch.autocast("cpu", torch.bfloat16):
            loss = student(many).float().logsumexp(-1).mean()
            found.append(kept.bytes)
        del loss
    return (found[1] - found[0]) // batch


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
        loop_wait: seconds a layer of a student with SpikingJelly's neuron, which is not compiled,
            at T = 4; at most so much of it was waiting.
        peak: the largest ratio of a measured peak of memory to what a step was counted to keep.
    """

    rates: tuple[float, float]
    waits: tuple[float, float]
    teacher_wait: float
    loop_wait: float
    peak: float


def limits() -> Limits:
    """Derive the limits from `assets/epoch-cuda.csv` and what is counted of ResNet-19.

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
    depth = find(name)["layers"]
    batch = measured[0]["batch"]
    small, peaks = [], []
    for row in measured:
        case, t = row["case"], row.get("timesteps")
        ours = case == "ckdlite compiled" or case.startswith("loss ")
        if ours and t == 1:
            small.append(row["images_per_second"])
        if ours or case == "ANN":
            counted = find(f"{name}-teacher") if t is None else find(name, int(t))
            peaks.append(row["peak_mb"] * 1e6 / kept(counted, int(batch)))
    waits = (batch / max(small) / depth, batch / min(small) / depth)
    loop = batch / speeds["SpikingJelly", 4] / depth
    return Limits((min(rates), max(rates)), waits, batch / ann / depth, loop, max(peaks))


def hours(
    recipe: str, timesteps: int | None = None, gpu: str = "H100", batch: int | None = None
) -> Hours:
    r"""Estimate the GPU-hours of a recipe's run: at least, at most.

    With F operations an image, B images a device, D layers, a rate R and a wait w a layer, a step
    takes

    .. math::

        \text{low} &= \max(F B / R_{\max}, \; D w_{\min}) \\
        \text{high} &= F B / R_{\min} + D w_{\max}

    seconds. Rates and waits: see `limits`. On another GPU the rates are scaled by the ratio of the
    published peaks and the waits stay: a guess, measured on none of them. The data path, validation
    and the check-points are left out, and so is what several devices say to each other; but for
    that they share the hours.

    Args:
        recipe: a name in `assets/costs.csv`, as `"cifar10-resnet19"`.
        timesteps: T; without it, that of the recipe.
        gpu: a key of `PEAKS`.
        batch: images on a device at a time; without it, as many as the recipe has.

    Raises:
        ValueError: no such recipe, T or GPU, or a batch below 1.
    """
    if gpu not in PEAKS:
        raise ValueError(f"gpu: got {gpu!r}, wanted one of {', '.join(PEAKS)}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch: got {batch}, wanted at least 1")
    row, known = find(recipe, timesteps), limits()
    shortest, longest = known.waits
    if "timesteps" not in row:
        shortest = longest = known.teacher_wait
    elif row["neuron"] == "SpikingJelly":
        longest = known.loop_wait
    size = row["batch"] if batch is None else batch
    scale = PEAKS[gpu] / PEAKS["H100"]
    work = (row["step_flops"] + row["teacher_flops"]) * size / scale
    low = max(work / known.rates[1], row["layers"] * shortest)
    high = work / known.rates[0] + row["layers"] * longest
    steps = row["epochs"] * math.ceil(row["images"] / size)
    return Hours(low * steps / 3600, high * steps / 3600)


def kept(row: results.Row, batch: int) -> float:
    """Bytes that a training step of a row of `assets/costs.csv` keeps on a device.

    Those of the images, 12 a parameter (weight, gradient, momentum; AdamW has 16), and 4 a
    parameter of the teacher.
    """
    weights = 12 * row["parameters"] + 4 * row["teacher_parameters"]
    return batch * row["kept_bytes"] + weights


class Images(NamedTuple):
    """An estimated number of images that fit on a device at a time.

    Attributes:
        few: the peak lies above what is kept by the largest ratio measured.
        many: the peak is what is kept.
    """

    few: int
    many: int


def fits(recipe: str, timesteps: int | None = None, gigabytes: float | int = 80) -> Images:
    """Estimate how many images fit on a device at a time: at least, at most.

    By what a step keeps in bfloat16, see `kept`. How far the peak lies above that was measured for
    ResNet-19 alone; for other networks the same is assumed.

    Args:
        recipe: as for `hours`.
        timesteps: as for `hours`.
        gigabytes: what is free on the device, in units of 10^9 bytes.

    Raises:
        ValueError: no such recipe or T, or no memory.
    """
    if not gigabytes > 0:
        raise ValueError(f"gigabytes: got {gigabytes}, wanted more than 0")
    row = find(recipe, timesteps)
    found = (gigabytes * 1e9 / ratio - kept(row, 0) for ratio in (limits().peak, 1.0))
    return Images(*(max(0, int(free // row["kept_bytes"])) for free in found))


def _check(images: Tensor) -> None:
    if images.dim() not in (4, 5) or not images.numel():
        raise ValueError(
            f"images: got shape {list(images.shape)}, wanted [B, C, H, W] or [T, B, C, H, W] "
            "with nothing empty"
        )


def _copy(network: nn.Module) -> nn.Module:
    # Train mode, because some neurons of other libraries have no gradient in eval mode.
    return copy.deepcopy(network).cpu().train()


def _counter() -> FlopCounterMode:
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    # PyTorch's own count (2.14) is too high for a grouped convolution: it takes the gradient of the
    # weights for one of all channels with all.
    transposed, wanted = rest[4], rest[7]
    forward = 2 * math.prod(x if transposed else grad) * math.prod(weight[1:])
    return forward * (wanted[0] + wanted[1])
