"""One page that shows a run, made from its folder::

    ckdlite report --run runs/paper

Needs Lightning and matplotlib: `pip install 'ckdlite[train,chapters]'`. Matplotlib is wanted here
alone, so it is no part of what training needs; a run's folder can be copied to where it is.
"""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from torchmetrics.classification import MulticlassConfusionMatrix

from . import __version__, datamodules, training  # noqa: F401 (classes known by short name)
from .measure import Cost, operations
from .runs import (
    PICTURES,
    RunError,
    Seen,
    checkpoint,
    history,
    pictures,
    read,
    resume,
)

_ROWS = 8  # of maps over the epochs
_TERMS = ("kd", "samd", "nld", "feature_mse", "attention_transfer")

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --ink: #1f2933; --ground: #fff; --line: #b8c1ca; --soft: #f1f4f6 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e7eb; --ground: #14181c; --line: #52606d; --soft: #22282e }}
}}
body {{ font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }}
h1, h2 {{ line-height: 1.2 }}
h2 {{ margin-top: 2.5rem }}
figure {{ margin: 1.5rem 0 }}
figure img {{ display: block; background: #f7f8fa; border-radius: .3rem }}
.box {{ overflow-x: auto; margin: 1rem 0; overflow-wrap: normal }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line) }}
th:first-child, td:first-child, .words td {{ text-align: left; vertical-align: top }}
thead th {{ white-space: nowrap }}
pre {{ background: var(--soft); padding: .7rem; font-size: .85rem }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Draw a run's folder as one HTML page, and return where it lies.

    On it: what the run is, the curves of the loss's terms, of their gradients and of the scores,
    the firing rate of each layer, the maps of a few validation images over training, the confusion
    matrix on validation and an energy estimate, the scores on the test set and every setting. It
    is one file without scripts, and asks the network for nothing.

    The matrix and the energy need the networks and the data: they are built from the run's
    config.yaml, as `ckdlite validate` does, get the weights of last.ckpt and see the validation
    split once, in 32-bit floating point. Where that cannot be done, the page says why. The test set
    is not opened.

    The page is made from the run alone, so one that is there already is written anew; nothing else
    in the folder changes. A run that is still going on can be drawn too.

    Args:
        run: the run's folder.
        out: the file to write; None for report.html in the run's folder.

    Raises:
        RunError: no run is there, it has logged nothing yet, one of its files is damaged, or
            matplotlib is not installed.

    Chapter 4.1.
    """
    run = Path(run)
    out = run / "report.html" if out is None else Path(out)
    rows = _rows(run)
    text, settings = _settings(run / "config.yaml")
    tested = _tested(run / "test.json")
    saved = read(checkpoint(run, "last")) if resume(run) else {}
    if saved and not {"epoch", "global_step", "recipe"} <= saved.keys():
        raise RunError(f"{resume(run)} is no checkpoint of ckdlite; take it out of the folder")
    epochs = _by_epoch(rows, saved)
    figures = _figures()
    seen = _look(settings, saved) if saved else "no epoch has ended, so there are no weights"
    with figures.mpl.rc_context():
        figures.style()
        parts = {
            "": _head(run, settings, saved, _starts(run / "starts.jsonl")),
            "Curves": _curves(figures, epochs),
            "Firing rates": _rates(figures, epochs),
            "Where the networks look": _maps(figures, run, seen),
            "Confusion on validation": _confusion(figures, seen),
            "Energy estimate": _energy(seen),
            "Test set": _test_scores(tested),
            "Settings": _box(f"<pre>{html.escape(text)}</pre>")
            if text
            else "<p>No config.yaml: the run was started from Python.</p>",
        }
    body = "\n".join(f"<h2>{name}</h2>\n{part}" if name else part for name, part in parts.items())
    page = _PAGE.format(title=f"Run {html.escape(str(run))}", body=body)
    part = out.with_name(out.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(out)
    return out


# ---------------------------------------------------------------- what the folder holds


def _rows(run: Path) -> list[dict[str, float]]:
    if not any((run / name).exists() for name in ("config.yaml", "csv", "checkpoints")):
        raise RunError(f"{run} holds no run; ckdlite fit --run FOLDER makes one")
    try:
        rows = history(run)
    except FileNotFoundError:
        rows = []
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run}/csv is damaged: {error}; mend or remove the metrics.csv with that line"
        ) from error
    if not rows:
        raise RunError(
            f"{run}: nothing was logged yet. Wait for the first steps of the run, or give its "
            "command again: it goes on, or begins anew where no epoch had ended"
        )
    return rows


def _settings(path: Path) -> tuple[str, dict[str, Any]]:
    """The run's settings as they are written and as they are read; nothing where no file is."""
    if not path.exists():
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
        if not isinstance(found, dict):
            raise ValueError("it holds no settings")
        for part in ("model", "data", "trainer"):
            if not isinstance(found.get(part, {}), dict):
                raise ValueError(f"{part} holds no settings")
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())
        raise RunError(
            f"{path} is damaged: {said}. Remove it: the report then does without the settings, "
            "the confusion matrix and the energy estimate"
        ) from error
    return text, found


