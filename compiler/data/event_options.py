"""How a recording of events becomes frames: what ``--split-by``, ``--sensor`` and ``--pool`` say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from svitc.errors import UsageError

SplitBy = Literal["number", "time"]
Pool = Literal["sum", "mean"]
SPLITS: dict[str, SplitBy] = {"number": "number", "time": "time"}
POOLS: dict[str, Pool] = {"sum": "sum", "mean": "mean"}
MAX_SENSOR_SIDE = 1 << 16  # pixels: AEDAT4, .dat and .raw number pixels with at most 16 bits


@dataclass(frozen=True)
class EventOptions:
    """How events are put into frames, and frames brought to the size of the model's input.

    Attributes:
        split_by: Whether frames hold equal numbers of events or equal lengths of time; None for numbers.
        sensor: (height, width) of the sensor in pixels; None for what the file says, else the model's input.
        pool: Whether the pixels of a block become their sum or their mean, where the sensor is larger than the model's
            input; None to refuse such recordings.
    """

    split_by: SplitBy | None = None
    sensor: tuple[int, int] | None = None
    pool: Pool | None = None

    def check_unused(self, why: str) -> None:
        """Check that no option is set. Raises UsageError, which gives ``why`` as the reason."""
        values = (("--split-by", self.split_by), ("--sensor", self.sensor), ("--pool", self.pool))
        flags = [flag for flag, value in values if value is not None]
        if flags:
            does = "does" if len(flags) == 1 else "do"
            raise UsageError(f"{' and '.join(flags)} {does} not apply: {why}")


def parse_event_options(split_by: str | None, sensor: str | None, pool: str | None) -> EventOptions:
    """Return the options as the command line has them. Raises UsageError where one is malformed."""
    for flag, value, choices in (("--split-by", split_by, SPLITS), ("--pool", pool, POOLS)):
        if value is not None and value not in choices:
            raise UsageError(f"{flag} {value!r} is neither {' nor '.join(choices)}")
    return EventOptions(SPLITS.get(split_by or ""), _parse_sensor(sensor), POOLS.get(pool or ""))


def _parse_sensor(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 10 for side in sides):
        raise UsageError(f"--sensor {text!r} is not a size", hint="Give HxW, height first, such as 180x240.")
    height, width = (int(side) for side in sides)
    if not (0 < height <= MAX_SENSOR_SIDE and 0 < width <= MAX_SENSOR_SIDE):
        raise UsageError(f"--sensor {text}: the sides of a sensor are from 1 to {MAX_SENSOR_SIDE:,} pixels")
    return height, width
