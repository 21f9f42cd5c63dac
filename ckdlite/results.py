"""Results of runs: read a file of them, and say what a difference is worth.

A row is a run: a setting and a seed. Two settings are compared seed by seed. Needs SciPy:
`pip install 'ckdlite[chapters]'`. The pages on evidence draw every figure from these files.
"""

import csv
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ._assets import FOLDER

#: One run, from column to text or number.
Row = dict[str, str | float]


class Effect(NamedTuple):
    """The difference of one outcome between two settings, paired by seed.

    Attributes:
        mean: of the differences, in the outcome's unit.
        low: where the 95 % interval of Student's t begins; NaN for a single seed. The interval has
            no width where all differences are equal.
        high: where it ends.
        boot_low: where the 95 % percentile interval of the bootstrap over seeds begins (10,000
            draws, fixed generator). With five seeds it is too narrow, with three it is their range.
        boot_high: where it ends.
        seeds: how many pairs.
    """

    mean: float
    low: float
    high: float
    boot_low: float
    boot_high: float
    seeds: int

    @property
    def told(self) -> bool:
        """Whether t's interval leaves zero out: the difference is *told from zero*."""
        return self.low > 0 or self.high < 0


def read(name: str = "evidence.csv") -> list[Row]:
    """The rows of a results file that comes with the library, a dictionary each.

    Numbers are floats; an empty field, for what does not apply to a run, is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row is not of the length of the header.
    """
    path = FOLDER / name
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in FOLDER.glob("*.csv")))
        raise FileNotFoundError(f"{path} is missing; results files here are {known}")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {number}: wanted as many fields as the header has")
    return [{key: _value(key, text) for key, text in row.items() if text} for row in rows]


def scores(rows: list[Row], run: str, outcome: str) -> dict[int, float]:
    """An outcome of a setting, by seed. Empty where the setting was not run or has none.

    Raises:
        ValueError: no row has that outcome.
    """
    if not any(outcome in row for row in rows):
        known = sorted({key for row in rows for key, v in row.items() if isinstance(v, float)})
        raise ValueError(f"outcome: got {outcome!r}, wanted one of {', '.join(known)}")
    return {
        int(row["seed"]): float(row[outcome])
        for row in rows
        if row["run"] == run and outcome in row
    }


def effect(rows: list[Row], run: str, base: str, outcome: str = "accuracy") -> Effect | None:
    """The difference `run - base` of an outcome over the seeds that both have; None without one.

    Raises:
        ValueError: no row has that outcome.
    """
    ours, theirs = (scores(rows, name, outcome) for name in (run, base))
    found = np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    if len(found) == 0:
        return None
    if len(found) == 1:
        return Effect(float(found[0]), *[math.nan] * 4, 1)
    if np.ptp(found) <= 1e-12 * np.abs(found).max():  # of two settings that are one, say
        return Effect(*[float(found[0])] * 5, len(found))
    stats = _stats()
    student = stats.ttest_1samp(found, 0).confidence_interval(0.95)
    boot = stats.bootstrap(
        (found,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    ends = (student.low, student.high, boot.low, boot.high)
    return Effect(float(found.mean()), *(float(end) for end in ends), len(found))


def said(
    found: Effect | None, unit: str = "points", times: float | int = 100, digits: int = 1
) -> str:
    """An effect in words: the mean, t's interval, and what may be claimed of it."""
    if found is None:
        return "not run"
    values = [times * value for value in (found.mean, found.low, found.high)]
    # As many digits as it takes to keep a bound near zero on its side of it.
    while digits < 6 and any(value and round(value, digits) == 0 for value in values):
        digits += 1
    mean, low, high = (f"{value:+.{digits}f}".replace("-", "−") for value in values)
    unit = f" {unit}" if unit else ""
    if found.seeds == 1:
        return f"{mean}{unit}, one seed: no finding"
    claim = "" if found.told else ", cannot be told from zero"
    return f"{mean}{unit} ({low} to {high}; {found.seeds} seeds){claim}"


def verdict(found: Mapping[str, Effect | None], **words: Any) -> str:
    """A paragraph of Markdown on named effects: first what cannot be told from zero.

    `words` are passed to `said`.
    """
    groups: dict[str, list[str]] = {}
    for name, one in found.items():
        if one is None or one.seeds == 1:
            head = "Not known" if one else "Not run"
        else:
            head = "Told from zero" if one.told else "Cannot be told from zero"
        text = said(one, **words).removesuffix(", cannot be told from zero")
        groups.setdefault(head, []).append(name if one is None else f"{name} {text}")
    order = ("Cannot be told from zero", "Told from zero", "Not known", "Not run")
    return " ".join(f"**{head}:** {'; '.join(groups[head])}." for head in order if head in groups)


def prediction(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    r"""Where one more run of a setting should land: Student's prediction interval.

    With s the standard deviation of the n values:

    .. math:: \text{mean} \pm t_{n-1} \, s \sqrt{1 + 1/n}

    Raises:
        ValueError: fewer than two values.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"values: got {n}, wanted at least 2 to have a spread")
    t = _stats().t.ppf((1 + confidence) / 2, n - 1)
    half = t * np.std(values, ddof=1) * math.sqrt(1 + 1 / n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _stats() -> ModuleType:
    try:
        from scipy import stats  # not at the top: it takes as long to import as all the rest
    except ImportError as error:
        raise ImportError(
            "ckdlite.results computes intervals with SciPy, which is not installed: "
            "pip install 'ckdlite[chapters]'"
        ) from error
    return stats


def _value(key: str, text: str) -> str | float:
    if key == "commit":  # it may look like a number, as 12e4567 does
        return text
    try:
        return float(text)
    except ValueError:
        return text
