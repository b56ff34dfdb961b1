"""Interface of passes, and the pipeline that runs them.

A pass selects nodes (``match``), gives a reason for nodes that it leaves alone (``why_not``) and rewrites the others
(``rewrite``). The base class infers the types again, checks the stage, measures the time and writes dumps, also for
users' passes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import fx

from svitc.errors import InternalError, UnsupportedError
from svitc.ir.graph import describe
from svitc.ir.program import Program, Stage
from svitc.ir.verifier import check

log = logging.getLogger("svitc")


@dataclass
class PassResult:
    """Result of running a pass.

    Attributes:
        name: name of the pass.
        changed: places that were rewritten, as ``describe`` names them.
        refused: place that was left alone -> the first reason for it.
        seconds: wall time, including checks.
    """

    name: str
    changed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Pass:
    """Rewrite of a program, node by node.

    Subclasses implement ``match`` and ``rewrite``, and ``why_not`` if some matched nodes must be left alone.

    Attributes:
        requires: first and last stage in which the pass can run.
        ensures: stage of the program after the pass, or None if the pass does not change it.
        values_only: whether the pass changes values of weights alone, so that graph and types stay as they are.
        name: name in reports and messages; by default the name of the class.
    """

    requires: tuple[Stage, Stage] = (Stage.CAPTURED, Stage.EXPORTABLE)
    ensures: Stage | None = None
    values_only: bool = False
    name: str = "Pass"

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__)

    def match(self, program: Program, node: fx.Node) -> bool:
        """Return whether this pass applies to ``node``."""
        raise InternalError(f"{self.name} does not implement match()")

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        """Return the first reason to leave a matched node alone, or None."""
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        """Rewrite the graph at ``node``.

        The method can erase the node and nodes before it. Later matches see the rewritten graph.
        """
        raise InternalError(f"{self.name} does not implement rewrite()")

    def apply(self, program: Program) -> PassResult:
        """Run on all nodes, in graph order. A pass that is not local to nodes overrides this method."""
        result = PassResult(self.name)
        for node in list(program.graph.nodes):
            if node._erased or not self.match(program, node):
                continue
            place = describe(node)
            reason = self.why_not(program, node)
            if reason is not None:
                result.refused[place] = reason
                continue
            self.rewrite(program, node)
            result.changed.append(place)
        return result

    def __call__(self, program: Program, recompile: bool = True) -> PassResult:
        """Apply the pass to ``program`` in place, infer the types again, and check the result.

        Args:
            program: the program.
            recompile: whether the changed program can be run; otherwise ``program.module.recompile()`` is left to the
                caller.

        Raises:
            InternalError: the program is at the wrong stage, or the check after the pass fails.
        """
        low, high = self.requires
        if not low <= program.stage <= high:
            raise InternalError(f"{self.name} runs on programs {low.name} to {high.name}, not {program.stage.name}")
        start = time.perf_counter()
        result = self.apply(program)
        rebuilt = bool(result.changed) and not self.values_only
        if rebuilt:
            program.graph.eliminate_dead_code(_is_impure)
            program.module.delete_all_unused_submodules()
            try:
                program.retype()
            except UnsupportedError as error:  # the program had types before the pass
                raise InternalError(f"after {self.name}: {error.message}", where=error.where) from error
        if self.ensures is not None:
            program.stage = max(program.stage, self.ensures)
        check(program, self.name)
        if rebuilt and recompile:
            program.module.recompile()
        result.seconds = time.perf_counter() - start
        log.debug(
            "%s: %d rewritten, %d refused, %.3f s",
            self.name,
            len(result.changed),
            len(result.refused),
            result.seconds,
        )
        return result


def _is_impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


class Pipeline:
    """Sequence of passes.

    Args:
        passes: in the order in which they run; none of them runs the program.
        dump_to: folder that gets the program as text after every pass, or None.

    Attributes:
        results: result of each pass, in order.
    """

    def __init__(self, passes: Sequence[Pass], dump_to: Path | None = None) -> None:
        self.passes, self.dump_to = list(passes), dump_to
        self.results: list[PassResult] = []

    def __call__(self, program: Program, recompile: bool = True) -> Program:
        """Run all passes on ``program`` in place, and return it.

        Args:
            program: the program.
            recompile: whether the changed program can be run, as for a pass.
        """
        for i, step in enumerate(self.passes):
            self.results.append(step(program, recompile=False))
            if self.dump_to is not None:
                self.dump_to.mkdir(parents=True, exist_ok=True)
                (self.dump_to / f"{i:02}-{step.name}.txt").write_text(str(program) + "\n")
        if recompile and any(result.changed for result in self.results):
            program.module.recompile()
        return program

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by pass and place, for each place that a pass left alone and no later pass rewrote."""
        reasons: dict[str, str] = {}
        rewritten: set[str] = set()
        for result in reversed(self.results):
            refused = {place: reason for place, reason in result.refused.items() if place not in rewritten}
            reasons = {f"{result.name}: {place}": reason for place, reason in refused.items()} | reasons
            rewritten.update(result.changed)
        return reasons
