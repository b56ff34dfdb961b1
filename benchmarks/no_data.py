"""What pruning and rounding cost without labels: no data at all, 256 unlabeled images, 1,256 labeled ones.

    python benchmarks/no_data.py spikformer-cifar10.pt --train cifar10-train.zip --test cifar10-test.zip

Four trained checkpoints, three budgets and two widths of weights, each compiled as the command line does it. The
budgets are one front, so that the first one's time is that of a lone command. The real loss is that of the written file
on images that no compilation saw: the test images, or with ``--on train`` 5,000 training images that are held out for
choosing settings, and that never serve as calibration (the networks themselves were trained on them). The predicted
loss is the report's own. Results are written after every cell; ``--resume`` keeps those that are there.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import svitc
from common import RESULTS, environment
from svitc import onnx as backend
from svitc import runtimes
from svitc.data.dataset import Dataset, load_data, split
from svitc.data.inputs import top1
from svitc.driver.artifacts import Compiled
from svitc.driver.prediction import TOO_SMALL
from svitc.driver.report_sections import BATCH_IMAGES, classify
from svitc.support.confidence import paired
from svitc.support.reporter import Reporter

HERE = Path(__file__).parent
DEMO = HERE.parent / "demo"
SPIKFORMER, SDT, QKFORMER, DIGITS = "spikformer-cifar10", "sdt-cifar10", "qkformer-cifar10", "digits"
HELD_OUT_IMAGES = 5000  # of the training images, and at most a quarter of them
UNLABELED_IMAGES = 256
LABELED_IMAGES = 1000 + 256  # the defaults of --sweep-images and --calibration-images
BATCH_OF_FILE = 1000  # images of a batch where they are only read


@dataclass(frozen=True)
class Setting:
    """What a network is compiled to.

    Attributes:
        budget: Share of the bytes, or None.
        weights: Type of the stored weights, or None to leave it open.
        no_data, unlabeled: The most points that may be lost without data, and with unlabeled images.
    """

    budget: float | None
    weights: str | None
    no_data: float
    unlabeled: float


SETTINGS = {
    "budget 0.78": Setting(0.78, None, 0.5, 0.3),
    "budget 0.55": Setting(0.55, None, 1.5, 1.0),
    "budget 0.35": Setting(0.35, None, 6.0, 4.0),
    "int4": Setting(None, "int4", 1.0, 0.3),
    "int2": Setting(None, "int2", 5.0, 1.5),
}
NO_DATA, UNLABELED, LABELED, UNIFORM = "no data", "256 unlabeled", "labeled auto", "uniform"
# column -> options of the compilation, beside those of the setting
COLUMNS: dict[str, Callable[[Images], dict[str, Any]]] = {
    NO_DATA: lambda images: {"no_data": "synthetic"},
    UNLABELED: lambda images: {"data": images.unlabeled},
    LABELED: lambda images: {"data": images.labeled},
    UNIFORM: lambda images: {"no_data": "uniform"},
}
PREDICTED = (NO_DATA, UNLABELED)  # columns whose report predicts a loss


@dataclass(frozen=True)
class Prediction:
    """The loss that a report predicts; the report's own names are read here alone.

    Attributes:
        loss: Share of the images; None where the report says that it is too small to tell.
        interval: Its ends, shares.
        agreement: Share of the made or given images on which both networks choose the same class.
    """

    loss: float | None
    interval: list[float] | None
    agreement: float | None

    @classmethod
    def of(cls, report: dict[str, Any]) -> Prediction | None:
        """Return the prediction of a report, or None where it makes none."""
        section = report.get("prediction")
        if section is None:
            return None
        loss = None if section["too_small"] else section["loss"]
        return cls(loss, section["interval"], section["agreement"])

    def verdict(self, drop: float, interval: Sequence[float]) -> str:
        """Return whether the prediction came true.

        Args:
            drop: Real loss, a share.
            interval: Its 95% interval.
        """
        low, high = interval
        if self.loss is None:
            return "too small to tell" if low <= 2 * TOO_SMALL else "NO"
        if low <= 0 and self.loss <= high:  # the measured images cannot tell it from no loss
            return "too small to tell"
        return "yes" if self.loss / 2 <= drop <= 2 * self.loss else "NO"


@dataclass(frozen=True)
class Checkpoint:
    """A trained checkpoint and its images.

    Attributes:
        name: Name in the tables.
        model, train, test: Files.
    """

    name: str
    model: Path
    train: Path
    test: Path


class Images:
    """The images of a checkpoint: for calibration, with and without labels, and to measure on.

    Args:
        checkpoint: The checkpoint.
        work: Folder for the file of images without labels.
        held_out: Whether to measure on held-out training images instead of the test images.
        limit: Number of images to measure on; None for all.

    Attributes:
        program: The captured checkpoint.
        measured: Images that losses are measured on.
    """

    def __init__(self, checkpoint: Checkpoint, work: Path, held_out: bool, limit: int | None) -> None:
        self.checkpoint, self.work = checkpoint, work
        self._compilers: dict[tuple[str, str | None], svitc.Compiler] = {}
        self.program = svitc.load(checkpoint.model)
        train = self._open(checkpoint.train)
        held, self._rest = split(train, min(HELD_OUT_IMAGES, len(train) // 4))
        self.measured = held if held_out else self._open(checkpoint.test)
        if limit is not None and limit < len(self.measured):
            self.measured = split(self.measured, limit)[0]

    def _open(self, path: Path) -> Dataset:
        return load_data(path, self.program.input, self.program.info)

    @cached_property
    def labeled(self) -> Dataset:
        """Training images with labels."""
        return split(self._rest, LABELED_IMAGES)[0] if len(self._rest) > LABELED_IMAGES else self._rest

    @cached_property
    def unlabeled(self) -> Dataset:
        """Training images without labels, from a file that has none."""
        path = self.work / f"{self.checkpoint.name}-unlabeled.npz"
        chosen = split(self._rest, UNLABELED_IMAGES)[0]
        pixels = torch.cat([x * chosen.std + chosen.mean for x, _ in chosen.batches(BATCH_OF_FILE)])
        np.savez(path, images=pixels.clamp(0, 1).numpy())
        return self._open(path)

    @cached_property
    def original(self) -> np.ndarray:
        """Classes that the original predicts for the measured images, ``[N]``."""
        return np.concatenate(classify(self.program, self.measured, Reporter()))

    def compile(self, setting: str, column: str) -> Compiled:
        """Compile as the command line does; budgets of a column share their work, as those of a front do."""
        key = column, SETTINGS[setting].weights
        if key not in self._compilers:
            options = svitc.CompileOptions(weights=SETTINGS[setting].weights, **COLUMNS[column](self))
            self._compilers = {key: svitc.Compiler(self.program, options=options)}  # only the last one: it is large
        return self._compilers[key].compile(SETTINGS[setting].budget)

    def classes(self, file: bytes) -> np.ndarray:
        """Return the classes that an ONNX file predicts for the measured images, ``[N]``."""
        session = runtimes.session(file)
        batches = self.measured.batches(BATCH_IMAGES)
        return np.concatenate([top1(session.run(None, {backend.INPUT: x.numpy()})[0]) for x, _ in batches])


def measure(images: Images, setting: str, column: str) -> dict[str, Any]:
    """Compile once, and return what the tables show; ``error`` where svitc refuses."""
    start = time.perf_counter()
    try:
        done = images.compile(setting, column)
    except svitc.SvitcError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - start
    labels, before, after = images.measured.labels, images.original, images.classes(done.onnx)
    lost = int(((before == labels) & (after != labels)).sum())
    gained = int(((before != labels) & (after == labels)).sum())
    drop, interval = (lost - gained) / len(labels), list(paired(lost, gained, len(labels)))
    cell = {
        "original": float((before == labels).mean()),
        "images": len(labels),
        "drop": drop,
        "interval": interval,
        "agreement": float((before == after).mean()),
        "ratio": done.report["memory"]["ratio"],
        "policy": done.report["policy"].get("policy"),
        "verify": done.report["verify"]["status"],
        "prediction": None,
        "seconds": round(seconds, 1),
    }
    prediction = Prediction.of(done.report)
    if prediction is not None:
        cell["prediction"] = {**vars(prediction), "verdict": prediction.verdict(drop, interval)}
    return cell


def loss_text(cell: dict[str, Any] | None) -> str:
    """Return points lost, with their interval."""
    if cell is None or "error" in cell:
        return "-" if cell is None else "refused"
    low, high = (100 * value for value in cell["interval"])
    return f"{100 * cell['drop']:+.2f} ({low:+.2f} to {high:+.2f})"


def prediction_text(cell: dict[str, Any] | None) -> str:
    """Return points that were predicted to be lost, and whether they were."""
    if cell is None or cell.get("prediction") is None:
        return "-"
    prediction = cell["prediction"]
    if prediction["loss"] is None:
        return f"too small to tell: {prediction['verdict']}"
    text = f"{100 * prediction['loss']:.2f}"
    if prediction["interval"] is not None:
        text += " ({:.2f} to {:.2f})".format(*(100 * value for value in prediction["interval"]))
    return f"{text}: {prediction['verdict']}"


def seconds_text(cell: dict[str, Any] | None) -> str:
    """Return the seconds of a compilation."""
    return f"{cell['seconds']:.0f}" if cell is not None and "seconds" in cell else "-"


class Results:
    """Cells by checkpoint, setting and column, on disk after each.

    Args:
        path: The JSON file; the Markdown file lies beside it.
        on: What losses are measured on, ``test`` or ``train``.
        resume: Whether to keep the cells that are there, but those that were refused.
    """

    def __init__(self, path: Path, on: str, resume: bool) -> None:
        self.path, self.on = path, on
        rows = json.loads(path.read_text())["rows"] if resume and path.is_file() else []
        keys = ("checkpoint", "setting", "column")
        self.cells = {tuple(row[key] for key in keys): row["cell"] for row in rows if "error" not in row["cell"]}

    def add(self, key: tuple[str, str, str], cell: dict[str, Any]) -> None:
        """Add a cell, and write both files."""
        self.cells[key] = cell
        rows = [
            {"checkpoint": name, "setting": setting, "column": column, "cell": self.cells[name, setting, column]}
            for name in (SPIKFORMER, SDT, QKFORMER, DIGITS)
            for setting in SETTINGS
            for column in COLUMNS
            if (name, setting, column) in self.cells
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment(), "on": self.on, "rows": rows}
        self.path.write_text(json.dumps(record, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(self.markdown())

    def markdown(self) -> str:
        """Return all tables."""
        env = environment()
        packages = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
        images = "test images" if self.on == "test" else "held-out training images, which no compilation saw"
        lines = ["# No data, unlabeled and labeled images", ""]
        lines += [f"Points of top-1 lost on {images}, with their paired 95% intervals.", "", *self._summary()]
        for name in dict.fromkeys(key[0] for key in self.cells):
            lines += self._checkpoint(name)
        lines += [
            f"`{env['command']}`, Python {env['python']}, {packages}; {env['processor']}, {env['threads']} threads"
        ]
        return "\n".join(lines) + "\n"

    def _summary(self) -> list[str]:
        """Return the table of the largest losses, beside what they should be at most."""
        columns = (NO_DATA, UNLABELED, LABELED, UNIFORM)
        lines = ["Largest loss over all checkpoints (at most wanted):", "", _row("", *columns), _rule(len(columns))]
        for name, setting in SETTINGS.items():
            texts = []
            for column, limit in zip(columns, (setting.no_data, setting.unlabeled, None, None), strict=True):
                cells = [cell for key, cell in self.cells.items() if key[1:] == (name, column)]
                drops = [100 * cell["drop"] for cell in cells if "drop" in cell]
                text = f"{max(drops):+.2f}" if drops else "-"
                texts.append(text if limit is None else f"{text} ({limit})")
            lines.append(_row(name, *texts))
        return [*lines, ""]

    def _checkpoint(self, name: str) -> list[str]:
        cells = {key[1:]: cell for key, cell in self.cells.items() if key[0] == name}
        first = next((cell for cell in cells.values() if "original" in cell), None)
        about = f"Original: {first['original']:.2%} of {first['images']:,} images." if first else ""
        parts = (
            ("points lost", tuple(COLUMNS), loss_text),
            ("points predicted to be lost: within a factor of 2", PREDICTED, prediction_text),
            ("seconds", tuple(COLUMNS), seconds_text),
        )
        lines = [f"## {name}", "", about, ""]
        for title, columns, text in parts:
            lines += [_row(title, *columns), _rule(len(columns))]
            lines += [
                _row(setting, *(text(cells.get((setting, column))) for column in columns)) for setting in SETTINGS
            ]
            lines.append("")
        return lines


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def _rule(columns: int) -> str:
    return f"| --- |{' ---: |' * columns}"


def write_digits(work: Path) -> tuple[Path, Path]:
    """Write the demo's training and test images, as demo/make_data.py does, and return their files."""
    parts = runpy.run_path(str(DEMO / "digits.py"))["load_split"]()
    train, test = work / "digits-train.npz", work / "digits-test.npz"
    np.savez(train, images=parts.train_images.numpy(), labels=parts.train_labels.numpy())
    np.savez(test, images=parts.test_images.numpy(), labels=parts.test_labels.numpy())
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spikformer", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--on", choices=("test", "train"), default="test", help="what losses are measured on")
    parser.add_argument("--only", nargs="*", choices=(SPIKFORMER, SDT, QKFORMER, DIGITS), help="checkpoints")
    parser.add_argument("--settings", nargs="*", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--columns", nargs="*", choices=tuple(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--limit", type=int, help="of the images to measure on; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep finished cells")
    parser.add_argument("--work", type=Path, default=Path("no-data-work"))
    parser.add_argument("--out", type=Path, help="by default results/no_data.json, or no_data-train.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    cifar10 = (args.train, args.test)
    checkpoints = (
        Checkpoint(SPIKFORMER, args.spikformer, *cifar10),
        Checkpoint(SDT, HERE / "models" / f"{SDT}.pt", *cifar10),
        Checkpoint(QKFORMER, HERE / "models" / f"{QKFORMER}.pt", *cifar10),
        Checkpoint(DIGITS, DEMO / "digits.pt", *write_digits(args.work)),
    )
    default = RESULTS / ("no_data.json" if args.on == "test" else "no_data-train.json")
    results = Results(args.out or default, args.on, args.resume)
    for checkpoint in checkpoints:
        keys = [(checkpoint.name, setting, column) for column in args.columns for setting in args.settings]
        todo = [key for key in keys if key not in results.cells]
        if not todo or (args.only and checkpoint.name not in args.only):
            continue
        images = Images(checkpoint, args.work, args.on == "train", args.limit)
        for key in todo:
            results.add(key, measure(images, *key[1:]))
            print(*key, json.dumps(results.cells[key]), flush=True)
    print(results.markdown())


if __name__ == "__main__":
    main()
