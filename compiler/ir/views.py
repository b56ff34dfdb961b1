"""Views: from two axis types to the one einops pattern between them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import einops
from torch import fx

from svitc.errors import InternalError
from svitc.ir import axes
from svitc.ir.axes import Axis, Dim, Dims, Kind
from svitc.ir.einops_pattern import bind_letters, parse_pattern
from svitc.ir.program import Program

Emit = Callable[..., fx.Node]


def pattern_between(source: Dims, target: Dims) -> tuple[str, dict[str, int]]:
    """The coarsest pattern that takes ``source`` to ``target``, and the sizes that einops cannot infer.

    Both are by place (``tokens``), so that no axis stands twice.

    Axes that stay together in both share one letter. In each input dimension one letter is left for einops to
    infer: the batch where it is there, else the innermost channels, so that no channel count is a literal.
    """
    runs = _runs(source, target)
    letters = _letters(runs)
    owner = {id(axis): i for i, run in enumerate(runs) for axis in run}
    kept = {id(axis) for dim in target for axis in dim}  # an axis of size 1 may go

    def side(dims: Dims) -> tuple[str, list[list[int]]]:
        texts, indices = [], []
        for dim in dims:
            ids = list(dict.fromkeys(owner[id(axis)] for axis in dim if id(axis) in kept))
            names = [letters[i] for i in ids]
            texts.append(names[0] if len(names) == 1 else f"({' '.join(names)})" if names else "1")
            indices.append(ids)
        return " ".join(texts), indices

    left, left_ids = side(source)
    right, _ = side(target)
    sizes: dict[str, int] = {}
    for ids in left_ids:
        if len(ids) < 2:
            continue
        free = next((i for i in ids if runs[i][0].kind == Kind.BATCH), None)
        if free is None:
            free = next((i for i in reversed(ids) if runs[i][0].kind == Kind.CHANNEL), ids[-1])
        sizes.update({letters[i]: axes.size(runs[i]) for i in ids if i != free})
    return f"{left} -> {right}", sizes


def _runs(source: Dims, target: Dims) -> list[Dim]:
    """Maximal runs of axes that are adjacent, in order, in one dimension of both types."""
    follows = {id(a): id(b) for dim in target for a, b in pairwise(dim)}
    runs: list[list[Axis]] = []
    for dim in source:
        for i, axis in enumerate(dim):
            if i and follows.get(id(dim[i - 1])) == id(axis):
                runs[-1].append(axis)
            else:
                runs.append([axis])
    return [tuple(run) for run in runs]


def _letters(runs: list[Dim]) -> list[str]:
    names: list[str] = []
    for run in runs:
        name = run[0].letter if len(run) == 1 else "n" if all(a.kind == Kind.PIXEL for a in run) else "c"
        while name in names:
            name += "'"
        names.append(name)
    counts: dict[str, int] = {}
    out = []
    for name in names:
        base = name.rstrip("'")
        counts[base] = counts.get(base, 0) + 1
        out.append(base if counts[base] == 1 else f"{base}{counts[base]}")
    return out


def tokens(dims: Dims) -> Dims:
    """A private axis for every place in a type. One axis may stand in two dimensions of a value (tokens by tokens,
    channels by channels), where only its place says which of the two a view moves."""
    return tuple(tuple(Axis(a.name, a.size, a.kind, a.letter) for a in axes.resolve(dim)) for dim in dims)


def follow(view: Dims, pattern: str, sizes: Any) -> Dims:
    """Where a pattern takes each place."""
    bound = bind_letters(view, pattern, sizes)
    return tuple(tuple(a for name in dim for a in bound[name]) for dim in parse_pattern(pattern)[1])


def regrouped(source: Dims, target: Dims) -> tuple[Dims, Dims]:
    """Two types with the same axes in the same order, by place; axes of size 1 may come and go."""
    places = tokens(source)
    stream = [
        (leaf, token) for dim, own in zip(source, places, strict=True) for leaf, token in zip(dim, own, strict=True)
    ]
    out = []
    for dim in target:
        taken = []
        for leaf in dim:
            while stream[0][0] is not leaf and stream[0][0].size == 1:
                stream.pop(0)
            found, token = stream.pop(0)
            if found is not leaf:
                raise InternalError(f"{axes.show(target)} does not have the axes of {axes.show(source)} in order")
            taken.append(token)
        out.append(tuple(taken))
    return places, tuple(out)


def emit_view(emit: Emit, x: fx.Node, source: Dims, target: Dims) -> fx.Node:
    """Emit the rearrange between two types by place (``tokens``), or return ``x`` where nothing moves."""
    if source == target:
        return x
    pattern, sizes = pattern_between(source, target)
    return emit("call_function", einops.rearrange, (x, pattern), dict(sorted(sizes.items())))


def composed(program: Program, chain: list[fx.Node]) -> tuple[Dims, Dims]:
    """What a chain of rearranges does from end to end, by place.

    Args:
        chain: rearranges in order; each reads the one before it.
    """
    source = view = tokens(program.type_of(chain[0].all_input_nodes[0]))
    for node in chain:
        view = follow(view, str(node.args[1]), node.kwargs)
    return source, view


def retarget(node: fx.Node, x: fx.Node, source: Dims, target: Dims) -> None:
    """Make the rearrange ``node`` read ``x`` and take ``source`` to ``target``, both by place."""
    pattern, sizes = pattern_between(source, target)
    node.args = (x, pattern)
    node.kwargs = dict(sorted(sizes.items()))
