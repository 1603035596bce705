"""Topics: embedding, loadings, usage, how the fit went; and the style that all plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import PowerNorm, to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .. import get
from .._anndata import check_names, gene_labels, listed, pick_topics, stored, stored_slot
from ._text import FONT, add_legend, label_topics, literal, new_axes, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe colours; in grey the first four have 0.34, 0.64, 0 and 0.47 of white.
PALETTE = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#F0E442")
MISSING = "#D3D3D3"
PLAIN = "#555555"
LEVEL = 0.05
"""Adjusted p up to which a bar or point is drawn dark."""


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
        legend = _category_colors(adata, values, color)
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


def loadings(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    n_genes: int = 5,
    topics: str | Sequence[str] | None = None,
    by: Literal["loading", "specificity"] = "loading",
    test: str | None = "auto",
    gene_test: str | None = None,
    gene_symbols: str | None = None,
    **kwargs: Any,
) -> Figure:
    """Draw each topic's leading genes as a heatmap of loadings, with the tests of genes and topic beside them.

    One block of rows per topic, one column per topic: a gene that leads several topics comes once in each block.
    The shade grows with the square root of the loading, since few genes carry most of a topic. The bars at the right
    belong to the blocks.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    n_genes
        Genes per topic.
    topics
        Names of the topics to draw, in this order; None for all.
    by
        What ranks the genes, see :func:`bcnmf_sc.get.top_genes`.
    test
        Column of the topics table for the bars. `"p_value"` draws -log10 p with the sign of the log2 enrichment,
        dark for topics that were called; `"log2_enrichment"` compares the usage in target and background. `"auto"`
        takes the first of the two that has values; None draws no bars. Or a column of `adata.obs` against which
        :func:`bcnmf_sc.tl.associate` tested the topics, drawn as `gene_test` is.
    gene_test
        Column of `adata.obs` against which :func:`bcnmf_sc.tl.associate_genes` tested the genes: a bar for each gene,
        -log10 p with the sign of the difference, dark where the adjusted p is at most 0.05. None draws none.
    gene_symbols
        Column of `adata.var` that names the genes instead of `adata.var_names`.
    **kwargs
        Passed to `matplotlib.axes.Axes.imshow` of the heatmap.

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> fig = bc.pl.loadings(adata, n_genes=5)
    """
    check_names(adata)
    genes = get.top_genes(adata, n_genes, key=key, by=by, topics=topics)
    names = genes["topic"].cat.categories.tolist()
    table = get.topics(adata, key=key).loc[names]
    tested, table = _pick_test(adata, table, test, key=key)
    of_genes = None if gene_test is None else _tests(adata, gene_test, genes["gene"], key=key, of="gene")
    w = get.loadings(adata, key=key)
    rows = w.index.get_indexer(genes["gene"])
    heat = w[names].to_numpy()[rows]
    labels = gene_labels(adata, gene_symbols)[rows].astype(str)

    n_rows, n_cols = heat.shape
    labels_width, names_width = text_width(labels), text_width(names)
    height = max(2.2, 0.165 * n_rows) + names_width + 0.3
    ratios = [max(1.2, 0.24 * n_cols), *([1.4] * (of_genes is not None)), *([1.4] * bool(tested))]
    width = labels_width + sum(ratios) + 1.1 + (names_width if tested else 0)
    fig = plt.figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]

    ax = axes[0]
    shade = {} if "norm" in kwargs or "vmax" in kwargs or "vmin" in kwargs else {"norm": PowerNorm(0.5, 0, heat.max())}
    image = ax.imshow(heat, **{"cmap": "Greys", "aspect": "auto", "interpolation": "nearest", **shade, **kwargs})
    ax.set_yticks(range(n_rows), list(map(literal, labels)), fontsize=FONT)
    ax.set_xticks(range(n_cols), list(map(literal, names)), rotation=90, fontsize=FONT)
    ax.tick_params(length=0)
    edges = genes["topic"].cat.codes.diff().ne(0).to_numpy().nonzero()[0]
    for edge in edges[1:]:
        ax.axhline(edge - 0.5, color=PLAIN, linewidth=0.5)
    bar = fig.colorbar(image, ax=axes, label="loading", shrink=min(1.0, 2.5 / height), aspect=15, anchor=(0, 1))
    bar.locator = MaxNLocator(5)
    bar.ax.tick_params(labelsize=FONT)
    if of_genes is not None:
        _draw_gene_tests(axes[1], of_genes, edges)
    if tested:
        bounds = np.append(edges, n_rows) - 0.5
        _draw_test(axes[-1], table, tested, bounds=bounds)
    return fig


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
    groups = _obs_column(adata, column)
    if not isinstance(groups.dtype, pd.CategoricalDtype):
        msg = f"`groupby` must be a column of categories, got {column!r} with numbers. Use `.astype('category')` on it."
        raise ValueError(msg)
    used = set(groups.dropna())
    colors = {category: c for category, c in _category_colors(adata, groups, column).items() if category in used}
    if not colors:
        msg = f"`groupby` must have a value for at least one cell, got {column!r} with none."
        raise ValueError(msg)

    donors = None if sample_key is None else _obs_column(adata, sample_key, "sample_key").astype("category")

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
        return _obs_column(adata, color)
    shares = get.usage(adata, key=key, normalize=True)
    if color not in shares:
        present = listed([*adata.obs, *shares], 20)
        msg = f"`color` must be a column of `adata.obs` or a topic, got {color!r}. Present: {present}."
        raise ValueError(msg)
    return shares[color]


def _obs_column(adata: AnnData, name: str, argument: str = "groupby") -> pd.Series:
    """Return a column of obs, as categories unless it holds numbers."""
    if name not in adata.obs:
        msg = f"`{argument}` must be a column of `adata.obs`, got {name!r}. Present: {listed(adata.obs)}."
        raise ValueError(msg)
    column = adata.obs[name]
    numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return column if numbers else column.astype("category")


def _category_colors(adata: AnnData, column: pd.Series, name: str | None) -> dict[Any, str]:
    """Colour of every category: scanpy's stored ones, else colour-blind-safe ones while they last."""
    categories = column.cat.categories
    palette = list(adata.uns.get(f"{name}_colors", ()))
    if len(palette) < len(categories):
        palette = list(PALETTE)
    if len(palette) < len(categories):
        from scanpy.pl.palettes import default_20, default_28, default_102

        palette = next((p for p in (default_20, default_28) if len(p) >= len(categories)), default_102)
    return {category: to_hex(palette[i % len(palette)]) for i, category in enumerate(categories)}


