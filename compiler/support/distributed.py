"""Several processes that compile one model together: ``torchrun --nproc-per-node 2 -m svitc compile …``.

The code that divides work between ranks exchanges its results with ``gather`` and ``broadcast``, so that every rank
takes the same decisions from the same values. Only rank 0 writes files. Without torchrun there is a single rank, and
all functions of this module return at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from svitc.errors import SvitcError, UsageError

log = logging.getLogger("svitc")
TIMEOUT_S = 1800.0  # how long a rank waits for the others; the parts of a sweep take different times
# words in the messages of gloo and NCCL when another rank is gone or silent; both raise a plain RuntimeError
LOST_CONNECTION = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "store", "process group")
T = TypeVar("T")


class RankError(SvitcError):
    """Another rank stopped, or does not answer any more (status 1)."""


@dataclass(frozen=True)
class DistributedContext:
    """The processes of this run, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those on its machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device on which this rank trains: the GPU with its local rank if there is one, else the CPU."""
        if torch.cuda.is_available() and torch.cuda.device_count() > self.local_rank:
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks, on every rank. Values are pickled.

        Raises:
            RankError: another rank stopped.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.guard():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return the value of rank ``source``, on every rank.

        Raises:
            RankError: another rank stopped.
        """
        if self.size == 1:
            return value
        values: list[Any] = [value if self.rank == source else None]
        with self.guard():
            dist.broadcast_object_list(values, src=source)
        return values[0]

    def on_writer(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0 only, and return its result on every rank.

        Raises:
            SvitcError, OSError: what the function raised on rank 0; raised on every rank.
            RankError: another rank stopped.
        """
        if self.size == 1:
            return function()
        result: Any = None
        failure: Exception | None = None
        if self.is_writer:
            try:
                result = function()
            except (SvitcError, OSError) as error:
                failure = error
        # sent in parts, since unpickling an exception calls its constructor, which may need other arguments
        parts = (failure.__class__, failure.__dict__, failure.args) if failure else None
        parts, result = self.broadcast((parts, result))
        if failure is not None:
            raise failure
        if parts is not None:
            kind, state, args = parts
            copy = kind.__new__(kind, *args)
            copy.__dict__.update(state)
            raise copy
        return result

    def mean(self, value: float) -> float:
        """Return the average over all ranks, the same number on every rank.

        Raises:
            RankError: another rank stopped.
        """
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.device)
        with self.guard():
            dist.all_reduce(total)
        return float(total) / self.size

    def barrier(self) -> None:
        """Wait until all ranks have come here.

        Raises:
            RankError: another rank stopped.
        """
        self.gather(None)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn the RuntimeError that gloo or NCCL raises when another rank is gone into a RankError."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.size == 1 or not any(word in text.lower() for word in LOST_CONNECTION):
                raise
            raise RankError(
                f"rank {self.rank} of {self.size} stops, because another rank stopped or does not answer",
                hint="See the message of the other rank. Finished work is on disk: run again with --resume.",
            ) from error


_current: list[DistributedContext] = [DistributedContext()]


def current() -> DistributedContext:
    """Return the context of the innermost ``with world()``, or a context of one rank outside of any."""
    return _current[-1]


@contextlib.contextmanager
def world(timeout: float = TIMEOUT_S) -> Iterator[DistributedContext]:
    """Join the processes that torchrun started, or a context of one process without torchrun.

    PyTorch's threads are divided between the ranks of a machine. A rank that fails closes its connections, so that
    the others stop at their next ``gather``; a rank that hangs stops the others after ``timeout`` seconds.

    Args:
        timeout: seconds that a rank waits for the others.

    Yields:
        The context of this process.

    Raises:
        UsageError: the environment variables are not those that torchrun sets.
        RankError: the ranks do not reach each other within ``timeout`` seconds.
    """
    size = _variable("WORLD_SIZE", 1)
    if size == 1 or dist.is_initialized():  # a process group that the caller created is used and not closed
        context = (
            DistributedContext(dist.get_rank(), dist.get_world_size(), _variable("LOCAL_RANK", 0))
            if size > 1
            else DistributedContext()
        )
        _current.append(context)
        try:
            yield context
        finally:
            _current.pop()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set",
            hint="Start several processes with torchrun: torchrun --nproc-per-node 2 -m svitc compile …",
        )
    ranks_here = max(1, _variable("LOCAL_WORLD_SIZE", size))
    context = DistributedContext(_variable("RANK", 0), size, _variable("LOCAL_RANK", 0))
    threads = torch.get_num_threads()
    gpu = context.device.type == "cuda"
    if gpu:
        torch.cuda.set_device(context.device)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    with contextlib.ExitStack() as undo:
        undo.callback(torch.set_num_threads, threads)
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            raise RankError(
                f"rank {context.rank} of {size} does not reach the others: {str(error).splitlines()[0]}",
                hint="Check that all ranks are started, and that MASTER_ADDR is one machine that all of them reach.",
            ) from error
        undo.callback(dist.destroy_process_group)
        _current.append(context)
        undo.callback(_current.pop)
        log.info("rank %d of %d, %d threads, %s", context.rank, size, torch.get_num_threads(), backend)
        yield context


def _variable(name: str, default: int) -> int:
    """Return an environment variable as a number. Raises UsageError where it is none."""
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"the environment variable {name} is {text!r}, not a whole number", hint=f"Unset {name}.")
    return int(text)
