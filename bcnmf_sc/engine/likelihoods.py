"""What the data are thought to be: one small class per likelihood.

A likelihood states its loss (half the deviance, so that it is zero at a perfect fit) and the two non-negative terms
that multiplicative updates are made of, ``d loss / d mu = n - p``. It sees values and expected values only: no cells,
no sparsity, no device. The classes work on NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import array_api_compat
import numpy as np
import scipy.special

if TYPE_CHECKING:
    from collections.abc import Mapping

NKind = Literal["one", "mu", "full"]
DISPERSION_BOUNDS = (1e-2, 1e4)
"""Estimated dispersions lie between; above, a negative binomial is as good as Poisson."""
DROPOUT_BOUNDS = (1e-4, 0.95)
Array = Any
"""A NumPy array or a torch tensor."""


class Likelihood(Protocol):
    """What the solver and the kernels ask of a likelihood."""

    name: ClassVar[str]
    counts: ClassVar[bool]
    """Whether the data must be whole numbers."""
    n_kind: ClassVar[NKind]
    """What the term n is: 1 everywhere, mu itself (then p is x), or anything. It tells the kernels how small the sums
    ``n' H`` can be kept: topics, topics x topics, or genes x topics numbers."""

    def p(self, x: Array, mu: Array) -> Array:
        """Pull ``mu`` up: non-negative, zero where ``x`` is."""
        ...

    def n(self, x: Array, mu: Array) -> Array:
        """Pull ``mu`` down: non-negative."""
        ...

    def loss(self, x: Array, mu: Array) -> Array:
        """Half the deviance of ``x`` at expectation ``mu``."""
        ...

    def mass(self, x: Array) -> Array:
        """Return what a value weighs when ``alpha_effective`` puts target and background on one scale."""
        ...

    def at(self, genes: Array) -> Likelihood:
        """Return the likelihood for values of these genes only: takes the per-gene parameters, where there are any."""
        ...

    n_evidence: ClassVar[int]
    """How many sums over cells its own parameters are refined from; 0 where it has none."""

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return what to sum over cells for `refined`."""
        ...

    def refined(self, evidence: np.ndarray, n_cells: float) -> Likelihood:
        """Return the likelihood with its parameters, one for each gene, a step closer to the data."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Squared error (paper, section 4.1): ``loss = (x - mu)^2 / 2``, ``p = x``, ``n = mu``."""

    name: ClassVar[str] = "gaussian"
    counts: ClassVar[bool] = False
    n_kind: ClassVar[NKind] = "mu"
    n_evidence: ClassVar[int] = 0

    def p(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return x

    def n(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return mu

    def loss(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return (x - mu) ** 2 / 2

    def mass(self, x: Array) -> Array:  # noqa: D102
        return x * x

    def at(self, genes: Array) -> Gaussian:  # noqa: D102
        return self

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:  # noqa: D102
        return ()

    def refined(self, evidence: np.ndarray, n_cells: float) -> Gaussian:  # noqa: D102
        return self


@dataclass(frozen=True)
class Poisson:
    """Counts whose variance is their mean (paper, section S1.1): ``p = x / mu``, ``n = 1``."""

    name: ClassVar[str] = "poisson"
    counts: ClassVar[bool] = True
    n_kind: ClassVar[NKind] = "one"
    n_evidence: ClassVar[int] = 0

    def p(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return x / mu

    def n(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return array_api_compat.array_namespace(mu).ones_like(mu)

    def loss(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return _x_log_ratio(x, mu) - x + mu

    def mass(self, x: Array) -> Array:  # noqa: D102
        return x

    def at(self, genes: Array) -> Poisson:  # noqa: D102
        return self

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:  # noqa: D102
        return ()

    def refined(self, evidence: np.ndarray, n_cells: float) -> Poisson:  # noqa: D102
        return self


@dataclass(frozen=True)
class NegativeBinomial:
    """Counts with variance ``mu + mu^2 / theta`` (paper, section S1.2).

    ``p = x / mu``, ``n = (x + theta) / (mu + theta)``.
    """

    theta: Array = 1.0
    """Dispersion, of all genes or of each."""

    name: ClassVar[str] = "nb"
    counts: ClassVar[bool] = True
    n_kind: ClassVar[NKind] = "full"
    n_evidence: ClassVar[int] = 2

    def p(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return x / mu

    def n(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return (x + self.theta) / (mu + self.theta)

    def loss(self, x: Array, mu: Array) -> Array:  # noqa: D102
        xp = array_api_compat.array_namespace(mu)
        base = mu + self.theta
        ratio = (x - mu) / base  # near 0 where the terms nearly cancel, near -1 where single precision ends
        log_ratio = xp.where(ratio < -0.5, xp.log((x + self.theta) / base), xp.log1p(xp.clip(ratio, -0.5, None)))  # noqa: PLR2004
        return _x_log_ratio(x, mu) - (x + self.theta) * log_ratio

    def mass(self, x: Array) -> Array:  # noqa: D102
        return x

    def at(self, genes: Array) -> NegativeBinomial:  # noqa: D102
        return NegativeBinomial(_of(self.theta, genes))

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """First and second derivative of the log-likelihood in ``log theta``."""
        return _theta_derivatives(x, mu, self.theta)

    def refined(self, evidence: np.ndarray, n_cells: float) -> NegativeBinomial:
        """One Newton step of every gene's ``log theta``, from the evidence summed over cells."""
        return NegativeBinomial(_theta_step(self.theta, *evidence))


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial:
    """Negative binomial counts that drop out with probability ``pi`` (paper, section S1.3).

    A zero is a count with probability ``omega = (1 - pi) q / (pi + (1 - pi) q)``, where
    ``q = (theta / (theta + mu))^theta``; its ``n`` is ``omega theta / (mu + theta)``. Elsewhere p and n
    are the negative binomial's.
    """

    theta: Array = 1.0
    """Dispersion, of all genes or of each."""
    pi: Array = 0.1
    """Probability of dropout, of all genes or of each."""

    name: ClassVar[str] = "zinb"
    counts: ClassVar[bool] = True
    n_kind: ClassVar[NKind] = "full"
    n_evidence: ClassVar[int] = 3

    def p(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return x / mu

    def n(self, x: Array, mu: Array) -> Array:  # noqa: D102
        n = mu / self.theta  # step by step, in place: this is where the time of a fit goes
        dropout = self._over_q(n)
        n += 1
        dropout *= self._odds(x, mu)
        dropout += 1
        n *= dropout
        return (1 + x / self.theta) / n

    def loss(self, x: Array, mu: Array) -> Array:  # noqa: D102
        xp = array_api_compat.array_namespace(mu)
        log_q = -self.theta * xp.log1p(mu / self.theta)
        zero = -xp.log(self.pi + (1 - self.pi) * xp.exp(log_q))
        return xp.where(x > 0, NegativeBinomial(self.theta).loss(x, mu), zero)

    def mass(self, x: Array) -> Array:  # noqa: D102
        return x

    def at(self, genes: Array) -> ZeroInflatedNegativeBinomial:  # noqa: D102
        return ZeroInflatedNegativeBinomial(_of(self.theta, genes), _of(self.pi, genes))

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return derivatives in ``log theta`` of what is no dropout, and the probability of being one."""
        omega = self._omega(x, mu)
        slope, curvature = _theta_derivatives(x, mu, self.theta)
        return omega * slope, omega * curvature, 1 - omega

    def refined(self, evidence: np.ndarray, n_cells: float) -> ZeroInflatedNegativeBinomial:
        """One step of expectation maximisation: a Newton step of ``log theta``, the mean probability of dropout."""
        slope, curvature, dropouts = evidence
        pi = np.clip(dropouts / n_cells, *DROPOUT_BOUNDS).astype(np.float32)
        return ZeroInflatedNegativeBinomial(_theta_step(self.theta, slope, curvature), pi)

    def _omega(self, x: Array, mu: Array) -> Array:
        """Probability that a value is a count and no dropout."""
        return 1 / (1 + self._odds(x, mu) * self._over_q(mu / self.theta))

    def _odds(self, x: Array, mu: Array) -> Array:
        """Return the odds of a dropout before the value is seen, zero where it is not zero."""
        xp = array_api_compat.array_namespace(mu)
        return xp.where(x > 0, 0.0, self.pi / (1 - self.pi))

    def _over_q(self, ratio: Array) -> Array:
        """Return ``1 / q`` from ``mu / theta``, finite in single precision, right for any dispersion."""
        xp = array_api_compat.array_namespace(ratio)
        with np.errstate(over="ignore"):
            return xp.clip(xp.exp(self.theta * xp.log1p(ratio)), None, 1e30)


def _of(parameter: Array, genes: Array) -> Array:
    return parameter if np.ndim(parameter) == 0 else parameter[genes]


def _x_log_ratio(x: Array, mu: Array) -> Array:
    """``x log(x / mu)``, zero where ``x`` is."""
    xp = array_api_compat.array_namespace(mu)
    return x * xp.log(xp.where(x > 0, x, mu) / mu)


def _theta_derivatives(x: Array, mu: Array, theta: Array) -> tuple[Array, Array]:
    """Return the derivatives of the negative binomial's log-likelihood in ``log theta``.

    In double precision: for a large theta the terms nearly cancel.
    """
    xp = array_api_compat.array_namespace(mu)
    special: Any = xp.special if array_api_compat.is_torch_array(mu) else scipy.special
    device = array_api_compat.device(mu)
    x, mu, theta = (xp.asarray(each, dtype=xp.float64, device=device) for each in (x, mu, theta))
    q = theta / (theta + mu)
    r = (x + theta) / (mu + theta)
    slope = special.digamma(x + theta) - special.digamma(theta) + xp.log(q) + 1 - r
    curvature = (
        special.polygamma(1, x + theta) - special.polygamma(1, theta) + (1 / theta) * (1 - q) - (1 - r) / (mu + theta)
    )
    return theta * slope, theta * slope + theta**2 * curvature


def _theta_step(theta: Array, slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    step = np.where(curvature < 0, -slope / np.minimum(curvature, -1e-12), np.sign(slope))
    return np.clip(theta * np.exp(np.clip(step, -1, 1)), *DISPERSION_BOUNDS).astype(np.float32)


LIKELIHOODS: Mapping[str, type[Likelihood]] = {
    each.name: each for each in (Gaussian, Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial)
}
