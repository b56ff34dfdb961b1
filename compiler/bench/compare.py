"""Comparison of a compiled file with other ways to run the same model, timed in turn in one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from svitc import onnx as backend
from svitc.bench import runners
from svitc.bench.rounds import empty_row, run_rounds
from svitc.bench.runners import Load, Source
from svitc.bench.worker import Failed, Runner, once
from svitc.errors import InputError, UsageError
from svitc.onnx.states import states_of
from svitc.runtimes import ONNX_RUNTIME, RUNTIMES, runtime_of
from svitc.support.hardware import processors
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

OURS = "svitc"
PEERS = ("eager", "torch.compile", "torch.onnx", "openvino", "cuda")
DEFAULT_PEERS = ("eager", "torch.onnx", "openvino", "cuda")
TITLES = {"torch.onnx": "torch.onnx + ONNX Runtime", "cuda": "eager cuda", "openvino": "torch.onnx + OpenVINO"}
# modules that a process imports first, so that only the model counts as its memory
ORT_IMPORTS = ("torch", "onnxruntime", "svitc.onnx")
OPENVINO_IMPORTS = ("torch", "svitc.onnx", "openvino")
IMPORTS = {"openvino": OPENVINO_IMPORTS}


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark.

    Attributes:
        peers: Runners to compare with, of ``PEERS``; None for the available ones of ``DEFAULT_PEERS``.
        runtimes: What runs the compiled file; times are compared with the first's.
        batch: Images in one run; None for 1, or for as many as the file takes at once.
        threads: Threads of each runtime; None for one per processor.
        runs: Number of rounds; each runner has one timed run per round.
        seed: Seed of the images.
        limit: Seconds that a peer may take to load, to export, or for one run.
        profile: Also profile the operators with ONNX Runtime's profiler.
    """

    peers: Sequence[str] | None = None
    runtimes: Sequence[str] = (ONNX_RUNTIME.name,)
    batch: int | None = None
    threads: int | None = None
    runs: int = 20
    seed: int = 0
    limit: float = 600.0
    profile: bool = False

    def check(self) -> None:
        """Check the settings.

        Raises:
            UsageError: A number is not positive, or a peer is unknown.
        """
        for name in ("batch", "threads", "runs", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name} {value:g} is not a positive number", hint=f"For example --{name} 20.")
        unknown = [name for name in self.peers or () if name not in PEERS]
        if unknown:
            raise UsageError(f"--peers: {unknown[0]!r} is not known", hint=f"Known: {', '.join(PEERS)}.")
        if not self.runtimes:
            raise UsageError("--runtimes names no runtime", hint=f"Known: {', '.join(RUNTIMES)}.")
        for name in self.runtimes:
            runtime_of(name)

    @property
    def all_threads(self) -> int:
        """Threads of each runtime."""
        return self.threads or processors()


