"""Execute a notebook in place, so that it is stored with its outputs: python examples/execute.py NOTEBOOK..."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LIMIT_S = 120  # for one cell


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of its cells; times and versions of the machine are left out."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=LIMIT_S,
        kernel_name="python3",  # of this interpreter, where none is installed under that name
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)
        if "outputs" in cell:  # what libraries warn of is about the machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
