"""Extrapolated against plain updates: iterations until every topic has, and keeps, cosine 1 - 1e-3 with the solution.

The solution is where plain updates from the same start end after a long run; topics are matched one to one (Hungarian).
Bar: at an effective alpha of 0.5 at most half of the plain updates' iterations. "not reached" is printed where the
extrapolated updates end elsewhere, and how far the long run itself still moved in its second half.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product

import numpy as np
from _common import Clock, Stepper, simulate, table, verdict
from scipy import sparse
from scipy.optimize import linear_sum_assignment

import bcnmf_sc as bc
from bcnmf_sc.engine import row_source
from bcnmf_sc.engine.bcnmf.solver import initial_loadings

CLOSE = 1 - 1e-3
AT_REST = 1e-6
"""Change of the loadings in an iteration at which a run ends, if it has not come to its last iteration."""


def trace(step: Stepper, max_iter: int) -> np.ndarray:
    """Loadings with unit columns (float32) after every iteration until they rest."""
    path = np.empty((max_iter, *step.state.W.shape), np.float32)
    with step.source.working():
        while step.state.n_iter < max_iter and step.state.change > AT_REST:
            step()
            path[step.state.n_iter - 1] = step.state.W / np.linalg.norm(step.state.W, axis=0)
    return path[: step.state.n_iter]


def worst_cosine(W: np.ndarray, reference: np.ndarray) -> float:
    cosine = W.T @ reference
    return float(cosine[linear_sum_assignment(cosine, maximize=True)].min())


def arrival(path: np.ndarray, reference: np.ndarray) -> int | None:
    """First iteration from which on the solution stays close; None if it ends elsewhere."""
    far = np.flatnonzero([worst_cosine(W, reference) < CLOSE for W in path])
    last = far[-1] + 1 if far.size else 0
    return None if last == len(path) else int(last) + 1


def easy(seed: int) -> tuple[sparse.csr_array, np.ndarray, int]:
    """`datasets.simulated`, 4 topics."""
    adata = bc.datasets.simulated(random_state=seed)
    return sparse.csr_array(adata.X), (adata.obs["condition"] != "ctrl").to_numpy(), 4


def low_rank(
    seed: int, *, n_target: int, n_background: int, n_genes: int, zeros: float, n_programs: int
) -> tuple[sparse.csr_array, np.ndarray, int]:
    """Counts of as many programs as topics are fitted, a quarter of them the target's alone."""
    counts = simulate(n_target, n_background, n_genes, zeros=zeros, n_programs=n_programs, seed=seed)
    return counts, np.arange(counts.shape[0]) < n_target, n_programs


DATA = {
    "easy": easy,
    "hard": partial(low_rank, n_target=1000, n_background=500, n_genes=300, zeros=0.8, n_programs=8),
    "sparse": partial(low_rank, n_target=2000, n_background=1000, n_genes=1000, zeros=0.9, n_programs=9),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=["easy", "hard"])
    parser.add_argument("--alphas", nargs="+", type=float, default=[0.0, 0.3, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-iter", type=int, default=6000, help="of plain updates; half as many extrapolated ones")
    args = parser.parse_args()

    rows, ratios = [], {}
    for name, alpha, seed in product(args.data, args.alphas, range(args.seeds)):
        counts, of_target, n_topics = DATA[name](seed)
        source = row_source(counts, n_threads=1)
        background = ~of_target * alpha * counts[of_target].sum() / counts[~of_target].sum()
        cells = of_target.astype(float), background
        start = initial_loadings(counts.shape[1], n_topics, seed)
        with Clock() as plain_clock:
            plain = trace(Stepper(source, cells, start=start), args.max_iter)
        with Clock() as fast_clock:
            fast = trace(Stepper(source, cells, start=start, accelerate=True), args.max_iter // 2)
        a, b = arrival(plain, plain[-1]), arrival(fast, plain[-1])
        ratio = np.inf if a is None or b is None else b / a
        ratios.setdefault((name, alpha), []).append(ratio)
        distance, unsettled = (1 - worst_cosine(W, plain[-1]) for W in (fast[-1], plain[len(plain) // 2]))
        cost = fast_clock.times[1] / len(fast) / (plain_clock.times[1] / len(plain))
        found = "not reached" if b is None else b
        lengths = f"{len(plain)}, {len(fast)}"
        rows.append([name, alpha, seed, a, found, ratio, distance, unsettled, cost, lengths])
    table(
        f"Iterations to cosine {CLOSE}, from one start",
        ["data", "alpha", "seed", "plain", "extrapolated", "ratio", "distance", "unsettled", "cost", "lengths"],
        rows,
    )
    print("  distance: 1 - cosine of the two ends; unsettled: 1 - cosine of the plain run's middle and end;")
    print("  cost: CPU time of an extrapolated iteration over a plain one; lengths: iterations until the runs ended")
    for (name, alpha), values in ratios.items():
        reached = f"solution reached in {np.isfinite(values).sum()} of {len(values)}"
        print(f"  {name}, alpha {alpha}: median ratio {np.median(values):.2f}, {reached}")
    for name in args.data:
        if (name, 0.5) in ratios:
            verdict(f"iterations at alpha 0.5, {name}", float(np.median(ratios[name, 0.5])), 0.5, at_least=False)


if __name__ == "__main__":
    main()
