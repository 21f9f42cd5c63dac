"""The leaky integrate-and-fire (LIF) neuron over time, and its surrogate gradients.

Time is the first axis everywhere: an input current `x` is `[T, ...]`, and so are the spikes.
Chapter 1.1 builds this neuron in plain lines.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Surrogate = Callable[[Tensor], Tensor]


def triangle(v: Float[Tensor, "*N"], width: float = 1.0) -> Float[Tensor, "*N"]:
    """Triangle of area one: `max(0, 1 - |v| / width) / width`, with `v = u - threshold`.

    With `width = 1` it is the surrogate of CKDSNN's code, `max(0, 1 - |u - 1|)`.
    Source: Esser et al. 2016 (PNAS 113), Bellec et al. 2018. Chapter 1.1.
    """
    return (1 - v.abs() / width).clamp(min=0) / width


def rectangle(v: Float[Tensor, "*N"], width: float = 1.0) -> Float[Tensor, "*N"]:
    """Rectangle of area one: `1 / width` where `|v| < width / 2`, else 0.

    Source: Wu et al. 2018, "Spatio-temporal backpropagation" (STBP), curve h1.
    """
    return (v.abs() < width / 2).to(v.dtype) / width


def arctan(v: Float[Tensor, "*N"], alpha: float = 2.0) -> Float[Tensor, "*N"]:
    """Slope of a scaled arctangent: `(alpha / 2) / (1 + (pi / 2 * alpha * v)**2)`.

    Source: Fang et al. 2021, "Incorporating learnable membrane time constant" (PLIF).
    """
    return (alpha / 2) / (1 + (torch.pi / 2 * alpha * v) ** 2)


def fast_sigmoid(v: Float[Tensor, "*N"], slope: float = 25.0) -> Float[Tensor, "*N"]:
    """Slope of a fast sigmoid: `1 / (1 + slope * |v|)**2`.

    Source: Zenke and Ganguli 2018, "SuperSpike".
    """
    return 1 / (1 + slope * v.abs()) ** 2


def sigmoid(v: Float[Tensor, "*N"], alpha: float = 4.0) -> Float[Tensor, "*N"]:
    """Slope of a logistic function: `alpha * p * (1 - p)` with `p = 1 / (1 + exp(-alpha * v))`."""
    p = torch.sigmoid(alpha * v)
    return alpha * p * (1 - p)


SURROGATES: dict[str, Surrogate] = {
    f.__name__: f for f in (triangle, rectangle, arctan, fast_sigmoid, sigmoid)
}


class _Fire(torch.autograd.Function):
    """Forward: the step `v > 0`. Backward: the surrogate's slope at `v` in place of the step's."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, slope: Surrogate) -> Tensor:
        ctx.save_for_backward(v)
        ctx.slope = slope
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return grads[0] * ctx.slope(v), None


def _layout(x: Tensor) -> list[int]:
    """Axes of `x` from the slowest to the fastest in memory, time always first.

    The loop works on this view, so that stacking the steps keeps channels-last as it came.
    """
    return [0, *sorted(range(1, x.dim()), key=lambda d: -x.stride(d))]


