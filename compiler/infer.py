"""Axis-type inference: one transfer rule for each canonical operation. The rules are the whole coupling analysis."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from typing import Any

import einops
import torch
from torch import fx, nn

from svitc import axes, ops
from svitc.axes import Axis, AxisConflict, Dim, Dims, Kind
from svitc.errors import InternalError, UnsupportedError
from svitc.infer_layers import ACROSS_BATCH, MODULE_RULES, Rule
from svitc.program import BATCH_PROBE, Program

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


class Inference:
    """The state of one inference: fresh axes for a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._seen: dict[str, dict[str, Dims]] = {}

    def dims(self, node: Any) -> Dims:
        if not isinstance(node, fx.Node):
            raise AxisConflict(f"expected a tensor, got {node!r}")
        return tuple(axes.resolve(dim) for dim in node.meta["dims"])

    def visit(self, node: fx.Node) -> None:
        """Type one node; its inputs are typed already.

        Raises:
            UnsupportedError: the operation cannot be what its inputs' types say, with the user's line.
        """
        try:
            if node.op == "placeholder":
                dims = self.placeholder(node)
            elif node.op == "output":
                dims = self.output(node)
            elif node.op == "get_attr":
                dims = self.attribute(node)
            elif node.op == "call_module":
                module = self.program.module_of(node)
                dims = _rule(node, (rule for t, rule in MODULE_RULES.items() if isinstance(module, t)))(
                    self, node, module
                )
                self.share(node)
            else:
                dims = _rule(node, (rule for f, rule in FUNCTION_RULES.items() if f is node.target))(self, node, None)
        except AxisConflict as conflict:
            raise UnsupportedError(f"{describe(node)}: {conflict}", where=node.meta.get("source")) from conflict
        node.meta["dims"] = tuple(axes.resolve(dim) for dim in dims)

    def share(self, node: fx.Node) -> None:
        """Weights that two nodes share have one type."""
        params = node.meta.get("params", {})
        for name, dims in self._seen.setdefault(str(node.target), params).items():
            for mine, first in zip(params[name], dims, strict=True):
                axes.unify(mine, first)

    def placeholder(self, node: fx.Node) -> Dims:
        spec = self.program.input
        *time, channels, height, width = spec.shape
        batch = Axis("batch", BATCH_PROBE, Kind.BATCH, "b")
        image = (
            (Axis("input", channels, Kind.CHANNEL, "c", frozen="the model's input"),),
            (Axis("input/height", height, Kind.PIXEL, "y"),),
            (Axis("input/width", width, Kind.PIXEL, "x"),),
        )
        if time:
            return ((Axis("time", time[0], Kind.TIME, "t"),), (batch,), *image)
        return ((batch,), *image)

    def output(self, node: fx.Node) -> Dims:
        dims = self.dims(node.args[0])
        for dim in dims:
            for axis in dim:
                if axis.kind == Kind.CHANNEL:
                    axis.freeze("the model's output")
        return dims

    def attribute(self, node: fx.Node) -> Dims:
        """A bare parameter: its last dimensions become channels or pixels by what it meets."""
        value = attribute_of(self.program.module, str(node.target))
        dims = tuple(
            () if n == 1 else (Axis(f"{node.target}.{i}", n, Kind.CHANNEL, "c"),) for i, n in enumerate(value.shape)
        )
        node.meta["params"] = {"": dims}
        return dims


def _rule(node: fx.Node, found: Iterator[Rule]) -> Rule:
    rule = next(found, None)
    if rule is None:
        raise InternalError(f"{describe(node)} is not a canonical operation", where=node.meta.get("source"))
    return rule


def attribute_of(module: nn.Module, path: str) -> torch.Tensor:
    """The parameter or buffer at a dotted path."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def describe(node: fx.Node) -> str:
    """A node as its user knows it: the layer's path, or the operation within its layer."""
    if node.op == "call_module":
        return str(node.target)
    scope = node.meta.get("scope") or "the model"
    return f"{getattr(node.target, '__name__', node.target)} in {scope}"


def rearrange(inf: Inference, node: fx.Node, _: None) -> Dims:
    """Views split and merge products; they never create or unify anything."""
    bound = bind_letters(inf.dims(node.args[0]), str(node.args[1]), node.kwargs)
    return tuple(tuple(a for name in dim for a in bound[name]) for dim in parse_pattern(str(node.args[1]))[1])


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


def repeat(inf: Inference, node: fx.Node, _: None) -> Dims:
    pattern = str(node.args[1])
    x = inf.dims(node.args[0])
    bound = bind_letters(x, pattern, {k: v for k, v in node.kwargs.items() if k in pattern.split("->")[0]})
    out = []
    for position, letters in enumerate(parse_pattern(pattern)[1]):
        dim: list[Axis] = []
        for name in letters:
            if name not in bound:
                kind = Kind.TIME if position == 0 and len(letters) == 1 else Kind.PIXEL
                bound[name] = (Axis(f"{node.name}/{name}", int(node.kwargs[name]), kind, name),)  # type: ignore[arg-type]
            dim += bound[name]
        out.append(tuple(dim))
    return tuple(out)


