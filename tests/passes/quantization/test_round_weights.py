"""RoundWeights: on grids that quantizing finds again, with errors made up for, as calibration images tell."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from support.families import FAMILIES
from support.measured import family, images_of
from support.programs import frames, lif, steps, tokens, written
from svitc.analysis.calibration import Calibration
from svitc.analysis.exactness import narrowable
from svitc.driver.report_sections import weights_report
from svitc.errors import InternalError
from svitc.ir import ops
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes import FoldNeuronScale, Prune, QuantizeInput, QuantizeResidualStreams, RoundWeights
from svitc.passes.pipelines import inference_passes, quantize
from svitc.planning.plan import Plan
from svitc.quantization.gptq import round_weights
from svitc.quantization.weight_grid import nearest, scales

FEW = (4, 2)
IMAGES = 6
FC1, FC2 = "blocks.0.mlp.fc1.0", "blocks.0.mlp.fc2.0"


@functools.cache
def made(name: str) -> Program:
    """A family as rounding gets it; not to be changed."""
    program = family(name).copy()
    Prune(Plan({}))(program)
    return program


@functools.cache
def seen(name: str) -> Calibration:
    return Calibration(made(name), *images_of(made(name), IMAGES))


@functools.cache
def layers_of(name: str) -> tuple[str, ...]:
    return tuple(layer for layer, why in narrowable(quantize(made(name))[0]).items() if not why)


def rounded(program: Program, bits: dict[str, int], calibration: Calibration | None = None, **k) -> Program:
    twin = program.copy()
    result = RoundWeights(bits, calibration, **k)(twin)
    assert sorted(result.changed) == sorted(bits) and not result.refused
    return twin


def weight_of(program: Program, layer: str) -> torch.Tensor:
    return program.module.get_submodule(layer).weight.detach().double().flatten(1)


def whole_of(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers of weights on a grid, as small as they can be, the first of each row above 0."""
    scale = scales(weight, bits)[:, None]
    whole = nearest(weight / scale, bits)
    assert torch.allclose(whole * scale, weight, rtol=1e-6, atol=0), "they lie on a grid"
    return plain(whole)


def plain(whole: torch.Tensor) -> torch.Tensor:
    common = torch.from_numpy(np.gcd.reduce(whole.long().numpy(), axis=1)).clamp_min(1)[:, None]
    first = whole.gather(1, (whole != 0).long().argmax(1, keepdim=True))
    return whole / common * torch.where(first < 0, -1, 1)


def same(a: Program, b: Program) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# grids, and what else changes


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", ["spikformer", "sdt"])
def test_weights_lie_on_grids_and_only_norms_change_beside_them(name, bits):
    program, some = made(name), layers_of(name)[1::2]
    before = {k: v.clone() for k, v in program.module.state_dict().items()}
    twin = rounded(program, dict.fromkeys(some, bits), seen(name))
    for layer in some:
        old, new = weight_of(program, layer), weight_of(twin, layer)
        assert torch.equal(new.float(), round_weights(old.float(), bits, seen(name).moments[layer].covariance))
        assert not torch.equal(new, old) and (bits == 8 or whole_of(new, bits).abs().max() <= {4: 7, 2: 3}[bits])
    after = twin.module.state_dict()
    allowed = {f"{layer}.{what}" for layer in some for what in ("weight", "bias")}
    allowed |= {f"{norm_behind(program, layer)}.running_{what}" for layer in some for what in ("mean", "var")}
    assert {k for k in before if not torch.equal(before[k], after[k])} <= allowed
    assert all(torch.equal(before[k], v) for k, v in program.module.state_dict().items())


def norm_behind(program: Program, layer: str) -> str | None:
    node = next(n for n in program.graph.nodes if n.target == layer)
    reader = next(iter(node.users))
    return str(reader.target) if ops.is_batch_norm(program.module_of(reader)) else None


def test_it_runs_before_anything_is_folded():
    with pytest.raises(InternalError, match="RoundWeights runs on"):
        RoundWeights({FC1: 4})(family("spikformer"))
    twin = made("spikformer").copy()
    assert RoundWeights({"no.such": 4, "blocks.0.mlp.neuron1": 4})(twin).changed == []
    assert same(twin, made("spikformer"))


# means and variances


def statistics(program: Program, path: str, x: torch.Tensor, channel: int = 1):
    """``(mean, variance)`` of each channel that a module reads, and of each that it gives."""
    kept = []
    hook = program.module.get_submodule(path).register_forward_hook(lambda m, i, o: kept.append((i[0], o)))
    program.module.eval()
    program(x)
    hook.remove()
    found = []
    for side in zip(*kept, strict=True):
        flat = torch.cat([value.detach().double().movedim(channel, 0).flatten(1) for value in side], 1)
        found.append((flat.mean(1), flat.var(1, correction=0)))
    return found


