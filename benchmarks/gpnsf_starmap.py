"""Spatial topics against plain NMF on STARmap, mouse prefrontal cortex: masked genes in an unseen slice, domains.

1. Both methods learn loadings on two slices. In the third, half of the genes are masked in every cell; the usage comes
   from the other half (NMF: the best fit of each cell; ours: the posterior given the cell and its surroundings), and
   the masked genes' log-likelihood under a negative binomial is compared. The dispersions of the genes are estimated
   on the two slices for each method's own rates. NMF says zero where it knows nothing, which a likelihood punishes
   without bound, so beside it stand NMF drawn towards the mean profile, by the share that is best on the answer itself,
   and NMF's usage averaged over the nearest 20 cells.
2. The four annotated layers: how well the best topic tells each from the rest, and k-means on the proportions of usage,
   all three slices fitted together; against NMF's, and against the same after averaging over the nearest 20 cells,
   which is what a user of NMF would do for domains.

Reads starmap_mpfc_3slices.h5ad from the folder BCNMF_SC_TEST_DATA (default: ../shared/data beside the checkout).
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
from bcnmf_sc.engine.gpnsf.fit import Climb, fit_spatial
from bcnmf_sc.engine.gpnsf.observations import OBSERVATIONS
from bcnmf_sc.engine.gpnsf.space import neighbours
from bcnmf_sc.engine.gpnsf.start import Shape, Values

MIXES = (0.0, 0.1, 0.3, 0.5, 0.8)


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


def masked_genes(adata, n_topics, seed, *, n_inducing):
    """Mean log-likelihood per masked entry in the unseen slice, by method, and CPU seconds."""
    names = sorted(adata.obs["slice"].unique())
    unseen = names[seed % len(names)]
    test = (adata.obs["slice"] == unseen).to_numpy()
    x, places = adata.X.toarray().astype(np.float64), adata.obsm["spatial"]
    masked = np.random.default_rng(seed).permutation(x.shape[1]) < x.shape[1] // 2
    train, answer = x[~test], x[test][:, masked]
    train_size = train.sum(1) / train.sum(1).mean()
    # the size of an unseen cell: what its visible genes are to the visible genes of the others
    test_size = x[test][:, ~masked].sum(1) / train[:, ~masked].sum(1).mean()
    result, cpu = {}, {}

    profile = train.sum(0) / train_size.sum()
    flat_train, flat = np.outer(train_size, profile), np.outer(test_size, profile)[:, masked]
    result["mean profile"] = log_likelihood(answer, flat, dispersions(train, flat_train)[masked]).mean()

    start = time.process_time()
    source = row_source(sparse.csr_array(train))
    ones = np.ones(len(train))
    fits = [
        fit_nmf(source, likelihoods.Poisson(), n_topics, target=ones, background=0 * ones, random_state=s, run=Run())
        for s in range(3 * seed, 3 * seed + 3)
    ]
    best = min(fits, key=lambda f: f.cell_loss.sum())
    H, _ = transform(row_source(sparse.csr_array(x[test][:, ~masked])), likelihoods.Poisson(), best.W[~masked])
    cpu["NMF"] = time.process_time() - start
    near = neighbours(places[test], np.zeros(int(test.sum()), int), 20)
    near_train = neighbours(
        places[~test], adata.obs["slice"][~test].cat.remove_unused_categories().cat.codes.to_numpy(), 20
    )

    def smooth(usage, weights, size):
        return size[:, None] * (weights @ (usage / np.maximum(size, 1e-9)[:, None]))

    for name, at, learnt_at in (
        ("NMF", H, best.H),
        ("NMF, 20 neighbours", smooth(H, near, test_size), smooth(best.H, near_train, train_size)),
    ):
        each = {}
        for mix in MIXES:
            rate = (1 - mix) * (at @ best.W[masked].T) + mix * flat
            theta = dispersions(train, (1 - mix) * (learnt_at @ best.W.T) + mix * flat_train)
            each[mix] = log_likelihood(answer, rate, theta[masked]).mean()
        result[name] = each[0.0]
        result[name + ", best mix"] = max(each.values())

    kept = adata.obs["slice"][~test].cat.remove_unused_categories().cat.codes.to_numpy()
    nb, climb = OBSERVATIONS["nb"], Climb(device="cpu")
    for name, n_free in (("gpnsf", 0), ("gpnsf, half non-spatial", n_topics // 2)):
        start = time.process_time()
        shape = Shape(n_topics - n_free, n_free, n_inducing=n_inducing)
        values = Values("rna", sparse.csr_array(train), nb, train_size)
        learnt = fit_spatial(places[~test], kept, [values], shape, random_state=seed, climb=climb)
        # in the model's own units, in which the prior of non-spatial usage is standard
        W = learnt.loadings["rna"] / learnt.posterior["scale"]
        visible = Values("rna", sparse.csr_array(x[test][:, ~masked]), nb, test_size, frozen=W[~masked])
        one = np.zeros(int(test.sum()), int)
        there = fit_spatial(places[test], one, [visible], shape, random_state=seed, climb=climb)
        scale = there.posterior["scale"]
        rate = test_size[:, None] * ((there.usage * scale) @ W[masked].T)
        theta = dispersions(train, train_size[:, None] * (learnt.usage @ learnt.loadings["rna"].T))
        result[name] = log_likelihood(answer, rate, theta[masked]).mean()
        cpu[name] = time.process_time() - start
    return result, cpu


def domains(adata, n_topics, seed, *, n_inducing):
    """AUC of the best topic of a layer (mean over layers), ARI of 4-means: NMF, the same averaged, ours, averaged."""
    adata = adata.copy()
    with warnings.catch_warnings(action="ignore"):
        bc.tl.nmf(adata, n_topics=n_topics, random_state=seed, mask_var=None, progress=False)
        how = {"n_inducing": n_inducing, "device": "cpu", "progress": False}
        bc.tl.gpnsf(adata, n_topics=n_topics, sample_key="slice", random_state=seed, mask_var=None, **how)
    slices = adata.obs["slice"].cat.codes.to_numpy()
    near = neighbours(adata.obsm["spatial"], slices, 20)
    share = [bc.get.usage(adata, key=key, normalize=True).to_numpy() for key in ("nmf", "gpnsf")]
    found = []
    for usage in (share[0], near @ share[0], share[1], near @ share[1]):
        label = KMeans(4, n_init=10, random_state=seed).fit_predict(usage)
        layers = adata.obs["domain"].to_numpy()
        found.append((bc.metrics.auc(usage, layers), adjusted_rand_score(layers, label)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n-topics", type=int, default=10)
    parser.add_argument("--n-inducing", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ.get("BCNMF_SC_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = folder / "starmap_mpfc_3slices.h5ad"
    if not path.exists():
        print(f"{path} is not there: set BCNMF_SC_TEST_DATA to the folder that holds it.")
        return
    adata = ad.read_h5ad(path)

    pairs = [masked_genes(adata, given.n_topics, seed, n_inducing=given.n_inducing) for seed in range(given.seeds)]
    methods = list(pairs[0][0])
    result = np.array([[each[name] for name in methods] for each, _ in pairs])
    rows = []
    for k, name in enumerate(methods):
        cpu = [f"{np.median([each[name] for _, each in pairs]):.0f}"] if name in pairs[0][1] else [""]
        rows.append([name, f"{result[:, k].mean():.4f}", *(f"{v:.4f}" for v in result[:, k]), *cpu])
    title = f"Log-likelihood per masked entry of an unseen slice (half of the genes masked), {given.n_topics} topics"
    table(title, ["method", "mean", *(f"seed {s}" for s in range(given.seeds)), "CPU s"], rows)
    ours, nmf = result[:, methods.index("gpnsf")], result[:, methods.index("NMF")]
    strongest = result[:, [k for k, name in enumerate(methods) if name.startswith("NMF")]].max(1)
    verdict("gpnsf minus NMF, smallest over seeds", (ours - nmf).min(), 0.0, at_least=True)
    verdict("gpnsf minus the best of all NMF rows, smallest", (ours - strongest).min(), 0.0, at_least=True)
    hybrid = result[:, methods.index("gpnsf, half non-spatial")]
    verdict(
        "gpnsf, half non-spatial, minus the best of all NMF rows, smallest",
        (hybrid - strongest).min(),
        0.0,
        at_least=True,
    )

    scores = np.array(
        [domains(adata, given.n_topics, seed, n_inducing=given.n_inducing) for seed in range(given.seeds)]
    )
    header = ["", "NMF", "NMF, 20 neighbours", "gpnsf", "gpnsf, 20 neighbours"]
    for k, title in enumerate(
        ("AUC of the best topic of a layer, mean over layers", "ARI of 4-means on the proportions with the layers")
    ):
        rows = [[f"seed {s}", *(f"{v:.3f}" for v in row)] for s, row in enumerate(scores[:, :, k])]
        rows.append(["median", *(f"{v:.3f}" for v in np.median(scores[:, :, k], 0))])
        table(title, header, rows)


if __name__ == "__main__":
    main()
