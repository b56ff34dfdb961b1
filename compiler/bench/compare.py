"""Side by side: a compiled file, and what else could run the same model, timed in one run and in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from svitc import onnx as backend
from svitc.bench import runners as peers_
from svitc.bench.rounds import row, run_rounds
from svitc.bench.runners import Load, Source
from svitc.bench.worker import Failed, Runner, once
from svitc.errors import InputError, UsageError
from svitc.support.hardware import processors
from svitc.support.reporter import Reporter

OURS = "svitc"
PEERS = ("eager", "torch.compile", "torch.onnx", "openvino", "cuda")
DEFAULT_PEERS = ("eager", "torch.onnx", "openvino", "cuda")
TITLES = {"torch.onnx": "torch.onnx + ONNX Runtime", "cuda": "eager cuda", "openvino": "torch.onnx + OpenVINO"}
ORT = ("torch", "onnxruntime", "svitc.onnx")  # what a process imports, so that only the model counts as its memory
OPENVINO = ("torch", "svitc.onnx", "openvino")


@dataclass(frozen=True)
class Settings:
    """How to time.

    Attributes:
        peers: of ``PEERS``; None for those of ``DEFAULT_PEERS`` that are there.
        batch: images in one run.
        threads: of each runtime, None for one a processor.
        runs: rounds, and so timed runs of each contestant.
        seed: of the images.
        limit: seconds that loading or exporting, or one run, of a peer may take.
        profile: also ask ONNX Runtime's profiler where the time goes.
    """

    peers: Sequence[str] | None = None
    batch: int = 1
    threads: int | None = None
    runs: int = 20
    seed: int = 0
    limit: float = 600.0
    profile: bool = False

    def check(self) -> None:
        """
        Raises:
            UsageError: a number or name that makes no sense.
        """
        for name in ("batch", "threads", "runs", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name} {value:g} is not a positive number", hint=f"For example --{name} 20.")
        unknown = [name for name in self.peers or () if name not in PEERS]
        if unknown:
            raise UsageError(f"--peers: {unknown[0]!r} is not known", hint=f"Known: {', '.join(PEERS)}.")

    @property
    def all_threads(self) -> int:
        return self.threads or processors()


def measure(
    file: Path,
    against: Source | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Time an ONNX file beside the model that it was compiled from.

    Args:
        file: an .onnx file, or a folder with a ``model.onnx``.
        against: the original model; None to time the file alone.
        reporter: told what is being loaded and timed.
        verbose: let the runners' processes write to stderr.

    Returns:
        The report, as JSON values; see docs/bench.md for the keys.

    Raises:
        UsageError: settings that make no sense.
        InputError: not an ONNX file, one that does not run, or a model of another input shape.
    """
    settings, reporter = settings or Settings(), reporter or Reporter()
    settings.check()
    if against is None and settings.peers:
        raise UsageError("peers run the original model", hint="Give it with --against.")
    path = model_file(file)
    shape, facts = look(path, settings.batch)
    if against is not None:
        wanted = against.input().shape
        if wanted != shape:
            given, taken = (",".join(map(str, s)) for s in (shape, wanted))
            raise InputError(
                f"{path} takes an input of {given}, but {against.path} one of {taken}",
                hint="Give --against the model that was compiled, or its --input-shape or --time-steps.",
            )
    load = Load(shape, settings.batch, settings.all_threads, settings.seed)
    ours = Runner(OURS, peers_.onnx_file, (path, load), ORT, facts)
    with tempfile.TemporaryDirectory() as folder:
        others, rows = (
            ([], []) if against is None else find_peers(against, load, settings, Path(folder), reporter, verbose)
        )
        report = run_rounds([ours, *others], settings.runs, settings.limit, settings.profile, reporter, verbose)
    if reason := report["rows"][0]["reason"]:
        slow = reason.startswith("not done")
        hint = "Give it longer with --limit." if slow else "svitc compile writes a file that runs."
        raise InputError(f"{path} cannot be timed: {reason}", hint=hint)
    order = [OURS, *(TITLES.get(name, name) for name in PEERS)]
    report["rows"] = sorted(report["rows"] + rows, key=lambda row: order.index(row["name"]))
    return {
        "file": str(path),
        "against": None if against is None else str(against.path),
        "input": list(shape),
        "batch": settings.batch,
        "threads": load.threads,
        "seed": settings.seed,
        **report,
    }


