"""Train the networks that the chapters load, and write their weights and scores.

    python experiments/train_shipped.py                # on 2 CPU cores: two hours a seed
    python experiments/train_shipped.py --device cuda  # minutes

One teacher and four students, three seeds each: `label-only` learns from labels, `samd` from labels
and SAMD, `nld` from labels and NLD, `distilled` from the whole loss. All see the same images in the
same order; each epoch shows the 14,000 training items in new scenes, which stands for augmentation.
Each run has a folder in `experiments/work`; one that has ended is not repeated, and a stopped one
goes on at its last whole epoch. When all are there, the scores of all runs and the last weights of
seed 0, which the chapters load, are copied into the package.
"""

import argparse
import csv
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import lightning.pytorch as L
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from ckdlite._assets import FOLDER
from ckdlite.data import Scenes, cluttered
from ckdlite.datamodules import SceneData
from ckdlite.networks import resnet8
from ckdlite.runs import checkpoint, keep, resume
from ckdlite.training import NLD, SAMD, Distil, Teacher, load_weights, sgd

HERE = Path(__file__).parent
# The terms of the loss beside the labels.
NETWORKS = {
    "teacher": {},
    "label-only": {},
    "samd": {"samd": SAMD(1.0)},
    "nld": {"nld": NLD(1.0)},
    "distilled": {"samd": SAMD(1.0), "nld": NLD(1.0)},
}
SEEDS = (0, 1, 2)
TIMESTEPS, EPOCHS = 4, 20
SCORES = {
    "accuracy": "accuracy",
    "pointing_game": "peak_on_object",
    "mask_overlap": "mass_on_object",
    "divergence": "divergence",
    "rank_correlation": "rank_correlation",
    "firing_rate": "firing_rate",
}
COLUMNS = ["network", "seed", *SCORES, "epochs", "seconds", "device", "torch"]


@cache
def scenes_of(epoch: int) -> Scenes:
    """The training scenes of an epoch, the same for every network; 57 MB each."""
    return cluttered("train", seed=epoch)


class FreshScenes(SceneData):
    """New scenes of the same items each epoch, in an order that depends on the seed."""

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch
        scenes = scenes_of(epoch)
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(epoch + 1):
            order = torch.randperm(len(scenes.labels), generator=draw)
        return DataLoader(TensorDataset(scenes.images[order], scenes.labels[order]), 128)


def module(name: str, seed: int, teacher: Path) -> L.LightningModule:
    """What learns: the initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    if name == "teacher":
        # Stronger weight decay than the students', usual for ResNets.
        return Teacher(resnet8(), optimizer=partial(sgd, weight_decay=5e-4), seed=seed)
    student = resnet8(timesteps=TIMESTEPS)
    return Distil(student, resnet8(), teacher_weights=teacher, seed=seed, **NETWORKS[name])


def run(name: str, seed: int, epochs: int, device: str, work: Path) -> dict[str, object]:
    """Train one network, or go on with it, and return its row."""
    folder = work / f"{name}-{seed}"
    start = time.perf_counter()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator=device,
        devices=1,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **keep(folder),
    )
    data = FreshScenes(seed=seed)
    net = module(name, seed, work / f"teacher-{seed}" / "checkpoints" / "last.ckpt")
    trainer.fit(net, data, ckpt_path=resume(folder))
    seconds = round(time.perf_counter() - start)
    (scores,) = trainer.test(net, data, verbose=False)
    return {
        "network": name,
        "seed": seed,
        # A teacher has no teacher to agree with, and no spikes.
        **{k: f"{scores[f'test/{v}']:.4f}" for k, v in SCORES.items() if f"test/{v}" in scores},
        "epochs": epochs,
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
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
    order = list(NETWORKS)
    ordered = sorted(rows, key=lambda key: (key[1], order.index(key[0])))
    write_rows(FOLDER / "shipped.csv", [rows[key] for key in ordered])
    manifest = {}
    for name in NETWORKS:
        net = resnet8(timesteps=None if name == "teacher" else TIMESTEPS)
        load_weights(net, checkpoint(work / f"{name}-0", "last"))
        file = FOLDER / f"{name}.safetensors"
        save_file(net.state_dict(), file)
        manifest[name] = {
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "timesteps": net.timesteps,
            "test_accuracy": float(rows[name, 0]["accuracy"]),
            "test_pointing_game": float(rows[name, 0]["pointing_game"]),
        }
    (FOLDER / "weights.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: 0 1 2")
    parser.add_argument(
        "--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="default: all"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where runs are kept")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    options.work.mkdir(exist_ok=True)
    for seed in options.seeds:
        for name in ("teacher", *(n for n in options.networks if n != "teacher")):
            done = read_rows(options.work).get((name, seed))
            if done and int(done["epochs"]) != options.epochs:
                parser.error(
                    f"{options.work} holds {name}, seed {seed}, of {done['epochs']} epochs and not "
                    f"{options.epochs}: give another folder with --work, or remove it"
                )
            if not done:
                print(f"{name}, seed {seed}", flush=True)
                row = run(name, seed, options.epochs, options.device, options.work)
                write_rows(options.work / "runs.csv", [row], "a")
    if all((name, seed) in read_rows(options.work) for name in NETWORKS for seed in SEEDS):
        ship(options.work)
    else:
        print("Not all runs are there: the package keeps the networks that it has.")


if __name__ == "__main__":
    main()
