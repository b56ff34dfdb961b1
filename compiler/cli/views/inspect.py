"""Print what ``svitc inspect`` finds in a model."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from svitc.cli.terminal import amount, assumptions, out


def inspection(view: dict[str, Any]) -> None:
    """What is in a model."""
    assumptions(view["model"])
    table = Table(title="layers", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("layer", "left"),
        ("kind", "left"),
        ("widths", "right"),
        ("bytes", "right"),
        ("MMACs", "right"),
        ("line", "left"),
    ):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for layer in view["layers"]:
        if layer["kind"].startswith("BatchNorm"):
            continue
        table.add_row(
            escape(layer["name"]),
            layer["kind"],
            layer["widths"],
            f"{layer['bytes']:,}",
            f"{layer['macs'] / 1e6:,.2f}",
            escape(layer["where"] or ""),
        )
    out.print(table)
    table = Table(title="\nchannel groups", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("group", "left"),
        ("size", "right"),
        ("layers", "right"),
        ("bytes each", "right"),
        ("prunable", "left"),
    ):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for group in view["groups"]:
        size = f"{group['heads']} x {group['size'] // group['heads']}" if group["heads"] > 1 else str(group["size"])
        why = f"[yellow]no:[/] {escape(group['frozen'])}" if group["frozen"] else "yes"
        if group["whole_heads"] and not group["frozen"]:
            why = f"whole heads only: {escape(group['whole_heads'])}"
        table.add_row(escape(group["name"]), size, str(group["layers"]), f"{group['bytes_each']:,}", why)
    out.print(table)
    out.print(
        f"\n{view['parameters']:,} parameters, {amount(view['bytes'])} of weights in ONNX, "
        f"{view['macs'] / 1e6:,.1f} M multiply-accumulates an image, {view['neurons']} neurons"
    )
    dead = view["dead"]
    if dead:
        out.print(
            f"{sum(dead.values()):,} more parameters are never used: "
            f"{escape(', '.join(sorted(dead)[:6]))}{' …' if len(dead) > 6 else ''}"
        )
