"""Where the cells come from: row sources hand out blocks of cells and add up what a function makes of them.

`RowSource.reduce` is all that the solver knows of the data. A source decides how large a block is, where it lies and who works
on it. Blocks are added in the order of the rows, so the number of threads does not change a bit of the result.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from .kernels import CSR, Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .likelihoods import Likelihood

BLOCK_VALUES = 2**18
"""Values (non-zeros, if sparse) per block: much against the sums that a block returns, little against the data."""


class Additive(Protocol):
    """What a block returns."""

    def __iadd__(self, other: Self) -> Self:
        """Add another block's."""
        ...


class PerCell(Protocol):
    """What belongs to the cells of a source."""

    def __getitem__(self, part: slice) -> Self:
        """Views of some of the cells."""
        ...


T = TypeVar("T", bound=Additive)
R = TypeVar("R", bound=PerCell)


class RowSource:
    """Cells x genes in memory, handed out in blocks without copying."""

    def __init__(self, data: CSR | np.ndarray, *, block_rows: int | None = None, n_threads: int | None = None) -> None:
        self.data = data
        self.n_threads = n_threads or len(os.sched_getaffinity(0))
        sparse_ends = data.indptr[1:] if isinstance(data, CSR) else None
        self.shape = (len(data.indptr) - 1, data.n_genes) if isinstance(data, CSR) else data.shape
        self.dtype = (data.values if isinstance(data, CSR) else data).dtype
        if block_rows is not None:
            cuts = np.arange(block_rows, self.shape[0], block_rows)
        else:
            ends = np.arange(1, self.shape[0] + 1) * self.shape[1] if sparse_ends is None else sparse_ends
            size = max(BLOCK_VALUES, 16 * self.shape[1])
            cuts = np.searchsorted(ends, np.arange(size, ends[-1], size)) + 1
        self._bounds = np.unique(np.concatenate([[0], cuts, [self.shape[0]]]))

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield the blocks in the order of the rows."""
        for start, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True):
            rows = slice(int(start), int(stop))
            if isinstance(self.data, CSR):
                yield rows, self.data._replace(indptr=self.data.indptr[start : stop + 1])
            else:
                yield rows, self.data[rows]

    def reduce(self, fn: Callable[[Block, R], T], rows: R) -> T:
        """Sum ``fn(block, its rows)`` over all blocks; what ``fn`` changes in its rows stays changed in ``rows``."""
        totals: list[T] = []

        def add(done: Future[T]) -> None:
            if totals:
                totals[0] += done.result()
            else:
                totals.append(done.result())

        # One thread per block: the block products inside need no threads of their own.
        with threadpool_limits(1), ThreadPoolExecutor(self.n_threads) as pool:
            waiting: deque[Future[T]] = deque()
            for part, block in self.blocks():
                waiting.append(pool.submit(fn, block, rows[part]))
                if len(waiting) > self.n_threads:
                    add(waiting.popleft())
            while waiting:
                add(waiting.popleft())
        return totals[0]


def row_source(
    matrix: Any,
    *,
    genes: np.ndarray | None = None,
    dtype: type = np.float32,
    block_rows: int | None = None,
    n_threads: int | None = None,
) -> RowSource:
    """Make a row source of a matrix, cells x genes.

    Parameters
    ----------
    matrix
        NumPy array or SciPy sparse matrix. Float32 CSR with int32 columns and float32 arrays in C order are used as they are,
        anything else is converted once.
    genes
        Numbers of the columns to use; all by default.
    dtype
        float32, or float64 for checks.
    block_rows
        Cells per block; by default as many as hold about `BLOCK_VALUES` values.
    n_threads
        Threads that work on blocks; as many as the machine lends by default.
    """
    if genes is not None and len(genes) != matrix.shape[1]:
        matrix = matrix[:, genes]
    if sparse.issparse(matrix):
        matrix = matrix.tocsr()
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        data: CSR | np.ndarray = CSR(
            matrix.indptr.astype(np.int64, copy=False),
            matrix.indices.astype(np.int32, copy=False),
            matrix.data.astype(dtype, copy=False),
            matrix.shape[1],
        )
    else:
        data = np.ascontiguousarray(matrix, dtype=dtype)
    return RowSource(data, block_rows=block_rows, n_threads=n_threads)


@dataclass
class Groups:
    """Which cells belong to which group; `summarise` leaves the cells' totals in it."""

    member: np.ndarray
    """Cells x groups, bool."""
    total: np.ndarray
    """Sum of each cell's values (float64)."""

    def __getitem__(self, part: slice) -> Groups:
        """Views of some of the cells."""
        return Groups(self.member[part], self.total[part])


@dataclass
class Summary:
    """What there is to know of the data before a fit. Adds up over blocks."""

    sums: np.ndarray
    """Sum of each gene's values in each group, groups x genes."""
    mass: np.ndarray
    """The same of the values' mass (`Likelihood.mass`)."""
    n_invalid: int
    """Number of values that are not finite."""
    n_fractional: int
    """Number of values that are not whole numbers."""
    smallest: float
    largest: float

    def __iadd__(self, other: Summary) -> Self:
        """Add another block's."""
        self.sums += other.sums
        self.mass += other.mass
        self.n_invalid += other.n_invalid
        self.n_fractional += other.n_fractional
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)
        return self


def summarise(block: Block, rows: Groups, likelihood: Likelihood) -> Summary:
    """Gene sums per group, totals per cell, and the checks of the values, for a block."""
    if isinstance(block, CSR):
        here = slice(block.indptr[0], block.indptr[-1])
        x = sparse.csr_array(
            (block.values[here], block.indices[here], block.indptr - block.indptr[0]),
            shape=(len(rows.total), block.n_genes),
        )
        values = x.data
        mass = sparse.csr_array((likelihood.mass(values), x.indices, x.indptr), shape=x.shape)
    else:
        x = values = block
        mass = likelihood.mass(x)
    rows.total[:] = np.asarray(x.sum(1, dtype=np.float64)).ravel()
    member = rows.member.T.astype(np.float64)
    finite = np.isfinite(values)
    return Summary(
        member @ x,
        member @ mass,
        int(values.size - finite.sum()),
        int((values != np.floor(values)).sum()),
        float(values.min(initial=np.inf, where=finite)),
        float(values.max(initial=-np.inf, where=finite)),
    )
