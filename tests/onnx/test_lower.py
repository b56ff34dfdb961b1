"""Every family, small: one valid file, named by layer, for any batch, that computes what the program does."""

from __future__ import annotations

import gc
import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.errors import InputError, UnsupportedError
from svitc.ir import ops
from svitc.ir.pass_manager import Pipeline
from svitc.onnx import lower, node_count, target_of, to_bytes, weight_bytes
from svitc.onnx.function_body import CURRENT_KEY, KIND_KEY, PATH_KEY
from svitc.onnx.model_info import metadata_of
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.inference.fold_batch_norm import FoldBatchNorm
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.runtimes import session


@pytest.fixture
def closed(captured) -> ir.Model:
    """The file with functions."""
    return lower(captured, target_of("cpu", functions=True))


@pytest.fixture
def proto(captured) -> onnx.ModelProto:
    return onnx.load_from_string(to_bytes(lower(captured)))


def test_the_file_is_valid_and_of_default_operators(proto):
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.functions and not any(node.domain for node in proto.graph.node)
    assert [each.domain for each in proto.opset_import] == [""]
    assert [i.name for i in proto.graph.input] == ["image"] and [o.name for o in proto.graph.output] == ["logits"]


def test_a_file_with_functions_is_valid(closed):
    proto = ir.to_proto(closed)
    onnx.checker.check_model(proto, full_check=True)
    functions = {(f.domain, f.name) for f in proto.functions}
    called = {(n.domain, n.op_type) for n in proto.graph.node if n.domain}
    assert called == functions
    assert all(not node.domain for function in proto.functions for node in function.node)


def test_only_the_batch_is_dynamic(captured, proto):
    def dims(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    batched = list(captured.input.batched(-1))
    assert dims(proto.graph.input[0]) == ["N" if n == -1 else n for n in batched]
    logits = captured.shape_of(captured.graph.output_node())
    assert dims(proto.graph.output[0]) == [*logits[:-2], "N", logits[-1]]


def test_nodes_are_named_by_layer_and_names_are_unique(captured, proto):
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names) and all(names)
    values = [name for node in proto.graph.node for name in node.output]
    values += [each.name for each in proto.graph.initializer]
    assert len(set(values)) == len(values)
    neurons = {str(node.target) for node in captured.neurons()}
    layers = {str(node.target) for node in captured.graph.nodes if node.op == "call_module"}
    assert layers - neurons <= set(names)
    assert neurons == {name.partition("/")[0] for name in names if "/" in name} and neurons <= set(values)
    weights = {f"{name}.weight" for name in layers if ops.is_projection(captured.module.get_submodule(name))}
    assert weights <= {each.name for each in proto.graph.initializer}


def test_metadata_say_which_neuron_gives_which_spikes(captured, form):
    proto = ir.to_proto(lower(captured, form))
    spikes = {node.output[0]: metadata_of(node) for node in proto.graph.node if node.metadata_props}
    assert list(spikes) == [str(node.target) for node in captured.neurons()]
    values = {name for node in proto.graph.node for name in node.output} | {"image"}
    for path, meta in spikes.items():
        assert meta[PATH_KEY] == path and meta[KIND_KEY] == "LIF" and meta[CURRENT_KEY] in values


def test_each_neuron_is_one_node_of_a_file_with_functions(captured, closed):
    calls = [node.name for node in closed.graph if node.domain]
    assert calls == [str(node.target) for node in captured.neurons()]


