"""A streaming file is compared with its program at every step; what is wrong with it is found where it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from support import quantized
from support.measured import family
from svitc.data.inputs import random_inputs
from svitc.errors import InputError
from svitc.ir.program import Program
from svitc.onnx.export import export, export_step
from svitc.onnx.packed_state import pack_states
from svitc.onnx.states import states_of
from svitc.onnx.target import target_of
from svitc.passes.pipelines import quantize
from svitc.verification.stream_check import verify_stream
from svitc.verification.verdict import Verdict


def verdict_of(program: Program, change=None, target: str = "cpu") -> Verdict:
    """Verify a streaming file, after ``change`` of its model."""
    model = onnx.load_from_string(export_step(program, target_of(target, None)))
    if change is not None:
        change(model)
    inputs = random_inputs(program, 1, 1, seed=0)
    return verify_stream(program, model.SerializeToString(), export(program, target), inputs)


CASES = {
    "fp32": lambda: family("sdt", T=3),
    "int8": lambda: quantize(family("sdt", T=3))[0],
    "counts": lambda: quantized.case_of("ILIF"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_passes(case):
    verdict = verdict_of(CASES[case]())
    assert verdict.passed and verdict.calls in (2, 3, 4) and verdict.to_json()["calls"] == verdict.calls


def forgotten(model: onnx.ModelProto, path: str) -> None:
    """Pass on a membrane from before the step."""
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == f"next.{path}":
                node.output[i] = "charged"
    model.graph.node.append(onnx.helper.make_node("Identity", [f"state.{path}"], [f"next.{path}"]))


def slower(model: onnx.ModelProto) -> None:
    """Change the share of a membrane that is kept."""
    for tensor in model.graph.initializer:
        if tensor.name.startswith("lif.") and numpy_helper.to_array(tensor) == 0.5:
            tensor.CopyFrom(numpy_helper.from_array(np.array(0.4375, np.float32), tensor.name))


@pytest.mark.parametrize("case", ["fp32", "int8"])
def test_a_wrong_membrane_is_found_in_its_layer(case):
    program = CASES[case]()
    first, path, *_ = [str(node.target) for node in program.neurons()]
    assert verdict_of(program, lambda model: forgotten(model, path)).first_divergence == path
    assert verdict_of(program, slower).first_divergence == first


def test_a_wrong_count_of_steps_is_found_in_the_outputs():
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.output[0] == "next.steps")
        node.input[1] = node.input[0]

    verdict = verdict_of(CASES["int8"](), change)
    assert verdict.first_divergence == "logits"


def moved(model: onnx.ModelProto, node: int) -> str:
    """Let the first two parts of equal size change places in a packed state; return the first's name."""
    parts = states_of(model)[0].parts
    i, j = next((i, j) for j in range(len(parts)) for i in range(j) if parts[i].size == parts[j].size > 1)
    names = model.graph.node[node].input if node else model.graph.node[0].output
    names[i], names[j] = names[j], names[i]
    return parts[i].name


@pytest.mark.parametrize("node", [None, 0, -1], ids=["right", "read", "written"])
def test_a_packed_file_is_checked_itself(node):
    program, names = CASES["int8"](), []
    model = onnx.load_from_string(pack_states(export_step(program)))
    if node is not None:
        names.append(moved(model, node))
    inputs = random_inputs(program, 1, 1, seed=0)
    verdict = verify_stream(program, model.SerializeToString(), export(program), inputs)
    assert verdict.passed == (node is None)
    assert [f"state.{layer.name}" for layer in verdict.layers.values() if layer.membranes_beyond_rounding][:1] == names


def test_a_file_of_all_steps_is_no_streaming_file():
    program = CASES["fp32"]()
    with pytest.raises(InputError, match="no streaming file"):
        verify_stream(program, export(program), export(program), [])
