"""Several modalities under one likelihood each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .likelihoods import Likelihood

if TYPE_CHECKING:
    from .likelihoods import Array


@dataclass(frozen=True)
class Joint(Likelihood):
    """Several modalities of the same cells, side by side: every gene has the likelihood and the weight of its own.

    The loss is ``sum_m w_m L_m``, so ``p`` and ``n`` are each modality's times its weight. NumPy only.
    """

    parts: tuple[Likelihood, ...]
    """A likelihood for each modality, with numbers; parameters per gene are over that modality's genes."""
    weights: tuple[float, ...]
    part: np.ndarray
    """Number of each gene's modality."""
    estimates: tuple[bool, ...] = ()
    """Whether each part's parameters are to be estimated; none by default."""

    name: ClassVar[str] = "joint"
    counts: ClassVar[bool] = False

    def p(self, x: Array, mu: Array) -> Array:
        """Return each modality's, weighted."""
        return self._each("p", x, mu)

    def n(self, x: Array, mu: Array) -> Array:
        """Return each modality's, weighted."""
        return self._each("n", x, mu)

    def loss(self, x: Array, mu: Array) -> Array:
        """Return each modality's, weighted."""
        return self._each("loss", x, mu)

    def mass(self, x: Array) -> Array:
        """Return each modality's, weighted."""
        return self._each("mass", x)

    def at(self, genes: Array) -> Joint:
        """Return the parts for values of these genes only."""
        part = self.part[genes]
        place = np.zeros(len(self.part), int)  # of a gene among those of its modality
        for i in range(len(self.parts)):
            place[self.part == i] = np.arange((self.part == i).sum())
        here = tuple(each.at(place[genes[part == i]]) for i, each in enumerate(self.parts))
        return replace(self, parts=here, part=part)

    @property
    def estimated(self) -> bool:
        """Whether any modality's parameters are to be estimated."""
        return any(self.estimates)

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return each modality's, on its genes; zeros where it has less."""
        sums = np.zeros((max(each.n_evidence for each in self.parts), *mu.shape))
        for i, each in enumerate(self.parts):
            here = self.part == i
            for row, values in enumerate(each.evidence(x if np.ndim(x) == 0 else x[..., here], mu[..., here])):
                sums[row][..., here] = values
        return tuple(sums)

    def refined(self, evidence: np.ndarray, n_cells: float) -> Joint:
        """Refine the modalities that are to be estimated, each on its genes."""
        parts = [
            each.refined(evidence[: each.n_evidence, self.part == i], n_cells) if estimated else each
            for i, (each, estimated) in enumerate(zip(self.parts, self.estimates, strict=True))
        ]
        return replace(self, parts=tuple(parts))

    def parameters(self) -> dict[str, np.ndarray]:
        """Return those of any modality, NaN for the genes of others."""
        own: dict[str, np.ndarray] = {}
        for i, each in enumerate(self.parts):
            for name, values in each.parameters().items():
                own.setdefault(name, np.full(len(self.part), np.nan, np.float32))[self.part == i] = values
        return own

    def _each(self, method: str, x: Array, *mu: Array) -> Array:
        out = np.empty_like(mu[0] if mu else x)
        for i, (each, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            here = self.part == i
            values = (x if np.ndim(x) == 0 else x[..., here], *(m[..., here] for m in mu))
            out[..., here] = weight * getattr(each, method)(*values)
        return out
