"""A finished compilation, and the output folder that it is written to."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svitc.codegen.module import program_source
from svitc.driver.anytime_curve import curve_svg
from svitc.driver.proof import Proof
from svitc.errors import OutputError
from svitc.html_report import compiled_card, page
from svitc.html_report.facts import title
from svitc.ir.outputs import class_scores
from svitc.ir.program import Program
from svitc.planning.plan import Plan
from svitc.plots import plot_channels
from svitc.serialization.writer import to_bytes as program_bytes
from svitc.support.atomic_files import to_json_bytes, write_together
from svitc.support.human import byte_size
from svitc.support.names import as_path
from svitc.support.types import JsonDict
from svitc.verification.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CALLERS = ("stream.py", "stream.cpp")  # what runs a streaming file (docs/streaming.md)
PICTURE_CHANNELS = (1, 3)  # gray, RGB
PREDICT = ("predict.py",)  # what runs a file of pictures and class scores (docs/file.md)


@dataclass(repr=False)
class Compiled:
    """A finished compilation.

    Attributes:
        program: the pruned program; it can be trained further unless its weights are quantized.
        onnx: bytes of the ONNX file with its metadata; empty on all ranks of a distributed run but the first.
        plan: what was kept.
        report: JSON values; see docs/report.md for the keys.
        verdict: the result of the verification.
        proof: what a device checks the file with; None where the verification failed.
    """

    program: Program
    onnx: bytes
    plan: Plan
    report: JsonDict
    verdict: Verdict
    proof: Proof | None = None

    def __repr__(self) -> str:
        """Return what was made in one line; the fields' own texts would be megabytes."""
        state = "verified" if self.verdict.passed else "verification failed"
        return f"Compiled(model.onnx of {byte_size(len(self.onnx))}, {state})"

    def _repr_html_(self) -> str:
        """Return the compilation as notebooks show it."""
        return compiled_card(self.report) if self.report else repr(self)

    def plot(self) -> Figure:
        """Draw what is kept of each channel group, as a figure of matplotlib.

        Raises:
            UsageError: matplotlib is not installed.
        """
        return plot_channels(self.report["groups"], title(self.report))

    def write(self, out: Path | str, html: bool = True) -> list[Path]:
        """Write the files of the output folder, all or none, and return their paths.

        Args:
            out: the folder, created if it does not exist.
            html: whether to write the report as a page as well (``report.html``).

        Raises:
            OutputError: the folder cannot be written, or has a ``model.py`` of someone else.
        """
        out = as_path(out, "the output folder")
        check_own(out)
        start = time.perf_counter()
        contents = {
            "model.onnx": self.onnx,
            "model.py": program_source(self.program).encode(),
            "model.safetensors": program_bytes(self.program),
            "plan.json": to_json_bytes(self.plan.to_json()),
            **(self.proof.files() if self.proof is not None else {}),
            **_callers(self._callers),
        }
        if self.report.get("anytime"):
            contents["anytime.svg"] = curve_svg(self.report["anytime"]).encode()
        self.report["files"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
        }
        self.report["seconds"]["write"] = round(time.perf_counter() - start, 3)
        self.report["seconds"]["total"] = round(sum(v for k, v in self.report["seconds"].items() if k != "total"), 3)
        contents["report.json"] = to_json_bytes(self.report)
        if html:
            contents |= _page(self.report)
        return write_together(out, contents)

    @property
    def _callers(self) -> tuple[str, ...]:
        """Names of the programs that run the file on a device."""
        if self.report.get("streaming"):
            return CALLERS
        scores = class_scores(self.program.graph, self.program.info) if len(self.program.output_names) == 1 else None
        pictures = not self.program.input.events and self.program.input.shape[-3] in PICTURE_CHANNELS
        return PREDICT if pictures and scores is not None else ()


def _page(report: JsonDict) -> dict[str, bytes]:
    """Return the report as a page, by its name; nothing where drawing fails, which must not cost the other files."""
    try:
        return {"report.html": page(report)}
    except Exception:  # whatever the names and numbers of a report make the templates raise
        logging.getLogger(__name__).warning("report.html is not written: it cannot be drawn", exc_info=True)
        return {}


def check_own(out: Path) -> None:
    """Check that an output folder has no ``model.py`` that would be lost.

    Raises:
        OutputError: it has one that svitc did not write.
    """
    file = out / "model.py"
    if file.is_file():
        with file.open("rb") as source:
            is_own = b" by svitc" in source.readline()
        if not is_own:
            raise OutputError(
                f"{file} is not of svitc, and would be lost", hint="Move it, or give another folder with -o."
            )


def _callers(names: tuple[str, ...]) -> dict[str, bytes]:
    """Return programs that run a file, by the names that they are written under."""
    return {name: Path(__file__).with_name(f"device_{name}").read_bytes() for name in names}
