"""The leaky integrate-and-fire (LIF) neuron over time, and its surrogate gradients.

Time is the first axis everywhere: an input current `x` is `[T, ...]`, and so are the spikes.
Chapter 1.1 builds this neuron in plain lines.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: The slope of a surrogate. It takes `v = u - threshold` and keeps its shape.
Surrogate = Callable[[Tensor], Tensor]


def triangle(v: Float[Tensor, "*N"], width: float = 1.0) -> Float[Tensor, "*N"]:
    r"""Triangle of area one, with `v = u - threshold`.

    .. math:: \psi(v) = \frac{1}{w} \max(0, 1 - |v| / w), \quad w = \text{width}

    With `width = 1` it is the surrogate of CKDSNN's code, `max(0, 1 - |u - 1|)`.
    Source: Esser et al. 2016 (PNAS 113), Bellec et al. 2018. Chapter 1.1.
    """
    return (1 - v.abs() / width).clamp(min=0) / width


def rectangle(v: Float[Tensor, "*N"], width: float = 1.0) -> Float[Tensor, "*N"]:
    r"""Rectangle of area one: a constant near the threshold, else 0.

    .. math:: \psi(v) = 1 / w \text{ where } |v| < w / 2, \quad w = \text{width}

    Source: Wu et al. 2018, "Spatio-temporal backpropagation" (STBP), curve h1.
    """
    return (v.abs() < width / 2).to(v.dtype) / width


def arctan(v: Float[Tensor, "*N"], alpha: float = 2.0) -> Float[Tensor, "*N"]:
    r"""Slope of a scaled arctangent.

    .. math:: \psi(v) = \frac{\alpha / 2}{1 + (\pi \alpha v / 2)^2}

    Source: Fang et al. 2021, "Incorporating learnable membrane time constant" (PLIF).
    """
    return (alpha / 2) / (1 + (torch.pi / 2 * alpha * v) ** 2)


def fast_sigmoid(v: Float[Tensor, "*N"], slope: float = 25.0) -> Float[Tensor, "*N"]:
    r"""Slope of a fast sigmoid, scaled to 1 at the threshold.

    .. math:: \psi(v) = \frac{1}{(1 + k |v|)^2}, \quad k = \text{slope}

    Source: Zenke and Ganguli 2018, "SuperSpike".
    """
    return 1 / (1 + slope * v.abs()) ** 2


def sigmoid(v: Float[Tensor, "*N"], alpha: float = 4.0) -> Float[Tensor, "*N"]:
    r"""Slope of a logistic function.

    .. math:: \psi(v) = \alpha p (1 - p), \quad p = \frac{1}{1 + e^{-\alpha v}}
    """
    p = torch.sigmoid(alpha * v)
    return alpha * p * (1 - p)


#: The surrogate gradients by name, the five functions above.
#:
#: :meta hide-value:
SURROGATES: dict[str, Surrogate] = {
    f.__name__: f for f in (triangle, rectangle, arctan, fast_sigmoid, sigmoid)
}


def _step(v: Tensor) -> Tensor:
    return (v > 0).to(v.dtype)


class _Fire(torch.autograd.Function):
    """Forward: the step `v > 0`. Backward: the surrogate's slope at `v` in place of the step's."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, slope: Surrogate) -> Tensor:
        ctx.save_for_backward(v)
        ctx.slope = slope
        return _step(v)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return grads[0] * ctx.slope(v), None


def _layout(x: Tensor) -> list[int]:
    """Axes of `x` from the slowest to the fastest in memory, time always first.

    The loop works on this view, so that stacking the steps keeps channels-last as it came.
    """
    return [0, *sorted(range(1, x.dim()), key=lambda d: -x.stride(d))]


