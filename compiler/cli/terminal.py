"""What a person sees: tables, summaries and errors on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from svitc.errors import SvitcError
from svitc.support.hardware import integer_dot_products

# where nobody watches (a pipe, a log) nothing is cut or wrapped
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 200)


def error(problem: SvitcError) -> None:
    """One error: what, where, and the way out."""
    err.print(f"[bold red]error:[/] {escape(problem.message)}", soft_wrap=True)
    if problem.where:
        err.print(f"  [dim]at[/] {escape(problem.where)}", soft_wrap=True)
    if problem.hint:
        err.print(f"  [yellow]{escape(problem.hint)}[/]", soft_wrap=True)


def amount(number: float) -> str:
    """Bytes as a person reads them, in powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} B"


@contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """A progress line on stderr, for a driver's callback ``(stage, done, of)``; nothing where ``quiet``."""
    if quiet:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, of: int | None) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[stage] = bar.add_task(stage, total=of)
            bar.update(tasks[stage], completed=done, visible=True)

        yield show


def assumptions(info: dict[str, Any]) -> None:
    for each in info.get("assumptions", []):
        out.print(f"[yellow]assumed[/] {escape(str(each))}")


def summary(report: dict[str, Any], paths: list[Path]) -> None:
    """The result of a compilation."""
    assumptions(report["model"])
    memory, parameters = report["memory"], report["parameters"]
    table = Table(box=None, pad_edge=False)
    for title, justify in (("", "left"), ("original", "right"), ("compiled", "right"), ("ratio", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    a, b = memory["original_bytes"], memory["compiled_bytes"]
    table.add_row("weights in ONNX", amount(a), amount(b), f"[bold]{b / a:.4f}[/]")
    table.add_row(
        "parameters",
        f"{parameters['original']:,}",
        f"{parameters['compiled']:,}",
        f"{parameters['ratio']:.4f}",
    )
    a, b = report["macs"]["original"], report["macs"]["compiled"]
    table.add_row("multiply-accumulates", f"{a / 1e6:,.1f} M", f"{b / 1e6:,.1f} M", f"{b / a:.4f}")
    accuracy = report["accuracy"]
    if accuracy["images"]:
        a, b, n = accuracy["original"], accuracy["pruned"], accuracy["images"]
        table.add_row(f"top-1 on {n:,} images", f"{a:.2%}", f"{b:.2%}", f"{100 * (b - a):+.2f} points")
        table.add_row(
            "  95% interval",
            *(share_interval(accuracy[f"{which}_interval"]) for which in ("original", "pruned")),
            points_interval(accuracy["drop_interval"]),
        )
    spent = report.get("energy")
    if spent:
        a, b = (spent[which]["pj"] for which in ("original", "compiled"))
        table.add_row("energy of an image", f"{a / 1e6:,.1f} uJ", f"{b / 1e6:,.1f} uJ", f"{b / a:.4f}")
    out.print(table)
    for note in accuracy.get("notes", ()):
        out.print(f"[yellow]data[/] {escape(note)}")
    verdict_line(report["verify"])
    lossless(report)
    if parameters["dead"]:
        out.print(f"{parameters['dead']:,} parameters that the model never uses were dropped before counting")
    if paths:
        out.print(
            f"wrote {escape(str(paths[0].parent))}/: {', '.join(path.name for path in paths)}  ({report['seconds']['total']:.1f} s)"
        )


def lossless(report: dict[str, Any]) -> None:
    """What the clean-up removed, and how much of an int8 network is exact."""
    clean, weights = report["clean"], report["weights"]
    if clean.get("removed"):
        folded = f", {clean['folded']} of them by folding a constant into a bias" if clean["folded"] else ""
        out.print(f"{clean['removed']:,} channels that no input can change were removed without any loss{folded}")
    if weights["type"] == "int8":
        exact, of = weights["exact_neurons"], weights["neurons"]
        text = "every neuron fires" if exact == of else f"{exact} of {of} neurons fire"
        out.print(f"int8: {text} the same, bit for bit, in every runtime")
        if weights["streams"]:
            out.print(
                f"[yellow]note[/] {len(weights['streams'])} layers read a membrane stream instead of spikes: it is rounded "
                "to 8 bits for them (weights.streams in report.json)"
            )
        if integer_dot_products() is False:
            out.print(
                "[yellow]note[/] this processor has no integer dot products (AVX-512 VNNI, AVX-VNNI, Arm dotprod): the "
                "file is as exact here, but hardly faster than fp32"
            )
        for reason in sorted({why for name, why in weights["inexact"].items() if name != "logits"}):
            out.print(f"[yellow]note[/] not exact, since the order of a float sum is the runtime's: {escape(reason)}")


def share_interval(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def points_interval(drop: Sequence[float]) -> str:
    """The interval of a change in points, from that of the drop."""
    return f"{0.0 - 100 * drop[1]:+.2f} to {0.0 - 100 * drop[0]:+.2f}"


def decision(sentence: str) -> None:
    """What a policy decided, as it goes on."""
    err.print(f"[dim]{escape(sentence)}[/]", soft_wrap=True)


def front(reports: list[dict[str, Any]], out_folder: Path) -> None:
    """The results of several budgets, one line each."""
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("budget", "left"),
        ("weights in ONNX", "right"),
        ("ratio", "right"),
        ("parameters", "right"),
        ("MMACs", "right"),
        ("top-1", "right"),
        ("change", "right"),
        ("95% interval", "right"),
        ("verified", "left"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for report in reports:
        memory, accuracy = report["memory"], report["accuracy"]
        seen = bool(accuracy["images"])
        table.add_row(
            str(report["budget"]["text"]),
            amount(memory["compiled_bytes"]),
            f"[bold]{memory['ratio']:.4f}[/]",
            f"{report['parameters']['compiled']:,}",
            f"{report['macs']['compiled'] / 1e6:,.1f}",
            f"{accuracy['pruned']:.2%}" if seen else "-",
            f"{0.0 - 100 * accuracy['drop']:+.2f} points" if seen else "-",
            points_interval(accuracy["drop_interval"]) if seen else "-",
            report["verify"]["status"],
        )
    out.print(table)
    out.print(f"wrote one folder for each budget into {escape(str(out_folder))}/")


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
        f"95% intervals of the losses are at most {100 * half:.1f} points wide on either side; all of them are in {escape(str(path))}"
    )


def precision(report: dict[str, Any], path: Path) -> None:
    """Accuracy against bits: one line a layer or kind, one column a level."""
    sweep, at8 = report["sweep"], report["all_at_8"]
    original = sweep["original"]
    out.print(
        f"top-1 of the original on {sweep['images']:,} images: {original['accuracy']:.2%}"
        f" (95% interval {share_interval(original['interval'])}); all layers at 8 bits: {100 * at8['drop']:.1f} points lost"
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


def verdict_line(verify: dict[str, Any]) -> None:
    flips = f"{verify['flips_within_rounding']} of {verify['spikes']:,} spikes differ within float rounding"
    silent = len(verify["silent_neurons"])
    text = (
        f"{verify['neurons']} neurons, {verify['images']} images: {flips}, {verify['flips_beyond_rounding']} beyond;"
        f" top-1 agrees on {verify['top1_agreement']:.1%}"
    )
    if verify["status"] == "passed":
        out.print(f"[green]verified[/] {text}")
    else:
        out.print(f"[bold red]NOT the same network[/]: first at {escape(str(verify['first_divergence']))}; {text}")
    if silent:
        out.print(
            f"[yellow]note[/] {silent} of {verify['neurons']} neurons never fired on these inputs; --data checks them on real ones"
        )


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
            f"{sum(dead.values()):,} more parameters are never used: {escape(', '.join(sorted(dead)[:6]))}{' …' if len(dead) > 6 else ''}"
        )