def _tested(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        {name: float(value) for name, value in found["scores"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged: {error}. Remove it, and `ckdlite test --run {path.parent}` writes "
            "it again"
        ) from error
    return found


def _starts(path: Path) -> list[dict[str, Any]]:
    """Each start of the run; a kill may have left half a line."""
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    try:
        found = [json.loads(line) for line in lines.splitlines()]
        for start in found:
            _start(start)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}. Remove it; the report does without") from error
    return found


def _by_epoch(
    rows: Sequence[Mapping[str, float]], saved: Mapping[str, Any]
) -> dict[int, dict[str, float]]:
    """The mean of what was logged in each epoch, by name; NaN are left out of a mean."""
    steps = saved["global_step"] / (saved["epoch"] + 1) if saved else math.inf
    values: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        # Rows of gradient norms alone have a step and no epoch.
        epoch = int(row["epoch"] if "epoch" in row else row["step"] // steps)
        for name in row.keys() - {"epoch", "step"}:
            values.setdefault(epoch, {}).setdefault(name, []).append(row[name])

    def mean(found: list[float]) -> float:
        found = [x for x in found if not math.isnan(x)]
        return sum(found) / len(found) if found else math.nan

    return {e: {name: mean(v) for name, v in sorted(values[e].items())} for e in sorted(values)}


class _Collect(L.Callback):
    """Counts the confusions of a validation, and takes what the page shows of its first images."""

    def __init__(self) -> None:
        self.matrix: MulticlassConfusionMatrix | None = None
        self.pictures: tuple[dict, dict] = ({}, {})
        self.costs: dict[str, Cost] = {}

    def on_validation_batch_end(
        self, _trainer: Any, module: Any, seen: Any, batch: Any, _index: int, _loader: int = 0
    ) -> None:
        if not isinstance(seen, Seen):
            raise TypeError(f"{type(module).__name__} is neither Teacher nor Distil")
        if self.matrix is None:
            self.matrix = MulticlassConfusionMatrix(seen.logits.shape[1]).to(seen.logits.device)
            self.pictures = pictures(seen, batch)
            few = batch[0][:, :PICTURES] if batch[0].dim() == 5 else batch[0][:PICTURES]
            for name in ("network", "student", "teacher"):
                if hasattr(module, name):
                    self.costs[name] = operations(getattr(module, name), few)
        self.matrix.update(seen.logits.argmax(1), batch[1])


def _look(settings: dict[str, Any], saved: Mapping[str, Any]) -> _Collect | str:
    """What the last weights give on the validation split, or why that cannot be known here."""
    if not settings:
        return "there is no config.yaml to build the networks and the data from"
    try:
        with torch.random.fork_rng(devices=[]):  # networks and loaders draw from it
            _validate(settings, saved, found := _Collect())
    except Exception as error:  # a network or data of anyone's, which may not be here
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return found if found.matrix is not None else "the validation split gave no batch"


def _validate(settings: dict[str, Any], saved: Mapping[str, Any], found: _Collect) -> None:
    wanted = {part: settings[part] for part in ("model", "data")}
    if "teacher_weights" in wanted["model"].get("init_args", {}):
        # The checkpoint holds the teacher too; the settings stay as they are for the page.
        args = wanted["model"]["init_args"] | {"teacher_weights": None}
        wanted["model"] = wanted["model"] | {"init_args": args}
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes
    made = build(parser.parse_object(wanted))
    made.model.load_state_dict(saved["state_dict"])
    trainer = L.Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        limit_val_batches=(settings.get("trainer") or {}).get("limit_val_batches"),
        callbacks=[found],
    )
    trainer.validate(made.model, datamodule=made.data, verbose=False)


# ---------------------------------------------------------------- what the page shows


def _start(start: Mapping[str, Any]) -> str:
    said = f"{start['date']} by ckdlite {start['ckdlite']}"
    said += f" (commit {start['commit']})" if start["commit"] else ""
    said += f", torch {start['torch']}, on {start['processes']} x {start['device']}"
    return f"{said}, {start['precision']}"


def _head(
    run: Path, settings: Any, saved: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]
) -> str:
    recipe, model = saved.get("recipe", {}), settings.get("model") or {}
    given = model.get("init_args") or {}

    def network(name: str) -> str | None:
        own = given.get(name)
        if isinstance(own, dict):
            return own.get("class_path")
        return recipe[name].partition("(")[0] if name in recipe else None

    terms = {t: (recipe.get(t) or given.get(t) or {}).get("weight", 0) for t in _TERMS}
    done = saved["epoch"] + 1 if saved else 0
    wanted = recipe.get("max_epochs") or (settings.get("trainer") or {}).get("max_epochs")
    ended = done == wanted
    facts = {
        "module": recipe.get("module") or model.get("class_path"),
        "network": network("network"),
        "student": network("student"),
        "teacher": network("teacher"),
        "teacher's weights": given.get("teacher_weights"),
        "weights of the terms": ", ".join(f"{t} {w:g}" for t, w in terms.items() if w)
        or "labels alone",
        "data": (settings.get("data") or {}).get("class_path"),
        "seed": recipe.get("seed", settings.get("seed_everything")),
        "epochs": (f"{done} of {wanted}" if wanted else str(done))
        + ("" if ended else "; not ended: the command that began the run goes on with it"),
        "steps": saved.get("global_step"),
        "started": "; ".join(_start(start) for start in starts) or None,
        "page drawn by": f"ckdlite {__version__}, from the files in {run}",
    }
    known = [(name, value) for name, value in facts.items() if value is not None]
    return _table((), known, "words") + (
        "<p>Epochs are counted from 0, as in the run's files. A value of an epoch is the mean of "
        "what was logged in it.</p>"
    )


