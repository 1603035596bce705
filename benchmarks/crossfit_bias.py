"""What cross-fitting removes: background cells that a model has seen score lower than control cells it has not seen.

The controls of the Kang data are cut at random into three parts that do not differ: a background, a target, and a third
part that takes no part in the fit. An honest score tells no two of them apart (AUC 0.5).

    python benchmarks/crossfit_bias.py [--data FOLDER] [--seeds 5]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from _common import table, verdict
from _designs import arguments, kang_null, spread
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc

if TYPE_CHECKING:
    from anndata import AnnData


def scored(adata: AnnData, seed: int) -> dict[str, np.ndarray]:
    """Parts of the controls (0 background, 1 target, 2 unseen), and the target share as fitted and cross-fitted."""
    part = np.random.default_rng(seed).integers(0, 3, adata.n_obs)
    adata.obs["part"] = np.array(["background", "target", "unseen"])[part]
    ask = {"background_key": "part", "background": "background", "target": "target", "n_topics": 4}
    bc.tl.bcnmf(adata, **ask, sample_key="cells", n_background_topics=10, tol=1e-3, random_state=seed, progress=False)
    seen = bc.metrics.proportions(adata.obsm["X_bcnmf"])[:, :4].sum(1)
    return {"part": part, "as fitted": seen, "cross-fitted": adata.obs["bcnmf_target_share"].to_numpy()}


def main() -> None:
    args = arguments(__doc__, seeds=5)
    adata = kang_null(args.data)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(args.seeds):
        each = scored(adata, seed)
        # the third part is in no fold: the full fit scores it, which has not seen it either
        for how, other in (("as fitted", 1), ("as fitted", 2), ("cross-fitted", 1)):
            cells = (each["part"] == 0) | (each["part"] == other)
            auc = roc_auc_score(each["part"][cells] == other, each[how][cells])
            found.setdefault((how, ["", "target", "unseen"][other]), []).append(auc)
    rows = [[how, f"{other} against background", spread(values)] for (how, other), values in found.items()]
    table(f"{adata.n_obs} controls in three random parts, {args.seeds} seeds", ["share", "cells", "AUC"], rows)
    verdict("cross-fitted, AUC, most", max(found["cross-fitted", "target"]), 0.56, at_least=False)
    verdict("cross-fitted, AUC, least", min(found["cross-fitted", "target"]), 0.44, at_least=True)


if __name__ == "__main__":
    main()
