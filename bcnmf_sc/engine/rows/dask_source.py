"""Distributed cells: a row source over the workers of a dask cluster.

The chunks of a dask array are loaded once, split into blocks, and stay on the workers with their per-cell data, in as
many parts as the workers have threads. A pass broadcasts one message (the function, which holds the loadings) in a
graph of few tasks, and the sums are reduced in a tree.

Every step of a part is a pure task: it copies the part's rows and returns the new ones (reusing the memory of the rows
before those, which nothing refers to: new pages cost more than the copy). If a worker dies, dask can therefore
recompute its parts from the chunks, the messages and the first rows, with a bitwise identical result. The history
needed for that is bounded: every `SNAPSHOT_EVERY` passes the rows are fetched and sent out again as new first rows.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from dask.delayed import delayed

from .sources import ONE_THREAD_EACH, RowSource, cut, part_of, to_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..kernels.block import Block
    from .sources import PerCell, T

SNAPSHOT_EVERY = 50
"""Passes after which the history kept for recovery from a dead worker restarts."""
BLOCK_VALUES = 2**24
"""Values per block: many, since one thread sweeps a part, and each block allocates new pages for its sums."""
FAN_IN = 8
"""Number of sums added in one task, and of parts whose rows pass through this process at a time."""

Blocks = list[tuple[slice, "Block"]]
"""The blocks of a part."""


@dataclass
class WorkerPart:
    """State of a part on a worker between passes."""

    rows: Any
    sums: Any = None
    """Sums of the last pass."""
    spare: Any = None
    """The previous rows, to be overwritten."""

    def __reduce__(self) -> tuple[type[WorkerPart], tuple[Any]]:
        """Only the rows are transferred."""
        return WorkerPart, (self.rows,)


@dataclass
class WorkerRows:
    """Location of the cells' rows."""

    futures: list[Any]
    """`WorkerPart` of each part."""
    n_passes: int = 0


class DaskSource(RowSource):
    """A dask array whose chunks are held by the workers of a cluster."""

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
        filled = [chunk for chunk, n in zip(matrix.to_delayed().ravel(), matrix.chunks[0], strict=True) if n]
        arguments = delayed((genes, dtype, block_rows), traverse=False)
        blocks = [_PREPARE(chunk, arguments) for chunk in filled]
        self._parts, self._blocks = [], []
        for worker, chunks in self._shares(cuts):
            self._parts.append(slice(cuts[chunks.start], cuts[chunks.stop]))
            self._blocks.append(client.compute(_JOIN(blocks[chunks]), workers=[worker], allow_other_workers=True))

    def _shares(self, cuts: Sequence[int]) -> Iterable[tuple[str, slice]]:
        """Assign neighbouring chunks to each thread, with about equal numbers of cells."""
        self._client.wait_for_workers(1)
        workers = [worker for worker, n_threads in self._client.nthreads().items() for _ in range(n_threads)]
        even = np.linspace(0, cuts[-1], len(workers) + 1)
        ends = np.abs(np.subtract.outer(even, cuts)).argmin(axis=1)
        return (
            (worker, slice(*share))
            for worker, share in zip(workers, itertools.pairwise(ends.tolist()), strict=True)
            if share[0] < share[1]
        )

    def place(self, make: Callable[..., PerCell], *arrays: np.ndarray) -> WorkerRows:  # noqa: D102
        # The blocks are passed only for their location.
        parts = [tuple(array[part] for array in arrays) for part in self._parts]
        return WorkerRows(self._map(_make, self._blocks, parts, make=make))

    def reduce(self, fn: Callable[[Block, Any], T], rows: WorkerRows) -> T:  # noqa: D102
        message = delayed(fn, pure=False, traverse=False)
        stepped = [_STEP(blocks, old, message) for blocks, old in zip(self._blocks, rows.futures, strict=True)]
        sums = [_SUMS(held) for held in stepped]  # separate tasks, since rows stay on their worker
        while len(sums) > FAN_IN:
            sums = [_ADD(sums[at : at + FAN_IN]) for at in range(0, len(sums), FAN_IN)]
        with _large_messages():
            futures = self._client.compute([*stepped, *sums])
        rows.futures = futures[: len(stepped)]
        total: T = _add(self._client.gather(futures[len(stepped) :]))
        rows.n_passes += 1
        if rows.n_passes % SNAPSHOT_EVERY == 0:
            self._snapshot(rows)
        return total

    def gather(self, rows: WorkerRows, name: str) -> np.ndarray:  # noqa: D102
        parts = self._map(_field, rows.futures, name=name)
        return np.concatenate(self._client.gather(parts))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Leave the cores to the workers, which may run on this machine."""
        with ONE_THREAD_EACH:
            yield

    def _snapshot(self, rows: WorkerRows) -> None:
        """Place the rows again, without their history."""
        for at in range(0, len(rows.futures), FAN_IN):
            here = slice(at, at + FAN_IN)
            values = self._client.gather(rows.futures[here])
            rows.futures[here] = self._map(_placed, self._blocks[here], values)

    def _map(self, function: Callable[..., Any], *each: Sequence[Any], **same: Any) -> list[Any]:
        with _large_messages():
            return self._client.map(function, *each, pure=False, **same)


def _large_messages() -> Any:
    """Keep arrays in the graph, from which they can be recovered if a worker dies."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})


# -- on the workers ----------------------------------------------------------------------------------------------------


def _prepare(chunk: Any, arguments: tuple[np.ndarray | None, type, int | None]) -> Blocks:
    genes, dtype, block_rows = arguments
    whole = to_block(chunk, genes, dtype)
    cells = (slice(*ends) for ends in itertools.pairwise(cut(whole, block_rows, BLOCK_VALUES)))
    return [(few, part_of(whole, few)) for few in cells]


def _join(parts: Sequence[Blocks]) -> Blocks:
    joined: Blocks = []
    for part in parts:
        first = joined[-1][0].stop if joined else 0
        joined += [(slice(first + few.start, first + few.stop), block) for few, block in part]
    return joined


def _make(blocks: Blocks, arrays: tuple[np.ndarray, ...], make: Callable[..., PerCell]) -> WorkerPart:
    return WorkerPart(deepcopy(make(*arrays)))  # `make` may keep the message's own arrays


def _placed(blocks: Blocks, held: WorkerPart) -> WorkerPart:
    return WorkerPart(deepcopy(held.rows))  # do not modify the message


def _field(held: WorkerPart, name: str) -> Any:
    return getattr(held.rows, name)


def _sums(held: WorkerPart) -> Any:
    return held.sums


def _step(blocks: Blocks, old: WorkerPart, message: Callable[[Block, Any], Any]) -> WorkerPart:
    if old.spare is None:
        rows = deepcopy(old.rows)
    else:
        rows = old.spare
        for name, values in vars(old.rows).items():
            np.copyto(getattr(rows, name), values)
    with ONE_THREAD_EACH:
        parts = (message(block, rows[part]) for part, block in blocks)
        total = next(parts)
        for part in parts:
            total += part
    return WorkerPart(rows, total, old.rows)


def _add(parts: Sequence[T]) -> T:
    total = deepcopy(parts[0])
    for part in parts[1:]:
        total += part  # type: ignore[operator]
    return total


_PREPARE, _JOIN, _STEP, _SUMS, _ADD = (
    delayed(function, pure=False) for function in (_prepare, _join, _step, _sums, _add)
)
