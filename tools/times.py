"""Write into the head of each chapter how long it runs, as the last build measured it.

python tools/times.py            rewrite the seconds in the heads
python tools/times.py --check    say where a head is far from what was measured; change nothing

The seconds come from the build's own record of executions, _build/.jupyter_cache. Nothing else of a
notebook changes, not one byte.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
import yaml
from jupyter_cache import get_cache

ROOT = Path(__file__).resolve().parent.parent
# What is between the two groups is the only thing that is written.
HEAD = re.compile(
    r"(\*\*Time:\*\* \d+ minutes to read, )(about \d+ seconds|a few seconds)(?= to run\b)"
)
FORM = "**Time:** N minutes to read, about M seconds to run ..."
# Runs differ: a head is wrong where it is off by more than this factor.
TOLERANCE = 1.6


class TimesError(Exception):
    """The heads cannot be written; the message says why, and what to do."""


def chapters(root: Path) -> list[Path]:
    """The notebooks of the table of contents, without the start page, which has no such head."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    paths = [root / f"{file}.ipynb" for file in files]
    return [path for path in paths if path.exists()]


def measured(root: Path, paths: list[Path]) -> dict[Path, float]:
    """How many seconds each chapter took when it was executed for the book."""
    folder = root / "_build" / ".jupyter_cache"
    if not (folder / "global.db").is_file():
        raise TimesError(f"{folder} is missing: no chapter was executed here. Run: make book")
    cache, found = get_cache(folder), {}
    for path in paths:
        try:
            record = cache.match_cache_notebook(nbformat.read(path, as_version=4))
            found[path] = float(record.data["execution_seconds"])
        except KeyError:
            raise TimesError(
                f"{path}: its code was not executed since it was last changed. Run: make book"
            ) from None
    return found


def rounded(seconds: float) -> int:
    """As many seconds as a reader wants to know: 0 for a few, 5, then tens."""
    if seconds < 5:
        return 0
    return 5 if seconds < 7.5 else 10 * max(1, int(seconds / 10 + 0.5))


def words(seconds: float) -> str:
    """The seconds as the head says them."""
    return f"about {rounded(seconds)} seconds" if rounded(seconds) else "a few seconds"


def rewritten(path: Path, seconds: float) -> tuple[str, str, str]:
    """What the head says, what it should say, and the file's text with that."""
    # Bytes would do; text shows that the file is UTF-8. newline="" keeps its line ends.
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    heads = HEAD.findall(text)
    if len(heads) != 1:
        raise TimesError(f"{path}: wanted one sentence like {FORM!r}, found {len(heads)}")
    new = words(seconds)
    return heads[0][1], new, HEAD.sub(lambda match: match[1] + new, text)


def far(said: str, seconds: float) -> bool:
    """Whether a head is further from the measured time than two runs are from each other."""
    number = re.search(r"\d+", said)
    if number is None:
        return seconds > 5 * TOLERANCE
    return not 1 / TOLERANCE <= seconds / int(number[0]) <= TOLERANCE


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the command, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, change nothing")
    check = parser.parse_args(arguments).check
    try:
        times = measured(root, chapters(root))
        # All of them before any is written.
        heads = {path: rewritten(path, seconds) for path, seconds in times.items()}
    except TimesError as error:
        print(error, file=sys.stderr)
        return 1
    wrong = 0
    for path, (said, new, text) in heads.items():
        if check and far(said, times[path]):
            wrong += 1
            print(f"{path}: says {said}, took {times[path]:.1f} s. Run: make times")
        elif not check and said != new:
            with path.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
            print(f"{path}: {said} -> {new}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
