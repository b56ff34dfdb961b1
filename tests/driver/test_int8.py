"""int8 from end to end: what is exact and what is not, the files, budgets, plans, and the command line."""

from __future__ import annotations

import importlib.util
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import svitc
from support.paths import DEMO, DIGITS
from svitc import onnx as backend
from svitc import runtimes
from svitc.cli.main import main
from svitc.driver.artifacts import Compiled
from svitc.driver.inspect import inspect
from svitc.errors import InputError, UsageError
from svitc.ir.program import Stage
from svitc.planning.plan import Plan
from svitc.runtimes.reference_evaluator import Reference
from svitc.serialization.writer import load_program
from svitc.verification.recorder import Recorder

FILES = ("model.onnx", "model.py", "model.safetensors", "plan.json")


# what is exact


# compile


@pytest.fixture(scope="module")
def whole(digits) -> Compiled:
    return svitc.compile(digits, weights="int8", images=2, no_data="uniform")


def test_compile(digits, whole):
    report = whole.report
    assert whole.verdict.passed and report["verify"]["status"] == "passed"
    assert whole.verdict.total("flips_within_rounding") == whole.verdict.total("flips_beyond_rounding") == 0
    assert whole.program.stage == Stage.QUANTIZED
    memory = report["memory"]
    stored = sum(numpy_helper.to_array(t).nbytes for t in onnx.load_from_string(whole.onnx).graph.initializer)
    assert memory["compiled_bytes"] == stored == backend.weight_bytes(whole.onnx)
    assert 0.25 < memory["ratio"] < 0.3, "a byte for four, scales, biases and windows"
    weights = report["weights"]
    assert weights["type"] == "int8" and weights["exact_neurons"] == weights["neurons"] == 19
    assert whole.plan.keep == {} and whole.plan.provenance["weights"] == "int8"
    onnx.checker.check_model(onnx.load_from_string(whole.onnx), full_check=True)
    assert report == json.loads(json.dumps(report))


def test_parameters_as_the_budget(digits):
    done = svitc.compile(digits, "params=78%", weights="int8", images=1, no_data="uniform")
    parameters = done.report["parameters"]
    assert 0.77 < parameters["ratio"] <= 0.78 and done.verdict.passed
    assert done.report["memory"]["ratio"] < 0.25


@pytest.fixture(scope="module")
def small(digits) -> Compiled:
    return svitc.compile(digits, 0.15, weights="int8", images=2, no_data="uniform")


def test_a_budget_below_int8s_own_size_prunes(whole, small):
    done, ratio = small, small.report["memory"]["ratio"]
    assert 0.14 < ratio <= 0.15 < whole.report["memory"]["ratio"]
    assert done.plan.keep and done.verdict.passed and done.verdict.total("flips_within_rounding") == 0
    assert backend.weight_bytes(done.onnx) == done.report["memory"]["compiled_bytes"]


def test_a_budget_above_int8s_own_size_prunes_nothing(digits, whole):
    done = svitc.compile(digits, 0.5, weights="int8", images=1, no_data="uniform")
    graphs = [onnx.load_from_string(compiled.onnx).graph for compiled in (done, whole)]
    assert done.plan.keep == {} and graphs[0] == graphs[1]  # the metadata name the budget


def test_a_plan_is_replayed_in_either_type(digits, small):
    plan = Plan.from_json(json.loads(json.dumps(small.plan.to_json())))
    assert svitc.compile(digits, plan=plan, weights="int8", images=2, no_data="uniform").onnx == small.onnx
    floats = svitc.compile(digits, plan=plan, images=1, no_data="uniform")
    assert floats.verdict.passed and floats.report["weights"] == {"type": "fp32"}
    assert floats.report["parameters"] == small.report["parameters"]


