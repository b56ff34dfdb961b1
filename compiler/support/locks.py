"""Locks between processes, which the system releases when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from svitc.errors import OutputError

try:
    import fcntl
except ImportError:  # not on Unix: there are no locks
    fcntl = None  # type: ignore[assignment]

# file systems without locks, and folders where no lock file may be made, do without
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EBADF)


@contextlib.contextmanager
def folder_lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Wait until no other process writes into a folder, and keep others from it in the ``with`` statement.

    Args:
        folder: the folder, which exists.
        shared: only read, as others may at the same time.

    Raises:
        OSError: the folder does not exist.
    """
    if fcntl is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with _without_locks():
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keep a second process from compiling into the same folder, by a hidden file beside it.

    The file is removed at the end. What a killed process leaves of it does not lock anything.

    Raises:
        OutputError: another process does so at this time, or the disk has no room even for that file.
    """
    path = out.absolute().parent / f".{out.name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            with _without_locks():
                if fcntl is not None:
                    stack.enter_context(_lock_file(path, out))
        except OSError as error:
            raise OutputError(
                f"cannot write to {path.parent}: {error.strerror}",
                hint="Free some disk space, or give another folder with -o.",
            ) from error
        yield


@contextlib.contextmanager
def _lock_file(path: Path, out: Path) -> Iterator[None]:
    made = [folder for folder in path.parents if not folder.exists()]  # from the innermost
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, out)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock is released, so that none is removed that another process holds
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()  # unless there is something in it by now


def _locked(path: Path, out: Path) -> int:
    """Return the descriptor of the file at ``path``, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise OutputError(
                f"another svitc (process {holder or 'unknown'}) compiles into {out} at this time",
                hint="Wait until it is done, or give another folder with -o.",
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it in between: make another


@contextlib.contextmanager
def _without_locks() -> Iterator[None]:
    """Go on where the file system has no locks."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


__all__ = ["folder_lock", "sole_writer"]
