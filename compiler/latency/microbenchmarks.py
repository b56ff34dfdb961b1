"""How fast ONNX Runtime's operators are on this machine: a handful of tiny graphs, timed once, in about two seconds.

Every probe holds a few copies of one operator, each with inputs of its own, as equal nodes would be merged; of each
result one element is read, so that copying results out of the runtime is not timed. Medians are taken.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from svitc import onnx as backend

SECONDS = 1.5  # for the runs of all probes
RUNS = (3, 40)  # of each, at least and at most
COPIES = 3
OPSET, IR_VERSION = 21, 10
ROWS, WIDTH = 784, 384  # tokens and channels: 301,056 numbers, such as a layer of the published models writes in a step
FLOAT, U8, BOOL = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.BOOL
NUMPY: dict[int, Any] = {FLOAT: np.float32, U8: np.uint8, BOOL: np.bool_}

# each speed is in seconds for one of these
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
LARGE = ".large"  # the same for arrays that no core's cache holds
SMALL_SIZE, LARGE_SIZE = ROWS * WIDTH // 4, 4 * ROWS * WIDTH  # elements: 0.3 and 4.8 MB of floats
Speeds = dict[str, float]


def at(speeds: Speeds, name: str, elements: float) -> float:
    """Seconds for each of so many elements; between the two sizes that were measured, by their logarithm."""
    if name + LARGE not in speeds:
        return speeds[name]
    share = np.log(max(elements, 1.0) / SMALL_SIZE) / np.log(LARGE_SIZE / SMALL_SIZE)
    small, large = speeds[name], speeds[name + LARGE]
    return float(small + (large - small) * np.clip(share, 0.0, 1.0))


@dataclass
class Graph:
    """Nodes and constants of a probe under construction."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def floats(self, *shape: int) -> str:
        return self.constant(self.random.standard_normal(shape).astype(np.float32))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))


Body = Callable[..., str]  # (graph, names of a copy's inputs...) -> name of its result
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
    """One operator, or the short chain that the runtime makes one operator of.

    Attributes:
        amounts: what one copy does, by speed.
        inputs: (element type, shape) of each input of one copy.
        body: writes the nodes of one copy.
        copies: how often it stands in the graph.
    """

    amounts: dict[str, float]
    inputs: Sequence[tuple[int, tuple[int, ...]]]
    body: Body
    copies: int = COPIES

    def model(self) -> bytes:
        graph, inputs, outputs = Graph(), [], []
        for copy in range(self.copies):
            names = [f"x{copy}_{i}" for i in range(len(self.inputs))]
            inputs += [
                helper.make_tensor_value_info(name, kind, shape)
                for name, (kind, shape) in zip(names, self.inputs, strict=True)
            ]
            found = self.body(graph, *names)
            shape = graph.constant(np.array([-1], np.int64))
            first, last = (graph.constant(np.array([i], np.int64)) for i in (0, 1))
            outputs.append(graph.op("Slice", graph.op("Reshape", found, shape), first, last))
        made = helper.make_graph(
            graph.nodes, "probe", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], graph.constants
        )
        opset = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION)
        return onnx.shape_inference.infer_shapes(proto).SerializeToString()

    def feeds(self) -> dict[str, np.ndarray]:
        """Spikes where they are bytes, so that no operator meets numbers that it would not meet."""
        random = np.random.default_rng(0)
        return {
            f"x{copy}_{i}": random.standard_normal(shape).astype(np.float32)
            if kind == FLOAT
            else (random.random(shape) < 0.2).astype(NUMPY[kind])
            for copy in range(self.copies)
            for i, (kind, shape) in enumerate(self.inputs)
        }


