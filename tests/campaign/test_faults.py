"""Kills, full disks and other writers at every step of writing: all files of a folder, or those from before."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from campaign.faults import DONE, KILLED, REFUSED, at_step, contents
from svitc.errors import OutputError
from svitc.support.atomic_files import settle, write_one, write_together
from svitc.support.locks import folder_lock, sole_writer

OLD = {"a.txt": b"old a", "b.txt": b"old b", "c.txt": b"old c"}
NEW = {"a.txt": b"new a", "b.txt": b"new b", "d.txt": b"new d"}
MOST_STEPS = 40
OF_OTHERS = {"mine.md": b"of the user"}


def prepared(folder, exists: bool) -> None:
    if exists:
        write_together(folder, {**OLD, **OF_OTHERS})


@pytest.mark.parametrize("exists", [True, False])
def test_a_kill_at_any_step_leaves_all_files_or_none(tmp_path, exists):
    reached = set()
    for number in range(MOST_STEPS):
        out = tmp_path / str(number)
        prepared(out, exists)
        before = contents(out)
        status = at_step(number, "kill", lambda out=out: write_together(out, NEW))
        if out.is_dir():
            settle(out)
        visible = {name: data for name, data in contents(out).items() if not name.startswith(".svitc")}
        assert visible in (before, {**before, **NEW}), (number, visible)
        reached.add(visible == before)
        write_together(out, NEW)
        assert contents(out) == {**before, **NEW}, "the next writer leaves nothing of the killed one"
        assert not [path for path in out.iterdir() if path.is_dir()]
        if status == DONE:
            break
        assert status == KILLED
    assert status == DONE and number > 5 and reached == {True, False}


@pytest.mark.parametrize("fault", ["ENOSPC", "EACCES", "EIO", "EROFS"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_refusal_of_the_system_at_any_step(tmp_path, exists, fault):
    for number in range(MOST_STEPS):
        out = tmp_path / str(number)
        prepared(out, exists)
        before = contents(out)
        status = at_step(number, fault, lambda out=out: write_together(out, NEW))
        if out.is_dir():
            settle(out)
        assert contents(out) in (before, {**before, **NEW}), number
        if status == DONE and contents(out) != before:
            break
        assert status == REFUSED, (number, status)
    assert status == DONE and number > 3


def test_a_folder_removed_under_way_and_one_that_is_a_file(tmp_path):
    def work() -> None:
        with sole_writer(tmp_path / "gone" / "out"):
            os.remove(tmp_path / "gone" / ".out.lock")
            os.rmdir(tmp_path / "gone")
        write_one(tmp_path / "gone" / "x.json", b"{}")

    work()
    assert contents(tmp_path) == {"gone/x.json": b"{}"}
    with pytest.raises(OutputError, match="cannot write .*x.json"):
        write_one(tmp_path / "gone" / "x.json" / "y", b"")


def _forked(work) -> int:
    process = os.fork()
    if not process:
        try:
            work()
        finally:
            os._exit(0)
    return process


def test_two_writers_and_two_readers_never_see_a_mixture(tmp_path):
    out = tmp_path / "out"
    versions = [{name: bytes([n]) * 20_000 for name in ("a", "b", "c", "d")} for n in range(2)]
    write_together(out, versions[0])
    end = time.monotonic() + 0.6

    def write(n: int) -> None:
        while time.monotonic() < end:
            write_together(out, versions[n])

    writers = [_forked(lambda n=n: write(n)) for n in range(2)]
    seen = set()
    while time.monotonic() < end:
        with folder_lock(out, shared=True):
            seen.add(b"".join((out / name).read_bytes()[:1] for name in "abcd"))
    for process in writers:
        os.waitpid(process, 0)
    assert seen <= {b"\0" * 4, b"\1" * 4} and contents(out) in versions


def test_a_second_compilation_into_a_folder_is_told_and_a_killed_one_locks_nothing(tmp_path):
    out = tmp_path / "new" / "out"
    ready, done = os.pipe(), tmp_path / "new"

    def hold() -> None:
        with sole_writer(out):
            os.write(ready[1], b"x")
            time.sleep(60)

    process = _forked(hold)
    os.read(ready[0], 1)
    with (
        pytest.raises(OutputError, match=rf"another svitc \(process {process}\) compiles into") as caught,
        sole_writer(out),
    ):
        pass
    assert "-o" in str(caught.value.hint)
    with sole_writer(tmp_path / "new" / "other"):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with sole_writer(out):
        assert (done / ".out.lock").read_text() == f"{os.getpid()}\n"
    assert contents(tmp_path) == {}


def test_a_disk_without_room_for_the_lock_is_said_before_the_work(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(OutputError, match="cannot write to .*new: No space left on device"),
        sole_writer(tmp_path / "new/out"),
    ):
        raise AssertionError("the work begins")
    assert not [*tmp_path.iterdir()]


def test_files_that_follow_from_others_are_made_while_nobody_writes(tmp_path):
    out, ready = tmp_path / "out", os.pipe()
    write_together(out, OLD)

    def slow() -> dict[str, bytes]:
        before = (out / "a.txt").read_bytes()
        os.write(ready[1], b"x")
        time.sleep(0.2)
        assert (out / "a.txt").read_bytes() == before == b"old a"
        return {"of a.txt": before}

    process = _forked(lambda: write_together(out, slow))
    os.read(ready[0], 1)
    write_together(out, NEW)
    assert os.waitpid(process, 0)[1] == 0 and contents(out) == {**OLD, **NEW, "of a.txt": b"old a"}
