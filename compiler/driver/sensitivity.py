"""Sensitivity: accuracy and size by the pruning ratio of each channel group, or by the bits of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svitc.driver.compiler import Compiler
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.html_report import sensitivity_card
from svitc.ir.program import Program
from svitc.passes.policies import Settings, make
from svitc.passes.policies.bitwidth.search_space import BitSettings, BitSpace
from svitc.passes.policies.bitwidth.sensitivity import precision
from svitc.passes.policies.bitwidth.sensitivity import to_json as precision_json
from svitc.passes.policies.search_space import Space
from svitc.passes.policies.sensitivity import sensitivity_curves, to_json
from svitc.plots import plot_bits, plot_curves
from svitc.support import human
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_RATES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """Measured sensitivities, which a notebook shows as curves.

    Attributes:
        measured: JSON values, as ``svitc sensitivity`` writes them: ``sweep``, and ``groups`` with their ``steps``, or
            for bits ``all_at_8``, ``layers`` and ``kinds``.
    """

    measured: JsonDict

    def __repr__(self) -> str:
        key, what = ("groups", "channel groups") if "groups" in self.measured else ("layers", "layers at fewer bits")
        return (
            f"Sensitivity({len(self.measured[key])} {what}, {human.counted(self.measured['sweep']['images'], 'image')})"
        )

    def to_json(self) -> JsonDict:
        """Return the measurements as JSON values."""
        return self.measured

    def _repr_html_(self) -> str:
        """Return the curves as notebooks show them."""
        return sensitivity_card(self.measured)

    def plot(self) -> Figure:
        """Draw the curves, as a figure of matplotlib.

        Raises:
            UsageError: matplotlib is not installed.
        """
        if "groups" in self.measured:
            return plot_curves(self.measured["groups"])
        return plot_bits(self.measured["layers"])


def sensitivity(
    program: Program,
    data: Any,
    rates: Sequence[float] = DEFAULT_RATES,
    *,
    bits: bool = False,
    criterion: str = "l2",
    refit: str = "none",
    reporter: Reporter | None = None,
    **options: Any,
) -> Sensitivity:
    """Measure what pruning each channel group alone costs in accuracy, or fewer bits in each layer alone.

    Args:
        program: the program.
        data: the images, as ``svitc.open_data`` opens them.
        rates: pruning ratios, ascending.
        bits: measure bits instead of channels: each layer at 4 and at 2 bits, all others at 8.
        criterion: how channels are ordered.
        refit: how pruned networks are refitted.
        reporter: told about progress.
        options: ``sweep_images``, ``seed`` and other fields of ``CompileOptions``.

    Raises:
        UsageError: there are no images, the rates are not ascending shares, or there is no such criterion or refit.
    """
    if data is None:
        raise UsageError("sensitivity is measured on images", hint="svitc.sensitivity(program, data).")
    rates = list(rates)
    if not rates or rates != sorted(rates) or not all(0 < rate < 1 for rate in rates):
        raise UsageError(f"rates {rates!r:.60} are not ascending shares between 0 and 1")
    make("uniform", criterion=criterion, refit=refit)  # refuses unknown names before anything is measured
    compiler = Compiler(program, None, CompileOptions(train_data=data, **options), reporter)
    settings = Settings(criterion, seed=compiler.options.seed)
    found = bit_sensitivity(compiler, settings) if bits else channel_sensitivity(compiler, settings, rates, refit)
    return Sensitivity({"sweep": compiler.sweep.to_json(), **found})


def channel_sensitivity(compiler: Compiler, settings: Settings, rates: Sequence[float], refit: str) -> JsonDict:
    """Measure the lost accuracy and the saved size where each channel group alone is pruned.

    Args:
        compiler: the compiler of the program.
        settings: which channel groups, and the importance criterion.
        rates: pruning ratios, ascending, each between 0 and 1.
        refit: how pruned networks are refitted.

    Returns:
        JSON values: ``settings``, ``refit``, ``rates`` and ``groups``.
    """
    problem = compiler.problem()
    space = Space(problem.program, settings, problem.calibrating)
    curves = sensitivity_curves(problem, space, rates, refit, "sensitivity")
    return {
        "settings": settings.to_json(),
        "refit": refit,
        "rates": list(rates),
        "groups": to_json(problem, space, curves),
    }


def bit_sensitivity(compiler: Compiler, settings: Settings) -> JsonDict:
    """Measure the lost accuracy and the saved size where each layer, or kind of layer, alone has fewer than 8 bits.

    Args:
        compiler: the compiler of the program.
        settings: only ``exclude`` and ``seed`` are used.

    Returns:
        JSON values: ``settings``, ``all_at_8``, ``layers`` and ``kinds``.
    """
    bit_settings = BitSettings(exclude=settings.exclude, seed=settings.seed)
    space = BitSpace(compiler.problem(weights="mixed", exclude=tuple(settings.exclude)), bit_settings)
    alone = precision(space, "precision")
    all_at_8 = space.points([space.widest], "precision")[0]
    return {"settings": bit_settings.to_json(), **precision_json(space, alone, all_at_8)}
