"""Passes over a block of cells for DeltaNMF: least squares, one coordinate at a time, and moments of the genes.

The data are ``A = diag(cells) X diag(genes)``: cells and genes are scaled on the fly, which preserves zeros, so no
scaled copy is made. `sweep` solves each cell's usage and gathers ``A'H`` and ``H'H``. It can also work on the residual
of some topics, ``max(0, A - H_c W_c')``, which is zero wherever A is, so it costs no more than A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..kernels._loops import TINY, jit
from ..kernels.block import CSR
from ..rows.moments import as_matrix
from ..rows.sources import piecewise

if TYPE_CHECKING:
    from typing import Self

    from ..kernels.block import Block, Floats
    from ..rows.summary import Groups


@dataclass
class StageRows:
    """Per-cell data of a block."""

    factor: Floats
    """Scale of each cell; zero excludes it."""
    H: Floats
    """Usage, cells x topics; a sweep changes it."""
    loss: np.ndarray
    """Half the squared error of each cell (float64) if requested; else empty."""

    @classmethod
    def of(cls, cells: np.ndarray, H: np.ndarray, *, dtype: np.dtype, loss: bool) -> StageRows:
        """Make the rows of all cells of a source, with a copy of the usage."""
        return cls(cells.astype(dtype), H.astype(dtype), np.zeros(len(cells) * loss))

    def __getitem__(self, part: slice) -> StageRows:
        """Return views of some of the cells."""
        return StageRows(self.factor[part], self.H[part], self.loss[part])


@dataclass(frozen=True)
class StagePass:
    """Task sent to every block of cells."""

    W: Floats
    """Loadings, genes x topics."""
    scale: Floats
    """Factor per topic still to be applied to the usage since W was last normalised."""
    genes: Floats
    """Factor per gene."""
    n_frozen: int = 0
    """Number of held topics, which come first; ``A'H`` is gathered for the others only."""
    residual: bool = False
    """Whether to subtract what the held topics explain and solve for the others alone."""
    steps: int = 1
    """Maximum number of rounds over a cell's topics."""
    tol: float = 0.0
    """Stop a cell's rounds when the relative change of its usage is no larger."""
    cold: bool = False
    """Whether to start from zero usage instead of the present one."""
    sums: bool = True
    """Whether to gather the sums for the loadings' step."""


@dataclass
class StageSums:
    """Sums gathered by a sweep (float64), additive over blocks; 0-d zeros for a block without cells."""

    p: np.ndarray
    """``A'H``"""
    n: np.ndarray
    """``H'H``"""
    loss: float
    """Half the squared error."""

    def __iadd__(self, other: StageSums) -> Self:
        """Add another block's."""
        self.p, self.n, self.loss = self.p + other.p, self.n + other.n, self.loss + other.loss
        return self


