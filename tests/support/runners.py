"""Contestants without a model: functions that a process of its own can import."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from svitc.bench.worker import Ready, Runner
from svitc.errors import InputError


def ready(seconds: float = 0.0, log: str | None = None, name: str = "") -> Ready:
    def work() -> np.ndarray:
        time.sleep(seconds)
        if log is not None:
            with Path(log).open("a") as file:
                file.write(name)
        return np.zeros((1, 2), np.float32)

    return Ready(work, "none")


def failing(kind: str) -> Ready:
    runs = []

    def work() -> np.ndarray:
        runs.append(1)
        if len(runs) > 4:
            if kind == "exit":
                os._exit(7)
            raise InputError("no more") if kind == "error" else MemoryError
        return np.zeros(1)

    return Ready(work, "none")


def grown() -> Ready:
    held = np.ones(1 << 24, np.uint8)
    return Ready(lambda: held[:1], "none")


def contestant(name: str, make=ready, *arguments: object) -> Runner:
    return Runner(name, make, arguments, ())
