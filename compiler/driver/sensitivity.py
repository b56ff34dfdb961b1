"""Sensitivity: accuracy and size by the pruning ratio of each channel group, or by the bits of each layer."""

from __future__ import annotations

from collections.abc import Sequence

from svitc.driver.compiler import Compiler
from svitc.passes.policies import Settings
from svitc.passes.policies.bitwidth.search_space import BitSettings, BitSpace
from svitc.passes.policies.bitwidth.sensitivity import precision
from svitc.passes.policies.bitwidth.sensitivity import to_json as precision_json
from svitc.passes.policies.search_space import Space
from svitc.passes.policies.sensitivity import sensitivity_curves, to_json
from svitc.support.types import JsonDict


def channel_sensitivity(compiler: Compiler, settings: Settings, rates: Sequence[float], refit: str) -> JsonDict:
    """Measure the lost accuracy and the saved size where each channel group alone is pruned.

    Args:
        compiler: the compiler of the program.
        settings: which channel groups, and the importance criterion.
        rates: pruning ratios, ascending, each between 0 and 1.
        refit: how pruned networks are refitted.

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


def bit_sensitivity(compiler: Compiler, settings: Settings) -> JsonDict:
    """Measure the lost accuracy and the saved size where each layer, or kind of layer, alone has fewer than 8 bits.

    Args:
        compiler: the compiler of the program.
        settings: only ``exclude`` and ``seed`` are used.

    Returns:
        JSON values: ``settings``, ``all_at_8``, ``layers`` and ``kinds``.
    """
    bit_settings = BitSettings(exclude=settings.exclude, seed=settings.seed)
    space = BitSpace(compiler.problem(weights="mixed", exclude=tuple(settings.exclude)), bit_settings)
    alone = precision(space, "precision")
    all_at_8 = space.points([space.widest], "precision")[0]
    return {"settings": bit_settings.to_json(), **precision_json(space, alone, all_at_8)}
