"""Tests, comparisons, compositions and images: what was found out about the topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .. import get
from .._anndata import check_names, gene_labels, listed, pick_topics
from ._axes import (
    FONT,
    LEVEL,
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

ROW = 0.2
"""Inches per row of labels."""
METHOD_NAMES = {
    "pca": "PCA",
    "cpca": "cPCA",
    "nmf": "NMF",
    "bcnmf": "bcNMF",
    "bcnmf_split": "bcNMF, split",
    "bcnmf_shared": "bcNMF, shared",
}


def associations(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "bcnmf",
    topics: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw how much groups differ in their use of each topic: the difference of means with its 95 % interval.

    Draws what :func:`bcnmf_sc.tl.associate` stored. Full points differ at an adjusted p of at most 0.05. An interval
    is that of one comparison, so it may leave out zero where the adjusted p does not pass.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation and its tests.
    groupby
        The column that was tested against.
    key
        The `key_added` under which the factorisation was stored.
    topics
        Names of the topics to draw, from top to bottom; None for all that were tested.
    ax
        Axes to draw on; None for a new figure.
    **kwargs
        Passed to `matplotlib.axes.Axes.errorbar`.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.associate(adata, groupby="condition", sample_key="donor")
    >>> ax = bc.pl.associations(adata, "condition")
    """
    table = get.associations(adata, groupby, key=key)
    names = pick_topics(table["topic"].unique(), topics)
    groups = table["group"].unique().tolist()
    reference = table["reference"].iloc[0]
    if ax is None:
        height = max(1.6, len(names) * max(ROW, 0.11 * len(groups)) + 0.7)
        ax = new_axes(3.6 + text_width(names), height, [] if len(groups) == 1 else map(str, groups))
    space = 0.8 / len(groups)
    for i, group in enumerate(groups):
        rows = table[table["group"] == group].set_index("topic").reindex(names)
        y = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * space
        difference = rows["difference"].to_numpy(dtype=float)
        error = np.abs(rows[["ci_low", "ci_high"]].to_numpy(dtype=float).T - difference)
        shade = PLAIN if len(groups) == 1 else PALETTE[i % len(PALETTE)]
        options: dict[str, Any] = {"fmt": "none", "ecolor": shade, "elinewidth": 1.2, **kwargs}
        ax.errorbar(difference, y, xerr=np.nan_to_num(error), **options)
        full = (rows["p_adjusted"] <= LEVEL).to_numpy()
        ax.scatter(difference, y, s=22, c=np.where(full, shade, "white"), edgecolors=shade, zorder=3)
    ax.axvline(0, color="black", linewidth=0.8, zorder=0)
    for edge in np.arange(1, len(names)) - 0.5:
        ax.axhline(edge, color=MISSING, linewidth=0.5, zorder=0)
    ax.set_yticks(range(len(names)), list(map(literal, names)), fontsize=FONT)
    ax.set_ylim(len(names) - 0.5, -0.5)
    low, high = ax.get_xlim()
    ax.set_xlim(max(low, -1.05), min(high, 1.05))  # no two shares differ by more
    ax.locator_params(axis="x", nbins=5)
    reference = literal(reference)
    who = f"{literal(groups[0])} less {reference}" if len(groups) == 1 else f"group less {reference}"
    unit = table["unit"].iloc[0]
    ax.set_xlabel(f"share of usage, {who}\n(95 % interval over {unit}s; full: adjusted p ≤ {LEVEL:g})", fontsize=FONT)
    if len(groups) > 1:
        shades = [PALETTE[i % len(PALETTE)] for i in range(len(groups))]
        handles = [
            Line2D([], [], ls="", marker="o", color=shade, label=str(group))
            for group, shade in zip(groups, shades, strict=True)
        ]
        add_legend(ax, handles, title=groupby)
    return ax


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
    """Draw in how many topics each gene is among the leading ones (paper, Fig. 5h).

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    n_genes
        Leading genes of a topic, by loading.
    n_shown
        Genes to draw, the most frequent first (ties in the order of their summed loadings); None for all.
    topics
        Names of the topics to count; None for all.
    highlight
        Genes to colour, such as the known targets of a drug. Names as drawn.
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
            bar.set_hatch("///")  # told apart in grey too
            text.set_color(PALETTE[3])
            text.set_fontweight("bold")
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    n_topics = top["topic"].nunique()
    ax.set_xlabel(f"topics (of {n_topics}) with the gene\namong their leading {n_genes}", fontsize=FONT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def compare(
    table: pd.DataFrame, *, score: str = "ari", ax: Axes | None = None, label: str | None = None, **kwargs: Any
) -> Axes:
    """Draw a score of several methods: the median over seeds as a bar, every seed as a point (paper, Fig. 3c).

    The points show what the start of a fit changes, the error bar (the median bootstrap standard error) what other
    cells or donors would change.

    Parameters
    ----------
    table
        What :func:`bcnmf_sc.metrics.compare` returned.
    score
        Column to draw. `ari` has error bars.
    ax
        Axes to draw on; None for a new figure.
    label
        What to write beside the axis; the name of the score by default.
    **kwargs
        Passed to `matplotlib.axes.Axes.bar`.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> table = bc.metrics.compare(
    ...     bc.datasets.digits(),
    ...     background_key="condition",
    ...     background="background",
    ...     labels="digit",
    ...     methods=["pca", "cpca", "nmf"],
    ...     n_topics=2,
    ...     n_seeds=1,
    ...     likelihood="gaussian",
    ... )
    >>> ax = bc.pl.compare(table)
    """
    if score not in table or score in ("method", "alpha", "n_topics", "seed", "n_folds"):
        msg = f"`score` must be a column with a score, got {score!r}. Present: {listed(table.columns)}."
        raise ValueError(msg)
    drawn = table[table[score].notna()]
    if not len(drawn):
        msg = f"`score` must have values, got {score!r} with none."
        raise ValueError(msg)
    runs = [
        (METHOD_NAMES.get(method, str(method)) + ("" if np.isnan(alpha) else f", α {alpha:g}"), rows)
        for (method, alpha), rows in drawn.groupby(["method", "alpha"], sort=False, dropna=False)
    ]
    if ax is None:
        ax = new_axes(max(2.4, 0.42 * len(runs) + 0.8), 2.5 + text_width(name for name, _ in runs))
    middle = [rows[score].median() for _, rows in runs]
    ax.bar(range(len(runs)), middle, **{"width": 0.7, "color": MISSING, "edgecolor": PLAIN, **kwargs})
    known = [i for i, (_, rows) in enumerate(runs) if f"{score}_se" in rows and rows[f"{score}_se"].notna().any()]
    if known:
        error = [runs[i][1][f"{score}_se"].median() for i in known]
        at = [middle[i] for i in known]
        ax.errorbar(known, at, yerr=error, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    for i, (_, rows) in enumerate(runs):
        values = rows[score].to_numpy(dtype=float)
        if len(values) > 1:
            across = i + 0.5 * ((np.arange(len(values)) + 0.5) / len(values) - 0.5)
            ax.plot(across, values, marker="o", ms=3, ls="", color=PALETTE[0], mec="white", mew=0.3, zorder=3)
    ax.set_xticks(range(len(runs)), [literal(name) for name, _ in runs], rotation=90, fontsize=FONT)
    ax.axhline(0, color="black", linewidth=0.8)
    written = {"ari": "adjusted Rand index", "auc": "AUC, best topic", "auc_share": "AUC, target share"}
    ax.set_ylabel(label or written.get(score, literal(score)))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def composition(
    adata: AnnData, groupby: str, of: str, *, normalize: bool = True, ax: Axes | None = None, **kwargs: Any
) -> Axes:
    """Draw what each group of cells is made of, such as clusters of cell lines (paper, Fig. 5g).

    Parameters
    ----------
    adata
        Annotated data.
    groupby
        Column of `adata.obs` with a bar for each of its groups.
    of
        Column of `adata.obs` whose categories share the bars.
    normalize
        Draw shares; otherwise numbers of cells.
    ax
        Axes to draw on; None for a new figure.
    **kwargs
        Passed to `matplotlib.axes.Axes.bar`.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> ax = bc.pl.composition(adata, "condition", "cell_type")
    """
    columns = {argument: obs_column(adata, name, argument) for argument, name in (("groupby", groupby), ("of", of))}
    for argument, column in columns.items():
        if not isinstance(column.dtype, pd.CategoricalDtype):
            msg = f"`{argument}` must be a column of categories, got {column.name!r} with numbers."
            raise ValueError(msg)
    counts = pd.crosstab(columns["groupby"], columns["of"])
    if not counts.size:
        msg = f"`groupby` and `of` must both have a value for at least one cell, got {groupby!r} and {of!r}."
        raise ValueError(msg)
    heights = counts.div(counts.sum(axis=1), axis=0) if normalize else counts
    colors = category_colors(adata, columns["of"], of)
    if ax is None:
        height = 3.1 + max(0.3, text_width(counts.index))
        ax = new_axes(max(2.2, 0.32 * len(counts) + 0.8), height, map(str, counts.columns))
    base = np.zeros(len(counts))
    handles = []
    for i, name in enumerate(counts.columns):
        # beyond the palette of eight that greys tell apart, hatches help
        hatch = ("", "///", "...", "xxx")[i // len(PALETTE) % 4]
        look: dict[str, Any] = {"color": colors[name], "edgecolor": "white", "linewidth": 0.5, "hatch": hatch}
        ax.bar(range(len(counts)), heights[name], bottom=base, **{"width": 0.8, **look, **kwargs})
        base += heights[name].to_numpy()
        handles.append(Patch(facecolor=colors[name], edgecolor="white", hatch=hatch, label=str(name)))
    label_topics(ax, list(map(str, counts.index)))
    ax.set_xlim(-0.5, len(counts) - 0.5)
    ax.set_xlabel(literal(groupby))
    ax.set_ylabel("share of cells" if normalize else "cells")
    ax.spines[["top", "right"]].set_visible(False)
    add_legend(ax, handles, title=of)
    return ax


def bubbles(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "bcnmf",
    topics: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw what the mean cell of each group is made of: the area of a bubble is a topic's share (paper, Fig. 2c).

    The mean usage of the group's cells, scaled to sum 1 over all topics.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    groupby
        Column of `adata.obs` with the groups. Cells without a value are left out.
    key
        The `key_added` under which the factorisation was stored.
    topics
        Names of the topics to draw, in this order; None for all.
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
    >>> ax = bc.pl.bubbles(adata, "cell_type")
    """
    shares = _mean_usage(adata, groupby, key)
    names = pick_topics(shares.columns, topics)
    values = shares[names].to_numpy()
    n_groups, n_topics = values.shape
    sizes = 150.0
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
    ax.set_ylabel(literal(groupby))
    steps = (0.1, 0.5, 1.0)
    dot: dict[str, Any] = {"ls": "", "marker": "o", "color": options["color"], "mew": 0}
    add_legend(ax, [Line2D([], [], ms=np.sqrt(sizes * s), label=f"{s:.0%}", **dot) for s in steps], title="share")
    return ax


