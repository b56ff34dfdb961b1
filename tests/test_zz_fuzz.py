"""One file in, the same program out; and nothing but InputError for whatever else the file may be."""

from __future__ import annotations

import io
import json
import operator

import einops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import fx, nn

from families import FAMILIES, IMAGE, NEURONS, maxformer, spikformer, warm
from svitc.errors import InputError, UnsupportedError, UsageError
from svitc.frontends.capture import capture
from svitc.pass_base import Pipeline
from svitc.passes import Prune, canonical, inference
from svitc.plan import Plan
from svitc.program import InputSpec, Program, Stage
from svitc.serialize import load_program, save_program, short_source, to_bytes
from svitc.serialize_layers import SURROGATES, build_surrogate, describe_layer


def thin(program: Program, seed: int = 0) -> Program:
    """A random plan: other widths in every layer, each head its own dimensions."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in program.groups:
        if group.frozen is None:
            mask = np.zeros((group.heads, group.axis.size), dtype=bool)
            width = int(rng.integers(max(1, group.axis.size // 2), group.axis.size + 1))
            for row in mask:
                row[rng.permutation(group.axis.size)[:width]] = True
            keep[group.name] = mask
    Prune(Plan(keep))(program)
    return program


def captured(family: str = "spikformer", *, events: bool = False, **k) -> Program:
    torch.manual_seed(0)
    factory, shape = FAMILIES[family]
    spec = InputSpec((4, *shape) if events else shape)
    return capture(warm(factory(**k), spec.shape), spec, {"arch": family, "classes": list("abcde")})


def canonicalised(*args, **k) -> Program:
    program = captured(*args, **k)
    Pipeline(canonical())(program)
    return program


class File(bytes):
    """Bytes that a failing test does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def saved() -> bytes:
    return File(to_bytes(canonicalised()))


def reload(program: Program, folder) -> Program:
    path = folder / "model.safetensors"
    save_program(program, path)
    return load_program(path)


def assert_same(program: Program, again: Program) -> None:
    assert str(again) == str(program)
    assert (again.input, again.stage, again.info) == (program.input, program.stage, program.info)
    assert set(again.module.state_dict()) == set(program.module.state_dict())
    assert again.parameter_count() == program.parameter_count()
    x = torch.randn(program.input.batched(2))
    want = program(x)
    assert torch.equal(again(x), want) and want.any()
    assert to_bytes(again) == to_bytes(program)


