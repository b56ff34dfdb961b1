"""What can go wrong, each with a documented exit status, the place it happened and the way out."""

from __future__ import annotations


class SvitcError(Exception):
    """A mistake that the user can mend.

    Attributes:
        message: what is wrong, naming the layer, key or file.
        hint: the way out, one sentence, or None.
        where: ``file.py:line`` in the user's model, or None.
        exit_status: status of the command line for this kind of error.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.where = message, hint, where

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += f"\n  at {self.where}"
        if self.hint:
            text += f"\n  {self.hint}"
        return text


class UsageError(SvitcError):
    """An option or argument that makes no sense (status 2)."""

    exit_status = 2


class InputError(SvitcError):
    """A file that cannot be read as what it should be (status 3)."""

    exit_status = 3


class UnsupportedError(SvitcError):
    """A model that svitc cannot represent: an unknown neuron, an op outside the list (status 4)."""

    exit_status = 4


class BudgetError(SvitcError):
    """A budget that no plan meets (status 5)."""

    exit_status = 5


class VerifyError(SvitcError):
    """A compiled file that is not the same network (status 6)."""

    exit_status = 6


class OutputError(SvitcError):
    """An output that cannot be written (status 7)."""

    exit_status = 7


class InternalError(SvitcError):
    """A stage check that failed: a fault of svitc or of a user's pass, never of the model (status 70)."""

    exit_status = 70


INTERRUPTED = 130  # 128 + SIGINT, the shell's convention
