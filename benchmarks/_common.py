"""What the benchmark scripts share: simulated counts, a process per measured side, memory, tables.

Each side of a comparison runs alone in a fresh process (`alone`) with one thread, so that neither its memory nor its
threads are the other's. Counts are made once, in chunks of cells, and read from a temporary folder by each side.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from bcnmf_sc.engine import Poisson, Run
from bcnmf_sc.engine.bcnmf.solver import State, iterate, normalise
from bcnmf_sc.engine.kernels.block import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bcnmf_sc.engine import Likelihood, RowSource

CHUNK = 1000
"""Cells that are dense at a time while counts are made."""
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


def simulate(
    n_target: int, n_background: int, n_genes: int, *, zeros: float, n_programs: int = 20, seed: int = 0
) -> sparse.csr_array:
    """Poisson counts of low rank with the given share of zeros, target cells first.

    A quarter of the programs is the target's alone.
    """
    rng = np.random.default_rng(seed)
    W = rng.gamma(0.3, size=(n_genes, n_programs)) * rng.lognormal(sigma=1.0, size=(n_genes, 1))
    W = (W / W.sum(0)).astype(np.float32)
    n_cells = n_target + n_background
    H = rng.gamma(0.5, size=(n_cells, n_programs)).astype(np.float32)
    H[n_target:, n_programs - n_programs // 4 :] = 0
    H *= rng.lognormal(sigma=0.4, size=(n_cells, 1)).astype(np.float32) / H.sum(1, keepdims=True)

    sample = H[rng.choice(n_cells, min(n_cells, 500), replace=False)] @ W.T
    low, high = 1.0, 1e7  # counts per cell
    while high / low > 1.001:
        depth = np.sqrt(low * high)
        low, high = (depth, high) if np.exp(-depth * sample).mean() > zeros else (low, depth)
    chunks = [
        sparse.csr_array(rng.poisson(depth * H[start : start + CHUNK] @ W.T).astype(np.float32))
        for start in range(0, n_cells, CHUNK)
    ]
    return sparse.csr_array(sparse.vstack(chunks, format="csr"))


def save(folder: str | Path, counts: sparse.csr_array) -> None:
    """Write the three arrays, so that they are read without a copy."""
    for name in ("data", "indices", "indptr"):
        np.save(Path(folder) / f"{name}.npy", getattr(counts, name))
    np.save(Path(folder) / "shape.npy", counts.shape)


def load(folder: str | Path) -> sparse.csr_array:
    """Read what `save` wrote."""
    data, indices, indptr, shape = (np.load(Path(folder) / f"{n}.npy") for n in ("data", "indices", "indptr", "shape"))
    return sparse.csr_array((data, indices, indptr), shape=tuple(shape.tolist()))


class Stepper:
    """A fit that is taken iteration by iteration, as `bcnmf_sc.engine.fit` would: ``step()``, then ``step.state``.

    ``cells`` are their target and background weights.
    """

    def __init__(
        self,
        source: RowSource,
        cells: tuple[np.ndarray, np.ndarray],
        *,
        start: np.ndarray,
        expressed: np.ndarray | None = None,
        likelihood: Likelihood | None = None,
        accelerate: bool = False,
    ) -> None:
        self.source, self.accelerate = source, accelerate
        self.expressed = np.ones(len(start), bool) if expressed is None else expressed
        W, n_topics = normalise(start, self.expressed)[0], start.shape[1]
        make_rows = partial(Rows.of, n_topics=n_topics, dtype=source.dtype, prev=accelerate, loss=False)
        self.state = State(W, W, np.ones(n_topics), source.place(make_rows, *cells), likelihood or Poisson())

    def __call__(self, *, loss: bool = False) -> None:
        """One iteration; the first always looks at the loss."""
        run = Run(accelerate=self.accelerate, check_every=1 if loss else 10**9)
        iterate(self.source, self.state, self.expressed, run=run)


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a fresh process with one thread. ``function`` and what it takes and returns must pickle."""
    os.environ |= ONE_THREAD
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def simulate_to(folder: str, *args: int, zeros: float) -> tuple[float, int]:
    """Simulate and save in a process of its own; returns the share of zeros and the number of non-zeros."""
    return alone(_simulate_to, folder, args, zeros)


def _simulate_to(folder: str, args: Sequence[int], zeros: float) -> tuple[float, int]:
    counts = simulate(*args, zeros=zeros)
    save(folder, counts)
    return 1 - counts.nnz / np.prod(counts.shape, dtype=np.float64), counts.nnz


def memory(*, peak: bool = False) -> float:
    """Resident memory of this process in MB, now or at its peak.

    The peak is the kernel's VmHWM, where there is one: ``ru_maxrss`` of a child starts at its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        field = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


class Clock:
    """Wall and CPU seconds of a piece of work: ``with Clock() as clock: ...``, then ``clock.times``."""

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.times = np.array([time.perf_counter(), time.process_time()]) - self._start


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a header, columns aligned."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    width = [max(len(row[k]) for row in cells) for k in range(len(header))]
    cells.insert(1, ["-" * w for w in width])
    print(f"\n{title}\n")
    for row in cells:
        print("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip())
    print(flush=True)


def verdict(what: str, value: float, bar: float, *, at_least: bool) -> bool:
    """Print whether a figure meets its bar."""
    good = value >= bar if at_least else value <= bar
    sign = ">=" if at_least else "<="
    print(f"  {'met   ' if good else 'MISSED'}  {what}: {value:.3g} (bar: {sign} {bar:g})", flush=True)
    return good
