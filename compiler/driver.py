"""The driver: from a program and a budget to the files of an output folder, with a report of every step."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from . import onnx as backend
from . import passes as passes_
from .budget import Budget, Cost, byte_cost, parameter_cost, parse_budget
from .check import check
from .errors import InputError, InternalError, UnsupportedError
from .files import write_together
from .pass_base import Pipeline
from .plan import Plan
from .program import Program
from .serialize import load_program
from .serialize import to_bytes as program_bytes
from .source import program_source
from .stats import layers, macs
from .verify import Verdict, random_inputs, top1, verify

log = logging.getLogger("svitc")
PIXELS_AT_ONCE = 224 * 224  # a batch whose values, kept layer by layer for two runtimes, stay within a few gigabytes
Progress = Callable[[str, int, int | None], None]  # stage, done, of


class Policy(Protocol):
    """What writes plans."""

    def plan(self, program: Program, cost: Cost, limit: int, what: str) -> Plan: ...


class Data(Protocol):
    """Labelled batches in the program's input layout."""

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...

    def __len__(self) -> int: ...


@dataclass
class Compiled:
    """A finished compilation.

    Attributes:
        program: pruned; still trains.
        onnx: the file's bytes.
        plan: what stayed.
        report: see docs/report.md for the keys.
        verdict: of the verification.
    """

    program: Program
    onnx: bytes
    plan: Plan
    report: dict[str, Any]
    verdict: Verdict

    def write(self, out: Path) -> list[Path]:
        """Write the five files of the output folder, all or none.

        Raises:
            OutputError: the folder cannot be written.
        """
        start = time.perf_counter()
        contents = {
            "model.onnx": self.onnx,
            "model.py": program_source(self.program).encode(),
            "model.safetensors": program_bytes(self.program),
            "plan.json": (json.dumps(self.plan.to_json(), indent=1) + "\n").encode(),
        }
        self.report["seconds"]["write"] = round(time.perf_counter() - start, 3)
        self.report["seconds"]["total"] = round(sum(v for k, v in self.report["seconds"].items() if k != "total"), 3)
        contents["report.json"] = (json.dumps(self.report, indent=1) + "\n").encode()
        return write_together(out, contents)


@dataclass
class Clock:
    """Seconds by stage, and the progress of the stage that runs."""

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, of: int | None = None) -> Iterator[Callable[[int], None]]:
        start = time.perf_counter()

        def step(done: int) -> None:
            if self.progress is not None:
                self.progress(name, done, of)

        step(0)
        yield step
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        log.info("%s: %.2f s", name, self.seconds[name])


def check_capture(model: nn.Module, program: Program, seed: int = 0) -> float:
    """Largest difference between the eager model's logits and the captured program's on a random input: 0.0.

    Raises:
        UnsupportedError: they differ, so that the capture is not the model.
    """
    from .frontends.prepare import reference

    images = 1 if program.info.get("fixed") else 2  # the model's own mistake is none for one image at a time
    x = random_inputs(program, images, images, seed)[0]
    want = reference(model, program, x)
    got = program(x)
    difference = float((got - want).abs().max()) if got.shape == want.shape else float("inf")
    if difference != 0.0:
        raise UnsupportedError(
            f"the captured program differs from the model by {difference:g} on a random input",
            hint="The model does something that depends on values, on the batch or on earlier calls; please report it.",
        )
    return difference


def canonicalise(program: Program) -> Pipeline:
    """Bring a freshly captured program to the form in which its groups are as free as they can be."""
    check(program, "capture")
    pipeline = Pipeline(passes_.canonical())
    pipeline(program)
    return pipeline


