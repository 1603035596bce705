"""Compare several methods side by side on one AnnData."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from .. import _anndata, _methods
from .._mudata import in_memory
from .._utils.checks import listed, matrix_values
from .._utils.errors import UserError, UserTypeError
from ..engine import as_likelihood
from ..engine.rows.moments import as_matrix, log_normalized
from ..engine.rows.sources import to_block
from ._scores import ari_bootstrap, auc, leakage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

COMPARED = {name: (method, fixed) for method in _methods.METHODS for name, fixed in method.compared.items()}
METHODS = ("pca", "cpca", *COMPARED)
KEY = "bcnmf_sc_compared"
LAYER = "bcnmf_sc_log"
N_FOLDS, FEWEST_DONORS = 5, 2
"""Default number of folds for leakage, and the fewest donors per label that it requires."""
SET_HERE = ("basis", "checkpoint", "copy", "key_added", "random_state")
"""Arguments of a fit that the user cannot set: they are set for each method and seed."""


class Fit(NamedTuple):
    """Result of one run of a method."""

    alpha: float
    values: np.ndarray
    """Proportions or scores of all cells."""
    share: np.ndarray | None
    """Target share of each cell, if available."""
    seconds: float
    converged: bool


def compare(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str],
    labels: str,
    methods: Sequence[str] = METHODS,
    target: str | Sequence[str] | None = None,
    n_topics: int = 10,
    n_background_topics: int = 10,
    alphas: Sequence[float] = (0.5, 1.0, 2.0),
    n_seeds: int = 5,
    n_boot: int = 20,
    nuisance: str | None = None,
    sample_key: str | None = None,
    cells: str = "target",
    layer: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run several methods with equal numbers of topics over several seeds, and score them in one table.

    Every method gets the same cells, genes and number of topics, its representation is clustered in the same way
    (k-means with as many clusters as labels, on usage proportions or component scores), and each seed has its own row.
    Nothing is selected by its score: contrastive PCA has a row for each alpha. PCA and contrastive PCA use
    log-normalised values if the likelihood is for counts. With background topics, only the target topics are scored, as
    shares of the total usage.

    Parameters
    ----------
    adata
        Annotated data; it is not modified.
    background_key, background, target
        The contrast, as in :func:`bcnmf_sc.tl.bcnmf`.
    labels
        Column of `adata.obs` with the true labels.
    methods
        Any of `"pca"`, `"cpca"`, `"nmf"`, `"bcnmf"` (plain), `"bcnmf_split"` and `"bcnmf_shared"` (with background
        topics). PCA and NMF are fitted to the cells that are scored.
    n_topics
        Number of topics, target topics or components of every method.
    n_background_topics
        Number of background topics, in addition to `n_topics`, of the methods that have them.
    alphas
        Values of alpha of contrastive PCA.
    n_seeds
        Number of seeds, from 0, for the start of fits and of k-means. PCA and contrastive PCA use only the latter.
    n_boot
        Number of bootstrap samples for the standard error of the ARI.
    nuisance
        Column of `adata.obs` whose leakage is scored as well: by five-fold cross-validation over cells, which requires
        five cells per label, or with `sample_key` over donors.
    sample_key
        Column of `adata.obs` with the donors. The standard error of the ARI is then over donors (NaN for a single
        donor), and leakage is measured on held-out donors, in as many folds as the rarest label has donors, at least
        two and at most five (unless `nuisance` is the same column). It is also passed to the methods with background
        topics, which require two donors with target cells and two with background cells.
    cells
        Cells to score: `"target"`, or `"all"` for target and background. Cells without a label are left out.
    layer
        Layer to use instead of `adata.X`.
    **options
        Passed to :func:`bcnmf_sc.tl.bcnmf`, and those that it accepts (likelihood, mask_var, run options) to
        :func:`bcnmf_sc.tl.nmf`. `basis`, `checkpoint`, `copy`, `key_added` and `random_state` are set for each fit and
        must not be given.

    Returns
    -------
    Table with a row per method, alpha and seed: `method`, `alpha` (of contrastive PCA), `n_topics`, `seed`, `ari`
    with its bootstrap standard error `ari_se`, `auc` (best single topic), `auc_share` (target cells against
    background cells by the out-of-fold target share, where the method has one), `leakage` and its `n_folds` (with
    `nuisance`; fewer folds learn from fewer cells, so leakage compares at equal numbers only), `seconds`, `converged`
    (whether the fit converged within `max_iter`; always true for components). Other warnings of the fits are
    suppressed.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> table = bc.metrics.compare(
    ...     bc.datasets.digits(),
    ...     background_key="condition",
    ...     background="background",
    ...     labels="digit",
    ...     methods=["pca", "cpca", "nmf"],
    ...     n_topics=2,
    ...     n_seeds=1,
    ...     likelihood="gaussian",
    ... )
    >>> table["method"].tolist()
    ['pca', 'cpca', 'cpca', 'cpca', 'nmf']
    """
    from .._utils.checks import whole_number

    _check_options(options)
    whole_number("n_seeds", n_seeds, 1)
    whole_number("n_boot", n_boot, 0)
    methods = [methods] if isinstance(methods, str) else list(methods)
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        msg = f"`methods` must be of {', '.join(map(repr, METHODS))}, got {unknown or methods!r}."
        raise UserError(msg)
    if cells not in ("target", "all"):
        msg = f"`cells` must be 'target' or 'all', got {cells!r}."
        raise UserError(msg)
    for argument, name in (("labels", labels), ("nuisance", nuisance), ("sample_key", sample_key)):
        if name is not None and name not in adata.obs:
            present = listed(adata.obs.columns)
            msg = f"`{argument}` must be a column of `adata.obs`, got {name!r}. Present: {present}."
            raise UserError(msg)
    design = _anndata.read_design(adata, background_key, background, target)
    scored = (design.target | design.background) if cells == "all" else design.target
    truth = adata.obs[labels].to_numpy()
    labelled = scored & adata.obs[labels].notna().to_numpy()
    if len(pd.unique(truth[labelled])) < 2:  # noqa: PLR2004
        msg = f"`labels` must give at least 2 labels to score, got {labels!r}. `cells='all'` adds the background."
        raise UserError(msg)
    known = adata.obs[labelled]
    if sample_key is not None and known[sample_key].isna().any():
        msg = (
            f"`sample_key` must name a donor for every scored cell, got {sample_key!r} with "
            f"{int(known[sample_key].isna().sum())} missing. Set the `labels` of these cells to missing."
        )
        raise UserError(msg)
    n_folds = N_FOLDS if nuisance is None else _leakage_folds(known, nuisance, sample_key)
    if n_background_topics != 0 and {"bcnmf_split", "bcnmf_shared"} & set(methods):
        _check_folds(adata, design, sample_key, cross_fit=options.get("cross_fit", N_FOLDS))

    work = _copy(adata, layer, options)
    whole_number("n_topics", n_topics, 1, min(work.shape), "the smaller of cells and genes used")
    contrast = {"background_key": background_key, "background": background, "target": target}
    run = _Runs(work, contrast, options, n_topics, n_background_topics, alphas, scored, sample_key)
    rows = []
    for name in methods:
        for seed in range(n_seeds):
            for made in run.of(name, seed):
                row = _score(
                    made.values[labelled],
                    truth[labelled],
                    known,
                    seed=seed,
                    n_boot=n_boot,
                    nuisance=nuisance,
                    sample_key=sample_key,
                    n_folds=n_folds,
                )
                row |= {"seconds": made.seconds, "converged": made.converged, "auc_share": np.nan, "n_folds": n_folds}
                if made.share is not None:
                    row["auc_share"] = _auc_share(made.share, design)
                rows.append({"method": name, "alpha": made.alpha, "n_topics": n_topics, "seed": seed} | row)
    columns = ["method", "alpha", "n_topics", "seed", "ari", "ari_se", "auc", "auc_share"]
    columns += ["leakage", "n_folds"] if nuisance is not None else []
    return pd.DataFrame(rows)[[*columns, "seconds", "converged"]]


