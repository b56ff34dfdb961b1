"""Compile small definitions of published spiking networks, stage by stage, and say where each ends.

    python benchmarks/zoo.py                             # all, and write results/zoo.md and results/zoo.json
    python benchmarks/zoo.py statten swformer            # some, and print the table
    python benchmarks/zoo.py --markdown FILE --json FILE

For each network: it is captured exactly (the largest difference from the eager model, in every output), pruned equals
masked (in float64), the budgets 0.78 and 0.5 are met and their files verified, the ONNX file computes the eager model's
outputs, and the int8 file is verified, with the number of its neurons whose sums are exact. A stage that fails does not
stop the others. A failure is a refusal, with the line in the model that it names; an internal error; or a wrong number.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import svitc
from common import RESULTS, environment
from svitc import onnx as backend
from svitc import runtimes
from svitc.driver.artifacts import Compiled
from svitc.driver.load import run_canonical_passes
from svitc.errors import InternalError
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.channel_groups import ChannelGroup
from svitc.onnx.export import export
from svitc.passes import Prune
from zoo_models import ZOO, Definition
from zoo_models.definition import tensors
from zoo_report import BUDGETS, INTERNAL, OK, REFUSED, WRONG, Outcome, Result, markdown, progress

IMAGES = 4
CONTRASTS = (1.0, 0.25, 3.0)
MASK_TOLERANCE = 1e-9  # of the largest output, in float64
ONNX_TOLERANCE = 1e-4  # of the largest output, in float32
LEAST_CLOSE = 0.5  # share of the images whose outputs no spike next to its threshold may have changed
KEPT_SHARE = 0.6  # of the channels of a group, in the plan that is compared with a mask
BROKEN = "the model's forward failed"  # which it does not: every model runs before it is captured


class WrongNumberError(Exception):
    """A stage finished, and computed something else than it must."""


class Network:
    """One network of the zoo, and what its stages share.

    Args:
        definition: The definition.

    Attributes:
        program: The captured program in canonical form.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.model: nn.Module = definition.model()
        self.program: svitc.Program
        self._compiler: svitc.Compiler | None = None

    def expected(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of the eager model, in order."""
        return list(tensors(self.definition.run(self.model, x)).values())

    def capture(self) -> str:
        """Capture the model, and compare every output with the eager model's at several contrasts."""
        program = capture(copy.deepcopy(self.model), svitc.InputSpec(self.definition.input))
        difference = 0.0
        for number, contrast in enumerate(CONTRASTS):
            x = self.definition.images(IMAGES, seed=number) * contrast
            expected, captured = self.expected(x), list(program.outputs(x))
            if [a.shape for a in expected] != [a.shape for a in captured]:
                raise WrongNumberError(f"outputs {shapes(captured)}, the model's are {shapes(expected)}")
            difference = max(difference, *(largest(a - b) for a, b in zip(expected, captured, strict=True)))
        if difference != 0.0:
            raise WrongNumberError(f"differs from the eager model by {difference:.2g}")
        run_canonical_passes(program)
        self.program = program
        return "0"

    def masked(self) -> str:
        """Compare the pruned program with the same program whose removed channels are silenced, in float64."""
        program = self.program
        plan = svitc.Plan(random_masks(program.groups))
        if not plan.keep:
            return "nothing to prune"
        pruned, silenced = program.copy(), program.copy()
        Prune(plan)(pruned)
        silence(silenced, plan)
        x = self.definition.images(IMAGES)
        before, expected, found = (outputs_in_double(twin, x) for twin in (program.copy(), silenced, pruned))
        if all(torch.equal(a, b) for a, b in zip(before, expected, strict=True)):
            raise WrongNumberError("the mask changes nothing")
        scale = max(1.0, *map(largest, expected))
        difference = max(largest(a - b) for a, b in zip(found, expected, strict=True)) / scale
        if not difference <= MASK_TOLERANCE:
            raise WrongNumberError(f"pruned and masked differ by {difference:.2g}")
        return f"{difference:.1g}"

    def onnx(self) -> str:
        """Compare the exported file of the whole network with the eager model."""
        session = runtimes.session(export(self.program, per_step=True))
        x = self.definition.images(2 * IMAGES)
        difference, close = 0.0, 0
        for number in range(2 * IMAGES):
            image = x[:, number : number + 1] if self.definition.events else x[number : number + 1]
            expected = [y.numpy() for y in self.expected(image)]
            found = session.run(None, {backend.INPUT: image.numpy()})
            scale = max(1.0, *(float(np.abs(y).max(initial=0)) for y in expected))
            worst = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(expected, found, strict=True)) / scale
            difference, close = max(difference, worst), close + (worst <= ONNX_TOLERANCE)
        if close < LEAST_CLOSE * 2 * IMAGES:
            raise WrongNumberError(
                f"only {close} of {2 * IMAGES} images are close, the worst differs by {difference:.2g}"
            )
        return (
            f"{difference:.1g}" if close == 2 * IMAGES else f"{difference:.1g} ({close} of {2 * IMAGES} images close)"
        )

    def budget(self, share: float) -> str:
        """Compile to a share of the bytes, and check that it is met and the file verified."""
        if self._compiler is None:
            self._compiler = svitc.Compiler(self.program, options=svitc.CompileOptions(no_data="uniform"))
        report = verified(self._compiler.compile(share)).report
        ratio = report["memory"]["ratio"]
        if ratio > share:
            raise WrongNumberError(f"the file has {ratio:.3f} of the bytes")
        return f"{ratio:.3f}"

    def int8(self) -> str:
        """Compile to int8 weights, and return how many neurons are exact; the others are named in the report."""
        done = verified(svitc.compile(self.program, weights="int8", no_data="uniform"))
        weights = done.report["weights"]
        exact, neurons, named = weights["exact_neurons"], weights["neurons"], len(weights["inexact"])
        if neurons - exact > named:
            raise WrongNumberError(f"{exact} of {neurons} neurons are exact, and only {named} are named as float")
        return f"{exact} of {neurons} exact"


