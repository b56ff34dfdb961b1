"""The published configurations, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from svitc.cli.terminal import make_table, out
from svitc.support.types import JsonDict

SOURCES = {"official": "official", "spikingjelly": "SpikingJelly"}


def configurations(rows: Sequence[JsonDict]) -> None:
    """Print a row for each configuration: name, family, code, input, steps, parameters, top-1 and checkpoint."""
    table = make_table(
        "name",
        "family",
        "code",
        "input",
        "T",
        "parameters",
        "top-1",
        "weights in",
        left={"family", "code", "weights in"},
    )
    for row in rows:
        table.add_row(
            row["name"],
            row["family"],
            SOURCES[row["source"]],
            " x ".join(map(str, row["input"])),
            str(row["steps"]),
            f"{row['parameters']:,}",
            "" if row["top1"] is None else f"{row['top1']:.2f}%",
            "bare" if row["entry"] is None else f"['{row['entry']}']".replace("[", "\\["),
        )
    out.print(table)
    out.print(
        "code: the authors' repository, or SpikingJelly. top-1 on ImageNet, where the authors state it for this size "
        "and input. weights in: the entry of the checkpoint that the training script saves; a bare state dict, "
        "prefixes such as module. and averaged weights are understood as well."
    )
