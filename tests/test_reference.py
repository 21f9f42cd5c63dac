"""The reference of the library: every public name is on a page, described, with good equations."""

import importlib
import io
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("jupyter_book")
pytest.importorskip("lightning")

import reference  # noqa: E402
import yaml  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util.docutils import docutils_namespace  # noqa: E402

ROOT = Path(__file__).parent.parent
MODULES = reference.modules()
PAGES = sorted((ROOT / "book").glob("api-*.md"))


def test_every_module_is_on_one_page_of_the_book():
    named = [
        name
        for page in PAGES
        for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
    ]
    assert sorted(named) == sorted(module.__name__ for module in MODULES)
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert PAGES and all(f"file: book/{page.stem}\n" in contents for page in PAGES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_described(module):
    assert len(reference.documented(module)) > 1
    assert reference.faults(module) == []


def test_names_are_those_that_a_reader_would_import():
    found = reference.documented(importlib.import_module("ckdlite.distill"))
    assert {"ckdlite.distill.samd", "ckdlite.distill.Losses", "ckdlite.distill.Normalise"} <= {
        *found
    }
    assert not [name for name in found if "._" in name]
    # A framework's hook is left out, what the class itself offers is not.
    found = reference.documented(importlib.import_module("ckdlite.training"))
    assert "ckdlite.training.Distil.recipe" in found
    assert "ckdlite.training.Distil.training_step" not in found


def test_pages_hold_every_public_name(tmp_path):
    """Sphinx reads the pages alone and writes nothing, which takes seconds."""
    (tmp_path / "book").mkdir()
    for page in PAGES:
        shutil.copy(page, tmp_path / "book")
    (tmp_path / "book" / "notation.md").write_text("# Notation\n")
    (tmp_path / "index.md").write_text("# Pages\n\n```{toctree}\n:glob:\nbook/*\n```\n")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    wanted = ("default_role", "add_module_names", "autodoc_", "napoleon_", "python_")
    settings = {key: value for key, value in config.items() if key.startswith(wanted)}
    settings["extensions"] = ["myst_parser", "reference"]
    said = io.StringIO()
    out = tmp_path / "out"
    with docutils_namespace():  # what it registers is gone afterwards
        app = Sphinx(
            tmp_path, None, out, out, "dummy", settings, status=None, warning=said, freshenv=True
        )
        app.build()
    assert said.getvalue() == ""
    held = app.env.domaindata["py"]["objects"]
    missing = [name for m in MODULES for name in reference.documented(m) if name not in held]
    assert missing == []
    # No page shows where it was built.
    shown = "".join(app.env.get_doctree(f"book/{page.stem}").astext() for page in PAGES)
    assert str(ROOT) not in shown and "Alias for field" not in shown
    assert " object at 0x" not in shown and "<function" not in shown and "<class '" not in shown


MADE_UP = r'''
"""A module."""

from typing import NamedTuple

LIMIT = 3
#: How many: a type?
COUNT = 4
_HIDDEN = 5


class Pair(NamedTuple):
    a: int


class Base:
    """A base."""

    def bare(self): ...

    def told(self):
        """It says."""


class Child(Base):
    """A child."""

    def told(self): ...


def good(x):
    r"""It adds.

    .. math::

        a &= b \\
        c &= \frac{1}{2}

    And :math:`\beta`.
    """


def bad(x):
    r"""It breaks.

    .. math:: \frac{1}{
    """


def silent(x): ...


def _private(x): ...
'''


def test_what_is_missing_or_broken_is_found(tmp_path, monkeypatch):
    (tmp_path / "made_up.py").write_text(MADE_UP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reference, "PACKAGE", "made_up")
    module = importlib.import_module("made_up")
    found = reference.faults(module)
    assert "How many: a type?" in found.pop(0)
    assert found[:-2] == [
        "made_up.LIMIT: no description",
        "made_up.Pair: no description",
        "made_up.Base.bare: no description",
    ]
    assert "made_up.bad: equation" in found[-2] and found[-1] == "made_up.silent: no description"
    inline, block = reference.equations(module.good.__doc__)
    assert inline == r"\beta" and block.startswith("a &= b") and block.endswith("{2}")


def test_links_lead_to_chapters_in_the_book_alone(tmp_path):
    cell = {"cell_type": "markdown", "source": ["# 3.2 SAMD: a title\n", "words"]}
    for name, cells in (("samd", [cell]), ("start", [{**cell, "source": "# Start"}]), ("no", [])):
        (tmp_path / f"{name}.ipynb").write_text(reference.json.dumps({"cells": cells}))
    pages = reference.chapters(tmp_path)
    assert pages == {"3.2": "samd"}
    text = "See chapter\n3.2 and chapter 9.9; arXiv 2511.06902. Chapter 3.2."
    assert reference.link(text, pages) == (
        "See chapter\n:doc:`3.2 </book/samd>` and chapter 9.9; "
        "`arXiv 2511.06902 <https://arxiv.org/abs/2511.06902>`__. Chapter :doc:`3.2 </book/samd>`."
    )
