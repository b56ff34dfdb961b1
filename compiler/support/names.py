"""Hints for names and paths that do not exist: what was probably meant, and what there is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from svitc.errors import InputError, UsageError

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # what the names of checkpoints end with


def known(name: str, names: Iterable[str], what: str = "Known:") -> str:
    """Return a hint: the name that is close to an unknown one, and all names that there are.

    Args:
        name: what was given.
        names: what could have been given.
        what: how the list begins, such as ``Targets are``.
    """
    names = list(names)
    close = get_close_matches(name, names, 1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}{what} {', '.join(names)}."


def shortened(name: str, most: int = 200) -> str:
    """Return a name as messages show it: its beginning, where a file has one of thousands of letters."""
    return name if len(name) <= most else f"{name[:most]}…"


def as_path(value: object, what: str) -> Path:
    """Return a path that a caller gave, as text or as a ``Path``.

    Args:
        value: what was given.
        what: what it is the path of, such as ``the output folder``.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(value, str | os.PathLike):
        return Path(value)
    raise UsageError(f"{what} is {value!r:.60}, not a path")


def check_exists(path: Path) -> Path:
    """Return the path of a checkpoint or an output folder.

    Raises:
        InputError: there is nothing; the hint lists the checkpoints beside it.
    """
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise InputError(f"{path} does not exist", hint=f"There is no folder {path.parent} either.")
    near = sorted(p.name for p in path.parent.iterdir() if p.suffix in CHECKPOINTS)
    raise InputError(f"{path} does not exist", hint=f"In that folder: {', '.join(near[:5])}." if near else None)
