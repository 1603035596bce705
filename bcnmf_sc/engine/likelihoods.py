"""What the data are thought to be: one small class per likelihood.

A likelihood states its loss (half the deviance, so that it is zero at a perfect fit) and the two non-negative terms that
multiplicative updates are made of, ``d loss / d mu = n - p``. It sees values and expected values only: no cells, no sparsity,
no device. The classes work on NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import array_api_compat

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = Any
"""A NumPy array or a torch tensor."""


class Likelihood(Protocol):
    """What the solver and the kernels ask of a likelihood."""

    name: ClassVar[str]
    counts: ClassVar[bool]
    """Whether the data must be whole numbers."""
    n_kind: ClassVar[Literal["one", "mu", "full"]]
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
        """What a value weighs when ``alpha_effective`` puts target and background on one scale."""
        ...

    def at(self, genes: Array) -> Likelihood:
        """Return the likelihood for values of these genes only: takes the per-gene parameters, where there are any."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Squared error (paper, section 4.1): ``loss = (x - mu)^2 / 2``, ``p = x``, ``n = mu``."""

    name: ClassVar[str] = "gaussian"
    counts: ClassVar[bool] = False
    n_kind: ClassVar[Literal["one", "mu", "full"]] = "mu"

    def p(self, x: Array, mu: Array) -> Array:  # noqa: ARG002, D102
        return x

    def n(self, x: Array, mu: Array) -> Array:  # noqa: ARG002, D102
        return mu

    def loss(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return (x - mu) ** 2 / 2

    def mass(self, x: Array) -> Array:  # noqa: D102
        return x * x

    def at(self, genes: Array) -> Gaussian:  # noqa: ARG002, D102
        return self


@dataclass(frozen=True)
class Poisson:
    """Counts whose variance is their mean (paper, section S1.1): ``p = x / mu``, ``n = 1``."""

    name: ClassVar[str] = "poisson"
    counts: ClassVar[bool] = True
    n_kind: ClassVar[Literal["one", "mu", "full"]] = "one"

    def p(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return x / mu

    def n(self, x: Array, mu: Array) -> Array:  # noqa: ARG002, D102
        return array_api_compat.array_namespace(mu).ones_like(mu)

    def loss(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return _x_log_ratio(x, mu) - x + mu

    def mass(self, x: Array) -> Array:  # noqa: D102
        return x

    def at(self, genes: Array) -> Poisson:  # noqa: ARG002, D102
        return self


def _x_log_ratio(x: Array, mu: Array) -> Array:
    """``x log(x / mu)``, zero where ``x`` is."""
    xp = array_api_compat.array_namespace(mu)
    return x * xp.log(xp.where(x > 0, x, mu) / mu)


LIKELIHOODS: Mapping[str, type[Likelihood]] = {"gaussian": Gaussian, "poisson": Poisson}
