"""ONNX Runtime for browsers: its WebAssembly build, ``onnxruntime-web``, in Node.js.

A Node.js process runs the file (``onnx_runtime_web.cjs``); tensors go through its stdin and stdout.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from svitc.runtimes.base import File, Runtime, Session
from svitc.support.types import JsonDict

SCRIPT = Path(__file__).with_name("onnx_runtime_web.cjs")
NODE_LIMIT_S = 30  # for Node.js to start and to find a package
# prints the package.json of onnxruntime-web, as the file that a program would load lies in a folder beside it
FIND = """
const find = require("node:module").createRequire(process.cwd() + "/_").resolve;
const file = find("onnxruntime-web").replace(/dist[^]*/, "package.json");
console.log(require("node:fs").readFileSync(file, "utf8"));
"""


class OnnxRuntimeWeb(Runtime):
    """ONNX Runtime's WebAssembly build."""

    name = "onnxruntime-web"
    title = "onnxruntime-web"
    loads = "It loads what the ONNX Runtime of the same version loads."

    def missing(self) -> tuple[str, str] | None:
        """Return why it cannot be used here, and how to install it."""
        if shutil.which("node") is None:
            return "Node.js is not installed", "Install Node.js, then: npm install onnxruntime-web"
        if _version(Path.cwd()) is None:
            return (
                "Node.js finds no package onnxruntime-web from the current folder",
                "npm install onnxruntime-web installs it here; or let NODE_PATH name the node_modules that has it.",
            )
        return None

    def version(self) -> str:
        """Return the installed version."""
        return _version(Path.cwd()) or "unknown"

    def _open(self, model: File, threads: int | None, batch: int | None) -> Session:
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        return _NodeSession(self.label, content, threads or 1)


@functools.cache
def _version(folder: Path) -> str | None:
    """Return the version of onnxruntime-web that Node.js finds from a folder; None where it finds none."""
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        command = ["node", "-e", FIND]
        found = subprocess.run(command, cwd=folder, capture_output=True, timeout=NODE_LIMIT_S)
        if found.returncode == 0:
            return str(json.loads(found.stdout)["version"])
    return None


class _NodeSession(Session):
    """A file in a Node.js process.

    Args:
        runtime: name and version of the runtime, for errors.
        model: the file.
        threads: threads of WebAssembly.
    """

    def __init__(self, runtime: str, model: bytes, threads: int) -> None:
        super().__init__(runtime)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["node", str(SCRIPT)], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self.child = self.process.pid
        try:
            names = self._ask({"model": len(model), "threads": threads}, [model])
        except BaseException:
            self.close()
            raise
        self.input_names, self.output_names = names["inputs"], names["outputs"]

    def _run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays = {name: np.ascontiguousarray(value) for name, value in feed.items()}
        tensors = [
            {"name": name, "type": str(array.dtype), "dims": array.shape, "bytes": array.nbytes}
            for name, array in arrays.items()
        ]
        answer = self._ask({"tensors": tensors, "outputs": names}, [array.tobytes() for array in arrays.values()])
        return [
            np.frombuffer(self._read(tensor["bytes"]), dtype=tensor["type"]).reshape(tensor["dims"])
            for tensor in answer["tensors"]
        ]

    def _ask(self, header: JsonDict, contents: list[bytes]) -> Any:
        """Send a message and return the header of the answer. Raises RuntimeError where Node.js reports an error."""
        text = json.dumps(header).encode()
        with contextlib.suppress(BrokenPipeError):  # Node.js has ended; its error is still in the pipe
            for part in (struct.pack("<I", len(text)), text, *contents):
                self._pipe(self.process.stdin).write(part)
            self._pipe(self.process.stdin).flush()
        answer = json.loads(self._read(struct.unpack("<I", self._read(4))[0]))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _read(self, size: int) -> bytes:
        """Return the next bytes of the answer."""
        content = self._pipe(self.process.stdout).read(size)
        if len(content) < size:
            raise RuntimeError(f"Node.js ended with status {self.process.wait()}")
        return content

    @staticmethod
    def _pipe(pipe: Any) -> BinaryIO:
        assert pipe is not None  # as Popen was told to make it
        return pipe

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()
        self.process.kill()
        self.process.wait()

    def __del__(self) -> None:
        if self.child is not None:
            self.close()
