"""Weights of 4 and 2 bits: packed as predicted, and ONNX Runtime's spikes stay the reference's, bit for bit."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from support.exported import missing, spikes_of
from support.families import FAMILIES
from support.measured import family
from support.programs import frames, lif, steps, tokens, written
from svitc import onnx as backend
from svitc import runtimes
from svitc.analysis.exactness import inexact, narrowable
from svitc.data.inputs import random_inputs
from svitc.driver.report_sections import weights_report
from svitc.errors import UsageError
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export
from svitc.passes import Prune, RoundWeights
from svitc.passes.pipelines import exportable_program, quantize
from svitc.planning.cost import byte_cost
from svitc.planning.plan import Plan
from svitc.verification.exact_check import verify_exact
from svitc.verification.recorder import Recorder

TYPES = {16: TensorProto.INT16, 8: TensorProto.INT8, 4: TensorProto.INT4, 2: TensorProto.INT2}
BIASED = ("query", "key", "value", ".q", ".k", ".v")  # siblings, which the file holds as one matrix
KINDS = (4, 2, "mixed")
CASES = [*((name, kind) for name in FAMILIES for kind in (2, "mixed")), ("spikformer", 4), ("sdt", 4), ("maxformer", 4)]


@functools.cache
def whole(name: str) -> tuple[Program, Program]:
    """A family, and the same in 8 bits."""
    program = family(name).copy()
    Prune(Plan({}))(program)
    return program, quantize(program)[0]


@functools.cache
def wanted(name: str, kind: Any) -> dict[str, int]:
    """Bits: all the same, ``mixed``, or ``alike``: mixed, but siblings alike."""
    layers = [layer for layer, why in narrowable(whole(name)[1]).items() if not why]
    if kind in (8, 4, 2):
        return dict.fromkeys(layers, kind)
    generator = random.Random(name)
    drawn: dict[str, int] = {}
    for layer in layers:
        unit = layer.rpartition(".")[0] if kind == "alike" and layer.endswith(BIASED) else layer
        drawn.setdefault(unit, generator.choice((8, 4, 2)))
    return {layer: drawn.get(layer, drawn.get(layer.rpartition(".")[0], 8)) for layer in layers}


@functools.cache
def low(name: str, kind: Any) -> Program:
    """A family of these bits, rounded without images; not to be changed."""
    twin, bits = whole(name)[0].copy(), wanted(name, kind)
    RoundWeights(bits)(twin)
    return quantize(twin, bits)[0]


@functools.cache
def file_of(name: str, kind: Any) -> bytes:
    return export(low(name, kind))


@functools.cache
def lowered(name: str, kind: Any) -> Program:
    """Its layers joined, as the file has them."""
    return exportable_program(low(name, kind))


def tensors(exported: bytes) -> dict[str, TensorProto]:
    return {t.name: t for t in onnx.load_from_string(exported).graph.initializer}


def version(exported: bytes) -> tuple[int, int]:
    model = onnx.load_from_string(exported)
    return next(each.version for each in model.opset_import if each.domain == ""), model.ir_version


def members(path: str) -> list[str]:
    """Layers that a layer of the lowered program stands for."""
    owner, _, names = path.rpartition(".")
    return [f"{owner}.{each}" for each in names.split("+")] if "+" in names else [path]


# the same spikes


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_spikes_are_the_references_bit_for_bit(name, kind):
    program, exported, joined = low(name, kind), file_of(name, kind), lowered(name, kind)
    soft = inexact(joined)
    assert set(inexact(program)) == set(inexact(whole(name)[1])), "fewer bits are as exact"
    for batch, level in (
        (1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (3, ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ):
        x = random_inputs(program, batch, batch, seed=batch)[0]
        reference, logits = Recorder.record(joined, x)
        got, out = spikes_of(exported, x, level)
        assert got.keys() == reference.spikes.keys()
        assert sum(float(s.sum()) for s in reference.spikes.values()) > 500, "a silent network proves nothing"
        for path, want in reference.spikes.items():
            if path not in soft:
                assert np.array_equal(got[path], want.numpy()), path
        assert np.allclose(out, logits.numpy(), rtol=1e-5, atol=1e-6)
    if kind == "mixed" or name == "sdt":  # what a user gets; the above is stricter
        verdict = verify_exact(program, exported, random_inputs(program, 1, 1, 0))
        assert verdict.passed and verdict.total("flips_beyond_rounding") == 0, verdict.to_json()


# what is stored


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_types_and_sizes(name, kind):
    exported, bits, joined = file_of(name, kind), wanted(name, kind), lowered(name, kind)
    found, stored = tensors(exported), set()
    paths = [path for node in joined.graph.nodes if f"{(path := str(node.target))}.weight" in found]
    for path in paths:
        others = 16 if path == paths[0] else 8  # the first reads the image
        tensor, each = found[f"{path}.weight"], max(bits.get(member, others) for member in members(path))
        assert tensor.data_type == TYPES[each], path
        count = joined.module.get_submodule(path).weight.numel()
        assert len(tensor.raw_data) == -(-count * each // 8) and np.prod(tensor.dims) == count
        stored.add(each)
    assert len(stored & {2, 4}) == (2 if kind == "mixed" else 1), "what the rest is about"
    assert version(exported) == ((25, 13) if 2 in stored else (21, 10))
    assert not {TYPES[2], TYPES[4]} & {t.data_type for path, t in found.items() if not path.endswith(".weight")}
    onnx.checker.check_model(onnx.load_from_string(exported), full_check=True)
    layers = weights_report(low(name, kind), Pipeline([])).to_json()["layers"]
    assert {layer: entry["bits"] for layer, entry in layers.items() if layer in bits} == bits


def scalars(exported: bytes) -> int:
    return sum(numpy_helper.to_array(t).nbytes for t in tensors(exported).values() if not t.dims)


@pytest.mark.parametrize("kind", [8, 4, 2, "alike"])
@pytest.mark.parametrize("name", ["spikformer", "maxformer"])
def test_bytes_are_predicted(name, kind):
    """But for scalars, of which the file stores each once."""
    program, inference = whole(name)
    cost = byte_cost(program, inference, backend.weight_bytes(file_of(name, 8)))
    exported = file_of(name, kind)
    more = scalars(exported) - scalars(file_of(name, 8))
    assert backend.weight_bytes(exported) - more == cost(None, wanted(name, kind)) and abs(more) <= 48
    cost.bits = wanted(name, kind)
    assert backend.weight_bytes(exported) - more == cost()
    packed = sum(-(-cost.of(layer) * each // 8) for layer, each in cost.bits.items())
    assert cost() == cost(None, dict.fromkeys(cost.bits, 8)) + packed - sum(map(cost.of, cost.bits))
    assert cost.of("no.such") == 0


@pytest.mark.parametrize("name", ["spikformer", "maxformer-cifar"])
def test_bytes_are_predicted_where_siblings_have_different_bits(name):
    program, inference = whole(name)
    cost = byte_cost(program, inference, backend.weight_bytes(file_of(name, 8)))
    assert backend.weight_bytes(file_of(name, "mixed")) <= cost(None, wanted(name, "mixed")) + 24


@pytest.mark.parametrize("name", ["spikformer", "maxformer"])
def test_fewer_bits_make_a_smaller_file(name):
    sizes = [len(file_of(name, kind)) for kind in (2, 4, 8)]
    weights = [backend.weight_bytes(file_of(name, kind)) for kind in (2, 4, 8)]
    assert sizes == sorted(set(sizes)) and weights == sorted(set(weights))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_program_gives_the_same_bytes(kind):
    again = whole("spikformer")[0].copy()
    RoundWeights(wanted("spikformer", kind))(again)
    assert export(quantize(again, wanted("spikformer", kind))[0]) == file_of("spikformer", kind)
    assert export(low("spikformer", kind)) == file_of("spikformer", kind)


@pytest.mark.parametrize("kind", [4, 2])
def test_a_wrong_weight_is_found_and_named(kind):
    model = onnx.load_from_string(file_of("spikformer", kind))
    weight = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.0.weight")
    data = bytearray(weight.raw_data)
    for at in range(0, 256, 8):
        data[at] ^= 1 << 3  # one weight of the byte
    weight.raw_data = bytes(data)
    program = low("spikformer", kind)
    verdict = verify_exact(program, model.SerializeToString(), random_inputs(program, 1, 1, 0))
    assert verdict.first_divergence == "blocks.0.mlp.neuron1"


# narrower types than a runtime has


@pytest.mark.parametrize(("kind", "narrowest"), [(2, 2), (2, 4), (2, 8), ("mixed", 4)])
def test_wider_types_hold_the_same_numbers(kind, narrowest):
    program = low("sdt", kind)
    exported = export(program, narrowest=narrowest)
    found, plain = tensors(exported), tensors(file_of("sdt", kind))
    kinds = {TYPES[bits]: TYPES[max(bits, narrowest)] for bits in TYPES}
    for path in (path for path in plain if path in found or path.endswith(".weight")):
        assert found[path].data_type == kinds.get(plain[path].data_type, plain[path].data_type), path
    assert version(exported) == {2: (25, 13), 4: (21, 10), 8: (18, 8)}[narrowest]
    assert (len(exported) > len(file_of("sdt", kind))) == (narrowest > 2)
    x = random_inputs(program, 2, 2, 5)[0]
    files = (exported, file_of("sdt", kind))
    logits = [runtimes.session(each).run(None, {backend.INPUT: x.numpy()})[0] for each in files]
    assert np.array_equal(*logits) and verify_exact(program, exported, [x]).passed


@pytest.mark.parametrize("narrowest", [3, 0, 16])
def test_types_that_onnx_lacks(narrowest):
    with pytest.raises(UsageError, match=f"no weights of {narrowest} bits") as refused:
        export(low("spikformer", 4), narrowest=narrowest)
    assert "2 bits: ONNX Runtime" in refused.value.hint


@pytest.mark.parametrize(("name", "kind"), [("spikformer", 4), ("spikformer", 2), ("maxformer", "mixed")])
def test_a_device_gets_bytes(name, kind):
    program = low(name, kind)
    exported = export(program, "cuda")
    assert missing(exported) == [] and version(exported) == (18, 8)
    types = {t.data_type for t in tensors(exported).values()} & set(TYPES.values())
    assert types == {TensorProto.INT8, TensorProto.INT16}, "16: the layer that reads the image"
    assert export(program, "cuda", 2) == exported, "whatever the runtime could load elsewhere"
    verdict = verify_exact(program, exported, random_inputs(program, 1, 1, 0))
    assert verdict.passed and verdict.total("flips_beyond_rounding") == 0, verdict.to_json()
    assert missing(export(program)), "which none of a processor's files would do"


# small and odd layers


class Odd(nn.Module):
    """15 weights, and 21, fill no whole bytes; one channel of the second layer is empty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 1), nn.Conv2d(3, 7, 1)
        self.lifs, self.head = nn.ModuleList(lif() for _ in range(3)), nn.Linear(7, 5)
        with torch.no_grad():
            for each in (self.first, self.second, self.third):
                each.weight *= 6
                each.bias.uniform_(0.2, 1.5)
            self.second.weight[1] = 0

    def forward(self, x):
        s = self.lifs[0](steps(self.first(frames(x))))
        s = self.lifs[1](steps(self.second(frames(s))))
        s = self.lifs[2](steps(self.third(frames(s))))
        return self.head(torch.mean(tokens(s), dim=(0, 2), keepdim=False))


