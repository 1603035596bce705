"""Data of a pass over a block of cells: rows of the data, the cells' usage, the gathered sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy import sparse

from ._loops import MOST_AHEAD, TINY

Floats = np.ndarray


class CSR(NamedTuple):
    """Rows of a sparse matrix; ``indptr`` indexes ``indices`` and ``values``, which may contain further rows."""

    indptr: np.ndarray
    indices: np.ndarray
    values: Floats
    n_genes: int

    def matrix(self, part: slice = slice(None), dtype: Any = None) -> sparse.csr_array:
        """Return (some of) the rows as a SciPy matrix."""
        first, stop, _ = part.indices(len(self.indptr) - 1)
        indptr = self.indptr[first : stop + 1]
        here = slice(indptr[0], indptr[-1])
        starts = (indptr - indptr[0]).astype(self.indices.dtype, copy=False)
        values = self.values[here] if dtype is None else self.values[here].astype(dtype, copy=False)
        return sparse.csr_array((values, self.indices[here], starts), shape=(stop - first, self.n_genes))


Block: TypeAlias = CSR | np.ndarray
"""Rows of the data, sparse or dense."""
Matrix: TypeAlias = sparse.csr_array | np.ndarray
"""The same, as arrays that support matrix products."""


def extrapolated(now: Floats, before: Floats, beta: Any, *, ratio: bool) -> Floats:
    """Go on along the last step: by the ``ratio`` of its ends, else by its positive part.

    A multiplicative update is a step of the logarithm, so the step to go on with is ``now * (now / before)^beta``, here
    in its Pade form, which needs no logarithm, and at most doubled.
    """
    if not ratio:
        return now + beta * np.maximum(now - before, 0)
    less, more = 1 - beta, 1 + beta
    return now * np.minimum((more * now + less * before) / np.maximum(less * now + more * before, TINY), MOST_AHEAD)


@dataclass(frozen=True)
class Pass:
    """Task sent to every block of cells."""

    W: Floats
    """Loadings, genes x topics."""
    scale: Floats
    """Factor per topic still to be applied to the usage since W was last normalised."""
    beta: float = 0.0
    """Extrapolation of the usage along its last step."""
    ratio: bool = True
    """Whether to extrapolate the logarithm of the step (see `extrapolated`), or its positive part."""
    steps: int = 1
    """Maximum number of usage steps per cell."""
    tol: float = 0.0
    """Stop a cell's steps when the relative change of its usage is smaller."""
    cold: bool = False
    """Whether to start from the cell's total spread evenly over the topics instead of its present usage."""
    sums: bool = True
    """Whether to gather the sums for the loadings' step."""
    loss: bool = False
    """Whether to gather the loss at W and the new usage."""
    evidence: bool = False
    """Whether to gather the evidence for the likelihood's own parameters, over the target's cells."""


@dataclass
class Rows:
    """Per-cell data of a block."""

    target: Floats
    """Target weight a: 1 or 0."""
    background: Floats
    """Background weight b: alpha or 0. Cells with neither weight are not changed."""
    H: Floats
    """Usage, cells x topics; a sweep changes it."""
    H_prev: Floats
    """Usage of the previous pass if usage is extrapolated; else empty."""
    loss: np.ndarray
    """Loss of each cell (float64) if requested; else empty."""

    @classmethod
    def of(
        cls, target: np.ndarray, background: np.ndarray, n_topics: int, dtype: np.dtype, *, prev: bool, loss: bool
    ) -> Rows:
        """Make the rows of all cells of a source."""
        n = len(target)
        H = np.zeros((n, n_topics), dtype)
        H_prev = np.zeros((n if prev else 0, n_topics), dtype)
        return cls(target.astype(dtype), background.astype(dtype), H, H_prev, np.zeros(n if loss else 0))

    def __getitem__(self, part: slice) -> Rows:
        """Return views of some of the cells."""
        return Rows(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


@dataclass
class Sums:
    """Sums of a sweep under the target's (x) and the background's (y) weights (float64), additive over blocks."""

    p_x: np.ndarray
    p_y: np.ndarray
    n_x: np.ndarray
    n_y: np.ndarray
    loss: np.ndarray
    """Loss of the target, of the background, and of the background weighted by alpha."""
    evidence: np.ndarray
    """`Likelihood.evidence`, summed over the target's cells; anything x genes."""

    @classmethod
    def zeros(cls) -> Sums:
        """Start with 0-d zeros, which cost nothing to add."""
        p_x, p_y, n_x, n_y, evidence = (np.zeros(()) for _ in range(5))
        return cls(p_x, p_y, n_x, n_y, np.zeros(3), evidence)

    def add(self, name: str, values: np.ndarray) -> None:
        """Add to one of the sums, in double precision."""
        total = getattr(self, name)
        if not total.shape:
            setattr(self, name, np.array(values, np.float64))  # a copy: buffers are reused
        elif np.shape(values):
            total += values

    def __iadd__(self, other: Sums) -> Sums:
        """Add those of another block."""
        for name in self.__dataclass_fields__:
            self.add(name, getattr(other, name))
        return self
