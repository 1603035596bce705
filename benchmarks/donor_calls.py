"""Cells called because their donors differ: the price of a target and a background that share no donor.

Simulated counts (``datasets.simulated``, three donors a condition, nested) in which half of the target cells carry a
program that the background lacks, while donors differ not at all, modestly (the default) or more. Printed is the share
of the target's other cells that are called, 5 % if only chance calls them, with folds by cell and by donor. No bar.

    python benchmarks/donor_calls.py [--seeds 3] [--topics 4] [--background-topics 20]
"""

from __future__ import annotations

from _common import table
from _designs import ROLES, arguments, scores, simulated, spread

import bcnmf_sc as bc

EFFECTS = (0.0, 0.1, 0.2)


def main() -> None:
    args = arguments(__doc__, seeds=3, topics=4, background_topics=20)
    numbers = {"n_topics": args.topics, "n_background_topics": args.background_topics, "tol": 1e-3}
    rows = []
    for effect in EFFECTS:
        for sample_key in ("cells", "donor"):
            found = []
            for seed in range(args.seeds):
                adata = simulated(seed, donor_effect=effect)
                bc.tl.bcnmf(adata, **ROLES, **numbers, sample_key=sample_key, random_state=seed)
                found.append(scores(adata))
            cells = [spread([each[name] for each in found]) for name in ("AUC", "called new", "called others")]
            rows.append([effect, sample_key, *cells])
            print(*rows[-1], flush=True)
    table(f"{numbers}, {args.seeds} seeds", ["donor effect", "folds by", "AUC", "called new", "called others"], rows)


if __name__ == "__main__":
    main()
