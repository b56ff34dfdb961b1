"""The pass contract: what a pass declares, and what is done around every one of them.

A pass names what it matches (``match``), says why it refuses a place (``why_not``) and rewrites the others
(``rewrite``). The base class owns re-typing, the stage check, timing and dumps, for users' passes too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import fx

from svitc.errors import InternalError
from svitc.ir.graph import describe
from svitc.ir.program import Program, Stage
from svitc.ir.verifier import check

log = logging.getLogger("svitc")


@dataclass
class PassResult:
    """What a pass did.

    Attributes:
        name: the pass.
        changed: each place that was rewritten, as its user knows it.
        refused: place -> the first reason that applies.
        seconds: wall time, checks included.
    """

    name: str
    changed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Pass:
    """One rewrite of a program, place by place.

    Subclasses set ``requires`` (stages in which the pass may run) and ``ensures`` (the stage that it brings
    the program to, None to leave it), and ``name`` where reports call it otherwise than its class, and implement
    ``match`` and ``rewrite``, and ``why_not`` where some matched place must be left alone.
    """

    requires: tuple[Stage, Stage] = (Stage.CAPTURED, Stage.EXPORTABLE)
    ensures: Stage | None = None
    name: str = "Pass"

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__)

    def match(self, program: Program, node: fx.Node) -> bool:
        """Whether this pass is about ``node`` at all."""
        raise InternalError(f"{self.name} does not say what it matches")

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        """The first reason to leave a matched node alone, or None."""
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        """Rewrite at ``node``. May erase it and nodes before it; later matches see the rewritten graph."""
        raise InternalError(f"{self.name} does not say how it rewrites")

    def apply(self, program: Program) -> PassResult:
        """Run over the whole program, in graph order; a program-wide pass overrides this."""
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

    def __call__(self, program: Program) -> PassResult:
        """Apply, then re-type and check.

        Raises:
            InternalError: the program is at the wrong stage, or its check fails afterwards.
        """
        low, high = self.requires
        if not low <= program.stage <= high:
            raise InternalError(f"{self.name} runs on programs {low.name} to {high.name}, not {program.stage.name}")
        start = time.perf_counter()
        result = self.apply(program)
        if result.changed:
            program.graph.eliminate_dead_code(_is_impure)
            program.module.delete_all_unused_submodules()
            program.retype()
        if self.ensures is not None:
            program.stage = max(program.stage, self.ensures)
        check(program, self.name)
        if result.changed:
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
    """Passes in order, each with the same checks.

    Attributes:
        results: what each pass did, in order.
    """

    def __init__(self, passes: Sequence[Pass], dump_to: Path | None = None) -> None:
        self.passes, self.dump_to = list(passes), dump_to
        self.results: list[PassResult] = []

    def __call__(self, program: Program) -> Program:
        """Run every pass on ``program``, in place, and return it."""
        for i, each in enumerate(self.passes):
            self.results.append(each(program))
            if self.dump_to is not None:
                self.dump_to.mkdir(parents=True, exist_ok=True)
                (self.dump_to / f"{i:02}-{each.name}.txt").write_text(str(program) + "\n")
        return program

    @property
    def refused(self) -> dict[str, str]:
        """Every place that some pass left alone, with the reason, unless a later pass rewrote it after all."""
        found: dict[str, str] = {}
        done: set[str] = set()
        for r in reversed(self.results):
            found = {f"{r.name}: {place}": why for place, why in r.refused.items() if place not in done} | found
            done.update(r.changed)
        return found
