"""In which runtimes, versions and processors' kernels files load and give the same spikes, layer by layer.

    python benchmarks/runtimes.py [--runtimes NAME …] [--families sdt …] [--files int8 …] [--masked]
        [--site "ONNX Runtime=FOLDER" …] [--interpreter "TITLE=COMMAND"] [--add]

Small models of the families, whose neurons fire, are written with weights of each type and verified in each runtime, as
``svitc verify --runtime`` does, in a process of its own for each runtime. One that is not installed is left out.
``--site`` adds the packages in a folder (``pip install --no-deps --target FOLDER onnxruntime==1.21.0``), which come
before those of the environment: other versions of ONNX Runtime, or any runtime that the environment lacks. ``--masked``
adds ONNX Runtime's kernels for AVX2, and those for AVX-512 without VNNI (tests/support/x86_kernels.py).
``--interpreter`` runs the ``check.py --spikes`` that travels with a file in another Python, such as one for Arm in an
emulator. ``--add`` keeps the earlier results of other runtimes. A file that a runtime does not load is tried
for batches of one size, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch

import svitc
from common import RESULTS, publish
from further_runtimes import FURTHER

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import x86_kernels
from support.families import FAMILIES, warm
from svitc.analysis.exactness import inexact, narrowable
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.driver.proof import prove
from svitc.driver.runtime_table import verified_row
from svitc.errors import SvitcError
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export
from svitc.onnx.static_batch import with_static_batch
from svitc.passes import Prune, RoundWeights
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan
from svitc.runtimes import RUNTIMES, Runtime
from svitc.serialization.writer import load_program
from svitc.serialization.writer import to_bytes as program_bytes
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

DEFAULT_FAMILIES = ("spikformer", "sdt", "qkformer-token", "maxformer")
FAILED = "does not run"
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
IMAGES, LIMIT_S = 2, 3000
EVERY = RUNTIMES | FURTHER


@dataclass(frozen=True)
class Column:
    """A runtime with the packages and the kernels that it has.

    Attributes:
        title: what the table calls it, without the version.
        runtime: key of ``EVERY``; or what runs Python where ``check.py`` is run.
        environment: variables of its process.
        checks: whether it runs ``check.py``.
    """

    title: str
    runtime: str
    environment: Mapping[str, str] = field(default_factory=dict)
    checks: bool = False


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


def write(families: Sequence[str], kinds: Sequence[str], folder: Path) -> list[str]:
    """Write all files and the programs that they are compared with; return their names."""
    names = []
    for family in families:
        factory, shape = FAMILIES[family]
        torch.manual_seed(0)
        program = capture(warm(factory(), shape), svitc.InputSpec(shape))
        run_canonical_passes(program)
        for label in kinds:
            weights, target, narrowest = FILES[label]
            final, name = final_program(program, weights), f"{family}: {label}"
            exported = export(final, target, narrowest)
            (folder / f"{name}.safetensors").write_bytes(program_bytes(final))
            (folder / f"{name}.onnx").write_bytes(exported)
            proof = prove(final, exported, inexact(final) if final.stage == Stage.QUANTIZED else {})
            digest = onnx.ModelProto()
            digest.metadata_props.add(key="spikes.sha256", value=proof.digest)
            (folder / name).mkdir()
            for file, content in (proof.files() | {"model.onnx": exported + digest.SerializeToString()}).items():
                (folder / name / file).write_bytes(content)
            names.append(name)
    return names


def verified(folder: Path, name: str, runtime: Runtime, batch: int | None) -> dict:
    """Verify a file in a runtime, perhaps for batches of one size; return the row of the report's table."""
    program, exported = load_program(folder / f"{name}.safetensors"), (folder / f"{name}.onnx").read_bytes()
    quantized = program.stage == Stage.QUANTIZED
    inputs = random_inputs(program, IMAGES, batch or 1, 0)
    exported = exported if batch is None else with_static_batch(exported, batch)
    try:
        verdict = (verify_exact if quantized else verify)(program, exported, inputs, runtime=runtime)
    except SvitcError as error:
        return {"result": FAILED, "why": error.message.replace(f"{tempfile.gettempdir()}/", "")}
    return verified_row(verdict, quantized)


def verify_all(folder: Path, names: Sequence[str], runtime: str) -> None:
    """Verify files in a runtime and print a line of JSON for each: the work of a column's process."""
    found = EVERY[runtime]
    for name in names:
        row = verified(folder, name, found, None)
        if row["result"] == FAILED and (static := verified(folder, name, found, IMAGES))["result"] != FAILED:
            row = static | {"result": f"{static['result']} with --static-batch", "why": row["why"]}
        print(json.dumps({"file": name, "version": found.version()} | row), flush=True)


