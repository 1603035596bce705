"""Cells on a device: a row source whose blocks are torch tensors, kept on the device if they fit and sent otherwise.

It wraps a source of this process. The solver's passes run on the device; everything else (the checks of the values
before a fit) is left to that source.
"""

from __future__ import annotations

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from ..._utils.errors import UserError, UserTypeError
from ..kernels.block import CSR, Block, Rows
from ..kernels.torch import DenseCells, SparseCells, TorchBlock, TorchRows, TorchSums
from .sources import MemorySource, RowSource, cut, part_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from .sources import LocalSource, PerCell, T

logger = logging.getLogger(__name__)

BLOCK_VALUES = {"cpu": 2**20, "cuda": 2**24}
"""Maximum values per block: many, to amortise kernel launches, while a block's usage fits in the device's cache."""
PIECE_VALUES = {"cpu": 2**17, "cuda": 2**25}
"""Maximum number of cells x genes values of a dense temporary."""
BLOCK_BYTES, PIECE_BYTES = 64, 64
"""Peak memory of a pass per value of a block and of a piece, beyond the data."""
SMALLEST = 2**10
"""Smallest block, in values, that must fit."""

Loaded: TypeAlias = tuple[slice, TorchBlock, Any]
"""Rows, their block, and the event after which it is on the device."""


