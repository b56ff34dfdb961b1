"""Policies: what writes a plan from groups, weights and data."""

from __future__ import annotations

from typing import Any

from svitc.errors import UsageError
from svitc.passes.policies.auto import Auto
from svitc.passes.policies.bitwidth.aq4svit import AQBeam, AQGreedy
from svitc.passes.policies.bitwidth.qsvit import QSViT
from svitc.passes.policies.criteria.base import Context
from svitc.passes.policies.criteria.registry import CRITERIA
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.primesvt import PrimeSVT
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.psvit import PSViT
from svitc.passes.policies.search_space import Settings, Space
from svitc.passes.policies.uniform import Uniform

POLICIES: dict[str, type[Policy]] = {
    "auto": Auto,
    "psvit": PSViT,
    "primesvt": PrimeSVT,
    "qsvit": QSViT,
    "aq-greedy": AQGreedy,
    "aq-beam": AQBeam,
    "uniform": Uniform,
}
REFITS = ("none", "batch-norm", "readers", "full")


def make(name: str, **options: Any) -> Policy:
    """Return the policy of that name; options that are None take its own default.

    Raises:
        UsageError: no such policy, criterion or refit, listing those that are.
    """
    if name not in POLICIES:
        raise UsageError(f"there is no policy {name!r}", hint=f"Known: {', '.join(POLICIES)}.")
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("criterion", "l2") not in CRITERIA:
        raise UsageError(f"there is no criterion {given['criterion']!r}", hint=f"Known: {', '.join(CRITERIA)}.")
    if given.get("refit", "none") not in REFITS:
        raise UsageError(f"there is no refit {given['refit']!r}", hint=f"Known: {', '.join(REFITS)}.")
    return POLICIES[name](**given)


__all__ = [
    "CRITERIA",
    "POLICIES",
    "REFITS",
    "AQBeam",
    "AQGreedy",
    "Auto",
    "Context",
    "PSViT",
    "Policy",
    "PrimeSVT",
    "Problem",
    "QSViT",
    "Settings",
    "Space",
    "Uniform",
    "make",
]
