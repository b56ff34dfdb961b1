"""Layout: how a value is stored, apart from its shape in the program, and the cheapest way from one layout to another.

Time and batch are the two leading dimensions of almost every value in a spiking model. They are stored as one
dimension ``(t b)``, so that convolutions, batch norms and matrix products see an ordinary batch, and a view that
only merges or splits the two costs nothing.

A layout is a tuple of dimensions, each of which is an ordered product of *tokens*. A token is an ``Axis`` that belongs
to one value alone. The axes of the program's types would not do: in a type one axis may occur twice (channels by
channels, pixels by pixels), and only its place tells which one is meant. Axes of size 1 have no token: ``()`` is a
dimension of size 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from svitc.errors import InternalError
from svitc.ir import axes
from svitc.ir.axes import Axis, Dim, Dims, Kind
from svitc.ir.einops_pattern import parse_pattern

Shape = tuple["int | str", ...]


@dataclass(frozen=True)
class ViewOperation:
    """One view operation of ONNX.

    Attributes:
        op: ``Reshape`` or ``Transpose``.
        dims: the layout after the operation.
        operand: for Reshape the target shape, where 0 copies a dimension and -1 takes the remaining elements, so that
            the batch stays dynamic; for Transpose the permutation.
    """

    op: str
    dims: Dims
    operand: tuple[int, ...]


def fresh(dims: Dims) -> Dims:
    """Return new tokens for a value of this type: one for each axis that is not of size 1, and for the batch."""
    return tuple(
        tuple(Axis(a.name, a.size, a.kind, a.letter) for a in dim if a.size != 1 or a.kind == Kind.BATCH)
        for dim in dims
    )


def flat(dims: Dims) -> Dim:
    """Return all tokens of a layout, in order."""
    return tuple(token for dim in dims for token in dim)


def physical(view: Dims, keep: int = 1) -> Dims:
    """Return the layout in which operators read a view: ``[t, b, rest...]`` as ``[(t b), rest...]``.

    Args:
        view: the value's dimensions in the program; any other form is returned as it is.
        keep: number of last dimensions that must not be merged.
    """
    if len(view) - keep < 2:
        return view
    time, batch = view[:2]
    if len(batch) == 1 and batch[0].kind == Kind.BATCH and all(token.kind == Kind.TIME for token in time):
        return ((*time, *batch), *view[2:])
    return view


def without_step(view: Dims) -> Dims:
    """Return the layout of a model's input of one time step: the same without a leading time dimension."""
    return view if view[0] else view[1:]


def without(dims: Dims, tokens: Iterable[Axis]) -> Dims:
    """Return the layout without some of its tokens."""
    removed = set(tokens)
    return tuple(tuple(token for token in dim if token not in removed) for dim in dims)


