"""QuantizeResidualStreams: real streams as bytes where products read them, without any data."""

from __future__ import annotations

import math
import operator

import onnx
import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from support.families import FAMILIES, warm
from svitc.analysis.exactness import inexact
from svitc.analysis.integer_range import integer_ranges
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program
from svitc.ir.quantized_modules import FixedPoint
from svitc.onnx.export import export
from svitc.passes import QuantizeResidualStreams
from svitc.passes.pipelines import quantize
from svitc.passes.quantization.quantize_residual_streams import LEVELS, Spread, spreads
from svitc.verification.exact_check import verify_exact

PICTURE = (3, 8, 6)


def lif() -> nn.Module:
    return neuron.LIFNode(decay_input=False, step_mode="m")


def block(inside: int, outside: int, kernel: int = 1, **options: int) -> nn.Module:
    conv = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False, **options)
    return layer.SeqToANNContainer(conv, nn.BatchNorm2d(outside))


class Stream(nn.Module):
    """A membrane stream that a layer reads directly, of which neurons take the spikes."""

    def __init__(self, kernel: int = 1, stride: int = 1, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first = block(3, 8, 3), lif()
        self.up, self.second = block(8, 8), lif()
        self.reads, self.third = block(8, 8, kernel, stride=stride), lif()
        self.fourth = lif() if twice else None
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.stem(x.unsqueeze(0).repeat(3, 1, 1, 1, 1))
        stream = stream + self.up(self.first(stream))
        read = self.third(self.reads(stream)) + (self.fourth(self.reads(stream * 2)) if self.fourth else 0)
        return self.head(read.flatten(3).mean(3)).mean(0)


def captured(model: nn.Module, shape: tuple[int, ...] = PICTURE) -> Program:
    program = capture(warm(model, shape), InputSpec(shape))
    run_canonical_passes(program)
    return program


def family(name: str) -> Program:
    torch.manual_seed(0)
    factory, shape = FAMILIES[name]
    return captured(factory(T=2), shape)


def values(program: Program, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every value of the program on a batch, by node."""
    from torch import fx

    found: dict[str, torch.Tensor] = {}

    class All(fx.Interpreter):
        def run_node(self, n: fx.Node):
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        All(program.module).run(x)
    return found


def rounded(program: Program) -> dict[str, FixedPoint]:
    """What rounds a stream, by the name of the value that is rounded."""
    nodes = [node for node in program.graph.nodes if node.op == "call_module"]
    found = {node.all_input_nodes[0].name: program.module_of(node) for node in nodes}
    return {name: each for name, each in found.items() if isinstance(each, FixedPoint) and each.limit == LEVELS}


def test_every_attention_of_maxformer_reads_bytes():
    program = family("maxformer")
    readers = [
        str(node.target)
        for node in program.graph.nodes
        if ops.is_projection(program.module_of(node)) and ".attn.qkv" in str(node.target)
    ]
    assert readers
    final, _ = quantize(program)
    known = integer_ranges(final)
    for node in final.graph.nodes:
        if str(node.target) in readers:
            grid = known[node.all_input_nodes[0]]
            assert (grid.unit, grid.low, grid.high) == (1.0, -LEVELS, LEVELS) and grid.is_signed_byte
            readers.remove(str(node.target))
    assert not readers and set(inexact(final)) == {"head_lif", "logits"}, "all but what a mean comes before is exact"


@pytest.mark.parametrize("name", ["spikformer", "sdt", "qkformer-token", "maxformer-cifar"])
def test_streams_of_spikes_and_classifiers_stay_as_they_are(name):
    program = family(name)
    result = QuantizeResidualStreams()(program)
    assert not result.changed and not result.refused
    for node in program.graph.nodes:
        if str(node.target).startswith("head") and isinstance(program.module_of(node), nn.Linear):
            assert not isinstance(program.module_of(node.all_input_nodes[0]), FixedPoint)


def test_the_range_is_that_of_the_stream():
    program = family("maxformer")
    twin = program.copy()
    QuantizeResidualStreams()(twin)
    x = random_inputs(program, 8, 8, seed=1)[0]
    seen = values(program, x)
    for name, steps in rounded(twin).items():
        assert math.frexp(steps.step)[0] == 0.5 and steps.limit == LEVELS
        largest, spread = float(seen[name].abs().max()), float(seen[name].std())
        assert largest < LEVELS * steps.step, "nothing is clipped"
        assert steps.step < 0.25 * spread, "steps are fine beside what the stream carries"


def test_a_batch_norm_of_rare_spikes_is_not_clipped():
    """A channel that fires once in 400 times is 20 standard deviations from its mean then."""

    class Rare(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(self.stem(x.unsqueeze(0).repeat(3, 1, 1, 1, 1)))
            y = self.up[1](y.flatten(0, 1)).unflatten(0, y.shape[:2])
            return self.head(self.third(self.reads(y)).flatten(3).mean(3)).mean(0)

    program = captured(Rare(kernel=3))  # that pads with zeros, so that the batch norm cannot become part of it
    norm = program.module.get_submodule("up.1")
    norm.running_mean.fill_(0.0025)
    norm.running_var.fill_(0.0025)
    largest = float(norm(torch.ones(1, 8, 1, 1)).max())
    QuantizeResidualStreams()(program)
    (fixed,) = rounded(program).values()
    assert largest > 15 and fixed.step * LEVELS >= largest


def test_the_network_changes_little():
    program = captured(Stream())
    twin = program.copy()
    QuantizeResidualStreams()(twin)
    x = random_inputs(program, 8, 8, seed=1)[0]
    before, after = values(program, x), values(twin, x)
    name = next(
        n.name for n in program.graph.nodes if ".reads" in f".{n.target}" and ops.is_projection(program.module_of(n))
    )
    off = (after[name] - before[name]).square().mean().sqrt() / before[name].std()
    assert 0 < float(off) < 0.02


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_spikes_are_the_references_bit_for_bit(kernel, stride, target):
    """A border of a stream is zero, which a byte around 128 stores as 128."""
    final, _ = quantize(captured(Stream(kernel, stride)))
    assert set(inexact(final)) == {"logits"} and len(rounded(final)) == 1
    exported = export(final, target)
    kinds = [node.op_type for node in onnx.load_from_string(exported).graph.node]
    assert kinds.count("QuantizeLinear") == 3
    for seed in range(3):
        verdict = verify_exact(final, exported, random_inputs(final, 8, 4, seed))
        assert verdict.passed and verdict.total("flips_beyond_rounding") == 0, verdict.to_json()
        assert verdict.total("firing") > 0


def test_what_lies_beyond_the_range_is_clipped_alike():
    final, _ = quantize(captured(Stream()))
    steps = next(iter(rounded(final).values()))
    steps.step /= 64
    verdict = verify_exact(final, export(final), random_inputs(final, 8, 4, 0))
    assert verdict.passed and verdict.total("flips_beyond_rounding") == 0, verdict.to_json()


def test_refuses_a_layer_that_is_called_twice():
    program = captured(Stream(twice=True))
    weight = program.module.get_submodule("reads.0").weight.clone()
    result = QuantizeResidualStreams()(program)
    assert not result.changed and result.refused
    assert all(why == "reads.0 reads it and is called more than once" for why in result.refused.values())
    assert torch.equal(program.module.get_submodule("reads.0").weight, weight)


def test_spreads_are_those_of_batch_norms():
    torch.manual_seed(0)
    program = captured(Stream())
    norms = {"stem.1": (0.5, 2.0), "up.1": (-1.0, 3.0)}
    with torch.no_grad():
        for path, (shift, scale) in norms.items():
            program.module.get_submodule(path).bias.fill_(shift)
            program.module.get_submodule(path).weight.fill_(scale)
    found = spreads(program, integer_ranges(program))
    by_target = {str(n.target): found.get(n) for n in program.graph.nodes}
    assert by_target["stem.1"] == Spread(0.5, 0.5, 4.0) and by_target["up.1"] == Spread(-1.0, -1.0, 9.0)
    total = next(found[n] for n in program.graph.nodes if n.target is operator.add and n in found)
    assert total == Spread(-0.5, -0.5, 13.0) and total.reach == pytest.approx(0.5 + 6 * math.sqrt(13))
    assert by_target["first"] == Spread(0.0, 1.0, 0.0), "a spike has bounds"
    assert by_target["head"] is None and by_target["stem.0"] is None
