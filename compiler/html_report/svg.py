"""Small SVG charts: elements whose text and attributes are escaped, and round numbers along an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

NAMESPACE = "http://www.w3.org/2000/svg"


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: its name; not escaped.
        children: elements, which stay as they are, and all else as text, which is escaped.
        attributes: by name, ``_`` for ``-``, and with ``_`` behind it where the name is a keyword of Python. Those
            that are None are left out.
    """
    given = (
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(escape(child) for child in children)
    start = f"<{name}{''.join(given)}"
    return Markup(f"{start}>{inner}</{name}>" if children else f"{start}/>")


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(escape(value))


def number(value: float) -> str:
    """Return a coordinate, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def figure(width: float, height: float, title: str, *children: object, **attributes: object) -> Markup:
    """Return an inline picture, which screen readers read as its title.

    Args:
        width, height: size in pixels.
        title: what the picture shows, as a sentence with its figures.
        children: its elements.
        attributes: further attributes.
    """
    box = f"0 0 {number(float(width))} {number(float(height))}"
    size = {"width": float(width), "height": float(height)}
    return tag("svg", tag("title", title), *children, role="img", viewBox=box, **size, **attributes)


def text(x: float, y: float, words: object, anchor: str = "start", class_: str | None = None) -> Markup:
    """Return a text.

    Args:
        x, y: where its baseline begins, or ends, or has its middle, by ``anchor``.
        words: the text.
        anchor: ``start``, ``middle`` or ``end``.
        class_: its class.
    """
    return tag("text", words, x=float(x), y=float(y), text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Return a line through points."""
    return tag("polyline", points=" ".join(f"{number(x)},{number(y)}" for x, y in points), class_=class_)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers between two ends, both of them included if they are round.

    Args:
        low, high: the ends.
        most: how many numbers there are at most.
    """
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def around(values: Sequence[float], margin: float = 0.08) -> tuple[float, float]:
    """Return ends of an axis that has room around values."""
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room
