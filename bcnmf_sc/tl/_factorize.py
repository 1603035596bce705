"""Factorisations: read from the AnnData, run the engine, write back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from .. import _anndata
from ..engine import LIKELIHOODS, Factors, Likelihood, RowSource, Run, fit, row_source, transform
from ..engine.sources import Groups, Summary, summarise

if TYPE_CHECKING:
    from anndata import AnnData

    from .._anndata import Design, MaskVar

logger = logging.getLogger(__name__)

LikelihoodName = Literal["gaussian", "poisson"]
MAX_SUPPRESSED = 0.1
"""Share of suppressed genes from which on a fit warns."""
SAFE_ALPHA = 0.6
"""Contrast up to which extrapolation reaches the same topics as plain updates."""


class RunOptions(TypedDict, total=False):
    """How a fit is run; none of it changes what is sought. The same for every fit."""

    n_threads: int | None
    """Threads that work on blocks of cells; all that the machine lends by default. The result does not depend on it."""
    batch_size: int | None
    """Cells per block; chosen by default. The result does not depend on it (to about 1e-5)."""
    max_iter: int
    """Iterations at most (1000)."""
    tol: float
    """Stop when the loadings move by less than this share in one iteration (1e-4)."""
    max_time: float
    """Seconds after which to stop (none)."""
    accelerate: bool | None
    """Extrapolate the updates. By default where it is safe: up to an effective alpha of 0.6."""
    progress: bool
    """Show a progress bar once a fit takes more than two seconds (True)."""


def bcnmf(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None = None,
    n_topics: int = 10,
    alpha: float = 0.5,
    alpha_scale: Literal["effective", "sum"] = "effective",
    likelihood: LikelihoodName = "poisson",
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    init: np.ndarray | None = None,
    random_state: int = 0,
    key_added: str = "bcnmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    r"""Find topics of the target cells that the background cells do not have [Li2026]_.

    Target cells :math:`X` and background cells :math:`Y` share loadings :math:`W` (genes x topics), and every cell has its
    own usage (:math:`H_X`, :math:`H_Y`, cells x topics):

    .. math:: \min_{W \ge 0} \; \min_{H_X \ge 0} L(X, H_X W^\top) - \alpha \min_{H_Y \ge 0} L(Y, H_Y W^\top)

    where :math:`L` is half the deviance of the likelihood. Each usage is the best fit of its cell, so a cell's usage depends
    on the loadings alone. Larger ``alpha`` presses harder against what the background also has. With
    ``alpha_scale="effective"`` cell numbers and library sizes are taken out, and ``1 / alpha`` reads as a fold change: a gene
    whose share of the background's counts exceeds ``1 / alpha`` times its share of the target's is suppressed.

    Parameters
    ----------
    adata
        Cells x genes, counts for the count likelihoods. ``X`` and layers are only read.
    background_key
        Column of ``adata.obs`` that tells target from background.
    background
        Its category, or categories, that serve as background; a mapping gives each background its own alpha, in the scale of
        ``alpha_scale``, in place of ``alpha``.
    target
        Its category, or categories, that serve as target. By default all that are not background; ``"all"`` takes every
        labelled cell, background included. Cells in neither are projected on the result.
    n_topics
        Number of topics.
    alpha
        Strength of the contrast, at least 0 (plain NMF of the target).
    alpha_scale
        ``"effective"``: ``alpha`` is the weight of the background's total against the target's. ``"sum"``: the weight of a
        background cell against a target cell, as the paper has it.
    likelihood
        ``"poisson"`` for counts, ``"gaussian"`` (squared error) for images, proteins or log-normalised values.
    layer
        Layer to read instead of ``adata.X``.
    mask_var
        Genes to use: a bool column of ``adata.var`` or a bool array. ``"auto"`` uses ``highly_variable`` where it is present,
        `None` uses all genes.
    init
        Loadings to start from, genes used x topics. Drawn with ``random_state`` by default; the usage starts from each
        cell's total spread evenly over the topics.
    random_state
        Seed of the start. The result depends on nothing else.
    key_added
        Name under which the results are stored.
    copy
        Return a changed copy instead of changing ``adata``.
    **run
        How to run: see `RunOptions`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.obsm["X_" + key_added]`` : float32 array, n_obs x n_topics
        Usage in counts: a row sums to about the cell's total over the genes used. Of target cells it is :math:`H_X`, of
        background cells :math:`H_Y`; all other cells are projected.
    ``.varm[key_added]`` : float32 array, n_vars x n_topics
        Loadings. Columns sum to 1; genes not used are zero.
    ``.obs[key_added + "_role"]`` : categorical
        ``target``, ``background``, ``both`` or ``projected``.
    ``.var[key_added + "_suppressed"]`` : bool
        Genes that the background outweighs at this alpha; their loadings vanish.
    ``.uns[key_added]`` : dict
        ``params``; ``topics`` (a row per topic: kind, mean share of usage in target and background, log2 of their ratio);
        ``loss`` (per check: iteration, target and background loss, contrast, change of the loadings); ``n_iter``;
        ``converged``; ``alpha_effective``; ``alphas`` (per background, in both scales); ``deviance_explained`` of target
        and background, against the one-topic model of their mean profile.

    Raises
    ------
    KeyError
        A column or layer is missing.
    ValueError
        An argument, a name or a value of the data is not as said above. Nothing has been changed then.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> adata.obsm["X_bcnmf"].shape, adata.varm["bcnmf"].shape
    ((1000, 4), (500, 4))
    """
    design = _anndata.read_design(adata, background_key, background, target)
    alphas = _alphas(alpha, background, design)
    if alpha_scale not in ("effective", "sum"):
        msg = f"`alpha_scale` must be 'effective' or 'sum', got {alpha_scale!r}."
        raise ValueError(msg)
    data = _read(adata, design, likelihood, n_topics, layer, mask_var, random_state, run)
    contrast = _contrast(alphas, alpha_scale, design, data, pooled=not isinstance(background, Mapping))
    start = None if init is None else _check_start(init, data, n_topics)

    accelerate = run.get("accelerate")
    accelerate = sum(contrast.effective.values()) <= SAFE_ALPHA if accelerate is None else accelerate
    factors = fit(
        data.source,
        data.likelihood,
        n_topics,
        target=design.target,
        background=contrast.weight,
        start=start,
        random_state=random_state,
        run=_run(run, accelerate=accelerate),
    )

    adata = adata.copy() if copy else adata
    params = {
        "background_key": background_key,
        "background": list(alphas),
        "target": target if target is None or isinstance(target, str) else list(target),
        "alpha": list(alphas.values()),
        "alpha_scale": alpha_scale,
        "init": "random" if init is None else "given",
    }
    explained = _deviance_explained(data, design, factors)
    _write(adata, key_added, data, design, factors, contrast, explained, params | _common(data, n_topics, random_state))
    _warn_of_fit(factors, explained)
    return adata if copy else None


def nmf(
    adata: AnnData,
    *,
    n_topics: int = 10,
    cells: np.ndarray | None = None,
    likelihood: LikelihoodName = "poisson",
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    init: np.ndarray | None = None,
    random_state: int = 0,
    key_added: str = "nmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    r"""Factorise cells without a contrast: non-negative matrix factorisation [Lee2000]_.

    .. math:: \min_{W \ge 0, H \ge 0} L(X, H W^\top)

    It is `bcnmf` with ``alpha=0``, for comparison.

    Parameters
    ----------
    adata
        Cells x genes.
    n_topics
        Number of topics.
    cells
        Bool array: the cells to learn from; the others are projected. All by default.
    likelihood, layer, mask_var, init, random_state, key_added, copy, **run
        As in `bcnmf`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set: ``.obsm["X_" + key_added]``, ``.varm[key_added]``,
    ``.obs[key_added + "_role"]`` and ``.uns[key_added]`` as `bcnmf` has them.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.nmf(adata, n_topics=4)
    >>> adata.obsm["X_nmf"].shape
    (1000, 4)
    """
    learn = np.ones(adata.n_obs, bool) if cells is None else np.asarray(cells)
    if learn.shape != (adata.n_obs,) or learn.dtype != bool or not learn.any():
        msg = f"`cells` must be a bool for each of the {adata.n_obs} cells, at least one True, got {learn.dtype} {learn.shape}."
        raise ValueError(msg)
    design = _anndata.Design(learn, {})
    data = _read(adata, design, likelihood, n_topics, layer, mask_var, random_state, run)
    contrast = _contrast({}, "sum", design, data, pooled=True)
    factors = fit(
        data.source,
        data.likelihood,
        n_topics,
        target=design.target,
        background=contrast.weight,
        start=None if init is None else _check_start(init, data, n_topics),
        random_state=random_state,
        run=_run(run, accelerate=run.get("accelerate") is not False),
    )
    adata = adata.copy() if copy else adata
    explained = _deviance_explained(data, design, factors)
    params = {"init": "random" if init is None else "given"}
    _write(adata, key_added, data, design, factors, contrast, explained, params | _common(data, n_topics, random_state))
    _warn_of_fit(factors, explained)
    return adata if copy else None


def project(
    adata: AnnData,
    reference: AnnData,
    *,
    key: str = "bcnmf",
    layer: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    r"""Compute the usage of new cells on the topics of a reference.

    .. math:: \min_{H \ge 0} L(X, H W^\top) \quad \text{with } W \text{ of the reference}

    Genes are matched by name; the order does not matter. A gene that is missing here is left out of the fit of every cell.

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
    copy
        Return a changed copy instead of changing ``adata``.
    **run
        How to run: see `RunOptions`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set: ``.obsm["X_" + key_added]``, ``.varm[key_added]`` (the
    reference's loadings of the genes present), ``.obs[key_added + "_role"]`` (all ``projected``) and ``.uns[key_added]``.

    Raises
    ------
    KeyError
        ``key`` is not in ``reference``.
    ValueError
        Less than half of the reference's genes are present, or values are not as the likelihood wants them.

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
    stored = _anndata.stored(reference, key)
    W = _anndata.aligned_loadings(adata, reference, key)
    design = _anndata.Design(np.zeros(adata.n_obs, bool), {})
    data = _read(adata, design, stored["params"]["likelihood"], W.shape[1], layer, W.any(axis=1), 0, run)
    W = W[data.genes].astype(np.float64)
    H, _ = transform(data.source, data.likelihood, W)

    adata = adata.copy() if copy else adata
    record = {
        "params": dict(stored["params"]) | {"layer": layer, "version": version("bcnmf-sc")},
        "topics": stored["topics"],
    }
    name = key if key_added is None else key_added
    _anndata.write(adata, name, genes=data.genes, W=W, H=H, role=design.role, suppressed=None, record=record)
    return adata if copy else None


# ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """What is read from the AnnData, checked."""

    source: RowSource
    likelihood: Likelihood
    genes: np.ndarray
    sums: np.ndarray
    """Gene sums, a row for the target and one for each background."""
    mass: np.ndarray
    layer: str | None
    n_empty_cells: int
    n_empty_genes: int


@dataclass(frozen=True)
class _Contrast:
    """Alpha in its two scales, per background, and what follows from it before any fit."""

    weight: np.ndarray
    """Background weight per cell."""
    effective: dict[str, float]
    on_sums: dict[str, float]
    suppressed: np.ndarray
    """Bool per gene used."""


def _alphas(alpha: float, background: str | Sequence[str] | Mapping[str, float], design: Design) -> dict[str, float]:
    if isinstance(background, Mapping):
        alphas = {str(name): float(value) for name, value in background.items()}
    else:
        alphas = dict.fromkeys(design.backgrounds, float(alpha))
    for name, value in alphas.items():
        if not (np.isfinite(value) and value >= 0):
            msg = f"`alpha` must be a finite number of at least 0, got {value} for background {name!r}."
            raise ValueError(msg)
    return alphas


def _read(
    adata: AnnData,
    design: Design,
    likelihood: str,
    n_topics: int,
    layer: str | None,
    mask_var: MaskVar,
    random_state: int,
    run: RunOptions,
) -> _Data:
    """Read and check all that a fit needs; raises before anything is done."""
    unknown = set(run) - set(RunOptions.__annotations__)
    if unknown:
        msg = f"Unknown argument {sorted(unknown)[0]!r}. Ways to run: {', '.join(RunOptions.__annotations__)}."
        raise TypeError(msg)
    if likelihood not in LIKELIHOODS:
        msg = f"`likelihood` must be one of {', '.join(map(repr, LIKELIHOODS))}, got {likelihood!r}."
        raise ValueError(msg)
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer) or random_state < 0:
        msg = f"`random_state` must be a whole number of at least 0, got {random_state!r}."
        raise ValueError(msg)
    _anndata.check_names(adata)
    matrix = _anndata.read_matrix(adata, layer)
    genes = _anndata.read_genes(adata, mask_var)
    if len(genes) < 2:  # noqa: PLR2004
        msg = f"At least 2 genes must be used, got {len(genes)}. See `mask_var`."
        raise ValueError(msg)
    most = min(adata.n_obs, len(genes))
    if isinstance(n_topics, bool) or not isinstance(n_topics, int | np.integer) or not 1 <= n_topics <= most:
        msg = f"`n_topics` must be a whole number from 1 to {most} (the smaller of cells and genes), got {n_topics!r}."
        raise ValueError(msg)
    model = LIKELIHOODS[likelihood]()
    source = row_source(matrix, genes=genes, block_rows=run.get("batch_size"), n_threads=run.get("n_threads"))
    groups = Groups(np.column_stack([design.target, *design.backgrounds.values()]), np.zeros(adata.n_obs))
    summary: Summary = source.reduce(partial(summarise, likelihood=model), groups)
    _anndata.check_values(summary, model, adata, layer)
    for name, mass in zip(["target", *design.backgrounds], summary.mass, strict=True):
        if design.target.any() and not mass.any():
            msg = f"The {name!r} cells hold nothing but zeros in the {len(genes)} genes used. Check `layer` and `mask_var`."
            raise ValueError(msg)
    empty_cells, empty_genes = int((groups.total == 0).sum()), int((summary.mass.sum(0) == 0).sum())
    if empty_cells or empty_genes:
        logger.info(
            "%d cells and %d genes have no counts: kept, with zero usage and loadings.", empty_cells, empty_genes
        )
    return _Data(source, model, genes, summary.sums, summary.mass, layer, empty_cells, empty_genes)


