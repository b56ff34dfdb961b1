"""Every neuron against SpikingJelly's own, bit for bit, from currents at the edge of firing."""

from __future__ import annotations

import einops
import numpy as np
import onnx
import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from svitc.errors import UnsupportedError
from svitc.ir.ops import IntegerSpike, LeakyNeuron
from svitc.onnx import lower, split_neurons, target_of, to_bytes
from svitc.onnx.function_body import neuron_function
from svitc.onnx.neuron_functions import kind_of
from svitc.runtimes import session

SHAPE = (3, 8, 16)  # channels, height, width
BATCH = 5
RESETS = {"to zero": 0.0, "to -0.3": -0.3, "soft": None}


def leaky(tau: float, threshold: float, reset: float | None, decay_input: bool):
    return neuron.LIFNode(tau, decay_input, threshold, reset, step_mode="m")


def parametric(tau: float, threshold: float, reset: float | None, decay_input: bool):
    return neuron.ParametricLIFNode(tau, decay_input, threshold, reset, step_mode="m")


def own(keep: float, gain: float, threshold: float, form: str):
    hard, strict, levels = {"hard": (True, False, 1), "strict": (True, True, 1), "soft": (False, False, 1)}.get(
        form, (False, False, 4)
    )
    return LeakyNeuron(keep, gain, threshold, hard, strict, levels)


def edges(module: LeakyNeuron, steps: int) -> torch.Tensor:
    """Random currents, half of which bring the membrane of a LeakyNeuron within a few units of firing."""
    generator = torch.Generator().manual_seed(steps)
    shape = (BATCH, *SHAPE)
    v, steps_x = torch.zeros(shape), []
    for _ in range(steps):
        aim = torch.full(shape, module.threshold)
        if module.levels > 1:
            aim = (torch.randint(0, 4, shape, generator=generator) + 0.5) * module.threshold
        x = (aim - module.keep * v) / module.gain
        ulps = torch.randint(-3, 4, shape, generator=generator) * 2.0**-24
        noise = torch.randn(shape, generator=generator) * 3 * module.threshold
        x = torch.where(torch.rand(shape, generator=generator) < 0.5, x * (1 + ulps), noise)
        steps_x.append(x)
        h = module.charge(v, x)
        v = module.reset_membrane(h, module.fire(h))
    return torch.stack(steps_x)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("form", ["hard", "strict", "soft", "counts"])
@pytest.mark.parametrize("keep, gain, threshold", [(0.25, 1.0, 0.5), (0.9, 0.3, 0.7), (1.0, 1.0, 1.0)])
def test_own_neurons_fire_as_in_torch(program_of, run, keep, gain, threshold, form, steps):
    module = own(keep, gain, threshold, form)
    program = program_of((steps, *SHAPE), one_neuron, lif=module)
    x = edges(module, steps)
    spikes, _ = run(program, x)
    want = program(x).numpy()
    np.testing.assert_array_equal(spikes, want)
    assert 0.2 < (want > 0).mean() < 0.8
    assert set(np.unique(want)) == set(range(module.levels + 1))


def currents(module, steps: int) -> torch.Tensor:
    """Random currents, half of which bring the membrane within a few units in the last place of firing.

    There a spike depends on each rounding on the way, at every step; some membranes hit the threshold.
    """
    generator = torch.Generator().manual_seed(steps)
    shape = (BATCH, *SHAPE)
    threshold, rest = module.v_threshold, module.v_reset or 0.0
    rate = module.w.sigmoid().item() if hasattr(module, "w") else 1 / getattr(module, "tau", float("inf"))
    steps_x = []
    module.reset()
    for _ in range(steps):
        v = torch.as_tensor(module.v, dtype=torch.float64).expand(shape)
        aim = torch.full(shape, threshold, dtype=torch.float64)
        if isinstance(module, neuron.ILIFNode):  # it rounds: the edges are at halves
            aim = (torch.randint(0, 4, shape, generator=generator) + 0.5) * threshold
        x = aim - v + (v - rest) * rate
        if getattr(module, "decay_input", False):
            x = (aim - v) / rate + (v - rest)
        ulps = torch.randint(-3, 4, shape, generator=generator) * 2.0**-24
        noise = torch.randn(shape, generator=generator) * 3 * threshold
        x = torch.where(torch.rand(shape, generator=generator) < 0.5, x * (1 + ulps), noise).float()
        steps_x.append(x)
        with torch.no_grad():
            module(x[None])
    module.reset()
    return torch.stack(steps_x)