def _curves(figures: Any, epochs: Mapping[int, Mapping[str, float]]) -> str:
    logged = sorted({name for values in epochs.values() for name in values})
    scores = [n for n in logged if n.startswith("val/") and n not in ("val/ce", "val/accuracy")]
    shown = ""
    for caption, names, scale in (
        (
            "Terms of the loss, unweighted; loss is their weighted sum.",
            [n for n in logged if n.startswith("train/") and n != "train/accuracy"] + ["val/ce"],
            "linear",
        ),
        (
            "Norm of the gradient of each weighted term.",
            [n for n in logged if n.startswith("gradient/")],
            "log",
        ),
        (
            "Accuracy, from 0 to 1: training batches and the validation split.",
            ["train/accuracy", "val/accuracy"],
            "linear",
        ),
        ("Other scores on validation.", scores, "linear"),
    ):
        names = [name for name in names if name in logged]
        if names:
            shown += _curve(figures, caption, names, epochs, scale)
    others = [name for name in logged if not name.startswith("rate/")]
    cells = [[epoch, *(values.get(n) for n in others)] for epoch, values in epochs.items()]
    return shown + _details("These numbers", _table(["epoch", *others], cells))


def _curve(figures: Any, caption: str, names: Sequence[str], epochs: Any, scale: str) -> str:
    fig = figures.Figure()
    ax = fig.subplots()
    colours = [colour for role, colour in figures.COLOURS.items() if role != "ink"]
    said = []
    for i, name in enumerate(names):
        line = [(e, values[name]) for e, values in epochs.items() if name in values]
        colour = figures.COLOURS["ink"] if name == "train/loss" else colours[i % len(colours)]
        ax.plot(*zip(*line, strict=True), color=colour, marker="osDv^PX"[i % 7], label=name)
        (first, a), (last, b) = line[0], line[-1]
        said.append(f"{name} {_number(a)} in epoch {first}, {_number(b)} in epoch {last}")
    ax.set(xlabel="epoch", yscale=scale)
    ax.xaxis.get_major_locator().set_params(integer=True)
    fig.legend(loc="outside right upper", fontsize=10)
    return _figure(figures, fig, caption, f"Curves over epochs: {'; '.join(said)}.")


