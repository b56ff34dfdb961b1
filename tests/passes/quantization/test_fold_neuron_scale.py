"""FoldNeuronScale: plain neurons fire the same on what the layers before them now give; other readers see no change."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from support.families import FAMILIES, warm
from support.programs import frames, lif, steps, tokens, view, written
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.passes import FoldNeuronScale
from svitc.passes.pipelines import inference_passes
from svitc.verification.recorder import Recorder


def listing(program: Program) -> list[str]:
    """Operations in order, modules by class, views left out."""
    names = []
    for node in program.graph.nodes:
        module = program.module_of(node)
        if node.target not in ops.VIEWS:
            names.append(type(module).__name__ if module is not None else getattr(node.target, "__name__", node.op))
    return names


@torch.inference_mode()
def membranes(module: Any, current: torch.Tensor, spikes: torch.Tensor) -> torch.Tensor:
    """Of every step before it fires, by the book."""
    reset = module.v_reset or 0.0
    rate = (
        1 / module.tau
        if type(module) is neuron.LIFNode
        else (module.w.sigmoid() if isinstance(module, neuron.ParametricLIFNode) else None)
    )
    v, found = torch.full_like(current[0], reset), []
    for x, s in zip(current, spikes, strict=True):
        if rate is None:
            h = v + x
        else:
            h = v + rate * ((x if module.decay_input else x / rate) - (v - reset))
        found.append(h)
        v = h - module.v_threshold * s if module.v_reset is None else torch.where(s > 0, torch.tensor(reset).to(h), h)
    return torch.stack(found)


def folded(program: Program) -> tuple[Program, FoldNeuronScale]:
    """A folded copy; the numbers are compared, and that a second run changes nothing."""
    twin = program.copy()
    each = FoldNeuronScale()
    each(twin)
    text = str(twin)
    assert each(twin).changed == [] and str(twin) == text, "a second run changes nothing"
    compare(program, twin)
    return twin, each


def compare(program: Program, twin: Program, batch: int = 2) -> None:
    """In float64, on membranes that are all far from their thresholds: every spike, and the logits."""
    before, after = program.copy(), twin.copy()
    before.module.double()
    after.module.double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(program.input.batched(batch), generator=generator, dtype=torch.float64)
    want, logits = Recorder.record(before, x)
    got, other = Recorder.record(after, x)
    for node in before.neurons():
        name, module = str(node.target), before.module_of(node)
        if ops.has_state(module) and not isinstance(module, neuron.ILIFNode):
            h = membranes(module, want.currents[name], want.spikes[name])
            assert torch.equal((h >= module.v_threshold).double(), want.spikes[name]), "the book is SpikingJelly's"
            far = (h - module.v_threshold).abs().min()
            assert far > 5e-7, f"{name} is within float32's rounding of the folded weights: {far}"
        assert torch.equal(want.spikes[name], got.spikes[name]), name
        assert 0.02 < float((want.spikes[name] > 0).double().mean()) < 0.98, name
    assert torch.allclose(logits, other, rtol=1e-6, atol=1e-6)


class One(nn.Module):
    """A convolution, a neuron, a head."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.lif, self.head = nn.Conv2d(3, 4, 3, padding=1), node, nn.Linear(4, 5)
        with torch.no_grad():
            self.conv.weight *= 4

    def forward(self, x):
        s = self.lif(steps(self.conv(frames(x))))
        return self.head(torch.mean(tokens(s), dim=(0, 2), keepdim=False))


def plif(**k) -> nn.Module:
    return neuron.ParametricLIFNode(**{"step_mode": "m", **k})


def integrate(**k) -> nn.Module:
    return neuron.IFNode(**{"step_mode": "m", **k})


