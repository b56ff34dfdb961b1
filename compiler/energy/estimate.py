"""Energy estimate: the energy of one image, layer by layer, from the real spikes on images and a table of energies.

Operations are counted on images (operation_counts.py), memory traffic follows from the graph (memory_traffic.py), and a
table gives the energy of each (cost_table.py). The network is measured as it is deployed: batch norms are folded, and
what does not change over time is computed once. The estimate covers arithmetic and memory; control, clocks, leakage and
the network on the chip are left out, as is usual for such figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain

import torch
from torch import fx

from svitc.data.inputs import Data, inputs_of
from svitc.energy.cost_table import Table, load_table
from svitc.energy.memory_traffic import REAL, Traffic, activations, currents, membranes, weights
from svitc.energy.operation_counts import Counting, Work
from svitc.errors import UsageError
from svitc.ir import ops
from svitc.ir.axes import Kind
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage, required_program
from svitc.passes.pipelines import inference_passes
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

BATCH_IMAGES = 32


@dataclass(frozen=True)
class Row:
    """One layer, neuron or function, for one image over all time steps.

    Attributes:
        name: path of the layer, or scope and name of the function.
        kind: class or function name.
        calls: how often the network calls it.
        reads: kind of the input of its synapses: ``spikes``, ``counts``, ``fixed``, ``real``; None where it has none.
        rate: mean of a layer's input, if that is spikes or counts, or of a neuron's output in a time step: the firing
            rate.
        nonzero: share of those values that are not 0.
        values: number of those values.
        ac: accumulates that spikes cause.
        int_ac: accumulates that counts cause, v for a value v.
        mac: multiply-accumulates.
        dense: multiply-accumulates of the synapses if no value were left out.
        operations: all operations, those of the synapses included, by name: ``float32.add``, ``int8.mult``, ...
        weight_bits: bits in which each weight is stored, 0 without weights.
        weight_bytes, activation_bytes, membrane_bytes: bytes moved; weights are read once for each call.
        compute_pj, weight_pj, activation_pj, membrane_pj: energy, pJ.
        each_step: whether it is computed at each time step; otherwise once, before what changes over time.
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
    dense: float
    operations: dict[str, float]
    weight_bits: int
    weight_bytes: int
    activation_bytes: float
    membrane_bytes: float
    compute_pj: float
    weight_pj: float
    activation_pj: float
    membrane_pj: float
    each_step: bool

    @property
    def memory_pj(self) -> float:
        """Return the energy of all memory accesses, pJ."""
        return self.weight_pj + self.activation_pj + self.membrane_pj

    @property
    def pj(self) -> float:
        """Return the energy of operations and memory accesses, pJ."""
        return self.compute_pj + self.memory_pj

    def to_json(self) -> JsonDict:
        """Return the row as JSON values, sums included."""
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
    """Energy of one image.

    Attributes:
        images: number of images that the figures are the mean of.
        weights: ``fp32``, or ``int8`` for an integer network, ``int8/4/2`` with all its weight widths.
        weights_in: name of the memory that holds all weights.
        rows: layers, neurons and functions, in the order of the network.
        table: the energies of operations and memory accesses.
        time_steps: number of time steps.
        connection_sparsity: share of the weights that are 0.
    """

    images: int
    weights: str
    weights_in: str
    rows: tuple[Row, ...]
    table: Table
    time_steps: int = 1
    connection_sparsity: float = 0.0

    def totals(self) -> dict[str, float]:
        """Return sums over the rows, per image, by the names of the row's fields.

        ``rate`` is the mean number of spikes in a time step, over all neurons; ``once_pj`` the energy of what is
        computed once for all time steps.
        """
        neurons = [row for row in self.rows if row.reads is None and row.rate is not None]
        emitted = sum(row.values for row in neurons)
        spikes = sum((row.rate or 0.0) * row.values for row in neurons)
        sums = {name: float(sum(getattr(row, name) for row in self.rows)) for name in SUMMED}
        once = float(sum(row.pj for row in self.rows if not row.each_step))
        return {"rate": spikes / emitted if emitted else 0.0, **sums, "once_pj": once}

    def to_json(self) -> JsonDict:
        """Return the figures as JSON values: what ``svitc energy --json`` prints."""
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
    data: Data | Iterable[object],
    table: Table | None = None,
    images: int | None = None,
    reporter: Reporter | None = None,
) -> Energy:
    """Measure the energy of one image, on average over images.

    Args:
        program: a program that can be trained (its form for inference is measured), or a quantized one; not changed.
        data: images, one batch, or batches: inputs ``[N, C, H, W]`` or ``[T, N, C, H, W]``, alone or with labels.
        table: energies of operations and accesses; by default Horowitz 2014.
        images: number of images to measure; by default all.
        reporter: shows the progress and the time taken.

    Raises:
        UsageError: there are no images.
        InputError: images of another shape than the program takes.
    """
    if images is not None and images < 1:
        raise UsageError(f"cannot measure energy on {images} images: at least one is needed")
    total = len(data) if hasattr(data, "batches") else None  # type: ignore[arg-type]
    if images is not None:
        total = images if total is None else min(images, total)
    seen = 0
    with (reporter or Reporter()).stage("energy", total) as step, torch.no_grad():
        network = deployed(required_program(program))
        network.module.eval()
        counting = Counting(network)
        for x in _inputs(network, data, images):
            network.reset()
            counting.run(x)
            step(seen := seen + x.shape[network.input.batch_dim])
        network.reset()
        if not seen:
            raise UsageError("there are no images to measure energy on")
        return _priced(network, counting, table or load_table(), seen)


