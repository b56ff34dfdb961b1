"""Comparison of a compiled file with other ways to run the same model, timed in turn in one run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch

from svitc import onnx as backend
from svitc.bench import runners
from svitc.bench.rounds import empty_row, run_rounds
from svitc.bench.runners import Load, Source
from svitc.bench.streaming import Stream, stream_file, streaming_section
from svitc.bench.worker import Failed, Runner, once
from svitc.errors import InputError, UsageError
from svitc.onnx.raw_input import takes_bytes
from svitc.onnx.states import states_of
from svitc.runtimes import ONNX_RUNTIME, RUNTIMES, runtime_of
from svitc.support.hardware import processors
from svitc.support.names import known
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

OURS = "svitc"
AT_ONCE = "all steps at once"  # beside a streaming file
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
        streaming: Refuse a file that is no streaming file.
    """

    peers: Sequence[str] | None = None
    runtimes: Sequence[str] = (ONNX_RUNTIME.name,)
    batch: int | None = None
    threads: int | None = None
    runs: int = 20
    seed: int = 0
    limit: float = 600.0
    profile: bool = False
    streaming: bool = False

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
            raise UsageError(f"--peers: {unknown[0]!r} is not known", hint=known(unknown[0], PEERS))
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
    whole: Callable[[Path], bytes],
    against: Source | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> JsonDict:
    """Time an ONNX file beside the model that it was compiled from, a streaming file also beside all steps at once.

    Args:
        file: An .onnx file, or a folder with a ``model.onnx``.
        whole: Returns the file for all steps at once of the same network as a streaming file.
        against: The original model; None to time the file alone.
        settings: How to time.
        reporter: Told what is being loaded and timed.
        verbose: Let the runners' processes write to stderr.

    Returns:
        The report, as JSON values; see docs/bench.md for the keys.

    Raises:
        UsageError: Invalid settings.
        InputError: The file is no ONNX file or does not run, or the original has another input shape.
    """
    settings, reporter = settings or Settings(), reporter or Reporter()
    settings.check()
    if against is None and settings.peers:
        raise UsageError("peers run the original model", hint="Give it with --against.")
    path = model_file(file)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = _compiled(path, whole, settings, folder)
        load = ours.load
        others, rows = list[Runner](), list[JsonDict]()
        if against is not None:
            _check_input(path, load.shape, against)
            others, rows = find_peers(against, load, settings, folder, reporter, verbose)
        report = run_rounds(
            [*ours.runners, *others], settings.runs, settings.limit, settings.profile, reporter, verbose, ours.reference
        )
    if reason := report["rows"][0]["reason"]:
        slow = reason.startswith("not done")
        hint = "Give it longer with --limit." if slow else "svitc compile writes a file that runs."
        raise InputError(f"{path} cannot be timed: {reason}", hint=hint)
    if ours.stream is not None:
        named = {row["name"]: row for row in report["rows"]}
        report["streaming"] = streaming_section(named[OURS], named[AT_ONCE], ours.stream, load.batch)
    order = [*(runner.name for runner in ours.runners), *(TITLES.get(name, name) for name in PEERS)]
    report["rows"] = sorted(report["rows"] + rows, key=lambda row: order.index(row["name"]))
    return {
        "file": str(path),
        "against": None if against is None else str(against.path),
        "input": list(load.shape),
        "dtype": "float32" if load.normalize is None else "uint8",
        "batch": load.batch,
        "threads": load.threads,
        "seed": settings.seed,
        **report,
    }


@dataclass(frozen=True)
class _Compiled:
    """The compiled file, ready to be timed.

    Attributes:
        runners: The file in each runtime; then, for a streaming file, all steps at once in the first of them.
        load: The work of one run.
        reference: The runner whose logits those of the others are compared with.
        stream: What a streaming file says of itself; None for any other.
    """

    runners: list[Runner]
    load: Load
    reference: str = "eager"
    stream: Stream | None = None


