"""Silent and always firing channels go, and nothing that is left notices; bounds hold, no wider than need be."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron, surrogate
from torch import fx, nn

from support import published_style as style
from support.families import FAMILIES, NEURONS, spikformer, warm
from support.published_small import SMALL
from svitc.analysis.interval_neurons import Interval, fire
from svitc.analysis.intervals import all_intervals
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.axes import Kind
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program
from svitc.passes.canonical.remove_constant_channels import remove_constant_channels
from svitc.planning.plan import Plan
from svitc.verification.recorder import Recorder

STYLES = {"integer": style.IntegerStyle, "scaled": style.ScaledStyle, "meta": style.MetaStyle}
CASES = {
    **{name: (lambda f=f: warm(f[0](T=2), f[1]), f[1]) for name, f in FAMILIES.items()},
    **{
        f"spikformer, {name}": (lambda k=k: warm(spikformer(T=3, **k)), FAMILIES["spikformer"][1])
        for name, k in NEURONS.items()
    },
    **{
        f"official {name}": (lambda s=s: warm(s.shallow(), s.input), s.input)
        for name, s in SMALL.items()
        if name not in ("spikformer-dvs", "qkformer-dvs", "sdt-dvs", "meta-distilled")
    },
    **{f"style {name}": (lambda m=m: warm(m(), (3, 16, 16)), (3, 16, 16)) for name, m in STYLES.items()},
}


def program_of(case: str, seed: int = 0) -> Program:
    """In float64."""
    factory, shape = CASES[case]
    torch.manual_seed(seed)
    program = capture(factory(), InputSpec(shape))
    run_canonical_passes(program)
    program.module.double()
    return program


def images(program: Program, scale: float = 1.0, count: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(program.input.batched(count), generator=generator, dtype=torch.float64)


def plant(program: Program, name: str, flat, bias: float, zero: bool = False) -> None:
    """Shift channels of a batch norm so far that nothing can move their neurons."""
    norm = program.module.get_submodule(name)
    with torch.no_grad():
        norm.bias[flat] = bias
        if zero:
            norm.weight[flat] = 0


def norms_of(program: Program, group) -> list[str]:
    found = {m.module for m in group.members if m.param == "running_mean"}
    return [name for name in found if program.module.get_submodule(name).num_features == group.size]


def plant_everywhere(program: Program, seed: int, share: float = 0.3) -> None:
    """In every group, some channels silent and some always firing, at all batch norms of it or at one."""
    rng = np.random.default_rng(seed)
    for group in program.groups:
        names = norms_of(program, group)
        for name in names if rng.random() < 0.7 else rng.permutation(names)[:1]:
            flat = np.flatnonzero(np.random.default_rng(seed + group.size).random(group.size) < share)
            always = flat[rng.random(flat.size) < 0.4]
            plant(program, name, flat, -300.0, zero=bool(rng.random() < 0.5))
            plant(program, name, always, 300.0, zero=True)


def kept(program: Program, node: fx.Node, masks, value: torch.Tensor) -> np.ndarray:
    """The elements of a node's value that its groups keep, flat; each head may keep its own dimensions."""
    leaves = [axis for dim in program.type_of(node) for axis in dim]
    sizes = [axis.size for axis in leaves]
    batch = [axis.kind == Kind.BATCH for axis in leaves].index(True)
    sizes[batch] = value.numel() // (int(np.prod(sizes)) // sizes[batch])
    grid = np.ones(sizes, dtype=bool)
    for group in program.groups:
        at = [i for i, axis in enumerate(leaves) if axis is group.axis or axis is group.head_axis]
        if at:
            chosen = group.mask(tuple(leaves[i] for i in at), masks[group.name])
            grid &= chosen.reshape([sizes[i] if i in at else 1 for i in range(len(leaves))])
    return value.numpy().reshape(sizes)[grid]


