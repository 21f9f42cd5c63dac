"""The runs of `experiments/PLAN.md`, two at a time; the same command goes on where it was stopped.

    python experiments/evidence.py             # all that is missing, in the plan's order
    python experiments/evidence.py --list      # what there is to run, and what is done
    python experiments/evidence.py --only kd   # some runs, by name
    python experiments/evidence.py --photos FOLDER   # with those on photographs

A run is `ckdlite fit`, one core; then its last epoch's weights answer the test set, once, and its
row goes into `ckdlite/assets/evidence.csv`, which the book reads.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections import Counter
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

from ckdlite import cli, data, datamodules, measure, training
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
LAYER = "stage3"  # whose maps are scored, whichever were compared in training
SHIFTED_CLUTTER = 12  # patches a scene; the networks were trained with 6
PHOTOS = 6  # the question whose runs want a folder of photographs
# Each run starts as a copy of one process that has imported everything.
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["ckdlite.cli"])


class Run(NamedTuple):
    """One setting: its name, overlays of the recipe `scenes`, options, seeds, and its teacher.

    `question` is its number in the plan. A run of question 6 wants the folder of photographs.
    `teacher_shift` takes the teacher of another seed, so that the two do not start alike.
    """

    question: int
    name: str
    overlays: tuple[str, ...]
    options: str = ""
    seeds: int = 3
    teacher: str = "teacher"
    teacher_shift: int = 0

    def taught_by(self, seed: int) -> tuple[str, int]:
        """Name and seed of its teacher's run."""
        return self.teacher, (seed + self.teacher_shift) % self.seeds


def plan() -> list[Run]:
    """Every run of the plan, in its order; a teacher stands before its students."""
    names = ("label-only", "kd", "samd", "nld", "paper", "both", "kd+samd", "released")
    runs = [Run(1, name, tuple(name.split("+")), seeds=5) for name in names]
    runs.append(Run(6, "photos teacher", ("photos", "teacher"), teacher=""))
    for name in ("label-only", "kd", "paper"):
        runs.append(Run(6, f"photos {name}", ("photos", name), teacher="photos teacher"))
    # The control of the two that change the network: no teacher, the same student.
    network = "--model.student.relu_last true --model.student.head_width 256"
    runs.append(Run(3, "label-only, released network", ("label-only",), network))
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
        runs.append(Run(3, f"paper {i} {name}", ("paper",), options))

    # Scaling, weight, stage and schedule of SAMD; first one of each, then the other weights.
    def scaled(how: str, weight: float) -> Run:
        options = f"--model.samd.normalise {how} --model.samd.weight {weight}"
        return Run(4, f"samd {how} {weight}", ("samd",), options)

    runs += [scaled("zscore", 1), scaled("sample", 10), scaled("batch", 30), scaled("none", 0.1)]
    stage2 = "--model.student_layer stage2 --model.teacher_layer stage2"
    runs.append(Run(4, "samd stage2", ("samd",), stage2))
    zscore = "--model.samd.normalise zscore --model.samd.weight 1"
    fade = f"{zscore} --model.samd.fade true"
    runs.append(Run(4, "samd zscore 1 fade", ("samd",), fade))
    runs.append(Run(4, "nld+samd zscore", ("nld", "samd"), zscore))
    # Where looking at the object might pay: fewer images for as many steps, more clutter.
    few = "--data.images 1500 --trainer.max_epochs 42"
    dense = f"--data.clutter {SHIFTED_CLUTTER}"
    for name in ("label-only", "samd", "kd", "kd+samd"):
        runs.append(Run(5, f"{name}, few images", tuple(name.split("+")), few))
    crowded = "teacher, more clutter"
    runs.append(Run(5, crowded, ("teacher",), dense, teacher=""))
    for name in ("label-only", "samd", "kd", "kd+samd"):
        more = Run(5, f"{name}, more clutter", tuple(name.split("+")), dense, teacher=crowded)
        runs.append(more)
    runs += [scaled("sample", 1), scaled("sample", 30), scaled("zscore", 0.3), scaled("zscore", 3)]
    runs += [scaled("batch", 3), scaled("none", 0.01)]
    # As long as the budget lasts.
    for steps in (1, 4):
        for name in ("label-only", "kd", "samd", "nld"):
            options = f"--model.student.timesteps {steps}"
            runs.append(Run(7, f"{name}, T = {steps}", (name,), options))
    noise = {
        "strength 0.3": "--model.nld.strength 0.3",
        "strength 1": "--model.nld.strength 1",
        "variance": "--model.nld.spread variance",
        "probabilities": "--model.nld.mix probabilities",
        "8 draws": "--model.nld.draws 8",
    }
    runs += [Run(7, f"nld {name}", ("nld",), options) for name, options in noise.items()]
    for name in ("feature-mse", "attention-transfer"):
        for weight in (1, 10):
            options = f"--model.{name.replace('-', '_')}.weight {weight}"
            runs.append(Run(7, f"{name} {weight}", (name,), options))
    other = "--model.feature_mse.weight 10"
    runs.append(Run(7, "feature-mse 10, other start", ("feature-mse",), other, teacher_shift=1))
    short = "--trainer.max_epochs 2 --trainer.check_val_every_n_epoch 2"
    runs.append(Run(7, "weak teacher", ("teacher",), short, teacher=""))
    runs.append(Run(7, "kd, weak teacher", ("kd",), teacher="weak teacher"))
    runs.append(Run(7, "kd, shipped teacher", ("kd",), teacher=""))
    for name in ("label-only", "kd"):  # about as many steps
        options = "--data.images 14000 --trainer.max_epochs 4"
        runs.append(Run(7, f"{name}, more images", (name,), options))
    runs.append(Run(7, "samd cam", ("samd",), "--model.samd.teacher_map cam"))
    runs.append(Run(7, "samd predicted", ("samd",), "--model.samd.target predicted"))
    for name in ("both", "samd", "nld"):
        runs.append(Run(6, f"photos {name}", ("photos", name), teacher="photos teacher"))
    return runs


