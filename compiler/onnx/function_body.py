"""The body of a neuron: the nodes of a model-local function, which a file calls or holds in the function's place.

One node of each neuron, the one that gives its spikes (at the first step), says in its metadata which neuron it is.
Files are cut at these nodes, whether the neuron is a call or many nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import onnx_ir as ir

DOMAIN = "svitc"
# metadata of the node that gives a neuron's spikes: its kind, its layer's path, the name of its current, and whether
# the current is the same at every step and is given once
KIND_KEY, PATH_KEY, CURRENT_KEY, STATIC_KEY = "svitc.neuron", "svitc.path", "svitc.current", "svitc.static"
COMPARISONS = ("Greater", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Not")


class NamedKind(Protocol):
    """What names and documents a neuron's function."""

    @property
    def title(self) -> str:
        """The function's name."""

    @property
    def formula(self) -> str:
        """The function's documentation: its equations."""


class FunctionBody:
    """The nodes of one model-local function under construction.

    Attributes:
        nodes: the nodes emitted so far, in order.
        inputs: the function's inputs by name, in order.
    """

    def __init__(self, inputs: Iterable[str]) -> None:
        self.nodes: list[ir.Node] = []
        self.inputs = {name: ir.val(name) for name in inputs}

    def op(self, op_type: str, name: str, *inputs: ir.Value, **attributes: float) -> ir.Value:
        """Emit one node with one output; the node and the value share ``name``."""
        value = ir.val(name)
        self.nodes.append(ir.node(op_type, inputs, attributes or None, outputs=[value], name=name))
        return value


def unique_name(title: str, used_names: Collection[str]) -> str:
    """Return ``title``, with a number behind it where a function has that name already."""
    name, i = title, 1
    while name in used_names:
        i += 1
        name = f"{title}_{i}"
    return name


def neuron_function(
    kind: NamedKind, body: FunctionBody, spikes: ir.Value, used_names: Collection[str], opset: int
) -> ir.Function:
    """Wrap a finished body as a model-local function with a unique name."""
    name = unique_name(kind.title, used_names)
    graph = ir.Graph(
        list(body.inputs.values()),
        [spikes],
        nodes=body.nodes,
        opset_imports={"": opset},
        name=name,
        doc_string=kind.formula,
    )
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def inlined(
    function: ir.Function, inputs: Sequence[ir.Value], step: ir.Shape, whole: ir.Shape
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Take the nodes out of a function that nothing calls, and give their values types and shapes.

    Args:
        function: the function; left empty.
        inputs: values that the nodes read instead of the function's inputs.
        step: shape of one time step's values.
        whole: shape of the values of all steps, which a Concat in the function joins.

    Returns:
        the nodes, and what were the function's outputs.
    """
    nodes, outputs = list(function), list(function.outputs)
    function.remove(nodes)
    function.outputs.clear()
    for formal, value in zip(function.inputs, inputs, strict=True):
        ir.convenience.replace_all_uses_with(formal, value)
    joined: set[ir.Value | None] = set()
    for node in nodes:
        if node.op_type == "Concat" or not joined.isdisjoint(node.inputs):
            joined.update(node.outputs)
        for output in node.outputs:
            output.type = _element_type(node)
            output.shape = ir.Shape(whole if output in joined else step)
    return nodes, outputs


def _element_type(node: ir.Node) -> ir.TypeProtocol | None:
    """Return the type of what a node of a neuron's body gives."""
    if node.op_type == "Cast":
        return ir.TensorType(ir.DataType(node.attributes["to"].as_int()))
    if node.op_type in COMPARISONS:
        return ir.TensorType(ir.DataType.BOOL)
    last = node.inputs[-1]  # of a Where the first is its condition
    return None if last is None else last.type
