"""Disks that are really full, folders that can only be read, and folders that are removed under way.

Every file of a run meets a disk on which half of it has room. Each time there must be exit status 7, a message that
says so, the files from before intact, nothing half-written, and, with more space, the bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from campaign.faults import contents
from robustness_parts.log import Log
from robustness_parts.mounts import LARGE, PAGE, SmallDisk
from robustness_parts.runs import KINDS, Steps, Whole, arguments, left_behind, resumed, said, start, wait
from svitc.errors import OutputError

REMOVALS = 8  # of each kind of run
FULL = r"No space left on device"
READ_ONLY = r"Read-only file system|no permission"
GONE = r"No such file or directory"


def run(log: Log, options: argparse.Namespace) -> None:
    """Try what is left of all cases."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        whole = Whole.of(Path(name).resolve())
        for kind in KINDS:
            for has_old in (False, True):
                for what, attempt in _attempts(kind, has_old, whole):
                    if log.is_over:
                        return
                    key = {"kind": kind, "over": "other files" if has_old else "nothing", "what": what}
                    if not log.has(**key):
                        log.add(**key, **attempt())


def _attempts(kind: str, has_old: bool, whole: Whole) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The cases of one kind of run, each with what tries it."""
    for what, pages in _places(kind, has_old, whole):
        yield f"full at {what}", lambda pages=pages: _full(kind, has_old, whole, pages)
    yield "read-only before", lambda: _read_only(kind, has_old, whole, under_way=False)
    yield "read-only under way", lambda: _read_only(kind, has_old, whole, under_way=True)
    for number in range(REMOVALS):
        yield f"removed under way, {number}", lambda number=number: _removed(kind, has_old, whole, number)


def _places(kind: str, has_old: bool, whole: Whole) -> Iterator[tuple[str, int]]:
    """Each file that a run writes, with the pages of a disk on which about half of it has room."""
    used = sum(_pages(data) for data in whole.old.values()) if has_old else 0
    if used:  # a tmpfs has one page at least, which is all that the lock takes
        yield "the lock", used
    used += 1
    sweep, trained = (whole.folder / f"{kind}.{name}" for name in ("sweep.jsonl", "finetune.pt"))
    if sweep.is_file():
        pages = _pages(sweep.read_bytes())
        yield "the first line of the sweep", used
        if pages > 1:
            yield "a later line of the sweep", used + pages // 2
        used += pages
    if trained.is_file():
        pages = _pages(trained.read_bytes())
        yield "the checkpoint of the first epoch", used + pages // 2
        yield "the checkpoint of the second epoch", used + pages + pages // 2
        used += pages
    folder = whole.folder / kind
    for name in sorted(whole.files[kind], key=lambda name: (folder / name).stat().st_mtime_ns):  # as they are written
        pages = _pages(whole.files[kind][name])
        yield name, used + pages // 2
        used += pages


def _pages(data: bytes) -> int:
    return -(-len(data) // PAGE)


def _full(kind: str, has_old: bool, whole: Whole, pages: int) -> dict:
    log = whole.folder / "log"
    with SmallDisk(whole.folder / "disk", LARGE // PAGE) as disk:
        out = disk.place / "out"
        if has_old:
            whole.put_old(out)
        disk.resize(pages)
        command = arguments(kind, whole.data, out)
        status = wait(start(command, log))
        row = {"bytes": pages * PAGE, **_judged(status, log, FULL, whole, out, has_old)}
        disk.enlarge()
        return _gone_on(row, kind, command, out, whole)


def _read_only(kind: str, has_old: bool, whole: Whole, under_way: bool) -> dict:
    log = whole.folder / "log"
    with SmallDisk(whole.folder / "disk", LARGE // PAGE) as disk:
        out = disk.place / "out"
        if has_old:
            whole.put_old(out)
        command = arguments(kind, whole.data, out)
        if under_way:
            process = start(command, log)
            time.sleep(whole.seconds[kind] / 3)
            disk.cover()  # the file system itself is busy, since the lock of the run is open
            status = wait(process)
            disk.uncover()
        else:
            disk.protect()
            status = wait(start(command, log))
            disk.enlarge()
        lock = out.parent / f".{out.name}.lock"
        if under_way and status == OutputError.exit_status:
            lock.unlink()  # which could not be reached to be removed, and locks nothing any more
        return _gone_on(_judged(status, log, READ_ONLY, whole, out, has_old), kind, command, out, whole)


def _removed(kind: str, has_old: bool, whole: Whole, number: int) -> dict:
    """Remove the folder, or the one around it, just before one of the last changes of files."""
    log, place = whole.folder / "log", whole.folder / "removed"
    rng = random.Random(f"{kind} {has_old} {number}")
    shutil.rmtree(place, ignore_errors=True)
    out = place / "around" / "out"
    out.parent.mkdir(parents=True)
    if has_old:
        whole.put_old(out)
    command, removed = arguments(kind, whole.data, out), rng.choice((out, out.parent))
    step = rng.randrange(max(0, whole.steps[kind] - 24), whole.steps[kind])
    steps = Steps(place)
    status = wait(start(command, log, lambda: steps.act_at(step, lambda: shutil.rmtree(removed, ignore_errors=True))))
    row = _judged(status, log, GONE, whole, out, has_old, may_be_gone=True)
    return _gone_on({**row, "removed": removed.name, "before change": step}, kind, command, out, whole)


def _judged(
    status: int, log: Path, words: str, whole: Whole, out: Path, has_old: bool, may_be_gone: bool = False
) -> dict:
    """What a disturbed run came to: its exit status, its message, and what it left."""
    message = said(log)
    result = "refused"
    found = contents(out) if out.is_dir() else {}
    before = whole.old if has_old else {}
    if may_be_gone and status == 0:
        result = "written again"
    elif status != OutputError.exit_status:
        result = f"wrong status {status}"
    elif "Traceback" in message or not re.search(words, message):
        result = "wrong message"
    elif found != before and not (may_be_gone and not found):
        result = f"other files than before: {sorted(found)}"
    elif out.parent.is_dir() and left_behind(out):
        result = f"left {left_behind(out)}"
    return {"status": status, "message": message[-300:], "result": result}


def _gone_on(row: dict, kind: str, command: list[str], out: Path, whole: Whole) -> dict:
    """Go on with the run where nothing is in its way any more."""
    log = whole.folder / "log"
    again = "same files"
    if wait(start(resumed(kind, command), log)) != 0:
        again = f"it cannot be resumed: {said(log)[-300:]}"
    elif not whole.has_same(kind, out):
        again = "other files"
    elif left_behind(out):
        again = f"left {left_behind(out)}"
    return {**row, "resumed": again}
