"""Run model.onnx one frame after another: python stream.py FRAMES.npy [REPEAT] (docs/streaming.md)."""

import json
import sys
import time

import numpy as np
from onnxruntime import InferenceSession, OrtValue


class Stream:
    """A network that keeps its states: a call takes a frame [n, C, H, W], and returns the class scores so far."""

    def __init__(self, file, n=1):
        self.net = net = InferenceSession(file, providers=["CPUExecutionProvider"])
        self.meta = {key: json.loads(value) for key, value in net.get_modelmeta().custom_metadata_map.items()}
        self.shape, self.start, self.after = (n, *net.get_inputs()[0].shape[1:]), {}, {net.get_outputs()[0].name: False}
        for state in self.meta.get("svitc.states") or sys.exit(f"{file} keeps no states: compile with --streaming"):
            value = self.start[state["input"]] = np.empty([n, *state["shape"][1:]], state["dtype"])
            self.after[state["output"]] = state.get("in_place", False)
            for part in state.get("parts", [state]):  # each fills all up to the end, and the next what is its own
                value.reshape(n, -1)[:, part.get("offset", 0) :] = part["initial"]
        self.resume(self.start)

    def resume(self, states):
        """Go on from states by name, `{k: v.numpy() for k, v in states.items()}` of another; `start` is a reset."""
        for name in sorted(self.start.keys() | states.keys()):
            has, needs = (f"{s[name].dtype}{s[name].shape}" if name in s else "absent" for s in (states, self.start))
            if has != needs or np.isnan(states[name]).any():
                raise ValueError(f"{name} is {has}{' with NaN' * (has == needs)}; needed: {needs}")
        self.states = self.kept = {k: OrtValue.ortvalue_from_numpy(np.array(states[k])) for k in self.start}

    def __call__(self, frame):
        if (has := f"{frame.shape}{' with NaN' * bool(np.isnan(frame).any())}") != f"{self.shape}":
            raise ValueError(f"a frame is {has}; needed: {self.shape}")
        values = {"image": OrtValue.ortvalue_from_numpy(np.ascontiguousarray(frame, np.float32)), **self.states}
        binding = self.net.io_binding()
        for (name, value), (after, in_place) in zip(values.items(), self.after.items(), strict=True):
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(after, value) if in_place else binding.bind_output(after)  # no copy of a state
        self.net.run_with_iobinding(binding)
        self.states = dict(zip(values, binding.get_outputs(), strict=True))
        return self.states.pop("image").numpy()


if __name__ == "__main__":
    sys.tracebacklimit = 0  # an error is one line
    frames = np.load(sys.argv[1] if sys.argv[1:] else sys.exit(__doc__))
    frames = np.array(frames[frames.files[0]] if hasattr(frames, "files") else frames, np.float32, ndmin=3)
    frames = np.expand_dims(frames, {3: (0, 1), 4: (1,)}.get(frames.ndim, ()))
    net, unsure, answers = Stream(f"{sys.path[0]}/model.onnx", n := frames.shape[1]), np.full(n, True), np.zeros(n, int)
    names, rule = net.meta["classes"], net.meta.get("early_exit") or {"thresholds": [None], "offsets": [0]}
    limits, offsets = (np.array(rule[key], float) for key in ("thresholds", "offsets"))  # of each step; None is NaN
    repeat = int(sys.argv[2]) if sys.argv[2:] else net.meta["time_steps"] if len(frames) == 1 else 1
    for i, frame in enumerate(np.repeat(frames, repeat, 0)):
        began, scores, ended = time.perf_counter(), net(frame) + offsets[min(i, len(offsets) - 1)], time.perf_counter()
        answers[unsure], p = scores.argmax(1)[unsure], np.sort(np.exp(scores - scores.max(1, keepdims=True)))
        print(f"step {i + 1}: {[names[k] if names else k for k in answers.tolist()]}, {1e3 * (ended - began):.2f} ms")
        (unsure := unsure & ~(np.ptp(p[:, -2:], 1) / p.sum(1) >= limits[min(i, len(limits) - 1)])).any() or sys.exit()