def _contrast(alphas: Mapping[str, float], scale: str, design: Design, data: _Data, *, pooled: bool) -> _Contrast:
    target_mass, *background_mass = data.mass
    masses = dict(zip(design.backgrounds, background_mass, strict=True))
    ratio = {name: float(mass.sum() / target_mass.sum()) for name, mass in masses.items()}
    together = sum(ratio.values())
    on_sums = {
        name: a / (together if pooled else ratio[name]) if scale == "effective" else a for name, a in alphas.items()
    }
    effective = {name: a * ratio[name] for name, a in on_sums.items()}
    weight = np.zeros(len(design.target))
    for name, cells in design.backgrounds.items():
        weight[cells] = on_sums[name]

    pressure = np.sum([on_sums[name] * mass for name, mass in masses.items()] + [0 * target_mass], axis=0)
    fold = np.divide(target_mass, pressure, out=np.full(len(pressure), np.inf), where=pressure > 0)
    suppressed = fold < 1
    n_expressed = int(((target_mass > 0) | (pressure > 0)).sum())
    if suppressed.sum() > MAX_SUPPRESSED * n_expressed:
        # The gene that is MAX_SUPPRESSED of the way up has its fold at 1 when all alphas are multiplied by that fold.
        smaller = np.sort(fold)[int(MAX_SUPPRESSED * n_expressed)] * (sum(effective.values()) if pooled else 1)
        what = f"an effective alpha of {smaller:.2g}" if pooled else f"alphas {smaller:.2g} times as large"
        msg = (
            f"{int(suppressed.sum())} of {n_expressed} genes are suppressed at this alpha: the background outweighs them and "
            f"their loadings vanish (see `.var['<key_added>_suppressed']`). With {what} or less, at most "
            f"{MAX_SUPPRESSED:.0%} of the genes would be."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    return _Contrast(weight, effective, on_sums, suppressed)


def _check_start(init: np.ndarray, data: _Data, n_topics: int) -> np.ndarray:
    start = np.asarray(init, np.float64)
    if start.shape != (len(data.genes), n_topics) or not np.isfinite(start).all() or (start < 0).any():
        msg = (
            f"`init` must be finite, non-negative loadings of {len(data.genes)} genes used x {n_topics} topics, got shape "
            f"{start.shape}. An array over all genes is cut down with `mask_var`."
        )
        raise ValueError(msg)
    return start


def _run(options: RunOptions, *, accelerate: bool) -> Run:
    run = {name: options[name] for name in ("max_iter", "tol", "max_time") if name in options}
    return Run(accelerate=accelerate, progress=options.get("progress", True), **run)


def _common(data: _Data, n_topics: int, random_state: int) -> dict[str, Any]:
    """What the record of every fit holds."""
    return {
        "likelihood": data.likelihood.name,
        "n_topics": n_topics,
        "layer": data.layer,
        "random_state": random_state,
        "n_genes": len(data.genes),
        "n_empty_cells": data.n_empty_cells,
        "n_empty_genes": data.n_empty_genes,
        "version": version("bcnmf-sc"),
    }


def _deviance_explained(data: _Data, design: Design, factors: Factors) -> dict[str, float]:
    """Share of the deviance from the one-topic model (the mean profile of the part) that the topics explain."""
    explained = {}
    profiles = {"target": (design.target, data.sums[0]), "background": (design.background, data.sums[1:].sum(0))}
    for part, (cells, profile) in profiles.items():
        if cells.any():
            _, null = transform(data.source, data.likelihood, (profile / profile.sum())[:, None])
            explained[part] = float(1 - factors.cell_loss[cells].sum() / max(null[cells].sum(), np.finfo(float).tiny))
    return explained


def _topics_table(design: Design, factors: Factors) -> pd.DataFrame:
    total = factors.H.sum(1, keepdims=True)
    share = np.divide(factors.H, total, out=np.zeros_like(factors.H), where=total > 0).astype(np.float64)
    names = [f"Topic {k + 1}" for k in range(share.shape[1])]
    in_target = share[design.target].mean(0)
    table = pd.DataFrame({"kind": "target", "usage_target": in_target}, index=pd.Index(names, name="topic"))
    if design.backgrounds:
        in_background = share[design.background].mean(0)
        table["usage_background"] = in_background
        floor = 1e-6  # usage is never exactly zero; the ratio of two vanishing shares says nothing
        table["log2_enrichment"] = np.log2((in_target + floor) / (in_background + floor))
    return table


def _write(
    adata: AnnData,
    key: str,
    data: _Data,
    design: Design,
    factors: Factors,
    contrast: _Contrast,
    explained: dict[str, float],
    params: dict[str, Any],
) -> None:
    record = {
        "params": params,
        "topics": _topics_table(design, factors),
        "loss": pd.DataFrame(factors.loss, columns=["iteration", "target", "background", "contrast", "change"]),
        "n_iter": factors.n_iter,
        "converged": factors.converged,
        "deviance_explained": explained,
    }
    if design.backgrounds:
        record |= {
            "alpha_effective": float(sum(contrast.effective.values())),
            "alphas": pd.DataFrame({"effective": contrast.effective, "sum": contrast.on_sums}),
        }
    _anndata.write(
        adata,
        key,
        genes=data.genes,
        W=factors.W,
        H=factors.H,
        role=design.role,
        suppressed=contrast.suppressed if design.backgrounds else None,
        record=record,
    )


def _warn_of_fit(factors: Factors, explained: dict[str, float]) -> None:
    if not factors.converged:
        msg = (
            f"The loadings still moved by {factors.loss[-1][-1]:.1e} an iteration after {factors.n_iter} iterations. Raise "
            "`max_iter`, or `tol` if that is close enough; with a strong contrast there may be no point of rest: lower `alpha`."
        )
        warnings.warn(msg, ConvergenceWarning, stacklevel=3)
    if explained["target"] < 0:
        msg = (
            f"The topics describe the target worse than its mean profile does (deviance explained: {explained['target']:.2f}): "
            "the contrast took too much. Lower `alpha`."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
