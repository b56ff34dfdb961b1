"""Images without labels on the command line: what is printed cannot be read as accuracy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from support.measured import digits_file
from support.paths import DIGITS
from support.shell import run

SMALL = ("--sweep-images", "30", "--calibration-images", "30", "-T", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A flat folder of gray images."""
    root = tmp_path_factory.mktemp("data")
    with np.load(digits_file(root, 70)) as file:
        images = (file["images"][:, 0] * 255).round().astype(np.uint8)
    (root / "frames").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(root / f"frames/{number:03}.png")
    (root / "frames.txt").write_text("".join(f"frames/{number:03}.png\n" for number in range(70)))
    return root


@pytest.mark.parametrize("name", ["frames", "frames.txt"])
def test_compile(folder, capsys, tmp_path, name):
    args = (
        "compile",
        DIGITS,
        "--data",
        folder / name,
        "--include",
        "*mlp*",
        "-b",
        "0.8",
        *SMALL,
        "-o",
        tmp_path / "out",
    )
    status, text, err = run(capsys, *args)
    assert status == 0, err
    report = json.loads((tmp_path / "out/report.json").read_text())
    row = next(line for line in text.splitlines() if line.startswith("same class on 49 images"))
    assert row.split()[-2:] == ["-", f"{report['agreement']['share']:.2%}"]
    assert "is not an accuracy" in " ".join(text.split()) and "top-1 on" not in text and "points" not in text
    assert f"{name}: no labels" in " ".join(err.split())


def test_a_front(folder, capsys, tmp_path):
    args = ("compile", DIGITS, "--data", folder / "frames", "-b", "0.9,0.7", "--policy", "uniform", *SMALL)
    status, text, _ = run(capsys, *args, "-o", tmp_path / "out")
    assert status == 0 and "same class" in text and "top-1" not in text
    assert "is not an accuracy" in " ".join(text.split())


def test_labels_can_be_ignored(folder, capsys, tmp_path):
    out = tmp_path / "out"
    args = ("compile", DIGITS, "--data", folder / "digits.npz", "--limit", "40", "-b", "0.7", "-o", out, *SMALL)
    reports = []
    for more in ((), ("--unlabeled",)):
        assert run(capsys, *args, "--policy", "uniform", *more)[0] == 0
        reports.append(json.loads((out / "report.json").read_text()))
    assert reports[0]["accuracy"]["images"] == reports[1]["agreement"]["images"] == 40
    assert reports[0]["agreement"] is None and reports[1]["accuracy"]["images"] == 0


def test_energy_verify_and_sensitivity(folder, capsys, tmp_path):
    out, frames = tmp_path / "out", folder / "frames"
    assert run(capsys, "compile", DIGITS, "--no-data", "uniform", "-b", "0.7", "-o", out, "-T", "2")[0] == 0
    status, text, _ = run(capsys, "energy", out, "--data", frames, "--limit", "8", "--json")
    assert status == 0 and json.loads(text)["images"] == 8
    assert run(capsys, "verify", out, "--data", frames, "--limit", "4", "--unlabeled")[0] == 0
    path = tmp_path / "s.json"
    args = ("sensitivity", DIGITS, "--data", frames, *SMALL, "-o", path, "--include", "*mlp*", "--rates", "0.5")
    status, text, _ = run(capsys, *args)
    assert status == 0 and "top-1" not in text
    assert "the 30 images have no labels: a point lost is 1% of them in another class than the" in " ".join(
        text.split()
    )
    assert json.loads(path.read_text())["sweep"]["labels"] is False
