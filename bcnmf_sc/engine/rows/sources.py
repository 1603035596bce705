"""Row sources: provide blocks of cells and sum a function's results over them.

The solver accesses the data only by `RowSource.reduce`. A source decides on the size and location of a block and on
who processes it. Blocks are summed in the order of the rows, so the result is bitwise independent of the number of
threads.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from ..._utils.errors import UserError
from ..kernels.block import CSR, Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


BLOCK_VALUES = 2**20
"""Values (non-zeros, if sparse) per block: many compared with the sums of a block, few compared with the data."""
SEEN_PARTS = 16
"""Number of partial sums of a chunk that reveal changes, in a hundredth of a pass's time."""


class Additive(Protocol):
    """Result of a block."""

    def __iadd__(self, other: Self) -> Self:
        """Add that of another block."""
        ...


class PerCell(Protocol):
    """Per-cell data of a source."""

    def __getitem__(self, part: slice) -> Self:
        """Return views of some of the cells."""
        ...


T = TypeVar("T", bound="Additive")
F = TypeVar("F", bound="Callable[..., Any]")


class RowSource(ABC):
    """Cells x genes data in any storage."""

    shape: tuple[int, int]
    dtype: np.dtype

    @abstractmethod
    def place(self, make: Callable[..., PerCell], *arrays: np.ndarray) -> Any:
        """Create per-cell data, ``make(*arrays)`` of arrays over all cells, and place it with the cells."""

    @abstractmethod
    def reduce(self, fn: Callable[[Block, Any], T], rows: Any) -> T:
        """Sum ``fn(block, its rows)`` over all blocks; what ``fn`` changes in its rows stays changed."""

    @abstractmethod
    def gather(self, rows: Any, name: str) -> np.ndarray:
        """Return an attribute of the rows, over all cells."""

    @contextmanager
    def working(self) -> Iterator[Any]:
        """Hold the resources of a pass for several passes."""
        yield None

    def shares(self) -> list[RowSource]:
        """Return sources of the same data that can be used in parallel."""
        return [self]


class LocalSource(RowSource):
    """Blocks provided in this process, one after the other, and processed by threads."""

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
            for part, block in self.blocks():  # the pool works meanwhile: for data on disk this is the read-ahead
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
        # OpenMP's limit is set per thread
        each = partial(threadpool_limits, 1, "openmp")
        with ONE_THREAD_EACH, ThreadPoolExecutor(self.n_threads, initializer=each) as self._pool:
            try:
                yield self._pool
            finally:
                self._pool = None

    _pool: ThreadPoolExecutor | None = None


class _OneThreadEach:
    """Limits BLAS to one thread while blocks are processed by threads. Can be nested and shared by parallel fits."""

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


ONE_THREAD_EACH = _OneThreadEach()
"""The only instance in the process."""


class MemorySource(LocalSource):
    """A matrix in memory; blocks are views."""

    def __init__(self, matrix: Block, *, block_rows: int | None, n_threads: int) -> None:
        self.matrix, self.n_threads = matrix, n_threads
        self.shape, self.dtype = _shape(matrix), _values(matrix).dtype
        self._cuts = cut(matrix, block_rows)

    def blocks(self) -> Iterator[tuple[slice, Block]]:  # noqa: D102
        for start, stop in itertools.pairwise(self._cuts):
            yield slice(start, stop), part_of(self.matrix, slice(start, stop))

    def shares(self) -> list[RowSource]:
        """Return sources with one thread each, which many small fits use better than one fit uses many threads."""
        shares: list[RowSource] = []
        for _ in range(self.n_threads):
            share = copy(self)
            share.n_threads, share._pool = 1, None
            shares.append(share)
        return shares


