"""Time one forward pass on the CPU: svitc's files, the eager model, its naive export in ONNX Runtime and in OpenVINO,
on the same images and weights, with the same number of threads.

All of a row's contestants run in turn, in paired rounds, each in a process of its own (svitc.bench.rounds), and beside
them the machine's own rate of matrix products (uint8 [4096, 1024] by int8 [1024, 1024] in MatMulInteger, and the same
in float32): what the model's multiply-accumulates alone would take at that rate is the floor that times are compared
with. Networks have random weights, with batch norms that make neurons fire. Finished results are kept in --work,
and --resume continues an interrupted run; checkpoints and naive exports are reused in any case.

latency_scaling.py measures how the time of svitc's file grows with time steps, batch, depth and resolution.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from common import FULL_SIZE, RESULTS, environment, table
from latency_tables import PRODUCTS, footer, lines, note_on, plot, profiles
from svitc.bench.compare import OPENVINO_IMPORTS, ORT_IMPORTS, TITLES, exported
from svitc.bench.rounds import empty_row, run_rounds
from svitc.bench.runners import Load, Source, eager, onnx_file, openvino_file
from svitc.bench.worker import Failed, Ready, Runner, once
from svitc.support.reporter import Reporter

VARIANTS: dict[str, tuple[str | None, dict[str, Any]]] = {  # budget and options of svitc.compile
    "fp32": (None, {}),
    "int8": (None, {"weights": "int8"}),
    "int8@78%": ("params=78%", {"weights": "int8", "round_to": 32}),  # widths that fill the kernel's tiles
}
PEERS = ("eager", "torch.onnx", "openvino", "openvino f32")
NAIVE, VINO = TITLES["torch.onnx"], TITLES["openvino"]
PRODUCT = (4096, 1024, 1024)  # rows, inner, columns
LIMIT = 3600.0  # s
ARCH = "spikingjelly.activation_based.model:"


# in processes of their own


def prepare(
    factory: str, arguments: dict[str, Any], shape: tuple[int, ...], place: Path, variants: list[str]
) -> dict[str, Any]:
    """Write a network's checkpoint, once, and compile its variants; return the facts about each file."""
    import torch
    from spikingjelly.activation_based import model as sj

    import svitc
    from common import warm
    from svitc.analysis.layer_stats import macs
    from svitc.driver.load import run_canonical_passes
    from svitc.frontends import load_model
    from svitc.frontends.capture.capture import capture
    from svitc.passes.policies import Uniform

    checkpoint = place.with_name(f"{place.name}.pt")
    if not checkpoint.is_file():
        torch.manual_seed(0)
        model = warm(getattr(sj, factory)(**arguments).eval(), shape)
        svitc.save(model, checkpoint, arch=ARCH + factory, arch_args=arguments, input_shape=shape)
    program = capture(load_model(checkpoint).model, svitc.InputSpec(shape))
    run_canonical_passes(program)
    known = {"macs": macs(program), "parameters": program.parameter_count(), "variants": {}}
    for name in variants:
        budget, options = VARIANTS[name]
        policy = Uniform(round_to=options.get("round_to", 1))
        weights = options.get("weights", "fp32")
        done = svitc.compile(
            program, budget, images=1, remove_dead_channels="off", weights=weights, policy=policy, no_data="uniform"
        )
        if not done.verdict.passed:
            raise RuntimeError(f"{name} is not the same network: first at {done.verdict.first_divergence}")
        file = place.with_name(f"{place.name}-{name}.onnx")
        file.write_bytes(done.onnx)
        known["variants"][name] = {
            "file": file.name,
            "macs": macs(done.program),
            "parameters": done.report["parameters"]["compiled"],
            "facts": {
                "nodes": done.report["nodes"]["compiled"],
                "weight_bytes": done.report["memory"]["compiled_bytes"],
            },
        }
    return known


