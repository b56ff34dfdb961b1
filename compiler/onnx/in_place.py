"""Proof that a step may write a state over the one that it read, in the same memory (IO binding of a runtime).

ONNX Runtime runs a node once all nodes that it depends on are done, writes a graph output by the node that computes it,
and never writes a graph input. So one buffer may be both if all that read the state before the step are done when the
state after it is written. That holds for any order and any number of threads, and after any optimization that keeps
what a node depends on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from svitc.onnx.states import AFTER, BEFORE, PACKED, PACKED_AFTER

# nodes whose output a runtime may leave in the memory of their first input
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
# nodes that read each element of an input of the output's shape before they write that element, and no other one
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Where"}
# nodes with which ONNX Runtime may join an addition behind them, so that it is elementwise no more
_PRODUCTS = {"Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"}


@dataclass(frozen=True, eq=False)
class _Node:
    """What counts of a node: its operator and the names of its inputs and outputs."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def reusable(graph: ir.Graph) -> set[str]:
    """Return the names of the states of a graph under construction that a step may overwrite (``proven``)."""
    nodes = [
        _Node(node.op_type, tuple(v.name or "" for v in node.inputs if v), tuple(v.name or "" for v in node.outputs))
        for node in graph
    ]
    shapes = {str(v.name): str(v.shape) for v in (*graph.inputs, *graph.outputs)}
    return proven(nodes, shapes)


def reusable_in(model: onnx.ModelProto) -> set[str]:
    """Return the names of the states of a file that a step may overwrite (``proven``)."""
    nodes = [_Node(node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node]
    shapes = {v.name: str(v.type.tensor_type.shape) for v in (*model.graph.input, *model.graph.output)}
    return proven(nodes, shapes)


def proven(nodes: Sequence[_Node], shapes: dict[str, str]) -> set[str]:
    """Return the states ``state.X`` whose memory may become that of ``next.X``; of a packed one, ``state`` of ``next``.

    Every node that reads the state, or a view of it, must be one that the writer of ``next.X`` depends on, or that
    writer itself if it is elementwise and the state has the shape of its output.

    Args:
        nodes: the nodes in order.
        shapes: shape of each graph input and output, as text.
    """
    producers = {name: node for node in nodes for name in node.outputs}
    states = [(name, AFTER + name.removeprefix(BEFORE)) for name in shapes if name.startswith(BEFORE)]
    states += [(PACKED, PACKED_AFTER)] if PACKED in shapes else []
    return {before for before, after in states if _is_proven(nodes, producers, shapes, before, after)}


def _is_proven(
    nodes: Sequence[_Node], producers: dict[str, _Node], shapes: dict[str, str], before: str, after: str
) -> bool:
    """Return whether all that read one state are done when its successor is written."""
    writer = producers.get(after)
    if writer is None or shapes[before] != shapes.get(after):
        return False
    views, readers = {before}, []
    for node in nodes:
        if views.isdisjoint(node.inputs):
            continue
        readers.append(node)
        if node.op_type in _VIEWS:
            views |= set(node.outputs)
    earlier = _ancestors(writer, producers)
    others = [name for name in writer.inputs if name != before]
    joins = any(name in producers and _takes_a_sum(producers[name]) for name in others)
    elementwise = writer.op_type in _ELEMENTWISE and views.isdisjoint(others) and not joins
    return all(reader in earlier or (reader is writer and elementwise) for reader in readers)


def _takes_a_sum(node: _Node) -> bool:
    """Return whether a runtime may make an addition behind a node a part of it."""
    return node.op_type in _PRODUCTS and (node.op_type != "Gemm" or len(node.inputs) < 3)


def _ancestors(node: _Node, producers: dict[str, _Node]) -> set[_Node]:
    """Return the nodes that a node depends on, without itself."""
    found: set[_Node] = set()
    ahead: list[Iterable[str]] = [node.inputs]
    while ahead:
        for name in ahead.pop():
            producer = producers.get(name)
            if producer is not None and producer not in found:
                found.add(producer)
                ahead.append(producer.inputs)
    return found


__all__ = ["proven", "reusable", "reusable_in"]
