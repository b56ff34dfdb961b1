"""The report's table of runtimes: in which of them a file was verified, with what result, and in which it was not."""

from __future__ import annotations

from pathlib import Path

from svitc.driver.float_network import read_report
from svitc.driver.report_files import MALFORMED, PAGE, REPORT, page_of
from svitc.errors import InputError, SvitcError
from svitc.runtimes import RUNTIMES, Runtime
from svitc.support.atomic_files import to_json_bytes, write_together
from svitc.support.types import JsonDict
from svitc.verification.verdict import Verdict

NOT_TRIED = "not tried"


def runtimes_report(verdict: Verdict, quantized: bool) -> list[JsonDict]:
    """Return a row for each runtime that svitc knows: the verdict's own, and the others as not tried.

    Args:
        verdict: the result of the verification.
        quantized: whether the file holds a quantized network, whose spikes must be the same bit for bit.
    """
    tried = verified_row(verdict, quantized)
    return [tried if runtime.name == tried["name"] else _untried(runtime) for runtime in RUNTIMES.values()]


def verified_row(verdict: Verdict, quantized: bool) -> JsonDict:
    """Return the row of the runtime that a file was verified in.

    Its ``result`` is ``exact`` where every spike of a quantized network was the same, ``within rounding`` where float
    rounding explains each difference, else ``differs``.
    """
    first = verdict.file_divergence
    flips = verdict.total("flips_within_rounding")
    result = "exact" if quantized and not flips else "within rounding"
    return {
        **verdict.runtime,
        "result": result if first is None else "differs",
        "why": None if first is None else f"first at {first}",
        "images": verdict.images,
        "spikes": verdict.total("spikes"),
    }


def failed_row(runtime: Runtime, reason: str) -> JsonDict:
    """Return the row of a runtime that cannot load or run the file."""
    return {**runtime.described(), "result": "does not run", "why": reason, "images": 0, "spikes": 0}


def _untried(runtime: Runtime) -> JsonDict:
    """Return the row of a runtime that the file was not verified in."""
    why = f"svitc verify --runtime {runtime.name} tries it"
    return {"name": runtime.name, "version": None, "settings": {}, "result": NOT_TRIED, "why": why}


def note_in_report(folder: Path, row: JsonDict, exported: bytes) -> str | None:
    """Put a row in place of the same runtime's in the report of an output folder, and in its page.

    Args:
        folder: the folder.
        row: the row.
        exported: the ONNX file that it is about. Another process may have written another one in the meantime.

    Returns:
        why that was not possible; None where it was, or where the folder has no report.
    """

    def noted() -> dict[str, bytes]:
        if (folder / "model.onnx").read_bytes() != exported:
            raise InputError("another compilation was written there in the meantime")
        report = read_report(folder)
        if not report:
            return {}
        rows = {known["name"]: known for known in report.get("runtimes", [])} | {row["name"]: row}
        report = report | {"runtimes": list(rows.values())}
        page = {PAGE: page_of(folder, report)} if (folder / PAGE).is_file() else {}
        return {REPORT: to_json_bytes(report), **page}

    try:
        write_together(folder, noted)
    except SvitcError as error:
        return error.message
    except MALFORMED:
        return "it does not read as svitc writes it"
    return None
