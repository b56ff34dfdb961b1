"""Neuron dynamics: the decoded equations give the same spikes and membranes as SpikingJelly, step by step."""

import math

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from svitc.ir import ops
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of

STEPS = 4
RESETS = {"hard": {"v_reset": 0.0}, "hard, to another voltage": {"v_reset": -0.25}, "soft": {"v_reset": None}}


def leaky(kind: type[nn.Module], decay_input: bool, reset: str) -> nn.Module:
    tau = {"tau": 3.0} if kind is neuron.LIFNode else {"init_tau": 3.0}
    return kind(**tau, decay_input=decay_input, v_threshold=0.75, **RESETS[reset])


NEURONS = {
    **{f"IF, {reset}": (neuron.IFNode, {"v_threshold": 0.75, **RESETS[reset]}) for reset in RESETS},
    **{
        f"{name}, {reset}, {'input decays' if decays else 'full input'}": (
            leaky,
            {"kind": kind, "decay_input": decays, "reset": reset},
        )
        for name, kind in (("LIF", neuron.LIFNode), ("PLIF", neuron.ParametricLIFNode))
        for reset in RESETS
        for decays in (True, False)
    },
    "ILIF": (neuron.ILIFNode, {}),
    "ILIF, threshold": (
        neuron.ILIFNode,
        {"tau": 3.0, "v_threshold": 0.5, "surrogate_function": surrogate.MultiLevelSpikeCount(3)},
    ),
    "IntegerSpike": (ops.IntegerSpike, {"levels": 3}),
    "IntegerSpike, half up": (ops.IntegerSpike, {"levels": 3, "rounding": "half_up"}),
}


def step(n: NeuronDynamics, v: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and the membrane after them, from the equations at the head of the module."""
    h = n.keep * v + (1 - n.keep) * n.rest + n.gain * x if n.has_state else x
    if n.counts:
        level = (h / n.threshold).clip(0, n.max_spikes)
        s = (level + 0.5).floor() if n.half_up else level.round()
    else:
        s = (h >= n.threshold).to(h)
    return s, h - s * n.threshold if n.reset is None else torch.where(s > 0, n.reset, h)


@pytest.mark.parametrize("name", NEURONS)
def test_the_equations_are_those_of_the_module(name):
    make, options = NEURONS[name]
    module = make(**options).double().eval()
    dynamics = dynamics_of(module)
    x = torch.randn(STEPS, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    v = torch.full_like(x[0], dynamics.rest)
    with torch.no_grad():
        for t in range(STEPS):
            spikes, v = step(dynamics, v, x[t])
            assert torch.equal(module(x[t]), spikes), t
            if dynamics.has_state:
                torch.testing.assert_close(module.v, v, rtol=0, atol=1e-12)
    assert 0 < spikes.max() <= dynamics.max_spikes


def test_each_kind_says_what_it_is():
    assert dynamics_of(neuron.IFNode()) == NeuronDynamics("IF", reset=0.0)
    assert dynamics_of(neuron.LIFNode(v_reset=None)) == NeuronDynamics("LIF", tau=2.0, decay_input=True)
    plif = dynamics_of(neuron.ParametricLIFNode(decay_input=False))
    assert (plif.kind, plif.tau, plif.decay_input, plif.leaks) == ("PLIF", None, False, True)
    assert dynamics_of(neuron.ILIFNode()) == NeuronDynamics("ILIF", tau=4 / 3, max_spikes=4)
    assert dynamics_of(ops.IntegerSpike(2, "half_up")) == NeuronDynamics("IntegerSpike", max_spikes=2, half_up=True)
    leaky_dynamics = dynamics_of(ops.LeakyNeuron(0.25, 0.5, 0.3, hard_reset=False, strict=True))
    assert leaky_dynamics == NeuronDynamics("Leaky", threshold=0.3, strict=True, factors=(0.25, 0.5))
    assert (leaky_dynamics.keep, leaky_dynamics.gain, leaky_dynamics.leaks) == (0.25, 0.5, True)
    assert dynamics_of(ops.LeakyNeuron(0.25, hard_reset=False, levels=3)).counts
    assert not dynamics_of(neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=False))).fires


def test_normalized():
    for options, normalized in (({}, True), ({"v_reset": None}, True), ({"v_reset": -1.0}, False)):
        assert dynamics_of(neuron.LIFNode(**options)).is_normalized is normalized
    assert not dynamics_of(neuron.LIFNode(v_threshold=0.5)).is_normalized


def test_the_two_rates_of_a_learned_decay():
    """Bounds take 1/tau in float64, the written network what PyTorch computes in float32."""
    module = neuron.ParametricLIFNode(init_tau=3.0)
    dynamics = dynamics_of(module)
    w = float(module.w.detach())
    assert dynamics.rate == pytest.approx(1 / (1 + math.exp(-w)), rel=1e-15)
    assert torch.equal(dynamics.float32_rate, module.w.detach().sigmoid())
    assert (dynamics.keep, dynamics.gain) == (1 - dynamics.rate, dynamics.rate)


def test_others_are_refused():
    class Other(neuron.LIFNode):
        pass

    for module in (nn.ReLU(), Other()):
        with pytest.raises(TypeError, match="is not a neuron"):
            dynamics_of(module)


def test_the_equations_of_an_own_neuron():
    x = torch.randn(STEPS, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    for options in ({}, {"hard_reset": False}, {"hard_reset": False, "levels": 3}):
        module = ops.LeakyNeuron(0.7, 0.6, 0.8, **options)
        dynamics = dynamics_of(module)
        spikes, v = [], torch.zeros_like(x[0])
        for current in x:
            s, v = step(dynamics, v, current)
            spikes.append(s)
        assert torch.equal(module(x), torch.stack(spikes)) and torch.stack(spikes).max() == dynamics.max_spikes


def test_an_own_neuron_that_cannot_be():
    for arguments in ((1.5,), (-0.1,), (0.5, 0.0), (0.5, 1.0, 0.0), (0.5, 1.0, 1.0, True, False, 4)):
        with pytest.raises(ValueError, match="neuron"):
            ops.LeakyNeuron(*arguments)
