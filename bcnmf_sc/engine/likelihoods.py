"""Likelihoods: one small, self-contained class each.

A likelihood defines its loss (half the deviance, so that it is zero at a perfect fit) and the two non-negative terms of
multiplicative updates, ``d loss / d mu = n - p``. It depends on values and expected values only, not on cells, sparsity
or device. The classes work on NumPy arrays and torch tensors alike. Those in ``__all__`` are public as
`bcnmf_sc.likelihoods`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import array_api_compat
import numpy as np
import scipy.special

from .._utils.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Gaussian", "Likelihood", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]
LikelihoodName = Literal["gaussian", "poisson", "nb", "zinb"]
NKind = Literal["one", "mu", "full"]
Kernel = Literal["products", "ratio", "linear", "overdispersed"]
ESTIMATE: Literal["estimate"] = "estimate"
DISPERSION_BOUNDS = (1e-2, 1e4)
"""Bounds of estimated dispersions; above, a negative binomial is practically Poisson."""
DROPOUT_BOUNDS = (1e-4, 0.95)
Array = Any
"""A NumPy array or a torch tensor."""


def parameter(*, least: float = 0.0, most: float = np.inf, start: float | None = None) -> dict[str, Any]:
    """Return the field metadata of a likelihood's parameter.

    A number must lie between ``least`` and ``most``. With ``start``, it may be ``"estimate"``: it is then estimated per
    gene on the target's cells during the fit, starting from there.
    """
    return {"least": least, "most": most, "start": start}


@dataclass(frozen=True)
class Likelihood(ABC):
    """Base class of all likelihoods.

    ``likelihood=`` accepts the name of a likelihood or, to set its parameters, an instance.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> bc.likelihoods.NegativeBinomial(dispersion=2.0).parameters()
    {'dispersion': 2.0}
    """

    name: ClassVar[str]
    counts: ClassVar[bool] = True
    """Whether the data should be whole numbers."""
    n_kind: ClassVar[NKind] = "full"
    """Form of the term n: 1 everywhere, mu itself (then p is x), or any other. It determines the size of the sums
    ``n' H`` in the kernels: topics, topics x topics, or genes x topics."""
    kernel: ClassVar[Kernel] = "products"
    """Kernel for sparse data. ``"products"`` supports any terms. The others are faster: ``"ratio"`` for
    ``p = x / mu``, ``n = 1`` and Poisson's loss; ``"linear"`` for ``p = x``, ``n = mu`` and squared error;
    ``"overdispersed"`` for the terms of a negative binomial with a ``dispersion`` and, optionally, a ``dropout``.
    """
    n_evidence: ClassVar[int] = 0
    """Number of sums over cells used to refine its parameters; 0 if none can be estimated."""

    def __post_init__(self) -> None:
        """Raise if a parameter is not as declared; per-gene parameters are checked when a fit starts."""
        values = {each.name: getattr(self, each.name) for each in _declared(self)}
        for each in _declared(self):
            if np.ndim(value := values[each.name]) == 0 and not _allowed(each, value):
                msg = f"`{each.name}` must be {_rule(each)}, got {value!r}."
                raise UserError(msg)
        some = [values[each.name] for each in _declared(self) if _estimable(each)]
        if self.estimated and not all(isinstance(value, str) for value in some):
            got = ", ".join(f"{name}={value!r}" for name, value in values.items())
            msg = f"`{'` and `'.join(values)}` must all be numbers or all be {ESTIMATE!r}, got {got}."
            raise UserError(msg)

    @abstractmethod
    def n(self, x: Array, mu: Array) -> Array:
        """Return the term n that decreases ``mu``: non-negative."""

    @abstractmethod
    def loss(self, x: Array, mu: Array) -> Array:
        """Return half the deviance of ``x`` at expectation ``mu``."""

    def p(self, x: Array, mu: Array) -> Array:
        """Return the term p that increases ``mu``: non-negative, zero where ``x`` is."""
        return x / mu

    def mass(self, x: Array) -> Array:
        """Return the mass of values, by which ``alpha_effective`` puts target and background on one scale."""
        return x

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return the terms to sum over cells for `refined`."""
        return ()

    def refined(self, evidence: np.ndarray, n_cells: float) -> Self:
        """Return the likelihood with its per-gene parameters updated by one step."""
        return self

    def parameters(self) -> dict[str, Array]:
        """Return the parameters by name, each a scalar or one value per gene."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def at(self, genes: Array) -> Self:
        """Return the likelihood for a subset of genes: subsets per-gene parameters."""
        own = {name: value[genes] for name, value in self.parameters().items() if np.ndim(value)}
        return replace(self, **own) if own else self

    @property
    def estimated(self) -> bool:
        """Whether its parameters are estimated during a fit."""
        return any(isinstance(value, str) for value in self.parameters().values())

    def started(self, n_genes: int) -> Self:
        """Return the likelihood with the initial parameters of a fit of so many genes."""
        numbers: dict[str, Array] = {}
        for each in _declared(self):
            value = getattr(self, each.name)
            if np.ndim(value) == 0:
                numbers[each.name] = each.metadata["start"] if isinstance(value, str) else float(value)
                continue
            numbers[each.name] = per_gene = np.asarray(value, np.float32)
            if per_gene.shape != (n_genes,) or not _allowed(each, per_gene):
                got = f"{per_gene.shape} from {per_gene.min(initial=np.inf):g} to {per_gene.max(initial=-np.inf):g}"
                msg = f"`{each.name}` must be {_rule(each)}, or such a number for each of {n_genes} genes, got {got}."
                raise UserError(msg)
        return replace(self, **numbers) if numbers else self


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Squared error, for images, proteins and other values that are not counts (paper, section 4.1).

    ``loss = (x - mu)^2 / 2``, ``p = x``, ``n = mu``.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.digits()
    >>> bc.tl.nmf(adata, n_topics=3, tol=1e-2, likelihood=bc.likelihoods.Gaussian())
    """

    name: ClassVar[str] = "gaussian"
    counts: ClassVar[bool] = False
    n_kind: ClassVar[NKind] = "mu"
    kernel: ClassVar[Kernel] = "linear"

    def p(self, x: Array, mu: Array) -> Array:
        """Return ``x``."""
        return x

    def n(self, x: Array, mu: Array) -> Array:
        """Return ``mu``."""
        return mu

    def loss(self, x: Array, mu: Array) -> Array:
        """Return half the squared error."""
        return (x - mu) ** 2 / 2

    def mass(self, x: Array) -> Array:
        """Return ``x^2``."""
        return x * x


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts with variance equal to their mean (paper, section S1.1).

    ``p = x / mu``, ``n = 1``.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(n_target=100, n_background=50, n_genes=80)
    >>> bc.tl.nmf(adata, n_topics=3, tol=1e-2, likelihood=bc.likelihoods.Poisson())
    """

    name: ClassVar[str] = "poisson"
    n_kind: ClassVar[NKind] = "one"
    kernel: ClassVar[Kernel] = "ratio"

    def n(self, x: Array, mu: Array) -> Array:
        """Return ones."""
        return array_api_compat.array_namespace(mu).ones_like(mu)

    def loss(self, x: Array, mu: Array) -> Array:
        """Return the generalised Kullback-Leibler divergence."""
        return _x_log_ratio(x, mu) - x + mu


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    r"""Counts with variance above their mean (paper, section S1.2).

    ``p = x / mu``, ``n = (x + theta) / (mu + theta)`` with the dispersion ``theta``.

    Parameters
    ----------
    dispersion
        Theta, with variance ``mu + mu^2 / theta``: a number for all genes, as in the paper, or one per gene used.
        ``"estimate"`` fits one per gene on the target's cells.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(n_target=100, n_background=50, n_genes=80)
    >>> bc.tl.nmf(adata, n_topics=3, tol=5e-2, likelihood=bc.likelihoods.NegativeBinomial(dispersion=2.0))
    >>> float(adata.var["nmf_dispersion"].iloc[0])
    2.0
    """

    dispersion: Array = field(default=ESTIMATE, metadata=parameter(start=1.0))

    name: ClassVar[str] = "nb"
    kernel: ClassVar[Kernel] = "overdispersed"
    n_evidence: ClassVar[int] = 2

    def n(self, x: Array, mu: Array) -> Array:
        """Return ``(x + theta) / (mu + theta)``."""
        return (x + self.dispersion) / (mu + self.dispersion)

    def loss(self, x: Array, mu: Array) -> Array:
        """Return half the deviance at this dispersion."""
        xp = array_api_compat.array_namespace(mu)
        base = mu + self.dispersion
        ratio = (x - mu) / base  # near 0 the terms nearly cancel, near -1 single precision is insufficient
        log_ratio = xp.where(ratio < -0.5, xp.log((x + self.dispersion) / base), xp.log1p(xp.clip(ratio, -0.5, None)))  # noqa: PLR2004
        return _x_log_ratio(x, mu) - (x + self.dispersion) * log_ratio

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return the first and second derivative of the log-likelihood in ``log theta``."""
        return _theta_derivatives(x, mu, self.dispersion)

    def refined(self, evidence: np.ndarray, n_cells: float) -> NegativeBinomial:
        """Do one Newton step of every gene's ``log theta``, from the evidence summed over cells."""
        return NegativeBinomial(_theta_step(self.dispersion, *evidence))


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(Likelihood):
    r"""Negative binomial counts with dropout (paper, section S1.3).

    A zero is a count (not a dropout) with probability ``omega = (1 - pi) q / (pi + (1 - pi) q)``, where
    ``q = (theta / (theta + mu))^theta``; its ``n`` is ``omega theta / (mu + theta)``. Elsewhere p and n are those of
    the negative binomial.

    Parameters
    ----------
    dispersion
        Theta, as in `NegativeBinomial`.
    dropout
        Pi, the probability that a count drops out: a number for all genes, one per gene used, or ``"estimate"``.
        Either both parameters are given or both are estimated.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(n_target=100, n_background=50, n_genes=80)
    >>> likelihood = bc.likelihoods.ZeroInflatedNegativeBinomial(dispersion=2.0, dropout=0.1)
    >>> bc.tl.nmf(adata, n_topics=3, tol=5e-2, likelihood=likelihood)
    """

    dispersion: Array = field(default=ESTIMATE, metadata=parameter(start=1.0))
    dropout: Array = field(default=ESTIMATE, metadata=parameter(most=1.0, start=0.1))

    name: ClassVar[str] = "zinb"
    kernel: ClassVar[Kernel] = "overdispersed"
    n_evidence: ClassVar[int] = 3

    def n(self, x: Array, mu: Array) -> Array:
        """Return the term of the negative binomial, at zeros times the probability of not being a dropout."""
        n = mu / self.dispersion  # step by step, in place: this dominates the run time of a fit
        dropout = self._over_q(n)
        n += 1
        dropout *= self._odds(x, mu)
        dropout += 1
        n *= dropout
        return (1 + x / self.dispersion) / n

    def loss(self, x: Array, mu: Array) -> Array:
        """Return half the deviance at this dispersion and dropout."""
        xp = array_api_compat.array_namespace(mu)
        log_q = -self.dispersion * xp.log1p(mu / self.dispersion)
        zero = -xp.log(self.dropout + (1 - self.dropout) * xp.exp(log_q))
        return xp.where(x > 0, NegativeBinomial(self.dispersion).loss(x, mu), zero)

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return the derivatives in ``log theta``, weighted by the probability of no dropout, and that of dropout."""
        omega = self._omega(x, mu)
        slope, curvature = _theta_derivatives(x, mu, self.dispersion)
        return omega * slope, omega * curvature, 1 - omega

    def refined(self, evidence: np.ndarray, n_cells: float) -> ZeroInflatedNegativeBinomial:
        """Do one EM step: a Newton step of ``log theta``, and the mean probability of dropout."""
        slope, curvature, dropouts = evidence
        dropout = np.clip(dropouts / n_cells, *DROPOUT_BOUNDS).astype(np.float32)
        return ZeroInflatedNegativeBinomial(_theta_step(self.dispersion, slope, curvature), dropout)

    def _omega(self, x: Array, mu: Array) -> Array:
        """Return the probability that a value is a count and not a dropout."""
        return 1 / (1 + self._odds(x, mu) * self._over_q(mu / self.dispersion))

    def _odds(self, x: Array, mu: Array) -> Array:
        """Return the prior odds of a dropout, zero for non-zero values."""
        xp = array_api_compat.array_namespace(mu)
        return xp.where(x > 0, 0.0, self.dropout / (1 - self.dropout))

    def _over_q(self, ratio: Array) -> Array:
        """Return ``1 / q`` from ``mu / theta``, finite in single precision, accurate for any dispersion."""
        xp = array_api_compat.array_namespace(ratio)
        with np.errstate(over="ignore"):
            return xp.clip(xp.exp(self.dispersion * xp.log1p(ratio)), None, 1e30)


def _declared(likelihood: Likelihood) -> list[Field[Any]]:
    """Return the fields that are declared as parameters."""
    return [each for each in fields(likelihood) if each.metadata]


def _estimable(each: Field[Any]) -> bool:
    return each.metadata["start"] is not None


def _allowed(each: Field[Any], value: Any) -> bool:
    """Whether a value, or all of an array, is valid for a parameter."""
    if isinstance(value, str):
        return _estimable(each) and value == ESTIMATE
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | np.ndarray):
        return False
    return bool(np.all((each.metadata["least"] < value) & (value < each.metadata["most"])))


def _rule(each: Field[Any]) -> str:
    least, most = each.metadata["least"], each.metadata["most"]
    rule = f"a number above {least:g}" if most == np.inf else f"a number between {least:g} and {most:g}"
    return rule + (f", or {ESTIMATE!r}" if _estimable(each) else "")


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


LIKELIHOODS: Mapping[str, type[Likelihood]] = {each.name: each for each in Likelihood.__subclasses__()}
"""The likelihoods of this module, by name."""


def as_likelihood(given: object) -> Likelihood:
    """Return a likelihood by its name, or the object given."""
    if isinstance(given, Likelihood):
        return given
    if isinstance(given, str) and given in LIKELIHOODS:
        return LIKELIHOODS[given]()
    names = ", ".join(map(repr, LIKELIHOODS))
    msg = f"`likelihood` must be one of {names} or an object of `bcnmf_sc.likelihoods`, got {given!r}."
    raise UserError(msg)
