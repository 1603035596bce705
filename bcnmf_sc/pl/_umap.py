"""Draw the UMAP of topic usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from .. import get
from .._stored import stored, stored_slot
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import (
    MISSING,
    PLAIN,
    add_legend,
    category_colors,
    literal,
    new_axes,
    obs_column,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def umap(
    adata: AnnData, *, key: str = "bcnmf", color: str | None = None, ax: Axes | None = None, **kwargs: Any
) -> Axes:
    """Draw the UMAP of the topic usage, coloured by a column of `adata.obs` or by a topic.

    Draws the results of `bcnmf_sc.tl.umap`. For other embeddings, several panels or gene expression use
    `scanpy.pl.embedding(adata, "X_bcnmf_umap", ...)`. Points are rasterised; cells are drawn in a fixed shuffled
    order (categories) or with the highest values on top (numbers). Cells without a value are light grey.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation and its UMAP.
    key
        The `key_added` under which the factorisation was stored.
    color
        Column of `adata.obs`, or name of a topic for its share of each cell's usage; None for uniform grey. Colours in
        `adata.uns[color + "_colors"]`, as scanpy stores them, are used.
    ax
        Axes to draw on; None for a new figure.
    **kwargs
        Passed to `matplotlib.axes.Axes.scatter`.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.umap(adata)
    >>> ax = bc.pl.umap(adata, color="condition")
    """
    stored(adata, key)
    points = np.asarray(stored_slot(adata, "obsm", f"X_{key}_umap", call="tl.umap"))
    values = _color_values(adata, key, color)

    legend: dict[str, str] = {}
    options: dict[str, Any] = {"s": float(np.clip(120_000 / len(points), 0.5, 12)), "linewidths": 0, "rasterized": True}
    if values is None:
        order = np.arange(len(points))
        options["c"] = PLAIN
    elif isinstance(values.dtype, pd.CategoricalDtype):
        order = np.random.default_rng(0).permutation(len(points))
        legend = category_colors(adata, values, color)
        # Code -1, for missing values, indexes the last entry.
        options["c"] = np.array([*map(to_rgb, legend.values()), to_rgb(MISSING)])[values.cat.codes.to_numpy()[order]]
        used = set(values.dropna())
        legend = {str(category): shade for category, shade in legend.items() if category in used}
        if values.isna().any():
            legend["missing"] = MISSING
    else:
        numbers = values.to_numpy(dtype=float)
        order = np.argsort(np.nan_to_num(numbers, nan=-np.inf), kind="stable")
        options |= {"c": numbers[order], "cmap": "viridis", "plotnonfinite": True}
    options |= kwargs
    if isinstance(options.get("cmap"), str):
        options["cmap"] = mpl.colormaps[options["cmap"]].with_extremes(bad=MISSING)

    if ax is None:
        ax = new_axes(5.0, 4.2, legend)
    drawn = ax.scatter(points[order, 0], points[order, 1], **options)
    if legend:
        handles = [Line2D([], [], ls="", marker="o", color=shade, label=name) for name, shade in legend.items()]
        add_legend(ax, handles, title=str(color))
    elif values is not None:
        share = color not in adata.obs
        ax.figure.colorbar(drawn, ax=ax, label=literal(color) + (", share of usage" if share else ""))
    ax.set(xlabel="UMAP1", ylabel="UMAP2", xticks=[], yticks=[])
    return ax


def _color_values(adata: AnnData, key: str, color: str | None) -> pd.Series | None:
    if color is None:
        return None
    if color in adata.obs:
        return obs_column(adata, color)
    shares = get.usage(adata, key=key, normalize=True)
    if color not in shares:
        present = listed([*adata.obs, *shares], 20)
        msg = f"`color` must be a column of `adata.obs` or a topic, got {color!r}. Present: {present}."
        raise UserError(msg)
    return shares[color]
