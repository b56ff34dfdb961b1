"""Tables of what is in a model."""

from __future__ import annotations

from rich.markup import escape

from svitc.cli.terminal import assumptions, make_table, out
from svitc.support import human
from svitc.support.human import byte_size, millions
from svitc.support.types import JsonDict

DEAD_SHOWN = 6


def inspection(view: JsonDict) -> None:
    """Print the layers and channel groups of a model, and its totals."""
    assumptions(view["model"])
    table = make_table(
        "layer", "kind", "widths", "bytes", "MMACs", "line", left={"kind", "line"}, fold=True, title="layers"
    )
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
    title = "\nchannel groups"
    table = make_table("group", "size", "layers", "bytes each", "prunable", left={"prunable"}, fold=True, title=title)
    for group in view["groups"]:
        size = f"{group['heads']} x {group['size'] // group['heads']}" if group["heads"] > 1 else str(group["size"])
        why = f"[yellow]no:[/] {escape(group['frozen'])}" if group["frozen"] else "yes"
        if group["whole_heads"] and not group["frozen"]:
            why = f"whole heads only: {escape(group['whole_heads'])}"
        table.add_row(escape(group["name"]), size, str(group["layers"]), f"{group['bytes_each']:,}", why)
    out.print(table)
    if view["opaque"]:
        title = "\nkept as they are, with all channels that they read"
        table = make_table("in", "why", "line", left={"why", "line"}, fold=True, title=title)
        for place in view["opaque"]:
            table.add_row(*(escape(place[key] or "") for key in ("name", "why", "where")))
        out.print(table)
    out.print(
        f"\n{view['parameters']:,} parameters, {byte_size(view['bytes'])} of weights in ONNX, "
        f"{millions(view['macs'])} multiply-accumulates an image, {human.counted(view['neurons'], 'neuron')}"
    )
    dead = view["dead"]
    if dead:
        names = escape(", ".join(sorted(dead)[:DEAD_SHOWN])) + (" …" if len(dead) > DEAD_SHOWN else "")
        out.print(f"{sum(dead.values()):,} more parameters are never used: {names}")
