"""Run model.onnx one frame after another, and print the answer and the time of each step: python stream.py FRAMES [N]

FRAMES is a .npy, or the first array of an .npz: an image [C, H, W], which is run for all time steps, or frames
[T, C, H, W], also of n streams, [T, n, C, H, W]; N is how often each is run. Pixels are floats, normalized with the
metadata's image.mean and image.std, or bytes [H, W, C] where image.dtype is uint8; events are counts. In a program:
    net = Stream("model.onnx", n=1); scores = net(frame); states = net.states; net.resume(net.start)  # is a reset"""

import json
import sys
import time

import numpy as np
from onnxruntime import InferenceSession, OrtValue


class Stream:  # a call takes n frames, and returns the class scores so far, or else the first of `outputs`
    def __init__(self, file, n=1):
        self.net = net = InferenceSession(file, providers=["CPUExecutionProvider"])
        self.meta = {key: json.loads(value) for key, value in net.get_modelmeta().custom_metadata_map.items()}
        self.shape, self.start = (*(n if isinstance(k, str) else k for k in net.get_inputs()[0].shape),), {}
        for state in self.meta.get("svitc.states") or sys.exit(f"{file} keeps no states: compile with --streaming"):
            value = self.start[state["input"]] = np.empty([self.shape[0], *state["shape"][1:]], state["dtype"])
            for part in state.get("parts", [state]):  # each fills all up to the end, and the next what is its own
                value.reshape(len(value), -1)[:, part.get("offset", 0) :] = part["initial"]
        self.resume(self.start)

    def resume(self, states):  # as {name: value.numpy() for name, value in net.states.items()} has kept them
        for name in sorted(self.start.keys() | states.keys()):
            has, needs = (f"{s[name].dtype}{s[name].shape}" if name in s else "absent" for s in (states, self.start))
            if has != needs or np.isnan(states[name]).any():
                raise ValueError(f"{name} is {has}{' with NaN' * (has == needs)}; needed: {needs}")
        self.states = {name: OrtValue.ortvalue_from_numpy(np.array(states[name])) for name in self.start}

    def __call__(self, frame):
        counts, frame, kind = not self.meta.get("image.range"), np.array(frame), self.meta.get("image.dtype", "float32")
        frame = frame.astype(np.float32) if frame.dtype.kind in ("fiub" if counts else "f") else frame  # of any size
        if (has := f"{frame.dtype}{frame.shape}{' with NaN' * bool((frame != frame).any())}") != f"{kind}{self.shape}":
            raise ValueError(f"a frame is {has}; needed: {kind}{self.shape}")
        values = self.net.run_with_ort_values(None, {"image": OrtValue.ortvalue_from_numpy(frame), **self.states})
        self.states = dict(zip(self.start, values[-len(self.start) :], strict=True))
        self.outputs = [value.numpy() for value in values[: -len(self.start)]]
        return self.outputs[0]


if __name__ == "__main__":
    sys.tracebacklimit = 0  # an error is one line
    f = np.load(sys.argv[1] if sys.argv[1:] else sys.exit(__doc__))
    frames = f[:, None] if (f := f[f.files[0]] if hasattr(f, "files") else f).ndim == 4 else f[(None,) * (5 - f.ndim)]
    net, unsure, answers = Stream(f"{sys.path[0]}/model.onnx", n := frames.shape[1]), np.full(n, True), np.zeros(n, int)
    names, rule = net.meta["classes"] or range(9**9), net.meta["early_exit"] or {"thresholds": [None], "offsets": [0]}
    limits, offsets = (np.array(rule[key], float) for key in ("thresholds", "offsets"))  # of each step; None is NaN
    repeat = int(sys.argv[2]) if sys.argv[2:] else net.meta["time_steps"] if len(frames) == 1 else 1
    for i in range(frames.size and len(frames) * repeat) or sys.exit(f"no frame: {frames.shape}, each {repeat} times"):
        began, scores = time.perf_counter(), net(frames[i // repeat])
        ms, values = 1e3 * (time.perf_counter() - began), scores.reshape(n, -1) + offsets[min(i, len(offsets) - 1)]
        answers[unsure], p = values.argmax(1)[unsure], np.sort(np.exp(values - values.max(1, keepdims=True)))
        other = [f"{k} {v.shape}, mean {v.mean():.3g}" for k, v in zip(net.meta["outputs"], net.outputs, strict=True)]
        print(f"step {i + 1}: {[names[k] for k in answers] if scores.ndim == 2 else other}, {ms:.2f} ms")
        (unsure := unsure & ~(np.ptp(p[:, -2:], 1) / p.sum(1) >= limits[min(i, len(limits) - 1)])).any() or sys.exit()
