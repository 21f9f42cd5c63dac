"""What a network does and what it would cost: predictions, firing rates, operations, entropy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from .lif import LIF
from .saliency import check_target

# Energy of one 32-bit floating-point operation in a 45 nm process at 0.9 V, in picojoules:
# Horowitz 2014 (ISSCC), "Computing's energy problem". A multiplication 3.7 and an addition 0.9.
#: Picojoules of a multiply-accumulate in 32-bit floating point, 45 nm (Horowitz 2014).
PICOJOULES_MAC = 4.6
#: Picojoules of an accumulate in 32-bit floating point, 45 nm (Horowitz 2014).
PICOJOULES_AC = 0.9


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, so that looking at a network does not change it; every layer's mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def predict(
    model: nn.Module, images: Float[Tensor, "..."], batch_size: int = 250
) -> Float[Tensor, "N K"]:
    """Logits of many images, in eval mode and in batches; a student's are averaged over time.

    Images are `[N, ...]`, or event frames `[T, N, C, H, W]`.

    The mode of every layer is put back afterwards.

    Raises:
        ValueError: no image, or a batch size below 1.
    """
    count = images.shape[_batch_axis(images)]
    if not count or batch_size < 1:
        raise ValueError(
            f"predict: got {count} images and batch size {batch_size}, wanted at least 1"
        )
    with _in_eval_mode(model):
        logits = [model(batch) for batch in images.split(batch_size, _batch_axis(images))]
    return torch.cat([y.mean(0) if y.dim() == 3 else y for y in logits])


def accuracy(logits: Float[Tensor, "N K"], labels: Integer[Tensor, " N"]) -> float:
    """The share of images whose highest logit is the label's, from 0 to 1.

    Raises:
        ValueError: shapes that do not match, no image, labels out of range, or NaN among the
            logits.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not logits.numel():
        raise ValueError(
            f"logits and labels: got {list(logits.shape)} and {list(labels.shape)}, "
            "wanted [N, K] and [N] with nothing empty"
        )
    if bool(logits.isnan().any()):
        raise ValueError("logits: got NaN, wanted numbers")
    labels = check_target(labels, *logits.shape)
    return (logits.argmax(1) == labels).double().mean().item()


def entropy(logits: Float[Tensor, "*B K"], temperature: float = 1.0) -> Float[Tensor, "*B"]:
    r"""Entropy of `softmax(logits / temperature)` over the last axis, in nats: 0 to ln K.

    .. math:: H = -\sum_k p_k \ln p_k, \quad p = \mathrm{softmax}(z / \tau)

    Raises:
        ValueError: a temperature not above 0, or NaN among the logits.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, wanted a number above 0")
    if bool(logits.isnan().any()):
        raise ValueError("logits: got NaN, wanted numbers")
    return torch.special.entr(F.softmax(logits / temperature, -1)).sum(-1)


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[dict[str, list[float]]]:
    """Note the firing rate of each LIF layer by name, in every forward pass inside the block.

    A model without LIF layers leaves the dictionary empty.
    """
    rates: dict[str, list[float]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, spikes: Tensor) -> None:
            # A layer that is used twice counts twice.
            rates.setdefault(name, []).append(spikes.detach().mean(dtype=torch.float32).item())

        return hook

    neurons = {name: m for name, m in model.named_modules() if isinstance(m, LIF)}
    hooks = [m.register_forward_hook(keep(name)) for name, m in neurons.items()]
    try:
        yield rates
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def firing_rates(model: nn.Module, images: Float[Tensor, "..."]) -> dict[str, float]:
    """Firing rate of each LIF layer by name, in spikes per neuron and timestep, 0 to 1.

    Measured in eval mode; the mode of every layer is put back afterwards.

    Raises:
        ValueError: the model has no LIF layer, or there is no image.
    """
    _check_some(images)
    with count_spikes(model) as rates, _in_eval_mode(model):
        model(images)
    if not rates:
        raise ValueError(f"firing_rates: {type(model).__name__} has no LIF layer")
    return {name: sum(found) / len(found) for name, found in rates.items()}


class LayerCost(NamedTuple):
    """Operations of one layer for one image, over all timesteps.

    Attributes:
        layer: its name, as in `model.named_modules()`.
        macs: multiply-accumulates: the input holds real numbers.
        acs: accumulates: the input holds spikes, and only a spike costs.
    """

    layer: str
    macs: float
    acs: float


class Cost(NamedTuple):
    """Operations and energy for one image, over all timesteps. See `operations`.

    Attributes:
        layers: what each layer costs, in the order in which they ran.
    """

    layers: list[LayerCost]

    @property
    def macs(self) -> float:
        """Multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def acs(self) -> float:
        """Accumulates of all layers."""
        return sum(layer.acs for layer in self.layers)

    @property
    def microjoules(self) -> float:
        """Energy estimate: 4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate."""
        return (PICOJOULES_MAC * self.macs + PICOJOULES_AC * self.acs) * 1e-6


@torch.no_grad()
def operations(model: nn.Module, images: Float[Tensor, "..."]) -> Cost:
    """Count the operations of every `Conv2d` and `Linear`, mean over these images.

    A layer whose input is only zeros and ones takes spikes: each spike costs one accumulate for
    every weight that it meets (a synaptic operation). Any other layer costs one multiply-accumulate
    for every weight and position, zeros included; so does one whose input is all zero in a model
    without neurons, where nothing shows that it takes spikes. Taps that fall into the padding (of
    zeros) are counted in neither. The counts are made from the actual spikes, not from rates, in
    eval mode. Other kinds of layer are not counted.

    The energy is an estimate for arithmetic alone: 32-bit floating point, 45 nm (Horowitz 2014).
    It leaves out memory traffic, which dominates on real chips, the neurons' own updates (one
    multiplication and one addition a neuron and step), and what batch norm costs where it is not
    folded into the weights. It says what sparse spikes could save, not what a device draws.

    Raises:
        ValueError: no image.
    """
    _check_some(images)
    costs: list[LayerCost] = []
    batch = images.shape[_batch_axis(images)]
    has_neurons = any(isinstance(m, LIF) for m in model.modules())

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            x = inputs[0]
            binary = bool(((x == 0) | (x == 1)).all())
            spiking = binary and (has_neurons or bool(x.any()))
            used = x if spiking else torch.ones_like(x)
            total = _fan_out(module, used) / batch
            costs.append(LayerCost(name, 0.0 if spiking else total, total if spiking else 0.0))

        return hook

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [
        m.register_forward_hook(count(name))
        for name, m in model.named_modules()
        if isinstance(m, kinds)
    ]
    try:
        with _in_eval_mode(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(costs)


def _batch_axis(images: Tensor) -> int:
    """1 for event frames `[T, B, C, H, W]`, else 0."""
    return 1 if images.dim() == 5 else 0


def _check_some(images: Tensor) -> None:
    if images.dim() < 2 or not images.numel():
        raise ValueError(f"images: got shape {list(images.shape)}, wanted a batch of at least one")


def _fan_out(module: nn.Module, x: Tensor) -> float:
    """How many weights the ones in x meet: each is one operation."""
    if isinstance(module, nn.Linear):
        return x.sum(dtype=torch.float64).item() * module.out_features
    # Channels all meet the same taps, so they can be added up before the taps are counted.
    frames = x.flatten(0, -4).sum(1, keepdim=True, dtype=torch.float64)
    ones = torch.ones(1, 1, *module.kernel_size, dtype=torch.float64, device=x.device)
    met = F.conv2d(frames, ones, None, module.stride, module.padding, module.dilation)
    return met.sum().item() * module.out_channels / module.groups
