"""Shared by all plots: what becomes of a figure, axes and legends, literal labels and their widths."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.textpath import TextPath

from .._settings import settings
from .._utils.checks import listed
from .._utils.errors import UserError
from .._utils.files import check_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
Save: TypeAlias = str | PathLike[str] | bool | None

FONT = 8.0  # points, for labels by the dozen
LEGEND_ROWS = 18
ROW_TOPICS = 22
"""Topics side by side; more are drawn in several rows."""
AND = " / "
"""Between the values of several columns."""
LEAST_DPI = 150
"""Of a saved figure, unless matplotlib's `savefig.dpi` is set."""
# Okabe and Ito's colour-blind-safe colours; in grey the first four have 0.34, 0.64, 0 and 0.47 of white.
PALETTE = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#F0E442")
MISSING = "#D3D3D3"
PLAIN = "#555555"
LEVEL = 0.05
"""Adjusted p-value up to which a bar or point is drawn dark."""


def shown(draw: Callable[P, R]) -> Callable[P, R]:
    """Give a plot that returns its axes scanpy's `show`, `save` and `return_fig`, which its signature lists."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        show, save, return_fig = (kwargs.pop(name, None) for name in ("show", "save", "return_fig"))
        if show not in (None, True, False):
            msg = f"`show` must be True, False or None, got {show!r}."
            raise UserError(msg)
        own = kwargs.get("ax") is None  # given axes belong to the caller's figure, which they show when it is done
        place = _place(save, draw.__name__)
        axes: Any = draw(*args, **kwargs)
        figure = figure_of(axes)
        if place is not None:
            wanted = mpl.rcParams["savefig.dpi"]
            dpi = max(figure.dpi, LEAST_DPI) if wanted == "figure" else wanted
            figure.savefig(place, bbox_inches="tight", dpi=dpi)
            logger.log(logging.WARNING if Path(place).parent == _folder(save) else logging.INFO, "saved %s", place)
        if show is None:
            show = own and not return_fig and settings.autoshow
        if show and mpl.get_backend().lower() != "agg":  # which has no screen, and warns
            plt.show()
        if place is not None and own:
            plt.close(figure)
        return figure if return_fig else None if show else axes

    return drawn


def figure_of(axes: Any) -> Figure:
    """Return the figure of axes, or of the first in a list or dict of them."""
    if isinstance(axes, Mapping):
        axes = list(axes.values())
    first: Axes = axes[0] if isinstance(axes, list) else axes
    return first.figure  # type: ignore[return-value]


def _folder(save: Save) -> Path | None:
    """Return scanpy's folder of figures for a `save` that is no path."""
    if not save or (save is not True and Path(save).suffix):
        return None
    import scanpy as sc

    return Path(sc.settings.figdir)


def _place(save: Save, name: str) -> Path | None:
    """Return the file that `save` asks for: a path with a suffix, or scanpy's name in scanpy's folder."""
    if save is None or save is False:
        return None
    folder = _folder(save)
    if folder is None:
        known = FigureCanvasBase.get_supported_filetypes()
        if Path(fspath(save)).suffix[1:].lower() not in known:  # type: ignore[arg-type]
            msg = (
                f"`save` must end in a suffix that matplotlib can write, got {str(save)!r}. Known: {listed(known, 99)}."
            )
            raise UserError(msg)
        return check_place(save, "save")  # type: ignore[arg-type]
    import scanpy as sc

    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}{'' if save is True else fspath(save)}.{sc.settings.file_format_figs}"


def literal(label: object) -> str:
    """Escape a name so that matplotlib shows it literally: a dollar sign starts no formula."""
    return str(label).replace("$", r"\$")


def label_topics(ax: Axes, names: list[str]) -> None:
    """Label the topics under the axis: vertical and smaller where labels would overlap."""
    inches = ax.get_window_extent().width / ax.figure.dpi / len(names)
    upright = text_width(names) > 0.9 * inches
    size = min(FONT, 72 * 0.7 * inches) if upright else FONT
    ax.set_xticks(range(len(names)), list(map(literal, names)), rotation=90 if upright else 0, fontsize=size)


