"""Errors that are shown to the user, with a documented exit status, the place in the user's code and a hint."""

from __future__ import annotations


class SvitcError(Exception):
    """Base class of errors that the user can do something about.

    Attributes:
        message: what is wrong, naming the layer, key or file.
        hint: what the user can do about it, or None.
        where: ``file.py:line`` in the user's model, or None.
        exit_status: exit status of the command line for this kind of error.
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
    """Raised for an invalid option or argument (exit status 2)."""

    exit_status = 2


class InputError(SvitcError):
    """Raised for a file that is missing, damaged or of the wrong kind (exit status 3)."""

    exit_status = 3


class RuntimeFailure(InputError):
    """Raised where a runtime cannot load or run a file (exit status 3)."""


class UnsupportedError(SvitcError):
    """Raised for a model that svitc cannot represent, with an unknown neuron or operator (exit status 4)."""

    exit_status = 4


class BudgetError(SvitcError):
    """Raised for a budget that no plan meets (exit status 5)."""

    exit_status = 5


class VerifyError(SvitcError):
    """Raised for a compiled file that does not compute the same network (exit status 6)."""

    exit_status = 6


class OutputError(SvitcError):
    """Raised for an output that cannot be written (exit status 7)."""

    exit_status = 7


class InternalError(SvitcError):
    """Raised for a failed internal check: a bug in svitc or in a user's pass, not in the model (exit status 70)."""

    exit_status = 70


INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT, as in shells
