"""Joint likelihood of several modalities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .likelihoods import Likelihood

if TYPE_CHECKING:
    from .likelihoods import Array


@dataclass(frozen=True)
class Joint(Likelihood):
    """Likelihood of several modalities of the same cells: every gene has its modality's likelihood and weight.

    The loss is ``sum_m w_m L_m``, so ``p`` and ``n`` are each modality's terms times its weight. NumPy only.
    """

    parts: tuple[Likelihood, ...]
    """Likelihood of each modality, with numeric parameters; those per gene are over that modality's genes."""
    weights: tuple[float, ...]
    part: np.ndarray
    """Index of each gene's modality."""
    estimates: tuple[bool, ...] = ()
    """Whether each part's parameters are estimated; none by default."""

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
        place = np.zeros(len(self.part), int)  # index of a gene within its modality
        for i in range(len(self.parts)):
            place[self.part == i] = np.arange((self.part == i).sum())
        here = tuple(each.at(place[genes[part == i]]) for i, each in enumerate(self.parts))
        return replace(self, parts=here, part=part)

    @property
    def estimated(self) -> bool:
        """Whether any modality's parameters are estimated."""
        return any(self.estimates)

    def evidence(self, x: Array, mu: Array) -> tuple[Array, ...]:
        """Return each modality's evidence on its genes, padded with zeros."""
        sums = np.zeros((max(each.n_evidence for each in self.parts), *mu.shape))
        for i, each in enumerate(self.parts):
            here = self.part == i
            for row, values in enumerate(each.evidence(x if np.ndim(x) == 0 else x[..., here], mu[..., here])):
                sums[row][..., here] = values
        return tuple(sums)

    def refined(self, evidence: np.ndarray, n_cells: float) -> Joint:
        """Refine the modalities whose parameters are estimated, each on its genes."""
        parts = [
            each.refined(evidence[: each.n_evidence, self.part == i], n_cells) if estimated else each
            for i, (each, estimated) in enumerate(zip(self.parts, self.estimates, strict=True))
        ]
        return replace(self, parts=tuple(parts))

    def parameters(self) -> dict[str, np.ndarray]:
        """Return the parameters of any modality, NaN for genes of the others."""
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
