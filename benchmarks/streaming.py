"""Compare streaming files with the files for all steps at once: equal results, time, and memory.

python benchmarks/streaming.py equality [--families sdt …] [--jobs 2]
python benchmarks/streaming.py speed [--rounds 5]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

import svitc
from common import publish
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export, export_step
from svitc.onnx.states import states_of
from svitc.passes.pipelines import quantize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.families import FAMILIES, warm

SEQUENCES = 100  # at least, of a family, a kind of input and a width of weights
LENGTHS = (1, 2, 3, 5, 8, 16)  # time steps; batches of 3 and of 1 in turn
SIZE = 224
SPEED_CASES = (("int8", 4), ("fp32", 4), ("int8", 16), ("int8", 64))
EQUALITY = """Logits after T calls that write their states in place, interrupted half-way and resumed in another
session, against those of the file for all steps at once: small networks whose neurons fire, batches of 3 and of 1, ONNX
Runtime's optimizations on and off. ``differ`` counts sequences with any other bit."""
BLOCK, WASTE = 32 << 20, 64 << 10  # bytes of the arena's first block, and of a chunk that may stay unused
SPEED = f"""Spikformer, 4 blocks of 384 channels, {SIZE} x {SIZE} pixels, batch 1, one thread; each state is written
over what was read. Times are medians of paired rounds, their ratio the median of the rounds' ratios. Memory is the peak
that two runs of all steps add to the loaded file (from the second on, ONNX Runtime plans it), that of the calls with
the states, which nothing can do without. Beside it, the same with an arena that begins with one block of 32 MiB and
splits it exactly, instead of ONNX Runtime's defaults."""


class Stream:
    """A streaming file with its states, each of which a step writes over what it read.

    Args:
        file: bytes of the file.
        batch: number of sequences.
        optimized: whether ONNX Runtime optimizes the file.
        one_block: as in ``session``.
    """

    def __init__(self, file: bytes, batch: int, optimized: bool = True, one_block: bool = False) -> None:
        self.described = states_of(onnx.load_from_string(file)) or []
        assert all(state.in_place for state in self.described)
        self.session = session(file, optimized, one_block)
        self.states = {state.input: state.start(batch) for state in self.described}
        self.binding = self.session.io_binding()
        self.binding.bind_output("logits")
        self.values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in self.states.values()]
        for state, value in zip(self.described, self.values, strict=True):
            self.binding.bind_ortvalue_input(state.input, value)
            self.binding.bind_ortvalue_output(state.output, value)

    def reset(self) -> None:
        """Go back to the first step."""
        for state in self.described:
            self.states[state.input].fill(state.initial)

    def resume(self, states: dict[str, np.ndarray]) -> None:
        """Go on from these states."""
        for name, value in states.items():
            self.states[name][:] = value

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Return the logits so far."""
        self.binding.bind_cpu_input("image", frame)
        self.session.run_with_iobinding(self.binding)
        return self.binding.get_outputs()[0].numpy()


def session(file: bytes, optimized: bool = True, one_block: bool = False) -> onnxruntime.InferenceSession:
    """Load a file into ONNX Runtime, for one thread.

    Args:
        file: bytes of the file.
        optimized: whether ONNX Runtime optimizes it.
        one_block: whether memory comes from an arena that begins with one block; once in a process.
    """
    options = onnxruntime.SessionOptions()
    if one_block:
        kinds, devices = onnxruntime.OrtAllocatorType, onnxruntime.OrtMemType
        onnxruntime.create_and_register_allocator(
            onnxruntime.OrtMemoryInfo("Cpu", kinds.ORT_ARENA_ALLOCATOR, 0, devices.DEFAULT),
            onnxruntime.OrtArenaCfg(0, 0, BLOCK, WASTE),
        )
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def program_of(name: str, events: bool, steps: int, weights: str) -> Program:
    """Return a small network of a family, with statistics under which its neurons fire."""
    torch.manual_seed(0)
    factory, shape = FAMILIES[name]
    shape = (steps, *shape) if events else shape
    program = capture(warm(factory(T=steps), shape), svitc.InputSpec(shape))
    run_canonical_passes(program)
    if weights == "fp32":
        return program
    bits = {str(n.target): int(weights[3:]) for n in program.graph.nodes if n.op == "call_module"}
    return quantize(program, bits if weights != "int8" else None)[0]


def differing(program: Program, steps: int, batch: int, sequences: int, optimized: bool) -> tuple[int, float]:
    """Return how many sequences differ in any logit, with streams resumed half-way, and the largest difference."""
    whole, file = session(export(program), optimized), export_step(program)
    first, second = Stream(file, batch, optimized), Stream(file, batch, optimized)
    generator, count, largest = torch.Generator().manual_seed(0), 0, 0.0
    for _ in range(0, sequences, batch):
        x = torch.randn(program.input.batched(batch), generator=generator).numpy()
        x = np.floor(abs(x)) if program.input.events else x
        frames = list(x) if program.input.events else [x] * steps
        first.reset()
        for frame in frames[: steps // 2]:
            first.step(frame)
        second.resume(first.states)
        logits = [second.step(frame) for frame in frames[steps // 2 :]][-1]
        difference = abs(whole.run(None, {"image": x})[0] - logits)
        count += int((difference.reshape(batch, -1).max(1) != 0).sum())
        largest = max(largest, float(difference.max()))
    return count, largest


def equality(case: tuple[str, bool, str]) -> dict[str, object]:
    """Return how many sequences differ in a case: T of 1 to 16, batches of 1 and 3, optimized or not.

    Args:
        case: family, whether the input is event frames, and weights.
    """
    torch.set_num_threads(1)
    name, events, weights = case
    total, count, largest = 0, 0, 0.0
    for i, steps in enumerate(LENGTHS):
        program, batch = program_of(name, events, steps, weights), (3, 1)[i % 2]
        for optimized in (True, False):
            sequences = batch * -(-SEQUENCES // (2 * len(LENGTHS) * batch))
            differ, difference = differing(program, steps, batch, sequences, optimized)
            total, count, largest = total + sequences, count + differ, max(largest, difference)
    return {
        "family": name,
        "input": "events" if events else "image",
        "weights": weights,
        "T": ", ".join(map(str, LENGTHS)),
        "sequences": total,
        "differ": count,
        "largest difference": largest,
    }


def memory(path: str, steps: int, one_block: bool) -> None:
    """Print the peak of the bytes that runs of a file take, its states included, beyond what the loaded file takes."""
    file = Path(path).read_bytes()
    run = runner(file, steps, one_block)
    kept = sum(state.start(1).nbytes for state in states_of(onnx.load_from_string(file)) or ())
    loaded = _resident("VmRSS") - kept
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run()
    run()
    print(_resident("VmHWM") - loaded, kept)


def _resident(key: str) -> int:
    """Return a number of bytes of this process, by its key in Linux's process status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def runner(file: bytes, steps: int, one_block: bool = False):
    """Return a function that runs all steps of a file on one image, in one call or in turn."""
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)
    if states_of(onnx.load_from_string(file)) is None:
        whole = session(file, one_block=one_block)
        return lambda: whole.run(None, {"image": x})
    stream = Stream(file, 1, one_block=one_block)

    def run() -> None:
        stream.reset()
        for _ in range(steps):
            stream.step(x)

    return run


