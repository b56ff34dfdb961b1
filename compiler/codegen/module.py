"""Programs as readable PyTorch source that does not need svitc, only torch, einops, spikingjelly and safetensors.

The source can be trained; for a quantized program, it is the reference with the same output as the ONNX file.

The graph is split by scope into units (partition.py). The layers of a unit become a constructor (constructors.py),
and its operations become a ``forward`` (operations.py, statements.py). Units of the same structure share a class,
whose arguments are the numbers in which they differ (classes.py). The paths of layers stay the same, so that weights
load by name.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Sequence
from functools import partial

from torch import fx

from svitc.codegen.classes import Classes, attributes, class_head, constructor_lines, literal, shape
from svitc.codegen.constructors import LAYERS_CLASS, LAYERS_CLASS_SHORT, Constructors, Neurons, is_name
from svitc.codegen.operations import StatementBuilder, call_unit, time_steps
from svitc.codegen.outputs import restored_source
from svitc.codegen.partition import Letters, Partition, Unit
from svitc.codegen.quantized_classes import REFERENCE_NOTE, Quantized, definition
from svitc.codegen.statements import Body, Role, Statement
from svitc.ir.operators.registry import OPERATORS
from svitc.ir.outputs import output_values
from svitc.ir.program import Program, Stage
from svitc.serialization.layer_schema import stored_info

LOAD = '''\
def load(path=Path(__file__).with_name("model.safetensors")):
    """The model with its weights, in eval mode."""
    model = Model()
    model.load_state_dict(load_file(path))
    return model.eval()
'''

TRAINING_NOTE = "It trains: batch norms are apart, and neurons have surrogate gradients."
MEMBRANES_NOTE = (
    "Neurons keep their membranes from call to call: before each batch, as ever in SpikingJelly,",
    "",
    "    spikingjelly.activation_based.functional.reset_net(model)",
    "",
)


def program_source(program: Program) -> str:
    """Return the source of a program that can be trained or is quantized: a module with ``Model`` and ``load``.

    ``Model().state_dict()`` has the same keys as the tensors that ``svitc.serialization`` writes, and the output of
    ``Model`` equals that of the program, bit for bit. Equal programs give equal text, also after saving and loading.
    """
    return Source(program).text()


class Source:
    """Writer of the source of a program."""

    def __init__(self, program: Program) -> None:
        self.partition = Partition(program)
        self.program = self.partition.program
        self.T = time_steps(self.program)
        self.letters = Letters(self.program)
        self.neurons = Neurons(self.program)
        self.quantized = Quantized(self.program)
        called = {n.target for n in self.program.graph.nodes}
        self.operators = [function for function in OPERATORS if function in called]
        self.info = stored_info(program)
        self.classes = Classes(self.partition, self.neurons, self.letters, self.T)

    def _model_lines(self) -> list[str]:
        tree = self.partition.tree
        assignments = attributes(tree, Constructors(self.program, self.neurons, self.classes.instance), literal)
        builder = StatementBuilder(self.program, tree, self.letters, literal, self.T)
        statements: list[Statement] = []
        for part in loops(self.partition.steps):
            if isinstance(part, fx.Node):
                continue
            if isinstance(part, Unit):
                statements.append(call_unit(part, builder))
            elif isinstance(part, tuple):
                statements.append(loop(part, builder))
            else:
                statements += builder.of(part)
        source = next(n for n in self.program.graph.nodes if n.op == "placeholder")
        values = output_values(self.program.graph)
        returned = partial(restored_source, self.program.info)
        body = Body(statements, [builder.value(source)], [builder.value(value) for value in values], returned)
        shapes = [shape(self.letters.layout(value)) for value in values]
        named = ", ".join(f"{n} {s}" for n, s in zip(self.program.output_names, shapes, strict=True))
        head = f"{shape(self.letters.layout(source))} -> {named}."
        return [
            *class_head("Model", tree, head, []),
            "    def __init__(self):",
            *constructor_lines(tree, assignments),
            "",
            "    def forward(self, x):",
            *body.lines(),
        ]

    def text(self) -> str:
        """Return the complete source."""
        model = self._model_lines()
        blocks = [line for class_ in self.classes.all for line in [*self.classes.lines(class_), "", ""]]
        body = "\n".join([*blocks, *model])
        lines = [*self._docstring(), "", "from pathlib import Path", ""]
        needs_torch = bool(self.neurons.standalone) or self.quantized.weights or self.operators
        lines += ["import torch"] if "torch.zeros(" in body or needs_torch else []
        views = [name for name in ("rearrange", "repeat") if f" {name}(" in body or f"({name}(" in body]
        merging, splitting = "merge_time(" in body, "split_time(" in body
        if (merging or splitting) and "rearrange" not in views:
            views.insert(0, "rearrange")
        lines += [f"from einops import {', '.join(views)}"] if views else []
        lines += ["from safetensors.torch import load_file"]
        if self.neurons.kinds:
            with_surrogate = any("surrogate" in kind for kind in self.neurons.kinds)
            modules = ("neuron", "surrogate") if with_surrogate else ("neuron",)
            lines += [f"from spikingjelly.activation_based import {', '.join(modules)}"]
        lines += ["from torch import nn", ""]
        lines += [f"T = {self.T}  # time steps", "", ""] if self.T is not None else [""]
        for is_used, name, pattern in (
            (merging, "merge_time", '"t b ... -> (t b) ..."'),
            (splitting, "split_time", '"(t b) ... -> t b ...", t=T'),
        ):
            lines += [f"def {name}(x):", f"    return rearrange(x, {pattern})", "", ""] if is_used else []
        lines += [*self.neurons.definitions(), *self.quantized.definitions()]
        for function in self.operators:
            lines += definition(function)
        if "Layers(" in body:
            has_bare_parameters = any(n.op == "get_attr" for n in self.program.graph.nodes)
            lines += [LAYERS_CLASS if has_bare_parameters else LAYERS_CLASS_SHORT, ""]
        lines += [body, "", "", LOAD]
        return "\n".join(lines)

    def _counted(self) -> str:
        """Return the size as text: ``1,000 parameters``, or ``1,000 int8 weights and 8 parameters``."""
        kinds = {"int16 weights": self.quantized.wide, "int8 weights": self.quantized.weights - self.quantized.wide}
        kinds["parameters"] = self._parameters()
        return " and ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count) or "0 parameters"

    def _parameters(self) -> int:
        """Return the number of parameters, counting shared weights once for each path, as the file stores them."""
        paths = {str(n.target) for n in self.program.graph.nodes if n.op in ("call_module", "get_attr")}
        named = self.program.module.named_parameters(remove_duplicate=False)
        return sum(p.numel() for name, p in named if name in paths or name.rpartition(".")[0] in paths)

    def _docstring(self) -> list[str]:
        arch = plain(self.info.get("arch") or "A spiking vision transformer")
        trains = self.program.stage < Stage.INFERENCE
        sizes = " x ".join(map(str, self.program.input.shape))
        notes = [plain(note) for note in self.info.get("assumptions") or [] if isinstance(note, str)]
        batch = (
            "[time, batch, channels, height, width]"
            if self.program.input.events
            else "[batch, channels, height, width]"
        )
        wrapped = [textwrap.wrap(note, 96, initial_indent="  - ", subsequent_indent="    ") for note in notes]
        assumed = ["", "Assumed of the original:", *itertools.chain(*wrapped)] if notes else []
        used_letters = sorted(
            {
                letter
                for node in self.program.graph.nodes
                for letter in re.findall("[a-z]", " ".join(self.letters.layout(node)))
            }
        )
        meaning = {
            "t": "time",
            "b": "batch",
            "c": "channels",
            "h": "heads",
            "d": "a head's channels",
            "y": "rows",
            "x": "columns",
            "n": "pixels (y x)",
        }
        axes_text = ", ".join(f"{letter} {meaning[letter]}" for letter in meaning if letter in used_letters)
        return [
            f'"""{arch}, {self.program.stage.name.lower()} by svitc: {self._counted()}.',
            "",
            "    from model import load",
            "    model = load()  # weights of model.safetensors beside this file, in eval mode",
            "",
            f"The input is {batch}, {sizes} without its batch.",
            *(
                MEMBRANES_NOTE
                if self.neurons.kinds
                else ["Neurons have no membranes: nothing is kept from call to call."]
            ),
            *([TRAINING_NOTE] if trains else REFERENCE_NOTE),
            f"Axes in comments: {axes_text}.",
            *assumed,
            '"""',
        ]