class ReadSource(LocalSource):
    """A matrix too large for memory, read in row chunks that are split into blocks; a thread reads one chunk ahead.

    A chunk that differs from the first pass ends the fit, as HDF5 and zarr return zeros for a truncated file.
    """

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
        self._seen: dict[int, list[float]] = {}

    def blocks(self) -> Iterator[tuple[slice, Block]]:  # noqa: D102
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(self._chunk, *part) for part in itertools.pairwise(self._cuts[:2])]
            for start, *next_part in itertools.zip_longest(self._cuts[:-1], self._cuts[1:-1], self._cuts[2:]):
                chunk = ahead.pop().result()
                if None not in next_part:
                    ahead.append(reader.submit(self._chunk, *next_part))
                for low, high in itertools.pairwise(cut(chunk, self._block_rows)):
                    yield slice(start + low, start + high), part_of(chunk, slice(low, high))

    def _chunk(self, start: int, stop: int) -> Block:
        try:
            block = to_block(self._read(start, stop), self._genes, self.dtype)
        except OSError as error:
            msg = f"Cells {start} to {stop} cannot be read: {error}. Was the file truncated, or its disk removed?"
            raise OSError(msg) from error
        seen = [float(part.sum()) for part in np.array_split(_values(block), SEEN_PARTS)]
        if not np.allclose(self._seen.setdefault(start, seen), seen, rtol=1e-6, atol=0, equal_nan=True):
            msg = (
                f"Cells {start} to {stop} have changed since the fit began: the data were modified while being read. "
                "Nothing is written. Repeat the call with data that do not change."
            )
            raise OSError(msg)
        return block


def _shape(block: Block) -> tuple[int, int]:
    return (len(block.indptr) - 1, block.n_genes) if isinstance(block, CSR) else block.shape


def _values(block: Block) -> np.ndarray:
    return block.values if isinstance(block, CSR) else block


def part_of(block: Block, part: slice) -> Block:
    """Return views of some of the rows."""
    return block._replace(indptr=block.indptr[part.start : part.stop + 1]) if isinstance(block, CSR) else block[part]


def cut(block: Block, block_rows: int | None, block_values: int | None = None) -> list[int]:
    """Return the row indices at which blocks start and end."""
    n_rows, n_genes = _shape(block)
    if block_rows is not None:
        inner = np.arange(block_rows, n_rows, block_rows)
    else:
        ends = block.indptr[1:] if isinstance(block, CSR) else np.arange(1, n_rows + 1) * n_genes
        size = block_values or max(BLOCK_VALUES, 64 * n_genes)
        inner = np.searchsorted(ends, np.arange(size, ends[-1], size)) + 1
    return np.unique(np.concatenate([[0], inner, [n_rows]])).tolist()


def to_block(matrix: Any, genes: np.ndarray | None, dtype: type | np.dtype) -> Block:
    """Convert rows of any matrix for the kernels: CSR with int32 columns or an array in C order."""
    check_compressed(matrix, "The matrix")
    if genes is not None and not np.array_equal(genes, np.arange(matrix.shape[1])):
        matrix = matrix[:, genes]
    if not sparse.issparse(matrix):
        return np.ascontiguousarray(matrix, dtype=dtype)
    matrix = matrix.tocsr()
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return CSR(
        matrix.indptr.astype(np.int64, copy=False),
        matrix.indices.astype(np.int32, copy=False),
        matrix.data.astype(dtype, copy=False),
        matrix.shape[1],
    )


def check_compressed(matrix: Any, what: str) -> None:
    """Raise if indices of a CSR or CSC matrix are out of bounds, as in a damaged file: SciPy does not check them."""
    if getattr(matrix, "format", None) not in ("csr", "csc") or not sparse.issparse(matrix):
        return
    ends, numbers = matrix.indptr, matrix.indices[: matrix.indptr[-1]]
    most = matrix.shape[1 if matrix.format == "csr" else 0]
    if ends[0] != 0 or ends[-1] > min(len(numbers), len(matrix.data)) or (ends[1:] < ends[:-1]).any():
        msg = f"{what} must have `indptr` that increases from 0 to the number of values: it is corrupt. Read it again."
        raise UserError(msg)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < most:
        bad = numbers.min() if numbers.min() < 0 else numbers.max()
        msg = f"{what} must have `indices` from 0 to {most - 1}, got {bad}: it is corrupt. Read it again."
        raise UserError(msg)


def piecewise(function: F) -> F:
    """Split a large block into pieces, for a pass that copies its block."""

    @wraps(function)
    def walk(block: Block, rows: Any, *args: Any, **kwargs: Any) -> Any:
        pieces = (slice(*ends) for ends in itertools.pairwise(cut(block, None)))
        parts = (function(part_of(block, few), rows[few], *args, **kwargs) for few in pieces)
        total = next(parts)
        for part in parts:
            total += part
        return total

    return walk  # type: ignore[return-value]
