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
"""Values (non-zeros, if sparse) per block: much against the sums that a block returns, little against the data."""
SEEN_PARTS = 16
"""Parts of a chunk whose sums tell, in a hundredth of a pass's time, whether it is what it was."""


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
F = TypeVar("F", bound="Callable[..., Any]")


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
        # what OpenMP may use is set for each thread by itself
        each = partial(threadpool_limits, 1, "openmp")
        with ONE_THREAD_EACH, ThreadPoolExecutor(self.n_threads, initializer=each) as self._pool:
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


ONE_THREAD_EACH = _OneThreadEach()
"""The process's only one."""


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
        """Return sources with one thread each: many small fits use them better than one fit uses many threads."""
        shares: list[RowSource] = []
        for _ in range(self.n_threads):
            share = copy(self)
            share.n_threads, share._pool = 1, None
            shares.append(share)
        return shares


class ReadSource(LocalSource):
    """A matrix too large for memory, read in row chunks that are cut into blocks; a thread reads one chunk ahead.

    A chunk that is not what it was in the first pass ends the fit: of a file cut short, HDF5 and zarr give zeros.
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
            msg = f"Cells {start} to {stop} cannot be read: {error}. Was the file cut short, or its disk taken away?"
            raise OSError(msg) from error
        seen = [float(part.sum()) for part in np.array_split(_values(block), SEEN_PARTS)]
        if not np.allclose(self._seen.setdefault(start, seen), seen, rtol=1e-6, atol=0, equal_nan=True):
            msg = (
                f"Cells {start} to {stop} are not what they were when the fit began: the data changed while they were "
                "read. Nothing is written. Repeat the call with data that stay as they are."
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
    """Row numbers at which blocks begin and end."""
    n_rows, n_genes = _shape(block)
    if block_rows is not None:
        inner = np.arange(block_rows, n_rows, block_rows)
    else:
        ends = block.indptr[1:] if isinstance(block, CSR) else np.arange(1, n_rows + 1) * n_genes
        size = block_values or max(BLOCK_VALUES, 64 * n_genes)
        inner = np.searchsorted(ends, np.arange(size, ends[-1], size)) + 1
    return np.unique(np.concatenate([[0], inner, [n_rows]])).tolist()


def to_block(matrix: Any, genes: np.ndarray | None, dtype: type | np.dtype) -> Block:
    """Turn rows of any matrix into what the kernels read: CSR with int32 columns or an array in C order."""
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
    """Refuse a CSR or CSC matrix whose numbers lead out of its arrays, as those of a damaged file do: SciPy follows."""
    if getattr(matrix, "format", None) not in ("csr", "csc") or not sparse.issparse(matrix):
        return
    ends, numbers = matrix.indptr, matrix.indices[: matrix.indptr[-1]]
    most = matrix.shape[1 if matrix.format == "csr" else 0]
    if ends[0] != 0 or ends[-1] > min(len(numbers), len(matrix.data)) or (ends[1:] < ends[:-1]).any():
        msg = f"{what} must have `indptr` that rises from 0 to the number of its values: it is broken. Read it again."
        raise UserError(msg)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < most:
        bad = numbers.min() if numbers.min() < 0 else numbers.max()
        msg = f"{what} must have `indices` from 0 to {most - 1}, got {bad}: it is broken. Read it again."
        raise UserError(msg)


def piecewise(function: F) -> F:
    """Let a pass that makes copies of its block see a large one in pieces."""

    @wraps(function)
    def walk(block: Block, rows: Any, *args: Any, **kwargs: Any) -> Any:
        pieces = (slice(*ends) for ends in itertools.pairwise(cut(block, None)))
        parts = (function(part_of(block, few), rows[few], *args, **kwargs) for few in pieces)
        total = next(parts)
        for part in parts:
            total += part
        return total

    return walk  # type: ignore[return-value]
