"""Where the cells come from: row sources hand out blocks of cells and add up what a function makes of them.

`RowSource.reduce` is all that the solver knows of the data. A source decides how large a block is, where it lies and
who works on it. Blocks are added in the order of the rows, so the number of threads does not change a bit of the
result.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import joblib
import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from .kernels import CSR, Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .likelihoods import Likelihood

BLOCK_VALUES = 2**20
"""Values (non-zeros, if sparse) per block: much against the sums that a block returns, little against the data."""
READ_VALUES = 2**22
"""Values that are read from disk at once."""


class Additive(Protocol):
    """What a block returns."""

    def __iadd__(self, other: Self) -> Self:
        """Add another block's."""
        ...


class PerCell(Protocol):
    """What belongs to the cells of a source."""

    def __getitem__(self, part: slice) -> Self:
        """Return views of some of the cells."""
        ...


T = TypeVar("T", bound="Additive")


class RowSource(ABC):
    """Cells x genes, whatever holds them."""

    shape: tuple[int, int]
    dtype: np.dtype

    @abstractmethod
    def place(self, make: Callable[..., PerCell], *arrays: np.ndarray) -> Any:
        """Make what belongs to the cells, ``make(*arrays)`` of arrays over all cells, and leave it where they are."""

    @abstractmethod
    def reduce(self, fn: Callable[[Block, Any], T], rows: Any) -> T:
        """Sum ``fn(block, its rows)`` over all blocks; what ``fn`` changes in its rows stays changed."""

    @abstractmethod
    def gather(self, rows: Any, name: str) -> np.ndarray:
        """Return an attribute of the rows, over all cells."""

    @contextmanager
    def working(self) -> Iterator[Any]:
        """Hold for several passes what one pass needs."""
        yield None

    def shares(self) -> list[RowSource]:
        """Return sources of the same data that can be worked on side by side."""
        return [self]


class LocalSource(RowSource):
    """Blocks handed out in this process, one after the other, and worked on by threads."""

    n_threads: int

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield the blocks in the order of the rows."""

    def place(self, make: Callable[..., PerCell], *arrays: np.ndarray) -> PerCell:  # noqa: D102
        return make(*arrays)

    def gather(self, rows: PerCell, name: str) -> np.ndarray:  # noqa: D102
        return getattr(rows, name)

    def reduce(self, fn: Callable[[Block, Any], T], rows: PerCell) -> T:  # noqa: D102
        totals: list[T] = []

        def add(done: Future[T]) -> None:
            if totals:
                totals[0] += done.result()  # type: ignore[operator] # mypy looks for __add__
            else:
                totals.append(done.result())

        with self.working() as pool:
            waiting: deque[Future[T]] = deque()
            for part, block in self.blocks():  # meanwhile the pool works: for data on disk this is the read-ahead
                waiting.append(pool.submit(fn, block, rows[part]))
                if len(waiting) > self.n_threads:
                    add(waiting.popleft())
            while waiting:
                add(waiting.popleft())
        return totals[0]

    @contextmanager
    def working(self) -> Iterator[ThreadPoolExecutor]:
        """Keep the threads for several passes."""
        if self._pool is not None:
            yield self._pool
            return
        with _ONE_THREAD_EACH, ThreadPoolExecutor(self.n_threads) as self._pool:
            try:
                yield self._pool
            finally:
                self._pool = None

    _pool: ThreadPoolExecutor | None = None


class _OneThreadEach:
    """Matrix products need no threads of their own where blocks have them. Nests, and lets fits run side by side."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._limits = threadpool_limits(1)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limits.restore_original_limits()


_ONE_THREAD_EACH = _OneThreadEach()


class MemorySource(LocalSource):
    """A matrix in memory; blocks are views."""

    def __init__(self, matrix: Block, *, block_rows: int | None, n_threads: int) -> None:
        self.matrix, self.n_threads = matrix, n_threads
        self.shape, self.dtype = _shape(matrix), _values(matrix).dtype
        self._cuts = _cuts(matrix, block_rows)

    def blocks(self) -> Iterator[tuple[slice, Block]]:  # noqa: D102
        for start, stop in itertools.pairwise(self._cuts):
            yield slice(start, stop), _rows(self.matrix, slice(start, stop))

    def shares(self) -> list[RowSource]:
        """Return sources with one thread each: many small fits use them better than one fit uses many threads."""
        shares: list[RowSource] = []
        for _ in range(self.n_threads):
            share = copy(self)
            share.n_threads, share._pool = 1, None
            shares.append(share)
        return shares


