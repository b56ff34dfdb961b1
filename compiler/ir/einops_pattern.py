"""Parse einops patterns, and bind their letters to the axes of a type."""

from __future__ import annotations

import re
from typing import Any

from svitc.ir import axes
from svitc.ir.axes import AxisConflict, Dim, Dims

TOKEN = re.compile(r"\(|\)|[A-Za-z_]\w*|1")


def parse_side(side: str) -> list[list[str]]:
    """One side of an einops pattern as letters for each dimension; ``1`` and ``()`` are empty."""
    dims: list[list[str]] = []
    group: list[str] | None = None
    for token in TOKEN.findall(side):
        if token == "(":
            group = []
        elif token == ")":
            assert group is not None
            dims.append(group)
            group = None
        elif group is not None:
            group += [] if token == "1" else [token]
        else:
            dims.append([] if token == "1" else [token])
    return dims


def parse_pattern(pattern: str) -> tuple[list[list[str]], list[list[str]]]:
    left, right = pattern.split("->")
    return parse_side(left), parse_side(right)


def bind_letters(x: Dims, pattern: str, sizes: Any) -> dict[str, Dim]:
    """What each letter of a pattern's left side stands for, splitting axes of ``x`` as the sizes say."""
    left, _ = parse_pattern(pattern)
    if len(left) != len(x):
        raise AxisConflict(f"the pattern {pattern!r} does not fit {axes.show(x)}")
    bound: dict[str, Dim] = {}
    for letters, dim in zip(left, x, strict=True):
        total, known = axes.size(dim), 1
        for name in letters:
            known *= sizes.get(name, 1)
        free = [name for name in letters if name not in sizes]
        if len(free) > 1 or (total % known if free else total != known):
            raise AxisConflict(f"the pattern {pattern!r} with {dict(sizes)} does not fit {axes.show(x)}")
        stream = list(reversed(axes.resolve(dim)))
        for name in letters:
            last = name is letters[-1]
            wanted = sizes.get(name, total // known)
            bound[name] = tuple(reversed(stream)) if last else axes.take(stream, wanted, (name, letters[-1]))
    return {name: axes.resolve(dim) for name, dim in bound.items()}