def _rates(figures: Any, epochs: Mapping[int, Mapping[str, float]]) -> str:
    measured = {
        epoch: {n.removeprefix("rate/"): v for n, v in values.items() if n.startswith("rate/")}
        for epoch, values in epochs.items()
    }
    measured = {epoch: rates for epoch, rates in measured.items() if rates}
    if not measured:
        return "<p>None was logged: no validation has ended, or the network has no LIF layer.</p>"
    last, rates = list(measured.items())[-1]
    names = list(rates)
    fig = figures.Figure(figsize=(6.4, 1.4 + 0.3 * len(names)))
    bars, over = fig.subplots(1, 2, sharey=True)
    bars.barh(names, list(rates.values()), color=figures.COLOURS["distilled"])
    bars.invert_yaxis()
    bars.set(xlabel="spikes a neuron and step", title=f"epoch {last}")
    grid = np.array([[each.get(name, math.nan) for each in measured.values()] for name in names])
    image = over.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    places = np.unique(np.linspace(0, len(measured) - 1, 5).round().astype(int))
    over.set(xticks=places, xlabel="epoch", title="over training")
    over.set_xticklabels([list(measured)[place] for place in places])
    fig.colorbar(image, ax=over)
    caption = "Firing rate of each layer, mean over the validation split."
    alt = f"{caption} In epoch {last}: " + ", ".join(f"{n} {_number(v)}" for n, v in rates.items())
    cells = [[epoch, *(each.get(name) for name in names)] for epoch, each in measured.items()]
    return _figure(figures, fig, caption, alt) + _details(
        "These numbers", _table(["epoch", *names], cells)
    )


def _maps(figures: Any, run: Path, seen: _Collect | str) -> str:
    files = sorted((run / "maps").glob("epoch-*.npz"), key=lambda p: int(p.stem.split("-")[1]))
    if files and (run / "maps" / "images.npz").exists():
        first = _arrays(run / "maps" / "images.npz")
        chosen = np.unique(np.linspace(0, len(files) - 1, _ROWS).round().astype(int))
        kept = {f"epoch {int(files[i].stem.split('-')[1])}": _arrays(files[i]) for i in chosen}
        note = f"{len(kept)} of {len(files)} validations are shown."
    elif isinstance(seen, _Collect):
        first, maps = seen.pictures
        kept, note = {"last": maps}, "The run kept no maps; these are of its last checkpoint."
    else:
        return f"<p>The run kept no maps, and none can be made: {html.escape(seen)}.</p>"
    guide = list(kept.values())[-1].get("guide")
    shown = {"image": None} | ({} if guide is None else {"teacher": guide})
    shown |= {name: maps["own"] for name, maps in kept.items()}
    own = list(kept.values())[-1]["own"]
    images, count = first["images"], len(own)
    if len(images) != count:  # event frames, say
        images = np.zeros((count, 3, *own.shape[1:]), np.uint8)
    fig = figures.Figure(figsize=(6.4, 1.02 * len(shown) + 0.4))
    grid = fig.subplots(len(shown), count, squeeze=False)
    for axes, (name, heat) in zip(grid, shown.items(), strict=True):
        for i, ax in enumerate(axes):
            figures.overlay(ax, images[i], None if heat is None else heat[i])
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    for ax, label in zip(grid[0], first["labels"].tolist(), strict=True):
        ax.set_title(f"class {label}", fontsize=11)
    caption = (
        f"The first {count} images of the validation split, "
        + ("" if guide is None else "the teacher's Grad-CAM of the true class, ")
        + ("the network's Grad-CAM" if guide is None else "the student's spike map")
        + f" after epochs of training; each map in its own scale. {note}"
    )
    alt = f"Rows: {', '.join(shown)}. Bright is where a map is high."
    return _figure(figures, fig, caption, alt)


