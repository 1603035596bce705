"""Poisson iteration: the engine on sparse counts against a dense torch implementation of the same updates.

Bars: at 20,000 + 10,000 cells x 3,000 genes and 20 topics, one thread, at least 15 times faster at 93 % zeros and 40
times at 97 %, at most 100 MB beyond import and data. With ``--full``, at 100,000 + 50,000 cells, at least 20 times
faster, the whole process under 600 MB.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import numpy as np
from _common import Clock, Stepper, alone, load, memory, simulate_to, table, verdict
from scipy import sparse

from bcnmf_sc.engine import Poisson, row_source
from bcnmf_sc.engine.bcnmf.solver import LOADINGS_FLOOR, initial_loadings, transform
from bcnmf_sc.engine.kernels._loops import TINY, USAGE_FLOOR

N_GENES, N_TOPICS, ALPHA, N_ITER = 3000, 20, 0.5, 5


def weights(counts, n_target):
    """Target and background weights per cell at the effective alpha."""
    target = np.arange(counts.shape[0]) < n_target
    per_cell = counts.sum(1)
    return target.astype(float), np.where(target, 0, ALPHA * per_cell[target].sum() / per_cell[~target].sum())


def warm_up() -> None:
    """Compile the kernels, or read them from numba's cache."""
    counts = sparse.csr_array(np.eye(40, N_GENES, dtype=np.float32))
    start = initial_loadings(N_GENES, N_TOPICS, 0)
    Stepper(row_source(counts, n_threads=1), (np.ones(40), np.zeros(40)), start=start)()


def ours(folder: str, n_target: int, *, project: bool) -> dict:
    counts = load(folder)
    before = memory()
    cells = weights(counts, n_target)
    source = row_source(counts, n_threads=1)
    warm_up()

    expressed = np.asarray(counts.sum(0)) > 0
    step = Stepper(source, cells, start=initial_loadings(N_GENES, N_TOPICS, 0), expressed=expressed)
    times = []
    with source.working():
        step()  # the first looks at the loss, as every tenth of a fit
        for _ in range(N_ITER):
            with Clock() as clock:
                step()
            times.append(clock.times)
        W = step.state.W
        with Clock() as check:
            step(loss=True)
    with Clock() as projection:
        if project:
            transform(source, Poisson(), step.state.W)
    peak = memory(peak=True)
    return {
        "times": np.array(times),
        "check": check.times,
        "projection": projection.times,
        "W": W,
        "beyond": peak - before,
        "peak": peak,
    }


def dense_torch(folder: str, n_target: int, *, project: bool) -> dict:
    """The paper's formulas on dense arrays, rows being cells; columns normalised and floors as in the engine."""
    import torch

    torch.set_num_threads(1)
    counts = load(folder)
    before = memory()
    alpha = float(weights(counts, n_target)[1][-1])
    X, Y = torch.from_numpy(counts[:n_target].toarray()), torch.from_numpy(counts[n_target:].toarray())
    expressed = torch.from_numpy(counts.sum(0) > 0)[:, None]
    W = torch.from_numpy(initial_loadings(N_GENES, N_TOPICS, 0).astype(np.float32))
    W = expressed * W / (expressed * W).sum(0)
    H_X, H_Y = (D.sum(1, keepdim=True).repeat(1, N_TOPICS) / N_TOPICS for D in (X, Y))

    def usage_step(D, H):
        H = H * ((D / (H @ W.T).clamp_min_(TINY)) @ W) / W.sum(0)
        return torch.maximum(H, USAGE_FLOOR * H.mean(1, keepdim=True))

    def terms(D, H):
        return (D / (H @ W.T).clamp_min_(TINY)).T @ H, H.sum(0)

    times = []
    for _ in range(1 + N_ITER):
        with Clock() as clock, torch.no_grad():
            H_X, H_Y = usage_step(X, H_X), usage_step(Y, H_Y)
            (P_X, N_X), (P_Y, N_Y) = terms(X, H_X), terms(Y, H_Y)
            W = W * (P_X + alpha * N_Y) / (N_X + alpha * P_Y).clamp_min(TINY)
            W = expressed * W
            scale = W.sum(0)
            W = torch.where(expressed, (W / scale).clamp_min(LOADINGS_FLOOR), 0.0)
            H_X, H_Y = H_X * scale, H_Y * scale
        times.append(clock.times)
    peak = memory(peak=True)
    return {"times": np.array(times[1:]), "W": W.numpy(), "beyond": peak - before, "peak": peak}


def compare(n_target: int, n_background: int, zeros: float, *, rounds: int, project: bool) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        share, nnz = simulate_to(folder, n_target, n_background, N_GENES, zeros=zeros)
        runs = {side: [] for side in (ours, dense_torch)}
        for _ in range(rounds):  # in turns: the machine's load changes
            for side in runs:
                runs[side].append(alone(partial(side, folder, n_target, project=project)))
    time = {side: np.median(np.concatenate([run["times"] for run in many]), axis=0) for side, many in runs.items()}
    mine, dense = runs[ours][-1], runs[dense_torch][-1]
    table(
        f"{n_target:,} + {n_background:,} cells x {N_GENES:,} genes, {share:.1%} zeros ({nnz / 1e6:.1f} M non-zeros), "
        f"{N_TOPICS} topics, one thread",
        ["", "wall s / iteration", "CPU s / iteration", "MB beyond import and counts", "MB whole process"],
        [
            ["dense torch", *time[dense_torch], round(dense["beyond"]), round(dense["peak"])],
            ["bcnmf_sc", *time[ours], round(mine["beyond"]), round(mine["peak"])],
            ["ratio", *(time[dense_torch] / time[ours]), *(dense[key] / mine[key] for key in ("beyond", "peak"))],
        ],
    )
    check, projection = mine["check"][1] / time[ours][1], mine["projection"][1] / time[ours][1]
    print(f"  nanoseconds per non-zero and iteration: {time[ours][1] / nnz * 1e9:.1f}")
    print(f"  an iteration that looks at the loss (every tenth of a fit) takes {check:.2f} times as long")
    if project:
        print(f"  the final usage of all cells takes as long as {projection:.0f} iterations")
    difference, largest = np.abs(mine["W"] - dense["W"]).max(), dense["W"].max()
    print(f"  largest difference of W after {1 + N_ITER} iterations: {difference:.1e} (W up to {largest:.1e})")
    if difference > 1e-4 * largest:
        msg = "The two sides do not compute the same."
        raise RuntimeError(msg)
    return {"ratio": time[dense_torch] / time[ours], "beyond": mine["beyond"], "peak": mine["peak"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="100,000 + 50,000 cells too (about 7 GB)")
    parser.add_argument("--rounds", type=int, default=2, help="times that the sides run in turn")
    args = parser.parse_args()
    alone(warm_up)
    for zeros, bar in ((0.93, 15), (0.97, 40)):
        got = compare(20_000, 10_000, zeros, rounds=args.rounds, project=True)
        verdict("CPU time, dense / bcnmf_sc", got["ratio"][1], bar, at_least=True)
        verdict("MB beyond import and data", got["beyond"], 100, at_least=False)
    if args.full:
        got = compare(100_000, 50_000, 0.93, rounds=1, project=True)
        verdict("CPU time, dense / bcnmf_sc", got["ratio"][1], 20, at_least=True)
        verdict("MB of the whole process", got["peak"], 600, at_least=False)


if __name__ == "__main__":
    main()