def _pick_test(adata: AnnData, table: pd.DataFrame, test: str | None, *, key: str) -> tuple[str | None, pd.DataFrame]:
    """Name the column to draw, and return the table that has it."""
    columns = ("p_value", "log2_enrichment")
    if test is not None and test not in ("auto", *columns):
        tested = set(adata.uns[key].get("associations", {"groupby": ()})["groupby"])
        if test not in tested:
            rule = "'auto', 'p_value', 'log2_enrichment', None or a column tested by `bcnmf_sc.tl.associate`"
            msg = f"`test` must be {rule}, got {test!r}. Tested: {listed(tested)}."
            raise ValueError(msg)
        return "signed_log10_p", _tests(adata, test, table.index, key=key, of="topic")
    filled = [name for name in columns if name in table and table[name].notna().any()]
    if test == "auto":
        return (filled[0] if filled else None), table
    if test is not None and test not in filled:
        msg = f"`test` must be a column with values in the topics table, got {test!r}. Present: {listed(filled)}."
        raise ValueError(msg)
    return test, table


def _draw_test(ax: Axes, table: pd.DataFrame, test: str, *, bounds: np.ndarray) -> None:
    """One bar per topic, as high as its block of genes."""
    value = table[test].to_numpy(dtype=float)
    dark, label = np.ones(len(value), dtype=bool), "log2 enrichment"
    if test == "p_value":
        value = -np.log10(np.maximum(value, np.finfo(float).tiny))
        label = "$-$log10 p"
        if "log2_enrichment" in table:
            value = value * np.where(table["log2_enrichment"].to_numpy(dtype=float) < 0, -1, 1)
            label = "signed $-$log10 p"
        if "called" in table:
            dark = (table["called"] == 1).to_numpy(dtype=bool)  # False where not known
            label += "\n(dark: called)"
    elif test == "signed_log10_p":
        dark, label = (table["p_adjusted"] <= LEVEL).to_numpy(), _against(table, "topics")
    centres, heights = (bounds[1:] + bounds[:-1]) / 2, np.diff(bounds)
    ax.barh(centres, np.nan_to_num(value), 0.8 * heights, color=np.where(dark, PLAIN, MISSING), edgecolor=PLAIN)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_ylim(bounds[-1], bounds[0])
    ax.yaxis.tick_right()
    ax.set_yticks(centres, list(map(literal, table.index)), fontsize=FONT)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=FONT)
    ax.set_xlabel(label, fontsize=FONT)
    ax.locator_params(axis="x", nbins=4)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _tests(adata: AnnData, groupby: str, names: pd.Series | pd.Index, *, key: str, of: str) -> pd.DataFrame:
    """Return the tests of topics or genes against a column, one row for each of `names`."""
    table = get.associations(adata, groupby, key=key, table="genes" if of == "gene" else "topics")
    if table["group"].nunique() > 1:
        several = listed(table["group"].unique())
        argument, call = ("gene_test", "associate_genes") if of == "gene" else ("test", "associate")
        advice = f"Name one of its groups in `bcnmf_sc.tl.{call}`."
        msg = f"`{argument}` must name a column with one comparison, got {groupby!r} with {several}. {advice}"
        raise ValueError(msg)
    return table.set_index(of).reindex(names)


def _against(table: pd.DataFrame, what: str) -> str:
    group, reference = (literal(table[name].dropna().iloc[0]) for name in ("group", "reference"))
    return f"{what}, signed\n$-$log10 p,\n{group} against\n{reference}"


def _draw_gene_tests(ax: Axes, table: pd.DataFrame, edges: np.ndarray) -> None:
    """One bar per gene, beside its row of the heatmap."""
    value = table["signed_log10_p"].to_numpy(dtype=float)
    dark = (table["p_adjusted"] <= LEVEL).to_numpy()
    rows = np.arange(len(value))
    ax.barh(rows, np.nan_to_num(value), 0.8, color=np.where(dark, PLAIN, MISSING), edgecolor=PLAIN, linewidth=0.5)
    ax.axvline(0, color="black", linewidth=0.8)
    for edge in edges[1:]:
        ax.axhline(edge - 0.5, color=PLAIN, linewidth=0.5)
    ax.set_ylim(len(value) - 0.5, -0.5)
    ax.set_yticks([])
    ax.tick_params(axis="x", labelsize=FONT)
    ax.set_xlabel(_against(table, "genes"), fontsize=FONT)
    ax.locator_params(axis="x", nbins=4)
    ax.spines[["top", "right", "left"]].set_visible(False)
