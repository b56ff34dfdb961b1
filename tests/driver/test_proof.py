"""The files that travel: metadata that say how to feed the model, and check.py, which finds the first wrong layer."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

import svitc
from support.paths import DIGITS
from svitc.bench.compare import read_model
from svitc.cli.views.compile import form_of
from svitc.data.dataset import Reading, load_data
from svitc.driver.device_predict import to_input
from svitc.driver.metadata import KEYS, declared_resize
from svitc.driver.output_folder import VerifySettings, open_folder, verify_folder
from svitc.errors import UsageError
from svitc.ir.graph import InputSpec
from svitc.passes.policies import Uniform
from svitc.support.reporter import Reporter

DOCS = Path(__file__).parents[2] / "docs" / "file.md"


@pytest.fixture(scope="module")
def folders(digits, tmp_path_factory):
    """A folder for each type of weights."""
    out = {}
    for weights in ("fp32", "int8"):
        done = svitc.compile(digits, 1.0, policy=Uniform(), weights=weights, images=1, no_data="uniform")
        out[weights] = tmp_path_factory.mktemp(weights)
        done.write(out[weights])
        assert done.verdict.passed
    return out


def metadata(folder: Path) -> dict:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}


def check(folder: Path, *args: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, folder / "check.py", *args], capture_output=True, text=True, cwd="/")
    return done.returncode, (done.stdout or done.stderr).strip().splitlines()[-1]


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_good_files_are_equal(folders, weights):
    folder = folders[weights]
    assert check(folder) == (0, "equal: 2 images")
    status, text = check(folder, "--spikes")
    assert status == 0 and text.startswith("equal: 2 images, spikes of ")
    assert (folder / "check.npz").stat().st_size < 100_000
    assert len((folder / "check.py").read_text().splitlines()) < 60
    with np.load(folder / "check.npz") as arrays:
        assert str(arrays["digest"]) == metadata(folder)["spikes.sha256"]
        assert (arrays["parts"].sum(-1) > 0).all(), "a silent neuron proves nothing"
        assert (arrays["few"] < 0).all() == (weights == "int8")
        assert arrays["allowed logits"].any() == (weights == "fp32")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_good_files_are_equal_in_openvino(folders, weights):
    assert check(folders[weights], "--openvino", "--spikes")[0] == 0


def test_a_file_that_openvino_cannot_read_is_refused_in_words(folders, tmp_path):
    """Also where OpenVINO is not installed: a module of its name fails as it does."""
    shutil.copytree(folders["int8"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "openvino.py").write_text("compile_model = print\ndef Core():\n    raise RuntimeError('no rule')\n")
    status, text = check(tmp_path, "--openvino")
    assert status == 1 and text.endswith("compile it with --target openvino, without --functions")


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_damaged_weight_is_found_in_its_layer(folders, weights, tmp_path):
    model = onnx.load(folders[weights] / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name.startswith("blocks.1.mlp.fc1.0.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.reshape(-1)[::7] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for name in ("check.npz", "check.py"):
        (tmp_path / name).write_bytes((folders[weights] / name).read_bytes())
    onnx.save(model, tmp_path / "model.onnx")
    status, text = check(tmp_path)
    assert status == 1 and text.startswith("differs first at blocks.1.mlp.neuron1, in image ")


def test_a_damaged_head_is_found(folders, tmp_path):
    model = onnx.load(folders["int8"] / "model.onnx")
    bias = next(t for t in model.graph.initializer if t.name.startswith("head.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(2**-10), bias.name))
    for name in ("check.npz", "check.py"):
        (tmp_path / name).write_bytes((folders["int8"] / name).read_bytes())
    onnx.save(model, tmp_path / "model.onnx")
    status, text = check(tmp_path)
    assert status == 1 and text.startswith("differs at logits, by up to ")


def test_files_of_two_compilations_are_told_apart(folders, tmp_path):
    for name, weights in (("check.npz", "int8"), ("check.py", "int8"), ("model.onnx", "fp32")):
        (tmp_path / name).write_bytes((folders[weights] / name).read_bytes())
    assert check(tmp_path) == (1, "check.npz belongs to another model.onnx")


def test_the_file_says_how_to_feed_it(folders, digits):
    found, info = metadata(folders["int8"]), digits.info
    assert found.keys() == KEYS.keys()
    assert found["image.mean"] == info["normalize"]["mean"] and found["classes"] == info["classes"]
    assert found["image.size"] == found["image.crop"] == [16, 16] and found["image.color"] == "gray"
    assert found["time_steps"] == 4 and found["weights"] == "int8" and found["checkpoint.sha256"] == info["sha256"]
    assert found["image.limits"][0] < -1 < 1 < found["image.limits"][1] and found["svitc.version"] == svitc.__version__
    assert metadata(folders["fp32"])["image.limits"] is None
    model = onnx.load(folders["int8"] / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "Input image: images [N, C, H, W] of 16x16 pixels" in model.doc_string
    assert [*model.graph.input, *model.graph.output][0].doc_string.startswith("Images [N, 1, 16, 16]")
    assert model.graph.output[0].doc_string == "class scores, before softmax, [N, 10]"


def test_every_key_is_documented():
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", DOCS.read_text())  # without the targets of links
    for key, meaning in KEYS.items():
        assert f"| `{key}` | {meaning} |" in text, key


def test_the_documents_lines_feed_a_file(folders, tmp_path, monkeypatch):
    code = DOCS.read_text().split("```python\n")[1].split("```")[0]
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(folders["int8"])
    variables: dict = {}
    exec(code.replace("svitc-out/model.onnx", str(folders["int8"] / "model.onnx")), variables)
    assert variables["logits"].shape == (1, 10)


def test_predict_classifies_pictures(folders, tmp_path):
    """The classes are those that the evaluation of --data chooses; what cannot be read is named."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(16, 16), (20, 31)]):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = [tmp_path / "0.png", tmp_path / "broken.png", tmp_path / "1.png"]
    command = [sys.executable, folders["int8"] / "predict.py", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 1 and "broken.png: cannot identify" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "broken.png").unlink()
    digits = svitc.load(DIGITS)
    images = load_data(tmp_path, digits.input, digits.info, reading=Reading(unlabeled=True))
    [(x, _)] = images.batches(2)
    session = onnxruntime.InferenceSession(folders["int8"] / "model.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": x.numpy()})[0].argmax(axis=-1)
    lines = done.stdout.strip().splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == [str(k) for k in expected]
    assert all(len(line.split(", ")) == 5 for line in lines)
    assert len((folders["int8"] / "predict.py").read_text().splitlines()) < 60


