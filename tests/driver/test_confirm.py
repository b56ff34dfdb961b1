"""Choosing and confirming apart: what is promised of a plan, on which images, and what is said where nothing can be."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import svitc
from support.measured import digits_file, halved, prunable
from support.paths import DIGITS
from support.shell import run
from svitc import onnx as backend
from svitc import runtimes
from svitc.data.dataset import load_data
from svitc.data.inputs import top1
from svitc.errors import BudgetError, UsageError
from svitc.evaluation.promise import split_images
from svitc.passes.policies import Uniform
from svitc.planning.plan import Plan
from svitc.support.confidence import drop_bound, drop_p_value

SIZES = {"sweep_images": 40, "calibration_images": 30, "images": 1}


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory):
    return load_data(digits_file(tmp_path_factory.mktemp("digits"), 300), digits.input, digits.info)


@pytest.fixture(scope="module")
def promised(digits, images):
    return svitc.compile(digits, data=images, policy=Uniform(refit="batch-norm"), max_drop=0.06, **SIZES)


class Half(svitc.Policy):
    """Keeps half of one group, or of many, whatever is asked for."""

    refit = "batch-norm"

    def __init__(self, groups=1):
        self.groups = groups

    def plan(self, problem):
        groups = [g for g in prunable(problem.program) if g.whole_heads is None][-self.groups :]
        return Plan({k: m for group in groups for k, m in halved(problem.program, group).keep.items()})


def counts(program, exported, data):
    """Return lost, gained and all images of a file beside the program."""
    lost = gained = total = 0
    session = runtimes.session(exported)
    for x, labels in data.batches(64):
        before = top1(program(x).numpy()) == labels.numpy()
        now = top1(session.run(None, {backend.INPUT: x.numpy()})[0]) == labels.numpy()
        lost, gained, total = lost + (before & ~now).sum(), gained + (now & ~before).sum(), total + len(labels)
    return int(lost), int(gained), total


def test_the_plan_is_confirmed_on_images_that_did_not_choose_it(digits, images, promised):
    report, confirming = promised.report["promise"], images.subset(split_images(300, 0)[1])
    lost, gained, total = counts(digits, promised.onnx, confirming)
    assert (report["lost"], report["gained"], report["images"]) == (lost, gained, total) and total == 210
    assert drop_p_value(lost, gained, total, 0.06) <= 0.05
    assert report["choosing_images"] == 90 and report["max_drop"] == report["drop_bound"] == 0.06
    held = [test["held"] for test in report["tests"]]
    assert held[0] and all(held[:-1]), "the first failure ends it"
    kept = [test["kept"] for test in report["tests"]]
    assert kept == sorted(kept, reverse=True) and promised.report["memory"]["ratio"] < 1
    assert promised.report["accuracy"]["images"] == 210 and promised.report["sweep"]["images"] <= 60
    stored = {entry.key: json.loads(entry.value) for entry in onnx.load_from_string(promised.onnx).metadata_props}
    assert stored["promise"]["text"] == report["text"] and "at most 6 points" in report["text"]


def test_a_replay_gives_the_same_bytes_and_a_budget_a_bound(digits, images, promised):
    again = svitc.compile(digits, plan=promised.plan, data=images, images=1, sweep_images=40, calibration_images=30)
    assert again.report["promise"]["drop_bound"] == 0.06 and again.report["promise"]["max_drop"] is None
    assert again.onnx == promised.onnx and again.plan.to_json() == promised.plan.to_json()
    done = svitc.compile(digits, 1.0, data=images, policy=Half(), **SIZES)
    report, accuracy = done.report["promise"], done.report["accuracy"]
    assert report["max_drop"] is None and report["images"] == accuracy["images"] == 210
    assert report["drop_bound"] == drop_bound(accuracy["lost"], accuracy["gained"], 210, 0.95) > accuracy["drop"]


def test_a_folder_is_confirmed_on_the_same_images(digits, promised, images, tmp_path, capsys):
    promised.write(tmp_path / "out")
    file = digits_file(tmp_path, 300)
    args = ("verify", tmp_path / "out", "--against", DIGITS, "--data", file, "--verify-images", "1", "--json")
    status, text, err = run(capsys, *args)
    assert status == 0, err
    told, before = json.loads(text)["promise"], promised.report["promise"]
    names = ("images", "choosing_images", "lost", "gained")
    assert [told[name] for name in names] == [before[name] for name in names]
    assert told["max_drop"] is None and told["drop_bound"] == 0.06, "tests for 6 points chose the plan on these images"
    assert drop_bound(told["lost"], told["gained"], 210, 0.95) <= 0.06
    others = digits_file(tmp_path, 100, "others.npz", start=300)
    status, text, _ = run(capsys, *args[:5], others, "--verify-images", "1", "--confidence", "0.9")
    text = " ".join(text.split())
    assert "with 90% confidence, for images like the 100 that confirmed it, unless its plan was chosen on them" in text


def test_what_cannot_be_promised_is_said_with_numbers(digits, images):
    with pytest.raises(UsageError, match="210 images are too few to promise a drop of at most 0.5 points") as few:
        svitc.compile(digits, data=images, policy=Half(), max_drop=0.005, **SIZES)
    assert "it takes 602" in str(few.value) and "at least 1.5 points" in few.value.hint
    with pytest.raises(BudgetError, match="210 images do not confirm .* keeps .* with 95% confidence") as lossy:
        svitc.compile(digits, data=images, policy=Half(20), max_drop=0.016, **SIZES)
    assert "compiles about that network, with what can be promised" in lossy.value.hint
    with pytest.raises(UsageError, match="no number of images"):
        svitc.compile(digits, data=images, policy=Half(), max_drop=0.0, **SIZES)
    with pytest.raises(UsageError, match="95 is not at least"):
        svitc.compile(digits, data=images, policy=Half(), max_drop=0.05, confidence=95, **SIZES)


def test_images_to_train_on_promise_nothing_and_other_images_all_confirm(digits, images):
    chosen = images.subset(np.arange(100))
    alone = svitc.compile(digits, train_data=chosen, policy=Half(), max_drop=0.3, **SIZES).report
    assert "promise" not in alone
    assert any("nothing is promised: there are only images to train on" in line for line in alone["decisions"])
    others = images.subset(np.arange(100, 300))
    both = svitc.compile(digits, data=others, train_data=chosen, policy=Half(), max_drop=0.5, **SIZES).report
    assert both["promise"]["images"] == 200 and both["promise"]["choosing_images"] == 100
