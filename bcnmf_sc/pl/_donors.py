"""Draw each donor's share of a topic."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .. import get
from .._stored import pick_topics, stored
from ._axes import FONT, PLAIN, ROW_TOPICS, in_rows, label_topics, new_axes, shown, text_width
from ._colors import side_colors

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save

LEAST_SHARE = 1e-4
"""Smaller shares are drawn here: a logarithmic axis has no zero."""


@shown
def donors(
    adata: AnnData,
    *,
    topics: Topics = "target",
    key: str = "bcnmf",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw the share of usage that each donor has on each topic: a point per donor and condition.

    These are the observations behind the effects of :func:`topics_forest`: means over a donor's cells, under models
    that have not seen them (:func:`bcnmf_sc.get.donors`). The area of a point grows with the number of cells; a line
    joins the two points of a donor that is in both conditions.

    Parameters
    ----------
    adata
        Annotated data on which :func:`bcnmf_sc.tl.bcnmf` has run with background topics, `cross_fit` and `sample_key`.
    topics
        Topics to draw: "target", "background" or "all"; a name; or a list of names or positions, in this order.
    key
        The `key_added` under which it was stored.
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
    The axes if `show` is False, a list of them for more than 22 topics, which are drawn in rows; else None. The share
    is on a logarithmic scale from 0.0001.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(donor_effect=0.1)
    >>> adata.obs["donor"] = adata.obs["donor"].str[-1]  # as if the same three had given cases and controls
    >>> roles = {"background_key": "condition", "background": "ctrl", "sample_key": "donor"}
    >>> bc.tl.bcnmf(adata, **roles, n_topics=2, n_background_topics=5, tol=1e-2)
    >>> bc.pl.donors(adata)
    """
    table = get.donors(adata, key=key)
    names = pick_topics(stored(adata, key), topics)
    colors = side_colors(adata, key)
    colors = {condition: colors[condition] for condition in ("background", "target")}
    inches = max(2.2, 0.8 * min(len(names), 8) + 0.4 * min(max(len(names) - 8, 0), ROW_TOPICS - 8) + 0.8)
    if ax is None and len(names) > ROW_TOPICS:
        row = partial(donors, adata, key=key, **kwargs)
        return in_rows(row, names, size=(inches, 2.2 + text_width(names)), legend=colors)
    if ax is None:
        ax = new_axes(inches, 3.0, colors)
    paired = table["donor"].duplicated().any()
    largest = max(float(table["n_cells"].max()), 1.0)
    for place, name in enumerate(names):
        share = np.maximum(table[name].to_numpy(float), LEAST_SHARE)
        at = {condition: place + (-0.2 if condition == "background" else 0.2) for condition in colors}
        for donor in table["donor"].unique():
            both = (table["donor"] == donor).to_numpy()
            if both.sum() == len(colors):
                ax.plot([at[x] for x in table["condition"][both]], share[both], color=PLAIN, linewidth=0.6, zorder=1)
        for condition, color in colors.items():
            of = (table["condition"] == condition).to_numpy()
            spread = np.linspace(-0.08, 0.08, of.sum()) if of.sum() > 1 else np.zeros(of.sum())
            size = 12 + 36 * table["n_cells"].to_numpy(float)[of] / largest
            style = {"s": size, "color": color, "alpha": 0.85, "linewidths": 0, "zorder": 2, **kwargs}
            label = None if place else condition
            ax.scatter(at[condition] + (0 if paired else 1) * spread, share[of], label=label, **style)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    label_topics(ax, names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel("share of usage, mean by donor", fontsize=FONT)
    ax.tick_params(axis="y", labelsize=FONT)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False, fontsize=FONT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
