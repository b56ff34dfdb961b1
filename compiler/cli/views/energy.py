"""What a person sees of an estimate of energy: one line a layer, the sums, and where the energies are from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from svitc.cli import terminal

READS = {"spikes": "spikes", "counts": "counts", "fixed": "fixed point", "real": "real"}
PARTS = (
    ("compute", "compute_pj"),
    ("memory", "memory_pj"),
    ("  weights", "weight_pj"),
    ("  activations", "activation_pj"),
    ("  membranes", "membrane_pj"),
    ("total", "pj"),
)


def energy(report: Mapping[str, Any]) -> None:
    """Layers, totals, and the table of energies, of what ``svitc energy --json`` prints."""
    against = report["against"]
    layers(report["layers"], None if against is None else {row["name"]: row for row in against["layers"]})
    totals(report)
    constants(report["table"])
    for note in report["notes"]:
        terminal.out.print(f"[yellow]note[/] {escape(str(note))}", soft_wrap=True)


def layers(rows: list[Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]] | None) -> None:
    """Layers with weights, matrix products and neurons; what is elementwise in one line."""
    table = Table(title="one image", title_justify="left", box=None, pad_edge=False, header_style="bold")
    titles = ["layer", "kind", "reads", "firing", "AC", "integer AC", "MAC", "bits", "compute", "memory"]
    for title in titles + (["against", "saving"] if others is not None else []):
        table.add_column(title, justify="left" if title in ("layer", "kind", "reads") else "right", overflow="fold")
    rest = []
    for row in rows:
        if row["reads"] is None and row["rate"] is None:
            rest.append(row)
            continue
        cells = [
            escape(row["name"]),
            escape(row["kind"]),
            READS.get(row["reads"] or "", ""),
            "" if row["rate"] is None else f"{row['rate']:.3f}",
            *(count(row[key]) for key in ("ac", "int_ac", "mac")),
            str(row["weight_bits"] or ""),
            joules(row["compute_pj"]),
            joules(row["memory_pj"]),
        ]
        if others is not None:
            cells += compared(row["pj"], others[row["name"]]["pj"]) if row["name"] in others else ["", ""]
        table.add_row(*cells)
    if rest:
        sums = [sum(row[key] for row in rest) for key in ("compute_pj", "memory_pj")]
        table.add_row(f"{len(rest)} others", "elementwise", *[""] * 6, *map(joules, sums))
    terminal.out.print(table)


def totals(report: Mapping[str, Any]) -> None:
    """Sums, beside those of the other network where there is one."""
    against, ours = report["against"], report["totals"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [report] if against is None else [against, report]
    for title in ["", *(str(each["model"]) for each in shown), *(["saving"] if against is not None else [])]:
        table.add_column(escape(title), justify="left" if not title else "right")
    table.add_row("weights", *(f"{each['weights']}, in {each['weights_in']}" for each in shown))
    table.add_row("firing rate", *(f"{each['totals']['rate']:.3f}" for each in shown))
    for name, key in (("AC", "ac"), ("integer AC", "int_ac"), ("MAC", "mac")):
        table.add_row(name, *(count(each["totals"][key]) or "0" for each in shown))
    for name, key in PARTS:
        if against is None:
            table.add_row(name, joules(ours[key]))
        else:
            theirs = against["totals"][key]
            table.add_row(name, joules(theirs), joules(ours[key]), compared(ours[key], theirs)[1])
    terminal.out.print()
    terminal.out.print(table)
    terminal.out.print(f"mean of {report['images']:,} images", soft_wrap=True)


def constants(table: Mapping[str, Any]) -> None:
    """The energies that all this is made of, and their source."""
    kinds: dict[str, list[str]] = {}
    for name, pj in table["operations"].items():
        kind, _, operation = name.partition(".")
        kinds.setdefault(kind, []).append(f"{operation} {pj:g}")
    operations = "; ".join(f"{kind} {', '.join(parts)}" for kind, parts in kinds.items())
    levels = ", ".join(f"{each['name']} {each['pj']:g}" for each in table["memories"])
    terminal.out.print(
        f"\npJ of an operation: {escape(operations)}\npJ of {table['access_bits']} bits: {escape(levels)}\n"
        f"from {escape(table['source'])}; {escape(table['process'])}",
        soft_wrap=True,
    )


def compared(ours: float, theirs: float) -> list[str]:
    """The other's energy, and what ours saves of it."""
    return [joules(theirs), f"{1 - ours / theirs:.1%}" if theirs else ""]


def joules(pj: float) -> str:
    """An energy of so many pJ, as a person reads it."""
    for unit, size in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if pj >= size:
            return f"{pj / size:.2f} {unit}"
    return f"{pj:.2f} pJ"


def count(number: float) -> str:
    """A number of operations, in millions or thousands; nothing for none."""
    if not number:
        return ""
    if number >= 1e6:
        return f"{number / 1e6:,.2f} M"
    return f"{number / 1e3:,.1f} k" if number >= 1e3 else f"{number:,.0f}"
