"""``--raw-input`` from the compilation to the device: metadata, proof, callers, verification, timing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

import svitc
from support.paths import DIGITS
from svitc.bench.compare import read_model
from svitc.bench.runners import Load
from svitc.cli.common import declared
from svitc.cli.compile_options import CompileDataOptions
from svitc.cli.views.compile import raw_input_line
from svitc.cli.views.verify import verdict_line
from svitc.data.dataset import Reading, load_data
from svitc.data.inputs import random_inputs
from svitc.driver.device_predict import to_input
from svitc.driver.options import CompileOptions
from svitc.driver.output_folder import VerifySettings, at_once, open_folder, verify_folder
from svitc.driver.raw_input import check_takes_bytes, explain
from svitc.errors import InputError, UsageError
from svitc.html_report import page
from svitc.ir.graph import InputSpec
from svitc.onnx import weight_bytes
from svitc.onnx.raw_input import without_raw_input
from svitc.passes.policies import Uniform
from svitc.support.reporter import Reporter

OPTIONS = {"policy": Uniform(), "images": 1, "no_data": "uniform", "raw_input": True}


@pytest.fixture(scope="module")
def done(digits):
    return svitc.compile(digits, 1.0, weights="fp32", static_batch=2, **OPTIONS)


@pytest.fixture(scope="module")
def folder(done, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    done.write(folder)
    return folder


@pytest.fixture(scope="module")
def streaming(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    svitc.compile(digits, 1.0, weights="fp32", streaming=True, **OPTIONS).write(folder)
    return folder


def metadata(file: bytes) -> dict:
    return {entry.key: json.loads(entry.value) for entry in onnx.load_from_string(file).metadata_props}


def run(*words: object) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd="/")
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stdout or done.stderr).strip()


def test_the_metadata_and_the_report_say_so(done, capsys):
    assert done.verdict.passed and done.report["verify"]["raw_input"]["pixels"] >= 256
    about = metadata(done.onnx)
    assert (about["image.dtype"], about["image.layout"], about["image.size"]) == ("uint8", "NHWC", [16, 16])
    assert about["image.mean"] == svitc.load(DIGITS).info["normalize"]["mean"]
    assert "uint8" in onnx.load_from_string(done.onnx).doc_string
    assert done.report["input"]["dtype"] == "uint8"
    raw_input_line(done.report["input"])
    verdict_line(done.report["verify"])
    told = " ".join(capsys.readouterr().out.split())
    assert "takes uint8 [N, 16, 16, 1]" in told and "bit for bit, and all 20 outputs are the same" in told
    text = page(done.report).decode()
    assert "takes the bytes of 16 x 16 pixels" in text and "every value in every channel" in text


@pytest.mark.parametrize("form", [{"raw_input": True}, {"streaming": True, "packed_state": True}])
def test_budgets_count_what_a_form_of_the_file_adds(digits, form):
    """The table of raw input, and where each state lies in the buffer of all."""
    done = svitc.compile(digits, "322.924kB", **OPTIONS | {"raw_input": False} | form)
    stored = weight_bytes(done.onnx)
    assert 322924 - 3_000 < stored <= 322924 and done.report["memory"]["compiled_bytes"] == stored


def test_pictures_give_the_logits_of_the_float_file(done, folder, digits, tmp_path):
    """Bit for bit those of what --data reads; check.py and predict.py read the metadata."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    [(x, _)] = load_data(tmp_path, digits.input, digits.info, reading=Reading(unlabeled=True)).batches(2)
    expected = onnxruntime.InferenceSession(without_raw_input(done.onnx)).run(None, {"image": x.numpy()})[0]
    session, about = onnxruntime.InferenceSession(done.onnx), metadata(done.onnx)
    fed = np.concatenate([to_input(Image.open(tmp_path / f"{i}.png"), about) for i in range(2)])
    assert fed.dtype == np.uint8 and np.array_equal(fed[..., 0], pixels)
    np.testing.assert_array_equal(session.run(None, {"image": fed})[0], expected)
    assert run(folder / "check.py", "--spikes")[1].startswith("equal: 2 images, spikes of ")
    status, text = run(folder / "predict.py", tmp_path / "0.png", tmp_path / "1.png")
    assert status == 0
    assert [line.split(": ")[1].split()[0] for line in text.splitlines()] == [str(k) for k in expected.argmax(-1)]


