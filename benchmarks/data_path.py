"""What a training image of the CIFAR recipes costs before the network sees it, and where.

    python benchmarks/data_path.py FOLDER        # train/<class>/*.jpg of 32 x 32

Processor time an image, one thread, no worker: each step alone, the whole path as the data module
has it (each image by itself, with a seed of its own), and the path with crop, flip and erasing
moved to the batch; AutoAugment draws other operations for each image, and stays. The cases take
turns in each round, so that their ratios hold on a machine that does other things too. The whole
path costs more than the sum of its steps: the processor goes back and forth between them. The table
is `ckdlite/assets/data-path-cpu.csv`.
"""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from ckdlite import data
from ckdlite._assets import FOLDER
from ckdlite.datamodules import _Augmented

COLUMNS = [
    *("case", "microseconds", "least", "most", "ratio", "images", "rounds", "device"),
    *("torch", "torchvision", "pillow", "date"),
]
RECIPE = "whole path, each image by itself"
PADDING, SCALE, RATIO, GREY = 4, (0.02, 0.2), (0.3, 3.3), 121

CROP = v2.RandomCrop(32, PADDING)
FLIP = v2.RandomHorizontalFlip()
AUTO = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
ERASE = v2.RandomErasing(scale=SCALE, ratio=RATIO, value=GREY)


def cut(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Cut `[B, 3, S, S]` out of the padded images, each at its own place, and mirror some."""
    count, channels, size, _ = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    columns = torch.arange(size).expand(count, size)
    columns = left[:, None] + columns.where(~flip[:, None], columns.flip(1))
    rows = top[:, None] + torch.arange(size)
    each, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[each, channel, rows[:, None, :, None], columns[:, None, None, :]]


def erase(images: Tensor, top: Tensor, left: Tensor, high: Tensor, wide: Tensor) -> Tensor:
    """Grey over one rectangle of each image; one of height 0 leaves it as it is."""
    place = torch.arange(images.shape[-1])
    rows = (place >= top[:, None]) & (place < (top + high)[:, None])
    columns = (place >= left[:, None]) & (place < (left + wide)[:, None])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], GREY)


def on_batch(images: Tensor) -> Tensor:
    """Crop, flip and erasing as the recipe draws them, for all images of a batch at once."""
    count, size = len(images), images.shape[-1]
    top, left = torch.randint(2 * PADDING + 1, (2, count))
    images = cut(images, top, left, torch.rand(count) < 0.5)
    area = size**2 * torch.empty(count).uniform_(*SCALE)
    low, high = (torch.tensor(r).log() for r in RATIO)
    ratio = (low + (high - low) * torch.rand(count)).exp()
    tall, wide = ((area * r).sqrt().round().long() for r in (ratio, 1 / ratio))
    # As in RandomErasing, half are erased; a rectangle larger than the image is left out here.
    tall = tall.where((torch.rand(count) < 0.5) & (tall < size) & (wide < size), 0)
    top, left = ((torch.rand(count) * (size - side + 1)).long() for side in (tall, wide))
    return erase(images, top, left, tall, wide)


def cases(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """What is timed, on the same images."""
    files = data.folder(folder, "train", transform=pil_to_tensor)
    pictures = data.folder(folder, "train")
    some = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:count].tolist()
    pil = [pictures[i][0] for i in some]
    bytes_ = [pil_to_tensor(p) for p in pil]
    steps = {"crop": CROP, "flip": FLIP, "AutoAugment": AUTO, "erasing": ERASE}
    four = list(steps.values())
    kept = [(image, 0) for image in bytes_]
    bare = _Augmented(kept, [])

    def path(images: Dataset, transforms: list[nn.Module], places: Iterable[int]) -> Tensor:
        augmented = _Augmented(images, transforms)
        return torch.stack([augmented[place, 7 * place][0] for place in places])

    after_pil = v2.Compose([CROP, FLIP, AUTO, pil_to_tensor, ERASE])
    return {
        "read and decode": lambda: [pictures[i] for i in some],
        "to a tensor": lambda: [pil_to_tensor(p) for p in pil],
        "a seed of its own": lambda: [bare[i, i] for i in range(count)],
        **{
            name: lambda step=step: [step(image) for image in bytes_]
            for name, step in steps.items()
        },
        "AutoAugment, Pillow's image": lambda: [AUTO(p) for p in pil],
        "all four, Pillow's image": lambda: [after_pil(p) for p in pil],
        "crop, flip, erasing on the batch": lambda: on_batch(torch.stack(bytes_)),
        RECIPE: lambda: path(files, four, some),
        "whole path, three on the batch": lambda: on_batch(path(files, [AUTO], some)),
        "kept in memory, by itself": lambda: path(kept, four, range(count)),
        "kept in memory, three on the batch": lambda: on_batch(path(kept, [AUTO], range(count))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="train/<class>/*, test/<class>/*")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--table", type=Path, default=FOLDER / "data-path-cpu.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    timed = cases(given.folder, given.images)
    found: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(given.rounds + 1):
        for name, run in timed.items():
            torch.manual_seed(turn)
            start = time.process_time()
            run()
            if turn:  # the first is a warm-up
                found[name].append(1e6 * (time.process_time() - start) / given.images)
    about = {
        "images": given.images,
        "rounds": given.rounds,
        "device": f"CPU, {os.cpu_count()} cores, 1 thread",
        **{name: version(name).partition("+")[0] for name in ("torch", "torchvision", "pillow")},
        "date": date.today().isoformat(),
    }
    with given.table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, times in found.items():
            ratio = statistics.median(t / r for t, r in zip(times, found[RECIPE], strict=True))
            row = {"case": name, "microseconds": round(statistics.median(times), 1)}
            row |= {"least": round(min(times), 1), "most": round(max(times), 1)}
            writer.writerow(row | {"ratio": round(ratio, 3)} | about)
            print(f"{name:34} {row['microseconds']:7} us an image, {ratio:.3f} of the whole path")


if __name__ == "__main__":
    main()
