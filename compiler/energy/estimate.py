"""Energy: what one image costs, layer by layer, from what really fires on given images and a table of energies.

Operations are counted on images (energy_count.py), memory traffic follows from the graph (energy_memory.py), and a
table says what each costs (energy_table.py). The network that is looked at is the one that is deployed: batch norms
folded, what does not change over time computed once. It is an estimate of arithmetic and memory; control, clocks,
leakage and the network on the chip are left out, as in all figures of this kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch

from svitc.data.inputs import Data
from svitc.energy.cost_table import Table, load_table
from svitc.energy.memory_traffic import REAL, Traffic, activations, currents, membranes, weights
from svitc.energy.operation_counts import Counting, Work
from svitc.errors import InputError, UsageError
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes.pipelines import inference_passes
from svitc.support.reporter import Reporter

BATCH = 32


@dataclass(frozen=True)
class Row:
    """One layer, neuron or function, for one image over all time steps.

    Attributes:
        name: path of the layer, or scope and name of the function.
        kind: class or function name.
        calls: how often the network calls it.
        reads: what its synapses read: ``spikes``, ``counts``, ``fixed``, ``real``; None where it has none.
        rate: mean of what a layer reads, if spikes or counts, or of what a neuron emits in a step: the firing rate.
        nonzero: share of those values that are not 0.
        values: how many they are.
        ac: accumulates that spikes cause.
        int_ac: accumulates that counts cause, v for a value v.
        mac: multiply-accumulates.
        operations: all operations, those of the synapses included, by what they are: ``float32.add``, ``int8.mult``, …
        weight_bits: bits that each weight is stored in, 0 without weights.
        weight_bytes, activation_bytes, membrane_bytes: moved; weights are read once for each call.
        compute_pj, weight_pj, activation_pj, membrane_pj: energy, pJ.
    """

    name: str
    kind: str
    calls: int
    reads: str | None
    rate: float | None
    nonzero: float | None
    values: float
    ac: float
    int_ac: float
    mac: float
    operations: dict[str, float]
    weight_bits: int
    weight_bytes: int
    activation_bytes: float
    membrane_bytes: float
    compute_pj: float
    weight_pj: float
    activation_pj: float
    membrane_pj: float

    @property
    def memory_pj(self) -> float:
        return self.weight_pj + self.activation_pj + self.membrane_pj

    @property
    def pj(self) -> float:
        return self.compute_pj + self.memory_pj

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory_pj": self.memory_pj, "pj": self.pj}


SUMMED = (
    "ac",
    "int_ac",
    "mac",
    "weight_bytes",
    "activation_bytes",
    "membrane_bytes",
    "compute_pj",
    "weight_pj",
    "activation_pj",
    "membrane_pj",
    "memory_pj",
    "pj",
)


@dataclass(frozen=True)
class Energy:
    """What one image costs.

    Attributes:
        images: how many it is the mean of.
        weights: ``fp32``, or ``int8`` for a network on whole numbers, ``int8/4/2`` with all the widths in it.
        weights_in: name of the memory that all weights fit in.
        rows: in the order of the network.
        table: what the energies are from.
    """

    images: int
    weights: str
    weights_in: str
    rows: tuple[Row, ...]
    table: Table

    def totals(self) -> dict[str, float]:
        """Sums over the rows, per image: operations, bytes and pJ, by the rows' names; ``rate``, mean spikes a step."""
        neurons = [row for row in self.rows if row.reads is None and row.rate is not None]
        emitted = sum(row.values for row in neurons)
        spikes = sum((row.rate or 0.0) * row.values for row in neurons)
        found = {name: float(sum(getattr(row, name) for row in self.rows)) for name in SUMMED}
        return {"rate": spikes / emitted if emitted else 0.0, **found}

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "weights": self.weights,
            "weights_in": self.weights_in,
            "totals": self.totals(),
            "layers": [row.to_json() for row in self.rows],
            "table": self.table.to_json(),
        }


