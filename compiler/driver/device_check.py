"""Check that this machine computes the network of model.onnx: python check.py [--openvino] [--spikes].

Outputs are compared, bit for bit or within float rounding; the spikes of every neuron, too, if they differ or asked to.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

if "--openvino" in sys.argv:
    import openvino as runtime
else:
    import onnxruntime as runtime


def load(model, names):
    """Return a function from an image to a model's outputs of these names."""
    if "--openvino" not in sys.argv:
        session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda x: session.run(names, {"image": x})
    core = runtime.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    return lambda x: [result[name] for result in [compiled({"image": x})] for name in names]


def fingerprint(steps):
    """Return the digest of a neuron's spikes, their number, and how many fired in each of up to 64 parts."""
    spikes = np.concatenate([step.ravel() for step in steps]).astype(np.uint16)
    parts = np.add.reduceat(spikes, np.arange(0, spikes.size, -(-spikes.size // 64)), dtype=np.int64)
    return hashlib.sha256(spikes.tobytes()).hexdigest(), spikes.size, np.resize(parts, 64)


def main(check, model):
    """Print that all is equal, or return what differs first."""
    if str(check["digest"]).encode() not in model:
        return "check.npz belongs to another model.onnx"
    run, wrong = load(model, names := check["outputs"].tolist()), ""
    for i, image in enumerate(check["images"]):
        for name, value in zip(names, run(image), strict=True):
            difference = abs(value - check[f"value {name}"][i])
            if not (difference <= check[f"allowed {name}"][i]).all():
                wrong = wrong or f"differs at {name}, by up to {difference.max():.3g}, in image {i}"
    taps = [values.split("\n") for values in check["values"].tolist()] if wrong or "--spikes" in sys.argv else []
    run = load(model + check["taps"].tobytes(), [name for steps in taps for name in steps]) if taps else iter
    for i, image in enumerate(check["images"]):
        values = iter(run(image))
        for j, steps in enumerate(taps):
            digest, size, parts = fingerprint([next(values) for _ in steps])
            few = -1 if check["exact"][j] else max(1, size // 4096)  # so many may round to the other side
            if digest != check["digests"][i, j] and abs(parts - check["parts"][i, j]).sum() > few:
                return f"differs first at {check['layers'][j]}, in image {i}"
    return wrong or print(f"equal: {len(check['images'])} images{f', spikes of {len(taps)} layers' if taps else ''}")


if __name__ == "__main__":
    file = Path(__file__).resolve().with_name
    sys.exit(main(np.load(file("check.npz")), file("model.onnx").read_bytes()))
