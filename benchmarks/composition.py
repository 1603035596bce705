"""Neither composition nor depth is a program: calls where target and background differ in nothing else.

Target and background are made of the same cells, but of some types the target has more, its counts are thinned, or part
of the background is empty. No topic should be called, and no more cells than the level of 5 %. Where there is a program
(interferon in Kang, CD34+ cells in Zheng), it should be called as before, also with composition changed on top. Beside
the rule of the package stands the plain one: Mann-Whitney on ranks within folds, or Welch's t on donors' means, and one
quantile of all background cells.

    python benchmarks/composition.py [--runs 24] [--program-runs 4] [--topics 4] [--background-topics 8]
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pandas as pd
from _common import table, verdict
from _designs import ROLES, SHARED_TYPES, arguments, kang, kang_null, more_of, simulated, thinned, zheng
from scipy import stats
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc
from bcnmf_sc.tl._bcnmf import folds

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

LEVEL = 0.05
N_GENES = 2000
"""Genes of the Zheng data, those in most cells."""


def kang_more_monocytes(folder: Path, seed: int) -> AnnData:
    """Stimulated against control PBMC, of the stimulated half of all that are no monocytes."""
    adata = kang(folder)
    other = ~adata.obs["cell_type"].astype(str).str.contains("onocyte").to_numpy()
    left_out = other & adata.obs["new"].to_numpy() & (np.random.default_rng(seed).random(adata.n_obs) < 0.5)
    return adata[~left_out].copy()


def zheng_part(folder: Path, seed: int, spike: str | None = None) -> AnnData:
    """The Zheng design with fewer genes."""
    adata = zheng(folder, seed, spike=spike)
    frequent = np.argsort(-np.asarray((adata.X > 0).mean(0)).ravel(), kind="stable")[:N_GENES]
    return adata[:, np.sort(frequent)].copy()


def proportions(_folder: Path, seed: int, *, donors: int = 1, **options: float) -> AnnData:
    """Four simulated types, 6:2:1:1 in the target and 1:1:2:6 in the background."""
    effect = 0.1 if donors > 1 else 0.0
    adata = simulated(
        seed, n_target=1500, n_background=1500, n_genes=400, n_donors=donors, donor_effect=effect, **options
    )
    kind, target = adata.obs["cell_type"].cat.codes.to_numpy(), (adata.obs["role"] == "target").to_numpy()
    part = np.where(target, np.array([6, 2, 1, 1])[kind], np.array([1, 1, 2, 6])[kind]) / 6
    return adata[np.random.default_rng(seed).random(adata.n_obs) < part].copy()


NULLS = {
    "Kang controls, monocytes 2:1": lambda folder, seed: more_of(kang_null(folder, seed), "onocyte", seed),
    "Zheng, B cells 2:1": lambda folder, seed: more_of(zheng_part(folder, seed), SHARED_TYPES[0], seed),
    "simulated, 6:2:1:1 against 1:1:2:6": lambda folder, seed: proportions(folder, seed, frac_active=0),
    "Kang controls, halves": kang_null,
    "Zheng, halves": zheng_part,
    "Kang controls, background at 1/2 depth": lambda f, seed: thinned(kang_null(f, seed), "background", 0.5, seed=seed),
    "Kang controls, target at 1/4 depth": lambda f, seed: thinned(kang_null(f, seed), "target", 0.25, seed=seed),
    "Kang controls, 10 % of background empty": lambda f, seed: thinned(
        kang_null(f, seed), "background", 0, seed=seed, cells=0.1
    ),
}
BY_DONOR = {
    "by donor (5 a side), 6:2:1:1 against 1:1:2:6": lambda f, seed: proportions(f, seed, donors=5, frac_active=0),
    "by donor (5 a side), the same with a program": lambda f, seed: proportions(f, seed, donors=5, frac_active=0.3),
}
PROGRAMS = {
    "Kang, stimulated": kang,
    "Kang, stimulated, monocytes 2:1": kang_more_monocytes,
    "Zheng, CD34+": lambda folder, seed: zheng_part(folder, seed, "CD34+"),
    "Zheng, CD34+, B cells 2:1": lambda folder, seed: more_of(zheng_part(folder, seed, "CD34+"), "B cell", seed),
}


def plain_topics(scores: folds.OutOfFold, target: np.ndarray, *, n_topics: int, donor: pd.Series | None) -> int:
    """Count the topics that the plain rule calls."""
    p = []
    for usage in scores.usage[:, :n_topics].T:
        if donor is None:
            rank = pd.Series(usage).groupby(scores.fold).rank(pct=True).to_numpy()
            p.append(stats.mannwhitneyu(rank[target], rank[~target], alternative="greater").pvalue)
        else:
            means = [pd.Series(usage[side]).groupby(donor[side].to_numpy()).mean() for side in (target, ~target)]
            p.append(stats.ttest_ind(*means, equal_var=False, alternative="greater").pvalue)
    return int((stats.false_discovery_control(p) <= LEVEL).sum())


def compared(adata: AnnData, seed: int, sample_key: str, **numbers: int) -> list[float]:
    """Fit once; return topics called, cells called of the target's others and new cells called, plain and as built."""
    target, new = (adata.obs["role"] == "target").to_numpy(), adata.obs["new"].to_numpy()
    found = []
    real = folds.cross_fit
    with mock.patch.object(folds, "cross_fit", lambda *args, **how: found.append(real(*args, **how)) or found[-1]):
        bc.tl.bcnmf(adata, **ROLES, **numbers, sample_key=sample_key, mask_var=None, tol=1e-3, random_state=seed)
    share = adata.obs["bcnmf_target_share"].to_numpy()
    donor = None if sample_key == "cells" else adata.obs[sample_key].astype(str)
    topics = adata.uns["bcnmf"]["topics"]
    result = [plain_topics(found[0], target, n_topics=numbers["n_topics"], donor=donor)]
    result.append(int(topics.loc[topics["kind"] == "target", "called"].sum()))
    calls = [share > np.quantile(share[~target], 1 - LEVEL), adata.obs["bcnmf_enriched"].to_numpy()]
    for cells in (target & ~new, new):
        result += [float(call[cells].mean()) if cells.any() else np.nan for call in calls]
    result.append(roc_auc_score(new[new | ~target], share[new | ~target]) if new.any() else np.nan)
    return result


