"""What a stored factorisation says: steps that read its results and fit nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import get
from .._anndata import check_backed
from .._stored import added
from .._utils.checks import random_seed, seed_32, whole_number

if TYPE_CHECKING:
    from anndata import AnnData


def umap(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    n_neighbors: int = 15,
    random_state: int = 0,
    copy: bool = False,
    **kwargs: Any,
) -> AnnData | None:
    """Compute the UMAP of the cells' topic proportions, with scanpy.

    Neighbours are sought among the proportions, each cell's usage over its sum, so that library size plays no part.
    Nothing of scanpy's own (``neighbors``, ``X_umap``) is written or read. `bcnmf_sc.pl.umap` draws the result, as does
    `scanpy.pl.embedding` with ``basis="bcnmf_umap"``. For clustering or another metric, call
    `scanpy.pp.neighbors` with ``use_rep="X_bcnmf"`` yourself.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The ``key_added`` under which it was stored.
    n_neighbors
        Cells in a neighbourhood: more show the whole, fewer the details. At most one less than there are cells.
    random_state
        Seed of the neighbour search and the layout.
    copy
        Return a changed copy instead of changing ``adata``.
    **kwargs
        Passed to `scanpy.tl.umap`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.obsm["X_" + key + "_umap"]`` : float32 array, n_obs x 2
        Position of each cell.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(n_target=100, n_background=60)
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.umap(adata)
    >>> adata.obsm["X_bcnmf_umap"].shape
    (160, 2)
    """
    import scanpy as sc
    from anndata import AnnData

    if not hasattr(adata, "mod"):  # a MuData has a usage as well
        check_backed(adata, copy=copy)
    share = get.usage(adata, key=key, normalize=True).to_numpy(np.float32)
    whole_number("n_neighbors", n_neighbors, 2, adata.n_obs - 1, "one less than there are cells")
    random_seed(random_state)
    cells = AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm={"share": share})
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="share", random_state=seed_32(random_state))
    sc.tl.umap(cells, random_state=seed_32(random_state), **kwargs)
    adata = adata.copy() if copy else adata
    adata.obsm[f"X_{key}_umap"] = np.asarray(cells.obsm["X_umap"], np.float32)
    added(f"obsm.X_{key}_umap")
    return adata if copy else None
