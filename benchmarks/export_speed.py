"""Time the way from a PyTorch model to an ONNX file: svitc (capture, analysis, pruning to 0.78, export) beside
torch.onnx.export(dynamo=True) alone, each in a fresh process, on the same model with the same weights."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import FULL_SIZE, build, peak_memory, publish


def ours(name: str, out: Path) -> dict[str, float]:
    import svitc
    from svitc import onnx
    from svitc.driver.load import run_canonical_passes
    from svitc.frontends.capture.capture import capture
    from svitc.ir.pass_manager import Pipeline
    from svitc.onnx.export import export
    from svitc.passes import Prune
    from svitc.passes.pipelines import inference_passes
    from svitc.passes.policies import Uniform
    from svitc.planning.budget import parse_budget
    from svitc.planning.cost import byte_cost

    model, shape = build(name)
    start = time.perf_counter()
    program = capture(model, svitc.InputSpec(shape))
    run_canonical_passes(program)
    folded = program.copy()
    Pipeline(inference_passes())(folded)
    original = onnx.weight_bytes(onnx.lower(folded))
    plan = Uniform().plan(program, byte_cost(program, folded, original), parse_budget("0.78").limit(original), "bytes")
    Prune(plan)(program)
    out.write_bytes(export(program))
    return {"seconds": time.perf_counter() - start}


def peer(name: str, out: Path) -> dict[str, float]:
    import torch

    model, shape = build(name)
    x = torch.randn(1, *shape)
    start = time.perf_counter()
    torch.onnx.export(model, (x,), str(out), dynamo=True, verbose=False)
    return {"seconds": time.perf_counter() - start}


def one(which: str, name: str) -> None:
    from svitc import onnx

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        result = {"svitc": ours, "torch.onnx": peer}[which](name, out)
        result["peak"] = peak_memory()
        result["nodes"] = onnx.node_count(out, inlined=True)
    print("RESULT " + json.dumps(result))


def run(which: str, name: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", which, name]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(next(line for line in text.splitlines() if line.startswith("RESULT "))[7:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["spikformer_s", "sdt_8_384", "qkformer_10_384"],
        choices=list(FULL_SIZE),
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WHICH", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(*args.one)
    rows, raw = [], {}
    for name in args.models:
        pairs = [(run("svitc", name), run("torch.onnx", name)) for _ in range(args.runs)]
        raw[name] = pairs
        mine, theirs = zip(*pairs, strict=True)
        seconds = [statistics.median(r["seconds"] for r in side) for side in (mine, theirs)]
        rows.append(
            {
                "model": name,
                "svitc s": round(seconds[0], 2),
                "torch.onnx s": round(seconds[1], 2),
                "time ratio": round(seconds[0] / seconds[1], 4),
                "svitc nodes": int(mine[0]["nodes"]),
                "torch.onnx nodes": int(theirs[0]["nodes"]),
                "node ratio": round(mine[0]["nodes"] / theirs[0]["nodes"], 4),
                "svitc peak GiB": round(max(r["peak"] for r in mine) / 2**30, 2),
                "torch.onnx peak GiB": round(max(r["peak"] for r in theirs) / 2**30, 2),
                "runs": args.runs,
            }
        )
        print(rows[-1], flush=True)
    publish("export_speed", rows, f"{__doc__} Medians.", raw=raw)


if __name__ == "__main__":
    main()
