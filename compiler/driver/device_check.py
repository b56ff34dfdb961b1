"""Check that this machine fires the spikes of model.onnx: python check.py [--openvino] [--spikes] (docs/file.md)."""

import hashlib
import sys

import numpy as np

runtime = __import__("openvino" if "--openvino" in sys.argv else "onnxruntime")


def load(model, names, _):
    """Return a function from an image to a model's outputs of these names."""
    if "--openvino" not in sys.argv:
        session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda x: session.run(names, {"image": x})
    try:
        compiled = runtime.compile_model(runtime.Core().read_model(model), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    except RuntimeError as error:
        sys.exit(f"{error}\nOpenVINO cannot read model.onnx; compile it with --target openvino, without --functions")
    return lambda x: [result[name] for result in [compiled({"image": x})] for name in names]


def fingerprint(steps):
    """Return the digest of a neuron's spikes, and how many fired in each of up to 64 parts of them."""
    spikes = np.concatenate([step.ravel().astype(np.uint16) for step in steps])
    parts = np.add.reduceat(spikes, np.arange(0, spikes.size, -(-spikes.size // 64)), dtype=np.int64)
    return hashlib.sha256(spikes.tobytes()).hexdigest(), np.resize(parts, 64)


def main(check, model):
    """Print that all is equal, or return what differs first."""
    if str(check["digest"]).encode() not in model:
        return "check.npz belongs to another model.onnx"
    count, unit = (n := check["images"].shape)[0] * n[-4], "image" if n[-4] == 1 else "batch"
    run, wrong, far, rounded = load(model, names := check["outputs"].tolist(), check), [], False, ""
    for i, image in enumerate(check["images"]):
        for name, value in zip(names, run(image), strict=True):
            difference = abs(value - check[f"value {name}"][i])
            wrong += [] if (difference <= check[f"allowed {name}"][i]).all() else [(name, difference.max(), i)]
            far |= not (difference <= abs(check[f"value {name}"][i]).max() / 20).all()
    taps = [values.split("\n") for values in check["values"].tolist()] if wrong or "--spikes" in sys.argv else []
    run = load(model + check["taps"].tobytes(), [name for steps in taps for name in steps], check) if taps else iter
    for i, image in enumerate(check["images"] if taps else ()):
        values = iter(run(image))
        for j, steps in enumerate(taps):
            digest, parts = fingerprint([next(values) for _ in steps])
            apart = -1 if digest == check["digests"][i, j] else abs(parts - check["parts"][i, j]).sum()
            if apart > check["few"][j]:
                return f"differs first at {check['layers'][j]}, in {unit} {i}"
            if apart >= 0:  # a float sum was rounded to the other side of a threshold: what follows depends on it
                rounded = f", but for float rounding from {check['layers'][j]} on"
                break
    if wrong and (far or not rounded):
        return "differs at {}, by up to {:.3g}, in {unit} {}".format(*wrong[0], unit=unit)
    return print(f"equal: {count} images{f', spikes of {len(taps)} layers' if taps else ''}{rounded}")


if __name__ == "__main__":
    sys.exit(main(np.load(f"{sys.path[0]}/check.npz"), np.fromfile(f"{sys.path[0]}/model.onnx", np.uint8).tobytes()))
