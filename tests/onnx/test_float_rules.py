"""Each rule by itself: what ONNX Runtime computes is what the program computes, with no operator to spare."""

from __future__ import annotations

import operator

import einops
import numpy as np
import onnx
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.errors import InternalError, UnsupportedError
from svitc.ir import ops
from svitc.onnx import lower, to_bytes, weight_bytes

IMAGE = (6, 8, 10)  # channels, height, width
EVENTS = (4, *IMAGE)
MERGE, PARTS = "t b c y x -> (t b) c y x", "(t b) c y x -> t b c y x"


def check(run, program, operators: list[str] | None = None, tolerance: float = 1e-5) -> None:
    """Same numbers for batches of 1, 2 and 5, a valid file, and these operators."""
    torch.manual_seed(0)
    onnx.checker.check_model(to_bytes(lower(program)), full_check=True)
    for batch in (1, 2, 5):
        x = torch.randn(program.input.batched(batch))
        got, found = run(program, x)
        want = program(x).numpy()
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    if operators is not None:
        assert found == operators


def view(graph, x, pattern, **sizes):
    return graph.call_function(einops.rearrange, (x, pattern), sizes)


def call(function, *args, **kwargs):
    return lambda graph, x: graph.call_function(function, (x, *args), kwargs)


def layer(graph, x):
    return graph.call_module("layer", (x,))


def normed(norm):
    for name in ("running_mean", "weight", "bias"):
        if getattr(norm, name) is not None:
            nn.init.normal_(getattr(norm, name))
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, 1, bias=False),
        nn.Conv2d(6, 6, 3, stride=2, padding=(1, 2), groups=6),
        nn.Conv2d(6, 9, (3, 2), dilation=2, groups=3),
        normed(nn.BatchNorm2d(6)),
        normed(nn.BatchNorm2d(6, affine=False, eps=0.1)),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d((2, 5)),
        nn.ZeroPad2d(2),
        nn.ZeroPad2d((1, 0, 2, 3)),
    ],
    ids=str,
)
def test_layers_over_images(program_of, run, module):
    kinds = {"Conv2d": "Conv", "BatchNorm2d": "BatchNormalization", "MaxPool2d": "MaxPool", "ZeroPad2d": "Pad"}
    check(run, program_of(IMAGE, layer, layer=module), [kinds.get(type(module).__name__, "AveragePool")])


def test_zeros_around_images_in_time(program_of, run):
    check(run, program_of(EVENTS, layer, layer=nn.ZeroPad2d((1, 2, 0, 3))), ["Reshape", "Pad", "Reshape"], tolerance=0)


def test_an_image_of_one_channel_keeps_its_channel_dimension(program_of, run):
    check(run, program_of((1, 8, 10), layer, layer=nn.Conv2d(1, 1, 3)), ["Conv"])


def test_layers_over_time_and_batch_cost_a_reshape_at_each_end_of_the_file_only(program_of, run):
    def build(graph, x):
        for name in ("first", "second"):
            x = view(graph, graph.call_module(name, (view(graph, x, MERGE),)), PARTS, t=4)
        return x

    program = program_of(EVENTS, build, first=nn.Conv2d(6, 8, 3), second=nn.Conv2d(8, 6, 1))
    check(run, program, ["Reshape", "Conv", "Conv", "Reshape"])


def test_one_dimensional_layers(program_of, run):
    def build(graph, x):
        x = view(graph, x, "b c y x -> b c (y x)")
        return graph.call_module("norm", (graph.call_module("conv", (x,)),))

    program = program_of(IMAGE, build, conv=nn.Conv1d(6, 4, 1), norm=normed(nn.BatchNorm1d(4)))
    check(run, program, ["Reshape", "Conv", "BatchNormalization"])


@pytest.mark.parametrize("bias", [True, False])
def test_linear(program_of, run, bias):
    def deep(graph, x):
        return layer(graph, view(graph, x, "b c y x -> b (y x) c"))

    program = program_of(IMAGE, deep, layer=nn.Linear(6, 7, bias=bias))
    check(run, program, ["Transpose", "Reshape", "MatMul", *["Add"] * bias])
    assert weight_bytes(lower(program)) == 4 * program.parameter_count() + 3 * 8  # and a shape

    def flat(graph, x):
        return layer(graph, graph.call_function(torch.mean, (x,), {"dim": (3, 4), "keepdim": False}))

    program = program_of(EVENTS, flat, layer=nn.Linear(6, 7, bias=bias))
    check(run, program, ["ReduceMean", "Reshape", "Gemm", "Reshape"])


