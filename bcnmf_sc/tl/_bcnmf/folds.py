"""Scores of cells and topics under models that have not seen them, and what may be called from them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from ..._utils.checks import stack_level
from ..._utils.errors import UserError
from ...engine.bcnmf.ensemble import OutOfFold, cross_fit, shares_of
from .._design import pairing

if TYPE_CHECKING:
    from ..._anndata import Data, Design
    from ...engine import Factors, Run
    from ...engine.bcnmf.ensemble import Model

FEW_BACKGROUND = 100
"""Background cells below which a threshold set on them says little."""


HOMELESS = 0.5
"""Threshold of the target share from which on the background itself needs target topics."""


def make_folds(design: Design, samples: pd.Categorical | None, n_folds: int, random_state: int) -> np.ndarray:
    """Deal the cells out to folds, by donor where samples are given; -1 for cells in no condition.

    Every fold gets donors with target cells and donors with background cells, so that none learns from one side alone.
    Cells without a donor are dealt one by one.
    """
    rng = np.random.default_rng(random_state)
    role = design.target + 2 * design.background.astype(int)
    fold = np.full(len(role), -1)
    if samples is None:
        n_target, n_background, n_both = ((role == kind).sum() for kind in (1, 2, 3))
        n_folds = min(n_folds, max(n_target, n_both), max(n_background, n_both))
        if n_folds < 2:  # noqa: PLR2004
            msg = (
                "`background` and `target` must have at least 2 cells each, to learn from some and score others; got "
                f"{design.background.sum()} and {design.target.sum()}."
            )
            raise UserError(msg)
        for kind in np.unique(role[role > 0]):
            cells = rng.permutation(np.flatnonzero(role == kind))
            fold[cells] = np.arange(len(cells)) % n_folds
        return fold
    known, unknown = ((role > 0) & (samples.codes >= 0)), np.flatnonzero((role > 0) & (samples.codes < 0))
    donors = pd.DataFrame({"donor": samples.codes, "role": role})[known]
    kinds = donors.groupby("donor")["role"].agg(lambda roles: int(np.bitwise_or.reduce(roles.to_numpy())))
    with_target, with_background = int((kinds & 1 > 0).sum()), int((kinds & 2 > 0).sum())
    n_folds = min(n_folds, with_target, with_background)
    if n_folds < 2:  # noqa: PLR2004
        msg = (
            "`sample_key` must name at least 2 donors with target cells and 2 with background cells, to learn from "
            f"some and score others; got {with_target} and {with_background}. Leave it out to deal cells one by one."
        )
        raise UserError(msg)
    # In this order donors with target cells are neighbours, and so are donors with background cells: dealt out in
    # turn, either kind reaches every fold.
    turn = np.concatenate([rng.permutation(kinds.index[kinds == kind]) for kind in (1, 3, 2)])
    place = pd.Series(np.arange(len(turn)) % n_folds, index=turn)
    fold[known] = place.loc[samples.codes[known]].to_numpy()
    fold[rng.permutation(unknown)] = np.arange(len(unknown)) % n_folds
    return fold


def deal(design: Design, samples: pd.Categorical | None, n_folds: int, random_state: int) -> np.ndarray:
    """Deal the cells out to folds on which they are to be scored; warn where scores will say little."""
    warn_of_background(design, samples)
    return make_folds(design, samples, n_folds, random_state)


def score(
    data: Data,
    model: Model,
    factors: Factors,
    fold: np.ndarray,
    topics: pd.DataFrame,
    *,
    fdr_level: float,
    random_state: int,
    run: Run,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Score cells and topics out of fold: cells' shares, calls and p; for the record, topics with their tests."""
    scores = cross_fit(data.source, model, factors, fold, random_state=random_state, run=run)
    cells = score_cells(scores, data.design, factors.H, model.n_topics, fdr_level)
    topics = call_topics(topics, scores, data.design, data.samples, fdr_level)
    warn_of_homeless(topics, scores, data.design, fdr_level)
    return cells, {"topics": topics}


