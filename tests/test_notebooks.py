"""The chapters as they are committed: text outputs, no pictures, no loophole without an assert."""

import ast
from pathlib import Path

import nbformat
import notebooks
import pytest
from jupyter_cache import get_cache

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
# Where the book's build keeps the chapters that it executed.
EXECUTED = ROOT / "_build" / ".jupyter_cache"
BUILT = ROOT / "_build" / "html" / ".built"
LOOPHOLE = "NBVAL_IGNORE_OUTPUT"


def code_cells(path):
    """The code cells of a notebook."""
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def ignores(cell) -> bool:
    """Whether the comparison of outputs leaves a cell out."""
    tags = {tag.upper().replace("-", "_") for tag in cell.metadata.get("tags", [])}
    return LOOPHOLE in cell.source.upper() or LOOPHOLE in tags


def asserts(cell) -> int:
    """How many ``assert`` statements run when the cell does."""
    return sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


def prints(cell) -> list[str]:
    """What a cell says in plain text: its streams, each in one piece, then its other outputs."""
    streams = {}
    for output in cell.outputs:
        if output.output_type == "stream":
            streams[output.name] = streams.get(output.name, "") + output.text
    texts = (o.data.get("text/plain") for o in cell.outputs if "data" in o)
    return [*(f"{name}: {text}" for name, text in sorted(streams.items())), *texts]


def test_there_are_chapters():
    assert CHAPTERS


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_committed_outputs_are_text(path, capsys):
    assert notebooks.main(["check", str(path)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_was_executed_in_order_without_error(path):
    cells = code_cells(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]


@pytest.mark.skipif(not BUILT.exists(), reason="the book is not built: run make book")
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_build_printed_what_is_committed(path):
    """The chapters were executed once, by the build: it is compared, not done again."""
    cache = get_cache(EXECUTED)
    try:
        record = cache.match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        pytest.fail(f"{path.name}: not executed since its code was changed; run make book first")
    executed = [c for c in cache.get_cache_bundle(record.pk).nb.cells if c.cell_type == "code"]
    committed = code_cells(path)
    for old, new in zip(committed, executed, strict=True):
        if not ignores(old):
            assert prints(new) == prints(old), f"{path.name}: what this cell prints\n{old.source}"


def test_what_is_not_compared_is_asserted():
    ignored = [(path.name, cell) for path in CHAPTERS for cell in code_cells(path) if ignores(cell)]
    bare = [f"{name}: {cell.source[:60]!r}" for name, cell in ignored if not asserts(cell)]
    print(f"{len(ignored)} cells are not compared, {len(ignored) - len(bare)} of them assert")
    assert not bare


def notebook_with(**output):
    """A notebook with one cell and one output."""
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output(**output)])
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A"), cell])


def test_check_names_notebook_and_cell(tmp_path, capsys):
    path = tmp_path / "chapter.ipynb"
    notebook = notebook_with(
        output_type="display_data", data={"text/plain": "Figure: A.", "image/png": "iVBOR"}
    )
    notebook.metadata.widgets = {}
    nbformat.write(notebook, path)
    assert notebooks.main(["check", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"{path}: cell 1 holds image/png" in said
    assert f"{path}: widget state" in said


def test_strip_keeps_text_alone(tmp_path):
    notebook = notebook_with(
        output_type="display_data", data={"text/plain": "Figure: A.", "text/html": "<img>"}
    )
    notebook.cells[1].metadata = {"tags": ["hide-cell"], "execution": {"iopub": "12:00"}}
    notebook.metadata = {"ckdlite": {"extras": "chapters,train"}, "vscode": 1}
    notebook.cells[1].outputs.append(
        nbformat.v4.new_output("display_data", data={"image/png": "iVBOR"})
    )
    notebooks.strip(notebook)
    (output,) = notebook.cells[1].outputs
    assert output.data == {"text/plain": "Figure: A."}
    assert notebook.cells[1].metadata == {"tags": ["hide-cell"]}
    assert notebook.metadata == notebooks.METADATA | {"ckdlite": {"extras": "chapters,train"}}
    path = tmp_path / "chapter.ipynb"
    nbformat.write(notebook, path)
    assert notebooks.main(["check", str(path)]) == 0


def test_what_a_cell_prints_is_told_in_whole_streams_and_plain_text():
    cell = nbformat.v4.new_code_cell(
        "1",
        outputs=[
            nbformat.v4.new_output("stream", name="stdout", text="a"),
            nbformat.v4.new_output(
                "display_data", data={"text/plain": "Figure: A.", "text/html": "<img>"}
            ),
            nbformat.v4.new_output("stream", name="stdout", text="b"),
            nbformat.v4.new_output("stream", name="stderr", text="careful"),
        ],
    )
    assert prints(cell) == ["stderr: careful", "stdout: ab", "Figure: A."]
