"""Train the networks that the chapters load, and write their weights and scores.

    python experiments/train_shipped.py                # on 2 CPU cores: two hours a seed
    python experiments/train_shipped.py --device cuda  # minutes

One teacher and four students, three seeds each: `label-only` learns from labels, `samd` from labels
and SAMD, `nld` from labels and NLD, `distilled` from the whole loss. All see the same images in the
same order; each epoch shows the 14,000 training items in new scenes. Weights and scores are kept in
the folder `experiments/work` as each run ends; a run that is there is not repeated, so a stopped
command goes on where it was. When all are there, the scores of all runs and the weights of seed 0,
which the chapters load, are copied into the package.
"""

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ckdlite._assets import FOLDER
from ckdlite.data import Scenes, cluttered, normalise
from ckdlite.distill import ckd, nld, samd
from ckdlite.measure import accuracy, firing_rates, predict
from ckdlite.networks import record, resnet8
from ckdlite.saliency import (
    grad_cam,
    map_divergence,
    mask_overlap,
    pointing_game,
    rank_correlation,
    spike_map,
)

HERE = Path(__file__).parent
NETWORKS = ("teacher", "label-only", "samd", "nld", "distilled")
SEEDS = (0, 1, 2)
TIMESTEPS, EPOCHS, BATCH, RATE = 4, 20, 128, 0.1
# The students' weight decay is the paper's. The teacher has a stronger one, usual for ResNets.
DECAY = {name: 5e-4 if name == "teacher" else 1e-4 for name in NETWORKS}
STAGE = "stage3"
COLUMNS = (
    "network seed accuracy pointing_game mask_overlap divergence rank_correlation firing_rate "
    "epochs seconds device torch"
).split()


def build(name: str) -> nn.Module:
    return resnet8(timesteps=None if name == "teacher" else TIMESTEPS)


def loss(name: str, net: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of one batch, by the name of the network that learns."""
    if name == "teacher":
        return F.cross_entropy(net(x), y)
    with record(net, STAGE) as features:
        logits = net(x).mean(0)
    if name == "label-only":
        return F.cross_entropy(logits, y)
    teacher_map, teacher_logits = grad_cam(teacher, STAGE, x, y)
    student_map = spike_map(features[STAGE])
    if name == "samd":
        return F.cross_entropy(logits, y) + samd(student_map, teacher_map)
    if name == "nld":
        return F.cross_entropy(logits, y) + nld(logits, teacher_logits)
    return ckd(logits, student_map, teacher_logits, teacher_map, y).total


@cache
def scenes_of(epoch: int) -> Scenes:
    """The training scenes of an epoch, the same for every network; 57 MB each."""
    return cluttered("train", seed=epoch)


def train(name: str, seed: int, teacher: nn.Module, epochs: int, device: str) -> nn.Module:
    torch.manual_seed(seed)
    net = build(name).to(device)
    optimiser = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=DECAY[name])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        scenes = scenes_of(epoch)
        shuffled = torch.randperm(len(scenes.labels), generator=order)
        net.train()
        for batch in shuffled.split(BATCH):
            x = normalise(scenes.images[batch].to(device))
            value = loss(name, net, teacher, x, scenes.labels[batch].to(device))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        schedule.step()
        print(f"  {name}, seed {seed}: epoch {epoch + 1} of {epochs}, loss {value.item():.3f}")
    return net.eval()


def maps(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The teacher's Grad-CAM, or the student's spike map, of many images."""
    made = []
    for x, y in zip(images.split(250), labels.split(250), strict=True):
        if net.timesteps is None:
            made.append(grad_cam(net, STAGE, x, y)[0])
        else:
            with torch.no_grad(), record(net, STAGE) as features:
                net(x)
            made.append(spike_map(features[STAGE]))
    return torch.cat(made)


def score(net: nn.Module, teacher: nn.Module, device: str) -> dict[str, float]:
    """Accuracy and gaze on the 4,000 test scenes."""
    test = cluttered("test")
    images, labels = normalise(test.images.to(device)), test.labels.to(device)
    masks = test.masks.to(device)
    own, guide = maps(net, images, labels), maps(teacher, images, labels)
    rates = {} if net.timesteps is None else firing_rates(net, images[:1000])
    return {
        "accuracy": accuracy(predict(net, images), labels),
        "pointing_game": pointing_game(own, masks).mean().item(),
        "mask_overlap": mask_overlap(own, masks).mean().item(),
        "divergence": map_divergence(own, guide).mean().item(),
        "rank_correlation": rank_correlation(own, guide).nanmean().item(),
        "firing_rate": sum(rates.values()) / max(1, len(rates)),
    }


def read_rows(work: Path) -> dict[tuple[str, int], dict[str, str]]:
    """The runs that have ended: their row is written after their weights."""
    if not (work / "runs.csv").exists():
        return {}
    with (work / "runs.csv").open(newline="") as file:
        return {(row["network"], int(row["seed"])): row for row in csv.DictReader(file)}


def write_rows(path: Path, rows: Iterable[Mapping[str, object]], mode: str = "w") -> None:
    with path.open(mode, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)


def ship(work: Path) -> None:
    """Copy all scores, and seed 0's weights with the scores they must reproduce."""
    rows = read_rows(work)
    ordered = sorted(rows, key=lambda key: (key[1], NETWORKS.index(key[0])))
    write_rows(FOLDER / "shipped.csv", [rows[key] for key in ordered])
    manifest = {}
    for name in NETWORKS:
        weights = (work / f"{name}-0.safetensors").read_bytes()
        (FOLDER / f"{name}.safetensors").write_bytes(weights)
        manifest[name] = {
            "file": f"{name}.safetensors",
            "sha256": hashlib.sha256(weights).hexdigest(),
            "timesteps": None if name == "teacher" else TIMESTEPS,
            "test_accuracy": float(rows[name, 0]["accuracy"]),
            "test_pointing_game": float(rows[name, 0]["pointing_game"]),
        }
    (FOLDER / "weights.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: 0 1 2")
    parser.add_argument(
        "--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="default: all"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where weights are kept")
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    for seed in options.seeds:
        teacher = build("teacher").to(options.device)
        for name in ("teacher", *(n for n in options.networks if n != "teacher")):
            weights = options.work / f"{name}-{seed}.safetensors"
            done = read_rows(options.work).get((name, seed))
            if done and int(done["epochs"]) != options.epochs:
                parser.error(
                    f"{options.work} holds {name}, seed {seed}, of {done['epochs']} epochs and not "
                    f"{options.epochs}: give another folder with --work, or remove it"
                )
            if not done:
                row = run(name, seed, teacher, options.epochs, options.device, weights)
                write_rows(options.work / "runs.csv", [row], "a")
            if name == "teacher":
                teacher.load_state_dict(load_file(weights))
                teacher.eval()
    if all((name, seed) in read_rows(options.work) for name in NETWORKS for seed in SEEDS):
        ship(options.work)
    else:
        print("Not all runs are there: the package keeps the networks that it has.")


def run(
    name: str, seed: int, teacher: nn.Module, epochs: int, device: str, weights: Path
) -> dict[str, object]:
    """Train one network, keep its weights, and return its row."""
    print(f"{name}, seed {seed}")
    start = time.perf_counter()
    net = train(name, seed, teacher, epochs, device)
    seconds = round(time.perf_counter() - start)
    save_file({key: value.cpu().contiguous() for key, value in net.state_dict().items()}, weights)
    scores = score(net, net if name == "teacher" else teacher, device)
    return {
        "network": name,
        "seed": seed,
        **{key: f"{value:.4f}" for key, value in scores.items()},
        "epochs": epochs,
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
