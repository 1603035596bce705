"""Bring target and background to one sequencing depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .._anndata import check_backed, check_names, read_design, read_genes, read_matrix
from .._utils.checks import random_seed
from .._utils.errors import UserError
from ._genes import logger
from ._highly_variable_genes import counts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from .._anndata import MaskVar


def match_depth(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None = None,
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Thin the counts of the deeper side until target and background have the same mean depth.

    Each count of the deeper side is kept with the same probability (binomial thinning), the ratio of the mean depths,
    as if these cells had been sequenced less. Cells of one side keep their differences in depth, and cells in neither
    are left alone. `scanpy.pp.downsample_counts` instead gives every cell at most the same number of counts.

    Parameters
    ----------
    adata
        Counts, in memory.
    background_key
        Column of `.obs` with the conditions.
    background
        Category or categories of the background; of a mapping (category to alpha) the keys.
    target
        Category or categories of the target. `None` takes all others.
    layer
        Layer with the counts; `None` for `.X`.
    mask_var
        Genes over which depth is measured: a bool column of `.var` or a bool array. "auto" uses `highly_variable` where
        it is present, as the fits do, and `None` all genes. All genes are thinned.
    random_state
        Seed of the thinning. The result depends on nothing else.
    copy
        Return a modified copy instead of changing `adata`.

    Returns
    -------
    `None`, or a modified copy if `copy=True`. Replaces `.X`, or the layer, by counts of the same type and format.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> adata.X[(adata.obs["condition"] == "ctrl").to_numpy()] *= 2  # the controls are twice as deep
    >>> bc.pp.match_depth(adata, background_key="condition", background="ctrl")
    >>> depth = adata.to_df().sum(axis=1).groupby(adata.obs["condition"], observed=True).mean()
    >>> bool(0.95 < depth["case"] / depth["ctrl"] < 1.05)
    True
    """
    check_backed(adata, copy=copy)
    check_names(adata)
    random_seed(random_state)
    design = read_design(adata, background_key, background, target, apart=True)
    genes = read_genes(adata, mask_var)
    counts = sparse.csr_array(counts_of(adata, layer, whole=True), copy=True)
    counts.sum_duplicates()  # one order of the draws, however the values are stored
    total = np.asarray(counts[:, genes].sum(1, dtype=np.float64)).ravel()
    sides = {"target": design.target, "background": design.background}
    depth = {name: float(total[cells].mean()) for name, cells in sides.items()}
    for name, found in depth.items():
        if found == 0:
            msg = f"The {name} cells contain only zeros in the {len(genes)} genes used. Check `layer` and `mask_var`."
            raise UserError(msg)
    deeper = max(depth, key=lambda name: depth[name])
    kept = min(depth.values()) / depth[deeper]
    here = np.repeat(sides[deeper], np.diff(counts.indptr))
    counts.data[here] = np.random.default_rng(random_state).binomial(counts.data[here].astype(np.int64), kept)
    counts.eliminate_zeros()
    thinned = _stored_as(read_matrix(adata, layer), counts)
    out = adata.copy() if copy else adata
    if out.is_view:
        out._init_as_actual(out.copy())
    if layer is None:
        out.X = thinned
    else:
        out.layers[layer] = thinned
    logger.info("Kept %.1f %% of the counts of the %s.", 100 * kept, deeper)
    return out if copy else None


def _stored_as(given: Any, counts: sparse.csr_array) -> Any:
    """Return counts as an array, or a sparse matrix or array in the format of the one given."""
    if not sparse.issparse(given):
        return counts.toarray()
    own = counts if isinstance(given, sparse.sparray) else sparse.csr_matrix(counts)
    return own.asformat(given.format)
