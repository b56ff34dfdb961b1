"""Counting for energy: what every layer does on given images, as whole operations, before anything has a price.

What a layer reads decides how its synapses are counted:

    spikes   0 or 1                        an accumulate (AC) for every synapse that a spike reaches
    counts   whole numbers from 0 to 255   a value v is v events: v accumulates for each of its synapses ("integer AC")
    fixed    whole numbers beyond that     a multiply-accumulate (MAC) for every synapse, zeros and border included
    real     anything else                 the same

Counts are sums of spikes in a residual stream, integer neurons, small pools; fixed are the image in steps and means
over many pixels. Which is which is proved from the graph (integer_range.py), not read off the images; only event
frames, of which nothing is known beforehand, are looked at.
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

MEMBRANE = "float32"  # what neurons compute in, whatever the weights are


@dataclass
class Work:
    """What a layer, a neuron or a function does, summed over the images that were seen.

    Attributes:
        name: path of the layer, or scope and name of the function.
        kind: class or function name.
        calls: nodes of the graph that call it.
        reads: what a layer's synapses read: ``spikes``, ``counts``, ``fixed``, ``real``; None for all else.
        values, nonzero, total: of what a layer reads, or of what a neuron emits: how many values, how many of them are
            not 0, and their sum (of counts in their units).
        ac, int_ac, mac: synaptic operations.
        operations: all operations, synapses included, by what they are: ``float32.add``, ``int8.mult``, …
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
    operations: dict[str, float] = field(default_factory=dict)

    def see(self, x: torch.Tensor, unit: float) -> None:
        self.values += x.numel()
        self.nonzero += int(x.count_nonzero())
        self.total += float(x.sum(dtype=torch.float64)) / unit

    def does(self, number: str, adds: float = 0, mults: float = 0) -> None:
        for name, count in ((f"{number}.add", adds), (f"{number}.mult", mults)):
            if count:
                self.operations[name] = self.operations.get(name, 0) + count


def stream(grid: IntegerRange | None) -> str:
    """``spikes``, ``counts``, ``fixed`` or ``real``; see this module."""
    if grid is None:
        return "real"
    if grid.low < 0 or not grid.is_byte:
        return "fixed"
    return "spikes" if grid.high <= 1 else "counts"


