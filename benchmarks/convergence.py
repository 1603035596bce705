"""Iterations and time until the loss is near the best known, without a contrast: this code and an earlier one.

Both fit the same counts from the same starts, each in a process of its own. Bar: at most 0.45 of the earlier code's
time to within 1e-4 of the best loss that either reaches, median over sets and seeds. "-" where it is not reached.

    git worktree add /tmp/before 8637285
    python benchmarks/convergence.py --before /tmp/before [--data FOLDER] [--seeds 2] [--max-iter 1000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CHECK = 5
"""Iterations between two values of the loss."""
NEAR = (1e-3, 1e-4)
SETS = {
    "Kang, 10 topics": ("kang_ifnb_muscat.h5ad", 1, 1300, 10),
    "Kang, 20 topics": ("kang_ifnb_muscat.h5ad", 1, 1300, 20),
    "AML against PBMC, 10 topics": ("aml027_pre_vs_healthy_pbmc.h5ad", 4, 2000, 10),
    "sorted PBMC, 10 topics": ("zheng_pbmc_facs.h5ad", 2, 1500, 10),
    "OneK1K, 15 topics": ("onek1k_bmem_monoc_40donors.h5ad", 1, 1000, 15),
}
"""File, every how manieth cell, first genes, topics."""


def trace(data: Path, name: str, seed: int, *, max_iter: int) -> dict[str, list[float] | float]:
    """Fit once; return the losses at the checks and the CPU seconds of an iteration."""
    import anndata

    from bcnmf_sc.engine import Poisson, Run, fit, row_source

    file, step, n_genes, n_topics = SETS[name]
    x = anndata.read_h5ad(data / file)[::step, :n_genes].X.tocsr()
    every = np.ones(x.shape[0])
    source = row_source(x, n_threads=1)

    def run(n: int) -> np.ndarray:
        how = Run(max_iter=n, tol=0, check_every=CHECK)
        cells = {"target": every, "background": 0 * every, "project": every < 0}
        return fit(source, Poisson(), n_topics, **cells, random_state=seed, run=how).loss[:, 1]

    run(2)  # compiles
    begin = time.process_time()
    losses = run(max_iter)
    return {"losses": losses.tolist(), "seconds": (time.process_time() - begin) / max_iter}


def arrival(losses: np.ndarray, bound: float) -> float:
    """First check at which the loss is below a bound, in iterations."""
    below = np.flatnonzero(losses <= bound)
    return float(below[0] * CHECK or 1) if below.size else np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="checkout of the earlier code")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--max-iter", type=int, default=1000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(trace(args.data, args.one[0], int(args.one[1]), max_iter=args.max_iter)))
        return
    if args.before is None:
        print("Not run: name a checkout of the earlier code with --before.")
        return
    from _common import table, verdict

    rows, ratios = [], []
    for name in SETS:
        for seed in range(args.seeds):
            found = []
            for code in (args.before, Path(__file__).parents[1]):
                command = [sys.executable, "-W", "ignore", __file__, "--before", str(args.before)]
                command += ["--data", str(args.data), "--max-iter", str(args.max_iter), "--one", name, str(seed)]
                env = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
                found.append(json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout))
            losses = [np.array(each["losses"]) for each in found]
            best = min(each.min() for each in losses)
            n = [[arrival(each, best * (1 + near)) for each in losses] for near in NEAR]
            seconds = [each["seconds"] for each in found]
            before, now = (count * second for count, second in zip(n[1], seconds, strict=True))
            ratios.append(now / before if np.isfinite(now) else np.inf)
            counts = [f"{a:.0f} / {b:.0f}" if np.isfinite(b) else f"{a:.0f} / -" for a, b in zip(*n, strict=True)]
            last = [f"{each[-1] / best - 1:.1e}" for each in losses]
            rows.append([name, seed, *counts, seconds[1] / seconds[0], *last, ratios[-1]])
            print(*rows[-1], flush=True)
    header = ["set", "seed", "iterations to 1e-3 / 1e-4: before", "now", "CPU of an iteration, now / before"]
    table("Loss", [*header, "end above the best: before", "now", "time to 1e-4, now / before"], rows)
    verdict("time to 1e-4 of the best, median", float(np.median(ratios)), 0.45, at_least=False)


if __name__ == "__main__":
    main()
