"""Write the repository's address, and the setup cell, wherever they belong.

python tools/stamp.py                              the setup cell of every chapter, as it should be
python tools/stamp.py --url URL --branch BRANCH    the same after a change of address
python tools/stamp.py --check                      say what is not as it should be, change nothing

The address stands in _config.yml: `repository: url:`, empty until somebody gives one. The buttons
of the built pages follow from it, and the first cell of every chapter, which installs the library
on Colab; the extras that a chapter needs beyond `chapters` stand in its own metadata, under
`ckdlite: extras`. Needs nothing but Python.
"""

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTING = re.compile(r'^repository:\n  url: "(.*)"\n  branch: "(.*)"$', re.MULTILINE)
ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+\.[a-z]+(/[A-Za-z0-9._-]+){2,}")
BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
ID = "setup"


def address(text: str) -> str:
    """The address of a repository without what is not needed, or ValueError."""
    text = text.rstrip("/").removesuffix(".git")
    if text and not ADDRESS.fullmatch(text):
        raise ValueError(f"not the address of a repository: {text!r}; as https://HOST/OWNER/NAME")
    return text


def branch(text: str) -> str:
    """The name of a branch or a tag, or ValueError."""
    if not BRANCH.fullmatch(text) or ".." in text or text.endswith((".lock", ".")):
        raise ValueError(f"not the name of a branch or a tag: {text!r}")
    return text


def setting(root: Path) -> tuple[str, str]:
    """Address and branch as _config.yml has them."""
    found = SETTING.findall((root / "_config.yml").read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(
            '_config.yml: expected "repository:" once, then two lines: url: "..." and branch: "..."'
        )
    return address(found[0][0]), branch(found[0][1])


def setup_cell(root: Path, url: str, ref: str, extras: str = "chapters") -> dict:
    """The cell that every chapter has in second place, after its title."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    source = (root / "tools" / "setup_cell.py").read_text(encoding="utf-8").strip()
    for blank, text in (
        ('"VERSION"', version["project"]["version"]),
        ('"ADDRESS"', url),
        ('"BRANCH"', ref),
        ('"EXTRAS"', extras),
    ):
        if source.count(blank) != 1:
            raise ValueError(f"tools/setup_cell.py: expected {blank} once")
        source = source.replace(blank, json.dumps(text))
    return {
        "cell_type": "code",
        "execution_count": 1,
        "id": ID,
        # Folded on Colab, absent from the built page.
        "metadata": {"cellView": "form", "tags": ["remove-cell"]},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def stamped(text: str, make_cell: Callable[[str], dict]) -> str:
    """A notebook's text with the setup cell in it, which installs the extras that it names."""
    notebook = json.loads(text)
    cell = make_cell(notebook["metadata"].get("ckdlite", {}).get("extras", "chapters"))
    cells = [one for one in notebook["cells"] if one.get("id") != ID]
    if not cells or cells[0]["cell_type"] != "markdown":
        raise ValueError("the first cell must be the title, in Markdown")
    notebook["cells"] = [cells[0], cell, *cells[1:]]
    code = [one for one in notebook["cells"] if one["cell_type"] == "code"]
    for number, one in enumerate(code, start=1):
        # What was not executed yet keeps saying so.
        if one["execution_count"] is not None:
            one["execution_count"] = number
            for output in one["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = number
    # As nbformat writes it, so that only what changed changes.
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Stamp or check the folder ``root``, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="https://HOST/OWNER/NAME; empty takes the address out")
    parser.add_argument("--branch", help="the branch or tag that chapters and library come from")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if one should")
    given = parser.parse_args(arguments)
    try:
        url, ref = setting(root)
        url = url if given.url is None else address(given.url)
        ref = ref if given.branch is None else branch(given.branch)
        make_cell = partial(setup_cell, root, url, ref)
        line = f'repository:\n  url: "{url}"\n  branch: "{ref}"'
        texts = {}
        config = root / "_config.yml"
        texts[config] = SETTING.sub(lambda _: line, config.read_text(encoding="utf-8"))
        for path in sorted((root / "book").glob("*.ipynb")):
            try:
                texts[path] = stamped(path.read_text(encoding="utf-8"), make_cell)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    # All texts are made before the first is written: a mistake leaves everything as it was.
    stale = [p for p, text in texts.items() if p.read_text(encoding="utf-8") != text]
    if given.check:
        for path in stale:
            print(f"{path} is not as stamped. Run: make stamp", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(texts[path], encoding="utf-8")
        print(f"stamped {path}")
    print(f"The repository's address is {url or 'not given'}; branch {ref}; {len(stale)} changed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
