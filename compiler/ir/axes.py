"""Axis types: the meaning of each dimension of each value, and which axes are identical.

A dimension is an ordered product of axes, ``(h d)`` in einops notation. Axes are variables of a
unification: two axes of the same size can turn out to be identical (in a residual addition), and an axis can
turn out to be a product (in a reshape into heads). Nothing is guessed from a size alone: a reshape is
row-major, so the order of the elements determines its factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum


class Kind(StrEnum):
    """Meaning of the elements of an axis."""

    TIME = "time"
    BATCH = "batch"
    PIXEL = "pixel"  # a token or pixel position
    CHANNEL = "channel"  # a feature; the only kind that can be pruned


class Axis:
    """Named axis of a fixed size. Unification can turn it into an alias for another axis, or into a product of axes.

    Attributes:
        name: origin of the axis, such as ``blocks.0.mlp.fc1.0``.
        size: number of elements. For the batch axis a placeholder, because the real batch size is dynamic.
        kind: meaning of the elements.
        letter: preferred letter in einops patterns.
        frozen: reason why the axis must not be pruned, or None.
        intact: reason why single elements must not be removed (the axis can only be removed completely, together
            with its attention head), or None.
    """

    __slots__ = ("_bound", "_frozen", "_intact", "kind", "letter", "name", "size")

    def __init__(self, name: str, size: int, kind: Kind, letter: str, frozen: str | None = None) -> None:
        self.name, self.size, self.kind, self.letter = name, size, kind, letter
        self._frozen = frozen
        self._intact: str | None = None
        self._bound: Dim | None = None

    @property
    def frozen(self) -> str | None:
        """Reason why the axis must not be pruned, or None."""
        return next((leaf._frozen for leaf in self.leaves() if leaf._frozen is not None), None)

    @property
    def intact(self) -> str | None:
        """Reason why single elements of the axis must not be removed, or None."""
        return next((leaf._intact for leaf in self.leaves() if leaf._intact is not None), None)

    def leaves(self) -> Dim:
        """Return the axes whose product this axis is: the axis itself, unless it was unified with others or split."""
        if self._bound is None:
            return (self,)
        self._bound = tuple(leaf for axis in self._bound for leaf in axis.leaves())
        return self._bound

    def freeze(self, reason: str) -> None:
        """Forbid pruning this axis. Of several reasons, the first one is kept."""
        for leaf in self.leaves():
            if leaf._frozen is None:
                leaf._frozen = reason

    def keep_intact(self, reason: str) -> None:
        """Forbid removing single elements of this axis. Of several reasons, the first one is kept."""
        for leaf in self.leaves():
            if leaf._intact is None:
                leaf._intact = reason

    def bind(self, product: Dim) -> None:
        """Replace this leaf by ``product``. The factors inherit the reasons why it must not be pruned."""
        assert self._bound is None and math.prod(a.size for a in product) == self.size
        self._bound = product
        for axis in product:
            if self._frozen is not None:
                axis.freeze(self._frozen)
            if self._intact is not None:
                axis.keep_intact(self._intact)

    def split(self, sizes: Sequence[int], letters: Sequence[str]) -> Dim:
        """Factor this leaf into new axes and return them.

        Args:
            sizes: size of each factor, outermost first.
            letters: preferred letter of each factor.
        """
        parts = tuple(
            Axis(f"{self.name}/{letter}", size, self.kind, letter) for size, letter in zip(sizes, letters, strict=True)
        )
        self.bind(parts)
        return parts

    def __repr__(self) -> str:
        return f"{self.name}:{self.size}"


Dim = tuple[Axis, ...]  # one dimension: an ordered product of axes, outermost first; () has size 1
Dims = tuple[Dim, ...]  # the type of a value: all its dimensions


class AxisConflict(Exception):
    """Two dimensions that cannot be identical, or an operation that does not fit the types of its inputs.

    Attributes:
        hint: what to write instead, or None.
    """

    def __init__(self, text: str, hint: str | None = None) -> None:
        super().__init__(text)
        self.hint = hint


def resolve(dim: Iterable[Axis]) -> Dim:
    """Return a dimension as a product of leaf axes."""
    if isinstance(dim, tuple) and len(dim) == 1:  # nearly all of them
        return dim[0].leaves()
    return tuple(leaf for axis in dim for leaf in axis.leaves())


def size(dim: Iterable[Axis]) -> int:
    """Return the number of elements of a dimension."""
    return math.prod(axis.size for axis in dim)


def shape(dims: Iterable[Dim]) -> tuple[int, ...]:
    """Return the shape of a value of type ``dims``."""
    return tuple(size(dim) for dim in dims)


def unify(left: Dim, right: Dim) -> Dim:
    """Make two dimensions identical, element by element, and return their common product of axes.

    Where that fails half-way, some of their factors are identical already, so that none of them can be pruned.

    Raises:
        AxisConflict: sizes or kinds differ, the factors do not nest (8 x 48 and 3 x 128), or a dimension meets its own
            elements in another order.
    """
    if size(left) != size(right):
        raise AxisConflict(f"sizes {size(left)} and {size(right)} differ")
    try:
        common = _nested(left, right)
        channels = [id(axis) for axis in common if axis.kind == Kind.CHANNEL and axis.size > 1]
        if len(channels) != len(set(channels)):
            raise AxisConflict("channels meet themselves in another order")
    except AxisConflict:
        for axis in (*resolve(left), *resolve(right)):
            if axis.kind == Kind.CHANNEL:
                axis.freeze("it meets channels that are grouped in another way")
        raise
    return common


def _nested(left: Dim, right: Dim) -> Dim:
    """Unify two dimensions of the same size, factor by factor from the outermost one."""
    a, b = list(reversed(resolve(left))), list(reversed(resolve(right)))
    common: list[Axis] = []
    while a or b:
        if not a or not b or (a[-1].size == 1) != (b[-1].size == 1):  # an axis of size 1 on one side only
            side = a if a and a[-1].size == 1 else b
            common.append(side.pop())
            continue
        p, q = a.pop(), b.pop()
        if len(p.leaves()) > 1 or len(q.leaves()) > 1:  # split or identified since it was taken up
            a += reversed(p.leaves())
            b += reversed(q.leaves())
            continue
        (p,), (q,) = p.leaves(), q.leaves()
        if p is q:
            common.append(p)
            continue
        if p.size == q.size == 1 and p.kind != q.kind:  # of one element, either meaning is right
            common.append(q if q.kind == Kind.TIME else p)
            continue
        if p.kind != q.kind:
            raise AxisConflict(f"{p.kind} axis {p.name} meets {q.kind} axis {q.name}")
        if p.size == q.size:
            # an axis of heads, or of the channels in a head, keeps its letter when unified with plain channels
            representative, alias = (q, p) if p.letter == "c" != q.letter else (p, q)
            alias.bind((representative,))
            common.append(representative)
            continue
        # the larger axis is a product whose outermost factor is the smaller axis
        large, small = (p, q) if p.size > q.size else (q, p)
        if large.size % small.size:
            raise AxisConflict(f"{p.name} ({p.size}) and {q.name} ({q.size}) are factored differently")
        _, rest = large.split((small.size, large.size // small.size), (small.letter, large.letter))
        if large is p:
            a.append(rest)
        else:
            b.append(rest)
        outermost = resolve((large,))[0]
        outermost.bind((small,))
        common.append(small)
    return resolve(common)


def take(stream: list[Axis], target_size: int, letters: Sequence[str] = ("h", "d")) -> Dim:
    """Remove axes with a product of ``target_size`` elements from the end of ``stream``, and return them.

    Args:
        stream: axes, innermost first, so that the outermost one is at the end; changed in place.
        target_size: number of elements to take.
        letters: letters of the outer and the inner part, where an axis that is too large is split in two.

    Raises:
        AxisConflict: no product of leading factors has that size.
    """
    taken: list[Axis] = []
    taken_size = 1
    if target_size == 1 and stream and stream[-1].size == 1:  # such as a single time step
        return (stream.pop(),)
    while taken_size < target_size:
        if not stream:
            raise AxisConflict(f"needs {target_size} elements, has {taken_size}")
        axis = stream.pop()
        if target_size % (taken_size * axis.size) == 0:
            taken.append(axis)
            taken_size *= axis.size
            continue
        part = target_size // taken_size
        if target_size % taken_size or axis.size % part:
            raise AxisConflict(f"cannot take {target_size} elements from {axis.name} ({axis.size})")
        outer, inner = axis.split((part, axis.size // part), letters)
        stream.append(inner)
        taken.append(outer)
        taken_size = target_size
    return tuple(taken)


def factor(dims: Sequence[Dim], sizes: Sequence[int]) -> Dims:
    """Return the type of a row-major reshape of ``dims`` to ``sizes``.

    Raises:
        AxisConflict: an axis straddles two of the new dimensions and does not factor.
    """
    stream = [axis for dim in reversed(dims) for axis in reversed(resolve(dim))]
    out = tuple(take(stream, new_size) for new_size in sizes)
    if size(stream) != 1:
        raise AxisConflict(f"{size(stream)} elements are left over")
    return tuple(resolve(dim) for dim in out)


def show(dims: Sequence[Dim], names: dict[int, str] | None = None) -> str:
    """Return a type as text, such as ``[t=4, b, (h=12 d=32), n=196]``.

    Args:
        dims: the type.
        names: ``id`` of a channel axis -> the name to print instead of its letter.
    """

    def axis_text(axis: Axis) -> str:
        label = axis.letter if axis.kind != Kind.CHANNEL or names is None else names.get(id(axis), axis.letter)
        return label if axis.kind == Kind.BATCH else f"{label}={axis.size}"

    texts = []
    for dim in dims:
        leaves = resolve(dim)
        body = " ".join(axis_text(axis) for axis in leaves)
        texts.append(body if len(leaves) == 1 else f"({body})" if leaves else "1")
    return "[" + ", ".join(texts) + "]"
