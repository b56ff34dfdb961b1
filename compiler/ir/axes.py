"""Axis types: what each dimension of each value is, and which axes are one and the same.

A dimension is an ordered product of axes, ``(h d)`` in einops notation. Axes are variables of a
unification: two axes of one size can be found to be the same (a residual addition), and an axis can
be found to be a product (a reshape into heads). Nothing is ever guessed from a size alone: a reshape is
row-major, so that its factors follow from order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum


class Kind(StrEnum):
    """What the elements of an axis are."""

    TIME = "time"
    BATCH = "batch"
    PIXEL = "pixel"  # a token or pixel position
    CHANNEL = "channel"  # a feature; the only kind that can be pruned


class Axis:
    """One named, sized dimension; after unification perhaps an alias of, or a product of, others.

    Attributes:
        name: where it comes from, such as ``blocks.0.mlp.fc1.0``.
        size: number of elements. For the batch, a probe; the real one is dynamic.
        letter: the preferred einops letter.
        frozen: why it must not be pruned, or None.
        intact: why it stands as a whole or goes as a whole, with the head that it is the dimension of; or None.
    """

    __slots__ = ("_bound", "_frozen", "_intact", "kind", "letter", "name", "size")

    def __init__(self, name: str, size: int, kind: Kind, letter: str, frozen: str | None = None) -> None:
        self.name, self.size, self.kind, self.letter = name, size, kind, letter
        self._frozen = frozen
        self._intact: str | None = None
        self._bound: Dim | None = None

    @property
    def frozen(self) -> str | None:
        return next((leaf._frozen for leaf in self.leaves() if leaf._frozen is not None), None)

    @property
    def intact(self) -> str | None:
        return next((leaf._intact for leaf in self.leaves() if leaf._intact is not None), None)

    def leaves(self) -> Dim:
        """The axes that this one is a product of: itself, unless it was unified away or split."""
        if self._bound is None:
            return (self,)
        self._bound = tuple(leaf for axis in self._bound for leaf in axis.leaves())
        return self._bound

    def freeze(self, reason: str) -> None:
        """Never prune this axis; the first reason given is kept."""
        for leaf in self.leaves():
            if leaf._frozen is None:
                leaf._frozen = reason

    def keep_intact(self, reason: str) -> None:
        """Never prune elements of this axis; the first reason given is kept."""
        for leaf in self.leaves():
            if leaf._intact is None:
                leaf._intact = reason

    def bind(self, product: Dim) -> None:
        """Record that this leaf is ``product``. Its reasons to stay whole pass to the factors."""
        assert self._bound is None and math.prod(a.size for a in product) == self.size
        self._bound = product
        for axis in product:
            if self._frozen is not None:
                axis.freeze(self._frozen)
            if self._intact is not None:
                axis.keep_intact(self._intact)

    def split(self, sizes: Sequence[int], letters: Sequence[str]) -> Dim:
        """Factor this leaf into new axes, outermost first."""
        parts = tuple(
            Axis(f"{self.name}/{letter}", size, self.kind, letter) for size, letter in zip(sizes, letters, strict=True)
        )
        self.bind(parts)
        return parts

    def __repr__(self) -> str:
        return f"{self.name}:{self.size}"


Dim = tuple[Axis, ...]  # an ordered product of axes, outermost first; () has size 1
Dims = tuple[Dim, ...]


class AxisConflict(Exception):
    """Two dimensions that cannot be the same thing; the reason is the message."""


def resolve(dim: Iterable[Axis]) -> Dim:
    return tuple(leaf for axis in dim for leaf in axis.leaves())


def size(dim: Iterable[Axis]) -> int:
    return math.prod(axis.size for axis in dim)


def shape(dims: Iterable[Dim]) -> tuple[int, ...]:
    return tuple(size(dim) for dim in dims)


def unify(left: Dim, right: Dim) -> Dim:
    """Find that two dimensions are the same, element by element, and return the common product.

    Raises:
        AxisConflict: sizes differ, kinds differ, or the factors do not nest (8 x 48 against 3 x 128).
    """
    if size(left) != size(right):
        raise AxisConflict(f"sizes {size(left)} and {size(right)} differ")
    a, b = list(reversed(resolve(left))), list(reversed(resolve(right)))
    common: list[Axis] = []
    while a or b:
        if not a or not b or (a[-1].size == 1) != (b[-1].size == 1):  # an axis of size 1 on one side only
            side = a if a and a[-1].size == 1 else b
            common.append(side.pop())
            continue
        p, q = a.pop(), b.pop()
        if p is q:
            common.append(p)
            continue
        if p.kind != q.kind:
            raise AxisConflict(f"{p.kind} axis {p.name} meets {q.kind} axis {q.name}")
        if p.size == q.size:
            # a head or a head dimension keeps its letter when it is found to be plain channels
            stays, goes = (q, p) if p.letter == "c" != q.letter else (p, q)
            goes.bind((stays,))
            common.append(stays)
            continue
        # the larger one is a product that begins with the smaller one
        big, small = (p, q) if p.size > q.size else (q, p)
        if big.size % small.size:
            raise AxisConflict(f"{p.name} ({p.size}) and {q.name} ({q.size}) are factored differently")
        _, rest = big.split((small.size, big.size // small.size), (small.letter, big.letter))
        if big is p:
            a.append(rest)
        else:
            b.append(rest)
        head = resolve((big,))[0]
        head.bind((small,))
        common.append(small)
    return resolve(common)


def take(stream: list[Axis], wanted: int, letters: Sequence[str] = ("h", "d")) -> Dim:
    """Take axes of total size ``wanted`` off the end of ``stream`` (innermost axis first in the list).

    An axis that is too large is split in two, named by ``letters``.

    Raises:
        AxisConflict: no product of leading factors has that size.
    """
    got: list[Axis] = []
    have = 1
    if wanted == 1 and stream and stream[-1].size == 1:  # one time step, say
        return (stream.pop(),)
    while have < wanted:
        if not stream:
            raise AxisConflict(f"needs {wanted} elements, has {have}")
        axis = stream.pop()
        if wanted % (have * axis.size) == 0:
            got.append(axis)
            have *= axis.size
            continue
        part = wanted // have
        if wanted % have or axis.size % part:
            raise AxisConflict(f"cannot take {wanted} elements from {axis.name} ({axis.size})")
        outer, inner = axis.split((part, axis.size // part), letters)
        stream.append(inner)
        got.append(outer)
        have = wanted
    return tuple(got)


def factor(dims: Sequence[Dim], sizes: Sequence[int]) -> Dims:
    """The dimensions of a row-major reshape of ``dims`` to ``sizes``.

    Raises:
        AxisConflict: an axis straddles two of the new dimensions and does not factor.
    """
    stream = [axis for dim in reversed(dims) for axis in reversed(resolve(dim))]
    out = tuple(take(stream, wanted) for wanted in sizes)
    if size(stream) != 1:
        raise AxisConflict(f"{size(stream)} elements are left over")
    return tuple(resolve(dim) for dim in out)


def show(dims: Sequence[Dim], names: dict[int, str] | None = None) -> str:
    """``[t, b, (h d), n]`` with sizes: ``[t=4, b, (h=12 d=32), n=196]``."""

    def one(axis: Axis) -> str:
        label = axis.letter if axis.kind != Kind.CHANNEL or names is None else names.get(id(axis), axis.letter)
        return label if axis.kind == Kind.BATCH else f"{label}={axis.size}"

    texts = []
    for dim in dims:
        leaves = resolve(dim)
        body = " ".join(one(axis) for axis in leaves)
        texts.append(body if len(leaves) == 1 else f"({body})" if leaves else "1")
    return "[" + ", ".join(texts) + "]"
