"""Atomic writing: files are written to a temporary place and renamed, so that a folder gets all of them or none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svitc.errors import OutputError


def writable(out: Path) -> None:
    """Check that an output folder can be written, so that a long computation does not fail at its end.

    Args:
        out: the folder, which need not exist yet.

    Raises:
        OutputError: the path is a file, or there is no permission.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file, not a folder", hint="Give another folder with -o.")
    parent = out if out.is_dir() else _existing_parent(out)
    if not parent.is_dir():
        raise OutputError(f"{out} cannot be written: {parent} is not a folder", hint="Give another folder with -o.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be written: no permission in {parent}", hint="Give another folder with -o.")


def _existing_parent(path: Path) -> Path:
    path = path.absolute().parent
    while not path.exists():
        path = path.parent
    return path


def write_together(out: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write several files into a folder: all of them appear, each complete, or none does.

    Args:
        out: the folder, created if it does not exist.
        contents: file name -> bytes.

    Returns:
        The paths of the files, in the order of ``contents``.

    Raises:
        OutputError: the disk is full, or the folder is not writable; no partial file is left behind.
    """
    is_new = not out.exists()
    staging: Path | None = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".svitc-", dir=out))
        for name, data in contents.items():
            with (staging / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            os.replace(staging / name, out / name)
        return [out / name for name in contents]
    except OSError as error:
        if is_new and out.is_dir():
            shutil.rmtree(out, ignore_errors=True)
        hint = "Free some disk space, or give" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Give"
        raise OutputError(f"cannot write to {out}: {error.strerror}", hint=f"{hint} another folder with -o.") from error
    except BaseException:
        if is_new and out.is_dir():
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def to_json_bytes(content: Any) -> bytes:
    """Return content as the JSON of our files: indented, with a line break at the end."""
    return (json.dumps(content, indent=1) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file; see ``write_one``."""
    write_one(path, to_json_bytes(content))


def write_one(path: Path, data: bytes) -> None:
    """Write one file under a temporary name in its folder, and rename it when it is complete.

    Raises:
        OutputError: the file cannot be written; no partial file is left behind.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror}", hint="Free some disk space, or give another path."
        ) from error
