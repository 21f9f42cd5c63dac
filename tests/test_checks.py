"""The checks of the exercises: right answers pass, typical wrong ones are named, nothing raises."""

import math

import pytest
import torch
import torch.nn.functional as F

from ckdlite import checks


def said(capsys, check, answer):
    check(answer)
    return " ".join(capsys.readouterr().out.split())


def leaky(x, decay, inner=lambda u, x_t, decay: decay * u + x_t):
    u, out = 0.0, []
    for x_t in x.tolist():
        u = inner(u, x_t, decay)
        out.append(u)
    return torch.tensor(out)


def hard_step(u, x, decay, threshold):
    u = u * decay + x
    return (1.0, 0.0) if u > threshold else (0.0, u)


def closed_form(x, decay, threshold):
    rest = 1 - threshold * (1 - decay) / x
    return math.inf if rest <= 0 else math.floor(math.log(rest) / math.log(decay)) + 1


def softmax_map(maps, temperature):
    e = (maps / temperature - (maps / temperature).amax((1, 2), keepdim=True)).exp()
    return e / e.sum((1, 2), keepdim=True)


def kl(p, q):
    return (p * (p.log() - q.log())).sum((1, 2)).mean()


RIGHT = {
    checks.leaky_sum: leaky,
    checks.lif_step: hard_step,
    checks.smallest_current: lambda decay, threshold: threshold - decay * threshold,
    checks.steps_to_fire: closed_form,
    checks.spike_map: lambda s: torch.einsum("tbchw->bhw", s),
    checks.to_distribution: softmax_map,
    checks.divergence: lambda s, t, temperature: (
        temperature**2 * kl(softmax_map(t, temperature), softmax_map(s, temperature))
    ),
}

WRONG = [
    (checks.leaky_sum, lambda x, d: leaky(x, d, lambda u, x, d: d * (u + x)), "shrinks the new"),
    (checks.leaky_sum, lambda x, d: leaky(x, 1.0), "does not leak"),
    (checks.leaky_sum, lambda x, d: leaky(x, 0.0), "nothing is remembered"),
    (checks.leaky_sum, lambda x, d: leaky(x, d)[-1], "only the last potential"),
    (checks.leaky_sum, lambda x, d: leaky(x, d) + 1, "got"),
    (checks.lif_step, lambda u, x, d, th: (u * d + x > th, u * d + x), "not reset after"),
    (
        checks.lif_step,
        lambda u, x, d, th: (float(d * u + x > th), d * u + x - th * (d * u + x > th)),
        "a soft reset",
    ),
    (
        checks.lif_step,
        lambda u, x, d, th: (float(d * u + x >= th), 0.0 if d * u + x >= th else d * u + x),
        "must not fire",
    ),
    (
        checks.lif_step,
        lambda u, x, d, th: (0.0, 0.0 if d * u + x > th else d * u + x),
        "the reset is applied before the spike is read",
    ),
    (checks.lif_step, lambda *a: hard_step(*a)[::-1], "the spike comes first"),
    (checks.smallest_current, lambda d, th: th, "fires at the first step"),
    (checks.smallest_current, lambda d, th: th * d, "what leaks away"),
    (checks.smallest_current, lambda d, th: th / (1 - d), "do not divide"),
    (checks.smallest_current, lambda d, th: 1 - d, "not always 1"),
    (checks.leaky_sum, lambda x, d: leaky(x, 1 - d), "the wrong side"),
    (checks.lif_step, lambda u, x, d, th: hard_step(u, x, 1.0, th), "does not leak"),
    (checks.lif_step, lambda u, x, d, th: hard_step(u, x, d, 1.0), "not always 1"),
    (
        checks.lif_step,
        lambda u, x, d, th: (float(u > th), 0.0 if u > th else d * u + x),
        "read from the old potential",
    ),
    (checks.steps_to_fire, lambda *a: closed_form(*a) - 1, "counts as 1"),
    (
        checks.steps_to_fire,
        lambda x, d, th: closed_form(x * (1 + 1e-9), d, th),
        "equal to the threshold",
    ),
    (
        checks.steps_to_fire,
        lambda *a: None if closed_form(*a) == math.inf else closed_form(*a),
        "for 0.3, 0.5, 1.0 nothing came back",
    ),
    (checks.spike_map, lambda s: s.mean(0).sum(1), "time is averaged"),
    (checks.spike_map, lambda s: s.amax((0, 2)), "only where"),
    (checks.spike_map, lambda s: 2 * s.sum((0, 2)), "the shape is right, the values are not"),
    (
        checks.to_distribution,
        lambda m, t: F.softmax(m.flatten() / t, 0).view_as(m),
        "the whole batch",
    ),
    (checks.to_distribution, lambda m, t: softmax_map(m, t).log(), "logarithms"),
    (
        checks.divergence,
        lambda s, t, T: T * kl(softmax_map(t, T), softmax_map(s, T)),
        "not the temperature",
    ),
    (
        checks.divergence,
        lambda s, t, T: -(T**2) * (softmax_map(t, T) * softmax_map(s, T).log()).sum((1, 2)).mean(),
        "cross-entropy",
    ),
    (
        checks.divergence,
        lambda s, t, T: T**2 * kl(softmax_map(t, T), softmax_map(s, T)) * len(s),
        "the batch is summed",
    ),
    (checks.steps_to_fire, lambda x, d, th: math.floor(th / x) + 1, "leak is left out"),
    (
        checks.steps_to_fire,
        lambda *a: -1 if closed_form(*a) == math.inf else closed_form(*a),
        "never fires",
    ),
    (checks.spike_map, lambda s: s.mean((0, 2)), "averaged"),
    (checks.spike_map, lambda s: s.sum(2), "time is still there"),
    (checks.spike_map, lambda s: s.sum((1, 2)), "over the batch"),
    (checks.spike_map, lambda s: s[-1].sum(1), "only the last timestep"),
    (checks.spike_map, lambda s: s.sum(0), "channels are still there"),
    (checks.to_distribution, lambda m, t: softmax_map(m, 1.0), "not used"),
    (checks.to_distribution, lambda m, t: softmax_map(m, 1 / t), "do not multiply"),
    (checks.to_distribution, lambda m, t: F.softmax(m / t, 2), "each row"),
    (checks.to_distribution, lambda m, t: F.softmax(m / t, 0), "runs over the batch"),
    (checks.to_distribution, lambda m, t: softmax_map(m, t).flatten(1), "shape [2, 12]"),
    (
        checks.divergence,
        lambda s, t, T: T**2 * kl(softmax_map(s, T), softmax_map(t, T)),
        "wrong way round",
    ),
    (checks.divergence, lambda s, t, T: kl(softmax_map(t, T), softmax_map(s, T)), "squared is"),
    (
        checks.divergence,
        lambda s, t, T: T**2 * kl(softmax_map(t, T), softmax_map(s, T)) / 9,
        "became a mean",
    ),
    (
        checks.divergence,
        lambda s, t, T: T**2 * kl(softmax_map(t, 1.0), softmax_map(s, 1.0)),
        "not used in the softmax",
    ),
]