def test_verify_finds_a_byte_that_becomes_another_number(done, folder, capsys):
    program, exported = open_folder(folder)
    settings = VerifySettings(2, 0)
    good = svitc.verify(program, exported, random_inputs(program, 2, 2, seed=0)[0])
    assert good.passed and good.raw_input is not None and good.raw_input.values
    model = onnx.load_from_string(exported)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "raw_input/table")
    values = numpy_helper.to_array(table).copy()
    values[7] = np.nextafter(values[7], np.float32(1))
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    bad = verify_folder(program, model.SerializeToString(), None, settings, Reporter())
    assert not bad.passed and bad.first_divergence.startswith("image, whose pixels")
    verdict_line(bad.to_json())
    assert "NOT the same network" in capsys.readouterr().out


def test_a_streaming_file_takes_frames_of_bytes(streaming, tmp_path):
    program, exported = open_folder(streaming)
    assert verify_folder(program, exported, None, VerifySettings(1, 0), Reporter()).passed
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    stream = svitc.Stream(streaming)
    assert stream.frame_shape == (1, 16, 16, 1)
    scores = [stream.step(frame[None]) for frame in frames]
    np.save(tmp_path / "frames.npy", frames)
    status, text = run(streaming / "stream.py", tmp_path / "frames.npy")
    assert status == 0 and [line.split("'")[1] for line in text.splitlines()] == [str(s.argmax()) for s in scores]
    with pytest.raises(InputError, match="float32, and the file takes uint8"):
        stream.step(frames[:1].astype(np.float32))
    with pytest.raises(InputError, match=r"\[1, 1, 16, 16\], and \[1, 16, 16, 1\]"):
        stream.step(np.zeros((1, 1, 16, 16), np.uint8))
    np.save(tmp_path / "floats.npy", np.zeros((16, 16, 1), np.float32))
    status, text = run(streaming / "stream.py", tmp_path / "floats.npy")
    assert status == 1 and "needed: uint8(1, 16, 16, 1)" in text


def test_bench_feeds_it_bytes_and_its_peers_what_they_become(folder, streaming, digits):
    shape, batch, _ = read_model(folder / "model.onnx", None)
    assert (shape, batch) == ((1, 16, 16), 2)
    load = Load(shape, batch, normalize=digits.info["normalize"])
    assert load.frames().dtype == np.uint8 and load.frames().shape == (2, 16, 16, 1)
    assert load.images().shape == (2, 1, 16, 16) and load.images().dtype == np.float32
    assert read_model(streaming / "model.onnx", None)[0] == (1, 16, 16)
    whole = onnxruntime.InferenceSession(at_once(streaming / "model.onnx"))
    assert [value.type for value in whole.get_inputs()] == ["tensor(uint8)"]


@pytest.mark.parametrize(
    ("shape", "words"), [((2, 16, 16), "takes 2 channels"), ((4, 2, 16, 16), "event frames, which are counts")]
)
def test_what_is_no_picture_is_refused(digits, shape, words):
    with pytest.raises(UsageError, match=words):
        check_takes_bytes(replace(digits, input=InputSpec(shape)), CompileOptions(raw_input=True))


def test_a_loader_that_normalizes_by_itself_must_say_how(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import torch\ndef val():\n    return [(torch.zeros(2, 1, 16, 16), [0, 1])]\n")
    unknown = svitc.load(DIGITS)
    unknown.info.pop("normalize")
    data = load_data("mine:val", unknown.input, unknown.info)
    with pytest.raises(UsageError, match=r"mine:val normalizes images itself") as error:
        svitc.compile(unknown, 1.0, data=data, **OPTIONS)
    assert "--mean and --std" in error.value.hint
    left = declared(unknown, CompileDataOptions(mean="0.5", std="0.25"))
    assert unknown.info["normalize"] == {"mean": [0.5], "std": [0.25]} and (left.mean, left.std) == (None, None)
    check_takes_bytes(unknown, CompileOptions(data=data, raw_input=True))


@pytest.mark.parametrize(("pixels", "told"), [([0.0, 0.5], True), ([0.0, 128 / 255], False)])
def test_pixels_between_those_of_bytes_are_told(digits, pixels, told):
    images = np.resize(np.float32(pixels), (2, 1, 16, 16))
    options = CompileOptions(raw_input=True, data=svitc.open_data(digits, (images, np.arange(2))))
    reporter = Reporter()
    explain(digits, options, reporter)
    assert any("between those of bytes" in sentence for sentence in reporter.decisions) == told
