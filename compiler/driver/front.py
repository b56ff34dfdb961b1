"""A front: one network compiled to several budgets, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from svitc.driver.artifacts import Compiled
from svitc.driver.compiler import Compiler
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.html_report import front_card
from svitc.ir.program import Program
from svitc.passes.policies import Policy
from svitc.planning.budget import Budget
from svitc.plots import plot_front
from svitc.support.names import known
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Front:
    """Several compilations, which a notebook shows side by side.

    Args:
        compilations: by name, or one after the other; these are named by their budgets.

    Raises:
        UsageError: there are none, or something else is among them.
    """

    def __init__(self, compilations: Mapping[str, Compiled] | Iterable[Compiled]) -> None:
        if isinstance(compilations, Mapping):
            self.compilations = dict(compilations)
        else:
            self.compilations = {}
            for one in compilations if isinstance(compilations, Iterable) else (compilations,):
                self.compilations[self._new_name(one)] = one
        for one in self.compilations.values():
            if not isinstance(one, Compiled):
                raise UsageError(
                    f"a {type(one).__name__} is not a compilation", hint="svitc.compile returns one; give several."
                )
        if not self.compilations:
            raise UsageError("a front has at least one compilation")

    def _new_name(self, one: object) -> str:
        """Return a name that none of the compilations has yet: the budget, with a number where it is taken."""
        budget = one.report["budget"]["text"] if isinstance(one, Compiled) else None
        name = str(budget or "all")
        count = sum(known == name or known.startswith(f"{name} (") for known in self.compilations)
        return f"{name} ({count + 1})" if count else name

    def __getitem__(self, name: str | float) -> Compiled:
        """Return a compilation by its name; a number is the budget of that text.

        Raises:
            UsageError: there is no such compilation.
        """
        if str(name) not in self.compilations:
            hint = known(str(name), self.compilations, "Compilations are")
            raise UsageError(f"this front has no compilation {str(name)!r}", hint=hint)
        return self.compilations[str(name)]

    def __iter__(self) -> Iterator[Compiled]:
        return iter(self.compilations.values())

    def __len__(self) -> int:
        return len(self.compilations)

    def __repr__(self) -> str:
        return f"Front({', '.join(f'{name}: {one!r}' for name, one in self.compilations.items())})"

    @property
    def reports(self) -> list[tuple[str, JsonDict]]:
        """The names and reports, in order."""
        return [(name, one.report) for name, one in self.compilations.items()]

    def _repr_html_(self) -> str:
        """Return the compilations side by side, as notebooks show them."""
        return front_card(self.reports)

    def plot(self) -> Figure:
        """Draw accuracy against stored bytes, as a figure of matplotlib.

        Raises:
            UsageError: matplotlib is not installed.
        """
        return plot_front(self.reports)


def front(
    program: Program,
    budgets: Iterable[str | float | Budget],
    *,
    policy: Policy | str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Front:
    """Compile a program to several budgets; what does not depend on the budget is done once.

    Args:
        program: the program, as ``svitc.load`` returns it.
        budgets: as for ``svitc.compile``.
        policy: see ``Compiler``.
        reporter: see ``Compiler``.
        options: ``data``, ``weights`` and the other fields of ``CompileOptions``.

    Raises:
        BudgetError: no plan meets a budget.
        UsageError: invalid options.
    """
    if isinstance(budgets, str | int | float | Budget):
        budgets = [budgets]
    compiler = Compiler(program, policy, CompileOptions(**options), reporter)
    return Front([compiler.compile(budget) for budget in budgets])
