"""Figures of matplotlib: what ``plot()`` of a program, a compilation, a plan, sensitivity curves or a front returns.

They show what the cards of ``html_report`` show, from the same JSON values. matplotlib, the extra ``plot``, is imported
when the first figure is drawn.

Imports: ``html_report``, ``support`` and ``errors``.

Start with ``canvas.py``.
"""

from __future__ import annotations

from svitc.plots.bars import plot_channels, plot_plan
from svitc.plots.curves import plot_bits, plot_curves
from svitc.plots.fronts import plot_front

__all__ = ["plot_bits", "plot_channels", "plot_curves", "plot_front", "plot_plan"]
