"""The runs of `experiments/PLAN.md`, two at a time; the same command goes on where it was stopped.

    python experiments/evidence.py             # all that is missing, in the plan's order
    python experiments/evidence.py --list      # what there is to run, and what is done
    python experiments/evidence.py --only kd   # some runs, by name

A run is `ckdlite fit`, one core; then its last epoch's weights answer the test set, once, and its
row goes into `ckdlite/assets/evidence.csv`, which the book reads.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import date
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from ckdlite import cli, data, measure, training
from ckdlite._assets import FOLDER
from ckdlite.networks import record
from ckdlite.runs import checkpoint, resume
from ckdlite.saliency import grad_cam, map_divergence, mask_overlap, pointing_game, spike_map

HERE = Path(__file__).parent
SCORES = [
    *("accuracy", "peak_on_object", "peak_aside", "mass_on_object", "divergence"),
    *("firing_rate", "synaptic_operations", "microjoules", "calibration_error", "entropy"),
    *("shifted_accuracy", "shifted_peak"),
]
COLUMNS = ["run", "seed", *SCORES, "epochs", "commit", "date", "seconds", "torch"]
SHIFTED_CLUTTER = 12  # patches a scene; the networks were trained with 6
# Each run starts as a copy of one process that has imported everything.
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["ckdlite.cli"])


class Run(NamedTuple):
    """One setting: its name, overlays of the recipe `scenes`, options, seeds, and its teacher."""

    name: str
    overlays: tuple[str, ...]
    options: str = ""
    seeds: int = 3
    teacher: str = "teacher"


def plan() -> list[Run]:
    """Every run of the plan, in its order."""
    runs = [
        Run("label-only", ("label-only",), seeds=5),
        Run("kd", ("kd",), seeds=5),
        Run("samd", ("samd",), seeds=5),
        Run("nld", ("nld",), seeds=5),
        Run("paper", ("paper",), seeds=5),
        Run("both", ("both",), seeds=5),
        Run("kd+samd", ("kd", "samd"), seeds=5),
        Run("released", ("released",), seeds=5),
    ]
    # The nine differences of the released code, each alone.
    differences = {
        "teacher map": "--model.samd.teacher_map cam --model.samd.target predicted",
        "scaling": "--model.samd.normalise batch",
        "no square": "--model.samd.square false",
        "relu last": "--model.student.relu_last true",
        "probabilities": "--model.nld.mix probabilities",
        "variance": "--model.nld.spread variance",
        "attached": "--model.nld.detach_statistics false",
        "drifting teacher": "--model.teacher_drifts true",
        "two-layer head": "--model.student.head_width 256",
    }
    for i, (name, options) in enumerate(differences.items(), 1):
        runs.append(Run(f"paper {i} {name}", ("paper",), options))
    # Scaling, weight and stage of SAMD.
    for scaling, weights in {
        "sample": (1, 10, 30),
        "batch": (3, 30),
        "zscore": (0.3, 1, 3),
        "none": (0.01, 0.1),
    }.items():
        for weight in weights:
            options = f"--model.samd.normalise {scaling} --model.samd.weight {weight}"
            runs.append(Run(f"samd {scaling} {weight}", ("samd",), options))
    stage2 = "--model.student_layer stage2 --model.teacher_layer stage2"
    runs.append(Run("samd stage2", ("samd",), stage2))
    zscore = "--model.samd.normalise zscore --model.samd.weight 1"
    runs.append(Run("nld+samd zscore", ("nld", "samd"), zscore))
    # Where looking at the object might pay: fewer images for as many steps, more clutter.
    few = "--data.images 1500 --trainer.max_epochs 42"
    dense = f"--data.clutter {SHIFTED_CLUTTER}"
    runs.append(Run("teacher, more clutter", ("teacher",), dense, teacher=""))
    for name in ("label-only", "kd", "samd", "kd+samd"):
        overlays = tuple(name.split("+"))
        runs.append(Run(f"{name}, few images", overlays, few))
        runs.append(Run(f"{name}, more clutter", overlays, dense, teacher="teacher, more clutter"))
    return runs


def jobs() -> list[tuple[Run, int]]:
    """Runs and seeds: all teachers first, question 1 seed by seed, then the rest run by run."""
    teacher = Run("teacher", ("teacher",), seeds=5, teacher="")
    every = plan()
    first = [run for run in every if run.seeds == 5]
    found = [(teacher, seed) for seed in range(5)]
    found += [(run, seed) for seed in range(5) for run in first]
    return found + [(run, seed) for run in every if run not in first for seed in range(run.seeds)]


def folder(name: str, seed: int, work: Path) -> Path:
    return work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def command(run: Run, seed: int, work: Path) -> list[str]:
    """The words behind `ckdlite` that train it."""
    words = ["fit", "--run", str(folder(run.name, seed, work)), "--config", "scenes"]
    for overlay in run.overlays:
        words += ["--config", overlay]
    words += ["--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    if run.teacher:  # what a student only logs costs time and changes no weight
        words += ["--trainer.check_val_every_n_epoch", "1000", "--model.gradient_norms_every", "0"]
    if run.teacher:
        words += ["--model.teacher_weights", str(folder(run.teacher, seed, work))]
    return [*words, *run.options.split()]


def fit(run: Run, seed: int, work: Path, more: list[str]) -> float:
    """Train, or go on with training; the seconds that it took."""
    path = folder(run.name, seed, work)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    words = [*command(run, seed, work), *more]
    process = PROCESSES.Process(target=_train, args=(words, path.with_suffix(".log")))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"ckdlite fit ended with status {process.exitcode}")
    return time.monotonic() - start


def _train(words: list[str], log: Path) -> None:
    """In a process of its own: `ckdlite`, on one core, with what it says in a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(cli.main(words))


