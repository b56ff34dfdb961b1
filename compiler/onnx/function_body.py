"""The body of a neuron: the nodes of a model-local function, which a file calls or holds in the function's place.

One node of each neuron, the one that gives its spikes (at the first step), says in its metadata which neuron it is.
Files are cut at these nodes, whether the neuron is a call or many nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

import onnx_ir as ir

DOMAIN = "svitc"
# metadata of the node that gives a neuron's spikes: its kind, its layer's path, the name of its current, and whether
# the current is the same at every step and is given once
KIND_KEY, PATH_KEY, CURRENT_KEY, STATIC_KEY = "svitc.neuron", "svitc.path", "svitc.current", "svitc.static"
COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not")


class FunctionBody:
    """The nodes of one neuron under construction.

    Args:
        names: names of the inputs, the currents first.
        values: what the nodes read as these inputs.

    Attributes:
        nodes: the nodes emitted so far, in order.
        inputs: the inputs by name, in order.
        outputs: the neuron's spikes; empty until they are emitted.
    """

    def __init__(self, names: Iterable[str], values: Iterable[ir.Value]) -> None:
        self.nodes: list[ir.Node] = []
        self.inputs = dict(zip(names, values, strict=True))
        self.outputs: list[ir.Value] = []

    def op(self, op_type: str, name: str, *inputs: ir.Value, **attributes: float) -> ir.Value:
        """Emit one node with one output; the node and the value share ``name``."""
        value = ir.val(name)
        self.nodes.append(ir.node(op_type, inputs, attributes or None, outputs=[value], name=name))
        return value

    def describe(self, step: ir.Shape, whole: ir.Shape) -> None:
        """Give all values types and shapes.

        Args:
            step: shape of one time step's values.
            whole: shape of the values of all steps, which a Concat joins.
        """
        joined: set[ir.Value | None] = set()
        for node in self.nodes:
            if node.op_type == "Concat" or not joined.isdisjoint(node.inputs):
                joined.update(node.outputs)
            for output in node.outputs:
                output.type = _element_type(node)
                output.shape = ir.Shape(whole if output in joined else step)


class FunctionKind(Protocol):
    """A kind of neuron, which can be hashed and emits its own body."""

    @property
    def name(self) -> str:
        """Name of the kind of neuron."""

    @property
    def static(self) -> bool:
        """Whether the input current is the same at every step and is given once."""

    @property
    def carried(self) -> bool:
        """Whether the membrane is an input, and after the spikes an output."""

    @property
    def title(self) -> str:
        """Name of the function."""

    @property
    def formula(self) -> str:
        """Documentation: the neuron's equations."""

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs: the currents, PLIF's decay, and constants."""

    def body(self, values: Iterable[ir.Value]) -> FunctionBody:
        """Emit the nodes, which read these values as the inputs."""
        ...


def neuron_function(kind: FunctionKind, used_names: Collection[str], opset: int) -> ir.Function:
    """Write the model-local function of a kind of neuron.

    Args:
        kind: the kind of neuron.
        used_names: names of the model's other functions.
        opset: version of the default-domain operators.
    """
    body = kind.body([ir.val(name) for name in kind.inputs])
    name, i = kind.title, 1
    while name in used_names:  # two kinds may have one title
        i += 1
        name = f"{kind.title}_{i}"
    graph = ir.Graph(
        list(body.inputs.values()),
        body.outputs,
        nodes=body.nodes,
        opset_imports={"": opset},
        name=name,
        doc_string=kind.formula,
    )
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _element_type(node: ir.Node) -> ir.TypeProtocol | None:
    """Return the type of what a node of a neuron's body gives."""
    if node.op_type == "Cast":
        return ir.TensorType(ir.DataType(node.attributes["to"].as_int()))
    if node.op_type in COMPARISONS:
        return ir.TensorType(ir.DataType.BOOL)
    last = node.inputs[-1]  # of a Where the first is its condition
    return None if last is None else last.type
