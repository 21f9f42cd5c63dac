"""Count what a training step of each recipe computes and keeps: `ckdlite/assets/costs.csv`.

    python experiments/count_recipes.py

Takes some minutes on a CPU, and a C++ compiler for the compiled neuron. Needs SpikingJelly and
torchvision for the rows of ImageNet; no data and no weights. Epochs, batch and T are those of the
recipes' files. Operations are counted with the plain neuron, which has as many as the compiled one.
"""

import csv
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ckdlite import cost, networks, students
from ckdlite._assets import FOLDER
from ckdlite.lif import LIF

COLUMNS = [
    *("recipe", "timesteps", "neuron", "images", "epochs", "batch", "layers", "step_flops"),
    *("teacher_flops", "kept_bytes", "parameters", "teacher_parameters", "torch"),
]
TRAINED = 0.9  # of the training images; the others choose the epoch
# The recipe's own T first.
STEPS = {"resnet19": (1, 4), "resnet20": (2, 4)}


def cifar() -> Iterator[dict[str, Any]]:
    """ResNet-19 and ResNet-20 on CIFAR, students and their teachers."""
    images = torch.zeros(2, 3, 32, 32)
    for classes in (10, 100):
        for name, steps in STEPS.items():
            make = partial(getattr(networks, name), classes)
            recipe = f"cifar{classes}-{name}"
            for timesteps in steps:
                yield own(recipe, 50000, partial(make, timesteps=timesteps), make(), images)
            yield row(f"{recipe}-teacher", 50000, make(), None, images)


def imagenet() -> Iterator[dict[str, Any]]:
    """SpikingJelly's networks, taught by torchvision's ResNet-34."""
    from torchvision.models import resnet34

    images = torch.zeros(2, 3, 224, 224)
    for name in ("sew_resnet18", "sew_resnet34", "spikformer"):
        recipe = f"imagenet-{name.replace('_', '-')}"
        student = getattr(students, name)(
            **_read(recipe)["model"]["init_args"]["student"]["init_args"]
        )
        yield row(recipe, 1281167, student, resnet34(), images) | {"neuron": "SpikingJelly"}


def events() -> Iterator[dict[str, Any]]:
    """ResNet-20 on the frames of CIFAR10-DVS; its teacher sees their mean."""
    frames = torch.zeros(10, 2, 2, 48, 48)
    make = partial(networks.resnet20, in_channels=2)
    teacher = networks.MeanFrames(make())
    yield own("cifar10-dvs-resnet20", 9000, partial(make, timesteps=10), teacher, frames)
    yield row("cifar10-dvs-resnet20-teacher", 9000, teacher, None, frames)


def own(
    recipe: str, images: int, make: Callable[..., nn.Module], teacher: nn.Module, shown: Tensor
) -> dict[str, Any]:
    """The row of a student of this library: what it keeps with the compiled neuron."""
    compiled = make(neuron=partial(LIF, compiled=True))
    return row(recipe, images, make(), teacher, shown) | {
        "neuron": "ckdlite compiled",
        "kept_bytes": cost.kept_bytes(compiled, shown),
    }


def row(
    recipe: str, images: int, student: nn.Module, teacher: nn.Module | None, shown: Tensor
) -> dict[str, Any]:
    """What the recipe says, and what is counted."""
    base = _read(recipe.removesuffix("-teacher"))
    layer = base["model"]["init_args"].get("teacher_layer", "stage3")
    counted = cost.training_flops(student, teacher, shown, teacher_layer=layer)
    about = {} if teacher is None else {"timesteps": student.timesteps}
    return about | {
        "recipe": recipe,
        "images": round(TRAINED * images),
        "epochs": (base["trainer"] | _read(recipe).get("trainer", {}))["max_epochs"],
        "batch": base["data"]["init_args"]["batch_size"],
        "layers": cost.layers(student),
        "step_flops": counted.student,
        "teacher_flops": counted.teacher,
        "kept_bytes": cost.kept_bytes(student, shown),
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
