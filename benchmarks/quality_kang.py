"""How well stimulated cells are found in the Kang data, and what is found where there is nothing.

Target: stimulated PBMC, background: control PBMC (Kang et al. 2018). Split and shared: bcNMF with background topics,
scored out of fold. Bars, over all seeds: AUC of the share >= 0.99, stimulated cells called >= 97 %, controls called
<= 6 %; at least three of ten interferon genes among the ten that lead a target topic. Null, one random half of the
controls against the other: AUC 0.44 to 0.56, cells called <= 8 %. Beside it NMF, PCA, contrastive PCA and plain bcNMF
with the same number of topics (k-means on all cells, AUC of the best topic).

    python benchmarks/quality_kang.py [--data FOLDER] [--seeds 10] [--topics 4] [--background-topics 10]
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from _common import table, verdict
from _designs import BY_CELL, ROLES, arguments, kang, kang_null, scores, spread
from sklearn.metrics import adjusted_rand_score

import bcnmf_sc as bc

if TYPE_CHECKING:
    from anndata import AnnData

INTERFERON = {"ISG15", "IFIT1", "IFIT2", "IFIT3", "MX1", "IFI6", "ISG20", "LY6E", "CXCL10", "IFITM3"}


def n_interferon(adata: AnnData) -> int:
    """Interferon genes among the ten that lead the target topic with most of them."""
    topics = bc.get.topics(adata).query("kind == 'target'").index.tolist()
    leading = bc.get.top_genes(adata, n_genes=10, topics=topics).groupby("topic", observed=True)["gene"]
    return max(len(INTERFERON.intersection(genes)) for _, genes in leading)


def main() -> None:
    args = arguments(__doc__, seeds=10, topics=4, background_topics=10)
    fit = partial(bc.tl.bcnmf, **BY_CELL, n_background_topics=args.background_topics, n_topics=args.topics, tol=1e-3)
    begin = time.process_time()
    found: dict[str, list[dict[str, float]]] = {"split": [], "shared": [], "null": []}
    for seed in range(args.seeds):
        for basis in ("split", "shared"):
            adata = kang(args.data)
            fit(adata, basis=basis, random_state=seed)
            ari = adjusted_rand_score(adata.obs["new"], adata.obs["bcnmf_enriched"])
            found[basis].append(scores(adata) | {"ARI of the call": ari, "interferon genes": n_interferon(adata)})
        adata = kang_null(args.data, seed)
        fit(adata, random_state=seed)
        found["null"].append(scores(adata) | {"called topics": bc.get.topics(adata)["called"].sum()})
        print(f"seed {seed}:", {name: each[-1] for name, each in found.items()}, flush=True)
    size = f"{args.topics} target and {args.background_topics} background topics"
    for title, bases in (("Stimulated against control", ("split", "shared")), ("Halves of the controls", ("null",))):
        names = list(found[bases[0]][0])
        rows = [
            ["split" if b == "null" else b, *(spread([f[name] for f in found[b]]) for name in names)] for b in bases
        ]
        table(f"{title}: {size}, {args.seeds} seeds, median (range)", ["basis", *names], rows)

    adata = kang(args.data)
    adata.obs["stimulated"] = np.where(adata.obs["new"], "yes", "no")
    others = bc.metrics.compare(
        adata,
        **ROLES,
        labels="stimulated",
        methods=["nmf", "pca", "cpca", "bcnmf"],
        n_topics=args.topics,
        n_seeds=args.seeds,
        cells="all",
        tol=1e-3,
    )
    rows = [
        [method, "" if np.isnan(alpha) else alpha, spread(each["ari"]), spread(each["auc"])]
        for (method, alpha), each in others.groupby(["method", "alpha"], dropna=False, sort=False)
    ]
    table(f"Others, {args.topics} topics: median (range)", ["method", "alpha", "ARI", "AUC of the best topic"], rows)
    print(f"  {time.process_time() - begin:.0f} CPU-s")
    split, null = found["split"], found["null"]
    verdict("split: AUC, least", min(f["AUC"] for f in split), 0.99, at_least=True)
    verdict("split: stimulated cells called, least", min(f["called new"] for f in split), 0.97, at_least=True)
    verdict("split: controls called, most", max(f["called others"] for f in split), 0.06, at_least=False)
    verdict("split: interferon genes on top, least", min(f["interferon genes"] for f in split), 3, at_least=True)
    verdict("null: AUC, least", min(f["AUC"] for f in null), 0.44, at_least=True)
    verdict("null: AUC, most", max(f["AUC"] for f in null), 0.56, at_least=False)
    verdict("null: cells called, most", max(f["called others"] for f in null), 0.08, at_least=False)


if __name__ == "__main__":
    main()
