"""Draw the UMAP of topic usage, with scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from .. import get
from .._stored import stored, stored_slot
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import PLAIN, literal, new_axes, obs_column, shown
from ._colors import category_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._axes import Save

BY_CELL = ("mask_obs", "size")
"""Arguments of scanpy that may have a value per cell."""


@shown
def umap(
    adata: AnnData,
    *,
    color: str | Sequence[str] | None = None,
    key: str = "bcnmf",
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | list[Axes] | Any:
    """Draw the UMAP of the topic usage, coloured by columns of `adata.obs`, topics or genes.

    Draws the result of :func:`bcnmf_sc.tl.umap` by :func:`scanpy.pl.embedding`, whose arguments it takes. Cells are
    drawn in a fixed shuffled order (categories) or with the highest values on top (numbers), so that no condition
    hides another. :func:`scanpy.pl.embedding` with `basis="bcnmf_umap"` draws the same positions.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation and its UMAP.
    color
        Column of `adata.obs`, name of a topic for its share of each cell's usage, or gene; or a list of these, for a
        panel each. None for uniform grey. A condition has the same colours in all plots of the package, those in
        `adata.uns[color + "_colors"]` if scanpy stored any.
    key
        The `key_added` under which the factorisation was stored.
    layer
        Layer with the values of genes.
    use_raw
        Whether to take the values of genes from `adata.raw`; by default if it exists and no layer is named.
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
        Passed to :func:`scanpy.pl.embedding`, such as `size`, `palette`, `groups`, `legend_loc`, `ncols`, `title`,
        `frameon`, `vmax`. Colours of a `palette` are stored in `adata.uns`, as scanpy does.

    Returns
    -------
    The axes if `show` is False, a list of them for several colours, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.tl.umap(adata)
    >>> bc.pl.umap(adata, color=["condition", "Topic 1"])
    """
    import scanpy as sc
    from anndata import AnnData

    stored(adata, key)
    places = np.asarray(stored_slot(adata, "obsm", f"X_{key}_umap", call="tl.umap"))
    names = [color] if color is None or isinstance(color, str) else list(color)
    of_genes: dict[str, Any] = {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols}
    values = _values(adata, key, [name for name in names if name is not None], **of_genes)
    palette = kwargs.get("palette")
    uns = {}
    for name in values:
        if isinstance(values[name].dtype, pd.CategoricalDtype):
            colors = category_colors(adata, values[name], name)
            column = values[name].cat.remove_unused_categories()
            uns[f"{name}_colors"] = [colors[category] for category in column.cat.categories]
            values[name] = column.cat.rename_categories([literal(category) for category in column.cat.categories])
    order = np.random.default_rng(0).permutation(len(places))
    for name in BY_CELL:
        if name in kwargs and np.ndim(kwargs[name]) == 1:
            kwargs[name] = np.asarray(kwargs[name])[order]
    if kwargs.get("groups") is not None:
        groups = kwargs["groups"]
        kwargs["groups"] = [literal(group) for group in ([groups] if isinstance(groups, str) else groups)]
    cells = AnnData(obs=values.iloc[order], obsm={"X_umap": places[order]}, uns=uns if palette is None else {})

    shares = (set(values) - set(adata.obs)) & set(stored(adata, key)["topics"].index)
    titles = [literal(name) + (", share of usage" if name in shares else "") for name in names if name is not None]
    if None not in names:
        kwargs.setdefault("title", titles if len(titles) > 1 else titles[0])
    else:
        kwargs.setdefault("na_color", PLAIN)
    kwargs.setdefault("legend_fontsize", "small")
    single = len(names) == 1 and ax is None and kwargs.get("projection", "2d") == "2d"
    if single:
        ax = new_axes(4.6, 4.2)
    wanted = color if color is None or len(names) > 1 else names[0]
    drawn = sc.pl.embedding(cells, basis="umap", color=wanted, ax=ax, show=False, **kwargs)
    _tidy(drawn, single=single, room=kwargs.get("legend_loc", "right margin") == "right margin")
    if palette is not None:
        adata.uns.update({name: found for name, found in cells.uns.items() if name.endswith("_colors")})
    return drawn


def _tidy(drawn: Axes | list[Axes], *, single: bool, room: bool) -> None:
    """Rasterise the points, and make room for the legend of a single panel."""
    panels = drawn if isinstance(drawn, list) else [drawn]
    for points in (points for panel in panels for points in panel.collections):
        points.set_rasterized(True)  # scanpy does so only after `set_figure_params`
    if single:
        panels[0].set_in_layout(True)  # scanpy moves the axes, which takes them and their legend out of the layout
        legend, figure = panels[0].get_legend(), plt.gcf()
        if legend is not None and room:
            width = legend.get_window_extent().width / figure.dpi
            figure.set_figwidth(figure.get_figwidth() + width)


def _values(
    adata: AnnData, key: str, names: list[str], *, layer: str | None, use_raw: bool | None, gene_symbols: str | None
) -> pd.DataFrame:
    """Return the values of columns, topics and genes for each cell."""
    import scanpy as sc

    shares = get.usage(adata, key=key, normalize=True)
    genes = [name for name in names if name not in adata.obs and name not in shares]
    found = pd.DataFrame(index=adata.obs_names)
    if genes:
        if use_raw is None:
            use_raw = layer is None and getattr(adata, "raw", None) is not None
        var = adata.raw.var if use_raw else adata.var
        known = var.get(gene_symbols, var.index)
        unknown = [name for name in genes if name not in set(known)]
        if unknown or hasattr(adata, "mod"):  # the genes of a MuData are in its modalities
            present = listed([*adata.obs, *shares], 20)
            msg = f"`color` must be a column of `adata.obs`, a topic or a gene, got {listed(unknown or genes)}. "
            msg += f"Present: {present}, and {len(known)} genes."
            raise UserError(msg)
        found = sc.get.obs_df(adata, genes, layer=layer, use_raw=use_raw, gene_symbols=gene_symbols)
    for name in names:
        if name not in genes:
            found[name] = obs_column(adata, name) if name in adata.obs else shares[name]
    return found
