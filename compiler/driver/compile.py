"""Compilation in one call, of a program or of a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from svitc.data.dataset import Dataset
from svitc.data.inputs import Data
from svitc.driver.artifacts import Compiled
from svitc.driver.compiler import Compiler
from svitc.driver.load import INPUT_FORM, capture
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.evaluation.metric import Metric
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program
from svitc.passes.policies import Policy
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.support.renamed import renamed_keywords
from svitc.support.reporter import Reporter


@renamed_keywords(narrowest="min_weight_bits", clean="remove_dead_channels")
def compile(
    program: Program | nn.Module,
    example_input: torch.Tensor | InputSpec | str | float | Budget | None = None,
    budget: str | float | Budget | None = None,
    *,
    policy: Policy | None = None,
    plan: Plan | None = None,
    reporter: Reporter | None = None,
    finetune_file: Path | None = None,
    data: Data | None = None,
    train_data: Dataset | None = None,
    max_drop: float | None = None,
    sweep_images: int = 1000,
    calibration_images: int = 256,
    sweep_file: Path | None = None,
    resume: bool = False,
    finetune: int = 0,
    finetune_options: dict[str, Any] | None = None,
    weights: str | None = None,
    min_weight_bits: int | None = None,
    target: str = "cpu",
    reparam: str = "auto",
    remove_dead_channels: str = "auto",
    no_data: str = "synthetic",
    input_range: tuple[float, float] | None = None,
    images: int = 4,
    seed: int = 0,
    metric: Metric | None = None,
) -> Compiled:
    """Prune a program to a budget, export it and verify the exported file; for several budgets use ``Compiler``.

    ``compile(program, budget, …)`` compiles what ``load`` or ``capture`` returned; ``compile(model, example_input,
    budget, …)`` captures a model in memory first.

    Args:
        program: a program, or a model whose ``forward`` takes one tensor.
        example_input: for a model, an input of it: see ``capture``. For a program, the budget.
        policy, reporter: see ``Compiler``.
        budget, plan, finetune_file: see ``Compiler.compile``.
        data, train_data, max_drop, sweep_images, calibration_images, sweep_file, resume, finetune, finetune_options,
            weights, min_weight_bits, target, reparam, remove_dead_channels, no_data, input_range, images, seed,
            metric: see ``CompileOptions``.

    Raises:
        BudgetError: no plan meets the budget.
        InputError: the plan does not fit the program.
        UnsupportedError: the model cannot be represented; the error names file and line.
        UsageError: invalid options.
    """
    program, budget = _program_and_budget(program, example_input, budget, reporter)
    options = CompileOptions(
        data=data,
        train_data=train_data,
        max_drop=max_drop,
        sweep_images=sweep_images,
        calibration_images=calibration_images,
        sweep_file=sweep_file,
        resume=resume,
        finetune=finetune,
        finetune_options=finetune_options or {},
        weights=weights,
        min_weight_bits=min_weight_bits,
        target=target,
        reparam=reparam,
        remove_dead_channels=remove_dead_channels,
        no_data=no_data,
        input_range=input_range,
        images=images,
        seed=seed,
        metric=metric,
    )
    return Compiler(program, policy, options, reporter).compile(budget, plan, finetune_file=finetune_file)


def _program_and_budget(
    program: object, example_input: object, budget: str | float | Budget | None, reporter: Reporter | None
) -> tuple[Program, str | float | Budget | None]:
    """Sort out the first arguments of ``compile``, and capture a model."""
    is_budget = example_input is None or isinstance(example_input, str | int | float | Budget)
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
    if not is_budget:
        raise UsageError("a program knows the shape of its input", hint="svitc.compile(program, budget=0.78).")
    if example_input is not None and budget is not None:
        raise UsageError("the budget is given twice", hint="svitc.compile(program, budget=0.78).")
    return program, budget if example_input is None else example_input  # type: ignore[return-value]
