"""Shared by all plots: colours, literal labels and their widths, axes and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.textpath import TextPath

from .._utils.checks import listed
from .._utils.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes

FONT = 8.0  # points, for labels by the dozen
LEGEND_ROWS = 18
# Okabe and Ito's colour-blind-safe colours; in grey the first four have 0.34, 0.64, 0 and 0.47 of white.
PALETTE = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#F0E442")
MISSING = "#D3D3D3"
PLAIN = "#555555"
LEVEL = 0.05
"""Adjusted p-value up to which a bar or point is drawn dark."""


def literal(label: object) -> str:
    """Escape a name so that matplotlib shows it literally: a dollar sign starts no formula."""
    return str(label).replace("$", r"\$")


def label_topics(ax: Axes, names: list[str]) -> None:
    """Label the topics under the axis: vertical and smaller where labels would overlap."""
    inches = ax.get_window_extent().width / ax.figure.dpi / len(names)
    upright = text_width(names) > 0.9 * inches
    size = min(FONT, 72 * 0.7 * inches) if upright else FONT
    ax.set_xticks(range(len(names)), list(map(literal, names)), rotation=90 if upright else 0, fontsize=size)


def text_width(labels: Iterable[object]) -> float:
    """Width of the widest label in inches, with a little to spare."""
    drawn = [literal(label) for label in labels]
    return (
        max((TextPath((0, 0), text, size=FONT).get_extents().width for text in drawn if text.strip(" ")), default=0)
        / 66
    )


def new_axes(width: float, height: float, legend: Any = ()) -> Axes:
    """Create axes of about this size in inches, with room beside them for a legend with these labels."""
    labels = list(legend)
    columns = -(-len(labels) // LEGEND_ROWS)
    room = columns * (0.5 + text_width(labels))
    return plt.subplots(figsize=(width + room, height), layout="constrained")[1]


def add_legend(ax: Axes, handles: list[Any], *, title: str) -> None:
    """Place a legend beside the axes."""
    columns = -(-len(handles) // LEGEND_ROWS)
    labels = [literal(handle.get_label()) for handle in handles]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    ax.legend(handles, labels, title=literal(title), ncols=columns, frameon=False, fontsize=FONT, **place)


def obs_column(adata: AnnData, name: str, argument: str = "groupby") -> pd.Series:
    """Return a column of obs, as a categorical unless it is numeric."""
    if name not in adata.obs:
        msg = f"`{argument}` must be a column of `adata.obs`, got {name!r}. Present: {listed(adata.obs)}."
        raise UserError(msg)
    column = adata.obs[name]
    numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return column if numbers else column.astype("category")


def category_colors(adata: AnnData, column: pd.Series, name: str | None) -> dict[Any, str]:
    """Return a colour per category: those stored by scanpy, else a colour-blind-safe palette as far as it goes."""
    categories = column.cat.categories
    palette = list(adata.uns.get(f"{name}_colors", ()))
    if len(palette) < len(categories):
        palette = list(PALETTE)
    if len(palette) < len(categories):
        from scanpy.pl.palettes import default_20, default_28, default_102

        palette = next((p for p in (default_20, default_28) if len(p) >= len(categories)), default_102)
    return {category: to_hex(palette[i % len(palette)]) for i, category in enumerate(categories)}
