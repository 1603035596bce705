"""Draw tests of topics against groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from .. import get
from .._stored import pick_topics, stored
from ._axes import FONT, LEVEL, MISSING, PALETTE, PLAIN, add_legend, literal, new_axes, shown, text_width
from ._colors import category_colors

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save

ROW = 0.2
"""Height of a row of labels, in inches."""


@shown
def associations(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "bcnmf",
    topics: Topics = "target",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw how much the use of each topic differs between groups: the effect with its 95 % confidence interval.

    Draws the results of :func:`bcnmf_sc.tl.associate`. Filled points have an adjusted p-value of at most 0.05. The
    intervals are not adjusted for multiple testing, so one may exclude zero although the adjusted p-value is larger.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation and its association tests.
    groupby
        Column of `adata.obs` against which the topics were tested.
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
        Passed to `matplotlib.axes.Axes.errorbar`.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.associate(adata, groupby="condition", sample_key="donor")
    >>> bc.pl.associations(adata, "condition")
    """
    table = get.associations(adata, groupby, key=key)
    names = pick_topics(stored(adata, key), topics, table["topic"].unique())
    groups = table["group"].unique().tolist()
    reference = table["reference"].iloc[0]
    if ax is None:
        height = max(1.6, len(names) * max(ROW, 0.11 * len(groups)) + 0.7)
        ax = new_axes(3.6 + text_width(names), height, [] if len(groups) == 1 else map(str, groups))
    space = 0.8 / len(groups)
    known = category_colors(adata, adata.obs[groupby].astype("category"), groupby) if groupby in adata.obs else {}
    of_group = {str(group): color for group, color in known.items()}
    shades = [of_group.get(str(group), PALETTE[i % len(PALETTE)]) for i, group in enumerate(groups)]
    scale = str(table["scale"].iloc[0]) if "scale" in table else "share"
    for i, group in enumerate(groups):
        rows = table[table["group"] == group].set_index("topic").reindex(names)
        y = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * space
        difference = rows["difference"].to_numpy(dtype=float)
        ends = rows[["ci_low", "ci_high"]].to_numpy(dtype=float).T
        error = np.abs((np.clip(ends, -1, 1) if scale == "share" else ends) - difference)  # shares differ by at most 1
        shade = PLAIN if len(groups) == 1 else shades[i]
        options: dict[str, Any] = {"fmt": "none", "ecolor": shade, "elinewidth": 1.2, **kwargs}
        ax.errorbar(difference, y, xerr=np.nan_to_num(error), **options)
        full = (rows["p_adjusted"] <= LEVEL).to_numpy()
        ax.scatter(difference, y, s=22, c=np.where(full, shade, "white"), edgecolors=shade, zorder=3)
    ax.axvline(0, color="black", linewidth=0.8, zorder=0)
    for edge in np.arange(1, len(names)) - 0.5:
        ax.axhline(edge, color=MISSING, linewidth=0.5, zorder=0)
    ax.set_yticks(range(len(names)), list(map(literal, names)), fontsize=FONT)
    ax.set_ylim(len(names) - 0.5, -0.5)
    if scale == "share":
        low, high = ax.get_xlim()
        ax.set_xlim(max(low, -1.05), min(high, 1.05))
    ax.locator_params(axis="x", nbins=5)
    reference = literal(reference)
    who = f"{literal(groups[0])} − {reference}" if len(groups) == 1 else f"group − {reference}"
    unit = table["unit"].iloc[0]
    what = "difference in share of usage" if scale == "share" else "log2 fold change of the share of usage"
    ax.set_xlabel(f"{what} ({who})\n(95 % CI over {unit}s; filled: adjusted p ≤ {LEVEL:g})", fontsize=FONT)
    if len(groups) > 1:
        handles = [
            Line2D([], [], ls="", marker="o", color=shade, label=str(group))
            for group, shade in zip(groups, shades, strict=True)
        ]
        add_legend(ax, handles, title=groupby)
    return ax
