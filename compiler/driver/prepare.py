"""Preparation: the work that all budgets of one program share, each part done once, on first use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from svitc import onnx as backend
from svitc.analysis.layer_stats import macs
from svitc.data.dataset import Dataset
from svitc.data.inputs import Data
from svitc.driver.agreement import log_probabilities
from svitc.driver.lossless_check import check_removal
from svitc.driver.options import CompileOptions, PreparationOptions
from svitc.driver.report_sections import classify, energy_of
from svitc.driver.synthetic_data import synthetic_data
from svitc.driver.weight_types import WeightTypes
from svitc.energy.estimate import Energy
from svitc.errors import InputError
from svitc.evaluation.promise import FEWEST_CHOOSING_IMAGES, split_images
from svitc.evaluation.store import Store, fingerprint
from svitc.evaluation.sweep import Sweep, SweepSettings, open_sweep
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.onnx.export import export, export_step
from svitc.passes.canonical.merge_conv_chain import reparameterize
from svitc.passes.canonical.remove_constant_channels import remove_constant_channels
from svitc.passes.pipelines import inference_passes
from svitc.planning.cost import Cost, byte_cost, parameter_cost
from svitc.support import human
from svitc.support.distributed import current
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

SYNTHETIC, PART, WHOLE = "synthetic", "part", "whole"  # where the images that plans are chosen on come from
MISSING_IMAGES = "the plan was made with images, which its refit looks at"
SAME_IMAGES = "Give the same --data or --train-data."
EVALUATION_MACS = 17e12  # multiply-accumulates of all evaluations on synthetic images: some minutes on two cores


@dataclass(frozen=True)
class Prepared:
    """A program after its lossless simplifications; plans are made for it.

    Attributes:
        options: which simplifications were applied.
        program: the result; must not be changed.
        reparam: the report's section on merged convolutions.
        removed: the report's section on removed channels.
    """

    options: PreparationOptions
    program: Program
    reparam: JsonDict
    removed: JsonDict


@dataclass(frozen=True)
class Costs:
    """The costs of plans.

    Attributes:
        bytes: cost in bytes of the exported file's weights.
        parameters: cost in parameters of the program.
        refused: layer -> why a pass that makes the network smaller did not change it.
    """

    bytes: Cost
    parameters: Cost
    refused: dict[str, str]

    def of(self, what: str) -> Cost:
        """Return the cost in ``bytes`` or ``parameters``."""
        return self.bytes if what == "bytes" else self.parameters


def prepare(program: Program, options: PreparationOptions, reporter: Reporter) -> Prepared:
    """Apply the lossless simplifications to a copy of a program."""
    with reporter.stage("analyse"):
        merged, rows = reparameterize(program) if options.reparam == "auto" else (program, {})
        clean, removed = remove_constant_channels(merged) if options.remove_dead_channels == "auto" else (merged, {})
        check_removal(merged, clean, removed)
        return Prepared(options, clean, rows, {key: value for key, value in removed.items() if key != "seconds"})


class Workspace:
    """The results that all budgets of one program share, computed on first use.

    Args:
        program: the original; not changed.
        options: how to compile.
        reporter: told about stages, progress and decisions.

    Attributes:
        original_bytes: bytes of the weights in the original's ONNX file.
        original_nodes: number of nodes in that file.
    """

    def __init__(self, program: Program, options: CompileOptions, reporter: Reporter) -> None:
        self.program, self.options, self.reporter = program, options, reporter
        self._prepared: dict[PreparationOptions, Prepared] = {}
        self._types: dict[tuple[PreparationOptions, str, tuple[str, ...]], WeightTypes] = {}
        self._costs: dict[tuple[PreparationOptions, str, tuple[str, ...]], Costs] = {}
        self._sweeps: dict[tuple[PreparationOptions, str], Sweep] = {}
        self._synthetic: Dataset | None = None
        self._parts: tuple[Dataset, Dataset] | None = None
        self._classes: dict[int, list[np.ndarray]] = {}  # by the number of images: of all, or of the confirming part
        self._logs: dict[int, list[np.ndarray]] = {}
        self._energy: Energy | None = None
        with reporter.stage("export original"):
            original = backend.read_structure(self.export(program))
            self.original_bytes, self.original_nodes = backend.weight_bytes(original), backend.node_count(original)

    def export(self, program: Program, per_step: bool | None = None) -> bytes:
        """Return the ONNX file of a program, for the target and with the weight types of the options.

        Args:
            program: the program.
            per_step: whether class scores are left as they are at each time step; None to do as the options say.
        """
        options = self.options
        per_step = options.per_step if per_step is None else per_step
        return export(program, options.target, options.min_weight_bits, functions=options.functions, per_step=per_step)

    def export_step(self, program: Program) -> bytes:
        """Return the streaming ONNX file of a program, for the target and with the weight types of the options."""
        options = self.options
        target = backend.target_of(options.target, options.min_weight_bits, options.functions)
        return export_step(program, target, options.per_step)

    def prepared(self, options: PreparationOptions | None = None) -> Prepared:
        """Return the program that plans are made for.

        Args:
            options: simplifications to apply; by default those of the compile options.
        """
        options = options or self.options.preparation
        if options not in self._prepared:
            self._prepared[options] = prepare(self.program, options, self.reporter)
        return self._prepared[options]

    def weight_types(self, prepared: Prepared, weights: str, exclude: tuple[str, ...]) -> WeightTypes:
        """Return the bits that each layer may have, for any weight type but ``fp32``."""
        key = prepared.options, weights, exclude
        if key not in self._types:
            target, min_weight_bits = self.options.target, self.options.min_weight_bits
            self._types[key] = WeightTypes(prepared.program, weights, exclude, target, min_weight_bits)
        return self._types[key]

    def costs(self, prepared: Prepared, weights: str, exclude: tuple[str, ...]) -> Costs:
        """Return the costs of plans with weights of a type."""
        key = prepared.options, weights, exclude
        if key not in self._costs:
            with self.reporter.stage("analyse"):
                self._costs[key] = self._count(prepared.program, prepared, weights, exclude)
        return self._costs[key]

    def _count(self, program: Program, prepared: Prepared, weights: str, exclude: tuple[str, ...]) -> Costs:
        narrow: dict[str, int] = {}
        if weights == "fp32":
            inference = program.copy()
            folding = Pipeline(inference_passes())
            folding(inference)
            refused = folding.refused
            stored = self.original_bytes if program is self.program else backend.weight_bytes(self.export(program))
        else:
            types = self.weight_types(prepared, weights, exclude)
            inference, refused, narrow = types.inference, types.refused, types.same
            stored = backend.weight_bytes(self.export(inference))
        cost = byte_cost(program, inference, stored)
        if weights == "fp32":
            inference.release()
        target = backend.target_of(self.options.target, self.options.min_weight_bits)
        cost.bits, cost.narrowest = narrow, target.narrowest
        return Costs(cost, parameter_cost(program), refused)

    @property
    def source(self) -> str:
        """Where the images come from that plans are chosen on.

        ``SYNTHETIC``; ``PART``, the choosing part of the only data set; or ``WHOLE``, a data set of their own.
        """
        if self.options.synthetic:
            return SYNTHETIC
        return PART if self.options.train_data is None and isinstance(self.options.data, Dataset) else WHOLE

    def parts(self) -> tuple[Dataset, Dataset]:
        """Return the choosing and the confirming part of the data set.

        Raises:
            InputError: there are too few images for both.
        """
        if self._parts is None:
            data = self.options.data if isinstance(self.options.data, Dataset) else self.options.train_data
            if data is None:
                raise InputError(MISSING_IMAGES, hint=SAME_IMAGES)
            if len(data) <= FEWEST_CHOOSING_IMAGES:
                raise InputError(
                    f"{data.name} has {human.counted(len(data), 'image')}, too few to choose a plan on and to "
                    "confirm it on others",
                    hint="Give more.",
                )
            chosen, others = split_images(len(data), self.options.seed)
            self._parts = data.subset(chosen), data.subset(others)
        return self._parts

    def reported(self, source: str) -> Data | None:
        """Return the images that results are reported on: those of ``data`` that no plan was chosen on.

        Args:
            source: where the images came from that the plan was chosen on.
        """
        return self.parts()[1] if source == PART and self.options.data is not None else self.options.data

    def sweep(self, prepared: Prepared | None = None, source: str | None = None) -> Sweep:
        """Return the sweep, which measures plans; images are read, or drawn, on first use.

        Args:
            prepared: the program that plans are made for.
            source: where the images come from; by default ``source``.

        Raises:
            InputError: there are no images to choose plans on.
        """
        prepared = prepared or self.prepared()
        key = prepared.options, source or self.source
        if key not in self._sweeps:
            self._sweeps[key] = self._open_sweep(prepared.program, key[1])
        return self._sweeps[key]

    @property
    def evaluations(self) -> int | None:
        """The most plans to measure before one is chosen, so that synthetic images take minutes; None for no limit."""
        if not self.options.synthetic:
            return None
        return int(EVALUATION_MACS / (len(self.synthetic()) // 2 * max(1, macs(self.program))))

    @property
    def drawn(self) -> Dataset | None:
        """The synthetic images, if they were needed so far."""
        return self._synthetic

    def synthetic(self) -> Dataset:
        """Return the synthetic images, which are drawn on first use."""
        if self._synthetic is None:
            self._synthetic = synthetic_data(self.program, self.options.seed, self.reporter)
        return self._synthetic

    @property
    def opened_sweep(self) -> Sweep | None:
        """The sweep, if any plan was measured so far."""
        return self._sweeps.get((self.options.preparation, self.source))

    def _open_sweep(self, program: Program, source: str) -> Sweep:
        options, synthetic = self.options, source == SYNTHETIC
        data = self.synthetic() if synthetic else self.parts()[0] if source == PART else options.choosing
        if not isinstance(data, Dataset):
            raise InputError(MISSING_IMAGES, hint=SAME_IMAGES)
        with self.reporter.stage("read images"):
            subject = [data.fingerprint(), options.sweep_images, options.calibration_images, options.seed]
            if options.metric is not None:
                subject.append(f"{options.metric.__module__}:{getattr(options.metric, '__qualname__', '')}")
            path = options.sweep_file if current().is_writer else None
            store = Store(path, fingerprint(program, *subject), options.resume)
        seen = data is options.data
        images = min(options.sweep_images, len(data) // 2) if synthetic else options.sweep_images
        settings = SweepSettings(images, options.calibration_images, options.seed, seen, options.metric)
        sweep = open_sweep(program, data, store, settings, self.reporter)
        if synthetic:
            sweep.remarks[:0] = data.notes
        return sweep

    def original_classes(self, data: Data) -> list[np.ndarray]:
        """Return the classes that the original predicts for ``data`` or its confirming part, batch by batch."""
        if len(data) not in self._classes:
            logs = self._logs.get(len(data))
            classes = [log.argmax(axis=-1) for log in logs] if logs else classify(self.program, data, self.reporter)
            self._classes[len(data)] = classes
        return self._classes[len(data)]

    def original_log_probabilities(self, data: Data) -> list[np.ndarray]:
        """Return the log-probabilities of the original for ``data`` or its confirming part, batch by batch."""
        if len(data) not in self._logs:
            self._logs[len(data)] = log_probabilities(self.program, data, self.reporter)
        return self._logs[len(data)]

    def original_energy(self) -> Energy | None:
        """Return the energy of the original for one image; None unless there is a ``Dataset``."""
        if self._energy is None:
            self._energy = energy_of(self.program, self.options.data, self.options.seed, self.reporter)
        return self._energy


__all__ = ["PART", "SYNTHETIC", "WHOLE", "Costs", "Prepared", "Workspace", "prepare"]