@cache
def test_scenes(clutter: int) -> data.Scenes:
    return data.cluttered("test", clutter=clutter)


def built(spec: dict[str, Any]) -> torch.nn.Module:
    """The network of a run's configuration, with plain neurons: the results are the same."""
    module, _, name = spec["class_path"].rpartition(".")
    options = {k: v for k, v in spec.get("init_args", {}).items() if k != "neuron"}
    return getattr(import_module(module), name)(**options)


@torch.no_grad()
def score(path: Path) -> dict[str, float]:
    """Every outcome of the plan, for the last epoch's weights on the test set."""
    config = yaml.safe_load((path / "config.yaml").read_text())
    spec = config["model"]["init_args"]
    is_teacher = config["model"]["class_path"].endswith("Teacher")
    model = built(spec["network" if is_teacher else "student"])
    training.load_weights(model, checkpoint(path, "last"))
    model.eval()
    trained = config["data"]["init_args"]["clutter"]
    found: dict[str, float] = {}
    for patches in dict.fromkeys((trained, SHIFTED_CLUTTER)):
        scenes = test_scenes(patches)
        x = data.normalise(scenes.images)
        if is_teacher:
            maps, logits = _teacher_maps(model, "stage3", x, scenes.labels)
        else:
            maps, logits, rates = _student_maps(model, "stage3", x)
        hits = pointing_game(maps, scenes.masks)
        right = (logits.argmax(1) == scenes.labels).float()
        if patches != trained:
            found |= {"shifted_accuracy": right.mean(), "shifted_peak": hits.mean()}
            continue
        aside = ~scenes.masks[:, 15:17, 15:17].flatten(1).any(1)  # the canvas's centre is off it
        found |= {
            "accuracy": right.mean(),
            "peak_on_object": hits.mean(),
            "peak_aside": hits[aside].mean(),
            "mass_on_object": mask_overlap(maps, scenes.masks).mean(),
            "calibration_error": multiclass_calibration_error(
                logits.softmax(1), scenes.labels, logits.shape[1], n_bins=15
            ),
            "entropy": measure.entropy(logits).mean(),
        }
        if not is_teacher:
            teacher = built(spec["teacher"])
            saved = torch.load(checkpoint(path, "last"), weights_only=True)["state_dict"].items()
            own = {k.removeprefix("teacher."): v for k, v in saved if k.startswith("teacher.")}
            teacher.load_state_dict(own)
            guide, _ = _teacher_maps(teacher.eval(), "stage3", x, scenes.labels)
            cost = measure.operations(model, x[:500])
            found |= {
                "divergence": map_divergence(maps, guide).nanmean(),
                "firing_rate": rates,
                "synaptic_operations": cost.acs,
                "microjoules": cost.microjoules,
            }
    return {name: float(value) for name, value in found.items()}


