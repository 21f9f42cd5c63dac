"""tools/versions.py: the table of what the book was built with is read, not typed."""

import io
import platform
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("sphinx")

import versions  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util.docutils import docutils_namespace  # noqa: E402

ROOT = Path(__file__).parent.parent

PROJECT = """\
[project]
name = "mine"
dependencies = ["torch>=2.6", "a-package-that-nobody-has"]
[project.optional-dependencies]
book = ["Sphinx<9,>=7.1"]
all = ["mine[book]"]
"""


def test_packages_are_those_of_the_project_with_their_floors(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    assert versions.packages(tmp_path) == {
        "a-package-that-nobody-has": "",
        "Sphinx": "7.1",
        "torch": "2.6",
    }


def test_rows_say_what_is_here(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    rows = {name: (here, floor) for name, here, floor in versions.rows(tmp_path)}
    assert rows["torch"] == (metadata.version("torch"), "2.6")
    assert rows["a-package-that-nobody-has"] == ("not installed", "")
    assert rows["Python"] == (platform.python_version(), "")
    assert rows["processor"][0].endswith("cores") and not rows["processor"][0].startswith(",")


def test_directive_makes_the_table(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "index.md").write_text("# Page\n\n```{versions}\n```\n")
    out, said = tmp_path / "out", io.StringIO()
    settings = {"extensions": ["myst_parser", "versions"]}
    with docutils_namespace():  # what it registers is gone afterwards
        app = Sphinx(tmp_path, None, out, out, "dummy", settings, status=None, warning=said)
        app.build()
    assert said.getvalue() == ""
    (table,) = app.env.get_doctree("index").findall(nodes.table)
    cells = [[entry.astext() for entry in row] for row in table.findall(nodes.row)]
    assert cells[0] == ["", "here", "at least"]
    assert ["torch", metadata.version("torch"), "2.6"] in cells


def test_page_has_both_tables():
    page = (ROOT / "book" / "reproducibility.md").read_text(encoding="utf-8")
    assert "```{versions}" in page and "```{nb-exec-table}" in page