def _compiled(path: Path, whole: Callable[[Path], bytes], settings: Settings, folder: Path) -> _Compiled:
    """Return the runners of the compiled file.

    Args:
        path: The file.
        whole: Returns the file for all steps at once of the same network as a streaming file.
        settings: How to time.
        folder: Folder for that file.

    Raises:
        InputError: The file cannot be timed, or lies beside another network.
        UsageError: It only takes batches of another size.
    """
    shape, batch, facts = read_model(path, settings.batch)
    stream, names = Stream.of(onnx.load(path)), list(dict.fromkeys(settings.runtimes))
    if stream is None and settings.streaming:
        raise InputError(
            f"{path} takes all time steps at once: it is no streaming file",
            hint="svitc compile --streaming writes one; without --streaming this one is timed as it is.",
        )
    if stream is None:
        load = Load(shape, batch, settings.all_threads, settings.seed, _normalization(path))
        return _Compiled(
            [_runner(i, name, runners.onnx_file, (path, load, name, True), facts) for i, name in enumerate(names)], load
        )
    at_once = folder / "at_once.onnx"
    at_once.write_bytes(whole(path))
    whole_shape, _, whole_facts = read_model(at_once, batch)
    if whole_shape[-3:] != shape or whole_shape[:-3] not in ((), (stream.steps,)):
        raise InputError(
            f"{path} and model.safetensors beside it are of different networks: they take {_words(shape)} and "
            f"{_words(whole_shape)}",
            hint="The files are of different runs; compile again.",
        )
    ranks = [len(onnx.load(each).graph.output[0].type.tensor_type.shape.dim) for each in (path, at_once)]
    stream = replace(stream, stacked=ranks[1] == ranks[0] + 1)
    load = Load(whole_shape, batch, settings.all_threads, settings.seed, _normalization(path))
    found = [_runner(i, name, stream_file, (path, load, stream, name), facts) for i, name in enumerate(names)]
    arguments = (at_once, load, names[0], True)
    found.append(Runner(AT_ONCE, runners.onnx_file, arguments, IMPORTS.get(names[0], ORT_IMPORTS), whole_facts))
    return _Compiled(found, load, AT_ONCE, stream)


def _normalization(path: Path) -> dict[str, list[float]] | None:
    """Return how a file that takes bytes normalizes them; None for a file that takes floats."""
    proto = onnx.load(path)
    if not takes_bytes(proto):
        return None
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    usual = {"mean": "[0.0]", "std": "[1.0]"}
    return {key: json.loads(entries.get(f"image.{key}", value)) for key, value in usual.items()}


def _runner(
    place: int, runtime: str, make: Callable[..., object], arguments: tuple[object, ...], facts: JsonDict
) -> Runner:
    """Return the runner of the compiled file in a runtime."""
    return Runner(title_of(place, runtime), make, arguments, IMPORTS.get(runtime, ORT_IMPORTS), facts)


def _words(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))


def _check_input(path: Path, shape: tuple[int, ...], against: Source) -> None:
    """Check that a file takes the input of the original model.

    Raises:
        InputError: The original has another input shape.
    """
    expected = against.input().shape
    if expected != shape:
        raise InputError(
            f"{path} takes an input of {_words(shape)}, but {against.path} one of {_words(expected)}",
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

    Of a streaming file it is the shape of a frame.

    Args:
        path: The file.
        batch: Images in one run; None for 1, or for as many as the file takes at once.

    Returns:
        The shape, the images in one run, and ``nodes`` and ``weight_bytes``.

    Raises:
        InputError: The file is not a model with one input of images, float32 or uint8, or of event frames.
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
    stored |= {state.input for state in states_of(proto) or ()}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8)
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in kinds:
        raise InputError(f"{path} does not take one tensor of float32, or of uint8", hint=hint)
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
    if takes_bytes(proto):  # [N, H, W, C]
        shape = (shape[-1], *shape[:-1])
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
