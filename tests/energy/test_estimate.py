"""Energy: counts by hand on networks small enough to count, against SpikingJelly's counters, and as a user meets it."""

from __future__ import annotations

import copy

import einops
import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter
from torch import fx, nn

from support.families import FAMILIES, NEURONS
from support.measured import family
from svitc.analysis.integer_range import integer_ranges
from svitc.energy.estimate import Energy, Row, deployed, energy, saving
from svitc.energy.operation_counts import update
from svitc.errors import InputError, UsageError
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.ops import IntegerSpike
from svitc.ir.program import Program, Stage
from svitc.passes.pipelines import quantize
from svitc.quantization.weight_grid import stored_bits
from svitc.support.reporter import Reporter


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def written(model: nn.Module, shape: tuple[int, ...], stage: Stage = Stage.INFERENCE) -> Program:
    """A program of exactly the operations that the model's forward writes down."""
    program = Program(fx.GraphModule(model.eval(), Leaves().trace(model)), InputSpec(shape), stage)
    program.retype()
    return program


class Fed(nn.Module):
    """A layer that reads what an integer neuron makes of the input: spikes, or counts of several levels."""

    def __init__(self, layer: nn.Module, levels: int = 1) -> None:
        super().__init__()
        self.spikes, self.layer = IntegerSpike(levels), layer

    def forward(self, x):
        return self.layer(self.spikes(x))


class Alone(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def row(found: Energy, name: str) -> Row:
    (one,) = [each for each in found.rows if each.name == name]
    return one


# operations, by hand


@pytest.mark.parametrize(
    ("pixels", "padding", "stride", "reached"),
    [
        ([(0, 0)], 1, 1, 4),  # a corner lies under 4 windows of 3x3, an edge under 6, the middle under 9
        ([(0, 1)], 1, 1, 6),
        ([(1, 1)], 1, 1, 9),
        ([(0, 0), (1, 1), (2, 2)], 1, 1, 17),
        ([(0, 0)], 0, 1, 1),  # without a border there is one window, and it sees everything
        ([(1, 1)], 1, 2, 4),  # windows around the four corners
        ([(0, 0), (2, 2)], 1, 2, 2),
    ],
)
def test_a_spike_reaches_the_windows_that_it_lies_in(pixels, padding, stride, reached):
    x = torch.zeros(1, 2, 3, 3)
    for y, z in pixels:
        x[0, 1, y, z] = 1
    conv = nn.Conv2d(2, 5, 3, stride, padding, bias=False)
    found = row(energy(written(Fed(conv), (2, 3, 3)), [x]), "layer")
    assert (found.ac, found.int_ac, found.mac, found.reads) == (5 * reached, 0, 0, "spikes")
    assert found.operations == {"float32.add": 5 * reached}
    assert found.compute_pj == pytest.approx(0.9 * 5 * reached)
    assert found.rate == found.nonzero == len(pixels) / 18 and found.values == 18


def test_groups_and_dilation_as_loops_count_them():
    torch.manual_seed(0)
    x = (torch.rand(3, 4, 7, 6) < 0.3).float()
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (2, 1), groups=2)
    synapses = 0
    out_y, out_x = conv(x).shape[-2:]
    for _, _, i, j in x.nonzero().tolist():
        for y in range(out_y):
            for z in range(out_x):
                hit = any(y * 2 + a * 2 - 1 == i and z + b - 2 == j for a in range(3) for b in range(2))
                synapses += 3 * hit  # outputs of the input's own group
    found = row(energy(written(Fed(conv), (4, 7, 6)), [x]), "layer")
    assert found.ac * 3 == pytest.approx(synapses, abs=1e-6)
    assert found.operations["float32.add"] == pytest.approx(synapses / 3 + out_y * out_x * 6)  # and the bias


def test_one_dimension_and_linear():
    x = torch.zeros(1, 2, 1, 4)
    x[0, 0, 0, 0] = x[0, 1, 0, 2] = x[0, 1, 0, 3] = 1

    class Tokens(Fed):
        def forward(self, x):
            return self.layer(einops_view(self.spikes(x), "b c y n -> b c (y n)"))

    found = energy(written(Tokens(nn.Conv1d(2, 7, 3, padding=1, bias=False)), (2, 1, 4)), [x])
    assert row(found, "layer").ac == 7 * (2 + 3 + 2)
    found = energy(written(Fed(nn.Linear(4, 7)), (2, 1, 4)), [x])
    assert row(found, "layer").ac == 7 * 3
    assert row(found, "layer").operations == {"float32.add": 7 * 3 + 2 * 7}


def einops_view(x: fx.Proxy, pattern: str) -> fx.Proxy:
    return x.tracer.create_proxy("call_function", einops.rearrange, (x, pattern), {})


