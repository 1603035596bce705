"""Tests by donor: calls where nothing differs, power with a program added, intervals, covariates.

Donors of 40 healthy people (OneK1K) are split at random into n target and n background donors, and fitted with four
target and eight background topics, scored out of fold. Nothing differs, or a program is added to 10-40 % of the cells
of each target donor. On the same tables of donors: today's test, log shares with moderated variances, beside Welch's
one-sided t on raw shares. Then the fold change of a share is known and its interval is counted (a topic's share is
multiplied in the target's donors); age is permuted over donors and tested as a slope; and groups that differ in age,
on which topics depend, are compared with and without age in the design; and donors in two conditions, their second
sample the first with noise, beside donors in one.

Tables are kept in ``--tables`` and taken up from there.

    python benchmarks/donor_null.py [--data ../shared/data] [--runs 200] [--spiked 60] [--tables FOLDER]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from _common import table, verdict
from _designs import arguments
from scipy import sparse, stats

import bcnmf_sc as bc
from bcnmf_sc.tl._bcnmf.folds import decide
from bcnmf_sc.tl._design import OFFSET, moderated

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcnmf_sc.tl._design.linear import Effects

SIZES, SPIKED_SIZES = (3, 5, 10, 20), (2, 3, 5, 10)
FIT = {"n_topics": 4, "n_background_topics": 8, "cross_fit": 3, "tol": 1e-3, "max_iter": 80, "mask_var": None}
STRENGTH = 0.1
"""Counts of the program added, as a share of a cell's own."""
LEVEL = 0.05


def split(full: anndata.AnnData, n: int, seed: int, *, spiked: bool) -> anndata.AnnData:
    """Draw n donors a side; add a program of 30 genes to some cells of each target donor, if asked for."""
    rng = np.random.default_rng([n, seed, int(spiked)])
    donors = rng.permutation(full.obs["donor"].unique())[: 2 * n]
    adata = full[full.obs["donor"].isin(donors)].copy()
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    adata.obs["role"] = np.where(adata.obs["donor"].isin(donors[:n]), "target", "background")
    if spiked:
        genes = rng.choice(adata.n_vars, 30, replace=False)
        profile = rng.gamma(1.0, size=30)
        cells = np.zeros(adata.n_obs, bool)
        for donor in adata.obs.loc[adata.obs["role"] == "target", "donor"].unique():
            own, part = (adata.obs["donor"] == donor).to_numpy(), rng.uniform(0.1, 0.4)
            cells[own] = rng.random(own.sum()) < part
        counts = adata.X.toarray()
        at = np.flatnonzero(cells)
        counts[np.ix_(at, genes)] += rng.poisson(STRENGTH * counts[at].sum(1)[:, None] * profile / profile.sum())
        adata.X = sparse.csr_matrix(counts.astype(np.float32))
    return adata


def donors_of(full: anndata.AnnData, n: int, seed: int, *, folder: Path, spiked: bool = False) -> pd.DataFrame:
    """Return the donors' mean shares out of fold; read them if they have been kept."""
    path = folder / f"{'spiked' if spiked else 'null'}_{n}_{seed}.csv"
    if not path.exists():
        adata = split(full, n, seed, spiked=spiked)
        roles = {"background_key": "role", "background": "background", "sample_key": "donor"}
        bc.tl.bcnmf(adata, **roles, **FIT, random_state=seed, n_threads=1, progress=False)
        bc.get.donors(adata).to_csv(path, index=False)
    return pd.read_csv(path)


