"""The command line. Exit statuses: 0 done, 2 usage, 3 bad input file, 4 unsupported model, 5 budget cannot be met,
6 verification failed, 7 output cannot be written, 70 a fault of svitc, 130 interrupted."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .cli_options import (
    CUT,
    Arch,
    ArchArgs,
    AsJson,
    DataPath,
    Ema,
    Fix,
    Images,
    InputShape,
    Limit,
    Mean,
    ModelPath,
    Seed,
    Std,
    TimeSteps,
    TrustPickle,
    Verbose,
)
from .errors import INTERRUPTED, InternalError, SvitcError, UsageError, VerifyError

EPILOG = (
    "Exit status: 0 done, 2 usage, 3 bad input file, 4 unsupported model, 5 budget cannot be met, "
    "6 verification failed, 7 output cannot be written, 70 internal error, 130 interrupted."
)
app = typer.Typer(
    help="Compile spiking vision transformers: prune them to a memory budget and export ONNX that runs on stock runtimes.",
    epilog=EPILOG, no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _start(verbose: bool) -> None:
    if verbose:
        state["verbose"] = True
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("svitc").setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available", on every CPU build
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # we say what does not fit


state: dict[str, bool] = {"verbose": False}


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise UsageError(
            f"--input-shape {text!r} is not a shape",
            hint="Give C,H,W such as 3,224,224, or T,C,H,W for event frames.",
        )
    return shape


def _floats(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a list of numbers", hint="For example 0.485,0.456,0.406.") from None


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise UsageError(
            f"--arch-args is not JSON: {problem}", hint="For example --arch-args '{\"embed_dims\": 384}'."
        ) from problem
    if not isinstance(value, dict):
        raise UsageError("--arch-args is not a JSON object", hint="For example --arch-args '{\"embed_dims\": 384}'.")
    return value


def _options(
    arch: str | None,
    arch_args: str | None,
    input_shape: str | None,
    time_steps: int | None,
    trust_pickle: bool,
    ema: bool,
    fix: bool,
) -> dict[str, Any]:
    return {
        "arch": arch, "arch_args": _json_object(arch_args), "input_shape": _numbers(input_shape),
        "time_steps": time_steps, "trust_pickle": trust_pickle, "ema": ema, "fix": fix,
    }  # fmt: skip


@app.command(epilog=EPILOG)
def compile(
    model: ModelPath,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Keep at most this: a share of the original fp32 bytes ([bold]0.78[/], [bold]78%[/]), bytes ([bold]12MB[/]), or parameters ([bold]params=8M[/], [bold]params=78%[/]).",
            rich_help_panel=CUT,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for model.onnx, model.py, model.safetensors, plan.json and report.json.",
        ),
    ] = Path("svitc-out"),
    policy: Annotated[
        str, typer.Option(help="What writes the plan: [bold]uniform[/].", rich_help_panel=CUT)
    ] = "uniform",
    criterion: Annotated[
        str,
        typer.Option(help="Which channels of a group go first: l2, l1, bn-scale, random.", rich_help_panel=CUT),
    ] = "l2",
    include: Annotated[
        list[str] | None,
        typer.Option(help="Prune only groups whose name matches this glob; may be repeated.", rich_help_panel=CUT),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Leave every layer that matches this glob as it is; may be repeated.", rich_help_panel=CUT),
    ] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Make widths multiples of this.", rich_help_panel=CUT)] = 1,
    prune_heads: Annotated[
        bool,
        typer.Option(
            "--prune-heads",
            help="In attention remove whole heads, not dimensions of every head.",
            rich_help_panel=CUT,
        ),
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="Replay this plan.json instead of making a plan.", rich_help_panel=CUT)
    ] = None,
    data: DataPath = None,
    limit: Limit = None,
    mean: Mean = None,
    std: Std = None,
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
    """
    _start(verbose)
    if budget is None and plan is None:
        raise UsageError(
            "what should be kept?", hint="Give --budget, such as --budget 0.78, or --plan to replay a plan."
        )
    from .budget import parse_budget

    wanted = parse_budget(budget) if budget is not None else None
    options = _options(arch, arch_args, input_shape, time_steps, trust_pickle, ema, fix)
    from .files import writable

    writable(out)
    from . import driver
    from .passes.policies import make
    from .plan import Plan

    chosen = make(
        policy,
        criterion=criterion,
        include=include or (),
        exclude=exclude or (),
        round_to=round_to,
        prune_heads=prune_heads,
        seed=seed,
    )
    replay = Plan.load(plan) if plan is not None else None
    with console.progress(quiet=as_json or verbose) as show:
        seconds: dict[str, float] = {}
        program = driver.load(model, seconds=seconds, progress=show, **options)
        labelled = _data(data, program, limit, seed, mean, std)
        done = driver.compile(
            program,
            wanted,
            policy=chosen,
            plan=replay,
            data=labelled,
            images=verify_images,
            seed=seed,
            progress=show,
            seconds=seconds,
        )
        paths = done.write(out)
    if as_json:
        print(json.dumps(done.report, indent=1))
    else:
        console.summary(done.report, paths)
    if not done.verdict.passed:
        raise VerifyError(
            f"the ONNX file is not the same network: it diverges first at {done.verdict.first_divergence}",
            hint=f"The files are in {out} for a look; do not deploy them. Please report this.",
        )