def test_the_first_layer_multiplies():
    x = torch.randn(2, 3, 4, 4)
    found = row(energy(written(Alone(nn.Conv2d(3, 8, 3, padding=1)), (3, 4, 4)), [x]), "layer")
    macs = 4 * 4 * 8 * 3 * 9  # border included, as stats.macs and every counter of MACs have it
    assert (found.ac, found.int_ac, found.mac, found.reads, found.rate) == (0, 0, macs, "real", None)
    assert found.operations == {"float32.add": macs + 128, "float32.mult": macs}
    assert found.compute_pj == pytest.approx(4.6 * macs + 0.9 * 128)


def test_a_value_v_is_v_accumulates():
    x = torch.tensor([[[[3.0, 0.0], [1.0, 2.0]]]])
    found = row(energy(written(Fed(nn.Linear(2, 5, bias=False), 4), (1, 2, 2)), [x]), "layer")
    assert (found.ac, found.int_ac, found.mac, found.reads) == (0, 5 * 6, 0, "counts")
    assert found.rate == 6 / 4 and found.nonzero == 3 / 4
    assert found.compute_pj == pytest.approx(0.9 * 30)


def test_counts_beyond_a_byte_are_multiplied():
    x = torch.full((1, 1, 2, 2), 300.0)
    found = row(energy(written(Fed(nn.Linear(2, 5, bias=False), 300), (1, 2, 2)), [x]), "layer")
    assert (found.int_ac, found.mac, found.reads) == (0, 20, "fixed")


def test_a_pooled_sum_is_counted_in_its_own_units():
    class Pooled(Fed):
        def __init__(self) -> None:
            super().__init__(nn.Linear(1, 3, bias=False))
            self.pool = nn.AvgPool2d(2)

        def forward(self, x):
            return self.layer(self.pool(self.spikes(x)))

    x = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    found = energy(written(Pooled(), (1, 2, 2)), [x])
    assert row(found, "layer").int_ac == 3 * 3 and row(found, "layer").rate == 3
    assert row(found, "pool").operations == {"float32.add": 3, "float32.mult": 1}


def product(left: int, right: int, a: torch.Tensor, b: torch.Tensor) -> Row:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = IntegerSpike(left), IntegerSpike(right)

        def forward(self, x):
            one, other = (block(x, i) for i in (0, 1))
            return torch.matmul(self.a(one), self.b(einops_view(other, "b c m n -> b c n m")))

    def block(x, i):
        return x.tracer.create_proxy("call_function", ops.take_block, (x, 1, i, 2), {})

    x = torch.stack([a, b])[None]
    return row(energy(written(Two(), tuple(x.shape[1:])), [x]), "model: matmul")


def test_matrix_products():
    a = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    b = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    found = product(1, 1, a, b)  # where both fire: rows of a with rows of b: 2 + 0 + 1 + 0
    assert (found.ac, found.int_ac, found.mac, found.reads) == (3, 0, 0, "spikes")
    found = product(1, 9, a, 5 * b)  # each of 3 spikes adds up one value for each of 2 columns
    assert (found.ac, found.int_ac, found.mac) == (6, 0, 0)
    found = product(9, 1, 5 * a, b)
    assert (found.ac, found.int_ac, found.mac) == (8, 0, 0)
    found = product(4, 9, 2 * a, 5 * b)  # counts: the smaller ones are the events
    assert (found.ac, found.int_ac, found.mac, found.reads) == (0, 12, 0, "counts")
    found = product(300, 300, a, b)
    assert (found.ac, found.int_ac, found.mac) == (0, 0, 12)
    assert found.operations == {"float32.add": 12, "float32.mult": 12}


@pytest.mark.parametrize(
    ("module", "adds", "mults"),
    [
        (neuron.IFNode(step_mode="m"), 2, 0),
        (neuron.LIFNode(step_mode="m"), 3, 1),
        (neuron.LIFNode(step_mode="m", decay_input=False), 2, 1),
        (neuron.LIFNode(step_mode="m", v_reset=0.25), 4, 1),
        (neuron.ParametricLIFNode(step_mode="m", decay_input=False), 2, 1),
        (neuron.ILIFNode(step_mode="m", surrogate_function=surrogate.MultiLevelSpikeCount(4)), 2, 1),
        (IntegerSpike(4), 1, 0),
    ],
)
def test_updates_of_a_neuron(module, adds, mults):
    assert update(module) == (adds, mults)


