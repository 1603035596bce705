"""What cross-fitting removes: background cells that a model has seen score lower than control cells it has not seen.

The controls of the Kang data are cut at random into three parts that do not differ: a background, a target, and a third part
that takes no part in the fit. An honest score tells no two of them apart (AUC 0.5).

    python benchmarks/crossfit_bias.py [--data FOLDER] [--seeds 5]
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import anndata
import numpy as np
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("BCNMF_SC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    adata = anndata.read_h5ad(args.data / "kang_ifnb_muscat.h5ad")
    adata = adata[adata.obs["condition"] == "ctrl"].copy()
    print(f"{adata.n_obs} control cells in three random parts, 10 background and 4 target topics, {args.seeds} seeds")
    found: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        part = np.random.default_rng(seed).integers(0, 3, adata.n_obs)
        adata.obs["part"] = np.array(["background", "target", "unseen"])[part]
        ask = {"background_key": "part", "background": "background", "target": "target", "n_topics": 4}
        bc.tl.bcnmf(adata, **ask, n_background_topics=10, tol=1e-3, random_state=seed, progress=False)
        H = adata.obsm["X_bcnmf"]
        seen = H[:, :4].sum(1) / np.maximum(H.sum(1), 1e-12)
        honest = adata.obs["bcnmf_target_share"].to_numpy()
        for name, score in (("as fitted", seen), ("cross-fitted", honest)):
            for other in (1, 2):
                if name == "cross-fitted" and other == 2:
                    continue  # the third part is scored by the full fit
                cells = (part == 0) | (part == other)
                label = f"{name}: {['', 'target', 'unseen'][other]} against background"
                found.setdefault(label, []).append(roc_auc_score(part[cells] == other, score[cells]))
    for label, values in found.items():
        print(f"{label:<45} AUC {np.median(values):.3f} ({min(values):.3f}-{max(values):.3f})")


if __name__ == "__main__":
    main()
