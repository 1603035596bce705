"""Scores of cells and topics under models that have not seen them, and what may be called from them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from ..._utils.checks import stack_level
from ..._utils.errors import UserError
from ...engine.bcnmf.ensemble import OutOfFold, cross_fit, shares_of
from .._design import OFFSET, Design, adjust, unit_means
from .strata import (
    adjusted_pvalues,
    comparable_blocks,
    empirical_pvalues,
    standardised_means,
    standardised_shares,
    stratified_rank_test,
    usage_strata,
)

if TYPE_CHECKING:
    from ..._anndata import Data
    from ..._anndata import Design as Roles
    from ...engine import Factors, Run
    from ...engine.bcnmf.ensemble import Model

FEW_BACKGROUND = 100
"""Background cells below which a threshold set on them says little."""


FEW_DONORS = 3
"""Donors of a condition below which they can hardly be told from it."""
MANY_EMPTY = 0.01
"""Share of background cells without counts from which on a fit warns."""
HOMELESS = 0.5
"""Threshold of the target share from which on the background itself needs target topics."""
SIDES = ("target", "background")
EFFECT = ["log2_fold_change", "ci_low", "ci_high"]


def make_folds(roles: Roles, samples: pd.Categorical | None, n_folds: int, random_state: int) -> np.ndarray:
    """Deal the cells out to folds, by donor where samples are given; -1 for cells in no condition.

    Every fold gets donors with target cells and donors with background cells, so that none learns from one side alone.
    Cells without a donor are dealt one by one.
    """
    rng = np.random.default_rng(random_state)
    role = roles.target + 2 * roles.background.astype(int)
    fold = np.full(len(role), -1)
    if samples is None:
        n_target, n_background, n_both = ((role == kind).sum() for kind in (1, 2, 3))
        n_folds = min(n_folds, max(n_target, n_both), max(n_background, n_both))
        if n_folds < 2:  # noqa: PLR2004
            msg = (
                "`background` and `target` must have at least 2 cells each, to learn from some and score others; got "
                f"{roles.background.sum()} and {roles.target.sum()}."
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
            f"some and score others; got {with_target} and {with_background}. Pass `sample_key='cells'` to take cells "
            "as the units."
        )
        raise UserError(msg)
    # In this order donors with target cells are neighbours, and so are donors with background cells: dealt out in
    # turn, either kind reaches every fold.
    turn = np.concatenate([rng.permutation(kinds.index[kinds == kind]) for kind in (1, 3, 2)])
    place = pd.Series(np.arange(len(turn)) % n_folds, index=turn)
    fold[known] = place.loc[samples.codes[known]].to_numpy()
    fold[rng.permutation(unknown)] = np.arange(len(unknown)) % n_folds
    return fold


def deal(roles: Roles, samples: pd.Categorical | None, n_folds: int, random_state: int) -> np.ndarray:
    """Deal the cells out to folds on which they are to be scored; warn where scores will say little."""
    warn_of_background(roles, samples)
    return make_folds(roles, samples, n_folds, random_state)


def score(
    data: Data,
    model: Model,
    factors: Factors,
    fold: np.ndarray,
    topics: pd.DataFrame,
    comparison: Design | None,
    *,
    tested: bool,
    levels: tuple[float, float],
    random_state: int,
    run: Run,
) -> tuple[dict[str, np.ndarray], dict[str, pd.DataFrame]]:
    """Score cells and topics out of fold: cells' shares, calls and p; for the record, topics and donors compared.

    ``levels`` are the false-positive rate of cells and the false discovery rate of topics, which are only called if
    ``tested``.
    """
    cell_fpr, fdr_level = levels
    scores = cross_fit(data.source, model, factors, fold, random_state=random_state, run=run)
    likeness = Likeness.of(scores, data.design, factors.H, model.n_topics, data.labels, random_state)
    cells = score_cells(scores, data.design, factors.H, model.n_topics, cell_fpr, likeness)
    found = call_topics(topics, scores, data.design, comparison, fdr_level if tested else None, likeness)
    warn_of_homeless(found["topics"], scores.share[data.design.background & (likeness.stratum >= 0)], cell_fpr)
    return cells, found


def warn_of_background(roles: Roles, samples: pd.Categorical | None) -> None:
    """Say when scores of the background's cells are too few, or those of few donors."""
    n = int(roles.background.sum())
    if n < FEW_BACKGROUND:
        msg = (
            f"Only {n} background cells: the threshold for calling a cell is a quantile of so few scores, and their "
            "own variation is poorly estimated. Interpret calls and p-values with care."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())
    if samples is not None:
        of_target, of_background = (set(samples[cells].dropna()) for cells in (roles.target, roles.background))
        fewest = min(len(of_target), len(of_background))
        if fewest < FEW_DONORS and not of_target & of_background:
            msg = (
                f"Target and background share no donor, and one has {fewest}: what sets so few donors apart cannot be "
                "told from what sets the conditions apart. Interpret topics and called cells with care."
            )
            warnings.warn(msg, UserWarning, stacklevel=stack_level())