def images(
    adata: AnnData,
    groupby: str | None = None,
    *,
    key: str = "bcnmf",
    shape: tuple[int, int] | None = None,
    topics: str | Sequence[str] | None = None,
    n_columns: int = 5,
    **kwargs: Any,
) -> Figure:
    """Draw topics whose genes are pixels as images, or the mean image of each group rebuilt from them (Fig. 2c).

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation of images.
    groupby
        None draws the loadings of each topic; a column of `adata.obs` the mean usage of each of its groups times the
        loadings of the topics chosen.
    key
        The `key_added` under which the factorisation was stored.
    shape
        Rows and columns of an image; `adata.uns["image_shape"]` by default.
    topics
        Names of the topics, in this order; None for all.
    n_columns
        Images side by side.
    **kwargs
        Passed to `matplotlib.axes.Axes.imshow`.

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.digits()
    >>> bc.tl.nmf(adata, n_topics=3, likelihood="gaussian", tol=1e-2)
    >>> fig = bc.pl.images(adata, key="nmf")
    >>> fig = bc.pl.images(adata, "digit", key="nmf")
    """
    w = get.loadings(adata, key=key)
    names = pick_topics(w.columns, topics)
    if shape is None:
        shape = tuple(int(side) for side in adata.uns.get("image_shape", ()))  # type: ignore[assignment]
    if not shape or np.prod(shape) != adata.n_vars:
        msg = f"`shape` must be rows and columns of images of {adata.n_vars} pixels, got {shape or None}."
        raise ValueError(msg)
    if groupby is None:
        pictures = {str(name): w[name].to_numpy() for name in names}
    else:
        rebuilt = _mean_usage(adata, groupby, key)[names].to_numpy() @ w[names].to_numpy().T
        groups = _mean_usage(adata, groupby, key).index
        pictures = {str(group): picture for group, picture in zip(groups, rebuilt, strict=True)}
    n_columns = min(n_columns, len(pictures))
    n_rows = -(-len(pictures) // n_columns)
    side = max(1.1, text_width(pictures) + 0.1)
    fig, axes = plt.subplots(
        n_rows, n_columns, figsize=(side * n_columns, 1.35 * n_rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        ax.imshow(picture.reshape(shape), **{"cmap": "Greys_r", "interpolation": "nearest", "vmin": 0, **kwargs})
        ax.set_title(literal(name), fontsize=FONT)
    return fig


def _mean_usage(adata: AnnData, groupby: str, key: str) -> pd.DataFrame:
    """Mean usage of each group's cells, rows summing to 1."""
    groups = obs_column(adata, groupby)
    if not isinstance(groups.dtype, pd.CategoricalDtype):
        msg = f"`groupby` must be a column of categories, got {groupby!r} with numbers. Use `.astype('category')`."
        raise ValueError(msg)
    means = get.usage(adata, key=key).groupby(groups.array, observed=True).mean()  # in the categories' order
    if not len(means):
        msg = f"`groupby` must have a value for at least one cell, got {groupby!r} with none."
        raise ValueError(msg)
    total = means.sum(axis=1)
    return means.div(total.where(total > 0, 1.0), axis=0)
