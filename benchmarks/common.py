"""Helpers of all benchmarks: models that fire, versions, results as JSON and as a Markdown table."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import model as sj
from torch import nn

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "spikingjelly", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "numpy")

FULL_SIZE = {
    "spikformer_ti": (sj.spikformer_ti, (3, 224, 224)),
    "spikformer_s": (sj.spikformer_s, (3, 224, 224)),
    "spikformer_cifar10": (sj.spikformer_cifar10, (3, 32, 32)),
    "sdt_8_384": (sj.sdt_8_384, (3, 224, 224)),
    "qkformer_10_384": (sj.qkformer_10_384, (3, 224, 224)),
    "maxformer_10_384": (sj.maxformer_10_384, (3, 224, 224)),
    "maxformer_cifar": (sj.maxformer_cifar, (3, 32, 32)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model at its published size with random weights, in eval mode."""
    factory, shape = FULL_SIZE[name]
    torch.manual_seed(seed)
    return factory().eval(), shape


def warm(model: nn.Module, shape: Sequence[int], batches: int = 2, size: int = 2) -> nn.Module:
    """Estimate batch-norm statistics on random images, so that neurons fire as in a trained network.

    Momentum None averages over all batches; without this a random network is silent after a few layers.
    """
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    kept = [m.momentum for m in norms]
    for m in norms:
        m.momentum = None
        m.reset_running_stats()
        nn.init.constant_(m.bias, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(batches):
            functional.reset_net(model)
            model(torch.randn(size, *shape))
    functional.reset_net(model)
    for m, momentum in zip(norms, kept, strict=True):
        m.momentum = momentum
    return model.eval()


def environment() -> dict[str, Any]:
    """Return what a result depends on, without naming the machine."""
    return {
        "command": " ".join(["python", *(Path(a).name if "/" in a else a for a in sys.argv)]),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table, with the columns of the first row."""
    columns = list(rows[0])

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell(row[c]) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def publish(name: str, rows: Sequence[dict[str, Any]], note: str = "", **extra: Any) -> None:
    """Write ``results/<name>.json`` and ``.md``, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    record = {"environment": environment(), "rows": list(rows), **extra}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    env = record["environment"]
    text = f"# {name}\n\n{note}\n\n{table(rows)}\n`{env['command']}`, {made_with(env)}\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def made_with(env: dict[str, Any]) -> str:
    """Return versions, processor and threads in a line."""
    packages = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    return f"Python {env['python']}, {packages}; {env['processor']}, {env['threads']} threads"
