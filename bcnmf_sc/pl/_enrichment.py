"""Draw the gene sets enriched in topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.lines import Line2D

from .. import get
from .._stored import pick_topics, stored
from .._utils.checks import listed, whole_number
from .._utils.errors import UserError
from ._axes import FONT, LEVEL, PLAIN, add_legend, literal, new_axes, shown, text_width

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save

FULL = 120.0
"""Area of the largest dot, in points squared."""
SCORES = {"ora": "fold enrichment", "gsea": "normalised enrichment score"}


@shown
def enrichment(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    method: Literal["ora", "gsea"] | None = None,
    n_sets: int = 5,
    topics: Topics = "target",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw the leading gene sets of each topic as dots: significance as size, effect as shade (Fig. 6e).

    Draws the results of :func:`bcnmf_sc.tl.enrich`. A leading set of one topic is drawn for all topics. The area of a
    dot is -log10 of the adjusted p-value; a dark outline marks those of at most 0.05.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation and its gene set enrichment.
    key
        The `key_added` under which the factorisation was stored.
    method
        Method whose results to draw; may be None if only one was run.
    n_sets
        Number of sets per topic, the most significant first.
    topics
        Topics to draw: "target", "background" or "all"; a name; or a list of names or positions, in this order.
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
        Passed to `matplotlib.axes.Axes.scatter`.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> sets = {"first": adata.var_names[:20], "last": adata.var_names[-20:]}
    >>> bc.tl.enrich(adata, sets, n_genes=30)
    >>> bc.pl.enrichment(adata)
    """
    whole_number("n_sets", n_sets, 1)
    table = get.enrichment(adata, "all", key=key)
    present = table["method"].unique().tolist()
    if method is None and len(present) == 1:
        method = present[0]
    if method not in present:
        msg = f"`method` must be a method that was run, got {method!r}. Present: {listed(present)}."
        raise UserError(msg)
    table = table[table["method"] == method]
    names = pick_topics(stored(adata, key), topics, table["topic"].unique())
    table = table[table["topic"].isin(names)].set_index("topic")
    sets = list(dict.fromkeys(name for topic in names for name in table.loc[[topic], "gene_set"].iloc[:n_sets]))
    table = table[table["gene_set"].isin(sets)]

    x = [names.index(topic) for topic in table.index]
    y = [sets.index(name) for name in table["gene_set"]]
    adjusted = table["p_adjusted"].to_numpy(dtype=float)
    sure = -np.log10(np.maximum(adjusted, np.finfo(float).tiny))
    largest = max(sure.max(), -np.log10(LEVEL))
    if ax is None:
        labels = text_width(sets)
        ax = new_axes(0.3 * len(names) + labels + 1.6, 0.2 * len(sets) + text_width(names) + 1.0, ["99.9"])
    look: dict[str, Any] = {"cmap": "viridis_r", "edgecolors": np.where(adjusted <= LEVEL, "black", "none")}
    dots = ax.scatter(x, y, s=FULL * sure / largest, c=table["score"], **{"linewidths": 1.0, **look, **kwargs})
    ax.set_xticks(range(len(names)), list(map(literal, names)), rotation=90, fontsize=FONT)
    ax.set_yticks(range(len(sets)), list(map(literal, sets)), fontsize=FONT)
    ax.set_xlim(-0.7, len(names) - 0.3)
    ax.set_ylim(len(sets) - 0.3, -0.7)
    ax.grid(visible=True, color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.figure.colorbar(dots, ax=ax, label=SCORES[str(method)], shrink=0.7, location="bottom", pad=0.05)
    steps = [step for step in mpl.ticker.MaxNLocator(3).tick_values(0, largest) if 0 < step <= largest]
    dot: dict[str, Any] = {"ls": "", "marker": "o", "color": PLAIN, "mew": 0}
    handles = [Line2D([], [], ms=np.sqrt(FULL * step / largest), label=f"{step:g}", **dot) for step in steps]
    add_legend(ax, handles, title="−log10\nadjusted p")
    return ax
