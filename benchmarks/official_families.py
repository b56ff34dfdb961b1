"""Check that the official families compile at their published sizes. For each, a bare checkpoint with random weights,
as its repository saves it, goes through `svitc compile --budget 0.78 --no-data uniform` in a process of its own: the
seconds from start to exit, peak memory, and what is in the model before and after."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from common import publish, warm
from svitc.frontends.published import PUBLISHED

NAMES = ["spikformer_8_512", "sdt_8_512", "qkformer_10_384", "metaspikformer_15m", "espikeformer_s"]


def one(name: str) -> dict[str, object]:
    published = PUBLISHED[name]
    torch.manual_seed(0)
    model = warm(published.build(), published.input, batches=1, size=1)
    counted = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        key = "model" if published.factory in ("MetaSpikeFormer", "ESpikeFormer", "QKFormer") else "state_dict"
        torch.save({key: model.state_dict(), "epoch": 1}, path)
        command = [
            sys.executable,
            "-m",
            "svitc",
            "compile",
            str(path),
            "--budget",
            "0.78",
            "--no-data",
            "uniform",
            "--json",
        ]
        command += ["--rewrite-model"] if published.factory == "QKFormer" else []  # it runs time and batch together
        start = time.perf_counter()
        done = subprocess.run([*command, "-o", str(Path(folder) / "out")], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{name}: exit status {done.returncode}\n{done.stderr}")
    report = json.loads(done.stdout)
    parameters, memory, macs, nodes = (report[key] for key in ("parameters", "memory", "macs", "nodes"))
    return {
        "model": name,
        "published": published.parameters,
        "counted": counted,
        "dead": parameters["dead"],
        "parameters": f"{parameters['original']:,} -> {parameters['compiled']:,}",
        "bytes": f"{memory['original_bytes']:,} -> {memory['compiled_bytes']:,}",
        "ratio": round(memory["ratio"], 4),
        "GMACs": f"{macs['original'] / 1e9:.2f} -> {macs['compiled'] / 1e9:.2f}",
        "nodes": f"{nodes['original']} -> {nodes['compiled']}",
        "verified": report["verify"]["status"],
        "flips beyond rounding": report["verify"]["flips_beyond_rounding"],
        "silent neurons": f"{len(report['verify']['silent_neurons'])} of {report['verify']['neurons']}",
        "seconds": round(seconds, 1),
        "peak GiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=NAMES, choices=list(PUBLISHED))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("RESULT " + json.dumps(one(args.one)))
        return
    rows = []
    for name in args.models:  # a process each, so that the peak is this model's own
        text = subprocess.run([sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(next(line for line in text.stdout.splitlines() if line.startswith("RESULT "))[7:]))
        print(rows[-1], flush=True)
    publish("official_families", rows, __doc__ or "")


if __name__ == "__main__":
    main()
