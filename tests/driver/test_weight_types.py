"""Bits in plans, and weights of one type: what is written down, replayed, reported and refused."""

from __future__ import annotations

import functools
import json

import numpy as np
import onnx
import pytest
import torch

import svitc
from support.families import FAMILIES
from support.measured import family, family_file
from svitc import onnx as backend
from svitc import runtimes
from svitc.analysis.exactness import narrowable
from svitc.cli.views.compile import lossless
from svitc.data.dataset import load_data
from svitc.data.inputs import random_inputs
from svitc.driver import synthetic_data
from svitc.driver.artifacts import Compiled
from svitc.driver.weight_types import WeightTypes
from svitc.errors import InputError, UnsupportedError, UsageError
from svitc.html_report.facts import weight_words
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.ir.quantized_modules import TERNARY
from svitc.passes.pipelines import quantize
from svitc.passes.policies import make
from svitc.planning.plan import FORMAT, Plan

FC1, FC2, PROJ = "blocks.0.mlp.fc1.0", "blocks.0.mlp.fc2.0", "blocks.0.attn.proj_conv_bn.0"
STAGE0, STAGE1 = (f"patch_embed.stages.{i}.conv_bn.block.0" for i in range(2))  # STAGE0 reads the image
SPARED = f"{STAGE1} keeps 8 bits: what the first layers get wrong passes through all others"
FEW = {"sweep_images": 12, "calibration_images": 12}


@functools.cache
def program() -> Program:
    """Not to be changed."""
    return family("spikformer")


@functools.cache
def layers() -> dict[str, str]:
    return narrowable(quantize(program())[0])


@functools.cache
def compiled(weights: str) -> Compiled:
    return svitc.compile(program(), weights=weights, images=1, no_data="uniform")


@functools.cache
def images(tmp):
    return load_data(family_file(program(), tmp, 40), program().input, program().info)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return images(tmp_path_factory.mktemp("images"))


def again(plan: Plan) -> Plan:
    """Written and read."""
    return Plan.from_json(json.loads(json.dumps(plan.to_json())))


# plans


def test_bits_are_written_and_read(tmp_path):
    mask = np.array([[True, False], [True, True]])
    plan = Plan({"g": mask}, {"policy": "x"}, {"a": 8, "b": 4, "c": 2, "d": TERNARY})
    found = again(plan)
    assert found.bits == plan.bits and found.provenance == plan.provenance and np.array_equal(found.keep["g"], mask)
    assert found.to_json() == plan.to_json() and plan.to_json()["bits"] == {"a": 8, "b": 4, "c": 2, "d": "ternary"}
    assert "bits" not in Plan({"g": mask}).to_json() and again(Plan({"g": mask})).bits == {}
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.bits == plan.bits
    loaded.bits["a"] = 2
    assert plan.bits["a"] == 8


@pytest.mark.parametrize(
    "bits",
    [
        {"a": 3},
        {"a": 1},
        {"a": "binary"},
        {"a": 32},
        {"a": 0},
        {"a": -4},
        {"a": "4"},
        {"a": 4.0},
        {"a": True},
        {"a": None},
        {"a": [4]},
        {"a": 4, "b": 1},
        [["a", 4]],
        "a: 4",
        4,
        True,
    ],
    ids=str,
)
def test_malformed_bits(bits):
    with pytest.raises(InputError, match="the plan's bits are malformed") as refused:
        Plan.from_json({"format": FORMAT, "groups": {}, "bits": bits})
    assert "16, 8, 4, 2, ternary" in refused.value.hint


@pytest.mark.parametrize(("layer", "closest"), [("blocks.0.mlp.fc1.1", FC1), ("haed", "head"), ("#", None)])
def test_bits_for_a_layer_that_is_none(layer, closest):
    plan = Plan({}, {}, {FC2: 4, layer: 4})
    with pytest.raises(InputError, match=f"the plan gives bits to {layer}, which is no layer") as refused:
        plan.validate(program())
    assert refused.value.hint == (f"The closest is {closest}." if closest else "Is the plan for another model?")


def test_a_compilation_checks_the_plan_it_replays():
    with pytest.raises(InputError, match="the plan gives bits to haed"):
        svitc.compile(program(), plan=Plan({}, {}, {"haed": 4}), images=1, no_data="uniform")