@pytest.mark.parametrize(
    ("layer", "bits"),
    [
        (FC1, 4),
        (FC1, 2),
        (FC2, 8),
        ("patch_embed.positional_encoding.conv_bn.block.0", 2),
        ("blocks.0.attn.qkv_conv_bn.0.k", 2),
    ],
)
@pytest.mark.parametrize("stale", [False, True])
def test_a_norm_takes_the_new_mean_and_variance(layer, bits, stale):
    """``stale``: its statistics are not those of the calibration images, as after training or pruning."""
    program, calibration = made("spikformer").copy(), seen("spikformer")
    path = norm_behind(program, layer)
    norm = program.module.get_submodule(path)
    (mean, variance), _ = statistics(program, path, calibration.inputs)
    norm.running_mean.copy_(mean + 0.2 if stale else mean)
    norm.running_var.copy_(variance * (2 if stale else 1))
    _, want = statistics(program, path, calibration.inputs)
    raw, got = statistics(rounded(program, {layer: bits}, calibration), path, calibration.inputs)
    if bits < 8:
        assert float((raw[1] / variance - 1).abs().max()) > 0.02, "rounding had changed it"
    assert torch.allclose(got[0], want[0], atol=2e-4), float((got[0] - want[0]).abs().max())
    assert torch.allclose(got[1], want[1], rtol=4e-3)


def test_a_channel_whose_inputs_never_change_keeps_its_norm():
    """They fire at every step of these images, and not of others."""
    model = Bare(norm=True)
    with torch.no_grad():
        model.first.bias += 1e4
    program = written(model, stage=Stage.PRUNED)
    calibration = Calibration(program, *inputs_of(program))
    path = norm_behind(program, "second")
    twin = rounded(program, {"second": 2}, calibration)
    want, got = (statistics(each, path, calibration.inputs)[1] for each in (program, twin))
    assert torch.allclose(got[0], want[0], atol=1e-4)
    assert torch.allclose(twin.module.get_submodule(path).running_var, program.module.get_submodule(path).running_var)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_bias_takes_the_new_mean(bits):
    program, calibration = made("sdt"), seen("sdt")
    assert norm_behind(program, "head") is None
    twin = rounded(program, {"head": bits}, calibration)
    want, got = (statistics(each, "head", calibration.inputs, -1)[1][0] for each in (program, twin))
    moved = (weight_of(twin, "head") - weight_of(program, "head")) @ calibration.moments["head"].mean
    assert torch.allclose(got, want, atol=1e-5) and float(moved.abs().max()) > 1e-4
    assert torch.allclose(program.module.head.bias - twin.module.head.bias, moved.float(), atol=1e-6)


class Bare(nn.Module):
    """A layer with neither bias nor norm behind it, unless it is asked for, which is called ``often``."""

    def __init__(self, norm: bool = False, often: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.often, self.first, self.second = often, nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16) if norm else None
        self.lifs, self.head = nn.ModuleList(lif() for _ in range(1 + often)), nn.Linear(16, 5)
        with torch.no_grad():
            self.first.weight.copy_(6 * (self.first.weight[:1] + 0.4 * self.first.weight))  # they fire together
            self.first.bias.uniform_(0, 3)
            self.second.weight *= 8

    def forward(self, x):
        s = self.lifs[0](steps(self.first(frames(x))))
        for i in range(self.often):
            y = self.second(frames(s))
            s = self.lifs[1 + i](steps(self.norm(y) if self.norm is not None else y))
        return self.head(torch.mean(tokens(s), dim=(0, 2), keepdim=False))


def inputs_of(program: Program) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(program.input.batched(IMAGES), generator=torch.Generator().manual_seed(3))
    return x, torch.zeros(IMAGES, dtype=torch.long)


@pytest.mark.parametrize("bits", FEW)
def test_a_layer_that_cannot_shift_its_mean_is_rounded_on_uncentred_moments(bits):
    program = written(Bare(), stage=Stage.PRUNED)
    calibration = Calibration(program, *inputs_of(program))
    moments = calibration.moments["second"]
    twin = rounded(program, {"second": bits}, calibration)
    found, old = weight_of(twin, "second").float(), weight_of(program, "second").float()
    assert torch.equal(found, round_weights(old, bits, moments.products / moments.rows))
    assert not torch.equal(found, round_weights(old, bits, moments.covariance))
    assert twin.module.second.bias is None


@pytest.mark.parametrize("bits", FEW)
def test_a_layer_that_is_called_twice_is_rounded_once(bits):
    program = written(Bare(often=2), stage=Stage.PRUNED)
    twin = rounded(program, {"second": bits}, Calibration(program, *inputs_of(program)))
    whole_of(weight_of(twin, "second"), bits)