def large_files(weights: str, steps: int) -> dict[str, bytes]:
    """Return the file for all steps at once and the streaming file of a network for large images."""
    from spikingjelly.activation_based.model.spikformer import Spikformer

    torch.manual_seed(0)
    model = Spikformer(img_size_h=SIZE, img_size_w=SIZE, patch_size=16, embed_dims=384, num_heads=12, depths=4, T=steps)
    program = capture(warm(model, (3, SIZE, SIZE), 1), svitc.InputSpec((3, SIZE, SIZE)))
    run_canonical_passes(program)
    program = program if weights == "fp32" else quantize(program)[0]
    assert weights == "fp32" or program.stage >= Stage.QUANTIZED
    return {"whole": export(program), "step": export_step(program)}


def times(files: dict[str, bytes], steps: int, rounds: int) -> dict[str, float]:
    """Return the time of T calls beside that of the file for all steps at once."""
    runs = {name: runner(file, steps) for name, file in files.items()}
    taken: dict[str, list[float]] = {name: [] for name in files}
    for run in runs.values():
        run()
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(1e3 * (time.perf_counter() - start))
    whole, calls = (statistics.median(taken[name]) for name in files)
    ratios = [b / a for a, b in zip(taken["whole"], taken["step"], strict=True)]
    return {"all at once ms": whole, "T calls ms": calls, "ratio of times": statistics.median(ratios)}


def peaks(files: dict[str, bytes], steps: int) -> dict[str, float]:
    """Return the peak memory of T calls beside that of the file for all steps at once, each in its own process."""
    peak: dict[str, float] = {}
    for name, file in files.items():
        with tempfile.NamedTemporaryFile(suffix=".onnx") as stored:
            stored.write(file)
            stored.flush()
            for arena in ("", " one block"):
                command = [
                    sys.executable,
                    __file__,
                    "memory",
                    stored.name,
                    str(steps),
                    *(["--one-block"] if arena else []),
                ]
                printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
                peak[name + arena], peak["states"] = int(printed[-2]) / 1e6, int(printed[-1]) / 1e6
    return {
        "states MB": peak["states"],
        "all at once MB": peak["whole"],
        "calls MB": peak["step"],
        "ratio of memory": peak["step"] / peak["whole"],
        "all at once MB, one block": peak["whole one block"],
        "calls MB, one block": peak["step one block"],
        "ratio of memory, one block": peak["step one block"] / peak["whole one block"],
    }


def speed(weights: str, steps: int, rounds: int) -> dict[str, object]:
    """Return the time of T calls and the peak memory beside those of the file for all steps at once."""
    files = large_files(weights, steps)
    return {"weights": weights, "T": steps, **times(files, steps, rounds), **peaks(files, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("equality")
    command.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    command.add_argument("--jobs", type=int, default=2, help="processes")
    command = commands.add_parser("speed")
    command.add_argument("--rounds", type=int, default=5)
    command = commands.add_parser("memory", help="used by speed")
    command.add_argument("path")
    command.add_argument("steps", type=int)
    command.add_argument("--one-block", action="store_true")
    args = parser.parse_args()
    if args.command == "memory":
        memory(args.path, args.steps, args.one_block)
    elif args.command == "equality":
        cases = list(itertools.product(args.families, (False, True), ("int8", "int4", "int2", "fp32")))
        with ProcessPoolExecutor(args.jobs) as pool:
            publish("streaming_equality", list(pool.map(equality, cases)), EQUALITY)
    else:
        rows = [speed(weights, steps, args.rounds) for weights, steps in SPEED_CASES]
        publish("streaming_speed", rows, SPEED)


if __name__ == "__main__":
    main()