@pytest.mark.parametrize(("resize", "crop"), [(None, None), (24, None), (None, 20), (40, 24)])
@pytest.mark.parametrize("channels", [1, 3])
def test_predict_feeds_what_the_data_reader_feeds(tmp_path, resize, crop, channels):
    spec, info = InputSpec((channels, 16, 16)), {"normalize": {"mean": [0.4] * channels, "std": [0.3] * channels}}
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = load_data(tmp_path, spec, info, reading=Reading(resize=resize, crop=crop, unlabeled=True))
    [(x, _)] = images.batches(1)
    scaling = images.scaling
    meta = {
        "image.color": {1: "gray", 3: "RGB"}[channels],
        "image.size": [16, 16],
        "image.resize": declared_resize(scaling),
        "image.crop": list(scaling.window),
        "image.mean": info["normalize"]["mean"],
        "image.std": info["normalize"]["std"],
    }
    fed = to_input(Image.open(tmp_path / "a.png"), meta)
    assert fed.dtype == np.float32 and np.array_equal(fed, x.numpy())


def test_the_same_compilation_gives_the_same_bytes(folders, digits):
    done = svitc.compile(digits, 1.0, policy=Uniform(), weights="int8", images=1, no_data="uniform")
    files = done.proof.files() | {"model.onnx": done.onnx}
    assert all((folders["int8"] / name).read_bytes() == data for name, data in files.items())


def test_a_file_for_batches_of_one_size(digits, tmp_path):
    """The proof holds such a batch, and verifying and timing run one."""
    options = {"policy": Uniform(), "weights": "int8", "images": 1, "no_data": "uniform"}
    done = svitc.compile(digits, 1.0, static_batch=3, **options)
    done.write(tmp_path)
    assert done.report["file"] == {"opset": 18, "opset_for": "target cpu", "batch": 3}
    assert form_of(done.report["file"]).endswith("takes exactly 3 images at once")
    assert metadata(tmp_path)["batch"] == 3 and "N is 3" in onnx.load(tmp_path / "model.onnx").doc_string
    assert check(tmp_path, "--spikes")[1].startswith("equal: 3 images, spikes of ")
    verdict = verify_folder(*open_folder(tmp_path), None, VerifySettings(1, 0), Reporter())
    assert verdict.passed and verdict.images == done.verdict.images == 3
    assert read_model(tmp_path / "model.onnx", None)[1] == 3
    with pytest.raises(UsageError, match="takes batches of 3 only"):
        read_model(tmp_path / "model.onnx", 2)