# layers without data


@pytest.mark.parametrize("bits", FEW)
def test_a_layer_that_reads_nothing_goes_to_the_nearest_and_is_named(bits):
    program = made("spikformer").copy()
    program.module.get_submodule("blocks.0.mlp.neuron1").v_threshold = 1e6
    calibration = Calibration(program, *images_of(program, IMAGES))
    twin = program.copy()
    rounding = RoundWeights({FC1: bits, FC2: bits}, calibration)
    rounding(twin)
    assert rounding.silent == [FC2]
    without = rounded(program, {FC2: bits})
    assert torch.equal(weight_of(twin, FC2), weight_of(without, FC2))
    assert torch.equal(weight_of(twin, FC2).float(), round_weights(weight_of(program, FC2).float(), bits))
    for part in ("running_mean", "running_var"):
        assert torch.equal(*(getattr(p.module.get_submodule(norm_behind(program, FC2)), part) for p in (twin, program)))
    assert not torch.equal(weight_of(twin, FC1), weight_of(rounded(program, {FC1: bits}), FC1)), "its reader knows more"


@pytest.mark.parametrize("bits", FEW)
def test_without_images_only_weights_change(bits):
    program = made("sdt")
    twin = rounded(program, dict.fromkeys(layers_of("sdt"), bits))
    changed = {k for k, v in program.module.state_dict().items() if not torch.equal(v, twin.module.state_dict()[k])}
    assert changed == {f"{layer}.weight" for layer in layers_of("sdt")}
    again = rounded(twin, dict.fromkeys(layers_of("sdt"), bits))
    for layer in layers_of("sdt"):
        assert torch.allclose(weight_of(again, layer), weight_of(twin, layer), rtol=1e-6, atol=0), "once is enough"


# the memo


def test_what_was_rounded_before_is_taken_from_the_memo(monkeypatch):
    program, calibration = made("spikformer"), seen("spikformer")
    memo: dict = {}
    first = rounded(program, {FC1: 4, FC2: 2}, calibration, memo=memo)
    assert set(memo) == {(FC1, 4), (FC2, 2)}
    plain_ = rounded(program, {FC1: 4, FC2: 4}, calibration)
    mixed = rounded(program, {FC1: 4, FC2: 4}, calibration, memo=memo)
    assert same(plain_, mixed), "other bits are another entry"
    monkeypatch.setattr("svitc.passes.quantization.round_weights.round_weights", None)  # not to be called
    assert same(rounded(program, {FC1: 4, FC2: 2}, calibration, memo=memo), first)


# what quantizing makes of it


def turned(program: Program) -> Program:
    """Half of all gains below 0, one of each norm 0, and neurons whose leak and threshold are no powers of two."""
    twin = program.copy()
    for node in twin.graph.nodes:
        module = twin.module_of(node)
        if ops.is_batch_norm(module):
            with torch.no_grad():
                module.weight[::2] *= -1
                module.weight[3] = 0
        elif ops.has_state(module) and hasattr(module, "tau"):
            module.tau, module.v_threshold = 3.0, 0.7
    return twin


@pytest.mark.parametrize(("name", "bits"), [*((name, "mixed") for name in FAMILIES), ("spikformer", 4), ("sdt", 2)])
def test_quantize_finds_the_same_whole_numbers(name, bits):
    program = turned(made(name))
    layers = layers_of(name)
    wanted = {layer: FEW[i % 2] if bits == "mixed" else bits for i, layer in enumerate(layers)}
    start = rounded(program, wanted, seen(name) if name in ("spikformer", "sdt") else None)
    folded = start.copy()
    Pipeline([QuantizeResidualStreams(), *inference_passes(), FoldNeuronScale(), QuantizeInput()])(folded)
    final, _ = quantize(start, wanted)
    streams = weights_report(final, Pipeline([])).to_json()["streams"]  # larger sums leave their scales fewer bits
    for layer, each in wanted.items():
        module = final.module.get_submodule(layer)
        whole, scale = module.weight.double().flatten(1), module.scale.double()[:, None]
        weight = weight_of(folded, layer)
        gone = weight.abs().amax(1) < 1e-20
        assert int(gone.sum()) == (norm_behind(program, layer) is not None), "a gain of 0"
        assert torch.allclose((whole * scale)[gone], torch.zeros(1).double(), atol=1e-20)
        assert torch.equal(plain(whole)[~gone], whole_of(weight_of(start, layer), each)[~gone]), layer
        off = (whole * scale - weight).abs()[~gone] / weight.abs()[~gone].clamp_min(1e-30)
        assert float(off.max()) < 2.0 ** (-6 if layer in streams else -8), "and hardly another scale"
