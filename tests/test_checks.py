"""The checks of the exercises: right answers pass, typical wrong ones are named, nothing raises."""

import math

import numpy as np
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


def kd(s, t, tau, axis=1):
    p, q = (F.softmax(logits / tau, axis) for logits in (t, s))
    return (p * (p / q).log()).sum() / len(s)


def soft_logits(z, n, strength, axis=1, scale=lambda std: std):
    rows = z.movedim(axis, 0)
    e = rows.mean(0) + scale(rows.std(0)) * n.movedim(axis, 0)
    return z + strength * e.movedim(0, axis)


def gini(z, strength, tau):
    p = F.softmax(z / tau, 1)
    return 0.5 * (strength * z.std(1)) ** 2 * (p * (1 - p)).sum(1)


def grad_cam(a, rest, labels, of=lambda z, k: z.gather(1, k[:, None]), sums=None, cut=F.relu):
    a = a.requires_grad_()
    (g,) = torch.autograd.grad(of(rest(a), labels).sum(), a)
    if sums is None:
        return cut(torch.einsum("bchw,bc->bhw", a, g.mean((2, 3))))
    return cut(sums(a, g))


def near(maps, masks, distance):
    """The distance, by the given measure, from each map's peak to the object's pixels."""
    found = []
    for m, mask in zip(maps, masks, strict=True):
        r, c = divmod(int(m.argmax()), m.shape[1])
        rows, columns = mask.nonzero(as_tuple=True)
        found.append(distance((rows - r).abs(), (columns - c).abs()).min())
    return torch.stack(found)


RIGHT = {
    checks.leaky_sum: leaky,
    checks.lif_step: hard_step,
    checks.smallest_current: lambda decay, threshold: threshold - decay * threshold,
    checks.steps_to_fire: closed_form,
    checks.class_maps: lambda f, w: F.conv2d(f, w[:, :, None, None]),
    checks.grad_cam_map: grad_cam,
    checks.tolerant_pointing: lambda m, k, t: near(m, k, torch.maximum) <= t,
    checks.spike_map: lambda s: torch.einsum("tbchw->bhw", s),
    checks.to_distribution: softmax_map,
    checks.divergence: lambda s, t, temperature: (
        temperature**2 * kl(softmax_map(t, temperature), softmax_map(s, temperature))
    ),
    checks.hinton: lambda s, t, tau: tau**2 * kd(s, t, tau),
    checks.noisy_logits: lambda z, n, strength: soft_logits(z, n, strength),
    checks.noise_penalty: lambda z, strength, tau: gini(z, strength, tau).mean(),
}

