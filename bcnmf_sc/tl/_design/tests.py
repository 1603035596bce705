"""Tests of two groups, as the paper's protocol has them, and what all tests share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Summary:
    """Two groups of independent observations; rows are reference and group."""

    mean: np.ndarray
    variance: np.ndarray
    n: np.ndarray
    linear: np.ndarray
    """Means on the scale that ratios are taken on."""

    @classmethod
    def of(cls, values: np.ndarray, linear: np.ndarray, side: np.ndarray) -> Summary:
        parts = [values[side == s] for s in (0, 1)]
        with warnings.catch_warnings():  # one observation has no variance
            warnings.simplefilter("ignore", RuntimeWarning)
            variance = np.stack([part.var(0, ddof=1) for part in parts])
        n = np.array([len(part) for part in parts], np.float64)
        return cls(
            np.stack([part.mean(0) for part in parts]),
            variance,
            n,
            np.stack([linear[side == s].mean(0) for s in (0, 1)]),
        )

    @property
    def difference(self) -> np.ndarray:
        return self.mean[1] - self.mean[0]

    @property
    def flat(self) -> np.ndarray:
        """Whether there is no variance to test against, up to rounding."""
        return self.variance.sum(0) <= (1e-12 * np.abs(self.mean).max(0)) ** 2

    def welch(self) -> dict[str, np.ndarray]:
        """Welch's t-test of each column, with the interval of the difference."""
        (v0, v1), (n0, n1) = self.variance, self.n
        with np.errstate(divide="ignore", invalid="ignore"):
            error = v0 / n0 + v1 / n1
            df = error**2 / ((v0 / n0) ** 2 / (n0 - 1) + (v1 / n1) ** 2 / (n1 - 1))
            test = stats.ttest_ind_from_stats(
                self.mean[1], np.sqrt(v1), n1, self.mean[0], np.sqrt(v0), n0, equal_var=False
            )
            half = stats.t.ppf(0.975, df) * np.sqrt(error)
        return {"statistic": test.statistic, "p_value": test.pvalue, "half": half}

    def cohen_d(self) -> np.ndarray:
        """Difference over the root of the mean variance."""
        spread = np.sqrt(self.variance.mean(0))
        return np.divide(self.difference, spread, out=np.full(len(spread), np.nan), where=~self.flat)


def adjust(p: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Benjamini-Hochberg over p-values, or over some of them; NaN for the others and for those that are not known."""
    known = np.isfinite(p) if among is None else among & np.isfinite(p)
    adjusted = np.full(len(p), np.nan)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known])
    return adjusted


def pairing(sides: Sequence[Any], names: tuple[str, str], *, asked: bool = False) -> tuple[np.ndarray, bool, str]:
    """Return which donors to test, of those on two sides; whether in pairs; and in words which are left out, if any.

    Donors on both sides are pairs if there are two or more (or if pairs are asked for), and the others are left out.
    One alone is left out: it makes no test in pairs, and among the others it would not be independent.
    """
    both, every = np.intersect1d(*sides), np.union1d(*sides)
    paired = asked or len(both) > 1
    tested = both if paired else np.setdiff1d(every, both)
    n = len(every) - len(tested)
    if not n:
        return tested, paired, ""
    if paired:
        return tested, True, f"{n} pairs have no cells in one of {names[0]!r} and {names[1]!r}; they are left out."
    msg = (
        f"One donor alone has cells in both {names[0]!r} and {names[1]!r}: too few for a test in pairs, and not "
        "independent. It is left out."
    )
    return tested, False, msg


ARRIVED = 1e-4
"""What another Newton step would add to the log-likelihood, at its maximum."""


def likelihood_ratio(x: np.ndarray, label: np.ndarray) -> tuple[float, float, bool]:
    """Test a logistic regression of ``label`` on ``x`` against the intercept alone.

    Returns the likelihood ratio statistic, its p-value and whether ``x`` separates the labels. Where it does,
    completely or but for ties at one value, the coefficient grows without bound, but the likelihood has a limit: that
    of the ties alone.
    """
    low, high = x[label == 0], x[label == 1]
    n = len(x)
    null = _bernoulli(len(high), n)
    if x.max() == x.min():
        return np.nan, np.nan, False
    for one, other in ((low, high), (high, low)):
        if one.max() <= other.min():
            tied = x == one.max()
            best = _bernoulli(int(label[tied].sum()), int(tied.sum())) if one.max() == other.min() else 0.0
            statistic = 2 * (best - null)
            return statistic, float(stats.chi2.sf(statistic, 1)), True
    from statsmodels.discrete.discrete_model import Logit  # slow to import

    z = (x - x.mean()) / x.std()
    model, how = Logit(label, np.column_stack([np.ones(n), z])), {"disp": False, "warn_convergence": False}
    try:
        fit = model.fit(method="newton", maxiter=100, **how)
        slope, reached = model.score(fit.params), fit.llf
        arrived = -slope @ np.linalg.solve(model.hessian(fit.params), slope) < ARRIVED
    except np.linalg.LinAlgError:
        reached, arrived = -np.inf, False
    if not arrived:  # a whole Newton step can lead far off; a simplex finds the maximum in two dimensions
        reached = max(reached, model.fit(method="nm", maxiter=2000, **how).llf)
    statistic = max(2 * (reached - null), 0.0)
    return float(statistic), float(stats.chi2.sf(statistic, 1)), False


def _bernoulli(k: int, n: int) -> float:
    """Largest log-likelihood of k successes in n."""
    return float(sum(m * np.log(m / n) for m in (k, n - k) if m))