def assert_same(program: Program, cleaned: Program, record: dict, scale: float = 1.0) -> None:
    """Logits, currents and spikes of what is left, and a second run that changes nothing."""
    json.dumps(record)
    plan = Plan.from_json(record["plan"])
    masks = plan.validate(program)
    x = images(program, scale)
    was, want = Recorder.record(program, x)
    now, got = Recorder.record(cleaned, x)
    assert abs(got - want).max() <= 1e-9 * max(1.0, float(abs(want).max()))
    alive = {str(node.target) for node in cleaned.neurons()}
    for node in program.neurons():
        path = str(node.target)
        assert path in alive
        assert np.array_equal(kept(program, node, masks, was.spikes[path]), now.spikes[path].numpy().reshape(-1)), path
        left = kept(program, node, masks, was.currents[path])
        current = now.currents[path].numpy().reshape(-1)
        assert abs(current - left).max() <= 1e-9 * max(1.0, abs(left).max()), path
    assert record["removed"] == sum(int((~mask).sum()) for mask in masks.values())
    again, nothing = remove_constant_channels(cleaned)
    assert again is cleaned and nothing["removed"] == nothing["folded"] == nothing["rounds"] == 0


class Mixed(nn.Module):
    """Operations that the models above have little of: negative factors and scales, differences, borders, tables."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
        self.lif, self.out = module_of("IF"), module_of("LIF")
        self.conv, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.border, self.pad, self.narrow = nn.AvgPool2d(3, 1, 1), nn.ZeroPad2d(1), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        s = self.lif(self.stem(x).unsqueeze(0).repeat(2, 1, 1, 1, 1))
        y = self.norm(self.conv(s.flatten(0, 1)))
        z = (y - s.flatten(0, 1) * -0.75) * y / -2.0 + self.border(s.flatten(0, 1))
        z = (z - self.narrow(self.pad(s.flatten(0, 1)))).flatten(2)
        z = (z @ y.flatten(2).transpose(1, 2)) @ z + z.sum(2, keepdim=True) - self.border(y).flatten(2)
        return self.head(self.out(z.unflatten(0, (2, -1))).mean(3)).mean(0)


def mixed() -> nn.Module:
    model = warm(Mixed(), (3, 6, 6))
    with torch.no_grad():
        model.norm.weight[::2] *= -1
    return model


@pytest.mark.parametrize("case", CASES)
def test_planted_channels_go_and_nothing_changes(case):
    program = program_of(case)
    plant_everywhere(program, seed=len(case))
    assert_bounded(program)
    before = str(program)
    cleaned, record = remove_constant_channels(program)
    assert record["removed"] > 0 and str(program) == before
    assert cleaned.parameter_count() < program.parameter_count()
    assert_same(program, cleaned, record)


@pytest.mark.parametrize("seed", range(3))
def test_rare_operations(seed):
    torch.manual_seed(seed)
    program = capture(mixed(), InputSpec((3, 6, 6)))
    program.module.double()
    assert_bounded(program)
    plant(program, "stem.1", [seed], 300.0, zero=True)
    plant(program, "stem.1", [seed + 1], -300.0, zero=True)
    assert_bounded(program)
    cleaned, record = remove_constant_channels(program)
    assert_same(program, cleaned, record)


def assert_bounded(program: Program) -> None:
    """Every value lies within its bounds, for images of any size."""
    bounds = all_intervals(program)

    class Check(fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            leaves = [axis for dim in program.type_of(node) for axis in dim]
            sizes = [-1 if axis.kind == Kind.BATCH else axis.size for axis in leaves]
            others = [i for i, axis in enumerate(leaves) if axis.kind != Kind.CHANNEL]
            apart = value.detach().double().reshape(sizes)
            low, high = (apart.amin(others), apart.amax(others)) if others else (apart, apart)
            bound = bounds[node]
            slack = 1e-12 * bound.magnitude.nan_to_num(posinf=0).reshape(low.shape)
            assert (low >= bound.low.reshape(low.shape) - slack).all(), node
            assert (high <= bound.high.reshape(low.shape) + slack).all(), node
            return value

    for scale in (0.0, 1.0, 30.0):
        program.module.eval()
        program.reset()
        with torch.no_grad():
            Check(program.module).run(images(program, scale))
    program.reset()
    known = [node for node in program.graph.nodes if bounds[node].high.isfinite().all()]
    assert 2 * len(known) > len(program.graph.nodes)


def test_nothing_silent_is_the_same_program():
    program = program_of("spikformer")
    assert remove_constant_channels(program)[0] is program


# neurons


def module_of(kind: str, **k) -> nn.Module:
    made = {
        "IF": neuron.IFNode,
        "LIF": neuron.LIFNode,
        "PLIF": neuron.ParametricLIFNode,
        "ILIF": neuron.ILIFNode,
    }
    module = made[kind](step_mode="m", **k)
    return module.eval()


@st.composite
def neurons(draw):
    kind = draw(st.sampled_from(["IF", "LIF", "PLIF", "ILIF", "integer"]))
    if kind == "integer":
        return ops.IntegerSpike(draw(st.integers(1, 4)), draw(st.sampled_from(ops.IntegerSpike.ROUNDINGS)))
    k = {"v_threshold": draw(st.sampled_from([0.25, 0.5, 1.0, 1.5]))}
    if kind in ("LIF", "ILIF"):
        k["tau"] = draw(st.sampled_from([1.25, 2.0, 3.0, 10.0]))
    if kind == "PLIF":
        k["init_tau"] = draw(st.sampled_from([1.25, 2.0, 10.0]))
    if kind in ("LIF", "PLIF"):
        k["decay_input"] = draw(st.booleans())
    if kind == "ILIF":
        k["surrogate_function"] = surrogate.MultiLevelSpikeCount(draw(st.integers(1, 4)))
    else:
        k["v_reset"] = draw(st.sampled_from([None, 0.0, -0.5, 0.2, 2.0]))
    return module_of(kind, **k)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    module=neurons(),
    steps=st.integers(1, 4),
    low=st.floats(-2, 3),
    span=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**20),
)
def test_no_current_makes_a_neuron_fire_more_or_less_than_its_bound(module, steps, low, span, seed):
    """All sequences of the two ends, and as many from between, through the neuron itself in float32."""
    ends = torch.tensor([low, low + span])
    bound = fire(module, Interval(ends[:1].double(), ends[1:].double(), ends.abs().max().double()[None], 1), steps)
    corners = torch.tensor(list(itertools.product(ends.tolist(), repeat=steps))).T
    between = low + span * torch.rand(steps, 200, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([corners, between.clamp(*ends.tolist())], 1)
    module.reset()
    with torch.no_grad():
        spikes = module(x).double()
    assert bound.low <= spikes.min() and spikes.max() <= bound.high
    # and no wider than a margin: the neuron that is driven hardest fires, the one driven least does not
    if not isinstance(module, (neuron.ILIFNode, ops.IntegerSpike)):
        module.reset()
        with torch.no_grad():
            hardest = module(torch.full((steps, 1), float(ends[1]) + 0.01 * (1 + abs(float(ends[1])))))
        assert bound.high == 0 or hardest.max() == 1
    if span == 0.0 and isinstance(module, ops.IntegerSpike) and abs((low % 1) - 0.5) > 0.01:
        assert bound.low == bound.high == spikes[0, 0]


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_counting_neuron_within_narrow_bounds(most, steps):
    """What is left after each count matters for the next; intervals narrower than a spike, everywhere."""
    module = module_of("ILIF", surrogate_function=surrogate.MultiLevelSpikeCount(most))
    low = torch.arange(-2, 6, 0.13)
    for span in (0.3, 1.1):
        ends = low.double(), (low + span).double()
        bound = fire(module, Interval(*ends, ends[1].abs() + ends[0].abs(), 1), steps)
        draws = torch.rand(steps, 3000, 1, generator=torch.Generator().manual_seed(steps))
        module.reset()
        with torch.no_grad():
            spikes = module(low + span * draws.round(decimals=1)).double().flatten(0, 1)
        assert (bound.low <= spikes.amin(0)).all() and (spikes.amax(0) <= bound.high).all()


@pytest.mark.parametrize(
    "kind, currents",
    {
        "IF": [1.0 / 3, 1.0],
        "LIF": [1.0 / (1 - 0.5**3), 2.0],
        "PLIF": [1.0 / (1 - 0.5**3), 2.0],
    }.items(),
)
def test_the_limits_in_closed_form(kind, currents):
    """Three steps, threshold 1, half of everything leaks: silent below one limit, always firing from the other on."""
    module = module_of(kind)
    for limit, which in zip(currents, ("high", "low"), strict=True):
        for factor, fires in ((0.999, 0), (1.001, 1)):
            x = torch.full((1,), limit * factor, dtype=torch.float64)
            assert getattr(fire(module, Interval(x, x, x.abs(), 1), 3), which) == fires


def test_a_margin_for_float32():
    """A membrane that rounding may lift to the threshold is not silent; one that it may lower is not always firing."""
    module = module_of("IF")
    for x in (1 - 1e-6, 1.0, 1 + 1e-6):
        end = torch.full((1,), x, dtype=torch.float64)
        bound = fire(module, Interval(end, end, end, 1000), 1)
        assert (bound.low, bound.high) == (0, 1)


# layers


class Small(nn.Module):
    """An image, spikes, and layers between neurons; then the mean over pixels."""

    def __init__(self, *layers: nn.Module, width: int, first: int = 4, T: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, first, 1), nn.BatchNorm2d(first))
        self.lif = module_of("IF")
        self.layers = nn.ModuleList(layers)
        self.head, self.T = nn.Linear(width, 5), T

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.lif(self.stem(x.flatten(0, 1)).unflatten(0, (self.T, -1)))
        for layer in self.layers:
            if ops.is_neuron(layer):
                x = layer(x)
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, (self.T, -1))
        return self.head(x.flatten(3).mean(3)).mean(0)


def small(*layers: nn.Module, width: int, first: int = 4) -> Program:
    """Every neuron may fire, and may not."""
    torch.manual_seed(0)
    program = capture(warm(Small(*layers, width=width, first=first), (3, 6, 6)), InputSpec((3, 6, 6)))
    program.module.double()
    for module in program.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 8.0)
            nn.init.zeros_(module.bias)
    return program


LAYERS = {
    "1x1": nn.Conv2d(4, 6, 1),
    "3x3": nn.Conv2d(4, 6, 3),
    "padded": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, 3, 2, 1),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_worst_input_of_a_convolution_reaches_its_bound(name):
    """Spikes where the weights are positive: no other input gives more, and the bound is just that."""
    conv = LAYERS[name]
    program = small(conv, width=conv.out_channels)
    node = next(n for n in program.graph.nodes if n.target == "layers.0")
    bound = all_intervals(program)[node]
    layer = program.module.get_submodule("layers.0")
    ours, theirs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for out in range(layer.out_channels):
        x = torch.zeros(1, 4, 6, 6, dtype=torch.float64)
        span = (layer.kernel_size[0] - 1) * layer.dilation[0] + 1
        at = layer.stride[0] - layer.padding[0] if layer.stride[0] > 1 else 0  # the first window inside
        part = slice(out // theirs * ours, (out // theirs + 1) * ours)
        window = slice(at, at + span, layer.dilation[0])
        for sign, end in ((1, bound.high), (-1, bound.low)):
            x[:] = 0
            x[0, part, window, window] = (sign * layer.weight[out] > 0).double()
            with torch.no_grad():
                y = layer(x)[0, out]
            best = y.max() if sign > 0 else y.min()
            assert best == pytest.approx(float(end.reshape(-1)[out]), abs=1e-12)


def conv(i: int, o: int, k: int = 1, bias: bool = False, **more) -> list[nn.Module]:
    return [nn.Conv2d(i, o, k, bias=bias, **more), nn.BatchNorm2d(o), module_of("LIF")]


def group_record(record: dict, name: str) -> dict:
    return record["groups"][name]


def test_silent_and_always_firing_channels_of_a_hidden_layer():
    """The value of one that always fires goes into the batch norm behind the reader."""
    program = small(*conv(4, 8), *conv(8, 6), width=6)
    plant(program, "layers.1", [0, 5], -50.0)
    plant(program, "layers.1", [1, 2], 50.0)
    with torch.no_grad():  # behind them nothing is constant
        given = program.module.get_submodule("layers.3").weight[:, 1:3].sum((1, 2, 3))
        program.module.get_submodule("layers.4").running_mean += given
    cleaned, record = remove_constant_channels(program)
    assert group_record(record, "layers.0") == {
        "size": 8,
        "silent": 2,
        "always_firing": 2,
        "removed": 4,
        "folded": 2,
        "refused": {},
    }
    assert record["neurons"]["layers.2"] == {"channels": 8, "silent": 2, "always_firing": 2}
    assert record["plan"]["groups"]["layers.0"]["keep"] == [3, 4, 6, 7]
    assert tuple(cleaned.module.get_submodule("layers.3").weight.shape) == (6, 4, 1, 1)
    assert_same(program, cleaned, record)
    assert record["rounds"] == 1


@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_takes_over_or_is_made(bias):
    last = nn.Conv2d(8, 6, 1, bias=bias)
    program = small(*conv(4, 8), last, width=6)
    plant(program, "layers.1", [1, 2], 50.0)
    cleaned, record = remove_constant_channels(program)
    assert cleaned.module.get_submodule("layers.3").bias is not None and record["folded"] == 2
    assert_same(program, cleaned, record)


def test_a_layer_with_two_readers_gets_a_bias():
    class Two(Small):
        def forward(self, x):
            x = self.lif(self.stem(x.unsqueeze(0).repeat(2, 1, 1, 1, 1).flatten(0, 1)).unflatten(0, (2, -1)))
            conv, norm, lif = self.layers
            y = conv(x.flatten(0, 1))
            return self.head((lif(norm(y).unflatten(0, (2, -1))) + y.unflatten(0, (2, -1))).flatten(3).mean(3)).mean(0)

    torch.manual_seed(0)
    program = capture(warm(Two(*conv(4, 6), width=6), (3, 6, 6)), InputSpec((3, 6, 6)))
    program.module.double()
    plant(program, "stem.1", [1], 50.0, zero=True)
    cleaned, record = remove_constant_channels(program)
    assert record["folded"] >= 1 and cleaned.module.get_submodule("layers.0").bias is not None
    assert_same(program, cleaned, record)


def test_the_classifier_takes_over_too():
    program = small(*conv(4, 8), width=8)
    plant(program, "layers.1", [1], 50.0)
    cleaned, record = remove_constant_channels(program)
    assert record["folded"] == 1
    assert_same(program, cleaned, record)


@pytest.mark.parametrize("k, padding, goes", [(3, 1, False), (3, 0, True), (1, 0, True)])
def test_a_border_sees_zeros(k, padding, goes):
    program = small(*conv(4, 8), *conv(8, 6, k, padding=padding), width=6)
    plant(program, "layers.1", [1, 2], 50.0)
    plant(program, "layers.1", [3], -50.0)
    cleaned, record = remove_constant_channels(program)
    found = group_record(record, "layers.0")
    assert found["removed"] == (3 if goes else 1) and found["folded"] == (2 if goes else 0)
    assert found["refused"] == ({} if goes else {"layers.3 pads zeros around it": 2})
    assert_same(program, cleaned, record)


class Grouped(nn.Module):
    """Two convolutions in groups of the same number, each of which sums up the channels of its group."""

    def __init__(self, silent: int) -> None:
        super().__init__()
        self.first, self.fire = nn.Conv2d(4, 8, 3, padding=1, groups=4), neuron.IFNode(step_mode="m")
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 5, 1)
        self.stem, self.before = nn.Conv2d(3, 4, 1), neuron.IFNode(v_threshold=0.2, step_mode="m")
        with torch.no_grad():
            self.first.weight[:silent], self.first.bias[:silent] = 0.0, -1.0  # type: ignore[index]

    def forward(self, x):
        T, N = 2, x.shape[0]
        y = self.before(self.stem(x).unsqueeze(0).repeat(T, 1, 1, 1, 1)).flatten(0, 1)
        y = self.fire(self.first(y).unflatten(0, (T, N))).flatten(0, 1)
        return self.last(self.second(y)).mean((2, 3)).unflatten(0, (T, N)).mean(0)


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_what_a_grouped_convolution_sums_up_stays(silent):
    torch.manual_seed(0)
    program = capture(Grouped(silent).eval(), InputSpec((3, 6, 6)))
    run_canonical_passes(program)
    program.module.double()
    clean, record = remove_constant_channels(program)
    x = images(program, 2.0)
    assert torch.allclose(program(x), clean(x), atol=1e-12)
    assert silent == 2 or record["removed"] == 0


def test_one_channel_stays():
    program = small(*conv(4, 8), *conv(8, 6), width=6)
    plant(program, "layers.1", list(range(8)), -50.0)
    cleaned, record = remove_constant_channels(program)
    found = group_record(record, "layers.0")
    assert found["removed"] == 7 and found["refused"] == {"at least one channel must stay": 1}
    assert_same(program, cleaned, record)


def test_what_a_silent_channel_fed_is_silent_next():
    """Channel 2 fires only with the help of channels 0 and 1; without them nothing else needs it."""
    program = small(*conv(4, 3), *conv(3, 4), *conv(4, 6), width=6)
    first, second = (program.module.get_submodule(f"layers.{i}") for i in (3, 4))
    plant(program, "layers.1", [0, 1], -50.0)
    with torch.no_grad():
        first.weight[0] = torch.tensor([9.0, 9.0, -1.0]).reshape(3, 1, 1)
        first.weight[1:] = abs(first.weight[1:]) + 3.0
        second.weight[:], second.bias[:] = 1.0, 0.0
        second.running_mean[:], second.running_var[:] = 0.0, 1.0
    cleaned, record = remove_constant_channels(program)
    assert record["plan"]["groups"]["layers.3"]["keep"] == [1, 2, 3]
    assert_same(program, cleaned, record)


def test_what_only_a_silent_channel_read_goes_in_the_next_round():
    program = small(*conv(4, 5), *conv(5, 4), *conv(4, 6), width=6)
    reader = program.module.get_submodule("layers.3")
    plant(program, "layers.4", [2], -50.0)
    with torch.no_grad():
        reader.weight[:, 1] = 0.0
        reader.weight[2, 1] = 1.0
        program.module.get_submodule("layers.0").weight[:, 3] = 0.0
        program.module.get_submodule("layers.0").weight[1, 3] = 1.0
    cleaned, record = remove_constant_channels(program)
    assert {name: each["removed"] for name, each in record["groups"].items()} == {
        "layers.3": 1,
        "layers.0": 1,
        "stem.0": 1,
    }
    assert record["rounds"] == 3
    assert_same(program, cleaned, record)


def test_a_layer_that_is_called_twice_takes_nothing_over():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2)])
            self.lifs = nn.ModuleList([module_of("IF") for _ in range(2)])
            self.conv, self.head = nn.Conv2d(4, 6, 1), nn.Linear(6, 5)

        def forward(self, x):
            a, b = (
                self.conv(lif(stem(x).unsqueeze(0).repeat(2, 1, 1, 1, 1)).flatten(0, 1))
                for stem, lif in zip(self.stems, self.lifs, strict=True)
            )
            return self.head((a + 2 * b).flatten(2).mean(2).unflatten(0, (2, -1))).mean(0)

    torch.manual_seed(0)
    program = capture(warm(Twice(), (3, 6, 6)), InputSpec((3, 6, 6)))
    program.module.double()
    for i in (0, 1):
        plant(program, f"stems.{i}.1", [0], -50.0, zero=True)
        plant(program, f"stems.{i}.1", [1], 50.0, zero=True)
    plant(program, "stems.1.1", [2], -50.0, zero=True)
    cleaned, record = remove_constant_channels(program)
    found = group_record(record, "stems.0.0")
    assert found["removed"] == 1
    assert found["refused"] == {"conv is called more than once": 1, "conv gets other signals in it": 1}
    assert_same(program, cleaned, record)


# attention


def attention(**k) -> Program:
    torch.manual_seed(0)
    program = capture(warm(spikformer(T=2, **k)), InputSpec((3, 32, 48)))
    run_canonical_passes(program)
    program.module.double()
    return program


QKV = "blocks.0.attn.qkv_conv_bn"


def test_a_silent_dimension_of_q_takes_that_of_k_along():
    program = attention()
    for which, flat in (("q", [0, 1, 16]), ("k", [2, 20])):
        plant(program, f"{QKV}.1.{which}", flat, -50.0)
    cleaned, record = remove_constant_channels(program)
    found = group_record(record, f"{QKV}.0.q")
    assert found["silent"] == 5 and found["removed"] == 4 and found["refused"] == {"every head must keep as many": 1}
    assert tuple(cleaned.module.get_submodule(f"{QKV}.0.k").weight.shape[:1]) == (28,)
    assert_same(program, cleaned, record)


def test_a_silent_dimension_of_v_and_of_the_projection_that_reads_it():
    program = attention()
    plant(program, f"{QKV}.1.v", [3, 4, 30], -50.0)
    cleaned, record = remove_constant_channels(program)
    assert group_record(record, f"{QKV}.0.v")["removed"] == 2
    assert "blocks.0.attn.attn_lif" in record["neurons"]
    assert_same(program, cleaned, record)


def test_a_silent_head_goes_whole():
    program = attention()
    plant(program, f"{QKV}.1.v", list(range(16, 32)), -50.0)
    plant(program, f"{QKV}.1.q", [0], -50.0)
    cleaned, record = remove_constant_channels(program)
    assert group_record(record, f"{QKV}.0.v")["removed"] == 16
    assert group_record(record, f"{QKV}.0.q")["removed"] == 17
    assert_same(program, cleaned, record)


def test_what_has_gone_stays_gone():
    """Channel 0 of v may go only in the second round, when another has gone in its place."""
    program = attention()
    stream = next(g for g in program.groups if g.name == "patch_embed.stages.3.conv_bn.block.0")
    for name in norms_of(program, stream):
        plant(program, name, [7], -50.0, zero=True)
    plant(program, f"{QKV}.1.v", [5, 19], -50.0)
    reader = program.module.get_submodule("blocks.0.attn.proj_conv_bn.0")
    with torch.no_grad():
        reader.weight[:, 0] = 0.0
        reader.weight[7, 0] = 1.0
    cleaned, record = remove_constant_channels(program)
    assert record["rounds"] >= 1 and group_record(record, f"{QKV}.0.v")["removed"] == 2
    assert {0, 5} - set(record["plan"]["groups"][f"{QKV}.0.v"]["keep"]) == {5}
    assert_same(program, cleaned, record)


def test_an_always_firing_dimension_of_q_stays():
    program = attention()
    plant(program, f"{QKV}.1.q", [0, 16], 50.0)
    cleaned, record = remove_constant_channels(program)
    (why,) = group_record(record, f"{QKV}.0.q")["refused"]
    assert cleaned is program and why.startswith("matmul in blocks.0.attn") and "sums it up" in why


def test_residual_channels_go_where_all_that_is_added_is_silent():
    program = attention()
    stream = next(g for g in program.groups if g.name == "patch_embed.stages.3.conv_bn.block.0")
    for name in norms_of(program, stream):
        plant(program, name, [7], -50.0, zero=True)
    plant(program, "blocks.0.mlp.fc2.1", [9], -50.0)
    cleaned, record = remove_constant_channels(program)
    found = group_record(record, stream.name)
    assert found["removed"] == 1 and sum(found["refused"].values()) == 1
    assert_same(program, cleaned, record)
