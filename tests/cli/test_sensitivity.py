"""Sensitivity, policies and fronts on the command line."""

from __future__ import annotations

import json

import pytest

from support.measured import digits_file
from support.paths import DIGITS
from support.shell import run
from svitc.cli.main import main

SMALL = ("--sweep-images", "20", "--calibration-images", "20", "-T", "2")
FILES = [
    "check.npz",
    "check.py",
    "model.onnx",
    "model.py",
    "model.safetensors",
    "plan.json",
    "predict.py",
    "report.html",
    "report.json",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return digits_file(tmp_path_factory.mktemp("data"), 60)


def test_sensitivity(capsys, tmp_path, data):
    out = tmp_path / "s.json"
    args = (
        "sensitivity",
        DIGITS,
        "--data",
        data,
        *SMALL,
        "-o",
        out,
        "--include",
        "*mlp*",
        "--include",
        "*.q",
        "--rates",
        "0.2,0.5",
    )
    status, text, err = run(capsys, *args)
    assert status == 0 and "95% interval" in text and "evaluations" in err
    report = json.loads(out.read_text())
    assert report.keys() == {"model", "settings", "refit", "rates", "sweep", "groups"}
    assert report["rates"] == [0.2, 0.5] and report["refit"] == "none" and report["settings"]["criterion"] == "l2"
    assert report["sweep"]["images"] == 20 and report["sweep"]["evaluations"] == 2 * len(report["groups"])
    assert {"accuracy", "interval"} <= report["sweep"]["original"].keys()
    assert {g["group"] for g in report["groups"]} == {
        f"blocks.{b}.{name}" for b in (0, 1) for name in ("mlp.fc1.0", "attn.qkv_conv_bn.0.q")
    }
    whole = json.loads(run(capsys, "inspect", DIGITS, "--json")[1])["bytes"]
    for group in report["groups"]:
        assert [step["width"] for step in group["steps"]] == [int(0.8 * group["size"]), group["size"] // 2]
        line = next(line for line in text.splitlines() if line.startswith(group["group"]))
        for step in group["steps"]:
            assert step["rate"] == pytest.approx(1 - step["width"] / group["size"])
            assert 0 < step["saved"] < 1 and step["bytes"] / (1 - step["saved"]) == pytest.approx(whole)
            assert step["drop_interval"][0] <= step["drop"] <= step["drop_interval"][1]
            assert {"right", "images", "loss", "divergence", "accuracy", "interval"} <= step.keys()
            assert f"{100 * step['drop']:.1f} {step['saved']:.1%}" in line, "every measured step is in the table"
    status, text, err = run(capsys, *args, "--resume", "--json")
    again = json.loads(text)
    assert status == 0 and again["sweep"]["evaluations"] == 0 and again["groups"] == report["groups"]
    assert json.loads(out.read_text()) == again


def test_a_front_shares_one_sweep(capsys, tmp_path, data):
    out = tmp_path / "front"
    args = ("compile", DIGITS, "--data", data, *SMALL, "--include", "*mlp*", "--verify-images", "1", "-o", out)
    status, text, _ = run(capsys, *args, "--budget", "0.9,0.8")
    assert status == 0 and "wrote one folder for each budget" in text
    assert sorted(p.name for p in out.iterdir()) == ["0.8", "0.9", "report.html"]
    reports = []
    for budget in (0.9, 0.8):
        folder = out / str(budget)
        assert sorted(p.name for p in folder.iterdir()) == FILES
        reports.append(json.loads((folder / "report.json").read_text()))
        assert budget - 0.01 < reports[-1]["memory"]["ratio"] <= budget
        assert f"{reports[-1]['memory']['ratio']:.4f}" in text
        assert reports[-1]["policy"]["policy"] == "auto" and not reports[-1]["sweep"]["on_reported_images"]
        assert reports[-1]["accuracy"]["images"] == 42 and len(reports[-1]["accuracy"]["drop_interval"]) == 2
    assert reports[0]["sweep"]["evaluations"] == reports[1]["sweep"]["evaluations"] > 0
    # alone, and from what the front has measured
    alone = tmp_path / "alone"
    (tmp_path / "front.sweep.jsonl").rename(tmp_path / "alone.sweep.jsonl")
    assert run(capsys, *args[:-1], alone, "--budget", "0.8", "--resume")[0] == 0
    assert (alone / "plan.json").read_bytes() == (out / "0.8" / "plan.json").read_bytes()
    assert (alone / "model.onnx").read_bytes() == (out / "0.8" / "model.onnx").read_bytes()
    assert json.loads((alone / "report.json").read_text())["sweep"]["evaluations"] == 0
    # replayed with its refit, which looks at the same images
    replay = (
        "compile",
        DIGITS,
        "--plan",
        alone / "plan.json",
        *SMALL,
        "--verify-images",
        "1",
        "-o",
        tmp_path / "again",
    )
    assert run(capsys, *replay, "--data", data)[0] == 0
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (alone / "model.onnx").read_bytes()
    status, _, err = run(capsys, *replay)
    assert status == 3 and "the plan was made with images" in err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_budget_that_cannot_be_met_loses_no_other(capsys, tmp_path, data, as_json):
    out = tmp_path / "front"
    more = ["--json", "-v"] if as_json else []
    status = main(
        list(
            map(
                str,
                (
                    "compile",
                    DIGITS,
                    "--data",
                    data,
                    *SMALL,
                    "--policy",
                    "uniform",
                    "--include",
                    "*mlp*",
                    "--verify-images",
                    "1",
                    "-b",
                    "0.05,0.9,0.02",
                    "-o",
                    out,
                    *more,
                ),
            )
        )
    )
    captured = capsys.readouterr()
    assert status == 5 and "0.05: the budget of" in captured.err and "0.02: the budget of" in captured.err
    assert sorted(p.name for p in out.iterdir()) == ["0.9", "report.html"]
    assert sorted(p.name for p in (out / "0.9").iterdir()) == FILES
    if as_json:
        assert [report["budget"]["text"] for report in json.loads(captured.out)] == ["0.9"]
    else:
        assert "0.9" in captured.out


def test_json_alone_on_stdout(capsys, tmp_path, data):
    status, text, _ = run(
        capsys,
        "compile",
        DIGITS,
        "--data",
        data,
        *SMALL,
        "--policy",
        "primesvt",
        "--budget",
        "0.95",
        "--max-drop",
        "50",
        "--include",
        "*mlp*",
        "--verify-images",
        "1",
        "-o",
        tmp_path / "o",
        "--json",
    )
    report = json.loads(text)
    assert status == 0 and report == json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["policy"]["policy"] == "primesvt" and report["policy"]["tolerance"] == 0.5
    assert report["decisions"] and report["sweep"]["points"] == report["sweep"]["evaluations"] > 0


def test_a_drop_that_cannot_be_met(capsys, tmp_path, data):
    """The same for a policy that does not look at it by itself; the best that was found is named."""
    status, text, err = run(
        capsys,
        "compile",
        DIGITS,
        "--data",
        data,
        *SMALL,
        "--policy",
        "uniform",
        "--budget",
        "0.3",
        "--max-drop",
        "8",
        "-o",
        tmp_path / "o",
    )
    assert status == 5 and "points, more than the 8 allowed" in err and "The best that was found" in err and text == ""
    assert not (tmp_path / "o").exists()


DATA = "the images"
UNIFORM = ("--no-data", "uniform")
BAD = {
    "psvit without data": (["compile", DIGITS, *UNIFORM, "-b", "0.5", "--policy", "psvit"], 2, "measures accuracy"),
    "primesvt without data": (
        ["compile", DIGITS, *UNIFORM, "-b", "0.5", "--policy", "primesvt"],
        2,
        "measures accuracy",
    ),
    "auto without data": (["compile", DIGITS, *UNIFORM, "-b", "0.5", "--policy", "auto"], 2, "--data"),
    "criterion without data": (
        ["compile", DIGITS, *UNIFORM, "-b", "0.5", "--criterion", "taylor"],
        2,
        "'taylor' looks at images",
    ),
    "refit without data": (
        ["compile", DIGITS, *UNIFORM, "-b", "0.5", "--refit", "full"],
        2,
        "--refit full looks at images",
    ),
    "max-drop without data": (
        ["compile", DIGITS, "-b", "0.5", "--max-drop", "3"],
        2,
        "--max-drop is a promise that only real images can keep",
    ),
    "max-drop without any images": (
        ["compile", DIGITS, *UNIFORM, "-b", "0.5", "--max-drop", "3"],
        2,
        "--max-drop is a promise that only real images can keep",
    ),
    "max-drop negative": (["compile", DIGITS, "-b", "0.5", "--max-drop", "-1", "--data", DATA], 2, "between 0 and 100"),
    "max-drop 101": (["compile", DIGITS, "-b", "0.5", "--max-drop", "101", "--data", DATA], 2, "between 0 and 100"),
    "max-drop nan": (["compile", DIGITS, "-b", "0.5", "--max-drop", "nan", "--data", DATA], 2, "between 0 and 100"),
    "refit": (["compile", DIGITS, "-b", "0.5", "--refit", "magic", "--data", DATA], 2, "Known: none, batch-norm"),
    "criterion": (["compile", DIGITS, "-b", "0.5", "--criterion", "l7", "--data", DATA], 2, "reconstruction"),
    "front": (["compile", DIGITS, "-b", "0.5,", "--data", DATA], 2, "not an amount"),
    "front above 1": (["compile", DIGITS, "-b", "0.5,1.2", "--data", DATA], 2, "more than the whole model"),
    "front with a plan": (["compile", DIGITS, "-b", "0.5,0.4", "--plan", "p.json"], 2, "--plan replays one plan"),
    "finetune": (["compile", DIGITS, "-b", "0.5", "--finetune", "1", "--data", DATA], 2, "--train-data"),
    "batch without finetune": (["compile", DIGITS, "-b", "0.5", "--batch", "32"], 2, "--static-batch says how many"),
    "few images": (["compile", DIGITS, "-b", "0.5", "--data", DATA, "--limit", "3"], 3, "too few to choose a plan on"),
    "limit": (["compile", DIGITS, "-b", "0.5", "--data", DATA, "--limit", "61"], 2, "more than the 60 images"),
    "sensitivity without data": (["sensitivity", DIGITS], 2, "measured on images"),
    "rates": (["sensitivity", DIGITS, "--data", DATA, "--rates", "0.5,x"], 2, "ascending shares"),
    "rates descending": (["sensitivity", DIGITS, "--data", DATA, "--rates", "0.5,0.25"], 2, "ascending shares"),
    "rates of all": (["sensitivity", DIGITS, "--data", DATA, "--rates", "0.5,1"], 2, "between 0 and 1"),
    "rates nan": (["sensitivity", DIGITS, "--data", DATA, "--rates", "nan"], 2, "between 0 and 1"),
    "rates empty": (["sensitivity", DIGITS, "--data", DATA, "--rates", ""], 2, "ascending shares"),
    "sensitivity refit": (["sensitivity", DIGITS, "--data", DATA, "--refit", "magic"], 2, "Known: none"),
    "sensitivity criterion": (["sensitivity", DIGITS, "--data", DATA, "--criterion", "l7"], 2, "Known: l2"),
    "sensitivity glob": (["sensitivity", DIGITS, "--data", DATA, "--include", "xyz*"], 2, "names no group"),
    "nothing resumable": (["sensitivity", DIGITS, "--data", DATA, "--resume"], 3, "holds no points of a sweep"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, tmp_path, data, case):
    args, want, message = BAD[case]
    if case == "nothing resumable":
        (tmp_path / "out.sweep.jsonl").write_text("mine\n")
    status, text, err = run(capsys, *(data if arg is DATA else arg for arg in args), "-o", tmp_path / "out")
    assert status == want and message in err and text == ""
    assert not (tmp_path / "out").exists(), "no partial output"


def test_sensitivity_on_a_sample_of_the_images_and_without_progress(capsys, tmp_path, data):
    out = tmp_path / "s.json"
    choice = ("--include", "blocks.0.mlp.fc1.0", "--rates", "0.5", "--limit", "30", "--quiet")
    status, text, err = run(capsys, "sensitivity", DIGITS, "--data", data, *SMALL, "-o", out, *choice)
    assert status == 0 and "blocks.0.mlp.fc1.0" in text and not err
    sweep = json.loads(out.read_text())["sweep"]
    assert 20 < sweep["images"] + sweep["calibration_images"] <= 30
