"""What cross-fitting removes: background cells that a model has seen score lower than control cells it has not seen.

The controls of the Kang data are cut at random into three parts that do not differ: a background, a target, and a third
part that takes no part in the fit. An honest score tells no two of them apart (AUC 0.5).

The shift table of `tl.deltanmf` is tested likewise, on simulated controls and cases that do not differ, with ten donors
in both.

    python benchmarks/crossfit_bias.py [--data FOLDER] [--seeds 5] [--shift-runs 40]
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

LEVEL = 0.05


def scored(adata: AnnData, seed: int) -> dict[str, np.ndarray]:
    """Parts of the controls (0 background, 1 target, 2 unseen), and the target share as fitted and cross-fitted."""
    part = np.random.default_rng(seed).integers(0, 3, adata.n_obs)
    adata.obs["part"] = np.array(["background", "target", "unseen"])[part]
    ask = {"background_key": "part", "background": "background", "target": "target", "n_topics": 4}
    bc.tl.bcnmf(adata, **ask, sample_key="cells", n_background_topics=10, tol=1e-3, random_state=seed, progress=False)
    seen = bc.metrics.proportions(adata.obsm["X_bcnmf"])[:, :4].sum(1)
    return {"part": part, "as fitted": seen, "cross-fitted": adata.obs["bcnmf_target_share"].to_numpy()}


def shifts(seed: int, cross_fit: int | None) -> np.ndarray:
    """P-values of the shifts of four control topics where nothing is shifted."""
    adata = bc.datasets.simulated_programs(300, 300, 200, n_shared=4, n_new=0, random_state=seed)
    adata.obs["donor"] = np.random.default_rng(seed).integers(0, 10, adata.n_obs).astype(str)
    ask = {"condition_key": "condition", "control": "ctrl", "sample_key": "donor", "n_topics_control": 4}
    bc.tl.deltanmf(adata, **ask, cross_fit=cross_fit, tol=1e-3, random_state=seed, progress=False)
    return adata.uns["deltanmf"]["shift"]["p_value"].to_numpy()


def main() -> None:
    args = arguments(__doc__, seeds=5, shift_runs=40)
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
    rows = []
    for how, cross_fit in (("as fitted", None), ("cross-fitted", 5)):
        p = np.array([shifts(seed, cross_fit) for seed in range(args.shift_runs)])
        rows.append([how, float((p < LEVEL).mean()), float((p < LEVEL).mean(1).std() / np.sqrt(len(p)))])
    table(f"shifts of DeltaNMF, {args.shift_runs} runs without a shift", ["share", "p < 0.05", "standard error"], rows)
    verdict("cross-fitted, p < 0.05", rows[1][1], LEVEL + 2 * rows[1][2], at_least=False)


if __name__ == "__main__":
    main()
