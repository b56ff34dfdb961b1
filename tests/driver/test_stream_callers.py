"""The callers beside a streaming file, stream.py and stream.cpp: the answers of the whole sequence, and bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import svitc
from support import several
from support.paths import DIGITS
from svitc.cli.main import main
from svitc.driver.metadata import Origin, described, metadata
from svitc.driver.options import CompileOptions
from svitc.driver.output_folder import VerifySettings, open_folder, verify_folder
from svitc.errors import InputError, OutputError, UsageError
from svitc.onnx.export import export, export_step
from svitc.onnx.static_batch import with_static_batch
from svitc.passes.policies import Uniform
from svitc.support.reporter import Reporter

LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1*"), None)  # what the wheel runs


@pytest.fixture(scope="module")
def done(digits):
    return svitc.compile(digits, 1.0, policy=Uniform(), weights="int8", images=1, no_data="uniform", streaming=True)


@pytest.fixture(scope="module")
def folder(done, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    done.write(folder)
    return folder


@pytest.fixture(scope="module")
def packed(digits):
    options = {"weights": "int8", "images": 1, "no_data": "uniform", "streaming": True, "packed_state": True}
    return svitc.compile(digits, 1.0, policy=Uniform(), **options)


@pytest.fixture(scope="module")
def packed_folder(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    packed.write(folder)
    return folder


@pytest.fixture(scope="module")
def caller(folder):
    """What a user imports from the folder."""
    spec = importlib.util.spec_from_file_location("stream", folder / "stream.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def frames():
    """Frames of which each is another one, [T, 1, C, H, W]."""
    return np.random.default_rng(0).uniform(-1, 1, (6, 1, 1, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def scores(caller, folder, frames):
    """The scores after each frame, as stream.py has them."""
    stream = caller.Stream(folder / "model.onnx")
    return np.stack([stream(frame) for frame in frames])


@pytest.fixture(scope="module")
def header():
    """The folder of ONNX Runtime's C++ headers, which no package on PyPI has."""
    places = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), *map(str, Path("/usr/include").glob("onnxruntime*"))]
    found = [place for place in places if place and (Path(place) / "onnxruntime_cxx_api.h").is_file()]
    if not found:
        pytest.skip("no onnxruntime_cxx_api.h in $ONNXRUNTIME_INCLUDE or /usr/include/onnxruntime*")
    if LIBRARY is None or shutil.which("g++") is None:
        pytest.skip("no g++, or no libonnxruntime.so in the package onnxruntime")
    return found[0]


@pytest.fixture(scope="module")
def program(header, folder, tmp_path_factory):
    """stream.cpp, compiled."""
    built = tmp_path_factory.mktemp("built")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (built / name).symlink_to(LIBRARY)
    flags = ["-Wall", "-Wextra", "-Werror", "-isystem", header, f"-L{built}", "-lonnxruntime", f"-Wl,-rpath,{built}"]
    subprocess.run(["g++", "-std=c++17", folder / "stream.cpp", *flags, "-o", built / "stream"], check=True)
    return built / "stream"


