"""The ANN twin by hand: what it takes, where it breaks even, and NeuroBench's names for the same counts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from svitc.energy.cost_table import load_table
from svitc.energy.estimate import Energy, Row, energy
from svitc.energy.twin import (
    addressing_pj,
    break_even,
    count_bits,
    network_break_even,
    neurobench,
    placements,
    twin,
    twins_report,
)

T = 4
EMPTY = {field.name: 0 for field in dataclasses.fields(Row)} | {"operations": {}, "reads": None, "rate": None}


def row(**values) -> Row:
    return Row(**{**EMPTY, "name": "fc", "kind": "Linear", "calls": 1, "each_step": True, **values})


def network(rate: float, weight_bits: int = 32, each_step: bool = True) -> Energy:
    """A linear layer of 10 inputs and 20 outputs that reads spikes in 4 steps, and the neurons that fire them."""
    table = load_table()
    accumulate = 0.9 if weight_bits == 32 else 0.1
    events = rate * 10 * 20 * T
    linear = row(
        reads="spikes", rate=rate, nonzero=rate, values=10 * T, ac=events, dense=10 * 20 * T, weight_bits=weight_bits
    )
    linear = dataclasses.replace(linear, weight_bytes=800, weight_pj=100.0, compute_pj=events * accumulate)
    neurons = row(name="lif", kind="LIFNode", rate=rate, nonzero=rate, values=10 * T, membrane_pj=7.0, compute_pj=3.0)
    rows = tuple(dataclasses.replace(one, each_step=each_step) for one in (linear, neurons))
    return Energy(1, "fp32", "SRAM 8 kB", rows, table, T, 0.25)


@pytest.mark.parametrize(("steps", "bits"), [(1, 1), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_bits_of_a_count(steps, bits):
    assert count_bits(steps) == bits


@pytest.mark.parametrize(("weight_bits", "mac"), [(32, 4.6), (8, 0.3), (4, 0.3), (16, 0.6)])
def test_what_the_twin_takes(weight_bits, mac):
    one = twin(network(0.1, weight_bits), 8)
    assert one.compute_pj == pytest.approx(10 * 20 * mac + 10 * 4.6)  # its synapses, and a scale for each neuron
    assert one.activation_pj == pytest.approx(2 * 10 / 8 * 10)  # 10 bytes written and read, 64 bits for 10 pJ
    assert one.pj == pytest.approx(one.compute_pj + one.activation_pj + 100.0)
    assert twin(network(0.1, weight_bits), 3).activation_pj == pytest.approx(one.activation_pj * 3 / 8)


@pytest.mark.parametrize(("weight_bits", "rate"), [(32, 4.6 / (T * 0.9)), (8, 0.3 / (T * 0.1))])
def test_where_synapses_break_even(weight_bits, rate):
    for fires in (0.0, 0.3):
        found = network(fires, weight_bits)
        assert break_even(found.rows[0], found) == pytest.approx(rate)
    assert break_even(found.rows[1], found) is None


def test_where_the_network_breaks_even():
    for bits in (32, 8):
        spiking = network(0.2, bits)
        other = twin(spiking, 8)
        rate = network_break_even(spiking, other)
        assert rate is not None and network(rate, bits).totals()["pj"] == pytest.approx(other.pj)
    cheap = dataclasses.replace(other, weight_pj=0.0, compute_pj=0.0)
    assert network_break_even(spiking, cheap) is None


def test_the_report_says_plainly_who_wins():
    often, seldom = (twins_report(network(rate, 8)) for rate in (1.0, 0.01))
    assert often["ann"][0]["pj"] > network(1.0, 8).totals()["pj"] - 1000 and often["time_steps"] == T
    assert [ann["activation_bits"] for ann in often["ann"]] == [8, 3]
    assert often["layers"][0]["spikes_per_synapse"] == pytest.approx(4.0)
    assert seldom["layers"][0]["spikes_per_synapse"] == pytest.approx(0.04)
    assert seldom["text"].startswith("the spikes win: this network takes")
    heavy = network(0.01, 8)
    heavy = dataclasses.replace(heavy, rows=(heavy.rows[0], dataclasses.replace(heavy.rows[1], membrane_pj=1e6)))
    assert twins_report(heavy)["text"].startswith("the ANN wins: an ANN of the same layers and weights with 8-bit")
    assert "at no firing rate" in twins_report(heavy)["text"]


def test_memories_that_hold_everything():
    spiking = network(0.5)
    other = twin(spiking, 8)
    assert other.activation_bytes == 20
    first, *_, last = placements(spiking, other)
    assert (first["memory"], last["memory"]) == ("SRAM 8 kB", "DRAM")
    compute = 0.5 * 800 * 0.9 + 3
    assert first["pj"] == pytest.approx(compute + 800 / 8 * 10)
    assert last["ann_pj"] == pytest.approx(other.compute_pj + 820 / 8 * 1300)
    assert last["ratio"] == pytest.approx(last["ann_pj"] / last["pj"])


def test_finding_synapses():
    spiking = network(0.5)
    assert addressing_pj(spiking) == pytest.approx(0.5 * 800 * 0.1)
    conv = dataclasses.replace(spiking, rows=(dataclasses.replace(spiking.rows[0], kind="Conv2d"),))
    assert addressing_pj(conv) == pytest.approx(40 + 2 * 20 * 3.2)


def test_the_names_of_neurobench():
    found = neurobench(network(0.25))
    assert found == {
        "Footprint": 800,
        "ConnectionSparsity": 0.25,
        "ActivationSparsity": 0.75,
        "SynapticOperations": {"Effective_MACs": 0, "Effective_ACs": 200, "Dense": 800},
    }


def test_a_real_network(digits):
    found = energy(digits, torch.rand(2, *digits.input.shape, generator=torch.Generator().manual_seed(0)))
    assert found.time_steps == 4 and 0 <= found.connection_sparsity < 0.01
    report = twins_report(found)
    assert all(math.isfinite(ann["pj"]) and ann["pj"] > 0 for ann in report["ann"])
    synaptic = [one for one in found.rows if one.reads is not None]
    assert all(one.ac + one.int_ac <= one.dense * 255.0 and one.mac in (0, one.dense) for one in synaptic)
    assert report["layers"] and all(layer["spikes_per_synapse"] >= 0 for layer in report["layers"])