def check(program_of, run, module, steps: int) -> np.ndarray:
    program = program_of((steps, *SHAPE), one_neuron, lif=module)
    x = currents(module, steps)
    spikes, _ = run(program, x)
    want = program(x).numpy()
    np.testing.assert_array_equal(spikes, want)
    return want


def one_neuron(graph, x):
    return graph.call_module("lif", (x,))


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("tau, threshold", [(2.0, 1.0), (1.7, 0.7)])
@pytest.mark.parametrize("make", [leaky, parametric])
def test_leaky_neurons_fire_as_spikingjelly(program_of, run, make, tau, threshold, reset, decay_input, steps):
    rates = check(program_of, run, make(tau, threshold, RESETS[reset], decay_input), steps).mean()
    assert 0.2 < rates < 0.8


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("threshold", [1.0, 0.7])
def test_integrate_and_fire(program_of, run, threshold, reset, steps):
    check(program_of, run, neuron.IFNode(threshold, RESETS[reset], step_mode="m"), steps)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("tau, threshold", [(4 / 3, 1.0), (2.0, 0.7)])
def test_integer_spikes(program_of, run, tau, threshold, steps):
    module = neuron.ILIFNode(tau, threshold, surrogate.MultiLevelSpikeCount(4), step_mode="m")
    assert set(np.unique(check(program_of, run, module, steps))) == {0, 1, 2, 3, 4}


def halves(shape: tuple[int, ...], levels: int) -> torch.Tensor:
    """From below 0 to above ``levels``; half of them halves, or next to them in float32."""
    generator = torch.Generator().manual_seed(levels)
    edges = torch.randint(-2, levels + 2, shape, generator=generator) + 0.5
    edges *= 1 + torch.randint(-1, 2, shape, generator=generator) * 2.0**-23
    edges[..., :2] = torch.tensor([0.49999997, -0.0])  # 0.49999997 + 0.5 is 1 in float32
    anywhere = (torch.rand(shape, generator=generator) * 1.4 - 0.2) * levels
    return torch.where(torch.rand(shape, generator=generator) < 0.5, edges, anywhere)


VIEWS = {
    "image": (SHAPE, []),
    "events": ((4, *SHAPE), []),
    "tokens": (SHAPE, [(einops.rearrange, "b c y x -> b (y x) c", {})]),
    "time and batch together": ((4, *SHAPE), [(einops.rearrange, "t b c y x -> (t b) c y x", {})]),
    "the same at every step": (SHAPE, [(einops.repeat, "b c y x -> t b c y x", {"t": 4})]),
    "batch last": (SHAPE, [(einops.rearrange, "b c y x -> c (y x) b", {})]),
}


@pytest.mark.parametrize("rounding", IntegerSpike.ROUNDINGS)
@pytest.mark.parametrize("form", VIEWS)
def test_integer_spikes_without_state(program_of, run, form, rounding):
    shape, views = VIEWS[form]

    def build(graph, x):
        for function, pattern, sizes in views:
            x = graph.call_function(function, (x, pattern), sizes)
        return graph.call_module("spike", (x,))

    program = program_of(shape, build, spike=IntegerSpike(3, rounding))
    x = halves(program.input.batched(BATCH), 3)
    spikes, operators = run(program, x)
    want = program(x).numpy()
    np.testing.assert_array_equal(spikes, want)
    assert set(np.unique(want)) == {0, 1, 2, 3}
    assert "IntegerSpike_max3" + "_halfup" * (rounding == "half_up") in operators
    data, (each,) = split_neurons(to_bytes(lower(program)))
    onnx.checker.check_model(data, full_check=True)
    fed = session(data, threads=1).run(["logits"], {"image": 0 * x.numpy(), each.reference: want.reshape(each.shape)})
    np.testing.assert_array_equal(fed[0], want)


