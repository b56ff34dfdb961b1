"""What Python code gives to a compilation: it is brought to the types that the driver works with, or refused in words.

A policy may be a name, a plan a path, a file a path as text, and images whatever ``open_data`` opens.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from svitc.data.dataset import Dataset, Reading, load_data
from svitc.driver.options import NO_DATA, CompileOptions
from svitc.errors import UsageError
from svitc.evaluation.metric import load_metric
from svitc.ir.program import Program, required_program
from svitc.passes.policies import Policy, make
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter

CHOICES = {"no_data": NO_DATA, "reparam": ("auto", "off"), "remove_dead_channels": ("auto", "off")}
WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    dict: "a dictionary",
    tuple: "a pair of numbers",
    NoneType: "None",
}


def open_data(program: Program, source: Any, limit: int | None = None, seed: int = 0, **reading: Any) -> Dataset:
    """Open images for a program, as ``--data`` of the command line does, or from memory.

    Args:
        program: what they are for.
        source: a path; arrays of pixels, ``images`` or ``(images, labels)``; a torch DataLoader or Dataset, or any
            iterable of images as the model takes them. See ``svitc.data.dataset.load_data``.
        limit: number of images in a class-balanced sample; None for all.
        seed: seed of the sample.
        reading: ``resize``, ``crop``, ``unlabeled`` and ``events``: see ``svitc.data.dataset.Reading``.

    Raises:
        UsageError: it is nothing that gives images, or options do not fit together.
        InputError: images or labels do not fit the model.
    """
    required_program(program)
    return load_data(source, program.input, program.info, limit, seed, Reading(**reading))


def given_options(program: Program, options: CompileOptions) -> CompileOptions:
    """Return options whose images are data sets and whose files are paths.

    Raises:
        UsageError: an option has a value that it cannot have.
        InputError: images do not fit the model.
    """
    if not isinstance(options, CompileOptions):
        raise UsageError(f"options is a {type(options).__name__}", hint="svitc.CompileOptions(data=…) makes them.")
    changed: dict[str, Any] = {}
    for name, kinds in _types().items():
        value = getattr(options, name)
        if isinstance(value, str) and Path in kinds:
            changed[name] = Path(value)
        elif not _fits(value, kinds):
            expected = " or ".join(WORDS[kind] for kind in kinds)
            raise UsageError(f"{name} is {value!r:.60}, not {expected}")
    for name, choices in CHOICES.items():
        if getattr(options, name) not in choices:
            raise UsageError(f"{name} {getattr(options, name)!r} is neither {' nor '.join(choices)}")
    for name in ("sweep_images", "calibration_images"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} {getattr(options, name)} is not a positive number")
    if options.metric is not None and not callable(options.metric):
        metric = options.metric
        if not isinstance(metric, str):
            raise UsageError(f"metric is a {type(metric).__name__}, not a function of outputs and targets")
        changed["metric"] = load_metric(metric)
    for name in ("data", "train_data"):
        images = getattr(options, name)
        if images is not None and not _is_data(images):
            changed[name] = open_data(program, images, seed=options.seed)
    return replace(options, **changed) if changed else options


def given_policy(policy: Any, options: CompileOptions) -> Policy:
    """Return a policy, which may be a name; None chooses one by whether there are images.

    Raises:
        UsageError: there is no policy of this name, or it is something else.
    """
    if policy is None:
        return make("auto" if options.sampled else "uniform", seed=options.seed)
    if isinstance(policy, str):
        return make(policy, seed=options.seed)
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, type) and issubclass(policy, Policy):
        raise UsageError(f"{policy.__name__} is a class of policies", hint=f"policy={policy.__name__}() makes one.")
    raise UsageError(
        f"{type(policy).__name__} is not a policy",
        hint='Give a name, such as "uniform", or derive it from svitc.Policy, which says what it can do.',
    )


def given_plan(plan: Any) -> Plan | None:
    """Return a plan, which may be the path of its file.

    Raises:
        UsageError: it is something else.
        InputError: the file cannot be read, or is not a plan.
    """
    if isinstance(plan, str | Path):
        return Plan.load(Path(plan))
    if plan is None or isinstance(plan, Plan):
        return plan
    if isinstance(plan, dict):
        return Plan.from_json(plan)
    raise UsageError(
        f"plan is a {type(plan).__name__}, not a plan", hint="Give an svitc.Plan, or the path of plan.json."
    )


def given_reporter(reporter: Any) -> Reporter:
    """Return a reporter; by default one that tells nobody.

    Raises:
        UsageError: it is something else.
    """
    if reporter is None or isinstance(reporter, Reporter):
        return reporter or Reporter()
    raise UsageError(f"reporter is a {type(reporter).__name__}", hint="Derive it from svitc.Reporter.")


def _is_data(images: object) -> bool:
    """Return whether images are a data set of svitc, or a class of the user's own that is like one."""
    return not isinstance(images, type) and callable(getattr(images, "batches", None)) and hasattr(images, "__len__")


@cache
def _types() -> dict[str, tuple[type, ...]]:
    """Return the plain types that each option may have; images and metrics are checked in another way."""
    hints = get_type_hints(CompileOptions)
    found = {}
    for option in fields(CompileOptions):
        hint = hints[option.name]
        parts = get_args(hint) if get_origin(hint) not in (dict, tuple) and get_args(hint) else (hint,)
        kinds = tuple(get_origin(part) or part for part in parts)
        if all(kind in WORDS for kind in kinds):
            found[option.name] = kinds
    return found


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    """Return whether a value has one of some types; a whole number is a number, but True and False are none."""
    if isinstance(value, bool):
        return bool in kinds
    if tuple in kinds and isinstance(value, tuple | list):
        return len(value) == 2 and all(_fits(end, (float,)) for end in value)
    whole, real = isinstance(value, Integral), isinstance(value, Real)  # those of numpy as well
    return isinstance(value, kinds) or (int in kinds and whole) or (float in kinds and real)


__all__ = ["given_options", "given_plan", "given_policy", "given_reporter", "open_data"]
