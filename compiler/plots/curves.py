"""Curves: what is lost where one channel group alone is pruned, or one layer alone has fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from svitc.html_report.channels import block_name, short_name
from svitc.html_report.sensitivity import FEWEST_POINTS, MOST_POINTS
from svitc.plots.canvas import AFTER, BEFORE, INK, SOFT, new_figure
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, SIDE, BAR, MARGIN, WIDTH = 4, 2.0, 0.3, 1.0, 8.0  # charts in a row; inches


def plot_curves(groups: Sequence[JsonDict]) -> Figure:
    """Draw a chart for each channel group: points lost against the share of its channels removed, on the same axes.

    Args:
        groups: ``groups`` of measured sensitivities.
    """
    rows = max(1, -(-len(groups) // COLUMNS))
    figure, axes = new_figure(COLUMNS * SIDE, rows * SIDE, rows, COLUMNS)
    worst = max((100 * step["drop"] for group in groups for step in group["steps"]), default=0.0)
    high = max(FEWEST_POINTS, min(worst, MOST_POINTS))
    for ax, group in zip(axes, groups, strict=False):
        removed = [0.0, *(100 * step["rate"] for step in group["steps"])]
        lost = [0.0, *(100 * step["drop"] for step in group["steps"])]
        ax.plot(removed, lost, color=AFTER, marker="o", markersize=3)
        ax.set_title(f"{block_name(group['group'])}: {short_name(group['group'])}", fontsize=7.5, color=INK)
        ax.set(xlim=(0, 100), ylim=(min(0.0, *lost) - 0.05 * high, 1.05 * high))
        ax.grid(alpha=0.3)
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    figure.supxlabel("channels removed, %", fontsize=8, color=SOFT)
    figure.supylabel("points of accuracy lost", fontsize=8, color=SOFT)
    return figure


def plot_bits(rows: Sequence[JsonDict]) -> Figure:
    """Draw bars for each layer: points lost at 4 and at 2 bits.

    Args:
        rows: ``layers`` of measured sensitivities.
    """
    figure, (ax,) = new_figure(WIDTH, MARGIN + BAR * max(1, len(rows)))
    widths = sorted({step["bits"] for row in rows for step in row["steps"]}, reverse=True)
    for place, bits in enumerate(widths):
        at = [(i, step["drop"]) for i, row in enumerate(rows) for step in row["steps"] if step["bits"] == bits]
        offset = 0.35 * (place - (len(widths) - 1) / 2)
        colors = (BEFORE, AFTER)
        ax.barh([i + offset for i, _ in at], [100 * drop for _, drop in at], 0.33, color=colors[place % 2])
        ax.containers[-1].set_label(f"{bits} bits")
    ax.set_yticks(range(len(rows)), [str(row["name"]) for row in rows])
    ax.set_xlabel("points of accuracy lost, this layer alone", fontsize=8, color=SOFT)
    ax.invert_yaxis()
    if widths:
        ax.legend(fontsize=7, frameon=False, labelcolor=SOFT)
    return figure