def test_two_runs_write_the_same_bytes(whole, tmp_path):
    whole.write(tmp_path / "a")
    svitc.compile(svitc.load(DIGITS), weights="int8", images=2, no_data="uniform").write(tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    reports = [json.loads((tmp_path / x / "report.json").read_text()) for x in "ab"]
    for each in reports:
        each.pop("seconds")
    assert reports[0] == reports[1]
    assert load_program(tmp_path / "a" / "model.safetensors").stage == Stage.QUANTIZED


@pytest.mark.parametrize("weights", ["int3", "INT8", "", "8"])
def test_unknown_types(digits, weights):
    with pytest.raises(UsageError, match="are not a type"):
        svitc.compile(digits, 0.5, weights=weights, no_data="uniform")


def test_what_is_quantized_cannot_be_compiled_or_inspected(whole):
    with pytest.raises(InputError, match="quantized already"):
        svitc.compile(whole.program, 0.5, no_data="uniform")
    with pytest.raises(InputError, match="quantized already"):
        inspect(whole.program)


def test_accuracy_on_digits(whole, digits):
    """On the 360 images that training never saw."""
    spec = importlib.util.spec_from_file_location("digits", DEMO / "digits.py")
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    split = demo.load_split()
    normal = digits.info["normalize"]
    mean, std = (torch.tensor(normal[k]).reshape(-1, 1, 1) for k in ("mean", "std"))
    x = (split.test_images - mean) / std
    labels = split.test_labels.numpy()

    def right(logits: np.ndarray) -> int:
        return int(((logits.mean(0) if logits.ndim == 3 else logits).argmax(-1) == labels).sum())

    fp32 = right(digits(x).numpy())
    int8 = right(runtimes.session(whole.onnx).run(None, {backend.INPUT: x.numpy()})[0])
    assert fp32 >= 0.95 * len(labels) and abs(fp32 - int8) <= 4, (fp32, int8)
    rates = []
    for program in (digits, whole.program):
        spikes = Recorder.record(program, x[:64])[0].spikes
        rates.append(np.array([float(s.mean()) for s in spikes.values()]))
    assert np.abs(rates[0] - rates[1]).max() < 0.02, "neurons fire as often as they did"


# the command line


def run(capsys, *args: object) -> tuple[int, str, str]:
    status = main([str(a) for a in args])
    captured_ = capsys.readouterr()
    assert "Traceback" not in captured_.err
    return status, captured_.out, captured_.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "out"
    assert (
        main(
            [
                "compile",
                str(DIGITS),
                "--no-data",
                "uniform",
                "--weights",
                "int8",
                "-o",
                str(out),
                "--verify-images",
                "2",
            ]
        )
        == 0
    )
    return out


def test_the_command(capsys, folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*FILES, "check.npz", "check.py", "predict.py", "report.html", "report.json"]
    )
    report = json.loads((folder / "report.json").read_text())
    assert report["weights"]["type"] == "int8" and report["memory"]["ratio"] < 0.3
    status, out, _ = run(capsys, "verify", folder)
    assert status == 0 and "0 beyond" in out
    status, out, _ = run(capsys, "verify", folder, "--json")
    assert status == 0 and json.loads(out)["flips_within_rounding"] == 0


def test_the_table_of_runtimes(capsys, folder):
    """Compilation fills the row of ONNX Runtime, and verification in another runtime that one's."""
    before = {row["name"]: row["result"] for row in json.loads((folder / "report.json").read_text())["runtimes"]}
    assert before["onnxruntime"] == "exact" and before["openvino"] == "not tried"
    status, out, _ = run(capsys, "verify", folder, "--runtime", "reference", "--verify-images", "1")
    assert status == 0 and "computes in ONNX's reference evaluator" in " ".join(out.split())
    [row] = [r for r in json.loads((folder / "report.json").read_text())["runtimes"] if r["name"] == "reference"]
    assert row["result"] == "exact" and row["version"] == version("onnx") and row["images"] == 1 and row["spikes"] > 1e4


def test_a_runtime_that_cannot_run_the_file(capsys, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "out")
    monkeypatch.setattr(Reference, "_open", failing)
    status, _, err = run(capsys, "verify", tmp_path / "out", "--runtime", "reference")
    assert status == 3 and "cannot load" in err and "no kernel" in err
    [row] = [r for r in json.loads((tmp_path / "out/report.json").read_text())["runtimes"] if r["name"] == "reference"]
    assert row["result"] == "does not run" and "no kernel" in row["why"]
    status, _, err = run(capsys, "verify", folder, "--runtime", "tvm")
    assert status == 2 and "Known: onnxruntime, openvino" in err


