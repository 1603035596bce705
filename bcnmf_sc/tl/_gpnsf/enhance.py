"""Impute a sparse modality from spots with similar usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from anndata import AnnData
from scipy import sparse

from ..._anndata import check_backed, check_key, read_matrix
from ..._mudata import in_memory
from ..._spots import modality_of, stored_fit
from ..._stored import added
from ..._utils.checks import listed, one_of, whole_number
from ..._utils.errors import UserError

if TYPE_CHECKING:
    from mudata import MuData


def enhance(
    mdata: AnnData | MuData,
    *,
    modality: str | None = None,
    method: Literal["neighbours", "model"] = "neighbours",
    n_neighbors: int = 50,
    key: str = "gpnsf",
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Fill a sparse modality, as ATAC, in from spots that are alike in the posterior usage of the topics.

    ``method="neighbours"``: :math:`\hat x_{ij} = \sum_{i'} s_{ii'} x_{i'j} / \sum_{i'} s_{ii'} \nu_{i'}`, with weights
    :math:`s` over the spots nearest in the square root of usage, falling with the distance and with the doubt about the
    neighbour's usage. It keeps what the topics do not explain. ``method="model"``: the rates themselves,
    :math:`\sum_k e_{ik} w_{jk}`; closer to the truth where the topics are. Both are rates at size factor 1.

    Parameters
    ----------
    mdata
        MuData or AnnData with a stored spatial fit.
    modality
        The modality; by default ``atac`` where there is one, else the only one.
    method
        What to fill in from.
    n_neighbors
        Spots to take each spot's values from, beside its own. More for sparser data.
    key
        Name of the fit.
    key_added
        Name of the layer; ``key + "_enhanced"`` by default.
    copy
        Return a changed copy instead of changing ``mdata``.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``[modality].layers[key_added]`` : float32, CSR (``"neighbours"``) or array (``"model"``), n_obs x n_vars
        The rates; of ``"model"`` only for features that were used.
    ``.obsp[key + "_similarity"]`` : CSR, n_obs x n_obs
        The weights, for ``"neighbours"``; rows sum to 1.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> mdata = bc.datasets.simulated_spatial()
    >>> bc.tl.gpnsf(mdata, n_topics=4, max_iter=60, tol=0.01)
    >>> bc.tl.enhance(mdata, n_neighbors=20)
    >>> mdata["atac"].layers["gpnsf_enhanced"].nnz > 5 * mdata["atac"].X.nnz
    True
    """
    from ...engine.gpnsf.space import similarity

    if isinstance(mdata, AnnData):
        check_backed(mdata, copy=copy)
    record = stored_fit(mdata, key)
    one_of("method", method, ("neighbours", "model"))
    whole_number("n_neighbors", n_neighbors, 1)
    names = [str(x) for x in record["params"]["modalities"]]
    if modality is None:
        modality = "atac" if "atac" in names else names[0]
        if len(names) > 1 and modality != "atac":
            msg = f"`modality` must be named where there are several, got None. Present: {listed(names)}."
            raise UserError(msg)
    if modality not in names:
        msg = f"`modality` must be one of the fit's, got {modality!r}. Present: {listed(names)}."
        raise UserError(msg)
    name = f"{key}_enhanced" if key_added is None else key_added
    check_key(name)
    mdata = mdata.copy() if copy else mdata
    adata = modality_of(mdata, modality)
    usage = np.asarray(mdata.obsm["X_" + key], np.float64)
    order = mdata.obs_names.get_indexer(adata.obs_names)
    if method == "model":
        adata.layers[name] = (usage[order] @ np.asarray(adata.varm[key], np.float64).T).astype(np.float32)
        added(f"layers.{name}")
        return mdata if copy else None
    weights = similarity(usage, np.asarray(mdata.obsm[f"X_{key}_sd"], np.float64), n_neighbors)
    layer = str(record["params"]["layers"][names.index(modality)])
    x = sparse.csr_array(in_memory(read_matrix(adata, None if layer == "X" else layer)))
    if record["params"]["likelihood"][names.index(modality)] == "bernoulli":
        x = (x > 0).astype(np.float64)
    here = weights[order][:, order]
    exposure = here @ adata.obs[f"{key}_size_factor"].to_numpy(np.float64)
    scale = np.divide(1.0, exposure, out=np.zeros_like(exposure), where=exposure > 0)
    filled = sparse.diags_array(scale) @ (here @ x)
    adata.layers[name] = sparse.csr_matrix(filled.astype(np.float32))
    mdata.obsp[f"{key}_similarity"] = sparse.csr_matrix(weights.astype(np.float32))
    added(f"layers.{name}", f"obsp.{key}_similarity")
    return mdata if copy else None
