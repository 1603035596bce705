"""Scores of a representation of cells: arrays in, numbers out. Public as `bcnmf_sc.metrics`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from .._utils.checks import random_seed, seed_32, whole_number
from .._utils.errors import UserError
from ..engine.bcnmf.ensemble import shares_of

N_STARTS = 10
"""Number of k-means initialisations."""


class BootstrapARI(NamedTuple):
    """An adjusted Rand index with its bootstrap standard error."""

    ari: float
    """Index of the clusters of all cells."""
    se: float
    """Bootstrap standard error: the standard deviation over the resamples; NaN if it cannot be computed."""
    samples: np.ndarray
    """Index of each resample."""


def proportions(usage: np.ndarray) -> np.ndarray:
    """Divide each cell's usage by its sum; cells without usage keep zeros.

    Parameters
    ----------
    usage
        Cells x topics, non-negative.

    Returns
    -------
    Array of the same shape, float64.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> bc.metrics.proportions([[1, 3], [0, 0]]).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    values = _points("usage", usage)
    if (values < 0).any():
        msg = "`usage` must be non-negative to be converted to proportions. Pass `normalize=False` for signed scores."
        raise UserError(msg)
    return shares_of(values)


def ari_bootstrap(
    usage: np.ndarray,
    labels: np.ndarray,
    *,
    n_clusters: int | None = None,
    n_boot: int = 20,
    groups: np.ndarray | None = None,
    normalize: bool = True,
    random_state: int = 0,
) -> BootstrapARI:
    """Compute the adjusted Rand index of k-means clusters against labels, with its bootstrap standard error.

    Follows the protocol of the paper: the index is that of k-means (10 starts) on the usage of all cells; for its
    standard error, cells are drawn with replacement, clustered again and scored, `n_boot` times. With `groups`, whole
    groups are drawn, and the standard error is over donors: drawing cells of one donor independently makes it too
    small.

    Parameters
    ----------
    usage
        Cells x topics (or components).
    labels
        Label of each cell.
    n_clusters
        Number of clusters; the number of labels by default.
    n_boot
        Number of resamples; 0 gives no standard error (NaN).
    groups
        Donor (mouse, batch) of each cell. With a single donor, there is no standard error (NaN).
    normalize
        Whether to cluster proportions. False for scores that may be negative, such as principal components.
    random_state
        Seed of k-means and of the resamples.

    Returns
    -------
    Named tuple `(ari, se, samples)`.

    Examples
    --------
    >>> import numpy as np
    >>> import bcnmf_sc as bc
    >>> labels = np.repeat([0, 1], 50)
    >>> usage = np.random.default_rng(0).gamma(1.0, size=(100, 2)) + 9 * np.eye(2)[labels]
    >>> round(bc.metrics.ari_bootstrap(usage, labels).ari, 2)
    1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score
    from threadpoolctl import threadpool_limits

    points = proportions(usage) if normalize else _points("usage", usage)
    truth = _codes("labels", labels, len(points))
    k = len(np.unique(truth)) if n_clusters is None else n_clusters
    whole_number("n_clusters", k, 1, len(points), "the number of cells")
    whole_number("n_boot", n_boot, 0)
    random_seed(random_state)
    members = None
    if groups is not None:
        group = _codes("groups", groups, len(points))
        members = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    rng = np.random.default_rng(random_state)

    def score(cells: np.ndarray, seed: int) -> float:
        n_distinct = len(np.unique(points[cells], axis=0))
        with threadpool_limits(1):  # tables of a few columns: threading overhead exceeds the computation
            found = KMeans(min(k, n_distinct), n_init=N_STARTS, random_state=seed).fit_predict(points[cells])
        return float(adjusted_rand_score(truth[cells], found))

    samples = []
    for seed in rng.integers(2**31, size=n_boot):
        if members is None:
            cells = rng.integers(len(points), size=len(points))
        else:
            cells = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        samples.append(score(cells, int(seed)))
    known = n_boot > 1 and (members is None or len(members) > 1)
    se = float(np.std(samples, ddof=1)) if known else np.nan
    return BootstrapARI(score(np.arange(len(points)), seed_32(random_state)), se, np.array(samples))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Compute the area under the ROC curve: how well a score, or the best single topic, separates labels.

    For a vector of scores, it is the probability that a cell with the label scores higher than a cell without. For a
    matrix, it is that of the best column, in either direction; as the best of several, selected by the labels, it
    exceeds 0.5 even by chance. With more than two labels, it is the mean over labels of each against the rest.

    Parameters
    ----------
    scores
        One score per cell, or cells x topics.
    labels
        Two or more labels; for a vector two, of which the larger one, or True, is the positive one.

    Returns
    -------
    Number from 0 to 1; 0.5 is chance for a vector.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> bc.metrics.auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    from scipy.stats import rankdata

    values = np.asarray(scores, np.float64)
    single = values.ndim == 1
    values = _points("scores", values[:, None] if single else values)
    truth = _codes("labels", labels, len(values))
    n_labels = truth.max() + 1
    if n_labels < 2:  # noqa: PLR2004
        msg = "`labels` must contain at least 2 different labels, got 1."
        raise UserError(msg)
    if single and n_labels > 2:  # noqa: PLR2004
        msg = f"`labels` must be two for a single score, got {n_labels}. Pass one label against the rest."
        raise UserError(msg)
    ranks = rankdata(values, axis=0)
    areas = []
    for label in [1] if n_labels == 2 else range(n_labels):  # noqa: PLR2004
        positive = truth == label
        n = int(positive.sum())
        area = (ranks[positive].sum(0) - n * (n + 1) / 2) / (n * (len(truth) - n))
        areas.append(area[0] if single else np.maximum(area, 1 - area).max())
    return float(np.mean(areas))


def matched_cosine(loadings: np.ndarray, reference: np.ndarray) -> float:
    """Compute the mean cosine between topics and reference topics, matched one to one (Hungarian algorithm).

    If the numbers of topics differ, those of the smaller set are matched. Scale does not matter.

    Parameters
    ----------
    loadings, reference
        Genes x topics, the same genes in the same order.

    Returns
    -------
    Mean cosine over the matched pairs, at most 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bcnmf_sc as bc
    >>> bc.metrics.matched_cosine(2 * np.eye(3)[:, [2, 0, 1]], np.eye(3))
    1.0
    """
    one, other = _points("loadings", loadings), _points("reference", reference)
    if len(one) != len(other):
        msg = f"`loadings` and `reference` must have the same genes, got {len(one)} and {len(other)}."
        raise UserError(msg)
    lengths = [np.linalg.norm(part, axis=0) for part in (one, other)]
    product = np.outer(*lengths)
    cosine = np.divide(one.T @ other, product, out=np.zeros_like(product), where=product > 0)
    return float(cosine[linear_sum_assignment(cosine, maximize=True)].mean())


def contrast_ratio(usage: np.ndarray, background: np.ndarray) -> float:
    """Compute the variance of the target's usage proportions relative to that of the background's.

    A topic that varies as much in the background as in the target gives 1, and is not informative about the target.
    The ratio is that of the total variances over all topics given. For principal components it is what contrastive PCA
    optimises; it is not evidence of quality, as a large alpha raises it regardless of the structure found.

    Parameters
    ----------
    usage
        Usage proportions (or scores) of the target's cells, cells x topics.
    background
        The same for the background's cells.

    Returns
    -------
    Ratio, at least 0; infinite if the background does not vary.

    Examples
    --------
    >>> import numpy as np
    >>> import bcnmf_sc as bc
    >>> rng = np.random.default_rng(0)
    >>> bool(3 < bc.metrics.contrast_ratio(2 * rng.normal(size=(500, 3)), rng.normal(size=(500, 3))) < 5)
    True
    """
    varied = []
    for name, part in (("usage", usage), ("background", background)):
        points = _points(name, part)
        if len(points) < 2:  # noqa: PLR2004
            msg = f"`{name}` must have at least 2 cells for a variance, got {len(points)}."
            raise UserError(msg)
        varied.append(float(points.var(0, ddof=1).sum()))
    return varied[0] / varied[1] if varied[1] > 0 else np.inf


def leakage(
    usage: np.ndarray,
    nuisance: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    n_folds: int = 5,
    normalize: bool = True,
    random_state: int = 0,
) -> float:
    """Compute how well a nuisance label (batch, laboratory, cell line) can be predicted from the usage.

    It is the cross-validated area under the ROC curve of a logistic regression of the nuisance label on the
    standardised proportions, averaged over labels, each against the rest: 0.5 for no (linear) leakage, 1 if the label
    can be predicted for every cell. It is on the same scale as the AUC of the labels of interest.

    Parameters
    ----------
    usage
        Cells x topics (or components).
    nuisance
        Nuisance label of each cell.
    groups
        Donor of each cell; folds then hold out whole donors. Each label needs at least
        `n_folds` donors.
    n_folds
        Number of folds.
    normalize
        Whether to use proportions instead of values.
    random_state
        Seed of the folds.

    Returns
    -------
    Number from 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import bcnmf_sc as bc
    >>> usage = np.random.default_rng(0).gamma(1.0, size=(200, 3))
    >>> batch = np.tile(["a", "b"], 100)
    >>> bool(0.35 < bc.metrics.leakage(usage, batch) < 0.65)
    True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    points = proportions(usage) if normalize else _points("usage", usage)
    truth = _codes("nuisance", nuisance, len(points))
    group = None if groups is None else _codes("groups", groups, len(points))
    whole_number("n_folds", n_folds, 2)
    random_seed(random_state)
    counts = np.bincount(truth)
    if group is not None:
        counts = np.array([len(np.unique(group[truth == label])) for label in range(len(counts))])
    if len(counts) < 2 or counts.min() < n_folds:  # noqa: PLR2004
        what = "cells" if group is None else "groups"
        msg = (
            f"`nuisance` must have at least 2 labels with at least `n_folds={n_folds}` {what} each, got "
            f"{len(counts)} labels, the smallest with {counts.min()}."
        )
        raise UserError(msg)
    folds = StratifiedKFold if group is None else StratifiedGroupKFold
    splits = folds(n_folds, shuffle=True, random_state=seed_32(random_state))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probability = cross_val_predict(model, points, truth, groups=group, cv=splits, method="predict_proba")
    labels = [1] if len(counts) == 2 else range(len(counts))  # noqa: PLR2004
    return float(np.mean([auc(probability[:, label], truth == label) for label in labels]))


def _points(name: str, values: np.ndarray) -> np.ndarray:
    points = np.asarray(values, np.float64)
    if points.ndim != 2 or not points.size or not np.isfinite(points).all():  # noqa: PLR2004
        msg = f"`{name}` must be a table (two dimensions) of finite numbers, got shape {points.shape}."
        raise UserError(msg)
    return points


def _codes(name: str, labels: np.ndarray, n: int) -> np.ndarray:
    import pandas as pd

    codes, _ = pd.factorize(np.asarray(labels), sort=True)
    if len(codes) != n or (codes < 0).any():
        missing = int((codes < 0).sum())
        msg = f"`{name}` must have a value for each of the {n} cells, got {len(codes)}, {missing} of them missing."
        raise UserError(msg)
    return codes
