"""What is called where nothing is new: depth, composition, ambient RNA, a batch, empty cells, doublets.

The controls of the Kang data are cut into random halves, which do not differ, and one artefact is added. Every called
topic is false, and more than 5 % of cells called are too many. "Plain" are the calls of earlier versions on the same
fits: shares of all cells compared in one, against one threshold. Depth is also shown after `pp.match_depth`. Ambient
RNA and a batch that is the condition cannot be told from a program: their rows show how large the harm is.

    python benchmarks/artefacts.py [--data FOLDER] [--runs 20] [--only depth,batch] [--topics 3] [--background-topics 8]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from _common import table, verdict
from _designs import arguments, batched, doubled, kang_null, more_of, soaked, thinned
from composition import compared
from tqdm import tqdm

import bcnmf_sc as bc
from bcnmf_sc.tl._bcnmf.problem import LIKE_ALL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

N_GENES = 500
"""Genes used, those in most cells."""
BATCH = 0.2
"""Standard deviation of the log factors of genes in a batch."""


def halves(folder: Path, seed: int) -> AnnData:
    """The controls in random halves."""
    adata = kang_null(folder, seed)
    frequent = np.argsort(-np.asarray((adata.X > 0).mean(0)).ravel(), kind="stable")[:N_GENES]
    return adata[:, np.sort(frequent)].copy()


def matched(adata: AnnData, seed: int) -> AnnData:
    """Bring both halves to one depth."""
    bc.pp.match_depth(adata, background_key="role", background="background", random_state=seed)
    return adata


ARTEFACTS: dict[str, Callable[[AnnData, int], AnnData]] = {
    "none: random halves": lambda adata, _: adata,
    "depth 2 x: background at 1/2": lambda adata, seed: thinned(adata, "background", 1 / 2, seed=seed),
    "depth 2 x, matched": lambda adata, seed: matched(thinned(adata, "background", 1 / 2, seed=seed), seed),
    "depth 4 x: background at 1/4": lambda adata, seed: thinned(adata, "background", 1 / 4, seed=seed),
    "composition: monocytes 2:1": lambda adata, seed: more_of(adata, "onocyte", seed),
    "ambient RNA, 10 % of the target's counts": lambda adata, seed: soaked(adata, 0.10, seed=seed),
    "ambient RNA, 25 %": lambda adata, seed: soaked(adata, 0.25, seed=seed),
    "batch that is the condition": lambda adata, seed: batched(adata, BATCH, seed=seed),
    "10 % of the background empty": lambda adata, seed: thinned(adata, "background", 0, seed=seed, cells=0.1),
    "10 % of the target doublets": lambda adata, seed: doubled(adata, 0.1, seed=seed),
}
HONEST = ("none", "depth 2 x, matched", "composition", "10 % of")
"""Rows that have a bar: what the methods take into account."""


def called(adata: AnnData, seed: int, **numbers: int) -> list[float]:
    """Fit once; return topics and cells called, each plain and as built, and topics that look like all cells."""
    found = compared(adata, seed, "cells", **numbers)[:4]
    topics = adata.uns["bcnmf"]["topics"]
    alike = (topics["kind"] == "target") & topics["called"].astype(bool) & (topics["profile_cosine"] >= LIKE_ALL)
    return [*found, int(alike.sum())]


def main() -> None:
    args = arguments(__doc__, runs=20, only="", topics=3, background_topics=8)
    numbers = {"n_topics": args.topics, "n_background_topics": args.background_topics}
    chosen = {name: made for name, made in ARTEFACTS.items() if any(part in name for part in args.only.split(","))}
    rows: dict[str, tuple[float, ...]] = {}
    for name, made in chosen.items():
        runs = np.array(
            [
                called(made(halves(args.data, seed), seed), seed, **numbers)
                for seed in tqdm(range(args.runs), desc=name, leave=False)
            ]
        )
        rows[name] = (
            *(runs[:, :2] > 0).sum(0).tolist(),
            *runs[:, 2:4].mean(0).round(4).tolist(),
            int((runs[:, 4] > 0).sum()),
        )
        print(name, *rows[name], flush=True)
    header = ["artefact", f"runs of {args.runs} with a topic: plain", "here", "cells called: plain", "here"]
    header.append("runs with a topic like all cells")
    table(f"{numbers}, {N_GENES} genes", header, [[name, *row] for name, row in rows.items()])
    for name, row in rows.items():
        if name.startswith(HONEST):
            verdict(f"runs with a called topic, {name}", row[1] / args.runs, 0.1, at_least=False)
            verdict(f"cells called, {name}", row[3], 0.07, at_least=False)


if __name__ == "__main__":
    main()
