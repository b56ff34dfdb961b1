"""Hostile files of our own kinds: programs, plans, reports, sweeps, checkpoints of fine-tuning, output folders."""

from __future__ import annotations

import functools
import io
import json
import random
import re
import struct
import tempfile
from pathlib import Path

import onnx
import torch
from torch import nn

import svitc
from campaign.cases import Kind, Made
from campaign.mutations import BYTES, changed_json, json_text, words_of
from support.paths import DIGITS
from svitc.bench.streaming import Stream
from svitc.driver.anytime import stored_rule
from svitc.driver.output_folder import at_once, is_streaming, open_folder
from svitc.driver.report_files import comparison_of, page_of
from svitc.driver.runtime_table import note_in_report
from svitc.evaluation.evaluator import Measurement
from svitc.evaluation.store import FORMAT, Store
from svitc.ir.program import Program
from svitc.onnx.model_info import read_proto
from svitc.onnx.states import STATES_KEY
from svitc.passes.policies import POLICIES
from svitc.planning.plan import Plan
from svitc.serialization import writer
from svitc.training import checkpoint
from svitc.verification.stream_check import averages

PROGRAM = r"model\.safetensors.*Compile the model again"
REPORT = r"is not JSON|is not a report of svitc compile|does not read as a report"
INPUTS = {"student": "s", "data": "d", "lr": 0.1}


@functools.cache
def program() -> Program:
    """The demo's program."""
    return svitc.load(DIGITS)


@functools.cache
def output_files() -> dict[str, bytes]:
    """The output folder of half of the demo's network."""
    with tempfile.TemporaryDirectory() as folder:
        paths = svitc.compile(program(), 0.5, policy=POLICIES["uniform"](), no_data="uniform", images=2).write(
            folder, html=False
        )
        return {path.name: path.read_bytes() for path in paths}


def program_file() -> bytes:
    return output_files()["model.safetensors"]


def _program(rng: random.Random, folder: Path) -> Made:
    """A program's file whose JSON, header or bytes are changed."""
    data = program_file()
    path = folder / "model.safetensors"
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8 : 8 + size])
    way = rng.choice(("bytes", "json", "values", "values", "header"))
    if way == "bytes":
        path.write_bytes(BYTES[rng.choice(list(BYTES))](rng, data))
        return Made("program: bytes", path, PROGRAM)
    content = json.loads(head["__metadata__"]["program"])
    words = PROGRAM
    if way == "json":
        change, changed = json_text(rng, content)
        head["__metadata__"]["program"], words = changed.decode("utf-8", "replace"), words_of(change, PROGRAM)
    elif way == "values":
        part = rng.choice(("nodes", "layers", "input", "parameters", "info"))
        content[part] = changed_json(rng, content[part])
        head["__metadata__"]["program"] = json.dumps(content)
    else:
        head = changed_json(rng, head)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return Made(f"program: {way}", path, words)


@functools.cache
def _plan_content() -> dict:
    groups = [group for group in program().groups if group.frozen is None]
    entries = {
        g.name: {"heads": g.heads, "dims": g.axis.size, "keep": [*range(g.heads * g.axis.size)]} for g in groups[:3]
    }
    nodes = [node for node in program().graph.nodes if node.op == "call_module"]
    bits = {str(node.target): 8 for node in nodes if isinstance(program().module_of(node), nn.Conv2d | nn.Conv1d)}
    return {
        "format": "svitc-plan-1",
        "made_by": {"policy": "uniform"},
        "groups": entries,
        "bits": dict([*bits.items()][:2]),
    }


