"""Budgets: the limit on size or time that the user sets for the compressed model."""

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
HINT = (
    'Give a share of the original ("0.78", "78%"), bytes ("12MB"), parameters ("params=8M", "params=78%") or '
    "measured time"
    ' ("latency=0.6", "latency=60%", "latency=50ms").'
)


@dataclass(frozen=True)
class Budget:
    """An upper limit on the size or the latency of the compressed model, relative or absolute.

    Attributes:
        text: the budget as the user wrote it.
        of: the quantity: ``bytes`` (weights as stored in the ONNX file), ``parameters``, or ``latency`` (time of ONNX
            Runtime for one image, measured side by side with the original, whose weights have the same type).
        share: the limit as a fraction of the original, in (0, 1]; None where ``amount`` is set.
        amount: the limit in bytes, parameters or milliseconds; None where ``share`` is set.
    """

    text: str
    of: str
    share: float | None
    amount: float | None

    def limit(self, original: int) -> int:
        """Return the limit in bytes or parameters, rounded down.

        Args:
            original: bytes or parameters of the original model.
        """
        return int(self.amount if self.amount is not None else np.floor(original * float(self.share or 0)))


def parse_budget(text: str | float) -> Budget:
    """Parse a budget that the user wrote.

    Args:
        text: for example ``0.78``, ``"78%"``, ``"12MB"``, ``"params=8M"`` or ``"latency=50ms"``. A bare number is a
            share of the original's bytes.

    Raises:
        UsageError: not a number, zero or less, infinite, a share above 1, or a unit of another quantity.
    """
    raw = str(text).strip()
    counted, timed = (raw.lower().startswith(kind) for kind in ("params=", "latency="))
    body = raw.partition("=")[2] if counted or timed else raw
    of = "parameters" if counted else "latency" if timed else "bytes"
    units = MILLISECONDS if timed else UNITS
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(%|[a-z]*)", body.lower())
    if not match or (match[2] not in units and match[2] not in ("", "%")):
        raise UsageError(f"budget {raw!r} is not an amount", hint=HINT)
    number, unit = float(match[1]), match[2]
    if number <= 0:
        raise UsageError(f"budget {raw!r} keeps nothing; it must be above 0", hint=HINT)
    if not math.isfinite(number):
        raise UsageError(f"budget {raw!r} is larger than any model", hint=HINT)
    if unit == "%" or (unit == "" and number <= 1):
        share = number / 100 if unit == "%" else number
        if share > 1:
            raise UsageError(f"budget {raw!r} is more than the whole model", hint=HINT)
        return Budget(raw, of, share, None)
    if counted and unit.endswith("b"):
        raise UsageError(f"budget {raw!r} counts parameters in bytes", hint=HINT)
    if unit == "" and not (counted and number.is_integer()):
        raise UsageError(f"budget {raw!r} is more than the whole model; a share is at most 1", hint=HINT)
    return Budget(raw, of, None, number * units[unit])
