"""Runtime and clustering against the number of images, as the paper's Figure 7: NMF, bcNMF and contrastive PCA.

Digits 0 and 1 under photographs, from `bcnmf_sc.datasets.digits`, drawn with replacement with a little noise; two
images in three are target. Whole calls with defaults (fits end when the loadings rest), K = 2, one thread, CPU time.
ARI of 2-means on usage proportions, or scores, of the target images. Draws docs/images/runtime.png with ``--draw``.
There is no bar: the paper's figure has seconds on another machine, so read how the lines grow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from _common import Clock, table
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

import bcnmf_sc as bc

CONDITIONS = {"background_key": "condition", "background": "background"}
HOW = {"n_topics": 2, "likelihood": "gaussian", "n_threads": 1, "progress": False}


def images(n: int) -> ad.AnnData:
    """Return n images, drawn again from the few that there are, with noise."""
    rng = np.random.default_rng(n)
    few = bc.datasets.digits()
    target = (few.obs["condition"] == "target").to_numpy()
    which = np.concatenate([rng.choice(np.flatnonzero(part), size) for part, size in
                            ((target, n * 2 // 3), (~target, n - n * 2 // 3))])  # fmt: skip
    noise = rng.normal(0, 0.02, (n, few.n_vars)).astype(np.float32)
    many = ad.AnnData(np.clip(few.X[which] + noise, 0, 1), few.obs.iloc[which].reset_index(drop=True), few.var)
    many.obs_names = many.obs_names.astype(str)
    return many


def runs(adata: ad.AnnData) -> dict[str, tuple[float, float]]:
    """CPU seconds and ARI of each method."""
    target = (adata.obs["condition"] == "target").to_numpy()
    truth = adata.obs["digit"][target]
    calls = {
        "NMF, target alone": lambda: bc.tl.nmf(adata, cells=target, key_added="fit", **HOW),
        "bcNMF": lambda: bc.tl.bcnmf(adata, alpha=2, alpha_scale="sum", key_added="fit", **CONDITIONS, **HOW),
        "contrastive PCA": lambda: bc.tl.cpca(adata, alphas=2.0, n_components=2, key_added="fit", **CONDITIONS),
    }
    found = {}
    for name, call in calls.items():
        with Clock() as clock, threadpool_limits(1):
            call()
        points = np.asarray(adata.obsm["X_fit"])[target]
        if "PCA" not in name:
            points = points / np.maximum(points.sum(1, keepdims=True), 1e-30)
        labels = KMeans(2, n_init=10, random_state=0).fit_predict(points)
        found[name] = float(clock.times[1]), adjusted_rand_score(truth, labels)
    return found


def draw(results: pd.DataFrame, path: Path) -> None:
    """Seconds and ARI against the number of images."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for (name, rows), style in zip(results.groupby("method", sort=False), ("o-", "s--", "^:"), strict=True):
        axes[0].loglog(rows["images"], rows["CPU s"], style, label=name)
        axes[1].semilogx(rows["images"], rows["ARI"], style)
    axes[0].set(xlabel="images", ylabel="CPU seconds")
    axes[1].set(xlabel="images", ylabel="ARI against the digit", ylim=(-0.05, 1.05))
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="up to 30,000 images in place of 10,000")
    parser.add_argument("--draw", action="store_true", help="write docs/images/runtime.png")
    args = parser.parse_args()
    sizes = [1000, 3000, 10_000, *([30_000] if args.full else [])]
    runs(images(300))  # compiles
    rows = [(n, name, *values) for n in sizes for name, values in runs(images(n)).items()]
    results = pd.DataFrame(rows, columns=["images", "method", "CPU s", "ARI"])
    wide = results.pivot(index="images", columns="method", values=["CPU s", "ARI"])
    header = ["images", *(f"{method}: {what}" for what, method in wide.columns)]
    cells = [[f"{n:,}", *map(float, row)] for n, row in zip(wide.index, wide.to_numpy(), strict=True)]
    table("Whole calls, K = 2, 256 pixels, one thread", header, cells)
    if args.draw:
        draw(results, Path(__file__).parents[1] / "docs" / "images" / "runtime.png")


if __name__ == "__main__":
    main()