def test_neurons_and_their_membranes():
    x = torch.full((4, 1, 1, 2, 2), 0.5)  # [t, b, c, y, x]: fires at steps 2 and 4, and subtracts then
    found = energy(written(Alone(neuron.IFNode(step_mode="m", v_reset=None)), (4, 1, 2, 2)), [x])
    lif = row(found, "layer")
    assert lif.rate == 0.5 and lif.values == 16 and found.totals()["rate"] == 0.5
    assert lif.operations == {"float32.add": 2 * 16 + 8}
    assert lif.membrane_bytes == 2 * 4 * 16  # 4 bytes read, 4 written, for each of 4 neurons and steps
    assert lif.activation_bytes == 4 * 16 + 16 / 8  # the input's real numbers, and one bit a spike
    assert lif.membrane_pj == pytest.approx(128 / 8 * 10)  # 16 bytes fit the smallest SRAM


def test_event_frames_are_counted_if_they_are_whole():
    program = written(Alone(nn.Linear(2, 5, bias=False)), (4, 1, 2, 2))
    x = torch.zeros(4, 1, 1, 2, 2)
    x[0, 0, 0, 0, 0], x[3, 0, 0, 1, 1] = 2, 1
    assert row(energy(program, [x]), "layer").int_ac == 15
    assert row(energy(program, [x - 0.5]), "layer").mac == 4 * 2 * 10
    assert row(energy(program, [-x]), "layer").mac == 4 * 2 * 10


# memory


def test_what_is_moved():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1, bias=False)
            self.one, self.two = IntegerSpike(1), IntegerSpike(4)

        def forward(self, x):
            return self.two(self.second(self.one(self.first(x))))

    found = energy(written(Net(), (2, 4, 4)), [torch.randn(3, 2, 4, 4)])
    first, one, second, two = (row(found, name) for name in ("first", "one", "second", "two"))
    assert [each.weight_bytes for each in found.rows] == [4 * (16 + 8), 0, 4 * 32, 0] and first.weight_bits == 32
    assert first.activation_bytes == 4 * 32, "real numbers are read; a current is not written"
    assert one.activation_bytes == 128 / 8 and second.activation_bytes == 128 / 8
    assert two.activation_bytes == 64, "a count is a byte"
    assert found.totals()["membrane_bytes"] == 0
    assert first.weight_pj == pytest.approx(96 / 8 * 10) and found.weights_in == "SRAM 8 kB"


def test_weights_lie_where_all_of_them_fit():
    for width, name, pj in ((64, "SRAM 32 kB", 20), (256, "SRAM 1 MB", 100), (1024, "DRAM", 1300)):
        found = energy(written(Fed(nn.Linear(width, width, bias=False)), (1, 1, width)), [torch.zeros(1, 1, 1, width)])
        assert found.weights_in == name
        assert row(found, "layer").weight_pj == pytest.approx(4 * width * width / 8 * pj)


@pytest.mark.parametrize(("largest", "width"), [(127, 8), (7, 4), (3, 2)])
def test_quantized_weights_take_their_stored_bits(largest, width):
    program, _ = quantize(family("spikformer"))
    name, layer = next((n, m) for n, m in program.module.named_modules() if n.endswith("fc1.0"))
    with torch.no_grad():
        levels = torch.tensor([-3, -1, 1, 3]) if width == 2 else torch.arange(-largest, largest + 1)
        layer.weight.copy_(levels[torch.arange(layer.weight.numel()) % len(levels)].view_as(layer.weight))
    assert stored_bits(layer.weight) == width
    found = energy(program, [torch.randn(1, 3, 32, 48)])
    one = row(found, name)
    assert one.weight_bits == width
    assert one.weight_bytes == layer.weight.numel() * width // 8 + 2 * 4 * layer.weight.shape[0]  # scale and bias
    assert found.weights == ("int16/8" if width == 8 else f"int16/8/{width}"), "16: the layer that reads the image"


def test_integer_arithmetic():
    program, _ = quantize(family("spikformer"))
    found = energy(program, [torch.randn(2, 3, 32, 48)])
    first, later = [each for each in found.rows if each.kind == "QuantizedConv2d"][:2]
    outputs = 4 * 32 * 48
    assert first.reads == "fixed" and first.mac == outputs * 27
    # the image's steps take two bytes, and so do this layer's weights: four products of int8, each added up in int32
    assert first.operations == {
        "int8.mult": 4 * first.mac,
        "int32.add": 4 * first.mac,
        "float32.mult": outputs,
        "float32.add": outputs,
    }
    outputs = later.operations["float32.mult"]
    assert later.operations == {"int32.add": later.ac, "float32.mult": outputs, "float32.add": outputs}
    assert later.compute_pj == pytest.approx(0.1 * later.ac + 4.6 * outputs)
    assert "float32.add" not in row(found, "blocks.0.attn: matmul").operations


