"""Train a teacher on labels, or distil a student from it: Lightning modules.

Any torch module can be teacher or student; the layers that are compared are named by the user, and
their features come from the one forward pass. Needs Lightning: `pip install 'ckdlite[train]'`.
Chapter 3.4 writes the loop in plain lines.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics import MeanMetric

from . import distill
from .distill import _wide
from .measure import count_spikes
from .networks import layer as find_layer
from .networks import record
from .runs import RunError, Seen, checkpoint, mix, one_line, read
from .saliency import (
    cam,
    grad_cam,
    map_divergence,
    mask_overlap,
    pointing_game,
    rank_correlation,
    spike_map,
)

#: Makes an optimiser from the parameters.
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

_SCORES = ("accuracy", "divergence", "rank_correlation", "peak_on_object", "mass_on_object")


def sgd(
    parameters: Iterable[nn.Parameter],
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> torch.optim.Optimizer:
    """The optimiser of CKDSNN: SGD with momentum and weight decay."""
    return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)


def _check_term(name: str, term: Any) -> None:
    if not 0 <= term.weight < float("inf"):
        raise ValueError(f"{name}.weight: got {term.weight}, wanted a finite number of at least 0")
    if not 0 < getattr(term, "temperature", 1) < float("inf"):
        raise ValueError(f"{name}.temperature: got {term.temperature}, wanted a number above 0")


@dataclass(frozen=True)
class KD:
    """Hinton's distillation of logits, `distill.kd`.

    Args:
        weight: at least 0; 0 leaves the term out.
        temperature: tau, above 0.
    """

    weight: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _check_term("kd", self)


@dataclass(frozen=True)
class SAMD:
    """Saliency-scaled activation map distillation, `distill.samd`.

    Args:
        weight: beta, at least 0; 0 leaves the term out.
        temperature: of the softmax over positions, above 0.
        normalise: what brings both maps to one scale. Difference 2 of chapter 3.5.
        square: multiply by the temperature squared. Difference 3.
        teacher_map: Grad-CAM (paper), or the CAM of a linear layer (released code). Difference 1.
        target: the class of the teacher's map: the label (paper), or what the teacher predicts
            (released code). Difference 1.
        fade: let the weight fall in a straight line, from its value in the first epoch to 0 after
            the last, so that the labels have the last word. Ours; not in the paper.
    """

    weight: float = 0.0
    temperature: float = 2.0
    normalise: distill.Normalise = "sample"
    square: bool = True
    teacher_map: Literal["grad_cam", "cam"] = "grad_cam"
    target: Literal["label", "predicted"] = "label"
    fade: bool = False

    def __post_init__(self) -> None:
        _check_term("samd", self)


@dataclass(frozen=True)
class NLD:
    """Noise-smoothed logits distillation, `distill.nld`.

    Args:
        weight: gamma, at least 0; 0 leaves the term out.
        strength: lambda, at least 0.
        temperature: tau, above 0.
        draws: how many draws of the noise the loss is the mean of.
        spread: std (paper) or its square (released code). Difference 6 of chapter 3.5.
        mix: noise on the logits (paper), or probabilities mixed (released code). Difference 5.
        detach_statistics: keep the noise's mean and std out of the graph. Difference 7.
    """

    weight: float = 0.0
    strength: float = 0.1
    temperature: float = 2.0
    draws: int = 1
    spread: Literal["std", "variance"] = "std"
    mix: Literal["logits", "probabilities"] = "logits"
    detach_statistics: bool = True

    def __post_init__(self) -> None:
        _check_term("nld", self)


@dataclass(frozen=True)
class FeatureMSE:
    """Features compared number by number, `distill.feature_mse`.

    Args:
        weight: at least 0; 0 leaves the term out.
    """

    weight: float = 0.0

    def __post_init__(self) -> None:
        _check_term("feature_mse", self)


@dataclass(frozen=True)
class AttentionTransfer:
    """Attention transfer, `distill.attention_transfer`.

    Args:
        weight: at least 0; 0 leaves the term out.
        power: p, above 0.
    """

    weight: float = 0.0
    power: float = 2.0

    def __post_init__(self) -> None:
        _check_term("attention_transfer", self)


class _Learner(L.LightningModule):
    """What both modules share: optimiser and schedule, chance, scores, and what stops a run."""

    def __init__(self, optimizer: MakeOptimizer, seed: int, base_batch: int | None) -> None:
        super().__init__()
        if base_batch is not None and base_batch < 1:
            raise ValueError(f"base_batch: got {base_batch}, wanted at least one image, or None")
        self.make_optimizer, self.seed, self.base_batch = optimizer, seed, base_batch
        # Metrics, not plain means, because a flat map has no rank correlation to count.
        keys = [f"{stage}_{name}" for stage in ("val", "test") for name in _SCORES]
        self.scores = nn.ModuleDict({key: MeanMetric(nan_strategy="ignore") for key in keys})

    def recipe(self) -> dict[str, Any]:
        """Every setting that all parts of one run must share, as plain values."""
        trainer = self.trainer
        optimizer = self._made_for_one()
        about_data = getattr(trainer.datamodule, "recipe", None)
        return {
            "module": type(self).__name__,
            "seed": self.seed,
            "optimizer": f"{type(optimizer).__name__} {optimizer.defaults}",
            "base_batch": self.base_batch,
            "processes": trainer.world_size,
            "max_epochs": trainer.max_epochs,
            "precision": str(trainer.precision),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "limit_train_batches": trainer.limit_train_batches,
            "data": about_data() if callable(about_data) else {},
        }

    def configure_optimizers(self) -> Any:
        """The given optimiser; its learning rate falls to 0 by a cosine, stepped once an epoch.

        With `base_batch` the rate is first scaled by effective batch / base batch.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise RunError(f"max_epochs: got {epochs}, wanted at least 1 for the cosine schedule")
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        if self.base_batch is not None:
            _, batch = self._batch()
            for group in optimizer.param_groups:
                group["lr"] *= batch / self.base_batch
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]

    def _made_for_one(self) -> torch.optim.Optimizer:
        """An optimiser of nothing, to read its settings."""
        return self.make_optimizer([nn.Parameter(torch.zeros(1))])

    def _batch(self) -> tuple[int, int]:
        """Images a batch on one device, and a step of the optimiser over all."""
        trainer = self.trainer
        size = getattr(trainer.datamodule, "batch_size", None)
        if size is None:
            raise RunError(
                "base_batch and the effective batch: the data module has no batch_size; give it "
                "one, or leave base_batch out"
            )
        return size, size * trainer.world_size * trainer.accumulate_grad_batches

    def about(self) -> str:
        """Effective batch, learning rate, batch norm and precision of the run that has begun.

        The command line prints it at the start.

        Raises:
            RunError: the data module has no `batch_size`.
        """
        trainer = self.trainer
        size, batch = self._batch()
        given, base = self._made_for_one().defaults["lr"], self.base_batch or size
        rate = f"{given:.4g}, as given"
        by_rule = f"{given * batch / base:.4g}"
        if self.base_batch:
            rate = f"{by_rule} = {given:.4g} x {batch} / {base}, the linear rule, without a warm-up"
        elif batch != base:
            rate += f"; the linear rule would make it {by_rule} (--model.base_batch {base})"
        norm = f"over the {size} images of a batch"
        if any(isinstance(module, nn.SyncBatchNorm) for module in self.modules()):
            norm = f"synchronised, over {size * trainer.world_size} images of all processes"
        elif trainer.world_size > 1:
            norm = f"per process, over its {size} images; --trainer.sync_batchnorm true: over all"
        return (
            f"effective batch {batch} = {size} images x {trainer.num_devices} devices x "
            f"{trainer.num_nodes} machines x {trainer.accumulate_grad_batches} accumulated\n"
            f"learning rate {rate}\nbatch norm {norm}\nprecision {trainer.precision}"
        )

    def on_train_batch_start(self, _batch: Any, _index: int) -> None:
        # Chance is a function of seed and batch: a resumed run draws what an unbroken one would.
        batch = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(mix(self.seed, batch, self.global_rank))

    def on_save_checkpoint(self, saved: dict[str, Any]) -> None:
        # A neuron hides NaN, which crosses no threshold: the loss alone does not show all.
        for name, value in saved["state_dict"].items():
            self._check(name, value)
        # In half precision a step whose gradient overflows is left out and the next one's scale
        # halved, which is normal now and then. A scale this small means that none is taken.
        if self._scale() < 2**-14:
            raise self._diverged("the gradient is NaN or infinite at every scale")
        saved["recipe"] = self.recipe()

    def on_load_checkpoint(self, saved: dict[str, Any]) -> None:
        if "recipe" not in saved:
            raise RunError("the checkpoint has no recipe in it: ckdlite did not write it")
        _same("network", _shapes(saved["state_dict"]), _shapes(self.state_dict()))
        if self.trainer.state.fn == "fit":  # to score a network, its weights are enough
            _same("recipe", _flat(saved["recipe"]), _flat(self.recipe()))

    def _check(self, what: str, value: Tensor) -> None:
        """Stop at the first value that is not finite, before it reaches weights or checkpoint."""
        if not bool(value.detach().isfinite().all()):
            raise self._diverged(f"NaN or infinity in the {what}")

    def _scale(self) -> float:
        """What the loss is multiplied by before the backward pass: not 1 in float16."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else scaler.get_scale()

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Stop where a loss or a map itself refuses what is not finite."""
        try:
            yield
        except ValueError as error:
            if "wanted finite numbers" not in str(error):
                raise
            raise self._diverged(str(error)) from error

    def _diverged(self, what: str) -> RunError:
        # That of `runs.keep` which has no monitor: best_model_path is the last one that it wrote.
        savers = [s for s in self.trainer.checkpoint_callbacks if getattr(s, "monitor", "") is None]
        path = savers[0].best_model_path if savers else ""
        return RunError(
            f"training diverged: {what}, epoch {self.current_epoch}, step {self.global_step}; "
            + (f"{path} holds the last whole epoch" if path else "no epoch was whole to be kept")
            + ". Start a new run with a lower learning rate (--model.optimizer.lr) or smaller "
            "weights of the terms"
        )

    def _score(
        self,
        stage: str,
        batch: Sequence[Tensor],
        logits: Tensor,
        maps: Tensor,
        guide: Tensor | None = None,
    ) -> None:
        """Log accuracy, where the map lies, and how it agrees with the teacher's."""
        labels, masks = batch[1], batch[2] if len(batch) > 2 else None
        ce = F.cross_entropy(_wide(logits), labels)
        self._check(f"{stage} loss", ce)
        self.log(f"{stage}/ce", ce, **_over_all(labels))
        found = {"accuracy": (logits.argmax(1) == labels).float()}
        if guide is not None:
            found["divergence"] = map_divergence(maps, guide)
            found["rank_correlation"] = rank_correlation(maps, guide)
        if masks is not None:
            found["peak_on_object"] = pointing_game(maps, masks)
            found["mass_on_object"] = mask_overlap(maps, masks)
        for name, values in found.items():
            metric = self.scores[f"{stage}_{name}"]
            metric.update(values)
            self.log(f"{stage}/{name}", metric, on_epoch=True, prog_bar=name == "accuracy")


