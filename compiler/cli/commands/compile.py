"""``svitc compile``: prune, quantize, export and verify a model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from svitc.cli import terminal
from svitc.cli.common import arguments, declared, load_images, load_program, start, unfinished_file
from svitc.cli.compile_options import BudgetOptions, CompileDataOptions, FileOptions
from svitc.cli.options import LoadOptions, ModelPath
from svitc.cli.output_options import VerifiedRunOptions
from svitc.cli.training_options import TrainingOptions
from svitc.cli.views.compile import front, summary
from svitc.cli.views.prediction import warn_of_loss
from svitc.errors import BudgetError, SvitcError, VerifyError
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from svitc.driver.compiler import Compiler
    from svitc.driver.options import CompileOptions
    from svitc.ir.program import Program
    from svitc.passes.policies import Policy
    from svitc.planning.budget import Budget
    from svitc.planning.plan import Plan


def compile(
    model: ModelPath,
    budget: BudgetOptions,
    file: FileOptions,
    data: CompileDataOptions,
    training: TrainingOptions,
    load: LoadOptions,
    output: VerifiedRunOptions,
) -> None:
    """Prune a trained SViT to a memory budget, export it to ONNX, and verify the export.

    [dim]svitc compile model.pt --data val/ --budget 0.6[/]
    [dim]svitc compile model.pt --weights int8[/]
    [dim]svitc compile model.pt --data val/ --max-drop 1[/]
    [dim]svitc compile model.pt --data val/ --train-data train/ --budget 0.1 --finetune 5[/]
    [dim]svitc compile model.pt --data val/ --weights int8 --anytime --max-drop 0.5[/]
    """
    start(output.verbose)
    policy, budgets, plan = _checked(budget, file, data, training, load, output.seed)
    from svitc.driver.compiler import Compiler
    from svitc.driver.report_files import PAGE, comparison_of
    from svitc.support.atomic_files import write_one
    from svitc.support.distributed import world
    from svitc.support.locks import sole_writer

    with (
        world() as ranks,
        sole_writer(file.out) if ranks.is_writer else nullcontext(),
        terminal.reporting(output.silent or not ranks.is_writer) as reporter,
    ):
        program = load_program(model, load, reporter)
        options = _compile_options(program, budget, file, data, training, output)
        compiler = Compiler(program, policy, options, reporter)
        results = _compile_all(compiler, budgets, plan, file, ranks.is_writer)
    if not ranks.is_writer:
        return
    if not file.no_html and len(budgets) > 1 and results.folders:
        write_one(file.out / PAGE, comparison_of(results.folders, file.out / PAGE))
    if output.as_json:
        print(json.dumps(results.reports if len(budgets) > 1 else results.reports[0], indent=1))
    elif len(budgets) == 1:
        summary(results.reports[0], results.paths)
    else:
        front(results.reports, file.out)
    results.raise_failures()


@dataclass
class Results:
    """The outcome of every budget.

    Attributes:
        reports: the reports of the budgets that could be met.
        folders: where their files are.
        paths: the files that were written for the last of them.
        diverged: folders whose ONNX file is not the same network, with the layer at which it first differs.
        unmet: one error for each budget that cannot be met.
    """

    reports: list[JsonDict] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    diverged: list[tuple[Path, str | None]] = field(default_factory=list)
    unmet: list[SvitcError] = field(default_factory=list)

    def raise_failures(self) -> None:
        """Raise the most serious failure, if there is one.

        Raises:
            VerifyError: an ONNX file is not the same network.
            BudgetError: a budget cannot be met. Where several cannot, all errors but the last are printed.
        """
        if self.diverged:
            folder, place = self.diverged[0]
            raise VerifyError(
                f"the ONNX file is not the same network: it diverges first at {place}",
                hint=f"The files are in {folder} for inspection; do not deploy them. Please report this.",
            )
        for problem in self.unmet[:-1]:
            terminal.error(problem)
        if self.unmet:
            raise self.unmet[-1]


def _checked(
    budget: BudgetOptions,
    file: FileOptions,
    data: CompileDataOptions,
    training: TrainingOptions,
    load: LoadOptions,
    seed: int,
) -> tuple[Policy, list[Budget | None], Plan | None]:
    """Check all options before anything is loaded; return the policy, the budgets and the plan to replay.

    Raises:
        UsageError: an option makes no sense, alone or with the others.
        OutputError: the output folder cannot be written.
    """
    from svitc.driver.artifacts import check_own
    from svitc.driver.weight_types import resolve_weight_type
    from svitc.passes.policies import POLICIES
    from svitc.planning.plan import Plan
    from svitc.support.atomic_files import writable

    file.check()
    chooses_bits = budget.policy in POLICIES and POLICIES[budget.policy].chooses_bits
    data.check()
    file.check_streaming()
    file.check_anytime(budget.max_drop, data.data is not None, file.per_step)
    budget.check(data, smaller_anyway=chooses_bits or not file.as_original)
    training.check(data.train_data)
    budgets = budget.budgets()
    load.check()
    writable(file.out)
    check_own(file.out)
    policy = budget.make_policy(data.available, seed)
    if budget.plan is not None:
        return policy, budgets, Plan.load(budget.plan)
    resolve_weight_type(file.weights, policy, None, None, data.available)
    return policy, budgets, None


def _compile_options(
    program: Program,
    budget: BudgetOptions,
    file: FileOptions,
    data: CompileDataOptions,
    training: TrainingOptions,
    output: VerifiedRunOptions,
) -> CompileOptions:
    """Open the images and translate the options into those of the compiler."""
    from svitc.driver.options import CompileOptions
    from svitc.evaluation.metric import load_metric

    if file.raw_input and not program.input.events:
        data = declared(program, data)

    return CompileOptions(
        metric=None if data.metric is None else load_metric(data.metric),
        data=load_images(data.data, program, data.limit, output.seed, data, data.unlabeled),
        train_data=load_images(data.train_data, program, None, output.seed, data, data.unlabeled),
        max_drop=None if file.anytime else budget.max_drop_share,
        anytime=budget.max_drop_share if file.anytime else None,
        confidence=file.confidence_or_usual,
        tokens=budget.tokens,
        sweep_images=data.sweep_images,
        calibration_images=data.calibration_images,
        sweep_file=unfinished_file(file.out, "sweep.jsonl"),
        resume=data.resume,
        finetune=training.finetune,
        finetune_options=training.arguments(),
        weights=file.weights,
        min_weight_bits=file.min_weight_bits,
        target=file.target,
        per_step=file.per_step,
        streaming=file.streaming,
        packed_state=file.packed_state,
        raw_input=file.raw_input,
        static_batch=file.static_batch,
        functions=file.functions,
        reparam=budget.reparam,
        remove_dead_channels=budget.remove_dead_channels,
        no_data=data.no_data,
        input_range=file.input_ends,
        images=output.verify_images,
        seed=output.seed,
    )


def _compile_all(
    compiler: Compiler, budgets: list[Budget | None], plan: Plan | None, file: FileOptions, is_writer: bool
) -> Results:
    """Compile for each budget and write its files; a budget that cannot be met does not stop the others.

    Raises:
        BudgetError: the only budget cannot be met.
    """
    results = Results()
    for budget in budgets:
        name = budget.text if budget else ""
        folder = file.out if len(budgets) == 1 else file.out / name.replace("/", "-")
        finetune_file = unfinished_file(folder, "finetune.pt")
        try:
            compiled = compiler.compile(budget, plan, finetune_file=finetune_file)
        except BudgetError as problem:
            if len(budgets) == 1:
                raise
            problem.message = f"{name}: {problem.message}"
            results.unmet.append(problem)
            continue
        if is_writer:
            warn_of_loss(compiled.report)
            compiled.report["command"] = ["svitc", *arguments]
            results.folders.append(folder)
            results.paths = compiled.write(folder, html=not file.no_html)
            if compiler.options.finetune:
                finetune_file.unlink(missing_ok=True)
        results.reports.append(compiled.report)
        if not compiled.verdict.passed:
            results.diverged.append((folder, compiled.verdict.first_divergence))
    return results
