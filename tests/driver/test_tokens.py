"""Tokens from end to end: chosen on images, in the files, replayed, and said in words."""

from __future__ import annotations

import json

import onnx
import pytest

from support.measured import digits_file
from support.paths import DIGITS
from support.shell import run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return digits_file(tmp_path_factory.mktemp("digits"), 40)


def test_compile_and_replay(images, capsys, tmp_path):
    small = (
        "--weights",
        "int8",
        "--sweep-images",
        "20",
        "--calibration-images",
        "20",
        "--verify-images",
        "1",
        "-T",
        "2",
        "--train-data",
        images,
    )
    status, text, err = run(capsys, "compile", DIGITS, "--tokens", "50%", *small, "-o", tmp_path / "a")
    assert status == 0, err
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("tokens ")] == ["0.5000"]
    report = json.loads((tmp_path / "a/report.json").read_text())
    plan = json.loads((tmp_path / "a/plan.json").read_text())
    assert report["macs"]["compiled"] < report["macs"]["original"]
    assert report["parameters"]["ratio"] == 1
    assert {name: entry["kept"] for name, entry in report["tokens"].items()} == {
        name: len(positions) for name, positions in plan["tokens"].items()
    }
    metadata = {p.key: json.loads(p.value) for p in onnx.load(tmp_path / "a/model.onnx").metadata_props}
    assert metadata["tokens"] == {name: len(positions) for name, positions in plan["tokens"].items()}
    status, _, err = run(capsys, "compile", DIGITS, "--plan", tmp_path / "a/plan.json", *small, "-o", tmp_path / "b")
    assert status == 0, err
    for name in ("model.onnx", "model.py", "plan.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", "0"), "no share of the tokens"),
        (("--tokens", "1.5"), "no share of the tokens"),
        (("--tokens", "150%"), "no share of the tokens"),
        (("--tokens", "half"), "--tokens half is no share of the tokens"),
        (("--tokens", "0.5", "--no-data", "uniform"), "chosen on images"),
        (("--tokens", "0.5", "--plan", "plan.json"), "has its own tokens"),
    ],
)
def test_what_makes_no_sense(options, message, capsys, tmp_path):
    status, _, err = run(capsys, "compile", DIGITS, *options, "-o", tmp_path)
    assert status == 2 and message in " ".join(err.split())
