"""Faults at every step of a function: the process is killed, or the system refuses, at its n-th change of files."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

STEPS = ("os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree", "tempfile.mkdtemp")
KILLED = -signal.SIGKILL
DONE, REFUSED, BROKEN = 0, 7, 1


def at_step(number: int, fault: str, work: Callable[[], object]) -> int:
    """Run a function in a forked process with a fault at its n-th change of files, counted from 0.

    Args:
        number: of the step.
        fault: ``kill``, or the name of an error such as ``ENOSPC``, which all later openings for writing raise, too.
        work: the function.

    Returns:
        The exit status: DONE, the status of svitc's error, KILLED, or BROKEN for any other error.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    count = -1

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = (
            event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)) and arguments[0] != os.devnull
        )
        if event not in STEPS and not writes:
            return
        count += 1
        if fault == "kill" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault != "kill" and (count == number or (count > number and event in ("open", "os.mkdir"))):
            code = getattr(errno, fault)
            raise OSError(code, os.strerror(code))

    status = BROKEN
    try:
        sys.addaudithook(hook)
        work()
        status = DONE
    except BaseException as error:
        status = getattr(error, "exit_status", BROKEN)
    finally:
        os._exit(status)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
