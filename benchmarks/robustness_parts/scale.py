"""Time and peak memory against size, each size in a process of its own; and the memory of the published sizes."""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import nn

import svitc
from common import build, warm
from robustness_parts.log import Log
from svitc.data.dataset import load_data
from svitc.errors import SvitcError
from svitc.frontends.checkpoint.load import load_model
from svitc.passes.policies import POLICIES
from svitc.support.hardware import forget_peak, peak, resident

MOST_SECONDS = 400  # that one size may take
LONGEST_SWEEP_SECONDS = 560
MOST_BYTES = 12 << 30  # that one size may allocate; beyond it the row says so
SMALL = {"T": 2, "img_size_h": 16, "img_size_w": 16, "patch_size": 4, "embed_dims": 16, "num_heads": 2, "depths": 1}
SIZES: dict[str, tuple[int, ...]] = {
    "time steps": (4, 16, 64, 256),
    "depth": (1, 4, 16, 64),
    "width": (64, 256, 1024, 2048, 4096),
    "classes": (10, 100, 1000, 10_000),
    "image": (1, 16, 64, 256, 1024),
    "images in a folder": (1000, 10_000, 100_000, 1_000_000),
    "checkpoint, MB": (30, 100, 300, 1000, 3000),
    "time steps, int8": (16, 32, 64, 128, 256),
}


class OnePixel(nn.Module):
    """A model for which one pixel makes sense: the built-in families halve their images four times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fires = nn.Conv2d(3, 16, 1), neuron.LIFNode(tau=2.0, step_mode="m")
        self.second, self.fires_again = nn.Conv2d(16, 16, 1), neuron.LIFNode(tau=2.0, step_mode="m")
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 3, 1, 1]`` to scores ``[N, 4]``, over two time steps."""
        currents = self.first(x).unsqueeze(0).repeat(2, 1, 1, 1, 1)
        spikes = self.fires(currents)
        spikes = self.fires_again(self.second(spikes.flatten(0, 1)).unflatten(0, (2, -1)))
        return self.head(spikes.mean((3, 4))).mean(0)


def _compile(size: int, axis: str) -> object:
    torch.manual_seed(0)
    keys = {"time steps": "T", "depth": "depths", "width": "embed_dims", "classes": "num_classes"}
    arguments = {"num_classes": 4, **SMALL}
    side = 16
    if axis == "image":
        side = size
        patch = 4 if size == 16 else 16
        arguments |= {"img_size_h": size, "img_size_w": size, "patch_size": patch}
    else:
        arguments[keys[axis.partition(",")[0]]] = size
    model = (OnePixel() if (axis, size) == ("image", 1) else Spikformer(**arguments)).eval()
    if size < 1024:
        warm(model, (3, side, side))
    program = svitc.capture(model, svitc.InputSpec((3, side, side)))
    weights = "int8" if "int8" in axis else None
    options = {"policy": POLICIES["uniform"](), "no_data": "uniform", "images": 1, "weights": weights}
    return svitc.compile(program, 0.5, **options)


def _folder(size: int, place: Path) -> object:
    """Read some of very many images, which are links to a few files."""
    image = place / "first.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image)
    for number in range(4):
        (place / "data" / f"class{number}").mkdir(parents=True)
    source = None
    for number in range(size):
        if number % 60_000 == 0:  # a file has at most 65,000 links
            source = shutil.copy(image, place / f"{number}.png")
        os.link(source, place / "data" / f"class{number % 4}" / f"{number}.png")
    start, before = time.perf_counter(), _forget()
    data = load_data(place / "data", svitc.InputSpec((3, 16, 16)), {"num_classes": 4}, 1000)
    for _ in data.batches(100):
        pass
    return start, before


def _forget() -> int:
    forget_peak()
    return resident()


