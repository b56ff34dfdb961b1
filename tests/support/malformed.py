"""Files that are changed in one place, and refused."""

from __future__ import annotations

import json

import pytest

from svitc.errors import InputError
from svitc.serialization.writer import load_program


def changed(data: bytes, change, header=None) -> bytes:
    """The file with its program's JSON, or its header, changed."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    content = json.loads(head["__metadata__"]["program"])
    if change is not None:
        change(content)
        head["__metadata__"]["program"] = json.dumps(content)
    if header is not None:
        header(head)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def refuse(data: bytes, folder, match: str) -> None:
    path = folder / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=match) as caught:
        load_program(path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint or "cannot read" in caught.value.message


def setting(find, key, value):
    return lambda content: find(content).__setitem__(key, value)


def top(content):
    return content


def first(op, target=None):
    return lambda content: next(n for n in content["nodes"] if n["op"] == op and target in (None, n["target"]))