def failing(*_: object) -> None:
    raise NotImplementedError("no kernel")


def test_verifying_says_what_it_does_not_repeat(capsys, folder, tmp_path):
    status, out, _ = run(capsys, "verify", folder)
    text = " ".join(out.split())
    assert status == 0 and "not checked here" in text and "that check passed" in text and "--against" in text
    report = json.loads(run(capsys, "verify", folder, "--json")[1])
    assert "quantization" not in report and report["quantization_when_compiled"]["beyond_rounding"] == 0
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    status, out, _ = run(capsys, "verify", tmp_path)
    assert status == 0 and "report.json does not say" in " ".join(out.split())
    for damaged, words in (
        ("{", "is not JSON"),
        (f'{{"a": {"1" * 5000}}}', "is not JSON"),
        ('{"verify": 3}', "verify is not"),
    ):
        (tmp_path / "report.json").write_text(damaged)
        status, _, err = run(capsys, "verify", tmp_path)
        assert status == 3 and words in " ".join(err.split())
    (tmp_path / "report.json").write_text('{"runtimes": 3}')
    status, out, err = run(capsys, "verify", tmp_path)
    assert status == 0 and "does not read as svitc writes it" in " ".join((out + err).split())


def test_weights_in_other_files_are_not_read(capsys, folder, tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    model = onnx.load(folder / "model.onnx")
    tensor = next(each for each in model.graph.initializer if each.raw_data)
    (tmp_path / "weights").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)  # from where a runtime would read them
    status, _, err = run(capsys, "verify", tmp_path)
    assert status == 3 and f"keeps weights in other files: {tensor.name} is in 'weights'" in " ".join(err.split())


def test_verifying_against_the_model_that_was_compiled(capsys, folder, tmp_path):
    status, out, _ = run(capsys, "verify", folder, "--against", DIGITS)
    assert status == 0 and "verified that the weights are those of" in " ".join(out.split())
    assert "not checked here" not in out
    state = torch.load(DIGITS, weights_only=True)
    weights = state.get("model", state.get("state_dict", state))
    name = next(key for key in weights if key.endswith("mlp.fc1.0.weight") and ".1." in key)
    weights[name] = weights[name] * 1.5
    torch.save(state, tmp_path / "other.pt")
    status, out, err = run(capsys, "verify", folder, "--against", tmp_path / "other.pt")
    assert status == 6 and "NOT the float network" in out and "blocks.1.mlp.fc1.0" in " ".join((out + err).split())
    assert "model.onnx computes what model.py computes" in " ".join(out.split())


def test_verifying_against_a_model_that_does_not_apply(capsys, folder, tmp_path):
    status, _, err = run(capsys, "verify", folder, "--against", folder)
    assert status == 3 and "integer weights itself" in err
    status, _, err = run(capsys, "verify", folder, "--arch", "module:factory")
    assert status == 2 and "--against" in err


def test_verifying_refitted_weights_takes_a_float_folder_of_the_same_plan(capsys, tmp_path):
    data = tmp_path / "digits.npz"
    scenes = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    np.savez(data, images=scenes)
    small = ("--data", data, "--sweep-images", "16", "--calibration-images", "32", "--verify-images", "1")
    plan = ("--policy", "uniform", "--refit", "full", "-b", "0.2", "--weights", "int8")
    assert run(capsys, "compile", DIGITS, *small, *plan, "-o", tmp_path / "int8")[0] == 0
    status, _, err = run(capsys, "verify", tmp_path / "int8", "--against", DIGITS)
    assert status == 3 and "refitted on images" in " ".join(err.split()) and "--plan" in err
    replay = ("--plan", tmp_path / "int8" / "plan.json", "--weights", "fp32")
    assert run(capsys, "compile", DIGITS, *small, *replay, "-o", tmp_path / "float")[0] == 0
    status, out, _ = run(capsys, "verify", tmp_path / "int8", "--against", tmp_path / "float")
    assert status == 0 and "verified that the weights are those of" in " ".join(out.split())
    status, _, err = run(capsys, "verify", tmp_path / "float", "--against", DIGITS)
    assert status == 3 and "has float weights" in err


