"""Lay what Colab has over the environment that runs this, in a folder of its own.

python tools/colab.py FOLDER    make FOLDER/bin/python, and say how like Colab it is

PyTorch and all the rest are used where they are; colab-requirements.txt comes before them. The
environment that runs this stays as it was.
"""

import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("colab-requirements.txt")
# Colab in 2026, as it was published: Python since August.
COLAB = {
    "Python": "3.13",
    "torch": "2.11",
    "torchvision": "0.26",
    "numpy": "2.1",
    "matplotlib": "3.10",
    "ipython": "7.34",
    "ipykernel": "6.17",
    "ipywidgets": "7.7.1",
}


def make(folder: Path) -> None:
    """A Python in ``folder`` that finds the packages pinned here first, then those of this one."""
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    below = sysconfig.get_path("purelib")
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder.resolve())}))
    # Not just a path: the library itself is linked there by a file of this kind.
    (own / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n", encoding="utf-8")
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [folder / "bin" / "python", "-m", "pip", *install, "-r", REQUIREMENTS], check=True
    )


def compare() -> tuple[list[str], list[str]]:
    """What this Python has as Colab has it, and what not, in words."""
    alike, other = [], []
    for name, there in COLAB.items():
        here = sys.version.split()[0] if name == "Python" else metadata.version(name)
        if f"{here}.".startswith(f"{there}."):
            alike.append(f"{name} {here}")
        else:
            other.append(f"{name} {here} (there {there})")
    return alike, other


def main(arguments: list[str]) -> int:
    """Make the environment, or say how like Colab the one is that runs this."""
    if arguments == ["--compare"]:
        alike, other = compare()
        print("As on Colab:", ", ".join(alike) or "nothing")
        print("Not as on Colab:", ", ".join(other) or "nothing")
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    make(folder)
    return subprocess.run([folder / "bin" / "python", __file__, "--compare"]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
