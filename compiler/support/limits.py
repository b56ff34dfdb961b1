"""A bound on the memory that a file may claim, checked before anything is allocated (``--max-memory``)."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from svitc.errors import InputError, UsageError
from svitc.support.human import byte_size

try:
    import resource
except ImportError:  # not on Unix: there are no such limits
    resource = None  # type: ignore[assignment]

OWN_BYTES = 1 << 30  # which Python, PyTorch, ONNX Runtime and the stacks of their threads take themselves
# how PyTorch, ONNX Runtime and the system say it
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "failed to allocate memory", "bad allocation")
DEFAULT_SHARE = 2  # of the machine's memory, by which its size is divided
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_chosen: list[int] = []  # the bound that the user chose, if any


def parse_size(text: str) -> int:
    """Return a number of bytes from a text such as ``4GB`` or ``500MB``.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2].removesuffix("B") + "B" if match[2] else ""]) if match else 0
    if not size:
        raise UsageError(f"{text!r} is not a size of memory", hint="Give for example 4GB or 500MB.")
    return size


def set_max_memory(size: int | None) -> None:
    """Bound what a file may claim from now on; None for the default, half of the machine's memory."""
    _chosen[:] = [] if size is None else [size]


def max_memory() -> int:
    """Return the bound in bytes."""
    return _chosen[0] if _chosen else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // DEFAULT_SHARE


def bound_process() -> None:
    """Let this process fail to allocate what is far above the bound, where the system can do that."""
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            bound = _data_bytes() + max_memory() + OWN_BYTES
            resource.setrlimit(resource.RLIMIT_DATA, (bound, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _data_bytes() -> int:
    """Return the memory that this process has already, so that there is room for its threads to begin; 0 if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack, which RLIMIT_DATA counts
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def limits_of_one_run() -> Iterator[None]:
    """Undo at the end of the ``with`` statement what was chosen and bounded in it.

    A program that calls the command line goes on with the memory that it had: at its bound, a thread that cannot begin
    would make Python wait for ever.
    """
    chosen = list(_chosen)
    before = None if resource is None else resource.getrlimit(resource.RLIMIT_DATA)
    try:
        yield
    finally:
        _chosen[:] = chosen
        if resource is not None and before is not None:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or its cause, is that memory could not be allocated."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in OUT_OF_MEMORY)


def check_claim(size: int, what: object) -> None:
    """Check the number of bytes that a file would make this process allocate.

    Raises:
        InputError: they are more than the bound.
    """
    if size > max_memory():
        raise InputError(
            f"{what} claims {byte_size(size)} of memory, more than the limit of {byte_size(max_memory())}",
            hint="If the file is what it should be, raise the limit: svitc --max-memory with a larger size.",
        )


def check_archive_claim(path: Path) -> None:
    """Check how much all files in a .zip or .npz would take.

    Raises:
        InputError: it is more than the bound.
        OSError, zipfile.BadZipFile: the file cannot be read, or is none.
    """
    with zipfile.ZipFile(path) as archive:
        check_claim(sum(entry.file_size for entry in archive.infolist()), path)


__all__ = [
    "bound_process",
    "check_archive_claim",
    "check_claim",
    "is_out_of_memory",
    "limits_of_one_run",
    "max_memory",
    "parse_size",
    "set_max_memory",
]
