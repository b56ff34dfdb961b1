"""Check that analysis time grows linearly with depth: capture, canonical passes, groups and re-typing of a Spikformer
of width 384 at 224x224, depth 8 against depth 24."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from spikingjelly.activation_based.model.spikformer import Spikformer

import svitc
from common import publish
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture


def analyse(depth: int) -> tuple[float, float, int]:
    torch.manual_seed(0)
    model = Spikformer(T=4, embed_dims=384, num_heads=12, depths=depth).eval()
    start = time.perf_counter()
    program = capture(model, svitc.InputSpec((3, 224, 224)))
    captured = time.perf_counter()
    run_canonical_passes(program)
    count = len(program.groups)
    return captured - start, time.perf_counter() - captured, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", nargs="+", type=int, default=[4, 8, 16, 24])
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    analyse(min(args.depths))  # imports and caches
    times: dict[int, list[tuple[float, float, int]]] = {depth: [] for depth in args.depths}
    for _ in range(args.runs):
        for depth in args.depths:
            times[depth].append(analyse(depth))
    rows = []
    for depth in args.depths:
        capture_s = statistics.median(t[0] for t in times[depth])
        analysis_s = statistics.median(t[1] for t in times[depth])
        rows.append(
            {
                "depth": depth,
                "groups": times[depth][0][2],
                "capture s": round(capture_s, 3),
                "analysis s": round(analysis_s, 3),
                "both s": round(capture_s + analysis_s, 3),
                "runs": args.runs,
            }
        )
    first, last = (next(r for r in rows if r["depth"] == d) for d in (8, max(args.depths)))
    ratio = {k: round(last[k] / first[k], 3) for k in ("capture s", "analysis s", "both s")}
    publish("scaling", rows, f"{__doc__}\n\nDepth {last['depth']} against depth 8: {ratio}. Medians.", ratio=ratio)


if __name__ == "__main__":
    main()
