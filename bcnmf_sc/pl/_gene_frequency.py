"""Draw how often genes lead topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from .. import get
from .._anndata import check_names
from .._stored import gene_labels
from ._axes import FONT, PALETTE, PLAIN, literal, new_axes, shown, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save


@shown
def gene_frequency(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    n_genes: int = 10,
    n_shown: int | None = 30,
    topics: Topics = "target",
    highlight: Sequence[str] = (),
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
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
        Topics to draw: "target", "background" or "all"; a name; or a list of names or positions, in this order.
    highlight
        Genes to colour, such as the known targets of a drug, named as drawn.
    gene_symbols
        Column of `adata.var` that names the genes instead of `adata.var_names`.
    ax
        Axes to draw on; None for a new figure.
    show
        Whether to show the figure and return None. By default as `scanpy.settings.autoshow`, and not if `ax` is given.
    save
        File to write, with a suffix such as ".pdf". True, or a word without suffix, is a name in
        `scanpy.settings.figdir`, as in scanpy.
    return_fig
        Whether to return the figure instead of its axes.
    **kwargs
        Passed to `matplotlib.axes.Axes.barh`.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.pl.gene_frequency(adata, n_genes=20)
    """
    check_names(adata)
    top = get.top_genes(adata, topics, n_genes, key=key)
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
