"""In which runtimes, versions and processors' kernels files load and give the same spikes, layer by layer.

    python benchmarks/runtimes.py [--families sdt …] [--site "ONNX Runtime=FOLDER" …] [--masked]

Small models of the families, whose neurons fire, are written with weights of each type and verified in each runtime, as
``svitc verify --runtime`` does, in a process of its own for each runtime. One that is not installed is left out.
``--site`` adds the packages in a folder (``pip install --no-deps --target FOLDER onnxruntime==1.21.0``), which come
before those of the environment: other versions of ONNX Runtime, or OpenVINO. ``--masked`` adds ONNX Runtime's kernels
for AVX2, and those for AVX-512 without VNNI (tests/support/x86_kernels.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import svitc
from common import publish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import x86_kernels
from support.families import FAMILIES, warm
from svitc.analysis.exactness import narrowable
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.driver.runtime_table import verified_row
from svitc.errors import SvitcError
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export
from svitc.passes import Prune, RoundWeights
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan
from svitc.runtimes import RUNTIMES
from svitc.serialization.writer import load_program
from svitc.serialization.writer import to_bytes as program_bytes
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

DEFAULT_FAMILIES = ("spikformer", "sdt", "qkformer-token", "maxformer")
BITS = {"int8": 8, "int4": 4, "int2": 2}
FILES = {  # kind of file -> weights, target, fewest bits that it stores
    "fp32": ("fp32", "cpu", None),
    "int8": ("int8", "cpu", None),
    "int4": ("int4", "cpu", None),
    "int2": ("int2", "cpu", None),
    "int2, --min-weight-bits 8": ("int2", "cpu", 8),
    "int8, --target openvino": ("int8", "openvino", None),
    "int4, --target openvino": ("int4", "openvino", None),
    "int2, --target openvino": ("int2", "openvino", None),
}
IMAGES, LIMIT_S = 2, 1500


@dataclass(frozen=True)
class Column:
    """A runtime with the packages and the kernels that it has.

    Attributes:
        title: what the table calls it, without the version.
        runtime: key of ``RUNTIMES``.
        environment: variables of its process.
    """

    title: str
    runtime: str
    environment: Mapping[str, str] = field(default_factory=dict)


def final_program(program: Program, weights: str) -> Program:
    """Return the program whose file is written."""
    if weights == "fp32":
        return program
    if weights == "int8":
        return quantize(program)[0]
    narrow = [layer for layer, why in narrowable(quantize(program)[0]).items() if not why]
    plan = dict.fromkeys(narrow, BITS[weights])
    rounded = program.copy()
    Prune(Plan({}))(rounded)
    RoundWeights(plan)(rounded)
    return quantize(rounded, plan)[0]


def write(families: Sequence[str], folder: Path) -> list[str]:
    """Write all files and the programs that they are compared with; return their names."""
    names = []
    for family in families:
        factory, shape = FAMILIES[family]
        torch.manual_seed(0)
        program = capture(warm(factory(), shape), svitc.InputSpec(shape))
        run_canonical_passes(program)
        for label, (weights, target, narrowest) in FILES.items():
            final, name = final_program(program, weights), f"{family}: {label}"
            (folder / f"{name}.safetensors").write_bytes(program_bytes(final))
            (folder / f"{name}.onnx").write_bytes(export(final, target, narrowest))
            names.append(name)
    return names


def verify_all(folder: Path, names: Sequence[str], runtime: str) -> None:
    """Verify files in a runtime and print a line of JSON for each: the work of a column's process."""
    found = RUNTIMES[runtime]
    for name in names:
        program = load_program(folder / f"{name}.safetensors")
        quantized = program.stage == Stage.QUANTIZED
        check = verify_exact if quantized else verify
        inputs = random_inputs(program, IMAGES, 1, 0)
        try:
            verdict = check(program, (folder / f"{name}.onnx").read_bytes(), inputs, runtime=found)
            row = verified_row(verdict, quantized)
        except SvitcError as error:
            row = {"result": "does not run", "why": error.message}
        print(json.dumps({"file": name, "version": found.version()} | row), flush=True)


def column_rows(column: Column, folder: Path, names: Sequence[str]) -> list[dict]:
    """Verify all files in the process of one column. A file that ends the process counts, and the next ones go on."""
    rows: list[dict] = []
    while len(rows) < len(names):
        rest = names[len(rows) :]
        command = [sys.executable, __file__, "--verify", str(folder), column.runtime, *rest]
        environment = {**os.environ, **column.environment}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
        rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(rows) < len(names):
            why = f"its process ended with status {done.returncode}"
            rows.append({"file": names[len(rows)], "version": None, "result": "does not run", "why": why})
    version = next((row["version"] for row in rows if row["version"]), "")
    print(column.title, version, [row["result"] for row in rows], flush=True)
    return [{"runtime": f"{column.title} {version}".strip(), **row} for row in rows]


def columns(sites: Sequence[str], masked: Path | None) -> list[Column]:
    """Return the columns of the table: what is installed, then what was given."""
    installed = [Column(r.title, name) for name, r in RUNTIMES.items() if r.missing() is None]
    titles = {runtime.title: name for name, runtime in RUNTIMES.items()}
    for site in sites:
        title, _, path = site.partition("=")
        if title not in titles or not Path(path).is_dir():
            raise SystemExit(f"--site {site!r}: give one of {', '.join(titles)}, '=' and a folder of packages")
        installed.append(Column(title, titles[title], {"PYTHONPATH": str(Path(path).resolve())}))
    if masked is not None:
        preload = {"LD_PRELOAD": str(masked / "cpuid_mask.so"), "PYTHONPATH": str(masked)}
        for mask, words in zip(x86_kernels.MASKS, ("AVX2 kernels", "AVX-512 kernels without VNNI"), strict=True):
            installed.append(Column(f"ONNX Runtime, {words},", "onnxruntime", {**preload, "CPUMASK": mask}))
    return installed


def cell(row: dict) -> str:
    """Return a result as the table shows it."""
    return f"**{row['result']}**" if row["result"] in ("differs", "does not run") else row["result"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=DEFAULT_FAMILIES, choices=FAMILIES)
    parser.add_argument("--site", action="append", default=[], help="RUNTIME=FOLDER of packages, may be repeated")
    parser.add_argument("--masked", action="store_true", help="also run other x86 processors' kernels")
    parser.add_argument("--verify", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.verify:
        folder, runtime, *names = args.verify
        return verify_all(Path(folder), names, runtime)
    with tempfile.TemporaryDirectory() as scratch:
        masked = None
        if args.masked:
            if (why := x86_kernels.unavailable()) is not None:
                raise SystemExit(why)
            (Path(scratch) / "masked").mkdir()
            masked = x86_kernels.build(Path(scratch) / "masked")
        folder = Path(scratch)
        names = write(args.families, folder)
        rows = [row for column in columns(args.site, masked) for row in column_rows(column, folder, names)]
    table = []
    for name in dict.fromkeys(row["runtime"] for row in rows):
        own = {row["file"]: row for row in rows if row["runtime"] == name}
        for label in FILES:
            table.append({"runtime": name, "file": label} | {f: cell(own[f"{f}: {label}"]) for f in args.families})
    reasons = {f"{row['runtime']}: {row['file']}": row["why"] for row in rows if row.get("why")}
    notes = "\n".join(f"- {place}: {why}" for place, why in reasons.items())
    publish("runtimes", table, (__doc__ or "") + (f"\nWhy not:\n\n{notes}\n" if notes else ""), raw=rows)


if __name__ == "__main__":
    main()
