"""Topics that many starts agree on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np

from ..._anndata import Reading
from ..._utils.checks import number, one_of, seed_32, whole_number
from ...engine import transform
from ...engine.bcnmf import ensemble
from .._run import no_checkpoint, run_settings
from .problem import SAFE_ALPHA, Problem, default_alpha, one_alpha

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ..._anndata import MaskVar
    from .._run import Likelihood, LikelihoodName, RunOptions


def consensus(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str],
    target: str | Sequence[str] | None = None,
    n_topics: int = 10,
    n_background_topics: int = 0,
    basis: Literal["split", "shared"] = "split",
    n_restarts: int = 10,
    alpha: float | None = None,
    density: float = 0.5,
    likelihood: LikelihoodName | Likelihood = "poisson",
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    random_state: int = 0,
    key_added: str = "bcnmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    """Find topics that many starts agree on: consensus NMF :cite:p:`kotliar2019identifying` with a contrast.

    The topics of all restarts are clustered by cosine, those without close neighbours dropped, the median of each
    cluster taken as its topic, and the usage of every cell refitted. Background topics are learned anew in every
    restart, and clustered by themselves.

    Parameters
    ----------
    adata, background_key, background, target, n_topics, basis, likelihood, layer, mask_var, random_state
        As in `bcnmf`.
    n_background_topics
        As in `bcnmf`, as a number: `select_n_topics` chooses one. Cells are not scored out of fold.
    alpha
        As in `bcnmf`, on the effective scale.
    key_added, copy, **run
        As in `bcnmf`, without ``checkpoint``.
    n_restarts
        Number of starts.
    density
        A topic is dropped if its mean distance (1 - cosine) to its nearest ``0.3 * n_restarts`` neighbours exceeds
        this.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set: as `bcnmf`; the ``topics`` table gains ``stability``
    (mean cosine of a cluster's members to its median) and ``n_members`` (how many topics of the restarts are in it).

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.consensus(adata, background_key="condition", background="ctrl", n_topics=3, n_restarts=4, tol=1e-2)
    >>> adata.varm["bcnmf"].shape
    (500, 3)
    """
    whole_number("n_restarts", n_restarts, 2)
    one_of("basis", basis, ("split", "shared"))
    alpha = default_alpha(n_background_topics, basis) if alpha is None else alpha
    number("alpha", alpha)
    number("density", density, closed="right")
    one_alpha(background)
    no_checkpoint(run)
    asked = Reading(
        key_added,
        copy,
        background_key,
        background,
        target,
        likelihood=likelihood,
        layer=layer,
        mask_var=mask_var,
        sizes={"n_topics": n_topics},
        writes=("role",),
        n_background_topics=n_background_topics,
        random_state=random_state,
        run=run,
    )
    problem = Problem.read(adata, asked)
    source, backgrounds = problem.data.source, problem.data.design.backgrounds
    contrast = problem.contrast(dict.fromkeys(backgrounds, alpha), "effective", pooled=True)
    settings = run_settings(run, accelerate=alpha <= SAFE_ALPHA)
    model = problem.model(contrast, n_topics, n_background_topics, basis)
    fits = ensemble.restarts(source, model, n_restarts, random_state=random_state, run=settings)
    kinds = [slice(n_topics), slice(n_topics, None)][: 1 + bool(n_background_topics)]
    seed = seed_32(random_state)
    found = [ensemble.consensus([f.W[:, kind] for f in fits], density=density, random_state=seed) for kind in kinds]
    W, stability, members = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
    last = fits[int(np.argmin([f.loss[-1][3] for f in fits]))]
    H, cell_loss = transform(source, last.likelihood, W)
    factors = replace(last, W=W, H=H, cell_loss=cell_loss)
    params = {
        "background_key": background_key,
        "background": list(backgrounds),
        "alpha": [alpha] * len(backgrounds),
        "alpha_scale": "effective",
        "n_background_topics": n_background_topics,
        "basis": basis,
        "n_restarts": n_restarts,
        "density": density,
    }
    record = problem.record(factors, contrast, params, n_topics, run=settings)
    record["topics"]["stability"], record["topics"]["n_members"] = stability, members
    del record["weight"]  # of one restart, and so no ground to go on from
    return problem.write(factors, contrast, record)
