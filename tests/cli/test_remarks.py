"""What a compilation says below its table, and what it refuses before anything slow."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from support.measured import digits_file
from support.paths import DIGITS
from support.shell import run
from svitc.cli.views.compile import summary
from svitc.cli.views.verify import quantization_line


def test_the_summary_says_what_became_of_training_where_energy_comes_from_and_the_time(tmp_path, capsys):
    data = digits_file(tmp_path, 40)
    options = ("--policy", "uniform", "--budget", "0.9", "--finetune", "1", "--lr", "100", "--batch", "8", "--quiet")
    out_folder = tmp_path / "out"
    status, out, err = run(
        capsys, "compile", DIGITS, *options, "--data", data, "--train-data", data, "-o", out_folder, "-T", "1"
    )
    assert status == 0 and not err, err
    written = json.loads((out_folder / "report.json").read_text())
    assert "fine-tuning of 1 epoch was thrown away: no epoch beat the network before it" in out
    assert "time of an image" not in out and "from the same memory" not in out
    other = copy.deepcopy(written)
    other["finetune"] |= {"epochs": 5, "chosen_epoch": 3, "best_accuracy": 1.0}
    other["budget"] |= {"text": "latency=0.6", "of": "latency", "original_ms": 20.0, "compiled_ms": 11.0}
    other["energy"]["saved"] |= {"total": 0.7, "total_same_memory": 0.2}
    summary(other, [])
    lines = capsys.readouterr().out.splitlines()
    (trained,) = (line for line in lines if line.startswith("fine-tuning"))
    assert "epoch 3 of 5 was kept" in trained and "100.00% after" in trained
    (time,) = (line for line in lines if line.startswith("time of an image here"))
    assert time.split()[-5:] == ["20.0", "ms", "11.0", "ms", "0.5500"]
    (energy,) = (line for line in lines if line.startswith("energy: 0.3000 of the original's"))
    assert energy.endswith("read from the same memory it would be 0.8000")


@pytest.mark.parametrize("option", ["--data", "--train-data"])
@pytest.mark.parametrize("command", ["compile", "verify", "energy", "sensitivity"])
def test_images_are_looked_at_before_the_model_is_loaded(capsys, tmp_path, monkeypatch, command, option):
    if option == "--train-data" and command != "compile":
        return
    for name in ("compile", "energy", "sensitivity", "verify"):
        monkeypatch.setattr(f"svitc.cli.commands.{name}.load_program", lambda *_: pytest.fail("loaded"), raising=False)
    images = np.zeros((6, 1, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "short.npz", images=images, labels=np.arange(5))
    budget = ("--budget", "0.5") if command == "compile" else ()
    for name, text in (("none", "none does not exist"), ("short.npz", "labels are int64 [5], not 6")):
        status, out, err = run(capsys, command, DIGITS, *budget, option, tmp_path / name)
        assert status == 3 and text in err and not out


def test_a_comparison_of_weights_that_cannot_be_made_again_is_not_offered(capsys):
    report = {"quantization_when_compiled": {"first_divergence": None, "compared": 1234}}
    quantization_line(report, DIGITS)
    offered = " ".join(capsys.readouterr().out.split())
    assert "that check passed (1,234 values" in offered and offered.endswith("--against MODEL repeats it")
    quantization_line(report | {"quantization_refused": "it was fine-tuned."}, DIGITS)
    refused = capsys.readouterr().out
    assert "It cannot be repeated: it was fine-tuned." in refused and "--against" not in refused
