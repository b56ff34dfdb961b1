"""The tables and the plot of all parts, as ``results/robustness.md``, ``.json`` and ``.svg``."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from common import RESULTS, publish, table
from robustness_parts.log import Log
from robustness_parts.scale import laws

NOTE = (
    "Made by `benchmarks/robustness.py`; docs/reliability.md says what is promised and what is not. Faults found on "
    "the way are mended and their inputs tried again; each has a test."
)


def publish_all(work: Path) -> None:
    """Write the results of all parts that were run."""
    rows = {
        name: Log(work / f"{name}.jsonl", 0).rows for name in ("hostile", "kills", "same", "threads", "scale", "memory")
    }
    parts = [NOTE]
    if rows["kills"]:
        parts += ["## Killed runs", table(_kills(rows["kills"]))]
    if rows["same"]:
        parts += ["## The same bytes", table(_same(rows["same"]))]
    if rows["threads"]:
        parts += ["## Threads and forks", table([{"what": r["what"], "scores": r["result"]} for r in rows["threads"]])]
    if rows["scale"]:
        _plot(rows["scale"], RESULTS / "robustness.svg")
        columns = ("axis", "size", "seconds", "peak_mb", "outcome")
        parts += ["## Time and memory against size", "![plot](robustness.svg)"]
        parts += [table([{key: row[key] for key in columns} for row in rows["scale"]]), table(laws(rows["scale"]))]
    if rows["memory"]:
        keys = ("way", "whole_process_mb", "seconds", "outcome")
        parts += [
            "## Peak memory, spikformer_s at 224x224",
            table([{k: row.get(k) for k in keys} for row in rows["memory"]]),
        ]
    parts += ["## Hostile files"]
    publish(
        "robustness", _hostile(rows["hostile"]), "\n\n".join(parts), **{k: v for k, v in rows.items() if k != "hostile"}
    )


def _hostile(rows: list[dict]) -> list[dict]:
    """One row for each kind: how many were tried, what they came to, the longest and the largest."""
    kinds: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        kinds[row["kind"] if not row["change"].startswith("command") else "through the command"].append(row)
    result = []
    for kind, found in [*kinds.items(), ("all", rows)]:
        counts = Counter(row["result"] for row in found)
        faults = {key: number for key, number in counts.items() if key not in ("refused", "accepted")}
        longest = max((row.get("seconds", 0.0) for row in found), default=0.0)
        largest = max((row.get("memory", 0) for row in found), default=0)
        result.append(
            {
                "kind": kind,
                "files": len(found),
                "refused": counts["refused"],
                "accepted": counts["accepted"],
                "faults": ", ".join(f"{number} {key}" for key, number in faults.items()) or "0",
                "longest s": longest,
                "largest growth MB": round(largest / 1e6),
            }
        )
    return result


def _kills(rows: list[dict]) -> list[dict]:
    kinds = sorted({row["kind"] for row in rows})
    return [
        {
            "kind": kind,
            "runs": len(own := [row for row in rows if row["kind"] == kind]),
            "kills": sum(len(row["moments"]) for row in own),
            **{"outcomes": ", ".join(f"{n} {key}" for key, n in Counter(row["result"] for row in own).items())},
        }
        for kind in kinds
    ]


def _same(rows: list[dict]) -> list[dict]:
    files = [key for key in rows[0] if key not in ("what", "sources")]
    result = []
    for row in rows:  # compared within one state of the sources: others may write other files
        first = next(each for each in rows if each.get("sources") == row.get("sources"))
        same = {name: "same" if row[name] == first[name] else "others" for name in files}
        result.append({"what": row["what"], "compared with": first["what"], **same})
    return result


def _plot(rows: list[dict], path: Path) -> None:
    """Draw time and memory against size, relative to the smallest size; a line of slope 1 is linear."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2))
    for axis in dict.fromkeys(row["axis"] for row in rows):
        own = [row for row in rows if row["axis"] == axis and row["outcome"] == "done"]
        if len(own) > 1:
            sizes = [row["size"] / own[0]["size"] for row in own]
            axes[0].loglog(sizes, [row["seconds"] for row in own], marker="o", label=axis)
            axes[1].loglog(sizes, [max(1, row["peak_mb"]) for row in own], marker="o", label=axis)
    for place, label in zip(axes, ("seconds", "MB"), strict=True):
        place.set(xlabel="size, relative to the smallest", ylabel=label)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
