"""ResNet-20 and ResNet-19 on photographs, by the recipes for CIFAR-10; several runs side by side.

    python experiments/photographs.py FOLDER --network resnet20 --at-once 12
    python experiments/photographs.py FOLDER --network resnet19 --seeds 1 --at-once 3

FOLDER holds train/<class>/* and test/<class>/*: here a JPEG copy of CIFAR-10's 60,000 images, so
no number of these runs is one of CIFAR-10 itself. A run is `ckdlite fit` by the recipe, but short:
fewer epochs, and of the augmentations crop and flip alone. Then its last epoch's weights answer the
test images, once. Its row goes into `experiments/results/cifar10-jpeg.csv`, its epochs into
`cifar10-jpeg-epochs.csv`. The same command goes on where it was stopped. Every seed has its own
teacher, which a student takes at its best epoch on validation, as the recipes have it; students are
compared at their last epoch. ResNet-19 was not run yet.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ckdlite import data
from ckdlite.runs import checkpoint, history, read, resume

HERE = Path(__file__).parent
METHODS = ("teacher", "label-only", "kd", "paper", "released")
TIMESTEPS = {"resnet20": 2, "resnet19": 1}
EPOCHS = {"resnet20": 20, "resnet19": 10}  # the recipes have 300 and 400
SCORES = ["accuracy", "divergence", "rank_correlation", "firing_rate"]
COLUMNS = [
    *("network", "timesteps", "method", "seed", *SCORES, "best_validation", "epochs"),
    *("images", "precision", "device", "seconds", "at_once", "commit", "date", "torch", "command"),
]
EPOCH_COLUMNS = [
    *("network", "timesteps", "method", "seed", "epoch"),
    *("train/ce", "train/kd", "train/samd", "train/nld", "train/accuracy"),
    *("val/ce", "val/accuracy", "val/divergence", "val/firing_rate"),
]


def words(network: str, method: str, seed: int, given: argparse.Namespace) -> list[str]:
    """The words behind `ckdlite` that train a run."""
    base = f"cifar10-{network}"
    overlay = f"{base}-teacher" if method == "teacher" else method
    found = ["fit", "--run", str(folder(network, method, seed, given))]
    found += ["--config", base, "--config", "folder", "--config", overlay]
    found += ["--config", "short", "--data.root", str(given.folder)]
    found += ["--data.memory", "true", "--data.workers", str(given.workers)]
    found += ["--seed_everything", str(seed), "--trainer.max_epochs", str(EPOCHS[network])]
    found += ["--trainer.precision", given.precision, "--trainer.enable_progress_bar", "false"]
    if method != "teacher":
        teacher = folder(network, "teacher", seed, given)
        found += ["--model.teacher_weights", str(teacher)]
        found += ["--model.student.timesteps", str(TIMESTEPS[network])]
    return found


def folder(network: str, method: str, seed: int, given: argparse.Namespace) -> Path:
    return given.work / f"{network}-{method}-{seed}"


def ckdlite(arguments: list[str], log: Path) -> None:
    """The command line in a process of its own, one core beside its workers."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        subprocess.run(
            [sys.executable, "-m", "ckdlite.cli", *arguments],
            check=True,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def one(network: str, method: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train and test one run; its row."""
    path = folder(network, method, seed, given)
    log, start = path.with_suffix(".log"), time.monotonic()
    arguments = words(network, method, seed, given)
    ckdlite(arguments, log)
    seconds = time.monotonic() - start
    if not (path / "test.json").exists():
        # Full precision, whatever the run was trained in.
        more = ["--checkpoint", "last", "--trainer.precision", "32-true"]
        ckdlite(["test", "--run", str(path), *more], log)
    scores = json.loads((path / "test.json").read_text())["scores"]
    logged = history(path)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "network": network,
        "timesteps": "" if method == "teacher" else TIMESTEPS[network],
        "method": method,
        "seed": seed,
        **{name: f"{scores[name]:.6g}" for name in SCORES if name in scores},
        "best_validation": f"{max(r['val/accuracy'] for r in logged if 'val/accuracy' in r):.6g}",
        "epochs": read(checkpoint(path, "last"))["epoch"] + 1,
        "images": given.images,
        "precision": given.precision,
        "device": device,
        "seconds": round(seconds),
        "at_once": given.at_once,
        "commit": given.commit,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "command": _plain(arguments, given),
    }


def _plain(arguments: list[str], given: argparse.Namespace) -> str:
    """The command as anyone would give it: folders by short names."""
    said = " ".join(["ckdlite", *arguments])
    return said.replace(str(given.work), "runs").replace(str(given.folder), "FOLDER")


def epochs(row: dict[str, Any], given: argparse.Namespace) -> list[dict[str, Any]]:
    """What a run logged, a row an epoch: means of the training steps that were logged."""
    path = folder(row["network"], row["method"], row["seed"], given)
    found: dict[int, dict[str, list[float]]] = {}
    for step in history(path):
        if "epoch" in step:
            for name, value in step.items():
                found.setdefault(int(step["epoch"]), {}).setdefault(name, []).append(value)
    shared = {name: row[name] for name in EPOCH_COLUMNS[:4]}
    return [
        {**shared, "epoch": epoch}
        | {n: f"{sum(v) / len(v):.6g}" for n, v in values.items() if n in EPOCH_COLUMNS[5:]}
        for epoch, values in sorted(found.items())
    ]


def measured(table: Path, keys: list[str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows that there are."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        return {tuple(row[k] for k in keys): row for row in csv.DictReader(file)}


def write(rows: list[dict[str, Any]], table: Path, columns: list[str]) -> None:
    """Put rows in the place of those of the same runs."""
    keys = columns[: 5 if columns is EPOCH_COLUMNS else 4]
    kept = measured(table, keys)
    kept |= {tuple(str(row[k]) for k in keys): row for row in rows}
    table.parent.mkdir(parents=True, exist_ok=True)
    table = table.resolve()  # results/ holds links into the library, where the book reads them
    part = table.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[key] for key in sorted(kept, key=_order))
    part.replace(table)


def _order(key: tuple[str, ...]) -> tuple[Any, ...]:
    network, _steps, method, *numbers = key
    return (network, METHODS.index(method), *map(int, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="train/<class>/*, test/<class>/*")
    parser.add_argument("--network", choices=TIMESTEPS, default="resnet20")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--workers", type=int, default=2, help="processes that load, a run")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "photographs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--commit", default="", help="what the rows say of the code's version")
    given = parser.parse_args()
    given.images = len(data.folder(given.folder, "train"))
    # All teachers first: a student waits for nothing but its own.
    jobs = [(method, seed) for method in METHODS for seed in range(given.seeds)]
    have = measured(given.results / "cifar10-jpeg.csv", ["network", "method", "seed"])
    jobs = [
        (method, seed)
        for method, seed in jobs
        if method in given.methods and (given.network, method, str(seed)) not in have
    ]
    # The table may come without the folders: a teacher that is wanted is then trained again.
    folders = {seed: folder(given.network, "teacher", seed, given) for _, seed in jobs}
    again = [("teacher", seed) for seed, path in folders.items() if not resume(path)]
    jobs = [job for job in again if job not in jobs and "teacher" in given.methods] + jobs
    done: dict[tuple[str, int], threading.Event] = {job: threading.Event() for job in jobs}
    failed = []
    with ThreadPoolExecutor(given.at_once) as pool:

        def run(method: str, seed: int) -> dict[str, Any]:
            if method != "teacher" and ("teacher", seed) in done:
                done["teacher", seed].wait()
            try:
                return one(given.network, method, seed, given)
            finally:
                done[method, seed].set()

        futures = {pool.submit(run, *job): job for job in jobs}
        for future in as_completed(futures):
            try:
                row = future.result()
            except Exception as error:  # whatever it is, the other runs are kept
                failed.append("{} seed {}".format(*futures[future]))
                print(f"{failed[-1]} failed, see its .log: {error!r}", flush=True)
                continue
            write([row], given.results / "cifar10-jpeg.csv", COLUMNS)
            write(epochs(row, given), given.results / "cifar10-jpeg-epochs.csv", EPOCH_COLUMNS)
            said = f"{row['method']} seed {row['seed']}: {row['accuracy']} in {row['seconds']} s"
            print(said, flush=True)
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
