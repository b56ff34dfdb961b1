"""The curve of stopping early: mean steps against the cost, as a picture."""

from __future__ import annotations

from svitc.support.types import JsonDict

WIDTH, HEIGHT, MARGIN = 480, 320, 48  # pixels
MOST_POINTS = 5.0  # of top-1, or percent of the images, beyond which nobody stops


def curve_svg(report: JsonDict) -> str:
    """Return the report's section ``anytime`` as an SVG: a line for what was measured, dots for what is promised."""
    steps = report["time_steps"]
    measured = [(taken, 100 * drop) for taken, drop in report["curve"]]
    promised = [(row["mean_steps"], 100 * row["max_drop"]) for row in report["tolerances"]]
    low = min(0.0, *(points for _, points in measured))
    high = min(MOST_POINTS, max(points for _, points in [*measured, *promised]) or 1.0)

    def place(taken: float, points: float) -> str:
        x = MARGIN + (taken - 1) / (steps - 1) * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (points - low) / (high - low) * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    def dot(taken: float, points: float) -> str:
        x, y = place(taken, points).split(",")
        return f'<circle cx="{x}" cy="{y}" r="3.5" fill="#b3401f"/>'

    cost = "points of top-1" if report["basis"] == "labels" else "% of the images in another class"
    corners = " ".join((place(1, high), place(1, low), place(steps, low)))
    line = " ".join(place(*pair) for pair in measured if pair[1] <= high)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<polyline points="{corners}" fill="none" stroke="black"/>',
        f'<polyline points="{line}" fill="none" stroke="#1f5fb3" stroke-width="2"/>',
        *(dot(*pair) for pair in promised if pair[1] <= high),
        *(text(float(place(t, low).split(",")[0]), HEIGHT - MARGIN + 16, f"{t}") for t in range(1, steps + 1)),
        text(WIDTH / 2, HEIGHT - 10, "mean time steps"),
        text(MARGIN - 6, float(place(1, high).split(",")[1]) + 4, f"{high:.1f}", "end"),
        text(MARGIN - 6, float(place(1, low).split(",")[1]) + 4, f"{low:.1f}", "end"),
        text(MARGIN, MARGIN - 24, f"{cost}: measured (line), promised (dots)", "start"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


__all__ = ["curve_svg"]
