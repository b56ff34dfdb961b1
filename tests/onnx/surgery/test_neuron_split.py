"""The file cut at its neurons: each layer alone agrees with the program, and a wrong weight does not pass."""

from __future__ import annotations

import einops
import numpy as np
import onnx
import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from svitc.errors import InputError
from svitc.ir.program import Program
from svitc.onnx import SplitNeuron, lower, split_neurons, to_bytes
from svitc.runtimes import session

NEAR = 1e-5  # of the threshold: float32 sums in another order differ by less


def recorded(program: Program, x: torch.Tensor) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Current, membrane before firing and spikes of every LIF neuron, ``[T, N, ...]``, by path."""
    found = {}

    def keep(path, module, inputs, spikes):
        current, after = inputs[0], module.v_seq
        before = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
        membrane = before + (current - before) / module.tau
        found[path] = tuple(each.numpy() for each in (current, membrane, spikes))

    hooks = []
    for node in program.neurons():
        module = program.module_of(node)
        module.store_v_seq = True
        hooks.append(module.register_forward_hook(lambda *args, path=str(node.target): keep(path, *args)))
    program(x)
    for hook in hooks:
        hook.remove()
    return found


def compared(program: Program, model: bytes, batch: int = 3) -> tuple[dict[str, int], float]:
    """Each neuron's spikes that differ although its membrane was not near the threshold; the firing rate."""
    torch.manual_seed(1)
    x = torch.randn(program.input.batched(batch))
    reference = recorded(program, x)
    data, neurons = split_neurons(model)
    feeds = {"image": x.numpy()} | {n.reference: reference[n.path][2].reshape(n.shape) for n in neurons}
    loaded = session(data, threads=1)
    names = loaded.output_names
    outputs = dict(zip(names, loaded.run(names, feeds), strict=True))
    wrong = {}
    for each in neurons:
        current, membrane, spikes = reference[each.path]
        flipped = outputs[each.spikes].reshape(spikes.shape) != spikes
        first = flipped & (np.cumsum(flipped, axis=0) == 1)  # what follows in time follows from it
        threshold = program.module.get_submodule(each.path).v_threshold
        wrong[each.path] = int((first & (np.abs(membrane / threshold - 1) > NEAR)).sum())
        given = current[0] if each.static else current
        assert outputs[each.current].shape == given.reshape(each.shape).shape
    return wrong, float(np.median([spikes.mean() for _, _, spikes in reference.values()]))


def test_every_neuron_of_every_family_agrees(captured, form):
    program = captured.copy()
    wrong, rate = compared(program, to_bytes(lower(program, form)))
    assert list(wrong) == [str(node.target) for node in program.neurons()]
    assert not any(wrong.values()), wrong
    assert rate > 0.1  # silent neurons would agree on anything


def changed(program: Program, name: str, change) -> bytes:
    """The file with one of its constants changed."""
    proto = onnx.load_from_string(to_bytes(lower(program)))
    (constant,) = (each for each in proto.graph.initializer if each.name == name)
    values = change(onnx.numpy_helper.to_array(constant).copy())
    constant.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return proto.SerializeToString()


@pytest.mark.parametrize("layer", ["patch_embed.stages.1.conv_bn.block.0", "blocks.1.mlp.fc2.0"])
def test_a_wrong_weight_is_found_in_its_layer_alone(captured_as, layer):
    def one_channel_by_one_percent(values):
        values[0] *= 1.01
        return values

    program = captured_as("spikformer").copy()
    wrong, _ = compared(program, changed(program, f"{layer}.weight", one_channel_by_one_percent), batch=8)
    (found,) = (path for path, count in wrong.items() if count)
    assert layer.startswith(found.rsplit(".", 1)[0])


def test_a_wrong_threshold_is_found(captured_as):
    program = captured_as("spikformer").copy()
    wrong, _ = compared(program, changed(program, "lif.threshold", lambda value: value * np.float32(1.001)))
    assert sum(count > 0 for count in wrong.values()) > 5


