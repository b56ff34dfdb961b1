"""Files with one packed state: the same network, which comes back byte for byte where it is unpacked."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from support.measured import family
from svitc.data.inputs import random_inputs
from svitc.errors import InputError
from svitc.onnx.export import export, export_step
from svitc.onnx.packed_state import pack_states, unpack_states
from svitc.onnx.states import STATES_KEY, states_of
from svitc.onnx.static_batch import with_static_batch
from svitc.passes.pipelines import quantize
from svitc.verification.stream_check import outputs_in_turn


@pytest.fixture(scope="module")
def program():
    return quantize(family("sdt", T=3))[0]


@pytest.fixture(scope="module")
def file(program):
    return export_step(program)


@pytest.fixture(scope="module")
def packed(file):
    return pack_states(file)


def run(file: bytes, program, batch: int) -> np.ndarray:
    """The logits after each of five frames, each of which is another one."""
    session, states = onnxruntime.InferenceSession(file), states_of(onnx.load_from_string(file))
    session.input_names = [value.name for value in session.get_inputs()]
    frames = [x.numpy() for x in random_inputs(program, 5 * batch, batch, seed=0)]
    return np.stack([logits for [logits] in outputs_in_turn(session, states, frames, ["logits"])])


def test_it_has_one_state_and_gives_the_same_bits(program, file, packed):
    model = onnx.load_from_string(packed)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["image", "state"]
    assert [value.name for value in model.graph.output] == ["logits", "next"]
    [entry] = json.loads({each.key: each.value for each in model.metadata_props}[STATES_KEY])
    apart, [state] = states_of(onnx.load_from_string(file)), states_of(model)
    assert [part["name"] for part in entry["parts"]] == [each.input for each in apart] and len(apart) > 3
    assert entry["shape"] == ["N", sum(each.start(1).size for each in apart)]
    np.testing.assert_array_equal(state.start(2), np.concatenate([s.start(2).reshape(2, -1) for s in apart], axis=1))
    for batch in (1, 2):
        np.testing.assert_array_equal(run(packed, program, batch), run(file, program, batch))


def test_it_comes_apart_byte_for_byte(file, packed):
    assert unpack_states(packed) == onnx.load_from_string(file).SerializeToString(deterministic=True)
    assert unpack_states(file) == file and pack_states(packed) == packed


def test_a_static_batch_is_one_of_the_state_too(program, file):
    static = pack_states(with_static_batch(file, 2))
    onnx.checker.check_model(onnx.load_from_string(static), full_check=True)
    assert onnxruntime.InferenceSession(static).get_inputs()[1].shape[0] == 2
    np.testing.assert_array_equal(run(static, program, 2), run(file, program, 2))


def test_what_is_no_packed_file_is_refused(program, packed):
    with pytest.raises(InputError, match="no streaming file"):
        pack_states(export(program))
    model = onnx.load_from_string(packed)
    del model.graph.node[-2:]
    with pytest.raises(InputError, match="not as svitc writes one"):
        unpack_states(model.SerializeToString())
