"""Draw the loadings of each topic's leading genes, with tests of genes and topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator

from .. import get
from .._anndata import check_names
from .._stored import gene_labels
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, LEVEL, MISSING, PLAIN, literal, new_panels, shown, text_width

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save


@shown
def loadings(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    n_genes: int = 5,
    topics: Topics = "target",
    by: Literal["loading", "specificity"] = "loading",
    test: str | None = "auto",
    gene_test: str | None = None,
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> dict[str, Axes] | Any:
    """Draw each topic's leading genes as a heatmap of loadings, with tests of genes and topics as bars.

    The heatmap has a block of rows and a column per topic; a gene that leads several topics is repeated in each block.
    The shade is proportional to the square root of the loading, because few genes dominate a topic. The bars on the
    right belong to the blocks.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    n_genes
        Number of genes per topic.
    topics
        Topics to draw: "target", "background" or "all"; a name; or a list of names or positions, in this order.
    by
        How to rank the genes, see :func:`bcnmf_sc.get.top_genes`.
    test
        Column of the topics table for the bars. `"p_value"` draws -log10 p with the sign of the effect,
        dark for called topics; `"log2_enrichment"` compares the usage in target and background. `"auto"` takes the
        first of the two that has values; None draws no bars. Alternatively, a column of `adata.obs` against which
        :func:`bcnmf_sc.tl.associate` tested the topics, drawn like `gene_test`.
    gene_test
        Column of `adata.obs` against which :func:`bcnmf_sc.tl.associate_genes` tested the genes. Draws a bar per gene,
        -log10 p with the sign of the difference, dark where the adjusted p-value is at most 0.05. None draws no bars.
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
        Passed to `matplotlib.axes.Axes.imshow` for the heatmap.

    Returns
    -------
    A dict of axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.pl.loadings(adata, n_genes=5)
    """
    check_names(adata)
    genes = get.top_genes(adata, topics, n_genes, key=key, by=by)
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
    names_of = ["heatmap", *(["genes"] * (of_genes is not None)), *(["topics"] * bool(tested))]
    axes = new_panels((width, height), ax, n_columns=len(ratios), width_ratios=ratios)[0]
    panels = dict(zip(names_of, axes, strict=True))

    ax = axes[0]
    shade = {} if "norm" in kwargs or "vmax" in kwargs or "vmin" in kwargs else {"norm": PowerNorm(0.5, 0, heat.max())}
    image = ax.imshow(heat, **{"cmap": "Greys", "aspect": "auto", "interpolation": "nearest", **shade, **kwargs})
    ax.set_yticks(range(n_rows), list(map(literal, labels)), fontsize=FONT)
    ax.set_xticks(range(n_cols), list(map(literal, names)), rotation=90, fontsize=FONT)
    ax.tick_params(length=0)
    edges = genes["topic"].cat.codes.diff().ne(0).to_numpy().nonzero()[0]
    for edge in edges[1:]:
        ax.axhline(edge - 0.5, color=PLAIN, linewidth=0.5)
    bar = ax.figure.colorbar(
        image, ax=list(axes), label="loading", shrink=min(1.0, 2.5 / height), aspect=15, anchor=(0, 1)
    )
    bar.locator = MaxNLocator(5)
    bar.ax.tick_params(labelsize=FONT)
    if of_genes is not None:
        _draw_gene_tests(axes[1], of_genes, edges)
    if tested:
        bounds = np.append(edges, n_rows) - 0.5
        _draw_test(axes[-1], table, tested, bounds=bounds)
    return panels


def _pick_test(adata: AnnData, table: pd.DataFrame, test: str | None, *, key: str) -> tuple[str | None, pd.DataFrame]:
    """Return the column to draw and the table that has it."""
    columns = ("p_value", "log2_enrichment")
    if test is not None and test not in ("auto", *columns):
        tested = set(adata.uns[key].get("associations", {"groupby": ()})["groupby"])
        if test not in tested:
            rule = "'auto', 'p_value', 'log2_enrichment', None or a column tested by `bcnmf_sc.tl.associate`"
            msg = f"`test` must be {rule}, got {test!r}. Tested: {listed(tested)}."
            raise UserError(msg)
        return "signed_log10_p", _tests(adata, test, table.index, key=key, of="topic")
    filled = [name for name in columns if name in table and table[name].notna().any()]
    if test == "auto":
        return (filled[0] if filled else None), table
    if test is not None and test not in filled:
        msg = f"`test` must be a column with values in the topics table, got {test!r}. Present: {listed(filled)}."
        raise UserError(msg)
    return test, table


def _draw_test(ax: Axes, table: pd.DataFrame, test: str, *, bounds: np.ndarray) -> None:
    """Draw one bar per topic, as high as its block of genes."""
    value = table[test].to_numpy(dtype=float)
    dark, label = np.ones(len(value), dtype=bool), "log2 enrichment"
    if test == "p_value":
        value = -np.log10(np.maximum(value, np.finfo(float).tiny))
        label = "$-$log10 p"
        effect = next((name for name in ("log2_fold_change", "log2_enrichment") if name in table), None)
        if effect is not None:
            value = value * np.where(table[effect].to_numpy(dtype=float) < 0, -1, 1)
            label = "signed $-$log10 p"
        if "called" in table:
            dark = (table["called"] == 1).to_numpy(dtype=bool)  # False if unknown
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
        msg = f"`{argument}` must be a column with one comparison, got {groupby!r} with {several}. {advice}"
        raise UserError(msg)
    return table.set_index(of).reindex(names)


def _against(table: pd.DataFrame, what: str) -> str:
    group, reference = (literal(table[name].dropna().iloc[0]) for name in ("group", "reference"))
    return f"{what}, signed\n$-$log10 p,\n{group} against\n{reference}"


def _draw_gene_tests(ax: Axes, table: pd.DataFrame, edges: np.ndarray) -> None:
    """Draw one bar per gene, beside its row of the heatmap."""
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