def _confusion(figures: Any, seen: _Collect | str) -> str:
    if isinstance(seen, str):
        return _unopened(seen)
    matrix = seen.matrix.compute().cpu().numpy()
    classes, right = len(matrix), int(np.trace(matrix))
    fig = figures.Figure(figsize=(6.4, 5.6))
    ax = fig.subplots()
    image = ax.imshow(matrix, cmap="Blues")
    ax.set(xlabel="predicted class", ylabel="true class")
    if classes <= 12:
        ax.set(xticks=range(classes), yticks=range(classes))
        for (i, k), n in np.ndenumerate(matrix):
            ink = "white" if n > matrix.max() / 2 else figures.COLOURS["ink"]
            ax.text(k, i, int(n), ha="center", va="center", fontsize=9, color=ink)
    fig.colorbar(image, ax=ax)
    wrong = matrix - np.diag(np.diag(matrix))
    most = [np.unravel_index(p, wrong.shape) for p in np.argsort(-wrong, axis=None)[:3]]
    said = ", ".join(f"{i} taken for {k} ({wrong[i, k]} times)" for i, k in most if wrong[i, k])
    caption = (
        f"Weights of last.ckpt: {right} of {matrix.sum()} right, accuracy "
        f"{_number(right / matrix.sum())}. Most often: {said or 'nothing is mistaken'}."
    )
    return _figure(figures, fig, caption, f"Confusion matrix of {classes} classes. {caption}")


def _energy(seen: _Collect | str) -> str:
    if isinstance(seen, str):
        return _unopened(seen)
    head = ["", "multiply-accumulates", "accumulates (spikes)", "µJ"]
    totals = [(n, cost.macs, cost.acs, cost.microjoules) for n, cost in seen.costs.items()]
    layers = [(f"{n}: {x.layer}", x.macs, x.acs) for n, c in seen.costs.items() for x in c.layers]
    return (
        f"<p>For one image, over all timesteps; mean of the first {PICTURES} of validation. "
        "Arithmetic alone, in 32-bit floating point at 45 nm (Horowitz 2014): no memory traffic, "
        "no neurons' updates. It says what sparse spikes could save, not what a device draws.</p>"
        + _table(head, totals)
        + _details("Layer by layer", _table(head[:3], layers))
    )


def _test_scores(tested: Mapping[str, Any]) -> str:
    if not tested:
        return "<p>Not tested yet: <code>ckdlite test --run FOLDER</code> does it, once.</p>"
    said = f"{tested.get('checkpoint', 'a checkpoint')}, epoch {tested.get('epoch', 'unknown')}"
    if "selected_on" in tested:
        said += f", chosen on {tested['selected_on']}"
    return f"<p>{html.escape(said)}.</p>" + _table(("score", "value"), tested["scores"].items())


def _unopened(why: str) -> str:
    return f"<p>Left out, as the networks and the data were not opened: {html.escape(why)}.</p>"


# ---------------------------------------------------------------- small pieces


def _figures() -> Any:
    try:
        from . import figures
    except ImportError as error:
        raise RunError(
            "the report is drawn with matplotlib, which is not installed: "
            "pip install 'ckdlite[chapters]'"
        ) from error
    return figures


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise RunError(f"{path} is damaged: {error}. Remove it; the report does without") from error


def _figure(figures: Any, fig: Any, caption: str, alt: str) -> str:
    words = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f"<figure>{figures._image_tag(fig, alt)}{words}</figure>\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    def cell(value: Any) -> str:
        text = _number(value) if isinstance(value, float) else "" if value is None else str(value)
        return f"<td>{html.escape(text)}</td>"

    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return _box(f'<table class="{kind}">{top}<tbody>\n{body}\n</tbody></table>')


def _box(content: str) -> str:
    """Content that scrolls sideways by itself, with the keyboard too."""
    return f'<div class="box" tabindex="0" role="group">{content}</div>\n'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>\n"
