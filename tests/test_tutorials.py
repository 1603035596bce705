"""The notebooks run from top to bottom, and are stored as a reader should find them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"
# Comparisons take their figures over seeds; that a notebook runs is seen with two of them.
REPEATED = re.compile(r"\b(n_seeds=|n_boot=|for seed in range\()\d+")
NEEDS_DATA = re.compile(r"environ\[[\\\"']+BCNMF_SC_DATA")


def needs_data(path: Path) -> bool:
    """Whether the notebook stops without the folder of real data."""
    return NEEDS_DATA.search(path.read_text(encoding="utf-8")) is not None


NOTEBOOKS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.data] * needs_data(path))
    for path in sorted(FOLDER.glob("*.ipynb"))
]


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_stored_with_outputs_and_language(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["language"] == "python"
    assert notebook.metadata["language_info"]["name"] == "python"
    assert notebook.cells[0].source.startswith("# ")  # the question that it answers
    assert notebook.cells[-1].cell_type == "markdown"  # what to be careful about
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert len(nbformat.writes(notebook)) < 1_000_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of Jupyter and its messages
def test_runs(notebook, tmp_path, monkeypatch, request):
    """Errors are fatal."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    if any("BCNMF_SC_DATA" in cell.source for cell in notebook.cells):
        monkeypatch.setenv("BCNMF_SC_DATA", str(request.getfixturevalue("data_folder")))
    for cell in notebook.cells:
        cell.source = REPEATED.sub(r"\g<1>2", cell.source)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
