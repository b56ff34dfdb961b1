"""Sensitivity: accuracy and size against the width of each channel group, or against the bits of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svitc.driver.compiler import Compiler
from svitc.passes.policies import Settings
from svitc.passes.policies.bitwidth.search_space import BitSettings, BitSpace
from svitc.passes.policies.bitwidth.sensitivity import precision
from svitc.passes.policies.bitwidth.sensitivity import to_json as precision_json
from svitc.passes.policies.search_space import Space
from svitc.passes.policies.sensitivity import sensitivity_curves, to_json


def channel_sensitivity(compiler: Compiler, settings: Settings, rates: Sequence[float], refit: str) -> dict[str, Any]:
    """Measure what pruning each channel group alone costs and saves.

    Args:
        compiler: gives what measures plans.
        settings: which groups, and what goes first in them.
        rates: pruning rates, ascending, each between 0 and 1.
        refit: what makes up for a cut.

    Returns:
        JSON values: ``settings``, ``refit``, ``rates`` and ``groups``.
    """
    problem = compiler.problem()
    space = Space(problem.program, settings, problem.calibrating)
    curves = sensitivity_curves(problem, space, rates, refit, "sensitivity")
    return {
        "settings": settings.to_json(),
        "refit": refit,
        "rates": list(rates),
        "groups": to_json(problem, space, curves),
    }


def bit_sensitivity(compiler: Compiler, settings: Settings) -> dict[str, Any]:
    """Measure what fewer bits cost and save, for each layer and each kind of layer alone, with all others at 8 bits.

    Args:
        compiler: gives what measures plans.
        settings: of which ``exclude`` and ``seed`` count.

    Returns:
        JSON values: ``settings``, ``all_at_8``, ``layers`` and ``kinds``.
    """
    bit_settings = BitSettings(exclude=settings.exclude, seed=settings.seed)
    space = BitSpace(compiler.problem(weights="mixed", exclude=tuple(settings.exclude)), bit_settings)
    alone = precision(space, "precision")
    all_at_8 = space.points([space.widest], "precision")[0]
    return {"settings": bit_settings.to_json(), **precision_json(space, alone, all_at_8)}
