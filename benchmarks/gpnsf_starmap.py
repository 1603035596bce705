"""Spatial topics against plain NMF on STARmap, mouse prefrontal cortex: masked genes in an unseen slice, domains.

1. Both methods learn loadings on two slices. In the third, half of the genes are masked in every cell; the usage comes from
   the other half (NMF: the best fit of each cell; ours: the posterior given the cell and its surroundings), and the masked
   genes' log-likelihood under a negative binomial is compared. The dispersions of the genes are estimated on the two slices
   for each method's own rates.
2. The four annotated layers: k-means on the proportions of usage of all three slices fitted together, against NMF's, and the
   same after averaging NMF's over the nearest 20 cells, which is what a user of NMF would do for domains.

Reads starmap_mpfc_3slices.h5ad from the folder BCNMF_SC_DATA (default: ../shared/data beside the checkout).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from _common import table, verdict
from scipy import optimize, sparse, special
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import bcnmf_sc as bc
from bcnmf_sc.engine import Run, likelihoods, row_source, transform
from bcnmf_sc.engine import fit as fit_nmf
from bcnmf_sc.engine.gpnsf import OBSERVATIONS
from bcnmf_sc.engine.gpnsf_fit import Climb, Shape, fit
from bcnmf_sc.engine.gpnsf_start import Values, neighbours


def log_likelihood(x, rate, theta):
    rate = np.maximum(rate, 1e-8)
    p = special.gammaln(x + theta) - special.gammaln(theta) - special.gammaln(x + 1)
    return p + theta * np.log(theta / (theta + rate)) + x * np.log(rate / (theta + rate))


def dispersions(x, rate):
    """Of each gene, by maximum likelihood at given rates."""
    out = []
    for j in range(x.shape[1]):
        best = optimize.minimize_scalar(
            lambda t, j=j: -log_likelihood(x[:, j], rate[:, j], np.exp(t)).sum(), bounds=(-4, 8), method="bounded"
        )
        out.append(np.exp(best.x))
    return np.array(out)


def masked_genes(adata, n_topics, seed, n_inducing):
    """Mean log-likelihood per masked entry in the unseen slice: NMF, ours, the mean profile."""
    names = sorted(adata.obs["slice"].unique())
    unseen = names[seed % len(names)]
    test = (adata.obs["slice"] == unseen).to_numpy()
    x, places = adata.X.toarray().astype(np.float64), adata.obsm["spatial"]
    masked = np.random.default_rng(seed).permutation(x.shape[1]) < x.shape[1] // 2
    train_size = x[~test].sum(1) / x[~test].sum(1).mean()
    # the size of an unseen cell: what its visible genes are to the visible genes of the others
    test_size = x[test][:, ~masked].sum(1) / x[~test][:, ~masked].sum(1).mean()
    result = {}

    # the mean profile
    profile = x[~test].sum(0) / train_size.sum()
    theta = dispersions(x[~test], np.outer(train_size, profile))
    result["mean profile"] = log_likelihood(x[test][:, masked], np.outer(test_size, profile)[:, masked], theta[masked])

    # NMF
    start = time.process_time()
    source = row_source(sparse.csr_array(x[~test]))
    ones = np.ones(int((~test).sum()))
    fits = [
        fit_nmf(source, likelihoods.Poisson(), n_topics, target=ones, background=0 * ones, random_state=s, run=Run())
        for s in range(3 * seed, 3 * seed + 3)
    ]
    best = min(fits, key=lambda f: f.cell_loss.sum())
    theta = dispersions(x[~test], best.H @ best.W.T)
    H, _ = transform(row_source(sparse.csr_array(x[test][:, ~masked])), likelihoods.Poisson(), best.W[~masked])
    result["NMF"] = log_likelihood(x[test][:, masked], H @ best.W[masked].T, theta[masked])
    cpu = [0.0, time.process_time() - start]

    # ours
    start = time.process_time()
    slices = adata.obs["slice"].cat.remove_unused_categories().cat.codes.to_numpy()
    kept = np.unique(slices[~test], return_inverse=True)[1]
    nb, climb = OBSERVATIONS["nb"], Climb(device="cpu")
    shape = Shape(n_topics, n_inducing=n_inducing)
    learnt = fit(
        places[~test],
        kept,
        [Values("rna", sparse.csr_array(x[~test]), nb, train_size)],
        shape,
        random_state=seed,
        climb=climb,
    )
    W = learnt.loadings["rna"]
    theta = dispersions(x[~test], train_size[:, None] * (learnt.usage @ W.T))
    visible = Values(
        "rna",
        sparse.csr_array(x[test][:, ~masked]),
        nb,
        test_size,
        frozen=W[~masked],
        parameter=learnt.parameters["rna"][~masked],
    )
    there = fit(places[test], np.zeros(int(test.sum()), int), [visible], shape, random_state=seed, climb=climb)
    # usage comes with mean 1, and what was taken off it is in the loadings
    scale = (there.loadings["rna"] / np.maximum(W[~masked], 1e-12)).max(0)
    rate = test_size[:, None] * ((there.usage * scale) @ W[masked].T)
    result["gpnsf"] = log_likelihood(x[test][:, masked], rate, theta[masked])
    cpu.append(time.process_time() - start)
    return [each.mean() for each in result.values()], cpu


def domains(adata, n_topics, seed, n_inducing):
    """ARI of 4-means with the annotated domains: NMF, NMF averaged over neighbours, ours."""
    adata = adata.copy()
    with warnings.catch_warnings(action="ignore"):
        bc.tl.nmf(adata, n_topics=n_topics, random_state=seed, mask_var=None, progress=False)
        how = {"n_inducing": n_inducing, "device": "cpu", "progress": False}
        bc.tl.gpnsf(adata, n_topics=n_topics, sample_key="slice", random_state=seed, mask_var=None, **how)
    slices = adata.obs["slice"].cat.codes.to_numpy()
    near = neighbours(adata.obsm["spatial"], slices, 20)
    share = [bc.get.usage(adata, key=key, normalize=True).to_numpy() for key in ("nmf", "gpnsf")]
    table_ = []
    for usage in (share[0], near @ share[0], share[1], near @ share[1]):
        label = KMeans(4, n_init=10, random_state=seed).fit_predict(usage)
        table_.append(adjusted_rand_score(adata.obs["domain"], label))
    return table_


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n-topics", type=int, default=10)
    parser.add_argument("--n-inducing", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ.get("BCNMF_SC_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = folder / "starmap_mpfc_3slices.h5ad"
    if not path.exists():
        print(f"{path} is not there: set BCNMF_SC_DATA to the folder that holds it.")
        return
    adata = ad.read_h5ad(path)

    pairs = [masked_genes(adata, given.n_topics, seed, given.n_inducing) for seed in range(given.seeds)]
    result, cpu = (np.array(each) for each in zip(*pairs, strict=True))
    header = ["", "mean profile", "NMF", "gpnsf"]
    rows = [[f"seed {s}", *(f"{v:.4f}" for v in row)] for s, row in enumerate(result)]
    rows.append(["mean", *(f"{v:.4f}" for v in result.mean(0))])
    rows.append(["CPU s", *(f"{v:.0f}" for v in np.median(cpu, 0))])
    title = f"Log-likelihood per masked entry of an unseen slice (half of the genes masked), {given.n_topics} topics"
    table(title, header, rows)
    verdict("gpnsf minus NMF, smallest over seeds", (result[:, 2] - result[:, 1]).min(), 0.0, at_least=True)

    scores = np.array([domains(adata, given.n_topics, seed, given.n_inducing) for seed in range(given.seeds)])
    header = ["", "NMF", "NMF, 20 neighbours", "gpnsf", "gpnsf, 20 neighbours"]
    rows = [[f"seed {s}", *(f"{v:.3f}" for v in row)] for s, row in enumerate(scores)]
    rows.append(["median", *(f"{v:.3f}" for v in np.median(scores, 0))])
    table("ARI of 4-means on the proportions with the annotated layers", header, rows)


if __name__ == "__main__":
    main()
