"""Open a matrix: the row source for each kind of array."""

from __future__ import annotations

import sys
from typing import Any

import joblib
import numpy as np
from scipy import sparse

from ..._utils.errors import UserError, UserTypeError
from .sources import LocalSource, MemorySource, ReadSource, RowSource, to_block

READ_VALUES = 2**22
"""Number of values read from disk at once."""


def row_source(
    matrix: Any,
    *,
    genes: np.ndarray | None = None,
    dtype: type = np.float32,
    block_rows: int | None = None,
    n_threads: int | None = None,
    client: Any = None,
    device: str | None = None,
    device_memory: int | None = None,
) -> RowSource:
    """Make a row source of a matrix, cells x genes.

    Parameters
    ----------
    matrix
        NumPy array or SciPy sparse matrix (float32 CSR with int32 columns and float32 arrays in C order are used
        without a copy, anything else is converted once); or, read in row chunks on every pass, a backed sparse dataset
        (CSR), an HDF5 or zarr array, or a dask array with chunks of either kind; or a torch tensor (dense, sparse COO
        or CSR) on any device, which is copied to the CPU.
    genes
        Indices of the columns to use; all by default.
    dtype
        float32, or float64 for checks.
    block_rows
        Cells per block; by default so many that a block has about `BLOCK_VALUES` values.
    n_threads
        Number of threads that process blocks; by default the number of available cores.
    client
        Client of a dask cluster, whose workers load the chunks of a dask array once, hold and process them; the active
        client by default, if there is one.
    device
        CUDA device to compute on, as named by torch; by default the CPU, with other kernels and without importing
        torch, even if there is a CUDA device.
    device_memory
        Device memory for the data in bytes; by default the free memory minus what the computation needs. Data beyond
        that are transferred on every pass.
    """
    if device is not None and device != "cpu":
        from .torch_source import TorchSource, cuda_device

        cuda_device(device)  # before any work
        host = row_source(matrix, genes=genes, dtype=dtype, block_rows=block_rows, n_threads=n_threads, client=client)
        if not isinstance(host, LocalSource):
            msg = f"`device` must be 'cpu' for data on dask workers, got {device!r}."
            raise UserError(msg)
        return TorchSource(host, device, memory=device_memory, block_rows=block_rows)
    if "torch" in sys.modules and isinstance(matrix, sys.modules["torch"].Tensor):
        from .torch_source import from_torch

        matrix = from_torch(matrix)
    is_dask = hasattr(matrix, "dask")
    if is_dask:
        client = _active_client() if client is None else client
        cuts = _chunk_cuts(matrix)
        if client is not None:
            from .dask_source import DaskSource

            return DaskSource(matrix, cuts, client, genes=genes, dtype=dtype, block_rows=block_rows)

        def read(start: int, stop: int) -> Any:
            return matrix[start:stop].compute(scheduler="synchronous")

    elif client is not None:
        msg = (
            f"`client` must come with a dask array, got {type(matrix).__name__}. Read the matrix with "
            "`anndata.experimental.read_elem_lazy`, or leave `client` out."
        )
        raise UserError(msg)

    n_threads = n_threads or joblib.cpu_count()
    if isinstance(matrix, np.ndarray) or sparse.issparse(matrix):
        return MemorySource(to_block(matrix, genes, dtype), block_rows=block_rows, n_threads=n_threads)
    if not is_dask:
        cuts = _disk_cuts(matrix)

        def read(start: int, stop: int) -> Any:
            return matrix[start:stop]

    n_genes = matrix.shape[1]
    return ReadSource(read, cuts, n_genes, genes=genes, dtype=dtype, block_rows=block_rows, n_threads=n_threads)


def _active_client() -> Any:
    """Return the active dask client, or None, without importing or starting anything."""
    if "distributed" not in sys.modules:
        return None
    from distributed import Client

    try:
        return Client.current()
    except ValueError:
        return None


def _chunk_cuts(matrix: Any) -> list[int]:
    """Return the row indices at which the chunks of a dask array start and end."""
    rows = np.array(matrix.chunks[0], float)
    if not np.isfinite([*rows, matrix.shape[1]]).all():
        msg = "A dask array must have known chunk sizes. Call its `compute_chunk_sizes()` first."
        raise UserError(msg)
    return np.unique([0, *np.cumsum(rows).astype(int)]).tolist()


def _disk_cuts(matrix: Any) -> list[int]:
    """Return row indices at which to split a matrix on disk so that about `READ_VALUES` values are read at once."""
    if not hasattr(matrix, "shape") or len(matrix.shape) != 2:  # noqa: PLR2004
        msg = (
            f"The matrix must be an array of cells x genes in memory, on disk or in dask, got {type(matrix).__name__}."
        )
        raise UserTypeError(msg)
    n_rows, n_genes = matrix.shape
    if not hasattr(matrix, "group"):
        step = max(1, READ_VALUES // max(n_genes, 1))
        return [*range(0, n_rows, step), n_rows]
    if matrix.format != "csr":
        msg = (
            f"A sparse matrix on disk must be CSR to be read by cells, got {matrix.format.upper()}. Read it into "
            "memory, or store it as CSR."
        )
        raise UserError(msg)
    ends = matrix.group["indptr"][1:]
    inner = np.searchsorted(ends, np.arange(READ_VALUES, ends[-1], READ_VALUES), side="right")
    return np.unique([0, *inner, n_rows]).tolist()
