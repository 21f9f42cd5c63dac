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

#: What a reader writes.
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


def rectangle_spike(answer: Function) -> None:
    """Exercise 1 of chapter 1.2: `answer(v)` is the step, with the rectangle as its slope."""

    def by_hand(value: Function, slope: Function) -> Function:
        return lambda v: torch.stack([value(v).double(), slope(v).double()])

    def value_and_slope(v: Tensor) -> Tensor | None:
        v = v.requires_grad_()
        value = answer(v)
        if value is None or value is ...:
            return None
        if not value.requires_grad:
            return torch.stack([value.double(), torch.full_like(value, math.inf).double()])
        (slope,) = torch.autograd.grad(value.sum(), v)
        return torch.stack([value.double(), slope.double()])

    def step(v: Tensor) -> Tensor:
        return v > 0

    def rectangle(v: Tensor) -> Tensor:
        return v.abs() < 0.5

    _compare(
        value_and_slope,
        by_hand(step, rectangle),
        [(torch.tensor([-1.5, -0.75, -0.25, 0.0, 0.25, 0.75, 1.5]),)],
        {
            "the values are right, but autograd finds no way back: a comparison alone has none": (
                by_hand(step, lambda v: torch.full_like(v, math.inf))
            ),
            "the values are right, but the slope is zero: detach only one of the two ramps": (
                by_hand(step, torch.zeros_like)
            ),
            "the slope is right, but the ramp is left in the values: take it away, detached": (
                by_hand(lambda v: step(v).double() + v.clamp(-0.5, 0.5), rectangle)
            ),
            "that is the ramp alone; the values must be 0 or 1": (
                by_hand(lambda v: v.clamp(-0.5, 0.5), rectangle)
            ),
            "the rectangle is too wide: it ends at a distance of 1/2": (
                by_hand(step, lambda v: v.abs() < 1)
            ),
            "the slope is the triangle's": by_hand(step, lambda v: (1 - v.abs()).relu()),
            "the slope is 1 everywhere: it must end at a distance of 1/2": (
                by_hand(step, torch.ones_like)
            ),
            "a potential equal to the threshold must not fire: the step is v > 0": (
                by_hand(lambda v: v >= 0, rectangle)
            ),
        },
        "step + (ramp - ramp.detach()), where the ramp rises with slope 1 from -1/2 to 1/2",
    )


def first_gradient(answer: Function) -> None:
    """Exercise 2 of chapter 1.2: `answer(u1, s1, psi1, psi2, e1, e2, beta)`, by hand."""

    def right(
        u1: float, s1: float, psi1: float, psi2: float, e1: float, e2: float, beta: float
    ) -> float:
        a = beta * e2 * psi2
        return a * (1 - s1) + (e1 - a * u1) * psi1

    def with_a(made: Function) -> Function:
        return lambda u1, s1, psi1, psi2, e1, e2, beta: made(u1, s1, psi1, e1, beta * e2 * psi2)

    _compare(
        answer,
        right,
        [
            (0.75, 0.0, 0.75, 0.5, 1.0, -2.0, 0.5),
            (1.25, 1.0, 0.75, 0.5, 0.5, 3.0, 0.5),
            (0.5, 0.0, 0.5, 0.25, -1.0, 1.0, 0.9),
        ],
        {
            "the reset is left out: a spike takes u1 away from step 2": (
                with_a(lambda u1, s1, psi1, e1, a: a * (1 - s1) + e1 * psi1)
            ),
            "a spike takes u1 away, so its term is subtracted": (
                with_a(lambda u1, s1, psi1, e1, a: a * (1 - s1) + (e1 + a * u1) * psi1)
            ),
            "after a spike nothing is carried on: the direct path has the factor 1 - s1": (
                with_a(lambda u1, s1, psi1, e1, a: a + (e1 - a * u1) * psi1)
            ),
            "that is step 1 alone; the potential is carried on to step 2": (
                with_a(lambda u1, s1, psi1, e1, a: e1 * psi1)
            ),
            "the leak is left out: a part of the potential, beta, is carried on": (
                lambda u1, s1, psi1, psi2, e1, e2, beta: right(u1, s1, psi1, psi2, e1, e2, 1.0)
            ),
            "that is the gradient of the second current": (
                lambda u1, s1, psi1, psi2, e1, e2, beta: e2 * psi2
            ),
        },
        "g2 = e2 * psi2; a = beta * g2; then the equation above, for t = 1",
    )


def spikes_or_gradient(answer: Any) -> None:
    """Exercise 3 of chapter 1.2: what five changes of the neuron alter."""
    _quiz(
        answer,
        {
            "surrogate": ("gradient", "the surrogate is only used backward"),
            "detached": ("gradient", "detach changes no value, but cuts a path of the gradient"),
            "soft": ("spikes", "what a spike leaves over is there at the next step"),
            "doubled": (
                "gradient",
                "divide by the threshold: the spikes are those of before; but u - threshold, which "
                "the triangle reads, has doubled",
            ),
            "loop": ("nothing", "the same operations in the same order"),
        },
        ("spikes", "gradient", "nothing"),
        "for each, compare lif's spikes first, then the gradients of the currents",
    )


def fold_time(answer: Function) -> None:
    """Exercise 1 of chapter 1.3: `answer(layer, x)` applies a layer to every step of x."""
    draw = torch.Generator().manual_seed(6)
    # Each step and each image has a level of its own, so that a mix-up shows.
    x = torch.randn(3, 4, 2, 5, generator=draw, dtype=torch.float64)
    x = x * torch.arange(1, 4).view(3, 1, 1, 1) + torch.arange(4).view(1, 4, 1, 1)

    def layer() -> torch.nn.Module:
        return torch.nn.BatchNorm1d(2).double().train()

    def right(layer: torch.nn.Module, x: Tensor) -> Tensor:
        return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def step_by_step(layer: torch.nn.Module, x: Tensor) -> Tensor:
        return torch.stack([layer(step) for step in x])

    _compare(
        lambda x: answer(layer(), x),
        lambda x: right(layer(), x),
        [(x,)],
        {
            "the layer was called once a step; batch norm then has another mean at each": (
                lambda x: step_by_step(layer(), x)
            ),
            "the axes are not folded back: [T, B, ...] is wanted": (
                lambda x: layer()(x.flatten(0, 1))
            ),
            "the batch came first when the axes were split again; time is the first axis": (
                lambda x: layer()(x.flatten(0, 1)).view(4, 3, 2, 5)
            ),
            "time was averaged away before the layer": lambda x: layer()(x.mean(0)),
            "time was folded into the channels; it belongs to the batch": (
                lambda x: (
                    torch.nn.BatchNorm1d(6)
                    .double()(x.transpose(0, 1).flatten(1, 2))
                    .unflatten(1, (3, 2))
                    .transpose(0, 1)
                )
            ),
        },
        "flatten(0, 1) makes one axis of two, unflatten(0, ...) makes two of it again",
    )


