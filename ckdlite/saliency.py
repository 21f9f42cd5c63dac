"""Where a network looks: CAM, Grad-CAM, the spike activation map, and scores for maps.

A map is `[B, H, W]`: one number a position, in the units of what it sums. Chapter 2.2 builds the
teacher's map in plain lines, chapter 3.2 the student's. A tensor of the wrong dtype is a TypeError.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from .networks import layer as find_layer


def check_maps(**maps: Tensor) -> None:
    """Raise where maps are not floating-point `[B, H, W]` of one shape, or are empty."""
    shapes = {name: list(m.shape) for name, m in maps.items()}
    said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    for name, m in maps.items():
        if m.dim() != 3 or m.numel() == 0:
            raise ValueError(f"maps: got {said}, wanted [B, H, W] with nothing empty")
        if not m.is_floating_point():
            raise TypeError(f"{name}: got {m.dtype}, wanted a floating-point map")
    if len({tuple(s) for s in shapes.values()}) > 1:
        raise ValueError(
            f"maps: got {said}, wanted one shape; torch.nn.functional.interpolate resamples a map"
        )


def check_target(target: Tensor, batch: int, classes: int) -> Integer[Tensor, " B"]:
    """The labels as int64; raise where they are not B whole numbers from 0 to K - 1."""
    if target.shape != (batch,):
        raise ValueError(f"labels: got shape {list(target.shape)}, wanted [{batch}]")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"labels: got {target.dtype}, wanted whole numbers")
    if batch and not (0 <= int(target.min()) and int(target.max()) < classes):
        raise ValueError(
            f"labels: got values from {int(target.min())} to {int(target.max())}, "
            f"wanted 0 to {classes - 1}"
        )
    # Bytes would be taken for a mask, and other kinds refused, where labels pick rows.
    return target.long()


def _finite(what: str, x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        raise ValueError(f"{what}: got NaN or infinity, wanted finite numbers")
    return x


def cam(
    features: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "K C"],
    target: Integer[Tensor, " B"],
    *,
    relu: bool = True,
) -> Float[Tensor, "B H W"]:
    r"""Class activation map of a class k, then ReLU.

    .. math:: M_k(h, w) = \sum_c W_{kc} A_c(h, w)

    For a network that ends in global average pooling and one linear layer with this weight. There
    Grad-CAM is this map divided by `H * W`.

    Args:
        features: the last stage's output.
        weight: the linear layer's weight.
        target: the class k of each image.
        relu: keep only what speaks for the class.

    Raises:
        ValueError: channels that do not match, labels out of range, or values that are not finite.

    Source: Zhou et al. 2016 (CVPR), arXiv 1512.04150. Chapter 2.2.
    """
    if features.dim() != 4 or weight.dim() != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features and weight: got {list(features.shape)} and {list(weight.shape)}, "
            "wanted [B, C, H, W] and [K, C] with one C"
        )
    target = check_target(target, len(features), len(weight))
    maps = _finite("cam", torch.einsum("bchw,bc->bhw", features, weight[target]))
    return maps.relu() if relu else maps


def grad_cam(
    model: nn.Module,
    layer: str,
    images: Float[Tensor, "..."],
    target: Integer[Tensor, " B"] | None = None,
    *,
    relu: bool = True,
) -> tuple[Float[Tensor, "B H W"], Float[Tensor, "B K"]]:
    r"""Grad-CAM of any layer of any model, in one forward pass; returns the maps and the logits.

    With A the layer's features and :math:`z_k` the target class's logit:

    .. math::

        \alpha_c &= \frac{1}{HW} \sum_{h,w} \frac{\partial z_k}{\partial A_c(h, w)} \\
        M &= \max(0, \sum_c \alpha_c A_c)

    Everything before the layer runs without a graph; at the layer the features are cut off and
    the graph begins, so only the rest of the network is differentiated. Parameters get no
    gradient. The mode (train or eval) is the caller's: a teacher should be in eval mode.

    Args:
        model: maps images to logits `[B, K]`.
        layer: the layer's name, as in `model.named_modules()`.
        images: what the model takes.
        target: the class k of each image; `None` for the class that the model predicts.
        relu: keep only what speaks for the class, as in the paper.

    Returns:
        Maps `[B, H, W]` at the layer's size and logits `[B, K]`, both detached.

    Raises:
        ValueError: no such layer (near names are listed), features that are not `[B, C, H, W]`,
            logits that do not depend on the layer, labels out of range, or values that are not
            finite.

    Source: Selvaraju et al. 2017 (ICCV), arXiv 1610.02391. Chapter 2.2.
    """
    seen: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ValueError(f"grad_cam: layer {layer!r} gave a {kind}, wanted one tensor")
        if output.is_inference():
            raise ValueError("grad_cam: called in inference_mode; wanted no_grad, or neither")
        seen.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)
        return seen[-1].clone()  # the next layer may write over it, as ReLU(inplace=True) does

    hook = find_layer(model, layer).register_forward_hook(cut)
    try:
        with torch.no_grad():
            logits = model(images)
            if len(seen) != 1:
                raise ValueError(
                    f"grad_cam: layer {layer!r} ran {len(seen)} times in one forward pass, "
                    "wanted once"
                )
            features = seen[0]
            if features.dim() != 4 or logits.dim() != 2:
                raise ValueError(
                    f"grad_cam: layer {layer!r} gave {list(features.shape)} and the model "
                    f"{list(logits.shape)}, wanted [B, C, H, W] and [B, K]; "
                    "spike_map is the map of a spiking network"
                )
            if target is None:
                target = logits.argmax(1)
            target = check_target(target, *logits.shape)
            score = logits.gather(1, target[:, None]).sum()
            gradient = None
            if score.requires_grad:
                (gradient,) = torch.autograd.grad(score, features, allow_unused=True)
            if gradient is None:
                raise ValueError(f"grad_cam: the logits do not depend on layer {layer!r}")
    finally:
        hook.remove()
    # Under autocast both may be in half precision, too coarse for a sum of products.
    wide = torch.promote_types(features.dtype, torch.float32)
    weight = gradient.to(wide).mean((2, 3), keepdim=True)
    maps = (weight * features.detach().to(wide)).sum(1)
    _finite("grad_cam", maps.sum() + logits.detach().sum())
    return maps.relu() if relu else maps, logits.detach()


def spike_map(
    spikes: Float[Tensor, "T B C H W"],
    *,
    reduce: Literal["sum", "mean"] = "sum",
    per_step: bool = False,
) -> Float[Tensor, "*T B H W"]:
    r"""Spike activation map: the spikes of a stage, summed over time and channels.

    .. math:: S(h, w) = \sum_t \sum_c s_{t,c}(h, w)

    In spikes; with `reduce="mean"` the firing rate at the position, in spikes per neuron and
    timestep. It needs no class and no gradient to be computed, and lets a loss's gradient through
    to the spikes.

    Args:
        spikes: a stage's output.
        reduce: `"sum"`, or `"mean"` over the same axes.
        per_step: one map a timestep, `[T, B, H, W]`, each reduced over channels only.

    Raises:
        ValueError: not five axes, no timestep, or spikes that are not finite.

    Source: CKDSNN (arXiv 2511.06902), as read in its public summaries. Chapter 3.2.
    """
    if spikes.dim() != 5 or len(spikes) < 1:
        raise ValueError(f"spikes: got shape {list(spikes.shape)}, wanted [T, B, C, H, W], T >= 1")
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce: got {reduce!r}, wanted 'sum' or 'mean'")
    axes = (2,) if per_step else (0, 2)
    # Half precision cannot count past 256 (bf16) or 2,048 (fp16) spikes.
    wide = torch.promote_types(spikes.dtype, torch.float32)
    maps = (spikes.sum if reduce == "sum" else spikes.mean)(axes, dtype=wide)
    return _finite("spikes", maps)


def pointing_game(
    maps: Float[Tensor, "B h w"], masks: Bool[Tensor, "B H W"]
) -> Float[Tensor, " B"]:
    """Does the map's highest point lie on the object? 1 for a hit, 0 for a miss.

    The map is first resampled to the mask's size (bilinear, corners not aligned). Where several
    positions tie for the highest, the score is the share of them on the object: a flat map scores
    the object's area, as a blind guess would.

    Raises:
        ValueError: shapes that do not match, or maps that are not finite.

    Source: Zhang et al. 2016 (ECCV), arXiv 1608.00507, without their tolerance of 15 pixels.
    Chapter 2.2.
    """
    maps = _at_mask_size(maps, masks)
    # Resampling rounds: without a margin, one of several equal positions would win by a bit.
    margin = 8 * torch.finfo(maps.dtype).eps * maps.abs().amax((1, 2), keepdim=True)
    peak = maps >= maps.amax((1, 2), keepdim=True) - margin
    return (peak & masks).sum((1, 2)) / peak.sum((1, 2))


def mask_overlap(maps: Float[Tensor, "B h w"], masks: Bool[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    """The share of the map's mass that lies on the object, from 0 to 1.

    The map is resampled to the mask's size (bilinear); it must not be negative. An all-zero map
    scores the object's area, as an even one does.

    Raises:
        ValueError: shapes that do not match, negative values, or maps that are not finite.

    Source: the energy-based pointing game of Wang et al. 2020 (Score-CAM), arXiv 1910.01279.
    Chapter 2.2.
    """
    if maps.numel() and bool((maps < 0).any()):
        raise ValueError(f"maps: got a value of {float(maps.min()):.3g}, wanted none below 0")
    shares = _shares(_at_mask_size(maps, masks))
    return (shares * masks).sum((1, 2))


def map_divergence(a: Float[Tensor, "B H W"], b: Float[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    r"""Jensen-Shannon divergence of two maps, in nats: 0 for equal shares, ln 2 for disjoint.

    .. math:: \tfrac12 \mathrm{KL}(P \| M) + \tfrac12 \mathrm{KL}(Q \| M), \quad M = (P + Q) / 2

    Each map is divided by its sum, so that it is a distribution over positions; nothing is
    scaled or softened. An all-zero map counts as even.

    Raises:
        ValueError: shapes that do not match, negative values, or maps that are not finite.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy".
    """
    check_maps(a=a, b=b)
    for name, m in (("a", a), ("b", b)):
        if not bool((m >= 0).all()) or not bool(m.isfinite().all()):
            raise ValueError(f"map {name}: wanted finite numbers, none below 0")
    wide = torch.promote_types(a.dtype, torch.float32)
    p, q = _shares(a.to(wide)), _shares(b.to(wide))
    middle = (p + q) / 2

    def kl(x: Tensor) -> Tensor:
        return (torch.xlogy(x, x) - torch.xlogy(x, middle)).sum((1, 2))

    return ((kl(p) + kl(q)) / 2).clamp(min=0)


def rank_correlation(a: Float[Tensor, "B H W"], b: Float[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    """Spearman's rank correlation of two maps, from -1 to 1; ties share their mean rank.

    A flat map has no order: its correlation is NaN, as in SciPy.

    Raises:
        ValueError: shapes that do not match, or maps that are not finite.

    Source: Spearman 1904; used for saliency maps by Adebayo et al. 2018, arXiv 1810.03292.
    """
    check_maps(a=a, b=b)
    ranks = []
    for name, m in (("a", a), ("b", b)):
        _finite(f"map {name}", m)
        flat = m.flatten(1).contiguous()
        ordered = flat.sort(1).values
        below = torch.searchsorted(ordered, flat)
        up_to = torch.searchsorted(ordered, flat, right=True)
        rank = (below + up_to + 1).double() / 2
        ranks.append(rank - rank.mean(1, keepdim=True))
    x, y = ranks
    r = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    return r.to(a.dtype)


def _at_mask_size(maps: Tensor, masks: Tensor) -> Tensor:
    check_maps(maps=maps)
    if masks.dim() != 3 or len(masks) != len(maps) or not masks.numel():
        raise ValueError(
            f"masks: got shape {list(masks.shape)}, wanted [{len(maps)}, H, W] for these maps"
        )
    if masks.dtype != torch.bool:
        raise TypeError(f"masks: got {masks.dtype}, wanted torch.bool")
    _finite("maps", maps)
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    if maps.shape[1:] == masks.shape[1:]:
        return maps
    size = tuple(masks.shape[1:])
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _shares(maps: Tensor) -> Tensor:
    """Each map divided by its sum; an all-zero map becomes even."""
    total = maps.sum((1, 2), keepdim=True)
    even = torch.full_like(maps, 1 / maps[0].numel())
    return torch.where(total > 0, maps / total.where(total > 0, torch.ones_like(total)), even)
