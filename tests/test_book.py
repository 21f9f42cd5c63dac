"""The chapters' form: what a reader may count on in each, and that the exercises' checks fit it."""

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from ckdlite import checks

ROOT = Path(__file__).resolve().parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
# The parts that teach have a number; reference pages have a form of their own.
CHAPTERS = [
    f"{chapter['file']}.ipynb"
    for part in TOC["parts"]
    if part["caption"][0].isdigit()
    for chapter in part["chapters"]
]
PAGES = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
TIME = (
    r"\*\*Time:\*\* \d+ minutes to read, (about \d+ seconds to run on a CPU|a few seconds to run)"
)


def cells(chapter):
    found = json.loads((ROOT / chapter).read_text())["cells"]
    return [(cell["cell_type"], "".join(cell["source"]), cell["metadata"]) for cell in found]


def number(chapter):
    return cells(chapter)[0][1].split()[1]


def text(chapter, kind="markdown"):
    return "\n".join(source for cell, source, _ in cells(chapter) if cell == kind)


def test_every_page_is_in_the_contents():
    written = {p.relative_to(ROOT).with_suffix("").as_posix() for p in ROOT.glob("book/*.ipynb")}
    written |= {p.relative_to(ROOT).with_suffix("").as_posix() for p in ROOT.glob("book/*.md")}
    assert written == {TOC["root"], *PAGES}


def test_chapters_are_numbered_in_order():
    numbers = [number(chapter) for chapter in CHAPTERS]
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
    parts = [p["caption"] for p in TOC["parts"] if p["caption"][0].isdigit()]
    assert sorted({n[0] for n in numbers}) == [caption[0] for caption in parts]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_head(chapter):
    kind, head, _ = cells(chapter)[0]
    lines = head.splitlines()
    assert kind == "markdown" and re.fullmatch(r"# \d\.\d .+", lines[0])
    assert re.fullmatch(r"\*[^*].+[.]\*", lines[2]), "a promise of one sentence"
    abilities = re.findall(r"^- .+[;.]$", head, flags=re.M)
    assert "**You will be able to**" in head and 3 <= len(abilities) <= 5
    assert re.search(r"\*\*You need\*\* .+\. \*\*Time:\*\*", head)
    assert re.search(TIME, head)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_body(chapter):
    prose, code = text(chapter), text(chapter, "code")
    assert prose.count("**Predict") >= 3
    assert "widgets.explorer(" in code
    order = [prose.index(f"\n## {name}\n") for name in ("Summary", "Exercises", "Where next")]
    assert order == sorted(order)
    assert "**References.**" in prose[order[2] :]
    # What the book builds in plain lines is held against the library.
    assert code.count("assert ") >= 3


@pytest.mark.parametrize("page", sorted(ROOT.glob("book/*.ipynb")), ids=lambda p: p.stem)
def test_every_picture_says_what_it_shows(page):
    for kind, source, _ in cells(page):
        if kind != "code":
            continue
        calls = re.findall(r"\b(?:figures\.show|widgets\.explorer)\(", source)
        if calls:
            assert source.count("caption=") >= len(calls) and source.count("alt=") >= len(calls)
        elif "plt.subplots" in source or "subplot_mosaic" in source:
            # Drawn by a function that a later cell shows.
            assert re.search(r"^def ", source, flags=re.M)
        assert "plt.show(" not in source


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_exercises(chapter):
    found = cells(chapter)
    start = next(
        i
        for i, (kind, source, _) in enumerate(found)
        if kind == "markdown" and "## Exerc" in source
    )
    exercises, solved = {}, {}
    for kind, source, metadata in found[start:]:
        if kind == "markdown" and (n := re.search(r"^\*\*(\d) \((\w+)\)\.\*\*", source, re.M)):
            current = int(n[1])
            exercises[current] = n[2]
        elif kind == "code" and source.startswith("# @title"):
            title, n = re.match(r"# @title (Solution|One answer to) (\d)", source).groups()
            assert "hide-cell" in metadata["tags"], "solutions are folded"
            solved[int(n)] = title
            if title == "Solution":
                assert re.search(r"^checks\.\w+\(", source, re.M), "a solution checks itself"
        elif kind == "code" and "checks." in source:
            assert "..." in source, "what the reader starts from is unsolved"
            name = re.search(r"checks\.(\w+)\(", source)[1]
            told = inspect.getdoc(getattr(checks, name))
            assert told.startswith(f"Exercise {current} of chapter {number(chapter)}:"), told
    assert 3 <= len(exercises) <= 5 and list(exercises) == list(range(1, len(exercises) + 1))
    assert solved.keys() == exercises.keys()
    order = ["easy", "medium", "harder", "open"]
    levels = [order.index(level) for level in exercises.values()]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == 3


def test_every_check_belongs_to_an_exercise():
    used = set()
    for page in ROOT.glob("book/*.ipynb"):
        used |= set(re.findall(r"checks\.(\w+)\(", text(page.relative_to(ROOT), "code")))
    public = {
        name
        for name, thing in vars(checks).items()
        if inspect.isfunction(thing)
        and thing.__module__ == checks.__name__
        and not name.startswith("_")
    }
    assert used == public
