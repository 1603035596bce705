"""Several modalities under one likelihood each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from .likelihoods import Array, Likelihood, NKind


@dataclass(frozen=True)
class Joint:
    """Several modalities of the same cells, side by side: every gene has the likelihood and the weight of its own.

    The loss is ``sum_m w_m L_m``, so ``p`` and ``n`` are each modality's times its weight. NumPy only.
    """

    parts: tuple[Likelihood, ...]
    """A likelihood for each modality; parameters per gene are over that modality's genes."""
    weights: tuple[float, ...]
    part: np.ndarray
    """Number of each gene's modality."""
    estimate: bool = False
    """Whether the parts' parameters are to be estimated."""

    name: ClassVar[str] = "joint"
    counts: ClassVar[bool] = False
    n_kind: ClassVar[NKind] = "full"
    n_evidence: ClassVar[int] = 3

    def p(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return self._each("p", x, mu)

    def n(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return self._each("n", x, mu)

    def loss(self, x: Array, mu: Array) -> Array:  # noqa: D102
        return self._each("loss", x, mu)

    def mass(self, x: Array) -> Array:  # noqa: D102
        return self._each("mass", x)

    def at(self, genes: Array) -> Joint:  # noqa: D102
        part = self.part[genes]
        place = np.zeros(len(self.part), int)  # of a gene among those of its modality
        for i in range(len(self.parts)):
            place[self.part == i] = np.arange((self.part == i).sum())
        here = tuple(each.at(place[genes[part == i]]) for i, each in enumerate(self.parts))
        return replace(self, parts=here, part=part)

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return each modality's, on its genes; zeros where it has less."""
        sums = np.zeros((self.n_evidence, *mu.shape))
        for i, each in enumerate(self.parts):
            here = self.part == i
            for row, values in enumerate(each.evidence(x if np.ndim(x) == 0 else x[..., here], mu[..., here])):
                sums[row][..., here] = values
        return tuple(sums)

    def refined(self, evidence: np.ndarray, n_cells: float) -> Joint:
        """Refine each modality's on its genes."""
        parts = [
            each.refined(evidence[: each.n_evidence, self.part == i], n_cells) for i, each in enumerate(self.parts)
        ]
        return replace(self, parts=tuple(parts))

    @property
    def theta(self) -> np.ndarray:
        """Dispersion of each gene, NaN where its modality has none."""
        return self._parameter("theta")

    @property
    def pi(self) -> np.ndarray:
        """Probability of dropout of each gene, likewise."""
        return self._parameter("pi")

    def _parameter(self, name: str) -> np.ndarray:
        out = np.full(len(self.part), np.nan, np.float32)
        for i, each in enumerate(self.parts):
            out[self.part == i] = getattr(each, name, np.nan)
        return out

    def _each(self, method: str, x: Array, *mu: Array) -> Array:
        out = np.empty_like(mu[0] if mu else x)
        for i, (each, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            here = self.part == i
            values = (x if np.ndim(x) == 0 else x[..., here], *(m[..., here] for m in mu))
            out[..., here] = weight * getattr(each, method)(*values)
        return out