def measure(
    file: Path,
    against: Source | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> JsonDict:
    """Time an ONNX file beside the model that it was compiled from.

    Args:
        file: An .onnx file, or a folder with a ``model.onnx``.
        against: The original model; None to time the file alone.
        settings: How to time.
        reporter: Told what is being loaded and timed.
        verbose: Let the runners' processes write to stderr.

    Returns:
        The report, as JSON values; see docs/bench.md for the keys.

    Raises:
        UsageError: Invalid settings.
        InputError: The file is not an ONNX file or does not run, or the original has another input shape.
    """
    settings, reporter = settings or Settings(), reporter or Reporter()
    settings.check()
    if against is None and settings.peers:
        raise UsageError("peers run the original model", hint="Give it with --against.")
    path = model_file(file)
    shape, batch, facts = read_model(path, settings.batch)
    if against is not None:
        _check_input(path, shape, against)
    load = Load(shape, batch, settings.all_threads, settings.seed)
    ours = [
        Runner(title_of(i, name), runners.onnx_file, (path, load, name), IMPORTS.get(name, ORT_IMPORTS), facts)
        for i, name in enumerate(dict.fromkeys(settings.runtimes))
    ]
    with tempfile.TemporaryDirectory() as folder:
        others, rows = (
            ([], []) if against is None else find_peers(against, load, settings, Path(folder), reporter, verbose)
        )
        report = run_rounds([*ours, *others], settings.runs, settings.limit, settings.profile, reporter, verbose)
    if reason := report["rows"][0]["reason"]:
        slow = reason.startswith("not done")
        hint = "Give it longer with --limit." if slow else "svitc compile writes a file that runs."
        raise InputError(f"{path} cannot be timed: {reason}", hint=hint)
    order = [*(runner.name for runner in ours), *(TITLES.get(name, name) for name in PEERS)]
    report["rows"] = sorted(report["rows"] + rows, key=lambda row: order.index(row["name"]))
    return {
        "file": str(path),
        "against": None if against is None else str(against.path),
        "input": list(shape),
        "batch": batch,
        "threads": load.threads,
        "seed": settings.seed,
        **report,
    }


def _check_input(path: Path, shape: tuple[int, ...], against: Source) -> None:
    """Check that a file takes the input of the original model.

    Raises:
        InputError: The original has another input shape.
    """
    expected = against.input().shape
    if expected != shape:
        file_shape, model_shape = (",".join(map(str, sizes)) for sizes in (shape, expected))
        raise InputError(
            f"{path} takes an input of {file_shape}, but {against.path} one of {model_shape}",
            hint="Give --against the model that was compiled, or its --input-shape or --time-steps.",
        )


def title_of(place: int, runtime: str) -> str:
    """Return the name of the row of the compiled file in a runtime; the first is what others are compared with."""
    return OURS if place == 0 else f"{OURS} in {RUNTIMES[runtime].title}"


def model_file(file: Path) -> Path:
    """Return the ONNX file of an output folder, or the file itself.

    Raises:
        InputError: There is no such file.
    """
    path = file / "model.onnx" if file.is_dir() else file
    if not path.is_file():
        raise InputError(f"{path} does not exist", hint="Give an output folder of svitc compile, or an .onnx file.")
    return path


def read_model(path: Path, batch: int | None) -> tuple[tuple[int, ...], int, JsonDict]:
    """Return the input shape of an ONNX file, without its batch axis, the batch to run, and facts for its row.

    Args:
        path: The file.
        batch: Images in one run; None for 1, or for as many as the file takes at once.

    Returns:
        The shape, the images in one run, and ``nodes`` and ``weight_bytes``.

    Raises:
        InputError: The file is not a model with one float32 input of images or event frames.
        UsageError: It only takes batches of another size.
    """
    hint = "Give an output folder of svitc compile, or an .onnx file."
    try:
        proto = onnx.load(path)
        stored = {tensor.name for tensor in proto.graph.initializer}
        facts = {"nodes": backend.node_count(proto), "weight_bytes": backend.weight_bytes(proto)}
    except Exception as error:  # implementations of protobuf have no common class of errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read an ONNX model from {path}: {reason}", hint=hint) from error
    if states_of(proto) is not None:
        raise InputError(
            f"{path} is a streaming file, which runs one time step per call",
            hint="Time a file that was compiled without --streaming; benchmarks/streaming.py compares the two.",
        )
    inputs = [value for value in proto.graph.input if value.name not in stored]
    if any(entry.key == "svitc.states" for entry in proto.metadata_props):
        raise InputError(
            f"{path} runs one time step per call; svitc bench times files that run all of them at once",
            hint="Time a file that is compiled without --streaming; stream.py beside this one prints each step's time.",
        )
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise InputError(f"{path} does not take one float32 tensor", hint=hint)
    dims = [d.dim_value if d.HasField("dim_value") else None for d in inputs[0].type.tensor_type.shape.dim]
    if len(dims) not in (4, 5):
        raise InputError(f"{path} takes neither [N, C, H, W] nor [T, N, C, H, W]", hint=hint)
    fixed_batch = dims.pop(0 if len(dims) == 4 else 1)
    batch = batch or fixed_batch or 1
    if fixed_batch not in (None, 0, batch):
        raise UsageError(f"{path} takes batches of {fixed_batch} only", hint=f"Give --batch {fixed_batch}.")
    shape = tuple(size for size in dims if size)
    if len(shape) != len(dims):
        raise InputError(f"{path} leaves more than the batch open in its input, {dims}", hint=hint)
    return shape, batch, facts


def find_peers(
    source: Source, load: Load, settings: Settings, folder: Path, reporter: Reporter, verbose: bool
) -> tuple[list[Runner], list[JsonDict]]:
    """Return runners of the peers that can run, and rows of those that cannot.

    Args:
        source: The original model.
        load: The work of one run.
        settings: Which peers.
        folder: Folder for the file of ``torch.onnx.export``.
        reporter: Told what is being exported.
        verbose: Let the exporting process write to stderr.
    """
    names = settings.peers
    if names is None:
        names = [name for name in DEFAULT_PEERS if name != "cuda" or torch.cuda.is_available()]
    reasons = {
        "torch.onnx": runners.missing("onnxscript"),
        "openvino": runners.missing("onnxscript") or runners.missing("openvino"),
        "cuda": None if torch.cuda.is_available() else "no CUDA device",
    }
    path, facts = folder / "naive.onnx", {}
    if any(name in names and reasons[name] is None for name in ("torch.onnx", "openvino")):
        reporter.progress("torch.onnx.export", 0)
        try:
            facts = exported(source, load, path, settings.limit, verbose)
        except Failed as failure:
            for name in ("torch.onnx", "openvino"):
                reasons[name] = reasons[name] or f"torch.onnx.export: {failure.reason}"
    peers = {
        "eager": Runner("eager", runners.eager, (source, load)),
        "torch.compile": Runner("torch.compile", runners.eager, (source, load, "compile")),
        "torch.onnx": Runner(TITLES["torch.onnx"], runners.onnx_file, (path, load), ORT_IMPORTS, facts),
        "openvino": Runner(TITLES["openvino"], runners.openvino_file, (path, load), OPENVINO_IMPORTS, facts),
        "cuda": Runner(TITLES["cuda"], runners.eager, (source, load, "cuda")),
    }
    ready = [peers[name] for name in PEERS if name in names and reasons.get(name) is None]
    return ready, [empty_row(peers[name], str(reason)) for name, reason in reasons.items() if name in names and reason]


def exported(source: Source, load: Load, path: Path, limit: float, verbose: bool = False) -> JsonDict:
    """Export the original with ``torch.onnx.export`` in another process, and return facts for its row.

    Raises:
        Failed: The export failed or took too long.
    """
    start = time.perf_counter()
    nodes = once(Runner("torch.onnx.export", runners.naive_export, (source, load, path)), limit, verbose)
    return {
        "nodes": nodes,
        "weight_bytes": backend.weight_bytes(path),
        "export_seconds": round(time.perf_counter() - start, 1),
    }
