"""Class scores are averaged over time in the file, in a fixed order, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper, load_from_string, numpy_helper

from support import several
from svitc import runtimes
from svitc.data.inputs import random_inputs
from svitc.errors import InputError
from svitc.ir.outputs import class_scores
from svitc.onnx.export import export
from svitc.passes.lowering.average_steps import averaged
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify


def test_the_average_is_added_up_step_by_step(digits):
    program, x = digits, random_inputs(digits, 3, 3, 0)[0]
    steps, mean = program(x), averaged(program)(x)
    total = steps[0]
    for step in steps[1:]:
        total = total + step
    assert torch.equal(mean, total * (1 / len(steps))) and mean.std() > 0
    assert averaged(averaged(program))(x).shape == mean.shape, "there is nothing left to average"
    scores = class_scores(program.graph, program.info)
    assert scores is not None and scores.time == 0
    assert scores.of([mean]) is mean and torch.allclose(scores.of([steps]), mean), "both forms are read"


@pytest.mark.parametrize("name", ["Tuple", "Maps", "OverTime", "Named", "Dense"])
def test_several_outputs_and_others_keep_their_shapes(name):
    program = several.program_of(several.build(name))
    assert averaged(program) is program


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_both_forms_are_verified_and_agree(digits, weights):
    final, check = (digits, verify) if weights == "fp32" else (quantize(digits)[0], verify_exact)
    x = random_inputs(digits, 4, 2, 0)
    sessions, shapes = {}, {}
    for per_step in (False, True):
        file = export(final, per_step=per_step)
        verdict = check(final, file, x)
        assert verdict.passed and verdict.agreeing == 4, verdict.to_json()
        sessions[per_step] = runtimes.session(file)
        [output] = load_from_string(file).graph.output
        shapes[per_step] = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
    assert (sessions[False].input_names, sessions[False].output_names) == (["image"], ["logits"])
    assert shapes == {False: ["N", 10], True: [4, "N", 10]}
    mean, steps = (sessions[p].run(None, {"image": x[0].numpy()})[0] for p in (False, True))
    total = ((steps[0] + steps[1]) + steps[2]) + steps[3]
    assert np.array_equal(mean, total * np.float32(0.25)), "the same sums in the same order"


def test_a_wrong_average_is_found(digits):
    model = load_from_string(export(digits))
    node = next(n for n in model.graph.node if n.op_type == "Mul" and n.name.startswith("time_average"))
    share = next(t for t in model.graph.initializer if t.name in node.input)
    share.CopyFrom(numpy_helper.from_array(np.array(0.26, np.float32), share.name))
    verdict = verify(digits, model.SerializeToString(), random_inputs(digits, 2, 2, 0))
    assert not verdict.passed and verdict.first_divergence == "logits"


def test_a_file_of_an_older_version_is_verified(digits):
    model = load_from_string(export(digits, per_step=True))
    for node in model.graph.node:
        node.input[:] = ["x" if name == "image" else name for name in node.input]
    model.graph.input[0].name = "x"
    assert verify(digits, model.SerializeToString(), random_inputs(digits, 2, 2, 0)).passed


def test_a_file_with_other_outputs_is_refused(digits):
    model = load_from_string(export(digits))
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["again"]))
    model.graph.output.append(helper.make_tensor_value_info("again", 1, ["N", 10]))
    with pytest.raises(InputError, match="has the outputs logits, again"):
        verify(digits, model.SerializeToString(), random_inputs(digits, 2, 2, 0))
