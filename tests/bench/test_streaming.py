"""``svitc bench`` of a streaming file: what it reports, and bad input. No test looks at how long anything took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from support import shell
from svitc.bench.compare import measure
from svitc.bench.rounds import quartiles
from svitc.bench.runners import Load, onnx_file
from svitc.bench.streaming import Stream, stream_file, streaming_section
from svitc.cli.views.bench import show_report
from svitc.codegen.module import program_source
from svitc.driver.metadata import Origin, described, metadata
from svitc.driver.options import CompileOptions
from svitc.driver.output_folder import at_once, is_streaming
from svitc.errors import InputError
from svitc.onnx.export import export, export_step
from svitc.onnx.model_info import read_proto
from svitc.onnx.static_batch import static_batch, with_static_batch
from svitc.passes.pipelines import quantize
from svitc.serialization.writer import save_program

RULE = {"thresholds": [None, 0.5, 0.5, 0.0], "offsets": [[0.0] * 10] * 4, "mean_steps": 2.5}


@pytest.fixture(scope="module")
def program(digits):
    """int4 weights in one layer, int8 in the others."""
    return quantize(digits, {"head": 4})[0]


@pytest.fixture(scope="module")
def folder(program, tmp_path_factory):
    """What a streaming compilation writes, with a rule for stopping early."""
    folder = tmp_path_factory.mktemp("streaming")
    origin = Origin("mixed", None, None, None, RULE)
    values = metadata(program, CompileOptions(streaming=True), origin)
    (folder / "model.onnx").write_bytes(described(export_step(program), values, streaming=True))
    (folder / "model.py").write_text(program_source(program))
    save_program(program, folder / "model.safetensors")
    return folder


def test_calls_beside_all_steps_at_once(capsys, folder):
    """Without --streaming a streaming file is timed in the same way."""
    status, text, err = shell.run(capsys, "bench", folder, "--runs", 2, "--threads", 1, "--profile", "--json")
    report = json.loads(text)
    calls, whole = report["rows"]
    assert status == 0 and err == "" and report["input"] == [1, 16, 16]
    assert (calls["name"], whole["name"]) == ("svitc", "all steps at once")
    assert [len(run) for run in calls["calls_ms"]] == [4, 4] and "calls_ms" not in whole
    assert all(0 < sum(run) <= ms for run, ms in zip(calls["calls_ms"], calls["times_ms"], strict=True))
    assert calls["max_logit_difference"] == whole["max_logit_difference"] == 0, "the same network"
    assert whole["nodes"] > calls["nodes"] > 100 and calls["memory_bytes"] > 1e5
    assert report["profile"].keys() == {"svitc", "all steps at once"}
    found = report["streaming"]
    assert found["steps"] == 4 and found["mean_steps"] == 2.5
    assert found["mean_steps_ms"] == 2.5 * found["call_median_ms"] > 0
    pairs = list(zip(calls["times_ms"], whole["times_ms"], strict=True))
    assert found["ratio"] == quartiles([a / b for a, b in pairs])[1]
    assert found["memory_ratio"] == pytest.approx(calls["memory_bytes"] / whole["memory_bytes"], rel=1e-3)

    show_report(report)
    text = " ".join(capsys.readouterr().out.split())
    assert "a call takes" in text and "times 1/4 of all steps at once" in text and "4 calls take" in text
    assert "the outputs after the last step are the same, bit for bit" in text
    assert "2.50 of 4 steps on average (report.json)" in text and "ms an image" in text
    found["mean_steps_ms"], calls["max_logit_difference"] = None, 0.5
    show_report(report)
    text = " ".join(capsys.readouterr().out.split())
    assert "(report.json), for images one by one" in text and "differ by up to 0.5" in text


def test_the_section_on_what_calls_cost():
    stream = Stream("image", ("logits",), (), 2, 1.5)
    calls = {"calls_ms": [[1.0, 3.0], [2.0, 2.0]], "times_ms": [4.0, 4.0], "memory_bytes": 30}
    section = streaming_section(calls, {"reason": None, "times_ms": [4.0, 2.0], "memory_bytes": 60}, stream, 1)
    assert (section["ratio"], section["call_ratio"], section["memory_ratio"]) == (1.5, 1.5, 0.5)
    assert (section["call_median_ms"], section["mean_steps_ms"]) == (2.0, 3.0)
    alone = streaming_section(calls, {"reason": "too slow"}, stream, 3)
    assert alone["ratio"] is alone["call_ratio"] is alone["memory_ratio"] is alone["mean_steps_ms"] is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "reference"])
def test_each_runtime_hands_states_on(folder, tmp_path, runtime):
    """Also what each step gives, where the file returns that."""
    stream, load = Stream.of(onnx.load(folder / "model.onnx")), Load((1, 16, 16), batch=2)
    (tmp_path / "whole.onnx").write_bytes(at_once(folder / "model.onnx"))
    ready = stream_file(folder / "model.onnx", load, stream, runtime)
    for _ in range(2):  # each run begins anew
        np.testing.assert_array_equal(ready.run(), onnx_file(tmp_path / "whole.onnx", load).run())
        assert len(ready.calls) == 4


def test_class_scores_of_each_step(program, tmp_path):
    files = {"step": export_step(program, per_step=True), "whole": export(program, per_step=True)}
    for name, file in files.items():
        (tmp_path / name).write_bytes(file)
    stream, load = Stream.of(onnx.load_from_string(files["step"])), Load((1, 16, 16))
    stream = Stream(stream.image, stream.outputs, stream.states, 4, stacked=True)
    steps = stream_file(tmp_path / "step", load, stream, "onnxruntime").run()
    np.testing.assert_array_equal(steps, onnx_file(tmp_path / "whole", load).run())
    assert steps.shape == (4, 1, 10)


def test_frames_are_those_of_the_recording():
    stream, load = Stream("image", ("logits",), (), 3), Load((3, 2, 4, 4), batch=5)
    np.testing.assert_array_equal(stream.frames(load), load.images())
    assert [frame.shape for frame in stream.frames(Load((1, 4, 4), batch=5))] == [(5, 1, 4, 4)] * 3


def test_the_file_for_all_steps_is_written_alike(program, folder, tmp_path):
    """With weights of the same types, for batches of the same size."""
    types = {tensor.data_type for tensor in read_proto(at_once(folder / "model.onnx")).graph.initializer}
    assert onnx.TensorProto.INT4 in types
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "model.onnx").write_bytes(with_static_batch((folder / "model.onnx").read_bytes(), 3))
    assert static_batch(read_proto(at_once(other / "model.onnx"))) == 3
    assert static_batch(read_proto(at_once(folder / "model.onnx"))) is None


def test_inspect_says_which_file_it_times(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("svitc.driver.latency.predict_undisturbed", lambda *args: {})
    monkeypatch.setattr("svitc.cli.commands.inspect.prediction", lambda report: None)
    status, text, err = shell.run(capsys, "inspect", folder, "--latency", "--weights", "int8")
    assert status == 0 and "of all time steps at once; svitc bench times the" in " ".join((text + err).split())
    assert is_streaming(folder) and not is_streaming(tmp_path)


def test_bad_input(capsys, folder, tmp_path):
    shutil.copy(folder / "model.onnx", tmp_path)
    status, _, err = shell.run(capsys, "bench", tmp_path)
    assert status == 3 and "is not an output folder of svitc: model.safetensors, model.py missing" in err
    small = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["image"], ["y"])], "g", [small], [small])
    other = onnx.helper.make_model(graph).SerializeToString()
    with pytest.raises(InputError, match="of different networks: they take 1,16,16 and 3,8,8"):
        measure(folder, lambda file: other)
