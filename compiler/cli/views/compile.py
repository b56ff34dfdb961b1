"""Print what a compilation did: sizes, accuracy, decisions, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from svitc.cli.terminal import amount, assumptions, err, out, points_interval, share_interval
from svitc.support.hardware import integer_dot_products


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
            f"wrote {escape(str(paths[0].parent))}/: {', '.join(path.name for path in paths)}  "
            f"({report['seconds']['total']:.1f} s)"
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
                f"[yellow]note[/] {len(weights['streams'])} layers read a membrane stream instead of spikes: it is "
                "rounded "
                "to 8 bits for them (weights.streams in report.json)"
            )
        if integer_dot_products() is False:
            out.print(
                "[yellow]note[/] this processor has no integer dot products (AVX-512 VNNI, AVX-VNNI, Arm dotprod): the "
                "file is as exact here, but hardly faster than fp32"
            )
        for reason in sorted({why for name, why in weights["inexact"].items() if name != "logits"}):
            out.print(f"[yellow]note[/] not exact, since the order of a float sum is the runtime's: {escape(reason)}")


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
            f"[yellow]note[/] {silent} of {verify['neurons']} neurons never fired on these inputs; --data checks "
            "them on real ones"
        )