# one type for all


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_the_first_layers_of_int2_stay_at_eight_bits(name, share, monkeypatch):
    monkeypatch.setattr("svitc.driver.weight_types.FRONT_SHARE", share)
    found = WeightTypes(family(name), "int2")
    order = list(dict.fromkeys(str(n.target) for n in family(name).graph.nodes if str(n.target) in found.narrow))
    sizes = [family(name).module.get_submodule(layer).weight.numel() for layer in order]
    front = sum(1 for i in range(len(order)) if sum(sizes[: i + 1]) <= share * sum(sizes))
    assert found.same == {layer: 8 if i < front else 2 for i, layer in enumerate(order)}
    assert {0: front == 0, 0.5: 0 < front < len(order), 1: front == len(order)}[share]
    assert found.spared == order[:front] and WeightTypes(family(name), "int2", min_weight_bits=4).spared == []
    ternary = WeightTypes(family(name), "ternary", min_weight_bits=4)
    assert ternary.same == {layer: TERNARY if bits == 2 else bits for layer, bits in found.same.items()}
    assert ternary.spared == found.spared
    assert set(WeightTypes(family(name), "int4").same.values()) == {4} and WeightTypes(family(name), "int8").same == {}


@pytest.mark.parametrize(("weights", "bits"), [("int4", 4), ("int2", 2), ("ternary", TERNARY)])
def test_weights_of_one_type_without_images(weights, bits, capsys):
    done = compiled(weights)
    narrow = {layer for layer, why in layers().items() if not why}
    assert len(narrow) == len(layers()) - 2
    wanted = dict.fromkeys(narrow, bits) | ({STAGE1: 8} if bits <= 2 else {})
    assert done.plan.bits == wanted and done.report["decisions"].count(SPARED) == (bits <= 2)
    assert done.plan.provenance["weights"] == weights and done.plan.provenance["rounding"] == "nearest"
    found = done.report["weights"]
    assert found["type"] == weights and {k: v["bits"] for k, v in found["layers"].items()} == {
        layer: 16 if layer == STAGE0 else max(wanted.get(layer, 8), 2) for layer in layers()
    }
    for layer, entry in found["layers"].items():
        assert entry["shape"] == list(done.program.module.get_submodule(layer).weight.shape)
    assert found["exact_neurons"] == found["neurons"] == sum(1 for _ in program().neurons())
    assert set(found["inexact"]) == {"logits"}
    assert any("nearest numbers" in each and "--data" in each for each in done.report["decisions"])
    assert done.verdict.passed and done.report == json.loads(json.dumps(done.report))
    assert done.report["memory"]["compiled_bytes"] == backend.weight_bytes(done.onnx)
    opset = onnx.load_from_string(done.onnx).opset_import[0].version
    assert opset == (25 if bits <= 2 else 21)
    lossless(done.report)
    told = " ".join(capsys.readouterr().out.split())
    assert f"{weights}: every neuron fires the same, bit for bit" in told and "the file clamps them" in told
    words = {"int4": "integers of 4 bits", "int2": "integers of 2 bits", "ternary": "the integers -1, 0 and 1"}
    assert weight_words(done.report) == words[weights]
    stored = done.program.module.get_submodule(FC1).weight.unique().tolist()
    assert {4: len(stored) > 4, 2: stored == [-3, -1, 1, 3], TERNARY: stored == [-1, 0, 1]}[bits]


def test_by_default_weights_are_rounded_with_synthetic_images(monkeypatch):
    monkeypatch.setattr(synthetic_data, "IMAGES", (32, 32))
    done = svitc.compile(program(), weights="int2", images=1, **FEW)
    made_by = done.plan.provenance
    assert (made_by["weights"], made_by["rounding"], made_by["data"]) == ("int2", "calibrated", "synthetic")
    assert done.plan.bits == compiled("int2").plan.bits and done.plan.keep == {} and done.verdict.passed
    assert done.onnx != compiled("int2").onnx
    assert not any("nearest numbers" in each for each in done.report["decisions"])
    assert done.report["prediction"]["basis"] == "synthetic" and compiled("int2").report["prediction"] is None
    replayed = svitc.compile(program(), plan=again(done.plan), images=1, **FEW)
    assert replayed.onnx == done.onnx


