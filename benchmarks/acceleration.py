"""Extrapolated against plain updates: iterations until every topic has, and keeps, cosine 1 - 1e-3 with the long-run solution.

The long-run solution is that of plain updates from the same start; topics are matched one to one (Hungarian). Bar: at an
effective alpha of 0.5 at most half of the plain updates' iterations. "not reached" is printed where the extrapolated updates
end elsewhere.
"""

from __future__ import annotations

import argparse

import numpy as np
from _common import Clock, simulate, table, verdict
from scipy.optimize import linear_sum_assignment

from bcnmf_sc.engine import Poisson, Run, row_source
from bcnmf_sc.engine.kernels import Rows
from bcnmf_sc.engine.solver import State, initial_loadings, iterate

CLOSE = 1 - 1e-3


def trace(source, target, background, start, n_iter: int, *, accelerate: bool) -> np.ndarray:
    """Loadings with unit columns after every iteration (float32)."""
    n_topics = start.shape[1]
    rows = Rows.of(target, background, n_topics, source.dtype, prev=accelerate, loss=False)
    state = State(start, start, np.ones(n_topics), rows)
    path = np.empty((n_iter, *start.shape), np.float32)
    for i in range(n_iter):
        iterate(source, Poisson(), state, 0, Run(accelerate=accelerate, check_every=10**9))
        path[i] = state.W / np.linalg.norm(state.W, axis=0)
    return path


def worst_cosine(W: np.ndarray, reference: np.ndarray) -> float:
    cosine = W.T @ reference
    return float(cosine[linear_sum_assignment(cosine, maximize=True)].min())


def arrival(path: np.ndarray, reference: np.ndarray) -> int | None:
    """First iteration from which on the solution stays close; None if it ends elsewhere."""
    far = np.flatnonzero([worst_cosine(W, reference) < CLOSE for W in path])
    last = far[-1] + 1 if far.size else 0
    return None if last == len(path) else int(last) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="10,000 + 5,000 cells x 1,000 genes instead of 1,000 + 500 x 300")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-topics", type=int, default=8)
    args = parser.parse_args()
    n_target, n_background, n_genes = (10_000, 5000, 1000) if args.full else (1000, 500, 300)
    long_run, n_fast = (3000, 1500) if args.full else (4000, 2000)

    rows, ratios = [], {}
    for alpha in (0.0, 0.3, 0.5):
        for seed in range(args.seeds):
            counts = simulate(n_target, n_background, n_genes, zeros=0.8, n_programs=args.n_topics, seed=seed)
            source = row_source(counts)
            target = (np.arange(counts.shape[0]) < n_target).astype(float)
            background = (1 - target) * alpha * counts[:n_target].sum() / counts[n_target:].sum()
            start = initial_loadings(n_genes, args.n_topics, seed)
            with Clock() as plain_clock:
                plain = trace(source, target, background, start, long_run, accelerate=False)
            with Clock() as fast_clock:
                fast = trace(source, target, background, start, n_fast, accelerate=True)
            a, b = arrival(plain, plain[-1]), arrival(fast, plain[-1])
            # How settled the reference itself is: cosine between half of the long run and its end.
            settled = 1 - worst_cosine(plain[long_run // 2], plain[-1])
            dearer = fast_clock.times[1] / n_fast / (plain_clock.times[1] / long_run)
            ratio = np.nan if a is None or b is None else b / a
            ratios.setdefault(alpha, []).append(ratio)
            away = 1 - worst_cosine(fast[-1], plain[-1])
            rows.append([alpha, seed, a, "not reached" if b is None else b, ratio, away, settled, dearer])
    table(
        f"{n_target:,} + {n_background:,} cells x {n_genes:,} genes, {args.n_topics} topics: iterations to cosine {CLOSE}",
        [
            "alpha",
            "seed",
            "plain",
            "extrapolated",
            "ratio",
            "1 - cosine at the end",
            f"plain: 1 - cosine of {long_run // 2} to {long_run}",
            "cost of an iteration",
        ],
        rows,
    )
    for alpha, values in ratios.items():
        print(f"  alpha {alpha}: median ratio {np.nanmedian(values):.2f}, reached {np.isfinite(values).sum()} of {len(values)}")
    worst = np.where(np.isfinite(ratios[0.5]), ratios[0.5], np.inf)
    verdict("extrapolated / plain iterations at alpha 0.5, median", float(np.median(worst)), 0.5, at_least=False)


if __name__ == "__main__":
    main()
