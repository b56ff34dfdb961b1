"""Policies of bits on a sweep that answers from a formula, so that every step is known; and from the shell."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support.measured import IMAGES, digits_file, family
from support.paths import DIGITS
from support.shell import run
from svitc.driver.compiler import Compiler
from svitc.driver.options import CompileOptions
from svitc.errors import BudgetError, UsageError
from svitc.evaluation.evaluator import Measurement
from svitc.ir import ops
from svitc.ir.layer_roles import blocks, layer_kinds, stages
from svitc.passes.policies import Problem, make
from svitc.passes.policies.auto import Auto
from svitc.passes.policies.bitwidth.aq4svit import levels
from svitc.passes.policies.bitwidth.search_space import BitSettings, BitSpace

BY_BITS = ("qsvit", "aq-greedy", "aq-beam")
SMALL = ("--sweep-images", "20", "--calibration-images", "20", "-T", "1")  # one step: an int8 file takes each in turn


@functools.cache
def compiler() -> Compiler:
    return Compiler(family("spikformer", depths=2), None, CompileOptions(weights="mixed", no_data="uniform"))


@dataclass
class Formula:
    """A sweep that answers from a formula on bits.

    Attributes:
        drop: share lost by a setting.
        asked: (setting, stage) of every full measurement; glanced, drifted: how many of the others.
    """

    drop: Callable[[dict[str, int]], float]
    noise: float = 0.0
    seconds_each: float = 0.1

    def __post_init__(self) -> None:
        self.asked: list[tuple[dict[str, int], str]] = []
        self.glanced = self.drifted = 0
        self.original = self.point({})

    def point(self, bits, images: int = IMAGES) -> Measurement:
        lost = round(self.drop(bits) * images)
        return Measurement(
            round(0.9 * images) - lost, images, max(lost, 0), max(-lost, 0), 1.0, self.drop(bits), self.drop(bits)
        )

    def pending(self, plans, refit) -> int:
        return len(plans)

    def __call__(self, plans, refit="none", stage="sweep"):
        for plan in plans:
            plan.validate(compiler().program)
            self.asked.append((plan.bits, stage))
        return [self.point(plan.bits) for plan in plans]

    def glance(self, plan, images):
        self.glanced += 1
        return self.point(plan.bits, images)

    def drift(self, plan) -> float:
        self.drifted += 1
        return 0.1 + self.drop(plan.bits)


def problem(formula: Formula, max_drop: float | None = None, keep: float | None = None) -> Problem:
    found = compiler().problem(weights="mixed")
    found.measuring, found.max_drop = (lambda: formula), max_drop
    found.limit = None if keep is None else int(keep * found.cost())
    return found


def additive(weak: tuple[str, ...] = (), each: float = 0.0004, much: float = 0.02) -> Callable[[dict[str, int]], float]:
    """Hardly anything costs, but the layers that are named; two bits cost four times what four do."""

    def drop(bits):
        return sum(
            {8: 0, 4: 1, 2: 4}[b] * (much if any(w in layer for w in weak) else each) for layer, b in bits.items()
        )

    return drop


def test_only_layers_of_bytes_may_have_fewer_bits():
    allowed = problem(Formula(additive())).bits
    layers = {
        str(n.target) for n in compiler().program.graph.nodes if ops.is_projection(compiler().program.module_of(n))
    }
    assert allowed is not None and set(allowed) < layers and len(allowed) >= len(layers) - 2
    assert "patch_embed.stages.0.conv_bn.block.0" not in allowed, "the image is no bytes"
    assert set(map(tuple, allowed.values())) == {(2, 4, 8)}


def test_cost_is_what_bits_store():
    found = problem(Formula(additive()))
    layer = next(iter(found.bits))
    own = found.cost.of(layer)
    assert own == compiler().program.module.get_submodule(layer).weight.numel()
    for bits in (4, 2):
        assert found.cost() - found.cost(bits={layer: bits}) == own - -(-own * bits // 8)


# ---------------------------------------------------------------- qsvit


def test_qsvit_steps():
    """Each layer and kind alone; base settings by kind; then layer by layer, the cheapest first, never outside."""
    formula = Formula(additive(("mlp.fc2",), each=1e-5, much=0.01))
    asked = problem(formula, 0.021)
    plan = make("qsvit").plan(asked)
    space = BitSpace(asked, make("qsvit"))
    first = [bits for bits, stage in formula.asked if stage == "qsvit: each layer and kind"]
    units = {frozenset(k for k, b in bits.items() if b < 8) for bits in first}
    assert {frozenset([layer]) for layer in space.layers} <= units
    for kind in set(space.kinds.values()):
        assert frozenset(n for n in space.layers if space.kinds[n] == kind) in units
    base = plan.provenance["base"]
    assert base["query"] == 2 and base["mlp"] == 4, "2 bits in both fc2 lose 8 points, 4 bits lose 2"
    guided = [bits for bits, stage in formula.asked if "layer by layer" in stage]
    assert guided and formula.drop(plan.bits) <= 0.021
    assert all(b <= base[space.kinds[layer]] for layer, b in plan.bits.items()), "downwards from the base settings"
    for layer, b in plan.bits.items():
        if b > 2:
            lower = plan.bits | {layer: b // 2}
            assert formula.drop(lower) > 0.021, f"{layer} could go lower"


def test_qsvit_raises_kinds_that_are_too_much_together():
    formula = Formula(lambda bits: 0.02 * len({k for k, b in bits.items() if b < 8 and "attn" in k}))
    asked = problem(formula, 0.021)
    asked.bits = {k: v for k, v in asked.bits.items() if ".attn." in k and "blocks.0" in k}
    plan = make("qsvit").plan(asked)
    assert plan.provenance["base"].keys() == {"query", "key", "value", "projection"}
    assert sorted(plan.provenance["base"].values()) == [2, 8, 8, 8]
    assert formula.drop(plan.bits) <= 0.021


# ---------------------------------------------------------------- aq


@pytest.mark.parametrize("name", BY_BITS)
def test_a_harmless_network_goes_to_two_bits_everywhere(name):
    formula = Formula(lambda bits: 0.0)
    assert set(make(name).plan(problem(formula, 0.015)).bits.values()) == {2}


@pytest.mark.parametrize("name", BY_BITS)
def test_a_ladder_of_settings_goes_down_step_by_step(name):
    formula = Formula(additive(("mlp.fc2",), each=0.0004, much=0.01))
    asked = problem(formula, 0.02)
    ladder = make(name).ladder(asked)
    costs = [asked.cost(bits=plan.bits) for plan in ladder]
    assert costs == sorted(set(costs), reverse=True) and len(ladder) > 2
    drops = [formula.drop(plan.bits) for plan in ladder]
    assert drops[0] <= 0.05 * 0.02 and 0.5 * 0.02 < drops[-1] <= 0.02 + 1e-9
    assert {plan.provenance["policy"] for plan in ladder} == {name}


def test_levels_are_nested_and_largest_first():
    space = BitSpace(problem(Formula(additive())), make("aq-greedy"))
    found = levels(space)
    assert list(found) == ["network", "stages", "blocks", "layers"]
    assert found["network"] == [space.layers]
    for units in found.values():
        sizes = [sum(space.problem.cost.of(layer) for layer in unit) for unit in units]
        assert sizes == sorted(sizes, reverse=True)
    every = [tuple(unit) for units in found.values() for unit in units]
    assert len(every) == len(set(every)) and {(layer,) for layer in space.layers} <= set(every)


def test_greedy_keeps_what_is_weak_and_lowers_the_rest():
    weak = ("stages.1", "blocks.1.attn.proj")
    formula = Formula(additive(weak, each=0.0001))
    plan = make("aq-greedy").plan(problem(formula, 0.015))
    assert formula.drop(plan.bits) <= 0.015
    assert all(b == (8 if any(w in layer for w in weak) else 2) for layer, b in plan.bits.items())


@pytest.mark.parametrize(
    ("weak", "times"),
    [(("stages.1", "blocks.1.attn.proj"), 3), (("mlp.fc2",), 3), (("blocks.0",), 1.5), (("patch_embed",), 1.5)],
)
def test_the_gate_saves_measurements_and_loses_nothing(weak, times):
    """Most where single layers are weak; where a whole block is, there is little to save."""
    gated, plain = Formula(additive(weak, each=0.0001)), Formula(additive(weak, each=0.0001))
    ours = problem(gated, 0.015)
    with_gate = make("aq-greedy").plan(ours)
    without = make("aq-greedy", gate=False).plan(problem(plain, 0.015))
    assert ours.cost(bits=with_gate.bits) <= ours.cost(bits=without.bits)
    assert plain.glanced == plain.drifted == 0
    search = with_gate.provenance["search"]
    assert search["full_evaluations"] * times <= without.provenance["search"]["full_evaluations"]
    assert search["full_evaluations"] == len({tuple(b.values()) for b, stage in gated.asked if "the plan" not in stage})


def test_a_mini_batch_that_lies_is_caught_by_all_images():
    """What looks harmless on few images and in its drift is still not kept where all images say no."""

    class Rosy(Formula):
        def glance(self, plan, images):
            return self.point({}, images)

        def drift(self, plan):
            return 0.1

    formula = Rosy(additive(("blocks.1",), each=0.0001))
    plan = make("aq-greedy").plan(problem(formula, 0.015))
    assert formula.drop(plan.bits) <= 0.015
    assert all(b == 2 for layer, b in plan.bits.items() if "blocks.1" not in layer)


def test_beam_is_no_worse_than_greedy():
    """Two weak layers of which greedy takes the larger, and pays for it."""
    sizes = {layer: compiler().problem(weights="mixed").cost.of(layer) for layer in problem(Formula(additive())).bits}

    def drop(bits):
        return sum({8: 0, 4: 0.5, 2: 1}[b] * 2e-7 * sizes[layer] ** 1.2 for layer, b in bits.items())

    asked = problem(Formula(drop), 0.004)
    greedy, beam = make("aq-greedy").plan(asked), make("aq-beam").plan(problem(Formula(drop), 0.004))
    assert drop(beam.bits) <= 0.004 + 0.5 / IMAGES and asked.cost(bits=beam.bits) <= asked.cost(bits=greedy.bits)
    assert beam.provenance["width"] == 3


# ---------------------------------------------------------------- all


@pytest.mark.parametrize("name", BY_BITS)
def test_a_budget_ends_the_search(name):
    formula = Formula(additive(each=0.00001))
    asked = problem(formula, None, 0.75)
    plan = make(name).plan(asked)
    assert asked.cost(bits=plan.bits) <= asked.limit
    for layer, bits in plan.bits.items():  # nothing more fits
        assert bits == 8 or asked.cost(bits=plan.bits | {layer: 8}) > asked.limit, layer


@pytest.mark.parametrize("name", BY_BITS)
def test_what_cannot_be_met_is_refused(name):
    lossy = Formula(lambda bits: 0.5 if any(b < 8 for b in bits.values()) else 0.0)
    with pytest.raises(BudgetError, match="keeps .* bytes, not the"):
        make(name).plan(problem(lossy, 0.01, 0.6))
    with pytest.raises(BudgetError, match="8 bits in every layer lose 50.0 points"):
        make(name).plan(problem(Formula(lambda bits: 0.5), 0.01))
    without = problem(lossy)
    without.measuring = None
    with pytest.raises(UsageError, match="labelled images|measures accuracy"):
        make(name).plan(without)
    with pytest.raises(UsageError, match="prunes no channels"):
        make(name, include=["*mlp*"]).plan(problem(lossy, 0.01))


def test_the_joint_policy_takes_bits_where_they_are_cheap_and_channels_where_those_are():
    def drop_of(channels: float, bits: float):
        class Both(Formula):
            def point(self, plan, images=IMAGES):
                cut = sum(1 - float(m.mean()) for m in plan.keep.values()) if plan else 0.0
                low = sum({8: 0, 4: 1, 2: 3}[b] for b in plan.bits.values()) if plan else 0
                value = channels * cut + bits * low
                return Measurement(9000 - round(value * images), images, round(value * images), 0, 1.0, value)

            def __post_init__(self):
                self.asked, self.original = [], self.point(None)

            def __call__(self, plans, refit="none", stage="sweep"):
                return [self.point(plan) for plan in plans]

        return Both(lambda bits: 0.0)

    kept = []
    for channels, bits in ((0.05, 1e-5), (1e-4, 0.01)):
        asked = problem(drop_of(channels, bits), None, 0.4)
        plan = Auto(criterion="l2", refit="none").plan(asked)
        sizes = {
            id(g.axis): int(mask.sum(axis=1).max())
            for g in asked.program.groups
            for mask in [plan.validate(asked.program)[g.name]]
        }
        assert 0.95 * asked.limit < asked.cost(sizes, plan.bits) <= asked.limit
        kept.append((sum(float(m.mean()) < 1 for m in plan.keep.values()), sum(b < 8 for b in plan.bits.values())))
    assert kept[0][0] < kept[1][0] and kept[0][1] > kept[1][1]
    assert kept[1][1] == 0


def test_units_of_layers():
    program = compiler().program
    layers = [str(n.target) for n in program.graph.nodes if ops.is_projection(program.module_of(n))]
    found = layer_kinds(program.module, layers)
    assert found["blocks.0.attn.qkv_conv_bn.0.q"] == "query" and found["blocks.1.attn.qkv_conv_bn.0.v"] == "value"
    assert found["blocks.1.attn.proj_conv_bn.0"] == "projection" and found["head"] == "head"
    assert {found[n] for n in layers if n.startswith("patch_embed")} == {"patch embedding"}
    assert {found[n] for n in layers if ".mlp." in n} == {"mlp"}
    assert [len(unit) for unit in stages(layers)] == [5, 12, 1]
    assert [len(unit) for unit in blocks(layers)][-3:] == [6, 6, 1]


def test_layers_with_names_of_their_own_are_placed_by_where_they_stand():
    program = compiler().program
    first, *_ = [str(n.target) for n in program.graph.nodes if ops.is_projection(program.module_of(n))]
    assert layer_kinds(program.module, [first]) == {first: "patch embedding"}


# ---------------------------------------------------------------- from the shell


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return digits_file(tmp_path_factory.mktemp("data"), 60)


def test_sensitivity_of_bits(capsys, tmp_path, data):
    out = tmp_path / "s.json"
    args = (
        "sensitivity",
        DIGITS,
        "--data",
        data,
        *SMALL,
        "-o",
        out,
        "--bits",
        "--exclude",
        "*mlp*",
        "--exclude",
        "blocks.0*",
    )
    status, text, err = run(capsys, *args)
    assert status == 0 and "evaluations" in err
    report = json.loads(out.read_text())
    names = [row["name"] for row in report["layers"]]
    assert names and not any("mlp" in name or "blocks.0" in name for name in names)
    assert {row["name"] for row in report["kinds"]} >= {"query", "key", "value", "patch embedding"}
    for row in (*report["layers"], *report["kinds"]):
        assert [step["bits"] for step in row["steps"]] == [4, 2]
        four, two = (step["bytes"] for step in row["steps"])
        whole = report["all_at_8"]["bytes"]
        assert whole - four == pytest.approx(row["bytes_at_8"] / 2, abs=row["layers"])
        assert whole - two == pytest.approx(row["bytes_at_8"] * 3 / 4, abs=row["layers"])
        line = next(line for line in text.splitlines() if line.startswith(row["name"]))
        assert all(f"{100 * s['drop']:.1f} {s['saved']:.1%}" in line for s in row["steps"])
    assert run(capsys, *args, "--resume")[0] == 0


@pytest.mark.parametrize("name", BY_BITS)
def test_compile(capsys, tmp_path, data, name):
    out = tmp_path / "out"
    args = (
        "compile",
        DIGITS,
        "--data",
        data,
        *SMALL,
        "--policy",
        name,
        "--max-drop",
        "20",
        "--exclude",
        "*fc1*",
        "--exclude",
        "*attn*",
        "--verify-images",
        "1",
        "--json",
    )
    status, text, _ = run(capsys, *args, "-o", out)
    assert status == 0
    report = json.loads(text)
    bits = {layer: each["bits"] for layer, each in report["weights"]["layers"].items()}
    assert report["weights"]["type"] == "mixed" and 2 in bits.values()
    assert all(b == 8 for layer, b in bits.items() if "fc1" in layer)
    assert report["policy"]["policy"] == name and report["policy"]["rounding"] == "calibrated"
    assert report["verify"]["status"] == "passed" and report["energy"]["saved"]["total"] > 0
    plan = json.loads((out / "plan.json").read_text())
    assert all(bits[layer] == b for layer, b in plan["bits"].items())
    again = tmp_path / "again"
    replay = ("compile", DIGITS, "--data", data, *SMALL, "--plan", out / "plan.json", "--verify-images", "1")
    assert run(capsys, *replay, "-o", again)[0] == 0
    assert (again / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_a_small_budget_takes_channels_and_bits(capsys, tmp_path, data):
    args = (
        "compile",
        DIGITS,
        "--data",
        data,
        *SMALL,
        "--budget",
        "0.1",
        "--include",
        "blocks.0.mlp.*",
        "--verify-images",
        "1",
        "--json",
        "-o",
        tmp_path / "o",
    )
    status, text, _ = run(capsys, *args)
    report = json.loads(text)
    assert status == 0 and report["weights"]["type"] == "mixed" and 0.097 < report["memory"]["ratio"] <= 0.1
    assert any("take both" in sentence for sentence in report["decisions"])


BAD = {
    "a policy of bits without images": (("--policy", "qsvit"), 2, "measures accuracy"),
    "bits that ONNX lacks": (("--weights", "int3"), 2, "8, 4 and 2"),
    "a storage type that ONNX lacks": (("--weights", "int4", "--narrowest", "3"), 2, "ONNX Runtime 1.24"),
    "a policy of bits and one type": (("--policy", "qsvit", "--weights", "int8"), 2, "Leave --weights int8 out"),
    "mixed without a policy that mixes": (("--weights", "mixed"), 2, "qsvit"),
    "an excluded layer that is not there": (
        ("--weights", "int4", "--exclude", "blocks.0.mlp.fc3"),
        2,
        "blocks.0.mlp.fc",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, tmp_path, case):
    args, wanted, said = BAD[case]
    status, _, err = run(capsys, "compile", DIGITS, "--no-data", "uniform", *args, "-o", tmp_path / "out")
    assert status == wanted and said in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_settings_are_in_the_plan():
    assert BitSettings(exclude=["a"], seed=3).to_json() == {"exclude": ["a"], "seed": 3}