HEADER = ["runs with a topic: plain", "here", "topics: plain", "here", "others called: plain", "here"]
HEADER += ["new called: plain", "here", "AUC"]


def summary(runs: list[list[float]]) -> list[float | str]:
    """Average over runs."""
    means = [x.mean() if np.isfinite(x := np.array(column)).all() else "" for column in zip(*runs, strict=True)]
    some = [float(np.mean([run[k] > 0 for run in runs])) for k in (0, 1)]
    return [*some, *means]


def main() -> None:
    args = arguments(__doc__, runs=24, program_runs=4, topics=4, background_topics=8)
    numbers = {"n_topics": args.topics, "n_background_topics": args.background_topics}
    rows = {}
    for designs, n_runs, sample_key in (
        (NULLS, args.runs, "cells"),
        (BY_DONOR, args.runs, "donor"),
        (PROGRAMS, args.program_runs, "cells"),
    ):
        for name, design in designs.items():
            rows[name] = summary([compared(design(args.data, s), s, sample_key, **numbers) for s in range(n_runs)])
            print(name, *(f"{x:.3f}" if x != "" else "-" for x in rows[name]), flush=True)
    table(
        f"{numbers}, {args.runs} and {args.program_runs} runs", ["design", *HEADER], [[n, *r] for n, r in rows.items()]
    )
    for name in NULLS:
        verdict(f"runs with a called topic, {name}", rows[name][1], 0.08, at_least=False)
        verdict(f"cells called, {name}", rows[name][5], 0.07, at_least=False)
    for name in PROGRAMS:
        verdict(f"called topics, of those by the plain rule, {name}", rows[name][3] / rows[name][2], 1, at_least=True)
        verdict(
            f"new cells called, of those by the plain rule, {name}", rows[name][7] / rows[name][6], 0.98, at_least=True
        )


if __name__ == "__main__":
    main()
