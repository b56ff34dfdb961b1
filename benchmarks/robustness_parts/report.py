"""The tables and the plot of all parts, as ``results/robustness.md``, ``.json`` and ``.svg``."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from common import RESULTS, made_with, publish, table
from robustness_parts.log import Log
from robustness_parts.scale import laws

NOTE = (
    "Made by `benchmarks/robustness.py`; docs/reliability.md says what is promised and what is not. Faults found on "
    "the way are mended and their inputs tried again; each has a test."
)
PARTS = ("hostile", "kills", "ranks", "disk", "clock", "together", "same", "threads", "scale", "memory")


def publish_all(work: Path) -> None:
    """Write the results of all parts; those that were not run in this folder keep the rows of the last results."""
    file = RESULTS / "robustness.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    made = dict(before.get("made", {}))
    rows: dict[str, list[dict]] = {}
    for name in PARTS:
        rows[name] = Log(work / f"{name}.jsonl", 0).rows
        if rows[name]:
            made[name] = json.loads((work / f"{name}.made.json").read_text())
        else:
            rows[name] = before.get(name, [])
    table_of_hostile = _hostile(rows.pop("hostile")) or before.get("rows", [])
    if rows["scale"]:
        _plot(rows["scale"], RESULTS / "robustness.svg")
    sections = [text for name in PARTS[1:] if rows[name] for text in _section(name, rows[name], made.get(name))]
    parts = [NOTE, *sections, "## Hostile files", _made(made.get("hostile"))]
    publish("robustness", table_of_hostile, "\n\n".join(parts), made=made, **rows)


def _section(name: str, rows: list[dict], made: dict | None) -> list[str]:
    """Title, origin and table of one part."""
    title, tables = {
        "kills": ("Killed runs", _kills),
        "ranks": ("Killed runs of two processes", _ranks),
        "disk": ("Full disks, read-only folders, removed folders", _disk),
        "clock": ("A clock that jumps by hours", _clock),
        "together": ("Several commands on one folder", _together),
        "same": ("The same bytes", _same),
        "threads": ("Threads and forks", lambda rows: [{"what": r["what"], "scores": r["result"]} for r in rows]),
        "scale": ("Time and memory against size", _scale),
        "memory": ("Peak memory, spikformer_s at 224x224", _memory),
    }[name]
    plot = ["![plot](robustness.svg)"] if name == "scale" else []
    fits = [table(laws(rows))] if name == "scale" else []
    return [f"## {title}", *plot, _made(made), table(tables(rows)), *fits]


def _made(made: dict | None) -> str:
    """How a part was made: its last command, and the versions of what it ran on."""
    return f"`{made['command']}`, {made_with(made)}" if made else "With an earlier version of svitc."


def _counted(results: Iterable[str]) -> str:
    return ", ".join(f"{number} {key}" for key, number in Counter(results).items())


def _hostile(rows: list[dict]) -> list[dict]:
    """One row for each kind: how many were tried, what they came to, the longest and the largest."""
    kinds: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        kinds[row["kind"] if not row["change"].startswith("command") else "through the command"].append(row)
    result = []
    for kind, found in [*kinds.items(), ("all", rows)] if rows else ():
        counts = Counter(row["result"] for row in found)
        faults = {key: number for key, number in counts.items() if key not in ("refused", "accepted")}
        longest = max((row.get("seconds", 0.0) for row in found), default=0.0)
        largest = max((row.get("memory", 0) for row in found), default=0)
        result.append(
            {
                "kind": kind,
                "changes": len({row["change"] for row in found}),
                "files": len(found),
                "refused": counts["refused"],
                "accepted": counts["accepted"],
                "faults": ", ".join(f"{number} {key}" for key, number in faults.items()) or "0",
                "longest s": longest,
                "largest growth MB": round(largest / 1e6),
            }
        )
    return result


def _grouped(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def _kills(rows: list[dict]) -> list[dict]:
    result = []
    for (kind,), own in [*sorted(_grouped(rows, "kind").items()), (("all",), rows)]:
        kills = [kill for row in own for kill in row["moments"]]
        ways = [kill["on its way"] for kill in kills if isinstance(kill, dict)]
        result.append(
            {
                "killed while": kind,
                "runs": len(own),
                "kills": len(kills),
                "with files not complete": sum("not complete" in way for way in ways),
                "with files complete, not all moved": sum("complete" in way for way in ways),
                "over other files": sum(row.get("over", "nothing") != "nothing" for row in own),
                "after --resume": _counted(row["result"] for row in own),
            }
        )
    return result


def _ranks(rows: list[dict]) -> list[dict]:
    return [
        {
            "what was killed": turn,
            "run": kind,
            "kills": sum(not row["killed"].startswith("none") for row in own),
            "the rest": _counted(row["result"] for row in own),
            "ended after s, at most": max(row.get("the other ended after", 0.0) for row in own),
            "statuses": _counted(str(row["status"]) for row in own),
            "after --resume": _counted(row["resumed"] for row in own),
        }
        for (turn, kind), own in sorted(_grouped(rows, "turn", "kind").items())
    ]


def _disk(rows: list[dict]) -> list[dict]:
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        what = row["what"].partition(",")[0]
        groups[what if what.startswith(("read", "removed")) else "full", row["kind"], row["over"]].append(row)
    return [
        {
            "what": what,
            "run": kind,
            "over": over,
            "tries": len(own),
            "at": ", ".join(row["what"].removeprefix("full at ") for row in own) if what == "full" else "",
            "came to": _counted(row["result"] for row in own),
            "statuses": _counted(str(row["status"]) for row in own),
            "gone on": _counted(row["resumed"] for row in own),
        }
        for (what, kind, over), own in groups.items()
    ]


def _clock(rows: list[dict]) -> list[dict]:
    return [
        {"run": kind, "killed once": "yes" if killed else "no", "runs": len(own)}
        | {"came to": _counted(row["result"] for row in own)}
        for (kind, killed), own in sorted(_grouped(rows, "kind", "killed").items())
    ]


def _together(rows: list[dict]) -> list[dict]:
    return [
        {
            "what": what,
            "tries": len(own),
            "readings": sum(row.get("readings", 0) for row in own) or "",
            "came to": _counted(row["result"] for row in own),
        }
        for (what,), own in _grouped(rows, "what").items()
    ]


def _same(rows: list[dict]) -> list[dict]:
    files = [key for key in rows[0] if key not in ("what", "sources")]
    result = []
    for row in rows:  # compared within one state of the sources: others may write other files
        first = next(each for each in rows if each.get("sources") == row.get("sources"))
        same = {name: "same" if row[name] == first[name] else "others" for name in files}
        result.append({"what": row["what"], "compared with": first["what"], **same})
    return result


def _scale(rows: list[dict]) -> list[dict]:
    return [{key: row[key] for key in ("axis", "size", "seconds", "peak_mb", "outcome")} for row in rows]


def _memory(rows: list[dict]) -> list[dict]:
    return [{key: row.get(key) for key in ("way", "whole_process_mb", "seconds", "outcome")} for row in rows]


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
