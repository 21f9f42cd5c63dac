"""A run's folder: what a run leaves there, how it goes on, and how it is read again::

    runs/paper/
      config.yaml               every setting (written by the command line)
      starts.jsonl              a line a start: versions, commit, device, precision, date
      checkpoints/last.ckpt     the end of the last whole epoch, from which the run goes on
      checkpoints/best.ckpt     the epoch with the highest validation accuracy
      csv/version_0/metrics.csv, tensorboard/    what was logged; one version a start
      maps/                     six validation images, and their maps at each validation
      test.json                 scores on the test set, written once
      report.html               a page drawn from all that, by `ckdlite report`

Needs Lightning: `pip install 'ckdlite[train]'`. Chapter 3.4.
"""

import csv
import io
import json
import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from . import __version__

#: What decides which checkpoint is the best.
MONITOR = "val/accuracy"
#: Of how many validation images, the first ones, a run keeps the maps.
PICTURES = 6


class RunError(RuntimeError):
    """A run cannot start or go on; the message says why, and what to do."""


class Seen(NamedTuple):
    """What a validation step of `training.Teacher` and `training.Distil` returns.

    Attributes:
        logits: of the network that is trained, `[B, K]`.
        maps: its Grad-CAM, or a student's spike map, `[B, H, W]`.
        guide: the teacher's Grad-CAM, `[B, H, W]`; None where there is no teacher.
    """

    logits: Tensor
    maps: Tensor
    guide: Tensor | None = None


def checkpoint(run: str | Path, which: str = "best") -> Path:
    """The file of a run's `best` or `last` checkpoint.

    Raises:
        FileNotFoundError: the run has none.
    """
    path = Path(run) / "checkpoints" / f"{which}.ckpt"
    if not path.is_file():
        if which == "best" and resume(run):
            raise FileNotFoundError(
                f"{path} is missing: no epoch was validated yet; last.ckpt is there "
                "(--checkpoint last)"
            )
        raise FileNotFoundError(
            f"{path} is missing: {run} holds no run whose first epoch has ended; "
            "ckdlite fit --run FOLDER makes one"
        )
    return path


def resume(run: str | Path) -> Path | None:
    """What to give `Trainer.fit` as `ckpt_path`: the last checkpoint, or None for a new run."""
    path = Path(run) / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None


def precision(accelerator: str = "auto") -> str:
    """What to give `Trainer` as `precision`: half where the device has it, else full.

    `"bf16-mixed"` on a GPU that computes in bfloat16 itself; `"16-mixed"` on any other, such as a
    T4, which would only imitate bfloat16; `"32-true"` without a GPU, or for another accelerator.
    """
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "16-mixed"


def keep(run: str | Path) -> dict[str, Any]:
    """Arguments for `lightning.pytorch.Trainer` that keep a run in a folder.

    ::

        trainer = L.Trainer(max_epochs=20, **keep("runs/mine"))
        trainer.fit(module, data, ckpt_path=resume("runs/mine"))

    Checkpoints are written at the end of each epoch, whole or not at all. A folder that holds a
    run is never written over: without `ckpt_path` the trainer refuses it.
    """
    run = Path(run)
    return {
        "default_root_dir": run,
        "inference_mode": False,  # Grad-CAM needs a gradient in validation too
        "logger": [
            CSVLogger(run, name="csv", flush_logs_every_n_steps=1),
            TensorBoardLogger(run, name="tensorboard", default_hp_metric=False),
        ],
        "callbacks": [
            _Guard(run),
            # The best one first: a stop between the two leaves a last one that knows of it.
            _saver(run, "best", monitor=MONITOR, mode="max"),
            _saver(run, "last", save_on_train_epoch_end=True),
            _Maps(run),
        ],
        "plugins": [AtomicCheckpointIO()],
    }


def _saver(run: Path, name: str, **options: Any) -> ModelCheckpoint:
    # One name for all epochs: each checkpoint takes the place of the one before.
    return ModelCheckpoint(
        run / "checkpoints", filename=name, enable_version_counter=False, **options
    )


