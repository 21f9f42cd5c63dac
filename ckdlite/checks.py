"""Checks for the exercises of the book: each says in a sentence what is wrong.

A check prints its verdict and never raises. It runs the reader's function on a few inputs and
compares the results with the right ones; where they agree with a typical mistake, it names it.
"""

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]


def leaky_sum(answer: Function) -> None:
    """Exercise 1 of chapter 1.1: `answer(x, decay)` gives the potential without a threshold."""

    def right(x: Tensor, decay: float) -> Tensor:
        out = torch.zeros_like(x)
        u = torch.zeros_like(x[0])
        for t in range(len(x)):
            u = decay * u + x[t]
            out[t] = u
        return out

    def leaks_input(x: Tensor, decay: float) -> Tensor:
        return decay * right(x, decay)

    def keeps_last_only(x: Tensor, decay: float) -> Tensor:
        return right(x, decay)[-1]

    x = torch.tensor([0.5, 0.0, -0.25, 1.0, 0.75])
    _compare(
        answer,
        right,
        [(x, 0.5), (x, 0.9)],
        {
            "the leak also shrinks the new input; it acts on the old potential only": leaks_input,
            "the potential does not leak: the old value must be multiplied by decay": (
                lambda x, decay: x.cumsum(0)
            ),
            "nothing is remembered: the old potential must be added to the input": (
                lambda x, decay: x
            ),
            "only the last potential came back; every step's is wanted": keeps_last_only,
            "the decay is on the wrong side: it is the share of the old potential that is kept": (
                lambda x, decay: right(x, 1 - decay)
            ),
        },
        "start from u = 0; at each step u = decay * u + x[t]; keep every u",
    )


