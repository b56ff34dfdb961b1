"""How ``check.py`` runs a streaming file: this ``load`` takes the place of that in device_check.py (proof.py)."""

import sys

import numpy as np

from svitc.driver.device_check import runtime


def load(model, names, check):
    """Return a function from an image to a model's outputs of these names."""
    if "--openvino" not in sys.argv:
        session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return in_turn(session.run, names, check)
    try:
        compiled = runtime.compile_model(runtime.Core().read_model(model), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    except RuntimeError as error:
        sys.exit(f"{error}\nOpenVINO cannot read model.onnx; compile it with --target openvino, without --functions")
    return in_turn(lambda names, feed: [r[name] for r in [compiled(feed)] for name in names], names, check)


def in_turn(run, names, check):
    """Return a function from an image, or a streaming file's frames, to outputs; of frames to those of all calls."""
    states = check["states"].tolist() if "states" in check else []
    if not states:
        return lambda image: run(names, {"image": image})

    def steps(image):
        values, calls = [check[f"start {name}"] for name in states[::2]], []
        for frame in image if image.ndim == 5 else [image] * int(check["steps"]):
            feed = dict(zip(states[::2], values[-len(states) // 2 :], strict=True))
            values = run(names + states[1::2], {"image": frame, **feed})
            calls.append(values[: len(names)])
        return [np.stack(values) for values in zip(*calls, strict=True)]

    return steps
