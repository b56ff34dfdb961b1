"""The code in the documents: fenced blocks, and indented ones with command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from support.paths import ROOT

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
INDENT = "    "
PROMPT = "$ "
PROGRAMS = ("svitc", "python", "pip", "make", "torchrun", "git", "npm", "./stream", ".venv/bin/")
OTHER = "text"  # drawings, formulas, and what commands print


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        document: path of the file, from the root.
        line: where the block begins, from 1.
        language: as the fence says, ``shell``, or ``text``.
        code: the lines, without the indent.
        reason: why it is not run, from a comment ``<!-- not run: … -->`` before it; None where there is none.
    """

    document: str
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[str]:
        """Return the command lines of a shell block, without prompt; the other lines are what commands print."""
        lines = self.code.splitlines()
        prompted = [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]
        return prompted or [line for line in lines if line.strip()]


def blocks() -> list[Block]:
    """Return all blocks of all documents, in order."""
    return [block for document in DOCUMENTS for block in _blocks_of(document)]


def words(command: str) -> list[str]:
    """Split a command line as a shell does, comments left out."""
    return shlex.split(command, comments=True)


def _blocks_of(document: str) -> Iterator[Block]:
    lines = (ROOT / document).read_text().splitlines()
    at = 0
    while at < len(lines):
        start = at
        if lines[at].startswith("```"):
            language = lines[at][3:].strip() or OTHER
            end = lines.index("```", at + 1)
            code, at = lines[at + 1 : end], end + 1
        elif lines[at].startswith(INDENT) and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and lines[at].startswith(INDENT):
                at += 1
            code = [line.removeprefix(INDENT) for line in lines[start:at]]
            language = "shell" if code[0].startswith((PROMPT, *PROGRAMS)) else OTHER
        else:
            at += 1
            continue
        yield Block(document, start + 1, language, "\n".join(code), _reason(lines[:start]))


def _reason(before: list[str]) -> str | None:
    """Return the reason of the comment that stands right above a block."""
    text = "\n".join(before).rstrip()
    comment = NOT_RUN.fullmatch(text[text.rfind("<!--") :]) if text.endswith("-->") else None
    return " ".join(comment[1].split()) if comment else None
