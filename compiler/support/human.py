"""Numbers as a person reads them: bytes, times, counts, energies, shares and points."""

from __future__ import annotations

import math
from collections.abc import Sequence


def byte_size(number: float) -> str:
    """Return bytes in powers of ten: ``1.25 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Return a time that is only roughly known: ``40 s``, ``12 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def three_figures(value: float) -> str:
    """Return about three significant figures, without an exponent: ``0.25``, ``12.5``, ``1,250``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(value: float) -> str:
    """Return milliseconds with about three significant figures: ``12.5 ms``."""
    return f"{three_figures(value)} ms"


def millions(number: float) -> str:
    """Return a count in millions: ``1,234.5 M``."""
    return f"{number / 1e6:,.1f} M"


def operations(number: float) -> str:
    """Return a count in millions or thousands, whichever fits; nothing for 0."""
    if not number:
        return ""
    if number >= 1e6:
        return f"{number / 1e6:,.2f} M"
    return f"{number / 1e3:,.1f} k" if number >= 1e3 else f"{number:,.0f}"


def joules(picojoules: float) -> str:
    """Return an energy in the unit that fits: ``3.20 µJ``."""
    for unit, size in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if picojoules >= size:
            return f"{picojoules / size:.2f} {unit}"
    return f"{picojoules:.2f} pJ"


def microjoules(picojoules: float) -> str:
    """Return an energy in microjoules, for figures side by side: ``1,234.5 µJ``."""
    return f"{picojoules / 1e6:,.1f} µJ"


def share(value: float) -> str:
    """Return a share as a percentage: ``12.5%``."""
    return f"{value:.1%}"


def accuracy(value: float) -> str:
    """Return an accuracy as a percentage: ``97.25%``."""
    return f"{value:.2%}"


def share_interval(interval: Sequence[float]) -> str:
    """Return an interval of shares: ``12.5% to 14.0%``."""
    return f"{share(interval[0])} to {share(interval[1])}"


def points(drop: float) -> str:
    """Return a drop, a share, in percentage points: ``1.5`` for 0.015."""
    return f"{100 * drop:.1f}"


def points_at_most(drop: float) -> str:
    """Return a bound of a drop, a share, in percentage points, rounded up to hundredths: ``1.51`` for 0.015001."""
    return f"{math.ceil(round(1e4 * drop, 6)) / 100:g}"


def change(drop: float) -> str:
    """Return the change that a drop is, in percentage points with a sign: ``-1.50`` for 0.015."""
    return f"{0.0 - 100 * drop:+.2f}"


def change_interval(drops: Sequence[float]) -> str:
    """Return the interval of a change in percentage points, from that of the drop."""
    return f"{change(drops[1])} to {change(drops[0])}"


def counted(number: int, noun: str) -> str:
    """Return how many there are: ``1 image``, ``2,000 images``, ``3 batches``."""
    plural = "es" if noun.endswith(("ch", "s", "x")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def article(noun: str) -> str:
    """Return a noun with its indefinite article: ``a list``, ``an int``."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def agree(number: int, one: str, many: str) -> str:
    """Return the form of a verb, or of any word, that goes with a number."""
    return one if number == 1 else many


def subject(number: int, noun: str, one: str = "is", many: str = "are") -> str:
    """Return how many there are with the verb that follows: ``1 image is``, ``2 images are``."""
    return f"{counted(number, noun)} {agree(number, one, many)}"