def deployed(program: Program) -> Program:
    """Return the form in which a program is deployed: with batch norms folded. A quantized program already is."""
    if program.stage >= Stage.INFERENCE:
        return program
    twin = program.copy()
    return Pipeline(inference_passes())(twin)


def saving(ours: Energy, theirs: Energy) -> dict[str, float | None]:
    """Return the share of another network's energy that ours saves.

    Returns:
        ``compute``, ``memory`` and ``total``, each None where the other uses none; and ``total_same_memory``, the total
        if the other's weights were read from the memory that holds ours: without the step of the table between SRAM and
        DRAM.
    """
    a, b = ours.totals(), theirs.totals()
    names = {"compute": "compute_pj", "memory": "memory_pj", "total": "pj"}
    shares = {name: 1 - a[key] / b[key] if b[key] else None for name, key in names.items()}
    comparable = b["pj"]
    if a["weight_bytes"]:
        comparable += b["weight_bytes"] * a["weight_pj"] / a["weight_bytes"] - b["weight_pj"]
    return {**shares, "total_same_memory": 1 - a["pj"] / comparable if comparable else None}


def energy_after(totals: Mapping[str, float], steps: float, of: int) -> float:
    """Return the energy of an image in pJ where inference stops after a mean number of time steps.

    Args:
        totals: ``Energy.totals`` for all steps.
        steps: mean number of steps that are run.
        of: number of all steps.
    """
    return totals["once_pj"] + (totals["pj"] - totals["once_pj"]) * steps / of


def _inputs(network: Program, data: object, images: int | None) -> Iterator[torch.Tensor]:
    """Yield inputs in batches, up to a number of images."""
    axis, remaining = network.input.batch_dim, images
    for x in inputs_of(network, data, network.input.at_once(BATCH_IMAGES)):
        if remaining is not None:
            x = x.narrow(axis, 0, min(remaining, x.shape[axis]))
            remaining -= x.shape[axis]
        yield x
        if remaining == 0:
            return


def _changing(network: Program) -> set[fx.Node]:
    """Return the nodes whose values may differ between time steps, and those that are computed from them."""
    changing: set[fx.Node] = set()
    for node in network.graph.nodes:
        timed = node.op != "output" and any(axis.kind == Kind.TIME for dim in network.type_of(node) for axis in dim)
        if timed or not changing.isdisjoint(node.all_input_nodes):
            changing.add(node)
    return changing


def _priced(network: Program, counting: Counting, table: Table, images: int) -> Energy:
    """Return the energy of one image from counts over ``images`` images."""
    passing, changing = currents(network), _changing(network)
    accesses: dict[int, tuple[Work, list[Traffic], list[Traffic]]] = {}
    stored: dict[int, tuple[int, int]] = {}
    repeated: set[int] = set()
    for node, work in counting.work.items():
        _, activation_traffic, membrane_traffic = accesses.setdefault(id(work), (work, [], []))
        activation_traffic += activations(network, node, counting.ranges, passing)
        membrane_traffic += membranes(network, node)
        stored[id(work)] = weights(network, node)
        if node in changing:
            repeated.add(id(work))
    all_weight_bytes = sum(layer_bytes for _, layer_bytes in stored.values())

    def moving(traffic: Iterable[Traffic]) -> float:
        return sum(table.moving(access.moved, access.held) for access in traffic)

    rows = []
    for key, (work, activation_traffic, membrane_traffic) in accesses.items():
        weight_bits, layer_bytes = stored[key]
        operations = {name: count / images for name, count in sorted(work.operations.items())}
        has_rate = work.values and work.reads not in ("fixed", "real")
        row = Row(
            work.name,
            work.kind,
            work.calls,
            work.reads,
            work.total / work.values if has_rate else None,
            work.nonzero / work.values if work.values else None,
            work.values / images,
            work.ac / images,
            work.int_ac / images,
            work.mac / images,
            work.dense / images,
            operations,
            weight_bits,
            layer_bytes * work.calls,
            sum(access.moved for access in activation_traffic),
            sum(access.moved for access in membrane_traffic),
            sum(table.operations[name] * count for name, count in operations.items()),
            table.moving(layer_bytes * work.calls, all_weight_bytes),
            moving(activation_traffic),
            moving(membrane_traffic),
            key in repeated,
        )
        if any(chain((row.pj, row.activation_bytes), operations.values())):
            rows.append(row)
    widths = sorted({row.weight_bits for row in rows if 0 < row.weight_bits < REAL}, reverse=True)
    kind = f"int{'/'.join(map(str, widths))}" if widths else "fp32"
    held = table.holding(all_weight_bytes).name
    return Energy(images, kind, held, tuple(rows), table, _time_steps(network), _sparsity(network))


def _time_steps(network: Program) -> int:
    """Return the number of time steps, 1 for a network without a time axis."""
    dims = (dim for node in network.graph.nodes if node.op != "output" for dim in network.type_of(node))
    return max((axis.size for dim in dims for axis in dim if axis.kind == Kind.TIME), default=1)


def _sparsity(network: Program) -> float:
    """Return the share of the weights of layers that are 0."""
    modules = {str(node.target): network.module_of(node) for node in network.graph.nodes}
    kernels = [module.weight for module in modules.values() if module is not None and ops.is_projection(module)]
    total = sum(kernel.numel() for kernel in kernels)  # type: ignore[operator]
    nonzero = sum(int(kernel.count_nonzero()) for kernel in kernels)  # type: ignore[operator]
    return 1 - nonzero / total if total else 0.0