class Teacher(_Learner):
    """Train an ANN on labels, to be a teacher.

    Batches are `(images, labels)`; those of validation and test may have object masks third.
    Logged: `train/ce` and `train/accuracy`; on `val/` and `test/` `ce`, `accuracy` and, with masks,
    `peak_on_object` and `mass_on_object` of the network's Grad-CAM.

    Args:
        network: images `[B, ...]` to logits `[B, K]`.
        layer: the layer whose Grad-CAM is scored, a name in `network.named_modules()`.
        channels_last: keep the weights, and so the features, in this layout: faster on most
            processors, refused by networks that call `view` on features.
        optimizer: makes the optimiser from the parameters.
        seed: fixes all chance in training, but for the data's order, which has its own.
        base_batch: the effective batch for which the optimiser's learning rate is meant; the rate
            is then scaled by effective / base batch, the linear rule of Goyal et al. 2017 (arXiv
            1706.02677), without its warm-up. `None` leaves the rate as given. The effective batch
            is images a batch x devices x machines x batches accumulated.

    Raises:
        ValueError: no such layer, or a base batch below 1.

    Chapter 3.4.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str = "stage3",
        channels_last: bool = False,
        optimizer: MakeOptimizer = sgd,
        seed: int = 0,
        base_batch: int | None = None,
    ) -> None:
        super().__init__(optimizer, seed, base_batch)
        find_layer(network, layer)
        self.network, self.layer = network, layer
        if channels_last:
            network.to(memory_format=torch.channels_last)

    def recipe(self) -> dict[str, Any]:
        return super().recipe() | {"network": _text(self.network)}

    def training_step(self, batch: Sequence[Tensor], _index: int) -> Tensor:
        images, labels = batch[:2]
        logits = self.network(images)
        loss = F.cross_entropy(_wide(logits), labels)
        self._check("loss", loss)
        self.log("train/ce", loss, prog_bar=True)
        self.log("train/accuracy", (logits.argmax(1) == labels).float().mean())
        return loss

    def _evaluate(self, stage: str, batch: Sequence[Tensor]) -> Seen:
        with self._finite():
            maps, logits = grad_cam(self.network, self.layer, batch[0], batch[1])
        self._score(stage, batch, logits, maps)
        return Seen(logits, maps)

    def validation_step(self, batch: Sequence[Tensor], _index: int) -> Seen:
        return self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Tensor], _index: int) -> None:
        self._evaluate("test", batch)


class _Guide(NamedTuple):
    """The teacher's logits, map and features, as far as a term wants them."""

    logits: Tensor | None = None
    maps: Tensor | None = None
    features: Tensor | None = None


