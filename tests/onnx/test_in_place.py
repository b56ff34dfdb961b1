"""A step may write a state over the one that it read: proven, also as ONNX Runtime optimizes the file, and run."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from support.families import FAMILIES
from support.measured import family
from svitc.onnx.export import export_step
from svitc.onnx.in_place import reusable_in
from svitc.onnx.packed_state import pack_states
from svitc.onnx.states import states_of
from svitc.passes.pipelines import quantize

LEVELS = onnxruntime.GraphOptimizationLevel


def opened(file: bytes, level: LEVELS, path=None) -> onnxruntime.InferenceSession:
    """Load a file with two threads, and write what ONNX Runtime made of it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads, options.log_severity_level = level, 2, 3
    if path is not None:
        options.optimized_model_filepath = str(path)
    return onnxruntime.InferenceSession(file, options)


def steps(file: bytes, frames: np.ndarray, level: LEVELS, in_place: bool) -> list[np.ndarray]:
    """Return the logits after each frame, and the states after the last one."""
    session, states = opened(file, level), states_of(onnx.load_from_string(file))
    values = {s.input: onnxruntime.OrtValue.ortvalue_from_numpy(s.start(frames.shape[1])) for s in states}
    results = []
    for frame in frames:
        binding = session.io_binding()
        binding.bind_cpu_input("image", frame)
        binding.bind_output("logits")
        after = (
            values
            if in_place
            else {
                s.input: onnxruntime.OrtValue.ortvalue_from_numpy(np.full(values[s.input].shape(), np.nan, np.float32))
                for s in states
            }
        )
        for s in states:
            binding.bind_ortvalue_input(s.input, values[s.input])
            binding.bind_ortvalue_output(s.output, after[s.input])
        session.run_with_iobinding(binding)
        results.append(np.array(binding.get_outputs()[0].numpy()))
        values = after
    return results + [np.array(value.numpy()) for value in values.values()]  # of memory that goes with the value


@pytest.mark.parametrize("weights", ["int8", "fp32"])
@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_overwritten(name, weights, tmp_path):
    program = family(name, T=3)
    file = export_step(program if weights == "fp32" else quantize(program)[0])
    apart = states_of(onnx.load_from_string(file))
    assert apart and all(state.in_place for state in apart)
    shape = (6, *program.input.batched(2))
    frames = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    levels = [(file, LEVELS.ORT_DISABLE_ALL), (file, LEVELS.ORT_ENABLE_ALL), (pack_states(file), LEVELS.ORT_ENABLE_ALL)]
    for file, level in levels:
        states = states_of(onnx.load_from_string(file))
        assert all(state.in_place for state in states)
        opened(file, level, tmp_path / "optimized.onnx")
        assert reusable_in(onnx.load(tmp_path / "optimized.onnx")) == {state.input for state in states}
        for one, two in zip(steps(file, frames, level, True), steps(file, frames, level, False), strict=True):
            np.testing.assert_array_equal(one, two)


def model(*nodes: tuple[str, list[str], list[str]], shape: tuple = ("N", 4)) -> onnx.ModelProto:
    """Return a file with one state."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*node) for node in nodes],
        "step",
        [value(name, 1, size) for name, size in (("image", ("N", 4)), ("state.a", ("N", 4)))],
        [value(name, 1, size) for name, size in (("logits", ("N", 4)), ("next.a", shape))],
    )
    return onnx.helper.make_model(graph)


CHARGE, FIRE = ("Add", ["state.a", "image"], ["h"]), ("Relu", ["h"], ["logits"])
UNSAFE = {
    "a reader that the writer does not wait for": [
        ("Relu", ["image"], ["next.a"]),
        ("Add", ["state.a", "image"], ["logits"]),
    ],
    "a reader of a view": [
        CHARGE,
        ("Reshape", ["state.a", "s"], ["v"]),
        ("Relu", ["v"], ["logits"]),
        ("Relu", ["h"], ["next.a"]),
    ],
    "a product in the state": [("Relu", ["image"], ["logits"]), ("MatMul", ["state.a", "w"], ["next.a"])],
    "a product that the sum may join": [
        ("Relu", ["image"], ["logits"]),
        ("MatMul", ["image", "w"], ["p"]),
        ("Add", ["state.a", "p"], ["next.a"]),
    ],
    "the state turned": [
        ("Relu", ["image"], ["logits"]),
        ("Reshape", ["state.a", "s"], ["v"]),
        ("Add", ["state.a", "v"], ["next.a"]),
    ],
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_would_be_read_too_late_is_not_proven(case):
    assert reusable_in(model(*UNSAFE[case])) == set()


def test_what_is_read_before_is_proven():
    assert reusable_in(model(CHARGE, FIRE, ("Sub", ["h", "logits"], ["next.a"]))) == {"state.a"}
    assert reusable_in(model(("Relu", ["image"], ["logits"]), ("Add", ["state.a", "logits"], ["next.a"]))) == {
        "state.a"
    }
    grown = model(("Relu", ["image"], ["logits"]), ("Add", ["state.a", "b"], ["next.a"]), shape=(2, 4))
    assert reusable_in(grown) == set()