def _checkpoint(size: int, place: Path) -> object:
    """Load a checkpoint of this many megabytes, most of it the optimizer's."""
    path = place / "m.pt"
    arguments = {"num_classes": 4, **{k: v for k, v in SMALL.items() if k != "patch_size"}}
    state = Spikformer(**arguments).state_dict()
    extra = {f"moment{i}": torch.zeros(2_500_000) for i in range(size // 10)}
    home = "spikingjelly.activation_based.model:Spikformer"
    described = {"state_dict": state, "arch": home, "arch_args": arguments, "input_shape": [3, 16, 16]}
    torch.save({**described, "optimizer": extra}, path)
    extra.clear()
    start, before = time.perf_counter(), _forget()
    load_model(path)
    return start, before


def run(log: Log, _: argparse.Namespace) -> None:
    """Measure the sizes that are left, from small to large; after one that takes too long, none that is larger."""
    torch.set_num_threads(1)
    for axis, sizes in SIZES.items():
        for size in sizes:
            if log.is_over:
                return
            if not log.has(axis=axis, size=size):
                log.add(axis=axis, size=size, **apart(lambda axis=axis, size=size: _one(axis, size)))


def laws(rows: list[dict]) -> list[dict]:
    """Return for each axis the exponents of time and memory: of the best line through all sizes, and of the last two.

    The last two are the law; what every size needs, such as the start, is in the first.
    """
    found = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        own = [row for row in rows if row["axis"] == axis and row["outcome"] == "done"]
        if len(own) < 2:
            continue
        sizes = np.log([row["size"] for row in own])
        values = {"time": [max(row["seconds"], 0.01) for row in own], "memory": [max(row["peak_mb"], 1) for row in own]}
        entry = {"axis": axis, "sizes": f"{own[0]['size']:,} to {own[-1]['size']:,}"}
        for name, numbers in values.items():
            logs = np.log(numbers)
            entry[f"exponent of {name}"] = round(float(np.polyfit(sizes, logs, 1)[0]), 2)
            entry[f"of {name}, last two"] = round(float((logs[-1] - logs[-2]) / (sizes[-1] - sizes[-2])), 2)
        found.append(entry)
    return found


def _one(axis: str, size: int) -> object:
    if axis not in ("images in a folder", "checkpoint, MB"):
        return _compile(size, axis)
    with tempfile.TemporaryDirectory() as name:
        return (_folder if axis.startswith("images") else _checkpoint)(size, Path(name))


def apart(work: Callable[[], object], seconds: int = MOST_SECONDS) -> dict:
    """Run a function in a forked process; return its time, its peak memory beyond what was there, and its end.

    A function that prepares something first returns when it began, and the memory that it had then.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        start, before, outcome = time.perf_counter(), _forget(), "done"
        try:
            value = work()
            if isinstance(value, tuple):
                start, before = value
        except SvitcError as error:
            outcome = f"refused: {error.message}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        if outcome != "done" and peak() > 0.95 * MOST_BYTES:
            outcome = f"stopped at {MOST_BYTES >> 30} GiB: {outcome}"
        taken = round(time.perf_counter() - start, 2)
        row = {"seconds": taken, "peak_mb": round((peak() - before) / 1e6), "outcome": outcome[:200]}
        row["whole_process_mb"] = round(peak() / 1e6)
        os.write(writer, json.dumps(row).encode())
        os._exit(0)
    os.close(writer)
    row = {"seconds": None, "peak_mb": None, "outcome": f"longer than {seconds} s"}
    if select.select([reader], [], [], seconds)[0]:
        data = os.read(reader, 65536)
        row = json.loads(data) if data else {**row, "outcome": "the process died"}
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(reader)
    return row


def _spikformer_s(way: str) -> object:
    model, shape = build("spikformer_s")
    if way == "torch.onnx.export":
        torch.onnx.export(model, (torch.zeros(1, *shape),), dynamo=True, verbose=False)
        return None
    program = svitc.capture(model, svitc.InputSpec(shape))
    options: dict = {"images": 1}
    if way == "without data":
        options |= {"policy": POLICIES["uniform"](), "no_data": "uniform"}
    else:
        options |= {"sweep_images": 8, "calibration_images": 8, "policy": "psvit"}
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as name:
            images = rng.integers(0, 256, (16, *shape), dtype=np.uint8)
            np.savez(f"{name}/d.npz", images=images, labels=np.arange(16))
            options["data"] = load_data(f"{name}/d.npz", program.input, program.info)
            return svitc.compile(program, 0.78, **options)
    return svitc.compile(program, 0.78, **options)


def run_memory(log: Log, _: argparse.Namespace) -> None:
    """Measure the peak memory of svitc on spikformer_s at 224x224, and of torch.onnx.export."""
    torch.set_num_threads(1)
    for way in ("with a sweep of 8 images", "without data", "torch.onnx.export"):
        if not log.is_over and not log.has(way=way):
            log.add(way=way, **apart(lambda way=way: _spikformer_s(way), LONGEST_SWEEP_SECONDS))
