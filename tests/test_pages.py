"""The pages in words: what they quote is there, and what they list is complete."""

import re
from pathlib import Path

import nbformat
import pytest

yaml = pytest.importorskip("yaml")

import ckdlite  # noqa: E402

ROOT = Path(__file__).parent.parent
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
TOOLS = [*(ROOT / "tools").glob("*.py"), *(ROOT / "ckdlite").glob("*.py"), ROOT / "Makefile"]


def page(name: str) -> str:
    return (BOOK / f"{name}.md").read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """What a chapter says in Markdown."""
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_every_page_is_in_the_contents():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    listed.append(contents["root"])
    files = [p for p in BOOK.iterdir() if p.suffix in {".md", ".ipynb"}]
    assert sorted(listed) == sorted(f"book/{path.stem}" for path in files)


# ---------------------------------------------------------------- notation

SYMBOL = re.compile(
    r"\\(?:alpha|beta|gamma|delta|Delta|varepsilon|theta|lambda|sigma|tau|psi|ell)\b"
    r"|\\math(?:cal|bb)\{\w\}|L_\{\\text\{\w+\}\}"
)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_symbols_of_a_chapter_stand_in_the_notation(path):
    equations = re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", prose(path), flags=re.DOTALL)
    used = {symbol for equation in equations for symbol in SYMBOL.findall(equation)}
    assert used <= set(SYMBOL.findall(page("notation")))


def test_notation_has_its_chapters():
    """A row of a symbol with a chapter ends in its number, Evidence or the start."""
    rows = [row for row in page("notation").splitlines() if row.startswith("| $")]
    rows = [row for row in rows if row.count("|") > 4]  # axes belong to all of them
    ends = {row.rstrip(" |").rpartition("| ")[2] for row in rows}
    assert rows and all(re.fullmatch(r"\d\.\d|Evidence|start", end) for end in ends), ends


# ---------------------------------------------------------------- glossary, references


def terms() -> list[str]:
    body = re.search(r"```\{glossary\}\n:sorted:\n(.+?)```", page("glossary"), re.DOTALL)[1]
    return [line for line in body.splitlines() if line and not line.startswith(" ")]


def test_glossary_has_each_term_once():
    assert 40 <= len(terms()) <= 80
    assert len({term.lower() for term in terms()}) == len(terms())


def test_every_paper_is_in_the_references():
    sources = [prose(path) for path in CHAPTERS]
    sources += [path.read_text(encoding="utf-8") for path in (ROOT / "ckdlite").glob("*.py")]
    cited = {n for text in sources for n in re.findall(r"arXiv[ :]\s*(\d{4}\.\d{5})", text)}
    listed = re.findall(r"\[arXiv (\S+)\]\(https://arxiv\.org/abs/(\S+)\)", page("references"))
    assert len(cited) > 20
    assert sorted(cited - {number for number, _ in listed}) == []
    assert [pair for pair in listed if pair[0] != pair[1]] == []


def test_links_to_the_same_doi_as_they_say():
    said = re.findall(r"\[doi:(\S+)\]\(https://doi\.org/(\S+)\)", page("references"))
    assert said and all(text == address for text, address in said)


# ---------------------------------------------------------------- troubleshooting


def quoted() -> list[str]:
    """The messages that stand as headings, without those of others."""
    found = re.findall(r"^### `(.+)`$", page("troubleshooting"), flags=re.MULTILINE)
    return [text for text in found if not text.startswith("ModuleNotFoundError")]


@pytest.mark.parametrize("message", quoted())
def test_message_is_one_that_the_project_gives(message):
    # A message may be broken over two literals of the source.
    sources = "\n".join(path.read_text(encoding="utf-8") for path in TOOLS)
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    for part in message.split("..."):
        assert part.strip() in joined


def test_checks_say_what_the_page_on_use_says():
    source = (ROOT / "ckdlite" / "checks.py").read_text(encoding="utf-8")
    for said in ("Not solved yet.", "It raised ", "Not yet: ", "Right."):
        assert said.strip() in source and f"`{said.strip()}" in page("how-to-use")


# ---------------------------------------------------------------- teaching, cite, contribute


def minutes(clock: str) -> int:
    hours, _, rest = clock.rpartition(":")
    return 60 * int(hours or 0) + int(rest)


@pytest.mark.parametrize(
    "heading, total", [("## A lecture, 90 minutes", 90), ("## A workshop, half a day", 210)]
)
def test_plan_fills_its_time(heading, total):
    section = page("teaching").partition(heading)[2].partition("\n## ")[0]
    spans = re.findall(r"^\| ([\d:]+)–([\d:]+) \|", section, flags=re.MULTILINE)
    times = [(minutes(start), minutes(end)) for start, end in spans]
    assert times[0][0] == 0 and times[-1][1] == total
    assert all(end == start for (_, end), (start, _) in zip(times, times[1:], strict=False))


def test_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version"} <= cited.keys()
    assert cited["version"] == ckdlite.__version__
    assert cited["authors"] == [{"name": "The ckdlite authors"}]
    assert f"version = {{{ckdlite.__version__}}}" in page("cite")


def test_commands_that_the_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = "\n".join(path.read_text(encoding="utf-8") for path in BOOK.glob("*.md"))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)\b(?! it)", text, flags=re.MULTILINE))
    assert {"book", "test", "times"} <= named <= targets


def test_check_that_is_shown_is_as_it_is():
    """What the page on contributing shows of a check stands so in the library."""
    source = (ROOT / "ckdlite" / "checks.py").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(def .+?)```", page("contribute"), re.DOTALL)[1]
    missing = [line for line in shown.splitlines() if line not in source]
    assert missing == []
