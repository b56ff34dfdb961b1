"""Lower a quantized program to ONNX: integers, unrolled over the time steps."""

from __future__ import annotations

import json

import onnx_ir as ir
from torch import fx

from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes, ops
from svitc.ir.axes import Dims, Kind
from svitc.ir.outputs import as_tuple
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT
from svitc.onnx.float_rules import apply_rule
from svitc.onnx.target import Target
from svitc.onnx.unrolled.builder import Steps, UnrolledBuilder, timeless
from svitc.onnx.unrolled.rules import FUNCTION_RULES, MODULE_RULES, attribute

VIEW_KEY = "svitc.view"  # metadata of a neuron's node: how its spikes lie, as an einops pattern and sizes


def lower_nodes(
    program: Program, gains: dict[fx.Node, int], x_name: str, target: Target
) -> tuple[UnrolledBuilder, ir.Value, list[ir.Value]]:
    """Emit every node of a quantized program.

    Args:
        program: the quantized program.
        gains: gains of the nodes that are emitted at another scale (step_gain.py).
        x_name: name of the model's input.
        target: what the file is written for.

    Returns:
        the builder with the emitted nodes, the input and the outputs.

    Raises:
        UnsupportedError: the program has a form or a layer without an integer lowering.
    """
    b = UnrolledBuilder(program, target)
    b.gains = gains
    x: ir.Value | None = None
    outputs: list[ir.Value] = []
    for node in program.graph.nodes:
        b.enter(node)
        if node.op == "placeholder":
            view = layout.fresh(program.type_of(node))
            x = ir.Value(name=x_name, shape=ir.Shape(layout.shape(view)), type=FLOAT)
            b.at_node[node] = _input(b, x, view)
        elif node.op == "output":
            outputs = [_output(b, value) for value in map(b.of, as_tuple(node.args[0]))]
        else:
            result = _rule(b, node)
            if axes.shape(result.view) != program.shape_of(node):
                shapes = f"{axes.shape(result.view)}, its type is {program.shape_of(node)}"
                raise InternalError(f"{node.target} was lowered with shape {shapes}", where=node.meta.get("source"))
            module = program.module_of(node)
            if ops.is_neuron(module):
                _describe(result, str(node.target))
            b.at_node[node] = b.run_layer_by_layer(result) if ops.has_state(module) else result
    if x is None or not outputs:
        raise InternalError("the program has no input or no output")
    return b, x, outputs


def _input(b: UnrolledBuilder, x: ir.Value, view: Dims) -> Steps:
    """Split the model's input into its time steps, if it has any."""
    if all(token.kind != Kind.TIME for dim in view for token in dim):
        return Steps((x,), view, view)
    dims = timeless(view)
    values = b.ops("Split", [x], [dims] * b.steps, {"axis": 0, "num_outputs": b.steps}, helper="steps")
    return Steps(tuple(values), dims, view)


def _output(b: UnrolledBuilder, s: Steps) -> ir.Value:
    """Emit an output, with its time steps concatenated if it has any."""
    dims = timeless(s.view)
    axis = next((i for i, dim in enumerate(s.view) if any(token.kind == Kind.TIME for token in dim)), None)
    if axis is None:
        return b.read_step(s, 0, dims)
    if s.view[axis][0].kind != Kind.TIME:
        raise UnsupportedError("an output whose time is an inner part of a dimension has no integer lowering")
    return b.op("Concat", [b.read_step(s, t, dims) for t in range(b.steps)], s.view, {"axis": axis}, helper="logits")


def _rule(b: UnrolledBuilder, node: fx.Node) -> Steps:
    """Apply the rule for one node of the program."""
    if node.op == "get_attr":
        return attribute(b, node, None)
    return apply_rule(b, node, MODULE_RULES, FUNCTION_RULES, "integer")


def _describe(spikes: Steps, path: str) -> None:
    """Record in the metadata of a neuron's node how the spikes of all its steps form the program's array."""
    letters = {id(token): f"a{i}" for i, token in enumerate(layout.flat(spikes.view))}
    sizes = {letters[id(t)]: t.size for t in layout.flat(spikes.view) if t.kind not in (Kind.BATCH, Kind.TIME)}

    def side(dims: Dims) -> str:
        return " ".join("(" + " ".join(letters[id(token)] for token in dim) + ")" for dim in dims)

    time = [letters[id(t)] for t in layout.flat(spikes.view) if t.kind == Kind.TIME]
    node = spikes.values[0].producer()
    assert node is not None
    pattern = f"{' '.join(time) or '()'} {side(spikes.dims)} -> {side(spikes.view)}"
    node.metadata_props[VIEW_KEY] = json.dumps(
        {"path": path, "pattern": pattern, "sizes": sizes, "values": [value.name for value in spikes.values]}
    )


__all__ = ["VIEW_KEY", "lower_nodes"]
