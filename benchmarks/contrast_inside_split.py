"""What a contrast does beside background topics: ``basis="split"`` with alpha 0, 0.2, 0.3 and 0.5.

On the sets of the other scripts (Kang; Zheng with CD34+ or CD14+ cells added; two simulated sets) and the two without a
difference (halves of Kang's controls; Zheng with nothing added): AUC of the out-of-fold share, cells called, topics
called, target deviance explained, genes suppressed, agreement of the topics over folds and, on simulated sets, mean
cosine of the true target-only programs to the topics matched to them. No bar: the table of docs/background_topics.md.

    python benchmarks/contrast_inside_split.py [--data FOLDER] [--seeds 2] [--topics 4] [--background-topics 20]
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from _common import table
from _designs import BY_CELL, WEAK, arguments, kang, kang_null, scores, simulated, zheng

import bcnmf_sc as bc

if TYPE_CHECKING:
    from anndata import AnnData

ALPHAS = (0.0, 0.2, 0.3, 0.5)


def true_cosine(adata: AnnData) -> float:
    """Cosine of the simulated target-only programs to the target topics matched to them."""
    truth = adata.varm["true_loadings"][:, (adata.uns["truth"]["kind"] == "salient").to_numpy()]
    is_target = (bc.get.topics(adata)["kind"] == "target").to_numpy()
    return bc.metrics.matched_cosine(adata.varm["bcnmf"][:, is_target], truth)


def main() -> None:
    args = arguments(__doc__, seeds=2, topics=4, background_topics=20)
    designs = {
        "Kang": partial(kang, args.data),
        "Zheng, CD34+": partial(zheng, args.data, spike="CD34+"),
        "Zheng, CD14+": partial(zheng, args.data, spike="CD14+"),
        "simulated": simulated,
        "simulated, weak": partial(simulated, **WEAK),
        "null: Kang": partial(kang_null, args.data),
        "null: Zheng": partial(zheng, args.data),
    }
    numbers = {"n_topics": args.topics, "n_background_topics": args.background_topics, "tol": 1e-3}
    rows = []
    for name, design in designs.items():
        for alpha in ALPHAS:
            found = []
            for seed in range(args.seeds):
                adata = design(seed)
                bc.tl.bcnmf(adata, **BY_CELL, **numbers, alpha=alpha, random_state=seed)
                topics = bc.get.topics(adata).query("kind == 'target'")
                found.append(
                    {"called new": np.nan}
                    | scores(adata)
                    | {
                        "topics called": topics["called"].mean(),
                        "deviance": adata.uns["bcnmf"]["deviance_explained"]["target"],
                        "suppressed": adata.var["bcnmf_suppressed"].mean(),
                        "stability": topics["stability"].mean(),
                        "cosine": true_cosine(adata) if "truth" in adata.uns else np.nan,
                    }
                )
            columns = ["AUC", *(key for key in found[0] if key != "AUC")]
            rows.append([name, alpha, *(f"{np.mean([each[key] for each in found]):.3f}" for key in columns)])
            print(*rows[-1], flush=True)
    table(f"{numbers}, mean of {args.seeds} seeds", ["set", "alpha", *columns], rows)


if __name__ == "__main__":
    main()