class Distil(_Learner):
    r"""Distil a student from a teacher.

    .. math:: L = L_{CE} + w L_{KD} + \beta L_{SAMD} + \gamma L_{NLD}

    Two terms more compare features, as other methods do: `feature_mse` and
    `attention_transfer`. With all weights at 0 the student learns from labels alone; a term of
    weight 0 is not computed. The features of each network come from its one forward pass.

    The teacher is frozen: it gets no gradient and stays in eval mode, so nothing of it moves. With
    `teacher_drifts` it stays in train mode, as in the released code: its batch norm then uses each
    batch's statistics, and its running ones follow them. Difference 8 of chapter 3.5.

    Batches are `(images, labels)`; those of validation and test may have object masks third.
    Logged: `train/` the total `loss`, each term unweighted and `accuracy`; `gradient/` the norm of
    each weighted term's gradient; on `val/` and `test/` what `Teacher` logs, for the spike map, its
    `divergence` from and `rank_correlation` with the teacher's Grad-CAM of the true class, and the
    mean `firing_rate`; `rate/` the firing rate of each LIF layer in validation.

    Args:
        student: images to per-step logits `[T, B, K]`, averaged over T here, or logits `[B, K]`.
        teacher: images to logits `[B, K]`.
        student_layer: its output is the spikes `[T, B, C, H, W]` of the student's map.
        teacher_layer: its output is the features `[B, C, H, W]` of the teacher's map; same H, W.
        teacher_head: the linear layer that `teacher_map="cam"` reads.
        teacher_weights: what to load into the teacher: a run's folder (its best checkpoint), a
            checkpoint of `Teacher`, or a safetensors file. `None` takes the teacher as it comes.
        kd: Hinton's term.
        samd: the maps' term.
        nld: the noisy logits' term.
        feature_mse: the features' mean squared error; the two layers have the same shape.
        attention_transfer: maps without a class; the two layers have the same H, W.
        teacher_drifts: leave the teacher's batch norm in train mode.
        channels_last: as for `Teacher`, both networks.
        gradient_norms_every: steps between two logs of the gradient norms, each of which costs a
            backward pass a term; 0 for none.
        optimizer: makes the optimiser from the student's parameters.
        seed: fixes all chance in training, NLD's noise too, but for the data's order.
        base_batch: as for `Teacher`.

    Raises:
        ValueError: no such layer, or a base batch below 1.
        FileNotFoundError: no such weights.
        RunError: weights of another network.

    Source: CKDSNN, arXiv 2511.06902. Chapter 3.4.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        student_layer: str = "stage3",
        teacher_layer: str = "stage3",
        teacher_head: str = "head",
        teacher_weights: str | Path | None = None,
        kd: KD = KD(),  # noqa: B008 (frozen)
        samd: SAMD = SAMD(),  # noqa: B008
        nld: NLD = NLD(),  # noqa: B008
        feature_mse: FeatureMSE = FeatureMSE(),  # noqa: B008
        attention_transfer: AttentionTransfer = AttentionTransfer(),  # noqa: B008
        teacher_drifts: bool = False,
        channels_last: bool = False,
        gradient_norms_every: int = 50,
        optimizer: MakeOptimizer = sgd,
        seed: int = 0,
        base_batch: int | None = None,
    ) -> None:
        super().__init__(optimizer, seed, base_batch)
        find_layer(student, student_layer)
        find_layer(teacher, teacher_layer)
        if samd.weight and samd.teacher_map == "cam":
            find_layer(teacher, teacher_head)
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.student_layer, self.teacher_layer = student_layer, teacher_layer
        self.teacher_head = teacher_head
        self.terms = {"kd": kd, "samd": samd, "nld": nld}
        self.terms |= {"feature_mse": feature_mse, "attention_transfer": attention_transfer}
        self.teacher_drifts, self.gradient_norms_every = teacher_drifts, gradient_norms_every
        if teacher_weights is not None:
            load_weights(teacher, teacher_weights)
        if channels_last:
            student.to(memory_format=torch.channels_last)
            teacher.to(memory_format=torch.channels_last)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Distil":
        super().train(mode)
        self.teacher.train(mode and self.teacher_drifts)
        return self

    def recipe(self) -> dict[str, Any]:
        weights = b"".join(p.detach().cpu().numpy().tobytes() for p in self.teacher.parameters())
        return super().recipe() | {
            "student": _text(self.student),
            "teacher": _text(self.teacher),
            "teacher_weights": hashlib.sha256(weights).hexdigest()[:16],
            "student_layer": self.student_layer,
            "teacher_layer": self.teacher_layer,
            "teacher_head": self.teacher_head,
            **{name: asdict(term) for name, term in self.terms.items()},
            "teacher_drifts": self.teacher_drifts,
        }

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        images, labels = batch[:2]
        logits, spikes = self._look(images)
        self._check_labels(labels, logits)
        guide = self._guide(images, labels)
        self._same_classes(logits, guide.logits)
        losses, weights = {"ce": F.cross_entropy(logits, labels)}, {"ce": 1.0}
        for name, term in self.terms.items():
            options = asdict(term)
            weights[name] = options.pop("weight")
            if not weights[name]:
                continue
            own, their = logits, guide.logits
            if name == "samd":
                del options["teacher_map"], options["target"]
                if options.pop("fade"):
                    weights[name] *= 1 - self.current_epoch / self.trainer.max_epochs
                own, their = spike_map(spikes), guide.maps
                if own.shape != their.shape:
                    raise self._unlike("maps", own.shape[1:], their.shape[1:])
            elif name in ("feature_mse", "attention_transfer"):
                own, their = spikes.mean(0), guide.features
                part = slice(1 if name == "feature_mse" else 2, None)
                if own.shape[part] != their.shape[part]:
                    raise self._unlike("features", own.shape[part], their.shape[part])
            with self._finite():
                losses[name] = getattr(distill, name)(own, their, **options)
        parts = {name: weights[name] * value for name, value in losses.items()}
        total = sum(parts.values())
        self._check("loss", total)
        self.log("train/loss", total, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        self.log("train/accuracy", (logits.argmax(1) == labels).float().mean())
        if self.gradient_norms_every and index % self.gradient_norms_every == 0:
            norms = {f"gradient/{name}": self._norm(part).item() for name, part in parts.items()}
            for logger in self.loggers:  # not `log`, which repeats them at each later step
                logger.log_metrics(norms, self.global_step)
        return total

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits `[B, K]` and its layer's spikes `[T, B, C, H, W]`."""
        with record(self.student, self.student_layer) as features:
            logits = self.student(images)
        logits = _wide(logits.mean(0) if logits.dim() == 3 else logits)
        self._check("student's logits", logits)
        spikes = features[self.student_layer]
        if spikes.dim() not in (4, 5) or spikes.shape[-4] != len(logits):
            raise RunError(
                f"student_layer {self.student_layer!r} gave {list(spikes.shape)}, wanted "
                f"[T, B, C, H, W], or [B, C, H, W], with B = {len(logits)}: name another layer"
            )
        return logits, spikes if spikes.dim() == 5 else spikes[None]

    def _guide(self, images: Tensor, labels: Tensor) -> _Guide:
        """What the terms want of the teacher, from one forward pass, or none."""
        samd = self.terms["samd"]
        if not samd.weight:
            if not self.teacher_drifts and not any(term.weight for term in self.terms.values()):
                return _Guide()
            with torch.no_grad(), record(self.teacher, self.teacher_layer) as features:
                logits = self.teacher(images)
            return _Guide(_wide(logits), None, features[self.teacher_layer])
        target = labels if samd.target == "label" else None
        if samd.teacher_map == "grad_cam":
            with record(self.teacher, self.teacher_layer) as features:
                maps, logits = grad_cam(self.teacher, self.teacher_layer, images, target)
            return _Guide(_wide(logits), maps, features[self.teacher_layer].detach())
        with torch.no_grad(), record(self.teacher, self.teacher_layer) as features:
            logits = self.teacher(images)
        weight = find_layer(self.teacher, self.teacher_head).weight
        target = logits.argmax(1) if target is None else target
        seen = features[self.teacher_layer]
        return _Guide(_wide(logits), cam(_wide(seen), _wide(weight), target), seen)

    def _check_labels(self, labels: Tensor, logits: Tensor) -> None:
        # A GPU would only say that an assertion failed, and be of no more use.
        if (most := int(labels.max())) >= logits.shape[1]:
            raise RunError(
                f"the data has label {most}, the student {logits.shape[1]} classes, numbered from "
                "0; wanted as many classes as the data has"
            )

    def _same_classes(self, own: Tensor, their: Tensor | None) -> None:
        if their is not None and own.shape != their.shape:
            raise RunError(
                f"the student has {own.shape[1]} classes, the teacher {their.shape[1]}; wanted the "
                "same classes in the same order: give both networks those of the data"
            )

    def _unlike(self, what: str, own: Sequence[int], their: Sequence[int]) -> RunError:
        sizes = [" x ".join(map(str, size)) for size in (own, their)]
        return RunError(
            f"the {what} cannot be compared: those of student_layer {self.student_layer!r} are "
            f"{sizes[0]}, those of teacher_layer {self.teacher_layer!r} {sizes[1]}; wanted one "
            "size: name another layer of one of the two networks. Nothing is resampled"
        )

    def _norm(self, part: Tensor) -> Tensor:
        """The norm of one term's gradient over all that the student learns."""
        trained = [p for p in self.student.parameters() if p.requires_grad]
        # Scaled as the step's own loss is, or small gradients would vanish in float16.
        scale = self._scale()
        found = torch.autograd.grad(scale * part, trained, retain_graph=True, allow_unused=True)
        return nn.utils.get_total_norm([g for g in found if g is not None]) / scale

    def _evaluate(self, stage: str, batch: Sequence[Tensor]) -> Seen:
        with count_spikes(self.student) as rates:
            logits, spikes = self._look(batch[0])
        self._check_labels(batch[1], logits)
        with self._finite():
            maps = spike_map(spikes)
        guide, their = grad_cam(self.teacher, self.teacher_layer, batch[0], batch[1])
        self._same_classes(logits, their)
        self._score(stage, batch, logits, maps, guide if guide.shape == maps.shape else None)
        if rates:
            each = {name: sum(found) / len(found) for name, found in rates.items()}
            size = _over_all(batch[1])
            self.log(f"{stage}/firing_rate", sum(each.values()) / len(each), **size)
            if stage == "val":
                self.log_dict({f"rate/{name}": rate for name, rate in each.items()}, **size)
        return Seen(logits, maps, guide)

    def validation_step(self, batch: Sequence[Tensor], _index: int) -> Seen:
        return self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Tensor], _index: int) -> None:
        self._evaluate("test", batch)


