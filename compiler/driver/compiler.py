"""Compilation: from a program and a budget to the files of an output folder, with a report of every step.

The steps are the same for each budget: prepare, search for a plan, apply it, lower the network to a file, verify
the file, report.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from svitc import onnx as backend
from svitc.analysis.layer_stats import macs
from svitc.data.dataset import Dataset
from svitc.data.inputs import has_labels, some_inputs
from svitc.driver.agreement import agreement_report
from svitc.driver.anytime import check_anytime, find_rule
from svitc.driver.apply import Applied, Exported, apply_plan, with_provenance
from svitc.driver.artifacts import Compiled
from svitc.driver.confirm import check_promise
from svitc.driver.given import given_options, given_plan, given_policy, given_reporter
from svitc.driver.input_range import Watched, span_of, with_input_range, within
from svitc.driver.metadata import with_metadata
from svitc.driver.options import CompileOptions, PreparationOptions
from svitc.driver.output_errors import outputs_report
from svitc.driver.plan_search import SearchedPlan, pose, search_plan
from svitc.driver.prediction import predict
from svitc.driver.prepare import Workspace
from svitc.driver.promised import promise_report
from svitc.driver.proof import Proof, prove
from svitc.driver.ranks import explain_ranks, ranks_report
from svitc.driver.raw_input import check_takes_bytes, explain
from svitc.driver.report import (
    AccuracyReport,
    BeforeAfter,
    BudgetReport,
    NoAccuracy,
    PromiseReport,
    Report,
)
from svitc.driver.report_sections import (
    accuracy_report,
    energy_of,
    energy_report,
    file_report,
    groups_report,
    input_report,
    memory_report,
    package_versions,
    parameters_report,
    streaming_report,
)
from svitc.driver.runtime_table import runtimes_report
from svitc.driver.spike_raster import spikes_report
from svitc.driver.task import Task
from svitc.driver.tokens import check_tokens, running_tokens, tokens_report
from svitc.driver.weight_types import check_weight_type, resolve_weight_type
from svitc.errors import InputError, UsageError
from svitc.evaluation.promise import Classes
from svitc.evaluation.sweep import Sweep
from svitc.ir.outputs import class_scores
from svitc.ir.program import Program, Stage, required_program
from svitc.ir.quantized_modules import WIDE_BITS
from svitc.onnx.static_batch import check_batch
from svitc.passes.pipelines import step_program
from svitc.passes.policies import Policy, Problem
from svitc.planning.budget import Budget, parse_budget
from svitc.planning.plan import Plan
from svitc.support.distributed import current
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict
from svitc.training.finetune import check_trainable, finetune
from svitc.training.options import FinetuneOptions
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify
from svitc.verification.raw_input_check import check_raw_input
from svitc.verification.stream_check import verify_stream
from svitc.verification.verdict import Verdict

MOST_IMAGES = 4  # that verification uses unless the options say how many


class Compiler:
    """Compiles one program for any number of budgets; work that does not depend on the budget is done once.

    Args:
        program: the program, as ``svitc.load`` returns it; not changed.
        policy: the policy that makes plans, or its name; by default ``auto`` where there are images, otherwise
            ``uniform``.
        options: all other options.
        reporter: told about stages, progress and decisions; times that it holds already go into the reports as well.

    Raises:
        InputError: the program is quantized already.
        UsageError: invalid options.
    """

    def __init__(
        self,
        program: Program,
        policy: Policy | str | None = None,
        options: CompileOptions | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.program, self.reporter = required_program(program), given_reporter(reporter)
        self.options = given_options(program, CompileOptions() if options is None else options)
        self.policy = given_policy(policy, self.options)
        if self.options.weights is not None:
            check_weight_type(self.options.weights)
        check_batch(self.options.static_batch)
        if self.options.streaming:
            step_program(program)  # refuses early what mixes time steps
        if program.stage >= Stage.INFERENCE:
            raise InputError(
                "this model is quantized already and can no longer be pruned", hint="Compile the original checkpoint."
            )
        check_anytime(program, self.options)
        check_takes_bytes(program, self.options)
        check_tokens(self.options)
        self.program = with_input_range(program, self.options)
        self.workspace = Workspace(self.program, self.options, self.reporter)
        confirming = self.workspace.reported(self.workspace.source) if self.options.max_drop is not None else None
        check_promise(program, self.options, 0 if confirming is None else len(confirming))
        if self.options.finetune and self.options.train_data is None:
            raise UsageError("--finetune trains on images", hint="Give them with --train-data.")
        if self.options.finetune:
            check_trainable(program)

    @property
    def sweep(self) -> Sweep:
        """The sweep, which measures plans of the prepared program; images are read on first use."""
        return self.workspace.sweep()

    def problem(
        self, limit: int | None = None, of: str = "bytes", weights: str = "fp32", exclude: tuple[str, ...] = ()
    ) -> Problem:
        """Return the problem that a policy solves.

        Args:
            limit: the most bytes or parameters that may be kept; None to keep as little as ``max_drop`` allows.
            of: what the limit counts, ``bytes`` or ``parameters``.
            weights: type of the stored weights.
            exclude: globs over ignored layers, which are not changed; by default the policy's.
        """
        exclude = exclude or tuple(self.policy.exclude)
        task = Task(self.workspace.prepared(), None, limit, weights, exclude)
        return pose(self.workspace, task, limit, of, self.reporter)

    def compile(
        self,
        budget: str | float | Budget | None = None,
        plan: Plan | Path | str | None = None,
        *,
        finetune_file: Path | str | None = None,
    ) -> Compiled:
        """Prune to a budget, refit, fine-tune, export and verify.

        Args:
            budget: the largest size or latency, such as ``0.78``, ``"78%"``, ``"12MB"``, ``"params=8M"`` or
                ``"latency=0.6"``. None where there is a ``plan``, or where ``max_drop`` limits the lost accuracy.
            plan: a plan to replay instead of searching for one, or its file.
            finetune_file: the checkpoint that fine-tuning writes after every epoch.

        Raises:
            BudgetError: no plan meets the budget, or none within ``max_drop``.
            InputError: the plan does not fit the program.
        """
        plan, finetune_file = given_plan(plan), None if finetune_file is None else Path(finetune_file)
        reporter = self.reporter.for_budget()
        self._explain_images(reporter)
        explain(self.program, self.options, reporter)
        task = self.task(budget, plan, reporter)
        # the passes of the cost model say which layers they do not change
        refused = self.workspace.costs(task.prepared, task.weights, task.exclude).refused
        searched = search_plan(self.workspace, self.policy, task, reporter)
        applied = self._apply(task, searched, finetune_file, reporter)
        if not current().is_writer:  # only the first rank exports, verifies and reports
            return Compiled(applied.pruned, b"", searched.plan, {}, Verdict())
        lowered = self._lower(task, searched, applied.pruned, reporter)
        sections = self._sections(task, searched, applied, lowered)
        verdict = self._verify(task, applied.pruned, lowered, reporter)
        proof = self._prove(lowered, verdict, reporter) if verdict.passed else None
        measured = self._measurements(searched, lowered, reporter)
        measured["promise"] = self._promise(task, searched, applied, measured)
        anytime = find_rule(lowered.program, self.options, measured["energy"], reporter)
        report = Report(
            **sections,
            refused=refused,
            decisions=reporter.decisions,
            verify=verdict.to_json(),
            runtimes=runtimes_report(verdict, task.weights != "fp32"),
            prediction=predict(self.workspace, self.policy, task, searched.plan, lowered.file),
            **measured,
            spikes=spikes_report(self.workspace, task.prepared.program, lowered.program, searched.plan, reporter),
            anytime=None if anytime is None else anytime.report,
            seconds=dict(reporter.seconds),
        )
        plan = searched.plan
        if task.replayed is None and report.promise is not None:
            plan = with_provenance(plan, promise=report.promise.told())
        digest = None if proof is None else proof.digest
        early_exit = None if anytime is None else anytime.metadata()
        file = with_metadata(plan, lowered, self.options, digest, early_exit)
        return Compiled(lowered.program, file, plan, report.to_json(), verdict, proof)

    def _explain_images(self, reporter: Reporter) -> None:
        """Report what was assumed about images, where the user should know before plans are measured on them.

        The notes on labeled ``data`` are in the report's section on accuracy.
        """
        for images in (self.options.data, self.options.train_data):
            if isinstance(images, Dataset) and (images is self.options.train_data or not images.labeled):
                for note in images.notes:
                    reporter.decide(f"{images.name}: {note}")

    def task(self, budget: str | float | Budget | None, plan: Plan | None, reporter: Reporter) -> Task:
        """Return the task of one compilation: its budget and limit, its weight type and its prepared program."""
        options, preparation = self.options, self.options.preparation
        if plan is not None:
            provenance = plan.provenance
            preparation = PreparationOptions(provenance.get("reparam", "off"), provenance.get("clean", "off"))
        prepared = self.workspace.prepared(preparation)
        whole = budget is None and plan is None and options.max_drop is None and not self.policy.chooses_bits
        if whole:
            budget = 1.0
        if not (budget is None or isinstance(budget, Budget)):
            budget = parse_budget(budget)
        of = budget.of if budget is not None else "bytes"
        original = self.workspace.original_bytes if of == "bytes" else self.program.parameter_count()
        limit = budget.limit(original) if budget is not None and of != "latency" else None
        share = None if limit is None or of != "bytes" else limit / self.workspace.original_bytes
        weights = resolve_weight_type(options.weights, self.policy, plan, share, options.sampled)
        if weights == "mixed" and options.weights is None and share is not None and self.policy.joint:
            reporter.decide(f"{share:.1%} of the bytes take both: fewer channels, and weights of 8, 4 and 2 bits")
        exclude = tuple(self.policy.exclude)
        if whole and limit is not None:  # a tiny network's scales and biases may take more than its weights save
            limit = max(limit, self.workspace.costs(prepared, weights, exclude).bytes())
        tokens = running_tokens(self.workspace, prepared, reporter) if plan is None else {}
        return Task(prepared, budget, limit, weights, exclude, plan, whole, tokens)

    def _apply(self, task: Task, searched: SearchedPlan, finetune_file: Path | None, reporter: Reporter) -> Applied:
        """Prune, refit and fine-tune the program."""
        plan, refit = searched.plan, searched.refit
        explain_ranks(task.prepared.program, plan, reporter)
        with reporter.stage("prune" if refit == "none" else "refit"):
            pruned = searched.pruned or apply_plan(self.workspace, task.prepared, plan, refit)
        sweep = self.workspace.opened_sweep
        for layer in sorted(sweep.silent) if sweep is not None else ():
            reporter.decide(f"{layer} never sees a spike in calibration: its weights were rounded without data")
        options = self.options
        if not options.finetune or options.train_data is None:
            return Applied(pruned, None)
        settings = dict(options.finetune_options)
        if not options.train_data.labeled:
            settings["distil"] = 1.0
            reporter.decide(
                f"the images of {options.train_data.name} have no labels: fine-tuning learns from the original's "
                "answers alone (distil 1), and takes the epoch that agrees with it on most held-out images"
            )
        training = FinetuneOptions(
            epochs=options.finetune,
            bits={layer: bits for layer, bits in plan.bits.items() if bits != WIDE_BITS},
            seed=options.seed,
            checkpoint=finetune_file,
            resume=options.resume,
            **settings,
        )
        with reporter.stage("finetune"):
            tuned = finetune(pruned, self.program, options.train_data, training, reporter)
        return Applied(tuned.program, tuned)

    def _lower(self, task: Task, searched: SearchedPlan, pruned: Program, reporter: Reporter) -> Exported:
        """Give weights their stored type, and export the program, unless the search has done so."""
        found = searched.exported if pruned is searched.pruned else None
        with reporter.stage("export"):
            lowered = found or Exported.of(self.workspace, pruned, searched.plan, task.weights, reporter)
        # fine-tuning may spread scales, which are then stored in a wider type
        over = lowered.stored_bytes - task.limit if task.limit is not None and task.of == "bytes" else 0
        if over > 0 and self.options.finetune and not task.whole:
            reporter.decide(
                f"after fine-tuning the file takes {lowered.stored_bytes:,} bytes, {over:,} more than the budget: some "
                "of its scales take more bits; a budget that is smaller by as much leaves room for them"
            )
        return lowered

    def _verify(self, task: Task, pruned: Program, lowered: Exported, reporter: Reporter) -> Verdict:
        """Compare the file with the program that it was exported from, and that with the float program."""
        verdict = self._verify_plain(task, pruned, lowered, reporter)
        verdict.raw_input = check_raw_input(lowered.program, lowered.written)
        return verdict

    def _verify_plain(self, task: Task, pruned: Program, lowered: Exported, reporter: Reporter) -> Verdict:
        """Do so for the file with normalized floats as its input."""
        images, chosen = self.options.images or MOST_IMAGES, self.options.images is not None
        with reporter.stage("verify", images) as step:
            data = self.options.data or self.workspace.drawn  # synthetic images make more neurons fire than noise does
            inputs = some_inputs(lowered.program, data, images, self.options.seed, self.options.static_batch)
            floats = task.weights == "fp32"
            if self.options.data is None and not floats:  # what was drawn says nothing of the range of real inputs
                inputs = within(inputs, span_of(lowered.program))
            if self.options.streaming:
                original = None if floats else pruned
                return verify_stream(lowered.program, lowered.plain, lowered.file, inputs, step, original)
            if floats:
                return verify(lowered.program, lowered.plain, inputs, step, all_inputs=chosen)
            return verify_exact(lowered.program, lowered.plain, inputs, step, pruned, all_inputs=chosen)

    def _prove(self, lowered: Exported, verdict: Verdict, reporter: Reporter) -> Proof:
        """Run the file on images whose answers travel with it."""
        with reporter.stage("prove"):
            size = self.options.static_batch or 1
            return prove(lowered.program, lowered.written, lowered.weights.inexact, verdict.silent, size)

    def _sections(self, task: Task, searched: SearchedPlan, applied: Applied, lowered: Exported) -> JsonDict:
        """Return the report's sections on what was done, by their names in ``Report``."""
        program, pruned, budget = self.program, applied.pruned, task.budget
        text, of = (None, None) if budget is None else (budget.text, budget.of)
        nodes = self.workspace.original_nodes, backend.node_count(lowered.written)
        sweep = self.workspace.opened_sweep
        return {
            "svitc": version("svitc"),
            "model": {key: value for key, value in program.info.items() if key != "dead"},
            "input": input_report(program, task.weights != "fp32", self.options.raw_input),
            "budget": BudgetReport(text, of, task.limit, searched.timing),
            "policy": searched.plan.provenance,
            "memory": memory_report(self.workspace.original_bytes, lowered.stored_bytes),
            "parameters": parameters_report(program, pruned),
            "macs": BeforeAfter(macs(program), macs(pruned)),
            "versions": package_versions(),
            "nodes": BeforeAfter(*nodes),
            "reparam": task.prepared.reparam,
            "clean": task.prepared.removed,
            "weights": lowered.weights,
            "target": self.options.target,
            "file": file_report(lowered.written, self.options.target),
            "streaming": streaming_report(lowered.written),
            "groups": groups_report(task.prepared.program, searched.plan),
            "tokens": tokens_report(task.prepared.program, searched.plan),
            "ranks": ranks_report(task.prepared.program, searched.plan),
            "sweep": sweep.to_json() if sweep is not None else None,
            "finetune": applied.tuned.report if applied.tuned is not None else None,
        }

    def _promise(
        self, task: Task, searched: SearchedPlan, applied: Applied, measured: JsonDict
    ) -> PromiseReport | None:
        """Return the report's section on what is promised of the file, or of its network before fine-tuning."""
        accuracy, agreement = measured["accuracy"], measured["agreement"]
        if isinstance(accuracy, AccuracyReport):
            counts = Classes(accuracy.images, accuracy.lost, accuracy.gained)
        elif agreement is not None:
            counts = Classes(agreement.images, agreement.images - round(agreement.share * agreement.images), 0)
        else:
            return None
        tuned = applied.tuned is not None
        return promise_report(self.workspace, searched.source, counts, searched.promise, task.replayed, tuned)

    def _measurements(self, searched: SearchedPlan, lowered: Exported, reporter: Reporter) -> JsonDict:
        """Return the report's sections on the accuracy, or the agreement with the original, and energy of the file."""
        data = self.workspace.reported(searched.source)
        watched = None if data is None else Watched(data, span_of(lowered.program))
        accuracy: AccuracyReport | NoAccuracy = NoAccuracy()
        agreement = None
        if data is None or watched is None:
            return {"accuracy": accuracy, "agreement": agreement, "energy": None}
        program, metric, outputs = self.program, self.options.metric, None
        scores = class_scores(program.graph, program.info)
        if scores is None and metric is None and has_labels(data):
            reporter.decide(
                "accuracy needs a single output of class scores, or a metric of your own (--metric module:function): "
                "the outputs are compared with the original's"
            )
        if scores is not None and has_labels(data):
            accuracy = accuracy_report(program, self.workspace.original_classes(data), lowered.file, watched, reporter)
        elif scores is not None:
            logs = self.workspace.original_log_probabilities(data)
            agreement = agreement_report(program, logs, lowered.file, watched, reporter)
        if scores is None or metric is not None or len(program.output_names) > 1:
            # a metric takes what the model returns, at each time step
            exported = lowered.file if metric is None else self.workspace.export(lowered.program, per_step=True)
            outputs = outputs_report(program, exported, watched, metric, reporter)
        if watched.note is not None:
            reporter.decide(watched.note)
        energy = energy_of(lowered.program, self.options.data, self.options.seed, reporter)
        original = self.workspace.original_energy() if energy is not None else None
        energies = energy_report(energy, original)
        return {"accuracy": accuracy, "agreement": agreement, "energy": energies, "outputs": outputs}
