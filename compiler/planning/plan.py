"""Plans: which elements of every channel group stay, and how many bits the weights of every layer have.

A plan is stored as JSON and can be applied again; it is checked against the program that it is applied to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from svitc.errors import InputError
from svitc.html_report.cards import plan_card, plan_groups, plan_sentence
from svitc.ir import ops
from svitc.ir.channel_groups import ChannelGroup, head_axes
from svitc.ir.low_rank import ranked_layers
from svitc.ir.program import Program
from svitc.ir.quantized_modules import BITS, TERNARY, WIDE_BITS
from svitc.ir.token_stages import token_stages
from svitc.planning.token_plan import kept_tokens, read_tokens
from svitc.plots import plot_plan
from svitc.support.json_text import parse_json
from svitc.support.limits import check_claim
from svitc.support.names import as_path
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "svitc-plan-1"
TERNARY_WORD = "ternary"  # stands in files for the bits of weights of -1, 0 and 1


@dataclass(repr=False)
class Plan:
    """What a compressed model keeps.

    Attributes:
        keep: group name -> boolean mask ``[heads, d]``; groups without a mask keep all their channels.
        provenance: how the plan came about: policy, criterion, budget, seed. JSON values.
        bits: layer -> 16, 8, 4, 2 or ``TERNARY``; empty where weights are stored as they are.
        tokens: token stage -> positions of the tokens that run through it (token_plan.py); empty where all do.
        ranks: layer -> rank of its weights, which are stored as two smaller layers (ir/low_rank.py) where that is less.
    """

    keep: dict[str, np.ndarray]
    provenance: JsonDict = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return what is kept in one line; the masks would be pages."""
        return f"Plan({plan_sentence(self.to_json()).removeprefix('It keeps ').rstrip('.')})"

    def _repr_html_(self) -> str:
        """Return the plan as notebooks show it."""
        return plan_card(self.to_json())

    def plot(self) -> Figure:
        """Draw what is kept of channels, bits and tokens, as a figure of matplotlib.

        Raises:
            UsageError: matplotlib is not installed.
        """
        content = self.to_json()
        tokens = {stage: len(positions) for stage, positions in self.tokens.items()}
        return plot_plan(plan_groups(content), self.bits, tokens, plan_sentence(content))

    def validate(self, program: Program) -> dict[str, np.ndarray]:
        """Check the plan against a program, and return a mask for every group of the program.

        Raises:
            InputError: the plan names an unknown layer or group, prunes a frozen group, has a mask that is empty or of
                the wrong size, keeps different numbers of dimensions in the heads of a group, prunes inside heads that
                can only be removed whole, drops a head in one group and keeps it in another that shares the heads,
                or keeps tokens that are not there.
        """
        groups = {group.name: group for group in program.groups}
        for name in self.keep:
            _check_name(name, groups, f"the plan names group {name}, which this model does not have")
        layers = {str(node.target) for node in program.graph.nodes if ops.is_projection(program.module_of(node))}
        for name in self.bits:
            _check_name(name, layers, f"the plan gives bits to {name}, which is no layer of this model")
        ranked = ranked_layers(program) if self.ranks else {}
        for name in _read_ranks(self.ranks):
            _check_name(name, layers, f"the plan gives a rank to {name}, which is no layer of this model")
            if name not in ranked:
                raise InputError(
                    f"the plan gives a rank to {name}, which can have none",
                    hint="Convolutions over several pixels can that are not grouped and are called once.",
                )
        if self.tokens:
            kept_tokens(token_stages(program), self.tokens)
        masks = {name: self._mask(group) for name, group in groups.items()}
        for sharing in head_axes(program.groups).values():
            first = masks[sharing[0].name].any(axis=1)
            for group in sharing[1:]:
                if (masks[group.name].any(axis=1) != first).any():
                    raise InputError(f"the plan drops other heads of {group.name} than of {sharing[0].name}")
        return masks

    def _mask(self, group: ChannelGroup) -> np.ndarray:
        """Return the checked mask of one group, ``[heads, d]``."""
        full = np.ones((group.heads, group.axis.size), dtype=bool)
        mask = self.keep.get(group.name)
        if mask is None:
            return full
        if mask.shape != full.shape:
            raise InputError(f"the plan keeps a mask {mask.shape} of {group.name}, which has {full.shape}")
        if group.frozen is not None and not mask.all():
            raise InputError(f"the plan removes channels of {group.name}, which must stay whole: {group.frozen}")
        if not mask.any():
            raise InputError(f"the plan keeps nothing of {group.name}; at least one channel must stay")
        counts = set(mask.sum(axis=1).tolist()) - {0}
        if len(counts) > 1:
            raise InputError(f"the plan keeps {sorted(counts)} dimensions in different heads of {group.name}")
        stays = group.head_axis and (group.head_axis.frozen or group.head_axis.intact)
        if stays and not mask.any(axis=1).all():
            raise InputError(f"the plan drops heads of {group.name}, which must keep them all: {stays}")
        if group.whole_heads is not None and counts != {group.axis.size}:
            raise InputError(
                f"the plan removes single dimensions of {group.name}, which may only lose whole heads: "
                f"{group.whole_heads}"
            )
        if group.shared and len(np.unique(mask[mask.any(axis=1)], axis=0)) > 1:
            raise InputError(f"the heads of {group.name} must keep the same dimensions, since they are mixed")
        return mask

    def to_json(self) -> JsonDict:
        """Return the plan as a JSON object."""
        groups = {
            name: {
                "heads": int(mask.shape[0]),
                "dims": int(mask.shape[1]),
                "keep": np.flatnonzero(mask).tolist(),
            }
            for name, mask in self.keep.items()
        }
        content = {"format": FORMAT, "made_by": self.provenance, "groups": groups}
        bits = {layer: TERNARY_WORD if width == TERNARY else width for layer, width in self.bits.items()}
        content |= {"bits": bits} if bits else {}
        content |= {"ranks": self.ranks} if self.ranks else {}
        return content | ({"tokens": {name: list(p) for name, p in self.tokens.items()}} if self.tokens else {})

    @classmethod
    def from_json(cls, data: object) -> Plan:
        """Read a plan from what ``parse_json`` returned.

        Raises:
            InputError: ``data`` is not a plan.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or not isinstance(data.get("groups"), Mapping):
            raise InputError("this is not a svitc plan", hint=f'A plan has "format": "{FORMAT}" and "groups".')
        keep = {}
        for name, entry in data["groups"].items():
            try:
                shape = (int(entry["heads"]), int(entry["dims"]))
                check_claim(abs(shape[0] * shape[1]), f"the plan's entry for {name}")
                mask = np.zeros(shape, dtype=bool)
                index = np.asarray(entry["keep"], dtype=np.int64)
                if index.size and (index.min() < 0 or index.max() >= mask.size):
                    raise ValueError("an index is out of range")
                mask.reshape(-1)[index] = True
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                raise InputError(f"the plan's entry for {name} is malformed: {error}") from error
            keep[name] = mask
        made_by = data.get("made_by") or {}
        if not isinstance(made_by, Mapping):
            raise InputError("the plan's made_by is malformed", hint="It is an object that says how the plan was made.")
        bits = _read_bits(data.get("bits", {}))
        return cls(keep, dict(made_by), bits, read_tokens(data.get("tokens", {})), _read_ranks(data.get("ranks", {})))

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Read a plan from a JSON file.

        Raises:
            InputError: the file cannot be read, or is not a plan.
        """
        try:
            return cls.from_json(parse_json(as_path(path, "the plan").read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"cannot read the plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"the plan {path} is not JSON: {error}") from error


def _read_bits(data: object) -> dict[str, int]:
    """Return the bits of layers from JSON.

    Raises:
        InputError: they are not a mapping, or a layer has bits that there are not.
    """
    widths: dict[object, int] = {width: width for width in (WIDE_BITS, *BITS)} | {TERNARY_WORD: TERNARY}
    if not isinstance(data, Mapping) or any(type(n) not in (int, str) or n not in widths for n in data.values()):
        raise InputError(
            "the plan's bits are malformed", hint=f"They give layers one of {', '.join(map(str, widths))}."
        )
    return {layer: widths[n] for layer, n in data.items()}


def _read_ranks(data: object) -> dict[str, int]:
    """Return the ranks of layers from JSON.

    Raises:
        InputError: they are not a mapping to positive whole numbers.
    """
    if not isinstance(data, Mapping):
        raise InputError("the plan's ranks are malformed", hint="They give layers positive whole numbers.")
    for layer, rank in data.items():
        if type(rank) is not int or rank < 1:
            raise InputError(f"the plan's ranks are malformed: {layer} has {rank!r}", hint="They are whole, from 1 on.")
    return dict(data)


def _check_name(name: str, names: Collection[str], problem: str) -> None:
    """Raise InputError, with the closest name as a hint, where a name is not among those of the model."""
    if name not in names:
        close = get_close_matches(name, names, 1)
        raise InputError(problem, hint=f"The closest is {close[0]}." if close else "Is the plan for another model?")