def elementwise(inf: Inference, node: fx.Node, _: None) -> Dims:
    left, right = node.args
    if not isinstance(right, fx.Node) or not isinstance(left, fx.Node):
        scaled = left if isinstance(left, fx.Node) else right
        if node.target not in (operator.mul, operator.truediv) or (
            node.target is operator.truediv and left is not scaled
        ):
            raise AxisConflict("a number added to a tensor would give a removed channel a value")
        return inf.dims(scaled)
    if node.target is operator.truediv:
        raise AxisConflict("a tensor divided by a tensor is not supported")
    a, b = inf.dims(left), inf.dims(right)
    adopt_kinds(left, b)
    adopt_kinds(right, a)
    a, b = inf.dims(left), inf.dims(right)
    rank = max(len(a), len(b))
    a, b = ((),) * (rank - len(a)) + a, ((),) * (rank - len(b)) + b
    out = []
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        if axes.size(p) == 1 or axes.size(q) == 1:
            out.append(p if axes.size(q) == 1 and p else q if axes.size(p) == 1 and q else p)
            lone = p if axes.size(q) == 1 else q
            if node.target is not operator.mul:
                for axis in lone:
                    if axis.kind == Kind.CHANNEL:
                        axis.freeze("an addition broadcasts over it")
            continue
        try:
            out.append(axes.unify(p, q))
        except AxisConflict as conflict:
            raise AxisConflict(
                f"dimension {i} of {axes.show(a)} does not fit that of {axes.show(b)}: {conflict}"
            ) from conflict
    return tuple(out)


def adopt_kinds(node: fx.Node, other: Dims) -> None:
    """A bare parameter does not say what its dimensions are: it takes the kinds of what it meets."""
    if node.op != "get_attr":
        return
    own = node.meta["dims"]
    for dim, model in zip(reversed(own), reversed(other), strict=False):
        leaves, theirs = axes.resolve(dim), axes.resolve(model)
        if leaves and theirs and len({axis.kind for axis in theirs}) == 1:
            for axis in leaves:
                axis.kind = theirs[0].kind


def matmul(inf: Inference, node: fx.Node, _: None) -> Dims:
    a, b = inf.dims(node.args[0]), inf.dims(node.args[1])
    if len(a) != len(b) or len(a) < 2:
        raise AxisConflict(f"a product of {axes.show(a)} and {axes.show(b)} is not supported")
    if any(axis.kind == Kind.BATCH for axis in a[-1]):
        raise AxisConflict(f"it runs {ACROSS_BATCH}")
    lead = tuple(axes.unify(p, q) for p, q in zip(a[:-2], b[:-2], strict=True))
    axes.unify(a[-1], b[-2])
    return (*lead, a[-2], b[-1])


def reduction(inf: Inference, node: fx.Node, _: None) -> Dims:
    x = inf.dims(node.args[0])
    dim, keep = node.kwargs["dim"], node.kwargs["keepdim"]
    gone = set(dim)  # type: ignore[arg-type]
    if any(axis.kind == Kind.BATCH for i in gone for axis in x[i]):
        raise AxisConflict(f"it runs {ACROSS_BATCH}")
    if node.target is torch.mean:
        for i in gone:
            for axis in x[i]:
                if axis.kind == Kind.CHANNEL:
                    axis.freeze("a mean is taken over it, whose divisor would change")
    return tuple(() if i in gone else d for i, d in enumerate(x) if keep or i not in gone)


def block(inf: Inference, node: fx.Node, _: None) -> Dims:
    source, dim, count = node.args[0], node.args[1], node.args[3]
    x = inf.dims(source)
    assert isinstance(dim, int) and isinstance(count, int)
    if axes.size(x[dim]) % count:
        raise AxisConflict(f"{axes.size(x[dim])} elements do not make {count} equal blocks")
    stream = list(reversed(x[dim]))
    blocks = axes.take(stream, count, ("s", "c"))
    for axis in axes.resolve(blocks):
        axis.freeze("blocks of a fused projection")
    return (*x[:dim], tuple(reversed(stream)), *x[dim + 1 :])


def part(inf: Inference, node: fx.Node, _: None) -> Dims:
    x = inf.dims(node.args[0])
    dim, start, stop = node.args[1], node.args[2], node.args[3]
    assert isinstance(dim, int) and isinstance(start, int) and isinstance(stop, int)
    for axis in x[dim]:
        axis.freeze("parts of fused layers")
    taken = Axis(node.name, stop - start, Kind.CHANNEL, "c", frozen="a part of fused layers")
    return (*x[:dim], (taken,), *x[dim + 1 :])


FUNCTION_RULES: dict[Any, Rule] = {
    einops.rearrange: rearrange,
    einops.repeat: repeat,
    **dict.fromkeys(ops.ELEMENTWISE, elementwise),
    torch.matmul: matmul,
    **dict.fromkeys(ops.REDUCTIONS, reduction),
    ops.take_block: block,
    ops.take_range: part,
}


def infer(program: Program) -> None:
    """Give every node its axis type in ``node.meta["dims"]``, and its parameters' in ``node.meta["params"]``."""
    inference = Inference(program)
    for node in program.graph.nodes:
        node.meta.pop("params", None)
        inference.visit(node)
