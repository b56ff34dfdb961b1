"""Tables of sensitivity: points lost against pruning rates, or against bits."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from svitc.cli.terminal import make_table, out
from svitc.support import human
from svitc.support.human import accuracy, points, share, share_interval
from svitc.support.types import JsonDict


def sensitivity(report: JsonDict, path: Path) -> None:
    """Print sensitivity curves: one line per group, one column per rate."""
    out.print(original_accuracy(report["sweep"]))
    rates = [share(rate).replace(".0%", "%") for rate in report["rates"]]
    title = "points lost, and share of all bytes saved, when one group alone is pruned"
    table = make_table("group", "size", *rates, fold={"group"}, title=title)
    for group in report["groups"]:
        size = f"{group['heads']} x {group['size']}" if group["heads"] > 1 else str(group["size"])
        cells = []
        for rate in report["rates"]:  # a width is a whole number, so slightly more than the rate may have been removed
            step = next((s for s in group["steps"] if s["rate"] >= rate - 1e-9), None)
            cells.append("" if step is None else lost_and_saved(step))
        table.add_row(escape(group["group"]), size, *cells)
    out.print(table)
    intervals = [step["drop_interval"] for group in report["groups"] for step in group["steps"]]
    half = max((high - low for low, high in intervals), default=0) / 2
    out.print(
        f"95% intervals of the losses are at most {points(half)} points wide on either side; all of them are in "
        f"{escape(str(path))}"
    )


def precision(report: JsonDict, path: Path) -> None:
    """Print accuracy against bits: one line per layer or kind, one column per number of bits."""
    at_8 = points(report["all_at_8"]["drop"])
    out.print(f"{original_accuracy(report['sweep'])}; all layers at 8 bits: {at_8} points lost")
    levels = sorted(
        {step["bits"] for row in (*report["layers"], *report["kinds"]) for step in row["steps"]}, reverse=True
    )
    title = "points lost, and share of the int8 bytes saved, when one layer or kind alone has fewer than 8 bits"
    columns = ("layer", "kind", "bytes", *(f"{bits} bits" for bits in levels))
    table = make_table(*columns, left={"kind"}, fold={"layer"}, title=title)
    for rows in (report["layers"], report["kinds"]):
        for row in rows:
            cells = {step["bits"]: lost_and_saved(step) for step in row["steps"]}
            kind = row["kind"] or human.counted(row["layers"], "layer")
            table.add_row(escape(row["name"]), kind, f"{row['bytes_at_8']:,}", *(cells.get(b, "") for b in levels))
        table.add_section()
    out.print(table)
    out.print(f"all of it, with 95% intervals, is in {escape(str(path))}")


def original_accuracy(sweep: JsonDict) -> str:
    """Return a sentence on the accuracy of the original, or on what a point means without labels."""
    original = sweep["original"]
    if "quality" in original:
        return (
            f"a point lost on the {sweep['images']:,} images is 1% of relative squared error of the outputs, of which "
            "no single one scores classes"
        )
    if not sweep["labels"]:
        return (
            f"the {sweep['images']:,} images have no labels: a point lost is 1% of them in another class than the "
            "original's, right or wrong"
        )
    return (
        f"top-1 of the original on {human.counted(sweep['images'], 'image')}: {accuracy(original['accuracy'])}"
        f" (95% interval {share_interval(original['interval'])})"
    )


def lost_and_saved(step: JsonDict) -> str:
    """Return the table cell of a measurement: points lost, and the share of bytes saved."""
    return f"{points(step['drop'])} [dim]{share(step['saved'])}[/]"
