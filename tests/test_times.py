"""tools/times.py on made-up chapters and a made-up record of their executions."""

import json

import nbformat
import pytest

pytest.importorskip("jupyter_cache")

import times  # noqa: E402
from jupyter_cache import get_cache  # noqa: E402
from jupyter_cache.base import CacheBundleIn  # noqa: E402

TOC = """\
format: jb-book
root: book/start
parts:
  - caption: One
    chapters:
      - file: book/long
      - file: book/results
  - caption: Reference
    chapters:
      - file: book/words
"""
LONG = "**You need** é. **Time:** 20 minutes to read, about 45 seconds to run on a CPU. More."
RESULTS = "**Time:** 5 minutes to read, a few seconds to run: this page reads results."


@pytest.fixture
def root(tmp_path):
    """A book of a start page, two chapters and a page without code; each was executed."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "book" / "words.md").write_text("# Words\n")
    write(tmp_path, "start", "Welcome.")
    write(tmp_path, "long", LONG)
    write(tmp_path, "results", RESULTS)
    record(tmp_path, long=27.3, results=1.2)
    return tmp_path


def write(root, name: str, head: str, code: str = "1") -> None:
    """A notebook, indented and ordered as no writer would do it again."""
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"# {name}\n\n{head}", id="a"),
            nbformat.v4.new_code_cell(f"{code}  # {name}", id="b"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    text = json.dumps(notebook, indent=3, ensure_ascii=False).replace("\n", "\r\n")
    (root / "book" / f"{name}.ipynb").write_bytes(text.encode())


def record(root, **seconds: float) -> None:
    """What a build leaves of its executions."""
    cache = get_cache(root / "_build" / ".jupyter_cache")
    for name, took in seconds.items():
        path = root / "book" / f"{name}.ipynb"
        bundle = CacheBundleIn(
            nbformat.read(path, as_version=4), str(path), data={"execution_seconds": took}
        )
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def read(root, name: str) -> bytes:
    return (root / "book" / f"{name}.ipynb").read_bytes()


def test_seconds_alone_change(root, capsys):
    before = {name: read(root, name) for name in ("start", "long", "results")}
    assert times.main([], root) == 0
    assert read(root, "long") == before["long"].replace(b"about 45 seconds", b"about 30 seconds")
    assert read(root, "results") == before["results"]
    assert read(root, "start") == before["start"]
    assert "long.ipynb: about 45 seconds -> about 30 seconds" in capsys.readouterr().out
    # A head is no code: the record still knows the chapter, and nothing is left to do.
    assert times.main([], root) == 0 and capsys.readouterr().out == ""


def test_short_and_long_swap_their_words_and_keep_the_rest(root):
    record(root, long=3.0, results=6.1)
    assert times.main([], root) == 0
    assert b"read, a few seconds to run on a CPU. More." in read(root, "long")
    assert b"read, about 5 seconds to run: this page reads results." in read(root, "results")


def test_check_changes_nothing_and_forgives_scatter(root, capsys):
    before = read(root, "long")
    assert times.main(["--check"], root) == 1
    said = capsys.readouterr().out
    assert "long.ipynb: says about 45 seconds, took 27.3 s" in said and "make times" in said
    assert "results" not in said and read(root, "long") == before
    record(root, long=31.0, results=7.0)
    assert times.main(["--check"], root) == 0
    record(root, results=30.0)
    assert times.main(["--check"], root) == 1


@pytest.mark.parametrize(
    "seconds, said",
    [(0.1, "a few"), (4.9, "a few"), (5, 5), (7.4, 5), (7.6, 10), (14.9, 10), (15, 20), (96, 100)],
)
def test_rounding(seconds, said):
    assert times.words(seconds) == (f"about {said} seconds" if said != "a few" else "a few seconds")


def test_no_record_is_refused(root, tmp_path, capsys):
    (root / "_build").rename(tmp_path / "elsewhere")
    assert times.main([], root) == 1
    said = capsys.readouterr().err
    assert ".jupyter_cache is missing" in said and "make book" in said
    assert not (root / "_build").exists()


def test_changed_code_is_refused(root, capsys):
    write(root, "long", LONG, code="2")
    assert times.main([], root) == 1
    said = capsys.readouterr().err
    assert "long.ipynb: its code was not executed since" in said and "make book" in said


@pytest.mark.parametrize(
    "head, count", [("No time at all.", 0), (f"{LONG} {LONG}", 2), ("**Time:** 20 minutes.", 0)]
)
def test_head_without_the_sentence_is_refused_before_any_is_written(root, capsys, head, count):
    before = read(root, "long")
    write(root, "results", head)
    assert times.main([], root) == 1
    said = capsys.readouterr().err
    assert "results.ipynb: wanted one sentence" in said and f"found {count}" in said
    assert read(root, "long") == before


def test_every_chapter_has_the_sentence():
    paths = times.chapters(times.ROOT)
    assert paths and all(times.rewritten(path, 20)[1] == "about 20 seconds" for path in paths)
