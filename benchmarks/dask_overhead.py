"""Two dask workers against two threads: the same fit, the same result, at what overhead.

Both sides have the counts in memory (the workers their chunks), and run with two cores: a LocalCluster of two worker
processes with one thread each, and the in-memory source with two threads. They take turns. Bars: at most 25 % more time
per iteration, loadings equal to 1e-5. ``--full`` has ten times as many cells.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import dask.array as da
import numpy as np
from _common import Stepper, load, simulate_to, table, verdict
from distributed import Client, LocalCluster
from scipy import sparse

from bcnmf_sc.engine import Poisson, row_source
from bcnmf_sc.engine.bcnmf.solver import initial_loadings, transform

N_GENES, N_TOPICS, ALPHA, N_ITER, ROUNDS = 3000, 20, 0.3, 5, 3


def read(block_info, folder: str) -> sparse.csr_matrix:
    (low, high), _ = block_info[None]["array-location"]
    return sparse.csr_matrix(load(folder)[low:high])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="1,000,000 cells in place of 100,000")
    args = parser.parse_args()
    n = 1_000_000 if args.full else 100_000
    per_chunk = n // 10
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        zeros, nnz = simulate_to(folder, n // 2, n // 2, N_GENES, zeros=0.95)
        chunks = da.map_blocks(
            read,
            folder=folder,
            chunks=((per_chunk,) * 10, (N_GENES,)),
            dtype=np.float32,
            meta=sparse.csr_matrix((0, 0), dtype=np.float32),
        )
        sources = {
            "2 threads": row_source(load(folder), n_threads=2),
            "2 dask workers": row_source(chunks, client=client),
        }
        target = np.arange(n) < n // 2
        cells, start = (target.astype(float), ALPHA * ~target), initial_loadings(N_GENES, N_TOPICS, 0)
        steps = {name: Stepper(source, cells, start=start, accelerate=True) for name, source in sources.items()}
        times: dict[str, list[float]] = {name: [] for name in sources}
        for step in steps.values():  # compiles, and lets the workers load their chunks
            step()
        for _ in range(ROUNDS):  # in turns: the machine's load changes
            for name, step in steps.items():
                with step.source.working():
                    for _ in range(N_ITER):
                        began = time.perf_counter()
                        step()
                        times[name].append(time.perf_counter() - began)
        one, two = (step.state for step in steps.values())
        difference = float(abs(one.W - two.W).max())
        usage = [transform(source, Poisson(), one.W, np.arange(n) < 1000)[0] for source in sources.values()]
    best = {name: (float(np.median(t)), min(t)) for name, t in times.items()}
    table(
        f"{n:,} cells x {N_GENES:,} genes, {nnz / 1e6:.0f} M non-zeros ({zeros:.1%} zeros), "
        f"{N_TOPICS} topics, 10 chunks",
        ["", "median s / iteration", "best s / iteration"],
        [[name, *t] for name, t in best.items()],
    )
    (m1, b1), (m2, b2) = best.values()
    print(f"  overhead by the best iterations: {b2 / b1 - 1:.0%}")
    verdict("overhead, share of the 2-thread run (median)", m2 / m1 - 1, 0.25, at_least=False)
    verdict("largest difference of W", difference, 1e-5, at_least=False)
    verdict(
        "largest difference of usage, share of its mean",
        float(abs(usage[0] - usage[1]).max() / usage[0].mean()),
        1e-2,
        at_least=False,
    )


if __name__ == "__main__":
    main()
