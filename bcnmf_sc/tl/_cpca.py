"""Contrastive PCA, a baseline: read from the AnnData, run, write back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._anndata import Reading, read
from .._stored import added, recorded
from .._utils.checks import number
from .._utils.errors import UserError
from ..engine.cpca import cpca as run_cpca

if TYPE_CHECKING:
    from anndata import AnnData

    from .._anndata import MaskVar


def cpca(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str],
    target: str | Sequence[str] | None = None,
    alphas: float | Sequence[float] = 1.0,
    n_components: int = 10,
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    key_added: str = "cpca",
    copy: bool = False,
    n_threads: int | None = None,
    batch_size: int | None = None,
) -> AnnData | None:
    r"""Find directions along which target cells vary more than background cells: contrastive PCA (Abid et al. 2018).

    The components are the leading eigenvectors of

    .. math:: C_X - \alpha C_Y

    with the covariances of target and background, each about its own mean. ``alpha=0`` is PCA of the target. It is
    here as a baseline for `bcnmf`: components have signs and no genes of their own, but the solution is unique and
    cheap. Give it log-normalised values rather than counts, whose first component would be the library size. Memory
    is that of a few matrices genes x genes: use a few thousand genes.

    Parameters
    ----------
    adata
        Cells x genes. ``X`` and layers are only read; sparse rows stay sparse.
    background_key
        Column of ``adata.obs`` that tells target from background.
    background
        Its category, or categories, that serve as background.
    target
        Its category, or categories, that serve as target; by default all that are not background, ``"all"`` for every
        labelled cell.
    alphas
        Weight of the background's covariance, or several at once: the covariances are computed once.
    n_components
        Number of components.
    layer
        Layer to read instead of ``adata.X``.
    mask_var
        Genes to use, as in `bcnmf`.
    key_added
        Name under which the results are stored.
    copy
        Return a changed copy instead of changing ``adata``.
    n_threads, batch_size
        As in `RunOptions`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set, for one alpha (several alphas add it to the name, as in
    ``"cpca_0.5"``):

    ``.obsm["X_" + key_added]`` : float32 array, n_obs x n_components
        Scores of all cells, less the mean of the target.
    ``.varm[key_added]`` : float32 array, n_vars x n_components
        Components of length 1; zero for genes not used.
    ``.uns[key_added]`` : dict
        ``params``, and ``components``: a table of alpha, component and eigenvalue (target variance less alpha times the
        background's; negative where the background varies more).

    Raises
    ------
    ValueError
        An argument or a value of the data is not as said above.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.digits()
    >>> bc.tl.cpca(adata, background_key="condition", background="background", alphas=[0, 1, 2], n_components=2)
    >>> adata.obsm["X_cpca_2"].shape
    (600, 2)
    """
    several = isinstance(alphas, Iterable)
    weights: list[Any] = list(alphas) if isinstance(alphas, Iterable) else [alphas]
    for alpha in weights:
        number("alphas", alpha)
    weights = [float(alpha) for alpha in weights]
    names = [f"{key_added}_{alpha:g}" if several else key_added for alpha in weights]
    if len(set(names)) < len(names) or not names:
        msg = f"`alphas` must be one or more different numbers, got {alphas!r}."
        raise UserError(msg)
    asked = Reading(
        key_added,
        copy,
        background_key,
        background,
        target,
        layer=layer,
        mask_var=mask_var,
        sizes={"n_components": n_components},
        run={"n_threads": n_threads, "batch_size": batch_size},
    )
    data = read(adata, asked)
    design = data.design
    for name, cells in (("target", design.target), ("background", design.background)):
        if cells.sum() < 2:  # noqa: PLR2004
            msg = f"`{name}` must have at least 2 cells for a covariance, got {int(cells.sum())}."
            raise UserError(msg)
    found = run_cpca(data.source, design.target, design.background, alphas=weights, n_components=n_components)

    adata = adata.copy() if copy else adata
    table = pd.concat(
        [
            pd.DataFrame({"alpha": part.alpha, "component": range(1, n_components + 1), "eigenvalue": part.eigenvalues})
            for part in found
        ],
        ignore_index=True,
    )
    table.index = table.index.astype(str)
    for name, part in zip(names, found, strict=True):
        loadings = np.zeros((adata.n_vars, n_components), np.float32)
        loadings[data.genes] = part.loadings
        adata.obsm[f"X_{name}"] = part.scores.astype(np.float32)
        adata.varm[name] = loadings
    params: dict[str, Any] = {
        "background_key": background_key,
        "background": list(design.backgrounds),
        "target": target if target is None or isinstance(target, str) else list(target),
        "alphas": weights,
        "n_components": n_components,
    }
    params |= {name: data.params[name] for name in ("layer", "mask_var")}
    adata.uns[key_added] = {"params": recorded(params), "components": table}
    added(*(f"{slot}{name}" for slot in ("obsm.X_", "varm.") for name in names), f"uns.{key_added}")
    return adata if copy else None