def accuracy_over_time(answer: Function) -> None:
    """Exercise 2 of chapter 1.3: `answer(logits, labels)` is the accuracy of every run length."""
    draw = torch.Generator().manual_seed(7)
    logits = torch.randn(6, 40, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(5, (40,), generator=draw)
    logits += 0.5 * torch.nn.functional.one_hot(labels, 5)
    # Steps differ in size, as those of a real network do: so a vote is not a mean.
    logits *= torch.rand(6, 40, 1, generator=draw, dtype=torch.float64) * 3

    def share(z: Tensor, labels: Tensor) -> Tensor:
        return (z.argmax(-1) == labels).double().mean(-1)

    def right(logits: Tensor, labels: Tensor) -> Tensor:
        return share(logits.cumsum(0), labels)

    _compare(
        answer,
        right,
        [(logits, labels)],
        {
            "that is each step by itself; a run of t steps answers with the mean of the first t": (
                share
            ),
            "that is the whole run alone; an accuracy for each length is wanted": (
                lambda z, y: right(z, y)[-1]
            ),
            "the logits are averaged, not the probabilities": (
                lambda z, y: share(z.softmax(2).cumsum(0), y)
            ),
            "the steps do not vote; their logits are averaged": (
                lambda z, y: share(F.one_hot(z.argmax(2), 5).cumsum(0), y)
            ),
            "a share from 0 to 1 is wanted, not percent": lambda z, y: 100 * right(z, y),
            "the mean over time runs from the end; a shorter run has the first steps": (
                lambda z, y: share(z.flip(0).cumsum(0), y)
            ),
            "that counts right answers; divide by the number of images": (
                lambda z, y: len(y) * right(z, y)
            ),
        },
        "logits.cumsum(0), divided by 1 to T; then the class with the highest, and its mean",
    )


def synaptic_operations(answer: Function) -> None:
    """Exercise 3 of chapter 1.3: `answer(spikes, out_channels, size)`, of one image."""
    draw = torch.Generator().manual_seed(8)
    spikes = (torch.rand(3, 2, 4, 5, 5, generator=draw) < 0.3).double()

    def right(spikes: Tensor, out_channels: int, size: int) -> Tensor:
        return spikes.sum() * out_channels * size**2 / spikes.shape[1]

    _compare(
        answer,
        right,
        [(spikes, 8, 3), (spikes, 2, 5)],
        {
            "that is the whole batch's; one image's is wanted": (
                lambda s, c, k: right(s, c, k) * s.shape[1]
            ),
            "that counts zeros too; only a spike causes operations": (
                lambda s, c, k: right(torch.ones_like(s), c, k)
            ),
            "the output channels are missing: a spike reaches all of them": (
                lambda s, c, k: right(s, 1, k)
            ),
            "a kernel of size k meets k * k positions": lambda s, c, k: right(s, c, k) / k,
            "that is one step's mean; all steps count": lambda s, c, k: right(s, c, k) / s.shape[0],
            "the input channels are in the spikes already": (
                lambda s, c, k: right(s, c, k) * s.shape[2]
            ),
        },
        "spikes in all, times the weights that each one meets, over the images",
    )


def last_cheaper(answer: Function) -> None:
    """Exercise 4 of chapter 1.3: `answer(macs, first, spikes)` is the largest T that saves."""

    def saving(macs: float, first: float, accumulates: float, mac: float = 4.6) -> float:
        # The largest whole number below the ratio: at the ratio itself nothing is saved.
        return max(0.0, math.ceil(mac * (macs - first) / (0.9 * accumulates)) - 1.0)

    _compare(
        answer,
        saving,
        [(11.6e6, 0.4e6, 1.7e6), (9e6, 0.0, 4.6e6), (5e6, 4.9e6, 2e6), (4e6, 1e6, 0.5e6)],
        {
            "T must be a whole number": lambda m, f, s: max(0.0, 4.6 * (m - f) / (0.9 * s)),
            "one step fewer: there the student no longer takes less": (
                lambda m, f, s: saving(m, f, s) + 1.0
            ),
            "where both take the same, nothing is saved": (
                lambda m, f, s: float(math.floor(4.6 * (m - f) / (0.9 * s)))
            ),
            "the student's first multiply-accumulates cost too": lambda m, f, s: saving(m, 0.0, s),
            "they are paid once, not at every step": (
                lambda m, f, s: max(0.0, math.ceil(4.6 * m / (4.6 * f + 0.9 * s)) - 1.0)
            ),
            "an accumulate takes less energy than a multiply-accumulate: 0.9 against 4.6 pJ": (
                lambda m, f, s: saving(m, f, s, mac=0.9)
            ),
        },
        "4.6 * first + 0.9 * spikes * T < 4.6 * macs: solve it for T, or count up",
    )


def soft_targets(answer: Function) -> None:
    """Exercise 1 of chapter 2.1: `answer(logits, tau)` is the softmax at a temperature."""
    draw = torch.Generator().manual_seed(9)
    z = 3 * torch.randn(4, 5, generator=draw, dtype=torch.float64)
    _compare(
        answer,
        lambda z, tau: (z / tau).softmax(1),
        [(z, 2.0), (z, 0.5)],
        {
            "the temperature is not used": lambda z, tau: z.softmax(1),
            "the logits are divided by the temperature, not multiplied": (
                lambda z, tau: (z * tau).softmax(1)
            ),
            "the probabilities are divided: divide the logits, before the softmax": (
                lambda z, tau: z.softmax(1) / tau
            ),
            "the softmax runs over the batch; it belongs over the classes": (
                lambda z, tau: (z / tau).softmax(0)
            ),
            "the softmax runs over all images together": (
                lambda z, tau: (z / tau).flatten().softmax(0).view_as(z)
            ),
            "these are logarithms; probabilities are wanted": (
                lambda z, tau: (z / tau).log_softmax(1)
            ),
        },
        "divide the logits by tau, then softmax over axis 1",
    )


def hinton_gradient(answer: Function) -> None:
    """Exercise 3 of chapter 2.1: `answer(student, teacher, tau)` is the gradient of `kd`."""
    draw = torch.Generator().manual_seed(10)
    s, t = 2 * torch.randn(2, 4, 5, generator=draw, dtype=torch.float64)

    def right(s: Tensor, t: Tensor, tau: float) -> Tensor:
        return tau * ((s / tau).softmax(1) - (t / tau).softmax(1)) / len(s)

    _compare(
        answer,
        right,
        [(s, t, 2.0), (s, t, 3.0)],
        {
            "the sign is wrong: the gradient points uphill, from the teacher to the student": (
                lambda s, t, tau: -right(s, t, tau)
            ),
            "the loss is a mean over the batch: divide by its size": (
                lambda s, t, tau: len(s) * right(s, t, tau)
            ),
            "tau squared in front, and 1/tau from the softmax, leave one tau": (
                lambda s, t, tau: tau * right(s, t, tau)
            ),
            "tau is missing: tau squared in front, and 1/tau from the softmax": (
                lambda s, t, tau: right(s, t, tau) / tau
            ),
            "that is the gradient without tau squared in front": (
                lambda s, t, tau: right(s, t, tau) / tau**2
            ),
            "the temperature is not used in the softmax": (
                lambda s, t, tau: tau * right(s, t, 1.0)
            ),
        },
        "tau**2 * KL: only -sum(q * log p) depends on the student; d log p / d s holds 1 / tau",
    )


def what_heats(answer: Any) -> None:
    """Exercise 4 of chapter 2.1: what a temperature changes."""
    _quiz(
        answer,
        {
            "order": ("same", "dividing by a positive number keeps the order of the logits"),
            "entropy": ("change", "it rises with tau, up to ln K"),
            "shift": ("same", "exp(5 / tau) stands above and below the line"),
            "both": ("same", "only the quotient z / tau is used"),
            "ratio": ("same", "p_j / p_k = exp((z_j - z_k) / tau): no other logit is in it"),
        },
        ("same", "change"),
        "write p_k = exp(z_k / tau) / sum, and see what cancels",
    )


def class_maps(answer: Function) -> None:
    """Exercise 1 of chapter 2.2: `answer(features, weight)` is the CAM of every class, signed."""
    draw = torch.Generator().manual_seed(3)
    features = torch.randn(2, 5, 3, 4, generator=draw).relu()
    weight = torch.randn(6, 5, generator=draw)

    def all_maps(features: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("kc,bchw->bkhw", weight, features)

    _compare(
        answer,
        all_maps,
        [(features, weight)],
        {
            "the maps are cut off at zero; evidence against a class is wanted too": (
                lambda f, w: all_maps(f, w).relu()
            ),
            "the maps are divided by H * W; that is Grad-CAM, CAM is not divided": (
                lambda f, w: all_maps(f, w) / f[0, 0].numel()
            ),
            "the axes are in the wrong order: the images come first, then the classes": (
                lambda f, w: all_maps(f, w).transpose(0, 1)
            ),
            "the classes come last; [B, K, H, W] is wanted": (
                lambda f, w: all_maps(f, w).permute(0, 2, 3, 1)
            ),
            "the classes are added up; each has a map of its own": lambda f, w: all_maps(f, w).sum(
                1
            ),
            "the positions are gone: these are the logits without the bias": (
                lambda f, w: all_maps(f, w).mean((2, 3))
            ),
            "the positions are added up; a map keeps them": lambda f, w: all_maps(f, w).sum((2, 3)),
        },
        "sum over the channels c of weight[k, c] * features[b, c, h, w]; torch.einsum does it",
    )


def grad_cam_map(answer: Function) -> None:
    """Exercise 2 of chapter 2.2: `answer(features, rest, labels)` is Grad-CAM, `[B, H, W]`."""
    draw = torch.Generator().manual_seed(4)
    features = torch.randn(3, 4, 5, 6, generator=draw).relu()
    kernel = torch.randn(8, 4, 3, 3, generator=draw)
    weight = torch.randn(8, 5, generator=draw)
    labels = torch.tensor([0, 3, 1])

    def rest(features: Tensor) -> Tensor:
        return F.conv2d(features, kernel).relu().mean((2, 3)) @ weight

    def true(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.gather(1, labels[:, None])

    def with_gradient(combine: Function, score: Function = true) -> Function:
        def maps(features: Tensor, rest: Function, labels: Tensor) -> Tensor:
            with torch.enable_grad():
                a = features.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(score(rest(a), labels).sum(), a)
            return combine(features, gradient)

        return maps

    def mean(gradient: Tensor) -> Tensor:
        return gradient.mean((2, 3), keepdim=True)

    def right(a: Tensor, g: Tensor) -> Tensor:
        return (mean(g) * a).sum(1).relu()

    _compare(
        answer,
        with_gradient(right),
        [(features, rest, labels)],
        {
            "the ReLU is missing: what speaks against the class is cut off": (
                with_gradient(lambda a, g: (mean(g) * a).sum(1))
            ),
            "the gradient is summed over positions; the weight of a channel is its mean": (
                with_gradient(lambda a, g: (g.sum((2, 3), keepdim=True) * a).sum(1).relu())
            ),
            "the gradient is kept at each position; Grad-CAM takes its mean over positions": (
                with_gradient(lambda a, g: (g * a).sum(1).relu())
            ),
            "the labels are not used: the score is the logit of each image's own class": (
                with_gradient(right, lambda logits, labels: logits)
            ),
            "that is the map of the predicted class; the labels say which one is wanted": (
                with_gradient(right, lambda logits, labels: logits.amax(1))
            ),
            "the score is a probability; Grad-CAM takes the gradient of the logit": (
                with_gradient(right, lambda logits, labels: true(logits.softmax(1), labels))
            ),
            "the score is a loss; Grad-CAM takes the gradient of the logit": (
                with_gradient(right, lambda logits, labels: -true(logits.log_softmax(1), labels))
            ),
            "the ReLU acts before the channels are added up; it belongs after": (
                with_gradient(lambda a, g: (mean(g) * a).relu().sum(1))
            ),
            "the sign of the gradient is lost": (
                with_gradient(lambda a, g: (mean(g.abs()) * a).sum(1).relu())
            ),
            "the channels are averaged; the map is their sum": (
                with_gradient(lambda a, g: (mean(g) * a).mean(1).relu())
            ),
            "the weights are averaged over the batch; each image has its own": (
                with_gradient(lambda a, g: (g.mean((0, 2, 3), keepdim=True) * a).sum(1).relu())
            ),
        },
        "features.requires_grad_(); score = the labels' logits, summed; torch.autograd.grad",
    )


def tolerant_pointing(answer: Function) -> None:
    """Exercise 3 of chapter 2.2: `answer(maps, masks, tolerance)` says which peaks come near."""
    # From the peak to the one pixel of the object: rows down, columns to the right.
    steps = [(0, 0), (1, 0), (0, -1), (1, 1), (-2, 0), (0, 2), (2, -1), (2, 2), (-3, 0), (3, 3)]
    draw = torch.Generator().manual_seed(5)
    maps = torch.rand(len(steps) + 1, 9, 11, generator=draw)
    masks = torch.zeros(maps.shape, dtype=torch.bool)
    for i, (down, right) in enumerate(steps):
        maps[i, 4, 5] = 2
        masks[i, 4 + down, 5 + right] = True
    maps[-1, 0, 5] = 2  # at the upper edge, and the object at the lower
    masks[-1, -1, 5] = True

    def at_peak(maps: Tensor, grown: Tensor) -> Tensor:
        peak = maps.flatten(1).argmax(1, keepdim=True)
        return grown.double().flatten(1).gather(1, peak)[:, 0]

    def grow(masks: Tensor, reach: int) -> Tensor:
        return F.max_pool2d(masks[:, None].double(), 2 * reach + 1, 1, reach)[:, 0]

    def by(masks: Tensor, tolerance: int, norm: float) -> Tensor:
        axis = torch.arange(-tolerance, tolerance + 1.0)
        near = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).norm(norm, dim=0) <= tolerance
        return F.conv2d(masks[:, None].double(), near[None, None].double(), padding=tolerance)[:, 0]

    def rolled(masks: Tensor, tolerance: int) -> Tensor:
        reach = range(-tolerance, tolerance + 1)
        moved = [masks.roll((r, c), (1, 2)) for r in reach for c in reach]
        return torch.stack(moved).any(0)

    _compare(
        answer,
        lambda maps, masks, tolerance: at_peak(maps, grow(masks, tolerance)),
        [(maps, masks, 0), (maps, masks, 1), (maps, masks, 3)],
        {
            "the tolerance is not used": lambda maps, masks, tolerance: at_peak(maps, masks),
            "only half the tolerance is given: the window is 2 * tolerance + 1 pixels wide": (
                lambda maps, masks, tolerance: at_peak(maps, grow(masks, tolerance // 2))
            ),
            "the tolerance is given twice: the window is 2 * tolerance + 1 pixels wide": (
                lambda maps, masks, tolerance: at_peak(maps, grow(masks, 2 * tolerance))
            ),
            "rows and columns are added up; each of them alone is at most the tolerance": (
                lambda maps, masks, tolerance: at_peak(maps, by(masks, tolerance, 1.0) > 0)
            ),
            "that is the straight distance; rows and columns are at most the tolerance each": (
                lambda maps, masks, tolerance: at_peak(maps, by(masks, tolerance, 2.0) > 0)
            ),
            "what lies beyond one edge comes in at the other: torch.roll goes round": (
                lambda maps, masks, tolerance: at_peak(maps, rolled(masks, tolerance))
            ),
            "hit and miss are swapped": (
                lambda maps, masks, tolerance: 1 - at_peak(maps, grow(masks, tolerance))
            ),
            "one number came back, the mean; an answer an image is wanted": (
                lambda maps, masks, tolerance: at_peak(maps, grow(masks, tolerance)).mean()
            ),
        },
        "grow the mask with F.max_pool2d, 2 * tolerance + 1 wide and stride 1; read it at the peak",
    )


def what_moves_the_map(answer: Any) -> None:
    """Exercise 4 of chapter 2.2: what five changes do to Grad-CAM at the last stage."""
    _quiz(
        answer,
        {
            "bias": ("same", "the gradient of a logit does not see its bias"),
            "features": (
                "same",
                "each gradient is halved and each feature doubled: look at the product",
            ),
            "temperature": ("scaled", "every channel weight shrinks by one factor"),
            "shared": ("other", "the probabilities stay, but each logit's gradient has v in it"),
            "probability": (
                "other",
                "the gradient of a probability holds the weights of the other classes too",
            ),
        },
        ("same", "scaled", "other"),
        "write down the gradient of the score for each, and see what multiplies A_c(h, w)",
    )


def nearest_rate(answer: Function) -> None:
    """Exercise 1 of chapter 3.1: `answer(feature, timesteps)` is the nearest rate."""
    feature = torch.tensor([[0.0, 0.1, 0.3, 0.45], [0.6, 0.9, 1.2, 3.7]], dtype=torch.float64)

    def right(feature: Tensor, timesteps: int) -> Tensor:
        return ((feature * timesteps).round() / timesteps).clamp(0, 1)

    _compare(
        answer,
        right,
        [(feature, 4), (feature, 2)],
        {
            "a rate is never above 1: clamp it": lambda f, n: (f * n).round() / n,
            "that is the rate below; the nearest is wanted: round": (
                lambda f, n: ((f * n).floor() / n).clamp(0, 1)
            ),
            "that is the number of spikes; divide by the timesteps": (
                lambda f, n: (f * n).round().clamp(0, n)
            ),
            "the ceiling alone is not enough: a rate is a multiple of 1/T": (
                lambda f, n: f.clamp(0, 1)
            ),
            "there are T + 1 rates, in steps of 1/T, not T rates": (
                lambda f, n: ((f * (n - 1)).round() / max(n - 1, 1)).clamp(0, 1)
            ),
        },
        "count = feature * T, rounded; rate = count / T, at most 1",
    )


def best_scale(answer: Function) -> None:
    """Exercise 2 of chapter 3.1: `answer(student, teacher)` is the a of the smallest error."""
    draw = torch.Generator().manual_seed(11)
    s = (torch.rand(3, 2, 4, 4, generator=draw, dtype=torch.float64) * 4).floor() / 4
    t = 3 * torch.rand(3, 2, 4, 4, generator=draw, dtype=torch.float64).square() + s

    _compare(
        answer,
        lambda s, t: (s * t).sum() / s.square().sum(),
        [(s, t)],
        {
            "the quotient is upside down: the student's square is below": (
                lambda s, t: s.square().sum() / (s * t).sum()
            ),
            "below the line stands the student's square, not the teacher's": (
                lambda s, t: (s * t).sum() / t.square().sum()
            ),
            "that is the quotient of the two sizes; it ignores how far they match": (
                lambda s, t: t.norm() / s.norm()
            ),
            "that is the quotient of the means": lambda s, t: t.mean() / s.mean(),
            "the means were taken away first; there is no constant in a * s": (
                lambda s, t: ((s - s.mean()) * (t - t.mean())).sum() / (s - s.mean()).square().sum()
            ),
            "one number for all is wanted, not one an image": (
                lambda s, t: (s * t).sum((1, 2, 3)) / s.square().sum((1, 2, 3))
            ),
        },
        "set the derivative of sum (a * s - t)**2 by a to zero, and solve for a",
    )


def what_notices(answer: Any) -> None:
    """Exercise 3 of chapter 3.1: which comparison notices a change of the student."""
    _quiz_of_sets(
        answer,
        {
            "channels": ({"features"}, "the sum over channels and the logits stay"),
            "positions": (
                {"features", "map"},
                "the head reads the mean over positions, so the logits stay; the map moves",
            ),
            "shift": (set(), "no softmax sees a shift, and the features come before the logits"),
            "time": (set(), "features, map and answer are means or sums over time"),
            "louder": ({"answer"}, "the features come before the head; the softmax gets sharper"),
        },
        ("features", "map", "answer"),
        "for each, follow what happens to the numbers that go into the comparison",
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
            **_divergence_mistakes(kl),
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
        _check_keys(given, right)
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


def hinton(answer: Function) -> None:
    """Exercise 2 of chapter 2.1: `answer(student, teacher, tau)` is Hinton's loss."""
    draw = torch.Generator().manual_seed(3)
    student, teacher = 2 * torch.randn(2, 4, 5, generator=draw)

    def kl(p: Tensor, q: Tensor, temperature: float, axis: int = 1) -> Tensor:
        log_p = F.log_softmax(p / temperature, axis)
        log_q = F.log_softmax(q / temperature, axis)
        return (log_p.exp() * (log_p - log_q)).sum() / len(p)

    _compare(
        answer,
        lambda s, t, temperature: temperature**2 * kl(t, s, temperature),
        [(student, teacher, 2.0), (student, teacher, 3.0)],
        {
            **_divergence_mistakes(kl),
            "that is the cross-entropy: subtract the teacher's own entropy, sum p_t * log p_t": (
                lambda s, t, temperature: (
                    temperature**2 * F.cross_entropy(s / temperature, F.softmax(t / temperature, 1))
                )
            ),
            "the sum over classes became a mean (F.kl_div wants reduction='batchmean')": (
                lambda s, t, temperature: temperature**2 * kl(t, s, temperature) / s.shape[1]
            ),
            "divide the logits by the temperature, do not multiply: a high one must flatten": (
                lambda s, t, temperature: temperature**2 * kl(t, s, 1 / temperature)
            ),
            "the softmax runs over the batch; it runs over the classes, axis 1": (
                lambda s, t, temperature: temperature**2 * kl(t, s, temperature, 0)
            ),
        },
        "log_softmax of both over temperature; sum p_t * (log p_t - log p_s); times temperature**2",
    )


def noisy_logits(answer: Function) -> None:
    """Exercise 1 of chapter 3.3: `answer(z, noise, strength)` is NLD's `z_soft`."""
    draw = torch.Generator().manual_seed(4)
    z, noise = torch.randn(2, 4, 5, generator=draw)
    z = 3 * z + torch.tensor([[2.0], [-1.0], [0.5], [4.0]])

    def soft(z: Tensor, std: Tensor, noise: Tensor, strength: float) -> Tensor:
        return z + strength * (z.mean(1, keepdim=True) + std * noise)

    def own(z: Tensor, correction: int = 1) -> Tensor:
        return z.std(1, keepdim=True, correction=correction)

    _compare(
        answer,
        lambda z, n, strength: soft(z, own(z), n, strength),
        [(z, noise, 0.1), (z, noise, 0.5)],
        {
            "the mean is left out; no loss would notice, but NLD's noise has the logits' mean": (
                lambda z, n, strength: z + strength * own(z) * n
            ),
            "the noise is added as it is: scale it by the std of the image's logits": (
                lambda z, n, strength: z + strength * n
            ),
            "the noise has no scale: multiply it by the std of the image's logits": (
                lambda z, n, strength: soft(z, torch.ones_like(own(z)), n, strength)
            ),
            "the noise is scaled by the variance; it is the standard deviation": (
                lambda z, n, strength: soft(z, own(z).square(), n, strength)
            ),
            "mean and std run over the batch; they run over the classes of one image, axis 1": (
                lambda z, n, strength: z + strength * (z.mean(0) + z.std(0) * n)
            ),
            "mean and std are those of the whole batch; each image has its own": (
                lambda z, n, strength: z + strength * (z.mean() + z.std() * n)
            ),
            "the std has K in its denominator; here it has K - 1, as torch.std has": (
                lambda z, n, strength: soft(z, own(z, 0), n, strength)
            ),
            "that is the noise alone: add it to the logits": (
                lambda z, n, strength: strength * (z.mean(1, keepdim=True) + own(z) * n)
            ),
            "the strength is not used": lambda z, n, strength: soft(z, own(z), n, 1.0),
            "the mean is not multiplied by the strength: it is a part of the noise": (
                lambda z, n, strength: z + z.mean(1, keepdim=True) + strength * own(z) * n
            ),
            "the logits keep their full weight; only the noise is multiplied by the strength": (
                lambda z, n, strength: soft(z, own(z), n, strength) - strength * z
            ),
        },
        "e = mean + std * noise, over the classes with keepdim=True; then z + strength * e",
    )


def noise_penalty(answer: Function) -> None:
    """Exercise 2 of chapter 3.3: `answer(z, strength, temperature)`, NLD less KD on average."""
    draw = torch.Generator().manual_seed(5)
    z = 2 * torch.randn(4, 5, generator=draw)

    def right(
        z: Tensor, strength: float, temperature: float, *, power: int = 2, correction: int = 1
    ) -> Tensor:
        p = F.softmax(z / temperature, 1)
        spread = z.std(1, correction=correction) ** power
        return 0.5 * strength**2 * (spread * (1 - p.square().sum(1))).mean()

    def sharpness(z: Tensor, strength: float, temperature: float) -> Tensor:
        p = F.softmax(z / temperature, 1)
        return 0.5 * strength**2 * (z.var(1) * p.square().sum(1)).mean()

    _compare(
        answer,
        right,
        [(z, 0.1, 2.0), (z, 0.5, 3.0)],
        {
            "the factor 1/2 of the second order is missing": (
                lambda z, strength, temperature: 2 * right(z, strength, temperature)
            ),
            "the strength is squared, as the noise's variance is": (
                lambda z, strength, temperature: right(z, strength, temperature) / strength
            ),
            "the noise's variance holds std squared; the std, or nothing, is there": (
                lambda z, strength, temperature: right(z, strength, temperature, power=1)
            ),
            "the spread of the logits is missing: the noise has variance (strength * std)**2": (
                lambda z, strength, temperature: right(z, strength, temperature, power=0)
            ),
            "divide no more by the temperature squared: tau**2 in front of the loss cancels it": (
                lambda z, strength, temperature: right(z, strength, temperature) / temperature**2
            ),
            "the factor tau**2 cancels against the second derivative": (
                lambda z, strength, temperature: right(z, strength, temperature) * temperature**2
            ),
            "p is the softmax of z / temperature": (
                lambda z, strength, temperature: right(z, strength, 1.0)
            ),
            "that punishes the sure student: it is 1 - sum p**2, not sum p**2": sharpness,
            "the batch is summed; the penalty is a mean over images": (
                lambda z, strength, temperature: right(z, strength, temperature) * len(z)
            ),
            "the std has K in its denominator; here it has K - 1, as torch.std has": (
                lambda z, strength, temperature: right(z, strength, temperature, correction=0)
            ),
        },
        "half of strength**2, times var(z), times sum p * (1 - p); the mean over images",
    )


def what_changes(answer: Any) -> None:
    """Exercise 3 of chapter 3.3: which change of NLD alters its value, and which its gradient."""
    _quiz_of_sets(
        answer,
        {
            "shift": (set(), "try it; std ignores a shift of the logits, and so does the softmax"),
            "mean": (
                set(),
                "try it; the softmax ignores it, and the gradient's entries sum to zero",
            ),
            "graph": (
                {"gradient"},
                "try it; detach never changes a value, but a gradient through std is not zero",
            ),
            "variance": (
                {"value", "gradient"},
                "try it; the noise is as many times louder as the std says, value and gradient "
                "with it",
            ),
        },
        ("value", "gradient"),
        "try it on z: nld(z, ..., noise=n) and its gradient, with and without",
    )


def total_loss(answer: Function) -> None:
    """Exercise 1 of chapter 3.4: `answer(ce, by_map, by_logits, beta, gamma)` is the whole loss."""
    _compare(
        answer,
        lambda ce, m, z, beta, gamma: ce + beta * m + gamma * z,
        [(1.5, 0.25, 0.75, 1.0, 1.0), (1.5, 0.25, 0.75, 3.0, 0.5), (2.0, 0.5, 1.0, 0.0, 2.0)],
        {
            "the weights are not used": lambda ce, m, z, beta, gamma: ce + m + z,
            "the two weights are swapped: beta belongs to the maps": (
                lambda ce, m, z, beta, gamma: ce + gamma * m + beta * z
            ),
            "the labels are missing: the cross-entropy stays in the sum": (
                lambda ce, m, z, beta, gamma: beta * m + gamma * z
            ),
            "the weights do not share out a whole: the cross-entropy keeps its weight of 1": (
                lambda ce, m, z, beta, gamma: (1 - beta - gamma) * ce + beta * m + gamma * z
            ),
        },
        "the cross-entropy has weight 1; add beta times the maps' term and gamma times the logits'",
    )


def frozen_teacher(answer: Function) -> None:
    """Exercise 2 of chapter 3.4: `answer(teacher)` returns it so that nothing of it can move."""

    def judge(answer: Function) -> str | None:
        teacher = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).train()
        before = [p.clone() for p in teacher.state_dict().values()]
        frozen = answer(teacher)
        if frozen is None or frozen is ...:
            if teacher[1].training and teacher[0].weight.requires_grad:
                raise _UnsolvedError
            return "nothing came back: return the teacher"
        if not isinstance(frozen, torch.nn.Module):
            return f"a {type(frozen).__name__} came back, a network was wanted"
        if not all(map(torch.equal, before, frozen.state_dict().values())):
            return "the teacher's weights were changed; it should stay what it learned"
        learns = [p.requires_grad for p in frozen.parameters()]
        moves = [m.training for m in frozen.modules()]
        if any(learns) and any(moves):
            return "its weights still ask for a gradient, and its batch norm is in train mode"
        if any(moves):
            return "its batch norm still moves when it runs: the mode is train, wanted eval"
        if any(learns):
            return "its weights still ask for a gradient: requires_grad is True"
        return None

    _run(answer, judge, "one call for the mode, one for the gradients; both return the network")


def cosine_rate(answer: Function) -> None:
    """Exercise 3 of chapter 3.4: `answer(start, epoch, epochs)` is the cosine schedule."""

    def right(start: float, epoch: int, epochs: int) -> float:
        return start * (1 + math.cos(math.pi * epoch / epochs)) / 2

    _compare(
        answer,
        right,
        [(0.1, 0, 10), (0.1, 3, 10), (0.1, 10, 10), (0.5, 7, 20)],
        {
            "that is a straight line: it should start and end flat": (
                lambda start, epoch, epochs: start * (1 - epoch / epochs)
            ),
            "a quarter of the cosine: it should be half of one, from 1 down to -1": (
                lambda start, epoch, epochs: start * math.cos(math.pi * epoch / epochs / 2)
            ),
            "it falls below zero: add 1 to the cosine and halve": (
                lambda start, epoch, epochs: start * math.cos(math.pi * epoch / epochs)
            ),
            "the sum is not halved: at epoch 0 it should be the start": (
                lambda start, epoch, epochs: 2 * right(start, epoch, epochs)
            ),
            "it rises: the cosine has the wrong sign": (
                lambda start, epoch, epochs: start - right(start, epoch, epochs)
            ),
            "the start is not always 0.1": (lambda start, epoch, epochs: right(0.1, epoch, epochs)),
        },
        "cos(pi * epoch / epochs) runs from 1 to -1; bring that to start and 0",
    )


def seed_verdict(answer: Function) -> None:
    """Exercise 4 of chapter 3.4: `answer(method, baseline)` says above, below or mingled."""

    def judge(answer: Function) -> str | None:
        cases = [
            ([77.0, 79.0, 78.0], [75.0, 76.5, 74.0], "above"),
            ([70.0, 73.0, 71.0], [75.0, 76.5, 74.0], "below"),
            ([77.0, 79.0, 75.5], [75.0, 76.5, 74.0], "mingled"),
            ([70.0, 74.5, 71.0], [75.0, 76.5, 74.0], "mingled"),
            ([72.0, 79.0, 75.0], [75.0, 76.5, 74.0], "mingled"),
            ([76.5, 78.0, 77.0], [75.0, 76.5, 74.0], "mingled"),
        ]
        given = [answer(list(method), list(base)) for method, base, _ in cases]
        if all(said is None or said is ... for said in given):
            raise _UnsolvedError
        for (method, base, right), said in zip(cases, given, strict=True):
            if said == right:
                continue
            if said not in ("above", "below", "mingled"):
                return f"got {said!r}, wanted 'above', 'below' or 'mingled'"
            where = f"{method} against {base} is {right!r}, got {said!r}"
            if min(method) == max(base):
                return f"{where}: a tie is not better"
            if right == "mingled":
                return f"{where}: every run must be on that side, the mean is not enough"
            return where
        return None

    _run(answer, judge, "compare the worst run of one side with the best of the other")


def merged_head(answer: Function) -> None:
    """Exercise 1 of chapter 3.5: `answer(W1, b1, W2, b2)` is (weight, bias) of one layer."""
    draw = torch.Generator().manual_seed(12)
    w1, b1 = (torch.randn(*shape, generator=draw).double() for shape in ((4, 4), (4,)))
    w2, b2 = (torch.randn(*shape, generator=draw).double() for shape in ((4, 4), (4,)))

    def side_by_side(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([torch.as_tensor(weight), torch.as_tensor(bias)[:, None]], 1)

    def joined(*arguments: Tensor) -> Tensor | None:
        found = answer(*arguments)
        return None if found is None or found is ... else side_by_side(*found)

    _compare(
        joined,
        lambda w1, b1, w2, b2: side_by_side(w2 @ w1, w2 @ b1 + b2),
        [(w1, b1, w2, b2)],
        {
            "the matrices are in the wrong order: the second layer stands on the left": (
                lambda w1, b1, w2, b2: side_by_side(w1 @ w2, w2 @ b1 + b2)
            ),
            "the first bias goes through the second layer too: multiply it by W2": (
                lambda w1, b1, w2, b2: side_by_side(w2 @ w1, b1 + b2)
            ),
            "the first bias is missing": lambda w1, b1, w2, b2: side_by_side(w2 @ w1, b2),
            "the second bias is missing": lambda w1, b1, w2, b2: side_by_side(w2 @ w1, w2 @ b1),
            "that multiplies element by element; a layer after a layer is a matrix product": (
                lambda w1, b1, w2, b2: side_by_side(w2 * w1, w2 @ b1 + b2)
            ),
        },
        "W2 @ (W1 @ x + b1) + b2: multiply it out",
    )


def batch_scaling(answer: Function) -> None:
    """Exercise 2 of chapter 3.5: `answer(maps)` scales as the released code does."""
    draw = torch.Generator().manual_seed(13)
    maps = torch.rand(3, 2, 4, generator=draw, dtype=torch.float64)
    maps = maps * torch.tensor([0.2, 1.0, 0.05], dtype=torch.float64).view(3, 1, 1) + 0.3

    def scaled(maps: Tensor, axes: tuple[int, ...] = (0, 1, 2), extra: float = 1e-3) -> Tensor:
        low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
        return (maps - low) / (high - low + extra)

    _compare(
        answer,
        scaled,
        [(maps,)],
        {
            "each map is scaled by itself; the released code takes the whole batch": (
                lambda maps: scaled(maps, (1, 2))
            ),
            "the 0.001 below the line is missing": lambda maps: scaled(maps, extra=0.0),
            "each map by itself, and the 0.001 is missing": (
                lambda maps: scaled(maps, (1, 2), 0.0)
            ),
            "the smallest value is not taken away": lambda maps: maps / (maps.max() + 1e-3),
            "below the line stands the range, highest less lowest": (
                lambda maps: (maps - maps.min()) / (maps.max() + 1e-3)
            ),
        },
        "(maps - min) / (max - min + 1e-3), with min and max over all three axes",
    )


def best_epoch_bonus(answer: Function) -> None:
    """Exercise 3 of chapter 3.5: `answer(accuracies)`, what choosing on the test set adds."""
    accuracies = torch.tensor(
        [[50.0, 61.0, 60.0, 60.5], [48.0, 58.0, 63.0, 59.0], [52.0, 57.0, 60.0, 62.0]],
        dtype=torch.float64,
    )
    _compare(
        answer,
        lambda a: (a.amax(1) - a[:, -1]).mean(),
        [(accuracies,)],
        {
            "one epoch for all seeds is not what is reported: each seed has its own best": (
                lambda a: a.mean(0).amax() - a.mean(0)[-1]
            ),
            "the best seed is not the best epoch: the epochs are axis 1": (
                lambda a: (a.amax(0) - a[-1]).mean()
            ),
            "that is against the mean of the epochs; the last one is wanted": (
                lambda a: (a.amax(1) - a.mean(1)).mean()
            ),
            "that is the best run of all": lambda a: a.max() - a[:, -1].mean(),
            "one number is wanted: the mean over the seeds": lambda a: a.amax(1) - a[:, -1],
            "the sign is turned: best less last": lambda a: (a[:, -1] - a.amax(1)).mean(),
        },
        "for each seed: highest of its epochs less the last; then the mean over seeds",
    )


def when_it_vanishes(answer: Any) -> None:
    """Exercise 4 of chapter 3.5: under which condition a difference makes none."""
    _quiz(
        answer,
        {
            "1 teacher map": ("right", "only the predicted class can differ from the true one"),
            "2 scaling": ("single", "with one image the batch and the map are the same"),
            "3 no square": ("weight", "it is a constant factor of the whole term"),
            "6 variance": ("silent", "lambda multiplies the noise"),
            "8 drifting teacher": (
                "never",
                "its batch norm uses the batch's statistics, whatever the weights of the loss",
            ),
        },
        ("right", "single", "weight", "silent", "never"),
        "for each, ask what the two versions would have to have in common",
    )


def _divergence_mistakes(kl: Function) -> dict[str, Function]:
    """What goes wrong with `T^2 * KL(teacher || student)`, over positions or over classes."""
    return {
        "the divergence is the wrong way round: it is KL(teacher || student)": (
            lambda s, t, temperature: temperature**2 * kl(s, t, temperature)
        ),
        "the factor temperature squared is missing": (
            lambda s, t, temperature: kl(t, s, temperature)
        ),
        "the factor is the temperature squared, not the temperature": (
            lambda s, t, temperature: temperature * kl(t, s, temperature)
        ),
        "the batch is summed; the loss is a mean over images": (
            lambda s, t, temperature: temperature**2 * kl(t, s, temperature) * len(s)
        ),
        "the temperature is not used in the softmax": (
            lambda s, t, temperature: temperature**2 * kl(t, s, 1.0)
        ),
    }


def bytes_moved(answer: Function) -> None:
    """Exercise 1 of the page on speed: `answer(size)` is what a neuron and step moves at least."""
    _compare(
        answer,
        lambda size: 5 * size,
        [(4,), (2,)],
        {
            "that is the forward pass alone": lambda size: 2 * size,
            "that is the backward pass alone": lambda size: 3 * size,
            "the backward pass reads two tensors: the gradient of the spikes, and the current": (
                lambda size: 4 * size
            ),
            "a number does not always take 4 bytes": lambda size: 20,
            "that counts numbers, not bytes": lambda size: 5,
        },
        "count the tensors that are read or written: two forward, three backward",
    )


def soft_reset_gradient(answer: Function) -> None:
    """Exercise 2 of the page on speed: `answer(after, ds, psi, threshold)` is that of u."""
    draw = torch.Generator().manual_seed(0)
    after, ds, psi = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    _compare(
        answer,
        lambda after, ds, psi, threshold: after + (ds - threshold * after) * psi,
        [(after, ds, psi, 1.0), (after, ds, psi, 0.5)],
        {
            "the reset is left out: the spike lowers the potential by the threshold": (
                lambda after, ds, psi, threshold: after + ds * psi
            ),
            "a higher spike means a lower potential: the threshold's term is subtracted": (
                lambda after, ds, psi, threshold: after + (ds + threshold * after) * psi
            ),
            "the potential itself goes on through the reset: after is missing": (
                lambda after, ds, psi, threshold: (ds - threshold * after) * psi
            ),
            "the threshold is not always 1": (
                lambda after, ds, psi, threshold: after + (ds - after) * psi
            ),
        },
        "u leads on in two ways: directly, with slope 1, and through the spike, with slope psi",
    )


def longest_run(answer: Function) -> None:
    """Exercise 3 of the page on speed: `answer(room, ann, share)` is the largest T that fits."""
    _compare(
        answer,
        lambda room, ann, share: room // (share * ann),
        [(16e9, 1e9, 1.5), (6e9, 1e9, 1.5), (1e9, 1e9, 1.25)],
        {
            "T must be a whole number, rounded down": lambda room, ann, share: room / (share * ann),
            "rounded up, it does not fit": lambda room, ann, share: math.ceil(room / (share * ann)),
            "a student's step keeps more than T times its teacher's": (
                lambda room, ann, share: room // ann
            ),
            "0 where not even one step fits": (
                lambda room, ann, share: max(1, room // (share * ann))
            ),
        },
        "share * T * ann must not exceed room",
    )


def convolution_operations(answer: Function) -> None:
    """Exercise 1 of the page on cost: `answer(inputs, outputs, kernel, size, groups)`, forward."""

    def right(inputs: int, outputs: int, kernel: int, size: int, groups: int) -> int:
        return 2 * outputs * size**2 * (inputs // groups) * kernel**2

    _compare(
        answer,
        right,
        [(16, 32, 3, 8, 1), (16, 32, 5, 4, 4), (3, 8, 1, 7, 1)],
        {
            "these are multiply-accumulates; each is two operations": (
                lambda c, d, k, s, g: right(c, d, k, s, g) // 2
            ),
            "with groups, an output channel reads `inputs / groups` channels alone": (
                lambda c, d, k, s, g: right(c, d, k, s, 1)
            ),
            "groups divide once, not the inputs and the outputs both": (
                lambda c, d, k, s, g: right(c, d, k, s, g) // g
            ),
            "a kernel has kernel x kernel weights a channel": (
                lambda c, d, k, s, g: right(c, d, k, s, g) // k
            ),
            "every weight is used at each of size x size places": (
                lambda c, d, k, s, g: right(c, d, k, 1, g)
            ),
            "that is forward and backward; only forward is asked": (
                lambda c, d, k, s, g: 3 * right(c, d, k, s, g)
            ),
        },
        "how many numbers come out, and how many weights does each of them meet?",
    )


def slower_of_two(answer: Function) -> None:
    """Exercise 2 of the page on cost: `answer(rate, ms, workers)` is the images a second."""
    _compare(
        answer,
        lambda rate, ms, workers: min(rate, 1000 * workers / ms),
        [(5000.0, 1.2, 4), (3000.0, 1.2, 8), (100.0, 50.0, 2)],
        {
            "the faster of the two waits for the slower": (
                lambda rate, ms, workers: max(rate, 1000 * workers / ms)
            ),
            "that is what the workers bring; the network may be slower": (
                lambda rate, ms, workers: 1000 * workers / ms
            ),
            "that is one worker": lambda rate, ms, workers: min(rate, 1000 / ms),
            "a second has 1000 milliseconds": lambda rate, ms, workers: min(rate, workers / ms),
            "both work at the same time: their times do not add up": (
                lambda rate, ms, workers: 1 / (1 / rate + ms / workers / 1000)
            ),
        },
        "workers bring so many images a second, the network takes so many: which is less?",
    )


def paired_interval(answer: Function) -> None:
    """Exercise 1 of "What distillation buys": `answer(method, baseline)` gives (low, high)."""
    # Student's 97.5 % quantiles for 2 and 4 degrees of freedom, from any table of them.
    quantiles = {3: 4.302653, 5: 2.776445}

    def interval(d: Tensor, quantile: float, correction: int = 1, root: float = 0.5) -> Tensor:
        half = quantile * d.std(correction=correction) / len(d) ** root
        return torch.stack([d.mean() - half, d.mean() + half])

    def paired(**options: Any) -> Function:
        def made(method: list[float], baseline: list[float]) -> Tensor:
            d = torch.tensor(method) - torch.tensor(baseline)
            return interval(d, **{"quantile": quantiles[len(d)]} | options)

        return made

    def one_sided(method: list[float], baseline: list[float]) -> Tensor:
        return paired(quantile={3: 2.919986, 5: 2.131847}[len(method)])(method, baseline)

    def unpaired(method: list[float], baseline: list[float]) -> Tensor:
        m, b = torch.tensor(method), torch.tensor(baseline)
        half = quantiles[len(m)] * ((m.var() + b.var()) / len(m)).sqrt()
        return torch.stack([m.mean() - b.mean() - half, m.mean() - b.mean() + half])

    _compare(
        answer,
        paired(),
        [
            ([60.0, 63.5, 58.0, 61.0, 62.0], [50.0, 52.0, 49.5, 48.0, 53.5]),
            ([50.0, 48.0, 51.5], [49.0, 49.5, 50.0]),
        ],
        {
            "1.96 is the normal distribution's; with few seeds take Student's": paired(
                quantile=1.959964
            ),
            "the quantile is 0.975: 2.5 % stay outside on each side": one_sided,
            "the standard deviation has n - 1 below (ddof=1)": paired(correction=0),
            "s must be divided by the root of n: it is the mean's interval": paired(root=0.0),
            "the seeds are not paired: take the differences first": unpaired,
        },
        "d = method - baseline; mean(d) ± t * s / sqrt(n), t of n - 1 degrees of freedom",
    )


def calibration_error(answer: Function) -> None:
    """Exercise 2 of "What distillation buys": `answer(confidence, right, bins)`."""

    def right_one(
        confidence: Tensor, right: Tensor, bins: int, weighted: bool = True, signed: bool = False
    ) -> float:
        place = (confidence * bins).ceil().clamp(1, bins)
        gaps, weights = [], []
        for i in range(1, bins + 1):
            here = place == i
            if here.any():
                gap = confidence[here].mean() - right[here].double().mean()
                gaps.append(float(gap if signed else gap.abs()))
                weights.append(float(here.double().mean()) if weighted else 1.0)
        total = sum(weight * gap for weight, gap in zip(weights, gaps, strict=True))
        return total if weighted else total / len(gaps)

    draw = torch.Generator().manual_seed(0)
    confidence = 0.1 + 0.89 * torch.rand(200, generator=draw, dtype=torch.float64)
    right = torch.rand(200, generator=draw, dtype=torch.float64) < confidence.square()
    few = torch.tensor([0.92, 0.78, 0.57, 0.33], dtype=torch.float64)
    _compare(
        answer,
        right_one,
        [
            (confidence, right, 15),
            (confidence, right, 5),
            (few, torch.tensor([True, False, True, True]), 10),
        ],
        {
            "each bin counts by its share of the answers": (
                lambda c, r, bins: right_one(c, r, bins, weighted=False)
            ),
            "the gaps are distances: without the absolute value they cancel": (
                lambda c, r, bins: right_one(c, r, bins, signed=True)
            ),
            "the bins are left out: that is the gap of the two means over all answers": (
                lambda c, r, bins: (c.mean() - r.double().mean()).abs()
            ),
            "the distance is of the bin's two means, not of each answer": (
                lambda c, r, bins: (c - r.double()).abs().mean()
            ),
        },
        "in each bin: share of answers times |mean confidence - share right|; then the sum",
    )


def run_hours(answer: Function) -> None:
    """Exercise 1 of chapter 4.1: `answer(images, student, teacher)`, pairs of epochs and rate."""

    def right(images: int, student: tuple, teacher: tuple) -> float:
        return sum(images * epochs / rate for epochs, rate in (student, teacher)) / 3600

    _compare(
        answer,
        right,
        [
            (45_000, (400, 5_000.0), (300, 12_000.0)),
            (1_000, (10, 100.0), (20, 50.0)),
            (7_200, (1, 2.0), (0, 3.0)),
        ],
        {
            "these are seconds; an hour has 3600": lambda n, s, t: 3600 * right(n, s, t),
            "the teacher is missing: it has its own epochs": (
                lambda n, s, t: n * s[0] / s[1] / 3600
            ),
            "the student is missing; only the teacher is counted": (
                lambda n, s, t: n * t[0] / t[1] / 3600
            ),
            "divide by the images a second, do not multiply": (
                lambda n, s, t: n * (s[0] * s[1] + t[0] * t[1]) / 3600
            ),
            "each network has its own rate: add two times, not epochs over the sum of the rates": (
                lambda n, s, t: n * (s[0] + t[0]) / (s[1] + t[1]) / 3600
            ),
            "the epochs are missing": lambda n, s, t: n * (1 / s[1] + 1 / t[1]) / 3600,
        },
        "seconds = images * epochs / rate, for each of the two; then hours",
    )


def overlay_changes(answer: Function) -> None:
    """Exercise 2 of chapter 4.1: `answer(base, overlay)` lists the keys that change, dotted."""

    def right(base: Mapping, overlay: Mapping, keep_same: bool = False, dots: bool = True) -> list:
        found = []
        for key, value in overlay.items():
            old = base.get(key)
            if isinstance(value, dict):
                inner = right(old if isinstance(old, dict) else {}, value, keep_same, dots)
                found += [f"{key}.{name}" if dots else name for name in inner]
            elif keep_same or key not in base or old != value:
                found.append(key)
        return found

    def top_only(base: Mapping, overlay: Mapping) -> list:
        return [key for key, value in overlay.items() if base.get(key) != value]

    def known_only(base: Mapping, overlay: Mapping) -> list:
        found = []
        for key, value in overlay.items():
            if key in base and isinstance(value, dict) and isinstance(base[key], dict):
                found += [f"{key}.{name}" for name in known_only(base[key], value)]
            elif key in base and not isinstance(value, dict) and base[key] != value:
                found.append(key)
        return found

    base = {"trainer": {"max_epochs": 400}, "model": {"T": 1, "samd": {"weight": 0.0}}, "seed": 0}
    cases = [
        (base, {"model": {"samd": {"weight": 1.0}}}),
        (base, {"trainer": {"max_epochs": 400}, "seed": 1}),
        (base, {"model": {"T": 4, "nld": {"weight": 1.0, "draws": 1}}, "seed": 0}),
    ]

    def judge(answer: Any) -> str | None:
        mistakes = {
            "only the outermost keys came back; go down into mappings and join the names by dots": (
                top_only
            ),
            "a key that is set to the value it has already is no change": (
                lambda b, o: right(b, o, keep_same=True)
            ),
            "the levels are missing: join the names by dots, as model.samd.weight": (
                lambda b, o: right(b, o, dots=False)
            ),
            "a key that the base has not is a change too": known_only,
        }
        given = [answer(b, o) for b, o in cases]
        if all(g is None for g in given):
            raise _UnsolvedError
        if any(not isinstance(g, list | tuple | set) for g in given):
            return f"got {_said(given[0])}; wanted a list of keys"
        got = [sorted(map(str, g)) for g in given]
        if got == [sorted(right(b, o)) for b, o in cases]:
            return None
        for words, mistake in mistakes.items():
            if got == [sorted(mistake(b, o)) for b, o in cases]:
                return words
        for g, (b, o) in zip(got, cases, strict=True):
            wanted = sorted(right(b, o))
            if g != wanted:
                return f"for the overlay {o} got {g}, wanted {wanted}"
        return None

    _run(answer, judge, "go through the overlay's keys; for a mapping call yourself again")


def accuracy_error(answer: Function) -> None:
    """Exercise 3 of chapter 4.1: `answer(a, N)` is the standard error of an accuracy."""
    _compare(
        answer,
        lambda a, n: (a * (1 - a) / n) ** 0.5,
        [(0.77, 10_000), (0.5, 100), (0.9, 400)],
        {
            "this is the variance; the standard error is its square root": (
                lambda a, n: a * (1 - a) / n
            ),
            "this is the spread of one answer; the mean of N has it divided by the root of N": (
                lambda a, n: (a * (1 - a)) ** 0.5
            ),
            "the variance of a right-or-wrong answer is a (1 - a), not a": (
                lambda a, n: (a / n) ** 0.5
            ),
            "the root goes over N too": lambda a, n: (a * (1 - a)) ** 0.5 / n,
            "N is the number of images: divide by it, not by N - 1": (
                lambda a, n: (a * (1 - a) / (n - 1)) ** 0.5
            ),
            "this is in points; wanted a share": lambda a, n: 100 * (a * (1 - a) / n) ** 0.5,
        },
        "each answer is right with probability a: variance a (1 - a); N of them are averaged",
    )


def effective_batch(answer: Function) -> None:
    """Exercise 1 of chapter 4.2: `answer(images, devices, machines, accumulated, rate, base)`."""

    def right(*given: Any, factors: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
        batch = math.prod(given[i] for i in factors)
        return torch.tensor([batch, given[4] * batch / given[5]], dtype=torch.float64)

    def as_tensor(*given: Any) -> Any:
        found = answer(*given)
        return torch.tensor(found, dtype=torch.float64) if isinstance(found, tuple) else found

    _compare(
        as_tensor,
        right,
        [(128, 8, 1, 1, 0.1, 128), (32, 4, 2, 3, 0.05, 256), (16, 1, 3, 2, 0.2, 64)],
        {
            "the accumulated batches count too": lambda *g: right(*g, factors=(0, 1, 2)),
            "the machines count too": lambda *g: right(*g, factors=(0, 1, 3)),
            "the devices count too": lambda *g: right(*g, factors=(0, 2, 3)),
            "the rate grows with the batch: times effective over base, not base over effective": (
                lambda *g: torch.stack([right(*g)[0], g[4] * g[5] / right(*g)[0]])
            ),
            "the batch is right; the rate is still the given one": (
                lambda *g: torch.stack([right(*g)[0], torch.tensor(g[4], dtype=torch.float64)])
            ),
            "by the linear rule the rate grows as the batch, not as its root": (
                lambda *g: torch.stack([right(*g)[0], g[4] * (right(*g)[0] / g[5]) ** 0.5])
            ),
        },
        "return (batch, rate): multiply the four counts; the rate grows as the batch does",
    )


def share_of_images(answer: Function) -> None:
    """Exercise 2 of chapter 4.2: `answer(order, rank, ranks)` is one process's part."""
    orders = [list(range(10, 18)), [5, 3, 8, 1, 9, 2, 7], [4, 6, 0, 2, 9, 8, 1, 3, 5, 7, 11]]
    cases = [(order, rank, ranks) for order in orders for ranks in (2, 3) for rank in range(ranks)]

    def right(order: list[int], rank: int, ranks: int) -> list[int]:
        return order[: len(order) // ranks * ranks][rank::ranks]

    def blocks(order: list[int], rank: int, ranks: int) -> list[int]:
        size = len(order) // ranks
        return order[rank * size : (rank + 1) * size]

    mistakes = {
        "some processes get one more than others; drop what is left over": (
            lambda order, rank, ranks: order[rank::ranks]
        ),
        "these are blocks that follow each other; take every `ranks`-th": blocks,
        "every process has the same part; begin with its own number": (
            lambda order, rank, ranks: right(order, 0, ranks)
        ),
        "these are places in the order; give what stands there": (
            lambda order, rank, ranks: right(list(range(len(order))), rank, ranks)
        ),
    }

    def judge(answer: Function) -> str | None:
        given = [answer(list(order), rank, ranks) for order, rank, ranks in cases]
        if all(g is None or g is ... for g in given):
            raise _UnsolvedError
        if any(not isinstance(g, list | tuple) for g in given):
            return f"got {_said(given[0])}, wanted a list"
        given = [list(g) for g in given]
        if given == [right(*case) for case in cases]:
            return None
        for words, mistake in mistakes.items():
            if given == [mistake(*case) for case in cases]:
                return words
        case, got = next((c, g) for c, g in zip(cases, given, strict=True) if g != right(*c))
        return f"for {_said(case)} got {got}, wanted {right(*case)}"

    _run(answer, judge, "cut the order to a multiple of ranks, then slice it: [rank::ranks]")


def mean_over_devices(answer: Function) -> None:
    """Exercise 3 of chapter 4.2: `answer(losses, counts)` is the mean over all images."""

    def case(losses: list[float], counts: list[int]) -> tuple[Tensor, Tensor]:
        return torch.tensor(losses).double(), torch.tensor(counts).double()

    _compare(
        answer,
        lambda losses, counts: (losses * counts).sum() / counts.sum(),
        [case([1.0, 3.0], [30, 10]), case([2.0, 0.5, 1.0], [8, 8, 1])],
        {
            "a device with few images counts as much as one with many; weigh by the counts": (
                lambda losses, counts: losses.mean()
            ),
            "divide by the number of images, not of devices": (
                lambda losses, counts: (losses * counts).mean()
            ),
            "this is a sum over images; divide by how many there are": (
                lambda losses, counts: (losses * counts).sum()
            ),
            "a mean loss has to be multiplied by its count, not divided": (
                lambda losses, counts: (losses / counts).sum() / (1 / counts).sum()
            ),
        },
        "a mean times its count is a sum; add the sums, divide by all images",
    )


def energy_estimate(answer: Function) -> None:
    """Exercise 1 of chapter 4.4: `answer(macs, acs, mac, ac, reads)` in microjoules."""

    def right(macs: float, acs: float, mac: float, ac: float, reads: float) -> float:
        return (macs * (mac + reads) + acs * (ac + reads)) * 1e-6

    _compare(
        answer,
        right,
        [(2e6, 8e6, 4.6, 0.9, 0.0), (3e6, 1e6, 0.3, 0.1, 5.0), (0.0, 5e6, 4.6, 0.9, 2.0)],
        {
            "these are picojoules; a microjoule is a million of them": (lambda *a: 1e6 * right(*a)),
            "the reads are missing: each operation pays for its own": lambda m, a, pm, pa, r: right(
                m, a, pm, pa, 0.0
            ),
            "every accumulate reads a weight too": (
                lambda m, a, pm, pa, r: (m * (pm + r) + a * pa) * 1e-6
            ),
            "every multiply-accumulate reads a weight too": (
                lambda m, a, pm, pa, r: (m * pm + a * (pa + r)) * 1e-6
            ),
            "the prices are swapped": lambda m, a, pm, pa, r: right(m, a, pa, pm, r),
        },
        "each operation costs its price and its read; a picojoule is 1e-6 microjoules",
    )


def break_even_rate(answer: Function) -> None:
    """Exercise 2 of chapter 4.4: `answer(T, mac, ac, reads)` is the rate of equal energy."""

    def right(steps: int, mac: float, ac: float, reads: float) -> float:
        return (mac + reads) / ((ac + reads) * steps)

    _compare(
        answer,
        right,
        [(4, 4.6, 0.9, 0.0), (2, 4.6, 0.9, 5.0), (8, 0.3, 0.1, 1.0)],
        {
            "this is the rate for a single step; with T of them each spike is paid T times": (
                lambda t, m, a, r: t * right(t, m, a, r)
            ),
            "the reads are missing": lambda t, m, a, r: right(t, m, a, 0.0),
            "the reads are paid on both sides: by each accumulate too": (
                lambda t, m, a, r: (m + r) / (a * t)
            ),
            "the reads are paid on both sides: by the multiply-accumulate too": (
                lambda t, m, a, r: m / ((a + r) * t)
            ),
            "upside down: the dearer the multiply-accumulate, the more spikes one may afford": (
                lambda t, m, a, r: (a + r) / ((m + r) * t)
            ),
            "this counts operations alone; their prices differ": lambda t, m, a, r: 1 / t,
        },
        "set rate * T * (ac + reads) equal to mac + reads",
    )


def one_column(answer: Any) -> None:
    """Exercise 3 of chapter 4.4: `{pair: "yes" or "no"}`, whether two results may be compared."""
    _quiz(
        answer,
        {
            "loss": ("yes", "all conditions but the loss are the same there"),
            "network": ("no", "their networks differ too, so the loss may not be the reason"),
            "reported": (
                "yes",
                "one source, one network and T; as long as the column says that it is reported",
            ),
            "timesteps": ("no", "the T of training differs as well as the loss"),
            "machine": (
                "no",
                "the machine alone moved scores by as much; score both on one machine",
            ),
        },
        ("yes", "no"),
        "list the conditions of both; all but the one that you compare must be the same",
    )


def euler_neuron(answer: Function) -> None:
    """Exercise 1 of chapter 6.1: `answer(tau, r, dt)` is (decay, gain) of Euler's step."""
    _compare(
        answer,
        lambda tau, r, dt: (1 - dt / tau, r * dt / tau),
        [(2e-4, 2.0, 1e-4), (5e-4, 3.0, 1e-4), (2.0, 1.0, 0.5)],
        {
            "that is the exact solution; Euler's step is a straight line: 1 - dt / tau": (
                lambda tau, r, dt: (math.exp(-dt / tau), r * (1 - math.exp(-dt / tau)))
            ),
            "the exponential is the exact solution; Euler's step keeps 1 - dt / tau": (
                lambda tau, r, dt: (math.exp(-dt / tau), r * dt / tau)
            ),
            "the current is multiplied by dt / tau as well, not by r alone": (
                lambda tau, r, dt: (1 - dt / tau, r)
            ),
            "dt / tau is what leaks away; the decay is what is kept": (
                lambda tau, r, dt: (dt / tau, r * dt / tau)
            ),
            "wrong order: the decay first, then the gain": (
                lambda tau, r, dt: (r * dt / tau, 1 - dt / tau)
            ),
        },
        "multiply out v + dt / tau * (r * x - v), and collect what stands at v and at x",
    )


def folded_bias(answer: Function) -> None:
    """Exercise 2 of chapter 6.1: `answer(c, mean, var, gamma, beta, eps)`, the folded bias."""
    _compare(
        answer,
        lambda c, mean, var, gamma, beta, eps: beta + gamma * (c - mean) / (var + eps) ** 0.5,
        [(0.5, 0.2, 4.0, 3.0, 0.1, 0.5), (-1.0, 0.3, 0.25, 0.5, -0.2, 0.01)],
        {
            "the bias passes through batch norm too: it is scaled like the weights": (
                lambda c, mean, var, gamma, beta, eps: beta + c - gamma * mean / (var + eps) ** 0.5
            ),
            "the bias c is lost": (
                lambda c, mean, var, gamma, beta, eps: beta - gamma * mean / (var + eps) ** 0.5
            ),
            "the mean is subtracted, not added": (
                lambda c, mean, var, gamma, beta, eps: (
                    beta + gamma * (c + mean) / (var + eps) ** 0.5
                )
            ),
            "batch norm divides by the standard deviation, not by the variance": (
                lambda c, mean, var, gamma, beta, eps: beta + gamma * (c - mean) / (var + eps)
            ),
            "eps stands under the root, with the variance": (
                lambda c, mean, var, gamma, beta, eps: beta + gamma * (c - mean) / (var**0.5 + eps)
            ),
            "gamma is missing": (
                lambda c, mean, var, gamma, beta, eps: beta + (c - mean) / (var + eps) ** 0.5
            ),
            "beta is missing": (
                lambda c, mean, var, gamma, beta, eps: gamma * (c - mean) / (var + eps) ** 0.5
            ),
        },
        "put c alone through batch norm: subtract, divide, scale, shift",
    )


def whole_threshold(answer: Function) -> None:
    """Exercise 3 of chapter 6.1: for whole u, `u >= answer(theta)` fires as `u > theta` does."""
    _compare(
        answer,
        lambda theta: math.floor(theta) + 1,
        [(2.5,), (3.0,), (100.0,), (0.25,), (7.75,)],
        {
            "where theta is whole, u = theta must not fire, and with that it does": math.ceil,
            "rounding lets some potentials below theta fire": round,
            "the whole number below theta fires too early": math.floor,
            "it must be a whole number: where theta is not, one potential too few fires": (
                lambda theta: theta + 1
            ),
            "where theta is not whole, the next whole number above it is enough": (
                lambda theta: math.ceil(theta) + 1
            ),
        },
        "it is the smallest whole number that is larger than theta",
    )


def pooled_kernel(answer: Function) -> None:
    """Exercise 4 of chapter 6.1: `answer(weight)` is 2x2 weights that pool and convolve at once."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, 1, 1, generator=draw)
    _compare(
        answer,
        lambda w: w.repeat(1, 1, 2, 2) / 4,
        [(weight,), (2 * weight[:, :1],)],
        {
            "that adds the four pixels up; a mean divides by four": lambda w: w.repeat(1, 1, 2, 2),
            "there are four pixels in 2x2: divide by four, not by two": (
                lambda w: w.repeat(1, 1, 2, 2) / 2
            ),
            "the kernel still sees one pixel; it must see 2x2": lambda w: w / 4,
            "only one of the four pixels counts; all have the same weight": (
                lambda w: F.pad(w, (0, 1, 0, 1))
            ),
            "the channels that go out come first: [D, C, 2, 2]": (
                lambda w: w.repeat(1, 1, 2, 2).transpose(0, 1) / 4
            ),
        },
        "each of the four pixels of a channel has a quarter of the weight",
    )


def time_bin(answer: Function) -> None:
    """Exercise 1 of chapter 4.3: `answer(t, first, last, T)` is an event's bin, -1 for none."""

    def right(t: int, first: int, last: int, bins: int) -> int:
        found = (t - first) // ((last - first) // bins)
        return found if found < bins else -1

    _compare(
        answer,
        right,
        [(1500, 700, 10_707, 10), (10_707, 700, 10_707, 10), (4701, 700, 10_707, 10)],
        {
            "the recording begins at its first event: subtract its time": (
                lambda t, f, e, n: t // ((e - f) // n) if t // ((e - f) // n) < n else -1
            ),
            "an event beyond the last bin is left out: give -1": (
                lambda t, f, e, n: (t - f) // ((e - f) // n)
            ),
            "an event beyond the last bin is left out, not put into it": (
                lambda t, f, e, n: min((t - f) // ((e - f) // n), n - 1)
            ),
            "bins are counted from 0": (
                lambda t, f, e, n: b + 1 if (b := right(t, f, e, n)) >= 0 else -1
            ),
            "the width is rounded down to whole microseconds before anything is divided by it": (
                lambda t, f, e, n: b if (b := (t - f) * n // (e - f)) < n else -1
            ),
        },
        "width d = (last - first) // T; then b = (t - first) // d, and -1 where that is T or more",
    )


def signed_events(answer: Function) -> None:
    """Exercise 2 of chapter 4.3: `answer(before, after, kappa)`, brighter minus darker."""

    def steps(before: float, after: float, kappa: float) -> float:
        return math.log(after / before) / kappa

    _compare(
        answer,
        lambda *given: math.trunc(steps(*given)),
        [(1.0, 3.0, 0.3), (2.0, 0.5, 0.3), (1.0, 1.1, 0.3)],
        {
            "an event is sent when a whole step is reached: no rounding to the nearest": (
                lambda *given: round(steps(*given))
            ),
            "on the way down a step counts when it is whole too: round towards zero": (
                lambda *given: math.floor(steps(*given))
            ),
            "the camera watches the logarithm of the light, not the light": (
                lambda before, after, kappa: math.trunc((after - before) / kappa)
            ),
            "brighter is positive, darker negative": lambda *given: -math.trunc(steps(*given)),
            "darker events count with a minus": lambda *given: abs(math.trunc(steps(*given))),
            "events are whole: count the steps that were reached": steps,
            "the logarithm is the natural one": (
                lambda before, after, kappa: math.trunc(math.log10(after / before) / kappa)
            ),
        },
        "how many whole steps of kappa fit between log(before) and log(after)?",
    )


def mean_frame(answer: Any) -> None:
    """Exercise 3 of chapter 4.3: `{what: "yes" or "no"}`, what the mean frame tells."""
    _quiz(
        answer,
        {
            "edges": ("yes", "events come where edges pass, and the mean keeps the place"),
            "direction": ("no", "both ways pass the same edges as often, and order is lost"),
            "rounds": ("yes", "twice the rounds send twice the events into the same T frames"),
            "contrast": ("yes", "a strong edge passes more steps of kappa: more events there"),
            "sign": ("no", "at each pixel brighter and darker events are equally many"),
        },
        ("yes", "no"),
        "ask of each: does it change how many events of a polarity a pixel sends in all?",
    )


class _UnsolvedError(Exception):
    """The reader has not written an answer yet."""


class _FaultError(Exception):
    """What is wrong with an answer, found below the check itself."""


def _run(answer: Any, judge: Callable[[Any], str | None], hint: str) -> None:
    try:
        fault = judge(answer)
        said = "Right." if fault is None else f"Not yet: {fault}."
    except _FaultError as fault:
        said = f"Not yet: {fault}."
    except _UnsolvedError:
        said = f"Not solved yet. Hint: {hint}."
    except Exception as error:  # the reader's own code may raise anything
        said = f"It raised {type(error).__name__}: {error}. Hint: {hint}."
    print(textwrap.fill(said, 78))


def _quiz(
    answer: Any, right: Mapping[str, tuple[str, str]], choices: tuple[str, ...], hint: str
) -> None:
    """Judge a dictionary of words against the right ones, each with its reason."""

    def judge(given: Any) -> str | None:
        _check_keys(given, right)
        for name, (wanted, why) in right.items():
            if given[name] is ...:
                return f"{name!r} has no answer yet"
            if given[name] not in choices:
                return f"{given[name]!r} is not one of {_listed(choices)}"
            if given[name] != wanted:
                return f"{name!r}: {why}"
        return None

    _run(answer, judge, hint)


def _quiz_of_sets(
    answer: Any,
    right: Mapping[str, tuple[set[str], str]],
    choices: tuple[str, ...],
    hint: str,
) -> None:
    """Judge a dictionary of sets of words against the right ones, each with its reason."""

    def judge(given: Any) -> str | None:
        _check_keys(given, right)
        for name, (wanted, why) in right.items():
            if given[name] is ...:
                return f"{name!r} has no answer yet; for nothing write set()"
            said = {given[name]} if isinstance(given[name], str) else set(given[name])
            if unknown := sorted(said - set(choices)):
                return f"{unknown[0]!r} is not one of {_listed(choices)}; for more write a set"
            if said != wanted:
                return f"{name!r}: {why}"
        return None

    _run(answer, judge, hint)


def _check_keys(given: Any, right: Mapping[str, Any]) -> None:
    if not given or all(value is ... for value in given.values()):
        raise _UnsolvedError
    if missing := sorted(set(right) - set(given)):
        raise _FaultError(f"{', '.join(missing)} is missing from the answer")


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(map(repr, choices))


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
