"""Draw the channel groups of a compiled network, before and after, as an SVG picture.

python demo/draw.py demo/out docs/images/digits.svg
"""

import argparse
import json
from html import escape
from pathlib import Path

BAR, GAP, LEFT, TOP = 46, 14, 24, 64  # pixels
TALLEST = 150  # pixels, of the widest group
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #24292f }
    .title { font-size: 15px; font-weight: 600 }
    .removed { fill: none; stroke: #8c959f; stroke-dasharray: 3 3 }
    .stream { fill: #8250df } .patch { fill: #0969da } .attention { fill: #bc4c00 } .mlp { fill: #1a7f37 }
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .removed { stroke: #848d97 } }"""
KINDS = {"patch": "patch embedding", "stream": "residual stream", "attention": "attention", "mlp": "MLP"}


def kind_of(name: str, widest: bool) -> str:
    """Return the kind of a group, by its name in a Spikformer; the last patch embedding is the residual stream."""
    if "attn" in name:
        return "attention"
    if "mlp" in name:
        return "mlp"
    return "stream" if widest else "patch"


def short(name: str) -> str:
    """Return a name that fits below a bar, as in ``0 q`` for the query of block 0."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return f"conv {parts[2]}"
    return f"{parts[1]} {parts[-1] if 'attn' in name else 'fc1'}"


def draw(report: dict) -> str:
    """Return the picture of a report.json."""
    groups = [group for group in report["groups"] if group["frozen"] is None]
    patches = [group["name"] for group in groups if group["name"].startswith("patch_embed")]
    scale = TALLEST / max(group["size"] for group in groups)
    width, floor = 2 * LEFT + len(groups) * (BAR + GAP), TOP + TALLEST
    memory, accuracy = report["memory"], report["accuracy"]
    title = (
        f"{memory['original_bytes'] / 1000:.0f} kB, {accuracy['original']:.1%} top-1  →  "
        f"{memory['compiled_bytes'] / 1000:.0f} kB, {accuracy['pruned']:.1%}"
    )
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {floor + 62}" width="{width}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
        f'<text x="{LEFT}" y="44">Channels of each group, from the image to the head: kept (filled) of all</text>',
    ]
    for i, group in enumerate(groups):
        x, size, kept = LEFT + i * (BAR + GAP), group["size"] * scale, group["kept"] * scale
        kind = kind_of(group["name"], group["name"] == patches[-1])
        label = f"{group['kept']}/{group['size']}"
        drawn += [
            f"<g><title>{escape(group['name'])}: {group['kept']} of {group['size']} channels</title>",
            f'<rect class="removed" x="{x}" y="{floor - size:.1f}" width="{BAR}" height="{size:.1f}"/>',
            f'<rect class="{kind}" x="{x}" y="{floor - kept:.1f}" width="{BAR}" height="{kept:.1f}"/></g>',
            f'<text x="{x + BAR / 2}" y="{floor - size - 5:.1f}" text-anchor="middle">{label}</text>',
            f'<text x="{x + BAR / 2}" y="{floor + 16}" text-anchor="middle">{escape(short(group["name"]))}</text>',
        ]
    x = LEFT
    for kind, words in KINDS.items():
        drawn.append(f'<rect class="{kind}" x="{x}" y="{floor + 34}" width="12" height="12"/>')
        drawn.append(f'<text x="{x + 18}" y="{floor + 45}">{words}</text>')
        x += 45 + 7 * len(words)
    return "\n".join([*drawn, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of svitc compile --data")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    args.picture.write_text(draw(json.loads((args.folder / "report.json").read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
