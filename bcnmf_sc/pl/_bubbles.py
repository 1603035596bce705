"""Draw mean usage of groups as bubbles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .. import get
from .._stored import pick_topics, stored
from .._utils.errors import UserError
from ._axes import FONT, PALETTE, add_legend, categories_of, label_of, literal, new_axes, shown, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save

LARGEST = 150.0
"""Area of the largest bubble, in points squared."""


@shown
def bubbles(
    adata: AnnData,
    groupby: str | Sequence[str],
    *,
    key: str = "bcnmf",
    topics: Topics = "target",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw the mean topic usage of each group as bubbles whose area is a topic's share (paper, Fig. 2c).

    The mean usage over the group's cells is scaled to sum to 1 over all topics, drawn or not.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    groupby
        Column of `adata.obs` with the groups, or a list of columns. Cells without a value are left out.
    key
        The `key_added` under which the factorisation was stored.
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
    >>> bc.pl.bubbles(adata, "cell_type")
    """
    shares = mean_usage(adata, groupby, key)
    names = pick_topics(stored(adata, key), topics)
    values = shares[names].to_numpy()
    n_groups, n_topics = values.shape
    largest = float(values.max()) or 1.0
    sizes = LARGEST / largest
    if ax is None:
        width = max(1.6, 0.27 * n_topics) + text_width(shares.index)
        height = max(1.4, 0.27 * n_groups) + text_width(names) + 0.4
        ax = new_axes(width, height, ["100 %"])
    x, y = np.meshgrid(range(n_topics), range(n_groups))
    options: dict[str, Any] = {"color": PALETTE[0], "linewidths": 0, **kwargs}
    ax.scatter(x.ravel(), y.ravel(), s=sizes * values.ravel(), **options)
    ax.set_xticks(range(n_topics), list(map(literal, names)), rotation=90, fontsize=FONT)
    ax.set_yticks(range(n_groups), list(map(literal, shares.index)), fontsize=FONT)
    ax.set_xlim(-0.6, n_topics - 0.4)
    ax.set_ylim(n_groups - 0.4, -0.6)
    ax.tick_params(length=0)
    ax.set_ylabel(literal(label_of(groupby)))
    steps = [step for step in MaxNLocator(3).tick_values(0, largest) if 0 < step <= largest]
    dot: dict[str, Any] = {"ls": "", "marker": "o", "color": options["color"], "mew": 0}
    add_legend(ax, [Line2D([], [], ms=np.sqrt(sizes * s), label=f"{100 * s:g} %", **dot) for s in steps], title="share")
    return ax


def mean_usage(adata: AnnData, groupby: str | Sequence[str], key: str) -> pd.DataFrame:
    """Compute the mean usage of each group's cells, rows summing to 1."""
    groups = categories_of(adata, groupby)
    means = get.usage(adata, key=key).groupby(groups.array, observed=True).mean()  # in the categories' order
    if not len(means):
        msg = f"`groupby` must have a value for at least one cell, got {groupby!r} with none."
        raise UserError(msg)
    total = means.sum(axis=1)
    return means.div(total.where(total > 0, 1.0), axis=0)
