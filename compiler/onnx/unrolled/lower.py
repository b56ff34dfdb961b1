"""Lower a quantized program to ONNX: integers, unrolled over the time steps."""

from __future__ import annotations

import json

import onnx_ir as ir
from torch import fx

from svitc.errors import InternalError
from svitc.ir import axes, ops
from svitc.ir.axes import Dims, Kind
from svitc.ir.outputs import as_tuple
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.float_rules import apply_rule
from svitc.onnx.spike_views import VIEW_KEY
from svitc.onnx.target import Target
from svitc.onnx.unrolled import whole as whole_rules
from svitc.onnx.unrolled.builder import UnrolledBuilder
from svitc.onnx.unrolled.rules import FUNCTION_RULES, MODULE_RULES, attribute
from svitc.onnx.unrolled.step_gain import step_gains
from svitc.onnx.unrolled.steps import Steps, timeless
from svitc.onnx.unrolled.whole import whole_nodes


def lower_nodes(
    program: Program, x_name: str, target: Target, streaming: bool = False
) -> tuple[UnrolledBuilder, ir.Value, list[ir.Value]]:
    """Emit every node of a quantized program.

    Args:
        program: the quantized program.
        x_name: name of the model's input.
        target: what the file is written for.
        streaming: whether the file runs one time step per call.

    Returns:
        the builder with the emitted nodes, the input and the outputs.

    Raises:
        UnsupportedError: a layer has options that no ONNX operator supports.
    """
    b = UnrolledBuilder(program, target, streaming)
    whole = whole_nodes(program, FUNCTION_RULES, tuple(MODULE_RULES))
    b.gains = {} if streaming else step_gains(program, whole)  # any number of steps may follow
    x: ir.Value | None = None
    outputs: list[ir.Value] = []
    for node in program.graph.nodes:
        b.enter(node)
        if node.op == "placeholder":
            x, dims, view = b.graph_input(node, x_name)
            b.at_node[node] = Steps((x,), dims, view) if streaming else _input(b, x, view)
        elif node.op == "output":
            outputs = [_output(b, value) for value in as_tuple(node.args[0])]
        elif node in whole or (node.target in ops.VIEWS and node.all_input_nodes[0] not in b.at_node):
            b.stored[node] = apply_rule(b, node, whole_rules.MODULE_RULES, whole_rules.FUNCTION_RULES, "ONNX")
            _verify(program, node, b.stored[node].view)
        else:
            result = _rule(b, node)
            _verify(program, node, result.view)
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
    dims, steps = timeless(view), b.steps_of(view)
    values = b.ops("Split", [x], [dims] * steps, {"axis": 0, "num_outputs": steps}, helper="steps")
    return Steps(tuple(values), dims, view)


def _output(b: UnrolledBuilder, node: object) -> ir.Value:
    """Emit an output, with its time steps concatenated if it has any."""
    assert isinstance(node, fx.Node)
    steps = b.at_node.get(node)
    if steps is None or (steps.time and steps.view[0] != steps.time):
        stored = b.at(node)
        return b.read(stored, stored.view)
    dims = steps.timeless
    if not steps.time:
        return b.read_step(steps, 0, dims)
    count = b.steps_of(steps.view)
    return b.op("Concat", [b.read_step(steps, t, dims) for t in range(count)], steps.view, {"axis": 0}, helper="logits")


def _verify(program: Program, node: fx.Node, view: Dims) -> None:
    """Raise InternalError unless a rule's result has the inferred shape."""
    if axes.shape(view) != program.shape_of(node):
        shapes = f"shape {axes.shape(view)}, its type is {program.shape_of(node)}"
        raise InternalError(f"{node.target} was lowered with {shapes}", where=node.meta.get("source"))


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

    time = [letters[id(t)] for t in spikes.time]
    node = spikes.values[0].producer()
    assert node is not None
    steps = time[0] if len(time) == 1 else f"({' '.join(time)})"
    pattern = f"{steps} {side(spikes.dims)} -> {side(spikes.view)}"
    if len(time) > 1:
        sizes |= {letters[id(t)]: t.size for t in spikes.time}
    node.metadata_props[VIEW_KEY] = json.dumps(
        {"path": path, "pattern": pattern, "sizes": sizes, "values": [value.name for value in spikes.values]}
    )


__all__ = ["lower_nodes"]
