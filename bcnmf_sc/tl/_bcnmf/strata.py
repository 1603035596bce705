"""Compare like with like: strata of cells that are alike in what target and background share.

Where the target has more of a cell type that both have, target topics learn its fine structure, and differ between the
conditions for its frequency alone. Cells are therefore compared with cells of similar background-topic usage, and at a
similar depth, since the shares of few counts are noisy.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

N_STRATA = 8
"""Strata of background-topic usage, at most."""
PER_STRATUM = 25
"""Background cells for each stratum, on average, at least."""
BLOCK = 6
"""Cells of a block in which ranks are compared, at least: few of similar depth, which leave no trend with it."""
PRIOR = 5
"""Cells that the other strata are worth where the variance of a stratum is estimated, or its mean in a donor."""
OFFSET = 1e-3
"""Added to shares before their logarithm is taken."""
MANY = 20_000
"""Background cells from which strata are learned, at most."""
FAR = 0.99
"""Quantile of the background cells' distances to their strata beyond which a cell has none like it."""


def usage_strata(
    usage: np.ndarray, background: np.ndarray, *, labels: np.ndarray | None = None, random_state: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Put every cell into a stratum of background cells, and say which cells no background cell is like.

    Strata are clusters of the background cells (k-means of the square roots of the proportions) or their ``labels``
    (numbers, -1 where unknown). Every other cell belongs to the label it has, or to the nearest stratum where the
    background has no such label, so that each stratum holds background cells.

    Parameters
    ----------
    usage
        Usage of the background topics, cells x topics.
    background
        Bool per cell; some of them must use a background topic.

    Returns
    -------
    The stratum of each cell, and a bool per cell.
    """
    total = usage.sum(1, keepdims=True)
    uses = (total > 0)[:, 0]
    root = np.sqrt(np.divide(usage, total, out=np.zeros(usage.shape), where=total > 0))
    own = background & uses
    kinds = np.empty(0, int) if labels is None else np.unique(labels[own & (labels >= 0)])
    if len(kinds) and labels is not None:
        centers = np.stack([root[own & (labels == kind)].mean(0) for kind in kinds])
    else:
        centers = _centers(root[own], random_state)
    square = np.square(centers).sum(1) - 2 * root @ centers.T  # and the cell's own, 1, where it uses any
    stratum, distance = square.argmin(1), square.min(1)
    unmatched = ~uses | (distance > np.quantile(distance[own], FAR))
    if len(kinds) and labels is not None:
        labelled = np.isin(labels, kinds)
        stratum = np.where(labelled, np.searchsorted(kinds, labels), stratum)
        unmatched = ~labelled
    return stratum, unmatched


def _centers(root: np.ndarray, random_state: int) -> np.ndarray:
    """Learn centres of clusters, as many as the cells allow."""
    if len(root) > MANY:
        root = root[np.sort(np.random.default_rng(random_state).choice(len(root), MANY, replace=False))]
    distinct = len(np.unique(root.round(6), axis=0))
    n_strata = max(1, min(N_STRATA, len(root) // PER_STRATUM, distinct))
    if n_strata == 1:
        return np.asarray(root.mean(0, keepdims=True))
    from sklearn.cluster import KMeans  # slow to import

    return np.asarray(KMeans(n_strata, n_init=4, random_state=random_state).fit(root).cluster_centers_)


def comparable_blocks(stratum: np.ndarray, fold: np.ndarray, depth: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cut each stratum of each fold into blocks of similar depth; -1 for cells in none.

    A block has at least `BLOCK` cells, one of each side among them if the stratum has any: where one side is deeper
    throughout, it is compared with the deepest of the other.
    """
    block, n_blocks = np.full(len(stratum), -1), 0
    used = np.flatnonzero((stratum >= 0) & (fold >= 0))
    order = used[np.lexsort((depth[used], fold[used], stratum[used]))]
    changes = np.diff(stratum[order]) | np.diff(fold[order])
    for group in np.split(order, np.flatnonzero(changes) + 1):
        block[group] = n_blocks + np.array(_cut(target[group].tolist()), int)
        n_blocks = block[group].max(initial=n_blocks) + 1
    return block


def _cut(target: list[bool]) -> list[int]:
    """Assign the cells, in their order, to blocks; what is left at the end joins the last block."""
    number, block, size, n_target = [], 0, 0, 0
    for of_target in target:
        number.append(block)
        size, n_target = size + 1, n_target + of_target
        if size >= BLOCK and 0 < n_target < size:
            block, size, n_target = block + 1, 0, 0
    if size and block:
        number[-size:] = [block - 1] * size
    return number


def stratified_rank_test(values: np.ndarray, target: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Compare target and other cells by their ranks within blocks (van Elteren), with locally optimal weights.

    Returns a standard normal score for each column of ``values``, positive where the target's are higher; NaN where no
    block has cells of both sides that differ.
    """
    used = block >= 0
    if not used.any():
        return np.full(values.shape[1], np.nan)
    values, target, (_, block) = values[used], target[used], np.unique(block[used], return_inverse=True)
    n, n_target = np.bincount(block), np.bincount(block, target)
    weight = 1 / (n + 1)
    score = np.full(values.shape[1], np.nan)
    for k, column in enumerate(values.T):
        centred = _ranks(column, block, n) - (n[block] + 1) / 2
        spread = np.bincount(block, centred**2, len(n)) / np.maximum(n - 1, 1) / n
        variance = (weight**2 * n_target * (n - n_target) * spread).sum()
        if variance > 0:
            score[k] = (weight[block] * centred)[target].sum() / np.sqrt(variance)
    return score


def _ranks(values: np.ndarray, block: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Rank values within blocks, from 1; ties share their mean rank."""
    order = np.lexsort((values, block))
    place = np.arange(len(values)) - (np.cumsum(n) - n)[block[order]] + 1.0
    new = np.append(True, (np.diff(values[order]) != 0) | (np.diff(block[order]) != 0))
    tie = np.cumsum(new) - 1
    ranks = np.empty(len(values))
    ranks[order] = (np.bincount(tie, place) / np.bincount(tie))[tie]
    return ranks


def standardised_shares(
    share: np.ndarray, background: np.ndarray, stratum: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Set each cell's share against those of the background cells of its stratum, at its depth.

    The residual of the log share is taken from the mean of the stratum and one slope on ``depth`` (log counts), over
    the standard deviation of a new cell of the stratum. Fewer counts make shares larger by chance, so a slope upwards
    is that of the cells and left alone. Means are shrunk to that of all strata by empirical Bayes,
    variances by a few cells' worth, and a background cell is left out of its own, so that cells that were not seen in
    them compare with it. NaN for cells in no stratum.
    """
    used = stratum >= 0
    s, y, x, null = stratum[used], np.log(share[used] + OFFSET), depth[used], background[used]
    n_strata = int(s.max(initial=0)) + 1
    result = np.full(len(share), np.nan)
    if not null.any():
        return result
    own = np.bincount(s[null], minlength=n_strata)[s]
    others = own - null

    def totals(values: np.ndarray) -> np.ndarray:
        """Sum over the background cells of each cell's stratum."""
        return np.bincount(s[null], values[null], n_strata)[s]

    def shrunk(values: np.ndarray, prior: float, weight: float) -> np.ndarray:
        """Mean over the other background cells of each cell's stratum, shrunk to the mean of all."""
        total = weight * (totals(values) - null * values) + prior * values[null].mean()
        return total / (weight * others + prior)

    centred = x - totals(x) / np.maximum(own, 1)
    spread = (centred[null] ** 2).sum()
    slope = (centred[null] @ y[null]) / spread if spread > 0 else 0.0
    y = y - x * min(slope, 0.0)
    mean = totals(y) / np.maximum(own, 1)
    occupied = len(np.unique(s[null]))
    within = ((y - mean)[null] ** 2).sum() / max(null.sum() - occupied, 1) + np.finfo(float).tiny
    between = max(mean[null].var() - within * (occupied - 1) / null.sum(), 0.0)
    residual = (y - shrunk(y, within, between)) / np.sqrt(1 + between / (between * others + within))
    result[used] = residual / np.sqrt(shrunk(residual**2, PRIOR, 1) + np.finfo(float).tiny)
    return result


def empirical_pvalues(scores: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Share of the null's scores that are at least as high, the cell's own counted; NaN for cells without a score."""
    null = np.sort(null[np.isfinite(null)])
    above = len(null) - np.searchsorted(null, scores, side="left")
    return np.where(np.isfinite(scores), (1 + above) / (1 + len(null)), np.nan)


def adjusted_pvalues(p: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Adjust by Benjamini and Hochberg over some of the p-values; NaN for the others."""
    adjusted = np.full(len(p), np.nan)
    among = among & np.isfinite(p)
    if among.any():
        adjusted[among] = stats.false_discovery_control(p[among])
    return adjusted


def standardised_means(
    values: np.ndarray, stratum: np.ndarray, unit: np.ndarray, n_units: int, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each unit (donor and condition) as if all were composed of the strata alike.

    Stratum means of a unit are weighted by common weights, largest where both sides have cells. A unit's stratum mean
    is shrunk towards what its other cells and the other units make expect, and is this where it has no cells.

    Parameters
    ----------
    values
        Cells x features, such as out-of-fold shares.
    stratum, unit
        Number per cell; cells with -1 in either are left out.
    target
        Bool per cell; the cells of a unit are all of one side.

    Returns
    -------
    Means, units x features, and the number of cells with which a plain mean would be as precise, per unit. NaN and 0
    for units without cells.
    """
    used = (unit >= 0) & (stratum >= 0)
    n_strata = int(stratum.max(initial=0)) + 1
    cell = unit[used].astype(np.intp) * n_strata + stratum[used]
    n = np.bincount(cell, minlength=n_units * n_strata).reshape(n_units, n_strata)
    sums = np.stack(
        [np.bincount(cell, column, n_units * n_strata).reshape(n.shape) for column in values[used].astype(float).T], -1
    )
    occupied = n.sum(1) > 0
    side = np.bincount(unit[used], target[used], n_units) > 0
    parts = [occupied & side, occupied & ~side]
    parts = [part for part in parts if part.any()]
    if not parts:
        return np.full((n_units, values.shape[1]), np.nan), np.zeros(n_units)
    composition = [(n[part] / n[part].sum(1, keepdims=True)).mean(0) for part in parts]
    weight = 1 / np.sum([1 / np.maximum(one, 1e-300) for one in composition], axis=0)
    weight /= weight.sum()
    # Of each stratum, the mean of what it is on either side, so that neither side's program is imputed to the other.
    means = np.stack([sums[part].sum(0) / np.maximum(n[part].sum(0), 1)[:, None] for part in parts])
    present = np.stack([n[part].any(0) for part in parts])[:, :, None]
    expected = (means * present).sum(0) / np.maximum(present.sum(0), 1)
    predicted = n @ expected
    ratio = np.divide(sums.sum(1), predicted, out=np.ones_like(predicted), where=predicted > 0)
    prior = PRIOR * expected[None] * ratio[:, None]
    standard = ((sums + prior) / (n[..., None] + PRIOR) * weight[:, None]).sum(1)
    standard[~occupied] = np.nan
    precision = np.where(occupied, 1 / (weight**2 / np.maximum(n, 1)).sum(1), 0.0)
    return standard, np.minimum(precision, n.sum(1))
