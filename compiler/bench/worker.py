"""Contestants of a benchmark, each in a process of its own that runs when it is asked to.

A process of its own gives each its own peak of memory, keeps a crash or a hang to one row of the table, and lets what
it took to get there (a loaded checkpoint, an export) die with it. The rounds stay paired: the parent asks one process
at a time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from svitc.errors import SvitcError
from svitc.support.hardware import forget_peak, peak, resident

GRACE = 2.0  # s
RUNS_BEFORE = 2  # the first allocates; the second lets torch.compile specialise on what the first has changed


@dataclass
class Ready:
    """What a contestant is once it is loaded.

    Attributes:
        run: one forward pass of one batch, to its end; the logits.
        version: of what runs it.
        reset: called before each run, and not timed.
        profile: runs so many times under the runtime's profiler: milliseconds a run and number of nodes, by operator.
    """

    run: Callable[[], np.ndarray]
    version: str
    reset: Callable[[], object] = lambda: None
    profile: Callable[[int], dict[str, dict[str, float]]] | None = None


@dataclass(frozen=True)
class Runner:
    """What is to be timed, as a process is told it: everything here can be pickled.

    Attributes:
        name: of its row.
        make: a function of a module, called in the process: a ``Ready``, or any value for work without rounds.
        arguments: of ``make``.
        imports: modules whose memory is not the contestant's.
        facts: more columns of its row.
    """

    name: str
    make: Callable[..., Any]
    arguments: tuple[Any, ...]
    imports: tuple[str, ...] = ("torch", "svitc.frontends")
    facts: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A contestant that cannot go on, with the reason in one line.

    Attributes:
        cause: the error, where it is one that the user can mend.
    """

    def __init__(self, reason: str, cause: SvitcError | None = None) -> None:
        super().__init__(reason)
        self.reason, self.cause = reason, cause


class Worker:
    """The parent's end of one process, which begins to load at once.

    Args:
        limit: seconds that loading, or one run, may take.
        loud: leave the process its stderr.
    """

    def __init__(self, contestant: Runner, limit: float, loud: bool = False) -> None:
        self.contestant, self.limit = contestant, limit
        context = multiprocessing.get_context("spawn")  # a fork would share the parent's memory and thread pools
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, contestant, loud), daemon=True)
        with _deaf():
            self.process.start()
        other.close()

    def ask(self, what: str, *arguments: Any) -> Any:
        """
        Raises:
            Failed: it is too slow, has ended, or raised an error.
        """
        with contextlib.suppress(OSError):  # it has ended; what it said last is still in the pipe
            self.connection.send((what, arguments))
        return self.answer()

    def answer(self) -> Any:
        """What is asked, or what loading gave; raises ``Failed`` like ``ask``."""
        try:
            if not self.connection.poll(self.limit):
                raise Failed(f"not done after {self.limit:g} s")
            kind, value = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(5)
            raise Failed(f"its process ended with status {self.process.exitcode}") from error
        if kind == "error":
            raise value
        return value

    def close(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()  # which one that waits for a question understands
        self.process.join(GRACE)
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start here take no notice of Ctrl-C, not even while they import: the parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # nobody else may touch signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def once(contestant: Runner, limit: float, loud: bool = False) -> Any:
    """Work without rounds in a process of its own: what ``make`` returns. Raises ``Failed``."""
    worker = Worker(contestant, limit, loud)
    try:
        return worker.answer()
    finally:
        worker.close()


def _serve(connection: Connection, contestant: Runner, loud: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where the parent's thread could not see to it
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # exporters and runtimes print; stdout may be JSON
    if not loud:
        os.dup2(sink, 2)
    try:
        for module in contestant.imports:
            importlib.import_module(module)
        gc.collect()
        before, start = resident(), time.perf_counter()
        ready = contestant.make(*contestant.arguments)
        if not isinstance(ready, Ready):
            connection.send(("done", ready))
            return
        gc.collect()
        forget_peak()  # of loading, where several copies of the weights may have been held
        for _ in range(RUNS_BEFORE):
            ready.reset()
            first = ready.run()
        loaded = {"logits": np.asarray(first), "version": ready.version, "prepare_seconds": time.perf_counter() - start}
        connection.send(("loaded", loaded))
        _answer(connection, ready, before)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has closed its end
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(("error", _failure(error)))


def _answer(connection: Connection, ready: Ready, before: int) -> None:
    while True:
        what, arguments = connection.recv()
        value: Any
        if what == "run":
            for _ in range(arguments[0]):
                ready.reset()
                start = time.perf_counter()
                ready.run()
                value = time.perf_counter() - start
        elif what == "memory":
            value = max(0, peak() - before)
        elif what == "processor":
            value = time.process_time()
        else:
            value = ready.profile(*arguments) if ready.profile else None
        connection.send((what, value))


def _failure(error: BaseException) -> Failed:
    """An error that any parent can unpickle: its first line with something on it."""
    if isinstance(error, SvitcError):
        return Failed(error.message, error)
    if isinstance(error, MemoryError):
        return Failed("out of memory")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Failed(text if len(text) <= 200 else f"{text[:200]}…")


def own_seconds(workers: Sequence[Worker]) -> float:
    """Processor seconds that this process and its workers have used."""
    return time.process_time() + sum(worker.ask("processor") for worker in workers)
