"""A finished compilation, and the output folder that it is written to."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svitc.codegen.module import program_source
from svitc.ir.program import Program
from svitc.planning.plan import Plan
from svitc.serialization.writer import to_bytes as program_bytes
from svitc.support.atomic_files import write_together
from svitc.verification.verdict import Verdict


@dataclass
class Compiled:
    """A finished compilation.

    Attributes:
        program: pruned; still trains, unless its weights are int8.
        onnx: the file's bytes; empty on all ranks of a distributed run but the first.
        plan: what stayed.
        report: see docs/report.md for the keys.
        verdict: of the verification.
    """

    program: Program
    onnx: bytes
    plan: Plan
    report: dict[str, Any]
    verdict: Verdict

    def write(self, out: Path) -> list[Path]:
        """Write the five files of the output folder, all or none.

        Raises:
            OutputError: the folder cannot be written.
        """
        start = time.perf_counter()
        contents = {
            "model.onnx": self.onnx,
            "model.py": program_source(self.program).encode(),
            "model.safetensors": program_bytes(self.program),
            "plan.json": (json.dumps(self.plan.to_json(), indent=1) + "\n").encode(),
        }
        self.report["seconds"]["write"] = round(time.perf_counter() - start, 3)
        self.report["seconds"]["total"] = round(sum(v for k, v in self.report["seconds"].items() if k != "total"), 3)
        contents["report.json"] = (json.dumps(self.report, indent=1) + "\n").encode()
        return write_together(out, contents)
