"""Events and the frames that they are counted into, with the conventions of SpikingJelly 2.0.

Channel 0 of a frame counts events of negative polarity, channel 1 those of positive polarity.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from svitc.data.event_options import EventOptions, SplitBy
from svitc.errors import InputError

POLARITIES = 2


class DamagedRecording(Exception):
    """A recording whose content cannot be used; another one of the same data set may be fine."""


class Events(NamedTuple):
    """Events in the order of time.

    Attributes:
        t: Times, int64 ``[events]``, or float64 where they have fractions.
        x: Columns, int64 ``[events]``.
        y: Rows, int64 ``[events]``.
        p: Polarities, bool ``[events]``.
        sensor: (height, width) that the file tells, or None.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    sensor: tuple[int, int] | None = None


def checked_events(fields: dict[str, np.ndarray], sensor: tuple[int, int] | None = None) -> Events:
    """Return the events of four arrays.

    Args:
        fields: ``t``, ``x``, ``y`` and ``p``, each ``[events]``.
        sensor: (height, width) that the file tells, or None.

    Raises:
        DamagedRecording: The arrays do not hold events in the order of time.
    """
    shapes = {key: list(values.shape) for key, values in fields.items()}
    if any(values.ndim != 1 or len(values) != len(fields["t"]) for values in fields.values()):
        raise DamagedRecording(f"t, x, y and p have shapes {', '.join(str(shapes[key]) for key in 'txyp')}")
    if not len(fields["t"]):
        raise DamagedRecording("it holds no events")
    x, y, t = (_whole(key, fields[key]) for key in "xyt")
    for key, values in (("x", x), ("y", y)):
        if values.dtype.kind == "f":
            raise DamagedRecording(f"{key} has fractions; pixels are whole numbers")
    fall = np.flatnonzero(t[1:] < t[:-1])
    if len(fall):
        at = int(fall[0]) + 1
        raise DamagedRecording(f"its times are not sorted: event {at} is at {t[at]}, after one at {t[at - 1]}")
    p = fields["p"]
    if p.dtype.kind != "b":
        p = _whole("p", p)
        values = np.unique(p).tolist()
        if not (set(values) <= {0, 1} or set(values) <= {-1, 1}):
            text = ", ".join(f"{value:g}" for value in values[:5]) + (", …" if len(values) > 5 else "")
            raise DamagedRecording(f"its polarities are {text}; they must be 0 and 1, or -1 and 1")
        p = p > 0
    return Events(t, x, y, p, sensor)


