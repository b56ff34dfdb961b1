"""Runners of a benchmark, each in a process of its own that runs on request.

Separate processes have separate peaks of memory, limit a crash or a hang to one row of the table, and free what loading
needed (a checkpoint, an export) when they end. Rounds stay paired, as the parent asks one process at a time.
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
from svitc.support.hardware import forget_peak, peak, resident, seconds_of
from svitc.support.types import JsonDict

GRACE_S = 2.0  # for a process to end by itself
EXIT_STATUS_S = 5.0  # for a process that has closed its pipe to exit
WARM_UP_RUNS = 2  # the first allocates; in the second torch.compile specializes on what the first has changed
MAX_REASON_CHARACTERS = 200


@dataclass
class Ready:
    """A loaded model, ready to run.

    Attributes:
        run: Runs one batch to its end and returns the logits.
        version: Name and version of the runtime.
        reset: Called before each run, and not timed.
        child: A process that runs the model for this one, if any.
        profile: Runs a given number of times under the runtime's profiler; returns milliseconds per run (``ms``) and
            number of nodes (``nodes``) of each operator.
        calls: Seconds of each call of the last run, where a run is several calls of a file.
    """

    run: Callable[[], np.ndarray]
    version: str
    reset: Callable[[], object] = lambda: None
    profile: Callable[[int], dict[str, dict[str, float]]] | None = None
    child: int | None = None
    calls: Sequence[float] = ()


@dataclass(frozen=True)
class Runner:
    """Something to be timed, in a form that can be pickled and sent to a process.

    Attributes:
        name: Name of its row in the table.
        make: Function at module level, called in the process. It returns a ``Ready``, or any value where it does work
            that is not timed in rounds.
        arguments: Arguments of ``make``.
        imports: Modules to import first, as their memory does not count.
        facts: Further columns of its row.
    """

    name: str
    make: Callable[..., object]
    arguments: tuple[object, ...]
    imports: tuple[str, ...] = ("torch", "svitc.frontends")
    facts: JsonDict = field(default_factory=dict)


class Failed(Exception):
    """Raised where a runner cannot go on.

    Attributes:
        reason: One line that says why.
        cause: The error, where the user can do something about it.
    """

    def __init__(self, reason: str, cause: SvitcError | None = None) -> None:
        super().__init__(reason)
        self.reason, self.cause = reason, cause


class Worker:
    """The parent's end of one process, which begins to load at once.

    Args:
        runner: What the process loads.
        limit: Seconds that loading, or one run, may take.
        verbose: Let the process write to stderr.
    """

    def __init__(self, runner: Runner, limit: float, verbose: bool = False) -> None:
        self.runner, self.limit = runner, limit
        context = multiprocessing.get_context("spawn")  # a fork would share the parent's memory and thread pools
        self.connection, child_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_end, runner, verbose), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        child_end.close()

    def ask(self, request: str, *arguments: object) -> Any:
        """Send a request and return the answer.

        Args:
            request: ``run`` (with a number of runs; seconds of the last), ``memory`` (peak bytes above those before
                loading), ``calls`` (seconds of each call of the last run, where it is several), ``processor`` (seconds
                of processor time so far) or ``profile`` (with a number of runs).

        Raises:
            Failed: The process is too slow, has ended, or raised an error.
        """
        with contextlib.suppress(OSError):  # the process has ended; its last message is still in the pipe
            self.connection.send((request, arguments))
        return self.answer()

    def answer(self) -> Any:
        """Return the answer to a request or, the first time, the result of loading. Raises Failed as ``ask`` does."""
        try:
            if not self.connection.poll(self.limit):
                raise Failed(f"not done after {self.limit:g} s")
            kind, value = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(EXIT_STATUS_S)
            raise Failed(f"its process ended with status {self.process.exitcode}") from error
        if kind == "error":
            raise value
        return value

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()  # a process that waits for a request then ends by itself
        self.process.join(GRACE_S)
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that start here ignore Ctrl-C, even while they import: the parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may change signal handlers
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def once(runner: Runner, limit: float, verbose: bool = False) -> Any:
    """Run ``runner.make`` in a process of its own and return its result. Raises Failed."""
    worker = Worker(runner, limit, verbose)
    try:
        return worker.answer()
    finally:
        worker.close()


def _serve(connection: Connection, runner: Runner, verbose: bool) -> None:
    """Load a runner and answer requests until the parent closes its end: the main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a parent that is not in its main thread could not do it
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # exporters and runtimes print; stdout may be JSON
    if not verbose:
        os.dup2(sink, 2)
    try:
        for module in runner.imports:
            importlib.import_module(module)
        gc.collect()
        bytes_before, start = resident(), time.perf_counter()
        ready = runner.make(*runner.arguments)
        if not isinstance(ready, Ready):
            connection.send(("done", ready))
            return
        gc.collect()
        forget_peak()  # loading may have held several copies of the weights
        for _ in range(WARM_UP_RUNS):
            ready.reset()
            first = ready.run()
        loaded = {"logits": np.asarray(first), "version": ready.version, "prepare_seconds": time.perf_counter() - start}
        connection.send(("loaded", loaded))
        _answer(connection, ready, bytes_before)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has closed its end
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(("error", _failure(error)))


def _answer(connection: Connection, ready: Ready, bytes_before: int) -> None:
    """Answer the requests that ``Worker.ask`` describes, without end."""
    while True:
        request, arguments = connection.recv()
        value: object
        if request == "run":
            for _ in range(arguments[0]):
                ready.reset()
                start = time.perf_counter()
                ready.run()
                value = time.perf_counter() - start
        elif request == "memory":
            value = max(0, peak() - bytes_before) + (peak(ready.child) if ready.child else 0)
        elif request == "calls":
            value = list(ready.calls)
        elif request == "processor":
            value = time.process_time() + (seconds_of(ready.child) if ready.child else 0.0)
        else:
            value = ready.profile(*arguments) if ready.profile else None
        connection.send((request, value))


def _failure(error: BaseException) -> Failed:
    """Return an error that any parent can unpickle, with the first line of the text that is not empty."""
    if isinstance(error, SvitcError):
        return Failed(error.message, error)
    if isinstance(error, MemoryError):
        return Failed("out of memory")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Failed(text if len(text) <= MAX_REASON_CHARACTERS else f"{text[:MAX_REASON_CHARACTERS]}…")


def own_seconds(workers: Sequence[Worker]) -> float:
    """Return the processor seconds that this process and its workers have used."""
    return time.process_time() + sum(worker.ask("processor") for worker in workers)
