"""Count what a training step of each recipe computes: `ckdlite/assets/costs.csv`.

    python experiments/count_recipes.py

Takes under a minute on a CPU. Needs SpikingJelly and torchvision for the rows of ImageNet; no data
and no weights. Epochs, batch and T of the CIFAR rows are those of the recipes' files; `epochs_of`
says whose the others are. Every neuron is the plain loop, which counts like the compiled one.
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
    *("recipe", "timesteps", "images", "epochs", "epochs_of", "batch", "layers"),
    *("step_flops", "teacher_flops", "parameters", "teacher_parameters", "torch"),
]
# The recipe's own T first.
CIFAR = {"resnet19": (1, 4), "resnet20": (2, 4)}
SEW = "W. Fang et al., SEW-ResNet (arXiv 2102.04159); assumed here"


def cifar() -> Iterator[dict[str, Any]]:
    """ResNet-19 and ResNet-20 on CIFAR, students and their teachers."""
    images = torch.zeros(2, 3, 32, 32)
    for classes in (10, 100):
        for name, steps in CIFAR.items():
            recipe = f"cifar{classes}-{name}"
            base, overlay = _read(recipe), _read(f"{recipe}-teacher")
            make = getattr(networks, name)
            shared = {
                "images": 45000,  # 5,000 of the 50,000 choose the epoch
                "batch": base["data"]["init_args"]["batch_size"],
                "epochs_of": "recipe",
            }
            epochs = base["trainer"]["max_epochs"]
            for timesteps in steps:
                student = make(classes, timesteps=timesteps)
                about = {"recipe": recipe, "timesteps": timesteps, "epochs": epochs}
                yield about | shared | row(student, make(classes), images)
            about = {"recipe": f"{recipe}-teacher", "epochs": overlay["trainer"]["max_epochs"]}
            yield about | shared | row(make(classes), None, images)


def imagenet() -> Iterator[dict[str, Any]]:
    """SpikingJelly's networks, T = 4, taught by torchvision's ResNet-34."""
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet, spikformer
    from torchvision.models import resnet34

    images = torch.zeros(2, 3, 224, 224)
    shared = {"timesteps": 4, "images": 1281167, "epochs": 320, "epochs_of": SEW, "batch": 128}
    options = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}
    made = {
        "sew-resnet18": sew_resnet.sew_resnet18(cnf="ADD", **options),
        "sew-resnet34": sew_resnet.sew_resnet34(cnf="ADD", **options),
        "spikformer": spikformer.spikformer_s(),
    }
    for name, network in made.items():
        functional.set_step_mode(network, "m")
        student = networks.OverTime(network, 4, functional.reset_net)
        about = {"recipe": f"imagenet-{name}"}
        yield about | shared | row(student, resnet34(), images)


def events() -> Iterator[dict[str, Any]]:
    """ResNet-20 on frames of CIFAR10-DVS; its teacher sees their sum."""
    frames = torch.zeros(10, 2, 2, 48, 48)
    student = networks.resnet20(timesteps=10, in_channels=2)
    about = {
        "recipe": "cifar10-dvs-resnet20",
        "timesteps": 10,
        "images": 9000,
        "epochs": 300,
        "epochs_of": "assumed here",
        "batch": 128,
    }
    yield about | row(student, networks.resnet20(in_channels=2), frames)


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
