"""Networks of quantization-aware training: their weights are the same, bit for bit, in the integer network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

import svitc
from svitc.cli.views.compile import trained_line
from svitc.data.inputs import random_inputs
from svitc.driver.apply import prune_and_round
from svitc.driver.report_sections import weights_report
from svitc.ir import ops
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.onnx.int16_sums import beyond_int16
from svitc.onnx.unrolled.im2col import kernel_of
from svitc.passes.pipelines import inference_passes, quantize
from svitc.passes.quantization.fold_neuron_scale import FoldNeuronScale
from svitc.planning.plan import Plan
from svitc.quantization.grids import grid_of, odd_part
from svitc.quantization.pair_bound import largest_pair
from svitc.verification.exact_check import verify_exact

SPEC = svitc.InputSpec((3, 8, 8))


class LearnedStep(nn.Module):
    """Fake quantization of LSQ: ``round(clamp(w / s, low, high)) * s`` with one learned scale."""

    def __init__(self, low: int, high: int, step: float) -> None:
        super().__init__()
        self.low, self.high, self.step = low, high, nn.Parameter(torch.tensor(step))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight / self.step).clamp(self.low, self.high).round() * self.step


class TrainedConv(nn.Conv2d):
    """A convolution whose weights are quantized in forward."""

    def __init__(self, *args: int, levels: tuple[int, int], step: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quantizer = LearnedStep(*levels, step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.quantizer(self.weight), self.bias)


class TrainedLinear(nn.Linear):
    """A linear layer whose weights are quantized in forward."""

    def __init__(self, *args: int, levels: tuple[int, int], step: float) -> None:
        super().__init__(*args)
        self.quantizer = LearnedStep(*levels, step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.quantizer(self.weight), self.bias)


class Net(nn.Module):
    """A small network with a stem of real weights and two trained layers."""

    def __init__(self, levels: tuple[int, int], step: float, norms: bool = True, tau: float = 2.0) -> None:
        super().__init__()
        settings: dict[str, Any] = {"step_mode": "m", "tau": tau, "v_threshold": 0.5}
        self.stem = layer.Conv2d(3, 16, 3, padding=1, step_mode="m")
        self.lif1, self.lif2 = neuron.LIFNode(**settings), neuron.LIFNode(**settings)
        self.lif3 = neuron.LIFNode(**settings)
        self.conv = TrainedConv(16, 24, 3, padding=1, levels=levels, step=step)
        self.norm = nn.BatchNorm2d(24) if norms else nn.Identity()
        self.depthwise = TrainedConv(24, 24, 3, padding=1, groups=24, levels=levels, step=step)
        self.linear = TrainedLinear(24, 20, levels=levels, step=step)
        self.lif4, self.head = neuron.LIFNode(**settings), nn.Linear(20, 5)
        with torch.no_grad():
            for trained in (self.conv, self.depthwise, self.linear):
                trained.weight.normal_(0, step * (levels[1] + 1) / 1.5)
            if norms:
                self.norm.running_mean.normal_(0, 0.1)
                self.norm.running_var.uniform_(0.5, 2)
                self.norm.weight.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.lif1(self.stem(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
        s = self.lif2(self.norm(self.conv(s.flatten(0, 1))).unflatten(0, (2, -1)))
        s = self.lif3(self.depthwise(s.flatten(0, 1)).unflatten(0, (2, -1)))
        s = self.lif4(self.linear(s.flatten(3).transpose(2, 3)))
        return self.head(s.mean((0, 2)))


TRAINED = ("conv", "depthwise", "linear")
NAMES = {"conv": "conv.conv2d", "depthwise": "depthwise.conv2d", "linear": "linear.linear"}  # of the layers in programs
LEVELS = {"binary": (-1, 1), "ternary": (-1, 1), "4 bits": (-8, 7), "3 bits": (-4, 3), "8 bits": (-128, 127)}


def net(name: str, step: float, **options: Any) -> Net:
    torch.manual_seed(0)
    model = Net(LEVELS[name], step, **options).eval()
    if name == "binary":
        with torch.no_grad():
            for path in TRAINED:
                weight = getattr(model, path).weight
                weight.copy_(weight.sign() * step)
    return model


def trained(model: Net, path: str) -> torch.Tensor:
    """The weights of a layer as its forward has them."""
    module = getattr(model, path)
    return module.quantizer(module.weight).detach()


def layers(program: Program) -> dict[str, Any]:
    named = {str(node.target): program.module_of(node) for node in program.graph.nodes}
    known = {name: path for path, name in NAMES.items()}
    return {known.get(name, name): module for name, module in named.items() if ops.is_projection(module)}


def reported(final: Program, pipeline: Pipeline) -> dict[str, Any]:
    """What the report says of the layers."""
    known = {name: path for path, name in NAMES.items()}
    return {known.get(name, name): entry for name, entry in weights_report(final, pipeline).layers.items()}


def dequantized(module: Any) -> torch.Tensor:
    return module.weight.float() * module.scale.reshape(-1, *(1,) * (module.weight.ndim - 1))


def plan_of(program: Program, bits: int | None, pruned: bool) -> Plan:
    keep = {}
    if pruned:
        for i, group in enumerate(group for group in program.groups if not group.frozen):
            keep[group.name] = np.random.default_rng(i).random((group.heads, group.axis.size)) > 0.4
    return Plan(keep, bits=dict.fromkeys(NAMES.values(), bits) if bits else {})


@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("name", LEVELS)
def test_weights_are_those_of_the_model_bit_for_bit(name, bits, pruned):
    """Steps and factors of neurons that are powers of two, and 0.171875 = 11 / 64: all products are exact."""
    model = net(name, 11 / 64, norms=False)
    program = svitc.capture(model, SPEC)
    for path in TRAINED:
        assert torch.equal(layers(program)[path].weight, trained(model, path)), "computed once, exactly"
    plan = plan_of(program, bits, pruned)
    rounded = prune_and_round(program, plan)
    final, pipeline = quantize(rounded, plan.bits)
    found = reported(final, pipeline)
    exact = Pipeline([*inference_passes(), FoldNeuronScale()])(rounded.copy())
    for path in TRAINED:
        module, float_layer = layers(final)[path], layers(exact)[path]
        if name == "8 bits" and bits == 4:
            assert "grid" not in found[path], "four bits cannot hold it"
            continue
        assert torch.equal(dequantized(module), float_layer.weight), path
        assert found[path]["scale_error"] == 0
        # the float layer has the model's weights, but for the factor of the neuron: 1 / tau / threshold = 1
        values = set(float_layer.weight.unique().tolist())
        assert values <= set(trained(model, path).unique().tolist())
        assert ("4 bits" in name) <= (found[path]["bits"] == 4)
    assert "grid" not in found["stem"] and "grid" not in found["head"]


@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize("bits", [None, 4])
def test_learned_scales_batch_norms_and_leaks_keep_the_integers(bits, pruned):
    model = net("4 bits", 0.0837, tau=3.0)
    program = svitc.capture(model, SPEC)
    plan = plan_of(program, bits, pruned)
    rounded = prune_and_round(program, plan)
    final, pipeline = quantize(rounded, plan.bits)
    found = reported(final, pipeline)
    folded = Pipeline([*inference_passes(), FoldNeuronScale()])(rounded.copy())
    for path in TRAINED:
        module, before = layers(final)[path], layers(rounded)[path]
        grid, factors = grid_of(before.weight, 0), layers(folded)[path].weight.double() / before.weight.double()
        signs = factors.nan_to_num(0).flatten(1).sum(1).sign()
        assert torch.equal(module.weight.double().flatten(1), grid.integers * signs[:, None]), (
            "the model's own integers"
        )
        assert set((before.weight / model.conv.quantizer.step).round().unique().tolist()) <= set(range(-8, 8))
        sums = grid.integers.abs().sum(1)
        assert bool((sums * odd_part(module.scale.double()) < 2**24).all()), "and every product is exact"
        step = (layers(folded)[path].weight.double().flatten(1).abs().sum(1) / sums.clamp_min(1))[sums > 0]
        error = (module.scale.double()[sums > 0] / step - 1).abs()
        assert 0 < float(error.max()) < 2.0**-12
        assert found[path]["scale_error"] == pytest.approx(float(error.max()), abs=1e-6)
        assert found[path]["grid"] == 4 and found[path]["bits"] == 4


class Round(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def by_function(step: nn.Parameter, weight: torch.Tensor) -> torch.Tensor:
    return Round.apply((weight / step).clamp(-8, 7)) * step


def by_detaching(step: nn.Parameter, weight: torch.Tensor) -> torch.Tensor:
    scale = (step - step * 0.01).detach() + step * 0.01
    x = (weight / scale).clamp(-8, 7)
    return ((x.round() - x).detach() + x) * scale


def by_sign(step: nn.Parameter, weight: torch.Tensor) -> torch.Tensor:
    return weight.sign() * weight.abs().mean((1, 2, 3), keepdim=True)


WAYS = {"function": (by_function, 4), "detach": (by_detaching, 4), "sign": (by_sign, 2)}


@pytest.mark.parametrize("parametrized", [False, True], ids=["forward", "parametrization"])
@pytest.mark.parametrize("way", WAYS)
def test_however_training_code_rounds(way, parametrized):
    quantized_weight, bits = WAYS[way]

    class Quantizer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Parameter(torch.tensor(0.0371))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return quantized_weight(self.step, weight)

    class Conv(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(x, self.quantizer(self.weight), self.bias)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif = (nn.Conv2d if parametrized else Conv)(3, 8, 3), neuron.LIFNode(step_mode="m")
            if parametrized:
                torch.nn.utils.parametrize.register_parametrization(self.conv, "weight", Quantizer())
            else:
                self.conv.quantizer = Quantizer()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lif(self.conv(x).unsqueeze(0).repeat(2, 1, 1, 1, 1)).mean((0, 3, 4))

    torch.manual_seed(0)
    model = Small().eval()
    weight = model.conv.weight if parametrized else model.conv.quantizer(model.conv.weight)
    program = svitc.capture(model, SPEC)
    [module] = layers(program).values()
    assert torch.equal(module.weight, weight) and list(program.info["grids"].values()) == [bits]


def test_weights_that_were_not_trained_on_a_grid_are_rounded_as_ever():
    model = net("4 bits", 0.1)
    program = svitc.capture(model, SPEC)
    assert set(program.info["grids"]) == set(NAMES.values())
    other = program.copy()
    del other.info["grids"]
    assert not any("grid" in entry for entry in weights_report(*quantize(other)).layers.values())
    program.info["grids"] = 3  # of a file that was edited
    assert str(quantize(program)[0]) == str(quantize(other)[0])


SAID = {
    "ternary": "the weights of 3 layers lie on a grid of 2 bits: kept exactly\n",
    "4 bits": "the weights of 3 layers lie on a grid of 4 bits: kept exactly, times scales that are right to within ",
}


@pytest.mark.parametrize("name", SAID)
def test_the_file_computes_with_these_weights_and_the_command_says_so(tmp_path, capsys, name):
    model = net(name, 11 / 64 if name == "ternary" else 0.0837, norms=name != "ternary")
    done = svitc.compile(model, SPEC, 0.9, weights="int8", images=2, no_data="uniform")
    assert done.verdict.passed and not done.report["weights"]["inexact"].keys() - {"logits"}
    done.write(tmp_path / "out")
    assert svitc.load(tmp_path / "out").info["grids"] == done.program.info["grids"]
    trained_line(done.report["weights"])
    assert SAID[name] in " ".join(capsys.readouterr().out.split()) + "\n"


class Levels(nn.Module):
    """A convolution trained on a grid of eight bits, which reads integer spikes up to 200."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.spike = nn.Conv2d(3, 15, 1), ops.IntegerSpike(200)
        self.conv = TrainedConv(15, 8, 3, levels=LEVELS["8 bits"], step=2.0**-7)
        self.later, self.head = ops.IntegerSpike(4), nn.Linear(8, 5)
        with torch.no_grad():
            self.stem.weight *= 150
            self.conv.weight.copy_(torch.randint(-128, 128, self.conv.weight.shape) / 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.later(self.conv(self.spike(self.stem(x))) / 64).sum((2, 3)))


def test_a_trained_grid_that_neighbours_forbid_is_written_as_two_summands():
    """Its scale is what training made it, so that the weights cannot be made smaller."""
    torch.manual_seed(0)
    model = Levels().eval()
    final, pipeline = quantize(svitc.capture(model, SPEC))
    assert reported(final, pipeline)["conv"]["scale_error"] == 0
    integers = layers(final)["conv"].weight
    assert torch.equal(integers * 2.0**-7, trained(model, "conv")) and int(largest_pair(integers.int()).max()) > 163
    file = onnx.load_from_string(export(final))
    parts = {t.name: numpy_helper.to_array(t).astype(int) for t in file.graph.initializer if t.name.startswith("conv.")}
    halves = [parts[next(name for name in parts if name.endswith(end))] for end in ("weight", "weight.rest")]
    assert np.array_equal(sum(halves), kernel_of(integers.numpy()))
    assert beyond_int16(file.SerializeToString()) == {}
    verdict = verify_exact(final, file.SerializeToString(), random_inputs(final, 2, 2, 0))
    assert verdict.passed and verdict.total("firing") > 100