def load(
    path: Path | str,
    *,
    seconds: dict[str, float] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Program:
    """Load, capture and check a checkpoint: a program whose groups are ready to be pruned.

    Args:
        path: a checkpoint, or an output folder of svitc.
        options: fields of ``svitc.frontends.LoadOptions``: ``arch``, ``arch_args``, ``input_shape``, …

    Raises:
        InputError: not a checkpoint, or one that does not fit its architecture.
        UnsupportedError: a model that cannot be represented, with its file and line.
    """
    from .frontends import LoadOptions, load_model
    from .frontends.capture import capture

    clock = Clock(progress, seconds if seconds is not None else {})
    path = Path(path)
    if (path / "model.safetensors").is_file():
        with clock.stage("load"):
            return load_program(path / "model.safetensors")
    with clock.stage("load"):
        wanted = LoadOptions(**options)
        loaded = load_model(path, wanted)
    with clock.stage("capture"):
        program = capture(loaded.model, loaded.input, loaded.info, fix=wanted.fix)
        check_capture(loaded.model, program)
    with clock.stage("analyse"):
        canonicalise(program)
    output = next(iter(reversed(program.graph.nodes)))
    program.info["num_classes"] = program.shape_of(output)[-1]
    return program


def inspect(program: Program) -> dict[str, Any]:
    """Layers, groups, bytes and multiply-accumulates of a program, as JSON values."""
    stored = backend.weight_bytes(export(program))
    inference = program.copy()
    Pipeline(passes_.inference())(inference)
    cost = byte_cost(program, inference, stored)
    total = cost()
    return {
        "model": {k: v for k, v in program.info.items() if k != "dead"},
        "input": list(program.input.shape),
        "layers": [asdict(layer) for layer in layers(program)],
        "groups": [
            {
                "name": g.name, "heads": g.heads, "size": g.size, "layers": len({m.module for m in g.members}),
                "members": sorted({m.module for m in g.members}), "frozen": g.frozen,
                "bytes_each": round((total - cost({id(g.axis): g.axis.size - 1})) / g.heads) if g.axis.size > 1 else 0,
            }
            for g in program.groups
        ],
        "parameters": program.parameter_count(), "bytes": stored, "macs": macs(program),
        "neurons": sum(1 for _ in program.neurons()), "dead": program.info.get("dead", {}),
    }  # fmt: skip


def open_folder(folder: Path) -> tuple[Program, bytes]:
    """The program and the ONNX file of an output folder, read without running anything from it.

    Raises:
        InputError: a file is missing or malformed, or model.py is not the source of this program.
    """
    wanted = ("model.onnx", "model.safetensors", "model.py")
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is not an output folder of svitc: {', '.join(missing)} missing",
            hint="svitc compile writes one.",
        )
    program = load_program(folder / "model.safetensors")
    if (folder / "model.py").read_text() != program_source(program):
        raise InputError(
            f"{folder}/model.py is not the source of {folder}/model.safetensors",
            hint="It was edited, or the files are of different runs; compile again.",
        )
    return program, (folder / "model.onnx").read_bytes()


def verify_folder(
    program: Program, exported: bytes, data: Data | None, images: int, seed: int, progress: Progress | None
) -> Verdict:
    """Verify an exported file against its program, on data or on random inputs."""

    def step(done: int) -> None:
        if progress is not None:
            progress("verify", done, images)

    return verify(program, exported, _verify_inputs(program, data, images, seed), step)


def export(program: Program) -> bytes:
    """The ONNX file of a program that trains; the program is not changed."""
    twin = program.copy()
    Pipeline([*passes_.inference(), *passes_.lowering()])(twin)
    return backend.to_bytes(backend.lower(twin))


def compile(
    program: Program,
    budget: str | float | Budget | None = None,
    *,
    policy: Policy | None = None,
    plan: Plan | None = None,
    data: Data | None = None,
    images: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
    seconds: dict[str, float] | None = None,
) -> Compiled:
    """Prune a program to a budget, export it and verify the export.

    Args:
        program: as ``svitc.load`` gives it; not changed.
        budget: at most this much: ``0.78``, ``"78%"``, ``"12MB"``, ``"params=8M"``. None with ``plan``.
        policy: what writes the plan; the uniform policy by default.
        plan: replay this plan instead.
        data: labelled images for ``accuracy``; verification uses the first of them.
        images: how many images verification looks at.
        seed: of random inputs.
        progress: called as stages go on.

    Raises:
        BudgetError: no plan meets the budget.
        InputError: the plan does not fit the program.
    """
    clock = Clock(progress, dict(seconds or {}))
    with clock.stage("analyse"):
        inference = program.copy()
        folding = Pipeline(passes_.inference())
        folding(inference)
        groups = program.groups
    with clock.stage("export original"):
        original = export(program)
        original_bytes = backend.weight_bytes(original)
    with clock.stage("plan"):
        costs = {
            "bytes": byte_cost(program, inference, original_bytes),
            "parameters": parameter_cost(program),
        }
        wanted = budget if isinstance(budget, Budget) or budget is None else parse_budget(budget)
        if wanted is None and plan is None:
            wanted = parse_budget(1.0)
        limit = wanted.limit(costs[wanted.of]()) if wanted else None
    chosen, pruned, exported, stored = _fit(program, policy, plan, wanted, costs, limit, clock)
    report = _report(program, pruned, chosen, wanted, limit, original_bytes, stored)
    report["nodes"] = {"original": backend.node_count(original), "compiled": backend.node_count(exported)}
    report["refused"] = folding.refused
    masks = chosen.validate(program)
    report["groups"] = [
        {"name": g.name, "heads": g.heads, "size": g.size, "kept": int(m.sum()), "frozen": g.frozen}
        for g, m in ((g, masks[g.name]) for g in groups)
    ]
    with clock.stage("verify", images) as step:
        verdict = verify(pruned, exported, _verify_inputs(pruned, data, images, seed), step)
    report["verify"] = verdict.to_json()
    report["accuracy"] = _accuracy(program, exported, data, clock)
    report["seconds"] = clock.seconds
    return Compiled(pruned, exported, chosen, report, verdict)


