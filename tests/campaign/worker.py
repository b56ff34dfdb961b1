"""Reading of hostile inputs in a forked process with limits of memory and time, and a watch on what it touches."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from campaign.cases import Kind, Made, Outcome
from svitc.errors import InternalError, SvitcError
from svitc.support.hardware import forget_peak, peak, resident
from svitc.support.limits import set_max_memory

SECONDS = 20  # that one input may take
MEMORY = 256 << 20  # bytes that a file may claim, and by which reading it may let the resident memory grow
ADDRESS_SPACE = 2 << 30  # bytes by which it may let the address space grow, before allocation fails
CANARY = "campaign_canary"  # a module that no input may import
OUTSIDE = "outside"  # a folder beside the inputs that none may touch
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


class TimeIsUp(BaseException):
    """Raised by the alarm; no handler of ordinary errors catches it."""


class Watch:
    """An audit hook that notes what a process does outside its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.outside = str(folder / OUTSIDE)
        self.found: list[str] = []
        self.active = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event in PROCESSES:
            self.found.append(f"ran code: {event}")
        elif event == "import" and str(arguments[0]).startswith(CANARY):
            self.found.append("ran code: import")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path, writes = (
                os.path.abspath(os.fsdecode(arguments[0])),
                bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)),
            )
            if path.startswith(self.outside) or (
                writes and not path.startswith((self.folder, "/dev/null", "/proc/self"))
            ):
                self.found.append(f"left the folder: {path}")
        elif event in CHANGES and isinstance(arguments[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(self.folder):
                self.found.append(f"left the folder: {event} {path}")


def run(kind: Kind, seeds: Sequence[int], folder: Path) -> Iterator[Outcome]:
    """Yield the outcome of each seed; a process that dies costs one input and is replaced."""
    left = list(seeds)
    while left:
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            os.close(reader)
            _work(kind, left, folder, writer)
        os.close(writer)
        for outcome in _answers(reader, process):
            yield outcome
            left.pop(0)
        status = os.waitpid(process, 0)[1]
        if left:  # it died on the first of those that are left
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            result = "time" if number == signal.SIGKILL else "crash"
            yield Outcome(kind.name, "", left.pop(0), result, f"the process died: signal {number}, {status}")


def _answers(reader: int, process: int) -> Iterator[Outcome]:
    """Yield what a process answers until it ends; one that says nothing for too long is killed."""
    with os.fdopen(reader, "rb", buffering=0) as stream:
        rest = b""
        while True:
            if not select.select([stream], [], [], 2 * SECONDS)[0]:
                os.kill(process, signal.SIGKILL)
                return
            data = stream.read(65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from (Outcome(**json.loads(line)) for line in lines)


def _work(kind: Kind, seeds: Sequence[int], folder: Path, writer: int) -> None:
    """Read one input after another, and write the outcomes; never returns."""
    status = 1
    try:
        prepare(folder)
        watch = Watch(folder)
        with os.fdopen(writer, "w", buffering=1) as answers:
            for seed in seeds:
                answers.write(json.dumps(asdict(attempt(kind, seed, folder, watch))) + "\n")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def prepare(folder: Path) -> None:
    """Set up this process: no core files, a canary on the path, a folder that nothing may touch, limits."""
    warnings.simplefilter("ignore")
    set_max_memory(MEMORY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE, now + ADDRESS_SPACE))
    outside = folder / OUTSIDE
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(b"nothing may read this")
    (folder / f"{CANARY}.py").write_text("touched = True\n")
    sys.path.append(str(folder))
    os.environ["TMPDIR"] = str(folder)

    def ring(*_: object) -> None:
        raise TimeIsUp

    signal.signal(signal.SIGALRM, ring)


def attempt(kind: Kind, seed: int, folder: Path, watch: Watch) -> Outcome:
    """Make an input, read it, and say what came of it."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    made = kind.make(random.Random(f"{kind.name} {seed}"), place)
    watch.found.clear()
    forget_peak()
    before, start = resident(), time.perf_counter()
    watch.active = True
    signal.alarm(SECONDS)
    try:
        kind.read(made.path)
        result, message = ("accepted though hostile" if made.must_fail else "accepted"), ""
    except TimeIsUp:
        result, message = "time", f"longer than {SECONDS} s"
    except MemoryError as error:
        result, message = "memory", str(error)
    except InternalError as error:
        result, message = "traceback", error.message
    except SvitcError as error:
        result, message = judged(kind, made, error), str(error)
    except BaseException as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        result, message = "traceback", f"{type(error).__name__}: {error} ({Path(line.filename).name}:{line.lineno})"
    finally:
        signal.alarm(0)
        watch.active = False
    seconds, memory = time.perf_counter() - start, max(0, peak() - before)
    if memory > MEMORY and result in ("accepted", "refused"):
        result, message = "memory", f"{memory >> 20} MiB; {message}"
    if watch.found:
        result, message = watch.found[0].partition(":")[0], "; ".join(watch.found[:3])
    text = " ".join(message.split()).encode("utf-8", "replace").decode()[:300]
    return Outcome(kind.name, made.change, seed, result, text, round(seconds, 3), memory)


def judged(kind: Kind, made: Made, error: SvitcError) -> str:
    """Whether a refusal is true: its exit status, the name of the file, and the word that belongs to the change."""
    if error.exit_status not in kind.statuses:
        return "wrong status"
    text = str(error)
    if made.must_pass:
        return "refused though good"
    if "can't allocate memory" in text or "Cannot allocate memory" in text:
        return "memory"
    return "refused" if re.search(made.keyword, text, re.DOTALL) else "wrong message"
