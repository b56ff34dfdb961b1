"""Policies: make a plan from channel groups, weights and data.

Imports: ``planning``, ``analysis``, ``quantization``, ``ir`` and what is below them. A policy measures through its
``Problem`` alone and knows neither ONNX nor the driver.

Start with ``problem.py`` (the input of a policy), then ``uniform.py``, the shortest policy.
"""

from __future__ import annotations

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
from svitc.support.names import known

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


def make(name: str, **options: object) -> Policy:
    """Return the policy with a name.

    Args:
        name: a key of ``POLICIES``.
        options: fields of the policy; None stands for the policy's default.

    Raises:
        UsageError: there is no such policy, criterion or refit; the hint lists those that there are.
    """
    if name not in POLICIES:
        raise UsageError(f"there is no policy {name!r}", hint=known(name, POLICIES))
    fields = {key: value for key, value in options.items() if value is not None}
    if fields.get("criterion", "l2") not in CRITERIA:
        criterion = str(fields["criterion"])
        raise UsageError(f"there is no criterion {criterion!r}", hint=known(criterion, CRITERIA))
    if fields.get("refit", "none") not in REFITS:
        raise UsageError(f"there is no refit {fields['refit']!r}", hint=known(str(fields["refit"]), REFITS))
    return POLICIES[name](**fields)


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
