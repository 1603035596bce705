"""Variances of many features shrunk to a prior that they share: limma's empirical Bayes (Smyth 2004)."""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, polygamma

LEAST = 1e-5
"""Of the median variance: smaller ones would have logarithms without bound."""
NEWTON_STEPS = 50


def trigamma_inverse(x: float) -> float:
    """Return the argument at which the trigamma function takes a positive value, by Newton's method."""
    if x > 1e7:  # noqa: PLR2004 (asymptotes at both ends, where Newton's steps lose their digits)
        return 1 / np.sqrt(x)
    if x < 1e-6:  # noqa: PLR2004
        return 1 / x
    y = 0.5 + 1 / x
    for _ in range(NEWTON_STEPS):
        trigamma = polygamma(1, y)
        step = trigamma * (1 - trigamma / x) / polygamma(2, y)
        y += step
        if -step / y < 1e-8:  # noqa: PLR2004
            break
    return float(y)


def fit_prior(variance: np.ndarray, df: float) -> tuple[float, float]:
    """Fit the scaled F distribution of sample variances: their prior variance and its degrees of freedom.

    Matches the mean and the variance of their logarithms. The degrees are infinite where the variances differ by no
    more than sampling, and 0 where there are too few of them to say.
    """
    known = variance[np.isfinite(variance)]
    if len(known) < 2 or not (known > 0).any():  # noqa: PLR2004
        return (float(known[0]) if len(known) else np.nan), 0.0
    logs = np.log(np.maximum(known, LEAST * (np.median(known) or 1.0))) - digamma(df / 2) + np.log(df / 2)
    spread = logs.var(ddof=1) - polygamma(1, df / 2)
    if spread <= 0:
        return float(known.mean()), np.inf
    half = trigamma_inverse(float(spread))
    return float(np.exp(logs.mean() + digamma(half) - np.log(half))), 2 * half


def squeeze(variance: np.ndarray, df: float) -> tuple[np.ndarray, float]:
    """Return the variances shrunk to their prior, and the degrees of freedom of the moderated t.

    These are at most those of all features together.
    """
    prior, prior_df = fit_prior(variance, df)
    pooled = df * np.isfinite(variance).sum()
    if np.isinf(prior_df):
        return np.where(np.isfinite(variance), prior, np.nan), pooled
    return (prior_df * prior + df * variance) / (prior_df + df), min(prior_df + df, pooled)