def _fit(program, policy, plan, wanted, costs, limit, clock):  # type: ignore[no-untyped-def]
    """Plan, prune and export until the written bytes, not the predicted ones, are within the budget."""
    from .passes.policies.uniform import Uniform

    slack = 0
    for _ in range(8):  # each time at least one width smaller; one is nearly always enough
        with clock.stage("plan"):
            chosen = plan
            if chosen is None:
                chosen = (policy or Uniform()).plan(program, costs[wanted.of], limit - slack, wanted.of)
                chosen.made_by["budget"] = wanted.text
        with clock.stage("prune"):
            pruned = program.copy()
            passes_.Prune(chosen)(pruned)
        with clock.stage("export"):
            exported = export(pruned)
            stored = backend.weight_bytes(exported)
        if plan is not None or wanted.of != "bytes" or stored <= limit:
            return chosen, pruned, exported, stored
        slack += stored - limit  # a shape constant of another size, say
    raise InternalError(f"the written file stays {stored - limit} bytes above the budget")


def _report(
    program: Program,
    pruned: Program,
    plan: Plan,
    wanted: Budget | None,
    limit: int | None,
    original: int,
    stored: int,
) -> dict[str, Any]:
    before, after = program.parameter_count(), pruned.parameter_count()
    dead = program.info.get("dead", {})
    return {
        "svitc": version("svitc"),
        "model": {k: v for k, v in program.info.items() if k != "dead"},
        "input": {"shape": list(program.input.shape), "events": program.input.events},
        "budget": {
            "text": wanted.text if wanted else None,
            "of": wanted.of if wanted else None,
            "limit": limit,
        },
        "policy": plan.made_by,
        "memory": {"original_bytes": original, "compiled_bytes": stored, "ratio": stored / original},
        "parameters": {
            "original": before,
            "compiled": after,
            "ratio": after / before,
            "dead": sum(dead.values()),
            "dead_names": sorted(dead),
        },
        "macs": {"original": macs(program), "compiled": macs(pruned)},
        "versions": {name: version(name) for name in ("torch", "spikingjelly", "onnx", "onnxruntime", "numpy")},
    }


def _verify_inputs(program: Program, data: Data | None, images: int, seed: int) -> Iterator[torch.Tensor]:
    pixels = math.prod(program.input.shape[-2:])
    batch = max(1, min(images, PIXELS_AT_ONCE // pixels))
    if data is None:
        yield from random_inputs(program, images, batch, seed)
        return
    for x, _ in data.batches(batch):
        n = x.shape[program.input.batch_dim]
        yield x.narrow(program.input.batch_dim, 0, min(n, images))
        images -= n
        if images <= 0:
            return


def _accuracy(program: Program, exported: bytes, data: Data | None, clock: Clock) -> dict[str, Any]:
    if data is None:
        return {"original": None, "pruned": None, "images": 0}
    session = backend.session(exported)
    right = {"original": 0, "pruned": 0}
    seen = 0
    with clock.stage("accuracy", len(data)) as step:
        for x, labels in data.batches(64):
            want = labels.numpy()
            right["original"] += int((top1(program(x).numpy()) == want).sum())
            right["pruned"] += int((top1(session.run(None, {"x": x.numpy()})[0]) == want).sum())
            seen += len(want)
            step(seen)
    return {**{k: v / seen for k, v in right.items()}, "images": seen, "notes": list(getattr(data, "notes", ()))}
