"""Draw the pictures of the landing page and of the gallery, from data that come with the package.

``python docs/pictures.py`` writes them below ``docs/images``; they are committed, so that
building the pages needs no fit. A public plot without a picture is an error.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

import bcnmf_sc as bc
from bcnmf_sc.pl._axes import MISSING, PALETTE, PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData

FOLDER = Path(__file__).parent / "images"
SPLIT: dict[str, Any] = {"background_key": "condition", "background": "ctrl"}
TARGET, BACKGROUND, SHARED = PALETTE[1], PALETTE[0], MISSING


def analysed() -> AnnData:
    """Return simulated cases and controls, with everything run that a plot draws."""
    adata = bc.datasets.simulated()
    active = adata.obs["subgroup"].astype(str)
    group = np.where(
        adata.obs["condition"] == "ctrl", "controls", np.where(active == "none", "cases, not affected", "")
    )
    adata.obs["group"] = np.where(group == "", "cases, " + active.str.replace("salient", "program"), group)
    adata.obs["patient"] = pd.Categorical([f"P{i % 6 + 1}" for i in range(adata.n_obs)])
    bc.pp.highly_variable_genes(adata, n_top_genes=300, **SPLIT)
    bc.tl.select_alpha(adata, n_topics=6, n_restarts=3, tol=1e-3, progress=False, **SPLIT)
    bc.tl.bcnmf(adata, n_topics=2, n_background_topics=5, sample_key="donor", progress=False, **SPLIT)
    bc.tl.umap(adata)
    bc.tl.associate(adata, groupby="subgroup", sample_key="patient", reference="none")
    bc.tl.associate_genes(adata, groupby="condition", sample_key="donor")
    programs = pd.DataFrame(adata.varm["true_loadings"], adata.var_names)
    sets = {f"genes of program {k + 1}": programs[k].nlargest(30).index for k in programs}
    bc.tl.enrich(adata, sets | {"genes of no program": programs.sum(axis=1).nsmallest(30).index}, n_genes=40)
    bc.tl.consensus(adata, n_topics=6, n_restarts=6, key_added="consensus", tol=1e-3, progress=False, **SPLIT)
    return adata


@cache
def by_donor() -> AnnData:
    """Return cases and controls of five donors each, tested by donor."""
    adata = bc.datasets.simulated(n_donors=5, donor_effect=0.2)
    how: dict[str, Any] = {"sample_key": "donor", "n_topics": 2, "n_background_topics": 5, "progress": False}
    bc.tl.bcnmf(adata, **how, **SPLIT)
    return adata


def digits() -> AnnData:
    """Return topics of digits over photographs, the paper's demonstration."""
    adata = bc.datasets.digits()
    how: dict[str, Any] = {"n_topics": 4, "likelihood": "gaussian", "alpha": 0.5, "tol": 1e-3}
    bc.tl.bcnmf(adata, background_key="condition", background="background", progress=False, **how)
    return adata


def compared() -> pd.DataFrame:
    """Return scores of four methods on the digits."""
    return bc.metrics.compare(
        bc.datasets.digits(),
        background_key="condition",
        background="background",
        labels="digit",
        methods=["pca", "cpca", "nmf", "bcnmf"],
        n_topics=2,
        n_seeds=5,
        likelihood="gaussian",
    )


def spatial() -> MuData:
    """Return topics of simulated spots."""
    mdata = bc.datasets.simulated_spatial()
    bc.tl.gpnsf(mdata, n_topics=4, progress=False)
    return mdata


def gallery(adata: AnnData) -> dict[str, Callable[[], Any]]:
    """Return how each plot is called, in the order of the page."""
    images, spots = digits(), spatial()
    highlight = bc.get.top_genes(adata, "Background 3", 4)["gene"].tolist()
    return {
        "target_share": lambda: bc.pl.target_share(adata, "cell_type"),
        "umap": lambda: bc.pl.umap(adata, color=["condition", "Topic 1"]),
        "loadings": lambda: bc.pl.loadings(adata, n_genes=4, gene_test="condition"),
        "usage": lambda: bc.pl.usage(adata, "condition", sample_key="donor"),
        "bubbles": lambda: bc.pl.bubbles(adata, "group", topics="all"),
        "associations": lambda: bc.pl.associations(adata, "subgroup"),
        "composition": lambda: bc.pl.composition(adata, "group", "cell_type"),
        "enrichment": lambda: bc.pl.enrichment(adata),
        "gene_frequency": lambda: bc.pl.gene_frequency(
            adata, topics="all", n_genes=20, n_shown=15, highlight=highlight
        ),
        "compare": lambda: bc.pl.compare(compared()),
        "images": lambda: bc.pl.images(images),
        "alpha_path": lambda: bc.pl.alpha_path(adata),
        "topics_forest": lambda: bc.pl.topics_forest(by_donor(), topics="all"),
        "donors": lambda: bc.pl.donors(by_donor()),
        "stability": lambda: bc.pl.stability(adata, key="consensus"),
        "loss": lambda: bc.pl.loss(adata, key="consensus"),
        "spatial_topics": lambda: bc.pl.spatial_topics(spots, quantity="both"),
        "lengthscales": lambda: bc.pl.lengthscales(spots),
    }


