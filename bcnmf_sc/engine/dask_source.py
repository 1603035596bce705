"""Cells on many machines: a row source over the workers of a dask cluster.

The chunks of a dask array are loaded once, a few together where they are small, turned into blocks, and stay on the
workers with what belongs to their cells. A pass sends out one message (the function, which holds the loadings), and the
sums come back through a tree.

Every step of a chunk is a pure task: it copies the chunk's rows and returns the new ones. So dask can repeat what a
worker that dies takes with it, from the chunk, the messages and the first rows, and the result is the same to the bit.
What it has to remember for that is bounded: every `SNAPSHOT_EVERY` passes the rows are fetched and sent out again, as
new first rows.
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from dask.delayed import delayed
from scipy import sparse

from .sources import ONE_THREAD_EACH, RowSource, cut, part_of, to_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .kernels import Block
    from .sources import PerCell, T

CHUNK_ENTRIES = 2**25
"""Entries, zeros too, up to which sparse chunks are put together, so that a task is worth its administration."""
DENSE_CHUNK_ENTRIES = 2**22
"""The same for dense chunks."""
SNAPSHOT_EVERY = 50
"""Passes after which what is kept for the death of a worker begins anew."""
FAN_IN = 8
"""Sums that are added in one task, and chunks whose rows pass through this process at a time."""

Blocks = list[tuple[slice, "Block"]]
"""A chunk, cut."""


@dataclass
class WorkerRows:
    """Where the cells' rows are."""

    futures: list[Any]
    """Of the rows of each chunk."""
    n_passes: int = 0


class DaskSource(RowSource):
    """A dask array whose chunks lie on the workers of a cluster."""

    def __init__(
        self,
        matrix: Any,
        cuts: Sequence[int],
        client: Any,
        *,
        genes: np.ndarray | None,
        dtype: type,
        block_rows: int | None,
    ) -> None:
        self.shape = (cuts[-1], matrix.shape[1] if genes is None else len(genes))
        self.dtype = np.dtype(dtype)
        self._client = client
        if matrix.numblocks[1] > 1:
            matrix = matrix.rechunk({1: -1})
        size = CHUNK_ENTRIES if sparse.issparse(matrix._meta) else DENSE_CHUNK_ENTRIES
        together = _together(cuts, size // max(self.shape[1], 1))
        self._parts = [slice(cuts[few.start], cuts[few.stop]) for few in together]
        filled = [chunk for chunk, n in zip(matrix.to_delayed().ravel(), matrix.chunks[0], strict=True) if n]
        prepare = delayed(_prepare, pure=False)
        arguments = delayed((genes, dtype, block_rows), traverse=False)
        blocks = [prepare(filled[few], arguments) for few in together]
        # Neighbours on one worker: then most sums are added where they are made.
        self._chunks: list[Any] = []
        for worker, share in self._shares():
            self._chunks += client.compute(blocks[share], workers=[worker], allow_other_workers=True)

    def _shares(self) -> Iterable[tuple[str, slice]]:
        """Which chunks each worker should load, by its number of threads."""
        self._client.wait_for_workers(1)
        threads = self._client.nthreads()
        ends = np.cumsum(list(threads.values()))
        ends = np.round(ends / ends[-1] * len(self._parts)).astype(int).tolist()
        return ((worker, slice(*part)) for worker, part in zip(threads, itertools.pairwise([0, *ends]), strict=True))

    def place(self, make: Callable[..., PerCell], *arrays: np.ndarray) -> WorkerRows:  # noqa: D102
        # The chunk is passed for the sake of where it is.
        parts = [tuple(array[part] for array in arrays) for part in self._parts]
        return WorkerRows(self._map(_make, self._chunks, parts, make=make))

    def reduce(self, fn: Callable[[Block, Any], T], rows: WorkerRows) -> T:  # noqa: D102
        message = delayed(fn, pure=False, traverse=False)
        stepped = [_STEP(chunk, row, message) for chunk, row in zip(self._chunks, rows.futures, strict=True)]
        sums = [_SECOND(pair) for pair in stepped]
        while len(sums) > 1:
            sums = [_ADD(sums[at : at + FAN_IN]) for at in range(0, len(sums), FAN_IN)]
        with _large_messages():  # one graph a pass
            *rows.futures, total_future = self._client.compute([*(_FIRST(pair) for pair in stepped), sums[0]])
        total: T = total_future.result()
        rows.n_passes += 1
        if rows.n_passes % SNAPSHOT_EVERY == 0:
            self._snapshot(rows)
        return total

    def gather(self, rows: WorkerRows, name: str) -> np.ndarray:  # noqa: D102
        parts = self._map(getattr, rows.futures, [name] * len(rows.futures))
        return np.concatenate(self._client.gather(parts))

    def _snapshot(self, rows: WorkerRows) -> None:
        """Put the rows in place anew, without a past."""
        for at in range(0, len(rows.futures), FAN_IN):
            here = slice(at, at + FAN_IN)
            values = self._client.gather(rows.futures[here])
            rows.futures[here] = self._map(_placed, self._chunks[here], values)

    def _map(self, function: Callable[..., Any], *each: Sequence[Any], **same: Any) -> list[Any]:
        with _large_messages():
            return self._client.map(function, *each, pure=False, **same)


def _together(cuts: Sequence[int], most: int) -> list[slice]:
    """Which neighbouring chunks make one of at most so many rows (more only where a chunk has more by itself)."""
    begins = [0]
    for at in range(1, len(cuts) - 1):
        if cuts[at + 1] - cuts[begins[-1]] > most:
            begins.append(at)
    return [slice(*ends) for ends in itertools.pairwise([*begins, len(cuts) - 1])]


def _large_messages() -> Any:
    """Let arrays lie in the graph, from which they can be had again whichever worker dies."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})


# -- on the workers ----------------------------------------------------------------------------------------------------


def _prepare(chunks: Sequence[Any], arguments: tuple[np.ndarray | None, type, int | None]) -> Blocks:
    genes, dtype, block_rows = arguments
    blocks, first = [], 0
    for chunk in chunks:
        whole = to_block(chunk, genes, dtype)
        for low, high in itertools.pairwise(cut(whole, block_rows)):
            blocks.append((slice(first + low, first + high), part_of(whole, slice(low, high))))
        first += chunk.shape[0]
    return blocks


def _make(blocks: Blocks, arrays: tuple[np.ndarray, ...], make: Callable[..., PerCell]) -> PerCell:
    return make(*arrays)


def _placed(blocks: Blocks, rows: PerCell) -> PerCell:
    return rows


def _itself(message: Any) -> Any:
    return message


def _step(blocks: Blocks, rows: PerCell, message: Callable[[Block, Any], T]) -> tuple[PerCell, T]:
    rows = deepcopy(rows)  # the old ones are what a repeated task starts from
    with ONE_THREAD_EACH:
        parts = (message(block, rows[part]) for part, block in blocks)
        total = next(parts)
        for part in parts:
            total += part  # type: ignore[operator] # mypy looks for __add__
    return rows, total


def _add(parts: Sequence[T]) -> T:
    total = deepcopy(parts[0])
    for part in parts[1:]:
        total += deepcopy(part)  # type: ignore[operator] # which it may take over
    return total


_STEP, _ADD = (delayed(function, pure=False) for function in (_step, _add))
_FIRST, _SECOND = (delayed(itemgetter(at), pure=False, name=name) for at, name in enumerate(("rows-of", "sums-of")))