def sweep(block: Block, rows: StageRows, todo: StagePass) -> StageSums:
    """Solve ``min_{h >= 0} |a - W h|^2`` for a block's cells, in place, and gather the sums."""
    total = StageSums(np.zeros(()), np.zeros(()), 0.0)
    if not rows.factor.any():
        return total
    n_topics = todo.W.shape[1]
    first = todo.n_frozen if todo.residual else 0
    W = np.zeros((todo.W.shape[0], -(-n_topics // 8) * 8), todo.W.dtype)  # whole vector registers
    W[:, first:n_topics] = todo.W[:, first:]
    held, H_held = np.ascontiguousarray(todo.W[:, :first]), np.ascontiguousarray(rows.H[:, :first])
    gram = (W.T.astype(np.float64) @ W).astype(W.dtype)
    if isinstance(block, CSR):
        values = np.empty(block.indptr[-1] - block.indptr[0], W.dtype)
        up = np.zeros((len(rows.factor), W.shape[1]), W.dtype)
        squares = np.zeros(len(up))
        _scaled(block.indptr, block.indices, block.values, rows.factor, todo.genes, held, H_held, values, squares)
        _times(block.indptr, block.indices, values, W, up)
    else:
        dense = block.astype(W.dtype, copy=False) * rows.factor[:, None] * todo.genes
        if first:
            dense = np.maximum(dense - H_held @ held.T, 0)
        up, squares = dense @ W, (dense**2).sum(1, dtype=np.float64)
    steps = todo.steps, todo.tol, todo.cold
    cell_loss = np.zeros(len(up))
    _solve(up, gram, rows.factor, rows.H, todo.scale.astype(W.dtype), first, *steps, squares, cell_loss)
    total.loss = float(cell_loss.sum())
    if len(rows.loss):
        rows.loss[:] = cell_loss
    if todo.sums:
        free = np.ascontiguousarray(rows.H[:, todo.n_frozen :])
        if isinstance(block, CSR):
            p = np.zeros((len(W), free.shape[1]), W.dtype)
            _gather(block.indptr, block.indices, values, rows.factor, free, p)
        else:
            p = dense.T @ free
        total.p, total.n = p.astype(np.float64), (rows.H.T @ rows.H).astype(np.float64)
    return total


@dataclass
class ShareMoments:
    """Sums of shares (values over their cell's total) and of their squares, groups x genes, additive over blocks."""

    first: np.ndarray
    second: np.ndarray
    n_cells: np.ndarray
    """Number of cells with a value, per gene."""

    def __iadd__(self, other: ShareMoments) -> Self:
        """Add another block's."""
        self.first += other.first
        self.second += other.second
        self.n_cells += other.n_cells
        return self

    def deviation(self, groups: list[int], sizes: np.ndarray) -> np.ndarray:
        """Return the genes' standard deviation over some groups combined, of ``sizes`` cells each."""
        n = max(sizes[groups].sum(), 1)
        mean = self.first[groups].sum(0) / n
        return np.asarray(np.sqrt(np.maximum(self.second[groups].sum(0) - n * mean**2, 0) / max(n - 1, 1)))


@piecewise
def share_moments(block: Block, rows: Groups, *, divide: bool) -> ShareMoments:
    """Compute the ShareMoments of a block's cells, of values ``divide``d by their totals or of raw values."""
    member, x = rows.member.T.astype(np.float64), as_matrix(block)
    rows.total[:] = np.asarray(x.sum(1)).ravel()
    factor = 1 / np.maximum(rows.total, TINY) if divide else np.ones(len(rows.total))
    scaled = member * factor
    present = member.any(0).astype(np.float64) @ (x > 0)
    return ShareMoments(scaled @ x, (member * factor**2) @ (x * x), present)


@jit
def _scaled(indptr, indices, values, cells, genes, held, H_held, out, squares):
    """Write the scaled values minus what the held topics explain, and each cell's sum of squares."""
    zero, at0, n_held = out.dtype.type(0), indptr[0], held.shape[1]
    for i in range(len(indptr) - 1):
        total = 0.0
        for at in range(indptr[i], indptr[i + 1]):
            j = np.uint64(indices[at])
            value = cells[i] * genes[j] * values[at]
            for k in range(n_held):
                value -= held[j, k] * H_held[i, k]
            value = max(value, zero)
            out[at - at0] = value
            total += np.float64(value) * value
        squares[i] = total


@jit
def _times(indptr, indices, values, W, up):
    """``up += A W``, four non-zeros at a time."""
    width, at0 = W.shape[1], indptr[0]
    for i in range(len(indptr) - 1):
        u = up[i]
        begin, end = indptr[i], indptr[i + 1]
        by_four = begin + (end - begin) // 4 * 4
        for at in range(begin, by_four, 4):
            w0, w1 = W[np.uint64(indices[at])], W[np.uint64(indices[at + 1])]
            w2, w3 = W[np.uint64(indices[at + 2])], W[np.uint64(indices[at + 3])]
            x0, x1, x2, x3 = values[at - at0], values[at - at0 + 1], values[at - at0 + 2], values[at - at0 + 3]
            for k in range(width):
                u[k] += x0 * w0[k] + x1 * w1[k] + x2 * w2[k] + x3 * w3[k]
        for at in range(by_four, end):
            w0, x0 = W[np.uint64(indices[at])], values[at - at0]
            for k in range(width):
                u[k] += x0 * w0[k]


@jit
def _gather(indptr, indices, values, cells, H, p):
    """``p += A' H``."""
    n_topics, at0 = H.shape[1], indptr[0]
    for i in range(len(indptr) - 1):
        if cells[i] == 0:
            continue
        h = H[i]
        for at in range(indptr[i], indptr[i + 1]):
            q, x = p[np.uint64(indices[at])], values[at - at0]
            for k in range(n_topics):
                q[k] += x * h[k]


@jit
def _solve(up, gram, cells, H, scale, first, steps, tol, cold, squares, cell_loss):
    """Coordinate descent of every cell's usage: each step is the exact minimum over one topic."""
    n_topics, width = H.shape[1], up.shape[1]
    zero = up.dtype.type(0)
    h = np.zeros(width, up.dtype)
    slope = np.empty(width, up.dtype)
    for i in range(len(up)):
        if cells[i] == 0:
            continue
        for k in range(width):
            slope[k] = up[i, k]
        for k in range(first, n_topics):
            h[k] = zero if cold else H[i, k] * scale[k]
            if h[k] != 0:
                g = gram[k]
                for m in range(width):
                    slope[m] -= h[k] * g[m]
        for _ in range(steps):
            moved, total = zero, zero
            for k in range(first, n_topics):
                g = gram[k]
                if g[k] > 0:
                    move = max(slope[k] / g[k], -h[k])
                    if move != 0:
                        h[k] += move
                        moved += abs(move)
                        for m in range(width):
                            slope[m] -= move * g[m]
                total += h[k]
            if moved <= tol * total:
                break
        loss = squares[i]
        for k in range(first, n_topics):  # |a|^2 - 2 h up + h G h, with slope = up - G h
            loss -= np.float64(h[k]) * (np.float64(up[i, k]) + slope[k])
            H[i, k] = h[k]
        cell_loss[i] = loss / 2