class _Guard(L.Callback):
    """Refuses to train anew in a folder that holds a run; notes what trains in it."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_fit_start(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        if trainer.ckpt_path is None and resume(self.run):
            raise RunError(
                f"{self.run} holds a run, which would be written over; go on with it by "
                "ckpt_path=runs.resume(folder), or choose another folder"
            )

    def on_train_start(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        # Not where all epochs are done: that folder is left alone.
        if trainer.is_global_zero:
            self.run.mkdir(parents=True, exist_ok=True)
            with (self.run / "starts.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(_start(trainer)) + "\n")


def _start(trainer: L.Trainer) -> dict[str, Any]:
    """What trains: versions, the library's commit where it is a checkout, device, precision."""
    root, device = Path(__file__).parents[1], trainer.strategy.root_device
    commit = None
    if (root / ".git").exists():
        try:
            words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
            commit = subprocess.run(words, capture_output=True, text=True).stdout.strip() or None
        except OSError:
            pass  # no git here
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ckdlite": __version__,
        "commit": commit,
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }


class _Maps(L.Callback):
    """Keeps the maps of the first validation images, which the step has made: nothing is run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "maps"

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        _module: L.LightningModule,
        seen: Any,
        batch: Any,
        index: int,
        loader: int = 0,
    ) -> None:
        first = index == loader == 0 and trainer.is_global_zero and not trainer.sanity_checking
        if first and isinstance(seen, Seen) and trainer.state.fn == "fit":
            self.folder.mkdir(exist_ok=True)
            images, maps = pictures(seen, batch)
            _write(self.folder / "images.npz", images)
            _write(self.folder / f"epoch-{trainer.current_epoch:04d}.npz", maps)


def pictures(seen: Seen, batch: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The first images of a validation batch and their labels; their maps. Pictures are bytes,
    scaled from least to greatest: the images together, every map by itself."""
    images = batch[0][:PICTURES].detach().float().cpu()
    if images.dim() == 4 and images.shape[1] in (1, 3):  # no picture of event frames, say
        images = images.expand(-1, 3, -1, -1)
    else:
        images = images.new_zeros(0, 3, 1, 1)
    found = {"labels": batch[1][:PICTURES].cpu().numpy(), "images": _bytes(images[None])[0]}
    maps = {"own": seen.maps} | ({} if seen.guide is None else {"guide": seen.guide})
    return found, {k: _bytes(v[:PICTURES].detach().float().cpu()) for k, v in maps.items()}


def _bytes(pictures: Tensor) -> np.ndarray:
    """Bytes `[N, ...]`, each of the N scaled from its least to its greatest value."""
    flat = pictures.flatten(1)
    if not flat.numel():
        return pictures.byte().numpy()
    least, most = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
    scaled = 255 * (flat - least) / (most - least).clamp(min=1e-30)
    return scaled.round().byte().reshape(pictures.shape).numpy()


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside the old one and then renames it; reads it without pickle.

    Whatever stops the write, the old checkpoint is still there and whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        # In memory first: an error of the file then is an OSError that says what it is.
        data = io.BytesIO()
        torch.save(checkpoint, data)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                file.write(data.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            kept = f"{path} is still that of an earlier epoch" if path.exists() else "none is kept"
            raise RunError(
                f"a checkpoint of {data.getbuffer().nbytes / 1e6:.1f} MB could not be written: "
                f"{error.strerror or error}; {kept}. Free some space, then give the same command "
                "again: it goes on from the last whole epoch"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, **_options: Any
    ) -> dict[str, Any]:
        return read(path, map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, read without pickle.

    Raises:
        FileNotFoundError: there is none.
        RunError: it is damaged, or holds other than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; a checkpoint was wanted")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        said = str(error).partition("\n")[0].rstrip(".")
        raise RunError(
            f"{path} is damaged or no checkpoint of tensors and plain values: "
            f"{said or type(error).__name__}. "
            "Remove it, or take the other one of best.ckpt and last.ckpt"
        ) from error


def history(run: str | Path) -> list[dict[str, float]]:
    """What a run logged, a dictionary a row, in the order of the steps.

    Every start of the run has a file of its own; what a killed start logged after the checkpoint
    from which the next one went on is left out, as it was done again.

    Raises:
        FileNotFoundError: nothing was logged there.
    """
    files = sorted(
        Path(run).glob("csv/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])
    )
    if not files:
        raise FileNotFoundError(f"{run}: no csv/version_*/metrics.csv there; a run's folder wanted")
    rows: list[dict[str, float]] = []
    for file in files:
        # A kill may have left half a line, which has no end.
        lines = file.read_text().rpartition("\n")[0].splitlines()
        new = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]
        if new:
            rows = [row for row in rows if row["step"] < new[0]["step"]] + new
    return rows


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def one_line(thing: Any) -> str:
    """An object as it prints itself, in one line and without its address in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(thing).split()))
