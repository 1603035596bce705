"""A fit from a file: memory, time per pass against reading plus computing, and a second format.

Counts, 95 % zeros, are made and written chunk by chunk, as h5ad (CSR, uncompressed) and as zarr (CSR, compressed by
zstd). Each side runs in a process of its own with all threads. The file has just been written, so it is read from the
system's cache where that has room: the hardest case for the ratio, as nothing hides the work around the reading. Bars:
resident memory under 2 GB, a pass within twice the time of reading the file alone plus that of the pass in memory, and
the same loadings from both formats to 1e-5. With ``--full``, 1,000,000 cells x 3,000 genes and 20 topics (about 2 GB of
disk).
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import scanpy as sc
import zarr
from _common import memory, simulate, table, verdict
from scipy import sparse

from bcnmf_sc.engine import Poisson, Run, fit, row_source
from bcnmf_sc.engine.bcnmf import solver
from bcnmf_sc.engine.rows.summary import Groups, summarise

N_GENES, N_TOPICS, ALPHA, ZEROS, N_PASSES = 3000, 20, 0.3, 0.95, 3
CHUNK = 20_000
"""Cells that are in memory while the files are made."""
PART = 2**20
"""Values per chunk of the files."""


def fresh(function, *args):
    """Call in a fresh process that may use all threads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def write(folder: str, n_cells: int) -> tuple[int, float]:
    """Write both files; returns the number of non-zeros and what it took in MB."""
    base = simulate(CHUNK // 2, CHUNK // 2, N_GENES, zeros=ZEROS)
    base.indices = base.indices.astype(np.int32)
    rng = np.random.default_rng(0)
    ad.AnnData(sparse.csr_matrix((n_cells, N_GENES), dtype=np.float32)).write_h5ad(f"{folder}/x.h5ad")
    h5, z = h5py.File(f"{folder}/x.h5ad", "a"), zarr.open_group(f"{folder}/x.zarr", mode="w", zarr_format=2)
    encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, N_GENES]}
    zx = z.create_group("X", attributes=encoding)
    hx, ends = h5["X"], [np.zeros(1, np.int64)]
    for name in ("data", "indices", "indptr"):
        del hx[name]
    kinds = {"data": np.float32, "indices": np.int32}
    out = {name: hx.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(PART,)) for name, kind in kinds.items()}
    total = int(base.nnz / CHUNK * n_cells * 1.01)
    zout = {name: zx.create_array(name, shape=(total,), dtype=kind, chunks=(PART,)) for name, kind in kinds.items()}
    n = 0
    pending = {name: [] for name in kinds}

    def flush(*, rest: bool) -> int:
        arrays = {name: np.concatenate(pending[name]) if pending[name] else np.zeros(0, kinds[name]) for name in kinds}
        whole = len(arrays["data"]) if rest else len(arrays["data"]) // PART * PART
        for name, array in arrays.items():
            out[name].resize((n + whole,))
            out[name][n:] = zout[name][n : n + whole] = array[:whole]
            pending[name] = [array[whole:]]
        return n + whole

    for start in range(0, n_cells, CHUNK):
        rows = base[rng.permutation(CHUNK)[: min(CHUNK, n_cells - start)]]  # the same cells in another order ...
        rows.data = rows.data + rng.binomial(1, 0.05, rows.nnz).astype(np.float32)  # ... with other counts
        ends.append(ends[-1][-1] + rows.indptr[1:].astype(np.int64))
        for name in kinds:
            pending[name].append(getattr(rows, name))
        n = flush(rest=False)
    n = flush(rest=True)
    for array in zout.values():
        array.resize((n,))
    indptr = np.concatenate(ends)
    hx.create_dataset("indptr", data=indptr)
    zx.create_array("indptr", data=indptr, chunks=(PART,))
    h5.close()
    return n, memory(peak=True)


