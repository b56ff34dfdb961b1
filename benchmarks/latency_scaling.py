"""Measure how the time of svitc's file grows with time steps, batch, depth and resolution.

One network, one quantity changed at a time; all points of a quantity run in turn, in paired rounds, each in a process
of its own (svitc.bench.rounds). Finished results are kept in --work; --resume continues from them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from common import RESULTS, environment, table
from latency import LIMIT, VARIANTS, prepare, say
from latency_tables import canvas, footer
from svitc.bench.compare import ORT_IMPORTS
from svitc.bench.rounds import run_rounds
from svitc.bench.runners import Load, onnx_file
from svitc.bench.worker import Runner, once
from svitc.support.hardware import DISTURBED_PROCESSORS
from svitc.support.reporter import Reporter

SCALES: dict[str, list[int]] = {
    "T": [1, 2, 4, 8],
    "batch": [1, 2, 4, 8, 16, 32],
    "depth": [4, 8, 16, 24],
    "resolution": [128, 192, 256, 320, 384],
}
BASE = {"T": 4, "batch": 1, "depth": 8, "resolution": 224}


def scaling(args: argparse.Namespace) -> None:
    """Measure one network with one quantity changed at a time; all its points run in the same rounds."""
    variant = args.variant
    records = []
    for quantity in args.quantities:
        done = args.work / f"scaling-{quantity}-{variant}.json"
        if args.resume and done.is_file():
            records.append(json.loads(done.read_text()))
        else:
            records.append(scale(quantity, variant, args))
            done.write_text(json.dumps(records[-1], indent=1) + "\n")
        out = args.out
        env = environment() | {"threads": args.threads}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps({"environment": env, "records": records}, indent=1) + "\n")
        rows = [cells for record in records for cells in scaling_lines(record)]
        others = max(record["other_processes"] or 0.0 for record in records)
        busy = (
            f" Other processes kept {others:g} processors busy meanwhile: these times are disturbed."
            if others > DISTURBED_PROCESSORS
            else ""
        )
        text = [
            f"# {out.name}",
            "",
            f"How does the time of our {variant} file grow? A Spikformer of width {args.width}; what is not"
            f" varied is {', '.join(f'{k} {v}' for k, v in BASE.items())}. The exponent is that of the growth since "
            "the row"
            f" before: 1 is linear in the quantity. Medians of {args.runs} paired rounds.{busy}",
            "",
            table(rows),
            footer(env),
            "",
        ]
        out.with_suffix(".md").write_text("\n".join(text))
        plot(records, out.with_suffix(".svg"))
    print("\n".join(text))


def scale(quantity: str, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    racing, points = [], []
    for value in args.values or SCALES[quantity]:
        at = BASE | {quantity: value}
        side = at["resolution"]
        arguments = {
            "T": at["T"],
            "embed_dims": args.width,
            "num_heads": args.width // 32,
            "depths": at["depth"],
            "img_size_h": side,
            "img_size_w": side,
        }
        place = args.work / f"spikformer-w{args.width}-t{at['T']}-d{at['depth']}-r{side}"
        known = place.with_name(f"{place.name}-{variant}.json")
        if not known.is_file() or not args.resume:
            say(f"{quantity} {value}: compile")
            task = Runner("prepare", prepare, ("Spikformer", arguments, (3, side, side), place, [variant]))
            known.write_text(json.dumps(once(task, LIMIT)))
        each = json.loads(known.read_text())["variants"][variant]
        load = Load((3, side, side), at["batch"], args.threads)
        racing.append(Runner(str(value), onnx_file, (args.work / each["file"], load), ORT_IMPORTS, each["facts"]))
        points.append({**at, "macs": each["macs"], "parameters": each["parameters"]})
    record = run_rounds(
        racing, args.runs, LIMIT, reporter=Reporter(lambda *stage: say(f"{quantity}: {stage[0]} {stage[1]}"))
    )
    return {**record, "quantity": quantity, "variant": variant, "points": points}


def scaling_lines(record: dict[str, Any]) -> list[dict[str, Any]]:
    rows, last = [], None
    for each, point in zip(record["rows"], record["points"], strict=True):
        size, ms = point[record["quantity"]], each["median_ms"]
        cells: dict[str, Any] = {"varied": record["quantity"], "value": size, "median ms": each["reason"] or ms}
        if each["reason"]:
            rows.append(
                cells
                | dict.fromkeys(
                    ("quartiles", "ms an image", "exponent", "MMACs an image", "GMAC/s", "weight bytes", "peak MiB"),
                    "-",
                )
            )
            continue
        images = point["batch"]
        exponent = "-" if last is None else round(math.log(ms / last[1]) / math.log(size / last[0]), 2)
        rows.append(
            cells
            | {
                "quartiles": f"{each['q1_ms']:g} to {each['q3_ms']:g}",
                "ms an image": ms / images,
                "exponent": exponent,
                "MMACs an image": round(point["macs"] / 1e6),
                "GMAC/s": point["macs"] * images / ms / 1e6,
                "weight bytes": each["weight_bytes"],
                "peak MiB": round((each["memory_bytes"] or 0) / 2**20, 1),
            }
        )
        last = size, ms
    return rows


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Plot milliseconds per image against each quantity, beside proportional growth."""
    plt, figure, panels = canvas(len(records))
    for panel, record in zip(panels, records, strict=True):
        good = [
            (point[record["quantity"]], each["median_ms"])
            for each, point in zip(record["rows"], record["points"], strict=True)
            if not each["reason"]
        ]
        if good:
            panel.plot(*zip(*good, strict=True), "o-", label="measured")
            power = 2 if record["quantity"] == "resolution" else 1
            panel.plot(
                [x for x, _ in good],
                [good[0][1] * (x / good[0][0]) ** power for x, _ in good],
                ":",
                color="grey",
                label="in proportion to " + ("pixels" if power == 2 else record["quantity"]),
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xlabel(record["quantity"])
        panel.legend(fontsize=7)
    panels[0].set_ylabel("ms")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="int8", choices=list(VARIANTS))
    parser.add_argument("--quantities", nargs="+", default=list(SCALES), choices=list(SCALES))
    parser.add_argument(
        "--values", nargs="+", type=int, help="of the one quantity of --quantities, instead of the usual"
    )
    parser.add_argument("--width", type=int, default=384, help="of the network")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="skip what is finished in --work")
    parser.add_argument("--work", type=Path, default=Path("latency-work"))
    parser.add_argument("--out", type=Path, default=RESULTS / "latency_scaling")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    scaling(args)


if __name__ == "__main__":
    main()
