"""Timing of the stages of a command, with progress reports."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

log = logging.getLogger("svitc")
Progress = Callable[[str, int, int | None], None]  # stage, done, total


@dataclass
class Clock:
    """A clock that measures the stages of a command and reports their progress.

    Attributes:
        progress: called as ``(stage, done, total)``; ``total`` is None where it is not known.
        seconds: stage -> wall time in seconds, summed where a stage runs several times.
    """

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, of: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time the body of a ``with`` statement as the stage ``name``.

        Args:
            of: the number of steps in the stage, where it is known.

        Yields:
            A function to call with the number of steps that are done.
        """
        start = time.perf_counter()

        def step(done: int) -> None:
            if self.progress is not None:
                self.progress(name, done, of)

        step(0)
        yield step
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        log.info("%s: %.2f s", name, self.seconds[name])