def opened(folder: str, kind: str):
    if kind == "h5ad":
        return sc.read_h5ad(f"{folder}/x.h5ad", backed="r").X
    return ad.io.sparse_dataset(zarr.open_group(f"{folder}/x.zarr", mode="r")["X"])


def read_alone(folder: str, kind: str) -> list[float]:
    """Seconds to read the file once, in the chunks of a fit."""
    matrix = opened(folder, kind)
    cuts, times = row_source(matrix)._cuts, []
    for _ in range(2):
        start = time.perf_counter()
        for low, high in itertools.pairwise(cuts):
            matrix[low:high]
        times.append(time.perf_counter() - start)
    return times


def fitted(folder: str, kind: str, n_cells: int, *, in_memory: int = 0) -> dict:
    """A few passes of a fit: of all cells from the file, or of some from memory."""
    matrix = opened(folder, kind)
    if in_memory:
        matrix, n_cells = matrix[:in_memory], in_memory
    source = row_source(matrix)
    target = np.arange(n_cells) % 2 == 0
    reduce, times = source.reduce, []

    def timed(fn, rows):
        start = time.perf_counter()
        total = reduce(fn, rows)
        times.append(time.perf_counter() - start)
        return total

    source.reduce = timed
    groups = source.place(Groups, target[:, None], np.zeros(n_cells))
    source.reduce(lambda block, rows: summarise(block, rows, Poisson()), groups)
    run = Run(max_iter=1 + N_PASSES, tol=0, check_every=10**9)
    solver.USAGE_STEPS = 5  # the final usage is one pass of many steps: not what is measured
    f = fit(source, Poisson(), N_TOPICS, target=target.astype(float), background=ALPHA * ~target, run=run)
    # left out: the summary, and the first pass, which looks at the loss
    return {"W": f.W, "times": times[2 : 2 + N_PASSES], "peak": memory(peak=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="1,000,000 cells (3 GB of disk)")
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--kinds", nargs="+", default=["h5ad", "zarr"])
    args = parser.parse_args()
    n_cells = 1_000_000 if args.full else args.cells
    folder = tempfile.mkdtemp()
    try:
        nnz, peak = fresh(write, folder, n_cells)
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        size = {kind: sum(file.stat().st_size for file in files if f"x.{kind}" in str(file)) for kind in args.kinds}
        part = min(n_cells, 100_000)  # the pass in memory is measured on a part, and counts for all
        some = fresh(fitted_part, folder, n_cells, part)
        compute = np.median(some["times"]) * n_cells / part
        rows, got = [], {}
        for kind in args.kinds:
            reading = min(fresh(read_alone, folder, kind))
            got[kind] = fresh(fitted, folder, kind, n_cells)
            seconds = float(np.median(got[kind]["times"]))
            ratio, peak_here = seconds / (reading + compute), round(got[kind]["peak"])
            rows.append([kind, size[kind] / 1e9, reading, compute, seconds, ratio, peak_here])
    finally:
        shutil.rmtree(folder)
    table(
        f"{n_cells:,} cells x {N_GENES:,} genes, {nnz / 1e6:.0f} M non-zeros ({1 - nnz / n_cells / N_GENES:.1%} "
        f"zeros), {N_TOPICS} topics, {os.cpu_count()} threads; made in {peak:.0f} MB",
        [
            "file",
            "GB",
            "s to read",
            "s a pass in memory",
            "s a pass from the file",
            "ratio to the sum",
            "MB at the peak",
        ],
        rows,
    )
    for row in rows:
        verdict(f"{row[0]}: MB resident", row[-1], 2000, at_least=False)
        verdict(f"{row[0]}: pass / (reading alone + pass in memory)", row[-2], 2, at_least=False)
    if len(got) > 1:
        a, b = (got[kind]["W"] for kind in args.kinds)
        verdict("largest difference of W between the formats", float(abs(a - b).max()), 1e-5, at_least=False)


def fitted_part(folder: str, n_cells: int, part: int) -> dict:
    return fitted(folder, "h5ad", n_cells, in_memory=part)


if __name__ == "__main__":
    main()
