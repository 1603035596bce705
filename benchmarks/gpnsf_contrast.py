"""Would contrast help in space? A topic that only one of two slices has, found by five ways, on simulated counts.

Both slices (20 x 20 spots, 150 genes) use 4 smooth programs; the target slice has a fifth, at a share of the others'
level. Compared at the same number of topics: Poisson NMF of the target, NMF with the control's topics held fixed and
one free topic (`basis="split"` of tl.bcnmf), spatial topics of the target alone, of both slices together (no contrast),
and with the control slice's spatial topics held fixed and one free topic, the spatial form of background topics. Two
scores for the fifth program: correlation of usage over the spots of the target, cosine of loadings (the best topic
each; only the free one where the others are held fixed).

No bar: it tells whether contrast is worth an argument of tl.gpnsf.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _common import table
from scipy import sparse

import bcnmf_sc as bc
from bcnmf_sc.engine import Run, likelihoods, row_source
from bcnmf_sc.engine import fit as fit_nmf
from bcnmf_sc.engine.gpnsf.fit import Climb, fit_spatial
from bcnmf_sc.engine.gpnsf.observations import OBSERVATIONS
from bcnmf_sc.engine.gpnsf.start import Shape, Values

N_COMMON, THETA = 4, 5.0


def simulate(seed, level):
    """Coordinates of a slice; counts and depths of control and target; usage and loadings of the fifth program."""
    mdata = bc.datasets.simulated_spatial(
        20, 150, 2, n_patterns=N_COMMON + 1, n_slices=2, lengthscale=0.35, random_state=seed
    )
    rna, rng = mdata["rna"], np.random.default_rng(1000 + seed)
    usage, W = mdata.obsm["true_usage"].copy(), rna.varm["true_loadings"]
    n = len(usage) // 2
    usage[:n, -1] = 0
    usage[n:, -1] *= level
    depth = rna.obs["true_depth"].to_numpy()
    rate = depth[:, None] * (usage @ W.T)
    x = rng.poisson(rate * rng.gamma(THETA, 1 / THETA, rate.shape)).astype(float)
    return mdata.obsm["spatial"][:n], (x[:n], x[n:]), (depth[:n], depth[n:]), usage[n:, -1], W[:, -1]


def nmf(x, n_topics, frozen=None):
    """Best of 3 Poisson NMFs."""
    ones, source = np.ones(len(x)), row_source(sparse.csr_array(x))
    how = {"target": ones, "background": 0 * ones, "frozen": frozen, "run": Run()}
    fits = [fit_nmf(source, likelihoods.Poisson(), n_topics, random_state=seed, **how) for seed in range(3)]
    return min(fits, key=lambda f: f.cell_loss.sum())


def spatial(places, x, depth, *, n_topics=N_COMMON + 1, frozen=None):
    """Spatial topics of slices with the same places."""
    torch.set_num_threads(1)
    slices = np.repeat(np.arange(len(x)), len(places))
    values = Values("rna", sparse.csr_array(np.vstack(x)), OBSERVATIONS["nb"], np.concatenate(depth), frozen=frozen)
    return fit_spatial(np.tile(places, (len(x), 1)), slices, [values], Shape(n_topics), climb=Climb(max_iter=150))


def ways(places, x, depth):
    """Usage in the target and loadings of the topics that may be the fifth program, by method."""
    n, (control, target) = len(places), x
    one = nmf(target, N_COMMON + 1)
    yield "NMF of the target", one.H / depth[1][:, None], one.W
    split = nmf(target, 1, frozen=nmf(control, N_COMMON).W)
    yield "NMF, control's topics fixed", (split.H / depth[1][:, None])[:, N_COMMON:], split.W[:, N_COMMON:]
    alone = spatial(places, [target], [depth[1]])
    yield "gpnsf of the target", alone.usage, alone.loadings["rna"]
    both = spatial(places, x, depth)
    yield "gpnsf of both slices", both.usage[n:], both.loadings["rna"]
    first = spatial(places, [control], [depth[0]], n_topics=N_COMMON)
    held = spatial(places, [target], [depth[1]], frozen=first.loadings["rna"] / first.posterior["scale"])
    yield "gpnsf, control's topics fixed", held.usage[:, N_COMMON:], held.loadings["rna"][:, N_COMMON:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.1, 0.3])
    given = parser.parse_args()
    for level in given.levels:
        scores = {}
        for seed in range(given.seeds):
            places, x, depth, usage, loadings = simulate(seed, level)
            for name, found, W in ways(places, x, depth):
                r = np.nan_to_num(np.corrcoef(usage, found.T)[0, 1:]).max()
                cosine = (loadings @ W / np.linalg.norm(W, axis=0)).max() / np.linalg.norm(loadings)
                scores.setdefault(name, []).append((r, cosine))
        rows = [
            [name, *(f"{np.median(s):.2f} ({min(s):.2f}-{max(s):.2f})" for s in zip(*pairs, strict=True))]
            for name, pairs in scores.items()
        ]
        header = ["way", "correlation of usage", "cosine of loadings"]
        table(
            f"Target-only program at {level:g} of the others' level: median (range), {given.seeds} seeds", header, rows
        )


if __name__ == "__main__":
    main()
