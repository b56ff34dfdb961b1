"""Quantize and QuantizeInput: whole numbers whose sums are exact, as near to the weights as that allows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import layer, neuron
from torch import nn

from support.families import IMAGE, spikformer, warm
from support.programs import frames, lif, steps, tokens, view, written
from svitc import onnx as backend
from svitc import runtimes
from svitc.analysis.exactness import inexact
from svitc.analysis.input_range import PIXELS
from svitc.analysis.integer_range import IntegerRange, integer_ranges
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT, FixedPoint
from svitc.onnx.export import export
from svitc.passes import FoldNeuronScale, QuantizeInput, QuantizeWeights
from svitc.passes.pipelines import canonical_passes, inference_passes, quantization_passes, quantize
from svitc.passes.quantization.quantize_input import STEP
from svitc.passes.quantization.quantize_weights import LEAST, LEVELS, MANTISSA, _rounded_bias, quantize_weights
from svitc.quantization.pair_bound import largest_pair, pair_limit
from svitc.verification.exact_check import verify_exact
from svitc.verification.recorder import Recorder

PICTURE = (3, 8, 6)


def mantissa(scale: torch.Tensor) -> list[int]:
    """The odd whole numbers that scales are, times powers of two."""
    found = []
    for number in scale.tolist():
        top, _ = math.frexp(number)
        whole = int(top * 2**53)
        while whole % 2 == 0:
            whole //= 2
        found.append(whole)
    return found


def holds(weight: torch.Tensor, bound: int, bits: int, bias: torch.Tensor | None = None):
    """What quantize_weights promises."""
    whole, scale = quantize_weights(weight, bound, bits, bias)
    assert whole.shape == weight.shape and scale.shape == (len(weight),)
    assert torch.equal(whole, whole.round()) and float(whole.abs().max()) <= LEVELS
    assert torch.equal(scale.float().double(), scale) and bool((scale >= LEAST).all()), "a scale is a float32"
    odd = mantissa(scale)
    assert max(odd) < 2**bits
    sums = whole.flatten(1).abs().sum(1) * bound
    for i, each in enumerate(odd):
        extra = 0.0 if bias is None else abs(float(bias[i])) / float(scale[i])
        assert (float(sums[i]) + extra) * each < EXACT
    off = (whole * scale.view(-1, *[1] * (weight.ndim - 1)) - weight).abs().flatten(1).amax(1)
    assert bool((off <= scale / 2 * (1 + 1e-12)).all()), "rounded, never clipped"
    return whole, scale


WEIGHTS = st.lists(
    st.tuples(
        st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6),
        st.sampled_from([1.0, 0.0, 1e-3, 127.0, 1e20, 1e30, 1e-20, 1e-38, 1e-45, math.pi]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rows=WEIGHTS,
    bound=st.sampled_from([1, 2, 4, 17, 255, 2048, 70_000, 2**20, 2**24, 2**30]),
    bits=st.integers(1, 8),
    shape=st.sampled_from([(6,), (6, 1, 1), (2, 3), (1, 6)]),
)
def test_promises(rows, bound, bits, shape):
    weight = torch.tensor([[v * size for v in values] for values, size in rows]).float().double()
    holds(weight.reshape(len(rows), *shape), bound, bits)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=WEIGHTS,
    bound=st.sampled_from([1, 255, 2048]),
    biases=st.lists(st.sampled_from([0.0, 1e-30, -0.3, 1.0, 77.7, -1e6, 1e30]), min_size=5, max_size=5),
)
def test_promises_with_a_bias(rows, bound, biases):
    weight = torch.tensor([[v * size for v in values] for values, size in rows]).float().double()
    holds(weight, bound, 1, torch.tensor(biases[: len(rows)]).double())


@pytest.mark.parametrize("total", [2**12, 2**22, 2**23 + 2**20, 2**24 - 2**12])
def test_a_bias_is_moved_by_half_a_step_at_most(total):
    """A sum that needs all 24 bits has no room for fractions, but it holds whole steps."""
    step, bias = torch.tensor([0.5], dtype=torch.float64), torch.tensor([1000.37], dtype=torch.float64)
    sums = total - bias / step - 1
    rounded = _rounded_bias(bias, sums, step)
    assert float((rounded - bias).abs()) <= 0.25
    assert float((sums * step + rounded) / step) < 2**24


def test_scales_are_the_smallest_that_fit():
    weight = torch.tensor([[1.27, -0.5], [0.3, 0.2], [0.0, 0.0], [127.0, 1.0], [-1.28, 0.64]]).double()
    whole, scale = holds(weight, 1, 8)
    assert torch.equal(scale[[2, 3]], torch.tensor([1.0, 1.0]).double()) and not whole[2].any()
    assert whole[3].tolist() == [127.0, 1.0]
    wanted = torch.where(weight.abs().amax(1) > 0, weight.abs().amax(1) / LEVELS, 1)
    assert bool((scale >= wanted * (1 - 1e-12)).all()) and bool((scale <= wanted * (1 + 2.0**-7)).all())
    assert bool((whole.abs().amax(1)[[0, 1, 3, 4]] >= 126).all())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=WEIGHTS,
    largest=st.sampled_from([1, 129, 130, 200, 255]),
    bits=st.sampled_from([1, 2, 5, 8]),
    shape=st.sampled_from([(6,), (6, 1, 1), (2, 3), (3, 2), (1, 6)]),
)
def test_neighbours_stay_within_int16(rows, largest, bits, shape):
    weight = torch.tensor([[v * size for v in values] for values, size in rows]).float().double()
    weight = weight.reshape(len(rows), *shape)
    limit = pair_limit(largest)
    free, free_scale = quantize_weights(weight, largest, bits)
    whole, scale = quantize_weights(weight, largest, bits, largest_pair_sum=limit)
    assert bool((largest_pair(whole) * largest <= 32767).all())
    column = scale.view(-1, *[1] * (weight.ndim - 1))
    assert bool(((whole * column - weight).abs() <= column / 2 * (1 + 1e-12)).all()), "rounded, never clipped"
    assert max(mantissa(scale)) < 2**bits
    assert bool((scale >= weight.abs().flatten(1).amax(1) / LEVELS).all()), "each weight has a level"
    if bool((largest_pair(free) <= limit).all()):
        assert torch.equal(whole, free) and torch.equal(scale, free_scale), "what is within the bound stays as it is"


@pytest.mark.parametrize("largest", [200, 255])
def test_scales_are_not_larger_than_the_neighbours_ask_for(largest):
    weight = torch.randn(32, 64, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    limit = pair_limit(largest)
    whole, scale = quantize_weights(weight, 1, MANTISSA, largest_pair_sum=limit)
    enlarged = scale > quantize_weights(weight, 1, MANTISSA)[1]
    numerator = torch.frexp(scale)[0] * 2**MANTISSA
    smaller = scale * (1 - torch.where(numerator == 2 ** (MANTISSA - 1), 0.5, 1.0) / numerator)
    assert bool((largest_pair(whole) <= limit).all()) and max(mantissa(scale)).bit_length() == MANTISSA
    finer = (weight / smaller.view(-1, 1, 1, 1)).round()
    assert int(enlarged.sum()) > 16 and bool((largest_pair(finer)[enlarged] > limit).all())


def test_fewer_bits_of_scale_before_fewer_levels():
    """100 weights of 127 on inputs up to 1320 are 2^24, less 1%: no bit is left for the scale."""
    weight = torch.ones(2, 100).double() * torch.tensor([[0.77], [0.011]]).double()
    fine, coarse, half = (holds(weight, bound, MANTISSA) for bound in (1, 1320, 2640))
    assert max(mantissa(fine[1])) > 1 and mantissa(coarse[1]) == [1, 1]
    assert float(fine[0].min()) >= 126
    assert float(coarse[0].min()) >= 64 and float(half[0].max()) <= 63, "only then levels go"
    widths = [max(mantissa(holds(weight, bound, MANTISSA)[1])).bit_length() for bound in (1, 10, 40, 160, 640, 1320)]
    assert widths == sorted(widths, reverse=True), widths


def test_a_bound_that_leaves_nothing():
    whole, _ = holds(torch.ones(1, 4).double(), 2**24, MANTISSA)
    assert not whole.any()


def test_a_channel_of_weights_that_have_decayed_to_nothing():
    """Their scale would be no normal float32, or zero, which a file must not hold."""
    whole, scale = holds(torch.tensor([[1e-44, 1e-42], [0.5, 0.25]]).double(), 1, MANTISSA)
    assert not whole[0].any() and float(scale[0].float()) > 0 and whole[1].any()


# layers


def settled(program: Program) -> Program:
    """Quantized."""
    Pipeline([FoldNeuronScale(), QuantizeInput(), QuantizeWeights()])(program)
    assert program.stage == Stage.QUANTIZED
    return program


class Net(nn.Module):
    """First layer, a depthwise and a grouped convolution, a dense one, a head."""

    def __init__(self, x_scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.deep, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1, groups=2, bias=False)
        self.dense, self.one, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Conv1d(6, 6, 1), nn.Linear(6, 5)
        self.lifs = nn.ModuleList(lif() for _ in range(5))
        with torch.no_grad():
            for each in (self.first, self.deep, self.grouped, self.dense, self.one):
                each.weight *= 4
                if each.bias is not None:
                    each.bias.uniform_(0.0, 1.5)

    def forward(self, x):
        s = self.lifs[0](steps(self.first(frames(x))))
        s = self.lifs[1](steps(self.deep(frames(s))))
        s = self.lifs[2](steps(self.grouped(frames(s))))
        s = self.lifs[3](steps(self.dense(frames(s))))
        s = view(s, "t b c y x -> (t b) c (y x)")
        s = self.lifs[4](view(self.one(s), "(t b) c n -> t b c n", t=4))
        return self.head(torch.mean(view(s, "t b c n -> t b n c"), dim=(0, 2), keepdim=False))


def kinds(program: Program) -> list[str]:
    return [type(program.module_of(n)).__name__ for n in program.graph.nodes if n.op == "call_module"]


def test_what_becomes_of_a_network():
    program = written(Net())
    before = kinds(program)
    x = torch.randn(program.input.batched(2), generator=torch.Generator().manual_seed(0)).abs().floor()
    reference = Recorder.record(program, x)[0]
    settled(program)
    names = {"Conv1d": "QuantizedConv1d", "Conv2d": "QuantizedConv2d", "Linear": "QuantizedLinear"}
    assert kinds(program) == ["FixedPoint", *(names.get(name, name) for name in before)]
    assert program.parameter_count() == 0
    steps_ = program.module.input_steps
    assert steps_.step * steps_.limit >= 256 and (1 / steps_.step).is_integer(), "counts of up to 256 events are exact"
    twin = program.copy()
    assert QuantizeWeights()(twin).changed == [] and str(twin) == str(program), "a second run changes nothing"
    found = Recorder.record(program, x)[0]
    agree = [float((found.spikes[k] == v).float().mean()) for k, v in reference.spikes.items()]
    assert min(agree) > 0.9 and sum(float(s.sum()) for s in found.spikes.values()) > 1000, agree
    reasons = inexact(program)
    assert set(reasons) == {"logits"} and "mean" in reasons["logits"]


def any_order(products: torch.Tensor, bias: torch.Tensor, tries: int = 12) -> bool:
    """Whether float32 sums of ``[terms, ...]`` and a bias are the same in every order tried."""
    exact = products.double().sum(0) + bias.double()
    generator = torch.Generator().manual_seed(0)
    terms = torch.cat([products, bias.expand(products.shape[1:])[None]])
    for _ in range(tries):
        total = torch.zeros_like(terms[0])
        for i in torch.randperm(len(terms), generator=generator):
            total = total + terms[i]
        if not torch.equal(total.double(), exact):
            return False
    return True


def products_of(module, x: torch.Tensor) -> torch.Tensor:
    """``[terms, out, positions]``: each weight times its input, as a float convolution gets them."""
    weight = module.weight.float() * module.scale.view(-1, 1, 1, 1)
    unfolded = nn.functional.unfold(x, module.kernel_size, padding=module.padding)  # [n, c k k, positions]
    groups, out = module.groups, len(weight)
    per = unfolded.shape[1] // groups
    cut = unfolded.reshape(len(x), groups, per, -1).repeat_interleave(out // groups, dim=1)  # [n, out, per, positions]
    return (weight.reshape(1, out, per, 1) * cut).permute(2, 1, 0, 3).flatten(2)


@pytest.mark.parametrize("bias", [1.0, 1e-6, 40.0, 3000.0, 1e8])
@pytest.mark.parametrize("weight", [1.0, 1e-4, 1e-9, 1e-30])
def test_layers_in_floats_are_exact_in_any_order(weight, bias):
    """The first and the grouped ones: weights are powers of two times whole numbers, biases on one grid with them."""
    net = Net()
    with torch.no_grad():
        for module in (net.first, net.deep):
            module.weight *= weight
            module.bias *= bias
            module.bias[3] = 0.0
            module.weight[4] *= 1e-3
    program = written(net, PICTURE_EVENTS)
    twin = program.copy()
    Pipeline([QuantizeInput(), QuantizeWeights()])(twin)
    generator = torch.Generator().manual_seed(1)
    for name, x in (
        ("first", torch.randint(-255, 256, (2, 3, 8, 6), generator=generator).float()),
        ("deep", torch.randint(0, 2, (2, 8, 8, 6), generator=generator).float()),
        ("grouped", torch.randint(0, 2, (2, 8, 8, 6), generator=generator).float()),
    ):
        module, was = twin.module.get_submodule(name), program.module.get_submodule(name)
        assert mantissa(module.scale) == [1] * len(module.scale)
        products = products_of(module, x)
        assert any_order(products, module.bias.view(-1, 1)), name
        want = (products.double().sum(0) + module.bias.double().view(-1, 1)).unflatten(1, (2, -1)).transpose(0, 1)
        assert torch.equal(module(x).flatten(2).double(), want), "and that is what the reference computes"
        if was.bias is not None:
            peak = products.abs().sum(0).amax(1)
            off = (module.bias - was.bias).abs()
            assert bool((off <= 2.0**-22 * (16 * peak + 1e3 * was.bias.abs() + 1e-9)).all()), (
                "and the bias is hardly moved"
            )


PICTURE_EVENTS = (4, 3, 8, 6)


def test_scales_of_integer_products_have_eight_bits():
    program = settled(written(Net()))
    known = integer_ranges(program)
    for node in program.graph.nodes:
        module = program.module_of(node)
        if ops.is_quantized(module) and node.target in ("dense", "one"):
            largest = module.weight.flatten(1).double().abs().sum(1) * known[node.all_input_nodes[0]].bound
            assert 1 < max(mantissa(module.scale)) < 2**MANTISSA
            assert bool((largest * torch.tensor(mantissa(module.scale)) < EXACT).all())


# the input


class Image(nn.Module):
    """A picture, the same at every step, and what reads it."""

    def __init__(self, kernel: int = 3, size: int = 8, how: str = "conv") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.conv, self.lif, self.head = layer.Conv2d(3, 4, kernel, kernel, step_mode="s"), lif(), nn.Linear(4, 5)
        self.other, self.norm = nn.Conv2d(3, 4, kernel, kernel), nn.BatchNorm2d(3)

    def forward(self, x):
        if self.how == "twice":
            y = self.conv(x) + self.conv(x)
        elif self.how == "two layers":
            y = self.conv(x) + self.other(x)
        elif self.how == "sum":
            y = self.conv(x) + self.other(x * 0.5)
        elif self.how == "norm":
            y = self.conv(x) + self.other(self.norm(x) + x)
        else:
            y = self.conv(x)
        s = self.lif(y.unsqueeze(0).repeat(2, 1, 1, 1, 1))
        return self.head(s.flatten(3).mean(-1).mean(0))


def pictured(how: str = "conv", kernel: int = 3, size: tuple[int, ...] = PICTURE) -> Program:
    program = capture(Image(kernel, how=how).eval(), InputSpec(size))
    Pipeline([*canonical_passes(), *inference_passes()])(program)
    return program


def test_the_image_becomes_whole_numbers():
    program = pictured()
    x = torch.randn(2, *PICTURE)
    want = program.module.conv(x)
    weight = program.module.conv.weight.clone()
    result = QuantizeInput()(program)
    assert len(result.changed) == 1 and not result.refused
    node = next(n for n in program.graph.nodes if n.target == "input_steps")
    assert node.args[0].op == "placeholder" and [str(u.target) for u in node.users] == ["conv"]
    each = program.module.input_steps
    assert (each.step, each.limit) == (STEP, int(PIXELS / STEP)) == (2.0**-9, 2048)
    assert torch.equal(program.module.conv.weight, weight * STEP)
    whole = each(x)
    assert torch.equal(whole, whole.round()) and float((whole * STEP - x.clamp(-4, 4)).abs().max()) <= STEP / 2
    assert torch.allclose(program.module.conv(whole), want, atol=27 * STEP)
    assert integer_ranges(program)[node] == IntegerRange(1.0, -2048, 2048)
    text = str(program)
    assert QuantizeInput()(program).changed == [] and str(program) == text


def test_the_layer_that_reads_it_gets_the_bits_that_its_sums_leave():
    found = {}
    for bits in ({}, {"conv": 8}):
        program = pictured()
        Pipeline(quantization_passes(bits))(program)
        layer = program.module.conv
        found[layer.bits] = layer
        total = layer.weight.double().abs().flatten(1).sum(1) * 2048 + layer.bias.double().abs() / layer.scale
        assert bool((total < EXACT).all()) and bool((torch.frexp(layer.scale)[0] == 0.5).all())
    assert found.keys() == {8, 16} and int(found[8].weight.abs().max()) <= LEVELS < int(found[16].weight.abs().max())
    assert bool((found[16].scale <= found[8].scale / 2).all()), "at least one bit more in every channel"
    program = pictured(kernel=64, size=(3, 64, 64))
    Pipeline(quantization_passes())(program)
    assert program.module.conv.bits == 8, "its input fits bytes: an integer product"


@pytest.mark.parametrize(
    ("kernel", "step", "limit"), [(3, 2.0**-9, 2048), (7, 2.0**-7, 512), (16, 2.0**-5, 128), (64, 0.5, 8)]
)
def test_wide_windows_get_coarser_steps(kernel, step, limit):
    program = pictured(kernel=kernel, size=(3, kernel, kernel))
    QuantizeInput()(program)
    each = program.module.input_steps
    assert (each.step, each.limit) == (step, limit)
    assert 3 * kernel**2 * LEVELS * limit < EXACT and step * limit >= PIXELS
    assert FixedPoint(step, limit)(torch.tensor([1e9, -1e9, 0.6 * step])).tolist() == [limit, -limit, 1]


def test_all_layers_that_read_it_are_scaled():
    program = pictured("two layers")
    before = {name: program.module.get_submodule(name).weight.clone() for name in ("conv", "other")}
    assert QuantizeInput()(program).changed
    for name, weight in before.items():
        assert torch.equal(program.module.get_submodule(name).weight, weight * STEP)


@pytest.mark.parametrize("how", ["sum", "norm"])
def test_refuses_an_image_that_something_else_reads(how):
    program = pictured(how)
    text = str(program)
    result = QuantizeInput()(program)
    assert list(result.refused.values()) == ["something else than a convolution or linear layer reads the image"]
    assert str(program) == text
    Pipeline([FoldNeuronScale(), QuantizeWeights()])(program)
    reasons = inexact(program)
    assert "sums real numbers" in reasons["lif"], "it is said, and checked with room for rounding"
    verdict = verify_exact(program, export(program), random_inputs(program, 4, 2, 0))
    assert verdict.passed and verdict.total("firing") > 0


def test_a_layer_that_is_called_twice_stays_as_it_is():
    """Its weights must not be scaled twice; it runs in floats, and the file is the same network."""
    program = pictured("twice")
    x = torch.randn(2, *PICTURE)
    want = program(x)
    twin, pipeline = quantize(capture(Image(how="twice").eval(), InputSpec(PICTURE)))
    assert any("conv reads the image and is called more than once" in why for why in pipeline.refused.values())
    assert pipeline.refused["Quantize: conv"] == "it is called more than once"
    assert type(twin.module.get_submodule("conv")) is nn.Conv2d and ops.is_quantized(twin.module.head)
    assert float((twin(x) - want).abs().max()) < 0.05
    assert inexact(twin)["lif"] == "conv sums real numbers"
    verdict = verify_exact(twin, export(twin), random_inputs(twin, 4, 2, 0))
    assert verdict.passed and verdict.total("firing") > 0


class Again(Net):
    """A layer on spikes, called twice on different ones."""

    def forward(self, x):
        s = self.lifs[0](steps(self.first(frames(x))))
        s = self.lifs[1](steps(self.grouped(frames(s))))
        s = self.lifs[2](steps(self.grouped(frames(s))))
        s = self.lifs[3](steps(self.dense(frames(s))))
        return self.head(torch.mean(tokens(s), dim=(0, 2), keepdim=False))


def test_a_layer_of_spikes_that_is_called_twice():
    program = written(Again())
    result = Pipeline([FoldNeuronScale(), QuantizeInput(), QuantizeWeights()])
    result(program)
    assert result.refused["Quantize: grouped"] == "it is called more than once"
    assert set(inexact(program)) == {"lifs.1", "lifs.2", "lifs.3", "logits"}
    verdict = verify_exact(program, export(program), random_inputs(program, 4, 2, 0))
    assert verdict.passed and verdict.total("firing") > 100, verdict.to_json()


# what weights can be


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_weights_that_are_no_numbers(number, tensor):
    model = Image()
    with torch.no_grad():
        getattr(model.conv, tensor)[0] = number
    program = capture(model.eval(), InputSpec(PICTURE))
    run_canonical_passes(program)
    with pytest.raises(UnsupportedError, match="conv has weights that are infinite or not a number") as caught:
        quantize(program)
    assert caught.value.where is not None and Path(__file__).name in caught.value.where
    assert caught.value.exit_status == 4


def shifted(change) -> Program:
    torch.manual_seed(0)
    model = warm(spikformer(T=2), IMAGE)
    with torch.no_grad():
        for name, module in model.named_modules():
            change(name, module)
    program = capture(model, InputSpec(IMAGE))
    run_canonical_passes(program)
    return program


def negative(name, module):
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        module.weight[::2] *= -1
        module.weight[1::5] = 0.0


def nothing(name, module):
    if name == "blocks.0.mlp.fc1.0" or ("patch_embed.stages.1" in name and isinstance(module, nn.Conv2d)):
        module.weight.zero_()


def tiny(name, module):
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        module.weight[::3] *= 1e-38
        module.weight[1::4] *= 1e-12


def everything(name, module):
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        module.weight.zero_()


@pytest.mark.parametrize("change", [negative, nothing, tiny, everything])
def test_odd_weights_stay_exact(change):
    program = shifted(change)
    twin, _ = quantize(program)
    assert set(inexact(twin)) <= {"logits"}
    for node in twin.graph.nodes:
        module = twin.module_of(node)
        if ops.is_quantized(module):
            assert bool((module.scale > 0).all()) and bool(module.scale.isfinite().all())
    verdict = verify_exact(twin, export(twin), random_inputs(twin, 2, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()
    assert verdict.total("firing") > 100


def test_the_program_is_not_changed():
    program = shifted(lambda *_: None)
    text, values = str(program), {k: v.clone() for k, v in program.module.state_dict().items()}
    quantize(program)
    assert str(program) == text
    for name, value in program.module.state_dict().items():
        assert torch.equal(value, values[name])


def test_spikes_of_levels_and_larger_counts():
    """Whole numbers up to 255 are bytes; beyond, the layer runs in floats, exactly."""

    class Counts(Net):
        def __init__(self, levels: int) -> None:
            super().__init__()
            self.levels = ops.IntegerSpike(levels)
            with torch.no_grad():
                self.dense.weight *= 0.7

        def forward(self, x):
            s = self.levels(steps(self.first(frames(x))))
            s = self.lifs[3](steps(self.dense(frames(s))))
            return self.head(torch.mean(tokens(s), dim=(0, 2), keepdim=False))

    for levels, bits in ((255, MANTISSA), (256, 1)):
        program = settled(written(Counts(levels)))
        odd = mantissa(program.module.dense.scale)
        assert (max(odd) == 1) == (bits == 1)
        assert set(inexact(program)) == {"logits"}
        x = random_inputs(program, 2, 2, 0)[0]
        got = runtimes.session(export(program)).run(None, {backend.INPUT: x.numpy()})[0]
        assert np.allclose(got, program(x).numpy(), rtol=1e-5, atol=1e-6) and got.std() > 0.01


def test_neurons_of_another_reset_start_there():
    """The membrane starts at the new reset voltage, too: the file does, and says so."""
    torch.manual_seed(0)
    program = capture(warm(spikformer(T=2, v_reset=-0.5, spiking_neuron=neuron.LIFNode), IMAGE), InputSpec(IMAGE))
    run_canonical_passes(program)
    twin, _ = quantize(program)
    verdict = verify_exact(twin, export(twin), random_inputs(twin, 2, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0
