"""What a kind of hostile input is, and what one of them came to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Made:
    """A hostile input that was written.

    Attributes:
        change: what was done to it, in a few words.
        path: the file or folder to give to svitc.
        keyword: regular expression that the message must match where the input is refused.
        must_fail: whether it may not be accepted.
        must_pass: whether it may not be refused: it is unusual, and nothing is wrong with it.
    """

    change: str
    path: Path
    keyword: str
    must_fail: bool = False
    must_pass: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: of the kind.
        make: writes an input into a folder, by a seeded generator.
        read: does with it what the command does.
        command: the command line that reads it, in which ``{}`` is the path; empty where there is none.
        statuses: exit statuses of a refusal that is true.
        share: how often it is tried, relative to the others.
    """

    name: str
    make: Callable[[random.Random, Path], Made]
    read: Callable[[Path], object]
    command: tuple[str, ...] = ()
    statuses: frozenset[int] = frozenset({3, 4})
    share: int = 1


@dataclass(frozen=True)
class Outcome:
    """What one input came to.

    Attributes:
        kind, change: of the input.
        seed: makes it again.
        result: refused, accepted, or a fault: traceback, wrong message, wrong status, accepted though hostile,
            refused though good, ran code, left the folder, memory, time, crash.
        message: of the error, one line.
        seconds: of reading it.
        memory: how much the resident memory grew at its peak while reading it, in bytes.
    """

    kind: str
    change: str
    seed: int
    result: str
    message: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def is_fault(self) -> bool:
        return self.result not in ("refused", "accepted")
