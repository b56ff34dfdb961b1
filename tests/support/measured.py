"""What the tests of policies share: small programs with images of their own, and a sweep that runs no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import svitc
from support.families import FAMILIES, warm
from svitc.driver.load import run_canonical_passes
from svitc.evaluation.evaluator import Measurement
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program
from svitc.passes.policies import Problem
from svitc.planning.cost import parameter_cost
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter

IMAGES = 10_000  # that the fake sweep says it has seen


def digits_file(folder: Path, images: int, name: str = "digits.npz", start: int = 0) -> Path:
    """Digits as demo/make_data.py makes them."""
    x = torch.tensor(load_digits().images[start : start + images], dtype=torch.float32).unsqueeze(1) / 16
    x = F.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False)
    np.savez(folder / name, images=x.numpy(), labels=load_digits().target[start : start + images])
    return folder / name


def family(name: str, seed: int = 0, **k) -> Program:
    """Return a small program that fires: a copy, as it takes much longer to make than to copy."""
    return _family(name, seed, tuple(k.items())).copy()


@cache
def _family(name: str, seed: int, options: tuple) -> Program:
    torch.manual_seed(seed)
    factory, shape = FAMILIES[name]
    program = capture(warm(factory(**{"T": 2, **dict(options)}), shape), svitc.InputSpec(shape))
    run_canonical_passes(program)
    return program


def images_of(program, count: int, seed: int = 1):
    """Images, labelled for the most part as the program itself sees them."""
    x = torch.randn(program.input.batched(count), generator=torch.Generator().manual_seed(seed))
    y = program(x)
    y = (y.mean(0) if y.ndim == 3 else y).argmax(-1)
    y[::4] = (y[::4] + 1) % 5
    return x, y


def family_file(program, folder: Path, count: int) -> Path:
    x, y = images_of(program, count)
    np.savez(folder / "made.npz", images=torch.sigmoid(x).numpy(), labels=y.numpy())
    return folder / "made.npz"


def halved(program, group, keep: float = 0.5) -> Plan:
    """The plan that keeps a share of one group: of its heads, where only they can go."""
    mask = np.zeros((group.heads, group.axis.size), dtype=bool)
    if group.whole_heads is not None:
        mask[: max(1, int(group.heads * keep))] = True
        return Plan({g.name: mask.copy() for g in program.groups if g.head_axis is group.head_axis and mask.any()})
    mask[:, : max(1, int(group.axis.size * keep))] = True
    return Plan({group.name: mask})


def prunable(program):
    return [group for group in program.groups if group.frozen is None and group.size > 1]


@dataclass
class Fake:
    """A sweep that answers from a formula on the shares that are cut, and records what it is asked."""

    program: object
    drop: Callable[[dict[str, float]], float]
    divergence: Callable[[dict[str, float]], float] | None = None
    seconds_each: float = 0.25

    def __post_init__(self) -> None:
        self.asked: list[tuple[dict[str, float], str, str]] = []
        self.original = self.point({})

    def cuts(self, plan: Plan) -> dict[str, float]:
        return {name: round(1 - float(mask.mean()), 9) for name, mask in plan.keep.items() if not mask.all()}

    def point(self, cut: dict[str, float]) -> Measurement:
        lost = round(self.drop(cut) * IMAGES)
        right = round(0.9 * IMAGES) - lost
        divergence = (self.divergence or self.drop)(cut)
        return Measurement(right, IMAGES, lost, 0, 1.0, divergence, regret=lost / IMAGES)

    def pending(self, plans, refit) -> int:
        seen = {(str(cut), how) for cut, how, _ in self.asked}
        return len({str(self.cuts(plan)) for plan in plans if (str(self.cuts(plan)), refit) not in seen})

    def __call__(self, plans, refit="none", stage="sweep"):
        found = []
        for plan in plans:
            plan.validate(self.program)
            self.asked.append((self.cuts(plan), refit, stage))
            found.append(self.point(self.cuts(plan)))
        return found

    def problem(self, keep: float | None, max_drop: float | None = None) -> Problem:
        cost = parameter_cost(self.program)
        limit = None if keep is None else int(keep * cost())
        said = self.said = []
        return Problem(
            self.program, cost, limit, "parameters", lambda: self, None, max_drop, Reporter(on_decision=said.append)
        )