def _run(
    x: Tensor,
    decay: float,
    threshold: float,
    reset: str,
    detach_reset: bool,
    slope: Surrogate,
    keep_membrane: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loop over time: spikes, and the potential that each step's threshold read."""
    order = _layout(x)
    back = sorted(range(x.dim()), key=order.__getitem__)
    spikes, membrane = [], []
    u = None
    for x_t in x.permute(order).unbind(0):
        u = x_t if u is None else decay * u + x_t
        s = _Fire.apply(u - threshold, slope)
        spikes.append(s)
        if keep_membrane:
            membrane.append(u)
        gate = s.detach() if detach_reset else s
        u = (1 - gate) * u if reset == "hard" else u - threshold * gate
    kept = torch.stack(membrane).permute(back) if keep_membrane else None
    return torch.stack(spikes).permute(back), kept


def _slope(surrogate: str | Surrogate) -> Surrogate:
    if callable(surrogate):
        return surrogate
    if surrogate not in SURROGATES:
        raise ValueError(
            f"surrogate: got {surrogate!r}, wanted one of {', '.join(SURROGATES)}, "
            "or a function of v = u - threshold"
        )
    return SURROGATES[surrogate]


def _check_neuron(decay: float, threshold: float, reset: str) -> None:
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: got {decay}, wanted a number from 0 (no memory) to 1 (no leak)")
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold: got {threshold}, wanted a finite number above 0")
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset: got {reset!r}, wanted 'hard' (to zero) or 'soft' (by threshold)")


def _check_current(x: Tensor) -> None:
    if x.dim() < 1 or x.shape[0] < 1:
        raise ValueError(
            f"input current: got shape {list(x.shape)}, wanted [T, ...] with at least one timestep"
        )
    if not x.is_floating_point():
        raise TypeError(f"input current: got {x.dtype}, wanted a floating-point tensor")


def lif(
    x: Float[Tensor, " T *N"],
    *,
    decay: float = 0.5,
    threshold: float = 1.0,
    reset: Literal["hard", "soft"] = "hard",
    detach_reset: bool = False,
    surrogate: str | Surrogate = "triangle",
) -> tuple[Float[Tensor, " T *N"], Float[Tensor, " T *N"]]:
    """Run the LIF neuron over time; return its spikes and its membrane potential.

    For each timestep, from `u = 0`::

        u <- decay * u + x[t]
        s[t] = 1 if u - threshold > 0 else 0
        u <- (1 - s[t]) * u          (hard reset)
        u <- u - threshold * s[t]    (soft reset)

    The potential returned is the one that the threshold reads, before the reset. In the backward
    pass the step's slope is replaced by `surrogate(u - threshold)`.

    Args:
        x: input current, `[T, ...]`, in units of the threshold at the default `threshold = 1`.
        decay: the share of the potential kept from one step to the next (beta in snnTorch;
            `1 - 1/tau` in SpikingJelly), from 0 to 1.
        threshold: the potential above which the neuron fires, above 0.
        reset: `"hard"` sets the potential to zero, `"soft"` subtracts the threshold.
        detach_reset: keep the gradient from flowing through the spike in the reset.
        surrogate: a name from `SURROGATES` or a function of `v = u - threshold`.

    Raises:
        ValueError: no timestep, a value out of range, an unknown name, or an input that is not
            finite.
        TypeError: `x` is not a floating-point tensor.

    The defaults are CKDSNN's neuron (released code, commit 13c9f7b). Chapter 1.1.
    """
    _check_neuron(decay, threshold, reset)
    _check_current(x)
    if not x.isfinite().all():
        raise ValueError("input current: got NaN or infinity, wanted finite numbers")
    return _run(x, decay, threshold, reset, detach_reset, _slope(surrogate), True)


class LIF(nn.Module):
    """A layer of LIF neurons: current `[T, ...]` in, spikes `[T, ...]` out. See `lif`.

    It starts from rest at every call and keeps no state between calls. It does not look for NaN,
    as `lif` does: that costs a pass over memory in every layer (a NaN potential never fires).
    """

    def __init__(
        self,
        decay: float = 0.5,
        threshold: float = 1.0,
        reset: Literal["hard", "soft"] = "hard",
        detach_reset: bool = False,
        surrogate: str | Surrogate = "triangle",
    ) -> None:
        super().__init__()
        _check_neuron(decay, threshold, reset)
        self.decay, self.threshold, self.reset = decay, threshold, reset
        self.detach_reset, self.surrogate = detach_reset, surrogate
        _slope(surrogate)  # an unknown name is refused here, not at the first forward pass

    def forward(self, x: Float[Tensor, " T *N"]) -> Float[Tensor, " T *N"]:
        _check_current(x)
        spikes, _ = _run(
            x,
            self.decay,
            self.threshold,
            self.reset,
            self.detach_reset,
            _slope(self.surrogate),
            False,
        )
        return spikes

    def extra_repr(self) -> str:
        name = self.surrogate if isinstance(self.surrogate, str) else repr(self.surrogate)
        return (
            f"decay={self.decay}, threshold={self.threshold}, reset={self.reset}, "
            f"detach_reset={self.detach_reset}, surrogate={name}"
        )


def repeat(x: Float[Tensor, "*N"], timesteps: int) -> Float[Tensor, " T *N"]:
    """Show the same input at every timestep (direct coding): `[...]` to `[T, ...]`, no copy.

    Raises:
        ValueError: `timesteps` below 1.

    Chapter 1.1.
    """
    check_timesteps(timesteps)
    return x.expand(timesteps, *x.shape)


def check_timesteps(timesteps: int) -> None:
    """Raise where `timesteps` is not a whole number of at least 1."""
    if isinstance(timesteps, bool) or not hasattr(timesteps, "__index__"):
        raise TypeError(f"timesteps: got {timesteps!r}, wanted a whole number")
    if timesteps < 1:
        raise ValueError(f"timesteps: got {timesteps}, wanted at least 1")
