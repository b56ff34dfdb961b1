"""Parse einops patterns, and bind their letters to the axes of a type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from svitc.ir import axes
from svitc.ir.axes import AxisConflict, Dim, Dims

TOKEN = re.compile(r"\(|\)|[A-Za-z_]\w*|1")


def parse_side(side: str) -> list[list[str]]:
    """Return the letters of each dimension on one side of an einops pattern; ``1`` and ``()`` have no letters."""
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
    """Return the letters of each dimension on the left and on the right side of an einops pattern."""
    left, right = pattern.split("->")
    return parse_side(left), parse_side(right)


def bind_letters(x: Dims, pattern: str, sizes: Mapping[str, object]) -> dict[str, Dim]:
    """Return the axes that each letter on the left side of a pattern stands for, splitting axes of ``x`` if needed.

    Args:
        x: type of the input.
        pattern: ``"b (h d) n -> b h n d"``.
        sizes: letter -> its size, an int, as in the keyword arguments of ``einops.rearrange``.

    Raises:
        AxisConflict: the pattern or the sizes do not fit ``x``.
    """
    sizes = cast("Mapping[str, int]", sizes)
    left, _ = parse_pattern(pattern)
    if len(left) != len(x):
        raise AxisConflict(f"the pattern {pattern!r} does not fit {axes.show(x)}")
    bound: dict[str, Dim] = {}
    for letters, dim in zip(left, x, strict=True):
        total, product = axes.size(dim), 1
        for name in letters:
            product *= sizes.get(name, 1)
        free = [name for name in letters if name not in sizes]
        if len(free) > 1 or (total % product if free else total != product):
            raise AxisConflict(f"the pattern {pattern!r} with {dict(sizes)} does not fit {axes.show(x)}")
        stream = list(reversed(axes.resolve(dim)))
        for name in letters:
            last = name is letters[-1]
            size = sizes.get(name, total // product)
            bound[name] = tuple(reversed(stream)) if last else axes.take(stream, size, (name, letters[-1]))
    return {name: axes.resolve(dim) for name, dim in bound.items()}
