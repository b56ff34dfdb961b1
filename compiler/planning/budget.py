"""Budgets: what the user asks for, and what a plan costs, to the byte, before anything is written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from svitc.errors import UsageError

UNITS = {
    "": 1,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
HOW = (
    'Give a share of the original ("0.78", "78%"), bytes ("12MB"), parameters ("params=8M", "params=78%") or '
    "measured time"
    ' ("latency=0.6", "latency=60%", "latency=50ms").'
)


@dataclass(frozen=True)
class Budget:
    """The most that may be kept.

    Attributes:
        text: as the user wrote it.
        of: ``bytes`` (weights as stored in the ONNX file), ``parameters``, or ``latency``: what ONNX Runtime
            takes for one image, measured beside the original exported with weights of the same type.
        share: at most this share of the original, or None.
        amount: at most this many bytes, parameters or milliseconds, or None.
    """

    text: str
    of: str
    share: float | None
    amount: float | None

    def limit(self, original: int) -> int:
        """The most bytes or parameters that this budget allows for a model that has ``original``."""
        return int(self.amount if self.amount is not None else np.floor(original * float(self.share or 0)))


def parse_budget(text: str | float) -> Budget:
    """Read a budget.

    Raises:
        UsageError: not a number, zero or less, or a share above 1.
    """
    raw = str(text).strip()
    counted, timed = (raw.lower().startswith(kind) for kind in ("params=", "latency="))
    body = raw.partition("=")[2] if counted or timed else raw
    of = "parameters" if counted else "latency" if timed else "bytes"
    units = MILLISECONDS if timed else UNITS
    found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(%|[a-z]*)", body.lower())
    if not found or (found[2] not in units and found[2] not in ("", "%")):
        raise UsageError(f"budget {raw!r} is not an amount", hint=HOW)
    number, unit = float(found[1]), found[2]
    if number <= 0:
        raise UsageError(f"budget {raw!r} keeps nothing; it must be above 0", hint=HOW)
    if not math.isfinite(number):
        raise UsageError(f"budget {raw!r} is more than any model", hint=HOW)
    if unit == "%" or (unit == "" and number <= 1):
        share = number / 100 if unit == "%" else number
        if share > 1:
            raise UsageError(f"budget {raw!r} is more than the whole model", hint=HOW)
        return Budget(raw, of, share, None)
    if counted and unit.endswith("b"):
        raise UsageError(f"budget {raw!r} counts parameters in bytes", hint=HOW)
    if unit == "" and not (counted and number.is_integer()):
        raise UsageError(f"budget {raw!r} is more than the whole model; a share is at most 1", hint=HOW)
    return Budget(raw, of, None, number * units[unit])
