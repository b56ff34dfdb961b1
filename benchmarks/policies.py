"""All policies on one trained model: memory saved against accuracy, without and with fine-tuning.

    python benchmarks/policies.py spikformer-cifar10.pt --train cifar10-train.zip --test cifar10-test.zip --epochs 1

Plans are chosen, refitted and fine-tuned on the training images alone; the test images are used once for every
figure in the table, when its file is written. Jobs run side by side, one thread each. A finished job is on disk
(`--work`), so that an interrupted run continues where it was.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import environment
from study import accuracy_cells, arguments, canvas, kept, save

# (name, policy, budget): the published savings for the published policies, and ours beyond them. A model
# that pruning changed little gains nothing in one epoch and gets more; both were chosen on held-out training images.
# How far --max-drop goes, and whether it keeps its promise, is measured by promises.py.
JOBS = [
    ("psvit", "psvit", 0.776),
    ("primesvt", "primesvt", 0.7332),
    ("auto 0.55", "auto", 0.55),
    ("auto 0.35", "auto", 0.35),
    ("auto 0.32", "auto", 0.32),
    ("uniform", "uniform", 0.776),
]
KEYS = ("memory", "parameters", "macs", "accuracy", "policy", "groups", "decisions", "sweep", "finetune", "seconds")
TUNED = {"psvit": 1, "primesvt": 1, "auto 0.55": 3, "auto 0.35": 1}  # times --epochs


def work(job: tuple[str, str, float], args: argparse.Namespace) -> dict[str, Any]:
    """Return one row: the compiled model, and the same plan fine-tuned."""
    name, policy, budget = job
    done = args.work / f"{name.replace(' ', '-')}.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    import torch

    from svitc import CompileOptions, Compiler, load
    from svitc.data.dataset import load_data
    from svitc.passes.policies import make

    torch.set_num_threads(args.threads)
    program = load(args.model)
    test = load_data(args.test, program.input, program.info, limit=args.limit)
    train = load_data(args.train, program.input, program.info)
    options = CompileOptions(
        data=test,
        train_data=train,
        sweep_images=args.sweep_images,
        calibration_images=args.calibration_images,
        sweep_file=args.work / f"{name.replace(' ', '-')}.sweep.jsonl",
        resume=True,
    )
    compiler = Compiler(program, make(policy), options)
    pruned = compiler.compile(budget)
    row: dict[str, Any] = {"name": name, "policy": policy, "pruned": kept(pruned.report, KEYS), "tuned": None}
    if name in TUNED and args.epochs:
        compiler = Compiler(program, make(policy), replace(options, finetune=args.epochs * TUNED[name]))
        file = args.work / f"{name.replace(' ', '-')}.finetune.pt"
        row["tuned"] = kept(compiler.compile(plan=pruned.plan, finetune_file=file).report, KEYS)
    done.write_text(json.dumps(row, indent=1) + "\n")
    return row


def row_text(row: dict[str, Any]) -> str:
    report = row["pruned"]
    cells = [row["name"], f"{1 - report['memory']['ratio']:.2%}"]
    for each in (row["pruned"], row["tuned"]):
        cells += accuracy_cells(each)
    tuned = row["tuned"]
    cells.append(str(tuned["finetune"]["epochs"]) if tuned else "-")
    sweep = report["sweep"]
    cells.append(str(sweep["points"]) if sweep else "-")
    return "| " + " | ".join(cells) + " |"


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    figure, axes = canvas(title)
    for policy, marker in (("uniform", "x"), ("psvit", "s"), ("primesvt", "^"), ("auto", "o")):
        for key, filled in (("pruned", False), ("tuned", True)):
            points = [
                (100 * (1 - r[key]["memory"]["ratio"]), 100 * r[key]["accuracy"]["drop"])
                for r in rows
                if r["policy"] == policy and r[key] is not None
            ]
            if points:
                label = f"{policy}, fine-tuned" if filled else policy
                axes.plot(
                    *zip(*sorted(points), strict=True), marker, fillstyle="full" if filled else "none", label=label
                )
    save(figure, axes, path)


def main() -> None:
    parser = arguments(__doc__, "policies")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    jobs = [job for job in JOBS if not args.only or job[0] in args.only]
    with ProcessPoolExecutor(args.jobs, max_tasks_per_child=1) as pool:
        rows = list(pool.map(work, jobs, [args] * len(jobs)))
    first = rows[0]["pruned"]["accuracy"]
    lines = [
        f"# Policies on {args.model.name}",
        "",
        f"Original: {first['original']:.2%} of {first['images']:,} test images"
        f" (95% interval {first['original_interval'][0]:.2%} to {first['original_interval'][1]:.2%}). Plans, refits and"
        f" fine-tuning use the training images only. Drops are points lost, with their paired"
        " 95% intervals.",
        "",
        "| policy | memory saved | top-1 | drop | top-1 fine-tuned | drop fine-tuned | epochs | points measured |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *map(row_text, rows),
        "",
        f"Command: `python benchmarks/policies.py {args.model.name} --train {args.train.name} --test {args.test.name}"
        f" --epochs {args.epochs} --sweep-images {args.sweep_images}`",
        "",
    ]
    args.out.parent.mkdir(exist_ok=True)
    args.out.with_suffix(".md").write_text("\n".join(lines))
    args.out.with_suffix(".json").write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    plot(rows, args.out.with_suffix(".svg"), args.model.stem)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