def run(*words: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr, in which there is never a traceback."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd="/")
    assert "Traceback" not in done.stderr and "terminate called" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def python(folder: Path, *words: object) -> tuple[int, str, str]:
    return run(sys.executable, folder / "stream.py", *words)


def answers(text: str) -> list[int]:
    """Return the class after each step, and check that each line has a step and its time."""
    lines = [re.fullmatch(r"step (\d+): \[?'?(\d+)'?\]?, \d+\.\d\d ms", line) for line in text.splitlines()]
    assert all(lines) and [int(line[1]) for line in lines] == list(range(1, len(lines) + 1))
    return [int(line[2]) for line in lines]


def with_rule(folder: Path, to: Path, rule: dict) -> Path:
    """Copy a folder; its file gets a stopping rule."""
    shutil.copytree(folder, to)
    more = onnx.ModelProto()
    more.metadata_props.add(key="early_exit", value=json.dumps(rule))
    (to / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + more.SerializeToString())
    return to


def rule_for(scores: np.ndarray) -> dict:
    """Return a rule that stops after the third of these steps [T, classes], and then chooses another class."""
    offsets = np.zeros_like(scores, float)
    offsets[2, scores[2].argmin()] = 3 * np.ptp(scores[2])
    p = np.sort(np.exp(scores + offsets), axis=1)
    margins = (p[:, -1] - p[:, -2]) / p.sum(1)
    return {
        "kind": "margin",
        "thresholds": [None, margins[1] + 1e-6, margins[2] - 1e-6, *[0.0] * (len(scores) - 3)],
        "offsets": offsets.tolist(),
    }


def stopped(scores: np.ndarray) -> list[int]:
    """Return the answers under the rule."""
    return [*scores[:2].argmax(1).tolist(), int(scores[2].argmin())]


def test_an_image_gets_the_scores_of_the_whole_sequence(done, folder, caller, frames, tmp_path):
    whole = [onnxruntime.InferenceSession(export(done.program, per_step=each)) for each in (False, True)]
    logits, each = (session.run(None, {"image": frames[0]})[0] for session in whole)
    stream = caller.Stream(folder / "model.onnx")
    steps = np.stack([stream(frames[0]) for _ in range(len(each))])
    np.testing.assert_array_equal(steps[-1], logits)
    np.testing.assert_allclose(steps, each.cumsum(0) / np.arange(1, len(each) + 1)[:, None, None], rtol=1e-5)
    np.save(tmp_path / "image.npy", frames[0, 0])
    status, text, _ = python(folder, tmp_path / "image.npy")
    assert status == 0 and answers(text) == steps[:, 0].argmax(1).tolist()
    np.savez(tmp_path / "image.npz", images=frames[0, 0])
    assert len(answers(python(folder, tmp_path / "image.npz", 7)[1])) == 7


def test_a_stream_goes_on_from_saved_states(folder, caller, frames, scores, tmp_path):
    first, second = caller.Stream(folder / "model.onnx"), caller.Stream(folder / "model.onnx")
    before = [first(frame) for frame in frames[:3]]
    np.savez(tmp_path / "states.npz", **{name: value.numpy() for name, value in first.states.items()})
    states = dict(reversed(dict(np.load(tmp_path / "states.npz")).items()))  # by name: the order is no matter
    second.resume(states)
    np.testing.assert_array_equal(before + [second(frame) for frame in frames[3:]], scores)
    second.resume(second.start)
    np.testing.assert_array_equal([second(frame) for frame in frames], scores)

    name = max(states)
    for damaged, words in [
        ({**states, name: states[name] * np.nan}, f"{name} is .*with NaN"),
        ({**states, name: states[name][:, :0]}, f"{name} is .*; needed: "),
        ({**states, "state.other": states[name]}, "state.other is .*; needed: absent"),
        ({k: v for k, v in states.items() if k != name}, f"{name} is absent; needed: float32"),
    ]:
        with pytest.raises(ValueError, match=words):
            second.resume(damaged)


def test_a_packed_state_is_read_by_the_same_callers(packed, packed_folder, caller, frames, scores):
    assert packed.verdict.passed and [*packed.report["streaming"]["inputs"]] == ["state"]
    stream = caller.Stream(packed_folder / "model.onnx")
    np.testing.assert_array_equal([stream(frame) for frame in frames], scores)
    assert "equal: 2 images, spikes of" in run(sys.executable, packed_folder / "check.py", "--spikes")[1]
    verdict = verify_folder(*open_folder(packed_folder), None, VerifySettings(1, seed=0), Reporter())
    assert verdict.passed and verdict.calls == packed.verdict.calls


def test_a_model_of_others_is_not_overwritten(done, folder, tmp_path, capsys):
    assert len(repr(done)) < 100 and "verified" in repr(done)
    done.write(shutil.copytree(folder, tmp_path / "own"))
    (tmp_path / "model.py").write_text("class Mine: pass")
    with pytest.raises(OutputError, match="model.py is not of svitc, and would be lost"):
        done.write(tmp_path)
    assert main(["compile", str(DIGITS), "-b", "0.5", "-o", str(tmp_path)]) == 7
    assert [*tmp_path.iterdir()] and (tmp_path / "model.py").read_text() == "class Mine: pass"


def test_only_a_streaming_file_has_states_to_pack(digits, capsys):
    with pytest.raises(UsageError, match="only a streaming file has states to pack"):
        svitc.compile(digits, 1.0, packed_state=True)
    assert main(["compile", str(DIGITS), "--weights", "int8", "--packed-state"]) == 2
    assert "Use --packed-state with --streaming" in capsys.readouterr().err


def test_a_batch_is_as_its_images(folder, caller, frames):
    batch, alone = caller.Stream(folder / "model.onnx", 2), caller.Stream(folder / "model.onnx")
    np.testing.assert_array_equal(
        [batch(np.concatenate([frame, frame[..., ::-1]]))[:1] for frame in frames], [alone(frame) for frame in frames]
    )


def test_it_stops_as_soon_as_it_is_sure(folder, frames, scores, tmp_path):
    np.save(tmp_path / "frames.npy", frames)
    out = with_rule(folder, tmp_path / "out", rule_for(scores[:, 0]))
    assert answers(python(folder, tmp_path / "frames.npy")[1]) == scores[:, 0].argmax(1).tolist()
    assert answers(python(out, tmp_path / "frames.npy")[1]) == stopped(scores[:, 0])


def test_bad_frames_are_refused_in_words(folder, frames, tmp_path):
    for name, array, words in [
        ("size", frames[..., :-1], "a frame is float32(1, 1, 16, 15); needed: float32(1, 1, 16, 16)"),
        ("nan", frames * np.nan, "a frame is float32(1, 1, 16, 16) with NaN; needed: float32(1, 1, 16, 16)"),
        ("pixels", frames.astype(np.uint8), "a frame is uint8(1, 1, 16, 16); needed: float32(1, 1, 16, 16)"),
        ("text", np.array(["frame"]), "a frame is <U5(1, 1, 1, 1); needed: float32(1, 1, 16, 16)"),
        ("none", frames[:0], "no frame: (0, 1, 1, 16, 16), each 1 times"),
        ("empty", frames[..., :0, :], "no frame: (6, 1, 1, 0, 16), each 1 times"),
    ]:
        np.save(tmp_path / f"{name}.npy", array)
        status, text, error = python(folder, tmp_path / f"{name}.npy")
        assert status == 1 and not text and words in error and len(error.splitlines()) < 3
    np.save(tmp_path / "frames.npy", frames)
    assert "no frame: (6, 1, 1, 16, 16), each 0 times" in python(folder, tmp_path / "frames.npy", 0)[2]
    assert "python stream.py FRAMES [N]\n\nFRAMES is a .npy, or" in python(folder)[2]
    assert "No such file" in python(folder, tmp_path / "nowhere.npy")[2]
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "stream.py", other)
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, other / "model.onnx")
    assert "keeps no states: compile with --streaming" in python(other, tmp_path / "frames.npy")[2]


