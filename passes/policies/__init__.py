"""Policies: what writes a plan from groups, weights and data."""

from __future__ import annotations

from typing import Any

from svitc.errors import UsageError

from .criteria import CRITERIA
from .uniform import Uniform

POLICIES = {"uniform": Uniform}


def make(name: str, **options: Any) -> Uniform:
    """The policy of that name with these options.

    Raises:
        UsageError: no such policy or criterion, listing those that are.
    """
    if name not in POLICIES:
        raise UsageError(f"there is no policy {name!r}", hint=f"Known: {', '.join(POLICIES)}.")
    if options.get("criterion") not in CRITERIA:
        raise UsageError(f"there is no criterion {options.get('criterion')!r}", hint=f"Known: {', '.join(CRITERIA)}.")
    return POLICIES[name](**options)


__all__ = ["CRITERIA", "POLICIES", "Uniform", "make"]
