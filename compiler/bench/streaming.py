"""Streaming files: a run is one call for each time step, timed beside the same network's file for all steps at once."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from svitc.bench.rounds import quartiles
from svitc.bench.runners import Load, joined, profile
from svitc.bench.worker import Ready
from svitc.onnx.model_info import reading_metadata
from svitc.onnx.states import FileState, states_of
from svitc.runtimes import ONNX_RUNTIME, RUNTIMES, Session
from svitc.support.types import JsonDict

Call = Callable[[np.ndarray, Any], tuple[list[np.ndarray], Any]]
"""Takes a frame and the states; returns the outputs and the next states."""


@dataclass(frozen=True)
class Stream:
    """What the metadata of a streaming file say of it.

    Attributes:
        image: name of the input that takes a frame.
        outputs: names of the outputs that are no states.
        states: the states, in the order of the inputs.
        steps: time steps of the network: calls in one run.
        mean_steps: time steps that are run on average under the rule for stopping early; None without a rule.
        stacked: whether the file for all steps at once returns what each of them gives, not one result.
    """

    image: str
    outputs: tuple[str, ...]
    states: tuple[FileState, ...]
    steps: int
    mean_steps: float | None = None
    stacked: bool = False

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Stream | None:
        """Return what a file says of itself; None for a file of any other kind."""
        states = states_of(model)
        if states is None:
            return None
        entries = {entry.key: entry.value for entry in model.metadata_props}
        with reading_metadata("early_exit, time_steps"):
            rule = json.loads(entries.get("early_exit", "null"))
            steps = int(json.loads(entries.get("time_steps", "1")))
            mean_steps = None if rule is None else float(rule["mean_steps"])
        after = {state.output for state in states}
        return cls(
            model.graph.input[0].name,
            tuple(value.name for value in model.graph.output if value.name not in after),
            tuple(states),
            steps,
            mean_steps,
        )

    def frames(self, load: Load) -> list[np.ndarray]:
        """Return the frames of one run, as the file takes them: those of an event recording, or an image every step."""
        x = load.frames()
        return list(x) if x.ndim == 5 else [x] * self.steps


def stream_file(path: Path, load: Load, stream: Stream, name: str) -> Ready:
    """Load a streaming file into a runtime; a run begins with the initial states, and hands them from call to call.

    Args:
        path: the file.
        load: the work of one run, in the shape of the file for all steps at once.
        stream: what the file says of itself.
        name: key of the runtime.
    """
    runtime, seconds = RUNTIMES[name], list[float]()
    start = [state.start(load.batch) for state in stream.states]
    if runtime is not ONNX_RUNTIME:
        session = runtime.open(path, load.threads, load.batch)
        run = _in_turn(_any_call(session, stream), stream, load, start, seconds)
        return Ready(run, f"{name} {runtime.version()}", child=session.child, calls=seconds)

    def loaded(session: onnxruntime.InferenceSession) -> Callable[[], np.ndarray]:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in start]
        return _in_turn(_ort_call(session, stream), stream, load, values, seconds)

    options = ONNX_RUNTIME.options(load.threads)
    return Ready(
        loaded(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])),
        f"{name} {runtime.version()}",
        profile=lambda runs: profile(path, load.threads, runs, loaded, stream.steps),
        calls=seconds,
    )


def _in_turn(
    call: Call, stream: Stream, load: Load, start: Sequence[object], seconds: list[float]
) -> Callable[[], np.ndarray]:
    """Return a run: one call for each frame. ``seconds`` gets the time of each."""
    frames = stream.frames(load)

    def run() -> np.ndarray:
        seconds.clear()
        states, results = start, []
        for frame in frames:
            began = time.perf_counter()
            outputs, states = call(frame, states)
            seconds.append(time.perf_counter() - began)
            results.append(joined(outputs))
        return np.stack(results) if stream.stacked else results[-1]

    return run


def _ort_call(session: onnxruntime.InferenceSession, stream: Stream) -> Call:
    """Return a call that leaves the states in the runtime's own memory, as stream.py and stream.cpp do."""
    names, count = [*stream.outputs, *(state.output for state in stream.states)], len(stream.outputs)
    inputs = [state.input for state in stream.states]

    def call(frame: np.ndarray, states: Any) -> tuple[list[np.ndarray], Any]:
        image = onnxruntime.OrtValue.ortvalue_from_numpy(frame)
        feed = {stream.image: image, **dict(zip(inputs, states, strict=True))}
        values = session.run_with_ort_values(names, feed)
        return [value.numpy() for value in values[:count]], values[count:]

    return call


def _any_call(session: Session, stream: Stream) -> Call:
    """Return a call in a runtime whose arrays are numpy's."""
    names, count = [*stream.outputs, *(state.output for state in stream.states)], len(stream.outputs)
    inputs = [state.input for state in stream.states]

    def call(frame: np.ndarray, states: Any) -> tuple[list[np.ndarray], Any]:
        values = session.run(names, {stream.image: frame, **dict(zip(inputs, states, strict=True))})
        return values[:count], values[count:]

    return call


def streaming_section(calls: JsonDict, at_once: JsonDict, stream: Stream, batch: int) -> JsonDict:
    """Return what one time step per call costs beside all at once.

    Args:
        calls: row of the streaming file, with ``calls_ms``.
        at_once: row of the file for all steps at once.
        stream: what the streaming file says of itself.
        batch: images in one run.

    Returns:
        The report's section ``streaming``; ratios are None where the other file has no times.
    """
    each = quartiles([ms for run in calls["calls_ms"] for ms in run])
    section: JsonDict = {
        "steps": stream.steps,
        "call_q1_ms": each[0],
        "call_median_ms": each[1],
        "call_q3_ms": each[2],
        **dict.fromkeys(("ratio", "ratio_q1", "ratio_q3", "call_ratio", "memory_ratio")),
        "mean_steps": stream.mean_steps,
        # each image of a batch stops by itself, and the batch goes on until the last one has
        "mean_steps_ms": None if stream.mean_steps is None or batch > 1 else stream.mean_steps * each[1],
    }
    if at_once["reason"] is None:
        pairs = list(zip(calls["times_ms"], calls["calls_ms"], at_once["times_ms"], strict=True))
        section["ratio_q1"], section["ratio"], section["ratio_q3"] = quartiles([a / b for a, _, b in pairs])
        section["call_ratio"] = quartiles([statistics.median(c) * stream.steps / b for _, c, b in pairs])[1]
        if at_once["memory_bytes"]:
            section["memory_ratio"] = float(f"{calls['memory_bytes'] / at_once['memory_bytes']:.4g}")
    return section
