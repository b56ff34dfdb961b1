"""Tests of compiler/driver/synthetic_data.py and of compiling without images: little is lost, and it repeats."""

import pytest
import torch

import svitc
from support.measured import digits_file, family
from support.paths import DIGITS
from svitc.analysis import batch_norm_match as match
from svitc.data.dataset import load_data
from svitc.driver import synthetic_data as made
from svitc.driver.report_sections import accuracy_report, classify
from svitc.errors import InputError, UsageError
from svitc.passes.policies import Uniform
from svitc.support.reporter import Reporter

FEW = 24  # images, so that a test takes seconds


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(made, "IMAGES", (FEW, FEW))


@pytest.fixture
def digits() -> svitc.Program:
    return svitc.load(DIGITS)


def test_the_images_match_the_batch_norms_better_than_any_images(digits):
    data = made.synthetic_data(digits, 0, Reporter())
    (x, labels), *_ = data.batches(FEW)
    assert x.shape == (FEW, 1, 16, 16) and (labels == -1).all() and not data.labeled
    norms = len(match.batch_norms(digits))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(FEW, 1, 16, 16, generator=generator)
    assert match.mismatch(match.gaps(digits, x), norms) < 0.6 * match.mismatch(match.gaps(digits, noise), norms)
    assert f"{FEW} synthetic ones, chosen of {3 * FEW}" in data.notes[0]


def test_the_same_seed_gives_the_same_images(digits):
    one, two = (made.synthetic_data(digits, 3, Reporter()) for _ in range(2))
    assert one.fingerprint() == two.fingerprint() != made.synthetic_data(digits, 4, Reporter()).fingerprint()


def test_large_networks_get_fewer_images(digits, monkeypatch):
    monkeypatch.setattr(made, "IMAGES", (8, 456))
    monkeypatch.setattr(made, "CHOSEN_MACS", 10 * 19_616_016)
    assert len(made.synthetic_data(digits, 0, Reporter())) == 10


@pytest.mark.parametrize("trained", [True, False])
def test_what_the_weights_do_not_tell_is_said(trained):
    program = family("spikformer")
    for norm in match.batch_norms(program):
        norm.reset_running_stats()
    if trained:
        match.batch_norms(program)[0].running_mean += 1
    data = made.synthetic_data(program, 0, Reporter())
    assert len(data) == FEW
    assert ("looks untrained" in data.notes[0]) == (not trained)


def test_event_frames_are_made_for_a_model_of_events():
    program = family("spikformer")
    assert not program.input.events
    shape = svitc.InputSpec((4, 2, 16, 16))
    images = made.SyntheticImages(shape).fetch(0)
    assert images.shape == shape.shape


def test_without_images_the_network_is_kept_where_uniform_loses_it(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "IMAGES", (120, 120))
    real = load_data(digits_file(tmp_path, 400), digits.input, digits.info)
    kept, uniform = (svitc.compile(digits, 0.6, images=1, no_data=kind) for kind in ("synthetic", "uniform"))
    assert kept.report["policy"]["policy"] == "auto" and kept.report["policy"]["data"] == "synthetic"
    assert uniform.report["policy"]["policy"] == "uniform" and uniform.report["prediction"] is None
    classes = classify(digits, real, Reporter())
    lost = [accuracy_report(digits, classes, done.onnx, real, Reporter()).drop for done in (kept, uniform)]
    assert lost[0] < 0.02 and lost[1] > 0.1
    assert kept.report["accuracy"]["images"] == 0 and kept.report["agreement"] is None
    assert kept.report["memory"]["ratio"] <= 0.6
    assert any("synthetic ones, chosen" in sentence for sentence in kept.report["decisions"])


def test_a_plan_replays_into_the_same_files_and_the_same_command_repeats(digits):
    options = {"images": 1, "weights": "int4"}
    first = svitc.compile(digits, 0.2, **options)
    again = svitc.compile(svitc.load(DIGITS), 0.2, **options)
    replayed = svitc.compile(svitc.load(DIGITS), plan=first.plan, **options)
    assert first.onnx == again.onnx == replayed.onnx
    assert first.plan.provenance["rounding"] == "calibrated" and first.plan.provenance["data"] == "synthetic"


def test_a_plan_that_was_made_on_given_images_still_needs_them(digits):
    plan = svitc.compile(digits, 0.8, images=1).plan
    plan.provenance.pop("data")
    with pytest.raises(InputError, match="made with images"):
        svitc.compile(digits, plan=plan, images=1)


def test_no_data_is_checked(digits):
    with pytest.raises(UsageError, match="neither synthetic nor uniform"):
        svitc.compile(digits, 0.8, no_data="none")


def test_a_policy_without_images_draws_none_for_its_plan(digits):
    done = svitc.compile(digits, 0.8, policy=Uniform(), no_data="uniform", images=1)
    assert done.report["sweep"] is None and "data" not in done.report["policy"]
