"""Files that are not programs: InputError names what is wrong, and nothing in a file runs."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.malformed import changed, first, refuse, setting, top
from support.serialized import File, canonicalised
from svitc.errors import InputError
from svitc.serialization.writer import load_program, to_bytes


@pytest.fixture(scope="module")
def saved() -> bytes:
    return File(to_bytes(canonicalised()))


def node(name):
    return lambda content: next(n for n in content["nodes"] if n["name"] == name)


def lif(content):
    return content["layers"]["blocks.0.attn.attn_lif"]


def conv(content):
    return content["layers"]["blocks.0.mlp.fc1.0"]


def pool(content):
    return next(entry for entry in content["layers"].values() if entry["type"] == "MaxPool2d")


BAD = {
    "no input": (lambda c: c.pop("input"), "no valid 'input'"),
    "input of two": (setting(top, "input", [3, 4]), r"\[3, 4\] is neither C,H,W"),
    "input of text": (setting(top, "input", ["3", 4, 4]), "is neither C,H,W"),
    "input too large": (setting(top, "input", [3, 32, 10**30]), "is neither C,H,W"),
    "another input": (setting(top, "input", [4, 32, 48]), "input channels"),
    "stage": (setting(top, "stage", "INFERENCE"), "unknown stage 'INFERENCE'"),
    "info": (setting(top, "info", []), "no valid 'info'"),
    "nodes": (setting(top, "nodes", {}), "no valid 'nodes'"),
    "no nodes": (setting(top, "nodes", []), "one input, and one output"),
    "node of text": (lambda c: c["nodes"].insert(0, "x"), "a node has no valid 'name'"),
    "op": (setting(node("mul"), "op", "call_method"), "node mul: unknown op 'call_method'"),
    "function": (setting(node("mul"), "target", "eval"), "node mul: unknown function 'eval'"),
    "dunder": (setting(node("mul"), "target", "__import__"), "unknown function"),
    "name is code": (setting(first("placeholder"), "name", "x); import os; ("), "not a valid name"),
    "name is a keyword": (setting(first("placeholder"), "name", "lambda"), "not a valid name"),
    "name of another": (setting(node("mul"), "name", "matmul"), "two nodes have it"),
    "name that fx changes": (setting(first("placeholder"), "name", "list"), "."),
    "input is code": (
        setting(first("placeholder"), "target", "x=print('pwned')"),
        "not a valid name for an input",
    ),
    "path is code": (setting(first("call_module"), "target", 'a"]; import os; ["'), "not a valid path"),
    "no layer": (
        setting(first("call_module"), "target", "nothing.here"),
        "layer nothing.here is not described",
    ),
    "layer within a layer": (setting(first("call_module"), "target", "head.inner"), "."),
    "keyword is code": (
        setting(first("call_function", "repeat"), "kwargs", {"t=print('pwned'), u": 4}),
        "not called with",
    ),
    "pattern is code": (
        lambda c: first("call_function", "repeat")(c)["args"].__setitem__(1, "a'"),
        "not called with",
    ),
    "pattern of others": (
        lambda c: first("call_function", "repeat")(c)["args"].__setitem__(1, "a b -> b a"),
        "does not fit",
    ),
    "size": (setting(first("call_function", "repeat"), "kwargs", {"t": -4}), "not called with"),
    "size of text": (setting(first("call_function", "repeat"), "kwargs", {"t": "4"}), "not called with"),
    "no size": (setting(first("call_function", "repeat"), "kwargs", {}), "."),
    "mean of nothing": (setting(first("call_function", "mean"), "kwargs", {}), "not called with"),
    "mean beyond": (setting(first("call_function", "mean"), "kwargs", {"dim": [9], "keepdim": False}), "."),
    "reference": (lambda c: node("mul")(c)["args"].__setitem__(0, {"node": "head"}), "refers to .*head"),
    "dict": (
        lambda c: node("mul")(c)["args"].__setitem__(0, {"eval": "1"}),
        "not the value of any node before it",
    ),
    "a sum of texts": (lambda c: node("mul")(c)["args"].__setitem__(1, "1"), "not called with"),
    "too few": (setting(node("mul"), "args", []), "not called with 0 arguments"),
    "product of others": (lambda c: node("matmul")(c)["args"].reverse(), "."),
    "output first": (lambda c: c["nodes"].insert(1, c["nodes"].pop()), "."),
    "two inputs": (lambda c: c["nodes"].insert(1, {**c["nodes"][0], "name": "z"}), "one input"),
    "layer type": (
        setting(conv, "type", "Conv3d"),
        "layer blocks.0.mlp.fc1.0: unknown type of layer 'Conv3d'",
    ),
    "layer type of list": (setting(conv, "type", ["Conv1d"]), "unknown type of layer"),
    "layer of text": (lambda c: c["layers"].__setitem__("head", "Linear"), "unknown type of layer"),
    "channels": (setting(conv, "out_channels", 7), "fc1.0.weight has shape .*, but its layer needs"),
    "huge": (setting(conv, "out_channels", 10**12), "no valid 'out_channels'"),
    "channels of text": (setting(conv, "in_channels", "x"), "no valid 'in_channels'"),
    "bias": (setting(conv, "bias", 1), "no valid 'bias'"),
    "groups": (setting(conv, "groups", 3), "."),
    "stride": (setting(conv, "stride", [0]), "no valid 'stride'"),
    "strides": (setting(conv, "stride", [1, 1]), "another number of dimensions"),
    "pool": (setting(pool, "padding", 2), "pads by more than half"),
    "no padding": (lambda c: conv(c).pop("padding"), "no valid 'padding'"),
    "neuron": (setting(lif, "type", "KLIFNode"), "unknown type of layer 'KLIFNode'"),
    "tau": (setting(lif, "tau", 0.5), "attn_lif: LIFNode has no valid 'tau'"),
    "threshold": (setting(lif, "v_threshold", -1.0), "fires without input"),
    "reset": (setting(lif, "v_reset", 5.0), "fires without input"),
    "surrogate": (setting(lif, "surrogate", {"type": "SurrogateFunctionBase"}), "unknown surrogate function"),
    "no surrogate": (lambda c: lif(c).pop("surrogate"), "unknown surrogate function None"),
    "alpha": (setting(lif, "surrogate", {"type": "ATan", "alpha": "2"}), "ATan has no valid alpha"),
    "counts": (setting(lif, "surrogate", {"type": "MultiLevelSpikeCount"}), "LIFNode fires 0 or 1"),
    "a dead layer": (lambda c: c["nodes"].remove(first("output")(c)), "one output"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_program_is_refused(case, saved, tmp_path):
    change, match = BAD[case]
    refuse(changed(saved, change), tmp_path, match)


def test_a_malformed_file_is_refused(saved, tmp_path):
    refuse(b"", tmp_path, "is not a safetensors file")
    refuse(saved[:100], tmp_path, "is not a safetensors file")
    refuse(saved[:-4], tmp_path, "is not a safetensors file")
    pickled = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, pickled)
    refuse(pickled.getvalue(), tmp_path, "is not a safetensors file")
    with pytest.raises(InputError, match="cannot read .*nothing"):
        load_program(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="cannot read"):
        load_program(tmp_path)


def test_weights_without_a_program_are_refused(saved, tmp_path):
    refuse(changed(saved, None, lambda h: h.pop("__metadata__")), tmp_path, "contains weights, but no program")
    other = {"format": "pt"}
    refuse(changed(saved, None, lambda h: h.__setitem__("__metadata__", other)), tmp_path, "no program of svitc")
    broken = {"format": "svitc-program-1", "program": "{"}
    refuse(changed(saved, None, lambda h: h.__setitem__("__metadata__", broken)), tmp_path, "malformed")
    for text in ("[" * 100_000, "NaN", '{"input": Infinity}', "null", "[]"):
        odd = {"format": "svitc-program-1", "program": text}
        refuse(changed(saved, None, lambda h, odd=odd: h.__setitem__("__metadata__", odd)), tmp_path, ".")


def test_wrong_tensors_are_refused(saved, tmp_path):
    name = "blocks.0.mlp.fc1.0.weight"
    moved = changed(saved, None, lambda h: h.__setitem__("other", h.pop(name)))
    refuse(moved, tmp_path, f"tensor {name} is missing")
    unread = changed(saved, lambda c: [c["nodes"].remove(n) for n in c["nodes"] if n["target"] == "head"])
    refuse(unread, tmp_path, ".")

    def as_integers(header):
        header[name]["dtype"] = "I32"

    refuse(changed(saved, None, as_integers), tmp_path, f"tensor {name} has type torch.int32")
    for value in (float("nan"), float("inf")):
        program = canonicalised()
        with torch.no_grad():
            program.module.get_parameter(name)[1, 2] = value
        refuse(to_bytes(program), tmp_path, f"tensor {name} contains values that are not finite")


def test_a_tensor_too_many_is_refused(saved, tmp_path):
    def add(header):
        header["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    refuse(changed(saved, None, add), tmp_path, "tensor extra belongs to no layer")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_change_is_refused_or_harmless(saved, tmp_path_factory, data):
    """Replace any one value in the JSON: the file loads as a program, or InputError says why not."""

    def mutate(content):
        place = content
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.integers(0, 9)):
                place = place[key]
                continue
            odd = [
                None,
                True,
                0,
                -1,
                3,
                2.5,
                "",
                "x",
                "head",
                [],
                {},
                [1],
                {"node": "mul"},
                {"tuple": [1]},
                10**30,
            ]
            place[key] = data.draw(st.sampled_from(odd))
            return

    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(changed(saved, mutate))
    try:
        program = load_program(path)
    except InputError:
        return
    program(torch.randn(program.input.batched(1)))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_changed_byte_of_the_header_is_refused_or_harmless(saved, tmp_path_factory, place, byte):
    size = 8 + int.from_bytes(saved[:8], "little")
    data = bytearray(saved)
    data[int(place * size)] = byte
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(bytes(data))
    try:
        load_program(path)
    except InputError:
        return