def _student_maps(model: torch.nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor, float]:
    maps, logits, rates = [], [], []
    for batch in x.split(250):
        with record(model, layer) as features, measure.count_spikes(model) as counted:
            logits.append(model(batch).mean(0))
        maps.append(spike_map(features[layer]))
        rates.append(sum(sum(found) for found in counted.values()) / len(counted))
    return torch.cat(maps), torch.cat(logits), sum(rates) / len(rates)


def _teacher_maps(
    model: torch.nn.Module, layer: str, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    pairs = zip(x.split(250), y.split(250), strict=True)
    maps, logits = zip(*(grad_cam(model, layer, *pair) for pair in pairs), strict=True)
    return torch.cat(maps), torch.cat(logits)


def measured(table: Path) -> dict[tuple[str, int], dict[str, str]]:
    """The rows that there are."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        return {(row["run"], int(row["seed"])): row for row in csv.DictReader(file)}


def write(row: dict[str, Any], table: Path) -> None:
    """Add a row, in the order of the plan."""
    rows = measured(table) | {(row["run"], row["seed"]): row}
    order = {(run.name, seed): i for i, (run, seed) in enumerate(jobs())}
    beside = table.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows, key=lambda key: order.get(key, 10**6)))
    beside.replace(table)


def one(run: Run, seed: int, work: Path, commit: str, more: list[str]) -> dict[str, Any]:
    seconds = fit(run, seed, work, more)
    path = folder(run.name, seed, work)
    scores = {name: f"{value:.6g}" for name, value in score(path).items()}
    about = {"commit": commit, "date": date.today().isoformat(), "seconds": round(seconds)}
    about |= {"epochs": torch.load(checkpoint(path, "last"), weights_only=True)["epoch"] + 1}
    return {"run": run.name, "seed": seed, **scores, **about, "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="say what is done and what is not")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names of runs")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--hours", type=float, default=6.0, help="start no run after that")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "evidence")
    parser.add_argument("--table", type=Path, default=FOLDER / "evidence.csv")
    given, more = parser.parse_known_args()  # what is left is for `ckdlite fit`
    known = {run.name for run, _ in jobs()}
    if unknown := set(given.only or ()) - known:
        parser.error(f"--only: got {sorted(unknown)}, wanted some of {sorted(known)}")
    done = measured(given.table)
    if given.list:
        for run, seed in jobs():
            print(f"{'done' if (run.name, seed) in done else 'not run':>8}  {run.name} seed {seed}")
        return
    torch.set_num_threads(1)
    commit = _commit()
    missing = [(run, seed) for run, seed in jobs() if (run.name, seed) not in done]
    missing = [(run, seed) for run, seed in missing if not given.only or run.name in given.only]
    # The table may come without the folders: a teacher that is wanted is then trained again.
    teachers = {(run.teacher, seed) for run, seed in missing if run.teacher}
    wanted = [
        (run, seed)
        for run, seed in jobs()
        if (run, seed) in missing
        or ((run.name, seed) in teachers and not resume(folder(run.name, seed, given.work)))
    ]
    start, waiting, failed = time.monotonic(), {}, []
    with ThreadPoolExecutor(given.at_once) as pool:
        futures: dict[Future, tuple[Run, int]] = {}

        def start_one(run: Run, seed: int) -> dict[str, Any] | None:
            if time.monotonic() - start > 3600 * given.hours:
                return None
            if run.teacher and (run.teacher, seed) in waiting:
                waiting[run.teacher, seed].result()
            return one(run, seed, given.work, commit, more)

        for run, seed in wanted:
            future = pool.submit(start_one, run, seed)
            futures[future] = (run, seed)
            waiting[run.name, seed] = future
        for future in as_completed(futures):
            run, seed = futures[future]
            try:
                row = future.result()
            except Exception as error:  # whatever it is, the other runs are kept
                failed.append(f"{run.name} seed {seed}")
                print(f"{failed[-1]} failed, see its .log: {error!r}", flush=True)
                continue
            if row is None:  # the time is up
                continue
            write(row, given.table)
            print(f"{run.name} seed {seed}: {row['accuracy']} in {row['seconds']} s", flush=True)
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}")


def _commit() -> str:
    """The commit of this checkout, with a + where files differ from it."""
    words = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() or "no git"


if __name__ == "__main__":
    main()