def shares(donors: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Donors x topics, which donors are target, which topics are target."""
    values = donors.drop(columns=["donor", "condition", "n_cells"])
    return values.to_numpy(), (donors["condition"] == "target").to_numpy(), values.columns.str.startswith("Topic")


def today(values: np.ndarray, target: np.ndarray, of_target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Welch's one-sided t on the shares of target topics, as it was before."""
    sides = [values[side][:, of_target] for side in (target, ~target)]
    p = stats.ttest_ind(*sides, equal_var=False, alternative="greater").pvalue
    return p, stats.false_discovery_control(np.nan_to_num(p, nan=1.0)) <= LEVEL


def effects_of(values: np.ndarray, target: np.ndarray, n_cells: np.ndarray) -> Effects:
    X = np.column_stack([np.ones(len(target)), target.astype(float)])
    return moderated(np.log2(values + OFFSET), X, np.array([0.0, 1.0]), n=n_cells)


def upper(k: int, n: int) -> float:
    """Upper 95 % bound of a share."""
    return float(stats.beta.ppf(0.95, k + 1, n - k)) if k < n else 1.0


def calls(tables: list[pd.DataFrame]) -> dict[str, list[float]]:
    """Share of runs with a called topic, its bound, the same for target topics, and p below 0.05 and 0.01."""
    old, new, p_old, p_new = [], [], [], []
    for donors in tables:
        values, target, of_target = shares(donors)
        p, called = today(values, target, of_target)
        p_old.append(p)
        old.append([called.any()] * 2)
        effects = effects_of(values, target, donors["n_cells"].to_numpy(float))
        p_new.append(effects.p_value)
        called = decide(effects.p_value, effects.estimate > 0, of_target, LEVEL)[1]
        new.append([called.any(), called[of_target].any()])
    found = {}
    for name, runs, p in (("Welch on shares", old, p_old), ("moderated log", new, p_new)):
        some, of_target = np.mean(runs, 0)
        p = np.concatenate(p)
        low = [np.mean(p < at) for at in (0.05, 0.01)]
        found[name] = [some, upper(int(np.sum(runs, 0)[0]), len(runs)), of_target, *low]
    return found


def coverage(tables: list[pd.DataFrame], change: float) -> float:
    """Share of intervals that hold the mean effect of multiplying a target topic's share in target donors."""
    inside = []
    for donors in tables:
        values, target, of_target = shares(donors)
        for topic in np.flatnonzero(of_target):
            more = values.copy()
            more[target, topic] *= change
            truth = np.log2((change * values[:, topic] + OFFSET) / (values[:, topic] + OFFSET)).mean()
            low, high = effects_of(more, target, donors["n_cells"].to_numpy(float)).interval()
            inside.append(low[topic] <= truth <= high[topic])
    return float(np.mean(inside))


def p_by_donor(
    tables: list[pd.DataFrame], ages: pd.Series, make: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> np.ndarray:
    """P-values of all topics where ``make(rng, y, age)`` gives values, design and contrast of each table."""
    p = []
    for seed, donors in enumerate(tables):
        values, age = shares(donors)[0], ages.loc[donors["donor"]].to_numpy(float)
        y, X, contrast = make(np.random.default_rng(seed), np.log2(values + OFFSET), age)
        p.append(moderated(y, X, contrast, n=donors["n_cells"].to_numpy(float)).p_value)
    return np.concatenate(p)


def permuted_age(rng: np.random.Generator, y: np.ndarray, age: np.ndarray) -> tuple[np.ndarray, ...]:
    return y, np.column_stack([np.ones(len(y)), rng.permutation(age)]), np.array([0.0, 1.0])


def confounded(*, adjusted: bool) -> Callable[..., tuple[np.ndarray, ...]]:
    """Groups whose ages differ, and topics that change with age: each decade by half a deviation between donors."""

    def make(rng: np.random.Generator, y: np.ndarray, age: np.ndarray) -> tuple[np.ndarray, ...]:
        y = y[rng.permutation(len(y))] + 0.05 * y.std(0) * (age - age.mean())[:, None]
        group = rng.random(len(y)) < 1 / (1 + np.exp(-(age - np.median(age)) / 10))
        columns = [np.ones(len(y)), group.astype(float), *([age] if adjusted else [])]
        return y, np.column_stack(columns), np.eye(len(columns))[1]

    return make


def pairs(tables: list[pd.DataFrame], n_pairs: int, n_single: int) -> np.ndarray:
    """P-values where some donors are in both conditions, and others in one."""
    p = []
    for seed, donors in enumerate(tables):
        rng = np.random.default_rng(seed)
        y = np.log2(shares(donors)[0] + OFFSET)
        donor = np.append(np.repeat(np.arange(n_pairs), 2), n_pairs + np.arange(2 * n_single))
        noise = 0.5 * y.std(0) * rng.normal(size=(len(donor), y.shape[1]))
        group = np.append(np.tile([0.0, 1.0], n_pairs), np.repeat([0.0, 1.0], n_single))
        y = y[rng.permutation(len(y))[donor]] + noise
        p.append(moderated(y, np.column_stack([np.ones(len(y)), group]), np.array([0.0, 1.0]), block=donor).p_value)
    return np.concatenate(p)


def main() -> None:
    args = arguments(__doc__, runs=200, spiked=60, tables="")
    folder = Path(args.tables or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    full = anndata.read_h5ad(args.data / "onek1k_bmem_monoc_40donors.h5ad")
    ages = full.obs.drop_duplicates("donor").set_index("donor")["age"].astype(float)
    ages.index = ages.index.astype(str)
    null = {n: [donors_of(full, n, seed, folder=folder) for seed in range(args.runs)] for n in SIZES}
    columns = ["donors a side", "test", "any called", "95 % bound", "any target topic", "p < 0.05", "p < 0.01"]
    found = {n: calls(tables) for n, tables in null.items()}
    rows = [[n, name, *values] for n, of in found.items() for name, values in of.items()]
    table(f"Nothing differs, {args.runs} random splits each", columns, rows)
    for n in SIZES:
        verdict(f"runs with a called topic, {n} a side", found[n]["moderated log"][0], LEVEL, at_least=False)
    pooled = float(np.mean([of["moderated log"][3] for of in found.values()]))
    verdict("p < 0.05, all sizes", pooled, 0.06, at_least=False)
    verdict("p < 0.05, all sizes", pooled, 0.035, at_least=True)

    spiked = {n: [donors_of(full, n, s, folder=folder, spiked=True) for s in range(args.spiked)] for n in SPIKED_SIZES}
    rows = [[n, *(values[2] for values in calls(tables).values())] for n, tables in spiked.items()]
    title = f"A program in 10-40 % of the target's cells: runs with a called target topic, of {args.spiked}"
    table(title, ["donors a side", "Welch on shares", "moderated log"], rows)

    rows = [[n, *(coverage(tables, change) for change in (2, 4, 10))] for n, tables in null.items()]
    table("95 % intervals that hold the effect, by fold change of a share", ["donors a side", "2", "4", "10"], rows)
    verdict("coverage, the lowest", min(min(row[1:]) for row in rows), 0.93, at_least=True)

    rows = []
    for what, make in (
        ("age permuted, slope", permuted_age),
        ("groups differ in age, ~ group", confounded(adjusted=False)),
        ("groups differ in age, ~ group + age", confounded(adjusted=True)),
    ):
        for n in (5, 10, 20):
            p = p_by_donor(null[n], ages, make)
            rows.append([what, 2 * n, np.mean(p < 0.05), np.mean(p < 0.01), stats.kstest(p, "uniform").statistic])
    for n_pairs, n_single in ((1, 4), (3, 0), (3, 2), (5, 5), (10, 5)):
        p = pairs(null[20], n_pairs, n_single)
        rows.append([f"{n_pairs} pairs and {n_single} + {n_single} single donors", 2 * (n_pairs + n_single)])
        rows[-1] += [np.mean(p < 0.05), np.mean(p < 0.01), stats.kstest(p, "uniform").statistic]
    table("Nothing differs, other designs", ["design", "units", "p < 0.05", "p < 0.01", "Kolmogorov distance"], rows)


if __name__ == "__main__":
    main()