def checked(folder: Path, name: str, interpreter: str) -> dict:
    """Run the ``check.py`` of a file with another Python; return a row like ``verified``."""
    command = [*shlex.split(interpreter), str(folder / name / "check.py"), "--spikes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    lines = (done.stdout + done.stderr).strip().splitlines() or [f"its process ended with status {done.returncode}"]
    if done.returncode:
        return {"result": "differs" if lines[-1].startswith("differs") else FAILED, "why": lines[-1]}
    with_floats = "fp32" in name or "but for float rounding" in done.stdout
    return {"result": "within rounding" if with_floats else "exact", "why": None}


def column_rows(column: Column, folder: Path, names: Sequence[str]) -> list[dict]:
    """Verify all files in the process of one column. A file that ends the process counts, and the next ones go on."""
    rows: list[dict] = []
    if column.checks:
        command = [*shlex.split(column.runtime), "-c", "import onnxruntime; print(onnxruntime.__version__)"]
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        rows = [{"file": name, "version": version} | checked(folder, name, column.runtime) for name in names]
    while len(rows) < len(names):
        rest = names[len(rows) :]
        command = [sys.executable, __file__, "--verify", str(folder), column.runtime, *rest]
        environment = {**os.environ, **column.environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        done = subprocess.run(command, env=environment, text=True, timeout=LIMIT_S, **pipes)
        rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(rows) < len(names):
            why = f"its process ended with status {done.returncode}"
            rows.append({"file": names[len(rows)], "version": None, "result": FAILED, "why": why})
    version = next((row["version"] for row in rows if row["version"]), "")
    print(column.title, version, [row["result"] for row in rows], flush=True)
    return [{"runtime": f"{column.title} {version}".strip(), **row} for row in rows]


def columns(args: argparse.Namespace, masked: Path | None) -> list[Column]:
    """Return the columns of the table: what is installed, then what was given."""
    names = args.runtimes if args.runtimes is not None else EVERY
    found = [Column(EVERY[name].title, name) for name in names if EVERY[name].missing() is None]
    titles = {runtime.title: name for name, runtime in EVERY.items()}
    for site in args.site:
        title, _, path = site.partition("=")
        if title not in titles or not Path(path).is_dir():
            raise SystemExit(f"--site {site!r}: give one of {', '.join(titles)}, '=' and a folder of packages")
        found.append(Column(title, titles[title], {"PYTHONPATH": str(Path(path).resolve())}))
    if masked is not None:
        preload = {"LD_PRELOAD": str(masked / "cpuid_mask.so"), "PYTHONPATH": str(masked)}
        for mask, words in zip(x86_kernels.MASKS, ("AVX2 kernels", "AVX-512 kernels without VNNI"), strict=True):
            found.append(Column(f"ONNX Runtime, {words},", "onnxruntime", {**preload, "CPUMASK": mask}))
    for interpreter in args.interpreter:
        title, _, command = interpreter.partition("=")
        found.append(Column(title, command, checks=True))
    return found


def cell(row: dict | None) -> str:
    """Return a result as the table shows it."""
    if row is None:
        return "not tried"
    return f"**{row['result']}**" if row["result"] in ("differs", FAILED) else row["result"]


def publish_rows(rows: Sequence[dict], families: Sequence[str]) -> None:
    """Write the table of all rows, and why files do not run, once for each runtime and kind of file."""
    table, reasons = [], {}
    for name in dict.fromkeys(row["runtime"] for row in rows):
        own = {row["file"]: row for row in rows if row["runtime"] == name}
        for label in FILES:
            found = {family: own.get(f"{family}: {label}") for family in families}
            if any(found.values()):
                table.append({"runtime": name, "file": label} | {family: cell(row) for family, row in found.items()})
            why = {row["why"]: family for family, row in reversed(found.items()) if row and row.get("why")}
            reasons |= {f"{name}: {label}: {family}": text for text, family in why.items()}
    notes = "\n".join(f"- {place}: {why}" for place, why in reasons.items())
    publish("runtimes", table, (__doc__ or "") + (f"\nWhy not:\n\n{notes}\n" if notes else ""), raw=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=DEFAULT_FAMILIES, choices=FAMILIES)
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES, help="kinds of files")
    parser.add_argument("--runtimes", nargs="*", choices=EVERY, help="of those that are installed")
    parser.add_argument("--site", action="append", default=[], help="RUNTIME=FOLDER of packages, may be repeated")
    parser.add_argument("--masked", action="store_true", help="also run other x86 processors' kernels")
    parser.add_argument("--interpreter", action="append", default=[], help="TITLE=COMMAND of Python, may be repeated")
    parser.add_argument("--add", action="store_true", help="keep the earlier results of other runtimes")
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
        names = write(args.families, args.files, folder)
        rows = [row for column in columns(args, masked) for row in column_rows(column, folder, names)]
    if args.add:
        tried = {row["runtime"] for row in rows}
        earlier = json.loads((RESULTS / "runtimes.json").read_text())["raw"]
        rows = [row for row in earlier if row["runtime"] not in tried] + rows
    publish_rows(rows, DEFAULT_FAMILIES if args.add else args.families)


if __name__ == "__main__":
    main()
