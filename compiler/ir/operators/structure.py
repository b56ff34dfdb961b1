"""Operators that make a value larger: repetition and padding."""

from __future__ import annotations

import torch
from torch import fx

from svitc.ir import axes
from svitc.ir.axes import AxisConflict, Dims
from svitc.ir.graph import input_type
from svitc.ir.operators.slicing import bounded, changed_dim
from svitc.ir.operators.table import Operator, are, is_integer, is_number, is_size, one_of

TILED = "its channels are repeated"
PADDED = "channels are added to it"


def tile(x, repeats):
    return x.repeat(repeats)


def pad_zeros(x, padding):
    return torch.nn.functional.pad(x, padding)


def pad_number(x, padding, number):
    return torch.nn.functional.pad(x, padding, value=number)


def pad_edges(x, padding, mode):
    return torch.nn.functional.pad(x, padding, mode=mode)


def tile_rule(node: fx.Node) -> Dims:
    """Return the type of a value that is repeated along some of its dimensions."""
    x, repeats = input_type(node.args[0]), node.kwargs["repeats"]
    assert isinstance(repeats, (tuple, list))
    if len(repeats) != len(x):
        raise AxisConflict(f"{axes.show(x)} has not {len(repeats)} dimensions")
    return bounded(
        tuple(
            dim if n == 1 else changed_dim(node, [dim], axes.size(dim) * n, TILED)
            for dim, n in zip(x, repeats, strict=True)
        )
    )


def padding_of(x: Dims, padding: object) -> list[tuple[int, int]]:
    """Return how many elements padding adds before and after each dimension.

    Raises:
        AxisConflict: there are more numbers than dimensions.
    """
    assert isinstance(padding, (tuple, list))
    if len(padding) % 2 or len(padding) > 2 * len(x):
        raise AxisConflict(f"padding {axes.show(x)} by {tuple(padding)} is not possible")
    pairs = [(int(a), int(b)) for a, b in zip(padding[::2], padding[1::2], strict=True)]
    return [(0, 0)] * (len(x) - len(pairs)) + pairs[::-1]


def pad_rule(node: fx.Node) -> Dims:
    """Return the type of a padded value; negative numbers cut elements off."""
    x = input_type(node.args[0])
    out = []
    for dim, (before, after) in zip(x, padding_of(x, node.kwargs["padding"]), strict=True):
        n = axes.size(dim)
        if -min(before, 0) - min(after, 0) >= n:
            raise AxisConflict(f"nothing is left of {n} elements padded by {before} and {after}")
        if "mode" in node.kwargs and max(before, after) > (n - 1 if node.kwargs["mode"] == "reflect" else n):
            raise AxisConflict(f"{n} elements cannot be padded by {before} and {after} ({node.kwargs['mode']})")
        out.append(changed_dim(node, [dim], n + before + after, PADDED) if before or after else dim)
    return bounded(tuple(out))


def _moving(function, rule, what: str, tensors: tuple[int, int | None] = (1, 1), **attributes) -> Operator:
    return Operator(
        function, rule, what, attributes, tensors=tensors, fills=False, moves=True, same_bits=True, lipschitz=1.0
    )


_MODES = one_of("reflect", "replicate", "circular")
STRUCTURE = (
    _moving(tile, tile_rule, "repeat, tile", repeats=are(is_size)),
    _moving(pad_zeros, pad_rule, "pad with zeros", padding=are(is_integer)),
    _moving(pad_edges, pad_rule, "pad: reflect, replicate, circular", padding=are(is_integer), mode=_MODES),
    Operator(
        pad_number,
        pad_rule,
        "pad with a number",
        {"padding": are(is_integer), "number": is_number},
        fills=True,
        same_bits=True,
    ),
)
