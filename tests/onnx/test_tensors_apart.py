"""Files without their large tensors: the same bytes as protobuf's once these are back, and no copy of them before."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from svitc.errors import InputError
from svitc.onnx import to_bytes, weight_bytes
from svitc.onnx.model_info import file_of, read_apart
from svitc.onnx.tensors_apart import MARK_BYTES, take_out

SIZES = (1, MARK_BYTES // 4, MARK_BYTES, 20_000)


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    """A model with tensors below, at and above the size from which they are kept apart, one of int4 among them."""
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.standard_normal(n).astype(np.float32), f"float{n}") for n in SIZES]
    tensors += [numpy_helper.from_array(rng.integers(0, 9, n).astype(np.int8), f"int{n}") for n in SIZES]
    values = rng.integers(-8, 8, 5001).astype(np.int8)
    tensors.append(ir.to_proto(ir.Tensor(values, dtype=ir.DataType.INT4, name="int4")))
    nodes = [helper.make_node("Identity", [tensor.name], [f"{tensor.name}_copy"]) for tensor in tensors]
    outputs = [helper.make_tensor_value_info(f"{t.name}_copy", t.data_type, list(t.dims)) for t in tensors]
    return helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors), ir_version=10)


def test_a_file_is_written_as_protobuf_writes_it(proto):
    model = ir.from_proto(proto)
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)
    assert to_bytes(model) == ir.to_proto(model).SerializeToString(deterministic=True)
    assert all(isinstance(value.const_value, ir.Tensor) for value in model.graph.initializers.values())


def test_a_file_read_without_its_tensors_can_be_changed_and_written(proto):
    file = proto.SerializeToString(deterministic=True)
    more = onnx.ModelProto(doc_string="behind the file")
    more.graph.output.append(helper.make_tensor_value_info("float1", 1, None))
    joined = file + more.SerializeToString()  # as taps and metadata are added, which gives a file two graphs
    for whole in (file, joined):
        read, tensors = read_apart(whole)
        assert read.ByteSize() < len(SIZES) * 2 * MARK_BYTES + 4000 < 5 * SIZES[-1]
        assert weight_bytes(read) == weight_bytes(onnx.load_from_string(whole)) == weight_bytes(whole)
        expected = onnx.load_from_string(whole)
        for each in (read, expected):
            each.graph.node[0].name = "changed"
            del each.graph.initializer[2]
        assert file_of(read, tensors) == expected.SerializeToString(deterministic=True)


def test_a_mark_is_never_taken_for_values(proto):
    read, _ = read_apart(proto.SerializeToString())
    with pytest.raises(ValueError):
        numpy_helper.to_array(next(t for t in read.graph.initializer if t.name == f"float{SIZES[-1]}"))


def test_damaged_files_are_refused(proto):
    file = proto.SerializeToString()
    for damaged in (file[:-1], file[: len(file) // 2], b"\xff" * 20, b"\x3a"):
        with pytest.raises(ValueError):
            take_out(damaged)
        with pytest.raises(InputError):
            read_apart(damaged)
