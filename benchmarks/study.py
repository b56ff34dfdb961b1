"""Helpers of the studies of policies on a trained model: arguments, values kept from a report, table cells, plots."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import RESULTS


def arguments(about: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every study takes; ``name`` names its work folder and results."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="of the test images; all by default")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning; 0 for none")
    parser.add_argument("--sweep-images", type=int, default=1500)
    parser.add_argument("--calibration-images", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of the jobs to run, and to show")
    parser.add_argument("--work", type=Path, default=Path(f"{name}-work"))
    parser.add_argument("--out", type=Path, default=RESULTS / name)
    return parser


def kept(report: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return what a table and a plot need from a report."""
    found = {key: report[key] for key in keys}
    found["verify"] = {k: report["verify"][k] for k in ("status", "flips_beyond_rounding")}
    return found


def accuracy_cells(each: dict[str, Any] | None) -> list[str]:
    """Return top-1 and the drop with its interval; dashes where nothing was measured."""
    if each is None:
        return ["-", "-"]
    accuracy = each["accuracy"]
    low, high = (100 * v for v in accuracy["drop_interval"])
    return [f"{accuracy['pruned']:.2%}", f"{100 * accuracy['drop']:+.2f} ({low:+.2f} to {high:+.2f})"]


def canvas(title: str) -> tuple[Any, Any]:
    """Return a figure and axes of memory saved against points lost."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "svitc"
    figure, axes = plt.subplots(figsize=(7, 4.2))
    axes.set_xlabel("memory saved, %")
    axes.set_ylabel("top-1 lost, points")
    axes.set_yscale("symlog", linthresh=4)
    axes.set_title(title)
    return figure, axes


def save(figure: Any, axes: Any, path: Path, **legend: Any) -> None:
    """Add the legend and the line of no loss, and write the file."""
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.legend(**legend)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
