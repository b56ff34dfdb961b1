"""The benchmark of the zoo: what it calls a pass, a refusal, an internal error and a wrong number."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from support.paths import ROOT
from svitc.errors import InternalError, UnsupportedError

sys.path.insert(0, str(ROOT / "benchmarks"))
import zoo
import zoo_report
from zoo_models import ZOO

SMALL = "spikingformer"


def failing(error: Exception):
    def stage() -> str:
        raise error

    return stage


@pytest.fixture(scope="module")
def network() -> zoo.Network:
    found = zoo.Network(ZOO[SMALL])
    found.capture()
    return found


@pytest.mark.parametrize(
    ("error", "status", "in_model"),
    [
        (zoo.WrongNumberError("off by 1"), zoo.WRONG, False),
        (UnsupportedError("softmax", where="/a/benchmarks/zoo_models/mst.py:9"), zoo.REFUSED, True),
        (UnsupportedError("softmax", where="/a/torch/nn/modules.py:9"), zoo.REFUSED, False),
        (UnsupportedError("softmax"), zoo.REFUSED, False),
        (UnsupportedError("the model's forward failed on an input: KeyError: 'val'"), zoo.INTERNAL, False),
        (InternalError("a fault"), zoo.INTERNAL, False),
        (KeyError("weight"), zoo.INTERNAL, False),
    ],
)
def test_failures_are_told_apart(error, status, in_model):
    outcome = zoo.attempt(failing(error))
    assert (outcome.status, outcome.in_model) == (status, in_model)
    assert outcome.message


def test_a_captured_network_is_compared_with_a_mask(network):
    assert float(network.masked()) <= zoo.MASK_TOLERANCE


def test_a_wrong_mask_is_a_wrong_number(network, monkeypatch):
    """Silence only some of the layers that make the removed channels."""
    whole = zoo.silence

    def partial(program, plan):
        names = list(plan.keep)[1:]
        whole(program, zoo.svitc.Plan({name: plan.keep[name] for name in names}))

    monkeypatch.setattr(zoo, "silence", partial)
    assert zoo.attempt(network.masked).status == zoo.WRONG


def test_a_mask_that_changes_nothing_is_a_wrong_number(network, monkeypatch):
    monkeypatch.setattr(zoo, "silence", lambda program, plan: None)
    assert zoo.attempt(network.masked).message == "the mask changes nothing"


def test_a_program_that_is_not_the_model_is_a_wrong_number(network):
    changed = zoo.Network(ZOO[SMALL])
    changed.program = network.program
    with torch.no_grad():
        changed.model.head.bias += 1
    outcome = zoo.attempt(changed.onnx)
    assert outcome.status == zoo.WRONG and "0 of 8 images" in outcome.message


def test_masks_leave_frozen_groups_whole(network):
    masks = zoo.random_masks(network.program.groups)
    frozen = {group.name for group in network.program.groups if group.frozen is not None}
    assert masks and frozen and not frozen & set(masks)
    assert all(0 < mask.sum() < mask.size for mask in masks.values())
    assert all(isinstance(mask, np.ndarray) for mask in masks.values())


def test_the_tables_say_what_failed_and_where():
    good, bad = zoo.Result(SMALL, ZOO[SMALL]), zoo.Result("psn", ZOO["psn"])
    good.stages = {stage: zoo.Outcome(zoo.OK, "0") for stage in zoo_report.STAGES}
    bad.stages["capture"] = zoo.attempt(failing(UnsupportedError("addmm | mul", where="a/zoo_models/psn.py:3")))
    text = zoo.markdown([good, bad], "What it does.")
    assert "1 of 2 networks pass every stage" in text
    assert "1 refused (0 of them without a line of the model), 0 internal errors, 0 wrong numbers" in text
    assert "| psn | capture | refused | a/zoo_models/psn.py:3 | UnsupportedError: addmm \\| mul |" in text
    assert good.passed and not bad.passed and bad.to_json()["stages"]["capture"]["where"] == "a/zoo_models/psn.py:3"
