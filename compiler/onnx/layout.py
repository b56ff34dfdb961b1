"""Layout: how a value lies in memory, against what its axis type says, and the cheapest way between two.

Time and batch are the two leading dimensions of almost every value in a spiking model. They lie in memory as
one dimension ``(t b)``, so that convolutions, batch norms and matrix products see an ordinary batch, and a
view that only merges or splits the two costs nothing.

A layout is a tuple of dimensions, each an ordered product of *tokens*. A token is a private ``Axis`` that
belongs to one value: in a type one axis may stand twice (channels by channels, pixels by pixels), where only
its place says which is meant. Axes of size 1 have no token: ``()`` is a dimension of size 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

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
        dims: the layout after it.
        operand: Reshape: the target, where 0 copies a dimension and -1 takes what is left, so that the batch
            stays dynamic. Transpose: the permutation.
    """

    op: str
    dims: Dims
    operand: tuple[int, ...]


def fresh(dims: Dims) -> Dims:
    """Tokens for a value of this type: one for each axis that is not of size 1."""
    return tuple(
        tuple(Axis(a.name, a.size, a.kind, a.letter) for a in dim if a.size != 1 or a.kind == Kind.BATCH)
        for dim in dims
    )


def flat(dims: Dims) -> Dim:
    return tuple(token for dim in dims for token in dim)


def physical(view: Dims, keep: int = 1) -> Dims:
    """``[t, b, rest...]`` as ``[(t b), rest...]``, any other form as it is; the last ``keep`` stay apart."""
    if len(view) - keep < 2:
        return view
    time, batch = view[:2]
    if len(batch) == 1 and batch[0].kind == Kind.BATCH and all(token.kind == Kind.TIME for token in time):
        return ((*time, *batch), *view[2:])
    return view


def without(dims: Dims, gone: Iterable[Axis]) -> Dims:
    """The same dimensions less some tokens."""
    lost = set(gone)
    return tuple(tuple(token for token in dim if token not in lost) for dim in dims)


def rearranged(view: Dims, pattern: str, sizes: Mapping[str, int]) -> Dims:
    """A view after an einops pattern, with new tokens for the letters that only its right side has.

    Raises:
        InternalError: a letter takes part of a token, which inference would have split.
    """
    left, right = parse_pattern(pattern)
    bound: dict[str, Dim] = {}
    for letters, dim in zip(left, view, strict=True):
        known = 1
        for letter in letters:
            known *= sizes.get(letter, 1)
        rest = list(dim)
        for letter in letters:
            bound[letter] = _take(rest, sizes.get(letter, axes.size(dim) // known), pattern)
    for position, letters in enumerate(right):
        for letter in letters:
            if letter not in bound:
                kind = Kind.TIME if position == 0 and len(letters) == 1 else Kind.PIXEL
                bound[letter] = fresh(((Axis(letter, int(sizes[letter]), kind, letter),),))[0]
    return tuple(flat(tuple(bound[letter] for letter in letters)) for letters in right)


def _take(tokens: list[Axis], wanted: int, pattern: str) -> Dim:
    got: list[Axis] = []
    while axes.size(got) < wanted and tokens:
        got.append(tokens.pop(0))
    if axes.size(got) != wanted:
        raise InternalError(f"{pattern!r} does not fit the axes of its input")
    return tuple(got)


def blocks(dim: Dim, count: int) -> Dim:
    """What is left of a dimension in each of its ``count`` equal blocks."""
    rest = list(dim)
    _take(rest, count, f"{count} blocks")
    return tuple(rest)


def steps(source: Dims, target: Dims) -> list[ViewOperation]:
    """The fewest view operations from one layout to another of the same tokens: none, one, two or three."""
    if source == target:
        return []
    before, after = flat(source), flat(target)
    if before == after:
        return [_reshape(source, target)]
    if set(map(id, before)) != set(map(id, after)):
        raise InternalError(f"{axes.show(source)} does not have the axes of {axes.show(target)}")
    if _together(source, after):  # each input dimension moves as a whole
        middle = _sorted(source, after)
        if middle == tuple(dim for dim in target if dim) and len(source) == len(target):
            middle = target
        else:
            middle = ((),) * source.count(()) + middle
        found = [_transpose(source, middle)]
        return found if middle == target else [*found, _reshape(middle, target)]
    if _together(target, before):  # each output dimension comes as a whole
        middle = ((),) * target.count(()) + _sorted(target, before)
        return [_reshape(source, middle), _transpose(middle, target)]
    runs = _runs(before, after)
    first, last = _sorted(runs, before), _sorted(runs, after)
    return [_reshape(source, first), _transpose(first, last), _reshape(last, target)]


def shape(dims: Dims) -> Shape:
    """Sizes, with ``N`` or ``4*N`` where the batch is."""
    sizes: list[int | str] = []
    for dim in dims:
        rest = axes.size(a for a in dim if a.kind != Kind.BATCH)
        batched = any(a.kind == Kind.BATCH for a in dim)
        sizes.append(rest if not batched else "N" if rest == 1 else f"{rest}*N")
    return tuple(sizes)


def _reshape(source: Dims, target: Dims) -> ViewOperation:
    sizes = [0 if dim and source[i : i + 1] == (dim,) else axes.size(dim) for i, dim in enumerate(target)]
    free = [i for i, n in enumerate(sizes) if n != 0 and target[i]]
    dynamic = [i for i in free if any(token.kind == Kind.BATCH for token in target[i])]
    for i in (dynamic or free)[-1:]:  # else the last, so that layers of every width share one target
        sizes[i] = -1
    return ViewOperation("Reshape", target, tuple(sizes))


def _transpose(source: Dims, target: Dims) -> ViewOperation:
    spare = [i for i, dim in enumerate(source) if not dim]
    place = {dim: i for i, dim in enumerate(source) if dim}
    return ViewOperation("Transpose", target, tuple(place[dim] if dim else spare.pop(0) for dim in target))


def _together(dims: Dims, order: Dim) -> bool:
    at = {id(token): i for i, token in enumerate(order)}
    return all(at[id(b)] == at[id(a)] + 1 for dim in dims for a, b in pairwise(dim))


def _sorted(dims: Dims, order: Dim) -> Dims:
    """The dimensions that are not empty, in the order of their first tokens."""
    at = {id(token): i for i, token in enumerate(order)}
    return tuple(sorted((dim for dim in dims if dim), key=lambda dim: at[id(dim[0])]))


def _runs(before: Dim, after: Dim) -> Dims:
    """Maximal runs of tokens that stay side by side."""
    follows = {(id(a), id(b)) for a, b in pairwise(after)}
    runs: list[list[Axis]] = [[before[0]]]
    for a, b in pairwise(before):
        if (id(a), id(b)) in follows:
            runs[-1].append(b)
        else:
            runs.append([b])
    return tuple(tuple(run) for run in runs)
