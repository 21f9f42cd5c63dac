"""One epoch of ResNet-19: images a second and peak memory, by neuron and by loss.

    python benchmarks/epoch.py --device cuda                       # neurons and losses
    python benchmarks/epoch.py --device cuda --folder FOLDER       # and the data path

An epoch is as many steps as 45,000 images make in batches of 128. The images are random, 32 x 32,
and lie on the device: eight batches in turn. The data path is timed alone, on a folder of images
with the augmentation of the recipes. Each case is a process of its own, after a warm-up, and its
row is written as it ends, into `ckdlite/assets/epoch-cuda.csv` (or `epoch-cpu.csv`); a case that is
there is replaced.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peers import NEURONS, Neuron
from torchvision.transforms import v2

from ckdlite._assets import FOLDER
from ckdlite.datamodules import FolderData
from ckdlite.networks import resnet19
from ckdlite.training import KD, NLD, SAMD, Distil

COLUMNS = [
    *("case", "timesteps", "precision", "batch", "images", "images_per_second", "peak_mb"),
    *("device", "torch", "spikingjelly", "snntorch", "date"),
]
BATCH = 128
LOSSES = {
    "label-only": {},
    "kd": {"kd": KD(1.0)},
    "samd": {"samd": SAMD(1.0)},
    "nld": {"nld": NLD(1.0)},
    "paper": {"samd": SAMD(1.0), "nld": NLD(1.0)},
}
PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}


def cases(folder: Path | None) -> list[tuple[str, int | None]]:
    """Name and timesteps of each case."""
    found: list[tuple[str, int | None]] = [("ANN", None)]
    found += [(name, steps) for steps in (1, 4) for name in NEURONS]
    found += [(f"loss {name}", steps) for steps in (1, 4) for name in LOSSES]
    if folder is not None:
        found += [(f"data path, {n} workers", None) for n in (1, 4, 8, 16)]
    return found


def epoch(name: str, timesteps: int | None, given: argparse.Namespace) -> dict[str, Any]:
    """Time one case."""
    if name.startswith("data path"):
        return {"images_per_second": round(_loaded(int(name.split()[2]), given))}
    device = given.device
    torch.manual_seed(0)
    neuron = name if name in NEURONS else "ckdlite compiled"
    options = {} if timesteps is None else {"timesteps": timesteps}
    if timesteps is not None:
        options["neuron"] = partial(Neuron, neuron)
    model = resnet19(**options).to(device, memory_format=torch.channels_last)
    images = torch.randn(8 * BATCH, 3, 32, 32).to(device, memory_format=torch.channels_last)
    labels = torch.randint(10, (8 * BATCH,)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    dtype = PRECISIONS[given.precision]
    scaler = torch.amp.GradScaler(device, enabled=given.precision == "16-mixed")
    module = None
    if name.startswith("loss "):
        teacher = resnet19().to(device)
        loss = LOSSES[name.removeprefix("loss ")]
        module = Distil(model, teacher, channels_last=True, gradient_norms_every=0, **loss)
        module.log = module.log_dict = lambda *_args, **_options: None

    def step(i: int) -> None:
        part = slice(i % 8 * BATCH, (i % 8 + 1) * BATCH)
        x, y = images[part], labels[part]
        optimizer.zero_grad()
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            if module is not None:
                loss = module.training_step([x, y], 0)
            else:
                logits = model(x).float()
                loss = F.cross_entropy(logits if timesteps is None else logits.mean(0), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    steps = given.images // BATCH
    for i in range(min(20, steps)):
        step(i)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for i in range(steps):
        step(i)
    if device == "cuda":
        torch.cuda.synchronize()
    found = {"images_per_second": round(steps * BATCH / (time.perf_counter() - start), 1)}
    if device == "cuda":
        found["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return found


def _loaded(workers: int, given: argparse.Namespace) -> float:
    """Images a second that the loader of a folder gives, after two batches a worker."""
    steps = [
        v2.RandomCrop(32, 4),
        v2.RandomHorizontalFlip(),
        v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        v2.RandomErasing(scale=(0.02, 0.2), value=121),
    ]
    torch.set_num_threads(1)
    loader = FolderData(given.folder, augment=steps, workers=workers).train_dataloader()
    count, start = 0, 0.0
    for i, (images, _labels) in enumerate(loader):
        if i == 2 * workers:  # what was made beforehand is not counted
            start = time.perf_counter()
        elif start:
            count += len(images)
            if count >= given.loaded:
                break
    if not count:
        raise ValueError(f"{given.folder}: too few images for {workers} workers' first batches")
    return count / (time.perf_counter() - start)


def write(row: dict[str, Any], path: Path) -> None:
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    if path.exists():
        with path.open(newline="") as file:
            rows = {_key(r): r for r in csv.DictReader(file)}
    rows[_key(row)] = row
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    part.replace(path)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name] or "") for name in ("case", "timesteps", "precision"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16-mixed")
    parser.add_argument("--images", type=int, default=45000)
    parser.add_argument("--folder", type=Path, help="train/<class>/*, test/<class>/*")
    parser.add_argument("--loaded", type=int, default=20000, help="images that the data path gives")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose name holds one")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        name, timesteps = given.case.split("|")
        print(json.dumps(epoch(name, int(timesteps) if timesteps else None, given)))
        return
    table = given.table or FOLDER / f"epoch-{given.device}.csv"
    cuda = given.device == "cuda"
    about = {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__.partition("+")[0],
        "spikingjelly": version("spikingjelly"),
        "snntorch": version("snntorch"),
        "date": date.today().isoformat(),
    }
    for name, timesteps in cases(given.folder):
        if given.only and not any(word in name for word in given.only):
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--case", f"{name}|{timesteps or ''}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{name}, T = {timesteps}: failed", flush=True)
            continue
        row: dict[str, Any] = {"case": name, "timesteps": timesteps or "", "images": given.images}
        if name.startswith("data path"):
            row |= {"images": given.loaded}
        else:
            row |= {"precision": given.precision, "batch": BATCH}
        row |= json.loads(done.stdout.splitlines()[-1]) | about
        write({**dict.fromkeys(COLUMNS, ""), **row}, table)
        print(f"{name}, T = {timesteps}: {row['images_per_second']} images a second", flush=True)


if __name__ == "__main__":
    main()
