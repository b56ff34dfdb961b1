"""Draw the channel groups of a compiled network, before and after, as an SVG picture.

python demo/draw.py demo/out docs/images/digits.svg
"""

import argparse
import json
from pathlib import Path

from svitc.html_report import channels_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of svitc compile --data")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    report = json.loads((args.folder / "report.json").read_text(encoding="utf-8"))
    args.picture.write_text(channels_picture(report), encoding="utf-8")


if __name__ == "__main__":
    main()
