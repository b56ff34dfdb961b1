"""Low ranks: the nearest weights of a rank, with and without images, and one convolution as two."""

from __future__ import annotations

import pytest
import torch

from support.measured import family, halved, images_of, prunable
from svitc.analysis.calibration import Calibration
from svitc.ir.low_rank import factors, nearest, ranked_layers, saves
from svitc.passes import LowRank, Prune, RefitConsumers, SplitLowRank
from svitc.planning.plan import Plan


def test_no_matrix_of_a_rank_is_nearer():
    torch.manual_seed(0)
    weight, root = torch.randn(7, 12).double(), torch.randn(12, 12).double()
    covariance, scale = root @ root.T, torch.rand(7).double() + 0.1

    def error(other: torch.Tensor) -> float:
        miss = scale[:, None] * (weight - other)
        return float(torch.trace(miss @ covariance @ miss.T))

    found = nearest(weight, 3, covariance, scale)
    assert torch.linalg.matrix_rank(found) == 3
    values = torch.linalg.svdvals(scale[:, None] * weight @ root)
    assert error(found) == pytest.approx(float(values[3:].square().sum()))  # Eckart and Young
    left, right = factors(found, 3)
    assert left.shape == (7, 3) and right.shape == (3, 12) and torch.allclose(left @ right, found)
    assert torch.allclose(nearest(weight, 3), torch.matmul(*factors(weight, 3)))


@pytest.mark.parametrize("name", ["spikformer", "sdt", "qkformer-token", "maxformer-cifar"])
def test_two_layers_compute_what_one_did(name):
    program = family(name)
    ranks = {layer: max(1, most // 3) for layer, most in ranked_layers(program).items()}
    assert len(ranks) > 2
    x, _ = images_of(program, 3)
    copy = program.copy()
    Prune(Plan({}))(copy)
    assert sorted(LowRank(ranks)(copy).changed) == sorted(ranks)
    before, parameters = copy(x), copy.parameter_count()
    assert not torch.allclose(before, program(x))
    assert len(SplitLowRank(ranks)(copy).changed) == len(ranks)
    assert torch.allclose(copy(x), before, atol=1e-4) and copy.parameter_count() < parameters
    assert not SplitLowRank(ranks)(copy).changed, "nothing is left to split"


def test_what_two_layers_would_not_make_smaller_stays_whole():
    program = family("spikformer")
    layer, most = list(ranked_layers(program).items())[-1]
    weight = program.module.get_submodule(layer).weight.flatten(1)
    assert not saves(most, *weight.shape)
    copy = program.copy()
    Prune(Plan({}))(copy)
    assert not LowRank({layer: most})(copy).changed
    assert list(SplitLowRank({layer: most})(copy).refused.values()) == ["one layer is no larger than two"]


def gain_behind(program, layer: str) -> torch.Tensor:
    """The factors of the batch norm that reads a layer."""
    node = next(node for node in program.graph.nodes if str(node.target) == layer)
    norm = program.module_of(next(iter(node.users)))
    return (norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).detach().double()


@pytest.mark.parametrize("name", ["spikformer", "sdt"])
def test_images_make_a_rank_cost_less(name):
    """The outputs of a layer that also lost inputs differ less than with the nearest weights, on calibration images."""
    program = family(name, T=4)
    x, y = images_of(program, 24)
    layer, most = list(ranked_layers(program).items())[1]
    reads = next(g for g in prunable(program) if any(m.module == layer and not m.produces for m in g.members))
    plan = Plan(halved(program, reads, 0.75).keep, ranks={layer: most // 4})
    calibration = Calibration(program, x, y)
    solved, plain = program.copy(), program.copy()
    for copy in (solved, plain):
        Prune(plan)(copy)
    full = RefitConsumers(program, Plan(plan.keep), calibration)
    full(plain)
    LowRank(plan.ranks)(plain)
    RefitConsumers(program, plan, calibration)(solved)
    weights = [copy.module.get_submodule(layer).weight.detach().flatten(1).double() for copy in (solved, plain)]
    assert [int(torch.linalg.matrix_rank(weight, rtol=1e-4)) for weight in weights] == [most // 4] * 2
    mask = plan.keep[reads.name].reshape(-1)
    original = program.module.get_submodule(layer).weight.detach().double()
    covariance = calibration.smoothed[layer].covariance
    gain, errors = gain_behind(program, layer), []
    for copy in (solved, plain):
        missing = original.clone()
        missing[:, torch.from_numpy(mask)] -= copy.module.get_submodule(layer).weight.detach().double()
        miss = gain[:, None] * missing.flatten(1)
        errors.append(float(torch.trace(miss @ covariance @ miss.T)))
    assert errors[0] < errors[1]