def products(kind: str, threads: int) -> Ready:
    """Return a session of one matrix product, whose second factor is a constant, as weights are."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from svitc import runtimes

    m, k, n = PRODUCT
    generator = np.random.default_rng(0)
    if kind == "int8":
        x = generator.integers(0, 2, (m, k), dtype=np.uint8)
        w = generator.integers(-127, 128, (k, n), dtype=np.int8)
        given, made, op = TensorProto.UINT8, TensorProto.INT32, "MatMulInteger"
    else:
        x = generator.standard_normal((m, k), dtype=np.float32)
        w = generator.standard_normal((k, n), dtype=np.float32)
        given = made = TensorProto.FLOAT
        op = "MatMul"
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", given, [m, k])],
        [helper.make_tensor_value_info("y", made, [m, n])],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = runtimes.session(proto.SerializeToString(), threads)
    return Ready(lambda: session.run(None, {"x": x})[0], f"onnxruntime {onnxruntime.__version__}")


# one model at one batch


def contestants(
    name: str, batch: int, known: dict[str, Any], args: argparse.Namespace
) -> tuple[list[Runner], list[dict]]:
    """Return the contestants for a model at a batch size, and rows for those that cannot run."""
    source = Source(args.work / f"{name}.pt")
    load = Load(FULL_SIZE[name][1], batch, args.threads)
    found = [
        Runner(variant, onnx_file, (args.work / each["file"], load), ORT_IMPORTS, each["facts"])
        for variant, each in known["variants"].items()
    ]
    if "eager" in args.peers:
        found.append(Runner("eager", eager, (source, load)))
    path, failed = args.work / f"{name}-b{batch}-naive.onnx", []
    facts = path.with_suffix(".json")
    made = {
        "torch.onnx": Runner(NAIVE, onnx_file, (path, load), ORT_IMPORTS),
        "openvino": Runner(VINO, openvino_file, (path, load), OPENVINO_IMPORTS),
        "openvino f32": Runner(f"{VINO}, f32", openvino_file, (path, load, True), OPENVINO_IMPORTS),
    }
    wanted = {key: each for key, each in made.items() if key in args.peers}
    if wanted and not facts.is_file():
        try:
            facts.write_text(json.dumps(exported(source, load, path, LIMIT)))
        except Failed as failure:
            failed = [empty_row(each, f"torch.onnx.export: {failure.reason}") for each in wanted.values()]
            wanted = {}
    for each in wanted.values():
        found.append(Runner(each.name, each.make, each.arguments, each.imports, json.loads(facts.read_text())))
    found += [Runner(title, products, (kind, args.threads), ORT_IMPORTS) for kind, title in PRODUCTS.items()]
    return found, failed


def one(name: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the record of a model at a batch size, from --work if it is there."""
    done = args.work / f"{name}-b{batch}.json"
    if args.resume and done.is_file():
        return dict(json.loads(done.read_text()))
    compiled = args.work / f"{name}-compiled.json"
    if not (args.resume or batch != args.batches[0]) or not compiled.is_file():
        say(f"{name}: compile")
        task = Runner("prepare", prepare, (name, {}, FULL_SIZE[name][1], args.work / name, args.variants))
        compiled.write_text(json.dumps(once(task, LIMIT)))
    known = json.loads(compiled.read_text())
    racing, failed = contestants(name, batch, known, args)
    record = run_rounds(
        racing,
        args.runs,
        LIMIT,
        profile=True,
        reporter=Reporter(lambda *stage: say(f"{name} b{batch}: {stage[0]} {stage[1]}")),
    )
    record |= {
        "model": name,
        "batch": batch,
        "threads": args.threads,
        "macs": known["macs"],
        "parameters": known["parameters"],
    }
    record["rows"] += failed
    record["variants"] = known["variants"]
    record["rates"] = rates(record["rows"])
    done.write_text(json.dumps(record, indent=1) + "\n")
    return record


def rates(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return billions of operations per second, two for each multiply-accumulate."""
    medians = {each["name"]: each["median_ms"] for each in rows}
    operations = 2 * math.prod(PRODUCT)
    return {kind: operations / medians[title] / 1e6 if medians.get(title) else None for kind, title in PRODUCTS.items()}


def publish(records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write JSON, Markdown and SVG, after each record, so that a crash loses nothing."""
    env = environment() | {"threads": args.threads}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps({"environment": env, "records": records}, indent=1) + "\n")
    shown = [cells for record in records for cells in lines(record)]
    operators = "".join(profiles(record) for record in records)
    text = [
        f"# {args.out.name}",
        "",
        str(__doc__).split("\n\nlatency_scaling")[0],
        "",
        note_on(records),
        "",
        table(shown),
        "By operator, ONNX Runtime's profiler:",
        "",
        "| model | batch | file | share of time by operator |",
        "| --- | --- | --- | --- |",
        operators,
        footer(env),
        "",
    ]
    args.out.with_suffix(".md").write_text("\n".join(text))
    plot(records, args.out.with_suffix(".svg"))


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ["spikformer_s", "sdt_8_384", "qkformer_10_384", "maxformer_10_384"]
    parser.add_argument("--models", nargs="+", default=models, choices=list(FULL_SIZE))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="skip what is finished in --work")
    parser.add_argument("--work", type=Path, default=Path("latency-work"))
    parser.add_argument("--out", type=Path, default=RESULTS / "latency")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    records = []
    for name in args.models:
        for batch in args.batches:
            try:
                records.append(one(name, batch, args))
            except Failed as failure:  # compiling it; the others go on
                say(f"{name} at batch {batch} is left out: {failure.reason}")
                continue
            publish(records, args)
    if records:
        print(args.out.with_suffix(".md").read_text())
        say(
            "slowest round: "
            f"{max(statistics.fmean(e['times_ms']) for r in records for e in r['rows'] if e['times_ms']):,.0f} ms"
        )


if __name__ == "__main__":
    main()
