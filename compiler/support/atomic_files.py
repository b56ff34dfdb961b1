"""Atomic writing: files are written to a temporary place and renamed, so that a folder gets all of them or none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from svitc.errors import InputError, OutputError
from svitc.support.locks import folder_lock

STAGING = ".svitc-"  # begins the names of hidden folders with files that are not complete yet
COMPLETE = ".svitc.complete"  # the hidden folder of files that are complete, but not all in their places


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


def write_together(out: Path, contents: Mapping[str, bytes] | Callable[[], Mapping[str, bytes]]) -> list[Path]:
    """Write several files into a folder: all of them appear, each complete, or none does.

    They are written to a hidden folder beside their places, which is renamed when it is complete. From then on they are
    the folder's: who writes or reads next finishes what a killed process left to do (``settle``). Only one process at
    a time writes into a folder.

    Args:
        out: the folder, created if it does not exist.
        contents: file name -> bytes; or a function that returns it from what is in the folder, which is called while
            no other process writes there.

    Returns:
        The paths of the files, in the order of ``contents``.

    Raises:
        OutputError: the disk is full, or the folder is not writable; no partial file is left behind.
    """
    is_new, at = not out.exists(), ""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with folder_lock(out):
            _finish(out)
            files = contents() if callable(contents) else contents
            staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=out))
            try:
                for name, data in files.items():
                    at = f" ({name})"
                    with (staging / name).open("wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                at = ""
                _check_places(out, files)
                os.rename(staging, out / COMPLETE)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _finish(out)
        return [out / name for name in files]
    except OSError as error:
        _remove_empty(out, is_new)
        hint = "Free some disk space, or give" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Give"
        raise OutputError(
            f"cannot write to {out}{at}: {error.strerror}", hint=f"{hint} another folder with -o."
        ) from error
    except BaseException:
        _remove_empty(out, is_new)
        raise


def _check_places(out: Path, names: Iterable[str]) -> None:
    """Raise OSError where a folder is in the place of a file, which could not be finished then, now or later."""
    for name in names:
        if (out / name).is_dir() and not (out / name).is_symlink():
            raise IsADirectoryError(errno.EISDIR, f"{name} is a folder")


def _remove_empty(folder: Path, is_new: bool) -> None:
    """Remove a folder that was made for files which could not be written, unless another process put some there."""
    if is_new:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _finish(out: Path) -> None:
    """Move files that were written completely to their places, and remove those that were not.

    Both are left by a process that was killed, or by the caller a moment before; the folder is locked.
    """
    complete = out / COMPLETE
    if complete.is_dir():
        for file in sorted(complete.iterdir()):
            os.replace(file, out / file.name)
        complete.rmdir()
    for folder in out.glob(f"{STAGING}*"):
        shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path) -> None:
    """Finish the writing of a folder's files where a process was killed in the middle of it.

    Raises:
        InputError: the folder cannot be written, so that its files are of two compilations.
    """
    if not (folder / COMPLETE).is_dir():
        return
    try:
        with folder_lock(folder):
            _finish(folder)
    except OSError as error:
        raise InputError(
            f"the writing of {folder} was interrupted, and cannot be finished: {error.strerror}",
            hint=f"Move the files of {folder / COMPLETE} up into the folder, or compile again.",
        ) from error


def to_json_bytes(content: Any) -> bytes:
    """Return content as the JSON of our files: indented, with a line break at the end."""
    return (json.dumps(content, indent=1) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file; see ``write_one``."""
    write_one(path, to_json_bytes(content))


def write_one(path: Path, data: bytes) -> None:
    """Write one file, completely or not at all.

    Raises:
        OutputError: the file cannot be written; no partial file is left behind.
    """
    try:
        write_together(path.parent, {path.name: data})
    except OutputError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.message
        raise OutputError(
            f"cannot write {path}: {reason}", hint="Free some disk space, or give another path."
        ) from error
