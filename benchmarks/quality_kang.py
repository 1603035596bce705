"""How well stimulated cells are found in the Kang data, and what is found where there is nothing.

Target: stimulated PBMC, background: control PBMC (Kang et al. 2018). All methods have the same number of topics.
Split: bcNMF with background topics, scored out of fold. Null: one random half of the controls against the other.

    python benchmarks/quality_kang.py [--data FOLDER] [--seeds 10] [--topics 4]
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import anndata
import numpy as np
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import bcnmf_sc as bc

INTERFERON = {"ISG15", "IFIT1", "IFIT2", "IFIT3", "MX1", "IFI6", "ISG20", "LY6E", "CXCL10", "IFITM3"}


def load(folder: Path) -> anndata.AnnData:
    return anndata.read_h5ad(folder / "kang_ifnb_muscat.h5ad")


def clusters(usage: np.ndarray, truth: np.ndarray, seed: int) -> tuple[float, float]:
    """ARI of 2-means, and the AUC of the best single column."""
    labels = KMeans(2, n_init=10, random_state=seed).fit_predict(usage)
    auc = max(max(a, 1 - a) for a in (roc_auc_score(truth, column) for column in usage.T))
    return adjusted_rand_score(truth, labels), auc


def proportions(H: np.ndarray) -> np.ndarray:
    return H / np.maximum(H.sum(1, keepdims=True), 1e-12)


def show(name: str, rows: list[list[float]], columns: list[str]) -> None:
    values = np.array(rows)
    cells = [
        f"{column} {np.median(v):.3f} ({v.min():.3f}-{v.max():.3f})"
        for column, v in zip(columns, values.T, strict=True)
    ]
    print(f"{name:<34}", "  ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("BCNMF_SC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--topics", type=int, default=4)
    parser.add_argument("--background-topics", type=int, default=10)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    adata = load(args.data)
    stim = (adata.obs["condition"] == "stim").to_numpy()
    ask = {"background_key": "condition", "background": "ctrl", "n_topics": args.topics, "tol": 1e-3, "progress": False}
    print(f"Kang: {stim.sum()} stimulated, {(~stim).sum()} control cells, {adata.n_vars} genes; {args.seeds} seeds")

    for basis in ("split", "shared"):
        rows, leading = [], []
        for seed in range(args.seeds):
            bc.tl.bcnmf(adata, **ask, n_background_topics=args.background_topics, basis=basis, random_state=seed)
            share, call = adata.obs["bcnmf_target_share"].to_numpy(), adata.obs["bcnmf_enriched"].to_numpy()
            ari = adjusted_rand_score(stim, call)
            rows.append([roc_auc_score(stim, share), call[stim].mean(), call[~stim].mean(), ari])
            names = [f"Topic {k + 1}" for k in range(args.topics)]
            top = bc.get.top_genes(adata, 10, topics=names)
            leading.append(
                max(len(set(genes) & INTERFERON) for _, genes in top.groupby("topic", observed=True)["gene"])
            )
        show(f"{basis}, share out of fold", rows, ["AUC", "called stim", "called ctrl", "ARI of the call"])
        print(f"{'':<34} interferon genes in the top 10 of the best topic: {min(leading)}-{max(leading)}")

    rows = []
    for seed in range(args.seeds):
        ctrl = adata[~stim].copy()
        half = np.random.default_rng(seed).random(ctrl.n_obs) < 0.5
        ctrl.obs["half"] = np.where(half, "a", "b")
        null = ask | {"background_key": "half", "background": "b"}
        bc.tl.bcnmf(ctrl, **null, n_background_topics=args.background_topics, random_state=seed)
        share, call = ctrl.obs["bcnmf_target_share"].to_numpy(), ctrl.obs["bcnmf_enriched"].to_numpy()
        called_topics = int(ctrl.uns["bcnmf"]["topics"]["called"].sum())
        rows.append([roc_auc_score(half, share), call[half].mean(), call[~half].mean(), called_topics])
    show("null: halves of the controls, split", rows, ["AUC", "called a", "called b", "called topics"])

    for name, fit in {
        "bcNMF, no background topics, 0.3": lambda seed: bc.tl.bcnmf(adata, **ask, target="all", random_state=seed),
        "NMF": lambda seed: bc.tl.nmf(
            adata, n_topics=args.topics, tol=1e-3, random_state=seed, key_added="bcnmf", progress=False
        ),
    }.items():
        rows = []
        for seed in range(args.seeds):
            fit(seed)
            rows.append(clusters(proportions(adata.obsm["X_bcnmf"]), stim, seed))
        show(name, rows, ["ARI of 2-means", "AUC of the best topic"])
    logged = adata.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    sc.pp.pca(logged, n_comps=args.topics)
    show("PCA of log counts", [clusters(logged.obsm["X_pca"], stim, s) for s in range(args.seeds)], ["ARI", "AUC"])
    if hasattr(bc.tl, "cpca"):
        bc.tl.cpca(
            logged, background_key="condition", background="ctrl", target="all", n_components=args.topics, alphas=[1.0]
        )
        usage = logged.obsm["X_cpca"]
        show("cPCA of log counts, alpha 1", [clusters(usage, stim, s) for s in range(args.seeds)], ["ARI", "AUC"])


if __name__ == "__main__":
    main()
