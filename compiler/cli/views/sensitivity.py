"""Print sensitivity to pruning and to fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from svitc.cli.terminal import out, share_interval


def sensitivity(report: dict[str, Any], path: Path) -> None:
    """Sensitivity curves: one line a group, one column a rate."""
    sweep = report["sweep"]
    original = sweep["original"]
    out.print(
        f"top-1 of the original on {sweep['images']:,} images: {original['accuracy']:.2%}"
        f" (95% interval {share_interval(original['interval'])})"
    )
    table = Table(
        title="points lost, and share of all bytes saved, when one group alone is pruned",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("group", overflow="fold")
    table.add_column("size", justify="right")
    for rate in report["rates"]:
        table.add_column(f"{rate:.1%}".replace(".0%", "%"), justify="right")
    for group in report["groups"]:
        size = f"{group['heads']} x {group['size']}" if group["heads"] > 1 else str(group["size"])
        cells = []
        for rate in report["rates"]:  # a width is a whole number, so that somewhat more may have been cut
            step = next((s for s in group["steps"] if s["rate"] >= rate - 1e-9), None)
            cells.append("" if step is None else f"{100 * step['drop']:.1f} [dim]{step['saved']:.1%}[/]")
        table.add_row(escape(group["group"]), size, *cells)
    out.print(table)
    half = (
        max((s["drop_interval"][1] - s["drop_interval"][0] for g in report["groups"] for s in g["steps"]), default=0)
        / 2
    )
    out.print(
        f"95% intervals of the losses are at most {100 * half:.1f} points wide on either side; all of them are in "
        f"{escape(str(path))}"
    )


def precision(report: dict[str, Any], path: Path) -> None:
    """Accuracy against bits: one line a layer or kind, one column a level."""
    sweep, at8 = report["sweep"], report["all_at_8"]
    original = sweep["original"]
    out.print(
        f"top-1 of the original on {sweep['images']:,} images: {original['accuracy']:.2%}"
        f" (95% interval {share_interval(original['interval'])}); all layers at 8 bits: {100 * at8['drop']:.1f} "
        "points lost"
    )
    table = Table(
        title="points lost, and share of the int8 bytes saved, when one layer or kind alone has fewer than 8 bits",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    table.add_column("bytes", justify="right")
    levels = sorted(
        {step["bits"] for row in (*report["layers"], *report["kinds"]) for step in row["steps"]}, reverse=True
    )
    for bits in levels:
        table.add_column(f"{bits} bits", justify="right")
    for rows in (report["layers"], report["kinds"]):
        for row in rows:
            found = {step["bits"]: f"{100 * step['drop']:.1f} [dim]{step['saved']:.1%}[/]" for step in row["steps"]}
            kind = row["kind"] or f"{row['layers']} layers"
            table.add_row(escape(row["name"]), kind, f"{row['bytes_at_8']:,}", *(found.get(b, "") for b in levels))
        table.add_section()
    out.print(table)
    out.print(f"all of it, with 95% intervals, is in {escape(str(path))}")
