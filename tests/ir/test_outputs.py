"""Names and structure of what a model returns, and which values can be outputs."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from support import several
from svitc.errors import InputError, UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import reference
from svitc.ir.outputs import (
    Unrepresentable,
    check_description,
    class_scores,
    describe_outputs,
    labels,
    output_names,
    rename_reserved,
    restored,
    tensors_of,
)

A, B, C = (torch.full((2,), float(n)) for n in range(3))
Pair = namedtuple("Pair", "left right")


@dataclass
class Found:
    boxes: torch.Tensor
    extra: object = None


STRUCTURES = {  # what is returned -> names of the tensors in it
    "tuple": ((A, B), ["output_0", "output_1"]),
    "list": ([A, B, C], ["output_0", "output_1", "output_2"]),
    "dictionary": ({"boxes": A, "scores": B}, ["boxes", "scores"]),
    "nested": ({"maps": [A, B], "aux": {"head": C}}, ["maps.0", "maps.1", "aux.head"]),
    "tuple in tuple": ((A, (B, C)), ["output_0", "output_1.0", "output_1.1"]),
    "one in a dictionary": ({"out": A}, ["out"]),
    "one in a list": ([A], ["logits"]),
    "plain values": ({"a": A, "n": 3, "none": None, "b": (B, True, 0.5, "text")}, ["a", "b.0"]),
    "numbers as keys": ({0: A, 1: B}, ["output_0", "output_1"]),
    "the input's name": ({"x": A, "y": B}, ["x_2", "y"]),
    "signs": ({"p 3/4": A, "p_3/4": B}, ["p_3/4", "p_3/4_2"]),
    "no text": ({"": A, "b": B}, ["output", "b"]),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_what_a_model_returns_is_described_and_restored(case):
    value, names = STRUCTURES[case]
    leaves, described = describe_outputs(value, torch.Tensor)
    info = json.loads(json.dumps({"outputs": described}))
    assert output_names(info) == names and labels(info) == [f"output {name}" for name in names]
    check_description(info["outputs"], len(leaves))
    again = restored(info, tuple(leaves) if len(leaves) > 1 else leaves[0])
    assert several.same(again, value)
    assert [id(t) for t in tensors_of(value)] == [id(t) for t in leaves]


@pytest.mark.parametrize("value", [A, (A, None), (A, {}), (A, {"hook": None})])
def test_one_tensor_beside_nothing_is_returned_by_itself(value):
    leaves, described = describe_outputs(value, torch.Tensor)
    assert leaves[0] is A and len(leaves) == 1 and described is None
    assert output_names({}) == ["logits"] == labels({}) and restored({}, A) is A


def test_named_tuples_and_dataclasses_give_names():
    assert output_names({"outputs": describe_outputs(Pair(A, B), torch.Tensor)[1]}) == ["left", "right"]
    assert output_names({"outputs": describe_outputs(Found(A, [B]), torch.Tensor)[1]}) == ["boxes", "extra.0"]


@pytest.mark.parametrize("value", [[A, object()], {"a": A, (1, 2): B}, [A, float("nan")]])
def test_what_json_cannot_hold_is_no_output(value):
    with pytest.raises(Unrepresentable):
        describe_outputs(value, torch.Tensor)


GOOD = {"names": ["a", "b"], "structure": {"tuple": [{"output": 0}, {"output": 1}]}}
MALFORMED = {
    "no description": None,
    "no dictionary": [],
    "no names": {"structure": GOOD["structure"]},
    "too few names": GOOD | {"names": ["a"]},
    "equal names": GOOD | {"names": ["a", "a"]},
    "the input's name": GOOD | {"names": ["a", "x"]},
    "code as a name": GOOD | {"names": ["a", 'b"); import os']},
    "a number as a name": GOOD | {"names": ["a", 1]},
    "no structure": {"names": ["a", "b"]},
    "an output twice": GOOD | {"structure": {"tuple": [{"output": 0}, {"output": 0}]}},
    "another order": GOOD | {"structure": {"tuple": [{"output": 1}, {"output": 0}]}},
    "an output too many": GOOD | {"structure": {"list": [{"output": n} for n in range(3)]}},
    "true as a number": GOOD | {"structure": {"list": [{"output": False}, {"output": True}]}},
    "a kind of its own": GOOD | {"structure": {"set": [{"output": 0}, {"output": 1}]}},
    "two kinds": GOOD | {"structure": {"tuple": [], "list": []}},
    "no pairs": GOOD | {"structure": {"dict": [["a"], ["b"]]}},
    "equal keys": GOOD | {"structure": {"dict": [["a", {"output": 0}], ["a", {"output": 1}]]}},
    "a key that is a list": GOOD | {"structure": {"dict": [[["a"], {"output": 0}], ["b", {"output": 1}]]}},
    "a value that is a list": GOOD | {"structure": {"list": [{"output": 0}, {"output": 1}, {"value": []}]}},
    "a value that is no number": GOOD | {"structure": {"list": [{"output": 0}, {"output": 1}, {"value": 1e999}]}},
}


def test_an_output_that_was_saved_under_the_inputs_name_gets_another():
    described = {"names": ["image", "image_2"], "structure": GOOD["structure"]}
    with pytest.raises(InputError):
        check_description(described, 2)
    rename_reserved(described)
    check_description(described, 2)
    assert described["names"] == ["image_3", "image_2"]


@pytest.mark.parametrize("case", MALFORMED)
def test_an_untrusted_description_is_checked(case):
    check_description(GOOD, 2)
    with pytest.raises(InputError):
        check_description(MALFORMED[case], 2)


SCORES = {  # network -> the output that scores classes, and its time dimension
    "Single": (0, None),
    "Tuple": None,  # two of the same form
    "Maps": (2, None),
    "OverTime": None,
    "Named": (1, 1),
    "Detection": None,
    "Dense": None,
}


@pytest.mark.parametrize("name", SCORES)
def test_the_output_that_scores_classes(name):
    program = several.program_of(several.build(name))
    scores = class_scores(program.graph, program.info)
    expected = SCORES[name]
    if expected is None:
        assert scores is None
        return
    assert scores is not None and (scores.index, scores.time) == expected
    outputs = program.outputs(torch.randn(several.IMAGE.batched(2)))
    assert scores.of(outputs).shape == (2, 5)


class Returns(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        self.inner, self.body = several.build("Single"), body
        self.register_buffer("table", torch.ones(5))

    def forward(self, x):
        return self.body(self, x, self.inner(x))


REFUSED = {
    "a parameter": (lambda net, x, y: (y, net.table), "output_1, returns .*the same for every image"),
    "samples run together": (lambda net, x, y: {"a": y, "flat": y.flatten()}, "flat, returns .*the batch is merged"),
    "an object": (lambda net, x, y: [y, slice(None)], "returns a slice"),
    "nothing": (lambda net, x, y: None, "no tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_an_output_is_refused(case):
    body, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message):
        capture(Returns(body).eval(), several.IMAGE)


def test_a_dataclass_is_returned_as_a_dictionary():
    model = Returns(lambda net, x, y: Found(boxes=y, extra=(y * 2, None))).eval()
    program, x = capture(model, several.IMAGE), torch.randn(several.IMAGE.batched(2))
    assert program.output_names == ["boxes", "extra.0"] and list(program(x)) == ["boxes", "extra"]
    assert several.same(program(x)["extra"], reference(model, program, x)["extra"])


def test_the_channels_of_every_output_stay():
    program = several.program_of(several.build("Maps"))
    frozen = {group.name: group.frozen for group in program.groups}
    assert frozen["p1.0"] == frozen["p2.0"] == frozen["head"] == "the model's output"
    assert frozen["stem.0"] is None and frozen["inner.0"] is None and frozen["p3.0"] is None