def test_the_roundings_differ():
    x = halves((1000,), 3)
    assert not torch.equal(IntegerSpike(3)(x), IntegerSpike(3, "half_up")(x))


def test_the_currents_hit_the_threshold_exactly():
    module = leaky(2.0, 0.7, 0.0, True)
    hits = currents(module, 1) / 2.0 == torch.tensor(0.7)
    assert hits.float().mean() > 0.01


def test_a_threshold_that_is_off_by_one_unit_in_the_last_place_is_seen(program_of, run):
    module = leaky(2.0, 1.0, 0.0, True)
    program = program_of((4, *SHAPE), one_neuron, lif=module)
    x = currents(module, 4)
    spikes, _ = run(program, x)
    module.v_threshold = float(np.nextafter(np.float32(1), np.float32(2)))
    assert (spikes != program(x).numpy()).any()


@pytest.mark.parametrize("module", [leaky(2.0, 1.0, 0.0, True), neuron.IFNode(step_mode="m")])
def test_a_current_that_does_not_change_is_given_once(program_of, run, module):
    def build(graph, x):
        shown = graph.call_function(einops.repeat, (x, "b c y x -> t b c y x"), {"t": 4})
        return graph.call_module("lif", (shown,))

    program = program_of(SHAPE, build, lif=module)
    x = currents(module, 1)[0]
    spikes, operators = run(program, x)
    np.testing.assert_array_equal(spikes, program(x).numpy())
    assert "Concat" not in operators and operators[0].endswith("_T4_static")


def test_layers_of_one_kind_share_a_function_and_its_scalars(program_of):
    def build(graph, x):
        for name in ("a", "b", "c"):
            x = graph.call_module(name, (x,))
        return x

    program = program_of(
        (4, *SHAPE),
        build,
        a=leaky(2.0, 1.0, 0.0, True),
        b=leaky(2.0, 1.0, 0.0, True),
        c=leaky(2.0, 1.0000001, 0.0, True),  # another float32
    )
    model = lower(program, target_of("cpu", functions=True))
    assert [f.name for f in model.functions.values()] == ["LIF_tau2_T4", "LIF_tau2_threshold1_T4"]
    calls = [node for node in model.graph if node.domain == "svitc"]
    assert [(n.name, n.op_type) for n in calls] == [
        ("a", "LIF_tau2_T4"),
        ("b", "LIF_tau2_T4"),
        ("c", "LIF_tau2_threshold1_T4"),
    ]
    assert {"lif.threshold", "lif.threshold_2", "lif.rate", "lif.reset"} <= set(model.graph.initializers)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_body_is_of_default_operators_and_short(program_of, steps):
    program = program_of((steps, *SHAPE), one_neuron, lif=leaky(2.0, 1.0, 0.0, True))
    proto = onnx.load_from_string(to_bytes(lower(program, target_of("cpu", functions=True))))
    (function,) = proto.functions
    operators = [node.op_type for node in function.node]
    assert {node.domain for node in function.node} == {""}
    assert operators.count("Cast") == 1 and "Constant" not in operators
    if steps == 1:
        assert operators == ["Mul", "GreaterOrEqual", "Cast"]
    else:  # a split, five per step less what the first and the last do not need, a concat and a cast
        assert len(operators) == 1 + 5 * steps - 3 + 2


def test_kinds_whose_titles_are_the_same_get_names_of_their_own():
    kinds = [kind_of("lif", leaky(2.0, v, 0.0, True), 4, False) for v in (0.7, 0.70000005)]
    assert kinds[0].title == kinds[1].title and kinds[0] != kinds[1]
    first = neuron_function(kinds[0], (), 21).name
    assert neuron_function(kinds[1], {first}, 21).name == f"{first}_2"


def test_a_neuron_that_does_not_fire_is_refused():
    module = neuron.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False), step_mode="m")
    with pytest.raises(UnsupportedError, match="neuron head.lif"):
        kind_of("head.lif", module, 4, False)
