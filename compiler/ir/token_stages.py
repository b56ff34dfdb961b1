"""Token stages: the parts of a network that compute every token alone, or in attention, around a residual stream.

A token that leaves such a stage out keeps the value that it has in the stream, and nothing else changes for the others
than that attention no longer sees it. Stages are found by the axes of the types alone:

    entry    a value that everything before it passes through
    ...      projections of single tokens, batch norms, neurons, products and sums over all tokens
    exit     the entry plus what was computed, with the same axes

Convolutions over several pixels and pools are not in any stage.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import einops
import torch
from torch import fx, nn

from svitc.ir import axes, ops
from svitc.ir.axes import Dim, Dims, Kind
from svitc.ir.graph import type_of
from svitc.ir.operators.pointwise import POINTWISE
from svitc.ir.operators.several import SEVERAL
from svitc.ir.operators.slicing import concatenate, select_indices, slice_range
from svitc.ir.program import Program

ELEMENTWISE = {operator.function for operator in (*POINTWISE, *SEVERAL)}


@dataclass(frozen=True)
class TokenStage:
    """A part of a network that tokens can leave out.

    Attributes:
        name: path of its first layer, such as ``blocks.0.attn.q_conv``.
        entry: the stream before it.
        exit: the stream behind it, a sum.
        nodes: the nodes behind ``entry``, up to ``exit``.
        tokens: the axes whose product are the tokens, outermost first.
        region: which stages follow one another directly: those of one number.
    """

    name: str
    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    tokens: Dim
    region: int

    @property
    def count(self) -> int:
        """The number of tokens."""
        return axes.size(self.tokens)


def token_stages(program: Program) -> list[TokenStage]:
    """Return the stages of a program, in order."""
    order = list(program.graph.nodes)
    place = {node: i for i, node in enumerate(order)}
    stages: list[TokenStage] = []
    entry: fx.Node | None = None  # where only views lead from it to the next cut
    for before, after in pairwise(_cuts(order, place)):
        start = before if entry is None else entry
        nodes = tuple(order[place[start] + 1 : place[after] + 1])
        entry = start if all(node.target is einops.rearrange for node in nodes) else None
        if entry is None and _is_stage(program, start, nodes):
            first = next(str(n.target) for n in nodes if ops.is_projection(program.module_of(n)))
            follows = bool(stages) and stages[-1].exit is start
            region = stages[-1].region + (not follows) if stages else 0
            stages.append(TokenStage(first, start, after, nodes, tokens_of(start), region))
    return stages


def _cuts(order: list[fx.Node], place: dict[fx.Node, int]) -> Iterator[fx.Node]:
    """Yield the nodes that everything computed before them passes through."""
    reach = 0
    for i, node in enumerate(order):
        if node.op in ("get_attr", "output"):
            continue
        if reach <= i:
            yield node
        reach = max([reach, *(place[user] for user in node.users)])


def tokens_of(node: fx.Node) -> Dim:
    """Return the axes of pixels in a node's type, in order."""
    return tuple(axis for dim in type_of(node) for axis in dim if axis.kind == Kind.PIXEL)


def _is_stage(program: Program, entry: fx.Node, nodes: tuple[fx.Node, ...]) -> bool:
    """Return whether the nodes behind a value are a stage, the last of them its exit."""
    tokens, end, inside = tokens_of(entry), nodes[-1], {entry, *nodes}
    if end.target is not operator.add or len(set(tokens)) != len(tokens) or axes.size(tokens) < 2:
        return False
    if _sized(type_of(entry)) != _sized(type_of(end)) or tokens_of(end) != tokens:
        return False
    if not any(_is_view_of(arg, entry) for arg in end.args):
        return False
    parameters = {source for node in nodes for source in node.all_input_nodes if source not in inside}
    if any(source.op != "get_attr" for source in parameters):
        return False
    is_computed = any(ops.is_projection(program.module_of(node)) for node in nodes)
    return is_computed and all(_is_pointwise(program, node, set(tokens)) for node in (*parameters, *nodes))


def _sized(dims: Dims) -> set[axes.Axis]:
    """Return the axes of a type that are not of size 1."""
    return {axis for dim in dims for axis in dim if axis.size > 1}


def _is_view_of(node: object, source: fx.Node) -> bool:
    while isinstance(node, fx.Node) and node.target is einops.rearrange and node is not source:
        node = node.all_input_nodes[0]
    return node is source


def _is_pointwise(program: Program, node: fx.Node, tokens: set[axes.Axis]) -> bool:
    """Return whether an operation computes every token alone, or sums over all of them."""
    module: Any = program.module_of(node)
    if node.op == "get_attr":
        return tokens.isdisjoint(_sized(type_of(node)))
    x = type_of(node.all_input_nodes[0])
    if isinstance(module, ops.CONVOLUTIONS):
        return tokens.isdisjoint(x[1]) and _is_of_single_pixels(module)
    if isinstance(module, nn.Linear):
        return tokens.isdisjoint(x[-1])
    if ops.is_batch_norm(module):
        return tokens.isdisjoint(x[1])
    if module is not None:
        return ops.is_neuron(module) or isinstance(module, ops.FixedPoint)
    if node.target in ops.REDUCTIONS:
        reduced: Any = node.kwargs["dim"]
        return _all_or_none(tokens, [axis for i in reduced for axis in x[i]])
    if node.target is torch.matmul:
        return _all_or_none(tokens, x[-1])
    if node.target in (ops.take_block, ops.take_range):
        place: Any = node.args[1]
        return tokens.isdisjoint(x[place])
    if node.target in (concatenate, select_indices, slice_range):
        dim: Any = node.kwargs["dim"]
        return tokens.isdisjoint(x[dim])
    return node.target in (*ops.ELEMENTWISE, *ELEMENTWISE, einops.rearrange)


def _all_or_none(tokens: set[axes.Axis], summed: Dim | list[axes.Axis]) -> bool:
    """Return whether a sum over some axes is one over all tokens, or one within each."""
    return tokens.isdisjoint(summed) or tokens <= set(summed)


def _is_of_single_pixels(module: nn.Conv1d | nn.Conv2d) -> bool:
    if isinstance(module.padding, str):
        return False
    return set(module.kernel_size) == {1} == set(module.stride) and set(module.padding) == {0}


__all__ = ["TokenStage", "token_stages", "tokens_of"]
