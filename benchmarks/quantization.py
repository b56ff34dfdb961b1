"""Compare policies for bits, and for channels and bits, on one trained model: memory and energy saved, and accuracy.

    python benchmarks/quantization.py spikformer-cifar10.pt --train cifar10-train.zip --test cifar10-test.zip

Bits are chosen, weights rounded and networks fine-tuned on the training images alone; the test images are used
once for every figure in the table, when its file is written. Jobs run one after another; a finished one is on disk
(`--work`), so that an interrupted run continues where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import environment
from study import accuracy_cells, arguments, canvas, kept, save

# name -> policy, budget, options of the compilation. A search for bits ends where the budget is met. How far --max-drop
# goes, and whether it keeps its promise, is measured by promises.py.
JOBS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "int8": ("auto", None, {"weights": "int8"}),
    "int4": ("auto", None, {"weights": "int4"}),
    "int2": ("auto", None, {"weights": "int2"}),
    "ternary": ("auto", None, {"weights": "ternary"}),
    "qsvit 0.25": ("qsvit", "0.25", {}),
    "aq-greedy 0.175": ("aq-greedy", "0.175", {}),
    "aq-beam 0.13": ("aq-beam", "0.13", {}),
    "joint": ("auto", "0.075", {}),
    "joint 0.05": ("auto", "0.05", {}),
}
TUNED = ("joint", "joint 0.05")
KEYS = (
    "memory",
    "parameters",
    "accuracy",
    "energy",
    "policy",
    "weights",
    "groups",
    "decisions",
    "sweep",
    "finetune",
    "seconds",
)


def work(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return one row: the compiled model, and the same plan fine-tuned."""
    policy, budget, extra = JOBS[name]
    stem = name.replace(" ", "-")
    done = args.work / f"{stem}.json"
    row: dict[str, Any] = dict(json.loads(done.read_text())) if done.is_file() else {}
    wanted = bool(args.epochs) and name in TUNED
    if row and (row["tuned"] is not None or not wanted):
        return row
    import torch

    from svitc import CompileOptions, Compiler, load
    from svitc.data.dataset import load_data
    from svitc.passes.policies import make
    from svitc.planning.plan import Plan
    from svitc.support.reporter import Reporter

    torch.set_num_threads(args.threads)
    program = load(args.model)
    options = CompileOptions(
        data=load_data(args.test, program.input, program.info, limit=args.limit),
        train_data=load_data(args.train, program.input, program.info),
        sweep_images=args.sweep_images,
        calibration_images=args.calibration_images,
        sweep_file=args.work / f"{stem}.sweep.jsonl",
        resume=True,
        **extra,
    )
    reporter = Reporter(on_decision=lambda sentence: print(f"{name}: {sentence}", flush=True))
    compiler = Compiler(program, make(policy), options, reporter)
    plan_file = args.work / f"{stem}.plan.json"
    if not row:
        start = time.perf_counter()
        compiled = compiler.compile(budget)
        plan_file.write_text(json.dumps(compiled.plan.to_json()))
        row = {"name": name, "policy": policy, "plain": kept(compiled.report, KEYS), "tuned": None}
        row["seconds"] = round(time.perf_counter() - start, 1)
        done.write_text(json.dumps(row, indent=1) + "\n")
    if wanted:
        training = replace(options, finetune=args.epochs, finetune_options={"lr": args.lr})
        compiler = Compiler(program, make(policy), training, reporter)
        file = args.work / f"{stem}.finetune.pt"
        row["tuned"] = kept(compiler.compile(plan=Plan.load(plan_file), finetune_file=file).report, KEYS)
        done.write_text(json.dumps(row, indent=1) + "\n")
    return row


def row_text(row: dict[str, Any]) -> str:
    plain = row["plain"]
    saved = plain["energy"]["saved"]
    cells = [
        row["name"],
        f"{1 - plain['memory']['ratio']:.2%}",
        f"{saved['total']:.1%}",
        f"{saved['total_same_memory']:.1%}",
    ]
    for each in (plain, row["tuned"]):
        cells += accuracy_cells(each)
    cells.append(str(row["tuned"]["finetune"]["epochs"]) if row["tuned"] else "-")
    search = plain["policy"].get("search", {})
    cells.append(str(search.get("full_evaluations", (plain["sweep"] or {}).get("points", "-"))))
    widths = [layer["bits"] for layer in plain["weights"]["layers"].values()]
    cells.append(" ".join(f"{widths.count(bits)} x {bits}" for bits in (16, 8, 4, 2) if bits in widths))
    return "| " + " | ".join(cells) + " |"


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    figure, axes = canvas(title)
    for row, marker in zip(rows, "x+1s^vDo", strict=False):
        for key, filled in (("plain", False), ("tuned", True)):
            if row[key] is not None:
                x, y = 100 * (1 - row[key]["memory"]["ratio"]), 100 * row[key]["accuracy"]["drop"]
                label = f"{row['name']}, fine-tuned" if filled else row["name"]
                axes.plot([x], [y], marker, fillstyle="full" if filled else "none", label=label)
    save(figure, axes, path, fontsize=8)


def main() -> None:
    parser = arguments(__doc__, "quantization")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    names = [name for name in JOBS if not args.only or name in args.only]
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        rows = list(pool.map(work, names, [args] * len(names)))
    first = rows[0]["plain"]["accuracy"]
    only = "".join(f" {name!r}" if " " in name else f" {name}" for name in args.only or [])
    only = only and f" --only{only}"
    lines = [
        f"# Bits on {args.model.name}",
        "",
        f"Original: {first['original']:.2%} of {first['images']:,} test images"
        f" (95% interval {first['original_interval'][0]:.2%} to {first['original_interval'][1]:.2%}). Bits, rounding "
        "and"
        " fine-tuning use the training images only. Drops are points lost, with their paired 95% intervals. Energy is"
        " svitc energy's (Horowitz 2014) against the fp32 network; the second figure leaves out that smaller weights"
        " lie in SRAM instead of DRAM.",
        "",
        "| policy | memory saved | energy saved | same memory | top-1 | drop | top-1 fine-tuned | drop fine-tuned | "
        "epochs"
        " | full evaluations | layers x bits |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *map(row_text, rows),
        "",
        f"Command: `python benchmarks/quantization.py {args.model.name} --train {args.train.name} --test "
        f"{args.test.name}"
        f" --epochs {args.epochs} --sweep-images {args.sweep_images}{only}`",
        "",
    ]
    args.out.parent.mkdir(exist_ok=True)
    args.out.with_suffix(".md").write_text("\n".join(lines))
    args.out.with_suffix(".json").write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    plot(rows, args.out.with_suffix(".svg"), args.model.stem)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
