"""svitc.Stream: frame by frame from Python, stopped and resumed, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import svitc
from support.measured import family
from svitc.errors import InputError, UsageError
from svitc.onnx.export import export, export_step
from svitc.onnx.packed_state import pack_states
from svitc.onnx.static_batch import with_static_batch
from svitc.passes.pipelines import quantize


@pytest.fixture(scope="module")
def program():
    return quantize(family("sdt", T=3))[0]


@pytest.fixture(scope="module")
def folder(program, tmp_path_factory):
    """model.onnx in forms of all kinds, the usual one under its usual name."""
    folder = tmp_path_factory.mktemp("out")
    file = export_step(program)
    contents = {"model": file, "packed": pack_states(file), "static": with_static_batch(file, 2)}
    for name, content in {**contents, "whole": export(program), "damaged": file[:1000]}.items():
        (folder / f"{name}.onnx").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def frames(program):
    return np.random.default_rng(0).uniform(-1, 1, (6, 1, *program.input.shape)).astype(np.float32)


@pytest.fixture(params=["", "packed.onnx"], ids=["apart", "packed"])
def stream(request, folder):
    return svitc.Stream(folder / request.param)


def test_it_stops_and_goes_on(stream, folder, frames):
    scores = [stream.step(frame) for frame in frames]
    assert len({each.tobytes() for each in scores}) > 1
    stream.reset()
    np.testing.assert_array_equal([stream.step(frame) for frame in frames[:3]], scores[:3])
    states = dict(reversed(stream.states().items()))
    assert all(value.shape[0] == 1 and value.dtype == np.float32 for value in states.values()) and len(states) > 3
    for name in ("model.onnx", "packed.onnx"):
        other = svitc.Stream(folder / name)
        other.resume(states)
        np.testing.assert_array_equal([other.step(frame) for frame in frames[3:]], scores[3:])


def test_frames_that_do_not_fit_are_refused(stream, frames):
    scores = stream.step(frames[0])
    for frame, words in [
        (frames[1][..., :-1], r"the frame is \[1, 3, 32, 47\], and \[1, 3, 32, 48\] is expected"),
        (frames[1][0], r"the frame is \[3, 32, 48\], and .* is expected\n  One frame is \[N, C, H, W\]"),
        (frames[1] * np.nan, "the frame holds NaN"),
        ([[1.0], [1.0, 2.0]], "the frame is no array"),
        ([["a", "b"]], "the frame is an array of .*, not of numbers"),
    ]:
        with pytest.raises(InputError, match=words):
            stream.step(frame)
    stream.reset()
    np.testing.assert_array_equal(stream.step(frames[0]), scores)


def test_states_that_do_not_fit_are_refused_and_change_nothing(stream, frames):
    stream.step(frames[0])
    states = stream.states()
    count, (first, *_) = len(states), states
    shape, other = list(states[first].shape), "Is it of another network"
    for wrong, words in [
        ({**states, first: states[first] * np.nan}, f"{first} holds NaN\n"),
        (
            {**states, first: states[first][:, :0]},
            f"{first} is .*, and {shape} is expected\n  {other}",
        ),
        ({**states, first: states[first].repeat(2, 0)}, f"{first} is .*, and .* is expected\n  Stream.path, batch=2"),
        ({**states, "state.x": states[first]}, f"state.x is no state .*: {count + 1} states .*, {count} are expected"),
        ({k: v for k, v in states.items() if k != first}, f"{first} float32 {shape} is missing: {count - 1} states"),
        (list(states.values()), "the states are a list without names, in which another order would go unseen"),
    ]:
        with pytest.raises(InputError, match=words.replace("[", r"\[").replace("]", r"\]")):
            stream.resume(wrong)
        assert all(np.array_equal(states[name], value) for name, value in stream.states().items())


def test_several_streams_run_side_by_side(folder, frames):
    alone, pair = svitc.Stream(folder), svitc.Stream(str(folder / "static.onnx"))
    assert pair.frame_shape[0] == 2
    for frame in frames:
        np.testing.assert_array_equal(pair.step(np.concatenate([frame, -frame]))[:1], alone.step(frame))
    with pytest.raises(InputError, match="the frame is .1, .*\n  This is for 2 side by side: Stream.path, batch=N"):
        pair.step(frames[0])
    for path, batch, words in [("static.onnx", 3, "takes exactly 2 at once, not 3"), ("", 0, "at least one at once")]:
        with pytest.raises(UsageError, match=words):
            svitc.Stream(folder / path, batch=batch)


def test_files_that_are_not_streaming_are_refused(folder):
    for name, words in [
        ("none", "cannot read an ONNX model from"),
        ("damaged.onnx", "cannot read an ONNX model from"),
        ("whole.onnx", "keeps no states\n  Compile with --streaming"),
    ]:
        with pytest.raises(InputError, match=words):
            svitc.Stream(folder / name)
