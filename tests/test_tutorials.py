"""The notebooks run from top to bottom, and are stored as a reader should find them."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
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
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
