"""What a benchmark can time: an ONNX file in ONNX Runtime or OpenVINO, and the original model in PyTorch.

Each function runs in a process of its own (bench_worker.py) and loads what it times there.
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
from torch import nn

from svitc import onnx as backend
from svitc.bench.worker import Ready
from svitc.ir.graph import InputSpec

NO_PROBLEM = 3  # ONNX Runtime's log severity: errors only


@dataclass(frozen=True)
class Load:
    """What each contestant is given.

    Attributes:
        shape: of the input without batch.
        batch: images in one run.
        threads: within one operator.
        seed: of the images.
    """

    shape: tuple[int, ...]
    batch: int = 1
    threads: int = 1
    seed: int = 0

    def images(self) -> np.ndarray:
        """Standard normal pixels, or small counts of events; ``[N, C, H, W]`` or ``[T, N, C, H, W]``."""
        spec = InputSpec(self.shape)
        generator = np.random.default_rng(self.seed)
        x = generator.standard_normal(spec.batched(self.batch), dtype=np.float32)
        return np.floor(np.abs(x)) if spec.events else x


@dataclass(frozen=True)
class Source:
    """The original model: a checkpoint, or an output folder of svitc.

    Attributes:
        options: fields of ``svitc.frontends.LoadOptions``.
    """

    path: Path
    options: dict[str, Any] = field(default_factory=dict)

    def input(self) -> InputSpec:
        """The model's input. Raises like ``svitc.load``."""
        return self._load()[1]

    def load(self) -> tuple[nn.Module, bool]:
        """The model in eval mode, and whether it takes ``[N, T, …]``. To be called once a process."""
        model, spec, info, within = self._load()
        within.__enter__()  # for good: the model's forward may import what only stands in for a package
        if info is not None and spec.events:  # which order of time and batch it takes is found by capturing it
            from svitc.frontends.capture.capture import capture

            info = capture(model, spec, info, rewrite_model=bool(self.options.get("rewrite_model"))).info
        return model.eval(), bool((info or {}).get("batch_first"))

    def _load(self) -> tuple[nn.Module, InputSpec, dict[str, Any] | None, contextlib.AbstractContextManager[Any]]:
        if (self.path / "model.safetensors").is_file():
            from svitc.serialization.writer import load_program

            program = load_program(self.path / "model.safetensors")
            return program.module, program.input, None, contextlib.nullcontext()  # takes the program's own layout
        from svitc.frontends import LoadOptions, load_model

        loaded = load_model(self.path, LoadOptions(**self.options))
        return loaded.model, loaded.input, loaded.info, loaded.callable_within()


def onnx_file(path: Path, load: Load) -> Ready:
    """A file in ONNX Runtime."""
    session = backend.session(path, load.threads)
    name, x = session.get_inputs()[0].name, load.images()
    return Ready(
        lambda: session.run(None, {name: x})[0],
        f"onnxruntime {version('onnxruntime')}",
        profile=lambda runs: profile(path, load, runs),
    )


def profile(path: Path, load: Load, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds a run, and number of nodes, of each operator of a file, by ONNX Runtime's own profiler.

    Operators are those that the runtime has made of the file's by fusing them.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = NO_PROBLEM
        options.intra_op_num_threads = load.threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name, x = session.get_inputs()[0].name, load.images()
        for _ in range(runs + 1):
            session.run(None, {name: x})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]][event["name"]].append(event["dur"])
    rows = {
        kind: {"ms": sum(sum(times[1:]) for times in nodes.values()) / 1e3 / runs, "nodes": len(nodes)}
        for kind, nodes in spent.items()  # without the first run, which allocates
    }
    return dict(sorted(rows.items(), key=lambda row: -row[1]["ms"]))


def openvino_file(path: Path, load: Load, precise: bool = False) -> Ready:
    """A file in OpenVINO, tuned for latency.

    Args:
        precise: compute in float32 where OpenVINO would by default take less, as it does on some processors.
    """
    openvino: Any = importlib.import_module("openvino")
    config = {"INFERENCE_NUM_THREADS": load.threads, "PERFORMANCE_HINT": "LATENCY"}
    if precise:
        config["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(str(path), "CPU", config)
    x = load.images()
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Ready(lambda: compiled([x])[0], f"openvino {version('openvino')}, {precision}")


def eager(source: Source, load: Load, how: str = "eager") -> Ready:
    """The original in PyTorch, its membranes reset before each run.

    Args:
        how: ``eager``, ``compile`` (torch.compile), or ``cuda`` (eager, on the first CUDA device).
    """
    from spikingjelly.activation_based import functional

    from svitc.frontends.capture.model_rewrites import logits_of

    torch.set_num_threads(load.threads)
    model, x = _model(source, load)
    label = f"torch {torch.__version__}"
    if how == "cuda":
        model, x = model.cuda(), x.cuda()
        label += f", {torch.cuda.get_device_name()}"
    call: Callable[[torch.Tensor], Any] = model
    if how == "compile":
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.compile_threads = 1  # no processes that would outlive this one
        call = torch.compile(model)

    def run() -> np.ndarray:
        with torch.inference_mode():
            y = logits_of(call(x))
            if how == "cuda":
                torch.cuda.synchronize()
        return y.cpu().numpy()

    return Ready(run, label, reset=lambda: functional.reset_net(model))


def naive_export(source: Source, load: Load, path: Path) -> int:
    """Write what ``torch.onnx.export`` makes of the original, at the batch that will run; the number of its nodes."""
    from spikingjelly.activation_based import functional

    model, x = _model(source, load)
    functional.reset_net(model)
    torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
    return backend.node_count(path)


def _model(source: Source, load: Load) -> tuple[nn.Module, torch.Tensor]:
    model, batch_first = source.load()
    x = torch.from_numpy(load.images())
    return model, x.transpose(0, 1).contiguous() if batch_first else x


def missing(package: str) -> str | None:
    """Why a package cannot be used, or None."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"
