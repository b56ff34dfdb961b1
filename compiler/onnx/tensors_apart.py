"""The structure of an ONNX file without its large tensors, which are most of its bytes and are rarely looked at.

Protobuf copies every tensor where it reads a file, and twice where it writes one. So large tensors are taken out of the
bytes of a file before they are read, and put back behind what protobuf wrote of the rest. In between each has a mark in
its place, which no tensor's shape fits, so that nobody takes it for the values. The bytes are those that protobuf would
write: only lengths and ``raw_data`` change.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from svitc.errors import InternalError

MARK_BYTES = 1021  # a prime; longer tensors are taken out, so that none that stays has the length of a mark
MARK = b"svitc keeps this tensor apart: "
PATH = (7, 5, 9)  # ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class _Piece:
    """A tensor that becomes bytes only when it is written."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.tensor.nbytes


Piece = bytes | memoryview | _Piece


class _Marked:
    """What onnx_ir serializes in place of a tensor: the same, with a mark as its values."""

    def __init__(self, tensor: ir.TensorProtocol, mark: bytes) -> None:
        self.name, self.dtype, self.shape = tensor.name, tensor.dtype, tensor.shape
        self.doc_string, self.metadata_props = tensor.doc_string, tensor.metadata_props
        self._mark = mark

    def tobytes(self) -> bytes:
        """Return the mark."""
        return self._mark


def take_out(model: bytes) -> tuple[bytes, list[Piece]]:
    """Return a file with marks in place of its large tensors, and the tensors, which share the file's memory.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    tensors: list[Piece] = []

    def swap(values: memoryview) -> Piece | None:
        if len(values) < MARK_BYTES:
            return None
        tensors.append(values)
        return _mark(len(tensors) - 1)

    pieces = _rewritten(model, 0, len(model), PATH, swap)
    return model if pieces is None else _joined(pieces), tensors


def put_back(structure: bytes, tensors: Sequence[Piece]) -> bytes:
    """Return a file with tensors in place of their marks; those whose marks are gone are left out."""
    places = {_mark(i): tensor for i, tensor in enumerate(tensors)}

    def swap(values: memoryview) -> Piece | None:
        return places.get(bytes(values)) if len(values) == MARK_BYTES else None

    pieces = _rewritten(structure, 0, len(structure), PATH, swap)
    return structure if pieces is None else _joined(pieces)


def structure_of(model: ir.Model) -> tuple[onnx.ModelProto, list[Piece]]:
    """Return a model as a protobuf message with marks in place of its large tensors, and the tensors."""
    values = [value for value in model.graph.initializers.values() if _is_large(value.const_value)]
    tensors: list[Any] = [value.const_value for value in values]
    try:
        for i, (value, tensor) in enumerate(zip(values, tensors, strict=True)):
            value.const_value = _Marked(tensor, _mark(i))  # type: ignore[assignment]
        return ir.to_proto(model), [_Piece(tensor) for tensor in tensors]
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    """Return whether a tensor is kept apart."""
    return isinstance(tensor, ir.Tensor) and tensor.nbytes >= MARK_BYTES


def _mark(number: int) -> bytes:
    """Return what stands for a tensor."""
    return (MARK + str(number).encode()).ljust(MARK_BYTES)


def _rewritten(
    data: bytes, start: int, end: int, path: tuple[int, ...], swap: Callable[[memoryview], Piece | None]
) -> list[Piece] | None:
    """Return the pieces of a message with other values at a path of field numbers; None where nothing changes.

    Args:
        data: the bytes.
        start: where the message begins.
        end: where it ends.
        path: field numbers, from the message to the values.
        swap: returns what replaces a value, or None.
    """
    view, pieces, done = memoryview(data), list[Piece](), start
    for number, length_at, value, stop in _fields(data, start, end):
        if number != path[0]:
            continue
        if len(path) > 1:
            inner = _rewritten(data, value, stop, path[1:], swap)
        else:
            other = swap(view[value:stop])
            inner = None if other is None else [other]
        if inner is not None:
            pieces += [view[done:length_at], _varint(sum(map(len, inner))), *inner]
            done = stop
    return [*pieces, view[done:end]] if pieces else None


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, place of the length, beginning and end of each field of bytes; others are passed over.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    at = start
    while at < end:
        tag, at = _read(data, at)
        kind, length_at = tag & 7, at
        if kind == _VARINT:
            at = _read(data, at)[1]
        elif kind == _BYTES:
            size, value = _read(data, at)
            at = value + size
            if at <= end:
                yield tag >> 3, length_at, value, at
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("a field is cut off")


def _read(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length, and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    """Return a number of variable length."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _joined(pieces: list[Piece]) -> bytes:
    """Return pieces as one, with no more than one tensor's bytes in memory beside it."""
    total, buffer = sum(map(len, pieces)), io.BytesIO()
    buffer.seek(max(0, total - 1))
    buffer.write(b"\0" * min(1, total))  # memory for all of it, once
    buffer.seek(0)
    for piece in pieces:
        buffer.write(piece.tensor.tobytes() if isinstance(piece, _Piece) else piece)
    if buffer.tell() != total:
        raise InternalError(f"{buffer.tell()} bytes of a file that has {total}")
    return buffer.getvalue()


__all__ = ["Piece", "put_back", "structure_of", "take_out"]
