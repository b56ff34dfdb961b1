"""Rewriting of pickles to protocol 2, the only one that PyTorch's safe unpickler reads.

``torch.save(…, pickle_protocol=4)`` writes the same objects with other instructions. They are translated one by one,
without executing any, so that the result is as safe as the safe unpickler that reads it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from typing import BinaryIO

LEGACY_PICKLES = 5  # magic number, version, system, the object, storage keys; then the raw data
INLINE_CHARACTERS = 256  # longer strings are read from the memo, so that a small file stays small
# instructions that the safe unpickler reads as they are
_KEPT = frozenset(
    (
        *("NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK", "BINPERSID", "STOP"),
        *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE"),
        *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
    )
)
_STRINGS = frozenset(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))
_BYTES = frozenset(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"))
_INTEGERS = frozenset(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"))
_PUTS = frozenset(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_CODES = {opcode.name: opcode.code.encode("latin1") for opcode in pickletools.opcodes}


class UnknownInstruction(ValueError):
    """Raised for an instruction that has no counterpart in protocol 2, or an unusual use of one."""


def protocol_of(data: bytes) -> int:
    """Return the protocol that a pickle states; protocols 0 and 1 state none, and count as 1."""
    return data[1] if data[:1] == b"\x80" and len(data) > 1 else 1


def archive_as_protocol_2(file: BinaryIO) -> BinaryIO:
    """Return a copy of a torch.save archive whose ``data.pkl`` has protocol 2.

    Raises:
        UnknownInstruction: the pickle cannot be rewritten.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as rewritten:
        for info in archive.infolist():
            content = archive.read(info)
            if info.filename.rpartition("/")[2] == "data.pkl":
                content = as_protocol_2(io.BytesIO(content))
            rewritten.writestr(info.filename, content)
    copy.seek(0)
    return copy


def legacy_as_protocol_2(file: BinaryIO) -> BinaryIO:
    """Return a copy of a file that torch.save wrote before PyTorch 1.6, with all pickles in protocol 2.

    Raises:
        UnknownInstruction: a pickle cannot be rewritten.
    """
    copy = io.BytesIO()
    for _ in range(LEGACY_PICKLES):
        copy.write(as_protocol_2(file))
    copy.write(file.read())
    copy.seek(0)
    return copy


def as_protocol_2(file: BinaryIO) -> bytes:
    """Read one pickle, and return the same one in protocol 2.

    Raises:
        UnknownInstruction: the pickle cannot be rewritten.
    """
    writer = _Writer()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            writer.add(opcode.name, argument)
    except UnknownInstruction:
        raise
    except (ValueError, IndexError, struct.error) as error:
        raise UnknownInstruction(str(error)) from error
    return b"\x80\x02" + b"".join(writer.chunks)


class _Writer:
    """Writes the instructions of protocol 2.

    A class is named by two strings on the stack in protocol 4, and within the instruction in protocol 2. So short
    strings are always written where they are used, and never put into the memo: the last two can be taken back.

    Attributes:
        chunks: what was written, one entry for each value that was pushed.
        memo: short strings by their index in the memo.
    """

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.memo: dict[int, str] = {}
        self._pushed: list[str | None] = []  # for each chunk, the short string that it pushes
        self._memo_indices: set[int] = set()

    def add(self, name: str, argument: object) -> None:
        """Write one instruction. Raises UnknownInstruction where protocol 2 has none for it."""
        if name in _STRINGS:
            self._string(str(argument))
        elif name in _PUTS:
            self._put(len(self._memo_indices) if name == "MEMOIZE" else int(argument))  # type: ignore[call-overload]
        elif name in _GETS:
            index = int(argument)  # type: ignore[call-overload]
            if index in self.memo:
                self._string(self.memo[index])
            else:
                self._write(b"j" + struct.pack("<I", index))
        elif name in _INTEGERS:
            self._integer(argument)
        elif name in ("FLOAT", "BINFLOAT"):
            self._write(b"G" + struct.pack(">d", argument))
        elif name in _BYTES:
            self._bytes(argument)  # type: ignore[arg-type]
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._global(str(argument).split(" ") if name == "GLOBAL" else self._last_strings())
        elif name in _KEPT:
            self._write(_CODES[name])
        elif name not in ("PROTO", "FRAME"):
            raise UnknownInstruction(f"{name} is not of protocol 2")

    def _write(self, chunk: bytes, string: str | None = None) -> None:
        self.chunks.append(chunk)
        self._pushed.append(string)

    def _string(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        short = len(text) <= INLINE_CHARACTERS
        self._write(b"X" + struct.pack("<I", len(data)) + data, text if short else None)

    def _put(self, index: int) -> None:
        self._memo_indices.add(index)
        self.memo.pop(index, None)
        if self._pushed and self._pushed[-1] is not None:
            self.memo[index] = self._pushed[-1]
        else:
            self._write(b"r" + struct.pack("<I", index))

    def _integer(self, value: object) -> None:
        if isinstance(value, bool):
            self._write(pickle.NEWTRUE if value else pickle.NEWFALSE)
            return
        data = pickle.encode_long(int(value))  # type: ignore[call-overload]
        if len(data) > 255:
            raise UnknownInstruction("an integer of more than 255 bytes")
        self._write(pickle.LONG1 + bytes((len(data),)) + data)

    def _bytes(self, data: bytes) -> None:
        """Write bytes as protocol 2 does: a text, and a call that encodes it."""
        self._global(["_codecs", "encode"])
        self._string(data.decode("latin1"))
        self._string("latin1")
        self._write(pickle.TUPLE2 + pickle.REDUCE)

    def _last_strings(self) -> list[str]:
        names = self._pushed[-2:]
        if len(names) < 2 or None in names:
            raise UnknownInstruction("a class whose name is not written before it")
        del self.chunks[-2:], self._pushed[-2:]
        return [str(name) for name in names]

    def _global(self, names: list[str]) -> None:
        if len(names) != 2 or any("\n" in name for name in names):
            raise UnknownInstruction("a class with an impossible name")
        self._write(b"c" + "\n".join((*names, "")).encode())
