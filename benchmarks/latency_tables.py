"""The tables and the plot of latency.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import table
from svitc.bench.compare import TITLES
from svitc.bench.rounds import quartiles
from svitc.support.hardware import DISTURBED_PROCESSORS

NAIVE = TITLES["torch.onnx"]
PRODUCTS = {"int8": "products int8", "float": "products float"}


def lines(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table rows of a record."""
    by_name = {each["name"]: each for each in record["rows"]}

    def faster(each: dict[str, Any], than: str) -> Any:
        other = by_name.get(than)
        if not other or not other["times_ms"]:
            return "-"
        return round(quartiles([a / b for a, b in zip(other["times_ms"], each["times_ms"], strict=True)])[1], 2)

    found = []
    for each in record["rows"]:
        if each["name"] in PRODUCTS.values():
            continue
        ours = record["variants"].get(each["name"])
        cells: dict[str, Any] = {
            "model": record["model"],
            "batch": record["batch"],
            "contestant": f"svitc {each['name']}" if ours else each["name"],
            "median ms": each["reason"] or "-",
        }
        if each["reason"]:
            cells |= dict.fromkeys(COLUMNS, "-")
        else:
            operations = 2 * (ours or record)["macs"] * record["batch"]
            floor = {kind: operations / rate / 1e6 if rate else None for kind, rate in record["rates"].items()}
            cells |= {
                "median ms": each["median_ms"],
                "quartiles": f"{each['q1_ms']:g} to {each['q3_ms']:g}",
                "x faster than eager": faster(each, "eager"),
                "x faster than naive export": faster(each, NAIVE),
                **{
                    f"x {kind} products alone": round(each["median_ms"] / ms, 2) if ms else "-"
                    for kind, ms in floor.items()
                },
                "weight bytes": "-" if each["weight_bytes"] is None else each["weight_bytes"],
                "peak MiB": round((each["memory_bytes"] or 0) / 2**20, 1),
                "nodes": each["nodes"] or "-",
                "max logit difference": "-" if each["max_logit_difference"] is None else each["max_logit_difference"],
                "runtime": each["version"],
            }
        found.append(cells)
    return found


COLUMNS = (
    "quartiles",
    "x faster than eager",
    "x faster than naive export",
    "x int8 products alone",
    "x float products alone",
    "weight bytes",
    "peak MiB",
    "nodes",
    "max logit difference",
    "runtime",
)


def profiles(record: dict[str, Any], most: int = 10) -> str:
    """Return where the time goes, by operator, in svitc's file and in the naive export."""
    rows = []
    for name, operators in record.get("profile", {}).items():
        if name in PRODUCTS.values():
            continue
        total = sum(each["ms"] for each in operators.values())
        spent = list(operators.items())
        text = ", ".join(f"{kind} {each['ms'] / total:.0%}" for kind, each in spent[:most])
        label = f"svitc {name}" if name in record["variants"] else name
        rows.append(
            {"model": record["model"], "batch": record["batch"], "file": label, "share of time by operator": text}
        )
    return table(rows).split("\n", 2)[2] if rows else ""


def note_on(records: list[dict[str, Any]]) -> str:
    others = max((record["other_processes"] or 0.0) for record in records)
    text = "; ".join(
        f"{kind} {min(known):.0f} to {max(known):.0f} GOP/s"
        for kind in PRODUCTS
        if (known := [record["rates"][kind] for record in records if record["rates"][kind]])
    )
    busy = (
        f" Other processes kept {others:g} processors busy meanwhile: these times are disturbed."
        if others > DISTURBED_PROCESSORS
        else ""
    )
    return (
        f"Matrix products alone: {text}, measured in the same rounds. Medians and quartiles of {records[0]['runs']} "
        "rounds;"
        f" factors are medians over rounds of both times in one round. Peak MiB is of the model alone, without what the"
        f" interpreter and its libraries take.{busy}"
    )


def footer(env: dict[str, Any]) -> str:
    packages = ", ".join(f"{key} {value}" for key, value in env["versions"].items())
    return f"`{env['command']}`, Python {env['python']}, {packages}; {env['processor']}, {env['threads']} threads"


def canvas(columns: int) -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "svitc"
    figure, axes = plt.subplots(1, columns, figsize=(max(5, 4.6 * columns), 4.2), squeeze=False)
    return plt, figure, axes[0]


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Plot the speed relative to eager PyTorch, one panel per batch size; without eager there is no plot."""
    ratios = {
        (record["model"], record["batch"], each["name"]): quartiles(
            [a / b for a, b in zip(base["times_ms"], each["times_ms"], strict=True)]
        )
        for record in records
        for base in record["rows"]
        if base["name"] == "eager" and base["times_ms"]
        for each in record["rows"]
        if each["times_ms"] and each["name"] not in PRODUCTS.values()
    }
    if not ratios:
        return
    batches = sorted({batch for _, batch, _ in ratios})
    models = list(dict.fromkeys(model for model, _, _ in ratios))
    names = list(dict.fromkeys(name for _, _, name in ratios))
    ours = {name for record in records for name in record["variants"]}
    plt, figure, panels = canvas(len(batches))
    width = 0.8 / len(names)
    for panel, batch in zip(panels, batches, strict=True):
        for place, name in enumerate(names):
            points = [
                (x + (place - (len(names) - 1) / 2) * width, ratios[model, batch, name])
                for x, model in enumerate(models)
                if (model, batch, name) in ratios
            ]
            spread = [
                [middle - low for _, (low, middle, _) in points],
                [high - middle for _, (_, middle, high) in points],
            ]
            label = f"svitc {name}" if name in ours else name
            panel.bar(
                [x for x, _ in points],
                [middle for _, (_, middle, _) in points],
                width,
                yerr=spread,
                label=label,
                error_kw={"linewidth": 0.7},
            )
        panel.axhline(1, color="grey", linewidth=0.5)
        panel.set_xticks(range(len(models)), models, rotation=15, fontsize=8)
        panel.set_title(f"batch {batch}")
    panels[0].set_ylabel("times faster than eager PyTorch")
    panels[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