# a neuron, and by how much its current is multiplied
KINDS = {
    "LIF": (lambda: lif(), 0.5),
    "LIF, tau 3": (lambda: lif(tau=3.0), 1 / 3),
    "LIF, tau 4, soft": (lambda: lif(tau=4.0, v_reset=None), 0.25),
    "LIF, threshold 0.5": (lambda: lif(v_threshold=0.5), 1.0),
    "LIF, threshold 0.7": (lambda: lif(v_threshold=0.7), 0.5 / 0.7),
    "LIF, reset -0.5": (lambda: lif(v_reset=-0.5), 0.5 / 1.5),
    "LIF, reset 0.25, tau 3": (lambda: lif(tau=3.0, v_reset=0.25, v_threshold=1.25), 1 / 3),
    "LIF, whole input": (lambda: lif(decay_input=False, v_threshold=2.0), 0.5),
    "LIF, whole input, tau 3": (lambda: lif(decay_input=False, tau=3.0, v_threshold=1.5), 1 / 1.5),
    "LIF, whole input, soft": (lambda: lif(decay_input=False, v_reset=None, v_threshold=0.25), 4.0),
    "LIF, whole input, reset": (lambda: lif(decay_input=False, v_reset=-1.0), 0.5),
    "IF, threshold 4": (lambda: integrate(v_threshold=4.0), 0.25),
    "IF, soft": (lambda: integrate(v_reset=None, v_threshold=1.7), 1 / 1.7),
    "IF, reset": (lambda: integrate(v_threshold=2.0, v_reset=1.5), 2.0),
    "IF, factor 1": (lambda: integrate(v_threshold=2.0, v_reset=1.0), 1.0),
    "PLIF": (lambda: plif(), 0.5),
    "PLIF, tau 3": (lambda: plif(init_tau=3.0), 1 / 3),
    "PLIF, soft, threshold 0.5": (lambda: plif(init_tau=3.0, v_reset=None, v_threshold=0.5), 2 / 3),
    "PLIF, reset": (lambda: plif(init_tau=1.5, v_reset=-0.25), 1 / 1.5 / 1.25),
    "PLIF, whole input": (lambda: plif(init_tau=3.0, decay_input=False, v_threshold=0.5), 2.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_neuron(kind):
    make, need = KINDS[kind]
    program = written(One(make()))
    before = ["placeholder", "Conv2d", type(make()).__name__, "mean", "Linear", "output"]
    assert listing(program) == before
    twin, _ = folded(program)
    assert listing(twin) == before, "what a layer can take is no operation of its own"
    result = FoldNeuronScale().apply(program.copy())
    assert result.changed == ["lif"] and not result.refused
    old, new = program.module.get_submodule("lif"), twin.module.get_submodule("lif")
    assert new.v_threshold == 1.0 and new.v_reset == (None if old.v_reset is None else 0.0)
    assert not getattr(new, "decay_input", False)
    assert getattr(new, "tau", None) == getattr(old, "tau", None)
    for name in ("weight", "bias"):
        was, is_ = (getattr(p.module.get_submodule("conv"), name) for p in (program, twin))
        assert torch.allclose(is_, need * was, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [k for k, (_, need) in KINDS.items() if need in (0.25, 0.5, 1.0, 2.0, 4.0)])
def test_a_power_of_two_is_exact(kind):
    """Bit for bit in float32: currents, and spikes, too, except where a leak is rounded in another place."""
    make, need = KINDS[kind]
    program = written(One(make()))
    twin = program.copy()
    FoldNeuronScale()(twin)
    x = torch.randn(program.input.batched(4), generator=torch.Generator().manual_seed(1))
    want, got = (Recorder.record(p, x)[0] for p in (program, twin))
    factor = need if "PLIF" not in kind else float((twin.module.conv.bias[0] / program.module.conv.bias[0]).detach())
    assert factor == need
    assert torch.equal(got.currents["lif"], want.currents["lif"] * need)
    assert torch.equal(got.spikes["lif"], want.spikes["lif"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tau=st.sampled_from([None, 1.25, 1.3, 2.0, 3.0, 10.0]),
    decay=st.booleans(),
    threshold=st.floats(0.1, 3.0),
    reset=st.one_of(st.none(), st.floats(-2.0, 0.05)),
)
def test_any_neuron(tau, decay, threshold, reset):
    """Currents and membranes are the old ones, moved and scaled, whatever the numbers; in float64, given the spikes."""
    kind: Any = {"v_threshold": threshold, "v_reset": reset}
    node = integrate(**kind) if tau is None else lif(tau=tau, decay_input=decay, **kind)
    program = written(One(node))
    twin = program.copy()
    FoldNeuronScale()(twin)
    for each in (program, twin):
        each.module.double()
    x = torch.randn(program.input.batched(1), generator=torch.Generator().manual_seed(2)).double()
    want, got = (Recorder.record(p, x)[0] for p in (program, twin))
    s, low = want.spikes["lif"], reset or 0.0
    old = membranes(program.module.lif, want.currents["lif"], s)
    new = membranes(twin.module.lif, got.currents["lif"], s)
    assert torch.allclose(new, (old - low) / (threshold - low), rtol=1e-5, atol=1e-4 / (threshold - low))


# membrane shortcuts


class Shortcut(nn.Module):
    """A stream of currents: two neurons and a mean read it."""

    def __init__(self, first: nn.Module, second: nn.Module, how: str = "mean") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.first, self.second = how, first, second
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.pad, self.other = nn.MaxPool2d(3, 1, 1), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 1)
        self.bias, self.head = nn.Parameter(torch.rand(4, 1, 1)), nn.Linear(4, 5)
        self.count = ops.IntegerSpike(4)
        with torch.no_grad():
            self.a.weight *= 3
            self.b.weight *= 3

    def forward(self, x):
        x = self.a(frames(x))
        if self.how == "pools":
            x = self.pad(self.pool(x))
            x = self.pool(view(x, "tb c y x -> tb c y x"))
            x = ops_range(x, 4, 1, 1 + 6)
            x = ops_range(x, 3, 1, 1 + 8, rank=4)
        s = self.first(steps(x))
        y = steps(x + self.b(frames(s)))
        if self.how == "parameter":
            y = y + self.bias
        if self.how == "number":
            y = 3.0 * y / 0.7
        if self.how == "product":
            y = y * y
        s = self.second(y)
        read = y
        if self.how == "layer":
            read = steps(self.other(frames(y)))
        if self.how == "count":
            read = self.count(y)
        read, s = (torch.mean(tokens(each), dim=(0, 2), keepdim=False) for each in (read, s))
        return self.head(read + s)


def ops_range(x, dim: int, start: int, stop: int, rank: int = 4):
    return x.tracer.create_proxy("call_function", ops.take_range, (x, dim - (5 - rank), start, stop), {})


def weights_of(program: Program, name: str) -> torch.Tensor:
    return program.module.get_submodule(name).weight


@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_a_stream_that_neurons_and_a_mean_read(tau):
    program = written(Shortcut(lif(tau=tau), lif(tau=tau)))
    before = [
        "placeholder",
        "Conv2d",
        "LIFNode",
        "Conv2d",
        "add",
        "LIFNode",
        "mean",
        "mean",
        "add",
        "Linear",
        "output",
    ]
    assert listing(program) == before
    twin, _ = folded(program)
    assert listing(twin) == [*before[:6], "mul", *before[6:]]
    product = next(n for n in twin.graph.nodes if n.target is operator.mul)
    assert product.args[1] == pytest.approx(tau)
    assert all(n.target in (*ops.VIEWS, torch.mean) for n in product.users), "both neurons read the stream itself"
    for name in ("a", "b"):
        assert torch.allclose(weights_of(twin, name) * tau, weights_of(program, name), rtol=1e-6)


@pytest.mark.parametrize("how", ["layer", "count", "pools"])
def test_what_else_a_stream_goes_through(how):
    program = written(Shortcut(lif(tau=3.0), lif(tau=3.0), how))
    twin, each = folded(program)
    assert not each.apply(twin).refused
    numbers = [n.args[1] for n in twin.graph.nodes if n.target is operator.mul]
    assert numbers == pytest.approx([3.0])
    if how == "layer":
        assert torch.equal(weights_of(twin, "other"), weights_of(program, "other")), "it reads the old stream"


def test_a_chain_of_numbers_is_scaled_once():
    program = written(Shortcut(lif(), lif(), "number"))
    twin, _ = folded(program)
    found = [each for n in twin.graph.nodes if n.target is operator.mul for each in n.args if isinstance(each, float)]
    assert sorted(found) == pytest.approx(sorted([2.0, 3.0, 0.5 / 0.7, 2.0])), "both readers get back what they had"
    assert not any(n.target is operator.truediv for n in twin.graph.nodes), "a division became a product"


@pytest.mark.parametrize("name", ["sdt", "maxformer"])
def test_families_with_membrane_shortcuts(name):
    torch.manual_seed(0)
    factory, shape = FAMILIES[name]
    program = capture(warm(factory(T=2), shape), InputSpec(shape))
    run_canonical_passes(program)
    Pipeline(inference_passes())(program)
    twin = program.copy()
    result = FoldNeuronScale()(twin)
    stateful = [str(n.target) for n in program.neurons()]
    stateful.remove("head_lif")
    assert sorted(result.changed) == sorted(stateful)
    assert result.refused == {"head_lif": "mean in the model is part of the current and has no factor"}
    for n in (n for n in twin.neurons() if n.target in stateful):
        module: Any = twin.module_of(n)
        assert (module.v_threshold, module.v_reset, module.decay_input) == (1.0, 0.0, False)
    for each in (program, twin):
        each.module.double()
    x = torch.randn(program.input.batched(1), dtype=torch.float64)
    (want, logits), (got, other) = (Recorder.record(p, x) for p in (program, twin))
    for path, spikes in want.spikes.items():  # the factor is a half: rounding in float64 is all that is left
        assert torch.equal(spikes, got.spikes[path]), path
    assert torch.allclose(logits, other, rtol=1e-12, atol=1e-12)
    assert FoldNeuronScale()(twin).changed == []


# what has no factor of its own


class Bare(nn.Module):
    """Spikes, sums and products of them in a current."""

    def __init__(self, what) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what = what
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.a_lif, self.last, self.head = integrate(), lif(), nn.Linear(4, 5)
        with torch.no_grad():
            self.a.weight *= 4
            self.a.bias += 0.2

    def forward(self, x):
        s = self.last(self.what(self, self.a_lif(steps(self.a(frames(x))))))
        return self.head(torch.mean(tokens(s), dim=(0, 2), keepdim=False))


def attention(m, s):
    q = tokens(s)
    return torch.matmul(torch.matmul(q, view(s, "t b c y x -> t b c (y x)")), q)


def image(x):
    return view(x, "t b (y x) c -> t b c y x", y=8)


# what the neuron reads, and the products with a number in it afterwards
BARE = {
    "spikes in a stream": (lambda m, s: steps(m.b(frames(s))) + s, [0.5]),
    "spikes alone": (lambda m, s: s + s + s, [0.5]),
    "a view of the same spikes": (
        lambda m, s: steps(m.b(frames(s))) + s + view(view(s, "t b c y x -> t b x y c"), "t b x y c -> t b c y x"),
        [0.5, 0.5],
    ),
    "a part of a sum": (lambda m, s: steps(m.b(frames(s))) + (s + s) + s, [0.5, 0.5]),
    "a product with a number": (lambda m, s: s * 0.3 + s, [0.15, 0.5]),
    "attention": (lambda m, s: image(attention(m, s) * 0.01), [0.005]),
    "attention over a number": (lambda m, s: image(attention(m, s) / 100.0), [0.005]),
    "bare attention": (lambda m, s: image(attention(m, s)), [0.5]),
    "attention and its spikes": (lambda m, s: image(attention(m, s)) + s - s - s, [0.5]),
    "attention and a current": (lambda m, s: image(attention(m, s)) + s + steps(m.b(frames(s))), [0.5]),
    "sum": (lambda m, s: s * (torch.sum(s, dim=(3, 4), keepdim=True)), [0.5]),
    "mean": (lambda m, s: s + torch.mean(s, dim=(0,), keepdim=True), None),
}


@pytest.mark.parametrize("case", BARE)
def test_what_has_no_factor_gets_one_product(case):
    what, numbers = BARE[case]
    program = written(Bare(what))
    if case == "mean":  # of four steps: a quarter of a whole number, on another grid than spikes
        numbers = [0.5, 0.5]
    twin = program.copy()
    result = FoldNeuronScale()(twin)
    assert result.changed == ["last"] and not result.refused
    found = sorted(n.args[1] for n in twin.graph.nodes if n.target is operator.mul and isinstance(n.args[1], float))
    assert found == pytest.approx(numbers)
    assert FoldNeuronScale()(twin).changed == []
    for each in (program, twin):
        each.module.double()
    x = torch.randn(program.input.batched(2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (want, _), (got, _) = (Recorder.record(p, x) for p in (program, twin))
    assert torch.equal(got.spikes["a_lif"], want.spikes["a_lif"])
    assert torch.allclose(got.currents["last"], want.currents["last"] / 2, rtol=1e-12, atol=1e-12)
    assert want.spikes["a_lif"].mean() > 0.05 and bool(want.currents["last"].any())


class Two(Bare):
    """Two neurons read products with one number, one of them in a sum of whole numbers."""

    def __init__(self, more) -> None:
        super().__init__(None)
        self.more, self.other = more, lif(tau=3.0, v_threshold=0.5)

    def forward(self, x):
        s = self.a_lif(steps(self.a(frames(x))))
        p = s * 0.25
        one, two = self.last(p), self.other(self.more(self, s, p))
        return self.head(torch.mean(tokens(one + two), dim=(0, 2), keepdim=False))


@pytest.mark.parametrize(
    "more",
    [
        lambda m, s, p: p + s * 0.25,
        lambda m, s, p: p + p,
        lambda m, s, p: view(p, "t b c y x -> t b c y x"),
        lambda m, s, p: p + steps(m.b(frames(s))) * 0.1 + (p + s * 0.25),
        lambda m, s, p: steps(m.b(frames(p))),
        lambda m, s, p: p * 0.5 + steps(m.b(frames(p))),
        lambda m, s, p: (p + p) * 2.0 + (p + p),
    ],
    ids=["a sum", "with itself", "a view", "a sum within a current", "a layer", "again a product", "of a sum"],
)
def test_a_product_that_others_read_is_given_back(more):
    """Whole numbers that are made of it stay what they are, whichever current it is part of."""
    program = written(Two(more))
    twin = program.copy()
    result = FoldNeuronScale()(twin)
    assert FoldNeuronScale()(twin).changed == []
    for each in (program, twin):
        each.module.double()
    x = torch.randn(program.input.batched(2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (want, _), (got, _) = (Recorder.record(p, x) for p in (program, twin))
    for name, need in (("last", 1 / 2), ("other", 1 / 3 / 0.5)):
        factor = need if name in result.changed else 1.0
        assert torch.allclose(got.currents[name], want.currents[name] * factor, rtol=1e-6, atol=1e-6), name
    if result.refused:
        assert set(result.refused.values()) == {"neurons that read one current need different factors"}
    assert {*result.changed, *result.refused} == {"last", "other"}


# refusals


def refused(model: nn.Module) -> dict[str, str]:
    """And nothing that is refused is touched."""
    program = written(model)
    twin = program.copy()
    result = FoldNeuronScale()(twin)
    assert set(result.changed).isdisjoint(result.refused)
    for name in result.refused:
        assert repr(twin.module.get_submodule(name)) == repr(program.module.get_submodule(name))
    if not result.changed:
        assert str(twin) == str(program)
        for name, value in program.module.state_dict().items():
            assert torch.equal(twin.module.state_dict()[name], value)
    x = torch.randn(program.input.batched(2), generator=torch.Generator().manual_seed(0))
    if not result.changed:
        assert torch.equal(program(x), twin(x))
    assert FoldNeuronScale()(twin).refused == result.refused
    return result.refused


def test_refuses_a_parameter_in_the_current():
    found = refused(Shortcut(lif(), lif(), "parameter"))
    assert found == dict.fromkeys(("first", "second"), "bias in the model is part of the current and has no factor")


def test_refuses_what_is_not_linear():
    found = refused(Shortcut(lif(), lif(), "product"))
    assert set(found) == {"second"} and found["second"].startswith("mul in the model is part of the current")


@pytest.mark.parametrize("second", [lif(tau=3.0), lif(v_threshold=0.5), lif(decay_input=False), plif(init_tau=1.5)])
def test_refuses_neurons_of_different_need(second):
    reason = "neurons that read one current need different factors"
    assert refused(Shortcut(lif(), second)) == {"first": reason, "second": reason}


def test_neurons_of_equal_need_may_be_of_different_kinds():
    program = written(Shortcut(lif(), lif(decay_input=False, tau=3.0, v_threshold=2.0)))
    _, each = folded(program)
    assert not each.apply(program.copy()).refused


def counting(**k) -> nn.Module:
    return neuron.ILIFNode(surrogate_function=surrogate.MultiLevelSpikeCount(max_spike_count=4), step_mode="m", **k)


def test_refuses_neurons_that_count():
    assert refused(One(counting())) == {"lif": "it counts spikes"}
    reason = "neurons that read one current need different factors"
    assert refused(Shortcut(lif(), counting())) == {"first": reason, "second": reason}


def test_refuses_a_layer_that_is_called_twice():
    class Twice(One):
        def __init__(self) -> None:
            super().__init__(lif())
            self.other = lif(v_threshold=0.5)

        def forward(self, x):
            s, r = self.lif(steps(self.conv(frames(x)))), self.other(steps(self.conv(frames(x * 0.5))))
            return self.head(torch.mean(tokens(s + r), dim=(0, 2), keepdim=False))

    reason = "conv is part of the current and has no factor"
    program = written(Twice())
    result = FoldNeuronScale()(program)
    assert result.refused == dict.fromkeys(("lif", "other"), reason) and result.changed == []


@pytest.mark.parametrize(
    "node", [integrate(), integrate(v_reset=None), lif(decay_input=False), plif(decay_input=False)]
)
def test_a_plain_neuron_is_left_alone(node):
    program = written(One(node))
    text = str(program)
    result = FoldNeuronScale()(program)
    assert not result.changed and not result.refused and str(program) == text


def test_a_factor_of_one_inserts_nothing():
    program = written(Shortcut(integrate(v_threshold=2.0, v_reset=1.0), integrate(v_threshold=2.0, v_reset=1.0)))
    twin, _ = folded(program)
    assert listing(twin) == listing(program)
    assert torch.equal(weights_of(twin, "a"), weights_of(program, "a"))
    assert twin.module.first.v_threshold == 1.0 and twin.module.first.v_reset == 0.0


def test_the_original_layers_are_not_written_to():
    program = written(One(lif(tau=3.0)))
    layer = program.module.conv
    weight = layer.weight.clone()
    FoldNeuronScale()(program)
    assert torch.equal(layer.weight, weight) and program.module.conv is not layer
