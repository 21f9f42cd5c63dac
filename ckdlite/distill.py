"""The losses: KD, SAMD, NLD and their total; two that compare features. They take tensors.

The student's logits are the mean over time of its per-step logits, `logits.mean(0)`. Gradients
reach the student only: everything of the teacher's is detached here. Chapter 3.2 builds SAMD.

A tensor of the wrong dtype is a TypeError everywhere. Each loss-level difference between the paper
and the released code (chapter 3.5) is one option; the defaults are the paper, or our reading of it
where it does not say.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from .saliency import check_maps, check_target

#: What `normalise_maps` can do to a map.
Normalise = Literal["none", "sample", "batch", "zscore"]


def kd(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, temperature: float = 2.0
) -> Float[Tensor, ""]:
    r"""Hinton's distillation of logits.

    With t the teacher's logits and s the student's:

    .. math:: L = \tau^2 \, \mathrm{KL}(\mathrm{softmax}(t / \tau) \| \mathrm{softmax}(s / \tau))

    Nats, mean over the batch.

    Args:
        student: logits of the student, averaged over time.
        teacher: logits of the teacher; detached.
        temperature: tau, above 0. The default is NLD's.

    Raises:
        ValueError: shapes that do not match, tau not above 0, or logits that are not finite.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
    """
    _check_logits(student, teacher)
    _check_temperature(temperature)
    student, teacher = _wide(student), _wide(teacher.detach())
    target = F.log_softmax(teacher / temperature, 1)
    loss = temperature**2 * _kl(target, F.log_softmax(student / temperature, 1))
    return _finite(loss, student=student, teacher=teacher)


def normalise_maps(
    maps: Float[Tensor, "B H W"], how: Normalise = "sample"
) -> Float[Tensor, "B H W"]:
    """Bring maps to a common scale before a softmax reads them.

    - `"none"`: as they are.
    - `"sample"`: min-max to [0, 1] in each map.
    - `"batch"`: min-max over the whole batch, `(m - min) / (max - min + 1e-3)`: the released code.
    - `"zscore"`: mean 0, standard deviation 1 over the positions of each map.

    A flat map becomes all zero under `"sample"` and `"zscore"`.

    Raises:
        ValueError: not `[B, H, W]`, empty, not finite, or an unknown name.

    Chapter 3.2.
    """
    check_maps(maps=maps)
    if not bool(maps.isfinite().all()):
        raise ValueError("maps: got NaN or infinity, wanted finite numbers")
    return _scaled(maps, how)


def _scaled(maps: Tensor, how: str) -> Tensor:
    """`normalise_maps` without the checks: a loss makes its own, and names the map."""
    if how == "none":
        return maps
    if how == "batch":
        maps = maps - maps.min()
        return maps / (maps.max() + 1e-3)
    if how == "sample":
        maps = maps - maps.amin((1, 2), keepdim=True)
        scale = maps.amax((1, 2), keepdim=True)
    elif how == "zscore":
        # The shift changes no result, but makes a flat map exactly 0, which its mean may not.
        maps = maps - maps.amin((1, 2), keepdim=True).detach()
        # Nor does the factor, which keeps the squares of tiny numbers from vanishing.
        largest = maps.amax((1, 2), keepdim=True).detach()
        maps = maps / largest.where(largest > 0, torch.ones_like(largest))
        maps = maps - maps.mean((1, 2), keepdim=True)
        # The square root's slope is infinite at 0, so a flat map is kept away from it.
        variance = maps.square().mean((1, 2), keepdim=True)
        scale = variance.where(variance > 0, torch.ones_like(variance)).sqrt()
    else:
        raise ValueError(f"normalise: got {how!r}, wanted 'none', 'sample', 'batch' or 'zscore'")
    return maps / scale.where(scale > 0, torch.ones_like(scale))


def samd(
    student: Float[Tensor, "B H W"],
    teacher: Float[Tensor, "B H W"],
    *,
    temperature: float = 2.0,
    normalise: Normalise = "sample",
    square: bool = True,
) -> Float[Tensor, ""]:
    r"""Saliency-scaled activation map distillation: look where the teacher looks.

    Each map is scaled to m by `normalise_maps`, then read as a distribution P over its `H * W`
    positions by a softmax at the temperature :math:`\mathcal{T}`:

    .. math::

        P &= \mathrm{softmax}(m / \mathcal{T}) \\
        L &= \mathcal{T}^2 \, \mathrm{KL}(P_{\text{teacher}} \| P_{\text{student}})

    Nats, mean over the batch.

    Args:
        student: spike activation map (`saliency.spike_map`).
        teacher: Grad-CAM or CAM of the same size; detached.
        temperature: above 0.
        normalise: see `normalise_maps`. The paper does not say which; `"sample"` is our reading.
            The released code has `"batch"`. Difference 2.
        square: multiply by the temperature squared (paper); the released code does not.
            Difference 3.

    Raises:
        ValueError: maps of different shape, a temperature not above 0, or maps that are not finite.

    Source: CKDSNN, arXiv 2511.06902. Chapter 3.2.
    """
    check_maps(student=student, teacher=teacher)
    _check_temperature(temperature)
    student, teacher = _wide(student), _wide(teacher.detach())
    target = F.log_softmax(_scaled(teacher, normalise).flatten(1) / temperature, 1)
    read = F.log_softmax(_scaled(student, normalise).flatten(1) / temperature, 1)
    loss = _kl(target, read) * (temperature**2 if square else 1.0)
    return _finite(loss, student=student, teacher=teacher)


def nld(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    *,
    strength: float = 0.1,
    temperature: float = 2.0,
    noise: Float[Tensor, "*N B K"] | None = None,
    draws: int = 1,
    generator: torch.Generator | None = None,
    spread: Literal["std", "variance"] = "std",
    mix: Literal["logits", "probabilities"] = "logits",
    detach_statistics: bool = True,
) -> Float[Tensor, ""]:
    r"""Noise-smoothed logits distillation.

    With z the student's logits, t the teacher's, n standard normal, and mean and std over the
    classes of a sample:

    .. math::

        \varepsilon &= \mathrm{mean}(z) + \mathrm{std}(z) \, n \\
        z_{\text{soft}} &= z + \lambda \varepsilon \\
        L &= \tau^2 \, \mathrm{KL}(\mathrm{softmax}(t / \tau)
            \| \mathrm{softmax}(z_{\text{soft}} / \tau))

    Nats, mean over the batch and over the draws. The std has K - 1 in its denominator, as in the
    released code. A softmax ignores a shift, so `mean(z)` has no effect on the value.

    Args:
        student: logits of the student, averaged over time.
        teacher: logits of the teacher; detached.
        strength: lambda, at least 0. At 0 this is `kd`.
        temperature: tau, above 0.
        noise: the draws of n to use, `[B, K]` or `[N, B, K]`; `None` draws them.
        draws: how many to draw where `noise` is `None`.
        generator: what to draw them from.
        spread: the noise's standard deviation is `std(z)` (paper) or `std(z)^2` (released code).
            Difference 6.
        mix: add the noise to the logits (paper), or mix probabilities (released code),
            :math:`(1 - \lambda) p_z + \lambda p_\varepsilon`, softmaxes at tau. Difference 5.
        detach_statistics: keep mean and std out of the graph. The paper does not say; `True` is
            our reading, the released code has `False`. Difference 7.

    Raises:
        ValueError: shapes that do not match, lambda below 0 (or above 1 for probabilities), tau
            not above 0, fewer than two classes, or logits that are not finite.

    Source: CKDSNN, arXiv 2511.06902.
    """
    _check_logits(student, teacher)
    _check_temperature(temperature)
    if not 0 <= strength < float("inf") or (mix == "probabilities" and strength > 1):
        limit = "to 1" if mix == "probabilities" else "up, finite"
        raise ValueError(f"strength: got {strength}, wanted a number from 0 {limit}")
    if spread not in ("std", "variance"):
        raise ValueError(f"spread: got {spread!r}, wanted 'std' or 'variance'")
    if mix not in ("logits", "probabilities"):
        raise ValueError(f"mix: got {mix!r}, wanted 'logits' or 'probabilities'")
    if student.shape[1] < 2:
        raise ValueError("nld: got 1 class, wanted at least 2 to have a spread")
    student, teacher = _wide(student), _wide(teacher.detach())
    noise = _noise(student, noise, draws, generator)

    source = student.detach() if detach_statistics else student
    deviation = source.std(1, keepdim=True)
    if spread == "variance":
        deviation = deviation.square()
    e = source.mean(1, keepdim=True) + deviation * noise
    if mix == "logits":
        soft = F.log_softmax((student + strength * e) / temperature, -1)
    else:
        # Mixed as logarithms, so that small probabilities keep their value and their gradient.
        weights = torch.tensor([1 - strength, strength], dtype=student.dtype, device=student.device)
        clean, noisy = torch.broadcast_tensors(student, e)
        parts = F.log_softmax(torch.stack([clean, noisy], -1) / temperature, -2) + weights.log()
        soft = parts.logsumexp(-1)
    loss = temperature**2 * _kl(F.log_softmax(teacher / temperature, 1), soft)
    return _finite(loss, student=student, teacher=teacher, noise=noise)


def feature_mse(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]
) -> Float[Tensor, ""]:
    """Features compared number by number: `mean((s - t)^2)` over all elements.

    What SAMD argues against: a spiking layer's features, averaged over time, are multiples of 1/T
    from 0 to 1, the teacher's any number from 0 up.

    Args:
        student: features averaged over time, `spikes.mean(0)`.
        teacher: features of the same shape; detached.

    Raises:
        ValueError: shapes that differ, not four axes, or features that are not finite.

    Source: the hint of Romero et al. 2015, FitNets, arXiv 1412.6550, without its regressor.
    """
    _check_features(student, teacher, "B C H W")
    student, teacher = _wide(student), _wide(teacher.detach())
    return _finite(F.mse_loss(student, teacher), student=student, teacher=teacher)


def attention_transfer(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B D H W"],
    *,
    power: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Attention transfer: where the channels are strong, whatever the class.

    With s for the student, t for the teacher:

    .. math::

        Q &= \sum_c |A_c|^p \\
        L &= \left\| \frac{Q_s}{\|Q_s\|} - \frac{Q_t}{\|Q_t\|} \right\|

    Euclidean norms over the `H * W` positions; mean over the batch. The nearest ancestor of
    SAMD: maps of both networks, but no class in the teacher's, and a distance in place of a
    divergence. A map that is zero everywhere stays zero.

    Args:
        student: features averaged over time, `spikes.mean(0)`.
        teacher: features with the same B, H and W, any number of channels; detached.
        power: p, above 0.

    Raises:
        ValueError: sizes that do not match, p not above 0, or features that are not finite.

    Source: Zagoruyko, Komodakis 2017 (ICLR), arXiv 1612.03928, equation 2 with p = 2.
    """
    _check_features(student, teacher, "B * H W")
    if not 0 < power < float("inf"):
        raise ValueError(f"power: got {power}, wanted a finite number above 0")
    student, teacher = _wide(student), _wide(teacher.detach())
    ours, theirs = (
        F.normalize(features.abs().pow(power).sum(1).flatten(1)) for features in (student, teacher)
    )
    loss = torch.linalg.vector_norm(ours - theirs, dim=1).mean()
    return _finite(loss, student=student, teacher=teacher)