def _plan(rng: random.Random, folder: Path) -> Made:
    path = folder / "plan.json"
    content = json.loads(json.dumps(_plan_content()))
    if rng.random() < 0.2:
        entry = rng.choice(list(content["groups"].values()))
        entry[rng.choice(("heads", "dims"))] = rng.choice((10**5, 10**9, 10**18, -5))
        change, text = "large masks", json.dumps(content).encode()
        words = r"the plan's entry for .* (claims .* memory|is malformed)|the plan keeps a mask .* which has"
    else:
        change, text = json_text(rng, content)
        words = words_of(change, r"the plan|is not a svitc plan")
    path.write_bytes(text)
    return Made(f"plan: {change}", path, words)


def _read_plan(path: Path) -> None:
    Plan.load(path).validate(program())


@functools.cache
def _report_content() -> dict:
    return json.loads(output_files()["report.json"])


def _report(rng: random.Random, folder: Path) -> Made:
    change, text = json_text(rng, _report_content())
    (folder / "report.json").write_bytes(text)
    for name in ("model.onnx", "report.html"):
        (folder / name).write_bytes(output_files().get(name, b""))
    return Made(f"report: {change}", folder, rf"report\.json.*({words_of(change, REPORT)})")


def _read_report(folder: Path) -> None:
    row = {"name": "onnxruntime", "result": "exact"}
    note_in_report(folder, row, output_files()["model.onnx"])
    for page in (page_of(folder), comparison_of([folder, folder], folder / "page.html")):
        assert b"<script>alert" not in page


def _sweep(rng: random.Random, folder: Path) -> Made:
    """The measurements of a sweep whose lines are changed, cut or mixed."""
    point = Measurement(3, 4, 1, 0, 0.5, 0.1).fields()
    lines = [
        json.dumps({"format": FORMAT, "of": "me"}),
        *(json.dumps({"key": f"k{i}", "point": point}) for i in range(4)),
    ]
    if rng.random() < 0.5:
        i = rng.randrange(len(lines))
        change, text = json_text(rng, json.loads(lines[i]))
        data = "\n".join(lines[:i]).encode() + b"\n" + text + b"\n" + "\n".join(lines[i + 1 :]).encode() + b"\n"
    else:
        change = rng.choice(list(BYTES))
        data = BYTES[change](rng, ("\n".join(lines) + "\n").encode())
    path = folder / "out.sweep.jsonl"
    path.write_bytes(data)
    return Made(f"sweep: {change}", path, r"out\.sweep\.jsonl (holds no points of a sweep|is of another model)")


def _read_sweep(path: Path) -> None:
    """Continue a sweep: what is kept can be computed with, and what is added can be read again."""
    store = Store(path, "me", resume=True)
    for point in store.points.values():
        assert 0 <= point.accuracy <= 1, point
        float(point.drop + point.expected_drop + point.loss + point.divergence)
    kept = dict(store.points)
    store.add("new", Measurement(1, 2, 0, 0, 0.5, 0.1), {})
    assert Store(path, "me", resume=True).points == {**kept, "new": store.points["new"]}


@functools.cache
def _finetune_file() -> bytes:
    weights = {"a": torch.ones(20, 3), "b": torch.zeros(4)}
    state = {
        "inputs": INPUTS,
        "epoch": 1,
        "weights": weights,
        "best": weights,
        "best_epoch": 1,
        "best_score": 0.5,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "history": [{"epoch": 1, "loss": 0.5}],
        "start_right": torch.ones(4, dtype=torch.bool),
        "teacher_right": torch.ones(4, dtype=torch.bool),
    }
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, **state, "digest": checkpoint.digest(state)}, buffer)
    return buffer.getvalue()


def _finetune(rng: random.Random, folder: Path) -> Made:
    path = folder / "out.finetune.pt"
    change = rng.choice(list(BYTES))
    path.write_bytes(BYTES[change](rng, _finetune_file()))
    words = r"out\.finetune\.pt (is damaged|is no checkpoint of fine-tuning|belongs to another run)"
    return Made(f"fine-tuning: {change}", path, words)


