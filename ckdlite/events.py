"""Recordings of an event camera as frames over time: CIFAR10-DVS, or recordings of your own.

Needs tonic and Lightning: `pip install 'ckdlite[train,events]'`. Chapter 4.3.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Num
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import resize

from . import data
from .datamodules import _ImageData
from .lif import check_timesteps
from .runs import RunError

#: Width, height and polarities of the camera of CIFAR10-DVS.
SENSOR = (128, 128, 2)


def frames(
    events: np.ndarray, timesteps: int = 10, size: int | None = 48
) -> Float32[Tensor, "T 2 H W"]:
    r"""Count a recording's events by time bin, polarity and pixel, and resize the counts.

    With :math:`t_0` and :math:`t_1` the times of the first and the last event,

    .. math::

        d &= \lfloor (t_1 - t_0) / T \rfloor \\
        n_{bpyx} &= \#\{i : \lfloor (t_i - t_0) / d \rfloor = b,\ (p_i, y_i, x_i) = (p, y, x)\}

    Events from :math:`t_0 + T d` on are left out. Counted by `tonic.transforms.ToFrame`, resized
    by torchvision's bilinear rule with antialiasing, as images are; a resized value is a mean
    count, not whole. Nothing is divided: about one event a pixel and bin is the order of
    CIFAR10-DVS, and the first batch norm does the rest.

    Args:
        events: a structured array with the fields t (microseconds, rising), x, y (pixels of 128 x
            128) and p (polarity: 1 for brighter, 0 for darker).
        timesteps: T, how many bins.
        size: side of the frames; None leaves 128.

    Raises:
        ImportError: tonic is not installed.
        ValueError: fields that are missing, no events, times that fall or span less than T
            microseconds, events that lie beside the sensor, T or size below 1.

    Source: time bins and 48 x 48 pixels as in work after TET (arXiv 2202.11946); how CKDSNN makes
    its frames is not public. Chapter 4.3.
    """
    check_timesteps(timesteps)
    if size is not None and size < 1:
        raise ValueError(f"size: got {size}, wanted at least 1")
    names = events.dtype.names or ()
    if events.ndim != 1 or not {"t", "x", "y", "p"} <= set(names) or not len(events):
        raise ValueError(
            f"events: got shape {events.shape} with the fields {', '.join(names) or 'none'}, "
            "wanted at least one event with t, x, y and p"
        )
    times = events["t"].astype(np.int64)
    if (np.diff(times) < 0).any() or times[-1] - times[0] < timesteps:
        raise ValueError(
            f"events: got times from {times[0]} to {times[-1]}, wanted rising ones that span at "
            f"least T = {timesteps} microseconds"
        )
    for name, end in zip("xyp", SENSOR, strict=True):
        low, high = int(events[name].min()), int(events[name].max())
        if low < 0 or high >= end:
            raise ValueError(f"events: got {name} from {low} to {high}, wanted 0 to {end - 1}")
    count = _tonic().transforms.ToFrame(sensor_size=SENSOR, n_time_bins=timesteps)
    counts = torch.from_numpy(count(events)).float()
    return counts if size is None else resize(counts, [size, size], antialias=True)


class Roll(nn.Module):
    """Shift all frames of a sample alike, by whole pixels, and bring back in what leaves.

    Args:
        pixels: the largest shift along each axis; each from minus to plus that many is as likely.

    Raises:
        ValueError: less than 0.
    """

    def __init__(self, pixels: int = 5) -> None:
        super().__init__()
        if pixels < 0:
            raise ValueError(f"pixels: got {pixels}, wanted at least 0")
        self.pixels = pixels

    def forward(self, x: Num[Tensor, "*L H W"]) -> Num[Tensor, "*L H W"]:
        """The shifted frames."""
        shift = torch.randint(-self.pixels, self.pixels + 1, (2,)).tolist()
        return x.roll(shift, (-2, -1))

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}"


class EventData(_ImageData):
    """CIFAR10-DVS for training, or another folder of recordings: `root/<class>/*`.

    Batches are frames, time first, `[T, B, 2, size, size]`, and labels, as a trainer hands them
    on. A recording is an `.aedat4` file, or an `.npy` file with the array that `frames` takes.

    The data set has no official split. Usual, and done here: of each class the last tenth (100 of
    1,000) in the order of the files' numbers is the test set. Of the rest one tenth of every class
    validates, always the same: 8,100 recordings train, 900 validate, 1,000 test.

    The frames are made once, and kept beside the recordings in `ROOT-frames/<T>x<size>/`, float16,
    one file a class, written whole or not at all: 0.9 GB for CIFAR10-DVS at T = 10 and 48 pixels.
    Order and augmentation depend on the seed, the epoch and the recording alone, not on the number
    of workers; a sample's frames are augmented alike. There are no masks: where a map lies is not
    scored.

    Args:
        root: the folder of the classes.
        timesteps: T, how many frames; a student's own must be the same.
        size: side of the frames.
        recordings: how many every class must have, so that half a download is found out; 0 for a
            folder of your own, with any number from 3 on.
        images: how many training recordings, a random choice that is always the same; None takes
            all.
        download: fetch CIFAR10-DVS through tonic where it is not there, which checks its MD5; root
            must then end in CIFAR10DVS.
        batch_size: recordings a training batch, on each device.
        augment: transforms of a training sample, float16 `[T, 2, size, size]`, in this order.
        workers: processes that load; 0 loads in the training process.
        seed: fixes the order and the augmentation, not which recordings.

    Raises:
        FileNotFoundError: recordings are missing, when they are first wanted.
        RunError: a damaged recording or file of frames, frames of other recordings than those
            there, or a student of another T.
        ValueError: more recordings wanted than there are, T or size below 1.

    Source: Li et al. 2017, doi:10.3389/fnins.2017.00309. Chapter 4.3.
    """

    scored = 50  # at once; ten frames each

    def __init__(
        self,
        root: str | Path = "data/CIFAR10DVS",
        timesteps: int = 10,
        size: int = 48,
        recordings: int = 1000,
        images: int | None = None,
        download: bool = False,
        batch_size: int = 64,
        augment: Sequence[nn.Module] = (),
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(images, batch_size, augment, workers, seed)
        check_timesteps(timesteps)
        if size < 1:
            raise ValueError(f"size: got {size}, wanted at least 1")
        self.root, self.timesteps, self.size = Path(root), timesteps, size
        self.recordings, self.download = recordings, download
        if download and self.root.name != "CIFAR10DVS":
            raise ValueError(f"root: got {root} to download to, wanted a folder named CIFAR10DVS")

    def recipe(self) -> dict[str, Any]:
        # Not the root: a run may go on where the recordings lie elsewhere.
        return super().recipe() | {"timesteps": self.timesteps, "size": self.size}

    def prepare_data(self) -> None:
        """Fetch the recordings and make their frames once, before several devices look for them."""
        student = getattr(self.trainer and self.trainer.lightning_module, "student", None)
        own = getattr(student, "timesteps", self.timesteps)
        if own != self.timesteps:
            raise RunError(
                f"timesteps: the student has {own}, the data {self.timesteps} frames; give "
                "--model.student.timesteps and --data.timesteps the same number"
            )
        if self.download:
            try:
                _tonic().datasets.CIFAR10DVS(str(self.root.parent))
            except (OSError, RuntimeError) as error:
                raise RunError(
                    f"CIFAR10-DVS could not be fetched: {error}. Try again, or put the classes' "
                    f"folders of .aedat4 files into {self.root}"
                ) from error
        self._frames()

    def _frames(self) -> list[Path]:
        """A file of frames for each class, made where it is not there."""
        folder = self.root.with_name(self.root.name + "-frames") / f"{self.timesteps}x{self.size}"
        made = []
        for name, files in _recordings(self.root, self.recordings).items():
            made.append(folder / f"{name}.npy")
            if not made[-1].exists():
                print(f"ckdlite: making the frames of {len(files)} x {name}", file=sys.stderr)
                _make(made[-1], files, self.timesteps, self.size)
            shape = (len(files), self.timesteps, 2, self.size, self.size)
            try:
                found = np.load(made[-1], mmap_mode="r").shape
            except (ValueError, EOFError) as error:
                raise RunError(f"{made[-1]} is damaged; remove it: it is made anew") from error
            if found != shape:
                raise RunError(
                    f"{made[-1]} has shape {found}, and {self.root / name} wants {shape}: the "
                    "recordings are not those it was made from; remove it: it is made anew"
                )
        return made

    def _open(self, split: str) -> Dataset:
        made = self._frames()
        counts = [len(np.load(path, mmap_mode="r")) for path in made]
        first = [count - max(1, count // 10) for count in counts]
        if split == "test":
            parts = map(range, first, counts)
        else:
            parts = map(range, first)
        places = [(label, i) for label, part in enumerate(parts) for i in part]
        kept = data._members([label for label, _ in places], split)
        found = _Frames(made, [places[i] for i in kept])
        return self._some(found) if split == "train" else found

    def on_after_batch_transfer(self, batch: Sequence[Tensor], _index: int) -> list[Tensor]:
        samples, *rest = batch
        return [samples.float().transpose(0, 1).contiguous(), *rest]


class _Frames(Dataset):
    """Frames and labels by position. The files are opened for each sample, not kept open, so that
    loading processes are not sent what is in them."""

    def __init__(self, files: Sequence[Path], places: Sequence[tuple[int, int]]) -> None:
        self.files, self.places = files, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        label, i = self.places[position]
        return torch.from_numpy(np.load(self.files[label], mmap_mode="r")[i].copy()), label


def _tonic() -> ModuleType:
    try:
        import tonic
    except ImportError as error:
        raise ImportError("events want tonic: pip install 'ckdlite[events]'") from error
    return tonic


def _recordings(root: Path, wanted: int) -> Mapping[str, list[Path]]:
    """The recordings of each class, in the order of their numbers."""
    classes = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not classes:
        raise FileNotFoundError(
            f"{root}: no folders of recordings there; expected {root}/<class>/<recording>. "
            "CIFAR10-DVS is fetched by --data.download true"
        )
    found = {}
    for path in classes:
        files = [p for p in path.iterdir() if p.suffix in (".aedat4", ".npy")]
        if len(files) < 3 or wanted not in (0, len(files)):
            raise FileNotFoundError(
                f"{path}: {len(files)} recordings (.aedat4, .npy) there, wanted "
                f"{wanted or 'at least 3'}; if a download or its unpacking stopped halfway, "
                "remove the folder and begin again"
            )
        found[path.name] = sorted(files, key=_number)
    return found


def _number(path: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name


def _make(path: Path, files: Sequence[Path], timesteps: int, size: int) -> None:
    made = np.empty((len(files), timesteps, 2, size, size), np.float16)
    for i, file in enumerate(files):
        try:
            made[i] = frames(_read(file), timesteps, size).numpy()
        except (ValueError, RuntimeError, EOFError) as error:
            raise RunError(f"{file} is damaged or no recording: {error}; replace it") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as opened:
        np.save(opened, made)
    part.replace(path)


def _read(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    read = _tonic().io.read_aedat4
    try:
        events = read(str(path))
    except ImportError as error:
        raise ImportError("reading .aedat4 wants aedat: pip install 'ckdlite[events]'") from error
    events.dtype.names = ["t", "x", "y", "p"]  # the decoder calls p `on`
    return events
