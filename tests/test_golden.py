"""Golden files: what the compiler makes of small networks, as text; ``pytest --update-golden`` writes them anew.

They hold programs before and after each pass, the generated source, the nodes of the ONNX files and every ``--help``.
A change that is meant to change nothing leaves them as they are; of any other change they show what it changed, to be
reviewed by eye. Weights are few-bit numbers that are the same on every machine (published_small.fill), so that no text
depends on how a processor rounds.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer.main
from torch import nn
from typer.core import TyperOption

from support.families import FAMILIES
from support.published_small import SMALL, fill
from support.shell import run
from svitc.analysis.exactness import narrowable
from svitc.cli.main import app
from svitc.codegen.module import program_source
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pass, Pipeline
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.passes import Prune, QuantizeResidualStreams, RoundWeights
from svitc.passes.pipelines import canonical_passes, inference_passes, lowering_passes, quantization_passes, quantize
from svitc.planning.plan import Plan

GOLDEN = Path(__file__).parent / "golden"
OPTIONS_PAGE = Path("../../docs/options.md")
PUBLISHED = ("meta", "espikeformer")
MODELS = ("spikformer", "sdt", "qkformer-token", "maxformer-cifar", "espikeformer")
TYPES = [(name, weights) for name in MODELS for weights in ("fp32", "int8")]
TYPES += [("meta", "fp32"), ("spikformer", "int4"), ("spikformer", "int2")]
BITS = {"int8": 8, "int4": 4, "int2": 2}
USER_LINE = re.compile(r"  # \S+\.py:\d+$", re.MULTILINE)  # lines of SpikingJelly, whose versions differ

LABELS = ("--", "++", "@@")  # of a unified diff

Compare = Callable[[str | Path, str], None]


@pytest.fixture
def golden(request) -> Compare:
    """``golden(name, text)``: assert that a file holds this text, or write it."""

    def compare(name: str | Path, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"{path.name} is missing: run pytest {Path(__file__).name} --update-golden"
        before, after = path.read_text().splitlines(), text.splitlines()
        difference = list(difflib.unified_diff(before, after, str(path), "now", lineterm="", n=1))
        assert not difference, "\n".join(difference[:60])

    return compare


@functools.cache
def captured(name: str) -> Program:
    """Return a small network as it is captured; not to be changed."""
    model: nn.Module
    if name in PUBLISHED:
        model, shape = SMALL[name].shallow(), SMALL[name].input
    else:
        factory, shape = FAMILIES[name]
        model = factory(T=2)
    return capture(fill(model), InputSpec(shape))


@functools.cache
def canonicalized(name: str) -> Program:
    program = captured(name).copy()
    run_canonical_passes(program)
    return program


@functools.cache
def typed(name: str, weights: str) -> Program:
    """Return a network with weights of one type; not to be changed."""
    program = canonicalized(name).copy()
    Prune(halved_groups(program))(program)
    if weights == "fp32":
        return program
    bits = dict.fromkeys((layer for layer, why in narrowable(quantize(program)[0]).items() if not why), BITS[weights])
    RoundWeights(bits)(program)
    return quantize(program, bits)[0]


def halved_groups(program: Program) -> Plan:
    """Return the plan that keeps the first half of each group of channels, but for those that go by whole heads."""
    keep = {}
    for group in program.groups:
        if group.frozen is None and group.size > 1 and group.whole_heads is None:
            keep[group.name] = np.zeros((group.heads, group.axis.size), dtype=bool)
            keep[group.name][:, : max(1, group.axis.size // 2)] = True
    return Plan(keep)


def shown(program: Program) -> list[str]:
    return USER_LINE.sub("", str(program)).splitlines()


def steps(program: Program, passes: Sequence[Pass]) -> Iterator[str]:
    """Yield what each pass did: the places that it refused, and the lines that it changed."""
    before = shown(program)
    for each in passes:
        result = each(program)
        after = shown(program)
        yield f"== {result.name}: {len(result.changed)} changed, {len(result.refused)} refused"
        yield from (f"   {place}: {reason}" for place, reason in result.refused.items())
        yield from (line for line in difflib.unified_diff(before, after, lineterm="", n=0) if line[:2] not in LABELS)
        before = after


@pytest.mark.parametrize("name", MODELS)
def test_programs_before_and_after_each_pass(name, golden):
    program = captured(name).copy()
    lines = ["== captured", *shown(program), *steps(program, canonical_passes())]
    Prune(halved_groups(program))(program)
    folded = program.copy()
    Pipeline(inference_passes())(folded)
    lines += ["", "== pruned, float, from the end of inference on", *steps(folded, lowering_passes())]
    passes = [QuantizeResidualStreams(), *inference_passes(), *quantization_passes(), *lowering_passes()]
    lines += ["", "== pruned, quantized", *steps(program, passes)]
    golden(f"passes/{name}.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(("name", "weights"), TYPES)
def test_generated_source(name, weights, golden):
    golden(f"source/{name}-{weights}.py.txt", program_source(typed(name, weights)))


@pytest.mark.parametrize(("name", "weights"), TYPES)
def test_nodes_of_the_onnx_file(name, weights, golden):
    model = onnx.load_from_string(export(typed(name, weights)))
    lines = []
    for neuron, nodes in itertools.groupby(model.graph.node, key=lambda node: node.name.rpartition("/")[0]):
        listed = list(nodes)
        if neuron:
            lines.append(f"{neuron}: {' '.join(node.op_type for node in listed)}")
        else:
            lines += [f"{node.op_type} {node.name}" for node in listed]
    golden(f"onnx/{name}-{weights}.txt", "\n".join(lines) + "\n")


COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("svitc", ()), *((command, (command,)) for command in COMMANDS), ("compile-all", ("compile", "--help-all"))],
)
def test_help(name, arguments, golden, capsys, monkeypatch):
    for key, value in {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(key, value)
    status, out, _ = run(capsys, *arguments, *(() if "--help-all" in arguments else ("--help",)))
    assert status == 0
    golden(f"help/{name}.txt", "\n".join(line.rstrip() for line in out.splitlines()) + "\n")


def test_the_page_of_options_is_what_the_commands_say(golden):
    lines = ["# Options", "", "The options of every command, as `--help-all` explains them. This page is generated."]
    for name, command in sorted(typer.main.get_command(app).commands.items()):
        lines += ["", f"## svitc {name}", "", inspect.cleandoc(command.help or "").partition("\n\n")[0]]
        panels: dict[str, list[TyperOption]] = {}
        for option in command.params:
            if isinstance(option, TyperOption) and not option.hidden:
                panels.setdefault(option.rich_help_panel or "", []).append(option)
        for panel, options in sorted(panels.items(), key=lambda item: item[0] != ""):
            lines += ["", f"### {panel}" if panel else "### Common", ""]
            lines += [f"- `{' '.join(option.opts)}`{_default(option)}: {_markdown(option.help)}" for option in options]
    golden(OPTIONS_PAGE, "\n".join(lines) + "\n")


def _default(option: TyperOption) -> str:
    shown = option.show_default and option.default not in (None, False, ()) and not option.is_flag
    return f" (default `{option.default}`)" if shown else ""


def _markdown(text: str | None) -> str:
    """Return a help text with bold in Markdown, and brackets and stars that are meant as such."""
    text = re.sub(
        r"\[(bold|red)\](.*?)\[/\]", lambda found: f"`{found[2]}`" if found[1] == "bold" else found[2], text or ""
    )
    return text.replace("\\[", "[")


def test_golden_files_stay_small_and_none_is_left_over():
    files = {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*.txt")}
    expected = {f"passes/{name}.txt" for name in MODELS} | {
        f"help/{name}.txt" for name in ("svitc", "compile-all", *COMMANDS)
    }
    expected |= {f"source/{name}-{weights}.py.txt" for name, weights in TYPES}
    expected |= {f"onnx/{name}-{weights}.txt" for name, weights in TYPES}
    assert files == expected
    assert sum((GOLDEN / name).stat().st_size for name in files) < 650_000