def rearranged(view: Dims, pattern: str, sizes: Mapping[str, int], dims: Dims) -> Dims:
    """Return a view after an einops pattern, with new tokens for letters that only the right side has.

    Args:
        view: the dimensions before.
        pattern: einops pattern.
        sizes: sizes of the pattern's letters.
        dims: type of the result. A new letter gets one token for each of its axes, of which there are several where
            a later reshape splits what the pattern repeats.

    Raises:
        InternalError: a letter stands for part of a token, although type inference should have split that axis.
    """
    left, right = parse_pattern(pattern)
    bound: dict[str, Dim] = {}
    for letters, dim in zip(left, view, strict=True):
        known_size = 1
        for letter in letters:
            known_size *= sizes.get(letter, 1)
        rest = list(dim)
        for letter in letters:
            bound[letter] = _take(rest, sizes.get(letter, axes.size(dim) // known_size), pattern)
    for letters, dim in zip(right, fresh(dims), strict=True):
        rest = list(dim)
        for letter in letters:
            count = axes.size(bound[letter]) if letter in bound else int(sizes[letter])
            tokens = _take(rest, count, pattern)
            bound.setdefault(letter, tokens)
    return tuple(flat(tuple(bound[letter] for letter in letters)) for letters in right)


def _take(tokens: list[Axis], size: int, pattern: str) -> Dim:
    """Remove the first tokens whose product is ``size`` from the list and return them."""
    taken: list[Axis] = []
    while axes.size(taken) < size and tokens:
        taken.append(tokens.pop(0))
    if axes.size(taken) != size:
        raise InternalError(f"{pattern!r} does not fit the axes of its input")
    return tuple(taken)


def blocks(dim: Dim, count: int) -> Dim:
    """Return the tokens that remain of a dimension in each of its ``count`` equal blocks."""
    rest = list(dim)
    _take(rest, count, f"{count} blocks")
    return tuple(rest)


def view_operations(source: Dims, target: Dims) -> list[ViewOperation]:
    """Return the shortest list of view operations from one layout to another of the same tokens.

    Returns:
        at most three operations; none for equal layouts.

    Raises:
        InternalError: the layouts do not have the same tokens.
    """
    if source == target:
        return []
    before, after = flat(source), flat(target)
    if before == after:
        return [_reshape(source, target)]
    if set(map(id, before)) != set(map(id, after)):
        raise InternalError(f"{axes.show(source)} does not have the axes of {axes.show(target)}")
    if _is_contiguous(source, after):  # every input dimension moves as a unit
        middle = _ordered(source, after)
        if middle == tuple(dim for dim in target if dim) and len(source) == len(target):
            middle = target
        else:
            middle = ((),) * source.count(()) + middle
        operations = [_transpose(source, middle)]
        return operations if middle == target else [*operations, _reshape(middle, target)]
    if _is_contiguous(target, before):  # every output dimension moves as a unit
        middle = ((),) * target.count(()) + _ordered(target, before)
        return [_reshape(source, middle), _transpose(middle, target)]
    runs = _runs(before, after)
    first, last = _ordered(runs, before), _ordered(runs, after)
    return [_reshape(source, first), _transpose(first, last), _reshape(last, target)]


def moved(values: np.ndarray, source: Dims, target: Dims) -> np.ndarray:
    """Return the elements of an array, which lie as ``source``, in the layout ``target``."""
    values = values.reshape(axes.shape(source))
    for view in view_operations(source, target):
        if view.op == "Transpose":
            values = values.transpose(view.operand)
        values = values.reshape(axes.shape(view.dims))
    return values


def shape(dims: Dims) -> Shape:
    """Return the ONNX shape of a layout, with ``N`` or, for example, ``4*N`` for a dimension with the batch."""
    sizes: list[int | str] = []
    for dim in dims:
        rest = axes.size(a for a in dim if a.kind != Kind.BATCH)
        batched = any(a.kind == Kind.BATCH for a in dim)
        sizes.append(rest if not batched else "N" if rest == 1 else f"{rest}*N")
    return tuple(sizes)


def _reshape(source: Dims, target: Dims) -> ViewOperation:
    """Return the Reshape between two layouts with the same order of tokens."""
    sizes = [0 if dim and source[i : i + 1] == (dim,) else axes.size(dim) for i, dim in enumerate(target)]
    free = [i for i, n in enumerate(sizes) if n != 0 and target[i]]
    dynamic = [i for i in free if any(token.kind == Kind.BATCH for token in target[i])]
    for i in (dynamic or free)[-1:]:  # -1 for the batch, otherwise for the last: layers of every width share a target
        sizes[i] = -1
    return ViewOperation("Reshape", target, tuple(sizes))


def _transpose(source: Dims, target: Dims) -> ViewOperation:
    """Return the Transpose between two layouts with the same dimensions."""
    spare = [i for i, dim in enumerate(source) if not dim]
    place = {dim: i for i, dim in enumerate(source) if dim}
    return ViewOperation("Transpose", target, tuple(place[dim] if dim else spare.pop(0) for dim in target))


def _is_contiguous(dims: Dims, order: Dim) -> bool:
    """Return whether the tokens of every dimension follow one another in ``order``."""
    at = {id(token): i for i, token in enumerate(order)}
    return all(at[id(b)] == at[id(a)] + 1 for dim in dims for a, b in pairwise(dim))


def _ordered(dims: Dims, order: Dim) -> Dims:
    """Return the dimensions that are not empty, sorted by the place of their first token in ``order``."""
    at = {id(token): i for i, token in enumerate(order)}
    return tuple(sorted((dim for dim in dims if dim), key=lambda dim: at[id(dim[0])]))


def _runs(before: Dim, after: Dim) -> Dims:
    """Split ``before`` into maximal runs of tokens that follow one another in ``after`` too."""
    follows = {(id(a), id(b)) for a, b in pairwise(after)}
    runs: list[list[Axis]] = [[before[0]]]
    for a, b in pairwise(before):
        if (id(a), id(b)) in follows:
            runs[-1].append(b)
        else:
            runs.append([b])
    return tuple(tuple(run) for run in runs)
