"""Build the book into _build/html, and fail loudly: on a warning and on a failed cell.

Pages are written afresh each time, so that nothing old stays. Executed chapters are kept between
builds as long as neither the chapter nor the library has changed. `make book` looks at the stamp
_build/html/.built, which stands there only after a success.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOISE = (
    "Kernel is running over TCP",
    "MdParserConfig(",
    "NbParserConfig(",
    # Jupyter Book's own address is none when the folder's name has a space.
    "Or paste this line",
    "    file:///",
)


def start_page(root: Path = ROOT) -> Path:
    """Where the book opens."""
    return root / "_build" / "html" / "index.html"


def library_hash(root: Path) -> str:
    """One hash of everything a chapter can import or load from the library."""
    digest = hashlib.sha256()
    for path in sorted((root / "ckdlite").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    digest.update((root / "requirements.txt").read_bytes())
    return digest.hexdigest()


def main(root: Path = ROOT) -> int:
    """Build the book in the folder ``root``, and return the exit status."""
    started = time.time()
    build = root / "_build"
    build.mkdir(exist_ok=True)

    def forget(*names: str) -> None:
        for name in names:
            shutil.rmtree(build / name, ignore_errors=True)

    key, kept = library_hash(root), build / "library.sha256"
    if not kept.exists() or kept.read_text() != key:
        print("The library has changed: every chapter is executed again.", flush=True)
        forget(".jupyter_cache")
    forget(".doctrees", "html")
    kept.write_text(key)

    command = [Path(sys.executable).with_name("jupyter-book"), "build", root, "-W", "--keep-going"]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as book:
        for line in book.stdout:
            if line.strip() and not any(noise in line for noise in NOISE):
                print(line, end="", flush=True)

    reports = sorted((build / "html" / "reports").rglob("*.err.log"))
    for report in reports:
        print(f"\n{'=' * 79}\nA cell failed in {report.stem.removesuffix('.err')}:\n")
        print(report.read_text(encoding="utf-8"))
    if book.returncode or reports:
        # Without this the next build would find nothing to do, and call that a success.
        forget(".doctrees")
        print("\nTHE BOOK WAS NOT BUILT. The reason stands above.", *map(str, reports), sep="\n  ")
        return book.returncode or 1
    stamp = build / "html" / ".built"
    stamp.touch()
    # As old as the start: what was edited while the book was built is newer, and built next time.
    os.utime(stamp, (started, started))
    print(f"\nThe book is built. Open {start_page(root).as_uri()}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the book into _build/html.")
    parser.add_argument("--where", action="store_true", help="print its address, build nothing")
    if parser.parse_args().where:
        print(start_page().as_uri())
        sys.exit(0)
    sys.exit(main())