def _data(path: Path | None, program: Any, limit: int | None, seed: int, mean: str | None, std: str | None) -> Any:
    if path is None:
        return None
    from .frontends.data import load_data

    if (mean is None) != (std is None):
        raise UsageError("--mean and --std go together")
    if mean is not None and std is not None:
        given = {"mean": _floats("--mean", mean), "std": _floats("--std", std)}
        channels = program.input.shape[-3]
        if {len(values) for values in given.values()} != {channels} or min(given["std"]) <= 0:
            raise UsageError(f"--mean and --std must be {channels} numbers each, one a channel, --std above 0")
        program.info["normalize"] = given
    elif program.info.get("normalize") is None:
        notes = program.info.setdefault("assumptions", [])
        notes.append("images are only scaled to [0, 1], as nothing says how they are normalised; give --mean and --std")
    return load_data(path, program.input, program.info, limit=limit, seed=seed)


@app.command(epilog=EPILOG)
def inspect(
    model: ModelPath,
    program_text: Annotated[
        bool, typer.Option("--program", help="Print the typed program instead, one line a node.")
    ] = False,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    input_shape: InputShape = None,
    time_steps: TimeSteps = None,
    trust_pickle: TrustPickle = False,
    ema: Ema = False,
    fix: Fix = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show what is in a model: layers, channel groups, bytes, multiply-accumulates, what is prunable and why not."""
    _start(verbose)
    options = _options(arch, arch_args, input_shape, time_steps, trust_pickle, ema, fix)
    from . import driver

    with console.progress(quiet=as_json or verbose) as show:
        program = driver.load(model, progress=show, **options)
        if program_text:
            print(program)
            return
        view = driver.inspect(program)
    if as_json:
        print(json.dumps(view, indent=1))
    else:
        console.inspection(view)


@app.command(epilog=EPILOG)
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An output folder of svitc compile.", show_default=False)
    ],
    data: DataPath = None,
    limit: Limit = None,
    mean: Mean = None,
    std: Std = None,
    images: Images = 16,
    seed: Seed = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Is the ONNX file in FOLDER the same network as its model.safetensors and model.py? Layer by layer, then whole."""
    _start(verbose)
    from . import driver

    with console.progress(quiet=as_json or verbose) as show:
        program, exported = driver.open_folder(folder)
        labelled = _data(data, program, limit, seed, mean, std)
        verdict = driver.verify_folder(program, exported, labelled, images, seed, show)
    if as_json:
        print(json.dumps(verdict.to_json(), indent=1))
    else:
        console.verdict_line(verdict.to_json())
        for layer in verdict.layers.values():
            if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
                console.out.print(f"  {asdict(layer)}")
    if not verdict.passed:
        raise VerifyError(
            f"{folder}/model.onnx is not the same network: it diverges first at {verdict.first_divergence}"
        )


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"svitc {version('svitc')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status. Bad input never gives a traceback (``-v`` shows one)."""
    state["verbose"] = False
    try:
        app(args=argv, prog_name="svitc")
    except SystemExit as done:
        if done.code == INTERRUPTED:
            console.err.print("interrupted; nothing was written")
        return int(done.code or 0)
    except SvitcError as problem:
        console.error(problem)
        if state["verbose"]:
            traceback.print_exc()
        return problem.exit_status
    except Exception as problem:
        fault = InternalError(
            f"{type(problem).__name__}: {problem}",
            hint="This is a fault of svitc; -v shows where. Please report it.",
        )
        console.error(fault)
        if state["verbose"]:
            traceback.print_exc()
        return fault.exit_status
    return 0
