"""The quantized ANN that has the same layers and weights: one step, activations of several bits. Does it take less?

The twin follows Z. Yan et al., "Reconsidering the energy efficiency of spiking neural networks", arXiv 2409.08290: a
spiking network of T steps is compared with a network of the same topology whose activations are numbers of 8 bits, or
of ceil(log2(T + 1)), as many as a count of T spikes needs. Every synapse of the twin is a multiply-accumulate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from svitc.energy.cost_table import Table
from svitc.energy.estimate import Energy, Row
from svitc.energy.memory_traffic import REAL
from svitc.support import human
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class Twin:
    """Energy of one image in the ANN twin.

    Attributes:
        activation_bits: bits of an activation.
        compute_pj, weight_pj, activation_pj: energy, pJ.
        activation_bytes: bytes of activations that are moved.
    """

    activation_bits: int
    compute_pj: float
    weight_pj: float
    activation_pj: float
    activation_bytes: float

    @property
    def pj(self) -> float:
        """Return the energy of operations and memory accesses, pJ."""
        return self.compute_pj + self.weight_pj + self.activation_pj


def count_bits(steps: int) -> int:
    """Return the bits of a number of spikes in T steps: ceil(log2(T + 1)), arXiv 2409.08290, abstract."""
    return max(1, math.ceil(math.log2(steps + 1)))


def accumulate_pj(row: Row, table: Table) -> float:
    """Return the energy of an accumulate in a layer, pJ."""
    return table.operations["float32.add" if row.weight_bits in (0, REAL) else "int32.add"]


def multiply_pj(row: Row, table: Table) -> float:
    """Return the energy of the twin's multiply-accumulate in a layer, pJ: int8 products for each byte of a weight."""
    if row.weight_bits in (0, REAL):
        return table.operations["float32.mult"] + table.operations["float32.add"]
    return math.ceil(row.weight_bits / 8) * (table.operations["int8.mult"] + table.operations["int32.add"])


def twin(energy: Energy, activation_bits: int) -> Twin:
    """Return the energy of the ANN twin of a measured network.

    Its weights are those of the network, in the same memory. A neuron becomes a multiplication and an addition, which
    bring a sum to the grid of the activations; each activation is written once and read once by each layer. All else
    (additions of streams, pools) is as in one time step of the network.

    Args:
        energy: of the spiking network.
        activation_bits: bits of an activation.
    """
    table, steps = energy.table, energy.time_steps
    scaling = table.operations["float32.mult"] + table.operations["float32.add"]
    compute = moved = moved_bytes = 0.0
    for row in energy.rows:
        share = 1 / steps if row.each_step else 1.0
        nbytes = row.values * share * activation_bits / 8
        if row.reads is not None:
            compute += row.dense * share * multiply_pj(row, table)
        elif row.rate is not None:
            compute += row.values * share * scaling
        else:
            compute += row.compute_pj * share
        kept = row.reads is None and row.rate is None  # values between layers, as in one step of the network
        moved += row.activation_pj * share if kept else table.moving(nbytes, nbytes)
        moved_bytes += row.activation_bytes * share if kept else nbytes
    return Twin(activation_bits, compute, sum(row.weight_pj for row in energy.rows), moved, moved_bytes)


def break_even(row: Row, energy: Energy) -> float | None:
    """Return the firing rate at which a layer's accumulates cost as much as the twin's multiply-accumulates.

    That is E_MAC / (T E_AC) spikes of an input in a time step, without memory, which arXiv 2409.08290 counts as well;
    at a border a spike reaches fewer synapses, and the rate may be higher. Above 1 these spikes always win.

    Returns:
        the rate; None for a layer that reads no spikes.
    """
    if row.reads not in ("spikes", "counts") or not row.dense:
        return None
    share = 1 / energy.time_steps if row.each_step else 1.0
    events = row.ac + row.int_ac
    for_each_rate = events / row.rate if row.rate and events else row.dense
    return row.dense * share * multiply_pj(row, energy.table) / (for_each_rate * accumulate_pj(row, energy.table))


def addressing_pj(energy: Energy) -> float:
    """Return what it takes to find the synapses of spikes, pJ: it is part of no total.

    E. Lemaire et al., "An analytical estimation of spiking neural networks energy efficiency", arXiv 2210.13107: an
    addition for each accumulate, and in a convolution two multiply-accumulates for each spike.
    """
    table, found = energy.table, 0.0
    for row in energy.rows:
        if row.reads in ("spikes", "counts"):
            found += (row.ac + row.int_ac) * table.operations["int32.add"]
            spikes = (row.rate or 0.0) * row.values if row.kind.endswith(("Conv1d", "Conv2d")) else 0.0
            found += 2 * spikes * (table.operations["int32.mult"] + table.operations["int32.add"])
    return found


