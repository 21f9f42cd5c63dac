"""Operations against hand counts, and hours against what was measured."""

import copy
import csv
import math
import shutil
from functools import partial

import count_recipes
import pytest
import torch
from peers import Neuron
from torch import nn

from ckdlite import _assets, cost, results
from ckdlite.lif import LIF
from ckdlite.networks import MeanFrames, resnet8, resnet19, resnet20


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


def test_map_costs_the_way_back_to_its_layer():
    images, teacher = torch.zeros(2, 3, 9, 9), Small()
    counted = cost.training_flops(Small(), teacher, images, teacher_layer="0")
    # Forward, and the gradient of the inputs of what comes after the layer; of no weights.
    assert counted.teacher == 2 * (FIRST + 2 * SECOND + 2 * LINEAR)
    assert all(p.requires_grad for p in teacher.parameters())


def test_frames_take_the_stem_at_every_step():
    frames = torch.zeros(3, 2, 2, 32, 32)
    student, teacher = resnet8(timesteps=1, in_channels=2), resnet8(in_channels=2)
    counted = cost.training_flops(student, MeanFrames(teacher), frames)
    assert counted.student == 3 * cost.training_flops(teacher, None, frames[0]).student
    assert counted.teacher == cost.training_flops(teacher, teacher, frames[0]).teacher


@pytest.mark.parametrize("batch", [2, 5])
def test_bytes_kept_by_hand(batch):
    kept = cost.kept_bytes(Small(), torch.zeros(batch, 3, 9, 9))
    # In 16 bits: the image, what ReLU gives, and what the linear layer gets. The loss keeps five
    # logits and what it gives in 32 bits.
    assert kept == 2 * (3 * 9 * 9 + 8 * 5 * 5 + 4 * 3 * 3) + 4 * (5 + 1)


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
    with pytest.raises(ValueError, match=r"images: got shape .+, wanted \[B, C, H, W\]"):
        cost.kept_bytes(Small(), torch.zeros(shape))


@pytest.mark.bad_input
def test_one_image_has_no_difference_of_batches():
    with pytest.raises(ValueError, match="images: got a batch of 1, wanted at least 2"):
        cost.kept_bytes(Small(), torch.zeros(1, 3, 9, 9))


def test_file_is_what_the_script_counts():
    rows = results.read("costs.csv")
    with (_assets.FOLDER / "costs.csv").open(newline="") as file:
        assert csv.DictReader(file).fieldnames == count_recipes.COLUMNS
    assert len({(row["recipe"], row.get("timesteps")) for row in rows}) == len(rows)
    # What the recipes say is read anew; what is counted, for one of them.
    for name in {row["recipe"] for row in rows}:
        base = count_recipes._read(name.removesuffix("-teacher"))
        found, over = cost.find(name), count_recipes._read(name)
        assert found["epochs"] == (base["trainer"] | over.get("trainer", {}))["max_epochs"]
        assert found["batch"] == base["data"]["init_args"]["batch_size"]
        if "timesteps" in found:
            student = base["model"]["init_args"]["student"]["init_args"]
            assert found["timesteps"] == student["timesteps"]
    images = torch.zeros(2, 3, 32, 32)
    student = resnet20(timesteps=2)
    counted = count_recipes.row("cifar10-resnet20", 50000, student, resnet20(), images)
    _same(cost.find("cifar10-resnet20"), counted, but={"kept_bytes", "torch"})
    # The plain neuron keeps more than the compiled one of the recipe.
    assert counted["kept_bytes"] > 1.5 * cost.find("cifar10-resnet20")["kept_bytes"]
    counted = count_recipes.row("cifar10-resnet20-teacher", 50000, resnet20(), None, images)
    _same(cost.find("cifar10-resnet20-teacher"), counted, but={"torch"})
    assert counted["parameters"] == 272_474


def _same(found, counted, but):
    for key in counted.keys() - but:
        assert found[key] == counted[key], key


@pytest.mark.slow
def test_spikingjellys_network_is_counted_as_in_the_file():
    pytest.importorskip("spikingjelly")
    first = next(count_recipes.imagenet())
    _same(cost.find(first["recipe"]), first, but={"torch"})


