"""The paper's digits demo: do usages find the digits 0 and 1 that are hidden under photographs?

K = 2, Gaussian, alpha 2 on the paper's scale, 20 seeds; ARI of 2-means (10 starts) on the usage proportions of the
target images, on raw usage beside it, with NMF of the target and contrastive PCA (Abid et al. 2018) on the same images.
Where 2-means cuts the proportions depends on the topics' units: as written, loadings sum to 1; scale-free, every
topic's mean usage is 1. The AUC of the proportions has no such cut. Bar: median on proportions at least 0.80.
Reads ``digits_demo_*`` from ``--data``, the folder BCNMF_SC_TEST_DATA, or ../shared/data beside the checkout; without
them it says so and ends.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from _common import table, verdict
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import bcnmf_sc as bc

DATA = os.environ.get("BCNMF_SC_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")


def read(folder: Path) -> ad.AnnData:
    """Target images, then background images, images x pixels."""
    files = [folder / f"digits_demo_{part}_images.csv.gz" for part in ("target", "background")]
    parts = [pd.read_csv(file, index_col=0).T for file in files]
    digits = pd.read_csv(folder / "digits_demo_target_labels.csv", index_col=0)["digit"]
    adata = ad.AnnData(pd.concat(parts).astype(np.float32))
    adata.obs["condition"] = np.repeat(["target", "background"], [len(part) for part in parts])
    adata.obs["digit"] = digits.reindex(adata.obs_names)
    return adata


def proportions(usage: np.ndarray) -> np.ndarray:
    return usage / np.maximum(usage.sum(1, keepdims=True), 1e-30)


def ari(points: np.ndarray, truth: np.ndarray, seed: int) -> float:
    return adjusted_rand_score(truth, KMeans(2, n_init=10, random_state=seed).fit_predict(points))


def cpca(X: np.ndarray, Y: np.ndarray, alpha: float) -> np.ndarray:
    """Scores of X on the two leading eigenvectors of cov(X) - alpha cov(Y)."""
    _, vectors = np.linalg.eigh(np.cov(X.T) - alpha * np.cov(Y.T))
    return (X - X.mean(0)) @ vectors[:, -2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(DATA))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="100 seeds")
    args = parser.parse_args()
    if not (args.data / "digits_demo_target_images.csv.gz").exists():
        print("digits_demo_target_images.csv.gz is not there: name its folder with --data or BCNMF_SC_TEST_DATA.")
        return
    adata = read(args.data)
    images = (adata.obs["condition"] == "target").to_numpy()
    truth = adata.obs["digit"].to_numpy()[images].astype(int)

    seeds = range(100 if args.full else args.seeds)
    scores: dict[str, list[float]] = {}
    iterations: dict[str, list[int]] = {"bcnmf": [], "nmf": []}
    aucs: dict[str, list[float]] = {"bcnmf": [], "nmf": []}
    for seed in seeds:
        how = {"n_topics": 2, "likelihood": "gaussian", "mask_var": None, "random_state": seed, "progress": False}
        with warnings.catch_warnings():  # alpha 2 suppresses most pixels, and says so at every seed
            warnings.simplefilter("ignore")
            bc.tl.bcnmf(adata, background_key="condition", background="background", alpha=2, alpha_scale="sum", **how)
            bc.tl.nmf(adata, cells=images, **how)
        for key in ("bcnmf", "nmf"):
            usage = adata.obsm[f"X_{key}"][images]
            scores.setdefault(f"{key}, proportions", []).append(ari(proportions(usage), truth, seed))
            free = proportions(usage / usage.mean(0))
            scores.setdefault(f"{key}, proportions, scale-free", []).append(ari(free, truth, seed))
            scores.setdefault(f"{key}, raw usage", []).append(ari(usage, truth, seed))
            auc = roc_auc_score(truth, proportions(usage)[:, 0])
            aucs[key].append(max(auc, 1 - auc))
            iterations[key].append(adata.uns[key]["n_iter"])
    X, Y = adata.X[images].astype(np.float64), adata.X[~images].astype(np.float64)
    for alpha in (0, 0.5, 1, 2, 5, 10):
        name = "PCA" if alpha == 0 else f"cPCA, alpha {alpha:g}"
        scores[name] = [ari(cpca(X, Y, alpha), truth, seed) for seed in seeds]

    table(
        f"{images.sum()} target and {(~images).sum()} background images, ARI against the digit, {len(seeds)} seeds",
        ["", "median", "lowest", "highest"],
        [[name, f"{np.median(s):.3f}", f"{min(s):.3f}", f"{max(s):.3f}"] for name, s in scores.items()],
    )
    print(f"  effective alpha of the contrast: {adata.uns['bcnmf']['alpha_effective']:.2f}")
    print(f"  pixels suppressed by it: {adata.var['bcnmf_suppressed'].sum()} of {adata.n_vars}")
    print("  iterations, median: " + ", ".join(f"{key} {np.median(n):.0f}" for key, n in iterations.items()))
    print("  AUC of the proportions, median: " + ", ".join(f"{key} {np.median(n):.3f}" for key, n in aucs.items()))
    for name in ("proportions", "proportions, scale-free"):
        verdict(f"median ARI of bcnmf, {name}", float(np.median(scores[f"bcnmf, {name}"])), 0.80, at_least=True)


if __name__ == "__main__":
    main()
