"""Files for batches of one size: every dimension is a number, and the network is the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from support.measured import family
from support.quantized import case_of
from svitc.data.inputs import random_inputs, some_inputs
from svitc.errors import UsageError
from svitc.ir.program import Stage
from svitc.onnx.export import export
from svitc.onnx.model_info import metadata_of
from svitc.onnx.static_batch import static_batch
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

FORMS = {
    "fp32": ("fp32", "cpu", False),
    "int8": ("int8", "cpu", False),
    "functions": ("int8", "cpu", True),
    "openvino": ("int8", "openvino", False),
}


@pytest.fixture(scope="module", params=FORMS)
def files(request):
    weights, target, functions = FORMS[request.param]
    program = family("spikformer") if weights == "fp32" else case_of("spikformer")
    static = export(program, target, functions=functions, static_batch=3)
    return program, export(program, target, functions=functions), static


def run(file: bytes, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only, as one test causes an error
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def test_no_dimension_is_open_and_nothing_else_changed(files):
    program, dynamic, static = files
    model = onnx.load_from_string(static)
    onnx.checker.check_model(model, full_check=True)
    assert (static_batch(onnx.load_from_string(dynamic)), static_batch(model)) == (None, 3)
    infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    dims = [dim for info in infos for dim in info.type.tensor_type.shape.dim]
    assert all(dim.dim_value > 0 and not dim.dim_param for dim in dims)
    typed = {info.name for info in infos}
    assert all(name in typed for node in model.graph.node for name in node.output)
    assert "Shape" not in {node.op_type for node in model.graph.node}
    kept = [
        [metadata_of(n) for n in onnx.load_from_string(f).graph.node if n.metadata_props] for f in (dynamic, static)
    ]
    assert kept[0] == kept[1]
    images = random_inputs(program, 3, 3, 0)[0].numpy()
    assert np.array_equal(run(dynamic, images), run(static, images))


def test_other_batches_are_refused(files):
    program, _, static = files
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="Got: 2 Expected: 3"):
        run(static, random_inputs(program, 2, 2, 0)[0].numpy())


def test_it_is_verified_in_its_batches(files):
    program, _, static = files
    inputs = some_inputs(program, None, 4, 0, batch=3)
    verdict = (verify if program.stage < Stage.QUANTIZED else verify_exact)(program, static, inputs)
    assert verdict.passed and verdict.images == 6


def test_the_last_batch_is_filled_up():
    class Three:
        def batches(self, size):
            yield from ((x, None) for x in images.split(size))

    program = family("spikformer")
    images = random_inputs(program, 3, 3, 0)[0]
    [first, second] = some_inputs(program, Three(), 8, 0, batch=2)  # type: ignore[arg-type]
    assert first.equal(images[:2]) and second.equal(images[[2, 2]])


def test_batches_without_images_are_refused():
    with pytest.raises(UsageError, match="a static batch of 0 holds no image"):
        export(family("spikformer"), static_batch=0)