def plain(value: object) -> str:
    """Return a user's text on one line, without characters that could end a docstring or escape in it."""
    text = " ".join(str(value).split())
    return "".join(c for c in text if c.isprintable()).replace("\\", "/").replace('"', "'")


def loops(steps: Sequence[fx.Node | Unit]) -> list[list[fx.Node] | Unit | tuple[Unit, ...]]:
    """Group the root's steps.

    Returns:
        consecutive nodes as a list; units that are all elements of a list, called in turn, as a tuple; other units as
        they are.
    """
    result: list[list[fx.Node] | Unit | tuple[Unit, ...]] = []
    i = 0
    while i < len(steps):
        step = steps[i]
        if isinstance(step, fx.Node):
            run = list(itertools.takewhile(lambda s: isinstance(s, fx.Node), steps[i:]))
            result.append(run)  # type: ignore[arg-type]
            i += len(run)
            continue
        chain = [step]
        while i + len(chain) < len(steps) and _follows(chain[-1], steps[i + len(chain)]):
            chain.append(steps[i + len(chain)])  # type: ignore[arg-type]
        if len(chain) > 1 and step.tree.path[-1] == "0":
            result.append(tuple(chain))
        else:
            chain = [step]
            result.append(step)
        i += len(chain)
    return result


def _follows(first: Unit, second: fx.Node | Unit) -> bool:
    """Return whether ``second`` is the next element in the list of ``first``, and the only reader of its output."""
    if not isinstance(second, Unit) or len(first.outputs) != 1 or len(first.inputs) != 1 or len(second.outputs) != 1:
        return False
    *parent, name = first.tree.path
    *other, following = second.tree.path
    is_next = parent == other and name.isdecimal() and following.isdecimal() and int(following) == int(name) + 1
    return is_next and second.inputs == first.outputs and set(first.outputs[0].users) <= set(second.nodes)


def loop(chain: tuple[Unit, ...], builder: StatementBuilder) -> Statement:
    """Return the statement that calls all units of a list in turn."""
    statement = call_unit(chain[0], builder)
    statement.outputs = [builder.value(chain[-1].outputs[0])]
    statement.role = Role.CALL
    *parent, _ = chain[0].tree.path
    units = re.sub(r"\[0\]$", "", statement.code([])[0].removesuffix("()"))
    element = parent[-1][:-1].lower() if parent and parent[-1].endswith("s") else "block"
    statement.loop = (units, element if is_name(element) and len(element) > 1 and element != "self" else "block")
    return statement


__all__ = ["program_source"]
