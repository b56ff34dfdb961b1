"""What a benchmark can time: an ONNX file in ONNX Runtime or OpenVINO, and the original model in PyTorch.

Each function runs in a process of its own (see ``worker.py``) and loads its model there.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from spikingjelly.activation_based import functional
from torch import nn

from svitc import onnx as backend
from svitc.bench.worker import Ready
from svitc.data.pixels import LEVELS, normalized
from svitc.frontends import LoadOptions, load_model
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.outputs import tensors_of
from svitc.runtimes import ONNX_RUNTIME, RUNTIMES
from svitc.runtimes.openvino_cpu import compiled
from svitc.serialization.writer import load_program
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class Load:
    """The work of one run.

    Attributes:
        shape: Shape of the input without its batch axis.
        batch: Images in one run.
        threads: Threads within one operator.
        seed: Seed of the images.
        normalize: Where the compiled file takes the bytes of images: ``mean`` and ``std`` with which it normalizes
            them; else None.
    """

    shape: tuple[int, ...]
    batch: int = 1
    threads: int = 1
    seed: int = 0
    normalize: dict[str, list[float]] | None = None

    def frames(self) -> np.ndarray:
        """Return what the compiled file takes: ``images``, or the bytes that they were, ``[N, H, W, C]``."""
        return self.images() if self.normalize is None else self._pixels()

    def _pixels(self) -> np.ndarray:
        """Return random bytes ``[N, H, W, C]``."""
        channels, height, width = self.shape
        shape = (self.batch, height, width, channels)
        return np.random.default_rng(self.seed).integers(0, LEVELS, shape, np.uint8)

    def images(self) -> np.ndarray:
        """Return random float32 images ``[N, C, H, W]``, or event frames of small counts ``[T, N, C, H, W]``."""
        if self.normalize is not None:
            return normalized(self._pixels(), {"normalize": self.normalize})
        spec = InputSpec(self.shape)
        generator = np.random.default_rng(self.seed)
        x = generator.standard_normal(spec.batched(self.batch), dtype=np.float32)
        return np.floor(np.abs(x)) if spec.events else x


@dataclass(frozen=True)
class Source:
    """The original model.

    Attributes:
        path: A checkpoint, or an output folder of svitc.
        options: Fields of ``svitc.frontends.LoadOptions``.
    """

    path: Path
    options: JsonDict = field(default_factory=dict)

    def input(self) -> InputSpec:
        """Return the model's input. Raises as ``svitc.load`` does."""
        return self._load()[1]

    def load(self) -> tuple[nn.Module, bool]:
        """Return the model in eval mode, and whether it takes ``[N, T, ...]``. To be called once per process."""
        model, spec, info, compatibility = self._load()
        compatibility.__enter__()  # never left: the model's forward may import stand-ins for missing packages
        if info is not None and spec.events:  # capturing it shows which order of time and batch it takes
            info = capture(model, spec, info, rewrite_model=bool(self.options.get("rewrite_model"))).info
        return model.eval(), bool((info or {}).get("batch_first"))

    def _load(self) -> tuple[nn.Module, InputSpec, JsonDict | None, contextlib.AbstractContextManager[object]]:
        if (self.path / "model.safetensors").is_file():
            program = load_program(self.path / "model.safetensors")
            return program.module, program.input, None, contextlib.nullcontext()  # it takes the program's layout
        loaded = load_model(self.path, LoadOptions(**self.options))
        return loaded.model, loaded.input, loaded.info, loaded.callable_within()


def onnx_file(path: Path, load: Load, name: str = ONNX_RUNTIME.name, compiled_file: bool = False) -> Ready:
    """Load a file into a runtime (``runtimes.RUNTIMES``), with the settings that keep it exact.

    Args:
        path: The file.
        load: The work of one run.
        name: Key of the runtime.
        compiled_file: Whether it takes what the compiled file takes.
    """
    runtime = RUNTIMES[name]
    session = runtime.open(path, load.threads, load.batch)
    x = {session.input_names[0]: load.frames() if compiled_file else load.images()}

    def loaded(profiled: onnxruntime.InferenceSession) -> Callable[[], object]:
        return lambda: profiled.run(None, x)

    return Ready(
        lambda: joined(session.run(None, x)),
        f"{name} {runtime.version()}",
        profile=(lambda runs: profile(path, load.threads, runs, loaded)) if runtime is ONNX_RUNTIME else None,
        child=session.child,
    )


