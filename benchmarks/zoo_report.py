"""What the benchmark of the zoo says: how each stage of a network ended, and the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from common import environment
from zoo_models import Definition

BUDGETS = (0.78, 0.5)
OK, REFUSED, INTERNAL, WRONG, SKIPPED = "ok", "refused", "internal error", "wrong", "-"
STAGES = ("capture", "masked", *(f"budget {budget}" for budget in BUDGETS), "onnx", "int8")


@dataclass
class Outcome:
    """How a stage ended.

    Attributes:
        status: ``ok``, ``refused``, ``internal error``, ``wrong``, or ``-`` where an earlier stage failed.
        text: What is shown of a stage that went well.
        error: Class of the error.
        message: Its message.
        where: The line that a refusal names, or that an internal error comes from.
        in_model: Whether that line is in the model's own file.
    """

    status: str = SKIPPED
    text: str = ""
    error: str = ""
    message: str = ""
    where: str = ""
    in_model: bool = False


@dataclass
class Result:
    """What became of a network.

    Attributes:
        name: Its name in the zoo.
        definition: The definition.
        stages: Stage -> how it ended.
        groups: How many channel groups can be pruned, and how many there are.
        seconds: Of all stages.
    """

    name: str
    definition: Definition
    stages: dict[str, Outcome] = field(default_factory=lambda: {stage: Outcome() for stage in STAGES})
    groups: tuple[int, int] | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every stage went well."""
        return all(outcome.status == OK for outcome in self.stages.values())

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "name": self.name,
            "paper": self.definition.paper,
            "input": list(self.definition.input),
            "passed": self.passed,
            "obstacle": self.definition.obstacle,
            "groups": self.groups,
            "seconds": round(self.seconds, 2),
            "stages": {stage: asdict(outcome) for stage, outcome in self.stages.items()},
        }


def progress(result: Result) -> str:
    """Return a line on a finished network."""
    failed = [
        f"{stage} {outcome.status}" for stage, outcome in result.stages.items() if outcome.status not in (OK, "-")
    ]
    return f"{result.name:<28}{result.seconds:6.1f} s  {'; '.join(failed) or 'all stages'}"


def markdown(results: Sequence[Result], title: str) -> str:
    """Return both tables, below a text that says what they hold, and what they were made with."""
    env = environment()
    packages = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    passed = sum(result.passed for result in results)
    lines = ["# The zoo", "", title, ""]
    lines += [f"{passed} of {len(results)} networks pass every stage. {summary(results)}", ""]
    titles = ["network", "published in", "capture: difference", "pruned - masked"]
    titles += [*(f"bytes at {budget}" for budget in BUDGETS), "ONNX - eager", "int8", "groups", "seconds"]
    lines += ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for result in results:
        cells = [outcome.text if outcome.status == OK else outcome.status for outcome in result.stages.values()]
        groups = f"{result.groups[0]} of {result.groups[1]}" if result.groups else "-"
        cells = [result.name, result.definition.paper, *cells, groups, f"{result.seconds:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    failures = [
        (result, stage, outcome)
        for result in results
        for stage, outcome in result.stages.items()
        if outcome.status not in (OK, SKIPPED)
    ]
    if failures:
        lines += [
            "",
            "## Why not",
            "",
            "| network | stage | what | where | message |",
            "| --- | --- | --- | --- | --- |",
        ]
        for result, stage, outcome in failures:
            message = result.definition.obstacle or f"{outcome.error}: {outcome.message}".removeprefix(": ")
            message = " ".join(message.split()).replace("|", "\\|")
            lines.append(f"| {result.name} | {stage} | {outcome.status} | {outcome.where or '-'} | {message} |")
    lines += [
        "",
        f"`{env['command']}`, Python {env['python']}, {packages}; {env['processor']}, {env['threads']} threads",
    ]
    return "\n".join(lines) + "\n"


def summary(results: Sequence[Result]) -> str:
    """Return how many failures of each kind there are."""
    outcomes = [outcome for result in results for outcome in result.stages.values()]
    kinds = Counter(outcome.status for outcome in outcomes if outcome.status not in (OK, SKIPPED))
    unnamed = sum(outcome.status == REFUSED and not outcome.in_model for outcome in outcomes)
    return (
        f"Failed stages: {kinds[REFUSED]} refused ({unnamed} of them without a line of the model), "
        f"{kinds[INTERNAL]} internal errors, {kinds[WRONG]} wrong numbers."
    )
