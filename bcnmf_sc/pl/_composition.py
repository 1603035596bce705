"""Draw the composition of groups of cells as stacked bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from .._utils.errors import UserError
from ._axes import PALETTE, add_legend, categories_of, label_of, label_topics, literal, new_axes, shown, text_width
from ._colors import category_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._axes import Save


@shown
def composition(
    adata: AnnData,
    groupby: str | Sequence[str],
    of: str,
    *,
    normalize: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw the composition of each group of cells, such as clusters by cell line (paper, Fig. 5g).

    Parameters
    ----------
    adata
        Annotated data.
    groupby
        Column of `adata.obs` with the groups, one bar each, or a list of columns.
    of
        Column of `adata.obs` whose categories divide the bars.
    normalize
        Whether to draw shares instead of numbers of cells.
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
        Passed to `matplotlib.axes.Axes.bar`.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.pl.composition(adata, "condition", "cell_type")
    """
    columns = {argument: categories_of(adata, name, argument) for argument, name in (("groupby", groupby), ("of", of))}
    counts = pd.crosstab(columns["groupby"], columns["of"])
    if not counts.size:
        msg = f"`groupby` and `of` must both have a value for at least one cell, got {groupby!r} and {of!r}."
        raise UserError(msg)
    heights = counts.div(counts.sum(axis=1), axis=0) if normalize else counts
    colors = category_colors(adata, columns["of"], of)
    if ax is None:
        height = 3.1 + max(0.3, text_width(counts.index))
        ax = new_axes(max(2.2, 0.32 * len(counts) + 0.8), height, map(str, counts.columns))
    base = np.zeros(len(counts))
    handles = []
    for i, name in enumerate(counts.columns):
        # hatches extend the palette of eight, and tell bars apart in grey
        hatch = ("", "///", "...", "xxx")[i // len(PALETTE) % 4]
        look: dict[str, Any] = {"color": colors[name], "edgecolor": "white", "linewidth": 0.5, "hatch": hatch}
        ax.bar(range(len(counts)), heights[name], bottom=base, **{"width": 0.8, **look, **kwargs})
        base += heights[name].to_numpy()
        handles.append(Patch(facecolor=colors[name], edgecolor="white", hatch=hatch, label=str(name)))
    label_topics(ax, list(map(str, counts.index)))
    ax.set_xlim(-0.5, len(counts) - 0.5)
    ax.set_xlabel(literal(label_of(groupby)))
    ax.set_ylabel("share of cells" if normalize else "cells")
    ax.spines[["top", "right"]].set_visible(False)
    add_legend(ax, handles, title=of)
    return ax
