"""Tables of an energy estimate: one line per layer, the totals, and the source of the energies."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape

from svitc.cli import terminal
from svitc.support import human
from svitc.support.human import joules, operations, share
from svitc.support.types import JsonMapping

READS = {"spikes": "spikes", "counts": "counts", "fixed": "fixed point", "real": "real"}
PARTS = (
    ("compute", "compute_pj"),
    ("memory", "memory_pj"),
    ("  weights", "weight_pj"),
    ("  activations", "activation_pj"),
    ("  membranes", "membrane_pj"),
    ("total", "pj"),
)


def energy(report: JsonMapping) -> None:
    """Print the report that ``svitc energy --json`` prints: layers, totals, and the table of energies."""
    against = report["against"]
    layers(report["layers"], None if against is None else {row["name"]: row for row in against["layers"]})
    totals(report)
    twin(report["twin"])
    constants(report["table"])
    for note in report["notes"]:
        terminal.note(str(note))


def layers(rows: list[JsonMapping], others: Mapping[str, JsonMapping] | None) -> None:
    """Print one line for each layer with weights, matrix product and neuron, and one for all elementwise operations."""
    columns = ["layer", "kind", "reads", "firing", "AC", "integer AC", "MAC", "bits", "compute", "memory"]
    columns += ["against", "saving"] if others is not None else []
    table = terminal.make_table(*columns, left={"kind", "reads"}, fold=True, title="one image")
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
            *(operations(row[key]) for key in ("ac", "int_ac", "mac")),
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


def totals(report: JsonMapping) -> None:
    """Print the totals, beside those of the other network where there is one."""
    against, ours = report["against"], report["totals"]
    shown = [report] if against is None else [against, report]
    columns = [escape(str(side["model"])) for side in shown] + (["saving"] if against is not None else [])
    table = terminal.make_table("", *columns)
    table.add_row("weights", *(f"{side['weights']}, in {side['weights_in']}" for side in shown))
    table.add_row("firing rate", *(f"{side['totals']['rate']:.3f}" for side in shown))
    for name, key in (("AC", "ac"), ("integer AC", "int_ac"), ("MAC", "mac")):
        table.add_row(name, *(operations(side["totals"][key]) or "0" for side in shown))
    for name, key in PARTS:
        if against is None:
            table.add_row(name, joules(ours[key]))
        else:
            theirs = against["totals"][key]
            table.add_row(name, joules(theirs), joules(ours[key]), compared(ours[key], theirs)[1])
    terminal.out.print()
    terminal.out.print(table)
    terminal.out.print(f"mean of {human.counted(report['images'], 'image')}", soft_wrap=True)
    for side in shown:
        if "anytime" in side:
            stopped = side["anytime"]
            terminal.out.print(
                f"{escape(str(side['model']))} stops early, after {stopped['mean_steps']:.2f} of "
                f"{stopped['time_steps']} time steps: {joules(stopped['pj'])} in all",
                soft_wrap=True,
            )


def twin(report: JsonMapping) -> None:
    """Print in one sentence how the network compares with the ANN of its layers, and what finding synapses takes."""
    text = str(report["text"])
    terminal.out.print(f"\n{text[:1].upper()}{text[1:]}.", soft_wrap=True)
    others = ", ".join(f"{joules(ann['pj'])} at {ann['activation_bits']} bits" for ann in report["ann"][1:])
    also = f"With fewer bits the ANN takes {others}. " if others else ""
    ratios = [place["ratio"] for place in report["placements"] if place["ratio"] is not None]
    if ratios:
        low, high = share(min(ratios)), share(max(ratios))
        also += f"With all buffers in one memory of the table the ANN takes {low} to {high} of this network's energy. "
    terminal.out.print(
        f"{also}Finding the synapses of spikes is in no total; it would add {joules(report['addressing_pj'])}.",
        soft_wrap=True,
    )


def constants(table: JsonMapping) -> None:
    """Print the energies that the estimate is based on, and their source."""
    kinds: dict[str, list[str]] = {}
    for name, pj in table["operations"].items():
        kind, _, operation = name.partition(".")
        kinds.setdefault(kind, []).append(f"{operation} {pj:g}")
    operations = "; ".join(f"{kind} {', '.join(parts)}" for kind, parts in kinds.items())
    levels = ", ".join(f"{level['name']} {level['pj']:g}" for level in table["memories"])
    terminal.out.print(
        f"\npJ of an operation: {escape(operations)}\npJ of {table['access_bits']} bits: {escape(levels)}\n"
        f"from {escape(table['source'])}; {escape(table['process'])}",
        soft_wrap=True,
    )


def compared(ours: float, theirs: float) -> list[str]:
    """Return two cells: the energy of the other network, and the share of it that ours saves."""
    return [joules(theirs), share(1 - ours / theirs) if theirs else ""]
