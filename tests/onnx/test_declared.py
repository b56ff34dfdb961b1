"""A file holds nothing but what its target declares; a node that it does not declare is named."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from support.quantized import case_of
from svitc.errors import UnsupportedError
from svitc.onnx import TARGETS, lower
from svitc.onnx.declared import check_declared
from svitc.onnx.export import export
from svitc.onnx.target import OPENVINO
from svitc.passes.pipelines import exportable_program


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["spikformer", "maxformer", "integer"])
def test_every_target_writes_what_it_declares(name, target):
    export(case_of(name), target)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("Round", "OpenVINO has no Round of float that target openvino may use"),
        ("QuantizeLinear", "OpenVINO has no QuantizeLinear of float"),
    ],
)
def test_an_operator_that_is_not_declared_is_named(operator, message):
    fewer = replace(OPENVINO, operators=OPENVINO.operators - {operator})
    with pytest.raises(UnsupportedError, match=message) as refused:
        check_declared(lower(exportable_program(case_of("spikformer")), fewer), fewer)
    assert refused.value.hint == "--target cpu writes any model."


def test_a_type_that_is_not_declared_is_named():
    without = replace(OPENVINO, types=OPENVINO.types - {ir.DataType.UINT8})
    with pytest.raises(UnsupportedError, match="has no QuantizeLinear of uint8"):
        check_declared(lower(exportable_program(case_of("spikformer")), without), without)


def test_an_operator_that_accepts_fewer_types_is_named():
    model = lower(exportable_program(case_of("spikformer")), TARGETS["cpu"])
    limited = replace(TARGETS["cpu"], limits={"Pad": frozenset({ir.DataType.FLOAT})})
    with pytest.raises(UnsupportedError, match="has no Pad of uint8 that target cpu may use"):
        check_declared(model, limited)


def test_what_is_computed_at_load_needs_no_kernel():
    number = ir.val("number", const_value=ir.tensor([1], dtype=ir.DataType.INT16))
    wide = ir.val("wide", ir.DataType.FLOAT, ir.Shape([1]))
    x, y = (ir.val(name, ir.DataType.FLOAT, ir.Shape([1])) for name in "xy")
    nodes = [
        ir.node("Cast", [number], {"to": ir.DataType.FLOAT.value}, outputs=[wide]),
        ir.node("Add", [x, wide], outputs=[y]),
    ]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[number], opset_imports={"": 21})
    check_declared(ir.Model(graph, ir_version=10), OPENVINO)
