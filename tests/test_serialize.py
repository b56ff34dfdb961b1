"""One file in, the same program out; and nothing but InputError for whatever else the file may be."""

from __future__ import annotations

import io
import json
import operator

import einops
import numpy as np
import pytest
import torch
from safetensors import safe_open
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import fx, nn

from families import FAMILIES, IMAGE, NEURONS, maxformer, spikformer, warm
from svitc.errors import InputError, UnsupportedError, UsageError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes import Prune
from svitc.passes.pipelines import canonical_passes, inference_passes
from svitc.planning.plan import Plan
from svitc.serialization.layer_schema import SURROGATES, build_layer, build_surrogate, describe_layer
from svitc.serialization.writer import load_program, save_program, short_source, to_bytes
from test_official_constructs import captured as official


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
    Pipeline(canonical_passes())(program)
    return program


def content_of(data: bytes) -> dict:
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["program"])


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


@pytest.mark.parametrize("case", ["integer", "scaled", "meta"])
def test_round_trip_of_published_constructs(case, tmp_path):
    program = official(case)
    thin(program)
    again = reload(program, tmp_path)
    assert_same(program, again)
    for node in program.graph.nodes:
        if node.op == "call_module":
            assert repr(program.module_of(node)) == repr(again.module.get_submodule(str(node.target)))


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
    Pipeline(inference_passes())(program)
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


@pytest.mark.parametrize(
    "change",
    [
        {"levels": 0},
        {"levels": 2.0},
        {"levels": True},
        {"rounding": "down"},
        {"rounding": None},
        {"type": "ZeroPad2d", "padding": [1, 1]},
        {"type": "ZeroPad2d", "padding": [1, 1, 1, -1]},
        {"type": "ZeroPad2d", "padding": [1] * 5},
        {"type": "ZeroPad2d"},
    ],
    ids=str,
)
def test_malformed_padding_and_integer_spikes(change):
    entry = {"type": "IntegerSpike", "levels": 4, "rounding": "half_up"}
    assert repr(build_layer(entry)) == "IntegerSpike(levels=4, rounding='half_up')"
    with pytest.raises(InputError, match="IntegerSpike has no valid|ZeroPad2d has"):
        build_layer(entry | change)


# bare parameters, odd names


class Mixed(nn.Module):
    """Layers under odd names, a layer that is called twice, a dropout that falls away."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            layer.Conv2d(3, 4, 3, padding=1, stride=2, step_mode="m"),
            nn.Dropout(0.1),
            layer.BatchNorm2d(4, momentum=None, eps=1e-3, step_mode="m"),
            neuron.LIFNode(step_mode="m"),
        )
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


def test_a_program_without_groups_of_its_own(tmp_path):
    """T of one, one head: axes of size 1 survive."""
    torch.manual_seed(0)
    model = warm(maxformer(T=1, num_classes=2), IMAGE)
    program = capture(model, InputSpec(IMAGE))
    assert_same(program, reload(program, tmp_path))
    small = capture(warm(spikformer(T=1, num_heads=1), IMAGE), InputSpec(IMAGE))
    assert_same(small, reload(small, tmp_path))