def warn_of_background(design: Design, samples: pd.Categorical | None) -> None:
    """Say when scores of the background's cells are too few, or not comparable."""
    n = int(design.background.sum())
    if n < FEW_BACKGROUND:
        msg = (
            f"Only {n} background cells: the threshold for calling a cell is a quantile of so few scores, and their "
            "own variation is hardly known. Read calls and p-values with care."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())
    if samples is not None:
        shared = set(samples[design.target].dropna()) & set(samples[design.background].dropna())
        if not shared:
            msg = (
                "Target and background share no donor: what sets the donors apart cannot be told from what sets the "
                "conditions apart. See the associations by donor before trusting single cells."
            )
            warnings.warn(msg, UserWarning, stacklevel=stack_level())


def score_cells(
    scores: OutOfFold, design: Design, H: np.ndarray, n_topics: int, fdr_level: float
) -> dict[str, np.ndarray]:
    """Target share, call and empirical p of every cell, against background cells that the model has not seen."""
    share = np.where(scores.fold >= 0, scores.share, shares_of(H)[:, :n_topics].sum(1))
    null = np.sort(share[design.background & (scores.fold >= 0)])
    above = len(null) - np.searchsorted(null, share, side="left")
    return {
        "target_share": share.astype(np.float32),
        "enriched": share > np.quantile(null, 1 - fdr_level),
        "pvalue": ((1 + above) / (1 + len(null))).astype(np.float32),
    }


def warn_of_homeless(topics: pd.DataFrame, scores: OutOfFold, design: Design, fdr_level: float) -> None:
    """Say when topics tell target from background, but cells cannot, since the background needs target topics too."""
    threshold = float(np.quantile(scores.share[design.background & (scores.fold >= 0)], 1 - fdr_level))
    if threshold > HOMELESS and topics["called"].any():
        msg = (
            f"{fdr_level:.0%} of the background's cells have more than {threshold:.0%} of their usage on target "
            "topics, so hardly a cell can be called: something that target and background share has no background "
            "topic. Raise `n_background_topics` ('auto' chooses), or lower `n_topics`."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())


def call_topics(
    topics: pd.DataFrame, scores: OutOfFold, design: Design, samples: pd.Categorical | None, fdr_level: float
) -> pd.DataFrame:
    """Add p, whether a topic is called (its usage separates target from background out of fold), and its stability.

    The unit is the donor where samples are given (Welch's t, or paired where donors are in both conditions: see
    `pairing`), else the cell (Mann-Whitney on ranks within folds). One-sided, Benjamini-Hochberg over topics.
    """
    n_topics = scores.usage.shape[1]
    scored = scores.fold >= 0
    sides = [design.target & scored & ~design.background, design.background & scored]
    if samples is None:
        p = np.array([_separation_of_cells(usage, scores.fold, *sides) for usage in scores.usage.T])
    else:
        sides = [side & (samples.codes >= 0) for side in sides]
        donors, paired, left_out = pairing([samples.codes[side] for side in sides], ("target", "background"))
        if left_out:
            warnings.warn(left_out, UserWarning, stacklevel=stack_level())
        means = [pd.DataFrame(scores.usage[side]).groupby(samples.codes[side]).mean() for side in sides]
        means = [table[table.index.isin(donors)] for table in means]
        p = _separation_of_donors(*means, paired=paired)
    known = np.isfinite(p)
    called = np.zeros(n_topics, bool)
    if known.any():
        called[known] = stats.false_discovery_control(p[known]) <= fdr_level
    topics = topics.copy()
    background = len(topics) - n_topics
    topics["p_value"] = np.append(p, np.full(background, np.nan))
    topics["called"] = np.append(called, np.zeros(background, bool))
    topics["stability"] = np.append(scores.stability, np.full(background, np.nan))
    return topics


def _separation_of_cells(usage: np.ndarray, fold: np.ndarray, target: np.ndarray, background: np.ndarray) -> float:
    if not (target.any() and background.any()):
        return np.nan
    rank = np.full(len(usage), np.nan)
    for one in np.unique(fold[fold >= 0]):
        cells = fold == one
        rank[cells] = stats.rankdata(usage[cells]) / cells.sum()
    return float(stats.mannwhitneyu(rank[target], rank[background], alternative="greater").pvalue)


def _separation_of_donors(target: pd.DataFrame, background: pd.DataFrame, *, paired: bool) -> np.ndarray:
    if min(len(target), len(background)) < 2:  # noqa: PLR2004
        return np.full(target.shape[1], np.nan)
    if paired:
        return np.asarray(stats.ttest_rel(target, background, alternative="greater").pvalue)
    return np.asarray(stats.ttest_ind(target, background, equal_var=False, alternative="greater").pvalue)