def shapes(values: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    """Return the shapes of tensors."""
    return [tuple(value.shape) for value in values]


def largest(value: torch.Tensor) -> float:
    """Return the largest magnitude in a tensor."""
    return float(value.detach().abs().max()) if value.numel() else 0.0


def random_masks(groups: Sequence[ChannelGroup]) -> dict[str, np.ndarray]:
    """Return a mask for every group that can be pruned; heads keep channels of their own where they may."""
    rng = np.random.default_rng(0)
    masks = {}
    for group in groups:
        if group.frozen is not None or group.whole_heads is not None:
            continue
        mask = np.zeros((group.heads, group.axis.size), dtype=bool)
        count = max(1, round(KEPT_SHARE * group.axis.size))
        chosen = rng.permutation(group.axis.size)[:count]
        for row in mask:
            row[chosen if group.shared else rng.permutation(group.axis.size)[:count]] = True
        masks[group.name] = mask
    return masks


def silence(program: svitc.Program, plan: svitc.Plan) -> None:
    """Zero what makes the removed channels: rows of weights, biases, bare parameters, and what norms make of them."""
    masks = plan.validate(program)
    nodes = {str(node.target): node for node in program.graph.nodes if node.op in ("call_module", "get_attr")}
    for group in program.groups:
        for member in group.members:
            node = nodes[member.module]
            module = program.module_of(node)
            passes = ops.is_batch_norm(module) and member.param in ("weight", "bias", "running_mean")
            if not (member.produces or passes):
                continue
            path = f"{member.module}.{member.param}" if member.param else member.module
            keep = group.mask(program.parameters_of(node)[member.param][member.dim], masks[group.name])
            with torch.no_grad():
                tensor = attribute(program.module, path).transpose(0, member.dim)
                tensor[torch.from_numpy(~keep)] = 0


def outputs_in_double(program: svitc.Program, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the outputs of a program, which is changed to float64."""
    program.module.double()
    torch.set_default_dtype(torch.float64)  # tensors that a program creates are of the default type
    try:
        return program.outputs(x.double())
    finally:
        torch.set_default_dtype(torch.float32)


def attribute(module: nn.Module, path: str) -> torch.Tensor:
    """Return the parameter or buffer at a path."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name).detach()


def verified(done: Compiled) -> Compiled:
    """Return a compilation whose file passed its verification.

    Raises:
        WrongNumberError: it did not.
    """
    verify = done.report["verify"]
    if verify["status"] != "passed":
        raise WrongNumberError(f"the verification {verify['status']}")
    return done


def attempt(stage: Callable[[], str]) -> Outcome:
    """Run a stage, and return how it ended."""
    try:
        return Outcome(OK, stage())
    except WrongNumberError as error:
        return Outcome(WRONG, message=str(error))
    except svitc.SvitcError as error:
        internal = isinstance(error, InternalError) or error.message.startswith(BROKEN)
        where = error.where or ""
        in_model = "zoo_models" in where and Path(where.rpartition(":")[0]).name != "definition.py"
        kind = INTERNAL if internal else REFUSED
        return Outcome(kind, "", type(error).__name__, error.message, short(where), in_model)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        return Outcome(INTERNAL, "", type(error).__name__, text, short(f"{frame.filename}:{frame.lineno}"))


def short(where: str) -> str:
    """Return the last three parts of a path."""
    return "/".join(where.split("/")[-3:])


def measure(name: str) -> Result:
    """Run all stages of one network."""
    definition = ZOO[name]
    result = Result(name, definition)
    start = time.perf_counter()
    network = Network(definition)
    result.stages["capture"] = attempt(network.capture)
    if result.stages["capture"].status == OK:
        groups = network.program.groups
        result.groups = sum(group.frozen is None for group in groups), len(groups)
        result.stages["masked"] = attempt(network.masked)
        for share in BUDGETS:
            result.stages[f"budget {share}"] = attempt(lambda share=share: network.budget(share))
        result.stages["onnx"] = attempt(network.onnx)
        result.stages["int8"] = attempt(network.int8)
    result.seconds = time.perf_counter() - start
    return result


def write(path: Path, text: str) -> None:
    """Write a file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; all by default")
    parser.add_argument("--markdown", type=Path, help="where the tables go; results/zoo.md where all networks run")
    parser.add_argument("--json", type=Path, help="where the results go; results/zoo.json where all networks run")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(ZOO))
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; there are {', '.join(ZOO)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = []
    for name in args.names or ZOO:
        results.append(measure(name))
        print(progress(results[-1]), flush=True)
    text = markdown(results, (__doc__ or "").rpartition("\n\n")[2].strip())
    tables, values = args.markdown, args.json
    if not args.names:
        tables, values = tables or RESULTS / "zoo.md", values or RESULTS / "zoo.json"
    if tables is not None:
        write(tables, text)
    if values is not None:
        record = {"environment": environment(), "results": [result.to_json() for result in results]}
        write(values, json.dumps(record, indent=1) + "\n")
    print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
