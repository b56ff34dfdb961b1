"""The command line as a user meets it: help, statuses, one clear message, no traceback, no partial output."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import onnxruntime
import pytest
import torch

from support.paths import DIGITS
from support.shell import run
from svitc.cli.main import main
from svitc.driver import synthetic_data
from svitc.frontends.published import PUBLISHED
from svitc.runtimes import RUNTIMES

UNIFORM = ("--no-data", "uniform")


@pytest.mark.parametrize("command", [[], ["compile"], ["inspect"], ["verify"]])
def test_help_teaches(capsys, command):
    status, out, _ = run(capsys, *command, "--help-all" if command else "--help")
    assert status == 0 and "Exit status" in out
    if command == ["compile"]:
        for word in (
            "--budget",
            "0.78",
            "12MB",
            "params=8M",
            "--prune-heads",
            "--trust-pickle",
            "--plan",
            "--ema",
            "--rewrite-model",
            "--reparam",
        ):
            assert word in out


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("--narrowest", "--min-weight-bits", "3"),
        ("--clean", "--remove-dead-channels", "on"),
        ("--fix", "--rewrite-model", None),
    ],
)
def test_former_names_of_options_are_accepted_and_hidden(capsys, tmp_path, old, new, value):
    help_text = run(capsys, "compile", "--help-all")[1]
    assert new in help_text and old not in help_text
    outcomes = []
    for option in (old, new):
        options = ((option,), (option, value), (f"{option}={value}",))
        for given in options[:1] if value is None else options[1:]:
            model = "nowhere.pt" if value is None else DIGITS
            outcomes.append(run(capsys, "compile", model, *UNIFORM, "-b", "0.5", *given, "-o", tmp_path / "out"))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0][0] == (3 if value is None else 2), "refused for its value, not for its name"


def test_version(capsys):
    assert run(capsys, "--version")[1].startswith("svitc 0.")


def test_doctor_says_what_is_installed_and_what_will_be_fast(capsys):
    status, text, _ = run(capsys, "doctor", "--json")
    report = json.loads(text)
    assert status == 0 and report["environment"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert [row["name"] for row in report["runtimes"]] == list(RUNTIMES)
    assert all((row["version"] is None) == (row["missing"] is not None) for row in report["runtimes"])
    fast = {row["options"]: row["fast"] for row in report["files"]}
    assert fast["--weights int8"] is report["integer_dot_products"] and fast["--weights fp32"] is False
    status, text, _ = run(capsys, "doctor")
    assert status == 0 and onnxruntime.__version__ in text and "--target openvino" in text


def test_models_lists_what_is_recognized(capsys):
    status, text, _ = run(capsys, "models", "--json")
    rows = {(row["source"], row["name"]): row for row in json.loads(text)}
    assert status == 0 and {name for source, name in rows if source == "official"} == set(PUBLISHED)
    row = rows["spikingjelly", "spikformer_s"]
    assert (row["parameters"], row["steps"], row["input"]) == (13_244_824, 4, [3, 224, 224])
    status, text, _ = run(capsys, "models", "qkf")
    assert status == 0 and "84.22%" in text and "spikformer_8_384" not in text
    status, _, text = run(capsys, "models", "resnet")
    assert status == 2 and "resnet" in text and "--arch" in text


def test_compile_inspect_verify(capsys, tmp_path):
    out = tmp_path / "out"
    status, text, _ = run(capsys, "compile", DIGITS, *UNIFORM, "--budget", "0.78", "-o", out)
    assert status == 0 and "verified" in text and "0.77" in text
    assert sorted(p.name for p in out.iterdir()) == [
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
    status, text, _ = run(capsys, "verify", out)
    assert status == 0 and "0 beyond" in text and "computes in ONNX Runtime 1." in " ".join(text.split())
    status, text, _ = run(capsys, "inspect", DIGITS)
    assert status == 0 and "no: the model's output" in text and "blocks.1.mlp.fc1.0" in text
    status, text, _ = run(capsys, "inspect", DIGITS, "--program")
    assert status == 0 and "LIFNode[blocks.0.attn.attn_lif]" in text


def test_compile_without_images(capsys, tmp_path, monkeypatch):
    """Plans are chosen on synthetic images, which tell nothing about accuracy."""
    monkeypatch.setattr(synthetic_data, "IMAGES", (32, 40))
    out = tmp_path / "out"
    args = ("compile", DIGITS, "-T", "2", "--include", "*mlp*", "-b", "0.8", "--verify-images", "1", "-o", out)
    status, text, err = run(capsys, *args)
    assert status == 0 and "no images: 40 synthetic ones" in " ".join(err.split())
    assert "predicted change of top-1" in text and "synthetic images" in text and "top-1 on" not in text
    report = json.loads((out / "report.json").read_text())
    assert report["policy"]["policy"] == "auto" and report["policy"]["data"] == "synthetic"
    assert report["prediction"]["basis"] == "synthetic" and report["accuracy"]["images"] == 0
    status, text, err = run(capsys, *args, *UNIFORM)
    report = json.loads((out / "report.json").read_text())
    assert status == 0 and "predicted" not in text and "synthetic" not in text + err
    assert report["policy"]["policy"] == "uniform" and report["prediction"] is report["sweep"] is None


def test_json_is_alone_on_stdout(capsys, tmp_path):
    status, text, _ = run(capsys, "compile", DIGITS, *UNIFORM, "-b", "78%", "-o", tmp_path / "o", "--json", "-v")
    assert status == 0 and json.loads(text) == json.loads((tmp_path / "o" / "report.json").read_text())
    assert json.loads(run(capsys, "inspect", DIGITS, "--json")[1])["neurons"] == 19
    assert json.loads(run(capsys, "verify", tmp_path / "o", "--json")[1])["status"] == "passed"


def test_a_plan_is_replayed(capsys, tmp_path):
    run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.6", "-o", tmp_path / "a")
    assert (
        run(capsys, "compile", DIGITS, *UNIFORM, "--plan", tmp_path / "a" / "plan.json", "-o", tmp_path / "b")[0] == 0
    )
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


BAD = {
    "no budget": ([DIGITS], 2, "--budget"),
    "budget 0": ([DIGITS, "-b", "0"], 2, "must be above 0"),
    "budget 1.5": ([DIGITS, "-b", "1.5"], 2, "more than the whole model"),
    "budget abc": ([DIGITS, "-b", "abc"], 2, "not an amount"),
    "reparam": ([DIGITS, "-b", "0.5", "--reparam", "on"], 2, "--reparam 'on' is neither auto nor off"),
    "target": ([DIGITS, "--target", "tpu"], 2, "target 'tpu' is not known"),
    "unreachable": ([DIGITS, "-b", "0.0001"], 5, "cannot be met"),
    "no such file": (["nowhere.pt", "-b", "0.5"], 3, "nowhere.pt"),
    "a folder": (["/", "-b", "0.5"], 3, "folder"),
    "criterion": ([DIGITS, "-b", "0.5", "--criterion", "l7"], 2, "Known: l2"),
    "policy": ([DIGITS, "-b", "0.5", "--policy", "magic"], 2, "Known: auto, psvit"),
    "no low rank": ([DIGITS, "-b", "0.5", "--policy", "uniform", "--no-low-rank"], 2, "removes channels alone"),
    "glob": ([DIGITS, "-b", "0.5", "--exclude", "xyz*"], 2, "matches no group"),
    "arch args": ([DIGITS, "-b", "0.5", "--arch-args", "{"], 2, "not JSON"),
    "arch args list": ([DIGITS, "-b", "0.5", "--arch-args", "[1]"], 2, "not a JSON object"),
    "input shape": ([DIGITS, "-b", "0.5", "--input-shape", "1,2"], 2, "not a shape"),
    "data": ([DIGITS, "-b", "0.5", "--data", "nowhere"], 3, "nowhere"),
    "no data": ([DIGITS, "-b", "0.5", "--no-data", "noise"], 2, "--no-data 'noise' is neither synthetic nor uniform"),
    "plan": ([DIGITS, "--plan", "nowhere.json"], 3, "nowhere.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, tmp_path, case):
    args, want, message = BAD[case]
    out = tmp_path / "out"
    status, text, err = run(capsys, "compile", *UNIFORM, *args, "-o", out)
    assert status == want and message in err and text == ""
    assert not out.exists(), "no partial output"


def test_an_output_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    status, _, err = run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.5", "-o", tmp_path / "file")
    assert status == 7 and "is a file" in err
    status, _, err = run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.5", "-o", tmp_path / "file" / "below")
    assert status == 7
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.5", "-o", tmp_path / "out")
    assert status == 7 and "No space left" in err and not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_earlier_result(capsys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.5", "-o", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.3", "-o", out)[0] == 7
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_ctrl_c(tmp_path):
    """A real interrupt of a real process, in the middle of its work."""
    command = [
        sys.executable,
        "-m",
        "svitc",
        "compile",
        str(DIGITS),
        *UNIFORM,
        "-b",
        "0.5",
        "-o",
        str(tmp_path / "out"),
        "--verify-images",
        "5000",
        "-v",
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # a shell starts what runs in the background with SIGINT ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:  # what comes after the export is the verification of 5,000 images
        if "svitc: export: " in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_tampered_file_fails_verification(capsys, tmp_path):
    out = tmp_path / "out"
    run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.5", "-o", out)
    data = bytearray((out / "model.onnx").read_bytes())
    import onnx

    model = onnx.load_from_string(bytes(data))
    weight = next(t for t in model.graph.initializer if t.name.startswith("blocks.1.mlp.fc1"))
    weight.raw_data = bytes(len(weight.raw_data))
    (out / "model.onnx").write_bytes(model.SerializeToString())
    status, text, err = run(capsys, "verify", out)
    assert status == 6 and "blocks.1.mlp.neuron1" in text + err
    row = json.loads((out / "report.json").read_text())["runtimes"][0]
    assert (row["name"], row["result"], row["why"]) == ("onnxruntime", "differs", "first at blocks.1.mlp.neuron1")


def test_an_edited_source_is_noticed(capsys, tmp_path):
    out = tmp_path / "out"
    run(capsys, "compile", DIGITS, *UNIFORM, "-b", "0.5", "-o", out)
    source = out / "model.py"
    source.write_text(source.read_text().replace("0.125", "0.25"))
    status, _, err = run(capsys, "verify", out)
    assert status == 3 and "model.py is not the source" in err


def test_verify_needs_a_folder_of_svitc(capsys, tmp_path):
    status, _, err = run(capsys, "verify", tmp_path)
    assert status == 3 and "missing" in err


def test_verbose_shows_the_traceback(capsys, tmp_path):
    status = main(["compile", str(DIGITS), *UNIFORM, "-b", "0.0001", "-v", "-o", str(tmp_path / "o")])
    assert status == 5 and "Traceback" in capsys.readouterr().err


def test_an_unsupported_model_is_refused_by_inspect_too(capsys, tmp_path, monkeypatch):
    source = tmp_path / "odd_model.py"
    source.write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(3, 5)\n"
        "    def forward(self, x):\n"
        "        return torch.linalg.svdvals(self.head(x.mean((2, 3)))[:, None])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    torch.save({"head.weight": torch.randn(5, 3), "head.bias": torch.randn(5)}, tmp_path / "odd.pt")
    for command in (["inspect"], ["compile", "-b", "0.5", *UNIFORM, "-o", tmp_path / "out"]):
        status, _, err = run(
            capsys,
            command[0],
            tmp_path / "odd.pt",
            *command[1:],
            "--arch",
            "odd_model:Odd",
            "--input-shape",
            "3,8,8",
        )
        assert status == 4 and "svdvals" in err and "odd_model.py:7" in err
    assert not (tmp_path / "out").exists()
