"""``svitc bench``: a real run, what it reports, and each bad input. No test looks at how long anything took."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from support import shell
from support.paths import DIGITS
from support.runners import contestant, failing, grown, ready
from svitc.bench import rounds
from svitc.bench.compare import read_model
from svitc.bench.rounds import empty_row, quartiles, run_rounds
from svitc.bench.runners import Load, Source
from svitc.bench.worker import Failed, Runner, Worker, once
from svitc.cli.main import main
from svitc.errors import InputError
from svitc.support.hardware import busy_seconds, disturbed, peak, resident

ROW = {
    "name",
    "reason",
    "median_ms",
    "q1_ms",
    "q3_ms",
    "ratio",
    "ratio_q1",
    "ratio_q3",
    "memory_bytes",
    "nodes",
    "weight_bytes",
    "version",
    "max_logit_difference",
    "prepare_seconds",
    "runs",
    "times_ms",
}


def run(capsys, *args: object) -> tuple[int, str, str]:
    return shell.run(capsys, "bench", *args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    assert main(["compile", str(DIGITS), "--no-data", "uniform", "-b", "0.78", "-o", str(out)]) == 0
    return out


def test_a_run_beside_eager_as_json(capsys, folder):
    args = ("--against", DIGITS, "--peers", "eager", "--runs", 2, "--threads", 1, "--batch", 3, "--profile", "--json")
    status, text, err = run(capsys, folder, *args)
    assert status == 0 and err == ""
    report = json.loads(text)
    assert report.keys() == {
        "file",
        "against",
        "input",
        "dtype",
        "batch",
        "threads",
        "seed",
        "runs",
        "untimed_run_before_each",
        "other_processes",
        "environment",
        "rows",
        "profile",
    }
    assert (report["batch"], report["threads"], report["runs"], report["input"]) == (3, 1, 2, [1, 16, 16])
    assert report["dtype"] == "float32"
    ours, eager = report["rows"]
    assert ours.keys() == eager.keys() == ROW
    assert (ours["name"], eager["name"]) == ("svitc", "eager")
    for each in (ours, eager):
        assert each["reason"] is None and each["runs"] == len(each["times_ms"]) == 2
        assert 0 < each["q1_ms"] <= each["median_ms"] <= each["q3_ms"]
        assert each["memory_bytes"] > 1e5, "its weights are in it"
    assert ours["ratio"] == 1.0 and eager["ratio"] > 0
    assert (
        ours["nodes"] > 100
        and ours["weight_bytes"] == json.loads((folder / "report.json").read_text())["memory"]["compiled_bytes"]
    )
    assert "onnxruntime" in ours["version"] and "torch" in eager["version"]
    assert ours["max_logit_difference"] > 0 == eager["max_logit_difference"], "one is pruned, on the same images"
    operators = report["profile"]["svitc"]
    assert operators.keys() >= {"Conv", "MatMul"} or "FusedMatMul" in operators
    assert all(each["ms"] > 0 and each["nodes"] >= 1 for each in operators.values())
    assert "eager" not in report["profile"], "which ONNX Runtime's profiler knows nothing of"


def test_a_table_of_the_file_alone(capsys, folder):
    status, text, _ = run(capsys, folder / "model.onnx", "--runs", 1, "--threads", 1, "--profile")
    assert status == 0
    assert "svitc" in text and "1.00 x" in text and "1 image of 1 x 16 x 16" in text and "by operator" in text
    assert "eager" not in text


def test_the_file_in_several_runtimes(capsys, folder):
    """Times are compared with those in the first one."""
    args = ("--runtimes", "reference,onnxruntime", "--runs", 1, "--threads", 1, "--profile", "--json")
    status, text, _ = run(capsys, folder, *args)
    report = json.loads(text)
    reference, ours = report["rows"]
    assert status == 0 and (reference["name"], ours["name"]) == ("svitc", "svitc in ONNX Runtime")
    assert reference["version"].startswith("reference ") and reference["ratio"] == 1.0 > ours["ratio"]
    assert report["profile"].keys() == {"svitc in ONNX Runtime"}


def test_a_peer_that_is_not_there_keeps_its_row(capsys, folder, monkeypatch):
    from svitc.bench import runners

    monkeypatch.setattr(runners, "missing", lambda package: f"{package} is not installed")
    args = ("--against", DIGITS, "--peers", "openvino", "--runs", 1, "--threads", 1)
    status, text, _ = run(capsys, folder, *args)
    assert status == 0 and "torch.onnx + OpenVINO" in text and "not installed" in text
    report = json.loads(run(capsys, folder, *args, "--json")[1])
    assert report["rows"][1]["reason"].endswith("not installed") and report["rows"][1].keys() == ROW
    assert report["rows"][0]["runs"] == 1


@pytest.mark.slow
def test_the_naive_export(capsys, folder):
    args = ("--against", DIGITS, "--peers", "torch.onnx", "--runs", 1, "--threads", 1, "--json", "--profile")
    status, text, _ = run(capsys, folder, *args)
    report = json.loads(text)
    assert status == 0 and report["profile"].keys() == {"svitc", "torch.onnx + ONNX Runtime"}
    naive = report["rows"][1]
    assert naive["nodes"] > 500 and naive["weight_bytes"] > 6e5 and naive["export_seconds"] > 0


BAD = {
    "no file": (["nowhere"], 3, "nowhere does not exist"),
    "no model.onnx": (["{tmp}"], 3, "model.onnx does not exist"),
    "not ONNX": (["{text}"], 3, "cannot read an ONNX model"),
    "not images": (["{vector}"], 3, "takes neither [N, C, H, W]"),
    "another batch": (["{fixed}", "--batch", 1], 2, "takes batches of 4 only"),
    "open size": (["{open}"], 3, "more than the batch open"),
    "does not run": (["{broken}", "--runs", 1], 3, "cannot be timed"),
    "no streaming file": (["{out}", "--streaming"], 3, "it is no streaming file"),
    "runs": (["{out}", "--runs", 0], 2, "--runs 0 is not a positive number"),
    "batch": (["{out}", "--batch", -1], 2, "--batch -1"),
    "threads": (["{out}", "--threads", 0], 2, "--threads 0"),
    "limit": (["{out}", "--limit", 0], 2, "--limit 0"),
    "peer": (["{out}", "--against", DIGITS, "--peers", "eager,tvm"], 2, "Known: eager, torch.compile"),
    "runtime": (["{out}", "--runtimes", "onnxruntime,tvm"], 2, "runtime 'tvm' is not known"),
    "no runtime": (["{out}", "--runtimes", ","], 2, "names no runtime"),
    "peers of nothing": (["{out}", "--peers", "eager"], 2, "--against"),
    "options of nothing": (["{out}", "--time-steps", 2], 2, "--against"),
    "no model": (["{out}", "--against", "nowhere.pt"], 3, "nowhere.pt"),
    "another shape": (["{three}", "--against", DIGITS], 3, "takes an input of 3,16,16, but"),
    "arch args": (["{out}", "--against", DIGITS, "--arch-args", "{{"], 2, "not JSON"),
}


def small_file(path: Path, dims: list[object], broken: bool = False) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in "xy")
    node = helper.make_node("Missing" if broken else "Relu", ["x"], ["y"], domain="no.such" if broken else "")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("no.such", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_input(capsys, tmp_path, folder, case):
    args, want, message = BAD[case]
    (tmp_path / "model.txt").write_text("not a model")
    places = {
        "tmp": tmp_path,
        "text": tmp_path / "model.txt",
        "out": folder,
        "vector": small_file(tmp_path / "vector.onnx", ["N", 3]),
        "fixed": small_file(tmp_path / "fixed.onnx", [4, 3, 16, 16]),
        "open": small_file(tmp_path / "open.onnx", ["N", 3, "H", "W"]),
        "three": small_file(tmp_path / "three.onnx", ["N", 3, 16, 16]),
        "broken": small_file(tmp_path / "broken.onnx", ["N", 3, 16, 16], broken=True),
    }
    status, text, err = run(capsys, *(str(a).format(**places) for a in args))
    assert (status, text) == (want, "") and message in err
    assert len(err.strip().splitlines()) >= 2 or case == "no model", "a way out is given"


def test_a_file_says_how_many_images_it_takes(tmp_path):
    fixed = small_file(tmp_path / "fixed.onnx", [4, 3, 16, 16])
    assert read_model(fixed, None)[:2] == read_model(fixed, 4)[:2] == ((3, 16, 16), 4)
    assert read_model(small_file(tmp_path / "any.onnx", ["N", 3, 16, 16]), None)[:2] == ((3, 16, 16), 1)


def test_the_images_are_the_seed_s():
    load = Load((3, 4, 4), batch=2, seed=1)
    assert np.array_equal(load.images(), load.images()) and load.images().shape == (2, 3, 4, 4)
    assert not np.array_equal(load.images(), Load((3, 4, 4), batch=2, seed=2).images())
    events = Load((5, 2, 4, 4), batch=3).images()
    assert events.shape == (5, 3, 2, 4, 4) and events.min() == 0 and (events == events.astype(int)).all()


def test_rounds_are_paired_and_turn(tmp_path):
    log = tmp_path / "log"
    report = run_rounds([contestant(n, ready, 0.0, str(log), n) for n in "abc"], 3)
    turns = log.read_text()
    assert turns[:6] == "aabbcc" and turns[6:9] == "abc", "loading, then an estimate of each"
    assert turns[9:] == "aabbcc" + "bbccaa" + "ccaabb", "one untimed run and one timed, a new one first each round"
    assert [each["runs"] for each in report["rows"]] == [3, 3, 3] and report["untimed_run_before_each"]


def test_slow_ones_run_once_a_round(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "UNTIMED_BELOW_S", 0.001)
    log = tmp_path / "log"
    run_rounds([contestant("a", ready, 0.01, str(log), "a")], 2)
    assert log.read_text() == "aa" + "a" + "aa"


@pytest.mark.parametrize(
    ("kind", "reason"), [("error", "no more"), ("exit", "its process ended with status 7"), ("memory", "out of memory")]
)
def test_one_that_fails_leaves_the_others(kind, reason):
    report = run_rounds([contestant("a"), contestant("b", failing, kind), contestant("c")], 3)
    a, b, c = report["rows"]
    assert b["reason"] == reason and b["runs"] == 0 and b["median_ms"] is None
    assert a["runs"] == c["runs"] == 3 and c["ratio"] is not None


def test_one_that_is_too_slow_is_left_out():
    a, b = run_rounds([contestant("a"), contestant("b", ready, 30.0)], 1, limit=5)["rows"]
    assert a["runs"] == 1 and b["reason"] == "not done after 5 s"


def test_a_first_that_fails_leaves_no_ratios():
    a, b = run_rounds([contestant("a", failing, "error"), contestant("b")], 3)["rows"]
    assert a["reason"] == "no more" and b["runs"] == 3 and b["ratio"] is None


def test_work_without_rounds():
    assert once(contestant("a", os.path.basename, "x/y"), 60) == "y"
    with pytest.raises(Failed) as error:
        once(Runner("a", Source.input, (Source(Path("nowhere.pt")),)), 60)
    assert isinstance(error.value.cause, InputError) and error.value.cause.exit_status == 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_is_the_contestant_s_own():
    worker = Worker(contestant("a", grown), 60)
    try:
        worker.answer()
        assert 1.6e7 < worker.ask("memory") < 4e7
    finally:
        worker.close()
    assert peak() >= resident() > 1e6 and (busy_seconds() or 1) > 0


def test_figures():
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert empty_row(contestant("a"), "why").keys() == ROW
    cores = os.cpu_count() or 1
    assert disturbed({"other_processes": 1.0, "threads": cores})
    assert not disturbed({"other_processes": 0.02, "threads": cores})
    assert not disturbed({"other_processes": None, "threads": cores})
    assert not disturbed({"other_processes": cores / 2, "threads": cores // 2})
