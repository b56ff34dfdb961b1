"""Numbers that a model takes from its values, such as a firing rate that it keeps in an attribute for a log.

``x.mean().item()`` is the value itself, which the capture follows; nothing is lost where the output does not use it.
``float(…)`` must return a number, though, which nobody knows yet. It is followed only where it becomes an attribute of
a module right away: ``self.rate = float(x.mean())``.
"""

from __future__ import annotations

import dis
from types import FrameType

from torch import fx, nn


class Numbers:
    """The numbers that stand for traced values until they are kept in an attribute."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[float, fx.Proxy]] = {}

    def stand_in(self, value: fx.Proxy) -> float:
        """Return a number of its own for a value; it is not a number that anything could be computed with."""
        number = float("nan")
        self._values[id(number)] = (number, value)
        return number

    def value(self, number: object) -> object:
        """Return the traced value that a number stands for; anything else as it is."""
        return self._values.get(id(number), (None, number))[1]


def is_kept(frame: FrameType) -> bool:
    """Return whether the result of the call that a frame is in becomes an attribute of a module, and nothing else."""
    following = [i for i in dis.get_instructions(frame.f_code) if i.offset > frame.f_lasti]
    if len(following) < 2 or following[0].opname not in ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_DEREF"):
        return False
    return following[1].opname == "STORE_ATTR" and isinstance(frame.f_locals.get(following[0].argval), nn.Module)
