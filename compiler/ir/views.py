"""Views: the einops pattern that leads from one axis type to another.

The functions here use types "by place" (see ``tokens``): each place in a type has an axis of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import einops
from torch import fx

from svitc.errors import InternalError
from svitc.ir import axes
from svitc.ir.axes import Axis, Dim, Dims, Kind
from svitc.ir.einops_pattern import bind_letters, parse_pattern
from svitc.ir.program import Program

Emit = Callable[..., fx.Node]


def pattern_between(source: Dims, target: Dims) -> tuple[str, dict[str, int]]:
    """Return the shortest einops pattern that rearranges ``source`` to ``target``.

    Axes that are adjacent in both types share one letter. In each input dimension, one letter is left for einops to
    infer: the batch if there is one, else the innermost channels, so that no channel count becomes a literal.

    Args:
        source: type of the input, by place.
        target: type of the output, by place.

    Returns:
        the pattern; and letter -> size, for the letters that einops cannot infer.
    """
    runs = _runs(source, target)
    letters = _letters(runs)
    run_of = {id(axis): i for i, run in enumerate(runs) for axis in run}
    kept = {id(axis) for dim in target for axis in dim}  # axes of size 1 can disappear

    def side(dims: Dims) -> tuple[str, list[list[int]]]:
        texts, indices = [], []
        for dim in dims:
            run_indices = list(dict.fromkeys(run_of[id(axis)] for axis in dim if id(axis) in kept))
            names = [letters[i] for i in run_indices]
            texts.append(names[0] if len(names) == 1 else f"({' '.join(names)})" if names else "1")
            indices.append(run_indices)
        return " ".join(texts), indices

    left, left_indices = side(source)
    right, _ = side(target)
    sizes: dict[str, int] = {}
    for run_indices in left_indices:
        if len(run_indices) < 2:
            continue
        free = next((i for i in run_indices if any(axis.kind == Kind.BATCH for axis in runs[i])), None)
        if free is None:
            free = next((i for i in reversed(run_indices) if runs[i][0].kind == Kind.CHANNEL), run_indices[-1])
        sizes.update({letters[i]: axes.size(runs[i]) for i in run_indices if i != free})
    return f"{left} -> {right}", sizes


def _runs(source: Dims, target: Dims) -> list[Dim]:
    """Return the longest runs of axes that are adjacent, in the same order, within a dimension of both types."""
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
    """Return a letter for each run, with a number behind it where an earlier run has that letter."""
    letters: list[str] = []
    counts: dict[str, int] = {}
    for run in runs:
        base = run[0].letter if len(run) == 1 else "n" if all(a.kind == Kind.PIXEL for a in run) else "c"
        counts[base] = counts.get(base, 0) + 1
        letter = base if counts[base] == 1 else f"{base}{counts[base]}"
        while letter in letters:  # the letter of another axis, as models' own patterns may have numbers
            counts[base] += 1
            letter = f"{base}{counts[base]}"
        letters.append(letter)
    return letters


def tokens(dims: Dims) -> Dims:
    """Return a type by place: with a new axis for each place in ``dims``.

    An axis can occur in two dimensions of a value (tokens by tokens, or channels by channels). Then only the place
    tells which of the two a view moves.
    """
    return tuple(tuple(Axis(a.name, a.size, a.kind, a.letter) for a in axes.resolve(dim)) for dim in dims)


def follow(view: Dims, pattern: str, sizes: Mapping[str, object]) -> Dims:
    """Return the type by place after a rearrange.

    Args:
        view: type of the input, by place.
        pattern: einops pattern of the rearrange.
        sizes: letter -> its size, an int.
    """
    bound = bind_letters(view, pattern, sizes)
    return tuple(tuple(a for name in dim for a in bound[name]) for dim in parse_pattern(pattern)[1])


def regrouped(source: Dims, target: Dims) -> tuple[Dims, Dims]:
    """Return two types by place that have the same axes in the same order, except for axes of size 1.

    Raises:
        InternalError: ``target`` does not have the axes of ``source`` in the same order.
    """
    places = tokens(source)
    stream = [
        (leaf, token)
        for dim, place_dim in zip(source, places, strict=True)
        for leaf, token in zip(dim, place_dim, strict=True)
    ]
    out = []
    for dim in target:
        taken = []
        for leaf in dim:
            while stream[0][0] is not leaf and stream[0][0].size == 1:
                stream.pop(0)
            next_leaf, token = stream.pop(0)
            if next_leaf is not leaf:
                raise InternalError(f"{axes.show(target)} does not have the axes of {axes.show(source)} in order")
            taken.append(token)
        out.append(tuple(taken))
    return places, tuple(out)


def is_one_pattern(source: Dims, target: Dims) -> bool:
    """Return whether one einops pattern leads from ``source`` to ``target``, types by place.

    None drops an axis of size 1 that shares a dimension with others, which would stay in the type.
    """
    kept = {id(axis) for dim in target for axis in dim}
    return all(len({id(axis) in kept for axis in dim}) < 2 for dim in source)


def emit_view(emit: Emit, x: fx.Node, source: Dims, target: Dims) -> fx.Node:
    """Return a new node that rearranges ``x``, or ``x`` itself if the types are equal.

    Args:
        emit: creates a node, with the arguments of ``fx.Graph.create_node``.
        x: the input.
        source: type of ``x``, by place.
        target: type of the result, by place.
    """
    if source == target:
        return x
    if not is_one_pattern(source, target):
        split = tuple((axis,) for dim in source for axis in dim)
        return emit_view(emit, emit_view(emit, x, source, split), split, target)
    pattern, sizes = pattern_between(source, target)
    return emit("call_function", einops.rearrange, (x, pattern), dict(sorted(sizes.items())))


def composed(program: Program, chain: list[fx.Node]) -> tuple[Dims, Dims]:
    """Return the types by place of the input and of the output of a chain of rearranges.

    Args:
        program: typed.
        chain: rearranges in order; each one reads the previous one.
    """
    source = view = tokens(program.type_of(chain[0].all_input_nodes[0]))
    for node in chain:
        view = follow(view, str(node.args[1]), node.kwargs)
    return source, view


def retarget(node: fx.Node, x: fx.Node, source: Dims, target: Dims) -> None:
    """Change a rearrange so that it reads ``x``.

    Args:
        node: the rearrange, changed in place.
        x: the new input.
        source: type of ``x``, by place.
        target: type of the result, by place.
    """
    pattern, sizes = pattern_between(source, target)
    node.args = (x, pattern)
    node.kwargs = dict(sorted(sizes.items()))
