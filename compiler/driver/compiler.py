"""Compilation: from a program and budgets to the files of an output folder, with a report of every step."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from svitc import onnx as backend
from svitc.data.dataset import Dataset
from svitc.data.inputs import some_inputs
from svitc.driver.artifacts import Compiled
from svitc.driver.options import CompileOptions, PreparationOptions
from svitc.driver.report import accuracy, against, classes, energy_of, groups_of, make_report, summary
from svitc.driver.weight_types import WeightTypes, check_weight_type, resolve_weight_type
from svitc.energy.estimate import Energy
from svitc.errors import InputError, InternalError, UsageError
from svitc.evaluation.store import Store, fingerprint
from svitc.evaluation.sweep import Sweep, prepare
from svitc.ir.channel_slicing import selection
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.latency.budget_search import within_latency
from svitc.latency.paired_timer import paired_timer
from svitc.onnx.export import export
from svitc.passes.canonical.merge_conv_chain import reparameterize
from svitc.passes.canonical.remove_constant_channels import remove_constant_channels
from svitc.passes.pipelines import inference_passes, quantize
from svitc.passes.policies import Problem, make
from svitc.passes.pruning.prune import Prune
from svitc.passes.quantization.round_weights import RoundWeights
from svitc.planning.budget import Budget, parse_budget
from svitc.planning.cost import Cost, byte_cost, parameter_cost
from svitc.planning.plan import Plan
from svitc.support.distributed import current
from svitc.support.timing import Clock
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify
from svitc.verification.verdict import Verdict

log = logging.getLogger("svitc")


class Compiler:
    """Compiles one program to any number of budgets; what does not depend on the budget is done once.

    Args:
        program: as ``svitc.load`` gives it; not changed.
        policy: what writes plans: by default ``auto`` where there are images, else ``uniform``.
        options: all else.
        seconds: of the stages before.
    """

    def __init__(
        self,
        program: Program,
        policy: Any = None,
        options: CompileOptions | None = None,
        seconds: dict[str, float] | None = None,
    ) -> None:
        self.options = options or CompileOptions()
        self.whole = program
        self.choosing = self.options.train_data or self.options.data
        # images of one's own class serve for the report; a plan is chosen on samples, which Dataset gives
        sampled = isinstance(self.choosing, Dataset)
        self.policy = policy or make("auto" if sampled else "uniform", seed=self.options.seed)
        if self.options.weights is not None:
            check_weight_type(self.options.weights)
        self.weights = "fp32"  # of the compilation that runs
        self._built: tuple[Plan, str, Program] | None = None
        if program.stage >= Stage.INFERENCE:
            raise InputError(
                "this model is quantized already and can no longer be pruned", hint="Compile the original checkpoint."
            )
        self.clock = Clock(self.options.progress, dict(seconds or {}))
        with self.clock.stage("export original"):
            self.original = self._export(program)
            self.original_bytes = backend.weight_bytes(self.original)
        if self.options.finetune and self.options.train_data is None:
            raise UsageError("--finetune trains on images", hint="Give them with --train-data.")

    @functools.cached_property
    def sweep(self) -> Sweep:
        """What measures plans of the reparameterised program; the images are read on first use."""
        return self._sweep(self._how)

    @property
    def _how(self) -> PreparationOptions:
        return PreparationOptions(self.options.reparam, self.options.clean)

    def _sweep(self, how: PreparationOptions) -> Sweep:
        options = self.options
        if not isinstance(self.choosing, Dataset):
            raise InputError(
                "the plan was made with images, which its refit looks at", hint="Give the same --data or --train-data."
            )
        program, _ = self._program(how)
        with self.clock.stage("read images"):
            of = [self.choosing.fingerprint(), options.sweep_images, options.calibration_images, options.seed]
            store = Store(options.sweep_file if self._writer else None, fingerprint(program, *of), options.resume)
        return prepare(
            program,
            self.choosing,
            store,
            options.sweep_images,
            options.calibration_images,
            options.seed,
            self.clock,
            seen=self.choosing is options.data,
        )

    @property
    def _writer(self) -> bool:
        return current().is_writer

    @functools.cache  # noqa: B019  a compiler lives as long as its command
    def _program(self, how: PreparationOptions) -> tuple[Program, dict[str, Any]]:
        """The program that plans are for, and the report's ``reparam`` and ``clean``."""
        with self.clock.stage("analyse"):
            program, rows = reparameterize(self.whole) if how.reparam == "auto" else (self.whole, {})
            program, removed = remove_constant_channels(program) if how.clean == "auto" else (program, {})
            return program, {"reparam": rows, "clean": {k: v for k, v in removed.items() if k != "seconds"}}

    def compile(self, budget: str | float | Budget | None = None, plan: Plan | None = None) -> Compiled:
        """Prune to a budget, refit, fine-tune, export and verify.

        Args:
            budget: at most this much: ``0.78``, ``"78%"``, ``"12MB"``, ``"params=8M"``, ``"latency=0.6"``. None with
                ``plan``, or where ``max_drop`` says how far to go.
            plan: replay this plan instead.

        Raises:
            BudgetError: no plan meets the budget, or none within ``max_drop``.
            InputError: the plan does not fit the program.
        """
        clock, options, made_by = self.clock, self.options, plan.provenance if plan is not None else None
        how = (
            self._how
            if made_by is None
            else PreparationOptions(made_by.get("reparam", "off"), made_by.get("clean", "off"))
        )
        program, first = self._program(how)
        wanted = budget if isinstance(budget, Budget) or budget is None else parse_budget(budget)
        if (
            wanted is None
            and plan is None
            and options.max_drop is None
            and not getattr(self.policy, "chooses_bits", False)
        ):
            wanted = parse_budget(1.0)
        of = wanted.of if wanted else "bytes"
        whole = self.original_bytes if of == "bytes" else self.whole.parameter_count()
        limit = wanted.limit(whole) if wanted and of != "latency" else None
        decisions: list[str] = []
        self.weights = self._type(limit if of == "bytes" else None, plan, decisions)
        _, refused = self._costs(how, self.weights)
        timing: dict[str, Any] = {}
        if wanted is not None and of == "latency" and plan is None:
            plan, timing = self._fast_enough(wanted, decisions)
        chosen = replace(plan, provenance=dict(plan.provenance)) if plan else self._plan(limit, of, decisions)
        chosen.provenance.setdefault("reparam", how.reparam)
        chosen.provenance.setdefault("clean", how.clean)
        if wanted is not None:
            chosen.provenance["budget"] = wanted.text
        self._complete(chosen, how, decisions, replayed=made_by is not None)
        refit = str(chosen.provenance.get("refit", "none"))
        with clock.stage("prune" if refit == "none" else "refit"):
            pruned = self._build(program, chosen, refit, how)
        if "sweep" in self.__dict__:
            for layer in sorted(self.sweep.silent):
                self._sayer(decisions)(
                    f"{layer} never sees a spike in calibration: its weights were rounded without data"
                )
        tuned = self._finetune(pruned, chosen.bits)
        pruned = tuned.program if tuned is not None else pruned
        if not self._writer:  # the first rank exports, verifies and reports; this one only shared the work
            return Compiled(pruned, b"", chosen, {}, Verdict())
        final, weights = self._weights(pruned, chosen)
        with clock.stage("export"):
            exported = self._export(final)
            stored = backend.weight_bytes(exported)
        report = make_report(self.whole, pruned, chosen, wanted, limit, self.original_bytes, stored)
        report["budget"] |= timing
        report["nodes"] = {"original": backend.node_count(self.original), "compiled": backend.node_count(exported)}
        report |= {"refused": refused, **first, "weights": weights, "target": options.target}
        report["decisions"] = decisions
        report["groups"] = groups_of(program, chosen)
        report["sweep"] = self.sweep.to_json() if "sweep" in self.__dict__ else None
        report["finetune"] = tuned.report if tuned is not None else None
        with clock.stage("verify", options.images) as step:
            check = verify if self.weights == "fp32" else verify_exact
            verdict = check(final, exported, some_inputs(final, options.data, options.images, options.seed), step)
        report["verify"] = verdict.to_json()
        if options.data is None:
            report["accuracy"] = {"original": None, "pruned": None, "images": 0}
        else:
            report["accuracy"] = accuracy(self._original_classes(), exported, options.data, clock)
        ours = energy_of(final, options.data, options.seed, clock)
        report["energy"] = (
            None if ours is None or self._original_energy is None else against(ours, self._original_energy)
        )
        report["seconds"] = dict(clock.seconds)
        return Compiled(final, exported, chosen, report, verdict)

    def _export(self, program: Program) -> bytes:
        return export(program, self.options.target, self.options.narrowest)

    def _type(self, limit: int | None, plan: Plan | None, decisions: list[str]) -> str:
        """Of the weights, for a budget of so many bytes."""
        share = None if limit is None else limit / self.original_bytes
        found = resolve_weight_type(self.options.weights, self.policy, plan, share, isinstance(self.choosing, Dataset))
        if found == "mixed" and self.options.weights is None and share is not None and hasattr(self.policy, "joint"):
            self._sayer(decisions)(
                f"{share:.1%} of the bytes take both: fewer channels, and weights of 8, 4 and 2 bits"
            )
        return found

    def _complete(self, chosen: Plan, how: PreparationOptions, decisions: list[str], replayed: bool) -> None:
        """Write into a plan what its policy did not say: bits of one type, and whether rounding looks at images."""
        if self.weights == "fp32":
            return
        types = self._types(how, self.weights)
        chosen.validate(self._program(how)[0])
        types.check(chosen.bits)
        chosen.bits = chosen.bits or types.same
        chosen.provenance.setdefault("weights", self.weights)
        if not replayed and chosen.bits:
            chosen.provenance["rounding"] = "calibrated" if isinstance(self.choosing, Dataset) else "nearest"
        if chosen.bits and chosen.provenance.get("rounding") == "nearest":
            self._sayer(decisions)(
                "weights go to the nearest numbers; with --data rounding looks at images, and loses less"
            )

    def _weights(self, pruned: Program, plan: Plan) -> tuple[Program, dict[str, Any]]:
        """The program whose weights have the wanted type, and what the report says of them."""
        if self.weights == "fp32":
            return pruned, {"type": "fp32"}
        with self.clock.stage("quantize"):
            final, pipeline = quantize(pruned, plan.bits)
            return final, summary(final, pipeline)

    @functools.cache  # noqa: B019  a compiler lives as long as its command
    def _types(self, how: PreparationOptions, weights: str, exclude: tuple[str, ...] = ()) -> WeightTypes:
        globs = exclude or tuple(getattr(self.policy, "exclude", ()))
        return WeightTypes(self._program(how)[0], weights, globs, self.options.target, self.options.narrowest)

    @functools.cache  # noqa: B019  a compiler lives as long as its command
    def _costs(self, how: PreparationOptions, weights: str) -> tuple[dict[str, Cost], dict[str, str]]:
        program, _ = self._program(how)
        narrow: dict[str, int] = {}
        with self.clock.stage("analyse"):
            if weights == "fp32":
                inference = program.copy()
                folding = Pipeline(inference_passes())
                folding(inference)
                refused = folding.refused
                before = self.original_bytes if program is self.whole else backend.weight_bytes(self._export(program))
            else:
                types = self._types(how, weights)
                inference, refused, narrow = types.inference, types.refused, types.same
                before = backend.weight_bytes(self._export(inference))
        cost = byte_cost(program, inference, before)
        cost.bits = narrow
        return {"bytes": cost, "parameters": parameter_cost(program)}, refused

    def problem(
        self,
        limit: int | None = None,
        of: str = "bytes",
        say: Callable[[str], None] | None = None,
        weights: str = "fp32",
        exclude: tuple[str, ...] = (),
    ) -> Problem:
        """What a policy is asked: to keep at most ``limit`` bytes or parameters, or as little as a drop allows."""
        program, _ = self._program(self._how)
        found = Problem(program, self._costs(self._how, weights)[0][of], limit, of, None, None, self.options.max_drop)
        found.bits = self._types(self._how, weights, exclude).narrow if weights == "mixed" else None
        found.say = say or self.options.say or found.say
        if isinstance(self.choosing, Dataset):
            found.measuring, found.calibrating = (lambda: self.sweep), (lambda: self.sweep.calibration)
        return found

    def _plan(self, limit: int | None, of: str, decisions: list[str]) -> Plan:
        """Plan and export until the written bytes, not the predicted ones, are within the budget."""
        say = self._sayer(decisions)
        slack = 0
        for _ in range(8):  # each time at least one width smaller; one is nearly always enough
            problem = self.problem(None if limit is None else limit - slack, of, say, self.weights)
            with self.clock.stage("plan"):
                chosen: Plan = self.policy.plan(problem)
                chosen.provenance.setdefault("refit", getattr(self.policy, "refit", "none"))
            if limit is None or of != "bytes":
                return chosen
            with self.clock.stage("prune"):
                self._complete(chosen, self._how, decisions, replayed=False)
                # scales that lie far apart are stored wider, so a quantized network is built as it will be
                refit = str(chosen.provenance["refit"]) if self.weights != "fp32" else "none"
                pruned = self._build(problem.program, chosen, refit, self._how)
                stored = backend.weight_bytes(self._export(self._weights(pruned, chosen)[0]))
            if stored <= limit:
                return chosen
            _, sizes = selection(problem.program, chosen.validate(problem.program))
            # what the closed form does not see: shape constants, of which the file stores equal ones once
            slack = max(slack + 1, stored - problem.cost(sizes, chosen.bits))
        raise InternalError(f"the written file stays {stored - (limit or 0)} bytes above the budget")

    def _sayer(self, decisions: list[str]) -> Callable[[str], None]:
        def say(sentence: str) -> None:
            if sentence not in decisions:  # a plan that is made again says the same again
                decisions.append(sentence)
                log.info("%s", sentence)
                if self.options.say is not None:
                    self.options.say(sentence)

        return say

    def _fast_enough(self, wanted: Budget, decisions: list[str]) -> tuple[Plan, dict[str, Any]]:
        """The plan whose file is measured to meet a latency, and what the report's ``budget`` says of that."""

        def build(plan: Plan) -> bytes:  # a refit changes weights, not the time they take
            self._complete(plan, self._how, [], replayed=True)
            return self._export(self._weights(_cut(self._program(self._how)[0], plan, plan.bits), plan)[0])

        return within_latency(
            wanted,
            self.whole.parameter_count(),
            lambda limit: self._plan(limit, "parameters", decisions),
            build,
            lambda: paired_timer(
                self._export(self._weights(self.whole, Plan({}))[0]), self.whole, self.options, self.clock
            ),
            self._sayer(decisions),
        )

    def _build(self, program: Program, plan: Plan, refit: str, how: PreparationOptions) -> Program:
        """Pruned, refitted and rounded; the last one is kept, since a plan's size is measured on what will be written."""
        if self._built is None or self._built[0] is not plan or self._built[1] != refit:
            if refit != "none" or (plan.bits and plan.provenance.get("rounding") == "calibrated"):
                sweep = self.sweep if how == self._how else self._sweep(how)
                self._built = plan, refit, sweep.build(plan, refit)
            else:
                self._built = plan, refit, _cut(program, plan, plan.bits)
        return self._built[2]

    def _finetune(self, pruned: Program, bits: dict[str, int]) -> Any:
        options = self.options
        if not options.finetune or options.train_data is None:
            return None
        from svitc.training.finetune import finetune

        with self.clock.stage("finetune"):
            return finetune(
                pruned,
                self.whole,
                options.train_data,
                epochs=options.finetune,
                bits=bits,
                seed=options.seed,
                checkpoint=options.finetune_file,
                resume=options.resume,
                progress=options.progress,
                **options.finetune_options,
            )

    @functools.cached_property
    def _original_energy(self) -> Energy | None:
        return energy_of(self.whole, self.options.data, self.options.seed, self.clock)

    @functools.cache  # noqa: B019  a compiler lives as long as its command
    def _original_classes(self) -> list[Any]:
        assert self.options.data is not None
        return classes(self.whole, self.options.data, self.clock)


