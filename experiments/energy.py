"""What the networks of `photographs.py` would cost a chip: operations and an energy estimate.

    python experiments/energy.py FOLDER --work experiments/work/photographs

FOLDER holds the photographs. Of each run of seed 0 the last epoch's weights are taken (or those in
`WORK/resnet20-<method>-0.safetensors`). Its student runs at T = 1, 2, 4 and 8; it was trained at
T = 2 alone. Accuracy is over all test images, operations and firing rates are means over the first
500 of a fixed shuffle. Everything is in float32. At T = 2 there is a second row, `tf32`: images and
the convolutions' weights rounded to the ten bits of mantissa that a GPU's TF32 keeps, with the
share of answers that this changes. The rows go into `ckdlite/assets/cifar10-jpeg-energy.csv`; one
that is there is not made again.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from ckdlite import data, measure
from ckdlite._assets import FOLDER
from ckdlite.datamodules import CIFAR_MEAN, CIFAR_STD
from ckdlite.networks import resnet20
from ckdlite.runs import checkpoint
from ckdlite.training import load_weights

HERE = Path(__file__).parent
METHODS = ("teacher", "label-only", "kd", "paper", "released")
RELEASED = {"relu_last": True, "head_width": 256}
COLUMNS = [
    *("network", "method", "seed", "timesteps", "trained_at", "rounding", "accuracy", "images"),
    *("answers_changed", "counted", "firing_rate", "macs", "acs", "microjoules", "torch"),
]


def network(method: str, timesteps: int) -> nn.Module:
    if method == "teacher":
        return resnet20()
    return resnet20(timesteps=timesteps, **(RELEASED if method == "released" else {}))


def tf32(values: Tensor) -> Tensor:
    """Rounded to ten bits of mantissa, half away from zero."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def rows(method: str, timesteps: int, work: Path, images: Tensor, labels: Tensor) -> list[dict]:
    """Score one network at one T."""
    model = network(method, timesteps).eval()
    kept = work / f"resnet20-{method}-0.safetensors"
    load_weights(model, kept if kept.is_file() else checkpoint(kept.with_suffix(""), "last"))
    first = images[:500]
    cost = [measure.operations(model, part) for part in first.split(100)]
    rates = [] if method == "teacher" else list(measure.firing_rates(model, first).values())
    logits = measure.predict(model, images, 100)
    shared = {
        "network": "resnet20",
        "method": method,
        "seed": 0,
        "timesteps": "" if method == "teacher" else timesteps,
        "trained_at": "" if method == "teacher" else 2,
        "images": len(images),
        "torch": torch.__version__,
    }
    exact = shared | {
        "rounding": "float32",
        "accuracy": f"{measure.accuracy(logits, labels):.4f}",
        "counted": len(first),
        "firing_rate": f"{sum(rates) / len(rates):.5f}" if rates else "",
        **{
            name: f"{sum(getattr(c, name) for c in cost) / len(cost):.6g}"
            for name in ("macs", "acs", "microjoules")
        },
    }
    if method != "teacher" and timesteps != 2:
        return [exact]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(tf32(module.weight))
    other = measure.predict(model, tf32(images), 100)
    changed = (other.argmax(1) != logits.argmax(1)).float().mean().item()
    accuracy = f"{measure.accuracy(other, labels):.4f}"
    rounded = {"rounding": "tf32", "accuracy": accuracy, "answers_changed": f"{changed:.4f}"}
    return [exact, shared | rounded]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="train/<class>/*, test/<class>/*")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "photographs")
    parser.add_argument("--table", type=Path, default=FOLDER / "cifar10-jpeg-energy.csv")
    given = parser.parse_args()
    found = data.folder(given.folder, "test", transform=pil_to_tensor)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    images, labels = zip(*(found[i] for i in order), strict=True)
    images = data.normalise(torch.stack(images), CIFAR_MEAN, CIFAR_STD)
    have = set()
    if given.table.exists():
        with given.table.open(newline="") as file:
            have = {(r["method"], r["timesteps"] or "1") for r in csv.DictReader(file)}
    with given.table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not have:
            writer.writeheader()
        for method in METHODS:
            for timesteps in (1,) if method == "teacher" else (1, 2, 4, 8):
                if (method, str(timesteps)) not in have:
                    found = rows(method, timesteps, given.work, images, torch.tensor(labels))
                    writer.writerows(found)
                    file.flush()
                    print(method, timesteps, [r["accuracy"] for r in found], flush=True)


if __name__ == "__main__":
    main()
