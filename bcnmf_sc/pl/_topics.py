"""Topics over the cells (embedding, usage by group), and how the fit went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .. import get
from .._anndata import listed, pick_topics, stored, stored_slot
from ._axes import (
    FONT,
    MISSING,
    PALETTE,
    PLAIN,
    add_legend,
    category_colors,
    label_topics,
    literal,
    new_axes,
    obs_column,
    text_width,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def umap(
    adata: AnnData, *, key: str = "bcnmf", color: str | None = None, ax: Axes | None = None, **kwargs: Any
) -> Axes:
    """Draw the UMAP of the topic usage, coloured by a column of `adata.obs` or by a topic.

    Draws what `bcnmf_sc.tl.umap` stored. For other embeddings, several panels or gene expression use
    `scanpy.pl.embedding(adata, "X_bcnmf_umap", ...)`. Points are rasterised; cells are drawn in a fixed shuffled
    order (categories) or with the highest values on top (numbers). Cells without a value are light grey.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation and its UMAP.
    key
        The `key_added` under which the factorisation was stored.
    color
        Column of `adata.obs`, or name of a topic for its share of each cell's usage; None for one grey. Colours in
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
        # Code -1, a missing value, takes the last entry.
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


def usage(
    adata: AnnData,
    groupby: str | None = None,
    *,
    key: str = "bcnmf",
    sample_key: str | None = None,
    topics: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw each topic's share of the cells' usage by group: a box over the group's donors, or over all of its cells.

    The box spans the quartiles with the median in it, the whiskers reach to 1.5 times its height. The cells are
    rasterised points; their sideways spread is arbitrary, and the same in every call. With `sample_key` a large point
    is the mean over a donor's cells, what :func:`bcnmf_sc.tl.associate` compares, and the box is over these points.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    groupby
        Column of `adata.obs` with the groups (categories, strings or booleans). None for the cells' role in the
        factorisation, `adata.obs[key + "_role"]`. Cells without a value are left out.
    key
        The `key_added` under which the factorisation was stored.
    sample_key
        Column of `adata.obs` with the donors; None draws boxes over cells.
    topics
        Names of the topics to draw, in this order; None for all.
    ax
        Axes to draw on; None for a new figure, as wide as the boxes need (at most about 20 inches).
    **kwargs
        Passed to `matplotlib.axes.Axes.boxplot`.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> ax = bc.pl.usage(adata, groupby="condition")
    """
    share = get.usage(adata, key=key, normalize=True)
    names = pick_topics(share.columns, topics)
    column = f"{key}_role" if groupby is None else groupby
    groups = obs_column(adata, column)
    if not isinstance(groups.dtype, pd.CategoricalDtype):
        msg = f"`groupby` must be a column of categories, got {column!r} with numbers. Use `.astype('category')` on it."
        raise ValueError(msg)
    used = set(groups.dropna())
    colors = {category: c for category, c in category_colors(adata, groups, column).items() if category in used}
    if not colors:
        msg = f"`groupby` must have a value for at least one cell, got {column!r} with none."
        raise ValueError(msg)

    donors = None if sample_key is None else obs_column(adata, sample_key, "sample_key").astype("category")

    n_groups, n_topics = len(colors), len(names)
    if ax is None:
        inches = min(20.0, max(4.0, n_topics * (0.14 * n_groups + 0.12)) + 0.8)
        ax = new_axes(inches, 3.3 + max(0.3, text_width(names)), map(str, colors))
    space = 0.8 / n_groups
    rng = np.random.default_rng(0)
    for i, (category, shade) in enumerate(colors.items()):
        here = (groups == category).to_numpy()
        values = share.loc[here, names].to_numpy()
        positions = np.arange(n_topics) + (i - (n_groups - 1) / 2) * space
        spread = rng.uniform(-0.35, 0.35, values.shape) * space
        dots: dict[str, Any] = {"marker": ".", "ms": 1.5, "ls": "", "color": shade, "rasterized": True}
        alpha = float(np.clip(300 / len(values), 0.08, 0.5)) * (0.6 if donors is not None else 1.0)
        ax.plot((positions + spread).ravel(), values.ravel(), alpha=alpha, **dots)
        if donors is not None:
            values = share.loc[here, names].groupby(donors[here], observed=True).mean().to_numpy()
            aside = (np.arange(len(values)) + 0.5) / len(values) - 0.5
            at = positions + 0.5 * space * aside[:, None]
            large: dict[str, Any] = {"marker": "o", "ms": 3.5, "ls": "", "mec": "black", "mew": 0.5, "zorder": 4}
            ax.plot(at.ravel(), values.ravel(), color=shade, **large)
        options: dict[str, Any] = {
            "widths": 0.8 * space,
            "showfliers": False,
            "patch_artist": True,
            "boxprops": {"facecolor": (*to_rgb(shade), 0.35), "edgecolor": "black", "linewidth": 0.8},
            "medianprops": {"color": "black", "linewidth": 1.6},
            "whiskerprops": {"linewidth": 0.8},
            "capprops": {"linewidth": 0.8},
            "zorder": 3,
        }
        ax.boxplot(values, positions=positions, manage_ticks=False, **(options | kwargs))

    ax.set_xlim(-0.5, n_topics - 0.5)
    for edge in np.arange(1, n_topics) - 0.5:
        ax.axvline(edge, color=MISSING, linewidth=0.5, zorder=0)
    label_topics(ax, names)
    ax.set_ylabel("share of usage")
    add_legend(ax, [Patch(facecolor=c, edgecolor="black", label=str(name)) for name, c in colors.items()], title=column)
    return ax


def loss(adata: AnnData, *, key: str = "bcnmf", **kwargs: Any) -> Figure:
    """Draw how the fit went: the loss on target and background, and the change of the loadings, by iteration.

    The background's loss has a panel where there is a background. Neither part needs to fall all the way: convergence
    is read from the change of the loadings, which the dashed line compares with the tolerance.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    **kwargs
        Passed to `matplotlib.axes.Axes.plot` of every panel.

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> fig = bc.pl.loss(adata)
    """
    record = stored(adata, key)
    if "loss" not in record:
        msg = f"`key` must name a fit with a stored loss, got {key!r}. Present: {listed(record)}."
        raise ValueError(msg)
    table = record["loss"]
    titles = {"target": "loss on target", "background": "loss on background", "change": "change of loadings"}
    panels = [name for name in titles if name == "target" or np.any(np.nan_to_num(table.get(name, 0.0)) != 0)]
    fig, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.8), layout="constrained", squeeze=False)
    for ax, name in zip(axes[0], panels, strict=True):
        drawn = table.loc[table[name] > 0] if name == "change" else table
        ax.plot(drawn["iteration"], drawn[name], **{"color": PALETTE[0], "marker": ".", "markersize": 4, **kwargs})
        ax.set_title(titles[name])
        ax.set_xlabel("iteration")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if name == "change":
            ax.set_yscale("log")
            tol = record.get("params", {}).get("tol")
            if tol:
                ax.axhline(tol, color=PLAIN, linestyle="--", linewidth=1, label=f"tolerance {tol:g}")
                ax.legend(frameon=False, fontsize=FONT)
        else:
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    if "converged" in record:
        ended = "converged" if record["converged"] else "not converged"
        fig.suptitle(f"{literal(key)}: {ended} after {record.get('n_iter', table['iteration'].iloc[-1])} iterations")
    return fig


def _color_values(adata: AnnData, key: str, color: str | None) -> pd.Series | None:
    if color is None:
        return None
    if color in adata.obs:
        return obs_column(adata, color)
    shares = get.usage(adata, key=key, normalize=True)
    if color not in shares:
        present = listed([*adata.obs, *shares], 20)
        msg = f"`color` must be a column of `adata.obs` or a topic, got {color!r}. Present: {present}."
        raise ValueError(msg)
    return shares[color]
