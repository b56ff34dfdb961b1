"""How fast files are in OpenVINO, beside the same files and the naive export in ONNX Runtime.

    python benchmarks/openvino_speed.py [--models spikformer_s …] [--rounds 15] [--threads 2]

Models of their published size whose neurons fire, unpruned: the naive export (``torch.onnx.export`` of the eager
model), svitc's fp32 file, and int8 files for ``--target cpu`` and ``--target openvino``. All run in turn on one image,
each in a process of its own (svitc.bench.rounds), OpenVINO with EXECUTION_MODE_HINT=ACCURACY. Ratios are medians over
rounds of both times in one round; above 1, what stands behind "over" is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from operator import truediv
from pathlib import Path

import svitc
from common import FULL_SIZE, build, publish, warm
from runtimes import final_program
from svitc.bench.compare import OPENVINO_IMPORTS, ORT_IMPORTS, exported
from svitc.bench.rounds import run_rounds
from svitc.bench.runners import Load, Source, onnx_file
from svitc.bench.worker import Runner
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.onnx.export import export

IMPORTS = {"onnxruntime": ORT_IMPORTS, "openvino": OPENVINO_IMPORTS}
RACE = {  # contestant -> file, runtime
    "naive ORT": ("naive", "onnxruntime"),
    "naive OV": ("naive", "openvino"),
    "fp32 ORT": ("fp32", "onnxruntime"),
    "fp32 OV": ("fp32", "openvino"),
    "int8 ORT": ("cpu", "onnxruntime"),
    "int8 OV": ("openvino", "openvino"),
}
RATIOS = (  # of times
    ("naive ORT", "fp32 OV"),
    ("naive OV", "fp32 OV"),
    ("naive ORT", "int8 OV"),
    ("int8 ORT", "int8 OV"),
    ("naive ORT", "int8 ORT"),
    ("naive ORT", "fp32 ORT"),
)
LIMIT_S = 600.0


def files(name: str, load: Load, folder: Path) -> None:
    """Write a model's files."""
    model, shape = build(name)
    model, checkpoint = warm(model, shape), folder / "model.pt"
    arch = f"spikingjelly.activation_based.model:{FULL_SIZE[name][0].__name__}"
    svitc.save(model, checkpoint, arch=arch, input_shape=shape)
    program = capture(model, svitc.InputSpec(shape))
    run_canonical_passes(program)
    quantized = final_program(program, "int8")
    (folder / "fp32.onnx").write_bytes(export(program))
    for target in ("cpu", "openvino"):
        (folder / f"{target}.onnx").write_bytes(export(quantized, target))
    exported(Source(checkpoint), load, folder / "naive.onnx", LIMIT_S)


def row(name: str, rounds: int, threads: int) -> dict[str, object]:
    """Return the times of one model."""
    with tempfile.TemporaryDirectory() as place:
        folder, load = Path(place), Load(FULL_SIZE[name][1], 1, threads)
        files(name, load, folder)
        runners = [
            Runner(title, onnx_file, (folder / f"{file}.onnx", load, runtime), IMPORTS[runtime])
            for title, (file, runtime) in RACE.items()
        ]
        record = run_rounds(runners, rounds, LIMIT_S)
    rows = {each["name"]: each for each in record["rows"]}
    failed = {title: each["reason"] for title, each in rows.items() if each["reason"]}
    if failed:
        raise SystemExit(f"{name}: {failed}")
    times = {title: each["times_ms"] for title, each in rows.items()}
    return {
        "model": name,
        **{f"{title} ms": each["median_ms"] for title, each in rows.items()},
        **{f"{a} over {b}": statistics.median(map(truediv, times[a], times[b])) for a, b in RATIOS},
        "other processes": record["other_processes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ["spikformer_s", "sdt_8_384", "qkformer_10_384", "maxformer_10_384"]
    parser.add_argument("--models", nargs="+", default=models, choices=FULL_SIZE)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = [row(name, args.rounds, args.threads) for name in args.models]
    publish("openvino_speed", rows, __doc__ or "", threads=args.threads)


if __name__ == "__main__":
    main()
