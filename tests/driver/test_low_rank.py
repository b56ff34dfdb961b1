"""Layers of a low rank from end to end: one convolution becomes two, in the files, replayed, and where it cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import svitc
from support.measured import digits_file, halved, prunable
from support.shell import run
from svitc import onnx as backend
from svitc.data.dataset import load_data
from svitc.driver.plan_search import pose
from svitc.driver.task import Task
from svitc.errors import InputError
from svitc.ir.channel_slicing import selection
from svitc.ir.low_rank import ranked_layers
from svitc.passes.policies import Auto, Space
from svitc.planning.budget import parse_budget
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter

SIZES = {"sweep_images": 40, "calibration_images": 30, "images": 1}


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory):
    return load_data(digits_file(tmp_path_factory.mktemp("digits"), 300), digits.input, digits.info)


class Ranked(svitc.Policy):
    """Keeps half of one group, and gives the last large convolution a quarter of its rank."""

    refit = "full"

    def plan(self, problem):
        layer, most = list(problem.ranks.items())[-1]
        half = halved(problem.program, prunable(problem.program)[-1])
        return Plan(half.keep, ranks={layer: most // 4})


@pytest.fixture(scope="module")
def ranked(digits, images):
    return svitc.compile(digits, 1.0, data=images, policy=Ranked(), **SIZES)


def test_a_plan_with_ranks_is_built_checked_and_replayed(digits, images, ranked, capsys, tmp_path):
    ((layer, rank),) = ranked.plan.ranks.items()
    layers = {name for name, _ in ranked.program.module.named_modules()}
    assert {f"{layer}.basis", f"{layer}.mix"} <= layers and ranked.verdict.passed
    assert ranked.program.module.get_submodule(f"{layer}.basis").out_channels == rank
    compiler = svitc.Compiler(digits, Ranked(), svitc.CompileOptions(data=images, **SIZES))
    program = compiler.problem().program
    _, sizes = selection(program, ranked.plan.validate(program))
    cost = compiler.problem().cost
    stored = backend.weight_bytes(ranked.onnx)
    assert cost(sizes, None, ranked.plan.ranks) - 64 <= stored <= cost(sizes, None, ranked.plan.ranks)
    assert cost(sizes) - stored > 500
    ranked.write(tmp_path / "a")
    assert json.loads((tmp_path / "a/plan.json").read_text())["ranks"] == {layer: rank}
    again = svitc.compile(digits, plan=tmp_path / "a/plan.json", data=images, **SIZES)
    assert again.onnx == ranked.onnx
    status, text, err = run(capsys, "verify", tmp_path / "a")
    assert status == 0, text + err


def test_what_is_measured_has_the_layer_whole_and_computes_the_same(digits, images, ranked):
    compiler = svitc.Compiler(digits, Ranked(), svitc.CompileOptions(data=images, **SIZES))
    whole = compiler.sweep.build(ranked.plan, "full")
    x = torch.rand(4, *digits.input.shape)
    assert torch.allclose(whole(x), ranked.program(x), atol=1e-4)
    assert set(ranked.plan.ranks) <= {name for name, m in whole.module.named_modules() if isinstance(m, nn.Conv2d)}


def test_integer_weights_and_latency_take_none(digits, images, ranked):
    with pytest.raises(InputError, match="integer weights cannot have"):
        svitc.compile(digits, plan=ranked.plan, data=images, weights="int8", **SIZES)
    both = Plan(ranked.plan.keep, ranks=ranked.plan.ranks, bits=dict.fromkeys(ranked.plan.ranks, 4))
    with pytest.raises(InputError, match="Take the bits or the ranks out of it"):
        svitc.compile(digits, plan=both, data=images, **SIZES)
    compiler = svitc.Compiler(digits, "auto", svitc.CompileOptions(data=images, **SIZES))
    prepared = compiler.workspace.prepared()
    for weights, budget, found in (("int8", "0.5", False), ("fp32", "latency=0.5", False), ("fp32", "0.5", True)):
        task = Task(prepared, parse_budget(budget), 10**6, weights, ())
        assert bool(pose(compiler.workspace, task, 10**6, "parameters", Reporter()).ranks) == found


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"head": 2}, "which can have none"),
        ({"hed": 2}, "no layer of this model\n  The closest is head"),
        ({"x": 0}, "malformed: x has 0"),
        ([3], "malformed"),
    ],
)
def test_ranks_that_do_not_fit(digits, ranks, message):
    content = {"format": "svitc-plan-1", "groups": {}, "ranks": ranks}
    with pytest.raises(InputError, match=message):
        svitc.compile(digits, plan=Plan.from_json(content), no_data="uniform")


@pytest.mark.parametrize("rank", [0, -1, "x", 5.5, True])
def test_ranks_that_are_none(digits, rank):
    plan = Plan({}, ranks={list(ranked_layers(digits))[-1]: rank})
    with pytest.raises(InputError, match="malformed"):
        svitc.compile(digits, plan=plan, images=1, no_data="uniform")


def test_a_rank_that_saves_nothing_is_said_to_be_left_out(digits):
    layer = list(ranked_layers(digits))[-1]
    report = svitc.compile(digits, plan=Plan({}, ranks={layer: 10**9}), images=1, no_data="uniform").report
    assert f"{layer} stays one layer: two of rank 1,000,000,000 would have no fewer weights" in report["decisions"]


def test_a_rank_without_images(digits):
    """The plan alone says it: the nearest weights, without a refit."""
    layer, most = list(ranked_layers(digits).items())[-1]
    done = svitc.compile(digits, plan=Plan({}, ranks={layer: most // 4}), images=1, no_data="uniform")

    assert done.verdict.passed and done.report["memory"]["ratio"] < 1


def test_what_else_takes_the_two_layers(digits, images, ranked, capsys, tmp_path):
    """Streaming, functions, fine-tuning, the report, its page and energy; and channels that go from them later."""
    ranked.write(tmp_path / "a")
    ((layer, entry),) = ranked.report["ranks"].items()
    assert entry["rank"] == ranked.plan.ranks[layer] < entry["outputs"]
    assert any(f"{layer} is stored as two convolutions" in sentence for sentence in ranked.report["decisions"])
    assert f"rank {entry['rank']} of {entry['outputs']}" in (tmp_path / "a/report.html").read_text()
    assert "1 layer of a low rank" in repr(ranked.plan)
    for change in ({"streaming": True}, {"functions": True}, {"finetune": 1, "train_data": images}):
        done = svitc.compile(digits, plan=ranked.plan, **{"data": images, **SIZES, **change})
        assert done.verdict.passed and f"{layer}.basis" in dict(done.program.module.named_modules()), change
    status, text, err = run(capsys, "energy", tmp_path / "a", "--data", digits_file(tmp_path, 20), "--json")
    assert status == 0, err
    assert f"{layer}.basis" in text
    status, text, err = run(
        capsys, "compile", tmp_path / "a", "--budget", "0.7", "--no-data", "uniform", "-o", tmp_path / "b"
    )
    assert status == 0, err
    layers = dict(svitc.load(tmp_path / "b").module.named_modules())
    assert layers[f"{layer}.basis"].out_channels < entry["rank"]


def test_no_low_rank(digits, images):
    compiler = svitc.Compiler(digits, "auto", svitc.CompileOptions(data=images, **SIZES))
    problem = compiler.problem(10**6)
    names = [choice.name for choice in Space(problem.program, Auto(criterion="l2"), None, None, problem.ranks).choices]
    plain = Space(problem.program, Auto(criterion="l2", low_rank=False), None, None, problem.ranks).choices
    assert [name for name in names if "rank" in name] and not [c.name for c in plain if "rank" in c.name]
    total = problem.program.parameter_count()
    for layer in problem.ranks:
        assert problem.program.module.get_submodule(layer).weight.numel() >= 0.05 * total
