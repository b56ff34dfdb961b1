"""``svitc compile``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import Preparation, load_labelled, options, start
from svitc.cli.options import (
    CUT,
    TUNE,
    Arch,
    ArchArgs,
    AsJson,
    CalibrationImages,
    Clean,
    Criterion,
    Crop,
    DataPath,
    Ema,
    Exclude,
    Fix,
    Images,
    Include,
    InputShape,
    Limit,
    Mean,
    ModelPath,
    Narrowest,
    PruneHeads,
    Refit,
    Reparam,
    Resize,
    Resume,
    RoundTo,
    Seed,
    Std,
    SweepImages,
    TargetName,
    TimeSteps,
    TrainPath,
    TrustPickle,
    Verbose,
    WeightType,
)
from svitc.cli.views.compile import decision, front, summary
from svitc.errors import BudgetError, UsageError, VerifyError


def compile(
    model: ModelPath,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Keep at most this: a share of the original fp32 bytes ([bold]0.78[/], [bold]78%[/]), bytes "
            "([bold]12MB[/]), parameters ([bold]params=8M[/], [bold]params=78%[/]), or the time that ONNX Runtime is "
            "measured to take for an image on this machine ([bold]latency=0.6[/] of what the original takes with the "
            "same --weights, [bold]latency=50ms[/]). Several with commas make a front: [bold]0.9,0.78,0.6[/].",
            rich_help_panel=CUT,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for model.onnx, model.py, model.safetensors, plan.json and report.json; for a front, one "
            "folder in it for each budget.",
        ),
    ] = Path("svitc-out"),
    policy: Annotated[
        str | None,
        typer.Option(
            help="What writes the plan. Channels: [bold]auto[/] (with images), [bold]psvit[/], [bold]primesvt[/], "
            "[bold]uniform[/] (without). Bits of each layer: [bold]qsvit[/], [bold]aq-greedy[/], [bold]aq-beam[/]. "
            "Both, for small budgets: [bold]auto[/].",
            rich_help_panel=CUT,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Lose at most this many points of top-1, before fine-tuning. Without --budget: as small as that "
            "allows.",
            rich_help_panel=CUT,
        ),
    ] = None,
    criterion: Criterion = None,
    refit: Refit = None,
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = 1,
    prune_heads: PruneHeads = False,
    plan: Annotated[
        Path | None, typer.Option(help="Replay this plan.json instead of making a plan.", rich_help_panel=CUT)
    ] = None,
    weights: WeightType = None,
    narrowest: Narrowest = None,
    target: TargetName = "cpu",
    reparam: Reparam = "auto",
    clean: Clean = "auto",
    data: DataPath = None,
    train_data: TrainPath = None,
    limit: Limit = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    sweep_images: SweepImages = 1000,
    calibration_images: CalibrationImages = 256,
    resume: Resume = False,
    finetune: Annotated[
        int,
        typer.Option(min=0, help="Train the pruned model for this many epochs on --train-data.", rich_help_panel=TUNE),
    ] = 0,
    lr: Annotated[
        float, typer.Option(min=0, help="Highest learning rate of fine-tuning.", rich_help_panel=TUNE)
    ] = 1e-3,
    batch: Annotated[int, typer.Option(min=2, help="Images a step of fine-tuning.", rich_help_panel=TUNE)] = 64,
    distil: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Weight of the original's answers in the loss, beside the labels.", rich_help_panel=TUNE
        ),
    ] = 0.5,
    augment: Annotated[
        str,
        typer.Option(
            help="Of training images: auto (flip,crop for colour images), none, flip, crop, or flip,crop.",
            rich_help_panel=TUNE,
        ),
    ] = "auto",
    arch: Arch = None,
    arch_args: ArchArgs = None,
    input_shape: InputShape = None,
    time_steps: TimeSteps = None,
    trust_pickle: TrustPickle = False,
    ema: Ema = False,
    fix: Fix = False,
    verify_images: Images = 4,
    seed: Seed = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Prune a trained SViT to a memory budget, export it to ONNX, and verify the export.

    [dim]svitc compile model.pt --budget 0.78[/]

    [dim]svitc compile model.pt --weights int8[/]

    [dim]svitc compile model.pt --data val/ --budget 0.6[/]

    [dim]svitc compile model.pt --data val/ --train-data train/ --budget 0.35 --finetune 5[/]

    [dim]svitc compile model.pt --data val/ --policy qsvit --max-drop 2.1[/]

    [dim]svitc compile model.pt --data val/ --budget 0.1 --finetune 5 --train-data train/[/]
    """
    start(verbose)
    from svitc.driver.weight_types import check_weight_type, resolve_weight_type
    from svitc.onnx.target import target_of
    from svitc.passes.policies import POLICIES

    if weights is not None:
        check_weight_type(weights)
    target_of(target, narrowest)
    by_bits = policy in POLICIES and POLICIES[policy].chooses_bits
    free = weights in (None, "fp32") and target == "cpu" and not by_bits
    if budget is None and plan is None and max_drop is None and free:
        raise UsageError(
            "what should be kept?", hint="Give --budget, such as --budget 0.78, or --plan to replay a plan."
        )
    if reparam not in ("auto", "off"):
        raise UsageError(f"--reparam {reparam!r} is neither auto nor off")
    if clean not in ("auto", "off"):
        raise UsageError(f"--clean {clean!r} is neither auto nor off")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop {max_drop:g} is not a number of points between 0 and 100")
    if max_drop is not None and data is None and train_data is None:
        raise UsageError("--max-drop is measured on images", hint="Give them with --data.")
    if refit not in (None, "none") and plan is None and data is None and train_data is None:
        raise UsageError(f"--refit {refit} looks at images", hint="Give them with --data.")
    if finetune and train_data is None:
        raise UsageError("--finetune trains on images", hint="Give them with --train-data.")
    from svitc.planning.budget import parse_budget

    budgets = [parse_budget(text) for text in budget.split(",")] if budget is not None else [None]
    if len(budgets) > 1 and plan is not None:
        raise UsageError("--plan replays one plan; give one --budget, or none")
    how = Preparation(mean, std, resize, crop)
    given = options(arch, arch_args, input_shape, time_steps, trust_pickle, ema, fix)
    from svitc.support.atomic_files import writable

    writable(out)
    from svitc.driver.compiler import Compiler
    from svitc.driver.load import load
    from svitc.driver.options import CompileOptions
    from svitc.passes.policies import make
    from svitc.planning.plan import Plan
    from svitc.support.distributed import world
    from svitc.support.reporter import Reporter

    name = policy or ("auto" if data is not None or train_data is not None else "uniform")
    chosen = make(
        name,
        criterion=criterion,
        refit=refit,
        include=include or (),
        exclude=exclude or (),
        round_to=round_to,
        prune_heads=prune_heads,
        seed=seed,
    )
    if plan is None:  # refuses before anything is loaded what does not go together
        resolve_weight_type(weights, chosen, None, None, data is not None or train_data is not None)
    replay = Plan.load(plan) if plan is not None else None
    with world() as ranks:
        writer = ranks.is_writer
        with terminal.progress(quiet=as_json or verbose or not writer) as show:
            reporter = Reporter(show, None if as_json or verbose or not writer else decision)
            program = load(model, reporter=reporter, **given)
            settings = CompileOptions(
                data=load_labelled(data, program, limit, seed, how),
                train_data=load_labelled(train_data, program, None, seed, how),
                max_drop=None if max_drop is None else max_drop / 100,
                sweep_images=sweep_images,
                calibration_images=calibration_images,
                sweep_file=beside(out, "sweep.jsonl"),
                resume=resume,
                finetune=finetune,
                finetune_options={"lr": lr, "batch": batch, "distil": distil, "augment": augment} if finetune else {},
                weights=weights,
                min_weight_bits=narrowest,
                target=target,
                reparam=reparam,
                remove_dead_channels=clean,
                images=verify_images,
                seed=seed,
            )
            compiler = Compiler(program, chosen, settings, reporter)
            reports, failed, problems = [], [], []
            for each in budgets:
                folder = out if len(budgets) == 1 else out / (each.text if each else "").replace("/", "-")
                finetune_file = beside(folder, "finetune.pt")
                try:
                    done = compiler.compile(each, replay, finetune_file=finetune_file)
                except BudgetError as problem:
                    if len(budgets) == 1:
                        raise
                    problem.message = f"{each.text if each else ''}: {problem.message}"
                    problems.append(problem)
                    continue
                paths = done.write(folder) if writer else []
                if writer and finetune:
                    finetune_file.unlink(missing_ok=True)
                reports.append((done.report, paths))
                if not done.verdict.passed:
                    failed.append((folder, done.verdict.first_divergence))
    if not writer:
        return
    if as_json:
        print(json.dumps(reports[0][0] if len(budgets) == 1 else [report for report, _ in reports], indent=1))
    elif len(budgets) == 1:
        summary(*reports[0])
    else:
        front([report for report, _ in reports], out)
    if failed:
        folder, place = failed[0]
        raise VerifyError(
            f"the ONNX file is not the same network: it diverges first at {place}",
            hint=f"The files are in {folder} for a look; do not deploy them. Please report this.",
        )
    for earlier in problems[:-1]:
        terminal.error(earlier)
    if problems:
        raise problems[-1]


def beside(out: Path, suffix: str) -> Path:
    """A file of this run's unfinished work: ``svitc-out.sweep.jsonl``."""
    return out.parent / f"{out.name}.{suffix}"
