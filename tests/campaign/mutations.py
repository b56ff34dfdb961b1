"""Changes of bytes and of JSON by seed, from which the hostile files of all kinds are made."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

DEEP = 100_000  # levels: far beyond the recursion limit
ODD_NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x01\0\0\0")
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "../../outside/secret",
    "/etc/passwd",
    "__import__('campaign_canary')",
    "\0",
    "\ud800",
    "x" * 100_000,
    [],
    {},
    [[]],
    [None],
    [-1],
    [2**62, 2**62],
    {"a": 1},
)


def flipped_bits(rng: random.Random, data: bytes) -> bytes:
    """The bytes with up to eight bits flipped."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_edges(rng: random.Random, data: bytes) -> bytes:
    """The bytes with bits flipped near their beginning or end, where formats keep their structure."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(600, len(changed)))
        changed[place if rng.random() < 0.5 else -1 - place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(rng: random.Random, data: bytes) -> bytes:
    """A beginning of the bytes."""
    return data[: rng.randrange(min(1, len(data) - 1), len(data))]


def without_start(rng: random.Random, data: bytes) -> bytes:
    """An end of the bytes."""
    return data[rng.randrange(min(1, len(data) - 1), len(data)) :]


def extended(rng: random.Random, data: bytes) -> bytes:
    """The bytes with others after them, or with a part of them twice."""
    if rng.random() < 0.5:
        return data + rng.randbytes(rng.randint(1, 5000))
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:end] + data[start:]


def zeroed(rng: random.Random, data: bytes) -> bytes:
    """The bytes with zeros in a range, as after a crash of the file system."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + bytes(end - start) + data[end:]


def odd_lengths(rng: random.Random, data: bytes) -> bytes:
    """The bytes with odd 32-bit numbers anywhere, as where a length is a lie."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(max(1, len(changed) - 4))
        changed[place : place + 4] = rng.choice(ODD_NUMBERS)
    return bytes(changed)


def random_bytes(rng: random.Random, data: bytes) -> bytes:
    """Random bytes, after the first few of the file."""
    kept = rng.choice((0, 2, 4, 8, 64))
    return data[:kept] + rng.randbytes(rng.randint(0, 2000))


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    change.__name__.replace("_", " "): change
    for change in (
        flipped_bits,
        flipped_edges,
        truncated,
        without_start,
        extended,
        zeroed,
        odd_lengths,
        random_bytes,
    )
}


def changed_json(rng: random.Random, content: Any) -> Any:
    """A copy of JSON content with one to three values replaced, removed, repeated or moved."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, 3)):
        places = _places(content)
        if not places:
            break
        parent, key = rng.choice(places)
        other, source = rng.choice(places)
        way = rng.randrange(6)
        if way == 0 and isinstance(parent, dict):
            del parent[key]
        elif way == 1 and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif way == 2 and isinstance(parent, dict):
            parent[str(rng.choice(ODD_VALUES))[:40]] = parent.pop(key)
        elif way == 3:
            parent[key] = json.loads(json.dumps(other[source]))
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))  # which a later change may fill
    return content


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Each place in nested lists and dictionaries, as its container and its key."""
    places, waiting = [], [content]
    while waiting:
        value = waiting.pop()
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [(value, key) for key in keys]
        waiting += [value[key] for key in keys]
    return places


def json_text(rng: random.Random, content: Any) -> tuple[str, bytes]:
    """A name and a text of JSON content that is changed as a structure or as text."""
    way = rng.randrange(10)
    if way == 0:
        return "deep", b"[" * DEEP + b"]" * DEEP
    if way == 1:
        data = json.dumps(content).encode()
        place = data.find(b":") + 1
        return "long number", data[:place] + b"1" * 5000 + b"," + data[place:]
    if way == 2:
        value = rng.choice(ODD_VALUES)
        return "another value", json.dumps(value).encode()
    if way == 3:
        name = rng.choice(list(BYTES))
        return name, BYTES[name](rng, json.dumps(content).encode())
    if way == 4:
        return "another encoding", json.dumps(content).encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    return "changed values", json.dumps(changed_json(rng, content)).encode()


def words_of(change: str, general: str) -> str:
    """Return the expression that a message on a change of JSON matches: what is wrong, where one thing is.

    Args:
        change: its name, of ``json_text``.
        general: for changes that may be found in several ways.
    """
    return {
        "deep": r"nested too deeply|recursion depth",
        "long number": r"integer string conversion",
        "another encoding": r"codec can't decode|BOM|Expecting value|is not JSON|does not read as|no svitc plan",
    }.get(change, general)
