"""Sums over cells for tests and covariances: one pass over the blocks, no dense copy of the matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy import sparse

from ..kernels.block import CSR
from .sources import piecewise

if TYPE_CHECKING:
    from ..kernels.block import Block
    from .sources import RowSource

PER_CELL = 1e4
"""Total counts to which a cell is scaled before the logarithm."""


@dataclass
class Membership:
    """Unit (donor, group) of each cell."""

    code: np.ndarray
    """Index of the unit; -1 for none."""

    def __getitem__(self, part: slice) -> Membership:
        """Return views of some of the cells."""
        return Membership(self.code[part])


@dataclass
class Moments:
    """Sums over the cells of each unit, units x genes, additive over blocks."""

    linear: np.ndarray
    """Sums of the values, scaled to the same total per cell if they are log-normalised."""
    value: np.ndarray
    """Sums of the compared values (log-normalised or raw)."""
    square: np.ndarray
    """Sums of their squares."""

    def __iadd__(self, other: Moments) -> Self:
        """Add those of another block."""
        self.linear += other.linear
        self.value += other.value
        self.square += other.square
        return self


def moments(source: RowSource, code: np.ndarray, n_units: int, *, log_normalize: bool) -> Moments:
    """Sum the values, their logarithms and squares over the cells of each unit.

    Parameters
    ----------
    source
        Cells x genes; a cell's total is over all of its genes.
    code
        Index of each cell's unit; -1 excludes the cell.
    n_units
        Number of units.
    log_normalize
        Whether to compare ``log(1 + value / total * 1e4)`` instead of the values.
    """
    return source.reduce(partial(_moments, n_units=n_units, log=log_normalize), source.place(Membership, code))


def log_normalized(x: Any) -> Any:
    """Return rows as ``log(1 + value / total * 1e4)``; sparse stays sparse."""
    scaled = _scaled(x)
    if sparse.issparse(scaled):
        scaled.data = np.log1p(scaled.data)
        return scaled
    return np.log1p(scaled)


def as_matrix(block: Block) -> Any:
    """Return a block as a SciPy matrix or NumPy array, in float64."""
    return block.matrix(dtype=np.float64) if isinstance(block, CSR) else np.asarray(block, np.float64)


def member_matrix(code: np.ndarray, n_units: int) -> sparse.csr_array:
    """Return a units x cells matrix: one if the cell belongs to the unit."""
    of_any = np.flatnonzero(code >= 0)
    return sparse.csr_array((np.ones(len(of_any)), (code[of_any], of_any)), shape=(n_units, len(code)))


@piecewise
def _moments(block: Block, rows: Membership, *, n_units: int, log: bool) -> Moments:
    member = member_matrix(rows.code, n_units)
    x = as_matrix(block)
    linear = _scaled(x) if log else x
    value = linear.log1p() if log and sparse.issparse(linear) else np.log1p(linear) if log else x
    return Moments(*(_dense(member @ part) for part in (linear, value, value * value)))


def _scaled(x: Any) -> Any:
    total = np.asarray(x.sum(1)).ravel()
    factor = np.divide(PER_CELL, total, out=np.zeros(len(total)), where=total > 0)
    if not sparse.issparse(x):
        return x * factor[:, None]
    return sparse.csr_array((x.data * np.repeat(factor, np.diff(x.indptr)), x.indices, x.indptr), shape=x.shape)


def _dense(x: Any) -> np.ndarray:
    return np.asarray(x.todense()) if sparse.issparse(x) else np.asarray(x)
