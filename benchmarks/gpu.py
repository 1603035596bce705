"""CUDA: an iteration on the device against the CPU kernels, and the share of the memory bandwidth that it reaches.

Bars at 1,000,000 cells x 3,000 genes, 95 % zeros, 20 topics, Poisson: the same loadings to 1e-4, at least 20 times
faster than the CPU kernels on two threads. Without CUDA the same code runs through torch on the CPU at a small size:
that checks the result; its times say nothing about a card.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from _common import Stepper, simulate, table, verdict
from scipy import sparse

from bcnmf_sc.engine import LIKELIHOODS, row_source
from bcnmf_sc.engine.bcnmf.solver import initial_loadings
from bcnmf_sc.engine.rows.torch_source import TorchSource

N_TOPICS, ALPHA, TILES = 20, 0.3, 10
BYTES_PER_VALUE = 100
"""Bytes of device memory that the torch operations of a Poisson iteration move for each non-zero: see docs/gpu.md."""


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a copy within the device, read and write counted."""
    source = torch.empty(2**28, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def seconds(source, name: str, problem, *, n_iter: int) -> tuple[float, np.ndarray]:
    """Median seconds of an iteration after the first, and the loadings."""
    weights, start = problem
    step = Stepper(source, weights, start=start, likelihood=LIKELIHOODS[name]().started(source.shape[1]))
    times = []
    with source.working():
        for _ in range(1 + n_iter):
            begun = time.perf_counter()
            step()  # ends in sums on the host: nothing is left under way
            times.append(time.perf_counter() - begun)
    return float(np.median(times[1:])), step.state.W


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    has_cuda = torch.cuda.is_available()
    parser.add_argument("--cells", type=int, default=1_000_000 if has_cuda else 10_000)
    parser.add_argument("--genes", type=int, default=3000 if has_cuda else 1000)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--likelihoods", nargs="+", default=["poisson", "gaussian", "nb", "zinb"])
    args = parser.parse_args()

    part = args.cells // TILES
    one = simulate(part * 2 // 3, part - part * 2 // 3, args.genes, zeros=0.95)
    counts = sparse.csr_array(sparse.vstack([one] * TILES, format="csr"))
    is_target = np.tile(np.arange(part) < part * 2 // 3, TILES)
    order = np.argsort(~is_target, kind="stable")
    counts, is_target = counts[order], is_target[order]
    weights = (is_target.astype(float), ALPHA * (~is_target))
    problem = weights, initial_loadings(args.genes, N_TOPICS, 0)

    n_threads = 2 if has_cuda else 1  # more would wait for each other in the many small steps of torch on a CPU
    host = row_source(counts, n_threads=n_threads)
    device = "cuda" if has_cuda else "cpu"
    name_of_device = torch.cuda.get_device_name() if has_cuda else "torch on the CPU"
    if not has_cuda:
        print("No CUDA here: the torch path runs on the CPU, for its result only.")
    rows, worst, ratio = [], 0.0, {}
    for name in args.likelihoods:
        n_iter = args.iterations if name in ("poisson", "gaussian") or not has_cuda else 2
        cpu, W = seconds(host, name, problem, n_iter=n_iter)
        resident, W_device = seconds(TorchSource(host, device), name, problem, n_iter=n_iter)
        sent, _ = seconds(TorchSource(host, device, memory=0), name, problem, n_iter=n_iter)
        worst = max(worst, difference := float(np.abs(W - W_device).max() / W.max()))
        ratio[name] = cpu / resident
        rows.append([name, cpu, resident, cpu / resident, sent, cpu / sent, f"{difference:.0e}"])
    table(
        f"{args.cells:,} cells x {args.genes:,} genes, {counts.nnz / 1e6:.1f} M non-zeros, {N_TOPICS} topics: "
        f"{n_threads} CPU thread(s) against {name_of_device}",
        ["", "CPU s", "device s", "ratio", "device s, data sent", "ratio", "difference of W, share of its largest"],
        rows,
    )
    verdict("difference of W, share of its largest", worst, 1e-4, at_least=False)
    if has_cuda:
        print(f"  peak memory on the device: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
        bandwidth = copy_bandwidth(device)
        print(f"  copy bandwidth measured: {bandwidth / 1e12:.2f} TB/s")
        if "poisson" in ratio:
            moved = BYTES_PER_VALUE * counts.nnz / rows[args.likelihoods.index("poisson")][2]
            print(f"  Poisson, resident: {moved / 1e12:.2f} TB/s by count, {moved / bandwidth:.0%} of it")
            verdict("Poisson, CPU / device", ratio["poisson"], 20, at_least=True)


if __name__ == "__main__":
    main()