def probes() -> list[Probe]:
    """All of them; two that share a speed (many multiply-adds for each float, and few) tell its two parts apart."""
    found = [Probe({"node": 64.0}, [(FLOAT, (1, 8))], _tiny, 1)]
    for ending, (rows, width) in zip(("", LARGE), ((ROWS // 4, WIDTH), (16 * ROWS, WIDTH // 4)), strict=True):
        many, tokens = float(rows * width), (rows, width)
        for name, inputs, body in ELEMENTWISE:
            found.append(Probe({name + ending: many}, [(kind, tokens) for kind in inputs], body))
        side = int(rows**0.5)
        plane, turned = (1, width, side, side), (1, side, side, width)
        compared = 9.0 * width * side**2 / 4
        found.append(Probe({"pool" + ending: compared}, [(FLOAT, plane)], _pool))
        found.append(Probe({"turned_pool" + ending: compared}, [(FLOAT, turned)], _turned_pool))
    plane = (1, 96, 28, 28)
    n = float(np.prod(plane))
    found.append(Probe({"pool_bytes": 9 * n / 4}, [(U8, plane)], _pool))
    found.append(Probe({"last_pool": 9 * n / 4}, [(U8, (1, 28, 28, 96))], _last_pool))
    found.append(Probe({"depthwise": 9 * n}, [(FLOAT, plane)], lambda g, x: _convolution(g, x, 96, 1, 3, groups=96)))
    for channels in (48, WIDTH):  # bytes of a row
        copied = 9.0 * ROWS
        found.append(Probe({"row": copied, "row_byte": copied * channels}, [(U8, (1, ROWS, channels))], _patches))
    for deep, out in ((9 * 96, 192), (48, 192)):
        amounts = {"integer": float(ROWS * deep * out), "integer_out": float(ROWS * out)}
        found.append(Probe(amounts, [(U8, (ROWS, deep))], functools.partial(_integer, deep=deep, out=out)))
        amounts = {"product": float(ROWS * deep * out), "product_out": float(ROWS * out)}
        found.append(Probe(amounts, [(FLOAT, (ROWS, deep))], functools.partial(_product, deep=deep, out=out)))
    for left, right in (((12, 32, 196), (12, 196, 32)), ((12, 196, 32), (12, 32, 196))):  # attention
        amounts = {
            "integer_pair": float(np.prod(left) * right[2]),
            "integer_pair_out": float(left[0] * left[1] * right[2]),
        }
        found.append(Probe(amounts, [(U8, left), (U8, right)], lambda g, x, y: g.op("MatMulInteger", x, y)))
    for inside, outside, kernel in ((96, 192, 3), (48, 96, 1)):
        amounts = {
            "convolution": float(ROWS * inside * outside * kernel**2),
            "convolution_out": float(ROWS * (inside + outside)),
        }
        body = functools.partial(_convolution, outside=outside, inside=inside, kernel=kernel)
        found.append(Probe(amounts, [(FLOAT, (1, inside, 28, 28))], body))
    return found


def _tiny(g: Graph, x: str) -> str:
    for _ in range(64):
        x = g.op("Add", x, g.floats(8))
    return x


def _pool(g: Graph, x: str) -> str:
    return g.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])


def _turned_pool(g: Graph, x: str) -> str:
    return _pool(g, g.op("Transpose", x, perm=[0, 3, 1, 2]))


def _last_pool(g: Graph, x: str) -> str:
    """Of bytes that lie channels last and stay so, which the runtime pools as they are."""
    return g.op("Transpose", _turned_pool(g, x), perm=[0, 2, 3, 1])


def _patches(g: Graph, x: str) -> str:
    """The windows of a 3x3 convolution, row by row of 28 pixels; what lies outside wraps round."""
    at = np.arange(ROWS)[:, None] + np.array([dy * 28 + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    return g.op("Gather", x, g.constant((at % ROWS).reshape(-1).astype(np.int32)), axis=1)


def _integer(g: Graph, x: str, deep: int, out: int) -> str:
    """The form of which the runtime makes one operator; see ``UnrolledBuilder.scaled``."""
    weight = g.constant(g.random.integers(-127, 128, (deep, out), dtype=np.int8))
    unfolded = g.op("DequantizeLinear", g.constant(np.array(1, np.uint8)), g.number(0.5))
    scale = g.op("Mul", unfolded, g.floats(out))
    sums = g.op("Cast", g.op("MatMulInteger", x, weight), to=FLOAT)
    return g.op("Add", g.op("Mul", sums, scale), g.floats(out))


def _product(g: Graph, x: str, deep: int, out: int) -> str:
    return g.op("MatMul", x, g.floats(deep, out))


def _convolution(g: Graph, x: str, outside: int, inside: int, kernel: int, groups: int = 1) -> str:
    pads = [kernel // 2] * 4
    return g.op(
        "Conv", x, g.floats(outside, inside, kernel, kernel), kernel_shape=[kernel] * 2, pads=pads, group=groups
    )


def measure_speeds(threads: int) -> Speeds:
    """Seconds for one unit (``UNITS``) of every speed, in ONNX Runtime with so many threads."""
    made = probes()
    return solve(made, [_median(probe, threads, SECONDS / len(made)) for probe in made])


def _median(probe: Probe, threads: int, seconds: float) -> float:
    """What a run takes. One session at a time: the threads of another one spin for a while after its run."""
    session, feeds = backend.session(probe.model(), threads), probe.feeds()
    times: list[float] = []
    session.run(None, feeds)  # allocates
    begin = time.perf_counter()
    while len(times) < RUNS[0] or (len(times) < RUNS[1] and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def solve(made: Sequence[Probe], seconds: Sequence[float]) -> Speeds:
    """Speeds that explain what the probes took.

    One unknown of one probe is what is left after its nodes; two unknowns of two probes solve two equations, where
    neither may be negative: what noise would make negative is nothing, and the other explains the larger probe alone.
    """
    speeds: Speeds = {}
    together: dict[tuple[str, ...], list[tuple[list[float], float]]] = {}
    for probe, took in zip(made, seconds, strict=True):
        if "node" in probe.amounts:
            speeds["node"] = took / probe.amounts["node"]
            continue
        # a copy's operator, and the one that reads an element of it; reshapes are views
        left = max(took / probe.copies - 2 * speeds["node"], 0.1 * took / probe.copies)
        together.setdefault(tuple(probe.amounts), []).append((list(probe.amounts.values()), left))
    for names, rows in together.items():
        a, b = np.array([row for row, _ in rows]), np.array([left for _, left in rows])
        x = np.linalg.lstsq(a, b, rcond=None)[0]
        if (x <= 0).any():
            keep = int(np.argmax(x))
            largest = int(np.argmax(a[:, keep]))
            x = np.array([b[largest] / a[largest, i] if i == keep else 0.0 for i in range(len(names))])
        speeds |= dict(zip(names, map(float, x), strict=True))
    return speeds
