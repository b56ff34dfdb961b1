"""What is asked of a runtime: to open a file, and to run named inputs to named outputs."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from svitc.errors import RuntimeFailure, UsageError
from svitc.support.types import JsonDict

File = bytes | str | os.PathLike
MAX_REASON_CHARACTERS = 300


class Session(ABC):
    """A file that a runtime has loaded.

    Args:
        runtime: name and version of the runtime, for errors.

    Attributes:
        input_names: names of the file's inputs.
        output_names: names of its outputs.
        child: process that runs the file where this process does not; else None.
    """

    input_names: list[str]
    output_names: list[str]
    child: int | None = None

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime

    def run(self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the values of outputs.

        Args:
            names: the outputs; None for all, in the file's order.
            feed: input -> its value.

        Raises:
            RuntimeFailure: the runtime fails while it runs the file.
        """
        wanted = self.output_names if names is None else list(names)
        try:
            return self._run(wanted, feed)
        except Exception as error:  # runtimes' exceptions share no public base class
            raise RuntimeFailure(f"{self.runtime} cannot run the file: {reason_of(error)}") from error

    @abstractmethod
    def _run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the values of outputs; may raise anything."""


class Runtime(ABC):
    """A stock runtime on the processor.

    Attributes:
        name: value of ``--runtime``.
        title: what texts call it.
        settings: settings without which the runtime would not compute what the file says; empty where its defaults do.
        loads: which of svitc's files it loads, for the hint of an error.
    """

    name: str
    title: str
    settings: Mapping[str, str] = {}
    loads: str

    @abstractmethod
    def missing(self) -> tuple[str, str] | None:
        """Return why the runtime cannot be used here, and how to install it; None where it can."""

    @abstractmethod
    def version(self) -> str:
        """Return the installed version."""

    @abstractmethod
    def _open(self, model: File, threads: int | None, batch: int | None) -> Session:
        """Load a file; may raise anything."""

    def _open_for_few_runs(self, model: File, threads: int | None, batch: int | None) -> Session:
        """Load a file as fast as the runtime can without computing anything in another way; may raise anything."""
        return self._open(model, threads, batch)

    def open(
        self, model: File, threads: int | None = None, batch: int | None = None, few_runs: bool = False
    ) -> Session:
        """Load a file, with the settings that keep it exact.

        Args:
            model: path of the file, or its bytes.
            threads: number of threads within one operator; by default the runtime's own number.
            batch: the only size that batches will have, which makes some runtimes faster; None for any.
            few_runs: whether loading takes longer than all runs will, so that plans for the runs do not pay.

        Raises:
            UsageError: the runtime is not installed.
            RuntimeFailure: it cannot load the file.
        """
        if (absent := self.missing()) is not None:
            raise UsageError(f"{self.title} cannot be used: {absent[0]}", hint=absent[1])
        name = "the given bytes" if isinstance(model, bytes) else os.fspath(model)
        try:
            load = self._open_for_few_runs if few_runs else self._open
            return load(model if isinstance(model, bytes) else os.fspath(model), threads, batch)
        except Exception as error:  # runtimes' exceptions share no public base class
            raise RuntimeFailure(f"{self.label} cannot load {name}: {reason_of(error)}", hint=self.loads) from error

    def described(self) -> JsonDict:
        """Return what reports say of the runtime: ``name``, ``version`` and ``settings``."""
        return {"name": self.name, "version": self.version(), "settings": dict(self.settings)}

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.title} {self.version()}"


def reason_of(error: BaseException) -> str:
    """Return an exception's text on one line of limited length; its class where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON_CHARACTERS else f"{text[:MAX_REASON_CHARACTERS]}…"
