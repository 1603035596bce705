"""Cells of a type that the background lacks are found, and nothing is found where nothing was added.

Background: a random half of sorted B, NK and T cells (Zheng et al. 2017). Target: the other half, with all CD34+ or all
CD14+ cells added. Bars: AUC of the out-of-fold share of added against other target cells >= 0.97; the call finds
>= 90 % of the added and <= 8 % of the other cells. Null: nothing added; no topic may be called in at least 18 of 20
random splits.

    python benchmarks/semi_synthetic.py [--data FOLDER] [--seeds 3] [--null-seeds 20] [--topics 4]
"""

from __future__ import annotations

from functools import partial

import numpy as np
from _common import table, verdict
from _designs import BY_CELL, arguments, scores, spread, zheng

import bcnmf_sc as bc


def main() -> None:
    args = arguments(__doc__, seeds=3, null_seeds=20, topics=4, background_topics=10)
    options = {"n_topics": args.topics, "n_background_topics": args.background_topics, "tol": 1e-3}
    fit = partial(bc.tl.bcnmf, **BY_CELL, **options)
    rows, all_found = [], []
    for spike in ("CD34+", "CD14+"):
        found = []
        for seed in range(args.seeds):
            adata = zheng(args.data, seed, spike=spike)
            fit(adata, random_state=seed)
            found.append(scores(adata) | {"called topics": int(bc.get.topics(adata)["called"].sum())})
            print(spike, seed, found[-1], flush=True)
        rows.append([spike, *(spread([each[name] for each in found]) for name in found[0])])
        all_found += found
    table(f"Added cells, {args.seeds} seeds: median (range)", ["added", *all_found[0]], rows)

    null = []
    for seed in range(args.null_seeds):
        adata = zheng(args.data, seed)
        fit(adata, random_state=seed)
        topics = bc.get.topics(adata)
        null.append(scores(adata) | {"called": int(topics["called"].sum()), "p": topics["p_value"].min()})
        print("null", seed, null[-1], flush=True)
    names = ("AUC", "called others")
    table("Nothing added", names, [[spread([each[name] for each in null]) for name in names]])
    verdict("AUC, least", min(f["AUC"] for f in all_found), 0.97, at_least=True)
    verdict("added cells called, least", min(f["called new"] for f in all_found), 0.90, at_least=True)
    verdict("other cells called, most", max(f["called others"] for f in all_found), 0.08, at_least=False)
    quiet = np.mean([each["called"] == 0 for each in null])
    verdict("share of null splits without a called topic", quiet, 0.9, at_least=True)


if __name__ == "__main__":
    main()