def lif_step(answer: Function) -> None:
    """Exercise 2 of chapter 1.1: `answer(u, x, decay, threshold)` gives (spike, next u)."""

    def right(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        u = decay * u + x
        s = float(u > threshold)
        return s, (1 - s) * u

    def soft(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        u = decay * u + x
        s = float(u > threshold)
        return s, u - threshold * s

    def no_reset(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        u = decay * u + x
        return float(u > threshold), u

    def at_threshold(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        u = decay * u + x
        s = float(u >= threshold)
        return s, (1 - s) * u

    def reset_first(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        u = decay * u + x
        u = 0.0 if u > threshold else u
        return float(u > threshold), u

    def spike_of_old(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        s = float(u > threshold)
        return s, (1 - s) * (decay * u + x)

    def no_leak(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        return right(u, x, 1.0, threshold)

    def fixed(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        return right(u, x, decay, 1.0)

    def swapped(u: float, x: float, decay: float, threshold: float) -> tuple[float, float]:
        return right(u, x, decay, threshold)[::-1]

    _compare(
        answer,
        right,
        [
            (0.5, 0.25, 0.5, 1.0),
            (1.0, 1.25, 0.5, 1.0),
            (1.5, 0.25, 0.5, 1.0),
            (0.5, 0.75, 0.5, 1.0),
            (0.5, 0.5, 0.75, 0.5),
        ],
        {
            "the reset subtracts the threshold (a soft reset); here the potential returns to 0": (
                soft
            ),
            "the potential is not reset after a spike": no_reset,
            "a potential equal to the threshold must not fire: the step is u > threshold": (
                at_threshold
            ),
            "the reset is applied before the spike is read": reset_first,
            "the spike is read from the old potential, before the leak and the input": spike_of_old,
            "the old potential does not leak: multiply it by decay first": no_leak,
            "the threshold is not always 1": fixed,
            "the two results are in the wrong order: the spike comes first": swapped,
        },
        "three lines: leak and add, compare, reset; return (spike, next u)",
    )


def smallest_current(answer: Function) -> None:
    """Exercise 3 of chapter 1.1: `answer(decay, threshold)` is the current it must exceed."""
    _compare(
        answer,
        lambda decay, threshold: threshold * (1 - decay),
        [(0.5, 1.0), (0.8, 1.0), (0.5, 2.0), (0.0, 1.0)],
        {
            "that is the current that fires at the first step; a smaller one adds up": (
                lambda decay, threshold: threshold
            ),
            "multiply by what leaks away, 1 - decay, not by what is kept": (
                lambda decay, threshold: threshold * decay
            ),
            "the limit of u is x / (1 - decay): solve it for x, do not divide": (
                lambda decay, threshold: threshold / (1 - decay) if decay < 1 else math.inf
            ),
            "the threshold is not always 1": lambda decay, threshold: 1 - decay,
        },
        "without a threshold u approaches x / (1 - decay); it must get above the threshold",
    )


def steps_to_fire(answer: Function) -> None:
    """Exercise 4 of chapter 1.1: `answer(x, decay, threshold)` counts steps to the first spike."""

    def right(x: float, decay: float, threshold: float) -> float:
        if x <= threshold * (1 - decay):
            return math.inf
        u, n = x, 1.0
        while u <= threshold:
            u, n = decay * u + x, n + 1
        return n

    def at_threshold(x: float, decay: float, threshold: float) -> float:
        # Exact here: the inputs that reach the threshold on the dot are powers of two.
        u, n = x, 1.0
        if x <= threshold * (1 - decay):
            return math.inf
        while u < threshold:
            u, n = decay * u + x, n + 1
        return n

    def from_zero(x: float, decay: float, threshold: float) -> float:
        return right(x, decay, threshold) - 1

    def no_leak(x: float, decay: float, threshold: float) -> float:
        return math.floor(threshold / x) + 1.0

    _compare(
        answer,
        right,
        [
            (1.5, 0.5, 1.0),
            (1.0, 0.5, 1.0),
            (0.7, 0.5, 1.0),
            (0.55, 0.5, 1.0),
            (0.3, 0.5, 1.0),
            (0.3, 0.9, 1.6),
        ],
        {
            "the first step counts as 1, not as 0": from_zero,
            "a potential equal to the threshold does not fire yet": at_threshold,
            "the leak is left out: less than x is gained at each later step": no_leak,
            "a current at or below threshold * (1 - decay) never fires: return math.inf": (
                lambda x, decay, threshold: (
                    -1.0 if x <= threshold * (1 - decay) else right(x, decay, threshold)
                )
            ),
        },
        "after n steps u = x * (1 - decay**n) / (1 - decay); find the first n above the threshold",
    )


def spike_map(answer: Function) -> None:
    """Exercise 1 of chapter 3.2: `answer(spikes)` sums `[T, B, C, H, W]` to `[B, H, W]`."""
    draw = torch.Generator().manual_seed(0)
    spikes = (torch.rand(3, 2, 5, 4, 4, generator=draw) < 0.3).float()
    _compare(
        answer,
        lambda s: s.sum((0, 2)),
        [(spikes,)],
        {
            "the map is averaged; the spikes are to be counted": lambda s: s.mean((0, 2)),
            "time is averaged; the spikes of all steps are to be counted": (
                lambda s: s.mean(0).sum(1)
            ),
            "the map says only where a spike was; count how many": (
                lambda s: (s.sum((0, 2)) > 0).float()
            ),
            "time is still there: sum over T as well": lambda s: s.sum(2),
            "only the last timestep is counted": lambda s: s[-1].sum(1),
            "the sum runs over the batch: axis 0 is time, axis 1 the images": (
                lambda s: s.sum((1, 2))
            ),
            "the channels are still there: sum over C as well": lambda s: s.sum(0),
        },
        "time is axis 0 and channels are axis 2 of [T, B, C, H, W]",
    )


def to_distribution(answer: Function) -> None:
    """Exercise 2 of chapter 3.2: `answer(maps, temperature)` is a softmax over positions."""
    draw = torch.Generator().manual_seed(1)
    maps = 3 * torch.randn(2, 3, 4, generator=draw)

    def over(maps: Tensor, temperature: float) -> Tensor:
        return F.softmax(maps.flatten(1) / temperature, 1).view_as(maps)

    _compare(
        answer,
        over,
        [(maps, 2.0), (maps, 0.5)],
        {
            "the temperature is not used": lambda m, temperature: over(m, 1.0),
            "divide by the temperature, do not multiply: a high one must flatten": (
                lambda m, temperature: over(m, 1 / temperature)
            ),
            "each row is a distribution of its own; all H * W positions share one": (
                lambda m, temperature: F.softmax(m / temperature, -1)
            ),
            "the softmax runs over the batch; each image has its own distribution": (
                lambda m, temperature: F.softmax(m / temperature, 0)
            ),
            "the softmax runs over the whole batch; each image has its own distribution": (
                lambda m, temperature: F.softmax(m.flatten() / temperature, 0).view_as(m)
            ),
            "these are logarithms: take softmax, not log_softmax": (
                lambda m, temperature: over(m, temperature).log()
            ),
        },
        "flatten H and W, divide by the temperature, softmax over the last axis, shape back",
    )


def divergence(answer: Function) -> None:
    """Exercise 3 of chapter 3.2: `answer(student, teacher, temperature)` is SAMD, unscaled."""
    draw = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 4, 3, 3, generator=draw)

    def kl(p: Tensor, q: Tensor, temperature: float) -> Tensor:
        log_p = F.log_softmax(p.flatten(1) / temperature, 1)
        log_q = F.log_softmax(q.flatten(1) / temperature, 1)
        return (log_p.exp() * (log_p - log_q)).sum(1).mean()

    _compare(
        answer,
        lambda s, t, temperature: temperature**2 * kl(t, s, temperature),
        [(student, teacher, 2.0), (student, teacher, 3.0)],
        {
            "the divergence is the wrong way round: it is KL(teacher || student)": (
                lambda s, t, temperature: temperature**2 * kl(s, t, temperature)
            ),
            "the factor temperature squared is missing": (
                lambda s, t, temperature: kl(t, s, temperature)
            ),
            "the factor is the temperature squared, not the temperature": (
                lambda s, t, temperature: temperature * kl(t, s, temperature)
            ),
            "that is the cross-entropy: subtract the teacher's own entropy, sum p_t * log p_t": (
                lambda s, t, temperature: (
                    temperature**2
                    * F.cross_entropy(
                        s.flatten(1) / temperature, F.softmax(t.flatten(1) / temperature, 1)
                    )
                )
            ),
            "the sum over positions became a mean": (
                lambda s, t, temperature: temperature**2 * kl(t, s, temperature) / s[0].numel()
            ),
            "the batch is summed; the loss is a mean over images": (
                lambda s, t, temperature: temperature**2 * kl(t, s, temperature) * len(s)
            ),
            "the temperature is not used in the softmax": (
                lambda s, t, temperature: temperature**2 * kl(t, s, 1.0)
            ),
        },
        "log_softmax of both flattened maps over temperature; sum p_t * (log p_t - log p_s)",
    )


def what_is_ignored(answer: Any) -> None:
    """Exercise 4 of chapter 3.2: which scaling ignores a shift of a map, and which a factor."""
    right = {
        "none": {"shift"},
        "sample": {"shift", "factor"},
        "batch": {"shift"},
        "zscore": {"shift", "factor"},
    }

    def judge(given: Any) -> str | None:
        if not given or all(value is ... for value in given.values()):
            raise _UnsolvedError
        if missing := sorted(set(right) - set(given)):
            return f"{', '.join(missing)} is missing from the answer"
        for name, ignored in right.items():
            if given[name] is ...:
                return f"{name!r} has no answer yet; for neither write set()"
            said = {given[name]} if isinstance(given[name], str) else set(given[name])
            if unknown := sorted(said - {"shift", "factor"}):
                return (
                    f"{unknown[0]!r} is not one of 'shift', 'factor'; for both write a set of both"
                )
            if "shift" not in said:
                return f"{name!r}: the softmax itself ignores a number added to the whole map"
            if said - ignored:
                return f"{name!r}: try it; multiplying one image's map by 3 changes the result"
            if ignored - said:
                return f"{name!r}: each map is divided by its own spread, so a factor cancels"
        return None

    _run(answer, judge, "try it on a map m: compare m, m + 5 and 3 * m for each scaling")


class _UnsolvedError(Exception):
    """The reader has not written an answer yet."""


def _run(answer: Any, judge: Callable[[Any], str | None], hint: str) -> None:
    try:
        fault = judge(answer)
        said = "Right." if fault is None else f"Not yet: {fault}."
    except _UnsolvedError:
        said = f"Not solved yet. Hint: {hint}."
    except Exception as error:  # the reader's own code may raise anything
        said = f"It raised {type(error).__name__}: {error}. Hint: {hint}."
    print(textwrap.fill(said, 78))


def _compare(
    answer: Function,
    right: Function,
    inputs: list[tuple[Any, ...]],
    mistakes: Mapping[str, Function],
    hint: str,
) -> None:
    def judge(answer: Function) -> str | None:
        given = []
        for arguments in inputs:
            result = answer(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
            given.append(None if result is ... else result)
        if all(result is None for result in given):
            raise _UnsolvedError
        for arguments, result in zip(inputs, given, strict=True):
            if result is None:
                return f"for {_said(arguments)} nothing came back"
        given = [_tensor(result) for result in given]
        wanted = [_tensor(right(*arguments)) for arguments in inputs]
        if _same(given, wanted):
            return None
        for sentence, mistake in mistakes.items():
            if _same(given, [_tensor(mistake(*arguments)) for arguments in inputs]):
                return sentence
        for arguments, got, want in zip(inputs, given, wanted, strict=True):
            if got.shape != want.shape:
                return f"the result has shape {list(got.shape)}, wanted {list(want.shape)}"
            if not _same([got], [want]):
                if want.numel() > 6:
                    at = int((got - want).abs().flatten().nan_to_num(nan=math.inf).argmax())
                    return (
                        f"the shape is right, the values are not: one of them is "
                        f"{got.flatten()[at].item():.4g}, wanted {want.flatten()[at].item():.4g}"
                    )
                return f"for {_said(arguments)} got {_said(got)}, wanted {_said(want)}"
        return None

    _run(answer, judge, hint)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().double()
    return torch.as_tensor(value, dtype=torch.float64)


def _same(given: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(
        g.shape == w.shape and torch.allclose(g, w, rtol=1e-4, atol=1e-6)
        for g, w in zip(given, wanted, strict=True)
    )


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_said(v) for v in value)
    if not isinstance(value, Tensor):
        return str(value)
    if value.numel() > 6:
        return f"a tensor of shape {list(value.shape)}"
    return str([round(v, 4) for v in value.flatten().tolist()] if value.dim() else value.item())