def in_rows(draw: Callable[..., Any], names: list[str], *, size: tuple[float, float], legend: Any) -> list[Axes]:
    """Draw topics side by side, as many as can be read in a row of this size; `draw` takes `topics` and `ax`."""
    rows = [names[start : start + ROW_TOPICS] for start in range(0, len(names), ROW_TOPICS)]
    width = size[0] + 0.5 + text_width(legend)
    axes = list(new_panels((width, size[1] * len(rows)), None, n_rows=len(rows))[:, 0])
    for ax, row in zip(axes, rows, strict=True):
        draw(topics=row, ax=ax)
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    first = axes[0].get_xticklabels()[0]
    for ax in axes:
        ax.set_ylim(low, high)
        ax.set_xlim(-0.5, ROW_TOPICS - 0.5)
        for label in ax.get_xticklabels():
            label.set(rotation=first.get_rotation(), fontsize=first.get_fontsize())
        if ax is not axes[0] and ax.get_legend() is not None:
            ax.get_legend().remove()
    return axes


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


def new_panels(
    size: tuple[float, float], ax: Axes | None, *, n_rows: int = 1, n_columns: int = 1, **ratios: Any
) -> np.ndarray:
    """Create a grid of axes: in a new figure of about this size in inches, or in the place of the given axes."""
    if ax is None:
        figure = plt.figure(figsize=size, layout="constrained")
        return figure.subplots(n_rows, n_columns, squeeze=False, **ratios)
    place = ax.get_subplotspec()
    if place is None:
        msg = "`ax` must be made by `plt.subplots` or `figure.add_subplot`, got axes with a place of their own."
        raise UserError(msg)
    ax.set_axis_off()
    grid = place.subgridspec(n_rows, n_columns, **ratios)
    axes = [[ax.figure.add_subplot(grid[i, j]) for j in range(n_columns)] for i in range(n_rows)]
    return np.array(axes, dtype=object)


def add_title(text: str, axes: np.ndarray, ax: Axes | None) -> None:
    """Write a title above all panels."""
    if ax is None:
        axes.flat[0].figure.suptitle(text, fontsize=FONT + 1)
    else:
        ax.set_title(text, fontsize=FONT + 1, pad=20)


def add_legend(ax: Axes, handles: list[Any], *, title: str) -> None:
    """Place a legend beside the axes."""
    columns = -(-len(handles) // LEGEND_ROWS)
    labels = [literal(handle.get_label()) for handle in handles]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    ax.legend(handles, labels, title=literal(title), ncols=columns, frameon=False, fontsize=FONT, **place)


def obs_column(adata: AnnData, name: str | Sequence[str], argument: str = "groupby") -> pd.Series:
    """Return a column of obs, as a categorical unless it is numeric; of several, the combinations of their values."""
    if not isinstance(name, str):
        columns = [categories_of(adata, each, argument) for each in name]
        codes = np.zeros(adata.n_obs, dtype=int)
        for column in columns:
            codes = np.where(
                (codes < 0) | (column.cat.codes < 0), -1, codes * len(column.cat.categories) + column.cat.codes
            )
        every = itertools.product(*(column.cat.categories for column in columns))
        joined = pd.Categorical.from_codes(codes, [AND.join(map(str, each)) for each in every])
        return pd.Series(joined.remove_unused_categories(), index=adata.obs_names, name=label_of(name))
    if name not in adata.obs:
        msg = f"`{argument}` must be a column of `adata.obs`, got {name!r}. Present: {listed(adata.obs)}."
        raise UserError(msg)
    column = adata.obs[name]
    numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return column if numbers else column.astype("category")


def categories_of(adata: AnnData, name: str | Sequence[str], argument: str = "groupby") -> pd.Series:
    """Return a column of obs as a categorical, or the combinations of several; raise if it is numeric."""
    column = obs_column(adata, name, argument)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        msg = f"`{argument}` must be a categorical column, got {name!r} with numbers. Use `.astype('category')` on it."
        raise UserError(msg)
    return column


def label_of(name: str | Sequence[str]) -> str:
    """Return the name of a column, or the names of several, for a label."""
    return name if isinstance(name, str) else AND.join(name)