def test_fewer_bits_take_fewer_bytes():
    ratios = [compiled(weights).report["memory"]["ratio"] for weights in ("int2", "int4", "int8")]
    assert ratios == sorted(ratios) and ratios[0] < 0.7 * ratios[1] < 0.5 * ratios[2]
    assert compiled("int8").plan.bits == {} and "rounding" not in compiled("int8").plan.provenance
    assert compiled("int8").report["weights"]["type"] == "int8"


def test_a_budget_below_its_own_size_prunes():
    share = 0.8 * compiled("int4").report["memory"]["ratio"]
    done = svitc.compile(program(), share, weights="int4", images=1, no_data="uniform")
    assert done.plan.keep and done.verdict.passed and set(done.plan.bits.values()) == {4}
    assert 0.9 * share < done.report["memory"]["ratio"] <= share


def test_a_file_for_an_older_runtime_has_wider_weights():
    done = svitc.compile(program(), weights="int2", min_weight_bits=4, images=1, no_data="uniform")
    assert set(done.plan.bits.values()) == {4}, "the bits that are stored are used"
    assert done.onnx == compiled("int4").onnx


def test_excluded_layers_stay_at_eight_bits():
    done = svitc.compile(
        program(), weights="int4", policy=make("uniform", exclude=["blocks.0.mlp.*"]), images=1, no_data="uniform"
    )
    bits = {layer: each["bits"] for layer, each in done.report["weights"]["layers"].items()}
    wide = {layer for layer, why in layers().items() if why}
    assert {layer for layer in bits if bits[layer] >= 8} == {FC1, FC2} | wide
    assert not {FC1, FC2} & done.plan.bits.keys()


# replay


@pytest.mark.parametrize("weights", ["int4", "int2", "ternary"])
def test_a_plan_is_replayed_to_the_same_bytes(weights):
    done = svitc.compile(program(), plan=again(compiled(weights).plan), images=1, no_data="uniform")
    assert done.onnx == compiled(weights).onnx and done.verdict.passed


def test_a_plan_of_mixed_bits():
    bits = {layer: (8, 4, 2)[i % 3] for i, layer in enumerate(layer for layer, why in layers().items() if not why)}
    done = svitc.compile(program(), plan=Plan({}, {}, dict(bits)), images=1, no_data="uniform")
    assert {k: v["bits"] for k, v in done.report["weights"]["layers"].items() if k in bits} == bits
    assert done.verdict.passed and done.plan.bits == bits
    less = svitc.compile(program(), plan=Plan({}, {}, {FC1: 2}), images=1, no_data="uniform").report["weights"][
        "layers"
    ]
    assert {layer: each["bits"] for layer, each in less.items() if each["bits"] != 8} == {FC1: 2, STAGE0: 16}


def test_a_plan_made_with_images_is_replayed_with_them(data):
    done = svitc.compile(program(), policy=make("uniform"), weights="int2", data=data, images=1, **FEW)
    assert done.plan.provenance["refit"] == "none", "only rounding looks at them"
    assert done.plan.provenance["rounding"] == "calibrated" and done.verdict.passed
    assert not any("nearest numbers" in each for each in done.report["decisions"])
    assert done.onnx != compiled("int2").onnx
    replayed = svitc.compile(program(), plan=again(done.plan), data=data, images=1, **FEW)
    assert replayed.onnx == done.onnx
    with pytest.raises(InputError, match="made with images") as refused:
        svitc.compile(program(), plan=again(done.plan), images=1, no_data="uniform")
    assert "--data" in refused.value.hint


# refusals


@pytest.mark.parametrize("weights", ["int3", "INT4", "4", "", "int32"])
def test_unknown_types(weights):
    with pytest.raises(UsageError, match="are not a type") as refused:
        svitc.compile(program(), weights=weights, no_data="uniform")
    assert "fp32, int16, int8, int4, int2, ternary, mixed" in refused.value.hint


def test_mixed_weights_need_a_policy_that_chooses(data):
    for options in ({"no_data": "uniform"}, {"policy": make("primesvt")}, {"policy": make("uniform"), "data": data}):
        with pytest.raises(UsageError, match="does not choose bits") as refused:
            svitc.compile(program(), weights="mixed", **options)
        assert "--data" in refused.value.hint and "qsvit" in refused.value.hint