def test_layers_that_share_a_module_share_its_weights(program_of, run):
    program = program_of(IMAGE, lambda graph, x: layer(graph, layer(graph, x)), layer=nn.Conv2d(6, 6, 1))
    check(run, program, ["Conv", "Conv"])
    assert weight_bytes(lower(program)) == 4 * program.parameter_count()
    assert [node.name for node in lower(program).graph] == ["layer", "layer_2"]


@pytest.mark.parametrize(
    "function, number, operators",
    [
        (operator.mul, 0.125, ["Mul"]),
        (operator.mul, -3, ["Mul"]),
        (operator.mul, 1, ["Identity"]),
        (operator.truediv, 4.0, ["Mul"]),
        (operator.truediv, 3.0, ["Div"]),
        (operator.truediv, 1.0, ["Identity"]),
    ],
)
def test_products_with_numbers_are_exact(program_of, run, function, number, operators):
    check(run, program_of(IMAGE, call(function, number)), operators, tolerance=0)


@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.mul])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 1, 6, 1, 1), (4, 1, 1, 1, 1), (8, 10), (1, 6, 8, 1), ()])
def test_parameters_broadcast(program_of, run, function, shape):
    def build(graph, x):
        return graph.call_function(function, (x, graph.get_attr("scale")))

    program = program_of(EVENTS, build, scale=torch.randn(shape))
    check(run, program, tolerance=0)
    assert weight_bytes(lower(program)) - 4 * program.parameter_count() <= 2 * 5 * 8  # two reshapes


def test_a_residual_of_two_groupings_takes_one_reshape(program_of, run):
    def build(graph, x):
        flat = view(graph, x, "t b c y x -> t b c (y x)")
        doubled = graph.call_function(operator.mul, (flat, 2.0))
        y = view(
            graph,
            graph.call_module("layer", (view(graph, doubled, "t b c n -> (t b) c n"),)),
            "(t b) c n -> t b c n",
            t=4,
        )
        y = view(graph, y, "t b c (y x) -> t b c y x", y=8)
        out = graph.call_function(operator.add, (graph.call_function(operator.mul, (x, 3.0)), y))
        return graph.call_function(torch.sum, (out,), {"dim": (3, 4), "keepdim": False})

    check(run, program_of(EVENTS, build, layer=nn.Conv1d(6, 6, 1)), tolerance=1e-4)


def test_a_value_without_time_meets_one_with_time(program_of, run):
    """The batch of the smaller one lines up with the batch alone, so that time and batch cannot be merged."""

    def build(graph, x):
        still = graph.call_function(torch.mean, (x,), {"dim": (0,), "keepdim": False})
        return graph.call_function(operator.sub, (x, still))

    check(run, program_of(EVENTS, build))


def test_an_outer_product_of_one_value_with_itself(program_of, run):
    def build(graph, x):
        n = graph.call_function(torch.mean, (x,), {"dim": (2, 3), "keepdim": False})
        left, right = view(graph, n, "t b x -> t b x 1"), view(graph, n, "t b x -> t b 1 x")
        return graph.call_function(operator.mul, (left, right))

    check(run, program_of(EVENTS, build))


@pytest.mark.parametrize("function", [torch.mean, torch.sum])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dim", [(0,), (2,), (3, 4), (0, 4)])  # never across the batch
def test_reductions(program_of, run, function, dim, keepdim):
    check(run, program_of(EVENTS, call(function, dim=dim, keepdim=keepdim)), tolerance=1e-4)


def test_a_reduction_over_part_of_a_merged_dimension(program_of, run):
    def build(graph, x):
        merged = graph.call_module("layer", (view(graph, x, MERGE),))
        return graph.call_function(torch.mean, (view(graph, merged, PARTS, t=4),), {"dim": (0,), "keepdim": False})

    program = program_of(EVENTS, build, layer=nn.Conv2d(6, 6, 1))
    check(run, program, ["Reshape", "Conv", "Reshape", "ReduceMean"])


