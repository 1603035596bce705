"""A stored factorisation and other cells: their usage on its loadings, or loadings that go on with them."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from anndata import AnnData

from ... import _stored
from ..._anndata import Reading, check_backed, check_names
from ..._utils.checks import listed
from ..._utils.errors import UserError
from ...engine import fit, transform
from .._run import RunOptions, run_settings
from .problem import SAFE_ALPHA, Contrast, Problem


def project(
    adata: AnnData,
    reference: AnnData,
    *,
    key: str = "bcnmf",
    layer: str | None = None,
    key_added: str | None = None,
    n_threads: int | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Compute the usage of new cells on the topics of a reference.

    .. math:: \min_{H \ge 0} L(X, H W^\top) \quad \text{with } W \text{ of the reference}

    Genes are matched by name; the order does not matter. A gene that is missing here is left out of the fit of every
    cell.

    Parameters
    ----------
    adata
        New cells x genes, in the units that the reference was fitted in (counts for counts).
    reference
        AnnData with a stored factorisation.
    key
        Name of the factorisation in ``reference``.
    layer
        Layer to read instead of ``adata.X``.
    key_added
        Name under which the results are stored; ``key`` by default.
    n_threads, device, batch_size
        As in `RunOptions`.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set: ``.obsm["X_" + key_added]``,
    ``.varm[key_added]`` (the reference's loadings of the genes present), ``.obs[key_added + "_role"]`` (all
    ``projected``) and ``.uns[key_added]``.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> new = bc.datasets.simulated(random_state=0)
    >>> bc.tl.project(new, adata)
    >>> bool(abs(new.obsm["X_bcnmf"] - adata.obsm["X_bcnmf"]).max() < 1e-3)
    True
    """
    check_backed(adata, copy=copy)
    check_names(adata)
    check_names(reference, "reference")
    stored = _stored.stored(reference, key)
    W = _stored.aligned_loadings(adata, reference, key)
    used = np.asarray(W.any(axis=1))
    asked = Reading(
        key if key_added is None else key_added,
        copy,
        cells=np.zeros(adata.n_obs, bool),
        needs_target=False,
        likelihood=_stored.stored_likelihood(adata, reference, key, used),
        layer=layer,
        mask_var=used,
        run={"n_threads": n_threads, "device": device, "batch_size": batch_size},
    )
    data = Problem.read(adata, asked).data
    H, _ = transform(data.source, data.likelihood, W[used].astype(np.float64))
    record = {"params": dict(stored["params"]) | {"layer": layer}, "topics": stored["topics"].copy()}
    return data.store(W=W[used], H=H, cells={"role": data.design.role}, genes={}, record=record)


def update(
    adata: AnnData,
    reference: AnnData,
    *,
    key: str = "bcnmf",
    layer: str | None = None,
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    r"""Go on with a stored factorisation when more cells have come, without the cells it was made of.

    .. math:: W \leftarrow \frac{W_0 \circ D_0 + W \circ (P_X + \alpha N_Y)}{D_0 + N_X + \alpha P_Y}

    with :math:`W_0` the stored loadings and :math:`D_0` what they rest on, which a fit stores beside them. The sums of
    the earlier cells are kept as they were at :math:`W_0`, so the result is close to a fit of all cells as long as the
    loadings do not move far.

    Parameters
    ----------
    adata
        New cells x genes; at least the genes of the factorisation, in any order.
    reference
        AnnData with a stored factorisation without background topics. It is only read.
    key
        Name of the factorisation in ``reference``, and of the result in ``adata``.
    layer
        Layer to read instead of ``adata.X``.
    copy
        Return a changed copy instead of changing ``adata``.
    **run
        How to run: see `RunOptions`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set: as `bcnmf`. Conditions play the roles that they have in
    the reference; some of them may be absent here, and cells of others are projected. Alphas and suppressed genes are
    those of the reference.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> early, late = adata[::2].copy(), adata[1::2].copy()
    >>> bc.tl.bcnmf(early, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.update(late, early)
    >>> late.obsm["X_bcnmf"].shape
    (500, 4)
    """
    check_backed(adata, copy=copy)
    check_names(adata)
    check_names(reference, "reference")
    stored = _stored.stored(reference, key)
    params = stored.get("params", {})
    W = np.asarray(_stored.stored_slot(reference, "varm", key), np.float64)
    used = W.any(axis=1)
    names = reference.var_names[used]
    split = (stored["topics"]["kind"] == "background").any()
    if not params.get("background_key") or "weight" not in stored or split:
        msg = f"`key` {key!r} must be a factorisation by `bcnmf_sc.tl.bcnmf` without background topics."
        raise UserError(msg)
    missing = names.difference(adata.var_names)
    if len(missing):
        msg = (
            f"`adata` must hold all {len(names)} genes of the factorisation {key!r}, got {len(missing)} missing: "
            f"{listed(missing)}."
        )
        raise UserError(msg)
    background = [str(name) for name in params["background"]]
    target = params.get("target")
    target = target if target is None else np.asarray(target).tolist()
    mask = np.asarray(adata.var_names.isin(names))
    order = names.get_indexer(adata.var_names[mask])
    asked = Reading(
        key,
        copy,
        str(params["background_key"]),
        background,
        target,
        partial=True,
        likelihood=_stored.stored_likelihood(adata, reference, key, mask),
        layer=layer,
        mask_var=mask,
        run=run,
    )
    problem = Problem.read(adata, asked)
    data = problem.data
    effective, on_sums = (
        dict(zip(background, stored["alphas"][scale].astype(float), strict=True)) for scale in ("effective", "sum")
    )
    suppressed = reference.var[f"{key}_suppressed"].to_numpy()[used][order]
    contrast = Contrast.of(data.design, effective, on_sums, suppressed)
    settings = run_settings(run, accelerate=contrast.total <= SAFE_ALPHA)
    factors = fit(
        data.source,
        data.likelihood,
        W.shape[1],
        target=data.design.target,
        background=contrast.weight,
        start=W[used][order],
        prior=np.asarray(stored["weight"], np.float64)[order],
        run=settings,
    )
    record = problem.record(factors, contrast, dict(params) | {"updated": True}, W.shape[1], run=settings)
    return problem.write(factors, contrast, record)
