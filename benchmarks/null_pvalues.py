"""Are p-values uniform where nothing differs? By donor and by cell, for topics and for genes.

Counts of donors that differ from each other (composition and gene effects of ``datasets.simulated``) but not by
group: the donors are split into two halves at random, topics are fitted without the halves (NMF), and one topic and
one gene drawn at random are tested against them. Uniform p-values have an empirical distribution on the diagonal; the
Kolmogorov test compares them. Beside it: bcNMF with one half as background, plain and with background topics, whose
topics were sought for the very contrast that is then tested in the cells they were sought in. ``--figure`` writes the
picture of docs/statistics.md.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from _common import table, verdict
from scipy import stats

import bcnmf_sc as bc

N_DONORS, N_CELLS, N_GENES, N_TOPICS = 10, 1000, 120, 4
FITS = {"free": "topic", "sought": "topic of plain bcNMF for the halves", "split": "topic of split for the halves"}
FIT = {"n_topics": N_TOPICS, "progress": False, "max_iter": 150, "tol": 1e-3}


def one(seed: int) -> dict[str, float]:
    """P-values of one topic and one gene, by unit, from one simulated data set."""
    rng = np.random.default_rng(seed)
    adata = bc.datasets.simulated(
        N_CELLS,
        N_DONORS,
        N_GENES,
        n_types=3,
        n_shared=1,
        n_salient=0,
        n_donors=N_DONORS,
        donor_effect=0.2,
        random_state=seed,
    )
    adata = adata[adata.obs["condition"] == "case"].copy()  # one condition: its donors differ by chance alone
    donors = adata.obs["donor"].cat.remove_unused_categories()
    half = dict.fromkeys(rng.permutation(donors.cat.categories)[: N_DONORS // 2], "one")
    adata.obs["half"] = pd.Categorical([half.get(donor, "other") for donor in donors])
    bc.tl.nmf(adata, key_added="free", random_state=seed, **FIT)
    contrast = {"background_key": "half", "background": "other"}
    bc.tl.bcnmf(adata, **contrast, key_added="sought", alpha=0.5, random_state=seed, **FIT)
    bc.tl.bcnmf(adata, **contrast, key_added="split", n_background_topics=5, cross_fit=None, random_state=seed, **FIT)
    number, gene = rng.integers(N_TOPICS), str(rng.choice(adata.var_names))
    found = {}
    for unit, sample_key in (("donor", "donor"), ("cell", None)):
        how = {"groupby": "half", "sample_key": sample_key}
        for key, name in FITS.items():
            kinds = bc.get.topics(adata, key=key)["kind"]
            topic = kinds.index[kinds == "target"][number]
            bc.tl.associate(adata, key=key, topics=topic, **how)
            found[f"{name}, by {unit}"] = bc.get.associations(adata, key=key)["p_value"].iloc[0]
        bc.tl.associate_genes(adata, key="free", genes=[gene], **how)
        found[f"gene, by {unit}"] = bc.get.associations(adata, key="free", table="genes")["p_value"].iloc[0]
    logistic = {"sample_key": "donor", "method": "logistic"}
    bc.tl.associate(adata, key="free", topics=f"Topic {number + 1}", groupby="half", **logistic)
    found["topic, by donor, logistic"] = bc.get.associations(adata, key="free")["p_value"].iloc[0]
    return found


def simulate(n: int) -> pd.DataFrame:
    """P-values of n simulations, a column per test."""
    with warnings.catch_warnings():  # that cells are no units is what this is about; and short fits do not converge
        warnings.simplefilter("ignore", UserWarning)
        return pd.DataFrame([one(seed) for seed in range(n)])


def kolmogorov(p: pd.Series) -> float:
    """P-value of the Kolmogorov test of uniformity."""
    return float(stats.kstest(p.dropna(), "uniform").pvalue)


def draw(p: pd.DataFrame, path: Path) -> None:
    """Draw the empirical distributions of the p-values by donor and by cell."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.3), layout="constrained", sharey=True)
    for ax, what in zip(axes, ("topic", "gene"), strict=True):
        ax.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":", label="uniform")
        for unit, shade, style in (("donor", "#0072B2", "-"), ("cell", "#D55E00", "--")):
            values = np.sort(p[f"{what}, by {unit}"].dropna())
            small = (values < 0.05).mean()
            ax.step(
                [0, *values, 1],
                [0, *np.arange(1, len(values) + 1) / len(values), 1],
                where="post",
                color=shade,
                ls=style,
                lw=1.8,
                label=f"{unit}s: {small:.0%} below 0.05",
            )
        ax.set(xlabel="p-value", title=f"One {what}, no difference", xlim=(0, 1), ylim=(0, 1.01))
        ax.legend(frameon=False, fontsize=8, loc="lower right")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of simulations at or below")
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="60 simulations")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    args = parser.parse_args()
    p = simulate(60 if args.quick else args.simulations)
    table(
        f"{len(p)} simulations of {N_CELLS} cells, {N_DONORS} donors in two random halves",
        ["test", "below 0.05", "below 0.001", "Kolmogorov p"],
        [[name, *(f"{(p[name] < at).mean():.1%}" for at in (0.05, 0.001)), kolmogorov(p[name])] for name in sorted(p)],
    )
    for what in ("topic", "gene"):
        for unit, uniform in (("donor", True), ("cell", False)):
            fit = kolmogorov(p[f"{what}, by {unit}"])
            verdict(f"Kolmogorov p, {what} by {unit}", fit, 0.01, at_least=uniform)
    if args.figure:
        draw(p, args.figure)


if __name__ == "__main__":
    main()
