"""Lower a program to one ONNX model of default-domain operators, and look at the file that comes out.

Neurons are calls of model-local functions, whose bodies hold default-domain operators too, so that any
runtime runs the file and any viewer shows a neuron as one node.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from torch import fx

from svitc.errors import InternalError
from svitc.ir import axes, ops
from svitc.ir.program import Program, Stage
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT, Builder, Stored
from svitc.onnx.float_rules import FUNCTION_RULES, MODULE_RULES, apply_rule, attribute
from svitc.onnx.neuron_functions import DOMAIN
from svitc.onnx.target import CPU, INT2_OPSET, Target
from svitc.onnx.unrolled.lower import lower_nodes
from svitc.onnx.unrolled.matmuls import stored_widths
from svitc.onnx.unrolled.step_gain import step_gains

IR_VERSIONS = {INT2_OPSET: 13}  # what that opset came with,
IR_VERSION = 10  # and opset 21; read by every ONNX Runtime from 1.18 on
INPUT, OUTPUT = "x", "logits"


def lower(program: Program, target: Target = CPU) -> ir.Model:
    """The ONNX model of a program at any stage, in float32 or, of a quantized one, integers.

    Input ``x`` and output ``logits`` have the program's own shapes, the batch dynamic as ``N``; within, time
    and batch lie as one leading dimension (layout.py). Each layer's node is named by the layer's path, its
    weights ``<path>.weight`` and so on. Weights are not copied where they are stored as they are. Linear in
    the size of the program.

    Raises:
        UnsupportedError: a layer whose options no ONNX operator has.
        InternalError: an operation that is not canonical.
    """
    if program.stage >= Stage.QUANTIZED and any(ops.is_quantized(m) for m in program.module.modules()):
        if target.narrowest == 2 and 2 in stored_widths(program):
            target = replace(target, opset=INT2_OPSET)  # the file's operators, too, are of that version
        return _model(program, *lower_nodes(program, step_gains(program), INPUT, target))
    return _model(program, *_nodes(program, target))


def _nodes(program: Program, target: Target) -> tuple[Builder, ir.Value, ir.Value]:
    b = Builder(program, target)
    x: ir.Value | None = None
    logits: ir.Value | None = None
    for node in program.graph.nodes:
        b.enter(node)
        if node.op == "placeholder":
            dims = layout.fresh(program.type_of(node))
            x = ir.Value(name=INPUT, shape=ir.Shape(layout.shape(dims)), type=FLOAT)
            b.stored[node] = b.store(x, dims)
        elif node.op == "output":
            stored = b.at(node.args[0])
            logits = b.read(stored, stored.view)
        else:
            b.stored[node] = _rule(b, node)
            _verify(program, node, b.stored[node])
    if x is None or logits is None:
        raise InternalError("the program has no input or no output")
    return b, x, logits


def _model(program: Program, b: Builder, x: ir.Value, logits: ir.Value) -> ir.Model:
    if logits.producer() is None:  # the input or a parameter itself: an output must come from a node
        b.nodes.append(ir.node("Identity", [logits], outputs=[logits := _like(logits)], name="logits"))
    logits.name = OUTPUT
    graph = ir.Graph(
        [x],
        [logits],
        nodes=b.nodes,
        initializers=b.initializers,
        opset_imports={"": b.target.opset, DOMAIN: 1},
        name=str(program.info.get("arch") or "svit"),
    )
    version = IR_VERSIONS.get(b.target.opset, IR_VERSION)
    return ir.Model(graph, ir_version=version, producer_name="svitc", functions=list(b.functions.values()))


def _rule(b: Builder, node: fx.Node) -> Stored:
    if node.op == "get_attr":
        return attribute(b, node, None)
    return apply_rule(b, node, MODULE_RULES, FUNCTION_RULES, "ONNX")


def _verify(program: Program, node: fx.Node, stored: Stored) -> None:
    """What a rule made must have the shape that inference found."""
    if axes.shape(stored.view) != program.shape_of(node):
        shapes = f"shape {axes.shape(stored.view)}, its type is {program.shape_of(node)}"
        raise InternalError(f"{node.target} was lowered with {shapes}", where=node.meta.get("source"))


def _like(value: ir.Value) -> ir.Value:
    return ir.Value(name=OUTPUT, shape=value.shape, type=FLOAT)


def to_bytes(model: ir.Model) -> bytes:
    """The file. The same program gives the same bytes."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


__all__ = ["INPUT", "OUTPUT", "lower", "to_bytes"]