@pytest.mark.parametrize(
    ("policy", "weights"), [("qsvit", "int8"), ("qsvit", "fp32"), ("aq-greedy", "int4"), ("aq-beam", "int2")]
)
def test_a_policy_that_chooses_needs_no_type(policy, weights):
    with pytest.raises(UsageError, match=f"policy '{policy}' chooses each layer's bits") as refused:
        svitc.compile(program(), weights=weights, policy=make(policy), no_data="uniform")
    assert f"--weights {weights}" in refused.value.hint


def test_an_excluded_layer_that_is_none():
    with pytest.raises(UsageError, match=r"'blocks\.0\.mlp\.fc3\.0' matches no group or layer") as refused:
        svitc.compile(
            program(), weights="int4", policy=make("uniform", exclude=["blocks.0.mlp.fc3.0"]), no_data="uniform"
        )
    assert refused.value.hint.count(FC1) == refused.value.hint.count(FC2) == 1
    with pytest.raises(UsageError, match="'#' matches no group or layer") as refused:
        svitc.compile(program(), weights="int4", policy=make("uniform", exclude=["#"]), no_data="uniform")
    assert "svitc inspect" in refused.value.hint


def changed(layer: str, number: float | None) -> Program:
    """With one weight that is this number, or with none at all."""
    twin = program().copy()
    with torch.no_grad():
        weight = twin.module.get_submodule(layer).weight
        if number is None:
            weight.zero_()
        else:
            weight.view(-1)[3] = number
    return twin


@pytest.mark.parametrize(("weights", "number"), [("int4", "inf"), ("int2", "-inf"), ("int2", "nan")])
def test_weights_that_are_no_numbers(weights, number):
    with pytest.raises(UnsupportedError, match=f"{FC1} has weights that are infinite or not a number") as refused:
        svitc.compile(changed(FC1, float(number)), weights=weights, images=1, no_data="uniform")
    assert refused.value.exit_status == 4 and "spikformer.py:" in refused.value.where


def test_weights_that_are_no_numbers_with_images(data):
    with pytest.raises(UnsupportedError, match=f"{FC2} has weights that are infinite"):
        svitc.compile(changed(FC2, float("inf")), weights="int4", data=data, images=1, **FEW)


@pytest.mark.parametrize(
    ("layer", "weights", "clean"),
    [(FC1, "int4", "auto"), (FC1, "int2", "auto"), (FC1, "int2", "off"), (PROJ, "int2", "off")],
)
def test_a_layer_of_nothing(layer, weights, clean):
    """It gives nothing, whatever it reads, as before: two bits hold no zero, so its scale is next to none."""
    twin = changed(layer, None)
    done = svitc.compile(twin, weights=weights, remove_dead_channels=clean, images=1, no_data="uniform")
    assert done.verdict.passed
    module = dict(done.program.module.named_modules()).get(layer)
    if ops.is_quantized(module):  # or nothing is left of it
        assert float((module.weight.double().flatten(1) * module.scale.double()[:, None]).abs().max()) < 1e-25
    x = random_inputs(twin, 1, 1, 0)[0]
    logits = runtimes.session(done.onnx).run(None, {backend.INPUT: x.numpy()})[0]
    assert np.isfinite(logits).all() and logits.any()


def test_bits_that_a_layer_cannot_have_are_refused():
    first = "patch_embed.stages.0.conv_bn.block.0"
    with pytest.raises(InputError, match=f"{first} 2 bits, but its weights must stay at 8"):
        svitc.compile(family("spikformer"), plan=Plan({}, {}, {first: 2}), no_data="uniform")


def test_a_replayed_plan_keeps_its_bits_and_stays_as_it_is():
    program = family("spikformer")
    made = svitc.compile(program, weights="int4", images=1, no_data="uniform").plan
    before = json.dumps(made.to_json())
    with pytest.raises(UsageError, match="the plan gives each layer its bits"):
        svitc.compile(program, plan=made, weights="int8", no_data="uniform")
    again = svitc.compile(program, plan=made, weights="int4", images=1, no_data="uniform")
    assert json.dumps(made.to_json()) == before and again.plan.provenance["weights"] == "int4"
    assert not [sentence for sentence in again.report["decisions"] if "the plan was made for" in sentence]
    assert again.report["weights"]["type"] == "int4"


@pytest.mark.parametrize("bits", [[], 0, "", False])
def test_what_is_no_mapping_is_not_taken_for_no_bits(bits):
    with pytest.raises(InputError, match="bits are malformed"):
        Plan.from_json(Plan({}).to_json() | {"bits": bits})
