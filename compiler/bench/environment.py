"""The machine and versions that a benchmark ran with, and how busy the machine was with other work."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from svitc.bench.worker import Failed, Worker, own_seconds
from svitc.support.hardware import busy_seconds, processor

PACKAGES = ("svitc", "torch", "spikingjelly", "onnx", "onnxruntime", "onnxscript", "openvino", "numpy")


class BackgroundLoad:
    """How many processors are busy with what is none of ours, from now on."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = list(workers.values())
        self.start = self._now()

    def _now(self) -> tuple[float, float | None, float]:
        try:
            return time.perf_counter(), busy_seconds(), own_seconds(self.workers)
        except Failed:  # one was ended meanwhile, and its time is not known
            return 0.0, None, 0.0

    def processors(self) -> float | None:
        """On average; None where that is not known."""
        end = self._now()
        if end[1] is None or self.start[1] is None:
            return None
        return round(max(0.0, end[1] - self.start[1] - (end[2] - self.start[2])) / (end[0] - self.start[0]), 2)


def environment() -> dict[str, Any]:
    """What the times depend on."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions,
    }
