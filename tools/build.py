"""Build the book into _build/html, and fail loudly: on a warning and on a failed cell.

Pages are written afresh each time, so that nothing old stays. Executed chapters are kept between
builds as long as neither the chapter nor the library has changed.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
NOISE = ("Kernel is running over TCP", "MdParserConfig(", "NbParserConfig(")


def library_hash() -> str:
    """One hash of everything a chapter can import or load from the library."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "ckdlite").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    digest.update((ROOT / "requirements.txt").read_bytes())
    return digest.hexdigest()


def forget(*names: str) -> None:
    """Remove folders of the build."""
    for name in names:
        shutil.rmtree(BUILD / name, ignore_errors=True)


def main() -> int:
    """Build, and return the exit status."""
    BUILD.mkdir(exist_ok=True)
    key, kept = library_hash(), BUILD / "library.sha256"
    if not kept.exists() or kept.read_text() != key:
        print("The library has changed: every chapter is executed again.", flush=True)
        forget(".jupyter_cache")
    forget(".doctrees", "html")
    kept.write_text(key)

    command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT, "-W", "--keep-going"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as build:
        for line in build.stdout:
            if line.strip() and not any(noise in line for noise in NOISE):
                print(line, end="", flush=True)

    reports = sorted((BUILD / "html" / "reports").rglob("*.err.log"))
    for report in reports:
        print(f"\n{'=' * 79}\nA cell failed in {report.stem.removesuffix('.err')}:\n")
        print(report.read_text(encoding="utf-8"))
    if build.returncode or reports:
        # Without this the next build would find nothing to do, and call that a success.
        forget(".doctrees")
        print("\nTHE BOOK WAS NOT BUILT. The reason stands above.", *map(str, reports), sep="\n  ")
        return build.returncode or 1
    print(f"\nThe book is built. Open {(BUILD / 'html' / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
