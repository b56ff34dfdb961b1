"""Token plans: which tokens run through every token stage of a program, checked and completed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from svitc.errors import InputError
from svitc.ir.token_stages import TokenStage


def kept_tokens(stages: Sequence[TokenStage], tokens: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return the positions of the tokens that run through every stage, ascending.

    A stage that the plan does not name runs those of the stage before it, as a stopped token does not run again in the
    same region; the first one of a region runs all.

    Args:
        stages: the stages of a program.
        tokens: stage -> positions of its tokens, as a plan has them.

    Raises:
        InputError: an unknown stage; no positions, or such that do not exist; a token that runs again.
    """
    names = [stage.name for stage in stages]
    for name in tokens:
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f"The closest is {close[0]}." if close else "Is the plan for another model?"
            raise InputError(f"the plan keeps tokens of {name}, where no tokens can be pruned", hint=hint)
    kept: dict[str, tuple[int, ...]] = {}
    running: tuple[int, ...] = ()
    region = None
    for stage in stages:
        if stage.region != region:
            running, region = tuple(range(stage.count)), stage.region
        chosen = tuple(sorted(set(tokens.get(stage.name, running))))
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < stage.count:
            raise InputError(
                f"the plan keeps tokens {list(chosen)} of {stage.name}, which has {stage.count}",
                hint="At least one must stay, and they count from 0.",
            )
        if not set(chosen) <= set(running):
            again = min(set(chosen) - set(running))
            raise InputError(f"the plan runs token {again} in {stage.name}, although it stopped before")
        kept[stage.name] = running = chosen
    return kept


def read_tokens(data: object) -> dict[str, tuple[int, ...]]:
    """Return the tokens of a plan from what ``json.loads`` returned.

    Raises:
        InputError: they are not lists of numbers.
    """
    if isinstance(data, Mapping) and all(
        isinstance(positions, list) and all(type(p) is int for p in positions) for positions in data.values()
    ):
        return {str(name): tuple(positions) for name, positions in data.items()}
    raise InputError("the plan's tokens are malformed", hint="They give stages the positions of the tokens that run.")


__all__ = ["kept_tokens", "read_tokens"]