def _steps(
    x: Tensor,
    start: Tensor | None,
    decay: float,
    threshold: float,
    reset: str,
    detach_reset: bool,
    fire: Callable[[Tensor], Tensor],
    keep_membrane: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The loop over time: each step's spikes, the potential that its threshold read, and the
    potential that the last reset leaves.

    Potentials are in float32 at least: a leaky sum in half precision fires where it should not.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    spikes, membrane, u = [], [], start
    for x_t in x.unbind(0):
        x_t = x_t.to(wide)
        u = x_t if u is None else decay * u + x_t
        s = fire(u - threshold)
        spikes.append(s.to(x.dtype))
        if keep_membrane:
            membrane.append(u)
        gate = s.detach() if detach_reset else s
        u = (1 - gate) * u if reset == "hard" else u - threshold * gate
    return spikes, membrane, u


def _run(
    x: Tensor,
    decay: float,
    threshold: float,
    reset: str,
    detach_reset: bool,
    slope: Surrogate,
    keep_membrane: bool,
) -> tuple[Tensor, Tensor | None]:
    """Spikes and, if kept, potentials, in the memory layout of `x`."""
    order = _layout(x)
    back = sorted(range(x.dim()), key=order.__getitem__)
    neuron = (decay, threshold, reset, detach_reset, lambda v: _Fire.apply(v, slope))
    spikes, membrane, _ = _steps(x.permute(order), None, *neuron, keep_membrane)
    kept = torch.stack(membrane).permute(back) if keep_membrane else None
    return torch.stack(spikes).permute(back), kept


# ---------------------------------------------------------------- the same loop, compiled

# Steps that are fused into one pass over memory. With more, the values of one neuron no longer fit
# the registers: at 16 a pass took twice as long an element, and four times as long to compile.
_FUSED = 8


def _spikes(
    x: Tensor, start: Tensor | None, decay: float, threshold: float, reset: str, *_: Any
) -> tuple[Tensor, Tensor | None]:
    """The spikes of `x`, `[T, N]`, with no graph; given a potential to start from, also the one
    that is left.
    """
    spikes, _, u = _steps(x, start, decay, threshold, reset, True, _step, False)
    return torch.stack(spikes), None if start is None else u


def _gradient(
    x: Tensor,
    start: Tensor | None,
    grad: Tensor,
    after: Tensor | None,
    decay: float,
    threshold: float,
    reset: str,
    detach_reset: bool,
    slope: Surrogate,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of `x` from that of the spikes, as autograd finds it through `_steps`; `after`
    is that of the potential which the last reset leaves. Given a start, also its gradient.

    It computes the potentials again: reading `x` once more is cheaper than keeping them.
    """
    spikes, membrane, _ = _steps(x, start, decay, threshold, reset, True, _step, True)
    grads = []
    for s, u, ds in reversed(list(zip(spikes, membrane, grad.unbind(0), strict=True))):
        s, ds = s.to(u.dtype), ds.to(u.dtype)
        if after is None:  # nothing reads the potential that the last step leaves
            du = ds * slope(u - threshold)
        else:
            if not detach_reset:
                ds = ds - (after * u if reset == "hard" else threshold * after)
            du = (after * (1 - s) if reset == "hard" else after) + ds * slope(u - threshold)
        grads.append(du.to(x.dtype))
        after = decay * du
    return torch.stack(grads[::-1]), None if start is None else after


class _Compiled(torch.autograd.Function):
    """`_spikes` forward and `_gradient` backward, both compiled, on `[T, N]`.

    Kept for the backward pass: `x`, and the potential at the start of each part where T > 8.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, neuron: tuple[Any, ...]) -> Tensor:
        x, spikes, starts = x.detach(), [], [_rest(x)]
        for part in _parts(x):
            out, u = _call_compiled(_spikes, neuron, part, starts[-1])
            spikes.append(out)
            starts.append(u)
        ctx.save_for_backward(x, *starts[:-1])
        ctx.neuron = neuron
        return _whole(spikes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        x, *starts = ctx.saved_tensors
        found, after = [], _rest(x)
        parts = zip(_parts(x), starts, _parts(grads[0].contiguous()), strict=True)
        for part, start, grad in reversed(list(parts)):
            dx, after = _call_compiled(_gradient, ctx.neuron, part, start, grad, after)
            found.append(dx)
        return _whole(found[::-1]), None


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(-(-len(x) // _FUSED))


def _whole(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rest(x: Tensor) -> Tensor | None:
    """What one part hands to the next, at first: a potential of 0, or its gradient."""
    if len(x) <= _FUSED:
        return None
    return x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


# A compiled loop for each neuron and kind of input; the plain one where compiling has failed.
_Loop = Callable[..., tuple[Tensor, Tensor | None]]
_LOOPS: dict[tuple[Any, ...], _Loop] = {}


def _call_compiled(
    function: _Loop, neuron: tuple[Any, ...], *tensors: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Call a compiled `function(*tensors, *neuron)`, or the plain one where compiling fails."""

    def loop(*tensors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return function(*tensors, *neuron)

    given = [tensor for tensor in tensors if tensor is not None]
    x = given[0]
    if x.shape[1] < 2:  # torch.compile takes a size of 0 or 1 for a constant
        return loop(*tensors)
    *numbers, slope = neuron
    # A part in the middle of a tensor is another kind of input to torch.compile than a whole one.
    offsets = [min(tensor.storage_offset(), 2) for tensor in given]
    kind = (len(x), x.stride(0) == 0, x.dtype, x.device, *offsets)
    key = (function, *numbers, id(slope), *kind)
    try:
        for tensor in given:
            torch._dynamo.mark_dynamic(tensor, tensor.dim() - 1)
        if key in _LOOPS:
            return _LOOPS[key](*tensors)
        # torch.compile keeps at most 8 variants of one code object: each loop has its own.
        loop.__code__ = loop.__code__.replace()
        # Round after each operation, as the plain loop does: no FMA. A last bit that differs at
        # the threshold would be another spike.
        options = {"emulate_precision_casts": True}
        _LOOPS[key] = torch.compile(loop, fullgraph=True, dynamic=False, options=options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # while it compiles, torch warns of its own code
            return _LOOPS[key](*tensors)
    except Exception as error:  # the first call compiles; a missing compiler has no type of its own
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: " + str(cause).partition("\n")[0]
    result = loop(*tensors)  # a surrogate that is at fault raises its own error here
    _LOOPS[key] = loop
    _say_plain(reason)
    return result


@cache
def _say_plain(reason: str) -> None:
    warnings.warn(
        "LIF(compiled=True): torch.compile failed, so this neuron runs as plain PyTorch, with the "
        f"same results, only slower ({reason}). torch.compile needs a C++ compiler on a CPU, "
        "Triton on a GPU, and a surrogate that it can trace.",
        stacklevel=2,
    )


def _run_compiled(x: Tensor, *neuron: Any) -> Tensor:
    """The spikes of `_run`, its loop compiled where that works.

    The loop sees `[T, N]`, flattened in the order of memory, for any N: that keeps the layout and
    lets layers of all shapes share one compilation.
    """
    order = _layout(x)
    steps = x.permute(order)
    flat = steps.reshape(len(x), -1)  # copies only where a step has gaps in memory
    if flat.stride() != (0, 1):  # that of `repeat`: T reads of one step are better than a copy
        flat = flat.contiguous()
    spikes = _Compiled.apply(flat, neuron)
    back = sorted(range(x.dim()), key=order.__getitem__)
    return spikes.view(steps.shape).permute(back)


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
    r"""Run the LIF neuron over time; return its spikes and its membrane potential.

    For each timestep, from :math:`u = 0`, with the decay :math:`\beta` and the threshold
    :math:`\theta`: leak and add, fire, reset.

    .. math::

        u &\leftarrow \beta u + x_t \\
        s_t &= 1 \text{ if } u > \theta \text{ else } 0 \\
        u &\leftarrow (1 - s_t) u \quad \text{(hard reset)} \\
        u &\leftarrow u - \theta s_t \quad \text{(soft reset)}

    The potential returned is the one that the threshold reads, before the reset. In the backward
    pass the step's slope is replaced by `surrogate(u - threshold)`. Of an input in half precision
    the spikes are in half precision too, the potential is computed and returned in float32.

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

    `compiled=True` fuses the loop over time, forward and backward, with `torch.compile`: the same
    spikes and gradients (to the last bit, unless the surrogate calls `exp`), several times faster.
    Kept for the backward pass, which has no second derivative, is `x` alone (4 bytes a neuron and
    step in float32; with the hard reset the plain loop keeps three times as much), and where T > 8
    one potential for every 8 steps. The first call for each T, type and device compiles, which
    takes seconds. The surrogate must be element-wise: it sees `v` flattened. Where compiling fails,
    one warning says why, and the plain loop runs. Inside a compiled network the plain loop is
    compiled with it.
    """

    def __init__(
        self,
        decay: float = 0.5,
        threshold: float = 1.0,
        reset: Literal["hard", "soft"] = "hard",
        detach_reset: bool = False,
        surrogate: str | Surrogate = "triangle",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        _check_neuron(decay, threshold, reset)
        self.decay, self.threshold, self.reset = decay, threshold, reset
        self.detach_reset, self.surrogate, self.compiled = detach_reset, surrogate, compiled
        _slope(surrogate)  # an unknown name is refused here, not at the first forward pass

    def forward(self, x: Float[Tensor, " T *N"]) -> Float[Tensor, " T *N"]:
        """The spikes that a current brings about.

        Raises:
            ValueError: no timestep.
            TypeError: `x` is not a floating-point tensor.
        """
        _check_current(x)
        slope = _slope(self.surrogate)
        neuron = (self.decay, self.threshold, self.reset, self.detach_reset, slope)
        # A torch.compile around us fuses the plain loop with its own neighbours.
        if self.compiled and not torch.compiler.is_compiling():
            return _run_compiled(x, *neuron)
        return _run(x, *neuron, False)[0]

    def extra_repr(self) -> str:
        name = self.surrogate if isinstance(self.surrogate, str) else repr(self.surrogate)
        return (
            f"decay={self.decay}, threshold={self.threshold}, reset={self.reset}, "
            f"detach_reset={self.detach_reset}, surrogate={name}"
            f"{', compiled=True' if self.compiled else ''}"
        )


def repeat(x: Float[Tensor, "*N"], timesteps: int) -> Float[Tensor, " T *N"]:
    """Show the same input at every timestep (direct coding): `[...]` to `[T, ...]`, no copy.

    Raises:
        ValueError: `timesteps` below 1.

    Chapter 1.1.
    """
    check_timesteps(timesteps)
    # Expanded in the order of memory: the backward pass sums over time, and a sum of any other view
    # comes out in the default layout, which is ten times slower for the batch norm before us.
    order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
    shown = x.permute(order).expand(timesteps, *(x.shape[d] for d in order))
    return shown.permute(0, *(1 + order.index(d) for d in range(x.dim())))


def check_timesteps(timesteps: int) -> None:
    """Raise where `timesteps` is not a whole number of at least 1."""
    if isinstance(timesteps, bool) or not hasattr(timesteps, "__index__"):
        raise TypeError(f"timesteps: got {timesteps!r}, wanted a whole number")
    if timesteps < 1:
        raise ValueError(f"timesteps: got {timesteps}, wanted at least 1")