@pytest.mark.parametrize("bits", [4, 2])
def test_weights_that_fill_no_whole_bytes(bits):
    program = written(Odd(), stage=Stage.PRUNED)
    wanted_ = {"second": bits, "third": bits}
    twin = program.copy()
    RoundWeights(wanted_)(twin)
    final, _ = quantize(twin, wanted_)
    exported = export(final)
    found = tensors(exported)
    assert [len(found[f"{layer}.weight"].raw_data) for layer in wanted_] == ([8, 11] if bits == 4 else [4, 6])
    inference = quantize(program)[0]
    before = export(inference)
    cost = byte_cost(program, inference, backend.weight_bytes(before))
    assert cost() - cost(None, wanted_) == (15 + 21) - sum(len(found[f"{layer}.weight"].raw_data) for layer in wanted_)
    more = sum(numpy_helper.to_array(t).nbytes for t in found.values() if t.name.endswith(".scale"))
    more -= sum(numpy_helper.to_array(t).nbytes for t in tensors(before).values() if t.name.endswith(".scale"))
    assert backend.weight_bytes(exported) - cost(None, wanted_) == scalars(exported) - scalars(before) + more
    for layer, each in (("second", 1), ("third", 0)):
        module = final.module.get_submodule(layer)
        size = float((module.weight[each].double() * module.scale[each].double()).abs().max())
        assert (size < 1e-20) == (layer == "second"), "an empty channel stays empty"
    verdict = verify_exact(final, exported, random_inputs(final, 3, 3, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0 and verdict.total("firing") > 100
