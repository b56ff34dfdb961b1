"""Read sizes off the names and shapes of a state dict; what both SpikingJelly's and published families need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# what wrappers put before every name: nn.DataParallel and its kin, torch.compile, Lightning modules
PREFIXES = ("module.", "_orig_mod.", "model.")
Shapes = Mapping[str, tuple[int, ...]]


def strip_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the prefixes that wrappers put before all of its names."""
    result = dict(state)
    while prefix := next((p for p in PREFIXES if result and all(key.startswith(p) for key in result)), None):
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def depth(shapes: Shapes, prefix: str) -> int:
    """Count the blocks ``prefix.0``, ``prefix.1``, …"""
    indices = [int(m[1]) for m in (re.match(rf"{prefix}\.(\d+)\.", key) for key in shapes) if m]
    return max(indices, default=-1) + 1


def ratio(pairs: list[tuple[int, int]]) -> float:
    """Return the roundest ``r`` with ``int(width * r) == hidden`` for all (width, hidden).

    Raises:
        KeyError: there is none.
    """
    for digits in range(1, 17):
        for width, hidden in pairs:
            # rounding the middle of the interval, too: its lower end may round out of it
            for value in (round(hidden / width, digits), round((hidden + 0.5) / width, digits)):
                if all(int(w * value) == h for w, h in pairs):
                    return value
    raise KeyError("mlp_ratio")


def divisors(*widths: int) -> Iterator[int]:
    """Yield the numbers that divide every width, smallest first."""
    return (n for n in range(1, min(widths) + 1) if all(width % n == 0 for width in widths))
