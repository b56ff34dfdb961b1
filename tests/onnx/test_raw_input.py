"""Files that take bytes: the same network, bit for bit, and the file as it was where the bytes are taken out again."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from support.exported import missing
from support.measured import family
from svitc.data.pixels import normalized, pixel_table
from svitc.errors import InputError
from svitc.onnx.declared import check_declared
from svitc.onnx.export import export, export_step
from svitc.onnx.packed_state import pack_states
from svitc.onnx.raw_input import normalization_of, with_raw_input, without_raw_input
from svitc.onnx.static_batch import with_static_batch
from svitc.onnx.target import TARGETS
from svitc.passes.pipelines import quantize
from svitc.runtimes import RUNTIMES
from svitc.verification.raw_input_check import check_raw_input

INFO = {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
TABLE = pixel_table(INFO, 3)
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def programs():
    floats = family("spikformer", T=2)
    floats.info.update(INFO)
    return {"fp32": floats, "int8": quantize(floats)[0]}


@pytest.fixture(scope="module")
def files(programs):
    made = {("fp32", "cpu"): export(programs["fp32"]), ("int8", "openvino"): export(programs["int8"], "openvino")}
    made["int8", "cpu"] = export(programs["int8"])
    made["int8", "static"] = with_static_batch(made["int8", "cpu"], 2)
    made["fp32", "streaming"] = pack_states(export_step(programs["fp32"]))
    return made


def pixels(file: bytes, batch: int = 2) -> np.ndarray:
    """uint8 [N, H, W, C] for a file that takes floats."""
    dims = onnx.load_from_string(file).graph.input[0].type.tensor_type.shape.dim
    shape = (batch, *(dim.dim_value for dim in dims[2:]), dims[1].dim_value)
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def test_bytes_become_what_the_reader_of_data_gives_and_the_outputs_are_the_same_bits(files):
    for file in files.values():
        raw, image = with_raw_input(file, TABLE), pixels(file)
        onnx.checker.check_model(onnx.load_from_string(raw), full_check=True)
        taking, plain = (onnxruntime.InferenceSession(each) for each in (raw, file))
        assert [taking.get_inputs()[0].name, taking.get_inputs()[0].type] == ["image", "tensor(uint8)"]
        states = {
            value.name: np.zeros([2, *value.shape[1:]], np.float32)
            for value in plain.get_inputs()
            if value.name != "image"
        }
        for a, b in zip(
            taking.run(None, {"image": image, **states}),
            plain.run(None, {"image": normalized(image, INFO), **states}),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_it_comes_apart_byte_for_byte(files):
    for file in files.values():
        raw = with_raw_input(file, TABLE)
        assert without_raw_input(raw) == onnx.load_from_string(file).SerializeToString(deterministic=True)
        assert without_raw_input(file) == file and with_raw_input(raw, TABLE) == raw


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("equal", [False, True])
def test_every_byte_in_every_channel(channels, equal):
    """As numpy computes it as well, in float32 and in the order that predict.py has."""
    mean = [0.4] * channels if equal else INFO["normalize"]["mean"][:channels]
    info = {"normalize": {"mean": mean, "std": [0.3] * channels}}
    image, out = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", channels, 16, 8]) for name in ("image", "y")
    )
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"], "relu")], "relu", [image], [out])
    file = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    raw = with_raw_input(file, pixel_table(info, channels))
    every = np.arange(256, dtype=np.uint8).reshape(2, 16, 8)[..., None].repeat(channels, -1)
    [found] = onnxruntime.InferenceSession(normalization_of(raw)).run(None, {"image": every})
    steps = every.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)
    expected = (steps - np.array(mean, np.float32).reshape(-1, 1, 1)) / np.float32(0.3)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found[:, 0])) == 256


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_its_operators_are_those_of_every_target(files, target):
    part = ir.from_proto(onnx.load_from_string(normalization_of(with_raw_input(files["fp32", "cpu"], TABLE))))
    # CUDA's Transpose and Cast take bytes as well, though no sums of its files do
    check_declared(part, replace(TARGETS[target], types=TARGETS[target].types | {ir.DataType.UINT8}))


def test_cuda_has_kernels_for_them(files):
    assert missing(with_raw_input(files["fp32", "cpu"], TABLE)) == []


def test_verification_finds_a_wrong_table_and_a_wrong_order(programs, files):
    raw = with_raw_input(files["int8", "cpu"], TABLE)
    good = check_raw_input(programs["int8"], raw)
    assert good is not None and good.passed and good.pixels >= 256 * 3 and good.values
    assert check_raw_input(programs["int8"], files["int8", "cpu"]) is None
    nearly = TABLE.copy()
    nearly[1, 200] = np.nextafter(nearly[1, 200], np.float32(9))
    off = check_raw_input(programs["int8"], with_raw_input(files["int8", "cpu"], nearly))
    assert off is not None and not off.passed and off.pixels_differing and not off.as_written
    turned = check_raw_input(programs["int8"], with_raw_input(files["int8", "cpu"], TABLE[::-1]))
    assert turned is not None and turned.pixels_differing and turned.values_differing


def test_what_takes_bytes_otherwise_is_refused(files):
    model = onnx.load_from_string(with_raw_input(files["fp32", "cpu"], TABLE))
    del model.graph.value_info[:]
    with pytest.raises(InputError, match="not as svitc writes it"):
        without_raw_input(model.SerializeToString())


@needs_openvino
def test_openvino_looks_up_the_same_bits(programs, files):
    for weights, target in (("fp32", "cpu"), ("int8", "openvino")):
        raw = with_raw_input(files[weights, target], TABLE)
        found = check_raw_input(programs[weights], raw, RUNTIMES["openvino"])
        assert found is not None and found.passed and bool(found.values) == (weights == "int8")
