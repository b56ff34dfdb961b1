"""Quantized programs in files: int8 weights and all, one file in and the same program out; else InputError."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors

from support.malformed import changed, first, refuse, setting, top
from support.quantized import CASES, case_of, quantized
from support.serialized import File, assert_same, canonicalised, content_of, reload
from svitc.errors import InputError, UsageError
from svitc.ir.ops import is_quantized
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Stage
from svitc.ir.quantized_modules import FixedPoint, QuantizedConv1d, QuantizedConv2d
from svitc.passes.pipelines import inference_passes, lowering_passes
from svitc.serialization.layer_schema import build_layer, describe_layer
from svitc.serialization.writer import load_program, to_bytes


@pytest.fixture(scope="module")
def saved() -> bytes:
    return File(to_bytes(case_of("spikformer")))


# round trip


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, tmp_path):
    program = case_of(case)
    again = reload(program, tmp_path)
    assert again.stage == Stage.QUANTIZED
    assert_same(program, again)
    state = again.module.state_dict()
    for name, value in program.module.state_dict().items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype
    for node in program.graph.nodes:
        if node.op == "call_module":
            assert repr(program.module_of(node)) == repr(again.module.get_submodule(str(node.target)))


def test_weights_are_int8_in_the_file_and_nothing_is_a_parameter(saved, tmp_path):
    tensors = load_tensors(bytes(saved))
    kinds = {"weight": torch.int8, "scale": torch.float32, "bias": torch.float32}
    assert {(name.rpartition(".")[2], value.dtype) for name, value in tensors.items()} == set(kinds.items())
    weights = sum(value.numel() for value in tensors.values() if value.dtype == torch.int8)
    assert len(saved) < 2 * weights, "a byte each, and what describes them"
    (tmp_path / "model.safetensors").write_bytes(saved)
    again = load_program(tmp_path / "model.safetensors")
    assert again.parameter_count() == 0
    assert set(dict(again.module.named_buffers())) == set(tensors)


def test_the_same_bytes_from_another_capture(saved):
    assert to_bytes(quantized(canonicalised())) == saved


def test_layers_as_json():
    conv = QuantizedConv2d(4, 6, (1, 3), stride=2, padding=(0, 1), groups=2)
    entry = describe_layer("conv", conv)
    assert entry == {
        "type": "QuantizedConv2d",
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": [1, 3],
        "stride": [2, 2],
        "padding": [0, 1],
        "dilation": [1, 1],
        "groups": 2,
    }
    assert repr(build_layer(entry)) == repr(conv)
    assert describe_layer("x", FixedPoint(1, 255)) == {"type": "FixedPoint", "step": 1.0, "limit": 255}
    assert [v.dtype for v in build_layer(entry).state_dict().values()] == [torch.int8, torch.float32, torch.float32]
    assert describe_layer("conv", QuantizedConv1d(4, 6, 1))["kernel_size"] == [1]


def test_programs_between_the_stages_are_not_saved():
    program = canonicalised()
    Pipeline(inference_passes())(program)
    with pytest.raises(UsageError, match="stage inference"):
        to_bytes(program)
    program = case_of("spikformer").copy()
    Pipeline(lowering_passes())(program)
    with pytest.raises(UsageError, match="stage exportable"):
        to_bytes(program)


# malformed


def conv(content):
    return content["layers"]["blocks.0.mlp.fc1.0"]


def steps(content):
    return content["layers"]["input_steps"]


def number(content):
    return next(n["args"] for n in content["nodes"] if n["target"] == "mul" and type(n["args"][1]) is float)


BAD = {
    "stage before": (setting(top, "stage", "PRUNED"), "layer input_steps is quantized, but .* stage PRUNED is not"),
    "stage between": (setting(top, "stage", "INFERENCE"), "unknown stage"),
    "stage after": (setting(top, "stage", "EXPORTABLE"), "unknown stage"),
    **{
        f"step {step}": (setting(steps, "step", step), "layer input_steps: FixedPoint has no valid 'step'")
        for step in (0, 0.0, -0.5, 0.3, 3, True, "1", None, [0.5], 2.0**-127, 2.0**127)
    },
    **{
        f"limit {limit}": (setting(steps, "limit", limit), "layer input_steps: FixedPoint has no valid 'limit'")
        for limit in (0, -1, 1 << 24, 255.0, True, None, "255")
    },
    "no limit": (lambda c: steps(c).pop("limit"), "no valid 'limit'"),
    "channels": (setting(conv, "out_channels", 7), "fc1.0.weight has shape .*, but its layer needs"),
    "no groups": (lambda c: conv(c).pop("groups"), "no valid 'groups'"),
    "groups": (setting(conv, "groups", 3), "QuantizedConv1d cannot be created with"),
    "strides": (setting(conv, "stride", [1, 1]), "another number of dimensions"),
    "not quantized": (setting(conv, "type", "Conv1d"), "no valid 'bias'"),
    "its base": (setting(conv, "type", "_Quantized"), "unknown type of layer"),
    "another kind": (setting(conv, "type", "QuantizedLinear"), "no valid 'in_features'"),
    "factor of text": (lambda c: number(c).__setitem__(1, "0.5"), "not called with"),
    "sum of nothing": (setting(first("call_function", "mean"), "target", "sum"), None),  # is fine: another network
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_program_is_refused(case, saved, tmp_path):
    change, match = BAD[case]
    data = changed(saved, change)
    if match is not None:
        refuse(data, tmp_path, match)
        return
    (tmp_path / "model.safetensors").write_bytes(data)
    assert load_program(tmp_path / "model.safetensors").stage == Stage.QUANTIZED


def test_an_infinite_factor_is_refused(saved, tmp_path):
    """JSON has no infinity, but Python reads 1e999 as one."""
    size = int.from_bytes(saved[:8], "little")
    head = json.loads(saved[8 : 8 + size])
    text = head["__metadata__"]["program"]
    factor = number(json.loads(text))[1]
    head["__metadata__"]["program"] = text.replace(f"{factor}]", "1e999]")
    assert head["__metadata__"]["program"] != text
    text = json.dumps(head).encode()
    refuse(len(text).to_bytes(8, "little") + text + saved[8 + size :], tmp_path, "mul is not called with")


@pytest.mark.parametrize(
    ("tensor", "dtype", "of"),
    [("weight", "U8", "uint8"), ("weight", "BOOL", "bool"), ("scale", "I32", "int32"), ("bias", "I32", "int32")],
)
def test_a_tensor_of_another_type_is_refused(tensor, dtype, of, saved, tmp_path):
    name = f"blocks.0.mlp.fc1.0.{tensor}"
    data = changed(saved, None, lambda h: h[name].__setitem__("dtype", dtype))
    refuse(data, tmp_path, f"tensor {name} has type torch.{of}, but its layer needs")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
def test_floats_of_another_width_and_float_weights_are_refused(dtype, tmp_path):
    program = case_of("spikformer").copy()
    layer = program.module.get_submodule("blocks.0.mlp.fc1.0")
    wrong = "weight" if dtype == torch.float32 else "scale"
    setattr(layer, wrong, getattr(layer, wrong).to(dtype))
    refuse(to_bytes(program), tmp_path, f"tensor blocks.0.mlp.fc1.0.{wrong} has type {dtype}, but its layer needs")


@pytest.mark.parametrize(
    ("tensor", "value", "match"),
    [
        ("scale", 0.0, "scale that is not above 0"),
        ("scale", -0.5, "scale that is not above 0"),
        ("scale", float("nan"), "not finite"),
        ("scale", float("inf"), "not finite"),
        ("bias", float("nan"), "not finite"),
        ("bias", float("-inf"), "not finite"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tensor, value, match, tmp_path):
    program = case_of("spikformer").copy()
    program.module.get_buffer(f"blocks.0.mlp.fc1.0.{tensor}")[3] = value
    refuse(to_bytes(program), tmp_path, f"tensor blocks.0.mlp.fc1.0.{tensor} contains .*{match}")


@pytest.mark.parametrize("tensor", ["weight", "scale", "bias"])
def test_a_missing_tensor_is_refused(tensor, saved, tmp_path):
    name = f"blocks.0.mlp.fc1.0.{tensor}"
    data = changed(saved, None, lambda h: h.__setitem__("other", h.pop(name)))
    refuse(data, tmp_path, f"tensor {name} is missing")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_change_of_a_layer_is_refused_or_harmless(saved, tmp_path_factory, data):
    """Replace one argument of a quantized layer: the file loads as a program that runs, or InputError says why not."""
    names = sorted(n for n, entry in content_of(saved)["layers"].items() if entry["type"].startswith(("Quant", "Fix")))
    odd = [None, True, 0, -1, 1, 3, 2.5, 0.25, "x", "Linear", "FixedPoint", [], {}, [1], [1, 2], 10**30]

    def mutate(content):
        entry = content["layers"][data.draw(st.sampled_from(names))]
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(st.sampled_from(odd))

    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(changed(saved, mutate))
    try:
        program = load_program(path)
    except InputError:
        return
    assert any(is_quantized(module) for module in program.module.modules())
    program(torch.randn(program.input.batched(1)))