@dataclass(frozen=True)
class Likeness:
    """Which cells are compared with which."""

    stratum: np.ndarray
    """Number of the stratum of each cell; -1 for cells without counts."""
    unmatched: np.ndarray
    """Bool per cell: no background cell is like it."""
    depth: np.ndarray
    """Logarithm of the usage of all topics, which sums to the cell's counts."""

    @classmethod
    def of(
        cls,
        scores: OutOfFold,
        roles: Roles,
        H: np.ndarray,
        n_topics: int,
        labels: pd.Categorical | None,
        random_state: int,
    ) -> Likeness:
        """Put cells into strata of background-topic usage out of fold, or of the ``labels``; warn of empty ones."""
        usage = np.where((scores.fold >= 0)[:, None], scores.usage, shares_of(H))[:, n_topics:]
        total = H.sum(1, dtype=np.float64)
        codes = None if labels is None else labels.codes
        stratum, unmatched = usage_strata(usage, roles.background, labels=codes, random_state=random_state)
        n = int((roles.background & (total == 0)).sum())
        if n > MANY_EMPTY * roles.background.sum():
            msg = (
                f"{n} of {roles.background.sum()} background cells hold nothing but zeros in the genes used. They are "
                "left out of all thresholds and tests. Remove them before the fit."
            )
            warnings.warn(msg, UserWarning, stacklevel=stack_level())
        depth = np.log(np.maximum(total, np.finfo(float).tiny))
        return cls(np.where(total > 0, stratum, -1), unmatched, depth)


def score_cells(
    scores: OutOfFold, roles: Roles, H: np.ndarray, n_topics: int, cell_fpr: float, likeness: Likeness
) -> dict[str, np.ndarray]:
    """Target share, call and p of every cell, against similar background cells that the model has not seen."""
    share = np.where(scores.fold >= 0, scores.share, shares_of(H)[:, :n_topics].sum(1))
    null = roles.background & (scores.fold >= 0)
    excess = standardised_shares(share, null, likeness.stratum, likeness.depth)
    p = empirical_pvalues(excess, excess[null])
    return {
        "target_share": share.astype(np.float32),
        "enriched": p <= cell_fpr,
        "pvalue": p.astype(np.float32),
        "padj": adjusted_pvalues(p, roles.target).astype(np.float32),
    }


def warn_of_homeless(topics: pd.DataFrame, null: np.ndarray, cell_fpr: float) -> None:
    """Say when topics tell target from background, but cells cannot, since the background needs target topics too."""
    threshold = float(np.quantile(null, 1 - cell_fpr))
    if threshold > HOMELESS and topics.loc[topics["kind"] == "target", "called"].any():
        msg = (
            f"{cell_fpr:.0%} of the background's cells have more than {threshold:.0%} of their usage on target "
            "topics, so hardly a cell can be called: something that target and background share has no background "
            "topic. Raise `n_background_topics` ('auto' chooses), or lower `n_topics`."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())


def design_of(data: Data, formula: str | None) -> Design | None:
    """Return the comparison of target and background by donor, or `None` where cells are the units.

    In a ``formula`` the background's column stands for being of the target. Cells that are both count as background.
    """
    roles, samples, asked = data.design, data.samples, data.asked
    if samples is None or asked.sample_key is None:
        if formula is None:
            return None
        msg = f"`design` must come with `sample_key`, the donors that it describes, got {formula!r} without."
        raise UserError(msg)
    target = roles.target & ~roles.background
    if formula is None:
        return Design.two_groups(np.where(target, 1, np.where(roles.background, 0, -1)), samples)
    column = str(asked.background_key)
    role = pd.Categorical(np.where(target, SIDES[0], SIDES[1]), categories=SIDES[::-1])
    used = (target | roles.background) & (samples.codes >= 0)
    obs = data.adata.obs.assign(**{column: role})
    return Design.formula(obs, formula, (column, *SIDES[::-1]), sample_key=asked.sample_key, used=used)


