"""The source of what a model returns: its outputs in tuples, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Sequence

from svitc.support.types import JsonDict, JsonMapping

LONG_CHARS = 84  # longest expression that is written on one line


def restored_source(info: JsonMapping, texts: Sequence[str]) -> str:
    """Return the expression of what a model returns.

    Args:
        info: the program's, whose ``outputs`` say what it returns (ir/outputs.py).
        texts: expressions of the outputs, in order.
    """
    described = info.get("outputs")
    return texts[0] if described is None else _source(described["structure"], texts)


def _source(structure: JsonDict, texts: Sequence[str]) -> str:
    kind, inner = next(iter(structure.items()))
    if kind == "output":
        return texts[inner]
    if kind == "value":
        return repr(inner)
    if kind == "dict":
        items = [f"{key!r}: {_source(item, texts)}" for key, item in inner]
        return _enclosed("{", items, "}")
    items = [_source(item, texts) for item in inner]
    return _enclosed("[", items, "]") if kind == "list" else _enclosed("(", items, ",)" if len(items) == 1 else ")")


def _enclosed(opening: str, items: Sequence[str], closing: str) -> str:
    """Return entries between brackets, each on a line of its own where they are long."""
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) <= LONG_CHARS and "\n" not in line:
        return line
    lines = [f"    {item}".replace("\n", "\n    ") + "," for item in items]
    return "\n".join([opening, *lines, closing.strip(",")])