@pytest.mark.slow
def test_compiled_neuron_is_counted_as_in_the_file():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("the compiled neuron wants a C++ compiler")
    student = resnet20(timesteps=2, neuron=partial(LIF, compiled=True))
    kept = cost.kept_bytes(student, torch.zeros(2, 3, 32, 32))
    assert kept == cost.find("cifar10-resnet20")["kept_bytes"]


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
    assert known.teacher_wait < known.waits[0] < known.waits[1] < known.loop_wait
    assert 1 < known.peak < 1.3


def test_peaks_lie_a_little_above_what_is_kept():
    for case, timesteps, peak in _peaks():
        if case in ("ANN", "ckdlite compiled"):
            name = "cifar10-resnet19-teacher" if case == "ANN" else "cifar10-resnet19"
            assert 0.9 < cost.kept(cost.find(name, timesteps), 128) / peak < 1


def _peaks():
    for row in results.read("epoch-cuda.csv"):
        timesteps = row.get("timesteps")
        yield row["case"], None if timesteps is None else int(timesteps), row["peak_mb"] * 1e6


@pytest.mark.slow
def test_spikingjellys_peaks_lie_a_little_above_what_its_neuron_keeps():
    pytest.importorskip("spikingjelly")
    for case, timesteps, peak in _peaks():
        if case == "SpikingJelly":
            student = resnet19(timesteps=timesteps, neuron=partial(Neuron, case))
            each = cost.kept_bytes(student, torch.zeros(2, 3, 32, 32))
            row = cost.find("cifar10-resnet19", timesteps)
            assert 0.9 < cost.kept(row | {"kept_bytes": each}, 128) / peak < 1


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
    known, row = cost.limits(), cost.find("imagenet-sew-resnet34")
    each = row["step_flops"] + row["teacher_flops"]
    steps = row["epochs"] * math.ceil(row["images"] / 512)
    low, high = cost.hours("imagenet-sew-resnet34", batch=512)
    assert low == pytest.approx(steps * 512 * each / known.rates[1] / 3600)
    slow = 512 * each / known.rates[0] + 37 * known.loop_wait  # SpikingJelly's neuron
    assert high == pytest.approx(steps * slow / 3600)
    # ResNet-20 is so small that the wait is all of its lower end.
    low, high = cost.hours("cifar10-resnet20")
    assert low == pytest.approx(400 * 352 * 22 * known.waits[0] / 3600)
    each = 128 * (cost.find("cifar10-resnet20")["step_flops"] + 81627648)
    slow = each / known.rates[0] + 22 * known.waits[1]
    assert high == pytest.approx(400 * 352 * slow / 3600)


def test_more_images_on_a_device_wait_less():
    name = "imagenet-sew-resnet18"
    own = cost.hours(name)
    assert own == cost.hours(name, batch=int(cost.find(name)["batch"]))
    assert cost.hours(name, batch=256).low < own.low / 2
    assert cost.hours(name, batch=256).high < own.high < cost.hours(name, batch=8).high


def test_images_that_fit_by_hand():
    row, most = cost.find("cifar10-resnet19", 4), cost.limits().peak
    few, many = cost.fits("cifar10-resnet19", 4, gigabytes=16)
    weights = (12 + 4) * 12569226
    assert many == (16e9 - weights) // row["kept_bytes"]
    assert few == (16e9 / most - weights) // row["kept_bytes"]
    assert cost.kept(row, 10) == weights + 10 * row["kept_bytes"]
    assert cost.fits("imagenet-spikformer", gigabytes=0.1) == (0, 0)


def test_another_gpu_computes_slower_and_waits_alike():
    on = {gpu: cost.hours("imagenet-sew-resnet34", gpu=gpu, batch=512) for gpu in cost.PEAKS}
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
        (["cifar10-resnet19"], {"batch": 0}, "batch: got 0, wanted at least 1"),
    ],
)
def test_what_is_not_known_is_said(words, options, said):
    with pytest.raises(ValueError, match=said):
        cost.hours(*words, **options)


@pytest.mark.bad_input
def test_memory_that_is_none_is_refused():
    with pytest.raises(ValueError, match="gigabytes: got 0, wanted more than 0"):
        cost.fits("cifar10-resnet19", gigabytes=0)
