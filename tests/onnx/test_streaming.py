"""A streaming file, one call for each step, gives the bits of the file for all steps at once, also when resumed."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from support.families import FAMILIES
from support.measured import family
from support.serialized import canonicalised
from svitc.ir.program import Program
from svitc.onnx.export import export, export_step
from svitc.onnx.states import STATES_KEY
from svitc.onnx.target import target_of
from svitc.passes.pipelines import quantize


class Stream:
    """Runs a file from its metadata alone."""

    def __init__(self, file: bytes, batch: int) -> None:
        model = onnx.load_from_string(file)
        onnx.checker.check_model(model, full_check=True)
        meta = {entry.key: entry.value for entry in model.metadata_props}
        self.described, self.session = json.loads(meta[STATES_KEY]), onnxruntime.InferenceSession(file)
        inputs = [value.name for value in self.session.get_inputs()]
        assert inputs == ["image", *(state["input"] for state in self.described)]
        self.states = {
            state["input"]: np.full([batch if n == "N" else n for n in state["shape"]], state["initial"], np.float32)
            for state in self.described
        }

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        logits, *after = self.session.run(None, {"image": frame, **self.states})
        self.states = {state["input"]: value for state, value in zip(self.described, after, strict=True)}
        return logits


def compared(program: Program, batch: int = 2, target: str = "cpu", functions: bool = False):
    """Return the logits of the whole file and of T calls, the second half of them in another session."""
    x = torch.randn(program.input.batched(batch), generator=torch.Generator().manual_seed(1)).numpy()
    file = export_step(program, target_of(target, None, functions))
    frames = x if program.input.events else [x] * 3
    first, second = Stream(file, batch), Stream(file, batch)
    for frame in frames[: len(frames) // 2]:
        first(frame)
    second.states = first.states
    logits = [second(frame) for frame in frames[len(frames) // 2 :]][-1]
    return onnxruntime.InferenceSession(export(program, target)).run(None, {"image": x})[0], logits


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_in_turn_equal_all_steps_at_once(name):
    whole, logits = compared(quantize(family(name, T=3))[0])
    assert np.array_equal(whole, logits)


@pytest.mark.parametrize("events", [False, True], ids=["image", "events"])
def test_float_files_agree_within_rounding(events):
    program = canonicalised("sdt", events=True) if events else family("sdt", T=3)
    whole, logits = compared(program)
    assert np.allclose(whole, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"functions": True}, {"target": "openvino"}, {"batch": 1}], ids=str)
def test_other_forms_of_the_file(options):
    whole, logits = compared(quantize(family("sdt", T=3))[0], **options)
    assert np.array_equal(whole, logits)
