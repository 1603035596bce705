"""Draw how often genes lead topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from .. import get
from .._anndata import check_names
from .._stored import gene_labels
from ._axes import (
    FONT,
    PALETTE,
    PLAIN,
    literal,
    new_axes,
    text_width,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes


def gene_frequency(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    n_genes: int = 10,
    n_shown: int | None = 30,
    topics: str | Sequence[str] | None = None,
    highlight: Sequence[str] = (),
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw the number of topics in which each gene is among the leading genes (paper, Fig. 5h).

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    n_genes
        Number of leading genes per topic, by loading.
    n_shown
        Number of genes to draw, the most frequent first (ties by summed loading); None for all.
    topics
        Names of the topics to count; None for all.
    highlight
        Genes to colour, such as the known targets of a drug, named as drawn.
    gene_symbols
        Column of `adata.var` that names the genes instead of `adata.var_names`.
    ax
        Axes to draw on; None for a new figure.
    **kwargs
        Passed to `matplotlib.axes.Axes.barh`.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> ax = bc.pl.gene_frequency(adata, n_genes=20)
    """
    check_names(adata)
    top = get.top_genes(adata, n_genes, key=key, topics=topics)
    counted = top.groupby("gene", sort=False).agg(n=("topic", "size"), loading=("loading", "sum"))
    counted = counted.sort_values(["n", "loading"], ascending=False, kind="stable").iloc[:n_shown]
    labels = gene_labels(adata, gene_symbols)[adata.var_names.get_indexer(counted.index)].astype(str)
    marked = labels.isin(list(highlight))
    if ax is None:
        ax = new_axes(2.4 + text_width(labels), max(1.6, 0.165 * len(labels) + 0.7))
    bars = ax.barh(range(len(labels)), counted["n"], **{"height": 0.75, "color": PLAIN, **kwargs})
    ax.set_yticks(range(len(labels)), list(map(literal, labels)), fontsize=FONT)
    for bar, text, mark in zip(bars, ax.get_yticklabels(), marked, strict=True):
        if mark:
            bar.set_facecolor(PALETTE[3])
            bar.set_hatch("///")  # distinguishable in grey too
            text.set_color(PALETTE[3])
            text.set_fontweight("bold")
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    n_topics = top["topic"].nunique()
    ax.set_xlabel(f"topics (of {n_topics}) with the gene\namong the top {n_genes}", fontsize=FONT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