@pytest.mark.parametrize("check", RIGHT, ids=lambda c: c.__name__)
def test_right_answers_pass(check, capsys):
    assert said(capsys, check, RIGHT[check]) == "Right."


@pytest.mark.parametrize(("check", "answer", "words"), WRONG)
def test_wrong_answers_are_named(check, answer, words, capsys):
    line = said(capsys, check, answer)
    assert line.startswith("Not yet: ") and words in line


@pytest.mark.parametrize("check", RIGHT, ids=lambda c: c.__name__)
def test_unsolved_and_broken_answers_get_the_hint(check, capsys):
    def broken(*_):
        raise KeyError("x")

    for unsolved in (lambda *_: None, lambda *_: ...):
        assert said(capsys, check, unsolved).startswith("Not solved yet. Hint: ")
    assert said(capsys, check, broken).startswith("It raised KeyError: 'x'. Hint: ")
    assert said(capsys, check, lambda *_: "text").startswith("It raised ")


def test_what_is_ignored(capsys):
    right = {"none": "shift", "sample": ["factor", "shift"], "batch": "shift"}
    right["zscore"] = {"shift", "factor"}
    check = checks.what_is_ignored
    assert said(capsys, check, right) == "Right."
    assert "'none': try it" in said(capsys, check, right | {"none": {"shift", "factor"}})
    assert "'batch': the softmax" in said(capsys, check, right | {"batch": set()})
    assert "a factor cancels" in said(capsys, check, right | {"zscore": {"shift"}})
    assert "'scale' is not one of" in said(capsys, check, right | {"none": {"scale"}})
    assert "none is missing" in said(capsys, check, {k: right[k] for k in list(right)[1:]})
    assert "'none' has no answer yet" in said(capsys, check, right | {"none": ...})
    for unsolved in (dict.fromkeys(right, ...), {}, None):
        assert said(capsys, check, unsolved).startswith("Not solved yet. Hint: ")
