"""Whether a background is fit to be one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Unpack

import numpy as np
import pandas as pd
from scipy import stats

from ..._anndata import Reading
from ..._depth import depth_ratio
from ..._utils.checks import number, whole_number
from ...engine.bcnmf import ensemble
from .._run import no_checkpoint, run_settings
from .donors import BY_CELL, unnamed_donors
from .folds import FEW_BACKGROUND, make_folds
from .problem import CANNOT_TELL, DEEPER, MAX_SUPPRESSED, Problem, one_alpha, warn_of_logs
from .select import summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ..._anndata import Data, Design, MaskVar
    from .._run import Likelihood, LikelihoodName, RunOptions


def background_check(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str],
    target: str | Sequence[str] | None = None,
    n_topics: int = 5,
    n_background_topics: int = 10,
    alpha: float = 0.3,
    sample_key: str | None = None,
    confounders: Sequence[str] = (),
    likelihood: LikelihoodName | Likelihood = "poisson",
    layer: str | None = None,
    mask_var: MaskVar = "auto",
    random_state: int = 0,
    key_added: str = "bcnmf",
    copy: bool = False,
    **run: Unpack[RunOptions],
) -> AnnData | None:
    """Ask whether a background is fit to be one, before anything is made of its contrast.

    Parameters
    ----------
    adata, background_key, background, target, likelihood, layer, mask_var, random_state, copy, **run
        As in `bcnmf`, without ``checkpoint``.
    n_topics, n_background_topics
        Numbers of target and background topics of the fit to check.
    alpha
        Effective alpha at which suppressed genes are counted.
    sample_key
        Column with the donor of each cell, or ``"cells"``, as in `bcnmf`.
    confounders
        Further columns of ``adata.obs`` (batch, laboratory, sex, ...) that should not tell target from background.
    key_added
        The result is stored under this name with ``_background_check`` behind it.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set:

    ``.uns[key_added + "_background_check"]`` : DataFrame
        A row per check: ``check``, ``value``, ``verdict`` (``good``, ``caution``, ``bad``) and what it means, in words.
    ``.uns[key_added + "_background_check_design"]`` : dict
        ``background_key``, ``background``, ``target`` and ``layer``: what was checked.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.background_check(adata, background_key="condition", background="ctrl", n_background_topics=4, tol=1e-2)
    >>> adata.uns["bcnmf_background_check"]["verdict"].iloc[0]  # 400 cells: good from 500 on
    'caution'
    """
    whole_number("n_background_topics", n_background_topics, 1)
    one_alpha(background)
    no_checkpoint(run)
    number("alpha", alpha)
    by_cell = sample_key == BY_CELL
    asked = Reading(
        key_added,
        copy,
        background_key,
        background,
        target,
        sample_key=None if by_cell else sample_key,
        confounders=confounders,
        likelihood=likelihood,
        layer=layer,
        mask_var=mask_var,
        sizes={"n_topics": n_topics},
        n_background_topics=n_background_topics,
        random_state=random_state,
        run=run,
    )
    problem = Problem.read(adata, asked)
    data = problem.data
    warn_of_logs(data)
    rows = [*_check_size(data), *_check_donors(data, by_cell=by_cell), *_check_spread(data)]
    rows.append(_check_suppressed(problem, alpha))
    rows += _check_gain(problem, n_topics, n_background_topics)
    rows += [_check_confounder(name, column, data.design) for name, column in data.confounders.items()]
    table = pd.DataFrame(rows, columns=["check", "value", "verdict", "meaning"])
    return data.note({"_background_check": table, "_background_check_design": data.question})


Row = tuple[str, float, str, str]
FEW_TARGET = FEW_BACKGROUND
"""Target cells up to which little is known of what is learned on them."""


LEAST_COUNTS, LEAST_GENES = 100, 50
"""Counts of a gene on either side, and such genes, from which on profiles are compared."""
SMALL_CHANGE = 1.05
"""Change of the median gene from which on it may be that of a batch."""
THIN = 4
"""Ratio of the 95 % quantile of changes to the median up to which changes are spread over all genes."""


def _verdict(value: float, good: float, bad: float) -> str:
    """Good on one side of a bound, bad beyond another; which side follows from their order."""
    rising = good > bad
    if (value >= good) if rising else (value <= good):
        return "good"
    return "bad" if ((value <= bad) if rising else (value >= bad)) else "caution"


def _check_size(data: Data) -> list[Row]:
    design = data.design
    n_target, n_background = int(design.target.sum()), int(design.background.sum())
    return [
        (
            "background cells",
            float(n_background),
            _verdict(n_background, 10 * FEW_BACKGROUND // 2, FEW_BACKGROUND),
            f"{n_background} cells ({n_background / n_target:.2g} for each target cell): background topics and the "
            "threshold for calling cells are learned on them.",
        ),
        (
            "target cells",
            float(n_target),
            _verdict(n_target, 10 * FEW_TARGET // 2, FEW_TARGET),
            f"{n_target} cells: target topics are learned on them, and tested out of fold on parts of them.",
        ),
        _check_depth(data),
    ]


def _check_donors(data: Data, *, by_cell: bool) -> list[Row]:
    design, samples = data.design, data.samples
    unnamed = unnamed_donors(data.adata.obs, design) if samples is None and not by_cell else None
    if unnamed is not None:
        n = float(data.adata.obs[unnamed][design.target | design.background].nunique())
        what = f"obs[{unnamed!r}] looks like the donors. Name it in `sample_key`, or no topic will be called."
        return [("donors not named", n, "bad", what)]
    if samples is None:
        return []
    in_target, in_background = (set(samples[cells].dropna()) for cells in (design.target, design.background))
    shared = len(in_target & in_background)
    return [
        (
            "background donors",
            float(len(in_background)),
            _verdict(len(in_background), 5, 2),
            f"{len(in_background)} donors in the background, {len(in_target)} in the target: tests by donor need "
            "several in each.",
        ),
        (
            "shared donors",
            float(shared),
            "good" if shared else "caution",
            f"{shared} donors are in both. Without shared donors, what sets donors apart looks like what sets "
            "conditions apart.",
        ),
    ]


def _check_depth(data: Data) -> Row:
    """Compare depth, in counts wherever they are found."""
    target, background = data.design.target, data.design.background
    if data.whole:
        depth = float(data.sums[0].sum() / target.sum() / (data.sums[1:].sum() / background.sum()))
    else:
        layer = None if data.asked.layer is None else str(data.asked.layer)
        depth = depth_ratio(data.adata, target, background, layer=layer, logged=data.logged)
    if np.isnan(depth):
        return (
            "depth",
            depth,
            "caution",
            "Depth cannot be seen in normalised values, and there are no counts in a layer 'counts' or in `adata.raw`. "
            "Normalisation does not remove the effect of depth: check it on counts.",
        )
    fold = max(depth, 1 / depth) if depth else np.inf
    return (
        "depth",
        depth,
        _verdict(fold, DEEPER, 2 * DEEPER),
        f"A target cell holds {depth:.2g} times as many counts as a background cell. Cells are compared at similar "
        f"depth; from a {DEEPER:g}-fold difference on, topics can still be called because of depth alone. "
        "`bcnmf_sc.pp.match_depth` thins the deeper side.",
    )


def _check_spread(data: Data) -> list[Row]:
    """Compare the mean profiles: a program changes some genes much, a batch all a little.

    The median gene's log ratio, with the error of its counts taken out, is set against the 95 % quantile: in a normal
    distribution of log ratios, as a batch has, this is 2.9 times as large, and far larger where few genes change. No
    row where too few genes have counts on both sides.
    """
    target, background = data.sums[0], data.sums[1:].sum(0)
    known = np.minimum(target, background) >= LEAST_COUNTS
    if known.sum() < LEAST_GENES or not data.whole:
        return []
    target, background = target[known], background[known]
    ratio = np.log2(target / background)
    size = np.abs(ratio - np.median(ratio))
    error = stats.norm.ppf(0.75) * np.median(np.sqrt(1 / target + 1 / background)) / np.log(2)
    typical, large = float(np.sqrt(max(np.median(size) ** 2 - error**2, 0))), float(np.quantile(size, 0.95))
    thin = typical >= np.log2(SMALL_CHANGE) and large <= THIN * np.median(size)
    meaning = (
        f"Beyond the error of counts, half of the genes differ {2**typical:.2f}-fold or more between target and "
        f"background, and 5 % {2**large:.2g}-fold. "
    )
    meaning += (
        "Small changes of most genes are what a batch or another composition leaves."
        if thin
        else "A batch would change most genes by a little."
    )
    return [("genome-wide difference", 2**typical, "caution" if thin else "good", meaning)]


def _check_suppressed(problem: Problem, alpha: float) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is the row below
        contrast = problem.contrast(dict.fromkeys(problem.data.design.backgrounds, alpha), "effective", pooled=True)
    in_target = problem.data.mass[0] > 0
    lost = float((contrast.suppressed & in_target).sum() / in_target.sum()) if contrast.suppressed is not None else 0.0
    return (
        "suppressed genes",
        lost,
        _verdict(lost, MAX_SUPPRESSED / 2, MAX_SUPPRESSED),
        f"{lost:.1%} of the target's genes make up more than {1 / alpha if alpha else np.inf:.2g} times as large a "
        f"share of the background: a contrast at alpha {alpha:g} takes them out.",
    )


def _check_gain(problem: Problem, n_topics: int, n_background_topics: int) -> list[Row]:
    data = problem.data
    nothing = problem.contrast(dict.fromkeys(data.design.backgrounds, 0.0), "effective", pooled=True)
    fold_seed, fit_seed = ensemble.spawn(data.asked.random_state, 2)
    fold = make_folds(data.design, data.samples, ensemble.N_SELECT_FOLDS, fold_seed)
    model = problem.model(nothing, n_topics, n_background_topics, "split")
    settings = run_settings(data.asked.run, accelerate=True)
    found = summary(ensemble.select(data.source, [model], fold, random_state=fit_seed, run=settings)[0])
    by_background = found["explained_target"] - found["gain_target"]
    own = found["explained_background"] - found["gain_background"]
    share = by_background / own if own > 0 else 0.0
    ratio = found["gain_ratio"]
    return [
        (
            "target explained by background topics",
            by_background,
            _verdict(share, 0.7, 0.3),
            f"{n_background_topics} topics of the background explain {by_background:.1%} of the deviance of "
            f"held-out target cells, and {own:.1%} of the background's own: this much is shared.",
        ),
        (
            "held-out gain ratio",
            ratio,
            _verdict(ratio, 3, 1.2),
            f"Target topics give held-out target cells {ratio:.3g} times what they give held-out background cells. "
            f"Near 1, there is nothing in the target that the background does not have. Above, {CANNOT_TELL[0].lower()}"
            f"{CANNOT_TELL[1:]}",
        ),
    ]


def _check_confounder(name: str, column: pd.Categorical, design: Design) -> Row:
    """Cramer's V between a column and the condition."""
    used = (design.target ^ design.background) & (column.codes >= 0)
    counts = pd.crosstab(column.codes[used], design.target[used])
    v = float(stats.contingency.association(counts.to_numpy(), method="cramer")) if min(counts.shape) > 1 else 0.0
    return (
        f"confounded with {name}",
        v,
        _verdict(v, 0.3, 0.9),
        f"Cramer's V of {v:.2f} between {name!r} and the condition (1: one cannot be told from the other).",
    )
