"""Compilation in one call, of a program or of a model in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from numbers import Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from svitc.driver.artifacts import Compiled
from svitc.driver.compiler import Compiler
from svitc.driver.load import INPUT_FORM, capture
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program
from svitc.passes.policies import Policy
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.support.renamed import renamed_keywords
from svitc.support.reporter import Reporter

P = ParamSpec("P")
T = TypeVar("T")


def _shows_options(function: Callable[P, T]) -> Callable[P, T]:
    """Name the fields of ``CompileOptions`` in a function's signature, for ``help`` and completion in notebooks."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if option.default is MISSING else option.default,
            annotation=option.type,
        )
        for option in fields(CompileOptions)
    ]
    signature = inspect.signature(function).replace(parameters=[*own, *options])
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


@renamed_keywords(narrowest="min_weight_bits", clean="remove_dead_channels")
@_shows_options
def compile(
    program: Program | nn.Module,
    example_input: torch.Tensor | InputSpec | str | float | Budget | None = None,
    budget: str | float | Budget | None = None,
    *,
    policy: Policy | str | None = None,
    plan: Plan | Path | str | None = None,
    reporter: Reporter | None = None,
    finetune_file: Path | str | None = None,
    **options: Any,
) -> Compiled:
    """Prune a program to a budget, export it and verify the exported file; for several budgets use ``Compiler``.

    ``compile(program, budget, …)`` compiles what ``load`` or ``capture`` returned; ``compile(model, example_input,
    budget, …)`` captures a model in memory first.

    Args:
        program: a program, or a model whose ``forward`` takes one tensor.
        example_input: for a model, an input of it: see ``capture``. For a program, the budget.
        budget: see ``Compiler.compile``.
        policy: see ``Compiler``.
        plan: see ``Compiler.compile``.
        reporter: see ``Compiler``.
        finetune_file: see ``Compiler.compile``.
        options: ``data``, ``weights`` and the other fields of ``CompileOptions``, which describes them.

    Raises:
        BudgetError: no plan meets the budget.
        InputError: the plan does not fit the program.
        UnsupportedError: the model cannot be represented; the error names file and line.
        UsageError: invalid options.
    """
    unknown = sorted(options.keys() - {option.name for option in fields(CompileOptions)})
    if unknown:
        raise TypeError(f"compile() got an unexpected keyword argument {unknown[0]!r}")
    if options.get("finetune_options", {}) is None:
        del options["finetune_options"]
    program, budget = _program_and_budget(program, example_input, budget, reporter)
    compiler = Compiler(program, policy, CompileOptions(**options), reporter)
    return compiler.compile(budget, plan, finetune_file=finetune_file)


def _program_and_budget(
    program: object, example_input: object, budget: str | float | Budget | None, reporter: Reporter | None
) -> tuple[Program, str | float | Budget | None]:
    """Sort out the first arguments of ``compile``, and capture a model."""
    is_budget = example_input is None or isinstance(example_input, str | Real | Budget)
    if isinstance(program, nn.Module):
        if is_budget:
            raise UsageError(
                "a model is compiled for inputs of one shape, which nothing says",
                hint=f"svitc.compile(model, example_input, budget=0.78). {INPUT_FORM}",
            )
        return capture(program, example_input, reporter=reporter), budget  # type: ignore[arg-type]
    if not isinstance(program, Program):
        raise UsageError(
            f"a {type(program).__name__} is neither a program nor a model",
            hint="Load a checkpoint with svitc.load(path), or give a torch.nn.Module and an example of its input.",
        )
    if isinstance(example_input, list | tuple):
        raise UsageError("svitc.compile takes one budget", hint="svitc.front(program, [0.78, 0.5]) takes several.")
    if not is_budget:
        raise UsageError("a program knows the shape of its input", hint="svitc.compile(program, budget=0.78).")
    if example_input is not None and budget is not None:
        raise UsageError("the budget is given twice", hint="svitc.compile(program, budget=0.78).")
    given = budget if example_input is None else example_input
    return program, float(given) if isinstance(given, np.floating) else given  # type: ignore[arg-type, return-value]
