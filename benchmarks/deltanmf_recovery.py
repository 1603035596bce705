"""DeltaNMF on the hard simulated set: are the cases' own programs found, and cells without them left alone?

1,500 genes, 3,000 controls and 2,000 cases, about 18 % of the counts not zero, 8 shared programs and 3 that 15 % of the
cases have. Beside the fit stands what least squares with the *true* programs gives: no fit can be expected to beat its
usage.

Bars, over 3 seeds: cosine of case programs, mean >= 0.98 and smallest >= 0.965; mean correlation of usage >= 0.985;
with 6 case topics, mean cosine of the 3 programs >= 0.92; <= 3 CPU seconds a fit; next to no case usage without new
programs."""

from __future__ import annotations

import numpy as np
from _common import Clock, table, verdict
from scipy.optimize import linear_sum_assignment

import bcnmf_sc as bc
from bcnmf_sc.engine import row_source
from bcnmf_sc.engine.deltanmf.stages import Scaled, unit, usage

HOW = {"condition_key": "condition", "control": "ctrl", "n_topics_control": 8, "sample_key": "donor"}
HOW |= {"cross_fit": None}  # the fit alone is timed
SEEDS = range(3)
N_SHARED = 8


def matched(truth, found):
    """Cosine of each true column with the found one that is matched to it, and which that is."""
    cosine = unit(truth).T @ unit(found)
    rows, columns = linear_sum_assignment(-cosine)
    return cosine[rows, columns], columns


def correlations(truth, found):
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(truth.T, found.T, strict=True)])


def oracle(adata, case):
    """Usage by least squares on the true programs, data scaled as the fit scales them."""
    deviation = adata.var["deltanmf_deviation"].to_numpy(float)
    total = np.asarray(adata.X.sum(1)).ravel()
    data = Scaled(row_source(adata.X), np.where(case, np.median(total) / total, 0), 1 / deviation)
    H, _ = usage(data, unit(adata.varm["true_loadings"] / deviation[:, None]))
    return H[case, N_SHARED:]


def fit(seed, n_topics, **how):
    adata = bc.datasets.simulated_programs(random_state=seed, **how)
    with Clock() as clock:
        bc.tl.deltanmf(adata, n_topics_case=n_topics, progress=False, **HOW)
    return adata, clock.times[1]


def share_of_case_topics(adata, cells):
    return float(bc.get.usage(adata, key="deltanmf", normalize=True).to_numpy()[cells, N_SHARED:].sum(1).mean())


def main() -> None:
    fit(0, 1, n_control=300, n_case=200)  # compiles
    rows, cosines, usages, cpu = [], [], [], []
    for seed in SEEDS:
        adata, seconds = fit(seed, 3)
        case = (adata.obs["condition"] == "case").to_numpy()
        cosine, order = matched(adata.varm["true_loadings"][:, N_SHARED:], adata.varm["deltanmf"][:, N_SHARED:])
        truth = adata.obsm["true_usage"][case, N_SHARED:]
        found = correlations(truth, adata.obsm["X_deltanmf"][case, N_SHARED:][:, order])
        best = correlations(truth, oracle(adata, case))
        shared = matched(adata.varm["true_loadings"][:, :N_SHARED], adata.varm["deltanmf"][:, :N_SHARED])[0]
        without = case & (adata.obsm["true_usage"][:, N_SHARED:].sum(1) == 0)
        shares = [share_of_case_topics(adata, cells) for cells in (without, case & ~without, ~case)]
        rows.append([seed, shared.mean(), cosine.mean(), cosine.min(), found.mean(), best.mean(), *shares, seconds])
        cosines.append(cosine), usages.append(found.mean()), cpu.append(seconds)
    table(
        "8 control and 3 case topics",
        [
            "seed", "shared: cosine", "new: mean", "smallest", "usage: r", "r, true programs",
            "case share without", "with", "controls", "CPU s",
        ],
        rows,
    )  # fmt: skip
    verdict("cosine of case programs, mean", np.mean(cosines), 0.98, at_least=True)
    verdict("cosine of case programs, smallest", np.min(cosines), 0.965, at_least=True)
    verdict("correlation of usage, mean", np.mean(usages), 0.985, at_least=True)
    verdict("CPU seconds a fit", max(cpu), 3, at_least=False)
    verdict("share of case topics in cases without new programs", max(row[6] for row in rows), 0.015, at_least=False)

    over, seconds = [], []
    for seed in SEEDS:
        adata, cpu_seconds = fit(seed, 6)
        over.append(matched(adata.varm["true_loadings"][:, N_SHARED:], adata.varm["deltanmf"][:, N_SHARED:])[0])
        seconds.append(cpu_seconds)
    rows = [[seed, x.mean(), x.min(), s] for seed, x, s in zip(SEEDS, over, seconds, strict=True)]
    table("6 case topics for 3 programs", ["seed", "new: mean", "smallest", "CPU s"], rows)
    verdict("cosine of case programs, smallest mean of a seed", min(x.mean() for x in over), 0.92, at_least=True)

    rows = []
    for seed in SEEDS:
        adata, _ = fit(seed, 3, frac_active=0.0)
        case = (adata.obs["condition"] == "case").to_numpy()
        rows.append([seed, share_of_case_topics(adata, case), share_of_case_topics(adata, ~case)])
    table("no new programs at all, 3 case topics", ["seed", "share of case topics in cases", "in controls"], rows)
    verdict("share of case topics in cases", max(row[1] for row in rows), 0.02, at_least=False)


if __name__ == "__main__":
    main()
