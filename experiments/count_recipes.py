"""Count what a training step of each recipe computes: `ckdlite/assets/costs.csv`.

    python experiments/count_recipes.py

Takes under a minute on a CPU. Needs SpikingJelly and torchvision for the rows of ImageNet; no data
and no weights. Epochs and batch are those of the recipes' files. Our neurons are the plain loop,
which counts like the compiled one.
"""

import csv
from collections.abc import Iterator
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ckdlite import cost, networks
from ckdlite._assets import FOLDER

COLUMNS = [
    *("recipe", "timesteps", "images", "epochs", "batch", "layers"),
    *("step_flops", "teacher_flops", "parameters", "teacher_parameters", "torch"),
]
# The recipe's own T first.
CIFAR = {"resnet19": (1, 4), "resnet20": (2, 4)}


def cifar() -> Iterator[dict[str, Any]]:
    """ResNet-19 and ResNet-20 on CIFAR, students and their teachers."""
    images = torch.zeros(2, 3, 32, 32)
    for classes in (10, 100):
        for name, steps in CIFAR.items():
            recipe = f"cifar{classes}-{name}"
            overlay = _read(f"{recipe}-teacher")["trainer"]
            shared = schedule(recipe) | {"images": 45000}  # 5,000 of the 50,000 choose the epoch
            make = getattr(networks, name)
            for timesteps in steps:
                student = make(classes, timesteps=timesteps)
                yield shared | {"timesteps": timesteps} | row(student, make(classes), images)
            shared |= {"recipe": f"{recipe}-teacher", "epochs": overlay["max_epochs"]}
            yield shared | row(make(classes), None, images)


def imagenet() -> Iterator[dict[str, Any]]:
    """SpikingJelly's networks, T = 4, taught by torchvision's ResNet-34."""
    from torchvision.models import resnet34

    from ckdlite import students

    images = torch.zeros(2, 3, 224, 224)
    # Of 1,281,167 one tenth chooses the epoch.
    about = {"timesteps": 4, "images": 1153050}
    for name in ("sew_resnet18", "sew_resnet34", "spikformer"):
        recipe = f"imagenet-{name.replace('_', '-')}"
        counted = row(getattr(students, name)(4), resnet34(), images)
        yield about | schedule(recipe) | counted


def events() -> Iterator[dict[str, Any]]:
    """ResNet-20 on frames of CIFAR10-DVS; its teacher sees their mean."""
    frames = torch.zeros(10, 2, 2, 48, 48)
    student = networks.resnet20(timesteps=10, in_channels=2)
    teacher = networks.resnet20(in_channels=2)  # taking the mean costs next to nothing
    about = {"timesteps": 10, "images": 8100}  # of 9,000 one tenth chooses the epoch
    yield about | schedule("cifar10-dvs-resnet20") | row(student, teacher, frames)


def schedule(recipe: str) -> dict[str, Any]:
    """What the recipe's file says of epochs and batch."""
    read = _read(recipe)
    batch = read["data"]["init_args"]["batch_size"]
    return {"recipe": recipe, "epochs": read["trainer"]["max_epochs"], "batch": batch}


def row(student: nn.Module, teacher: nn.Module | None, images: Tensor) -> dict[str, Any]:
    """What is counted."""
    counted = cost.training_flops(student, teacher, images)
    return {
        "layers": cost.layers(student),
        "step_flops": counted.student,
        "teacher_flops": counted.teacher,
        "parameters": _parameters(student),
        "teacher_parameters": 0 if teacher is None else _parameters(teacher),
        "torch": torch.__version__.partition("+")[0],
    }


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _read(recipe: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER.parent / "recipes" / f"{recipe}.yaml").read_text())


def main() -> None:
    path = FOLDER / "costs.csv"
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for rows in (cifar(), imagenet(), events()):
            for found in rows:
                writer.writerow(found)
                print(f"{found['recipe']}, T = {found.get('timesteps', '-')}", flush=True)
    part.replace(path)


if __name__ == "__main__":
    main()
