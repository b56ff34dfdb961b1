"""Arguments of raw calls, whether a model passes them by position or by keyword."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from svitc.frontends.capture.graph_builder import GraphBuilder
from svitc.ir.graph import input_type

_SPELL_OUT = "Leave the argument out, or write what it does as an operation of its own."
HARMLESS = ("input", "self", "inplace")  # arguments that do not change what a call computes


def call(b: GraphBuilder, node: fx.Node, *names: str, **defaults: object) -> list[Any]:
    """Return the arguments of a call in the order of ``names``, after its tensor, whether passed by keyword or not.

    Raises:
        UnsupportedError: there is an argument that none of them names, so that the call computes something else.
    """
    args, kwargs = b.arg(node.args), b.arg(node.kwargs)
    positional = list(args[1:])
    values = [args[0] if args else kwargs.get("input")]
    for name in names:
        if positional:
            values.append(positional.pop(0))
        elif name in kwargs:
            values.append(kwargs[name])
        else:
            values.append(defaults.get(name))
    unknown = [f"{k}={v!r}" for k, v in kwargs.items() if k not in (*names, *HARMLESS) and v is not None]
    if positional or unknown:
        name = getattr(node.target, "__name__", str(node.target))
        raise b.refuse(f"{name} with {', '.join([*map(repr, positional), *unknown])} is not supported", hint=_SPELL_OUT)
    return values


def variadic(b: GraphBuilder, node: fx.Node, name: str) -> tuple[fx.Node, tuple[int, ...]]:
    """Return the tensor and numbers of ``x.f(1, 2)``, ``x.f((1, 2))`` or ``f(x, name=(1, 2))``."""
    args, kwargs = b.arg(node.args), b.arg(node.kwargs)
    values = args[1:] or (kwargs[name],)
    if len(values) == 1 and isinstance(values[0], (tuple, list, torch.Size)):
        values = tuple(values[0])
    return args[0], tuple(int(v) for v in values)


def rank(x: fx.Node) -> int:
    """Return the number of dimensions of a canonical node."""
    return len(input_type(x))


def positive(x: fx.Node, dim: int, extra: int = 0) -> int:
    """Return the number of a dimension counted from 0, where ``dim`` may be negative.

    Args:
        extra: Dimensions that the operation adds to ``x``.
    """
    return dim % (rank(x) + extra)


def value_shape(node: fx.Node) -> tuple[int, ...]:
    """Return the recorded shape of a raw node's value."""
    return tuple(node.meta["val"].shape)


def dims_of(x: fx.Node, dim: Any) -> tuple[int, ...]:
    """Return the dimensions that a call names, counted from 0; all of them for None."""
    dims = range(rank(x)) if dim is None else [dim] if isinstance(dim, int) else dim
    return tuple(sorted(positive(x, i) for i in dims))


def spelled_out(pattern: str, rank: int) -> str:
    """Return an einops pattern with letters in place of ``...``."""
    left, arrow, right = pattern.partition("->")
    if "..." not in left:
        return pattern
    named = len(re.sub(r"\([^)]*\)", "g", left.replace("...", " ")).split())
    letters = " ".join(f"etc{i}" for i in range(rank - named))
    return left.replace("...", letters) + arrow + right.replace("...", letters)