def profile(
    path: Path,
    threads: int,
    runs: int,
    loaded: Callable[[onnxruntime.InferenceSession], Callable[[], object]],
    calls: int = 1,
) -> dict[str, dict[str, float]]:
    """Return milliseconds per run and number of nodes of each operator, measured by ONNX Runtime's profiler.

    Operators are those that the runtime executes, after it has fused those of the file.

    Args:
        path: The file.
        threads: Threads within one operator.
        runs: Number of runs that count.
        loaded: Returns what runs a session once.
        calls: Calls of the session in one run.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ONNX_RUNTIME.options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        run = loaded(session)
        for _ in range(runs + 1):
            run()
        events = json.loads(Path(session.end_profiling()).read_text())
    durations_us: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations_us[event["args"]["op_name"]][event["name"]].append(event["dur"])
    rows = {
        kind: {"ms": sum(sum(times[calls:]) for times in nodes.values()) / 1e3 / runs, "nodes": len(nodes)}
        for kind, nodes in durations_us.items()  # without the first run, which allocates
    }
    return dict(sorted(rows.items(), key=lambda row: -row[1]["ms"]))


def openvino_file(path: Path, load: Load, precise: bool = False) -> Ready:
    """Load a file into OpenVINO as it comes, tuned for latency.

    Args:
        path: The file.
        load: The work of one run.
        precise: Compute in float32. By default OpenVINO uses a lower precision on some processors.
    """
    model = compiled(path, load.threads, {"INFERENCE_PRECISION_HINT": "f32"} if precise else {})
    x = load.images()
    precision = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Ready(lambda: joined(list(model([x]).values())), f"openvino {version('openvino')}, {precision}")


def joined(outputs: list[np.ndarray]) -> np.ndarray:
    """Return a model's only output, or the numbers of all of them in one array."""
    return outputs[0] if len(outputs) == 1 else np.concatenate([output.reshape(-1) for output in outputs])


def eager(source: Source, load: Load, mode: str = "eager") -> Ready:
    """Load the original model into PyTorch; its membrane potentials are reset before each run.

    Args:
        mode: ``eager``, ``compile`` (torch.compile), or ``cuda`` (eager, on the first CUDA device).
    """
    torch.set_num_threads(load.threads)
    model, x = _model(source, load)
    label = f"torch {torch.__version__}"
    if mode == "cuda":
        model, x = model.cuda(), x.cuda()
        label += f", {torch.cuda.get_device_name()}"
    call: Callable[[torch.Tensor], object] = model
    if mode == "compile":
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.compile_threads = 1  # in this process: others would outlive it
        call = torch.compile(model)

    def run() -> np.ndarray:
        with torch.inference_mode():
            outputs = tensors_of(call(x))
            if mode == "cuda":
                torch.cuda.synchronize()
        return joined([output.cpu().numpy() for output in outputs])

    return Ready(run, label, reset=lambda: functional.reset_net(model))


def naive_export(source: Source, load: Load, path: Path) -> int:
    """Export the original model with ``torch.onnx.export``, for the batch that will run; return the number of nodes."""
    model, x = _model(source, load)
    functional.reset_net(model)
    torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
    return backend.node_count(path)


def _model(source: Source, load: Load) -> tuple[nn.Module, torch.Tensor]:
    """Load the original model, and images in the layout that it takes."""
    model, batch_first = source.load()
    x = torch.from_numpy(load.images())
    return model, x.transpose(0, 1).contiguous() if batch_first else x


def missing(package: str) -> str | None:
    """Return why a package cannot be used, or None where it can."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"
