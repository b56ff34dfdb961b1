"""Run a model in a real headless Chromium, through the page's own code, and compare its logits with native ones.

    python check.py [model.onnx]          # needs chromium on the path, npm install in this folder, and svitc

Without a file, the demo's model is compiled with int8 weights. The picture has the size of the input and is not scaled.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image

HERE = Path(__file__).parent
LIMIT_S = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGE = """<!doctype html><script type="module">
let result;
try {
  const { Classifier } = await import("./classifier.mjs");
  const classifier = await Classifier.load("model.onnx");
  const pixels = await classifier.pixels(await (await fetch("picture.png")).blob());
  const logits = await classifier.logits(pixels);
  result = { pixels: Array.from(pixels), logits: Array.from(logits), best: classifier.best(logits, 1)[0].name };
} catch (error) { result = { error: String(error && error.stack || error) }; }
await fetch("result", { method: "POST", body: JSON.stringify(result) });
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves this folder, the model, a picture and a page that posts its result."""

    contents: dict[str, bytes]
    result: dict
    done: threading.Event

    def do_GET(self) -> None:
        """Answer with a made file, else with one of the folder."""
        content = self.contents.get(self.path)
        if content is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        """Take the result of the page."""
        type(self).result = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.done.set()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def in_browser(model: bytes, picture: bytes) -> dict:
    """Return what the page posts: ``pixels``, ``logits`` and the ``best`` class."""
    Handler.contents = {"/model.onnx": model, "/picture.png": picture, "/page": PAGE.encode()}
    Handler.done = threading.Event()
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not browser or not (HERE / "node_modules").is_dir():
        sys.exit("this check needs chromium on the path, and npm install in this folder")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(HERE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        address = f"http://127.0.0.1:{server.server_port}/page"
        process = subprocess.Popen([browser, *flags, "--remote-debugging-port=0", address], stderr=subprocess.DEVNULL)
        try:
            finished = Handler.done.wait(LIMIT_S)
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
    if not finished or "error" in Handler.result:
        sys.exit(f"the page failed: {Handler.result.get('error') if finished else f'no result after {LIMIT_S} s'}")
    return Handler.result


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
    channels, height, width = (dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:])
    colors = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(colors if channels == 3 else colors[..., 0]).save(picture, "PNG")
    found = in_browser(model, picture.getvalue())
    pixels = np.array(found["pixels"], np.float32).reshape(1, channels, height, width)
    wanted = (colors / 255 - about.get("image.mean", 0.0)) / about.get("image.std", 1.0)
    print(f"largest difference of a pixel: {abs(pixels[0] - wanted.transpose(2, 0, 1)).max():g}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    [expected] = session.run(None, {session.get_inputs()[0].name: pixels})
    logits = np.array(found["logits"], np.float32).reshape(expected.shape)
    print(f"best: {found['best']}; largest difference of a logit: {abs(logits - expected).max():g}")
    equal = np.array_equal(logits, expected)
    print("equal, bit for bit" if equal else "NOT equal")
    sys.exit(0 if equal and np.allclose(pixels[0], wanted.transpose(2, 0, 1), atol=1e-5) else 1)


if __name__ == "__main__":
    main()