class Losses(NamedTuple):
    """The terms of the total, in nats; `total = ce + beta * samd + gamma * nld`.

    Attributes:
        total: what to go back from.
        ce: the labels' term.
        samd: the maps' term, without its weight.
        nld: the noisy logits' term, without its weight.
    """

    total: Float[Tensor, ""]
    ce: Float[Tensor, ""]
    samd: Float[Tensor, ""]
    nld: Float[Tensor, ""]


def ckd(
    student_logits: Float[Tensor, "B K"],
    student_map: Float[Tensor, "B H W"],
    teacher_logits: Float[Tensor, "B K"],
    teacher_map: Float[Tensor, "B H W"],
    labels: Integer[Tensor, " B"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    samd_options: Mapping[str, Any] | None = None,
    nld_options: Mapping[str, Any] | None = None,
) -> Losses:
    r"""The whole loss of CKDSNN.

    .. math:: L = L_{CE} + \beta L_{SAMD} + \gamma L_{NLD}

    Args:
        student_logits: averaged over time.
        student_map: spike activation map of the last stage.
        teacher_logits: detached here.
        teacher_map: detached here.
        labels: the true class of each image.
        beta: weight of SAMD, at least 0.
        gamma: weight of NLD, at least 0.
        samd_options: passed to `samd`.
        nld_options: passed to `nld`.

    Returns:
        The total and its unweighted terms.

    Raises:
        ValueError: weights below 0, labels out of range, and all that `samd` and `nld` raise.

    Source: CKDSNN, arXiv 2511.06902.
    """
    for name, weight in (("beta", beta), ("gamma", gamma)):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name}: got {weight}, wanted a finite weight of at least 0")
    _check_logits(student_logits, teacher_logits)
    if len(student_map) != len(student_logits):
        raise ValueError(
            f"got maps of {len(student_map)} images and logits of {len(student_logits)}, "
            "wanted the same batch"
        )
    labels = check_target(labels, *student_logits.shape)
    ce = F.cross_entropy(_wide(student_logits), labels)
    by_map = samd(student_map, teacher_map, **(samd_options or {}))
    by_logits = nld(student_logits, teacher_logits, **(nld_options or {}))
    return Losses(ce + beta * by_map + gamma * by_logits, ce, by_map, by_logits)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q)` over the last axis, mean over the others; q may have draws in front."""
    return (
        F.kl_div(*torch.broadcast_tensors(log_q, log_p), reduction="none", log_target=True)
        .sum(-1)
        .mean()
    )


def _wide(x: Tensor) -> Tensor:
    """Losses are computed in float32 at least: half precision loses small divergences."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _noise(
    like: Tensor, noise: Tensor | None, draws: int, generator: torch.Generator | None
) -> Tensor:
    if noise is None:
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"draws: got {draws}, wanted a whole number of at least 1")
        shape = (draws, *like.shape)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    if noise.dim() not in (2, 3) or noise.shape[-2:] != like.shape or not noise.numel():
        raise ValueError(
            f"noise: got shape {list(noise.shape)}, wanted {list(like.shape)} or [N, B, K]"
        )
    return noise.to(like)


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    if student.dim() == 3:
        raise ValueError(
            f"student logits: got shape {list(student.shape)}, wanted [B, K]; "
            "average logits over time first: logits.mean(0)"
        )
    if student.dim() != 2 or student.numel() == 0 or student.shape != teacher.shape:
        raise ValueError(
            f"logits: got student {list(student.shape)} and teacher {list(teacher.shape)}, "
            "wanted [B, K] from both, with one B and one K, and nothing empty"
        )
    for name, logits in (("student", student), ("teacher", teacher)):
        if not logits.is_floating_point():
            raise TypeError(f"{name} logits: got {logits.dtype}, wanted floating point")


def _check_features(student: Tensor, teacher: Tensor, axes: str) -> None:
    sizes = [list(x.shape) for x in (student, teacher)]
    alike = [[n for n, a in zip(s, axes.split(), strict=False) if a != "*"] for s in sizes]
    if any(len(s) != 4 or 0 in s for s in sizes) or alike[0] != alike[1]:
        hint = "; average spikes over time first: spikes.mean(0)" if student.dim() == 5 else ""
        raise ValueError(
            f"features: got student {sizes[0]} and teacher {sizes[1]}, wanted [{axes}] from both, "
            f"with nothing empty{hint}"
        )
    for name, features in (("student", student), ("teacher", teacher)):
        if not features.is_floating_point():
            raise TypeError(f"{name} features: got {features.dtype}, wanted floating point")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}, wanted a finite number above 0")


def _finite(loss: Tensor, **inputs: Tensor) -> Tensor:
    """Return the loss; where it is not finite, say which input was to blame.

    Only the loss is tested on the good path: one number, not every tensor.
    """
    if not bool(loss.isfinite()):
        bad = [name for name, x in inputs.items() if not bool(x.isfinite().all())]
        cause = f"{' and '.join(bad)} held NaN or infinity" if bad else "the values overflowed"
        raise ValueError(f"the loss is {float(loss.detach())}: {cause}, wanted finite numbers")
    return loss