def test_whole_numbers_are_counts_of_events_and_no_pixels(folder, caller, frames):
    pixels, frame = svitc.Stream(folder), np.round(9 * abs(frames[0])).astype(np.uint8)
    with pytest.raises(InputError, match="the frame is uint8, and normalized pixels are floats\n  .*with mean .0.3053"):
        pixels.step(frame)
    events, floats = (caller.Stream(folder / "model.onnx") for _ in range(2))
    events.meta["image.range"] = None  # as the metadata of an event network have it
    np.testing.assert_array_equal(events(frame), floats(frame.astype(float)))


def test_other_outputs_are_shown_by_name(folder, tmp_path):
    program = several.program_of(several.build("Detection"))
    values = metadata(program, CompileOptions(streaming=True), Origin("fp32", None, None, None))
    (tmp_path / "model.onnx").write_bytes(described(export_step(program), values, streaming=True))
    shutil.copy(folder / "stream.py", tmp_path)
    np.save(tmp_path / "image.npy", np.ones((3, 16, 16)))
    status, text, error = python(tmp_path, tmp_path / "image.npy")
    lines = text.splitlines()
    assert status == 0 and not error and len(lines) == several.T
    assert re.fullmatch(
        r"step 4: \['maps.0 \(1, 6, 16, 16\), mean .*', .*'boxes \(1, 16, 6\), mean .*'\], .* ms", lines[3]
    )
    stream = svitc.Stream(tmp_path)
    stream.step(np.ones((1, 3, 16, 16)))
    assert [*stream.outputs] == program.output_names and stream.outputs["boxes"].shape == (1, 16, 6)


def test_they_are_short(folder):
    assert len((folder / "stream.py").read_text().splitlines()) < 60
    assert len((folder / "stream.cpp").read_text().splitlines()) < 120


def test_the_cpp_caller_has_the_same_scores(program, folder, packed_folder, frames, scores, tmp_path):
    frames.tofile(tmp_path / "frames.bin")
    for out in (folder, packed_folder):
        status, text, error = run(program, out / "model.onnx", tmp_path / "frames.bin", 1, tmp_path / "scores.bin")
        assert status == 0 and answers(text) == scores[:, 0].argmax(1).tolist(), error
        np.testing.assert_array_equal(np.fromfile(tmp_path / "scores.bin", np.float32), scores.ravel())
    out = with_rule(folder, tmp_path / "out", rule_for(scores[:, 0]))
    assert answers(run(program, out / "model.onnx", tmp_path / "frames.bin")[1]) == stopped(scores[:, 0])
    (tmp_path / "short.bin").write_bytes(frames.tobytes()[:-4])
    assert "the last frame has 1020 of 1024 bytes" in run(program, folder / "model.onnx", tmp_path / "short.bin")[2]
    (tmp_path / "empty.bin").touch()
    assert "the last frame has 0 of 1024 bytes" in run(program, folder / "model.onnx", tmp_path / "empty.bin")[2]
    (tmp_path / "static.onnx").write_bytes(with_static_batch((folder / "model.onnx").read_bytes(), 2))
    assert "several streams at once: compile" in run(program, tmp_path / "static.onnx", tmp_path / "frames.bin")[2]
    (frames * np.nan).tofile(tmp_path / "nan.bin")
    assert "a frame has NaN" in run(program, folder / "model.onnx", tmp_path / "nan.bin")[2]
    assert "cannot open" in run(program, folder / "model.onnx", tmp_path / "none.bin")[2]