def _check_options(options: dict[str, Any]) -> None:
    """Raise for arguments that no fit accepts, and for those that `compare` sets itself."""
    from ..tl._run import RunOptions, arguments, did_you_mean, no_parameters

    known = {name for method, _ in COMPARED.values() for name in arguments(method.function)}
    no_parameters(options)
    if unknown := sorted(set(options) - known):
        msg = f"Unknown argument {unknown[0]!r}: neither `compare` nor any of its fits accepts it."
        msg += did_you_mean(unknown[0], RunOptions)
        raise UserTypeError(msg)
    if taken := [name for name in SET_HERE if name in options]:
        msg = f"`compare` sets {', '.join(map(repr, taken))} for each of its fits. Do not pass it."
        raise UserTypeError(msg)


@dataclass
class _Runs:
    """Runs methods on a copy; those that do not depend on the seed are run once."""

    adata: AnnData
    contrast: dict[str, Any]
    options: dict[str, Any]
    n_topics: int
    n_background_topics: int
    alphas: Sequence[float]
    scored: np.ndarray
    sample_key: str | None
    components: dict[str, list[Fit]] = field(default_factory=dict)

    def of(self, name: str, seed: int) -> Iterable[Fit]:
        """Run a method, or return its stored run."""
        if name in ("pca", "cpca"):
            if name not in self.components:
                self.components[name] = list(self._components(name))
            return self.components[name]
        return [self._topics(name, seed)]

    def _components(self, name: str) -> Iterable[Fit]:
        from ..engine.cpca import cpca
        from ..engine.rows.open import row_source

        start = time.perf_counter()
        design = _anndata.read_design(self.adata, **self.contrast)
        target = self.scored if name == "pca" else design.target
        background = np.zeros_like(target) if name == "pca" else design.background
        alphas = [0.0] if name == "pca" else [float(alpha) for alpha in self.alphas]
        layer = LAYER if LAYER in self.adata.layers else None
        source = row_source(_anndata.read_matrix(self.adata, layer))
        found = cpca(source, target, background, alphas=alphas, n_components=self.n_topics)
        seconds = (time.perf_counter() - start) / len(found)
        for part in found:
            alpha = np.nan if name == "pca" else part.alpha
            yield Fit(alpha, part.scores, None, seconds, converged=True)

    def _topics(self, name: str, seed: int) -> Fit:
        from .. import get
        from ..tl._run import arguments

        method, fixed = COMPARED[name]
        given: dict[str, Any] = {"progress": False, "cells": self.scored, "sample_key": self.sample_key}
        given |= dict(zip(method.sides or (), self.contrast.values(), strict=False))
        given |= {"n_topics": self.n_topics, "n_background_topics": self.n_background_topics}
        given |= {**self.options, "mask_var": None, "random_state": seed, "key_added": KEY, **fixed}
        taken = arguments(method.function)
        start = time.perf_counter()
        with warnings.catch_warnings():
            # advice on single fits does not help with a table of many; `converged` is a column
            warnings.simplefilter("ignore", UserWarning)
            method.function(self.adata, **{name: value for name, value in given.items() if name in taken})
        seconds = time.perf_counter() - start
        of_target = get.topics(self.adata, key=KEY)["kind"].isin(method.kinds).to_numpy()
        share = self.adata.obs.get(f"{KEY}_target_share")
        values = get.usage(self.adata, key=KEY, normalize=True).to_numpy()[:, of_target]
        converged = bool(self.adata.uns[KEY]["converged"])
        return Fit(np.nan, values, None if share is None else share.to_numpy(), seconds, converged)


