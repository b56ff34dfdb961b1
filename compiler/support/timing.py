"""Seconds by stage, and the progress of the stage that runs."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

log = logging.getLogger("svitc")
Progress = Callable[[str, int, int | None], None]  # stage, done, of


@dataclass
class Clock:
    """Seconds by stage, and the progress of the stage that runs."""

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, of: int | None = None) -> Iterator[Callable[[int], None]]:
        start = time.perf_counter()

        def step(done: int) -> None:
            if self.progress is not None:
                self.progress(name, done, of)

        step(0)
        yield step
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        log.info("%s: %.2f s", name, self.seconds[name])
