"""What the tests share: simulated data, kinds of arrays, the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from scipy import sparse

import bcnmf_sc as bc

mpl.use("Agg")


@pytest.fixture
def adata():
    """Simulated counts: 1,000 cells x 500 genes, case and ctrl, with the truth."""
    return bc.datasets.simulated()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real data, which are not part of the project."""
    folder = Path(os.environ.get("BCNMF_SC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"The real data are missing: {folder}. Set BCNMF_SC_TEST_DATA.")
        pytest.skip(f"No real data at {folder}. Set BCNMF_SC_TEST_DATA to run this test.")
    return folder


@pytest.fixture(params=["array", "csr", "csc"])
def array_type(request):
    """Turn a dense array into each kind that a fit accepts in memory."""
    return {"array": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_array}[request.param]
