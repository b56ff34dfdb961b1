"""Tests of compiler/driver/prediction.py: what is lost is said where no labels tell, and what would lose less."""

import pytest

import svitc
from support.measured import digits_file
from support.paths import DIGITS
from svitc.data.dataset import load_data
from svitc.driver import prediction, synthetic_data
from svitc.evaluation.evaluator import Measurement
from svitc.support.reporter import Reporter


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(synthetic_data, "IMAGES", (40, 40))


@pytest.fixture(scope="module")
def compiler():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_data, "IMAGES", (40, 40))
        made = svitc.Compiler(
            svitc.load(DIGITS), options=svitc.CompileOptions(images=1, weights="fp32"), reporter=Reporter()
        )
        made.compile(0.8)
    return made


def test_a_small_loss_is_too_small_to_tell(compiler):
    predicted = compiler.compile(0.8).report["prediction"]
    assert predicted["basis"] == "synthetic" and predicted["images"] == 20
    assert predicted["too_small"] and not predicted["large"] and predicted["recommended"] is None
    assert predicted["agreement"] > 0.9


def test_a_large_loss_names_the_smallest_budget_that_loses_little(compiler):
    predicted = compiler.compile(0.04).report["prediction"]
    assert predicted["large"] and not predicted["too_small"]
    low, high = predicted["interval"]
    assert low == predicted["loss"] / 2 and high == 2 * predicted["loss"] and predicted["regret"] > 0
    better = compiler.compile(predicted["recommended"]).report["prediction"]
    assert better["loss"] <= prediction.RECOMMENDED
    assert 0.04 < predicted["recommended"] < 0.9


def test_nothing_is_predicted_where_nothing_changes_or_labels_tell(compiler, tmp_path):
    assert compiler.compile(1.0).report["prediction"] is None
    program = svitc.load(DIGITS)
    data = load_data(digits_file(tmp_path, 40), program.input, program.info)
    labeled = svitc.compile(program, 0.8, data=data, images=1)
    assert labeled.report["prediction"] is None


def test_the_loss_grows_with_the_regret_and_is_smaller_where_it_was_measured_on_synthetic_images():
    def point(regret: float) -> Measurement:
        return Measurement(90, 100, 10, 0, 0.1, 0.1, regret)

    for rounded in (False, True):
        losses = [prediction.lost_accuracy(point(r), "synthetic", rounded) for r in (-0.01, 0, 0.01, 0.1)]
        assert losses[0] == losses[1] == 0 < losses[2] < losses[3]
        assert prediction.lost_accuracy(point(0.1), "unlabeled", rounded) > losses[3]
