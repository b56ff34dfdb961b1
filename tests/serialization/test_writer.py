"""One file in, the same program out; and nothing but InputError for whatever else the file may be."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors import safe_open
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from support.constructs import captured as official
from support.families import FAMILIES, IMAGE, NEURONS, maxformer, spikformer, warm
from support.serialized import Custom, File, assert_same, bare, canonicalised, captured, content_of, mixed, reload, thin
from svitc.errors import InputError, UnsupportedError, UsageError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.ops import LeakyNeuron
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Stage
from svitc.passes.pipelines import inference_passes
from svitc.serialization.layer_schema import SURROGATES, build_layer, build_surrogate, describe_layer
from svitc.serialization.writer import save_program, short_source, to_bytes


@pytest.fixture(scope="module")
def saved() -> bytes:
    return File(to_bytes(canonicalised()))


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
        saved_neuron, loaded_neuron = program.module_of(node), again.module.get_submodule(str(node.target))
        assert type(saved_neuron) is type(loaded_neuron) and saved_neuron.extra_repr() == loaded_neuron.extra_repr()
        assert repr(saved_neuron.surrogate_function) == repr(loaded_neuron.surrogate_function)


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
    with pytest.raises(UsageError, match="stage inference can no longer be trained"):
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


@pytest.mark.parametrize(
    "change", [{"keep": "a"}, {"keep": 2.0}, {"gain": 0}, {"threshold": -1.0}, {"levels": 0}, {"strict": 1}], ids=str
)
def test_malformed_own_neurons(change):
    entry = {"type": "LeakyNeuron", "keep": 0.25, "gain": 1, "threshold": 0.5}
    entry |= {"hard_reset": True, "strict": False, "levels": 1}
    assert isinstance(build_layer(entry), LeakyNeuron)
    with pytest.raises(InputError, match="LeakyNeuron"):
        build_layer(entry | change)


# bare parameters, odd names


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