def idea(adata: AnnData) -> plt.Figure:
    """Draw the method in one picture: what goes in, topics, what each cell gets."""
    fig, (scheme, topics, cells) = plt.subplots(
        1, 3, figsize=(9.2, 3.5), width_ratios=[1.6, 0.9, 1], layout="constrained"
    )
    _scheme(scheme)
    order = ["controls", "cases, not affected", "cases, program 1", "cases, program 2"]
    adata.obs["group"] = pd.Categorical(adata.obs["group"], categories=order)
    bc.pl.bubbles(adata, "group", topics="all", ax=topics, color=PLAIN)
    topics.set_title("Which topics do cells use?", fontsize=10)
    topics.set_ylabel("")
    topics.get_legend().remove()
    for text in topics.get_xticklabels():
        text.set_color("black" if text.get_text().startswith("Topic") else PLAIN)
        text.set_fontweight("bold" if text.get_text().startswith("Topic") else "normal")
    share, rng = adata.obs["bcnmf_target_share"], np.random.default_rng(0)
    for i, name in enumerate(order):
        values = share[adata.obs["group"] == name].to_numpy()
        called = values > share[adata.obs["group"] == "controls"].quantile(0.95)
        y = i + rng.uniform(-0.28, 0.28, len(values))
        for these, colour in ((called, TARGET), (~called, "#9a9a9a")):
            cells.scatter(values[these], y[these], s=5, color=colour, linewidths=0, rasterized=True)
    cells.axvline(share[adata.obs["group"] == "controls"].quantile(0.95), color="black", ls="--", lw=1)
    cells.set_ylim(len(order) - 0.5, -0.5)
    cells.set_title("Which cells carry a program?", fontsize=10)
    cells.set(yticks=[])
    cells.set_xlim(-0.02, None)
    cells.set_xlabel("target share, out of fold\n(95 % of controls: left of the line)", fontsize=8)
    cells.spines[["top", "right"]].set_visible(False)
    return fig


def _scheme(ax: Axes) -> None:
    """Draw two matrices of counts, and the topics that explain them."""
    ax.set(xlim=(0, 10), ylim=(0, 7.4))
    ax.set_title("Topics for two groups of cells", fontsize=10)
    ax.set_axis_off()

    def box(corner: tuple[float, float], width: float, height: float, **look: Any) -> None:
        ax.add_patch(Rectangle(corner, width, height, **({"edgecolor": "black", "linewidth": 1} | look)))

    box((0.2, 3.5), 2.6, 3.0, facecolor=TARGET)
    box((0.2, 0.6), 2.6, 2.4, facecolor=BACKGROUND)
    ax.text(1.5, 5.0, "target\ncells × genes", ha="center", va="center", fontweight="bold", fontsize=8)
    ax.text(
        1.5, 1.8, "background\ncells × genes", ha="center", va="center", color="white", fontweight="bold", fontsize=8
    )
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 14, "color": "black", "lw": 1.3}
    ax.add_patch(FancyArrowPatch((2.9, 5.3), (5.0, 5.3), **arrow))
    ax.add_patch(FancyArrowPatch((2.9, 1.8), (5.0, 1.8), **arrow))
    ax.add_patch(FancyArrowPatch((2.9, 4.1), (5.0, 2.6), **(arrow | {"color": "#9a9a9a"})))
    for k in range(2):
        box((5.2 + 0.55 * k, 4.1), 0.45, 2.4, facecolor=TARGET)
    for k in range(5):
        box((5.2 + 0.55 * k, 0.6), 0.45, 2.4, facecolor=SHARED, hatch="///")
    ax.text(
        6.5, 5.3, "target topics:\nwhat only the\ntarget has", va="center", fontsize=8, color="black", fontweight="bold"
    )
    ax.text(
        8.05,
        1.8,
        "background\ntopics: what\nboth share,\nheld fixed",
        va="center",
        fontsize=8,
        color=PLAIN,
        fontweight="bold",
    )


def main() -> None:
    """Write the pictures."""
    mpl.use("Agg")
    bc.settings.autoshow = False
    adata = analysed()
    drawn = gallery(adata)
    without = set(bc.pl.__all__) - set(drawn)
    if without:
        msg = f"Every plot must have a picture, got none of {sorted(without)}."
        raise ValueError(msg)
    (FOLDER / "gallery").mkdir(parents=True, exist_ok=True)
    for path, draw in {
        **{f"gallery/{name}.png": call for name, call in drawn.items()},
        "idea.png": lambda: idea(adata),
    }.items():
        draw()
        figure = plt.gcf()
        figure.savefig(FOLDER / path, dpi=160 if path == "idea.png" else 110, facecolor="white", bbox_inches="tight")
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
