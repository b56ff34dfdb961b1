"""The reporter: tells the user about stages, progress within them, and decisions with their reasons."""

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
    """Collects times and decisions of a command, and passes them on to its listeners.

    Args:
        on_progress: called as ``(stage, done, total)``; ``total`` is None where it is not known.
        on_decision: called with each sentence about a decision, once.

    Attributes:
        seconds: stage -> wall time in seconds, rounded to milliseconds, without that of stages within it.
        decisions: sentences about decisions, in order.
        nested: for each stage that runs, from the outermost on, the seconds of the stages within it so far.
    """

    on_progress: Progress | None = None
    on_decision: Callable[[str], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    nested: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a stage.

        Args:
            name: name of the stage.
            total: number of items, or None where it is not known.

        Yields:
            A function to call with the number of items that are done.
        """
        start = time.perf_counter()
        self.nested.append(0.0)

        def step(done: int) -> None:
            self.progress(name, done, total)

        step(0)
        try:
            yield step
        finally:
            elapsed, inner = time.perf_counter() - start, self.nested.pop()
            if self.nested:
                self.nested[-1] += elapsed
        self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed - inner, 3)
        log.info("%s: %.2f s", name, self.seconds[name])

    def progress(self, stage: str, done: int, total: int | None = None) -> None:
        """Report the progress of a stage."""
        if self.on_progress is not None:
            self.on_progress(stage, done, total)

    def decide(self, sentence: str) -> None:
        """Record a decision; repeated sentences, which occur where a plan is made again, are left out."""
        if sentence in self.decisions:
            return
        self.decisions.append(sentence)
        log.info("%s", sentence)
        if self.on_decision is not None:
            self.on_decision(sentence)

    def for_budget(self) -> Reporter:
        """Return a reporter for one of several budgets, with separate decisions but the same listeners and times."""
        return Reporter(self.on_progress, self.on_decision, self.seconds, nested=self.nested)