def network_break_even(energy: Energy, other: Twin) -> float | None:
    """Return the mean firing rate at which network and twin take as much, with all rates scaled alike.

    Only accumulates follow the rates. None where what is left without a spike takes more than the twin.
    """
    totals = energy.totals()
    events = sum(
        (row.ac + row.int_ac) * accumulate_pj(row, energy.table)
        for row in energy.rows
        if row.reads in ("spikes", "counts")
    )
    left = other.pj - (totals["pj"] - events)
    return totals["rate"] * left / events if events and left >= 0 else None


def placements(energy: Energy, other: Twin) -> list[JsonDict]:
    """Return what network and twin take with all their buffers in one memory, for each memory of the table."""
    totals, found = energy.totals(), []
    for memory in energy.table.memories:
        byte_pj = 8 / energy.table.access_bits * memory.pj
        ours = sum(totals[name] for name in ("weight_bytes", "activation_bytes", "membrane_bytes"))
        pj = totals["compute_pj"] + ours * byte_pj
        ann_pj = other.compute_pj + (totals["weight_bytes"] + other.activation_bytes) * byte_pj
        found.append({"memory": memory.name, "pj": pj, "ann_pj": ann_pj, "ratio": ann_pj / pj if pj else None})
    return found


def twins_report(energy: Energy) -> JsonDict:
    """Return the comparison with the ANN twins as JSON values: what ``svitc energy --json`` has under ``twin``."""
    total = energy.totals()["pj"]
    entries = []
    for bits in dict.fromkeys((8, count_bits(energy.time_steps))):
        one = twin(energy, bits)
        entries.append(
            {
                "activation_bits": bits,
                "compute_pj": one.compute_pj,
                "weight_pj": one.weight_pj,
                "activation_pj": one.activation_pj,
                "pj": one.pj,
                "ratio": one.pj / total if total else None,
                "break_even_rate": network_break_even(energy, one),
            }
        )
    layers = [
        {
            "name": row.name,
            "rate": row.rate,
            "break_even_rate": break_even(row, energy),
            "spikes_per_synapse": (row.ac + row.int_ac) / (row.dense / (energy.time_steps if row.each_step else 1)),
        }
        for row in energy.rows
        if row.reads in ("spikes", "counts") and row.dense
    ]
    return {
        "time_steps": energy.time_steps,
        "ann": entries,
        "layers": layers,
        "placements": placements(energy, twin(energy, 8)),
        "addressing_pj": addressing_pj(energy),
        "text": _sentence(energy, entries),
    }


def _sentence(energy: Energy, entries: list[JsonDict]) -> str:
    """Return in one sentence which of the two takes less."""
    total = energy.totals()["pj"]
    one = entries[0]
    what = f"an ANN of the same layers and weights with {one['activation_bits']}-bit activations"
    theirs, ours = human.joules(one["pj"]), human.joules(total)
    if one["pj"] < total:
        rate = one["break_even_rate"]
        how = "at no firing rate" if rate is None else f"only below a mean firing rate of {rate:.3f}"
        return f"the ANN wins: {what} would take {theirs}, this network takes {ours}; it would take less {how}"
    return f"the spikes win: this network takes {ours}, {what} would take {theirs}"


def neurobench(energy: Energy) -> JsonDict:
    """Return the static and dynamic complexity by the names of NeuroBench (J. Yik et al., arXiv 2304.04640).

    Effective operations leave out zeros; ``Dense`` counts every synapse at every step. The footprint is in bytes.
    """
    neurons = [row for row in energy.rows if row.reads is None and row.rate is not None]
    emitted = sum(row.values for row in neurons)
    active = sum((row.nonzero or 0.0) * row.values for row in neurons)
    return {
        "Footprint": sum(row.weight_bytes / max(1, row.calls) for row in energy.rows),
        "ConnectionSparsity": energy.connection_sparsity,
        "ActivationSparsity": 1 - active / emitted if emitted else 0.0,
        "SynapticOperations": {
            "Effective_MACs": sum(row.mac * (1.0 if row.nonzero is None else row.nonzero) for row in energy.rows),
            "Effective_ACs": sum(row.ac + row.int_ac for row in energy.rows),
            "Dense": sum(row.dense for row in energy.rows),
        },
    }


__all__ = ["Twin", "break_even", "count_bits", "neurobench", "twin", "twins_report"]
