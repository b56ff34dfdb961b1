"""Time the whole command ``svitc compile``, from its start to its end, beside torch.onnx.export(dynamo=True) alone.

The command loads a checkpoint, captures and checks it, prunes it to 0.78 of its bytes (fp32) or gives it weights of 8
bits, exports and verifies it, and writes the files with their proof; its imports count. The export is timed in a fresh
process without imports, on the same model with the same weights, whose batch norms have seen random images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from common import FULL_SIZE, build, publish, warm

COMMANDS = {"fp32": ["--budget", "0.78"], "int8": ["--weights", "int8"]}


def command_s(checkpoint: Path, out: Path, options: list[str]) -> tuple[float, dict[str, float]]:
    """Return the seconds of the whole command, and those of its stages as its report has them."""
    command = [sys.executable, "-m", "svitc", "compile", str(checkpoint), "-o", str(out), "--no-data", "uniform"]
    start = time.perf_counter()
    subprocess.run([*command, *options, "--json"], capture_output=True, check=True)
    elapsed = time.perf_counter() - start
    return elapsed, json.loads((out / "report.json").read_text())["seconds"]


def export_s(name: str, checkpoint: Path, out: Path) -> float:
    """Return the seconds of the export in a fresh process."""
    command = [sys.executable, __file__, "--one", name, str(checkpoint), str(out)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(next(line for line in text.splitlines() if line.startswith("RESULT "))[7:])


def one(name: str, checkpoint: str, out: str) -> None:
    """Export in this process, and print the seconds."""
    model, shape = build(name)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    x = torch.randn(1, *shape)
    start = time.perf_counter()
    torch.onnx.export(model, (x,), out, dynamo=True, verbose=False)
    print(f"RESULT {time.perf_counter() - start}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spikformer_s", choices=list(FULL_SIZE))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "CHECKPOINT", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(*args.one)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, shape = build(args.model)
        torch.save(warm(model, shape).state_dict(), work / "model.pt")
        rounds = []
        for _ in range(args.runs):
            peer = export_s(args.model, work / "model.pt", work / "peer.onnx")
            rounds.append(
                {w: command_s(work / "model.pt", work / w, o) for w, o in COMMANDS.items()} | {"torch.onnx": peer}
            )
    rows = []
    for weights in COMMANDS:
        stages = {s: statistics.median(r[weights][1].get(s, 0.0) for r in rounds) for s in rounds[0][weights][1]}
        rows.append(
            {
                "model": args.model,
                "weights": weights,
                "svitc compile s": round(statistics.median(r[weights][0] for r in rounds), 2),
                "of which verify s": round(stages["verify"], 2),
                "of which proof s": round(stages["prove"], 2),
                "torch.onnx s": round(statistics.median(r["torch.onnx"] for r in rounds), 2),
                "ratio": round(statistics.median(r[weights][0] / r["torch.onnx"] for r in rounds), 3),
                "runs": args.runs,
            }
        )
    publish("command_speed", rows, f"{__doc__.strip()} Medians.", raw=rounds)


if __name__ == "__main__":
    main()