def jobs() -> list[tuple[Run, int]]:
    """Runs and seeds: all teachers first, question 1 seed by seed, then the rest run by run."""
    first = [run for run in plan() if run.question == 1]
    found = [(Run(1, "teacher", ("teacher",), seeds=5, teacher=""), seed) for seed in range(5)]
    found += [(run, seed) for seed in range(5) for run in first]
    return found + [(run, seed) for run in plan()[len(first) :] for seed in range(run.seeds)]


def folder(name: str, seed: int, work: Path) -> Path:
    return work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def command(run: Run, seed: int, work: Path, photos: Path | None) -> list[str]:
    """The words behind `ckdlite` that train it."""
    words = ["fit", "--run", str(folder(run.name, seed, work)), "--config", "scenes"]
    for overlay in run.overlays:
        words += ["--config", overlay]
    words += ["--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    if run.teacher:
        words += ["--model.teacher_weights", str(folder(*run.taught_by(seed), work))]
        # What a student only logs costs time and changes no weight.
        words += ["--trainer.check_val_every_n_epoch", "1000", "--model.gradient_norms_every", "0"]
    if run.question == PHOTOS:
        words += ["--data.root", str(photos)]
    return [*words, *run.options.split()]


def fit(path: Path, words: list[str]) -> float:
    """Train, or go on with training; the seconds that it took."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
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
def scenes(clutter: int) -> data.Scenes:
    return data.cluttered("test", clutter=clutter)


@cache
def photographs(root: str) -> tuple[Tensor, Tensor]:
    """Images, normalised, and labels of the test part."""
    source = datamodules.FolderData(root)
    images, labels = zip(*source.test_dataloader(), strict=True)
    return data.normalise(torch.cat(images), source.mean, source.std), torch.cat(labels)


def built(spec: dict[str, Any]) -> torch.nn.Module:
    """The network of a run's configuration, with plain neurons: the results are the same."""
    module, _, name = spec["class_path"].rpartition(".")
    options = {k: v for k, v in spec.get("init_args", {}).items() if k != "neuron"}
    return getattr(import_module(module), name)(**options)


@torch.no_grad()
def score(path: Path) -> dict[str, float]:
    """Every outcome of the plan, for the last epoch's weights on the test set."""
    config = yaml.safe_load((path / "config.yaml").read_text())
    spec, about_data = config["model"]["init_args"], config["data"]["init_args"]
    is_teacher = config["model"]["class_path"].endswith("Teacher")
    model = built(spec["network" if is_teacher else "student"])
    training.load_weights(model, checkpoint(path, "last"))
    model.eval()
    look = _teacher_maps if is_teacher else _student_maps
    if "root" in about_data:
        (x, y), masks = photographs(about_data["root"]), None
    else:
        test = scenes(about_data["clutter"])
        x, y, masks = data.normalise(test.images), test.labels, test.masks
    maps, logits, rate = look(model, x, y)
    found = {
        "accuracy": measure.accuracy(logits, y),
        "calibration_error": multiclass_calibration_error(
            logits.softmax(1), y, logits.shape[1], n_bins=15
        ),
        "entropy": measure.entropy(logits).mean(),
    }
    if masks is not None:
        hits = pointing_game(maps, masks)
        aside = ~masks[:, 15:17, 15:17].flatten(1).any(1)  # the canvas's centre is off it
        found |= {
            "peak_on_object": hits.mean(),
            "peak_aside": hits[aside].mean(),
            "mass_on_object": mask_overlap(maps, masks).mean(),
        }
        if about_data["clutter"] != SHIFTED_CLUTTER:
            test = scenes(SHIFTED_CLUTTER)
            other, answers, _ = look(model, data.normalise(test.images), test.labels)
            found |= {
                "shifted_accuracy": measure.accuracy(answers, test.labels),
                "shifted_peak": pointing_game(other, test.masks).mean(),
            }
    if not is_teacher:
        teacher = built(spec["teacher"])
        saved = torch.load(checkpoint(path, "last"), weights_only=True)["state_dict"].items()
        own = {k.removeprefix("teacher."): v for k, v in saved if k.startswith("teacher.")}
        teacher.load_state_dict(own)
        guide, _, _ = _teacher_maps(teacher.eval(), x, y)
        cost = measure.operations(model, x[:500])
        found |= {
            "divergence": map_divergence(maps, guide).nanmean(),
            "firing_rate": rate,
            "synaptic_operations": cost.acs,
            "microjoules": cost.microjoules,
        }
    return {name: float(value) for name, value in found.items()}


def _student_maps(
    model: torch.nn.Module, x: Tensor, _labels: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Maps and logits of the images, and the mean firing rate."""
    maps, logits, rates = [], [], []
    for batch in x.split(250):
        with record(model, LAYER) as features, measure.count_spikes(model) as counted:
            logits.append(model(batch).mean(0))
        maps.append(spike_map(features[LAYER]))
        rates.append(sum(sum(found) for found in counted.values()) / len(counted))
    return torch.cat(maps), torch.cat(logits), sum(rates) / len(rates)


def _teacher_maps(model: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
    pairs = zip(x.split(250), y.split(250), strict=True)
    maps, logits = zip(*(grad_cam(model, LAYER, *pair) for pair in pairs), strict=True)
    return torch.cat(maps), torch.cat(logits), None


def measured(table: Path) -> dict[tuple[str, int], dict[str, str]]:
    """The rows that there are."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        return {(row["run"], int(row["seed"])): row for row in csv.DictReader(file)}


def write_plan(path: Path) -> None:
    """The settings and how many seeds each wants, in the plan's order, for the book."""
    wanted = Counter(run for run, _seed in jobs())
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["question", "run", "seeds"])
        writer.writerows([run.question, run.name, count] for run, count in wanted.items())


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


def one(
    run: Run, seed: int, given: argparse.Namespace, commit: str, more: list[str]
) -> dict[str, Any]:
    """Train and score one run; its row."""
    path = folder(run.name, seed, given.work)
    seconds = fit(path, [*command(run, seed, given.work, given.photos), *more])
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
    parser.add_argument("--photos", type=Path, help="folder with train/<class>/*, test/<class>/*")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "evidence")
    parser.add_argument("--table", type=Path, default=FOLDER / "evidence.csv")
    given, more = parser.parse_known_args()  # what is left is for `ckdlite fit`
    known = {run.name for run, _ in jobs()}
    if unknown := set(given.only or ()) - known:
        parser.error(f"--only: got {sorted(unknown)}, wanted some of {sorted(known)}")
    if more and given.table == FOLDER / "evidence.csv":
        parser.error(f"other settings ({' '.join(more)}) are other runs: give them another --table")
    done = measured(given.table)
    if given.list:
        for run, seed in jobs():
            print(f"{'done' if (run.name, seed) in done else 'not run':>8}  {run.name} seed {seed}")
        return
    write_plan(given.table.with_name("planned.csv"))
    torch.set_num_threads(1)
    commit = _commit()
    missing = [(run, seed) for run, seed in jobs() if (run.name, seed) not in done]
    missing = [(run, seed) for run, seed in missing if not given.only or run.name in given.only]
    if given.photos is None and any(run.question == PHOTOS for run, _ in missing):
        print(f"question {PHOTOS} is left out: it wants --photos FOLDER", flush=True)
        missing = [(run, seed) for run, seed in missing if run.question != PHOTOS]
    # The table may come without the folders: a teacher that is wanted is then trained again.
    teachers = {run.taught_by(seed) for run, seed in missing if run.teacher}
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
            if run.teacher and run.taught_by(seed) in waiting:
                waiting[run.taught_by(seed)].result()
            return one(run, seed, given, commit, more)

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
            if row is None or (run.name, seed) in done:  # time is up; or a teacher made again
                continue
            write(row, given.table)
            print(f"{run.name} seed {seed}: {row['accuracy']} in {row['seconds']} s", flush=True)
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}")


def _commit() -> str:
    """The commit of this checkout, with a + where files differ from it."""
    words = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
