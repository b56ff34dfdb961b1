"""The nodes of a model-local function, and the function that they become."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

import onnx_ir as ir

DOMAIN = "svitc"
KIND_KEY, STATIC_KEY = "svitc.neuron", "svitc.static"  # metadata of a neuron's function


class NamedKind(Protocol):
    """What names and documents a neuron's function."""

    @property
    def name(self) -> str:
        """Name of the kind of neuron."""

    @property
    def static(self) -> bool:
        """Whether the input current is the same at every step and is given once."""

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
        metadata_props={KIND_KEY: kind.name} | ({STATIC_KEY: "1"} if kind.static else {}),
    )
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])
