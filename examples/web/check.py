"""Drop a picture into the page in a real headless Chromium, and compare its logits with native ones.

    python check.py [model.onnx]          # needs chromium on the path, npm install in this folder, and svitc

Without a file, the demo's model is compiled with int8 weights. The picture has the size of the input and is not scaled.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from chromium import BROWSER, pipes
from PIL import Image

HERE = Path(__file__).parent
LIMIT_S = 120
LOGITS = """(async () => {
  const { Classifier } = await import("./classifier.mjs");
  const classifier = await Classifier.load("model.onnx");
  const pixels = await classifier.pixels(await (await fetch("picture.png")).blob());
  return { pixels: Array.from(pixels), logits: Array.from(await classifier.logits(pixels)) };
})()"""
READY = 'document.getElementById("about")?.textContent.includes("in this page")'
PLACE = '(({ x, y }) => ({ x: x + 9, y: y + 9 }))(document.getElementById("drop").getBoundingClientRect())'
SHOWN = 'Array.from(document.getElementById("classes").children, (item) => item.textContent)'


class Handler(SimpleHTTPRequestHandler):
    """Serves this folder, the model and a picture."""

    contents: dict[str, bytes]

    def do_GET(self) -> None:
        """Answer with the model or the picture, else with a file of the folder."""
        content = self.contents.get(self.path)
        if content is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Page:
    """A page in a browser, over the DevTools protocol: messages in JSON, each ended by a zero byte, in two pipes.

    Args:
        send: pipe to the browser.
        receive: pipe from it.
        address: what to open.
    """

    def __init__(self, send: io.BufferedWriter, receive: io.BufferedReader, address: str) -> None:
        self.send, self.receive, self.count = send, receive, 0
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url=address)["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Return the result of a command."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params, **self.session}
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while True:
            answer = b"".join(iter(lambda: self.receive.read(1), b"\0"))
            if (found := json.loads(answer)).get("id") == self.count:  # else an event
                if "error" in found:
                    sys.exit(f"the browser refuses {method}: {found['error']['message']}")
                return found["result"]

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            sys.exit(f"the page failed: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Return the value of an expression once it is true, or not empty."""
        while not (value := self.value(expression)):
            time.sleep(0.1)
        return value

    def drop(self, file: Path) -> None:
        """Drop a file onto the page."""
        place, data = self.value(PLACE), {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=event, data=data, **place)


@contextmanager
def browser(address: str) -> Iterator[Page]:
    """Yield a page in a headless browser, which is ended after ``LIMIT_S`` at the latest."""
    if BROWSER is None or not (HERE / "node_modules").is_dir():
        sys.exit("this check needs chromium on the path, and npm install in this folder")
    with pipes(LIMIT_S) as (send, receive):
        yield Page(send, receive, address)


def in_browser(model: bytes, picture: bytes) -> dict:
    """Return ``pixels`` and ``logits`` of a picture, and the lines that are ``shown`` once it was dropped."""
    Handler.contents = {"/model.onnx": model, "/picture.png": picture}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(HERE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, browser(f"http://127.0.0.1:{server.server_port}/index.html") as page:
        (file := Path(folder) / "dropped.png").write_bytes(picture)
        page.until(READY)
        found = page.value(LOGITS)
        page.drop(file)
        found["shown"] = page.until(SHOWN)
    server.shutdown()
    return found


def demo() -> bytes:
    """Return the file of the demo's model with int8 weights."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--weights", "int8", "--target", "web", "--no-data", "uniform", "-o", f"{folder}/out"]
        checkpoint = str(HERE.parents[1] / "demo" / "digits.pt")
        subprocess.run([sys.executable, "-m", "svitc", "compile", checkpoint, *options], check=True)
        return Path(f"{folder}/out/model.onnx").read_bytes()


def main() -> None:
    """Compare the pixels with what the metadata say, and the logits with native ones."""
    model = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else demo()
    proto = onnx.load_from_string(model)
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    raw = about.get("image.dtype") == "uint8"  # the file takes bytes, channels last
    sizes = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    channels, height, width = (sizes[2], *sizes[:2]) if raw else sizes
    colors = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(colors if channels == 3 else colors[..., 0]).save(picture, "PNG")
    found = in_browser(model, picture.getvalue())
    pixels = np.array(found["pixels"], np.uint8 if raw else np.float32).reshape(1, *sizes)
    wanted = (colors / 255 - about.get("image.mean", 0.0)) / about.get("image.std", 1.0)
    wanted = colors.astype(int) if raw else wanted.transpose(2, 0, 1)
    print(f"largest difference of a pixel: {abs(pixels[0] - wanted).max():g}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch = about.get("batch") or 1
    expected = session.run(None, {session.get_inputs()[0].name: pixels.repeat(batch, axis=0)})[0][:1]
    logits = np.array(found["logits"], np.float32).reshape(expected.shape)
    equal = np.array_equal(logits, expected)
    print(
        f"largest difference of a logit: {abs(logits - expected).max():g}; {'' if equal else 'NOT '}equal, bit for bit"
    )
    lines = shown(expected[0], about.get("classes"), len(found["shown"]))
    print(f"shown when it was dropped: {found['shown'][0]}; {'' if found['shown'] == lines else 'NOT '}as natively")
    close = np.allclose(pixels[0], wanted, atol=1e-5)
    sys.exit(0 if equal and close and found["shown"] == lines else 1)


def shown(logits: np.ndarray, classes: list[str] | None, count: int) -> list[str]:
    """Return the lines that the page shows for the most probable classes."""
    powers = np.exp(logits.astype(float) - logits.max())
    best = np.argsort(-logits, kind="stable")[:count]
    return [f"{classes[i] if classes else f'class {i}'}: {100 * powers[i] / powers.sum():.1f}%" for i in best]


if __name__ == "__main__":
    main()