def test_nothing_is_emitted_that_need_not_be(closed):
    proto = ir.to_proto(closed)
    operators = {node.op_type for node in proto.graph.node if not node.domain}
    assert not operators & {
        "Identity",
        "Cast",
        "Constant",
        "Dropout",
        "Shape",
        "Expand",
        "Squeeze",
        "Unsqueeze",
    }
    shapes = {v.name: v.type for v in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    for node in proto.graph.node:
        if node.op_type == "Reshape":
            assert shapes[node.input[0]] != shapes[node.output[0]]
        elif node.op_type == "Transpose":
            (perm,) = node.attribute
            assert list(perm.ints) != sorted(perm.ints)


def test_views_that_only_merge_time_and_batch_cost_nothing(captured_as):
    model = lower(captured_as("sdt"))
    views = [node.name for node in model.graph if node.op_type in ("Reshape", "Transpose")]
    assert len(views) == 1, views  # before the mean over time


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_runs(captured, batch):
    torch.manual_seed(batch)
    x = torch.randn(captured.input.batched(batch))
    (logits,) = session(to_bytes(lower(captured)), threads=1).run(None, {"image": x.numpy()})
    want = captured(x).numpy()
    assert logits.shape == want.shape
    # a membrane within rounding of its threshold may flip here; test_cut.py looks at every neuron
    assert np.abs(logits - want).max() < 0.1 * np.abs(want).max()


def test_the_same_program_gives_the_same_bytes(captured):
    assert to_bytes(lower(captured)) == to_bytes(lower(captured.copy())) == to_bytes(lower(captured))


def test_weight_bytes_are_those_of_the_file(captured, tmp_path):
    model = lower(captured)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_bytes(model))
    proto = onnx.load(path)
    stored = sum(onnx.numpy_helper.to_array(each).nbytes for each in proto.graph.initializer)
    statistics = sum(b.numel() for n, b in captured.module.named_buffers() if "running" in n)
    extra = stored - 4 * (captured.parameter_count() + statistics)
    assert 0 < extra < 500  # scalars and shapes
    for form in (model, proto, path, str(path), path.read_bytes()):
        assert weight_bytes(form) == stored


def test_weights_of_four_bits_count_half_a_byte():
    tensor = ir.PackedTensor(np.zeros(8, np.uint8), ir.DataType.INT4, shape=ir.Shape([16]), name="w")
    w = ir.val("w", const_value=tensor)
    y = ir.val("y", shape=ir.Shape([16]), dtype=ir.DataType.FLOAT)
    cast = ir.node("Cast", [w], {"to": 1}, outputs=[y])
    graph = ir.Graph([], [y], nodes=[cast], initializers=[w], opset_imports={"": 21}, name="g")
    model = ir.Model(graph, ir_version=10)
    assert weight_bytes(model) == weight_bytes(to_bytes(model)) == 8


def test_nodes_are_counted_with_and_without_function_bodies(captured, closed):
    model = closed
    calls = [node.op_type for node in model.graph if node.domain]
    bodies = {f.name: len(list(f)) for f in model.functions.values()}
    outside = len(list(model.graph))
    assert node_count(model, inlined=False) == outside
    assert (
        node_count(lower(captured))
        == node_count(to_bytes(model))
        == outside - len(calls) + sum(bodies[name] for name in calls)
    )


def test_weights_that_a_file_cannot_hold_are_refused(captured):
    model = lower(captured)
    huge = ir.tensor(np.broadcast_to(np.float32(0), (1 << 29,)), name="huge")  # 2 GB that take 4 bytes
    model.graph.register_initializer(ir.Value(name="huge", const_value=huge))
    with pytest.raises(UnsupportedError, match=r"2\.15 GB of weights; in one piece it can have 2 GB at most"):
        to_bytes(model)


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    for read in (node_count, weight_bytes, session):
        with pytest.raises(InputError, match=r"model\.onnx"):
            read(path)


def test_after_the_passes_the_first_neuron_gets_its_current_once(captured_as):
    passes = [MergeViews(), HoistRepeat(), MergeViews(), FoldBatchNorm()]
    program = Pipeline(passes)(captured_as("spikformer").copy())
    model = lower(program, target_of("cpu", functions=True))
    onnx.checker.check_model(to_bytes(model), full_check=True)
    operators = [node.op_type for node in model.graph]
    assert operators[:2] == ["Conv", "LIF_tau2_T4_static"] and "Concat" not in operators
    assert "BatchNormalization" not in operators
    x = torch.randn(program.input.batched(2))
    (logits,) = session(to_bytes(model), threads=1).run(None, {"image": x.numpy()})
    assert np.abs(logits - program(x).numpy()).max() < 0.1


def test_time_is_linear_in_depth(program_of):
    def chain(depth: int):
        def build(graph, x):
            for i in range(depth):
                x = graph.call_module(f"lif{i}", (graph.call_module(f"norm{i}", (x,)),))
            return x

        modules = {f"lif{i}": neuron.LIFNode(step_mode="m") for i in range(depth)}
        return program_of((4, 3, 2, 2), build, **modules, **{f"norm{i}": nn.Linear(2, 2) for i in range(depth)})

    def seconds(program) -> float:
        times = []
        gc.freeze()  # otherwise collections walk all that torch has loaded, which depends on what ran before
        for _ in range(5):
            start = time.perf_counter()
            lower(program)
            times.append(time.perf_counter() - start)
        gc.unfreeze()
        return min(times)

    assert seconds(chain(400)) < 3 * 8 * seconds(chain(50))
