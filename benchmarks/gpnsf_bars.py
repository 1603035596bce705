"""Spatial topics against joint NMF on simulated RNA + ATAC: patterns found, held-out entries predicted, CPU seconds.

A grid of 24 x 24 spots, 200 genes, 300 peaks, 6 smooth patterns; a tenth of the entries is hidden from both methods;
both are given the true size factors, the same number of topics and the best of 3 starts. Joint NMF minimises the
Poisson deviance of the observed entries of both modalities (multiplicative updates with exposures, 300 iterations).
The deviance is that of the simulation's own likelihood, and what is reported is its excess over that of the true
rates.

Prints as well what happens with sharp edges (a known weakness), with fewer inducing points, and without a hybrid where
there are topics that do not follow space.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from _common import alone, table, verdict
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning

import bcnmf_sc as bc
from bcnmf_sc.engine.gpnsf.fit import Climb, fit_spatial
from bcnmf_sc.engine.gpnsf.observations import OBSERVATIONS
from bcnmf_sc.engine.gpnsf.start import Shape, Values

THETA = 5.0
SIZE = {"n_side": 24, "n_genes": 200, "n_peaks": 300, "theta": THETA}


def simulate(seed, **more):
    """Values of both modalities with a tenth of the entries hidden, coordinates, and the truth."""
    mdata = bc.datasets.simulated_spatial(**(SIZE | more), random_state=seed)
    rng = np.random.default_rng(1000 + seed)
    values, truth = [], {"usage": mdata.obsm["true_usage"]}
    for name, model in (("rna", "nb"), ("atac", "bernoulli")):
        x = mdata[name].X.toarray()
        hidden = rng.random(x.shape) < 0.1
        depth = mdata[name].obs["true_depth"].to_numpy()
        values.append(
            Values(name, sparse.csr_array(x), OBSERVATIONS[model], depth, hidden=sparse.csr_array(hidden.astype(float)))
        )
        rate = depth[:, None] * (truth["usage"] @ mdata[name].varm["true_loadings"].T)
        truth[name] = (x, hidden, rate)
    return mdata.obsm["spatial"], values, truth


def joint_nmf(values, n_topics, *, n_iter=300, n_starts=3):
    """Poisson NMF of the observed entries of both modalities, with size factors."""
    x = np.hstack([each.matrix.toarray() for each in values])
    seen = 1.0 - np.hstack([each.hidden.toarray() for each in values])
    exposure = seen * np.hstack([np.repeat(each.size[:, None], each.matrix.shape[1], axis=1) for each in values])
    x, best = x * seen, None
    for seed in range(n_starts):
        rng = np.random.default_rng(seed)
        H = rng.random((len(x), n_topics)) + 0.1
        W = (rng.random((n_topics, x.shape[1])) + 0.1) * (x.sum(0) / exposure.sum(0)) / n_topics * 2
        for _ in range(n_iter):
            H *= ((x / (H @ W + 1e-9)) @ W.T) / (exposure @ W.T + 1e-9)
            W *= (H.T @ (x / (H @ W + 1e-9))) / (H.T @ exposure + 1e-9)
        loss = (exposure * (H @ W)).sum() - (x * np.log(H @ W + 1e-9)).sum()
        if best is None or loss < best[0]:
            best = (loss, H, dict(zip(("rna", "atac"), np.split(W.T, [values[0].matrix.shape[1]]), strict=True)))
    return best[1:]


def spatial(coordinates, values, n_topics, *, n_nonspatial=0, n_inducing=None, seed=0, max_iter=200):
    """Our fit."""
    torch.set_num_threads(1)
    slices = np.zeros(len(coordinates), int)
    shape = Shape(n_topics, n_nonspatial, n_inducing=n_inducing)
    factors = fit_spatial(coordinates, slices, values, shape, random_state=seed, climb=Climb(max_iter=max_iter))
    return factors.usage, factors.loadings


def scores(truth, values, fitted):
    """Mean matched correlation of usage; excess held-out deviance of RNA (NB) and ATAC (Bernoulli)."""
    usage, loadings = fitted
    e = truth["usage"]
    r = np.corrcoef(e.T, usage.T)[: e.shape[1], e.shape[1] :]
    r = np.nan_to_num(r)
    found = r[linear_sum_assignment(-r)].mean()
    excess = []
    for each, deviance in zip(values, (nb_deviance, bernoulli_deviance), strict=True):
        x, hidden, true = truth[each.name]
        rate = each.size[:, None] * (usage @ loadings[each.name].T)
        excess.append(deviance(x[hidden], rate[hidden]) - deviance(x[hidden], true[hidden]))
    return np.array([found, *excess])


def nb_deviance(x, m):
    m = np.maximum(m, 1e-8)
    log = np.log(np.maximum(x, 1e-12) / m)
    return 2 * np.mean(np.where(x > 0, x * log, 0) - (x + THETA) * np.log((x + THETA) / (m + THETA)))


def bernoulli_deviance(x, rate):
    p = np.clip(-np.expm1(-rate), 1e-6, 1 - 1e-6)
    return -2 * np.mean(np.where(x > 0, np.log(p), np.log1p(-p)))


def compare(title, seeds, **how):
    """Both methods over seeds; returns the scores, seeds x methods x 3."""
    n_nonspatial = how.pop("n_nonspatial", 0)
    methods = {
        "joint NMF": lambda s, v, seed: joint_nmf(v, 6 + n_nonspatial),
        "gpnsf, every place inducing": lambda s, v, seed: spatial(s, v, 6 + n_nonspatial, seed=seed),
        "gpnsf, 100 inducing points": lambda s, v, seed: spatial(s, v, 6 + n_nonspatial, n_inducing=100, seed=seed),
    }
    if n_nonspatial:
        del methods["gpnsf, 100 inducing points"]
        methods["gpnsf, hybrid"] = lambda s, v, seed: spatial(s, v, 6, n_nonspatial=n_nonspatial, seed=seed)
    all_scores, cpu = [], []
    for seed in range(seeds):
        coordinates, values, truth = simulate(seed, n_patterns=6, n_nonspatial=n_nonspatial, **how)
        row, spent = [], []
        for method in methods.values():
            start = time.process_time()
            fitted = method(coordinates, values, seed)
            spent.append(time.process_time() - start)
            row.append(scores(truth, values, fitted))
        all_scores.append(row)
        cpu.append(spent)
    result = np.array(all_scores)
    rows = []
    for k, name in enumerate(methods):
        middle, low, high = np.median(result[:, k], 0), result[:, k].min(0), result[:, k].max(0)
        cells = [f"{m:.4f} ({a:.4f}-{b:.4f})" for m, a, b in zip(middle, low, high, strict=True)]
        rows.append([name, *cells, f"{np.median(np.array(cpu)[:, k]):.1f}"])
    header = ["method", "matched correlation", "RNA, excess deviance", "ATAC, excess deviance", "CPU s"]
    table(f"{title}: median (range) over {seeds} seeds", header, rows)
    return result


def seconds(n_side, n_inducing, how):
    """CPU seconds of a whole fit, joint NMF start included."""
    torch.set_num_threads(1)
    mdata = bc.datasets.simulated_spatial(**(SIZE | {"n_side": n_side}), n_patterns=6)
    batch_size, max_iter = how
    how = {"n_inducing": n_inducing, "batch_size": batch_size, "tol": 0.0, "progress": False, "device": "cpu"}
    warnings.simplefilter("ignore", ConvergenceWarning)  # so many passes and no more
    bc.tl.gpnsf(mdata, n_topics=6, max_iter=1, **how)  # compiles what is compiled
    times = []
    for passes in (1, max_iter):
        start = time.process_time()
        bc.tl.gpnsf(mdata, n_topics=6, max_iter=passes, **how)
        times.append(time.process_time() - start)
    return times


def smooth_patterns(seeds):
    smooth = compare("Smooth patterns", seeds)
    nmf, ours = smooth[:, 0], smooth[:, 1]
    verdict("matched correlation, smallest over seeds", ours[:, 0].min(), 0.93, at_least=True)
    verdict("  the same minus joint NMF's, smallest", (ours - nmf)[:, 0].min(), 0.0, at_least=True)
    verdict("excess NB deviance over joint NMF's, largest", (ours / nmf)[:, 1].max(), 0.5, at_least=False)
    verdict("excess Bernoulli deviance over joint NMF's, largest", (ours / nmf)[:, 2].max(), 0.7, at_least=False)


def with_nonspatial_topics(seeds):
    mixed = compare("6 smooth patterns and 2 topics that do not follow space", seeds, n_nonspatial=2)
    verdict("hybrid: matched correlation, smallest", mixed[:, 2, 0].min(), 0.85, at_least=True)
    above = (mixed[:, 2, 0] - mixed[:, :2, 0].max(1)).min()
    verdict("  the same minus the better of joint NMF and all spatial, smallest", above, 0.0, at_least=True)


def sharp_edges(seeds):
    compare("Sharp edges (no bar: a known weakness)", seeds, pattern="sharp")


def time_spent(_):
    one, whole = alone(seconds, 24, 100, (None, 150))
    verdict("CPU s: 576 spots, M = 100, 150 passes, start included", whole, 8.0, at_least=False)
    one, whole = alone(seconds, 50, 225, (500, 21))
    verdict("CPU s per step: 2,500 spots, M = 225, batches of 500", (whole - one) / 20 / 5, 0.08, at_least=False)
    one, whole = alone(seconds, 50, 225, (2500, 21))
    verdict("CPU s per step: 2,500 spots, M = 225, all at once", (whole - one) / 20, 0.08, at_least=False)


PARTS = {"smooth": smooth_patterns, "mixed": with_nonspatial_topics, "sharp": sharp_edges, "seconds": time_spent}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    given = parser.parse_args()
    for part in given.parts:
        PARTS[part](given.seeds)


if __name__ == "__main__":
    main()
