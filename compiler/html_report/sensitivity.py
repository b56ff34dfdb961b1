"""Sensitivity curves: what is lost where one channel group alone is pruned, or one layer alone has fewer bits."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from svitc.html_report.facts import section
from svitc.html_report.svg import figure, line, tag, text, ticks
from svitc.support.types import JsonDict

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 168, 112, 30, 8, 8, 20  # pixels
FEWEST_POINTS = 2.0  # height of the axis at least: smaller losses are not blown up to look large
MOST_POINTS = 30.0  # and at most: a part that loses more is of no use


@dataclass(frozen=True)
class SensitivityCurve:
    """The curve of one channel group.

    Attributes:
        name: the group.
        picture: points lost against the share removed.
        points: share removed -> points of accuracy lost.
        chosen: the share that the plan removes, None where that is not known.
    """

    name: str
    picture: Markup
    points: list[tuple[float, float]]
    chosen: float | None


def curves(report: JsonDict) -> list[SensitivityCurve]:
    """Return the curves that were measured, along the network; all have the same axes."""
    measured = section(report, "sweep").get("curves") or ()
    groups = {group["name"]: group for group in report.get("groups") or ()}
    found = []
    highest = max((100 * point["drop"] for curve in measured for point in curve["points"]), default=0.0)
    high = max(FEWEST_POINTS, min(highest, MOST_POINTS))
    for curve in measured:
        size = int(curve["size"])
        points = sorted((1 - point["kept"] / size, 100 * point["drop"]) for point in curve["points"])
        group = groups.get(curve["group"])
        chosen = None if group is None else 1 - group["kept"] / group["size"]
        found.append(SensitivityCurve(curve["group"], _picture(curve["group"], points, chosen, high), points, chosen))
    order = {name: place for place, name in enumerate(groups)}
    return sorted(found, key=lambda curve: order.get(curve.name, len(order)))


def _picture(name: str, points: list[tuple[float, float]], chosen: float | None, high: float) -> Markup:
    """Return the chart of one group."""
    floor = HEIGHT - BOTTOM

    def place(removed: float, lost: float) -> tuple[float, float]:
        x = LEFT + removed * (WIDTH - LEFT - RIGHT)
        return x, floor - max(0.0, min(lost, high)) / high * (floor - TOP)

    drawn = []
    for value in ticks(0.0, high, 4):
        y = place(0, value)[1]
        drawn += [line([(LEFT, y), (WIDTH - RIGHT, y)], "grid"), text(LEFT - 5, y + 4, f"{value:g}", "end")]
    for value in (0.0, 0.5, 1.0):
        drawn.append(text(place(value, 0)[0], HEIGHT - 5, f"{value:.0%}", "end" if value == 1 else "middle"))
    if chosen is not None:
        drawn.append(line([place(chosen, 0), place(chosen, high)], "chosen"))
    path = [place(removed, lost) for removed, lost in [(0.0, 0.0), *points]]
    drawn.append(line(path, "curve"))
    drawn += [tag("circle", cx=x, cy=y, r=2.2, class_="dot") for x, y in path[1:]]
    told = "; ".join(f"{removed:.0%} removed, {lost:.1f} points lost" for removed, lost in points)
    return figure(WIDTH, HEIGHT, f"{name}: {told}", *drawn, class_="small")
