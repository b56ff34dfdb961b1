"""The runs that faults are tried on: compilations of the demo's network, plain, with a sweep and with fine-tuning."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from campaign.faults import STEPS, contents
from support.paths import DIGITS
from svitc.cli.main import main
from svitc.errors import SvitcError
from svitc.support.atomic_files import settle

KINDS = ("compile", "sweep", "fine-tuning")
SAME = ("model.onnx", "model.safetensors", "model.py", "plan.json")  # report.json holds times
OWN = ".svitc"  # begins the names of files that are on their way
OLD_BUDGET = "0.7"


def arguments(kind: str, data: Path, out: Path, budget: str = "0.5") -> list[str]:
    """The command of one kind, on the demo's network."""
    images = ["--data", str(data), "--sweep-images", "40", "--calibration-images", "16"]
    options = {
        "compile": ["--policy", "uniform", "--no-data", "uniform"],
        "sweep": ["--policy", "psvit", *images],
        "fine-tuning": ["--policy", "uniform", *images, "--finetune", "3", "--train-data", str(data)],
    }
    return ["compile", str(DIGITS), "--budget", budget, "-o", str(out), "--no-html", *options[kind]]


def resumed(kind: str, command: list[str]) -> list[str]:
    """The command that goes on with a run; one without a sweep and training has nothing to go on with."""
    return command if kind == "compile" else [*command, "--resume"]


def write_images(path: Path) -> None:
    """Write 96 images without meaning, which are all that the runs need."""
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (96, 1, 8, 8), dtype=np.uint8), labels=np.arange(96) % 10)


def start(command: list[str], log: Path | None = None, prepare: Callable[[], object] | None = None) -> int:
    """Run the command line in a forked process, which has imported everything already; return its number.

    Args:
        command: arguments of svitc.
        log: the file of what it prints.
        prepare: is called in that process first.
    """
    process = os.fork()
    if not process:
        status = 1
        try:
            place = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(place, 1)
            os.dup2(place, 2)
            if prepare is not None:
                prepare()
            sys.argv = ["svitc"]
            status = main(command)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return process


class Steps:
    """The changes of files below a folder, counted in this process and in those that are forked from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = str(folder), mmap.mmap(-1, 8)

    @property
    def count(self) -> int:
        return struct.unpack("q", self.shared[:8])[0]

    def kill_at(self, number: int, delay: float = 0.0) -> None:
        """Kill this process at a change that is counted from now on and from 0, or so many seconds after it."""

        def kill() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        self.act_at(number, kill if not delay else threading.Timer(delay, kill).start)

    def act_at(self, number: int, act: Callable[[], object]) -> None:
        """Count from 0 from now on, and do something before one change; never with a negative number."""
        self.shared[:8] = bytes(8)
        sys.addaudithook(lambda event, arguments: self._note(event, arguments, number, act))

    def _note(self, event: str, arguments: tuple, number: int, act: Callable[[], object]) -> None:
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if (writes or event in STEPS) and str(arguments[0]).startswith(self.folder):
            self.shared[:8] = struct.pack("q", self.count + 1)
            if self.count == number + 1:
                act()


def wait(process: int) -> int:
    """Return the exit status of a process, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ended_within(process: int, seconds: float) -> int | None:
    """Return the exit status of a process that ends in time, else None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def said(log: Path) -> str:
    """What a process printed, as one line."""
    return " ".join(log.read_text(errors="replace").split()) if log.is_file() else ""


@dataclass
class Whole:
    """The runs that nothing disturbs, to compare with.

    Attributes:
        folder: of everything.
        files: kind -> the files that it writes.
        old: the files of another budget, which may be there before.
        seconds: kind -> how long it takes.
        steps: kind -> how often it changes files.
    """

    folder: Path
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    old: dict[str, bytes] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, kinds: tuple[str, ...] = KINDS) -> Whole:
        """Run each kind once."""
        whole = cls(folder)
        write_images(whole.data)
        counted, log = Steps(folder), folder / "log"
        for kind in kinds:
            begin, command = time.perf_counter(), arguments(kind, whole.data, folder / kind)
            assert wait(start(command, log, lambda: counted.act_at(-1, int))) == 0, said(log)
            whole.seconds[kind], whole.steps[kind] = time.perf_counter() - begin, counted.count
            whole.files[kind] = contents(folder / kind)
        assert wait(start(arguments("compile", whole.data, folder / "old", OLD_BUDGET))) == 0
        whole.old = contents(folder / "old")
        return whole

    @property
    def data(self) -> Path:
        return self.folder / "d.npz"

    def put_old(self, out: Path) -> None:
        """Put the files of another compilation into a folder."""
        shutil.copytree(self.folder / "old", out)

    def fault_of(self, kind: str, out: Path) -> str | None:
        """Say what is wrong with what an ended run left in its folder: neither all old files, nor all new ones."""
        if not out.is_dir():
            return None
        copy = self.folder / "looked at"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)  # reading finishes what was begun; the run that goes on shall find it as it is
        try:
            settle(copy)
        except SvitcError as error:
            return f"cannot be read: {error.message}"
        found = {name: data for name, data in contents(copy).items() if not name.startswith(OWN)}
        allowed = ({}, self.old, {**self.old, **self.files[kind]}, self.files[kind])
        if not any(_same_but_times(found, each) for each in allowed):
            return f"half-written: {sorted(found)}"
        return None

    def has_same(self, kind: str, out: Path) -> bool:
        """Whether a folder holds the files of a run that nothing disturbed."""
        files = contents(out)
        return all(files.get(name) == self.files[kind][name] for name in SAME)


def _same_but_times(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> bool:
    """Whether two folders are of one compilation: the same names, and the same bytes where no times are in them."""
    return set(found) == set(expected) and all(found[name] == expected[name] for name in SAME if name in expected)


def left_behind(out: Path) -> list[str]:
    """Names of what a finished run should have removed, in its folder and beside it."""
    places = [*out.parent.iterdir(), *(out.iterdir() if out.is_dir() else ())]
    return sorted(p.name for p in places if p.name.startswith(".") or p.suffix in (".lock", ".tmp"))
