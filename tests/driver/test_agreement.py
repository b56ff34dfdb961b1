"""Compilation with images without labels: agreement with the original in place of accuracy, and plans made on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import svitc
from support.measured import digits_file
from svitc import onnx as backend
from svitc import runtimes
from svitc.data.dataset import Reading, load_data
from svitc.data.inputs import top1
from svitc.driver.agreement import agreement_report, log_probabilities
from svitc.driver.report_sections import accuracy_report
from svitc.errors import BudgetError, InputError
from svitc.evaluation.comparison import log_softmax
from svitc.onnx.export import export
from svitc.passes.policies import Auto, Uniform
from svitc.support.confidence import wilson
from svitc.support.reporter import Reporter

SIZES = {"sweep_images": 40, "calibration_images": 30, "images": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return digits_file(folder, 80, "a.npz"), digits_file(folder, 80, "b.npz", start=200)


def images(program, path, unlabeled: bool):
    return load_data(path, program.input, program.info, reading=Reading(unlabeled=unlabeled))


def test_agreement_is_counted_against_the_original(digits, files):
    data = images(digits, files[0], True)
    pruned = svitc.compile(digits, 0.5, images=1, no_data="uniform")
    report = agreement_report(digits, log_probabilities(digits, data, Reporter()), pruned.onnx, data, Reporter())
    x = torch.cat([x for x, _ in data.batches(16)])
    before = log_softmax(digits(x).numpy())
    after = log_softmax(runtimes.session(pruned.onnx).run(None, {backend.INPUT: x.numpy()})[0])
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    assert 0 < same < 80
    assert (report.images, report.share, report.interval) == (80, same / 80, wilson(same, 80))
    assert report.divergence == pytest.approx((np.exp(before) * (before - after)).sum(-1).mean(), rel=1e-4)
    own = agreement_report(digits, log_probabilities(digits, data, Reporter()), export(digits), data, Reporter())
    assert own.share == 1 and own.divergence == pytest.approx(0, abs=1e-6)


def test_the_report_has_agreement_in_place_of_accuracy(digits, files):
    unlabeled, labeled = (
        svitc.compile(digits, 0.8, data=images(digits, files[0], u), policy=Auto(include=["*mlp*"]), **SIZES).report
        for u in (True, False)
    )
    assert unlabeled["accuracy"] == {"original": None, "pruned": None, "images": 0}
    assert unlabeled["agreement"].keys() == {"images", "share", "interval", "divergence", "notes", "unreadable"}
    assert unlabeled["agreement"]["images"] == 56 and 0.2 < unlabeled["agreement"]["share"] <= 1
    assert labeled["agreement"] is None and labeled["accuracy"]["images"] == 56
    assert unlabeled["energy"]["images"] == 64
    assert (unlabeled["sweep"]["labels"], labeled["sweep"]["labels"]) == (False, True)
    assert unlabeled["sweep"]["original"]["accuracy"] == 1 and unlabeled["sweep"]["original"]["drop"] == 0
    told = "a.npz: no labels, so that a point lost is 1% of them in another class than the original's"
    assert [any(told in sentence for sentence in r["decisions"]) for r in (unlabeled, labeled)] == [True, False]


def test_why_images_are_used_without_labels_is_told_first(digits, files):
    said: list[str] = []
    for unlabeled in (True, False):
        data = images(digits, files[0], unlabeled)
        data.notes.append(f"made for a test, {unlabeled}")
        reporter = Reporter(on_decision=said.append)
        report = svitc.compile(digits, 0.7, data=data, policy=Uniform(), reporter=reporter, **SIZES).report
        section = report["agreement"] or report["accuracy"]
        assert section["notes"] == [f"made for a test, {unlabeled}"]
    assert said == ["a.npz: made for a test, True"]


def test_max_drop_bounds_the_share_of_images_that_change_their_class(digits, files):
    data = images(digits, files[0], True)
    report = svitc.compile(digits, data=data, policy=Uniform(), max_drop=0.1, **SIZES).report
    assert any("max-drop bounds the share of images that get another class" in s for s in report["decisions"])
    assert report["memory"]["ratio"] < 1 and report["agreement"]["share"] > 0.7
    assert report["promise"]["text"].startswith("the file gives at most 10% of the images another class")
    with pytest.raises(BudgetError, match="points"):
        svitc.compile(digits, 0.2, data=data, policy=Uniform(), max_drop=0.06, **SIZES)


@pytest.mark.parametrize("train_labels", [False, True])
def test_labels_on_one_side_only(digits, files, train_labels):
    data, train = images(digits, files[0], train_labels), images(digits, files[1], not train_labels)
    train.notes.append("made for a test")
    settings = {"batch": 20, "distil": 0.5, "augment": "none"}
    report = svitc.compile(
        digits, 0.7, data=data, train_data=train, finetune=1, finetune_options=settings, policy=Uniform(), **SIZES
    ).report
    assert (report["agreement"] is None) != train_labels
    assert bool(report["accuracy"]["images"]) != train_labels
    assert "b.npz: made for a test" in report["decisions"]
    tuned = report["finetune"]
    alone = [s for s in report["decisions"] if "fine-tuning learns from the original's answers alone (distil 1)" in s]
    assert tuned["settings"]["distil"] == (0.5 if train_labels else 1.0) and bool(alone) != train_labels
    assert ("best_accuracy" in tuned, "best_agreement" in tuned) == (train_labels, not train_labels)


def test_accuracy_needs_labels(digits, files):
    data = images(digits, files[0], True)
    classes = [top1(digits(x).numpy()) for x, _ in data.batches(64)]
    with pytest.raises(InputError, match="accuracy needs labels, and these images have none\n  Give class folders"):
        accuracy_report(digits, classes, export(digits), data, Reporter())
