"""ONNX Runtime writes each layer's state before it computes the next layer."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from support.measured import family
from svitc.onnx.export import export_step
from svitc.onnx.states import states_of
from svitc.passes.pipelines import quantize


def executed(file: bytes, frame: np.ndarray, folder) -> list[str]:
    """Return the names of a file's nodes in the order in which ONNX Runtime runs them; it leaves some out."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "run")
    session = onnxruntime.InferenceSession(file, options)
    states = states_of(onnx.load_from_string(file))
    session.run(None, {"image": frame, **{state.input: state.start(len(frame)) for state in states}})
    with open(session.end_profiling()) as stored:
        events = [event for event in json.load(stored) if event.get("cat") == "Node"]
    return [event["name"].removesuffix("_kernel_time") for event in sorted(events, key=lambda event: event["ts"])]


@pytest.mark.parametrize("name, weights", [("spikformer", "int8"), ("maxformer", "int8"), ("sdt", "fp32")])
def test_states_are_written_layer_by_layer(name, weights, tmp_path):
    program = family(name, T=2)
    file = export_step(program if weights == "fp32" else quantize(program)[0])
    model = onnx.load_from_string(file)
    order = executed(file, torch.randn(program.input.batched(2)).numpy(), tmp_path)
    writers = {output: node.name for node in model.graph.node for output in node.output}
    *membranes, _, average = (writers[state.output] for state in states_of(model))
    places = [order.index(name) for name in membranes if name in order]
    assert len(places) > len(membranes) / 2, "ONNX Runtime gives few nodes another name"
    assert [*places, order.index(average)] == sorted([*places, order.index(average)])
