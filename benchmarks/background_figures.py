"""The pictures of docs/background_topics.md, from the Kang data (stimulated and control PBMC).

``plain_contrast.png``: what the topics of plain bcNMF tell apart. ``background_topics.png``: the out-of-fold target
share of the same cells. ``crossfit_bias.png``: the share of control cells as fitted and cross-fitted, where nothing
differs (one seed of crossfit_bias.py). No bar: quality_kang.py and crossfit_bias.py print the figures.

    python benchmarks/background_figures.py --data FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from _designs import BY_CELL, ROLES, arguments, kang, kang_null
from crossfit_bias import scored

import bcnmf_sc as bc

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

mpl.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parents[1] / "docs" / "images"
COLORS = {"background": "#8c8c8c", "target": "#d1495b", "unseen": "#2e6f95"}
TYPE = "cell_type"
N_TOPICS = 4


def plain_contrast(adata: AnnData) -> Figure:
    """Mean share of each topic, by cell type and condition."""
    bc.tl.bcnmf(adata, **ROLES, n_topics=N_TOPICS, tol=1e-3)
    share = bc.get.usage(adata, normalize=True)
    of = share.groupby([adata.obs["role"], adata.obs[TYPE]], observed=True).mean()
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.7), layout="constrained", sharey=True)
    for ax, role, title in zip(axes, ("background", "target"), ("control", "stimulated"), strict=True):
        image = ax.imshow(of.loc[role], vmin=0, vmax=1, cmap="Greys", aspect="auto")
        ax.set_xticks(range(N_TOPICS), [str(k + 1) for k in range(N_TOPICS)])
        ax.set_yticks(range(len(of.loc[role])), of.loc[role].index)
        ax.set_title(f"{title} cells")
    fig.supxlabel("topic of plain bcNMF, alpha 0.3", fontsize="medium")
    fig.colorbar(image, ax=axes, label="mean share of usage")
    return fig


def background_topics(adata: AnnData) -> Figure:
    """The out-of-fold target share of every cell type and condition."""
    bc.tl.bcnmf(adata, **BY_CELL, n_topics=N_TOPICS, n_background_topics=10, tol=1e-3)
    share, types = adata.obs["bcnmf_target_share"].to_numpy(), adata.obs[TYPE].astype("category")
    fig, ax = plt.subplots(figsize=(6.4, 2.7), layout="constrained")
    for offset, role in ((-0.2, "background"), (0.2, "target")):
        groups = [share[(types == name) & (adata.obs["role"] == role)] for name in types.cat.categories]
        style = {"color": COLORS[role], "linewidth": 1.2}
        name = {"background": "control", "target": "stimulated"}[role]
        box = ax.boxplot(
            groups,
            positions=np.arange(len(groups)) + offset,
            widths=0.3,
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": COLORS[role]},
            **dict.fromkeys(("boxprops", "medianprops", "whiskerprops", "capprops"), style),
        )
        box["boxes"][0].set_label(name)
    threshold = share[adata.obs["role"] == "background"]
    ax.axhline(
        np.quantile(threshold, 0.95), color="black", linewidth=0.8, linestyle="--", label="threshold of the call"
    )
    ax.set_xticks(range(len(types.cat.categories)), types.cat.categories, fontsize=8)
    ax.set(ylabel="target share, out of fold", ylim=(-0.02, 1))
    ax.legend(frameon=False, fontsize=8)
    return fig


def crossfit_bias(adata: AnnData) -> Figure:
    """Cumulative distribution of the share in three random parts of the controls."""
    found = scored(adata, 0)
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.7), layout="constrained", sharey=True)
    names = {"background": "background (seen)", "target": "target (seen)", "unseen": "in no part of the fit"}
    for ax, how in zip(axes, ("as fitted", "cross-fitted"), strict=True):
        for number, part in enumerate(COLORS):
            if how == "cross-fitted" and part == "unseen":
                continue  # it is in no fold
            values = np.sort(found[how][found["part"] == number])
            heights = np.arange(1, len(values) + 1) / len(values)
            ax.step(values, heights, where="post", color=COLORS[part], label=names[part] if ax is axes[0] else None)
        ax.set(title=how, xlabel="target share of control cells", xlim=(0, 0.6))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of cells at or below")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return fig


def main() -> None:
    args = arguments(__doc__)
    pictures = {
        "plain_contrast": plain_contrast(kang(args.data)),
        "background_topics": background_topics(kang(args.data)),
        "crossfit_bias": crossfit_bias(kang_null(args.data)),
    }
    for name, fig in pictures.items():
        fig.savefig(IMAGES / f"{name}.png", dpi=110)
        print(f"wrote {IMAGES / name}.png", flush=True)


if __name__ == "__main__":
    main()