@pytest.mark.parametrize("form", ["captured", "canonical", "pruned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(family, form, tmp_path):
    program = captured(family) if form == "captured" else canonicalised(family)
    if form == "pruned":
        thin(program)
        assert program.stage == Stage.PRUNED
    assert_same(program, reload(program, tmp_path))


@pytest.mark.parametrize("kind", NEURONS)
def test_round_trip_of_every_neuron(kind, tmp_path):
    program = canonicalised("spikformer", **NEURONS[kind])
    again = reload(program, tmp_path)
    assert_same(program, again)
    for node in program.neurons():
        old, new = program.module_of(node), again.module.get_submodule(str(node.target))
        assert type(old) is type(new) and old.extra_repr() == new.extra_repr()
        assert repr(old.surrogate_function) == repr(new.surrogate_function)


def test_round_trip_of_events(tmp_path):
    program = canonicalised("sdt", events=True)
    assert_same(program, reload(program, tmp_path))


def test_a_loaded_program_trains_and_is_pruned_further(tmp_path):
    program = reload(thin(canonicalised("qkformer-token")), tmp_path)
    program.module.train()
    program.module(torch.randn(program.input.batched(2))).sum().backward()
    assert all(p.grad is not None for p in program.module.parameters())
    program.reset()
    thin(program, 1)
    assert_same(program, reload(program, tmp_path))


def test_the_same_bytes_from_another_capture(saved):
    assert to_bytes(canonicalised()) == saved


def test_the_library_reads_it(saved, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    program = canonicalised()
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "svitc-program-1"
        assert set(file.keys()) == set(program.module.state_dict())
        for name, value in program.module.state_dict().items():
            assert torch.equal(file.get_tensor(name), value)


def test_saves_to_an_open_file(saved):
    file = io.BytesIO()
    save_program(canonicalised(), file)
    assert file.getvalue() == saved


def test_folders_of_the_user_do_not_get_into_the_file(saved):
    sources = {node["source"] for node in content_of(saved)["nodes"] if node["source"]}
    assert sources and all(source.count("/") <= 1 for source in sources)
    assert short_source("/home/me/nets/my net.py:12") == "nets/my net.py:12"
    assert short_source(r"C:\nets\net.py:12") == "nets/net.py:12"
    assert short_source(None) is None


def test_a_folded_program_is_not_saved():
    program = canonicalised()
    Pipeline(inference())(program)
    with pytest.raises(UsageError, match="stage inference no longer trains"):
        to_bytes(program)


# surrogates


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate_of_spikingjelly(name):
    values = {"grad_min": -0.5, "grad_max": 3.5, "max_spike_count": 3, "n": 3}
    entry = {"type": name, **{key: values.get(key, 0.75) for key in SURROGATES[name]}}
    function = build_surrogate(entry)
    kind = neuron.ILIFNode if name == "MultiLevelSpikeCount" else neuron.LIFNode
    assert describe_layer("lif", kind(surrogate_function=function, step_mode="m"))["surrogate"] == entry


def test_no_surrogate_of_spikingjelly_is_left_out():
    base = surrogate.SurrogateFunctionBase
    kinds = {n for n, k in vars(surrogate).items() if isinstance(k, type) and issubclass(k, base) and k is not base}
    assert kinds - {"PoissonPass"} == set(SURROGATES)  # that one fires at random


class Custom(surrogate.SurrogateFunctionBase):
    """A gradient of the user's own."""

    @staticmethod
    def spiking_function(x):
        return surrogate.atan.apply(x, 3.0)


def test_a_foreign_surrogate_is_stored_as_atan_and_said_so(tmp_path):
    program = canonicalised("spikformer", surrogate_function=Custom())
    again = reload(program, tmp_path)
    (note,) = again.info["assumptions"]
    assert "Custom" in note and "ATan" in note
    assert "assumptions" not in program.info, "saving does not change the program"
    functions = {repr(again.module_of(n).surrogate_function) for n in again.neurons()}
    assert functions == {"ATan(alpha=2.0, spiking=True)"}
    x = torch.randn(program.input.batched(2))
    assert torch.equal(again(x), program(x))
    assert to_bytes(again) == to_bytes(program)


@pytest.mark.parametrize(
    "function",
    [surrogate.ATan(spiking=False), surrogate.PoissonPass(), surrogate.MultiLevelSpikeCount(4)],
    ids=repr,
)
def test_a_neuron_that_does_not_fire_0_or_1_is_refused(function):
    with pytest.raises(UnsupportedError, match="neuron a.b does not fire 0 or 1"):
        describe_layer("a.b", neuron.LIFNode(surrogate_function=function, step_mode="m"))


# bare parameters, odd names


class Mixed(nn.Module):
    """Layers under odd names, a layer that is called twice, a dropout that falls away."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            layer.Conv2d(3, 4, 3, padding=1, stride=2, step_mode="m"), nn.Dropout(0.1),
            layer.BatchNorm2d(4, momentum=None, eps=1e-3, step_mode="m"), neuron.LIFNode(step_mode="m"),
        )  # fmt: skip
        self.add_module("odd-name", layer.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2, step_mode="m"))
        self.lif = neuron.ParametricLIFNode(
            v_threshold=0.1, step_mode="m", surrogate_function=surrogate.LeakyKReLU(0.1)
        )
        self.pool = layer.AvgPool2d(2, ceil_mode=True, count_include_pad=False, step_mode="m")
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        x = self.stem(x)
        again = self.get_submodule("odd-name")
        return self.head(self.pool(self.lif(again(again(x)) * 0.5 + x)).mean((3, 4)))


def mixed() -> Program:
    torch.manual_seed(0)
    shape = (2, 3, 8, 8)
    return capture(warm(Mixed(), shape), InputSpec(shape))


def bare() -> Program:
    """x * scale + shift, with a parameter and a buffer that no layer owns."""
    root = nn.Module()
    root.block = nn.Module()
    root.block.scale = nn.Parameter(torch.rand(3, 1, 1))
    root.block.register_buffer("shift", torch.rand(3, 1, 1), persistent=False)
    root.head = nn.Linear(3, 2)
    graph = fx.Graph()
    x = graph.placeholder("x")
    scale, shift = graph.get_attr("block.scale"), graph.get_attr("block.shift")
    for node in (scale, shift):
        node.meta["scope"] = "block"
    y = graph.call_function(torch.add, (graph.call_function(torch.mul, (x, scale)), shift))
    for node, function in zip(list(graph.nodes)[-2:], ("mul", "add"), strict=True):
        node.target = getattr(operator, function)
        node.meta["scope"] = "block"
    y = graph.call_function(torch.mean, (y,), {"dim": (2, 3), "keepdim": False})
    y = graph.call_function(einops.rearrange, (y, "b c -> b c"))
    graph.output(graph.call_module("head", (y,)))
    program = Program(fx.GraphModule(root, graph), InputSpec((3, 4, 4)))
    program.retype()
    return program


def test_round_trip_of_odd_layers(tmp_path):
    program = mixed()
    again = reload(program, tmp_path)
    assert_same(program, again)
    for node in program.graph.nodes:
        if node.op == "call_module":
            assert repr(program.module_of(node)) == repr(again.module.get_submodule(str(node.target)))


def test_round_trip_of_bare_parameters(tmp_path):
    program = bare()
    again = reload(program, tmp_path)
    assert torch.equal(again.module.block.scale, program.module.block.scale)
    assert isinstance(again.module.block.scale, nn.Parameter)
    assert not isinstance(again.module.block.shift, nn.Parameter)
    x = torch.randn(program.input.batched(2))
    assert torch.equal(again(x), program(x))
    assert str(again) == str(program) and to_bytes(again) == to_bytes(program)


def test_a_name_that_could_be_code_is_not_saved():
    program = bare()
    program.module.add_module('a"b', nn.Linear(3, 2))
    next(n for n in program.graph.nodes if n.op == "call_module").target = 'a"b'
    with pytest.raises(UnsupportedError, match="cannot be stored"):
        to_bytes(program)


# malformed files


def content_of(data: bytes) -> dict:
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["program"])


def changed(data: bytes, change, header=None) -> bytes:
    """The file with its program's JSON, or its header, changed."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    content = json.loads(head["__metadata__"]["program"])
    if change is not None:
        change(content)
        head["__metadata__"]["program"] = json.dumps(content)
    if header is not None:
        header(head)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def refuse(data: bytes, folder, match: str) -> None:
    path = folder / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=match) as caught:
        load_program(path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint or "cannot read" in caught.value.message


def node(name):
    return lambda content: next(n for n in content["nodes"] if n["name"] == name)


def setting(find, key, value):
    return lambda content: find(content).__setitem__(key, value)


def top(content):
    return content


def lif(content):
    return content["layers"]["blocks.0.attn.attn_lif"]


def conv(content):
    return content["layers"]["blocks.0.mlp.fc1.0"]


def pool(content):
    return next(entry for entry in content["layers"].values() if entry["type"] == "MaxPool2d")


def first(op, target=None):
    return lambda content: next(n for n in content["nodes"] if n["op"] == op and target in (None, n["target"]))


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
    "dict": (lambda c: node("mul")(c)["args"].__setitem__(0, {"eval": "1"}), "which no node before it makes"),
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
    "channels": (setting(conv, "out_channels", 7), "fc1.0.weight has shape .*, its layer wants"),
    "huge": (setting(conv, "out_channels", 10**12), "wants|cannot be made"),
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
    refuse(changed(saved, None, lambda h: h.pop("__metadata__")), tmp_path, "holds weights but no program")
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
        refuse(to_bytes(program), tmp_path, f"tensor {name} holds values that are not finite")


def test_a_tensor_too_many_is_refused(saved, tmp_path):
    def add(header):
        header["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    refuse(changed(saved, None, add), tmp_path, "tensor extra belongs to no layer")


@settings(max_examples=2500, deadline=None)
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


@settings(max_examples=600, deadline=None)
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


def test_a_program_without_groups_of_its_own(tmp_path):
    """T of one, one head: axes of size 1 survive."""
    torch.manual_seed(0)
    model = warm(maxformer(T=1, num_classes=2), IMAGE)
    program = capture(model, InputSpec(IMAGE))
    assert_same(program, reload(program, tmp_path))
    small = capture(warm(spikformer(T=1, num_heads=1), IMAGE), InputSpec(IMAGE))
    assert_same(small, reload(small, tmp_path))