def _read_finetune(path: Path) -> None:
    state = checkpoint.load_checkpoint(path, INPUTS)
    assert set(state["weights"]) == {"a", "b"} and state["epoch"] == 1, "what is accepted is what was written"


def _output_folder(rng: random.Random, folder: Path) -> Made:
    """An output folder one of whose files is damaged, missing, a link, or reaches out of it."""
    files = {name: output_files()[name] for name in ("model.onnx", "model.py", "model.safetensors")}
    name = rng.choice(list(files))
    way = rng.choice(("bytes", "bytes", "missing", "link", "external data"))
    if way == "bytes":
        files[name] = BYTES[rng.choice(list(BYTES))](rng, files[name])
    elif way == "external data":
        model, name = onnx.load_from_string(files["model.onnx"]), "model.onnx"
        tensor = next(t for t in model.graph.initializer if t.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        location = rng.choice(("../outside/secret", "/etc/passwd", "secret", "../../outside/secret"))
        tensor.external_data.add(key="location", value=location)
        files[name] = model.SerializeToString()
    for each, data in files.items():
        if each != name or way not in ("missing", "link"):
            (folder / each).write_bytes(data)
    if way == "link":
        (folder / name).symlink_to(rng.choice(("/dev/zero", "nowhere", ".", name)))
    missing = way in ("missing", "link")
    words = rf"{name} missing" if missing else rf"{name}.*(is not|cannot|damaged|[Cc]ompile .*again)"
    if way == "external data":
        words = r"model\.onnx keeps weights in other files: .* is in "
    return Made(
        f"folder: {way}",
        folder,
        rf"{words}|cannot read an ONNX model from .*{name}",
        must_fail=missing or way == "external data",
    )


def _read_folder(folder: Path) -> None:
    """Open the folder as verify and bench do, up to where a runtime takes over."""
    open_folder(folder)
    is_streaming(folder)


def _metadata(rng: random.Random, folder: Path) -> Made:
    """An output folder whose ONNX file says other things of itself."""
    model = onnx.load_from_string(output_files()["model.onnx"])
    state = {"input": "v", "output": "v_next", "shape": [1, "batch"], "initial": 0.0, "in_place": False}
    state["parts"] = [{"name": "p", "shape": [1], "offset": 0, "initial": 0.0}]
    rule = {"thresholds": [0.5, 0.5], "offsets": [[0.0] * 4] * 2, "mean_steps": 1.5}
    values = {STATES_KEY: [state], "early_exit": rule, "time_steps": 4, "target": "cpu"}
    key = rng.choice(list(values))
    change, text = json_text(rng, values[key])
    kept = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=key, value=text.decode("utf-8", "replace"))
    for name in ("model.py", "model.safetensors"):
        (folder / name).write_bytes(output_files()[name])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    words = words_of(change, rf"metadata are damaged: {re.escape(key)}|Targets are")
    return Made(f"{key}: {change}", folder, words)


def _read_metadata(folder: Path) -> None:
    """Read what a file says of itself, as verify, bench and energy do."""
    stored_rule(folder)
    model = read_proto(folder / "model.onnx")
    if Stream.of(model) is not None:
        averages(model)
    if [entry.value for entry in model.metadata_props if entry.key == "target"] != ['"cpu"']:  # it takes longer
        at_once(folder / "model.onnx")


KINDS = (
    Kind("programs", _program, writer.load_program, statuses=frozenset({3}), share=2),
    Kind("plans", _plan, _read_plan, statuses=frozenset({3})),
    Kind("reports", _report, _read_report, ("report", "{}"), frozenset({3}), share=2),
    Kind("sweeps", _sweep, _read_sweep, statuses=frozenset({3})),
    Kind("fine-tuning", _finetune, _read_finetune, statuses=frozenset({3})),
    Kind("metadata", _metadata, _read_metadata, statuses=frozenset({2, 3})),
    Kind("output folders", _output_folder, _read_folder, ("verify", "{}"), frozenset({3})),
)
