"""How much faster int8 files are than fp32 ones in onnxruntime-web, in one thread of WebAssembly, in Node.js.

    NODE_PATH=… python benchmarks/web_speed.py [--models spikformer_s …] [--rounds 9]

Models of their published size whose neurons fire, unpruned, with ``--target web``. Both files are run in turn on one
image, each in a Node.js process of its own; ``fp32 over int8`` is the median of the rounds' ratios. The logits are
compared with those of ONNX Runtime on the same image.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import svitc
from common import FULL_SIZE, build, publish, warm
from runtimes import final_program
from svitc.bench.runners import Load
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.onnx.export import export
from svitc.runtimes import ONNX_RUNTIME, RUNTIMES

WEIGHTS = ("fp32", "int8")


def row(name: str, rounds: int) -> dict[str, object]:
    """Return the times of one model."""
    runtime = RUNTIMES["onnxruntime-web"]
    model, shape = build(name)
    program = capture(warm(model, shape), svitc.InputSpec(shape))
    run_canonical_passes(program)
    files = {weights: export(final_program(program, weights), "web") for weights in WEIGHTS}
    sessions = {weights: runtime.open(file, threads=1, batch=1) for weights, file in files.items()}
    feed = {"image": Load(shape).images()}
    ms: dict[str, list[float]] = {weights: [] for weights in WEIGHTS}
    logits = {}
    for _ in range(rounds + 1):
        for weights, session in sessions.items():
            start = time.perf_counter()
            logits[weights] = session.run(["logits"], feed)[0]
            ms[weights].append(1e3 * (time.perf_counter() - start))
    native = {weights: ONNX_RUNTIME.open(file).run(["logits"], feed)[0] for weights, file in files.items()}
    return {
        "model": name,
        "version": runtime.version(),
        **{f"{weights} ms": statistics.median(ms[weights][1:]) for weights in WEIGHTS},  # the first allocates
        "fp32 over int8": statistics.median(f / i for f, i in zip(ms["fp32"][1:], ms["int8"][1:], strict=True)),
        "lowest of the rounds": min(f / i for f, i in zip(ms["fp32"][1:], ms["int8"][1:], strict=True)),
        **{f"{weights} logits differ by": float(abs(logits[weights] - native[weights]).max()) for weights in WEIGHTS},
        "equal classes": all(np.array_equal(logits[w].argmax(-1), native[w].argmax(-1)) for w in WEIGHTS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["spikformer_s"], choices=FULL_SIZE)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    publish("web_speed", [row(name, args.rounds) for name in args.models], __doc__ or "")


if __name__ == "__main__":
    main()
