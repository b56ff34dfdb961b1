"""Stock runtimes that package registries have beside those of svitc.runtimes, for benchmarks/runtimes.py alone."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from svitc.onnx.model_info import read_proto
from svitc.runtimes.base import File, Runtime, Session

Run = Callable[[list[str], Mapping[str, np.ndarray]], list[Any]]


class FurtherRuntime(Runtime):
    """A runtime of a package that svitc does not depend on.

    Attributes:
        package: name of the package in the registry.
        module: what is imported.
    """

    loads = "benchmarks/results/runtimes.md says which files it loads."
    package: str
    module: str

    def missing(self) -> tuple[str, str] | None:
        """Return why the runtime cannot be used here, and how to install it."""
        if importlib.util.find_spec(self.module) is not None:
            return None
        return f"the package {self.package} is not installed", f"pip install {self.package}"

    def version(self) -> str:
        """Return the installed version."""
        return version(self.package)

    def _open(self, model: File, threads: int | None, batch: int | None) -> Session:
        proto = read_proto(model)
        return _FunctionSession(self.label, proto.graph, self.load(proto))

    def load(self, proto: onnx.ModelProto) -> Run:
        """Return a function from names of outputs and inputs by name to the outputs; may raise anything."""
        raise NotImplementedError


class _FunctionSession(Session):
    """A file as a function."""

    def __init__(self, runtime: str, graph: onnx.GraphProto, run: Run) -> None:
        super().__init__(runtime)
        self.function = run
        self.input_names = [value.name for value in graph.input]
        self.output_names = [value.name for value in graph.output]

    def _run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        ordered = {name: np.ascontiguousarray(feed[name]) for name in self.input_names}
        return [np.asarray(value) for value in self.function(names, ordered)]


@contextmanager
def written(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield the path of a file that holds a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        yield str(path)


def chosen(names: list[str], proto: onnx.ModelProto, values: list[Any]) -> list[Any]:
    """Return the values of some outputs out of those of all."""
    every = dict(zip((output.name for output in proto.graph.output), values, strict=True))
    return [every[name] for name in names]


class Tract(FurtherRuntime):
    """tract, in Rust."""

    name, title, package, module = "tract", "tract", "tract", "tract"

    def load(self, proto: onnx.ModelProto) -> Run:
        """See ``FurtherRuntime.load``."""
        tract: Any = importlib.import_module(self.module)
        with written(proto) as path:
            model = tract.onnx().load(path).into_model()
        runnable = model.into_runnable()
        return lambda names, feed: chosen(names, proto, [v.to_numpy() for v in runnable.run(list(feed.values()))])


class Tinygrad(FurtherRuntime):
    """tinygrad, on the processor."""

    name, title, package, module = "tinygrad", "tinygrad", "tinygrad", "tinygrad"

    def load(self, proto: onnx.ModelProto) -> Run:
        """See ``FurtherRuntime.load``."""
        tinygrad: Any = importlib.import_module(self.module)
        with written(proto) as path:
            runner = importlib.import_module("tinygrad.nn.onnx").OnnxRunner(path)

        def run(names: list[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
            outputs = runner({name: tinygrad.Tensor(value) for name, value in feed.items()})
            return [outputs[name].numpy() for name in names]

        return run


class OpenCv(FurtherRuntime):
    """OpenCV's module dnn."""

    name, title, package, module = "opencv", "OpenCV", "opencv-python-headless", "cv2"

    def load(self, proto: onnx.ModelProto) -> Run:
        """See ``FurtherRuntime.load``."""
        cv2: Any = importlib.import_module(self.module)
        net = cv2.dnn.readNetFromONNX(np.frombuffer(proto.SerializeToString(), np.uint8))

        def run(names: list[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
            for name, value in feed.items():
                net.setInput(value, name)
            return list(net.forward(names))

        return run


class Iree(FurtherRuntime):
    """IREE's compiler and runtime, on the processor."""

    name, title, package, module = "iree", "IREE", "iree-base-runtime", "iree.compiler"

    def missing(self) -> tuple[str, str] | None:
        """See ``FurtherRuntime.missing``."""
        if importlib.util.find_spec("iree") is not None and importlib.util.find_spec(self.module) is not None:
            return None
        return "its packages are not installed", "pip install iree-base-compiler[onnx] iree-base-runtime"

    def load(self, proto: onnx.ModelProto) -> Run:
        """See ``FurtherRuntime.load``."""
        compiler: Any = importlib.import_module("iree.compiler")
        runtime: Any = importlib.import_module("iree.runtime")
        with written(proto) as path:
            command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", path, "-o", path + ".mlir"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            backends = {"target_backends": ["llvm-cpu"], "extra_args": ["--iree-llvmcpu-target-cpu=host"]}
            code = compiler.tools.compile_file(path + ".mlir", input_type="onnx", **backends)
        config = runtime.Config("local-sync")
        context = runtime.SystemContext(config=config)
        context.add_vm_module(runtime.VmModule.copy_buffer(context.instance, code))
        main = context.modules.module[proto.graph.name]

        def run(names: list[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
            values = main(*feed.values())
            return chosen(names, proto, [v.to_host() for v in (values if isinstance(values, tuple) else (values,))])

        return run


class Tvm(FurtherRuntime):
    """TVM's Relax, compiled by LLVM for the processor."""

    name, title, package, module = "tvm", "TVM", "apache-tvm", "tvm"

    def load(self, proto: onnx.ModelProto) -> Run:
        """See ``FurtherRuntime.load``."""
        tvm: Any = importlib.import_module(self.module)
        relax: Any = importlib.import_module("tvm.relax")
        module = importlib.import_module("tvm.relax.frontend.onnx").from_onnx(proto, keep_params_in_input=False)
        machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

        def run(names: list[str], feed: Mapping[str, np.ndarray]) -> list[Any]:
            values = machine["main"](*(tvm.runtime.tensor(value) for value in feed.values()))
            several = len(proto.graph.output) > 1
            return chosen(names, proto, [v.numpy() for v in (values if several else [values])])

        return run


FURTHER: dict[str, Runtime] = {runtime.name: runtime for runtime in (Tract(), Tinygrad(), OpenCv(), Iree(), Tvm())}
