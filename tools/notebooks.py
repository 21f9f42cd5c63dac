"""Keep the committed notebooks small and their differences readable.

python tools/notebooks.py refresh book/*.ipynb    execute in place, keep the text outputs only
python tools/notebooks.py check book/*.ipynb      say where a picture or widget state is left
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

KEPT_MIMES = ("text/plain", "text/markdown")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# What a chapter says of itself: extras to install (tools/stamp.py), and a GPU to ask Colab for.
OWN = ("accelerator", "ckdlite")


def strip(notebook) -> None:
    """Reduce outputs to text and metadata to what every machine writes alike."""
    own = {key: notebook.metadata[key] for key in OWN if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict(METADATA | own)
    for cell in notebook.cells:
        # Tags fold a cell in the book, cellView folds it in Colab.
        kept = {key: cell.metadata[key] for key in ("cellView", "tags") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            cell.pop("attachments", None)
            continue
        cell.outputs = [output for output in cell.outputs if has_text(output)]
        for output in cell.outputs:
            if "data" in output:
                kept = {mime: output.data[mime] for mime in KEPT_MIMES if mime in output.data}
                output.data = nbformat.from_dict(kept)
                output.metadata = nbformat.from_dict({})
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = number + 1
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number + 1


def has_text(output) -> bool:
    """Whether an output says anything in plain text."""
    return output.output_type == "stream" or KEPT_MIMES[0] in output.get("data", {})


def leftovers(path: Path) -> list[str]:
    """Where a notebook holds what should not be committed."""
    notebook = nbformat.read(path, as_version=4)
    found = [f"{path}: widget state"] if "widgets" in notebook.metadata else []
    for number, cell in enumerate(notebook.cells):
        if cell.get("attachments"):
            found.append(f"{path}: cell {number} holds an attached file")
        for output in cell.get("outputs", []):
            for mime in sorted(set(output.get("data", {})) - set(KEPT_MIMES)):
                found.append(f"{path}: cell {number} holds {mime}")
    return found


def refresh(path: Path) -> None:
    """Execute a notebook where it lies and write it back without pictures."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    strip(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["refresh", "check"])
    parser.add_argument("notebooks", nargs="+", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "refresh":
        for path in given.notebooks:
            print(f"executing {path}", flush=True)
            refresh(path)
        return 0
    found = [line for path in given.notebooks for line in leftovers(path)]
    if found:
        print(*found, "Run: make refresh", sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