class TorchSource(RowSource):
    """The cells of another source, processed by torch.

    Blocks are kept on the device, from the first row on, as long as enough memory is left for the computation; the
    others are sent on every pass, from pinned memory and while the previous block is processed. On running out of
    memory, a block is repeated in smaller parts.

    Parameters
    ----------
    host
        The cells.
    device
        Torch device: a CUDA device, or the CPU (for checks; `kernels.cpu` is faster there).
    memory
        Device memory for the data in bytes; by default the free memory minus what the computation needs. With 0, all
        blocks are sent on every pass.
    block_rows
        Cells per block; by default limited by memory.
    """

    def __init__(
        self, host: LocalSource, device: str, *, memory: int | None = None, block_rows: int | None = None
    ) -> None:
        self.host, self.device = host, torch.device(device)
        self.shape, self.dtype = host.shape, host.dtype
        self._memory, self._block_rows = memory, block_rows
        self._kept: list[tuple[slice, TorchBlock]] = []
        self._is_cuda = self.device.type == "cuda"
        self._copies: Any = torch.cuda.Stream(self.device) if self._is_cuda else None
        self._at_work = False
        kind = "cuda" if self._is_cuda else "cpu"
        share = self._free() / 8  # share of the memory for computing on a block and on a piece
        self._block_values = int(min(BLOCK_VALUES[kind], max(share / BLOCK_BYTES, SMALLEST)))
        self._piece_values = int(min(PIECE_VALUES[kind], max(share / PIECE_BYTES, SMALLEST)))
        # Memory to keep free: a block's temporaries, two blocks in transfer, a piece's temporaries.
        per_value = BLOCK_BYTES + 2 * self._bytes_per_value()
        self._reserve = self._block_values * per_value + self._piece_values * PIECE_BYTES

    # -- what the solver asks for --------------------------------------------------------------------------------------

    def place(self, make: Callable[..., PerCell], *arrays: np.ndarray) -> Any:  # noqa: D102
        made = self.host.place(make, *arrays)
        if not isinstance(made, Rows):
            return made
        fields = [getattr(made, name) for name in TorchRows.__dataclass_fields__]
        try:
            return TorchRows(*(self._sent(field) for field in fields))
        except torch.cuda.OutOfMemoryError:
            if not self._kept:
                raise
        self._forget(0)
        return TorchRows(*(self._sent(field) for field in fields))

    def gather(self, rows: Any, name: str) -> np.ndarray:  # noqa: D102
        return getattr(rows, name).numpy(force=True) if isinstance(rows, TorchRows) else self.host.gather(rows, name)

    def reduce(self, fn: Callable[[Block, Any], T], rows: Any) -> T:  # noqa: D102
        if not isinstance(rows, TorchRows):
            return self.host.reduce(fn, rows)
        with self.working():
            total = self._reduce(fn, rows)
        result: Any = total.to_numpy()
        return result

    @contextmanager
    def working(self) -> Iterator[None]:
        """On the CPU, limit torch to the source's threads."""
        if self._at_work or self._is_cuda:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self.host.n_threads)
        self._at_work = True
        try:
            yield
        finally:
            self._at_work = False
            torch.set_num_threads(before)

    # -- blocks --------------------------------------------------------------------------------------------------------

    def _reduce(self, fn: Callable[..., Any], rows: TorchRows) -> TorchSums:
        total = TorchSums()
        row = 0
        while row < self.shape[0]:
            blocks = self._blocks(row)
            tried, failed = None, None
            try:
                for part, block in blocks:
                    tried = (len(block.cells), _n_values(block.cells))
                    total += fn(block, rows[part])
                    self._keep(part, block)
                    row, tried = part.stop, None
            except torch.cuda.OutOfMemoryError as error:
                failed = error.with_traceback(None)  # its frames would keep the memory in use
            finally:
                blocks.close()
                block = None
            if failed is not None:
                self._shrink(row, tried, failed)
        return total

    def _blocks(self, start: int) -> Generator[tuple[slice, Any], None, None]:
        """Yield the blocks from a row on, which must be the first of a block."""
        for part, block in list(self._kept):
            if part.start >= start:
                yield part, block
        start = max(start, self._kept[-1][0].stop if self._kept else 0)
        if start == self.shape[0]:
            return
        loads = self._loads(start)
        with ThreadPoolExecutor(1) as loader:
            ahead = loader.submit(self._load_next, loads)
            while (loaded := ahead.result()) is not None:
                ahead = loader.submit(self._load_next, loads)
                part, block, arrived = loaded
                if arrived is not None:
                    now = torch.cuda.current_stream(self.device)
                    now.wait_event(arrived)
                    for tensor in vars(block.cells).values():
                        if isinstance(tensor, torch.Tensor):
                            tensor.record_stream(now)
                yield part, block
                del loaded, block

    def _loads(self, start: int) -> Iterator[tuple[slice, list[Block]]]:
        """Yield the host's rows in parts of one block each."""
        chunks: Iterable[tuple[slice, Block]] = self.host.blocks()
        if isinstance(self.host, MemorySource):
            chunks = [(slice(0, self.shape[0]), self.host.matrix)]
        parts: list[Block] = []
        size, begin, end = 0, start, start
        for chunk, matrix in chunks:
            if chunk.stop <= start:
                continue
            skip = max(start - chunk.start, 0)
            matrix = part_of(matrix, slice(skip, chunk.stop - chunk.start))
            for low, high in itertools.pairwise(cut(matrix, self._block_rows, self._block_values)):
                part = part_of(matrix, slice(low, high))
                more = _n_values(part)
                if parts and (self._block_rows is not None or size + more > self._block_values):
                    yield slice(begin, end), parts
                    parts, size, begin = [], 0, end
                parts.append(part)
                size, end = size + more, end + high - low
        yield slice(begin, end), parts

    def _load_next(self, loads: Iterator[tuple[slice, list[Block]]]) -> Loaded | None:
        """Start the transfer of the next block."""
        load = next(loads, None)
        if load is None:
            return None
        rows, parts = load
        with torch.cuda.stream(self._copies) if self._is_cuda else nullcontext():
            cells: SparseCells | DenseCells
            if isinstance(parts[0], CSR):
                sparse: Any = parts
                here = [slice(part.indptr[0], part.indptr[-1]) for part in sparse]
                lengths = np.concatenate([[0], *(np.diff(part.indptr) for part in sparse)])
                cells = SparseCells(
                    self._sent(np.cumsum(lengths).astype(np.int32)),
                    self._sent(*(part.indices[at] for part, at in zip(sparse, here, strict=True))),
                    self._sent(*(part.values[at] for part, at in zip(sparse, here, strict=True))),
                    self.shape[1],
                )
            else:
                cells = DenseCells(self._sent(*parts))
            arrived = self._copies.record_event() if self._is_cuda else None
        return rows, TorchBlock(cells, self._piece_values), arrived

    def _sent(self, *arrays: Any) -> torch.Tensor:
        """Return arrays, concatenated along the rows, on the device; the copy may still be in progress."""
        if not self._is_cuda:
            array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            return torch.from_numpy(array if array.flags.writeable else array.copy())
        shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
        pinned = torch.from_numpy(np.empty(0, arrays[0].dtype)).new_empty(shape, pin_memory=True)
        np.concatenate(arrays, out=pinned.numpy())
        return pinned.to(self.device, non_blocking=True)

    # -- memory --------------------------------------------------------------------------------------------------------

    def _bytes_per_value(self) -> int:
        """Return the device memory per value of a kept block: value, gene, and index in gene order."""
        size = self.dtype.itemsize
        is_dense = isinstance(self.host, MemorySource) and not isinstance(self.host.matrix, CSR)
        return size if is_dense else size + 12

    def _free(self) -> float:
        """Return the available memory in bytes."""
        if not self._is_cuda:
            return np.inf
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return float(torch.cuda.mem_get_info(self.device)[0] + unused)

    def _keep(self, part: slice, block: TorchBlock) -> None:
        """Keep a block that follows those kept, if it fits."""
        if part.start != (self._kept[-1][0].stop if self._kept else 0):
            return
        if self._memory is not None:
            n_values = sum(_n_values(each.cells) for _, each in [*self._kept, (part, block)])
            room: float = self._memory - n_values * self._bytes_per_value()
        else:
            room = self._free() - self._reserve
        if room >= 0:
            self._kept.append((part, block))

    def _forget(self, row: int) -> None:
        """Release the blocks from a row on."""
        self._kept = [(part, block) for part, block in self._kept if part.stop <= row]
        if self._is_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _shrink(self, row: int, tried: tuple[int, int] | None, error: torch.cuda.OutOfMemoryError) -> None:
        """After running out of memory at a row, use smaller parts from there on, and keep more memory free.

        ``tried`` are the cells and values of the failing block, unless it was in transfer.
        """
        n_cells, n_values = tried or (self.shape[0], self._block_values)
        if n_cells == 1 or (tried is None and n_values <= SMALLEST):
            error.add_note(f"{self.device} does not have enough memory even for one cell. Free some, or use the CPU.")
            raise error
        self._block_values = max(1, min(self._block_values, n_values) // 2)
        self._piece_values = min(self._piece_values, n_cells * self.shape[1]) // 2
        if self._block_rows is not None:
            self._block_rows = max(1, self._block_rows // 2)
        self._reserve *= 2
        self._forget(row)
        self._kept = [(part, TorchBlock(block.cells, self._piece_values)) for part, block in self._kept]
        logger.warning(
            "Out of memory on %s at cell %d: continuing with blocks of at most %d values.",
            self.device, row, self._block_values,
        )  # fmt: skip


def _n_values(rows: Block | SparseCells | DenseCells) -> int:
    if isinstance(rows, CSR):
        return int(rows.indptr[-1] - rows.indptr[0])
    return int(np.prod((rows if isinstance(rows, np.ndarray) else rows.values).shape))


def from_torch(matrix: torch.Tensor) -> Any:
    """Return a tensor, cells x genes, as a NumPy array or a SciPy CSR matrix, without a copy if it is on the CPU."""
    from scipy import sparse

    if matrix.layout == torch.strided:
        return matrix.numpy(force=True)
    if matrix.layout == torch.sparse_coo:
        matrix = matrix.coalesce()
        rows, columns = matrix.indices().numpy(force=True)
        return sparse.coo_array((matrix.values().numpy(force=True), (rows, columns)), shape=tuple(matrix.shape)).tocsr()
    if matrix.layout == torch.sparse_csr:
        parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
        return sparse.csr_array(tuple(part.numpy(force=True) for part in parts), shape=tuple(matrix.shape))
    msg = f"A tensor must be dense, sparse COO or sparse CSR, got {matrix.layout}. Convert it with `.to_sparse_csr()`."
    raise UserTypeError(msg)


def cuda_device(device: str) -> str:
    """Raise unless the name is that of an available CUDA device."""
    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = torch.device("meta")
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parsed.type != "cuda" or (parsed.index or 0) >= n_devices:
        present = ", ".join(["'cpu'", *(f"'cuda:{number}'" for number in range(n_devices))])
        msg = f"`device` must be a device for fits, got {device!r}. Present: {present}."
        raise UserError(msg)
    return device