WRONG = [
    (checks.class_maps, lambda f, w: F.conv2d(f, w[:, :, None, None]).relu(), "cut off at zero"),
    (checks.class_maps, lambda f, w: F.conv2d(f, w[:, :, None, None]) / 12, "is not divided"),
    (checks.class_maps, lambda f, w: torch.einsum("kc,bchw->kbhw", w, f), "wrong order"),
    (checks.class_maps, lambda f, w: f.movedim(1, 3) @ w.T, "the classes come last"),
    (checks.class_maps, lambda f, w: torch.einsum("kc,bchw->bhw", w, f), "classes are added up"),
    (checks.class_maps, lambda f, w: f.mean((2, 3)) @ w.T, "logits without the bias"),
    (checks.class_maps, lambda f, w: f.sum((2, 3)) @ w.T, "the positions are added up"),
    (checks.class_maps, lambda f, w: f, "shape [2, 5, 3, 4], wanted [2, 6, 3, 4]"),
    (checks.grad_cam_map, lambda *a: grad_cam(*a, cut=lambda m: m), "ReLU is missing"),
    (checks.grad_cam_map, lambda *a: 30 * grad_cam(*a), "summed over positions"),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, sums=lambda a, g: (g * a).sum(1)),
        "kept at each position",
    ),
    (checks.grad_cam_map, lambda *a: grad_cam(*a, of=lambda z, k: z), "labels are not used"),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, of=lambda z, k: z.max(1).values),
        "the predicted class",
    ),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, of=lambda z, k: z.softmax(1).gather(1, k[:, None])),
        "the score is a probability",
    ),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, of=lambda z, k: F.cross_entropy(z, k, reduction="sum")),
        "the score is a loss",
    ),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, sums=lambda a, g: (g.mean((2, 3), True).relu() * a).sum(1)),
        "acts before the channels",
    ),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, sums=lambda a, g: (g.mean((2, 3), True) * a).relu().sum(1)),
        "acts before the channels",
    ),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, sums=lambda a, g: (g.abs().mean((2, 3), True) * a).sum(1)),
        "sign of the gradient",
    ),
    (checks.grad_cam_map, lambda *a: grad_cam(*a) / 4, "channels are averaged"),
    (
        checks.grad_cam_map,
        lambda *a: grad_cam(*a, sums=lambda a, g: (g.mean((0, 2, 3))[:, None, None] * a).sum(1)),
        "averaged over the batch",
    ),
    (
        checks.tolerant_pointing,
        lambda m, k, t: near(m, k, torch.maximum) <= 0,
        "the tolerance is not used",
    ),
    (checks.tolerant_pointing, lambda m, k, t: near(m, k, torch.maximum) <= t // 2, "only half"),
    (checks.tolerant_pointing, lambda m, k, t: near(m, k, torch.maximum) <= 2 * t, "given twice"),
    (checks.tolerant_pointing, lambda m, k, t: near(m, k, torch.add) <= t, "are added up"),
    (
        checks.tolerant_pointing,
        lambda m, k, t: near(m, k, lambda r, c: (r * r + c * c).sqrt()) <= t,
        "straight distance",
    ),
    (
        checks.tolerant_pointing,
        lambda m, k, t: near(m, k, lambda r, c: torch.maximum(torch.minimum(r, 9 - r), c)) <= t,
        "torch.roll goes round",
    ),
    (checks.tolerant_pointing, lambda m, k, t: near(m, k, torch.maximum) > t, "swapped"),
    (
        checks.tolerant_pointing,
        lambda m, k, t: (near(m, k, torch.maximum) <= t).double().mean(),
        "the mean; an answer an image",
    ),
    (checks.tolerant_pointing, lambda m, k, t: m, "the result has shape [11, 9, 11]"),
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
    (checks.hinton, lambda s, t, tau: tau**2 * kd(t, s, tau), "wrong way round"),
    (checks.hinton, lambda s, t, tau: kd(s, t, tau), "squared is missing"),
    (checks.hinton, lambda s, t, tau: tau * kd(s, t, tau), "not the temperature"),
    (
        checks.hinton,
        lambda s, t, tau: (
            -(tau**2) * (F.softmax(t / tau, 1) * F.log_softmax(s / tau, 1)).sum(1).mean()
        ),
        "cross-entropy",
    ),
    (
        checks.hinton,
        lambda s, t, tau: (
            tau**2
            * F.kl_div(F.log_softmax(s / tau, 1), F.softmax(t / tau, 1), reduction="none").mean()
        ),
        "batchmean",
    ),
    (checks.hinton, lambda s, t, tau: tau**2 * kd(s, t, tau) * len(s), "the batch is summed"),
    (checks.hinton, lambda s, t, tau: tau**2 * kd(s, t, 1), "not used in the softmax"),
    (checks.hinton, lambda s, t, tau: tau**2 * kd(s, t, 1 / tau), "do not multiply"),
    (checks.hinton, lambda s, t, tau: tau**2 * kd(s, t, tau, axis=0), "over the batch"),
    (checks.hinton, lambda s, t, tau: tau**2 * kd(s, t, tau) + 1, "got"),
    (
        checks.noisy_logits,
        lambda z, n, strength: z + strength * z.std(1, keepdim=True) * n,
        "the mean is left out",
    ),
    (checks.noisy_logits, lambda z, n, strength: z + n * strength, "added as it is"),
    (
        checks.noisy_logits,
        lambda z, n, strength: soft_logits(z, n, strength, scale=lambda std: 1),
        "has no scale",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: soft_logits(z, n, strength, scale=lambda std: std**2),
        "scaled by the variance",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: soft_logits(z, n, strength, axis=0),
        "run over the batch",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: soft_logits(z.view(-1), n.view(-1), strength, axis=0).view_as(z),
        "of the whole batch",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: soft_logits(
            z, n, strength, scale=lambda std: std * math.sqrt(1 - 1 / z.shape[1])
        ),
        "K in its denominator",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: soft_logits(z, n, strength) - z,
        "that is the noise alone",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: soft_logits(z, n, 1.0),
        "the strength is not used",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: z + z.mean(1, True) + strength * z.std(1, keepdim=True) * n,
        "mean is not multiplied",
    ),
    (
        checks.noisy_logits,
        lambda z, n, strength: (1 - strength) * z + soft_logits(z, n, strength) - z,
        "keep their full weight",
    ),
    (checks.noisy_logits, lambda z, n, strength: soft_logits(z, n, strength)[0], "shape [5]"),
    (
        checks.noise_penalty,
        lambda z, strength, tau: 2 * gini(z, strength, tau).mean(),
        "1/2 of the second order",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: gini(z, strength**0.5, tau).mean(),
        "the strength is squared",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: (gini(z, strength, tau) / z.std(1)).mean(),
        "holds std squared",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: (gini(z, strength, tau) / z.var(1)).mean(),
        "spread of the logits is missing",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: gini(z, strength / tau, tau).mean(),
        "divide no more",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: gini(z, strength * tau, tau).mean(),
        "cancels against",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: gini(z, strength, 1.0).mean(),
        "p is the softmax",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: (strength**2 * z.var(1) / 2 - gini(z, strength, tau)).mean(),
        "punishes the sure",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: gini(z, strength, tau).sum(),
        "the batch is summed",
    ),
    (
        checks.noise_penalty,
        lambda z, strength, tau: gini(z, strength, tau).mean() * (1 - 1 / z.shape[1]),
        "K in its denominator",
    ),
    (checks.noise_penalty, lambda z, strength, tau: gini(z, strength, tau), "shape [4]"),
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


def test_what_moves_the_map(capsys):
    right = {"bias": "same", "features": "same", "temperature": "scaled"}
    right |= {"shared": "other", "probability": "other"}
    check = checks.what_moves_the_map
    assert said(capsys, check, right) == "Right."
    wrong = {
        "bias": ("scaled", "does not see its bias"),
        "features": ("scaled", "each feature doubled"),
        "temperature": ("same", "shrinks by one factor"),
        "shared": ("same", "each logit's gradient has v in it"),
        "probability": ("scaled", "weights of the other classes"),
    }
    for name, (answer, words) in wrong.items():
        line = said(capsys, check, right | {name: answer})
        assert line.startswith(f"Not yet: '{name}': ") and words in line
    assert "'twice' is not one of" in said(capsys, check, right | {"bias": "twice"})
    assert "bias is missing" in said(capsys, check, {k: right[k] for k in list(right)[1:]})
    assert "'shared' has no answer yet" in said(capsys, check, right | {"shared": ...})
    for unsolved in (dict.fromkeys(right, ...), {}, None):
        assert said(capsys, check, unsolved).startswith("Not solved yet. Hint: ")


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


def test_what_changes(capsys):
    right = {"shift": (), "mean": set(), "graph": "gradient", "variance": ["gradient", "value"]}
    check = checks.what_changes
    assert said(capsys, check, right) == "Right."
    assert "'shift': try it; std ignores" in said(capsys, check, right | {"shift": "value"})
    assert "sum to zero" in said(capsys, check, right | {"mean": {"gradient"}})
    assert "never changes a value" in said(capsys, check, right | {"graph": set()})
    assert "'graph': try it" in said(capsys, check, right | {"graph": {"value", "gradient"}})
    assert "times louder" in said(capsys, check, right | {"variance": {"value"}})
    assert "'loss' is not one of" in said(capsys, check, right | {"graph": {"loss"}})
    assert "shift is missing" in said(capsys, check, {k: right[k] for k in list(right)[1:]})
    assert "'mean' has no answer yet" in said(capsys, check, right | {"mean": ...})
    for unsolved in (dict.fromkeys(right, ...), {}, None):
        assert said(capsys, check, unsolved).startswith("Not solved yet. Hint: ")


def test_total_loss(capsys):
    def check(answer):
        return said(capsys, checks.total_loss, answer)

    assert check(lambda ce, m, z, beta, gamma: gamma * z + ce + beta * m) == "Right."
    assert "the weights are not used" in check(lambda ce, m, z, beta, gamma: ce + m + z)
    assert "swapped" in check(lambda ce, m, z, beta, gamma: ce + gamma * m + beta * z)
    assert "the labels are missing" in check(lambda ce, m, z, beta, gamma: beta * m + gamma * z)
    assert "keeps its weight of 1" in check(
        lambda ce, m, z, beta, gamma: (1 - beta - gamma) * ce + beta * m + gamma * z
    )
    assert "Not solved yet" in check(lambda *terms: ...)


def test_frozen_teacher(capsys):
    def check(answer):
        return said(capsys, checks.frozen_teacher, answer)

    def without_return(teacher):
        teacher.eval().requires_grad_(False)

    def zeroed(teacher):
        for p in teacher.parameters():
            p.data.zero_()
        return teacher.eval().requires_grad_(False)

    def only_the_last(teacher):
        teacher[1].eval()
        return teacher.requires_grad_(False)

    assert check(lambda teacher: teacher.requires_grad_(False).eval()) == "Right."
    assert "requires_grad is True" in check(lambda teacher: teacher.eval())
    assert "wanted eval" in check(lambda teacher: teacher.requires_grad_(False))
    assert "wanted eval" in check(only_the_last)
    assert "and its batch norm is in train mode" in check(lambda teacher: teacher)
    assert "return the teacher" in check(without_return)
    assert "weights were changed" in check(zeroed)
    assert "a tuple came back" in check(lambda teacher: (teacher, 1))
    assert "Not solved yet" in check(lambda teacher: ...)


def test_cosine_rate(capsys):
    def check(answer):
        return said(capsys, checks.cosine_rate, answer)

    def half(epoch, epochs):
        return math.cos(math.pi * epoch / epochs / 2) ** 2  # the same, by another identity

    assert check(lambda start, epoch, epochs: start * half(epoch, epochs)) == "Right."
    assert "straight line" in check(lambda start, e, es: start - start * e / es)
    assert "a quarter" in check(lambda start, e, es: start * half(e, es) ** 0.5)
    assert "below zero" in check(lambda start, e, es: start * (2 * half(e, es) - 1))
    assert "not halved" in check(lambda start, e, es: 2 * start * half(e, es))
    assert "it rises" in check(lambda start, e, es: start * (1 - half(e, es)))
    assert "not always 0.1" in check(lambda start, e, es: 0.1 * half(e, es))
    assert "Not solved yet" in check(lambda start, e, es: None)


def test_seed_verdict(capsys):
    def check(answer):
        return said(capsys, checks.seed_verdict, answer)

    def by(better):
        def answer(method, base):
            return (
                "above" if better(method, base) else "below" if better(base, method) else "mingled"
            )

        return answer

    assert check(by(lambda a, b: all(x > y for x in a for y in b))) == "Right."
    assert "the mean is not enough" in check(by(lambda a, b: sum(a) > sum(b)))
    assert "the mean is not enough" in check(by(lambda a, b: max(a) > max(b)))
    assert "a tie is not better" in check(by(lambda a, b: min(a) >= max(b)))
    assert "got 'higher'" in check(lambda a, b: "higher")
    assert "is 'below', got 'mingled'" in check(
        lambda a, b: "above" if min(a) > max(b) else "mingled"
    )
    assert "Not solved yet" in check(lambda a, b: ...)


def test_rectangle_spike(capsys):
    def check(answer):
        return said(capsys, checks.rectangle_spike, answer)

    class Rectangle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return (v > 0).to(v)

        @staticmethod
        def backward(ctx, gradient):
            (v,) = ctx.saved_tensors
            return gradient * (v.abs() < 0.5)

    def by(ramp, at=lambda v: v > 0):
        return lambda v: at(v).float() + (ramp(v) - ramp(v).detach())

    def ramp(v):
        return v.clamp(-0.5, 0.5)

    assert check(Rectangle.apply) == "Right."
    assert check(by(ramp)) == "Right."
    assert "finds no way back" in check(lambda v: (v > 0).float())
    assert "slope is zero" in check(lambda v: (v > 0).float() + 0 * v)
    assert "left in the values" in check(lambda v: (v > 0).float() + ramp(v))
    assert "ramp alone" in check(ramp)
    assert "too wide" in check(by(lambda v: v.clamp(-1, 1)))
    assert "triangle's" in check(by(lambda v: v.clamp(-1, 1) * (1 - v.clamp(-1, 1).abs() / 2)))
    assert "1 everywhere" in check(by(lambda v: v))
    assert "must not fire" in check(by(ramp, at=lambda v: v >= 0))
    assert "Not solved yet" in check(lambda v: ...)


def test_first_gradient(capsys):
    def check(answer):
        return said(capsys, checks.first_gradient, answer)

    def by_autograd(u1, s1, psi1, psi2, e1, e2, beta):
        # Linear stand-ins for two spikes whose values and slopes are given.
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        first = s1 + psi1 * x
        second = psi2 * (beta * (1 - first) * (u1 + x))
        (found,) = torch.autograd.grad(e1 * first + e2 * second, x)
        return found

    def by(formula):
        def answer(u1, s1, psi1, psi2, e1, e2, beta):
            return formula(u1, s1, psi1, e1, beta * e2 * psi2)

        return answer

    assert check(by_autograd) == "Right."
    assert "the reset is left out" in check(by(lambda u, s, p, e, a: a * (1 - s) + e * p))
    assert "subtracted" in check(by(lambda u, s, p, e, a: a * (1 - s) + (e + a * u) * p))
    assert "factor 1 - s1" in check(by(lambda u, s, p, e, a: a + (e - a * u) * p))
    assert "step 1 alone" in check(by(lambda u, s, p, e, a: e * p))
    assert "leak is left out" in check(lambda *given: by_autograd(*given[:-1], 1.0))
    assert "second current" in check(lambda u1, s1, psi1, psi2, e1, e2, beta: psi2 * e2)
    assert "Not solved yet" in check(lambda *given: None)


def test_fold_time(capsys):
    def check(answer):
        return said(capsys, checks.fold_time, answer)

    def folded(layer, x):
        steps, batch, *rest = x.shape
        return layer(x.reshape(steps * batch, *rest)).reshape(x.shape)

    assert check(folded) == "Right."
    assert "another mean at each" in check(lambda f, x: torch.stack([f(s) for s in x]))
    assert "not folded back" in check(lambda f, x: f(x.flatten(0, 1)))
    assert "time is the first axis" in check(
        lambda f, x: f(x.flatten(0, 1)).unflatten(0, x.shape[:2][::-1])
    )
    assert "averaged away" in check(lambda f, x: f(x.mean(0)))
    assert "Not solved yet" in check(lambda f, x: ...)


def test_accuracy_over_time(capsys):
    def check(answer):
        return said(capsys, checks.accuracy_over_time, answer)

    def share(z, y):
        return torch.stack([(step.argmax(1) == y).double().mean() for step in z])

    def means(z):
        return torch.stack([z[: t + 1].mean(0) for t in range(len(z))])

    def votes(z, y):
        counts = F.one_hot(z.argmax(2), z.shape[2]).cumsum(0)
        return (counts.argmax(2) == y).double().mean(1)

    assert check(lambda z, y: share(means(z), y)) == "Right."
    assert "by itself" in check(share)
    assert "whole run alone" in check(lambda z, y: (z.sum(0).argmax(1) == y).double().mean())
    assert "not the probabilities" in check(lambda z, y: share(means(z.softmax(2)), y))
    assert "do not vote" in check(votes)
    assert "not percent" in check(lambda z, y: 100 * share(means(z), y))
    assert "from the end" in check(lambda z, y: share(means(z.flip(0)), y))
    assert "number of images" in check(lambda z, y: len(y) * share(means(z), y))
    assert "Not solved yet" in check(lambda z, y: None)


def test_synaptic_operations(capsys):
    def check(answer):
        return said(capsys, checks.synaptic_operations, answer)

    def counted(s, c, k):
        return sum(float(image.sum()) for image in s.unbind(1)) / s.shape[1] * c * k * k

    assert check(counted) == "Right."
    assert "one image's" in check(lambda s, c, k: counted(s, c, k) * s.shape[1])
    assert "zeros too" in check(lambda s, c, k: s[:, 0].numel() * c * k * k)
    assert "output channels" in check(lambda s, c, k: counted(s, 1, k))
    assert "k * k positions" in check(lambda s, c, k: counted(s, c, k) / k)
    assert "all steps count" in check(lambda s, c, k: counted(s, c, k) / len(s))
    assert "in the spikes already" in check(lambda s, c, k: counted(s, c, k) * s.shape[2])
    assert "Not solved yet" in check(lambda s, c, k: ...)


def test_last_cheaper(capsys):
    def check(answer):
        return said(capsys, checks.last_cheaper, answer)

    def by(saves):
        def answer(macs, first, spikes):
            steps = 0
            while saves(macs, first, spikes, steps + 1):
                steps += 1
            return steps

        return answer

    assert check(by(lambda m, f, s, t: 4.6 * f + 0.9 * s * t < 4.6 * m)) == "Right."
    assert "whole number" in check(lambda m, f, s: max(0, 4.6 * (m - f) / (0.9 * s)))
    assert "nothing is saved" in check(
        by(lambda m, f, s, t: 4.6 * f + 0.9 * s * t <= 4.6 * m * (1 + 1e-12))
    )
    assert "cost too" in check(by(lambda m, f, s, t: 0.9 * s * t < 4.6 * m))
    assert "paid once" in check(by(lambda m, f, s, t: (4.6 * f + 0.9 * s) * t < 4.6 * m))
    assert "less energy" in check(by(lambda m, f, s, t: f + s * t < m))
    right = by(lambda m, f, s, t: 4.6 * f + 0.9 * s * t < 4.6 * m)
    assert "one step fewer" in check(lambda *given: right(*given) + 1)
    assert "Not solved yet" in check(lambda m, f, s: ...)


def test_soft_targets(capsys):
    def check(answer):
        return said(capsys, checks.soft_targets, answer)

    def soft(z, tau, axis=1):
        e = (z / tau).exp()
        return e / e.sum(axis, keepdim=True)

    assert check(soft) == "Right."
    assert "not used" in check(lambda z, tau: soft(z, 1))
    assert "not multiplied" in check(lambda z, tau: soft(z, 1 / tau))
    assert "before the softmax" in check(lambda z, tau: soft(z, 1) / tau)
    assert "over the batch" in check(lambda z, tau: soft(z, tau, 0))
    assert "all images together" in check(lambda z, tau: soft(z, tau, (0, 1)))
    assert "logarithms" in check(lambda z, tau: soft(z, tau).log())
    assert "Not solved yet" in check(lambda z, tau: None)


def test_hinton_gradient(capsys):
    def check(answer):
        return said(capsys, checks.hinton_gradient, answer)

    def by_autograd(s, t, tau, loss=lambda s, t, tau: tau**2 * kd(s, t, tau)):
        s = s.detach().requires_grad_()
        return torch.autograd.grad(loss(s, t, tau), s)[0]

    assert check(by_autograd) == "Right."
    assert "sign is wrong" in check(lambda *given: -by_autograd(*given))
    assert "divide by its size" in check(lambda s, t, tau: len(s) * by_autograd(s, t, tau))
    assert "leave one tau" in check(lambda s, t, tau: tau * by_autograd(s, t, tau))
    assert "tau is missing" in check(lambda s, t, tau: by_autograd(s, t, tau) / tau)
    assert "without tau squared" in check(lambda s, t, tau: by_autograd(s, t, tau, kd))
    assert "not used in the softmax" in check(
        lambda s, t, tau: tau * by_autograd(s, t, tau, lambda s, t, tau: kd(s, t, 1))
    )
    assert "Not solved yet" in check(lambda *given: ...)


def test_nearest_rate(capsys):
    def check(answer):
        return said(capsys, checks.nearest_rate, answer)

    def nearest(f, n):
        grid = torch.arange(n + 1, dtype=f.dtype) / n
        return grid[(f[..., None] - grid).abs().argmin(-1)]

    assert check(nearest) == "Right."
    assert "never above 1" in check(lambda f, n: torch.round(f * n) / n)
    assert "the rate below" in check(lambda f, n: ((f * n).int() / n).clamp(max=1))
    assert "number of spikes" in check(lambda f, n: n * nearest(f, n))
    assert "multiple of 1/T" in check(lambda f, n: f.clamp(max=1))
    assert "T + 1 rates" in check(lambda f, n: nearest(f, n - 1))
    assert "Not solved yet" in check(lambda f, n: None)


def test_best_scale(capsys):
    def check(answer):
        return said(capsys, checks.best_scale, answer)

    def by_lstsq(s, t):
        return torch.linalg.lstsq(s.reshape(-1, 1), t.reshape(-1, 1)).solution.item()

    assert check(by_lstsq) == "Right."
    assert "upside down" in check(lambda s, t: 1 / by_lstsq(s, t))
    assert "not the teacher's" in check(lambda s, t: by_lstsq(t, s))
    assert "two sizes" in check(lambda s, t: (t.square().sum() / s.square().sum()) ** 0.5)
    assert "of the means" in check(lambda s, t: t.sum() / s.sum())
    assert "no constant" in check(lambda s, t: by_lstsq(s - s.mean(), t - t.mean()))
    assert "not one an image" in check(
        lambda s, t: torch.tensor([by_lstsq(*pair) for pair in zip(s, t, strict=True)])
    )
    assert "Not solved yet" in check(lambda s, t: ...)


def test_merged_head(capsys):
    def check(answer):
        return said(capsys, checks.merged_head, answer)

    def probed(w1, b1, w2, b2):
        """From the outputs for nothing and for each unit vector."""

        def both(x):
            return F.linear(F.linear(x, w1, b1), w2, b2)

        bias = both(torch.zeros(4, dtype=w1.dtype))
        return (both(torch.eye(4, dtype=w1.dtype)) - bias).T, bias

    assert check(probed) == "Right."
    assert "wrong order" in check(lambda w1, b1, w2, b2: (w1 @ w2, w2 @ b1 + b2))
    assert "multiply it by W2" in check(lambda w1, b1, w2, b2: (w2 @ w1, b1 + b2))
    assert "first bias is missing" in check(lambda w1, b1, w2, b2: (w2 @ w1, b2))
    assert "second bias is missing" in check(lambda w1, b1, w2, b2: (w2 @ w1, w2 @ b1))
    assert "matrix product" in check(lambda w1, b1, w2, b2: (w2 * w1, w2 @ b1 + b2))
    assert "Not solved yet" in check(lambda *given: None)


def test_batch_scaling(capsys):
    from ckdlite.distill import normalise_maps

    def check(answer):
        return said(capsys, checks.batch_scaling, answer)

    assert check(lambda m: normalise_maps(m, "batch")) == "Right."
    assert "missing" in check(lambda m: normalise_maps(m, "sample"))
    assert "takes the whole batch" in check(
        lambda m: torch.stack([normalise_maps(one[None], "batch")[0] for one in m])
    )
    assert "0.001 below the line" in check(lambda m: (m - m.min()) / (m.max() - m.min()))
    assert "not taken away" in check(lambda m: m / (m.max() + 0.001))
    assert "highest less lowest" in check(lambda m: (m - m.min()) / (m.max() + 0.001))
    assert "Not solved yet" in check(lambda m: ...)


def test_best_epoch_bonus(capsys):
    def check(answer):
        return said(capsys, checks.best_epoch_bonus, answer)

    def each(a):
        return [max(seed) - seed[-1] for seed in a.tolist()]

    assert check(lambda a: sum(each(a)) / len(a)) == "Right."
    assert "one epoch for all" in check(lambda a: a.mean(0).max() - a.mean(0)[-1])
    assert "the best seed" in check(lambda a: (a.max(0).values - a[-1]).mean())
    assert "mean of the epochs" in check(lambda a: a.max(1).values.mean() - a.mean())
    assert "best run of all" in check(lambda a: a.max() - a[:, -1].mean())
    assert "one number" in check(lambda a: torch.tensor(each(a)))
    assert "turned" in check(lambda a: -sum(each(a)) / len(a))
    assert "Not solved yet" in check(lambda a: None)


QUIZZES = {
    checks.spikes_or_gradient: (
        {
            "surrogate": "gradient",
            "detached": "gradient",
            "soft": "spikes",
            "doubled": "gradient",
            "loop": "nothing",
        },
        {
            "surrogate": ("spikes", "only used backward"),
            "detached": ("spikes", "changes no value"),
            "soft": ("gradient", "leaves over"),
            "doubled": ("nothing", "has doubled"),
            "loop": ("spikes", "same order"),
        },
    ),
    checks.what_heats: (
        {"order": "same", "entropy": "change", "shift": "same", "both": "same", "ratio": "same"},
        {
            "order": ("change", "keeps the order"),
            "entropy": ("same", "rises with tau"),
            "shift": ("change", "above and below"),
            "both": ("change", "only the quotient"),
            "ratio": ("change", "no other logit"),
        },
    ),
    checks.what_notices: (
        {
            "channels": "features",
            "positions": ["map", "features"],
            "shift": set(),
            "time": (),
            "louder": {"answer"},
        },
        {
            "channels": ({"features", "map"}, "the sum over channels"),
            "positions": ({"features"}, "the map moves"),
            "shift": ({"answer"}, "no softmax sees a shift"),
            "time": ({"features"}, "means or sums over time"),
            "louder": (set(), "gets sharper"),
        },
    ),
    checks.when_it_vanishes: (
        {
            "1 teacher map": "right",
            "2 scaling": "single",
            "3 no square": "weight",
            "6 variance": "silent",
            "8 drifting teacher": "never",
        },
        {
            "1 teacher map": ("single", "only the predicted class"),
            "2 scaling": ("weight", "are the same"),
            "3 no square": ("never", "constant factor"),
            "6 variance": ("right", "multiplies the noise"),
            "8 drifting teacher": ("weight", "statistics"),
        },
    ),
    checks.one_column: (
        {
            "loss": "yes",
            "network": "no",
            "reported": "yes",
            "timesteps": "no",
            "machine": "no",
        },
        {
            "loss": ("no", "all conditions but the loss"),
            "network": ("yes", "networks differ too"),
            "reported": ("no", "says that it is reported"),
            "timesteps": ("yes", "T of training"),
            "machine": ("yes", "on one machine"),
        },
    ),
}


@pytest.mark.parametrize("check", QUIZZES, ids=lambda c: c.__name__)
def test_quizzes(check, capsys):
    right, wrong = QUIZZES[check]
    assert said(capsys, check, right) == "Right."
    for name, (answer, words) in wrong.items():
        line = said(capsys, check, right | {name: answer})
        assert line.startswith(f"Not yet: {name!r}: ") and words in line
    first = next(iter(right))
    assert "'perhaps' is not one of" in said(capsys, check, right | {first: "perhaps"})
    assert f"{first} is missing" in said(capsys, check, {k: right[k] for k in list(right)[1:]})
    assert f"{first!r} has no answer yet" in said(capsys, check, right | {first: ...})
    for unsolved in (dict.fromkeys(right, ...), {}, None):
        assert said(capsys, check, unsolved).startswith("Not solved yet. Hint: ")


def test_bytes_moved(capsys):
    def check(answer):
        return said(capsys, checks.bytes_moved, answer)

    assert check(lambda size: 2 * size + 3 * size) == "Right."
    assert "forward pass alone" in check(lambda size: 2 * size)
    assert "backward pass alone" in check(lambda size: 3 * size)
    assert "reads two tensors" in check(lambda size: 4 * size)
    assert "not always take 4" in check(lambda size: 20)
    assert "numbers, not bytes" in check(lambda size: 5)
    assert "Not solved yet" in check(lambda size: ...)


def test_soft_reset_gradient(capsys):
    def check(answer):
        return said(capsys, checks.soft_reset_gradient, answer)

    def by_autograd(after, ds, psi, threshold):
        # A spike whose slope is psi, in a linear stand-in: s = psi * u.
        u = torch.zeros_like(after, requires_grad=True)
        s = psi * u
        left = u - threshold * s
        (du,) = torch.autograd.grad([left, s], u, [after, ds])
        return du

    assert check(by_autograd) == "Right."
    assert "reset is left out" in check(lambda a, ds, psi, th: a + ds * psi)
    assert "is subtracted" in check(lambda a, ds, psi, th: a + (ds + th * a) * psi)
    assert "after is missing" in check(lambda a, ds, psi, th: (ds - th * a) * psi)
    assert "not always 1" in check(lambda a, ds, psi, th: a + (ds - a) * psi)
    assert "Not solved yet" in check(lambda a, ds, psi, th: None)


def test_longest_run(capsys):
    def check(answer):
        return said(capsys, checks.longest_run, answer)

    def by_trial(room, ann, share):
        timesteps = 0
        while share * (timesteps + 1) * ann <= room:
            timesteps += 1
        return timesteps

    assert check(by_trial) == "Right."
    assert "whole number" in check(lambda room, ann, share: room / (share * ann))
    assert "does not fit" in check(lambda room, ann, share: math.ceil(room / (share * ann)))
    assert "keeps more than" in check(lambda room, ann, share: room // ann)
    assert "not even one" in check(lambda room, ann, share: max(1, room // (share * ann)))
    assert "Not solved yet" in check(lambda room, ann, share: ...)


def test_convolution_operations(capsys):
    def check(answer):
        return said(capsys, checks.convolution_operations, answer)

    def by_module(inputs, outputs, kernel, size, groups):
        conv = torch.nn.Conv2d(inputs, outputs, kernel, groups=groups, bias=False)
        return 2 * conv.weight.numel() * size * size

    def macs(inputs, outputs, kernel, size, groups):
        return by_module(inputs, outputs, kernel, size, groups) // 2

    assert check(by_module) == "Right."
    assert "each is two operations" in check(macs)
    assert "`inputs / groups`" in check(lambda *sizes: by_module(*sizes[:4], 1))
    assert "divide once" in check(lambda *sizes: by_module(*sizes) // sizes[4])
    assert "kernel x kernel" in check(lambda *sizes: by_module(*sizes) // sizes[2])
    assert "size x size" in check(lambda c, d, k, s, g: by_module(c, d, k, 1, g))
    assert "only forward" in check(lambda *sizes: 3 * by_module(*sizes))
    assert "Not solved yet" in check(lambda *sizes: ...)


def test_slower_of_two(capsys):
    def check(answer):
        return said(capsys, checks.slower_of_two, answer)

    def by_images(rate, ms, workers):
        bottleneck = max(1000 / rate, ms / workers)  # milliseconds an image
        return 1000 / bottleneck

    assert check(by_images) == "Right."
    assert "waits for the slower" in check(lambda r, ms, w: max(r, 1000 * w / ms))
    assert "the network may be slower" in check(lambda r, ms, w: 1000 * w / ms)
    assert "one worker" in check(lambda r, ms, w: min(r, 1000 / ms))
    assert "1000 milliseconds" in check(lambda r, ms, w: min(r, w / ms))
    assert "do not add up" in check(lambda r, ms, w: 1000 / (1000 / r + ms / w))
    assert "Not solved yet" in check(lambda r, ms, w: None)


def test_paired_interval(capsys):
    from scipy.stats import t

    def verdict(answer):
        return said(capsys, checks.paired_interval, answer)

    def interval(d, q=0.975, ddof=1, root=0.5, quantile=None):
        d = np.asarray(d)
        t_value = quantile or t.ppf(q, len(d) - 1)
        half = t_value * d.std(ddof=ddof) / len(d) ** root
        return d.mean() - half, d.mean() + half

    def by(**options):
        return lambda a, b: interval(np.array(a) - np.array(b), **options)

    assert verdict(by()) == "Right."
    assert "Student's" in verdict(by(quantile=1.959964))
    assert "0.975" in verdict(by(q=0.95))
    assert "ddof=1" in verdict(by(ddof=0))
    assert "root of n" in verdict(by(root=0))

    def unpaired(a, b):
        a, b = torch.tensor(a), torch.tensor(b)
        half = t.ppf(0.975, len(a) - 1) * ((a.var() + b.var()) / len(a)) ** 0.5
        return a.mean() - b.mean() - half, a.mean() - b.mean() + half

    assert "not paired" in verdict(unpaired)
    assert "got" in verdict(lambda a, b: (0.0, 1.0))
    assert "Not solved yet" in verdict(lambda a, b: None)


def test_calibration_error(capsys):
    from torchmetrics.functional.classification import binary_calibration_error

    def verdict(answer):
        return said(capsys, checks.calibration_error, answer)

    def binned(c, r, bins, weigh=True, distance=abs):
        edges = torch.linspace(0, 1, bins + 1, dtype=c.dtype)
        total, count = 0.0, 0
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            here = (c > low) & (c <= high)
            if here.any():
                gap = (c[here].mean() - r[here].double().mean()).item()
                total += distance(gap) * (here.double().mean().item() if weigh else 1)
                count += 1
        return total if weigh else total / count

    assert verdict(binned) == "Right."
    # torchmetrics reads a probability of the positive class as the confidence.
    assert verdict(lambda c, r, bins: binary_calibration_error(c, r.int(), bins)) == "Right."
    assert "share of the answers" in verdict(lambda c, r, n: binned(c, r, n, weigh=False))
    assert "cancel" in verdict(lambda c, r, n: binned(c, r, n, distance=lambda gap: gap))
    assert "bins are left out" in verdict(lambda c, r, n: (c.mean() - r.double().mean()).abs())
    assert "not of each answer" in verdict(lambda c, r, n: (c - r.double()).abs().mean())
    assert "got" in verdict(lambda c, r, n: 0.5)
    assert "Not solved yet" in verdict(lambda c, r, n: None)


def test_run_hours(capsys):
    def verdict(answer):
        return said(capsys, checks.run_hours, answer)

    def each(n, network):
        return n * network[0] / network[1] / 60**2

    assert verdict(lambda n, s, t: each(n, s) + each(n, t)) == "Right."
    assert "an hour has 3600" in verdict(lambda n, s, t: (each(n, s) + each(n, t)) * 3600)
    assert "the teacher is missing" in verdict(lambda n, s, t: each(n, s))
    assert "the student is missing" in verdict(lambda n, s, t: each(n, t))
    assert "do not multiply" in verdict(
        lambda n, s, t: sum(n * epochs * rate for epochs, rate in (s, t)) / 3600
    )
    assert "each network has its own rate" in verdict(
        lambda n, s, t: n * (s[0] + t[0]) / (s[1] + t[1]) / 3600
    )
    assert "epochs are missing" in verdict(lambda n, s, t: sum(n / x[1] for x in (s, t)) / 3600)
    assert "got" in verdict(lambda n, s, t: 1.0)
    assert "Not solved yet" in verdict(lambda n, s, t: None)


def test_overlay_changes(capsys):
    def verdict(answer):
        return said(capsys, checks.overlay_changes, answer)

    def flat(settings, before=""):
        found = {}
        for key, value in settings.items():
            inner = isinstance(value, dict)
            found |= flat(value, f"{before}{key}.") if inner else {before + key: value}
        return found

    def changed(base, overlay):
        old = flat(base)
        return {k for k, v in flat(overlay).items() if k not in old or old[k] != v}

    assert verdict(changed) == "Right."
    assert "only the outermost keys" in verdict(
        lambda base, over: [k for k in over if base.get(k) != over[k]]
    )
    assert "is no change" in verdict(lambda base, over: list(flat(over)))
    assert "the levels are missing" in verdict(
        lambda base, over: [k.rpartition(".")[2] for k in changed(base, over)]
    )
    assert "the base has not is a change too" in verdict(
        lambda base, over: [k for k in changed(base, over) if k in flat(base)]
    )
    assert "wanted a list" in verdict(lambda base, over: 3)
    assert "for the overlay" in verdict(lambda base, over: [])
    assert "Not solved yet" in verdict(lambda base, over: None)


def test_accuracy_error(capsys):
    def verdict(answer):
        return said(capsys, checks.accuracy_error, answer)

    def spread(a):
        return math.sqrt(a - a**2)

    assert verdict(lambda a, n: spread(a) / math.sqrt(n)) == "Right."
    assert "square root" in verdict(lambda a, n: spread(a) ** 2 / n)
    assert "of one answer" in verdict(lambda a, n: spread(a))
    assert "not a" in verdict(lambda a, n: math.sqrt(a / n))
    assert "over N too" in verdict(lambda a, n: spread(a) / n)
    assert "not by N - 1" in verdict(lambda a, n: spread(a) / math.sqrt(n - 1))
    assert "wanted a share" in verdict(lambda a, n: 100 * spread(a) / math.sqrt(n))
    assert "got" in verdict(lambda a, n: 0.5)
    assert "Not solved yet" in verdict(lambda a, n: None)


def test_effective_batch(capsys):
    def verdict(answer):
        return said(capsys, checks.effective_batch, answer)

    def by(scale):
        return lambda n, d, m, a, rate, base: (n * d * m * a, rate * scale(n * d * m * a / base))

    assert verdict(by(lambda r: r)) == "Right."
    assert "accumulated" in verdict(lambda n, d, m, a, r, b: (n * d * m, r * n * d * m / b))
    assert "machines" in verdict(lambda n, d, m, a, r, b: (n * d * a, r * n * d * a / b))
    assert "devices" in verdict(lambda n, d, m, a, r, b: (n * m * a, r * n * m * a / b))
    assert "not base over effective" in verdict(by(lambda r: 1 / r))
    assert "still the given one" in verdict(by(lambda r: 1))
    assert "not as its root" in verdict(by(math.sqrt))
    assert "got" in verdict(lambda *a: (1, 2))
    assert "Not solved yet" in verdict(lambda *a: None)


def test_share_of_images(capsys):
    def verdict(answer):
        return said(capsys, checks.share_of_images, answer)

    def equal(order, rank, ranks):
        return [x for i, x in enumerate(order) if i % ranks == rank][: len(order) // ranks]

    assert verdict(equal) == "Right."
    assert verdict(lambda *a: tuple(equal(*a))) == "Right."
    assert "one more than others" in verdict(lambda o, r, n: o[r::n])
    assert "blocks" in verdict(
        lambda o, r, n: [o[r * (len(o) // n) + i] for i in range(len(o) // n)]
    )
    assert "the same part" in verdict(lambda o, r, n: equal(o, 0, n))
    assert "what stands there" in verdict(lambda o, r, n: equal(range(len(o)), r, n))
    assert "wanted a list" in verdict(lambda *a: 3)
    assert "for [10," in verdict(lambda *a: [])
    assert "Not solved yet" in verdict(lambda *a: ...)


def test_mean_over_devices(capsys):
    def verdict(answer):
        return said(capsys, checks.mean_over_devices, answer)

    assert verdict(lambda v, n: torch.dot(v, n / n.sum())) == "Right."
    assert "weigh by the counts" in verdict(lambda v, n: v.mean())
    assert "not of devices" in verdict(lambda v, n: (v * n).mean())
    assert "a sum over images" in verdict(lambda v, n: (v * n).sum())
    assert "not divided" in verdict(lambda v, n: (v / n).sum() / (1 / n).sum())
    assert "got" in verdict(lambda v, n: v[0])
    assert "Not solved yet" in verdict(lambda v, n: None)


def test_energy_estimate(capsys):
    def verdict(answer):
        return said(capsys, checks.energy_estimate, answer)

    def total(m, a, pm, pa, r):
        return (m * pm + a * pa + (m + a) * r) / 1e6

    assert verdict(total) == "Right."
    assert "these are picojoules" in verdict(lambda *a: total(*a) * 1e6)
    assert "the reads are missing" in verdict(lambda m, a, pm, pa, r: total(m, a, pm, pa, 0))
    assert "every accumulate reads" in verdict(
        lambda m, a, pm, pa, r: (m * pm + a * pa + m * r) / 1e6
    )
    assert "every multiply-accumulate reads" in verdict(
        lambda m, a, pm, pa, r: (m * pm + a * pa + a * r) / 1e6
    )
    assert "swapped" in verdict(lambda m, a, pm, pa, r: total(m, a, pa, pm, r))
    assert "pays for its own" in verdict(lambda m, a, pm, pa, r: (m * pm + a * pa + r) / 1e6)
    assert "got" in verdict(lambda *a: 1.0)
    assert "Not solved yet" in verdict(lambda *a: None)


def test_break_even_rate(capsys):
    def verdict(answer):
        return said(capsys, checks.break_even_rate, answer)

    assert verdict(lambda t, m, a, r: (m + r) / (a + r) / t) == "Right."
    assert "for a single step" in verdict(lambda t, m, a, r: (m + r) / (a + r))
    assert "the reads are missing" in verdict(lambda t, m, a, r: m / a / t)
    assert "by each accumulate too" in verdict(lambda t, m, a, r: (m + r) / a / t)
    assert "by the multiply-accumulate too" in verdict(lambda t, m, a, r: m / (a + r) / t)
    assert "upside down" in verdict(lambda t, m, a, r: (a + r) / (m + r) / t)
    assert "operations alone" in verdict(lambda t, m, a, r: 1 / t)
    assert "got" in verdict(lambda *a: 2.0)
    assert "Not solved yet" in verdict(lambda *a: None)


# ---------------------------------------------------------------- chapter 6.1


def test_euler_neuron(capsys):
    def verdict(answer):
        return said(capsys, checks.euler_neuron, answer)

    def step(x, u, tau, r, dt):
        return u + (r * x - u) * dt / tau

    assert verdict(lambda *p: (step(0, 1, *p), step(1, 0, *p))) == "Right."
    assert verdict(lambda *p: [step(0.0, 1.0, *p), torch.tensor(step(1, 0, *p))]) == "Right."
    kept = "Euler's step keeps"
    assert kept in verdict(lambda tau, r, dt: (math.exp(-dt / tau), r * dt / tau))
    assert "a straight line" in verdict(
        lambda tau, r, dt: (math.exp(-dt / tau), -r * math.expm1(-dt / tau))
    )
    assert "not by r alone" in verdict(lambda tau, r, dt: ((tau - dt) / tau, r))
    assert "what leaks away" in verdict(lambda tau, r, dt: (dt / tau, r * dt / tau))
    assert "wrong order" in verdict(lambda *p: (step(1, 0, *p), step(0, 1, *p)))
    assert "got" in verdict(lambda tau, r, dt: (0.5, 1.0))
    assert "Not solved yet" in verdict(lambda tau, r, dt: None)


def test_folded_bias(capsys):
    def verdict(answer):
        return said(capsys, checks.folded_bias, answer)

    def norm(x, mean, var, gamma, beta, eps):
        """What torch's batch norm makes of one number."""
        given = (torch.tensor([float(v)], dtype=torch.float64) for v in (mean, var, gamma, beta))
        x = torch.tensor([[x]], dtype=torch.float64)
        return F.batch_norm(x, *given, eps=eps).item()

    assert verdict(norm) == "Right."
    assert "scaled like the weights" in verdict(lambda c, *p: c + norm(0.0, *p))
    assert "is lost" in verdict(lambda c, *p: norm(0.0, *p))
    assert "subtracted, not added" in verdict(lambda c, mean, *p: norm(c, -mean, *p))
    assert "not by the variance" in verdict(
        lambda c, mean, var, gamma, beta, eps: beta + gamma * (c - mean) / (var + eps)
    )
    assert "under the root" in verdict(
        lambda c, mean, var, gamma, beta, eps: beta + gamma * (c - mean) / (math.sqrt(var) + eps)
    )
    assert "gamma is missing" in verdict(
        lambda c, mean, var, gamma, beta, eps: norm(c, mean, var, 1, beta, eps)
    )
    assert "beta is missing" in verdict(
        lambda c, mean, var, gamma, beta, eps: norm(c, mean, var, gamma, 0, eps)
    )
    assert "got" in verdict(lambda c, mean, var, gamma, beta, eps: 0.0)
    assert "Not solved yet" in verdict(lambda c, mean, var, gamma, beta, eps: None)


def test_whole_threshold(capsys):
    def verdict(answer):
        return said(capsys, checks.whole_threshold, answer)

    assert verdict(lambda theta: next(u for u in range(1000) if u > theta)) == "Right."
    assert verdict(lambda theta: theta // 1 + 1) == "Right."
    assert "u = theta must not fire" in verdict(lambda theta: -(-theta // 1))
    assert "rounding lets" in verdict(lambda theta: torch.tensor(theta).round())
    assert "too early" in verdict(int)
    assert "must be a whole number" in verdict(lambda theta: theta + 1)
    assert "the next whole number above" in verdict(lambda theta: math.ceil(theta) + 1)
    assert "got" in verdict(lambda theta: 3)
    assert "Not solved yet" in verdict(lambda theta: None)


def test_pooled_kernel(capsys):
    def verdict(answer):
        return said(capsys, checks.pooled_kernel, answer)

    def right(weight):
        return weight.expand(-1, -1, 2, 2) / 4

    # The answer does what the two layers do.
    weight, x = torch.randn(5, 3, 1, 1), torch.rand(2, 3, 6, 8)
    both = F.conv2d(F.avg_pool2d(x, 2), weight)
    assert torch.allclose(F.conv2d(x, right(weight), stride=2), both, atol=1e-5)

    assert verdict(right) == "Right."
    assert "a mean divides by four" in verdict(lambda w: 4 * right(w))
    assert "not by two" in verdict(lambda w: 2 * right(w))
    assert "must see 2x2" in verdict(lambda w: w / 4)
    assert "have the same weight" in verdict(
        lambda w: torch.stack([torch.cat([w, 0 * w], 3), torch.cat([w, w], 3) * 0], 2).flatten(2, 3)
    )
    assert "come first" in verdict(lambda w: right(w).movedim(0, 1))
    assert "values are not" in verdict(lambda w: 3 * right(w))
    assert "Not solved yet" in verdict(lambda w: None)


def test_time_bin(capsys):
    def verdict(answer):
        return said(capsys, checks.time_bin, answer)

    def place(t, first, last, bins):
        return int((t - first) / int((last - first) / bins))

    def kept(b, bins):
        return b if b < bins else -1

    assert verdict(lambda t, f, e, n: kept(place(t, f, e, n), n)) == "Right."
    assert "subtract its time" in verdict(lambda t, f, e, n: kept(place(t + f, f, e, n), n))
    assert "give -1" in verdict(place)
    assert "not put into it" in verdict(lambda t, f, e, n: min(place(t, f, e, n), n - 1))
    assert "counted from 0" in verdict(
        lambda t, f, e, n: kept(place(t, f, e, n), n) + (place(t, f, e, n) < n)
    )
    assert "rounded down" in verdict(lambda t, f, e, n: kept(int((t - f) / (e - f) * n), n))
    assert "got" in verdict(lambda *a: 3)
    assert "Not solved yet" in verdict(lambda *a: None)


def test_signed_events(capsys):
    def verdict(answer):
        return said(capsys, checks.signed_events, answer)

    def steps(a, b, k):
        return (math.log(b) - math.log(a)) / k

    assert verdict(lambda a, b, k: int(steps(a, b, k))) == "Right."
    assert "to the nearest" in verdict(lambda a, b, k: round(steps(a, b, k)))
    assert "towards zero" in verdict(lambda a, b, k: math.floor(steps(a, b, k)))
    assert "not the light" in verdict(lambda a, b, k: int((b - a) / k))
    assert "brighter is positive" in verdict(lambda a, b, k: int(steps(b, a, k)))
    assert "with a minus" in verdict(lambda a, b, k: abs(int(steps(a, b, k))))
    assert "events are whole" in verdict(steps)
    assert "the natural one" in verdict(lambda a, b, k: int(steps(a, b, k) / math.log(10)))
    assert "got" in verdict(lambda *a: 99)
    assert "Not solved yet" in verdict(lambda *a: None)


def test_mean_frame(capsys):
    def verdict(answer):
        return said(capsys, checks.mean_frame, answer)

    right = {"edges": "yes", "direction": "no", "rounds": "yes", "contrast": "yes", "sign": "no"}
    assert verdict(right) == "Right."
    for name, why in (
        ("edges", "keeps the place"),
        ("direction", "order is lost"),
        ("rounds", "twice the events"),
        ("contrast", "more steps of kappa"),
        ("sign", "equally many"),
    ):
        other = {"yes": "no", "no": "yes"}[right[name]]
        assert why in verdict(right | {name: other})
    assert "has no answer yet" in verdict(right | {"sign": ...})
    assert "Not solved yet" in verdict(dict.fromkeys(right, ...))
