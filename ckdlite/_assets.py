"""Files that come with the library, read with a check of what they hold."""

import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "assets"


def read(name: str, sha256: str | None = None) -> bytes:
    """The bytes of a shipped file; a missing or damaged one is named, with what to do."""
    try:
        data = (FOLDER / name).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{FOLDER / name} is missing; {_repair(name)}") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(damaged(name))
    return data


def read_json(name: str) -> Any:
    try:
        return json.loads(read(name))
    except ValueError as error:
        raise ValueError(damaged(name)) from error


def damaged(name: str) -> str:
    return f"{FOLDER / name} is damaged; {_repair(name)}"


def _repair(name: str) -> str:
    return f"reinstall ckdlite, or in a checkout run: git checkout -- ckdlite/assets/{name}"
