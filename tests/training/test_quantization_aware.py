"""Training of rounded weights: on their grids while the network runs, real between steps, on them again at the end."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from support.finetuned import OPTIONS, Blobs, finetune, halved, same, small, weights_of
from svitc.errors import InputError
from svitc.ir.pass_manager import Pipeline
from svitc.passes import FoldNeuronScale, QuantizeInput, RoundWeights
from svitc.passes.pipelines import inference_passes, quantize
from svitc.quantization.weight_grid import nearest, scales
from svitc.training.finetune import _Run
from svitc.training.quantization_aware import FakeQuantizedWeights

BITS = {
    "patch_embed.stages.1.conv_bn.block.0": 4,
    "blocks.0.attn.qkv_conv_bn.0.q": 2,
    "blocks.0.attn.proj_conv_bn.0": 8,
    "blocks.0.mlp.fc1.0": 2,
    "blocks.0.mlp.fc2.0": 4,
}


@pytest.fixture(scope="module")
def teacher():
    return small()


@pytest.fixture(scope="module")
def student(teacher):
    """Pruned and rounded."""
    twin = halved(teacher)
    RoundWeights(BITS)(twin)
    return twin


def weight_of(program, layer: str) -> torch.Tensor:
    return program.module.get_submodule(layer).weight.detach().flatten(1).double()


def steps_off(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> float:
    """How far weights are from the grid of these scales, in steps."""
    return float((weight / scale[:, None] - nearest(weight / scale[:, None], bits)).abs().max())


# the context


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.free = nn.Conv2d(3, 6, 3), nn.Linear(8, 5), nn.Linear(5, 5)


@pytest.fixture
def two():
    """A module whose weights lie on grids, what keeps them there, and the scales."""
    module, bits = Two(), {"conv": 2, "linear": 4}
    found = {}
    with torch.no_grad():
        for name, each in bits.items():
            weight = module.get_submodule(name).weight
            found[name] = scales(weight.flatten(1).double(), each)
            scale = found[name].view(-1, *[1] * (weight.ndim - 1))
            weight.copy_(nearest(weight.double() / scale, each) * scale)
    return module, bits, found, FakeQuantizedWeights(module, bits)


def test_weights_are_on_the_grid_within_and_real_outside(two):
    module, bits, found, rounded = two
    with rounded():
        for name, each in bits.items():
            assert steps_off(module.get_submodule(name).weight.detach().flatten(1).double(), found[name], each) < 1e-5
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with rounded():
        for name, each in bits.items():
            weight = module.get_submodule(name).weight.detach().flatten(1).double()
            assert steps_off(weight, found[name], each) < 1e-5, "of the scales that they began with"
            real = before[f"{name}.weight"].flatten(1).double()
            assert torch.allclose(weight, nearest(real / found[name][:, None], each) * found[name][:, None], atol=1e-6)
            assert not torch.allclose(weight, real, atol=0.01)
        for name in ("conv.bias", "linear.bias", "free.weight", "free.bias"):
            assert torch.equal(module.state_dict()[name], before[name])
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_also_when_the_body_raises(two):
    module, _, _, rounded = two
    with torch.no_grad():
        module.conv.weight += 0.05
    before = module.conv.weight.clone()
    with pytest.raises(ZeroDivisionError), rounded():
        assert not torch.equal(module.conv.weight, before)
        raise ZeroDivisionError
    assert torch.equal(module.conv.weight, before)


def test_gradients_are_those_of_the_rounded_weights_and_move_the_real_ones(two):
    module, bits, found, rounded = two
    with torch.no_grad():
        module.linear.weight += 0.1
    real = module.linear.weight.clone()
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    with rounded():
        y = module.linear(x)
        inside = module.linear.weight.detach().clone()
        y.square().sum().backward()
    want = 2 * (x @ inside.T + module.linear.bias).T @ x
    assert torch.allclose(module.linear.weight.grad, want, rtol=1e-4, atol=1e-4)
    optimizer.step()
    assert torch.allclose(module.linear.weight, real - 0.01 * want, atol=1e-5)
    assert steps_off(module.linear.weight.detach().double(), found["linear"], bits["linear"]) > 0.01


def test_nothing_is_rounded_where_no_layer_has_bits():
    module = Two()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with FakeQuantizedWeights(module, {})():
        assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


# fine-tuning


@pytest.fixture(scope="module")
def tuned(student, teacher):
    return finetune(student, teacher, Blobs(), **{**OPTIONS, "distil": 0.0, "epochs": 4, "lr": 2e-2}, bits=BITS)


def test_weights_that_learnt_lie_on_their_first_grids(student, tuned):
    report = json.loads(json.dumps(tuned.report))
    assert report["chosen_epoch"] > 0, "it learnt"
    moved = 0
    for layer, bits in BITS.items():
        scale = scales(weight_of(student, layer), bits)
        before, after = weight_of(student, layer) / scale[:, None], weight_of(tuned.program, layer) / scale[:, None]
        assert steps_off(weight_of(tuned.program, layer), scale, bits) < 1e-4, layer
        changed = (before.round() != after.round()).float().mean()
        moved += int(changed > 0.005)
    assert moved >= 3, "whole numbers changed"
    before, after = weights_of(student), weights_of(tuned.program)
    for name in ("blocks.0.mlp.fc1.1.weight", "blocks.0.attn.qkv_conv_bn.0.k.weight", "head.weight"):
        assert not torch.equal(before[name], after[name]), "all else learns as ever"


def test_every_step_and_every_judgement_runs_on_whole_numbers(student, teacher, monkeypatch):
    seen = {"_step": [], "_judge": []}
    grids = {layer: scales(weight_of(student, layer), bits) for layer, bits in BITS.items()}
    real = {what: getattr(_Run, what) for what in seen}

    def spied(what: str):
        def spy(self, *args):
            weights = {layer: self.trained.get_submodule(layer).weight.detach().flatten(1).double() for layer in BITS}
            if args[0] is not self.teacher:
                seen[what].append(max(steps_off(weights[layer], grids[layer], bits) for layer, bits in BITS.items()))
            return real[what](self, *args)

        return spy

    for what in seen:
        monkeypatch.setattr(_Run, what, spied(what))
    done = finetune(student, teacher, Blobs(), **{**OPTIONS, "epochs": 2}, bits=BITS)
    assert len(seen["_step"]) == 2 * (done.report["images"] // OPTIONS["batch"]) and len(seen["_judge"]) == 3
    assert max(seen["_step"] + seen["_judge"]) < 1e-3, seen


def test_it_is_never_worse_than_its_start(student, teacher, tuned):
    report = tuned.report
    accuracies = [epoch["accuracy"] for epoch in report["history"]]
    assert report["best_accuracy"] == max([report["start_accuracy"], *accuracies]) and len(accuracies) == 4
    losses = [epoch["loss"] for epoch in report["history"]]
    assert losses[-1] < 0.9 * losses[0]
    torn = finetune(student, teacher, Blobs(), **{**OPTIONS, "epochs": 1, "lr": 30.0, "distil": 1.0}, bits=BITS)
    assert torn.report["best_accuracy"] >= torn.report["start_accuracy"]
    if torn.report["chosen_epoch"] == 0:
        for name, value in weights_of(torn.program).items():
            assert torch.allclose(value, weights_of(student)[name], rtol=1e-6, atol=1e-9), name


def test_the_network_that_is_written_is_the_one_that_was_judged(tuned):
    """Quantizing finds the whole numbers that training left, so that each layer keeps its bits."""
    final, _ = quantize(tuned.program, BITS)
    folded = tuned.program.copy()
    Pipeline([*inference_passes(), FoldNeuronScale(), QuantizeInput()])(folded)
    for layer in BITS:
        module, weight = final.module.get_submodule(layer), weight_of(folded, layer)
        found = module.weight.double().flatten(1) * module.scale.double()[:, None]
        off = 0 if BITS[layer] < 8 else float(weight.abs().max()) / 127
        assert torch.allclose(found, weight, rtol=2.0**-8, atol=off), layer


def test_resumed_runs_end_in_the_same_weights(student, teacher, tmp_path):
    options = {**OPTIONS, "epochs": 2, "bits": BITS}
    whole = finetune(student, teacher, Blobs(), **options, checkpoint=tmp_path / "whole.pt")
    assert not same(weights_of(whole.program), weights_of(student))

    class Killed(Exception):
        pass

    file = tmp_path / "part.pt"
    first = whole.report["images"] // 16 * 16

    def kill(stage, done, of):
        if stage == "finetune" and done > first + 20:
            raise Killed

    with pytest.raises(Killed):
        finetune(student, teacher, Blobs(), **options, checkpoint=file, progress=kill)
    state = torch.load(file, weights_only=True)
    assert state["epoch"] == 1 and state["inputs"]["bits"] == BITS
    for layer, bits in BITS.items():
        scale = scales(weight_of(student, layer), bits)
        weight = state["weights"][f"{layer}.weight"].flatten(1).double()
        assert steps_off(weight, scale, bits) > 1e-3, "real numbers go on, not rounded ones"
        assert steps_off(state["best"][f"{layer}.weight"].flatten(1).double(), scale, bits) < 1e-4
    resumed = finetune(student, teacher, Blobs(), **options, checkpoint=file, resume=True)
    assert same(weights_of(resumed.program), weights_of(whole.program))
    last = [torch.load(path, weights_only=True)["weights"] for path in (file, tmp_path / "whole.pt")]
    assert same(*last)
    for other in ({**BITS, "blocks.0.mlp.fc1.0": 4}, {"blocks.0.mlp.fc1.0": 2}, None):
        with pytest.raises(InputError, match="bits was .*, now") as refused:
            finetune(student, teacher, Blobs(), **{**options, "bits": other}, checkpoint=file, resume=True)
        assert "--resume" in refused.value.hint
    turned = dict(reversed(BITS.items()))
    finetune(student, teacher, Blobs(), **{**options, "bits": turned}, checkpoint=file, resume=True)