def test_nothing_is_refitted_where_nothing_is_removed(capsys, tmp_path):
    np.savez(tmp_path / "digits.npz", images=np.random.default_rng(0).random((48, 1, 8, 8), dtype=np.float32))
    data = ("--data", tmp_path / "digits.npz", "--sweep-images", "8", "--calibration-images", "32")
    whole = ("--policy", "uniform", "--refit", "full", "-b", "1", "--weights", "int8", "--verify-images", "1")
    assert run(capsys, "compile", DIGITS, *data, *whole, "-o", tmp_path / "o")[0] == 0
    status, out, _ = run(capsys, "verify", tmp_path / "o", "--against", DIGITS)
    assert status == 0 and "verified that the weights are those of" in " ".join(out.split())


def test_a_pruned_network_is_pruned_again_to_be_compared(capsys, tmp_path):
    args = ("--no-data", "uniform", "--weights", "int8", "-b", "0.15", "--verify-images", "1", "--input-range", "0,16")
    assert run(capsys, "compile", DIGITS, *args, "-o", tmp_path / "o")[0] == 0
    status, out, _ = run(capsys, "verify", tmp_path / "o", "--against", DIGITS)
    assert status == 0 and "verified that the weights are those of" in " ".join(out.split())


def test_with_a_budget_and_json(capsys, tmp_path):
    status, out, _ = run(
        capsys,
        "compile",
        DIGITS,
        "--no-data",
        "uniform",
        "--weights",
        "int8",
        "-b",
        "0.15",
        "-o",
        tmp_path / "o",
        "--json",
        "--verify-images",
        "1",
    )
    report = json.loads(out)
    assert status == 0 and report["weights"]["type"] == "int8" and report["memory"]["ratio"] <= 0.15
    assert json.loads((tmp_path / "o" / "plan.json").read_text())["made_by"]["weights"] == "int8"


def test_a_type_that_is_none(capsys, tmp_path):
    status, out, err = run(capsys, "compile", DIGITS, "--no-data", "uniform", "--weights", "int3", "-o", tmp_path / "o")
    assert status == 2 and out == "" and "int3" in err and "int8" in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", [["inspect"], ["compile", "-b", "0.5"], ["compile", "--weights", "int8"]])
def test_a_folder_that_is_quantized_already(capsys, folder, tmp_path, command):
    out = ["-o", tmp_path / "o"] if command[0] == "compile" else []
    status, text, err = run(capsys, command[0], folder, *command[1:], *out)
    assert status == 3 and "quantized already" in err and "original checkpoint" in err and text == ""
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("tensor", "neuron"),
    [
        ("blocks.1.mlp.fc1.0.weight", "blocks.1.mlp.neuron1"),
        ("blocks.0.attn.proj_conv_bn.0.weight", "blocks.0.attn.proj_lif"),
        ("patch_embed.stages.1.conv_bn.block.0.weight", "patch_embed.stages.1"),
        ("head.weight", "logits"),
    ],
)
def test_one_byte_is_noticed_and_named(capsys, folder, tmp_path, tensor, neuron):
    for each in folder.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    model = onnx.load_from_string((folder / "model.onnx").read_bytes())
    found = {t.name: t for t in model.graph.initializer}
    values = numpy_helper.to_array(found[tensor]).copy()
    assert values.dtype == np.int8
    place = np.unravel_index(np.abs(values.astype(int)).argmax(), values.shape)
    values[place] = -values[place]
    found[tensor].CopyFrom(numpy_helper.from_array(values, tensor))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    status, out, err = run(capsys, "verify", tmp_path)
    assert status == 6 and neuron in out + err
