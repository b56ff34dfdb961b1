"""The generated source: the same network, bit for bit, without svitc; it trains; and it reads well."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from support.alone import EACH_FOLDER_ALONE
from support.constructs import captured as official
from support.families import FAMILIES, IMAGE, NEURONS, qkformer, spikformer, warm
from support.generated import assert_loads, classes, write
from support.serialized import Custom, bare, canonicalised, captured, mixed, reload, thin
from svitc.codegen.classes import class_name, label, runs
from svitc.codegen.module import program_source
from svitc.codegen.partition import Partition, Tree, find_units, tree_of
from svitc.codegen.statements import Body, Rank, Statement, Value
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.passes.pipelines import canonical_passes

# run by a Python that cannot import svitc; writes the results for each folder
ALONE = (
    EACH_FOLDER_ALONE
    + """\
    with torch.no_grad():
        got = model(x)
    functional.reset_net(model)
    case = results[folder.name] = {
        "equal": bool(torch.equal(got, expected)), "fires": bool(expected.any()), "training": model.training,
        "keys": sorted(model.state_dict()),
    }
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        functional.reset_net(model)
        y = model(x)
        labels = torch.arange(y.shape[-2]) % y.shape[-1]
        loss = torch.nn.functional.cross_entropy(y.reshape(-1, *y.shape[-2:]).mean(0), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        case["gradients"] = all(g is not None and bool(g.isfinite().all()) for g in gradients)
        optimizer.step()
    case["losses"] = losses
    case["svitc"] = any(name.split(".")[0] == "svitc" for name in sys.modules)
print(json.dumps(results))
"""
)


def cases() -> dict[str, Program]:
    programs = {}
    for family in FAMILIES:
        programs[f"{family}, captured"] = captured(family)
        programs[f"{family}, pruned"] = thin(canonicalised(family))
        programs[f"{family}, events"] = thin(canonicalised(family, events=True), 1)
    for kind, arguments in NEURONS.items():
        programs[f"neuron {kind}"] = thin(canonicalised("spikformer", depths=2, **arguments), 2)
    programs["one time step"] = thin(canonicalised("spikformer", T=1, num_heads=1), 3)
    programs["deeper"] = thin(canonicalised("qkformer-token", depths=(2, 1, 3)), 4)
    programs["odd layers"] = mixed()
    programs["bare parameters"] = bare()
    programs["foreign surrogate"] = canonicalised("spikformer", surrogate_function=Custom())
    programs |= {case: thin(official(case), 5) for case in PUBLISHED}
    return programs


PUBLISHED = ("integer", "scaled", "meta")
CASES = [
    *(f"{family}, {form}" for family in FAMILIES for form in ("captured", "pruned", "events")),
    *(f"neuron {kind}" for kind in NEURONS),
    "one time step",
    "deeper",
    "odd layers",
    "bare parameters",
    "foreign surrogate",
    *PUBLISHED,
]


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    return cases()


@pytest.fixture(scope="module")
def alone(programs, tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("sources")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: the number of threads decides the order of some sums
    for i, program in enumerate(programs.values()):
        write(program, root / str(i))
        x = torch.randn(program.input.batched(2))
        torch.save(x, root / str(i) / "x.pt")
        torch.save(program(x).clone(), root / str(i) / "y.pt")
    torch.set_num_threads(threads)
    folders = [str(root / str(i)) for i in range(len(programs))]
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, *folders], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {name: results[str(i)] for i, name in enumerate(programs)}


@pytest.mark.parametrize("case", CASES)
def test_alone_it_is_the_same_network_and_trains(case, alone, programs):
    results = alone[case]
    assert results["equal"] and results["fires"]
    assert not results["svitc"] and not results["training"]
    expected = set(programs[case].module.state_dict())
    expected |= {str(n.target) for n in programs[case].graph.nodes if n.op == "get_attr"}
    assert set(results["keys"]) == expected
    assert results["gradients"]
    assert results["losses"][0] != results["losses"][1]


@pytest.mark.parametrize("case", CASES)
def test_the_same_text_after_saving(case, programs, tmp_path):
    program = programs[case]
    source = program_source(program)
    assert program_source(program) == source
    assert program_source(program.copy()) == source
    assert program_source(reload(program, tmp_path)) == source


@pytest.mark.parametrize("case", CASES)
def test_it_reads_well(case, programs):
    source = program_source(programs[case])
    lines = source.splitlines()
    assert max(map(len, lines)) <= 115
    assert not any(line != line.rstrip() for line in lines) and source.endswith("\n")
    code = source.split('"""', 2)[2]
    assert "svitc" not in code
    bodies = re.findall(r"    def forward\(.*?\n\n", source, flags=re.S)
    assert all(body.count("\n") < 40 for body in bodies)
    names = set(re.findall(r"^ +(\w+) = ", "".join(bodies), flags=re.M))
    assert names <= {*"xyzuqkv", "shortcut"}


def test_writing_leaves_the_program_as_it_is(programs):
    program = programs["spikformer, pruned"]
    before = str(program)
    program_source(program)
    assert str(program) == before
    assert program_source(program) == program_source(program)


# structure


def test_blocks_of_one_structure_share_a_class():
    torch.manual_seed(0)
    program = capture(warm(spikformer(depths=3)), InputSpec(IMAGE))
    Pipeline(canonical_passes())(program)
    source = program_source(program)
    assert classes(source) == ["Layers", "PatchEmbed", "Block", "Model"]
    assert "nn.ModuleList(Block() for _ in range(3))" in source, "nothing differs: no arguments"
    assert "        for block in self.blocks:\n            x = block(x)\n" in source
    assert '"""blocks.0 to blocks.2: [t, b, c, n] -> [t, b, c, n]."""' in source
    pruned = program_source(thin(program))
    assert classes(pruned) == classes(source)
    (head,) = re.findall(r"class Block.*?\n    def __init__\(self, (.*?)\):", pruned, flags=re.S)
    assert head.split(", ") == ["qk", "v", "fc1"]
    assert "qk: channels of attn.qkv_conv_bn.0.q, attn.qkv_conv_bn.0.k" in pruned
    for i in range(3):
        parts = {
            p: program.module.get_submodule(f"blocks.{i}.{p}").out_channels
            for p in ("attn.qkv_conv_bn.0.q", "mlp.fc1.0")
        }
        assert re.search(rf"Block\(qk={parts['attn.qkv_conv_bn.0.q']}, v=\d+, fc1={parts['mlp.fc1.0']}\)", pruned)


def test_stages_of_another_width_share_a_class():
    torch.manual_seed(0)
    program = capture(warm(qkformer(depths=(1, 1, 2))), InputSpec(IMAGE))
    Pipeline(canonical_passes())(program)
    source = program_source(program)
    assert classes(source) == ["Layers", "PatchEmbed1", "Stage", "PatchEmbed", "Stage3", "Model"]
    assert "Stage(width=16, q=16, k=16, fc1=64)" in source
    assert "PatchEmbed(width_in=16, conv1=32, width=32, rows=8)" in source


def test_views_are_patterns_in_named_axes():
    source = program_source(canonicalised("sdt"))
    assert 'rearrange(k, "t b (h d) y x -> t b h (y x) d", h=2)  # [t, b, h, n, d]' in source
    assert 'repeat(x, "b c y x -> t b c y x", t=T)' in source
    assert "self.attn.q_lif(split_time(self.attn.q_bn(self.attn.q_conv(" in source


def test_a_projection_that_was_not_split():
    source = program_source(captured("spikformer"))
    assert "chunk(3, dim=2)[1]" in source


class Tangle(nn.Module):
    """``a`` calls into ``b`` and the other way round, so that neither can be one call."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = layer.Conv2d(3, 3, 1, step_mode="m"), layer.BatchNorm2d(3, step_mode="m")
            self.lif, self.out = neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m")

    def __init__(self):
        super().__init__()
        self.a, self.b = self.Part(), self.Part()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.a.bn(self.a.conv(x))
        x = self.b.lif(self.b.bn(self.b.conv(self.a.lif(x))))
        return self.head(self.b.out(self.a.out(x) + x).mean((3, 4)))


class Wrapped(nn.Module):
    """Everything one level down, as a user's own training code may have it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.backbone = inner

    def forward(self, x):
        return self.backbone(x)


def test_what_does_not_split_is_flat(tmp_path):
    torch.manual_seed(0)
    shape = (2, 3, 8, 8)
    program = capture(warm(Tangle(), shape), InputSpec(shape))
    assert classes(assert_loads(program, tmp_path)) == ["Layers", "Model"]


def test_a_wrapped_model_splits_as_well(tmp_path):
    torch.manual_seed(0)
    program = capture(warm(Wrapped(spikformer(depths=2))), InputSpec(IMAGE))
    Pipeline(canonical_passes())(program)
    source = assert_loads(program, tmp_path)
    assert classes(source) == ["Layers", "PatchEmbed", "Block", "Model"]
    assert "for block in self.backbone.blocks:" in source


def test_a_plain_sequential(tmp_path):
    torch.manual_seed(0)
    shape = (2, 3, 8, 8)
    convolution = layer.Conv2d(3, 4, 3, step_mode="m")
    model = nn.Sequential(
        convolution,
        layer.BatchNorm2d(4, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
        nn.Flatten(2),
        nn.Linear(144, 5),
    )
    source = assert_loads(capture(warm(model, shape), InputSpec(shape)), tmp_path)
    assert "class Model(nn.ModuleList):" in source and "nn.Identity()," in source


def test_neurons_that_differ_in_threshold_share_a_function():
    source = program_source(canonicalised("spikformer"))
    assert source.count("def lif(v_threshold=1.0):") == 1 and "attn_lif=lif(0.5)" in source


def test_foreign_text_stays_text(tmp_path):
    program = canonicalised()
    program.info["arch"] = 'evil"""\nimport os\nos.abort()\n"""\\'
    program.info["assumptions"] = ['"""', "x" * 30 + " y" * 60, 5]
    source = assert_loads(program, tmp_path)
    assert source.startswith("\"\"\"evil''' import os os.abort() '''/, captured by svitc")
    assert max(map(len, source.splitlines())) <= 115


# parts


def test_units_of_a_tree():
    def tree(*paths):
        root = Tree()
        for path in paths:
            here = root
            for part in path.split("."):
                here = here.children.setdefault(part, Tree((*here.path, part)))
            here.layer = object()
        return root

    def block(name):
        return [f"{name}.{part}" for part in ("a", "b", "c.0", "c.1", "d")]

    def names(*paths):
        return [unit.name for unit in find_units(tree(*paths))]

    assert names("stem.conv", "stem.bn", "stem.lif", "head") == ["stem"]
    assert names("stem.conv", "head.fc") == []
    assert names(*block("blocks.0"), *block("blocks.1")) == ["blocks.0", "blocks.1"]
    assert names(*block("net.blocks.0"), *block("net.blocks.1"), "net.head") == [
        "net.blocks.0",
        "net.blocks.1",
    ]
    assert names(*block("stages.0.blocks.0"), *block("stages.0.blocks.1")) == [
        "stages.0.blocks.0",
        "stages.0.blocks.1",
    ]
    assert names("features.0", "features.1", "features.2") == ["features"]


def test_partition_covers_the_program():
    program = canonicalised("maxformer")
    partition = Partition(program)
    owned = [n for unit in partition.units for n in unit.nodes]
    assert len(owned) == len(set(owned))
    calls = {str(n.target) for n in program.graph.nodes if n.op == "call_module"}
    assert {str(n.target) for n in partition.program.graph.nodes if n.op == "call_module"} == calls
    assert tree_of(program).count() == len(calls)


def test_names():
    paths = ("blocks.0", "stage3.1", "patch_embed", "class.0", "cls-token")
    names = ["Block", "Stage3", "PatchEmbed", "Class", "ClsToken"]
    assert [class_name(path.split(".")) for path in paths] == names
    assert [label(p.split(".")) for p in ("mlp.fc1.0", "attn.q_conv", "qkv.0.q", "0.1", "x")] == [
        "fc1",
        "q",
        "q",
        "size",
        "size",
    ]
    assert runs(["blocks.0", "blocks.1", "blocks.2", "head", "s.1", "s.2"]) == "blocks.0 to blocks.2, head, s.1, s.2"


def call(name):
    return lambda texts: (f"{name}({', '.join(text for text, _ in texts)})", Rank.ATOM)


def test_a_name_is_free_again_when_its_value_is_no_longer_read():
    x, a, b, c, d = (Value((letter,)) for letter in "xabcd")
    steps = [
        Statement([x], [a], call("f")),
        Statement([a], [b], call("g")),
        Statement([a, b], [c], call("h")),
        Statement([c, x], [d], call("k")),
    ]
    body = Body(steps, [x], [d])
    assert [line.strip() for line in body.lines()] == ["y = f(x)  # [a]", "return k(h(y, g(y)), x)"]


def test_a_long_line_is_cut_in_two():
    x, a, b = (Value() for _ in range(3))
    steps = [Statement([x], [a], call("f" * 60)), Statement([a], [b], call("g" * 60))]
    assert [line.strip() for line in Body(steps, [x], [b]).lines()] == [
        f"x = {'f' * 60}(x)",
        f"return {'g' * 60}(x)",
    ]
