"""Several processes that compile together: ``torchrun --nproc-per-node 2 -m svitc compile …``.

Work is shared by whoever calls ``gather`` and ``broadcast``; every rank then takes the same decisions from the same
values, and rank 0 alone writes. Outside torchrun there is one rank, and nothing here does anything.
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
TIMEOUT = 1800.0  # seconds that a rank waits for the others; a sweep's shards are not equally long
# what the transports say when the other side is gone or silent; they raise a bare RuntimeError
LOST = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "store", "process group")
T = TypeVar("T")


class RankError(SvitcError):
    """Another rank stopped or fell silent (status 1)."""


@dataclass(frozen=True)
class DistributedContext:
    """The processes of this run.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
        local_rank: this process among those on its machine.
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
        """Where this rank trains: a GPU of its own where there is one, else the processor."""
        if torch.cuda.is_available() and torch.cuda.device_count() > self.local_rank:
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank. Values are pickled.

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
        """One rank's value, on every rank.

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
        """Run on rank 0 and give every rank the result, or raise rank 0's SvitcError or OSError on every rank."""
        if self.size == 1:
            return function()
        result: Any = None
        failure: Exception | None = None
        if self.is_writer:
            try:
                result = function()
            except (SvitcError, OSError) as error:
                failure = error
        told = (failure.__class__, failure.__dict__, failure.args) if failure else None
        told, result = self.broadcast((told, result))
        if failure is not None:
            raise failure
        if told is not None:
            kind, state, args = told
            copy = kind.__new__(kind, *args)
            copy.__dict__.update(state)
            raise copy
        return result

    def mean(self, value: float) -> float:
        """The average over all ranks, the same on every rank.

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
        """Wait for all ranks.

        Raises:
            RankError: another rank stopped.
        """
        self.gather(None)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn what a transport raises when another rank is gone into a RankError."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.size == 1 or not any(word in text.lower() for word in LOST):
                raise
            raise RankError(
                f"rank {self.rank} of {self.size} stops, because another rank stopped or does not answer",
                hint="The other rank's own message says why. What is finished is on disk: run again with --resume.",
            ) from error


_current: list[DistributedContext] = [DistributedContext()]


def current() -> DistributedContext:
    """The world of the innermost ``with world()``; one rank outside of any."""
    return _current[-1]


@contextlib.contextmanager
def world(timeout: float = TIMEOUT) -> Iterator[DistributedContext]:
    """Join the processes that torchrun started; a world of one process outside torchrun.

    PyTorch's threads are divided between the ranks of a machine. A rank that fails closes its connections, so that
    the others stop at their next ``gather``; one that hangs stops them after ``timeout`` seconds.

    Raises:
        UsageError: the environment is not what torchrun sets.
        RankError: the ranks do not find each other within ``timeout`` seconds.
    """
    size = _variable("WORLD_SIZE", 1)
    if size == 1 or dist.is_initialized():  # a caller's own group is used and left as it is
        one = (
            DistributedContext(dist.get_rank(), dist.get_world_size(), _variable("LOCAL_RANK", 0))
            if size > 1
            else DistributedContext()
        )
        _current.append(one)
        try:
            yield one
        finally:
            _current.pop()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set",
            hint="Start several processes with torchrun: torchrun --nproc-per-node 2 -m svitc compile …",
        )
    local = max(1, _variable("LOCAL_WORLD_SIZE", size))
    joined = DistributedContext(_variable("RANK", 0), size, _variable("LOCAL_RANK", 0))
    threads = torch.get_num_threads()
    gpu = joined.device.type == "cuda"
    if gpu:
        torch.cuda.set_device(joined.device)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    with contextlib.ExitStack() as undo:
        undo.callback(torch.set_num_threads, threads)
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            raise RankError(
                f"rank {joined.rank} of {size} does not reach the others: {str(error).splitlines()[0]}",
                hint="Are all ranks started, and is MASTER_ADDR the same, reachable machine for all of them?",
            ) from error
        undo.callback(dist.destroy_process_group)
        _current.append(joined)
        undo.callback(_current.pop)
        log.info("rank %d of %d, %d threads, %s", joined.rank, size, torch.get_num_threads(), backend)
        yield joined


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"the environment says {name}={text!r}, which is not a whole number", hint=f"Unset {name}.")
    return int(text)
