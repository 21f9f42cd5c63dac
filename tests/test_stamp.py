"""The repository's address and the setup cell: where they are written, and what the cell does."""

import json
import re
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import stamp

import ckdlite

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
# A host that nobody can own.
URL = "https://git.example/owner/name"


@pytest.fixture
def copy(tmp_path):
    """What the command reads and writes, with two chapters and no address."""
    (tmp_path / "book").mkdir()
    (tmp_path / "tools").mkdir()
    names = ["_config.yml", "pyproject.toml", "tools/setup_cell.py", "book/start.ipynb"]
    for name in [*names, "book/one-neuron.ipynb"]:
        shutil.copy(ROOT / name, tmp_path / name)
    assert stamp.main(["--url", "", "--branch", "main"], tmp_path) == 0
    return tmp_path


def texts(root):
    """Every file of a folder."""
    return {path: path.read_text(encoding="utf-8") for path in root.rglob("*") if path.is_file()}


def cells(path):
    """The cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    """What a cell holds."""
    return "".join(cell["source"])


def test_every_chapter_has_the_setup_cell_of_today(capsys):
    assert stamp.main(["--check"]) == 0, capsys.readouterr().err
    assert CHAPTERS
    for path in CHAPTERS:
        title, setup = cells(path)[:2]
        assert title["cell_type"] == "markdown" and source(title).startswith("# ")
        assert setup["id"] == "setup" and not setup["outputs"]
        assert setup["metadata"] == {"cellView": "form", "tags": ["remove-cell"]}


def test_a_chapter_names_the_extras_that_it_needs(copy):
    path = copy / "book" / "one-neuron.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"]["ckdlite"] = {"extras": "chapters,train"}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert stamp.main([], copy) == 0
    assert '    "chapters,train",\n)' in source(cells(path)[1])
    assert '    "chapters",\n)' in source(cells(copy / "book" / "start.ipynb")[1])
    known = stamp.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for path in CHAPTERS:
        own = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("ckdlite", {})
        for extra in own.get("extras", "chapters").split(","):
            assert extra in known["project"]["optional-dependencies"]


def test_library_package_and_chapters_have_one_version():
    project = stamp.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == ckdlite.__version__


def test_an_address_goes_everywhere_and_comes_out_again(copy, capsys):
    before = texts(copy)
    assert stamp.main(["--url", f"{URL}.git/", "--branch", "v1/x"], copy) == 0
    assert f'  url: "{URL}"\n  branch: "v1/x"\n' in (copy / "_config.yml").read_text()
    for name in ("start", "one-neuron"):
        found = cells(copy / "book" / f"{name}.ipynb")
        assert [cell["id"] for cell in found].count("setup") == 1
        assert f'"{URL}",\n    "v1/x",\n' in source(found[1])
        # Nothing but the setup cell has changed.
        old = json.loads(before[copy / "book" / f"{name}.ipynb"])["cells"]
        assert found[:1] + found[2:] == old[:1] + old[2:]
    assert "3 changed" in capsys.readouterr().out

    stamped = texts(copy)
    assert stamp.main(["--check"], copy) == 0
    assert stamp.main([], copy) == 0  # what was said once holds
    assert "0 changed" in capsys.readouterr().out
    assert texts(copy) == stamped
    assert stamp.main(["--check", "--branch", "main"], copy) == 1
    assert "start.ipynb is not as stamped" in capsys.readouterr().err
    assert stamp.main(["--url", "", "--branch", "main"], copy) == 0
    assert texts(copy) == before


def test_a_new_chapter_gets_the_cell_and_says_that_it_was_not_executed(copy):
    path = copy / "book" / "start.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "setup"]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = None
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert stamp.main(["--check"], copy) == 1
    assert stamp.main([], copy) == 0
    counts = [c["execution_count"] for c in cells(path) if c["cell_type"] == "code"]
    assert counts[0] == 1 and set(counts[1:]) == {None}


def test_a_changed_setup_cell_is_found_and_put_right(copy):
    path = copy / "book" / "start.ipynb"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("Setup: run this", "Setup: run that"), encoding="utf-8")
    assert stamp.main(["--check"], copy) == 1
    assert stamp.main([], copy) == 0
    assert path.read_text(encoding="utf-8") == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "given",
    [
        ["--url", "git.example/owner/name"],
        ["--url", "http://git.example/owner/name"],
        ["--url", "https://git.example/owner"],
        ["--url", "https://git.example/owner/na me"],
        ["--url", 'https://git.example/owner/name"); import os'],
        ["--url", "https://word@git.example/owner/name"],
        ["--url", f"{URL}\n"],
        ["--branch", ""],
        ["--branch=-x"],
        ["--branch", "a..b"],
        ["--branch", "a b"],
        ["--branch", "a/"],
    ],
)
def test_what_is_no_address_or_branch_changes_nothing(copy, given, capsys):
    before = texts(copy)
    assert stamp.main(given, copy) == 2
    assert capsys.readouterr().err.startswith("not the ")
    assert texts(copy) == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("_config.yml", '  url: ""', "  url:", '_config.yml: expected "repository:" once'),
        ("tools/setup_cell.py", '"ADDRESS"', "URL", 'setup_cell.py: expected "ADDRESS" once'),
        ("book/start.ipynb", '"markdown"', '"raw"', "start.ipynb: the first cell must be the"),
        ("book/start.ipynb", '{\n "cells"', "cells", "start.ipynb: Expecting value"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(copy, name, old, new, message, capsys):
    path = copy / name
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    before = texts(copy)
    assert stamp.main(["--url", URL], copy) == 2
    assert message in capsys.readouterr().err
    assert texts(copy) == before


def library(version):
    """All that the setup cell looks at."""
    return types.SimpleNamespace(__version__=version)


class Pip:
    """Stands in for `subprocess.run`; it keeps the command and what must be left alone."""

    def __init__(self, returncode=0, brings=None):
        self.commands, self.kept = [], ""
        self.returncode, self.brings = returncode, brings

    def __call__(self, command, **_options):
        self.commands.append(command)
        self.kept = Path(command[command.index("--constraint") + 1]).read_text()
        if self.brings is not None:
            sys.modules["ckdlite"] = self.brings
        return types.SimpleNamespace(returncode=self.returncode, stderr="no such branch")


@pytest.fixture
def place(monkeypatch):
    """Run the setup cell as on a machine with this library (a version or None) and this pip."""

    def run(address="", installed=None, colab=False, pip=None):
        monkeypatch.setitem(sys.modules, "ckdlite", installed and library(installed))
        if colab:
            monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        monkeypatch.setattr(subprocess, "run", pip or Pip())
        exec(source(stamp.setup_cell(ROOT, address, "main")), {})

    return run


NOW = ckdlite.__version__


@pytest.mark.parametrize("colab", [False, True])
def test_setup_does_nothing_where_the_library_is_the_chapters(place, capsys, colab):
    pip = Pip()
    place(URL, installed=NOW, colab=colab, pip=pip)
    assert not pip.commands and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("installed", [None, "0.0.1"])
def test_setup_on_colab_installs_and_leaves_torch_and_numpy(place, capsys, installed):
    pip = Pip(brings=library(NOW))
    place(URL, installed=installed, colab=True, pip=pip)
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == f"ckdlite[chapters] @ git+{URL}@main"
    for name in ("torch", "numpy"):
        assert f"{name}=={metadata.version(name)}\n" in pip.kept
    assert capsys.readouterr().out == "Installing ckdlite. This takes a minute.\n"


def test_setup_says_what_pip_said(place):
    with pytest.raises(RuntimeError, match="could not install ckdlite:\nno such branch"):
        place(URL, colab=True, pip=Pip(returncode=1))


@pytest.mark.parametrize(
    "given, words",
    [
        # Without an address there is nothing that Colab could install from.
        ({"colab": True}, ["it is not installed", "git+ADDRESS@main'", "ADDRESS: where you have"]),
        # Outside Colab nothing is installed unasked.
        ({"address": URL}, ["it is not installed", f"pip install 'ckdlite[chapters] @ git+{URL}@"]),
        ({"installed": "0.0.1"}, [f"goes with ckdlite {NOW}; 0.0.1 is loaded", "restart"]),
        # The branch has moved on since this copy of the chapter was made.
        (
            {
                "address": URL,
                "colab": True,
                "pip": Pip(brings=library("9")),
            },
            [f"goes with ckdlite {NOW}; 9 is loaded"],
        ),
    ],
)
def test_setup_says_what_to_do(place, given, words):
    with pytest.raises(ImportError) as error:
        place(**given)
    for word in words:
        assert word in str(error.value)
    assert ("ADDRESS" in str(error.value)) == ("address" not in given)


# What Jupyter Book would draw and Colab would show as it is typed.
RAW = re.compile(
    r"^ *(?:`{3,}|~{3,}|:{3,})\{"  # ```{note}, :::{note}
    r"|^ *:{3,} *\w*$"  # ::: note
    r"|\{[\w:.+-]+\}`"  # {ref}`there`
    r"|^\([\w-]+\)= *$"  # (a-label)=
    r"|\$\$ *\([\w-]+\)"  # $$ (a-label)
    r"|^: +\S"  # a definition list
    r"|^\+\+\+"  # a break between cells
    r"|\{\{.*\}\}",  # a substitution
    re.MULTILINE,
)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_reads_cleanly_on_colab(path):
    for cell in cells(path):
        if cell["cell_type"] == "markdown":
            assert not (found := RAW.search(source(cell))), f"{path.name}: {found[0]!r}"
            # Colab has the notebook alone, not the folder it lies in.
            assert not re.search(r"!\[[^]]*\]\((?!https:|data:)|<img", source(cell)), path.name


@pytest.mark.parametrize(
    "text",
    [
        "```{note}\nx\n```",
        ":::{tip}\nx\n:::",
        "::: note",
        "see {ref}`there`",
        "{numref}`fig`",
        "(here)=\n# Title",
        "$$x$$ (label)",
        "term\n: what it is",
        "+++",
        "{{ name }}",
    ],
)
def test_raw_text_is_seen(text):
    assert RAW.search(text)
    assert not RAW.search("A `{` in code, ```python\nx: int = {1: 2}\n``` and $L_{\\text{a}}$.")
