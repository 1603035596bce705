"""Linear models of many features at once over units that may be correlated in blocks and measured unequally well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

from .moderation import squeeze

SHARES = np.linspace(0, 0.95, 11)
"""Correlations in a block, and parts of the variance that fall with the number of cells, that are averaged over."""
FEW = 2
"""Power of the prior (1 - part)^FEW: the number of cells matters little until the units show that it does."""
INDEPENDENT = 4
"""Features that all of them are worth at most: shares of a donor sum to one, and genes of a donor go together."""
FLAT = 1e-12
"""Residual deviation, relative to the largest value, below which a feature does not vary."""


@dataclass(frozen=True)
class Effects:
    """A contrast of each feature."""

    estimate: np.ndarray
    error: np.ndarray
    """Standard error by the moderated variance."""
    deviation: np.ndarray
    """Of a unit, by the moderated variance."""
    df: float
    """Degrees of freedom of the moderated t; NaN where nothing is left to estimate a variance from."""

    @property
    def statistic(self) -> np.ndarray:
        """Moderated t."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.estimate / self.error

    @property
    def p_value(self) -> np.ndarray:
        """Two-sided p-value."""
        return np.asarray(2 * stats.t.sf(np.abs(self.statistic), self.df))

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence interval of the estimate."""
        half = stats.t.ppf((1 + level) / 2, self.df) * self.error
        return self.estimate - half, self.estimate + half


def moderated(
    y: np.ndarray, X: np.ndarray, contrast: np.ndarray, *, block: np.ndarray | None = None, n: np.ndarray | None = None
) -> Effects:
    """Estimate a contrast of each feature by generalised least squares, with moderated variances.

    All features have the covariance of `learn_covariance` up to a factor of their own.
    """
    covariance = learn_covariance(y, X, block=block, n=n)
    estimate, unscaled, variance, df = least_squares(y, X, contrast, covariance)
    if df < 1:
        return Effects(estimate, variance, variance, np.nan)
    variance, total = squeeze(variance, df)
    total = min(total, INDEPENDENT * df)
    return Effects(estimate, np.sqrt(variance * unscaled), np.sqrt(variance), total)


def least_squares(
    y: np.ndarray, X: np.ndarray, contrast: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray, int]:
    """Return the estimate of each feature, its variance at unit variance, the residual variances and their df.

    The residual variance of a feature that does not vary is NaN.
    """
    white = linalg.cholesky(covariance, lower=True)
    y_, X_ = (linalg.solve_triangular(white, values, lower=True) for values in (y, X))
    inverse = np.linalg.pinv(X_)
    weight = contrast @ inverse
    residual = y_ - X_ @ (inverse @ y_)
    df = len(y) - int(np.linalg.matrix_rank(X_))
    if df < 1:
        return weight @ y_, float(weight @ weight), np.full(y.shape[1], np.nan), 0
    sums = (residual**2).sum(0)
    flat = sums <= (FLAT * np.abs(y_).max(0)) ** 2 * len(y)
    return weight @ y_, float(weight @ weight), np.where(flat, np.nan, sums / df), df


def learn_covariance(
    y: np.ndarray, X: np.ndarray, *, block: np.ndarray | None = None, n: np.ndarray | None = None
) -> np.ndarray:
    """Return the covariance of the units, up to a factor, that all features together suggest.

    Units of a block are correlated, and a part of the variance of a unit is that of a mean of ``n`` cells. Both shares
    are unknown: the covariance is averaged over them by their residual likelihood, so that few units, which say little,
    do not lead to an extreme. The consensus of all features is that of limma's ``duplicateCorrelation``.
    """
    alone = np.eye(len(y))
    together = alone if block is None else (block[:, None] == block).astype(float)
    cells = np.ones(len(y)) if n is None else 1 / n
    correlations = SHARES if (together.sum(0) > 1).any() else [0.0]
    parts = SHARES if np.ptp(cells) > 0 else [0.0]
    shares = [(correlation, part) for correlation in correlations for part in parts]
    tried = [
        (1 - part) * (alone + correlation * (together - alone)) + part * np.diag(cells / cells.mean())
        for correlation, part in shares
    ]
    if len(tried) == 1:
        return tried[0]
    likelihood = INDEPENDENT * np.array([residual_likelihood(y, X, covariance) for covariance in tried])
    likelihood += FEW * np.log1p([-part for _, part in shares])
    weight = np.exp(likelihood - likelihood.max())
    return np.asarray(np.tensordot(weight / weight.sum(), np.stack(tried), 1))


def residual_likelihood(y: np.ndarray, X: np.ndarray, covariance: np.ndarray) -> float:
    """Mean residual log-likelihood of the features, each with its own variance, at a covariance up to a factor."""
    white = linalg.cholesky(covariance, lower=True)
    y_, X_ = (linalg.solve_triangular(white, values, lower=True) for values in (y, X))
    U, s, _ = np.linalg.svd(X_, full_matrices=False)
    U, s = U[:, s > s[0] * 1e-10], s[s > s[0] * 1e-10]
    sums = ((y_ - U @ (U.T @ y_)) ** 2).sum(0)
    sums = sums[sums > (FLAT * np.abs(y_).max(0)) ** 2 * len(y)]
    df = len(y) - len(s)
    if df < 1 or not len(sums):
        return 0.0
    log_determinant = 2 * np.log(np.diag(white)).sum() + 2 * np.log(s).sum()
    return float(-0.5 * (df * np.log(sums).mean() + log_determinant))
