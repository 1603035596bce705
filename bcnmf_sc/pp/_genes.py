"""Shared by the steps of `pp`: checks, and columns of genes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from .._stored import added

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse


logger = logging.getLogger(__name__)

LEAST = 2  # cells, genes


# --- reading and writing ---------------------------------------------------------------------------------------------


def write_var(adata: AnnData, columns: pd.DataFrame, **uns: Any) -> None:
    """Add columns to `.var`, and records to `.uns`; setting the whole frame copies a view without a warning."""
    adata.var = adata.var.assign(**{name: columns[name].to_numpy() for name in columns})
    for name, record in uns.items():
        adata.uns[name] = record
    added(*(f"var.{name}" for name in columns), *(f"uns.{name}" for name in uns))


def n_expressed(counts: NDArray[np.number] | sparse.csr_matrix, *, axis: int) -> NDArray[np.int64]:
    return np.asarray((counts > 0).sum(axis=axis)).ravel()


def flag_column(adata: AnnData) -> NDArray[np.bool_]:
    if "protein_coding" not in adata.var:
        return np.ones(adata.n_vars, dtype=bool)
    return adata.var["protein_coding"].astype("boolean").fillna(value=False).to_numpy(dtype=bool)
