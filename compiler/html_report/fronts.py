"""The front: what several compilations cost in accuracy, against their bytes, operations and energy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from svitc.html_report.facts import section
from svitc.html_report.svg import around, figure, line, tag, text, ticks
from svitc.support import human
from svitc.support.types import JsonDict

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 324, 230, 40, 14, 24, 30  # pixels


@dataclass(frozen=True)
class Point:
    """One compilation in a chart.

    Attributes:
        name: what it is called.
        x: what it costs.
        y: how good it is, a share.
        interval: 95% confidence interval of y, or None.
        is_original: whether it is the network before compilation.
    """

    name: str
    x: float
    y: float
    interval: tuple[float, float] | None
    is_original: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: what it shows.
        picture: the chart.
    """

    title: str
    picture: Markup


LONGEST_NAME = 16  # characters

Cost = Callable[[JsonDict, str], float | None]


def _bytes(report: JsonDict, which: str) -> float | None:
    return section(report, "memory").get(f"{which}_bytes")


def _macs(report: JsonDict, which: str) -> float | None:
    return section(report, "macs").get(which)


def _energy(report: JsonDict, which: str) -> float | None:
    return section(section(report, "energy"), which).get("pj")


COSTS: tuple[tuple[str, Cost, Callable[[float], str]], ...] = (
    ("weights in the file", _bytes, human.byte_size),
    ("multiply-accumulates of an image", _macs, human.millions),
    ("energy of an image (an estimate)", _energy, human.joules),
)


def charts(reports: Sequence[tuple[str, JsonDict]]) -> list[Chart]:
    """Return a chart for each cost that differs, of those compilations whose quality was measured alike."""
    found = []
    quality = "top-1 accuracy" if any(section(r, "accuracy").get("images") for _, r in reports) else "same class"
    for title, cost, words in COSTS:
        points = [point for name, report in reports if (point := _point(name, report, cost, quality)) is not None]
        originals = {
            (cost(report, "original"), section(report, "accuracy").get("original"))
            for _, report in reports
            if quality == "top-1 accuracy"
        }
        points += [Point("original", x, y, None, True) for x, y in sorted(originals, key=str) if x and y]
        if len({point.x for point in points}) > 1:
            found.append(Chart(f"{quality[:1].upper()}{quality[1:]} against {title}", _picture(points, words)))
    return found


def _point(name: str, report: JsonDict, cost: Cost, quality: str) -> Point | None:
    """Return the point of one compilation; None where cost or quality was not measured."""
    x, accuracy, agreement = cost(report, "compiled"), section(report, "accuracy"), section(report, "agreement")
    if x is None:
        return None
    if quality == "top-1 accuracy":
        return Point(name, x, accuracy["pruned"], accuracy["pruned_interval"]) if accuracy.get("images") else None
    return Point(name, x, agreement["share"], agreement["interval"]) if agreement.get("images") else None


def _labels(places: list[tuple[float, float, str]]) -> list[Markup]:
    """Return the names of points: above them, or below where the one to the left would be written over."""
    drawn, ends = [], {True: 0.0, False: 0.0}
    for x, y, name in sorted(places):
        half = 3.2 * min(len(name), LONGEST_NAME)
        middle = min(max(x, half + 2), WIDTH - half - 2)
        above = ends[True] <= middle - half or ends[True] < ends[False]
        ends[above] = middle + half
        words = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        drawn.append(text(middle, y - 9 if above else y + 18, words, "middle"))
    return drawn


def _compact(words: str) -> str:
    """Return a round number without the zeros behind its point."""
    return re.sub(r"\.0+(?= |$)", "", words)


def _picture(points: Sequence[Point], words: Callable[[float], str]) -> Markup:
    """Return a chart: dots with their intervals, joined from the smallest to the largest; the originals are rings."""
    compiled = sorted((point for point in points if not point.is_original), key=lambda point: point.x)
    low, high = around([value for point in points for value in (point.y, *(point.interval or ()))])
    low, high, most = max(0.0, low), min(1.0, high), 1.06 * max(point.x for point in points)
    floor = HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most * (WIDTH - LEFT - RIGHT), floor - (y - low) / (high - low) * (floor - TOP)

    drawn = []
    for value in ticks(low, high):
        y = place(0, value)[1]
        drawn += [line([(LEFT, y), (WIDTH - RIGHT, y)], "grid"), text(LEFT - 6, y + 4, f"{100 * value:g}%", "end")]
    for value in ticks(0.0, most, 4):
        drawn.append(text(place(value, low)[0], floor + 16, _compact(words(value)) if value else "0", "middle"))
    drawn.append(line([place(point.x, point.y) for point in compiled], "curve"))
    for point in points:
        x, y = place(point.x, point.y)
        if point.interval is not None:
            drawn.append(line([place(point.x, end) for end in point.interval], "whisker"))
        told = tag("title", f"{point.name}: {words(point.x)}, {point.y:.2%}")
        drawn.append(tag("circle", told, cx=x, cy=y, r=4, class_="ghost" if point.is_original else "dot"))
    drawn += _labels([(*place(point.x, point.y), point.name) for point in points])
    sentence = "; ".join(f"{point.name}: {words(point.x)}, {point.y:.2%}" for point in points)
    return figure(WIDTH, HEIGHT, sentence, *drawn)