def test_attention_takes_no_view_to_spare(program_of, run):
    def build(graph, x):
        heads = view(graph, x, "t b (h d) y x -> t b h d (y x)", h=3)
        scores = graph.call_function(torch.matmul, (heads, view(graph, heads, "t b h d n -> t b h n d")))
        out = graph.call_function(torch.matmul, (scores, heads))
        return view(graph, out, "t b h d n -> t b (h d) n")

    operators = ["Reshape", "Transpose", "MatMul", "MatMul", "Reshape"]
    check(run, program_of(EVENTS, build), operators, tolerance=1e-4)


def test_the_transpose_of_a_square_matrix_is_not_lost(program_of, run):
    def build(graph, x):
        n = view(graph, x, "t b c y x -> t b (y x) c")
        product = graph.call_function(torch.matmul, (n, view(graph, n, "t b n c -> t b c n")))
        weighted = graph.call_function(operator.mul, (product, graph.get_attr("scale")))  # no longer symmetric
        return view(graph, weighted, "t b n m -> t b m n")

    check(run, program_of(EVENTS, build, scale=torch.randn(80)), tolerance=1e-4)


def test_blocks_are_one_split(program_of, run):
    def build(graph, x):
        a, b, c = (graph.call_function(ops.take_block, (x, 2, i, 3)) for i in range(3))
        return graph.call_function(operator.mul, (graph.call_function(operator.sub, (a, b)), c))

    program = program_of(EVENTS, build)
    check(run, program, ["Reshape", "Split", "Sub", "Mul", "Reshape"])


def test_blocks_of_time(program_of, run):
    def build(graph, x):
        early, late = (graph.call_function(ops.take_block, (x, 0, i, 2)) for i in range(2))
        return graph.call_function(operator.sub, (late, early))

    check(run, program_of(EVENTS, build))


@pytest.mark.parametrize(
    "pattern",
    ["b c y x -> t b c y x", "b c y x -> b t c y x", "b c y x -> b c y x t", "b c y x -> (c b) y t x"],
)
def test_repeats(program_of, run, pattern):
    check(run, program_of(IMAGE, call(einops.repeat, pattern, t=4)), tolerance=0)


def test_a_repeated_image_is_written_out_once(program_of, run):
    def build(graph, x):
        shown = graph.call_function(einops.repeat, (x, "b c y x -> t b c y x"), {"t": 4})
        a, b = (graph.call_module(name, (view(graph, shown, MERGE),)) for name in "ab")
        return graph.call_function(operator.add, (a, b))

    program = program_of(IMAGE, build, a=nn.Conv2d(6, 6, 1), b=nn.Conv2d(6, 6, 1))
    check(run, program, ["Concat", "Conv", "Conv", "Add"])


def test_one_time_step(program_of, run):
    def build(graph, x):
        shown = graph.call_function(einops.repeat, (x, "b c y x -> t b c y x"), {"t": 1})
        y = graph.call_module("layer", (view(graph, shown, MERGE),))
        y = graph.call_module("lif", (view(graph, y, PARTS, t=1),))
        total = graph.call_function(operator.add, (y, shown))
        return graph.call_function(torch.mean, (total,), {"dim": (0,), "keepdim": False})

    lif = neuron.LIFNode(step_mode="m")
    program = program_of(IMAGE, build, layer=nn.Conv2d(6, 6, 3, padding=1), lif=lif)
    check(run, program, ["Conv", "LIF_tau2_T1", "Add"], tolerance=1e-3)


def test_refusals_name_the_layer(program_of):
    pool = nn.AvgPool2d(3, 2, ceil_mode=True)
    with pytest.raises(UnsupportedError, match="layer: average pooling over windows that are cut off"):
        lower(program_of(IMAGE, layer, layer=pool))
    pool = nn.AvgPool2d(2, divisor_override=3)
    with pytest.raises(UnsupportedError, match="layer: average pooling with a divisor"):
        lower(program_of(IMAGE, layer, layer=pool))


def test_an_operation_outside_the_list_is_a_fault_of_ours(program_of):
    program = program_of(IMAGE, layer, layer=nn.Conv2d(6, 6, 1))
    program.module.layer = nn.ReLU()
    with pytest.raises(InternalError, match="layer: ReLU has no ONNX lowering"):
        lower(program)
