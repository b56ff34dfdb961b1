"""Compare files of 4 and 2 bits with the 8-bit file: time per image, time to load, and bytes, in one run.

    python benchmarks/bits_speed.py [--models spikformer_s …] [--runs 20]

Networks have random weights at their published sizes, with batch norms estimated so that neurons fire; weights are
rounded to the nearest numbers. Every round runs each file once, in turn; ratios are medians over rounds, against the
8-bit file of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import svitc
from common import FULL_SIZE, build, publish, warm
from svitc import onnx as backend
from svitc import runtimes
from svitc.analysis.exactness import narrowable
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.onnx.export import export
from svitc.passes import Prune, RoundWeights
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan
from svitc.verification.exact_check import verify_exact

PAUSE = 0.02  # s; threads of one session spin for a while after its run


def files(name: str) -> tuple[dict[int, bytes], torch.Tensor]:
    model, shape = build(name)
    program = capture(warm(model, shape), svitc.InputSpec(shape))
    run_canonical_passes(program)
    narrow = [layer for layer, why in narrowable(quantize(program)[0]).items() if not why]
    made = {}
    for bits in (8, 4, 2):
        rounded = program.copy()
        Prune(Plan({}))(rounded)
        plan = dict.fromkeys(narrow, bits)
        RoundWeights(plan)(rounded)
        final, _ = quantize(rounded, plan)
        made[bits] = export(final)
        verdict = verify_exact(final, made[bits], random_inputs(final, 1, 1, 0))
        assert verdict.passed, f"{name} at {bits} bits: {verdict.first_divergence}"
    return made, random_inputs(program, 1, 1, 0)[0]


def measure(name: str, runs: int, threads: int) -> list[dict]:
    made, x = files(name)
    feed = {backend.INPUT: x.numpy()}
    loads: dict[int, float] = {}
    sessions = {}
    for bits, file in made.items():
        start = time.perf_counter()
        sessions[bits] = runtimes.session(file, threads)
        loads[bits] = time.perf_counter() - start
        sessions[bits].run(None, feed)
    times: dict[int, list[float]] = {bits: [] for bits in made}
    for number in range(runs):
        for bits in list(made)[number % 3 :] + list(made)[: number % 3]:
            time.sleep(PAUSE)
            sessions[bits].run(None, feed)
            start = time.perf_counter()
            sessions[bits].run(None, feed)
            times[bits].append(1e3 * (time.perf_counter() - start))
    return [
        {
            "model": name,
            "bits": bits,
            "ms": round(statistics.median(times[bits]), 2),
            "beside 8 bits": round(statistics.median(a / b for a, b in zip(times[bits], times[8], strict=True)), 3),
            "load, s": round(loads[bits], 2),
            "weight bytes": backend.weight_bytes(file),
            "file bytes": len(file),
        }
        for bits, file in made.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=["spikformer_s", "sdt_8_384", "qkformer_10_384"], choices=FULL_SIZE
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for name in args.models for row in measure(name, args.runs, args.threads)]
    publish("bits_speed", rows, f"One image of 224x224 at T=4, {args.threads} threads, medians of {args.runs} rounds.")


if __name__ == "__main__":
    main()