class Counting(fx.Interpreter):
    """Runs a program for inference and counts what it does; the results add up over batches.

    Attributes:
        work: node -> its counts; nodes that call one layer share them, and views do no work.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.program, self.grids = program, integer_ranges(program)
        self.whole = program.stage >= Stage.QUANTIZED
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

    def run_node(self, n: fx.Node) -> Any:
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

    def _projection(self, n: fx.Node, work: Work, module: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        source = n.all_input_nodes[0]
        grid = self.grids.get(source)
        kind, unit = stream(grid), 1.0 if grid is None else grid.unit
        scale = self._frames(source)
        if scale is not None and bool(((x * scale).round() == x * scale).all() and (x >= 0).all()):
            kind, unit = "counts", 1 / scale
        work.reads = kind
        work.see(x, unit)
        quantized = ops.is_quantized(module)
        number = "int32" if quantized and grid is not None else "float32"  # int8 weights of real inputs become floats
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
            if number == "int32" and grid is not None:  # int8 by n bytes: n products of int8, each summed up in int32
                wide = math.ceil((grid.bound.bit_length() + (grid.low < 0)) / 8)
                work.does("int8", mults=wide * macs)
                work.does("int32", adds=wide * macs)
            else:
                work.does("float32", macs, macs)
        if quantized or module.bias is not None:
            work.does("float32", y.numel(), y.numel() if quantized else 0)  # sum * scale + bias

    def _fan(self, n: fx.Node, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Synapses of each input: ``[C, H, W]``, ``[C, N]``, or one number for a linear layer.

        The derivative of all outputs' sum when every weight is 1, so that borders, strides and groups are exact.
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
        """By what a value must be multiplied to be counts of events, if it is the event frames themselves."""
        origin = base(source)
        module = self.program.module_of(origin)
        if not self.program.input.events or not (origin.op == "placeholder" or isinstance(module, FixedPoint)):
            return None
        return module.step if isinstance(module, FixedPoint) else 1.0

    def _product(self, n: fx.Node, work: Work, out: torch.Tensor) -> None:
        """Two of spikes: an accumulate where both fire. One of them: one for each spike and value that it meets.
        Counts by what is neither spikes nor smaller counts: v for each value v. Else a multiply-accumulate."""
        known: list[Any] = [self.grids.get(each) for each in n.args]  # type: ignore[arg-type]
        values: list[torch.Tensor] = [self.env[each] for each in n.args]  # type: ignore[index]
        inner = values[0].shape[-1]
        every = out.numel() * inner
        number = "int32" if self.whole and None not in known else "float32"
        kinds = [stream(each) for each in known]
        work.reads = min(kinds, key=("spikes", "counts", "fixed", "real").index)
        if kinds == ["spikes", "spikes"]:
            work.ac += (events := float(out.sum(dtype=torch.float64)) / (known[0].unit * known[1].unit))
        elif work.reads in ("spikes", "counts"):
            which = min((i for i in (0, 1) if kinds[i] == work.reads), key=lambda i: known[i].high)
            x = values[which]
            work.see(x, known[which].unit)
            # each value meets as many others as there are products for it
            events = float(x.sum(dtype=torch.float64)) / known[which].unit * (every / x.numel())
            if work.reads == "spikes":
                work.ac += events
            else:
                work.int_ac += events
        else:
            work.mac += every
            work.does(number, every, every)
            return
        if kinds == ["spikes", "spikes"]:
            for x, grid in zip(values, known, strict=True):
                work.see(x, grid.unit)
        work.does(number, adds=events)

    def _elementwise(self, n: fx.Node, work: Work, module: Any, out: torch.Tensor) -> None:
        """All else: additions of streams, sums and means, pools, gates, scales. A comparison counts as an addition."""
        inputs = [each for each in n.args if isinstance(each, fx.Node)]
        whole = self.whole and n in self.grids and all(each in self.grids for each in inputs)
        number, size = "int32" if whole else "float32", out.numel()
        x = self.env[inputs[0]]
        scales = 0 if whole else size  # on a grid a factor is a power of two: the point moves
        if n.target in (operator.add, operator.sub):
            work.does(number, adds=size)
        elif n.target in (operator.mul, operator.truediv):
            if len(inputs) == 2 and any(stream(self.grids.get(each)) == "spikes" for each in inputs):
                return  # a spike lets a value through or not
            work.does(number, mults=size if len(inputs) == 2 else scales)
        elif n.target in ops.REDUCTIONS:
            event_driven = stream(self.grids.get(inputs[0])) in ("spikes", "counts")
            work.does(number, int(x.count_nonzero()) if event_driven else x.numel() - size)
            work.does(number, mults=scales if n.target is torch.mean else 0)
        elif isinstance(module, ops.POOLS):
            kernel = module.kernel_size
            window = math.prod(kernel if isinstance(kernel, tuple) else (kernel, kernel))
            work.does(number, size * (window - 1), scales if isinstance(module, nn.AvgPool2d) else 0)
        elif ops.is_batch_norm(module):
            work.does("float32", size, size)
        elif isinstance(module, FixedPoint):
            work.does("float32", 2 * size, size)  # times 1 / step, and two ends to clamp at


def update(module: Any) -> tuple[int, int]:
    """Additions and multiplications of one neuron in one time step, a comparison with its threshold included.

    IF: charge, compare. LIF: ``v + (x - v) / tau``, or ``v (1 - 1 / tau) + x`` where the input does not decay; a reset
    to another voltage than 0 is one addition more. A hard reset is a choice; what a soft one subtracts is counted by
    spikes. An integer spike is one comparison.
    """
    neuron = dynamics_of(module)
    if not neuron.has_state:
        return 1, 0
    if not neuron.leaks:
        return 2, 0
    return 2 + neuron.decay_input + bool(neuron.rest), 1


def _neuron(work: Work, module: Any, spikes: torch.Tensor) -> None:
    adds, mults = update(module)
    work.see(spikes, 1.0)
    work.does(MEMBRANE, adds * spikes.numel(), mults * spikes.numel())
    neuron = dynamics_of(module)
    if neuron.has_state and neuron.reset is None:
        work.does(MEMBRANE, adds=int(spikes.count_nonzero()))
