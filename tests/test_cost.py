"""Operations against hand counts, and hours against what was measured."""

import copy
import csv
import math

import count_recipes
import pytest
import torch
from torch import nn

from ckdlite import _assets, cost, results
from ckdlite.networks import resnet8, resnet20


class Small(nn.Sequential):
    """A convolution, a grouped one, and a linear layer."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(4 * 3 * 3, 5),
        )


# 9 x 9 pixels become 5 x 5, then 3 x 3. Multiply-accumulates of each layer, forward:
FIRST, SECOND, LINEAR = 8 * 5 * 5 * 3 * 9, 4 * 3 * 3 * (8 // 2) * 9, 4 * 3 * 3 * 5


def test_small_network_by_hand():
    counted = cost.training_flops(Small(), Small(), torch.zeros(2, 3, 9, 9))
    # The image wants no gradient, so the first layer has one product less.
    assert counted.student == 2 * (2 * FIRST + 3 * SECOND + 3 * LINEAR)
    assert counted.teacher == 2 * (FIRST + SECOND + LINEAR)
    assert counted.total == counted.student + counted.teacher
    assert cost.training_flops(Small(), None, torch.zeros(1, 3, 9, 9)).teacher == 0


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution_by_hand(groups):
    layers = nn.Conv2d(3, 4, 1, bias=False), nn.ConvTranspose2d(4, 8, 3, stride=2, groups=groups)
    counted = cost.training_flops(nn.Sequential(*layers), None, torch.zeros(1, 3, 5, 5))
    transposed = 4 * 5 * 5 * (8 // groups) * 9  # each number that comes in meets these weights
    assert counted.student == 2 * (2 * 3 * 4 * 5 * 5 + 3 * transposed)


def test_student_takes_its_teachers_steps_but_for_the_stem():
    images = torch.zeros(2, 3, 32, 32)
    once = cost.training_flops(resnet8(), None, images).student
    stem = 2 * 16 * 32 * 32 * 3 * 9  # forward; its image wants no gradient
    for timesteps in (1, 3):
        student = resnet8(timesteps=timesteps)
        counted = cost.training_flops(student, resnet8(), images)
        assert counted.student == timesteps * (once - 2 * stem) + 2 * stem
        assert counted.teacher == (once + stem) / 3


def test_frames_take_the_stem_at_every_step():
    frames = torch.zeros(3, 2, 2, 32, 32)
    student, teacher = resnet8(timesteps=1, in_channels=2), resnet8(in_channels=2)
    counted = cost.training_flops(student, teacher, frames)
    assert counted == (3 * cost.training_flops(teacher, None, frames[0]).student, counted.teacher)
    assert counted.teacher == cost.training_flops(teacher, teacher, frames[0]).teacher


def test_networks_stay_as_they_were():
    student, teacher = resnet8(timesteps=2), resnet8().eval()
    before = copy.deepcopy([student.state_dict(), teacher.state_dict()])
    cost.training_flops(student, teacher, torch.rand(2, 3, 32, 32))
    for old, network in zip(before, (student, teacher), strict=True):
        assert all(torch.equal(value, old[k]) for k, value in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
    assert student.training and not teacher.training


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(3, 9, 9), (0, 3, 9, 9)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"images: got shape .+, wanted \[B, C, H, W\]"):
        cost.training_flops(Small(), None, torch.zeros(shape))


def test_file_is_what_the_script_counts():
    rows = results.read("costs.csv")
    with (_assets.FOLDER / "costs.csv").open(newline="") as file:
        assert csv.DictReader(file).fieldnames == count_recipes.COLUMNS
    assert len({(row["recipe"], row.get("timesteps")) for row in rows}) == len(rows)
    # What the recipes say is read anew; what is counted, for one of them.
    for row in rows:
        base = count_recipes._read(row["recipe"].removesuffix("-teacher"))
        found = base | count_recipes._read(row["recipe"])
        assert row["epochs"] == found["trainer"]["max_epochs"]
        assert row["batch"] == base["data"]["init_args"]["batch_size"]
    own = count_recipes._read("cifar10-resnet20")["model"]["init_args"]["student"]["init_args"]
    found = cost.find("cifar10-resnet20")
    assert found["timesteps"] == own["timesteps"]
    student = resnet20(timesteps=own["timesteps"])
    counted = count_recipes.row(student, resnet20(), torch.zeros(2, 3, 32, 32))
    assert {key: found[key] for key in counted if key != "torch"} == {
        key: value for key, value in counted.items() if key != "torch"
    }
    assert found["parameters"] == 272_474


@pytest.mark.slow
def test_spikingjellys_network_is_counted_as_in_the_file():
    pytest.importorskip("spikingjelly")
    first = next(count_recipes.imagenet())
    found = cost.find(first["recipe"])
    for key in ("step_flops", "teacher_flops", "layers", "parameters", "teacher_parameters"):
        assert found[key] == first[key]


def test_find_takes_the_recipes_own_t():
    assert cost.find("cifar10-resnet19")["timesteps"] == 1
    assert cost.find("cifar10-resnet19", 4)["timesteps"] == 4
    assert "timesteps" not in cost.find("cifar10-resnet19-teacher")


def test_limits_are_the_measured_speeds():
    known = cost.limits()
    step = {t: cost.find("cifar10-resnet19", t)["step_flops"] for t in (1, 4)}
    speeds = {
        (row["case"], row.get("timesteps")): row["images_per_second"]
        for row in results.read("epoch-cuda.csv")
    }
    assert known.rates[1] == step[4] * speeds["ckdlite compiled", 4]
    assert known.rates[0] == step[1] * speeds["ckdlite compiled", 1]
    assert known.waits[0] == 128 / speeds["ckdlite compiled", 1] / 20
    assert known.rates[1] / 1e12 < cost.PEAKS["H100"]
    assert known.teacher_wait < known.waits[0] < known.waits[1]


def measured():
    """Hours of each run of ResNet-19 at the speed of its measured epoch."""
    for row in results.read("epoch-cuda.csv"):
        ours = row["case"] == "ckdlite compiled" or row["case"].startswith("loss")
        if row["case"] == "ANN" or ours:
            recipe = "cifar10-resnet19-teacher" if row["case"] == "ANN" else "cifar10-resnet19"
            epochs = cost.find(recipe)["epochs"]
            hours = epochs * 45000 / row["images_per_second"] / 3600
            yield recipe, row.get("timesteps"), hours


def test_every_measured_epoch_lies_within_its_estimate():
    runs = list(measured())
    assert len(runs) >= 6
    for recipe, timesteps, hours in runs:
        low, high = cost.hours(recipe, None if timesteps is None else int(timesteps))
        # The teacher beside it is in the estimate and not in a row that times a neuron alone.
        assert low / 1.15 < hours < high


def test_hours_by_hand():
    known, row = cost.limits(), cost.find("cifar10-resnet19", 4)
    step = 128 * (row["step_flops"] + row["teacher_flops"])
    steps = 400 * math.ceil(45000 / 128)
    low, high = cost.hours("cifar10-resnet19", 4)
    assert low == pytest.approx(steps * step / known.rates[1] / 3600)
    assert high == pytest.approx(steps * (step / known.rates[0] + 20 * known.waits[1]) / 3600)
    # ResNet-20 is so small that the wait is all of its lower end.
    low, _ = cost.hours("cifar10-resnet20")
    assert low == pytest.approx(400 * 352 * 22 * known.waits[0] / 3600)


def test_another_gpu_computes_slower_and_waits_alike():
    on = {gpu: cost.hours("cifar10-resnet19", 4, gpu) for gpu in cost.PEAKS}
    assert on["T4"].low == pytest.approx(on["H100"].low * 989 / 65)
    assert on["H100"].high < on["A100"].high < on["H100"].high * 989 / 312
    assert cost.hours("cifar10-resnet20", gpu="A100").low == cost.hours("cifar10-resnet20").low


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "words, options, said",
    [
        (["cifar10"], {}, "recipe: got 'cifar10', wanted one of cifar10-resnet19, "),
        (["cifar10-resnet20", 1], {}, "timesteps: got 1, cifar10-resnet20 is counted at 2 or 4"),
        (["cifar10-resnet19-teacher", 1], {}, "is counted at none .a teacher."),
        (["cifar10-resnet19"], {"gpu": "V100"}, "gpu: got 'V100', wanted one of H100, A100, T4"),
    ],
)
def test_what_is_not_known_is_said(words, options, said):
    with pytest.raises(ValueError, match=said):
        cost.hours(*words, **options)
