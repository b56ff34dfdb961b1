"""The source of quantized programs: the same network, bit for bit, without svitc; short, and it says what it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from support.alone import EACH_FOLDER_ALONE
from support.generated import assert_loads, classes, write
from support.quantized import CASES, case_of, quantized
from support.serialized import canonicalised, reload
from svitc.codegen.module import program_source
from svitc.codegen.quantized_classes import QUANTIZED_NAMES, fixed_point
from svitc.ir.quantized_modules import FixedPoint

# run by a Python that cannot import svitc; writes the results for each folder
ALONE = (
    EACH_FOLDER_ALONE
    + """\
    with torch.no_grad():
        got = [model(x), functional.reset_net(model), model(x)]
    results[folder.name] = {
        "equal": all(torch.equal(y, expected) for y in got[::2]),
        "fires": bool(expected.any()), "training": model.training,
        "types": {name: str(value.dtype) for name, value in model.state_dict().items()},
        "svitc": any(name.split(".")[0] == "svitc" for name in sys.modules),
    }
print(json.dumps(results))
"""
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("sources")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: the number of threads decides the order of some sums
    for i, name in enumerate(CASES):
        program = case_of(name)
        write(program, root / str(i))
        x = torch.randn(program.input.batched(2))
        torch.save(x, root / str(i) / "x.pt")
        torch.save(program(x).clone(), root / str(i) / "y.pt")
    torch.set_num_threads(threads)
    folders = [str(root / str(i)) for i in range(len(CASES))]
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, *folders], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {name: results[str(i)] for i, name in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_alone_it_is_the_same_network(case, alone):
    results, program = alone[case], case_of(case)
    assert results["equal"] and results["fires"]
    assert not results["svitc"] and not results["training"]
    bare = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
    expected = {name: str(value.dtype) for name, value in program.module.state_dict().items()}
    assert {name: kind for name, kind in results["types"].items() if name not in bare} == {
        name: kind for name, kind in expected.items() if name not in bare
    }


@pytest.mark.parametrize("case", CASES)
def test_the_same_text_after_saving(case, tmp_path):
    program = case_of(case)
    before = str(program)
    source = program_source(program)
    assert program_source(program.copy()) == source
    assert program_source(reload(program, tmp_path)) == source
    assert str(program) == before


@pytest.mark.parametrize("case", CASES)
def test_it_reads_well(case):
    program = case_of(case)
    source = program_source(program)
    assert max(map(len, source.splitlines())) <= 115
    assert not any(line != line.rstrip() for line in source.splitlines()) and source.endswith("\n")
    assert "svitc" not in source.split('"""', 2)[2]
    kinds = {type(program.module_of(n)).__name__ for n in program.graph.nodes if n.op == "call_module"}
    used = {name for name in QUANTIZED_NAMES if name in kinds} | {"Quantized"}
    assert set(classes(source)) & set(QUANTIZED_NAMES) == used, "no class that is not used"
    assert all(len(re.findall(rf"\b{name}\b", source)) > 1 for name in used), "nor one that is used and not there"


def test_it_says_what_it_is():
    program = case_of("spikformer")
    source = program_source(program)
    head = " ".join(source.split('"""', 2)[1].split())
    weights = sum(v.numel() for v in program.module.state_dict().values() if v.dtype == torch.int8)
    assert head.startswith(f"spikformer, quantized by svitc: {weights:,} int8 weights. from model")
    assert "It does not train: it is the reference that the ONNX file equals, spike by spike." in head
    assert "It trains" not in source and "surrogate" not in source
    assert "For x of whole numbers, such as spikes, the sums stay below 2^24" in source
    assert 'neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=1.0, v_reset=0.0, step_mode="m")' in source
    assert source.count("neuron.LIFNode(") == 1, "thresholds are folded: one kind of neuron is left"


def test_what_still_has_parameters_says_so():
    assert re.match(r'"""\S.*: [\d,]+ int8 weights and \d+ parameters\.', program_source(case_of("PLIF")))
    assert "surrogate.MultiLevelSpikeCount(" in program_source(case_of("ILIF")), "it says how many spikes there can be"


def test_layers_and_steps():
    source = program_source(case_of("spikformer"))
    assert "self.input_steps = FixedPoint(2**-9, 2048)" in source
    assert "QuantizedConv2d(3, 4, 3, padding=1)" in source and "self.head = QuantizedLinear(32, 5)" in source
    assert fixed_point(FixedPoint(1.0, 255)) == "FixedPoint(1.0, 255)"
    assert fixed_point(FixedPoint(2.0**-9, 7)) == "FixedPoint(2**-9, 7)"
    assert fixed_point(FixedPoint(4.0, 7)) == "FixedPoint(4.0, 7)"


def test_the_part_that_is_computed_once_stays_in_its_class():
    """The repeat over time, which has moved behind the first layer, does not tear the patch embedding apart."""
    source = program_source(case_of("spikformer"))
    assert classes(source)[-3:] == ["PatchEmbed", "Block", "Model"]
    assert '"""patch_embed: [b, c, y, x] -> [t, b, c, y, x]."""' in source
    assert 'x = self.stages[0].neuron(repeat(x, "b c y x -> t b c y x", t=T))' in source


def test_a_part_of_the_same_name_as_a_class(tmp_path):
    program = canonicalised()
    root = program.module
    root.add_module("quantized", root.get_submodule("patch_embed"))
    for node in program.graph.nodes:
        if node.op == "call_module":
            node.target = str(node.target).replace("patch_embed.", "quantized.")
        node.meta["scope"] = (node.meta.get("scope") or "").replace("patch_embed", "quantized")
    root.delete_submodule("patch_embed")
    program.retype()
    source = assert_loads(quantized(program), tmp_path)
    assert "Quantized_2" in classes(source)
