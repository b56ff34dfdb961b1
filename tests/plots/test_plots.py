"""Figures show the values that they are given, leave pyplot alone, and are the same bytes each time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from svitc.errors import UsageError
from svitc.planning.plan import Plan
from svitc.plots import canvas, plot_bits, plot_channels, plot_curves, plot_front

GROUPS = [
    {"name": "a", "kind": "mlp", "size": 8, "kept": 6, "frozen": None},
    {"name": "b", "kind": "attention", "size": 4, "kept": 4, "frozen": None},
    {"name": "head", "kind": "other", "size": 10, "kept": 10, "frozen": "outputs"},
]


def widths(ax) -> list[float]:
    return [bar.get_width() for bar in ax.patches]


def words(ax) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def test_channels(digits):
    figure = plot_channels(GROUPS, "a title")
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "a title" and words(ax) == ["6/8", "4"]
    assert widths(ax) == [8, 4, 6, 4]  # what there was, then what is kept, kind by kind
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MLP", "attention"]
    assert len(digits.plot().axes[0].get_yticks()) == 10


def test_plans():
    keep = {"a": np.array([[True, False, True]])}
    figure = Plan(keep, {}, {"fc": 4, "head": 8}, {"blocks": (0, 2, 5)}).plot()
    channels, bits, tokens = figure.axes
    assert words(channels) == ["2/3"] and widths(bits) == [4, 8] and widths(tokens) == [3]
    assert len(Plan({}).plot().axes) == 1


def test_curves():
    steps = [{"rate": 0.25, "drop": 0.01}, {"rate": 0.5, "drop": 0.4}]
    figure = plot_curves([{"group": "blocks.0.mlp.fc1.0", "steps": steps}])
    shown, *rest = figure.axes
    assert shown.lines[0].get_xydata().tolist() == [[0, 0], [25, 1], [50, 40]]
    assert shown.get_title() == "blocks.0: fc1" and not any(ax.get_visible() for ax in rest)
    rows = [{"name": "fc", "steps": [{"bits": 4, "drop": 0.01}, {"bits": 2, "drop": 0.2}]}]
    assert widths(plot_bits(rows).axes[0]) == pytest.approx([1, 20])


@pytest.mark.parametrize(("key", "value"), [("accuracy", "pruned"), ("agreement", "share")])
def test_fronts(key, value):
    reports = [
        (
            f"{size}",
            {"memory": {"compiled_bytes": size, "original_bytes": 9000}, key: {"images": 9, value: size / 8000}},
        )
        for size in (4000, 2000)
    ]
    for _, report in reports:
        top = report[key][value]
        report[key] |= {
            "original": 0.9,
            f"{value}_interval": [top - 0.1, top + 0.1],
            "interval": [top - 0.1, top + 0.1],
        }
    (ax,) = plot_front(reports).axes
    assert ax.lines[0].get_xydata().tolist() == [[2, 25], [4, 50]]
    assert words(ax) == ["2000", "4000", *(["original"] if key == "accuracy" else [])]
    for _, report in reports:
        del report[key]
    (ax,) = plot_front(reports).axes
    assert [bar.get_height() for bar in ax.patches] == [2, 4]


def test_notebooks_show_the_same_picture_each_time():
    first, second = (plot_channels(GROUPS, "a")._repr_png_() for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")


def test_pyplot_is_left_alone():
    code = (
        "import sys\nfrom svitc.plots import plot_channels\nassert 'matplotlib' not in sys.modules\n"
        "plot_channels([], 'a').savefig(sys.stdout.buffer)\nassert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"\x89PNG"), done.stderr.decode()


def test_without_matplotlib_the_way_out_is_said(monkeypatch):
    canvas._figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"matplotlib, which is not installed\n  pip install 'svitc\[plot\]'"):
        plot_channels(GROUPS, "a")
    canvas._figure_class.cache_clear()
