"""Bars: the channel groups along a network, and what a plan keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from svitc.html_report.channels import WORDS, kind_of, prunable
from svitc.plots.canvas import AFTER, BEFORE, INK, KINDS, SOFT, new_figure
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR, MARGIN, WIDTH = 0.24, 1.1, 8.0  # inches: a bar and its gap, title and axis, the figure


def plot_channels(groups: Sequence[JsonDict], title: str) -> Figure:
    """Draw the channel groups that can be pruned, from the input at the top to the head: what is kept of each.

    Args:
        groups: of a program's summary or a report.
        title: above the bars.
    """
    shown = prunable({"groups": groups})
    figure, (ax,) = new_figure(WIDTH, MARGIN + BAR * max(1, len(shown)))
    _channels(ax, shown)
    if len(ax.get_legend_handles_labels()[1]) > 1:
        figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=len(KINDS), labelcolor=SOFT)
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    return figure


def plot_plan(groups: Sequence[JsonDict], bits: Mapping[str, int], tokens: Mapping[str, int], title: str) -> Figure:
    """Draw what a plan keeps: channels of each group, bits of each layer, tokens of each stage.

    Args:
        groups: as those of a report.
        bits: layer -> bits.
        tokens: token stage -> number of tokens that run.
        title: above the bars.
    """
    parts = [count for count in (len(groups), len(bits), len(tokens)) if count]
    figure, axes = new_figure(WIDTH, MARGIN * max(1, len(parts)) + BAR * sum(parts), max(1, len(parts)))
    axes[0].set_title(title, fontsize=10, color=INK, loc="left")
    left = iter(axes)
    if groups:
        _channels(next(left), groups)
    for values, label in ((bits, "bits of a weight"), (tokens, "tokens that run")):
        if values:
            ax = next(left)
            drawn = ax.barh(list(values), list(values.values()), color=AFTER, height=0.7)
            ax.bar_label(drawn, fontsize=7, color=INK, padding=3)
            _along(ax, label)
    return figure


def _channels(ax: Axes, groups: Sequence[JsonDict]) -> None:
    """Draw channel groups."""
    names = [str(group["name"]) for group in groups]
    ax.barh(names, [group["size"] for group in groups], color="none", edgecolor=BEFORE, linestyle="--", height=0.7)
    for kind in dict.fromkeys(map(kind_of, groups)):
        own = [group for group in groups if kind_of(group) == kind]
        kept = [group["kept"] for group in own]
        label = WORDS.get(kind, kind)
        ax.barh([str(group["name"]) for group in own], kept, color=KINDS[kind], height=0.7, label=label)
    for row, group in enumerate(groups):
        size, kept = group["size"], group["kept"]
        words = f" {kept:,}" if kept == size else f" {kept:,}/{size:,}"
        ax.text(size, row, words, fontsize=7, va="center", color=INK)
    ax.margins(x=0.15)
    _along(ax, "channels")


def _along(ax: Axes, label: str) -> None:
    """Name the axis of values, and begin with the input at the top."""
    ax.set_xlabel(label, fontsize=8, color=SOFT)
    ax.invert_yaxis()