def energy(
    program: Program,
    data: Data | Iterable[Any],
    table: Table | None = None,
    images: int | None = None,
    reporter: Reporter | None = None,
) -> Energy:
    """Measure what one image costs, on average over images.

    Args:
        program: one that trains (its form for inference is measured), or a quantized one; not changed.
        data: labelled images, or batches: inputs ``[N, C, H, W]`` or ``[T, N, C, H, W]``, alone or with labels.
        table: what operations and accesses cost; by default Horowitz 2014.
        images: look at so many of them; by default at all.
        reporter: told how many images were seen, and how long it took.

    Raises:
        UsageError: there are no images.
        InputError: images of another shape than the program takes.
    """
    if images is not None and images < 1:
        raise UsageError(f"{images} images are none to measure on")
    batches = getattr(data, "batches", None)
    total = len(data) if batches is not None else None  # type: ignore[arg-type]
    if images is not None:
        total = images if total is None else min(images, total)
    seen = 0
    with (reporter or Reporter()).stage("energy", total) as step, torch.no_grad():
        network = deployed(program)
        network.module.eval()
        counting = Counting(network)
        for x in _inputs(network, data if batches is None else batches(network.input.at_once(BATCH)), images):
            network.reset()
            counting.run(x)
            step(seen := seen + x.shape[network.input.batch_dim])
        network.reset()
        if not seen:
            raise UsageError("there are no images to measure energy on")
        return _priced(network, counting, table or load_table(), seen)


def deployed(program: Program) -> Program:
    """The form in which a program is deployed: batch norms folded. A quantized program is that already."""
    if program.stage >= Stage.INFERENCE:
        return program
    twin = program.copy()
    return Pipeline(inference_passes())(twin)


def saving(ours: Energy, theirs: Energy) -> dict[str, float | None]:
    """Share of another network's energy that ours saves: ``compute``, ``memory``, ``total``; None of nothing.

    ``total_same_memory`` is what it would be if the other's weights were read from the memory that ours lie in: without
    the step of the table between SRAM and DRAM.
    """
    a, b = ours.totals(), theirs.totals()
    names = {"compute": "compute_pj", "memory": "memory_pj", "total": "pj"}
    found = {name: 1 - a[key] / b[key] if b[key] else None for name, key in names.items()}
    like = b["pj"]
    if a["weight_bytes"]:
        like += b["weight_bytes"] * a["weight_pj"] / a["weight_bytes"] - b["weight_pj"]
    return {**found, "total_same_memory": 1 - a["pj"] / like if like else None}


def _inputs(network: Program, batches: Any, images: int | None) -> Iterator[torch.Tensor]:
    """Batches without labels, and no more images than are wanted."""
    spec = network.input
    left = images
    for batch in batches:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if x.ndim <= spec.batch_dim or tuple(x.shape) != spec.batched(x.shape[spec.batch_dim]):
            raise InputError(f"images of shape {list(x.shape)}, but the model takes {list(spec.shape)} and a batch")
        if left is not None:
            x = x.narrow(spec.batch_dim, 0, min(left, x.shape[spec.batch_dim]))
            left -= x.shape[spec.batch_dim]
        yield x
        if left == 0:
            return


def _priced(network: Program, counting: Counting, table: Table, images: int) -> Energy:
    """Rows with energies, from counts over so many images."""
    passing = currents(network)
    held: dict[int, tuple[Work, list[Traffic], list[Traffic]]] = {}
    stored: dict[int, tuple[int, int]] = {}
    for node, work in counting.work.items():
        _, moved, kept = held.setdefault(id(work), (work, [], []))
        moved += activations(network, node, counting.grids, passing)
        kept += membranes(network, node)
        stored[id(work)] = weights(network, node)
    size = sum(each for _, each in stored.values())

    def moving(traffic: Iterable[Traffic]) -> float:
        return sum(table.moving(each.moved, each.held) for each in traffic)

    rows = []
    for key, (work, moved, kept) in held.items():
        width, each = stored[key]
        operations = {name: count / images for name, count in sorted(work.operations.items())}
        known = work.values and work.reads not in ("fixed", "real")
        row = Row(
            work.name,
            work.kind,
            work.calls,
            work.reads,
            work.total / work.values if known else None,
            work.nonzero / work.values if work.values else None,
            work.values / images,
            work.ac / images,
            work.int_ac / images,
            work.mac / images,
            operations,
            width,
            each * work.calls,
            sum(one.moved for one in moved),
            sum(one.moved for one in kept),
            sum(table.operations[name] * count for name, count in operations.items()),
            table.moving(each * work.calls, size),
            moving(moved),
            moving(kept),
        )
        if any(chain((row.pj, row.activation_bytes), operations.values())):
            rows.append(row)
    widths = sorted({r.weight_bits for r in rows if 0 < r.weight_bits < REAL}, reverse=True)
    kind = f"int{'/'.join(map(str, widths))}" if widths else "fp32"
    return Energy(images, kind, table.holding(size).name, tuple(rows), table)
