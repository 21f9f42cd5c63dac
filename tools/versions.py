"""Sphinx extension: the directive `versions`, a table of what the book was built with.

Nothing of it is typed: the packages are those that pyproject.toml names, with their floors; the
versions are those of the Python that builds the book, which is the one that executes the chapters.
"""

import os
import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

from docutils import nodes
from packaging.requirements import Requirement
from sphinx.util.docutils import SphinxDirective


def packages(root: Path) -> dict[str, str]:
    """The packages that the library and its extras ask for, and their floors."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        asked += extra
    found = {}
    for text in asked:
        requirement = Requirement(text)
        if requirement.name != project["name"]:  # an extra that is made of other extras
            floors = [s.version for s in requirement.specifier if s.operator == ">="]
            found[requirement.name] = ", ".join(floors)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def installed(name: str) -> str:
    """The version of a package here."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """What the processor calls itself."""
    path = Path("/proc/cpuinfo")  # Linux, where Python's own answer is often empty
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rows(root: Path) -> list[tuple[str, str, str]]:
    """Name, version and floor, the machine first."""
    import torch

    from ckdlite import __version__

    machine = [
        ("system", f"{platform.system()}, {platform.machine()}", ""),
        ("processor", f"{processor()}, {cores()} cores", ""),
        ("instructions that PyTorch uses", torch.backends.cpu.get_cpu_capability(), ""),
        ("ckdlite", __version__, ""),
        ("Python", platform.python_version(), ""),
    ]
    return machine + [(name, installed(name), floor) for name, floor in packages(root).items()]


class Versions(SphinxDirective):
    """`{versions}` in a page."""

    def run(self) -> list[nodes.Node]:
        table = nodes.table(classes=["table"])
        group = nodes.tgroup(cols=3)
        table += group
        group += [nodes.colspec(colwidth=width) for width in (40, 40, 20)]
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]
        head += self.row(("", "here", "at least"))
        body += [self.row(row) for row in rows(Path(self.env.srcdir))]
        return [table]

    def row(self, texts: tuple[str, ...]) -> nodes.row:
        """One line of the table."""
        cells = [nodes.entry("", nodes.paragraph(text=text)) for text in texts]
        return nodes.row("", *cells)


def setup(app):
    """Register with Sphinx."""
    app.add_directive("versions", Versions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