# against SpikingJelly's counters


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["LIF", "IF"])
def test_as_spikingjelly_counts(name, kind):
    """What SpikingJelly's counters count of layers and matrix products of spikes, we count, to the last operation.

    They count differently, and are not compared on
      1. counts (a sum of two spike streams): they look at values, so that such a layer multiplies, unless all values
         happen to be 0 or 1; then both of us have the same number under another name, but that a mean's 1 is as
         many events as it is the mean of;
      2. what is no layer and no matrix product: SynOpCounter leaves out bias, neurons and sums, which we count apart.
    Both run the same network on the same images: the one for inference, batch norms folded, so that the same
    neurons fire. Real inputs are multiply-accumulates for both, borders included.
    """
    program = deployed(family(name, **NEURONS[kind]))
    torch.manual_seed(3)
    x = torch.randn(program.input.batched(2))
    found = energy(program, [x])
    synops, macs = SynOpCounter(), MACCounter()
    program.module.eval()
    functional.reset_net(program.module)
    with torch.no_grad(), DispatchCounterMode([synops, macs]):
        program.module(x)
    functional.reset_net(program.module)

    def theirs(counter, scope: str) -> int:
        return sum(counter.records[f"GraphModule.{scope}"].values())

    known = integer_ranges(program)
    unit = {
        str(n.target): known[n.args[0]].unit
        for n in program.graph.nodes
        if n.op == "call_module" and n.args[0] in known
    }
    compared = {"spikes": 0, "counts": 0, "real": 0, "fixed": 0}
    for one in found.rows:
        if one.kind not in ("Conv1d", "Conv2d", "Linear"):
            continue
        acs, multiplied = theirs(synops, one.name), theirs(macs, one.name)
        compared[one.reads or ""] += 1
        if one.reads == "spikes":
            assert (2 * one.ac, 0) == (acs, multiplied), one.name
        elif one.reads == "counts":
            assert (acs == 2 * one.int_ac * unit[one.name] and not multiplied) if acs else multiplied > 0, one.name
        else:
            assert (0, 2 * one.mac) == (acs, multiplied), one.name
    assert compared["spikes"] >= 5 and compared["real"] >= 1, "nothing was compared"
    products = [one for one in found.rows if one.kind == "matmul"]
    bmm = synops.records["GraphModule"][torch.ops.aten.bmm.default]
    assert all(one.reads == "spikes" for one in products)
    assert sum(2 * one.ac for one in products) == bmm and (bmm > 0 or not products)


# what goes in


def test_data_sets_batches_and_how_many(tmp_path):
    program = family("sdt")
    x = torch.randn(5, 3, 32, 48)
    apart = [energy(program, [one[None]]).totals()["ac"] for one in x]
    state = copy.deepcopy(program.module.state_dict())
    for data in ([x], list(x.split(2)), [(x[:4], torch.zeros(4)), (x[4:], torch.zeros(1))]):
        found = energy(program, data)
        assert found.images == 5 and found.totals()["ac"] == pytest.approx(sum(apart) / 5)
    seen = []
    found = energy(program, x.split(2), images=3, reporter=Reporter(lambda *a: seen.append(a)))
    assert found.images == 3 and found.totals()["ac"] == pytest.approx(sum(apart[:3]) / 3)
    assert seen == [("energy", 0, 3), ("energy", 2, 3), ("energy", 3, 3)]
    assert all(torch.equal(value, state[name]) for name, value in program.module.state_dict().items())


def test_bad_images():
    program = family("sdt")
    for data in ([], [torch.zeros(0, 3, 32, 48)]):
        with pytest.raises(UsageError, match="no images"):
            energy(program, data)
    with pytest.raises(InputError, match=r"\[2, 3, 8, 8\]"):
        energy(program, [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(UsageError, match="0 images"):
        energy(program, [torch.zeros(2, 3, 32, 48)], images=0)


def test_a_program_that_trains_is_measured_as_it_is_deployed():
    program = family("spikformer")
    found = energy(program, [torch.randn(1, 3, 32, 48)])
    assert not any(each.kind.startswith("BatchNorm") for each in found.rows)
    first = found.rows[0]
    assert first.mac == 4 * 32 * 48 * 27, "the image is the same at both steps, and convolved once"
    assert program.stage == Stage.CAPTURED


def test_saving_of_nothing():
    a = energy(written(Fed(nn.Linear(2, 5, bias=False)), (1, 2, 2)), [torch.zeros(1, 1, 2, 2)])
    free = Energy(1, "fp32", "DRAM", (), a.table)
    assert saving(a, free) == dict.fromkeys(("compute", "memory", "total", "total_same_memory"))
    assert saving(free, a)["total"] == 1
    assert np.isfinite(saving(a, a)["total"]) and saving(a, a)["total"] == 0