@pytest.fixture
def four_kinds(program_of) -> Program:
    """A neuron of each kind: the first with a current that does not change, the last at the output."""

    def build(graph, x):
        x = graph.call_function(einops.rearrange, (x, "b c y x -> b y x c"))
        x = graph.call_function(einops.repeat, (x, "b y x c -> t b y x c"), {"t": 4})
        x = graph.call_module("first", (x,))
        for name in ("plif", "ilif", "last"):
            x = graph.call_module(name, (graph.call_module("linear", (x,)),))
        return x

    torch.manual_seed(0)
    return program_of(
        (3, 4, 6),
        build,
        linear=nn.Linear(3, 3),
        first=neuron.LIFNode(step_mode="m"),
        plif=neuron.ParametricLIFNode(1.6, v_threshold=0.2, step_mode="m"),
        ilif=neuron.ILIFNode(v_threshold=0.2, surrogate_function=surrogate.MultiLevelSpikeCount(4), step_mode="m"),
        last=neuron.IFNode(v_threshold=0.2, v_reset=None, step_mode="m"),
    )


def test_a_cut_model_says_what_each_neuron_is(four_kinds, form):
    data, neurons = split_neurons(to_bytes(lower(four_kinds, form)))
    onnx.checker.check_model(data, full_check=True)
    assert [(n.path, n.kind, n.static) for n in neurons] == [
        ("first", "LIF", True),
        ("plif", "PLIF", False),
        ("ilif", "ILIF", False),
        ("last", "IF", False),
    ]
    assert neurons[1] == SplitNeuron("plif", "PLIF", "ref:plif", "spikes:plif", "current:plif", (-1, 4, 6, 3), False)
    loaded = session(data)
    assert loaded.input_names == ["image", "ref:first", "ref:plif", "ref:ilif", "ref:last"]


def test_no_neuron_of_a_cut_model_feeds_another(four_kinds):
    data, neurons = split_neurons(to_bytes(lower(four_kinds)))
    loaded = session(data, threads=1)
    names = loaded.output_names
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32) * 4
    zeros = {n.reference: np.zeros((8, 4, 6, 3), np.float32) for n in neurons}
    ones = {name: value + 1 for name, value in zeros.items()}
    quiet = dict(zip(names, loaded.run(names, {"image": x, **zeros}), strict=True))
    loud = dict(zip(names, loaded.run(names, {"image": x, **ones}), strict=True))
    np.testing.assert_array_equal(quiet["spikes:first"], loud["spikes:first"])
    assert (quiet["spikes:first"] == 1).any()
    for name in ("plif", "ilif", "last"):
        assert (quiet[f"current:{name}"] != loud[f"current:{name}"]).any()
    assert (quiet["logits"] == 0).all() and (loud["logits"] == 1).all()  # the last reference, reshaped
    assert quiet["current:first"].shape == (2, 4, 6, 3) and quiet["spikes:first"].shape == (8, 4, 6, 3)


def test_a_program_that_ends_in_a_neuron_in_physical_form(program_of, form):
    """The spikes of the neuron are the logits, with no view in between."""

    def build(graph, x):
        shown = graph.call_function(einops.repeat, (x, "b c y x -> t b c y x"), {"t": 1})
        return graph.call_function(torch.mean, (graph.call_module("lif", (shown,)),), {"dim": (0,), "keepdim": False})

    model = to_bytes(lower(program_of((3, 4, 6), build, lif=neuron.LIFNode(step_mode="m")), form))
    assert [node.output[0] for node in onnx.load_from_string(model).graph.node][-2:] == ["lif", "logits"], "a copy"
    data, _ = split_neurons(model)
    onnx.checker.check_model(data, full_check=True)
    spikes = np.ones((2, 3, 4, 6), np.float32)
    (logits,) = session(data).run(["logits"], {"image": 0 * spikes, "ref:lif": spikes})
    assert (logits == 1).all()


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match="cannot read an ONNX model"):
        split_neurons(b"not a model")
