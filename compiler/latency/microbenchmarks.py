"""Measure how fast ONNX Runtime's operators are on this machine, with a few tiny graphs, in about two seconds.

Every probe contains several copies of one operator. Each copy has inputs of its own, because ONNX Runtime merges equal
nodes, and only one element of its result is an output, so that copying results out of the runtime is not timed. The
time of a probe is the median of its runs.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from svitc import runtimes

TIMED_S = 1.5  # for the runs of all probes
MIN_RUNS, MAX_RUNS = 3, 40  # of each probe
COPIES = 3  # of an operator in its probe
OPSET, IR_VERSION = 21, 10
ROWS, WIDTH = 784, 384  # tokens and channels: the size of a layer's output in the published models
FLOAT, U8, BOOL = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.BOOL
NUMPY: dict[int, type[np.generic]] = {FLOAT: np.float32, U8: np.uint8, BOOL: np.bool_}

# speeds by name, in seconds for one of these units
UNITS = {
    "node": "operator",
    "integer": "multiply-add",
    "integer_out": "float written",
    "integer_pair": "multiply-add",
    "integer_pair_out": "number written",
    "product": "multiply-add",
    "product_out": "float written",
    "convolution": "multiply-add",
    "convolution_out": "float read or written",
    "depthwise": "multiply-add",
    "pool": "number compared",
    "pool_bytes": "number compared",
    "last_pool": "number compared",
    "turned_pool": "number compared",
    "copy": "float, twice",
    "add": "float",
    "compare": "float",
    "where": "float",
    "threshold": "float",
    "cast_bool": "number",
    "cast_widen": "number",
    "cast_narrow": "number",
    "row": "row copied",
    "row_byte": "byte copied",
    "transpose_byte": "byte moved",
    "transpose_float": "float moved",
}
LARGE = ".large"  # suffix of a speed that was measured on arrays that exceed a core's cache
SMALL_SIZE, LARGE_SIZE = ROWS * WIDTH // 4, 4 * ROWS * WIDTH  # elements: 0.3 and 4.8 MB of floats
Speeds = dict[str, float]


def at(speeds: Speeds, name: str, elements: float) -> float:
    """Return a speed for arrays of a given size, interpolated on a logarithmic scale between the measured sizes.

    Args:
        speeds: measured speeds, in seconds for one unit.
        name: name of the speed.
        elements: number of elements of the array.
    """
    if name + LARGE not in speeds:
        return speeds[name]
    share = np.log(max(elements, 1.0) / SMALL_SIZE) / np.log(LARGE_SIZE / SMALL_SIZE)
    small, large = speeds[name], speeds[name + LARGE]
    return float(small + (large - small) * np.clip(share, 0.0, 1.0))


@dataclass
class Graph:
    """Nodes and constants of a probe under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def op(self, kind: str, *inputs: str, **attributes: float | Sequence[int]) -> str:
        """Add a node with one output and return the output's name."""
        name = f"v{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def constant(self, values: np.ndarray) -> str:
        """Add a constant and return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def floats(self, *shape: int) -> str:
        """Add a constant of random floats and return its name."""
        return self.constant(self.random.standard_normal(shape).astype(np.float32))

    def number(self, value: float) -> str:
        """Add a scalar constant and return its name."""
        return self.constant(np.array(value, np.float32))


Body = Callable[..., str]  # (graph, names of the inputs...) -> name of the result
# name of the speed, element types of the inputs, body
ELEMENTWISE: list[tuple[str, tuple[int, ...], Body]] = [
    ("add", (FLOAT, FLOAT), lambda g, x, y: g.op("Add", x, y)),
    ("compare", (FLOAT,), lambda g, x: g.op("LessOrEqual", x, g.number(-1.0))),
    ("threshold", (FLOAT,), lambda g, x: g.op("ThresholdedRelu", x, alpha=-1.0)),
    ("where", (BOOL, FLOAT), lambda g, c, x: g.op("Where", c, g.number(0.0), x)),
    ("cast_bool", (BOOL,), lambda g, x: g.op("Cast", x, to=U8)),
    ("cast_widen", (U8,), lambda g, x: g.op("Cast", x, to=FLOAT)),
    ("cast_narrow", (FLOAT,), lambda g, x: g.op("Cast", x, to=U8)),
    ("copy", (FLOAT,), lambda g, x: g.op("Concat", x, x, axis=0)),
    ("transpose_byte", (U8,), lambda g, x: g.op("Transpose", x, perm=[1, 0])),
    ("transpose_float", (FLOAT,), lambda g, x: g.op("Transpose", x, perm=[1, 0])),
]


@dataclass
class Probe:
    """One operator, or a short chain that ONNX Runtime fuses into one operator.

    Attributes:
        amounts: units of work in one copy, by name of the speed.
        inputs: (element type, shape) of each input of one copy.
        body: emits the nodes of one copy.
        copies: number of copies in the graph.
    """

    amounts: dict[str, float]
    inputs: Sequence[tuple[int, tuple[int, ...]]]
    body: Body
    copies: int = COPIES

    def model(self) -> bytes:
        """Return the ONNX file of the probe; it reads one element of each copy's result."""
        graph, inputs, outputs = Graph(), [], []
        for copy in range(self.copies):
            names = [f"x{copy}_{i}" for i in range(len(self.inputs))]
            inputs += [
                helper.make_tensor_value_info(name, kind, shape)
                for name, (kind, shape) in zip(names, self.inputs, strict=True)
            ]
            result = self.body(graph, *names)
            shape = graph.constant(np.array([-1], np.int64))
            first, last = (graph.constant(np.array([i], np.int64)) for i in (0, 1))
            outputs.append(graph.op("Slice", graph.op("Reshape", result, shape), first, last))
        graph_proto = helper.make_graph(
            graph.nodes, "probe", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], graph.constants
        )
        opset = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(graph_proto, opset_imports=opset, ir_version=IR_VERSION)
        return onnx.shape_inference.infer_shapes(proto).SerializeToString()

    def feeds(self) -> dict[str, np.ndarray]:
        """Return random inputs: spikes for bytes, as in real files, otherwise normally distributed floats."""
        random = np.random.default_rng(0)
        return {
            f"x{copy}_{i}": random.standard_normal(shape).astype(np.float32)
            if kind == FLOAT
            else (random.random(shape) < 0.2).astype(NUMPY[kind])
            for copy in range(self.copies)
            for i, (kind, shape) in enumerate(self.inputs)
        }


