"""One way to tell the user what goes on: stages with their seconds, progress within them, decisions and why."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

log = logging.getLogger("svitc")
Progress = Callable[[str, int, int | None], None]  # stage, done, total


@dataclass
class Reporter:
    """Collects what a command does, and passes it on to whoever listens.

    Args:
        on_progress: called as ``(stage, done, total)``; ``total`` is None where it is not known.
        on_decision: called with each sentence on what was decided, once.

    Attributes:
        seconds: wall time of the stages so far, in seconds, rounded to milliseconds.
        decisions: the sentences so far, in order.
    """

    on_progress: Progress | None = None
    on_decision: Callable[[str], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a stage; what the ``with`` statement yields is called with how much of ``total`` is done."""
        start = time.perf_counter()

        def step(done: int) -> None:
            self.progress(name, done, total)

        step(0)
        yield step
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        log.info("%s: %.2f s", name, self.seconds[name])

    def progress(self, stage: str, done: int, total: int | None = None) -> None:
        """Say how far a stage is."""
        if self.on_progress is not None:
            self.on_progress(stage, done, total)

    def decide(self, sentence: str) -> None:
        """Record a decision; a plan that is made again says the same again, which is left out."""
        if sentence in self.decisions:
            return
        self.decisions.append(sentence)
        log.info("%s", sentence)
        if self.on_decision is not None:
            self.on_decision(sentence)

    def for_budget(self) -> Reporter:
        """Return a reporter with decisions of its own, for one budget of a front; listeners and times are shared."""
        return Reporter(self.on_progress, self.on_decision, self.seconds)
