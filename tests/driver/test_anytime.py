"""Stopping early as a user meets it: the rule in the file and the report, and what is said where there is none."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest

import svitc
from support.measured import digits_file
from support.paths import DIGITS
from svitc.cli.main import main
from svitc.data.dataset import load_data
from svitc.driver.anytime import check_anytime, energy_when_stopping, find_rule, stored_rule
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.evaluation.early_exit import Rule
from svitc.evaluation.promise import split_images
from svitc.evaluation.running_scores import running_scores
from svitc.onnx.export import export_step
from svitc.passes.pipelines import quantize
from svitc.support.reporter import Reporter


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory):
    path = digits_file(tmp_path_factory.mktemp("digits"), 400, "images.npz")
    return load_data(path, digits.input, digits.info)


def test_the_rule_is_in_the_file_and_does_what_the_report_says(digits, images, tmp_path):
    compiled = svitc.compile(digits, weights="int8", data=images, anytime=0.05, images=1)
    report = compiled.report["anytime"]
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load_from_string(compiled.onnx).metadata_props}
    stored = metadata["early_exit"]
    assert stored["kind"] == "margin" and len(stored["thresholds"]) == len(stored["offsets"]) == metadata["time_steps"]
    assert compiled.report["streaming"]["states"] > 0
    assert stored["thresholds"][-1] == 0 and not any(stored["offsets"][-1])
    rule = Rule(tuple(stored["thresholds"]), np.array(stored["offsets"]))
    batches = list(running_scores(compiled.program, export_step(compiled.program), images))
    running, labels = np.concatenate([b[0] for b in batches], axis=1), np.concatenate([b[1] for b in batches])
    others = split_images(len(labels), 0)[1]
    running, labels = running[:, others], labels[others]
    assert report["images"] == len(others) and report["choosing_images"] == 400 - len(others)
    assert report["mean_steps"] == rule.steps(running).mean() < report["time_steps"]
    drop = (running[-1].argmax(-1) == labels).mean() - (rule.classes(running) == labels).mean()
    assert report["drop"] == pytest.approx(drop) and report["drop"] <= report["drop_bound"] <= 0.05
    assert report["energy_pj"] < report["full_energy_pj"] == compiled.report["energy"]["compiled"]["pj"]
    assert 0.05 in [row["max_drop"] for row in report["tolerances"]]
    compiled.write(tmp_path / "out")
    same = stored_rule(tmp_path / "out")
    assert same.thresholds == rule.thresholds and np.array_equal(same.offsets, rule.offsets)
    totals = {"pj": 10.0, "once_pj": 2.0}
    stopped = energy_when_stopping(compiled.program, same, images, totals, Reporter())
    assert 1 <= stopped["mean_steps"] < report["time_steps"]
    assert stopped["pj"] == pytest.approx(2 + 8 * stopped["mean_steps"] / report["time_steps"])
    assert ET.fromstring((tmp_path / "out" / "anytime.svg").read_text()).tag.endswith("svg")


def test_agreement_takes_the_place_of_labels_and_too_few_images_promise_nothing(digits, images):
    program = quantize(digits)[0]
    unlabeled = CompileOptions(data=load_data_unlabeled(images), anytime=0.001)
    found = find_rule(program, unlabeled, None, Reporter())
    assert found.report.basis == "agreement" and found.report.full == 1 and found.report.energy_pj is None
    assert found.report.mean_steps == found.report.time_steps and found.rule.thresholds[0] is None
    assert found.report.needed > 3000
    assert "never stops early" in found.metadata()["promise"]
    assert find_rule(program, CompileOptions(data=images), None, Reporter()) is None


def load_data_unlabeled(images):
    """Return the images without their labels."""
    twin = images.subset(range(100))
    twin.labeled, twin.labels = False, np.full(100, -1)
    return twin


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": None}, "not trained on"),
        ({"per_step": True}, "--per-step leaves out"),
        ({"anytime": 1.5}, "150 points is not between"),
        ({"confidence": 95}, "95 is not at least 0.5 and below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(digits, images, options, said):
    with pytest.raises(UsageError, match=said):
        check_anytime(digits, CompileOptions(**{"data": images, "anytime": 0.01, **options}))
    with pytest.raises(UsageError, match="10 images are too few"):
        check_anytime(digits, CompileOptions(data=images.subset(range(10)), anytime=0.01))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--anytime", "--max-drop", "0.5"], "not trained on"),
        (["--anytime", "--data", "x.npz"], "what stopping early may cost"),
        (["--anytime", "--data", "x.npz", "--max-drop", "1", "--per-step"], "--per-step leaves out"),
        (["--anytime", "--data", "x.npz", "--max-drop", "1", "--confidence", "95"], "--confidence 95 is not at least"),
        (["--weights", "int8", "--confidence", "0.9"], "not trained on"),
    ],
)
def test_the_command_says_what_is_missing(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"what is in it is not looked at")
    assert main(["compile", str(DIGITS), *line]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