class ReadSource(LocalSource):
    """A matrix too large for memory, read in row chunks that are cut into blocks."""

    def __init__(
        self,
        read: Callable[[int, int], Any],
        cuts: Sequence[int],
        n_genes: int,
        *,
        genes: np.ndarray | None,
        dtype: type,
        block_rows: int | None,
        n_threads: int,
    ) -> None:
        self._read, self._cuts, self._genes, self._block_rows = read, cuts, genes, block_rows
        self.shape = (cuts[-1], n_genes if genes is None else len(genes))
        self.dtype, self.n_threads = np.dtype(dtype), n_threads

    def blocks(self) -> Iterator[tuple[slice, Block]]:  # noqa: D102
        for start, stop in itertools.pairwise(self._cuts):
            chunk = to_block(self._read(start, stop), self._genes, self.dtype)
            for low, high in itertools.pairwise(_cuts(chunk, self._block_rows)):
                yield slice(start + low, start + high), _rows(chunk, slice(low, high))


def _shape(block: Block) -> tuple[int, int]:
    return (len(block.indptr) - 1, block.n_genes) if isinstance(block, CSR) else block.shape


def _values(block: Block) -> np.ndarray:
    return block.values if isinstance(block, CSR) else block


def _rows(block: Block, part: slice) -> Block:
    """Return views of some of the rows."""
    return block._replace(indptr=block.indptr[part.start : part.stop + 1]) if isinstance(block, CSR) else block[part]


def _cuts(block: Block, block_rows: int | None) -> list[int]:
    """Row numbers at which blocks begin and end."""
    n_rows, n_genes = _shape(block)
    if block_rows is not None:
        inner = np.arange(block_rows, n_rows, block_rows)
    else:
        ends = block.indptr[1:] if isinstance(block, CSR) else np.arange(1, n_rows + 1) * n_genes
        size = max(BLOCK_VALUES, 64 * n_genes)
        inner = np.searchsorted(ends, np.arange(size, ends[-1], size)) + 1
    return np.unique(np.concatenate([[0], inner, [n_rows]])).tolist()


def to_block(matrix: Any, genes: np.ndarray | None, dtype: type | np.dtype) -> Block:
    """Turn rows of any matrix into what the kernels read: CSR with int32 columns or an array in C order."""
    if genes is not None and not np.array_equal(genes, np.arange(matrix.shape[1])):
        matrix = matrix[:, genes]
    if not sparse.issparse(matrix):
        return np.ascontiguousarray(matrix, dtype=dtype)
    matrix = matrix.tocsr()
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if matrix.nnz and not 0 <= matrix.indices.min() <= matrix.indices.max() < matrix.shape[1]:
        bad = matrix.indices.max()
        msg = f"Column numbers must lie between 0 and {matrix.shape[1] - 1}, got {bad}: the matrix is broken."
        raise ValueError(msg)
    return CSR(
        matrix.indptr.astype(np.int64, copy=False),
        matrix.indices.astype(np.int32, copy=False),
        matrix.data.astype(dtype, copy=False),
        matrix.shape[1],
    )


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
        NumPy array or SciPy sparse matrix (float32 CSR with int32 columns and float32 arrays in C order are used as
        they are, anything else is converted once); or, read in row chunks with every pass, a backed sparse dataset
        (CSR), an HDF5 or zarr array, or a dask array with chunks of either kind.
    genes
        Numbers of the columns to use; all by default.
    dtype
        float32, or float64 for checks.
    block_rows
        Cells per block; by default as many as hold about `BLOCK_VALUES` values.
    n_threads
        Threads that work on blocks; as many as the machine lends by default.
    """
    how: dict[str, Any] = {"block_rows": block_rows, "n_threads": n_threads or joblib.cpu_count()}
    if isinstance(matrix, np.ndarray) or sparse.issparse(matrix):
        return MemorySource(to_block(matrix, genes, dtype), **how)
    n_rows, n_genes = matrix.shape
    if hasattr(matrix, "chunks") and hasattr(matrix, "dask"):
        cuts = np.cumsum([0, *matrix.chunks[0]]).tolist()

        def read(start: int, stop: int) -> Any:
            return matrix[start:stop].compute(scheduler="synchronous")

    else:
        if getattr(matrix, "format", "csr") != "csr":
            msg = (
                f"A matrix on disk must be CSR to be read by rows, got {matrix.format}. "
                "Read it into memory, or store it as CSR."
            )
            raise ValueError(msg)
        n_values = len(matrix.group["data"]) if hasattr(matrix, "group") else n_rows * n_genes
        step = max(1, int(READ_VALUES * n_rows / max(n_values, 1)))
        cuts = [*range(0, n_rows, step), n_rows]

        def read(start: int, stop: int) -> Any:
            return matrix[start:stop]

    return ReadSource(read, cuts, n_genes, genes=genes, dtype=dtype, **how)


@dataclass
class Groups:
    """Which cells belong to which group; `summarise` leaves the cells' totals in it."""

    member: np.ndarray
    """Cells x groups, bool."""
    total: np.ndarray
    """Sum of each cell's values (float64)."""

    def __getitem__(self, part: slice) -> Groups:
        """Return views of some of the cells."""
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