def load_weights(network: nn.Module, source: str | Path) -> None:
    """Load into a network the weights of a run (its best checkpoint), a checkpoint or a safetensors
    file, without pickle.

    Raises:
        FileNotFoundError: no such run or file.
        RunError: a damaged file, or weights of another network; the message lists what differs.
    """
    path = Path(source)
    if path.is_dir():
        path = checkpoint(path)
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise RunError(f"{path} is damaged: {error}; take another file") from error
    else:
        saved = read(path)
        if not isinstance(saved, dict) or "state_dict" not in saved:
            raise RunError(f"{path} is no checkpoint of a run, which was wanted")
        state = saved["state_dict"]
        # A run of Teacher holds its network, a run of Distil its student (and its teacher).
        role = "network." if any(key.startswith("network.") for key in state) else "student."
        weights = {k.removeprefix(role): v for k, v in state.items() if k.startswith(role)}
    _same(f"network ({path})", _shapes(weights), _shapes(network.state_dict()))
    network.load_state_dict(weights)


def _over_all(batch: Tensor) -> dict[str, Any]:
    """How to log a mean over all images of all processes."""
    # A float, because Lightning (2.6) rounds the mean of whole numbers over the processes down.
    return {"on_epoch": True, "sync_dist": True, "batch_size": float(len(batch))}


def _text(network: nn.Module) -> str:
    """A network in one line, the same whether its batch norm is synchronised or not."""
    return re.sub(r"\w*BatchNorm\w*", "BatchNorm", one_line(network))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(list(value.shape)) for name, value in weights.items()}


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[before + key] = str(value)
    return found


def _same(what: str, saved: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Refuse saved settings or shapes that are not these, and say where they differ."""
    unlike = []
    for key in sorted(saved.keys() | own.keys()):
        old, new = saved.get(key, "(not there)"), own.get(key, "(not there)")
        if old != new:
            # Of two long texts, such as networks, only where they part.
            start = max(0, len(os.path.commonprefix([old, new])) - 20)
            cut = slice(start, start + 60) if max(len(old), len(new)) > 80 else slice(None)
            unlike.append(f"{key}: saved {old[cut]}, now {new[cut]}")
    if unlike:
        more = f"\n  and {len(unlike) - 8} more" if len(unlike) > 8 else ""
        raise RunError(
            f"the weights were saved by a run of another {what}; give the settings of that run, or "
            "another folder:\n  " + "\n  ".join(unlike[:8]) + more
        )