def model_file(file: Path) -> Path:
    """The ONNX file that a path means. Raises ``InputError``."""
    path = file / "model.onnx" if file.is_dir() else file
    if not path.is_file():
        raise InputError(f"{path} does not exist", hint="Give an output folder of svitc compile, or an .onnx file.")
    return path


def look(path: Path, batch: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A file's input shape without batch, and what its row says of it: ``nodes`` and ``weight_bytes``.

    Raises:
        InputError: not a model with one float32 input of images or event frames.
        UsageError: it takes batches of another size only.
    """
    hint = "Give an output folder of svitc compile, or an .onnx file."
    try:
        proto = onnx.load(path)
        stored = {tensor.name for tensor in proto.graph.initializer}
        facts = {"nodes": backend.node_count(proto), "weight_bytes": backend.weight_bytes(proto)}
    except Exception as error:  # protobuf's errors have no common class across its implementations
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read an ONNX model from {path}: {reason}", hint=hint) from error
    inputs = [value for value in proto.graph.input if value.name not in stored]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise InputError(f"{path} does not take one float32 tensor", hint=hint)
    dims = [d.dim_value if d.HasField("dim_value") else None for d in inputs[0].type.tensor_type.shape.dim]
    if len(dims) not in (4, 5):
        raise InputError(f"{path} takes neither [N, C, H, W] nor [T, N, C, H, W]", hint=hint)
    own = dims.pop(0 if len(dims) == 4 else 1)
    if own not in (None, 0, batch):
        raise UsageError(f"{path} takes batches of {own} only", hint=f"Give --batch {own}.")
    shape = tuple(size for size in dims if size)
    if len(shape) != len(dims):
        raise InputError(f"{path} leaves more than the batch open in its input, {dims}", hint=hint)
    return shape, facts


def find_peers(
    source: Source, load: Load, settings: Settings, folder: Path, reporter: Reporter, verbose: bool
) -> tuple[list[Runner], list[dict[str, Any]]]:
    """The peers that can run, and rows of those that cannot."""
    import torch

    wanted = settings.peers
    if wanted is None:
        wanted = [name for name in DEFAULT_PEERS if name != "cuda" or torch.cuda.is_available()]
    reasons = {
        "torch.onnx": peers_.missing("onnxscript"),
        "openvino": peers_.missing("onnxscript") or peers_.missing("openvino"),
        "cuda": None if torch.cuda.is_available() else "no CUDA device",
    }
    path, facts = folder / "naive.onnx", {}
    if any(name in wanted and reasons[name] is None for name in ("torch.onnx", "openvino")):
        reporter.progress("torch.onnx.export", 0)
        try:
            facts = exported(source, load, path, settings.limit, verbose)
        except Failed as failure:
            for name in ("torch.onnx", "openvino"):
                reasons[name] = reasons[name] or f"torch.onnx.export: {failure.reason}"
    made = {
        "eager": Runner("eager", peers_.eager, (source, load)),
        "torch.compile": Runner("torch.compile", peers_.eager, (source, load, "compile")),
        "torch.onnx": Runner(TITLES["torch.onnx"], peers_.onnx_file, (path, load), ORT, facts),
        "openvino": Runner(TITLES["openvino"], peers_.openvino_file, (path, load), OPENVINO, facts),
        "cuda": Runner(TITLES["cuda"], peers_.eager, (source, load, "cuda")),
    }
    ready = [made[name] for name in PEERS if name in wanted and reasons.get(name) is None]
    return ready, [row(made[name], str(reason)) for name, reason in reasons.items() if name in wanted and reason]


def exported(source: Source, load: Load, path: Path, limit: float, verbose: bool = False) -> dict[str, Any]:
    """Write the naive export in a process of its own; the facts of its row. Raises ``Failed``."""
    start = time.perf_counter()
    nodes = once(Runner("torch.onnx.export", peers_.naive_export, (source, load, path)), limit, verbose)
    return {
        "nodes": nodes,
        "weight_bytes": backend.weight_bytes(path),
        "export_seconds": round(time.perf_counter() - start, 1),
    }
