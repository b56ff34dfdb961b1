"""Lower a program to one ONNX model.

Everything consists of default-domain operators. A neuron is the nodes of its kind's function, named by its layer, or
where the target keeps functions one node that calls it.
"""

from __future__ import annotations

import json
from dataclasses import replace

import onnx_ir as ir

from svitc.errors import UnsupportedError
from svitc.ir import ops
from svitc.ir.outputs import INPUT, LOGITS
from svitc.ir.program import Program, Stage
from svitc.onnx.builder import FLOAT, Builder
from svitc.onnx.float_rules import FUNCTION_RULES, MODULE_RULES
from svitc.onnx.function_body import DOMAIN, KIND_KEY
from svitc.onnx.in_place import reusable
from svitc.onnx.qdq.lower import lower_nodes as qdq_nodes
from svitc.onnx.states import STATES_KEY
from svitc.onnx.step_order import in_step_order, may_be_joined
from svitc.onnx.stored_nodes import emit_nodes
from svitc.onnx.target import CPU, WEIGHT_OPSETS, Form, Target
from svitc.onnx.tensors_apart import put_back, structure_of
from svitc.onnx.unrolled.lower import lower_nodes
from svitc.onnx.unrolled.matmuls import stored_widths
from svitc.onnx.words import input_words, output_words
from svitc.support.human import byte_size

IR_VERSIONS = {18: 8, 21: 10, 25: 13}  # the IR versions that these opsets were released with
OUTPUT = LOGITS  # the name of a single output
LIMIT_BYTES = 2**31 - 1  # of a protobuf message
MOST_BYTES = 2**31 - 2**24  # of weights: protobuf's limit, less what the nodes of a large file take


def lower(program: Program, target: Target = CPU, streaming: bool = False) -> ir.Model:
    """Lower a program at any stage to an ONNX model: float32, or integer for a quantized program.

    The input ``image`` and the outputs (``logits``, where there is one) have the program's shapes, with the batch
    dynamic as ``N``; inside, time and batch are stored as one leading dimension (layout.py). Each layer's node is named
    by the layer's path, its weights ``<path>.weight`` and so on. Weights that are stored unchanged are not copied. The
    time is linear in the size of the program.

    Args:
        program: the program; for a streaming file that of a single step (``step_program``).
        target: what the file is written for.
        streaming: whether the file runs one time step per call: membranes and sums over time are further inputs and
            outputs (states.py).

    Raises:
        UnsupportedError: a layer has options that no ONNX operator supports.
        InternalError: an operation is not canonical.
    """
    if program.stage >= Stage.QUANTIZED and any(ops.is_quantized(m) for m in program.module.modules()):
        bits = max(target.narrowest, min(stored_widths(program), default=8))
        target = replace(target, opset=WEIGHT_OPSETS.get(bits, target.opset))  # an opset applies to the entire file
        lower_quantized = qdq_nodes if target.form == Form.QDQ else lower_nodes
        return _model(program, *lower_quantized(program, INPUT, target, streaming))
    b = Builder(program, target, streaming)
    return _model(program, *emit_nodes(b, INPUT, MODULE_RULES, FUNCTION_RULES, "ONNX"))


def _model(program: Program, b: Builder, x: ir.Value, values: list[ir.Value]) -> ir.Model:
    """Assemble the emitted nodes into a model."""
    outputs: list[ir.Value] = []
    x.doc_string = input_words(program, b.streaming)
    for value, name, words in zip(values, program.output_names, output_words(program), strict=True):
        output = value
        if _serves_otherwise(value, [*outputs, *(state.after for state in b.states)]):
            output = ir.Value(name=name, shape=value.shape, type=FLOAT)
            b.nodes.append(ir.node("Identity", [value], outputs=[output], name=name))
        elif b.streaming and may_be_joined(value):
            output = ir.Value(name=name, shape=value.shape, type=FLOAT)
            as_it_is = b.integers("shape", [0] * len(value.shape or ()))
            b.nodes.append(ir.node("Reshape", [value, as_it_is], outputs=[output], name=name))
        output.name, output.doc_string = name, words
        outputs.append(output)
    nodes = in_step_order(b.nodes, b.states, outputs) if b.streaming else b.nodes
    graph = ir.Graph(
        [x, *(state.before for state in b.states)],
        [*outputs, *(state.after for state in b.states if state.after is not None)],
        nodes=nodes,
        initializers=b.initializers,
        opset_imports={"": b.target.opset} | ({DOMAIN: 1} if b.functions else {}),
        name=str(program.info.get("arch") or "svit"),
    )
    version, functions = IR_VERSIONS[b.target.opset], list(b.functions.values())
    model = ir.Model(graph, ir_version=version, producer_name="svitc", functions=functions)
    if b.streaming:
        in_place = reusable(graph)
        entries = [{**state.to_json(), "in_place": state.before.name in in_place} for state in b.states]
        model.metadata_props[STATES_KEY] = json.dumps(entries)
    return model


def _serves_otherwise(value: ir.Value, outputs: list[ir.Value | None]) -> bool:
    """Return whether a value cannot be an output under the output's name, so that the output must be a copy.

    It may be the input or a parameter, while ONNX wants an output to come from a node; an output under another name;
    the spikes of a neuron, at which files are cut; or a value that other nodes read.
    """
    producer = value.producer()
    is_neuron = producer is not None and KIND_KEY in producer.metadata_props
    return producer is None or is_neuron or bool(value.uses()) or any(o is value for o in outputs)


def to_bytes(model: ir.Model) -> bytes:
    """Serialize a model; equal programs give equal bytes.

    Raises:
        UnsupportedError: the file would be larger than protobuf can write.
    """
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    proto, tensors = structure_of(model)
    structure = proto.SerializeToString(deterministic=True)
    if weights > MOST_BYTES or weights + len(structure) > LIMIT_BYTES:
        raise UnsupportedError(
            f"the ONNX file would have {byte_size(weights)} of weights; in one piece it can have 2 GB at most",
            hint="Use a smaller model: svitc also writes a file of the original, in float32, to compare with.",
        )
    return put_back(structure, tensors)


def forget_weights(model: ir.Model) -> None:
    """Let go of the weights of a model that is not used again.

    Its values and nodes refer to each other, so that Python would keep them all until it looks for such cycles.
    """
    for value in model.graph.initializers.values():
        value.const_value = None


__all__ = ["INPUT", "OUTPUT", "forget_weights", "lower", "to_bytes"]