def _whole(key: str, values: np.ndarray) -> np.ndarray:
    """Return numbers as int64 where that changes none, else as float64.

    Raises:
        DamagedRecording: They are no numbers, not finite, or too large.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 8 and values.max() > np.iinfo(np.int64).max:
        raise DamagedRecording(f"{key} goes up to {values.max()}, beyond 63 bits")
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise DamagedRecording(f"{key} is {values.dtype}, not numbers")
    if not np.isfinite(values).all():
        raise DamagedRecording(f"{key} holds NaN or infinity")
    real = values.astype(np.float64)
    exact = (np.abs(real) < 2.0**53).all() and (real == np.floor(real)).all()
    return real.astype(np.int64) if exact else real


def frames_of(name: str, events: Events, shape: tuple[int, ...], options: EventOptions) -> np.ndarray:
    """Count events into frames of the model's size.

    Args:
        name: What messages call the recording.
        events: The events.
        shape: The model's input, ``(T, 2, H, W)``.
        options: How to split and to pool.

    Returns:
        float32 ``[T, 2, H, W]``.

    Raises:
        InputError: The sensor has another size than the options say or the model takes.
        DamagedRecording: Times or pixels do not allow it.
    """
    height, width = shape[-2:]
    sensor = _sensor(name, events, (height, width), options)
    rows, columns = _block(name, sensor, (height, width), options)
    _check_pixels(name, events, sensor, options)
    edges = split(events.t, shape[0], options.split_by or "number")
    frame = np.repeat(np.arange(shape[0]), np.diff(edges))
    position = ((frame * POLARITIES + events.p) * height + events.y // rows) * width + events.x // columns
    counts = np.bincount(position, minlength=int(np.prod(shape))).reshape(shape).astype(np.float32)
    return counts / np.float32(rows * columns) if options.pool == "mean" else counts


def split(t: np.ndarray, frames: int, split_by: SplitBy) -> np.ndarray:
    """Return where each frame's events begin, and where the last one's end, int64 ``[frames + 1]``.

    The same as ``spikingjelly.datasets.utils.cal_fixed_frames_number_segment_index``: the last frame takes what a
    division leaves over. A frame without events, at which SpikingJelly fails, is empty.

    Args:
        t: Times in ascending order, ``[events]``.
        frames: Number of frames.
        split_by: Whether frames hold equal numbers of events or equal lengths of time.

    Raises:
        DamagedRecording: The times cannot be divided.
    """
    edges = np.zeros(frames + 1, np.int64)
    if split_by == "number":
        edges[:-1] = np.arange(frames) * (len(t) // frames)
    elif t.dtype.kind == "f":
        raise DamagedRecording("its times have fractions; --split-by time takes whole numbers, such as microseconds")
    else:
        first, last = int(t[0]), int(t[-1])
        length = (last - first) // frames
        if not length:
            raise DamagedRecording(f"its times go from {first} to {last}, too short for {frames} frames")
        edges[:-1] = np.searchsorted(t, [first + length * frame for frame in range(frames)])
    edges[-1] = len(t)
    return edges


def _sensor(name: str, events: Events, size: tuple[int, int], options: EventOptions) -> tuple[int, int]:
    """Return (height, width) of the sensor. Raises InputError where the file's and the option's differ."""
    if events.sensor and options.sensor and events.sensor != options.sensor:
        raise InputError(
            f"{name} was recorded by a sensor of {_text(events.sensor)}, not of --sensor {_text(options.sensor)}",
            hint="Leave out --sensor: this file tells its size. Sizes are HxW, height first.",
        )
    return events.sensor or options.sensor or size


def _block(name: str, sensor: tuple[int, int], size: tuple[int, int], options: EventOptions) -> tuple[int, int]:
    """Return height and width of the block of the sensor's pixels that becomes one pixel.

    Raises:
        InputError: The model's size does not divide the sensor's, or nothing says how to pool.
    """
    if sensor == size:
        return 1, 1
    if sensor[0] % size[0] or sensor[1] % size[1]:
        raise InputError(
            f"{name} is of a sensor of {_text(sensor)}, but the model takes {_text(size)}, which does not divide it",
            hint="Crop or scale the events yourself: give an .npz of frames, or a loader of your own.",
        )
    if options.pool is None:
        raise InputError(
            f"{name} is of a sensor of {_text(sensor)}, but the model takes {_text(size)}",
            hint="Give --pool sum or --pool mean, as the model was trained, or frames of the model's size.",
        )
    return sensor[0] // size[0], sensor[1] // size[1]


def _check_pixels(name: str, events: Events, sensor: tuple[int, int], options: EventOptions) -> None:
    """Check that all pixels lie on the sensor.

    Raises:
        DamagedRecording: One lies outside.
        InputError: One lies outside the model's input, and nothing tells the sensor's size.
    """
    for key, values, side in (("x", events.x, sensor[1]), ("y", events.y, sensor[0])):
        low, high = int(values.min()), int(values.max())
        if low < 0:
            raise DamagedRecording(f"its {key} go from {low}, but pixels count from 0")
        if high < side:
            continue
        if events.sensor or options.sensor:
            raise DamagedRecording(f"its {key} go up to {high}, but the sensor is of {_text(sensor)}")
        raise InputError(
            f"{name}: its {key} go up to {high}, but the model takes frames of {_text(sensor)}",
            hint="If the sensor is larger, give its size, --sensor HxW, and --pool sum or --pool mean.",
        )


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
