"""The benchmark of faults: what it publishes of the parts that were run, and of those that were not."""

from __future__ import annotations

import json
import sys

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import common
from robustness_parts import report

MADE = {"command": "python robustness.py x", "versions": {"torch": "2"}, "python": "3", "processor": "p", "threads": 1}


def test_parts_that_were_not_run_here_keep_their_rows(tmp_path, monkeypatch):
    for module in (common, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    hostile = {"kind": "plans", "files": 7}
    memory = {"way": "without data", "whole_process_mb": 5, "seconds": 1.0, "outcome": "done"}
    before = {"rows": [hostile], "memory": [memory], "made": {"memory": {**MADE, "command": "python robustness.py m"}}}
    (tmp_path / "robustness.json").write_text(json.dumps(before))
    work = tmp_path / "work"
    work.mkdir()
    kill = {"after": 0.1, "on its way": ["complete"]}
    row = {"kind": "sweep", "over": "nothing", "moments": [kill, kill], "result": "same files"}
    (work / "kills.jsonl").write_text(json.dumps(row) + "\n")
    (work / "kills.made.json").write_text(json.dumps(MADE))
    report.publish_all(work)
    after = json.loads((tmp_path / "robustness.json").read_text())
    assert after["rows"] == [hostile] and after["memory"] == [memory] and after["kills"] == [row]
    assert set(after["made"]) == {"memory", "kills"}
    text = (tmp_path / "robustness.md").read_text()
    assert "| all | 1 | 2 | 0 | 2 | 0 | 1 same files |" in text
    assert "python robustness.py m" in text and "With an earlier version of svitc." in text
