"""Figures that know nothing of pyplot: they need no display, and nobody has to close them."""

from __future__ import annotations

import importlib
import io
from functools import cache
from typing import TYPE_CHECKING, Any

from svitc.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, AFTER, BEFORE = "#1f2328", "#59636e", "#0969da", "#afb8c1"
KINDS = {
    "patch embedding": "#0969da",
    "residual stream": "#8250df",
    "attention": "#bc4c00",
    "mlp": "#1a7f37",
    "other": "#6e7781",
}  # as in style.css
DPI = 110  # dots per inch of what notebooks show


@cache
def _figure_class() -> Any:
    """Return matplotlib's Figure, as a class that notebooks show without pyplot.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise UsageError(
            "plots are drawn by matplotlib, which is not installed",
            hint="pip install 'svitc[plot]'; without it, the object itself shows the same in a notebook.",
        ) from error
    return type("Figure", (figure,), {"_repr_png_": _png})


def _png(figure: Figure) -> bytes:
    """Return a figure as PNG, the same bytes for the same figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row.

    Args:
        width, height: size in inches.
        rows, columns: number of axes.
    """
    figure = _figure_class()(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=SOFT)
    return figure, axes
