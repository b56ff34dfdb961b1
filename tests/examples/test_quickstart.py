"""The notebook runs from its first cell to its last, and is stored with what its cells show."""

from __future__ import annotations

import time
from importlib.util import module_from_spec, spec_from_file_location

import nbformat
import pytest

from support.paths import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
LIMIT_S, MOST_BYTES = 60.0, 400_000  # 20 s where nothing else runs


def shown(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of what each cell of code shows."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted(kind for output in cell.outputs for kind in output.get("data", ["stream"])) for cell in cells]


@pytest.mark.slow
def test_it_runs():
    spec = spec_from_file_location("execute", ROOT / "examples" / "execute.py")
    execute = module_from_spec(spec)
    spec.loader.exec_module(execute)
    stored, start = nbformat.read(NOTEBOOK, 4), time.monotonic()
    notebook = execute.executed(NOTEBOOK)
    assert time.monotonic() - start < LIMIT_S
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in stored.cells]
    assert shown(notebook) == shown(stored), "make notebook stores it anew"
    words = "".join(str(output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "Verdict(passed, 8 images" in words and "class 7, label 7" in words and "digit.png: 7 " in words
    assert words.count("Verified.") == 1 and "image/png" in words and "It reads images of 1 × 16 × 16" in words


def test_it_is_stored_with_pictures_and_without_traces_of_the_machine():
    text = NOTEBOOK.read_text()
    notebook = nbformat.read(NOTEBOOK, 4)
    assert sum("image/png" in kinds for kinds in shown(notebook)) == 3
    assert sum("text/html" in kinds for kinds in shown(notebook)) == 3
    assert len(text) < MOST_BYTES and "/tmp" not in text.replace("tempfile", "") and "/home" not in text
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
