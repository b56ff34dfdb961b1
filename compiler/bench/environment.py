"""What measured times depend on besides the machine and the packages: other processes."""

from __future__ import annotations

import time
from collections.abc import Mapping

from svitc.bench.worker import Failed, Worker, own_seconds
from svitc.support.hardware import busy_seconds


class BackgroundLoad:
    """Load from other processes, measured from the construction of this object on."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = list(workers.values())
        self.start = self._now()

    def _now(self) -> tuple[float, float | None, float]:
        try:
            return time.perf_counter(), busy_seconds(), own_seconds(self.workers)
        except Failed:  # a worker has ended, so that its time is not known
            return 0.0, None, 0.0

    def processors(self) -> float | None:
        """Return the average number of processors that other processes kept busy; None where it is not known."""
        end = self._now()
        if end[1] is None or self.start[1] is None:
            return None
        return round(max(0.0, end[1] - self.start[1] - (end[2] - self.start[2])) / (end[0] - self.start[0]), 2)
