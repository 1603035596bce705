"""Compute gene sums, cell totals and checks of the values, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy import sparse

from ..kernels._loops import TINY
from ..kernels.block import CSR, Block
from .sources import piecewise

if TYPE_CHECKING:
    from ..likelihoods import Likelihood
    from .sources import RowSource


@dataclass
class Groups:
    """Groups of the cells; `summarise` adds the cells' totals."""

    member: np.ndarray
    """Cells x groups, bool."""
    total: np.ndarray
    """Sum of each cell's values (float64)."""

    def __getitem__(self, part: slice) -> Groups:
        """Return views of some of the cells."""
        return Groups(self.member[part], self.total[part])


@dataclass
class Summary:
    """Summary of the data before a fit, additive over blocks."""

    sums: np.ndarray
    """Sum of each gene's values in each group, groups x genes."""
    mass: np.ndarray
    """The same for the values' mass (`Likelihood.mass`)."""
    n_invalid: int
    """Number of values that are not finite."""
    n_fractional: int
    """Number of values that are not whole numbers."""
    smallest: float
    largest: float

    def __iadd__(self, other: Summary) -> Self:
        """Add that of another block."""
        self.sums += other.sums
        self.mass += other.mass
        self.n_invalid += other.n_invalid
        self.n_fractional += other.n_fractional
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)
        return self


@piecewise
def summarise(block: Block, rows: Groups, likelihood: Likelihood) -> Summary:
    """Compute gene sums per group, totals per cell, and checks of the values for a block."""
    if isinstance(block, CSR):
        x = block.matrix()
        values = x.data
        mass = sparse.csr_array((likelihood.at(x.indices).mass(values), x.indices, x.indptr), shape=x.shape)
    else:
        x = values = block
        mass = likelihood.mass(x)
    rows.total[:] = np.asarray(x.sum(1, dtype=np.float64)).ravel()
    member = rows.member.T.astype(np.float64)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # infinite values are counted here, and rejected later
        sums, masses = member @ x, member @ mass
    return Summary(
        sums,
        masses,
        int(values.size - finite.sum()),
        int((values != np.floor(values)).sum()),
        float(values.min(initial=np.inf, where=finite)),
        float(values.max(initial=-np.inf, where=finite)),
    )


MARKS = 2**16
"""Marks of genes are whole numbers below it: their sums over counts are exact, in whatever order they are added."""


def fingerprint(source: RowSource) -> list[np.ndarray]:
    """Return what tells data from others, equal sums of cells and genes or not, whatever source they come from.

    A random projection of each cell, and the sum of each gene; rounded, since sums may be added in another order.
    """
    n_cells, n_genes = source.shape
    cells = source.place(Groups, np.zeros((n_cells, 0), bool), np.zeros(n_cells))
    marks = np.random.default_rng(0).integers(1, MARKS, n_genes).astype(np.float64)
    genes = source.reduce(partial(_project, marks=marks), cells)
    sums = ((genes, 5), (source.gather(cells, "total"), 7))
    return [np.round(each / max(np.abs(each).max(), TINY), digits) for each, digits in sums]


@piecewise
def _project(block: Block, rows: Groups, marks: np.ndarray) -> np.ndarray:
    x = block.matrix() if isinstance(block, CSR) else block
    rows.total[:] = x @ marks
    return np.asarray(x.sum(0, dtype=np.float64)).ravel()
