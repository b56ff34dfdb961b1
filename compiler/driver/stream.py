"""A streaming file that is run frame by frame from Python: ``svitc.Stream("out/")`` (docs/streaming.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from svitc.driver.device_stream import Stream as FileStream
from svitc.errors import InputError, RuntimeFailure, UsageError
from svitc.onnx.model_info import read_proto
from svitc.onnx.states import Part, states_of
from svitc.onnx.static_batch import static_batch
from svitc.runtimes.base import reason_of

FLOAT_ORDER = "[N, C, H, W]: streams, channels, height, width"


class Stream:
    """A network that keeps its states from one frame to the next, in ONNX Runtime.

    Args:
        path: an output folder, or the streaming file in one.
        batch: number of streams that run side by side; None for the file's own number, or 1 where it takes any.

    Attributes:
        frame_shape: shape of a frame, ``[N, C, H, W]``; of bytes (``--raw-input``) ``[N, H, W, C]``.
        outputs: all outputs of the last step, by name.

    Raises:
        InputError: there is no such file, or it is not a streaming one.
        UsageError: the file takes another number of streams.
    """

    def __init__(self, path: Path | str, batch: int | None = None) -> None:
        file = Path(path) / "model.onnx" if Path(path).is_dir() else Path(path)
        proto = read_proto(file)
        states = states_of(proto)
        if not states:
            raise InputError(f"{file} keeps no states", hint="Compile with --streaming.")
        own = static_batch(proto)
        if batch is not None and (batch < 1 or batch != (own or batch)):
            takes = "at least one" if own is None else f"exactly {own}"
            raise UsageError(f"{file} takes {takes} at once, not {batch}", hint="--static-batch says how many.")
        try:
            self._stream = FileStream(file, batch or own or 1)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise RuntimeFailure(f"ONNX Runtime cannot load {file}: {reason_of(error)}") from error
        self.frame_shape: tuple[int, ...] = self._stream.shape
        self.outputs: dict[str, np.ndarray] = {}
        after = {state.output for state in states}
        self._names = [output.name for output in proto.graph.output if output.name not in after]
        self._packed = states[0].input if states[0].parts else None
        self._parts = states[0].parts or tuple(Part(s.input, s.shape, 0, s.initial) for s in states)
        streams = self.frame_shape[0]
        self._shapes = {p.name: (streams, *(int(size) for size in p.shape[1:])) for p in self._parts}

    def step(self, frame: ArrayLike) -> np.ndarray:
        """Run one time step, and return the class scores so far, ``[N, classes]``.

        With ``--per-step`` these are the scores of this step; of a network with several outputs, the first.

        Args:
            frame: one frame of each stream, ``[N, C, H, W]``: pixels as floats, normalized as the metadata say, or
                counts of events. Of a file that takes bytes, ``[N, H, W, C]`` of uint8.

        Raises:
            InputError: the frame has another size, holds NaN, or has pixels of another type than the file takes.
        """
        value = self._bytes(frame) if self._takes_bytes else _numbers(frame, "the frame")
        if value.shape != self.frame_shape:
            order = "[N, H, W, C]: streams, height, width, channels" if self._takes_bytes else FLOAT_ORDER
            hint = f"One frame is {order}."
            if value.ndim and value.shape[1:] == self.frame_shape[1:]:
                hint = f"This is for {self.frame_shape[0]} side by side: Stream(path, batch=N), or --static-batch N."
            raise InputError(f"the frame is {list(value.shape)}, and {list(self.frame_shape)} is expected", hint=hint)
        meta = self._stream.meta
        if meta.get("image.range") and not self._takes_bytes and np.asarray(frame).dtype.kind != "f":
            mean, std = meta["image.mean"], meta["image.std"]
            raise InputError(
                f"the frame is {np.asarray(frame).dtype}, and normalized pixels are floats",
                hint=f"Of pixels from 0 to 255: (frame / 255 - mean) / std, with mean {mean} and std {std} by channel.",
            )
        if np.isnan(value).any():
            raise InputError("the frame holds NaN", hint="The states are as they were before it: leave it out.")
        scores: np.ndarray = self._stream(value)
        self.outputs = dict(zip(self._names, self._stream.outputs, strict=True))
        return scores

    @property
    def _takes_bytes(self) -> bool:
        """Whether frames are bytes, which the file normalizes itself."""
        return bool(self._stream.meta.get("image.dtype") == "uint8")

    def _bytes(self, frame: ArrayLike) -> np.ndarray:
        """Return a frame of bytes; raise ``InputError`` for one of another type, which would be another picture."""
        value = np.asarray(frame)
        if value.dtype != np.uint8:
            raise InputError(
                f"the frame is {value.dtype}, and the file takes uint8",
                hint="It was compiled with --raw-input: give pixels as they are, from 0 to 255, not normalized.",
            )
        return value

    def reset(self) -> None:
        """Go back to before the first step."""
        self._stream.resume(self._stream.start)

    def states(self) -> dict[str, np.ndarray]:
        """Return copies of all states, by name; those in a packed state one by one, under the names they have else."""
        values = {name: np.array(value.numpy()) for name, value in self._stream.states.items()}
        if self._packed is None:
            return values
        whole, shapes = values[self._packed], self._shapes
        return {p.name: whole[:, p.offset : p.offset + p.size].reshape(shapes[p.name]) for p in self._parts}

    def resume(self, states: Mapping[str, ArrayLike]) -> None:
        """Go on from states that ``states`` returned, also in another process, or from a file with another packing.

        Args:
            states: name -> state, in any order.

        Raises:
            InputError: the states are not those of this network, or a value is NaN; nothing changes then.
        """
        if not isinstance(states, Mapping):
            raise InputError(
                f"the states are a {type(states).__name__} without names, in which another order would go unseen",
                hint="Give them by name, as states() returns them.",
            )
        expected = self._shapes
        if strange := [*(states.keys() - expected), *(expected.keys() - states)]:
            name = min(strange, key=str)
            words = f"float32 {list(expected[name])} is missing" if name in expected else "is no state of this network"
            raise InputError(
                f"{name} {words}: {len(states)} states were given, {len(expected)} are expected",
                hint=f"In its order: {', '.join(expected)}.",
            )
        values = {name: _state(states[name], name, shape) for name, shape in expected.items()}
        if self._packed is not None:
            flat = [value.reshape(len(value), -1) for value in values.values()]
            values = {self._packed: np.concatenate(flat, axis=1)}
        self._stream.resume(values)


def _numbers(value: ArrayLike, name: str) -> np.ndarray:
    """Return what is given as an array of float32; raise ``InputError`` where it does not consist of real numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"{name} is no array: {reason_of(error)}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} is an array of {array.dtype}, not of numbers")
    return array.astype(np.float32, copy=False)


def _state(value: ArrayLike, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a state as an array; raise ``InputError`` where it has another shape, or holds NaN."""
    array = _numbers(value, name)
    if array.shape != shape:
        streams = array.shape[1:] == shape[1:]
        raise InputError(
            f"{name} is {list(array.shape)}, and {list(shape)} is expected",
            hint=f"Stream(path, batch={len(array)}) runs as many streams." if streams else "Is it of another network?",
        )
    if np.isnan(array).any():
        raise InputError(f"{name} holds NaN", hint="reset() starts again from the first step.")
    return array


__all__ = ["Stream"]