def call_topics(
    topics: pd.DataFrame,
    scores: OutOfFold,
    roles: Roles,
    design: Design | None,
    fdr_level: float | None,
    likeness: Likeness,
) -> dict[str, pd.DataFrame]:
    """Return ``topics`` with how their usage differs between target and background out of fold, and which are called.

    The unit is the donor, with variances moderated over all topics, or without a ``design`` the cell (van Elteren's
    test within folds, strata and depths). Target topics are compared within strata: like with like. Background topics
    make the strata, so they are compared as they are, and by donor only. The donors' means that were compared are
    returned as ``donors``. Without a level there are effects, but no p-values and no calls.
    """
    topics = topics.copy()
    found = {"topics": topics}
    target = (topics["kind"] == "target").to_numpy()
    in_target = roles.target & ~roles.background
    scored = (scores.fold >= 0) & (in_target | roles.background)
    if design is None:
        tested, p = _tests_of_cells(scores.usage, in_target, np.where(scored, scores.fold, -1), target, likeness)
    else:
        means = _means_of_donors(scores.usage, np.where(scored, design.unit, -1), design, in_target, target, likeness)
        tested, p = _tests_of_donors(means, design)
        found["donors"] = pd.concat([design.units, pd.DataFrame(means, columns=list(topics.index))], axis=1)
        found["donors"].index = found["donors"].index.astype(str)
    topics[EFFECT] = tested.to_numpy()
    p, fdr_level = (np.full(len(p), np.nan), 0.0) if fdr_level is None else (p, fdr_level)
    topics["p_value"] = p
    gained = (topics["log2_fold_change"] > 0).to_numpy()
    topics["p_adjusted"], topics["called"] = decide(p, gained, target, fdr_level)
    topics["direction"] = np.where(topics["log2_fold_change"].isna(), "", np.where(gained, "gained", "lost"))
    total = scores.usage[scored & in_target].sum(0, dtype=np.float64)
    alone = scores.usage[scored & in_target & likeness.unmatched].sum(0, dtype=np.float64)
    topics["unmatched"] = np.divide(alone, total, out=np.full(len(total), np.nan), where=target & (total > 0))
    topics["stability"] = scores.stability
    return found


def decide(p: np.ndarray, gained: np.ndarray, target: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return adjusted p-values and which topics are called.

    Two questions are asked: which target topics are gained, and which background topics change. Where nothing does,
    either leads to a call in half of ``level`` of the studies: the first asks for a gain, p of the second are doubled.
    """
    adjusted = np.where(target, adjust(p, target), np.minimum(2 * adjust(p, ~target), 1.0))
    return adjusted, (adjusted <= level) & (gained | ~target)


def _means_of_donors(
    usage: np.ndarray, unit: np.ndarray, design: Design, in_target: np.ndarray, target: np.ndarray, likeness: Likeness
) -> np.ndarray:
    """Mean share of each topic in the cells of each unit; of target topics, as if all units had one composition."""
    means = unit_means(usage, unit, len(design.units))
    alike, _ = standardised_means(usage[:, target], likeness.stratum, unit, len(design.units), in_target)
    means[:, target] = np.where(np.isfinite(alike), alike, means[:, target])
    return means


def _tests_of_donors(means: np.ndarray, design: Design) -> tuple[pd.DataFrame, np.ndarray]:
    """Effect of each topic with its interval, and its p-value; NaN for those that no donor uses."""
    if min(design.n) < 1:
        return pd.DataFrame(np.nan, range(means.shape[1]), EFFECT), np.full(means.shape[1], np.nan)
    effects = design.effects(np.log2(means + OFFSET))
    low, high = effects.interval()
    p = effects.p_value if min(design.n) > 1 else np.full(len(low), np.nan)
    return pd.DataFrame(dict(zip(EFFECT, (effects.estimate, low, high), strict=True))), p


def _tests_of_cells(
    usage: np.ndarray, in_target: np.ndarray, fold: np.ndarray, target: np.ndarray, likeness: Likeness
) -> tuple[pd.DataFrame, np.ndarray]:
    """Effect of each target topic, without an interval, and its p-value over cells; NaN for background topics.

    The effect compares means over the strata's cells on both sides, the strata weighted alike.
    """
    effects, p = pd.DataFrame(np.nan, range(len(target)), EFFECT), np.full(len(target), np.nan)
    unit = np.where(fold >= 0, in_target.astype(int), -1)
    means, n = standardised_means(usage[:, target], likeness.stratum, unit, len(SIDES), in_target)
    if n.all():
        block = comparable_blocks(likeness.stratum, fold, likeness.depth, in_target)
        score = stratified_rank_test(usage[:, target], in_target, block)
        p[target] = 2 * stats.norm.sf(np.abs(score))
        low, high = np.log2(means + OFFSET)
        effects.loc[target, "log2_fold_change"] = high - low
        # the test compares at similar depth: where it points the other way, depth makes the effect, or hides it
        p[target] = np.where(np.sign(score) == np.sign(high - low), p[target], 1.0)
    return effects, p
