"""Operation counts: what every layer does on given images, in whole operations, before they are priced.

The input of a layer decides how its synapses are counted:

    spikes   0 or 1                    an accumulate (AC) for every synapse that a spike reaches
    counts   integers from 0 to 255    a value v is v events: v accumulates for each of its synapses ("integer AC")
    fixed    other integers            a multiply-accumulate (MAC) for every synapse, zeros and border included
    real     anything else             the same

Counts are sums of spikes in a residual stream, integer neurons, small pools; fixed are the image in steps and means
over many pixels. The kind is derived from the graph (integer_range.py), not observed on the images; only event frames,
about which the graph says nothing, are examined.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges
from svitc.energy.memory_traffic import VIEWS, base
from svitc.ir import ops
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import FixedPoint
from svitc.quantization.weight_grid import stored_bits

MEMBRANE = "float32"  # type in which neurons compute, for any type of weights


@dataclass
class Work:
    """Operations of a layer, a neuron or a function, summed over the images.

    Attributes:
        name: path of the layer, or scope and name of the function.
        kind: class or function name.
        calls: nodes of the graph that call it.
        reads: kind of the input of a layer's synapses: ``spikes``, ``counts``, ``fixed``, ``real``; None for others.
        values, nonzero, total: of a layer's input or a neuron's output: the number of values, of those that are not 0,
            and their sum (for counts, in their units).
        ac, int_ac, mac: synaptic operations.
        dense: multiply-accumulates of the synapses if no value were left out.
        operations: all operations, those of the synapses included, by name: ``float32.add``, ``int8.mult``, ...
    """

    name: str
    kind: str
    calls: int = 0
    reads: str | None = None
    values: int = 0
    nonzero: int = 0
    total: float = 0.0
    ac: float = 0.0
    int_ac: float = 0.0
    mac: float = 0.0
    dense: float = 0.0
    operations: dict[str, float] = field(default_factory=dict)

    def see(self, x: torch.Tensor, unit: float) -> None:
        """Add the values of a tensor, in units of ``unit``, to the statistics."""
        self.values += x.numel()
        self.nonzero += int(x.count_nonzero())
        self.total += float(x.sum(dtype=torch.float64)) / unit

    def does(self, number_type: str, adds: float = 0, mults: float = 0) -> None:
        """Add operations on numbers of a type."""
        for name, count in ((f"{number_type}.add", adds), (f"{number_type}.mult", mults)):
            if count:
                self.operations[name] = self.operations.get(name, 0) + count


def stream(value_range: IntegerRange | None) -> str:
    """Return the kind of a value, ``spikes``, ``counts``, ``fixed`` or ``real``; see the top of this module."""
    if value_range is None:
        return "real"
    if value_range.low < 0 or not value_range.is_byte:
        return "fixed"
    return "spikes" if value_range.high <= 1 else "counts"


class Counting(fx.Interpreter):
    """Interpreter that runs a program for inference and counts its operations; batches add up.

    Attributes:
        ranges: integer ranges of the program.
        work: node -> its counts; nodes that call the same layer share them, and views have none.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.program, self.ranges = program, integer_ranges(program)
        self.on_integers = program.stage >= Stage.QUANTIZED
        self.work: dict[fx.Node, Work] = {}
        self._fans: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
        named: dict[str, Work] = {}
        scopes: Counter[str] = Counter()
        for node in program.graph.nodes:
            if node.op not in ("call_module", "call_function") or node.target in VIEWS:
                continue
            module = program.module_of(node)
            name, kind = str(node.target), type(module).__name__
            if module is None:
                kind = node.target.__name__
                name = f"{node.meta.get('scope') or 'model'}: {kind}"
                scopes[name] += 1
                name = name if scopes[name] == 1 else f"{name} {scopes[name]}"
            self.work[node] = named.setdefault(name, Work(name, kind))
            self.work[node].calls += 1

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        work, module = self.work.get(n), self.program.module_of(n)
        if work is None:
            return value
        if ops.is_projection(module):
            self._projection(n, work, module, self.env[n.all_input_nodes[0]], value)
        elif ops.is_neuron(module):
            _neuron(work, module, value)
        elif n.target is torch.matmul:
            self._product(n, work, value)
        else:
            self._elementwise(n, work, module, value)
        return value

    def _projection(self, n: fx.Node, work: Work, module: nn.Conv2d, x: torch.Tensor, y: torch.Tensor) -> None:
        """Count a convolution or linear layer on one batch."""
        source = n.all_input_nodes[0]
        input_range = self.ranges.get(source)
        kind, unit = stream(input_range), 1.0 if input_range is None else input_range.unit
        scale = self._frames(source)
        if scale is not None and bool(((x * scale).round() == x * scale).all() and (x >= 0).all()):
            kind, unit = "counts", 1 / scale
        work.reads = kind
        work.see(x, unit)
        work.dense += y.numel() * module.weight[0].numel()
        quantized = ops.is_quantized(module)
        # int8 weights that meet real inputs become floats
        number = "int32" if quantized and input_range is not None else "float32"
        if kind in ("spikes", "counts"):
            events = float((x.sum(0, dtype=torch.float64) * self._fan(n, module, x)).sum()) / unit
            if kind == "spikes":
                work.ac += events
            else:
                work.int_ac += events
            work.does(number, adds=events)
        else:
            macs = y.numel() * module.weight[0].numel()
            work.mac += macs
            if number == "int32" and input_range is not None:
                # m bytes times n bytes: m n products of int8, each added in int32
                products = math.ceil((input_range.bound.bit_length() + (input_range.low < 0)) / 8) * macs
                products *= math.ceil(stored_bits(module.weight) / 8)
                work.does("int8", mults=products)
                work.does("int32", adds=products)
            else:
                work.does("float32", macs, macs)
        if quantized or module.bias is not None:
            work.does("float32", y.numel(), y.numel() if quantized else 0)  # sum * scale + bias

    def _fan(self, n: fx.Node, module: nn.Conv2d | nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """Return the number of synapses of each input: ``[C, H, W]``, ``[C, N]``, or one number for a linear layer.

        It is the derivative of the sum of all outputs with every weight at 1, so that borders, strides and groups are
        exact.
        """
        if isinstance(module, nn.Linear):
            return torch.tensor(float(module.out_features), dtype=torch.float64)
        key = str(n.target), tuple(x.shape[1:])
        if key not in self._fans:
            with torch.enable_grad():
                probe = torch.zeros(1, *x.shape[1:], dtype=torch.float64, requires_grad=True)
                ones = torch.ones(module.weight.shape, dtype=torch.float64)
                (self._fans[key],) = torch.autograd.grad(module._conv_forward(probe, ones, None).sum(), probe)
        return self._fans[key][0]

    def _frames(self, source: fx.Node) -> float | None:
        """Return the factor that turns a value into counts of events, or None if it is not the event frames."""
        origin = base(source)
        module = self.program.module_of(origin)
        if not self.program.input.events or not (origin.op == "placeholder" or isinstance(module, FixedPoint)):
            return None
        return module.step if isinstance(module, FixedPoint) else 1.0

    def _product(self, n: fx.Node, work: Work, out: torch.Tensor) -> None:
        """Count a matrix product of two values.

        If both are spikes, an accumulate where both fire. Else, if one is spikes, an accumulate for each product of a
        spike. Else, if one is counts, v accumulates for each product of a value v; if both are, for the values of the
        one with the smaller range. Else a multiply-accumulate for each product.
        """
        ranges: list[Any] = [self.ranges.get(arg) for arg in n.args]  # type: ignore[arg-type]
        values: list[torch.Tensor] = [self.env[arg] for arg in n.args]  # type: ignore[index]
        inner = values[0].shape[-1]
        products = out.numel() * inner
        work.dense += products
        number = "int32" if self.on_integers and None not in ranges else "float32"
        kinds = [stream(value_range) for value_range in ranges]
        work.reads = min(kinds, key=("spikes", "counts", "fixed", "real").index)
        if kinds == ["spikes", "spikes"]:
            work.ac += (events := float(out.sum(dtype=torch.float64)) / (ranges[0].unit * ranges[1].unit))
        elif work.reads in ("spikes", "counts"):
            which = min((i for i in (0, 1) if kinds[i] == work.reads), key=lambda i: ranges[i].high)
            x = values[which]
            work.see(x, ranges[which].unit)
            # each value takes part in as many products
            events = float(x.sum(dtype=torch.float64)) / ranges[which].unit * (products / x.numel())
            if work.reads == "spikes":
                work.ac += events
            else:
                work.int_ac += events
        else:
            work.mac += products
            work.does(number, products, products)
            return
        if kinds == ["spikes", "spikes"]:
            for x, value_range in zip(values, ranges, strict=True):
                work.see(x, value_range.unit)
        work.does(number, adds=events)

    def _elementwise(self, n: fx.Node, work: Work, module: nn.Module | None, out: torch.Tensor) -> None:
        """Count any other operation: additions of streams, sums and means, pools, gates, scales.

        A comparison counts as an addition.
        """
        inputs = [arg for arg in n.args if isinstance(arg, fx.Node)]
        on_integers = self.on_integers and n in self.ranges and all(source in self.ranges for source in inputs)
        number, size = "int32" if on_integers else "float32", out.numel()
        x = self.env[inputs[0]]
        scales = 0 if on_integers else size  # between integer ranges a factor is a power of two, a shift
        if n.target in (operator.add, operator.sub):
            work.does(number, adds=size)
        elif n.target in (operator.mul, operator.truediv):
            if len(inputs) == 2 and any(stream(self.ranges.get(source)) == "spikes" for source in inputs):
                return  # a spike gates a value
            work.does(number, mults=size if len(inputs) == 2 else scales)
        elif n.target in ops.REDUCTIONS:
            event_driven = stream(self.ranges.get(inputs[0])) in ("spikes", "counts")
            work.does(number, int(x.count_nonzero()) if event_driven else x.numel() - size)
            work.does(number, mults=scales if n.target is torch.mean else 0)
        elif isinstance(module, ops.POOLS):
            kernel = module.kernel_size
            window = math.prod(kernel if isinstance(kernel, tuple) else (kernel, kernel))
            work.does(number, size * (window - 1), scales if isinstance(module, nn.AvgPool2d) else 0)
        elif ops.is_batch_norm(module):
            work.does("float32", size, size)
        elif isinstance(module, FixedPoint):
            work.does("float32", 2 * size, size)  # times 1 / step, and two comparisons to clamp


def update(module: nn.Module | None) -> tuple[int, int]:
    """Return the additions and multiplications of one neuron in one time step, its threshold comparison included.

    IF: charge, compare. LIF: ``v + (x - v) / tau``, or ``v (1 - 1 / tau) + x`` where the input does not decay; a reset
    to a voltage other than 0 is one more addition. A hard reset is a selection; the subtractions of a soft one are
    counted by spikes. An integer spike is one comparison.
    """
    neuron = dynamics_of(module)
    if not neuron.has_state:
        return 1, 0
    if not neuron.leaks:
        return 2, 0
    return 2 + neuron.decay_input + bool(neuron.rest), 1


def _neuron(work: Work, module: nn.Module | None, spikes: torch.Tensor) -> None:
    """Count a neuron on one batch of its spikes."""
    adds, mults = update(module)
    work.see(spikes, 1.0)
    work.does(MEMBRANE, adds * spikes.numel(), mults * spikes.numel())
    neuron = dynamics_of(module)
    if neuron.has_state and neuron.reset is None:
        work.does(MEMBRANE, adds=int(spikes.count_nonzero()))
