"""The front: what several compilations cost in accuracy, against the bytes of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from svitc.html_report.facts import section
from svitc.plots.canvas import AFTER, INK, SOFT, new_figure
from svitc.support import human
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 6.0, 3.6  # inches


def plot_front(reports: Sequence[tuple[str, JsonDict]]) -> Figure:
    """Draw accuracy, or agreement with the original, against stored bytes, with 95% intervals; bytes alone as bars.

    Args:
        reports: of each compilation its name and the content of its ``report.json``.
    """
    figure, (ax,) = new_figure(WIDTH, HEIGHT)
    sized = sorted(((section(r, "memory")["compiled_bytes"], name, r) for name, r in reports), key=lambda one: one[:2])
    labeled = any(section(r, "accuracy").get("images") for _, _, r in sized)
    keys = ("accuracy", "pruned", "pruned_interval") if labeled else ("agreement", "share", "interval")
    points = [
        (size / 1e3, 100 * found[keys[1]], [100 * end for end in found[keys[2]]], name)
        for size, name, report in sized
        if (found := section(report, keys[0])).get("images")
    ]
    ax.set_xlabel("weights in the file, kB", fontsize=8, color=SOFT)
    if not points:
        drawn = ax.bar([name for _, name, _ in sized], [size / 1e3 for size, _, _ in sized], color=AFTER)
        ax.bar_label(drawn, [human.byte_size(size) for size, _, _ in sized], fontsize=7)
        ax.set_xlabel("accuracy was not measured: no images were given", fontsize=8, color=SOFT)
        ax.set_ylabel("weights in the file, kB", fontsize=8, color=SOFT)
        return figure
    x, y = [point[0] for point in points], [point[1] for point in points]
    whiskers = [[point[1] - point[2][0] for point in points], [point[2][1] - point[1] for point in points]]
    ax.errorbar(x, y, yerr=whiskers, color=AFTER, marker="o", markersize=5, capsize=3, elinewidth=1)
    for place, value, _, name in points:
        ax.annotate(name, (place, value), (4, 6), textcoords="offset points", fontsize=8, color=INK)
    for report in {section(report, "accuracy").get("original"): report for _, _, report in sized}.values():
        if labeled and section(report, "accuracy").get("images"):
            size, top1 = section(report, "memory")["original_bytes"] / 1e3, 100 * report["accuracy"]["original"]
            ax.plot([size], [top1], marker="o", markersize=6, fillstyle="none", color=SOFT, linestyle="none")
            ax.annotate("original", (size, top1), (4, 6), textcoords="offset points", fontsize=8, color=SOFT)
    ax.set_ylabel("top-1 accuracy, %" if labeled else "same class as the original, %", fontsize=8, color=SOFT)
    ax.set_xlim(left=0)
    ax.margins(x=0.15)
    ax.grid(alpha=0.3)
    return figure
