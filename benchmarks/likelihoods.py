"""An iteration under each likelihood against a Poisson one, on the same counts, one thread, in CPU time.

NB and ZINB have a dispersion and a dropout for each gene and look at every entry, zeros too, in blocks of cells;
Poisson and Gaussian look at the non-zeros. Bars: NB at most 10 times, ZINB at most 16 times a Poisson iteration, and no
array of cells x genes: at full size, peak memory beyond import and data stays under a tenth of one. ``--full`` has ten
times the cells.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
from _common import Clock, Stepper, alone, load, memory, simulate_to, table, verdict

from bcnmf_sc.engine import Gaussian, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial, row_source
from bcnmf_sc.engine.bcnmf.solver import initial_loadings

N_GENES, N_TOPICS, ALPHA, N_ITER = 3000, 20, 0.3, 3
RNG = np.random.default_rng(0)
THETA, PI = (RNG.uniform(*ends, N_GENES).astype(np.float32) for ends in ((0.5, 10), (0, 0.3)))
LIKELIHOODS = {
    "gaussian": Gaussian(),
    "poisson": Poisson(),
    "nb": NegativeBinomial(THETA),
    "zinb": ZeroInflatedNegativeBinomial(THETA, PI),
}


def run(folder: str, n_target: int, name: str) -> tuple[float, float]:
    """CPU seconds of an iteration, and peak memory in MB beyond import and data."""
    counts = load(folder)
    source = row_source(counts, n_threads=1)
    target = np.arange(counts.shape[0]) < n_target
    cells, start = (target.astype(float), ALPHA * ~target), initial_loadings(N_GENES, N_TOPICS, 0)
    few = row_source(counts[:200], n_threads=1)
    Stepper(few, (np.ones(200), np.zeros(200)), start=start, likelihood=LIKELIHOODS[name])()  # compiles
    before, times = memory(), []
    step = Stepper(source, cells, start=start, likelihood=LIKELIHOODS[name])
    with source.working():
        step()  # the first looks at the loss
        for _ in range(N_ITER):
            with Clock() as clock:
                step()
            times.append(clock.times[1])
    return float(np.median(times)), memory(peak=True) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="20,000 + 10,000 cells in place of 2,000 + 1,000")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    n_target, n_background = (20_000, 10_000) if args.full else (2000, 1000)
    with tempfile.TemporaryDirectory() as folder:
        zeros, nnz = simulate_to(folder, n_target, n_background, N_GENES, zeros=0.93)
        rounds = [{name: alone(run, folder, n_target, name) for name in LIKELIHOODS} for _ in range(args.rounds)]
    cpu = {name: np.median([r[name][0] for r in rounds]) for name in LIKELIHOODS}
    ratio = {name: np.median([r[name][0] / r["poisson"][0] for r in rounds]) for name in LIKELIHOODS}
    peak = {name: max(r[name][1] for r in rounds) for name in LIKELIHOODS}
    table(
        f"{n_target:,} + {n_background:,} cells x {N_GENES:,} genes, {nnz / 1e6:.1f} M non-zeros ({zeros:.1%} zeros), "
        f"{N_TOPICS} topics, one thread",
        ["", "CPU s / iteration", "over Poisson", "MB beyond import and counts"],
        [[name, float(cpu[name]), float(ratio[name]), float(peak[name])] for name in LIKELIHOODS],
    )
    verdict("NB over Poisson", float(ratio["nb"]), 10, at_least=False)
    verdict("ZINB over Poisson", float(ratio["zinb"]), 16, at_least=False)
    dense = (n_target + n_background) * N_GENES * 4 / 2**20
    if args.full:
        verdict(
            f"most memory, share of cells x genes ({dense:.0f} MB)", max(peak.values()) / dense, 0.1, at_least=False
        )


if __name__ == "__main__":
    main()