def _cut(program: Program, plan: Plan, bits: dict[str, int]) -> Program:
    """A pruned copy, with weights rounded to so many bits without data."""
    pruned = program.copy()
    Prune(plan)(pruned)
    if bits:
        RoundWeights(bits)(pruned)
    return pruned


def compile(
    program: Program,
    budget: str | float | Budget | None = None,
    *,
    policy: Any = None,
    plan: Plan | None = None,
    seconds: dict[str, float] | None = None,
    **options: Any,
) -> Compiled:
    """Prune a program to a budget, export it and verify the export; ``Compiler`` for several budgets.

    Args:
        program: as ``svitc.load`` gives it; not changed.
        budget: at most this much: ``0.78``, ``"78%"``, ``"12MB"``, ``"params=8M"``, ``"latency=0.6"``. None with ``plan``.
        policy: what writes the plan: by default ``auto`` where there are images, else ``uniform``.
        plan: replay this plan instead.
        seconds: of the stages before.
        options: fields of ``Options``: ``data``, ``train_data``, ``finetune``, ``max_drop``, ``images``, …

    Raises:
        BudgetError: no plan meets the budget.
        InputError: the plan does not fit the program.
    """
    return Compiler(program, policy, CompileOptions(**options), seconds).compile(budget, plan)
