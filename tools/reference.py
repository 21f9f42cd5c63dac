"""Sphinx extension: the reference of the library, made from its docstrings.

Autodoc and napoleon do the work; the pages `book/api-*.md` name the modules. Here stands what is
public and so has to be documented, and what the docstrings of this library need beside that: links
to the chapters and papers that they name, and no entries for what only Lightning or PyTorch calls.

python tools/reference.py    say which public names lack a description or have a broken equation
"""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import sys
from pathlib import Path

from math_core import LatexError
from offline import as_mathml
from sphinx.pycode import ModuleAnalyzer

PACKAGE = "ckdlite"
# What a field of a named tuple says of itself; the class says more, under Attributes.
FIELD = "Alias for field number"


def modules() -> list:
    """The public modules of the library."""
    package = importlib.import_module(PACKAGE)
    found = [info.name for info in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(f"{PACKAGE}.{n}") for n in found if not n.startswith("_")]


def names(module) -> list[str]:
    """The public names that a module defines, in the order of its source."""
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [
                n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
            ]
    return [name for name in found if not name.startswith("_")]


def methods(cls: type) -> list[str]:
    """The public methods and properties that a class itself defines for those who use it."""
    found = [name for name, value in vars(cls).items() if callable(value) or _is_property(value)]
    return [name for name in found if not name.startswith("_") and not is_hook(cls, name)]


def _is_property(value) -> bool:
    return isinstance(value, property | classmethod | staticmethod)


def is_hook(cls: type, name: str) -> bool:
    """Whether a method has no words of its own because it takes the place of a framework's."""
    if getattr(vars(cls).get(name), "__doc__", None):
        return False
    defining = [base for base in cls.__mro__[1:] if name in vars(base)]
    return bool(defining) and all(not b.__module__.startswith(PACKAGE) for b in defining)


def documented(module) -> dict[str, str | None]:
    """Every public name of a module, dotted, and its docstring; None or "" where it has none."""
    comments = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
    found: dict[str, str | None] = {module.__name__: module.__doc__}
    for name in names(module):
        value, full = getattr(module, name), f"{module.__name__}.{name}"
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            found[full] = "\n".join(comments.get(("", name), []))
            continue
        # Its own: a class without one would show that of its base.
        found[full] = value.__doc__
        if inspect.isclass(value):
            for method in methods(value):
                found[f"{full}.{method}"] = inspect.getdoc(getattr(value, method))
    return found


def equations(text: str) -> list[str]:
    """The LaTeX of the equations in a docstring."""
    lines = inspect.cleandoc(text).splitlines()
    found = re.findall(r":math:`([^`]*)`", text)
    for number, line in enumerate(lines):
        head = re.match(r"( *)\.\. math::(.*)", line)
        if head:
            block = [head[2]]
            for inner in lines[number + 1 :]:
                if inner.strip() and len(inner) - len(inner.lstrip()) <= len(head[1]):
                    break
                block.append(inner)
            found.append("\n".join(block).strip())
    return found


def faults(module) -> list[str]:
    """What is wrong with the docstrings of a module, a line each."""
    found = []
    for lines in ModuleAnalyzer.for_module(module.__name__).find_attr_docs().values():
        if ":" in lines[0].replace("::", ""):
            found.append(f"{lines[0]!r}: napoleon takes what stands before a colon for a type")
    for name, text in documented(module).items():
        # A dataclass without a docstring gets its signature for one.
        if not (text or "").strip() or text.startswith(name.rpartition(".")[2] + "("):
            found.append(f"{name}: no description")
            continue
        for latex in equations(text):
            try:
                as_mathml(latex, display=True)
            except LatexError as error:
                found.append(f"{name}: equation {latex!r}: {error}")
    return found


# ---------------------------------------------------------------- for Sphinx


def chapters(folder: Path) -> dict[str, str]:
    """The name of the file of each chapter, by the number in its title."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        number = re.match(r"# (\d\.\d) ", "".join(cells[0]["source"])) if cells else None
        if number:
            found[number[1]] = path.stem
    return found


def link(text: str, pages: dict[str, str]) -> str:
    """A docstring with links to the chapters that are in the book, and to arXiv."""

    def chapter(match: re.Match) -> str:
        page = pages.get(match[2])
        return f"{match[1]}:doc:`{match[2]} </book/{page}>`" if page else match[0]

    text = re.sub(r"(\b[Cc]hapter\s+)(\d\.\d)\b", chapter, text)
    return re.sub(r"\barXiv (\d{4}\.\d{5})\b", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", text)


def add_links(app, _what, _name, _thing, _options, lines):
    """Called for each docstring, after napoleon."""
    in_book = {doc.removeprefix("book/") for doc in app.env.found_docs}
    pages = {n: page for n, page in chapters(Path(app.srcdir) / "book").items() if page in in_book}
    lines[:] = link("\n".join(lines), pages).split("\n")


def skip(_app, _what, name, thing, skipped, _options):
    """Leave out the fields of named tuples, which the class explains, and a framework's hooks."""
    if skipped or (getattr(thing, "__doc__", None) or "").startswith(FIELD):
        return True
    owner, _, method = getattr(thing, "__qualname__", "").rpartition(".")
    if method == name and owner in vars(inspect.getmodule(thing)):
        return is_hook(getattr(inspect.getmodule(thing), owner), name)
    return False


def tidy(_app, _what, _name, _thing, _options, signature, returned):
    """Names in place of what Python prints for a class or a function as a default."""
    return re.sub(r"<(?:class|function) '?([\w.]*\.)?(\w+)[^>]*>", r"\2", signature or ""), returned


def setup(app):
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", add_links, priority=900)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", tidy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    wrong = [line for module in modules() for line in faults(module)]
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))