def probes() -> list[Probe]:
    """Return all probes.

    Two probes with the same two speeds, one with many multiply-adds for each number written and one with few,
    separate the two.
    """
    result = [Probe({"node": 64.0}, [(FLOAT, (1, 8))], _tiny, 1)]
    for ending, (rows, width) in zip(("", LARGE), ((ROWS // 4, WIDTH), (16 * ROWS, WIDTH // 4)), strict=True):
        elements, tokens = float(rows * width), (rows, width)
        for name, inputs, body in ELEMENTWISE:
            result.append(Probe({name + ending: elements}, [(kind, tokens) for kind in inputs], body))
        side = int(rows**0.5)
        plane, turned = (1, width, side, side), (1, side, side, width)
        compared = 9.0 * width * side**2 / 4
        result.append(Probe({"pool" + ending: compared}, [(FLOAT, plane)], _pool))
        result.append(Probe({"turned_pool" + ending: compared}, [(FLOAT, turned)], _turned_pool))
    plane = (1, 96, 28, 28)
    n = float(np.prod(plane))
    result.append(Probe({"pool_bytes": 9 * n / 4}, [(U8, plane)], _pool))
    result.append(Probe({"last_pool": 9 * n / 4}, [(U8, (1, 28, 28, 96))], _last_pool))
    result.append(Probe({"depthwise": 9 * n}, [(FLOAT, plane)], lambda g, x: _convolution(g, x, 96, 1, 3, groups=96)))
    for channels in (48, WIDTH):  # number of bytes in a row
        copied = 9.0 * ROWS
        result.append(Probe({"row": copied, "row_byte": copied * channels}, [(U8, (1, ROWS, channels))], _patches))
    for deep, out in ((9 * 96, 192), (48, 192)):
        amounts = {"integer": float(ROWS * deep * out), "integer_out": float(ROWS * out)}
        result.append(Probe(amounts, [(U8, (ROWS, deep))], functools.partial(_integer, deep=deep, out=out)))
        amounts = {"product": float(ROWS * deep * out), "product_out": float(ROWS * out)}
        result.append(Probe(amounts, [(FLOAT, (ROWS, deep))], functools.partial(_product, deep=deep, out=out)))
    for left, right in (((12, 32, 196), (12, 196, 32)), ((12, 196, 32), (12, 32, 196))):  # attention
        amounts = {
            "integer_pair": float(np.prod(left) * right[2]),
            "integer_pair_out": float(left[0] * left[1] * right[2]),
        }
        result.append(Probe(amounts, [(U8, left), (U8, right)], lambda g, x, y: g.op("MatMulInteger", x, y)))
    for in_channels, out_channels, kernel in ((96, 192, 3), (48, 96, 1)):
        amounts = {
            "convolution": float(ROWS * in_channels * out_channels * kernel**2),
            "convolution_out": float(ROWS * (in_channels + out_channels)),
        }
        body = functools.partial(_convolution, out_channels=out_channels, in_channels=in_channels, kernel=kernel)
        result.append(Probe(amounts, [(FLOAT, (1, in_channels, 28, 28))], body))
    return result


def _tiny(g: Graph, x: str) -> str:
    """Emit a chain of 64 operators that do next to nothing."""
    for _ in range(64):
        x = g.op("Add", x, g.floats(8))
    return x


def _pool(g: Graph, x: str) -> str:
    """Emit a max pooling of 3 x 3 windows."""
    return g.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])


def _turned_pool(g: Graph, x: str) -> str:
    """Emit a max pooling of floats that are stored channels last."""
    return _pool(g, g.op("Transpose", x, perm=[0, 3, 1, 2]))


def _last_pool(g: Graph, x: str) -> str:
    """Emit a max pooling of bytes that are stored channels last and stay so; ONNX Runtime has a kernel for that."""
    return g.op("Transpose", _turned_pool(g, x), perm=[0, 2, 3, 1])


def _patches(g: Graph, x: str) -> str:
    """Gather the windows of a 3 x 3 convolution over rows of 28 pixels, with the border wrapped around."""
    at = np.arange(ROWS)[:, None] + np.array([dy * 28 + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    return g.op("Gather", x, g.constant((at % ROWS).reshape(-1).astype(np.int32)), axis=1)


def _integer(g: Graph, x: str, deep: int, out: int) -> str:
    """Emit an integer product in the form that ONNX Runtime fuses into one operator (``UnrolledBuilder.scaled``)."""
    weight = g.constant(g.random.integers(-127, 128, (deep, out), dtype=np.int8))
    unfolded = g.op("DequantizeLinear", g.constant(np.array(1, np.uint8)), g.number(0.5))
    scale = g.op("Mul", unfolded, g.floats(out))
    sums = g.op("Cast", g.op("MatMulInteger", x, weight), to=FLOAT)
    return g.op("Add", g.op("Mul", sums, scale), g.floats(out))


def _product(g: Graph, x: str, deep: int, out: int) -> str:
    """Emit a float matrix product with a constant."""
    return g.op("MatMul", x, g.floats(deep, out))


def _convolution(g: Graph, x: str, out_channels: int, in_channels: int, kernel: int, groups: int = 1) -> str:
    """Emit a float convolution; ``in_channels`` are those of one group."""
    weight = g.floats(out_channels, in_channels, kernel, kernel)
    return g.op("Conv", x, weight, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, group=groups)


def measure_speeds(threads: int) -> Speeds:
    """Measure how long one unit (``UNITS``) of every speed takes in ONNX Runtime, in seconds.

    Args:
        threads: number of ONNX Runtime's threads within one operator.
    """
    timed = probes()
    return solve(timed, [_median(probe, threads, TIMED_S / len(timed)) for probe in timed])


def _median(probe: Probe, threads: int, seconds: float) -> float:
    """Return the median time of a probe's runs, in seconds.

    Only one session exists at a time, because ONNX Runtime's threads spin for a while after a run.
    """
    session, feeds = runtimes.session(probe.model(), threads), probe.feeds()
    times: list[float] = []
    session.run(None, feeds)  # the first run allocates memory
    begin = time.perf_counter()
    while len(times) < MIN_RUNS or (len(times) < MAX_RUNS and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def solve(timed: Sequence[Probe], seconds: Sequence[float]) -> Speeds:
    """Return the speeds that explain the times of the probes.

    A probe with one unknown speed gives it directly, after the time for its nodes is subtracted. Two probes with the
    same two unknowns are two equations. Neither speed may be negative: if noise makes one negative it is set to 0, and
    the other one explains the larger probe alone.

    Args:
        timed: the probes.
        seconds: time of one run of each probe.
    """
    speeds: Speeds = {}
    equations: dict[tuple[str, ...], list[tuple[list[float], float]]] = {}
    for probe, took in zip(timed, seconds, strict=True):
        if "node" in probe.amounts:
            speeds["node"] = took / probe.amounts["node"]
            continue
        # a copy has two nodes that cost time: its operator and the Slice, as a Reshape is free
        rest = max(took / probe.copies - 2 * speeds["node"], 0.1 * took / probe.copies)
        equations.setdefault(tuple(probe.amounts), []).append((list(probe.amounts.values()), rest))
    for names, rows in equations.items():
        a, b = np.array([row for row, _ in rows]), np.array([rest for _, rest in rows])
        x = np.linalg.lstsq(a, b, rcond=None)[0]
        if (x <= 0).any():
            keep = int(np.argmax(x))
            largest = int(np.argmax(a[:, keep]))
            x = np.array([b[largest] / a[largest, i] if i == keep else 0.0 for i in range(len(names))])
        speeds |= dict(zip(names, map(float, x), strict=True))
    return speeds
