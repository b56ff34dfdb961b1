"""The channel groups along the network: a bar each, what is kept of its size, colored by its kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from svitc.html_report.svg import NAMESPACE, figure, tag, text
from svitc.support import human
from svitc.support.types import JsonDict

BAR, SLOT, TALLEST, TOP, BOTTOM = 40, 60, 140, 22, 24  # pixels: a bar, its column, the widest group, text above, below
KINDS = {
    "patch embedding": "patch",
    "residual stream": "stream",
    "attention": "attention",
    "mlp": "mlp",
    "other": "other",
}  # kind in report.json -> class in style.css
WORDS = {"mlp": "MLP"}
LONGEST = 9  # characters that fit below a bar
DULL = re.compile(
    r"\d+|weight|conv|bn|block|blocks|layer|layers|qkv|attn|mlp|ffn|conv_bn|qkv_conv_bn|stages|neuron|lif"
)
PICTURE_STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #24292f } .part { fill: #59636e }
    .title { font-size: 15px; font-weight: 600 }
    .hole { fill: none; stroke: #8c959f; stroke-dasharray: 3 3 }
    .patch { fill: #0969da } .stream { fill: #8250df } .attention { fill: #bc4c00 } .mlp { fill: #1a7f37 }
    .other { fill: #6e7781 } .middle { text-anchor: middle }
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .part { fill: #9ba6b2 } .hole { stroke: #848d97 } }"""


@dataclass(frozen=True)
class Block:
    """A part of the network, with its channel groups.

    Attributes:
        name: beginning of the groups' names.
        bars: a picture of each group.
    """

    name: str
    bars: list[Markup]


def prunable(report: JsonDict) -> list[JsonDict]:
    """Return the groups of which channels could be removed, along the network."""
    return [group for group in report.get("groups") or () if group.get("frozen") is None]


def kind_of(group: JsonDict) -> str:
    """Return the kind of a group; reports of older versions do not say it."""
    kind = group.get("kind")
    return kind if kind in KINDS else "other"


def kinds_of(groups: Sequence[JsonDict]) -> list[tuple[str, str]]:
    """Return the class and the name of each kind that occurs, in the order of ``KINDS``."""
    present = {kind_of(group) for group in groups}
    return [(KINDS[kind], WORDS.get(kind, kind)) for kind in KINDS if kind in present]


def short_name(name: str) -> str:
    """Return the telling part of a path, as in ``fc1`` for ``blocks.0.mlp.fc1.0``."""
    parts = [part for part in name.split(".") if not DULL.fullmatch(part)]
    numbers = [part for part in name.split(".") if part.isdigit()]
    last = parts[-1] if parts else name
    if len(parts) == 1 and numbers and last == name.split(".")[0]:  # patch_embed.stages.2.conv: which one?
        last = f"conv {numbers[0]}"
    last = re.sub(r"_(conv|bn|lif|linear)$", "", last)
    return last if len(last) <= LONGEST else f"{last[: LONGEST - 1]}…"


def block_name(name: str) -> str:
    """Return the part of the network that a path is in: ``blocks.0``, or ``patch_embed``."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdigit() else first


def _bar(group: JsonDict, scale: float, x: float = 0.0) -> tuple[Markup, str]:
    """Return the drawing of one group, its bottom at ``TOP + TALLEST``, and a sentence on it."""
    size, kept = int(group["size"]), int(group["kept"])
    kind = kind_of(group)
    floor, middle = TOP + TALLEST, x + SLOT / 2
    tall, full = max(1.0, size * scale), max(1.0, kept * scale)
    left = middle - BAR / 2
    words = f"{group['name']}, {WORDS.get(kind, kind)}: {kept:,} of {size:,} channels kept"
    label = f"{kept:,}" if kept == size else f"{kept:,}/{size:,}"
    drawn = [
        tag("rect", class_="hole", x=left, y=floor - tall, width=float(BAR), height=tall) if kept < size else "",
        tag("rect", class_=KINDS[kind], x=left, y=floor - full, width=float(BAR), height=full, rx=1.5),
        text(middle, floor - tall - 6, label, class_="middle"),
        text(middle, floor + 16, short_name(group["name"]), class_="middle"),
    ]
    return Markup("").join(drawn), words


def blocks(report: JsonDict) -> list[Block]:
    """Return the parts of the network, from the input to the head, with a picture of each group."""
    groups = prunable(report)
    scale = _scale(groups)
    parts: list[Block] = []
    for group in groups:
        drawn, words = _bar(group, scale)
        name = block_name(str(group["name"]))
        if not parts or parts[-1].name != name:
            parts.append(Block(name, []))
        parts[-1].bars.append(figure(SLOT, TOP + TALLEST + BOTTOM, words, drawn, class_="bar"))
    return parts


def _scale(groups: Sequence[JsonDict]) -> float:
    return TALLEST / max((int(group["size"]) for group in groups), default=1)


def channels_picture(report: JsonDict) -> str:
    """Return the bars of a report as an SVG file of its own, with a legend, as in the README."""
    groups = prunable(report)
    scale, kinds = _scale(groups), kinds_of(groups)
    width, floor = max(640, 40 + SLOT * len(groups)), TOP + TALLEST + 56
    memory, accuracy = report["memory"], report["accuracy"]
    before, after = (human.byte_size(memory[f"{which}_bytes"]) for which in ("original", "compiled"))
    words = f"{before} → {after}"
    if accuracy.get("images"):
        tops = (f"{human.accuracy(accuracy[which])} top-1" for which in ("original", "pruned"))
        words = f"{before}, {next(tops)} → {after}, {next(tops)}"
    parts: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        parts.setdefault(block_name(str(group["name"])), []).append(place)
    under = [
        text(20 + SLOT * (places[0] + len(places) / 2), floor + 34, name, class_="middle part")
        for name, places in parts.items()
    ]
    legend, x = [], 20.0
    for class_, kind in kinds:
        legend += [tag("rect", class_=class_, x=x, y=floor + 54.0, width=12, height=12), text(x + 18, floor + 64, kind)]
        x += 45 + 7 * len(kind)
    bars = [
        tag("g", tag("title", words), drawn)
        for drawn, words in (_bar(group, scale, 20.0 + SLOT * i) for i, group in enumerate(groups))
    ]
    picture = figure(
        width,
        floor + 78,
        words,
        tag("style", Markup(PICTURE_STYLE)),
        text(20, 24, words, class_="title"),
        text(20, 46, "Channels of each group, from the image to the head: kept (filled) of all"),
        tag("g", *bars, transform="translate(0 56)"),
        *under,
        *legend,
        xmlns=NAMESPACE,
    )
    return f"{picture}\n"