def _copy(adata: AnnData, layer: str | None, options: dict[str, Any]) -> AnnData:
    """Return the genes used, with the values to factorise in X, and for counts a log-normalised layer."""
    from anndata import AnnData

    genes = _anndata.read_genes(adata, options.get("mask_var", "auto"))
    matrix = as_matrix(to_block(in_memory(_anndata.read_matrix(adata, layer)), None, np.float32))
    values = matrix.data if sparse.issparse(matrix) else matrix
    work = AnnData(matrix[:, genes].copy(), obs=adata.obs.copy(), var=adata.var.iloc[genes][[]].copy())
    counts = as_likelihood(options.get("likelihood", "poisson")).counts
    n_invalid = int(values.size - np.isfinite(values).sum())
    matrix_values(_anndata.matrix_name(layer), n_invalid, values.min(initial=0) if counts else 0)
    if counts:
        work.layers[LAYER] = log_normalized(matrix)[:, genes]
    return work


def _leakage_folds(obs: pd.DataFrame, nuisance: str, sample_key: str | None) -> int:
    """Return the number of folds for leakage; raise if a label is too rare to be in all of them."""
    labels = obs[nuisance].astype(str)[obs[nuisance].notna()]
    by_donor = sample_key is not None and sample_key != nuisance
    counts = obs.loc[labels.index].groupby(labels)[sample_key].nunique() if by_donor else labels.value_counts()
    least, what = (FEWEST_DONORS, "donors") if by_donor else (N_FOLDS, "cells")
    if len(counts) < 2 or counts.min() < least:  # noqa: PLR2004
        got = f"{counts.idxmin()!r} with {counts.min()}" if len(counts) > 1 else f"{len(counts)} labels"
        msg = (
            f"`nuisance` must have at least 2 labels with at least {least} {what} each among the cells that are "
            f"scored, got {nuisance!r} with {got}. Merge rare labels, or set them to missing."
        )
        raise UserError(msg)
    return int(min(N_FOLDS, counts.min()))


def _check_folds(adata: AnnData, design: _anndata.Design, sample_key: str | None, *, cross_fit: int | None) -> None:
    """Raise before the first fit if background topics could not be scored on these cells or donors."""
    from .._utils.checks import whole_number
    from ..tl._bcnmf.folds import make_folds

    if cross_fit is not None:
        whole_number("cross_fit", cross_fit, 2)
    samples = None if sample_key is None else _anndata.read_samples(adata, sample_key)
    make_folds(design, samples, cross_fit or N_FOLDS, random_state=0)


def _score(
    values: np.ndarray,
    truth: np.ndarray,
    obs: pd.DataFrame,
    *,
    seed: int,
    n_boot: int,
    nuisance: str | None,
    sample_key: str | None,
    n_folds: int,
) -> dict[str, Any]:
    donors = None if sample_key is None else obs[sample_key].to_numpy()
    index = ari_bootstrap(values, truth, n_boot=n_boot, groups=donors, normalize=False, random_state=seed)
    row: dict[str, Any] = {"ari": index.ari, "ari_se": index.se, "auc": auc(values, truth)}
    if nuisance is not None:
        known = obs[nuisance].notna().to_numpy()
        row["leakage"] = leakage(
            values[known],
            obs[nuisance].to_numpy()[known],
            groups=None if donors is None or sample_key == nuisance else donors[known],
            n_folds=n_folds,
            normalize=False,
            random_state=seed,
        )
    return row


def _auc_share(share: np.ndarray, design: _anndata.Design) -> float:
    one = np.isfinite(share) & (design.target ^ design.background)  # cells in both conditions belong to neither side
    side = design.target[one]
    return auc(share[one], side) if 0 < side.sum() < len(side) else np.nan
