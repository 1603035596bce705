"""Draw how much of their usage cells spend on target topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from .._methods import method_of
from .._stored import stored
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, MISSING, PLAIN, categories_of, literal, new_axes, shown, text_width
from ._colors import category_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._axes import Save

ROW = 0.17
"""Height of the cells of one group and condition, in inches."""
CELL_FPR = 0.05
"""Of fits that do not record theirs."""


@shown
def target_share(
    adata: AnnData,
    groupby: str | Sequence[str] | None = None,
    *,
    split: str | None = None,
    sort: bool = True,
    key: str = "bcnmf",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw which cells use the target topics: the out-of-fold share by cell type and condition.

    Each point is a cell; the thick line spans the quartiles, the thin one the 5 % and 95 % quantiles, with the median
    between them. Right of the dashed line lie as many background cells as a call allows (`cell_fpr`). The numbers are
    the called cells of each group: calls compare a cell with background cells like it, not with the line.

    Parameters
    ----------
    adata
        Annotated data on which :func:`bcnmf_sc.tl.bcnmf` has run with background topics and `cross_fit`.
    groupby
        Column of `adata.obs` with the groups, such as cell types, or a list of columns, whose categories are combined;
        None for all cells together. Cells without a value are left out.
    split
        Column of `adata.obs` that divides each group; the fit's `background_key` by default.
    sort
        Whether to put the group with the largest median share on top; otherwise in the order of the categories.
    key
        The `key_added` under which the factorisation was stored.
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
        Passed to `matplotlib.axes.Axes.scatter` for the cells.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(
    ...     adata, background_key="condition", background="ctrl", sample_key="donor", n_topics=2, n_background_topics=5
    ... )
    >>> bc.pl.target_share(adata, "cell_type")
    """
    record = stored(adata, key)
    sides = method_of(record).sides
    split = split or (None if sides is None else record["params"].get(sides[0]))
    names = [groupby] if isinstance(groupby, str) else list(groupby or ())
    table, colors = _read(adata, key, names, split=split)
    n_parts = 1 if split in names else len(colors)  # lines of a group
    grouped = table.groupby(["group", "part"], observed=True)["share"].median().groupby("group", observed=True).max()
    rows = list(grouped.sort_values(ascending=False, kind="stable").index if sort else grouped.index)
    if ax is None:
        height = max(1.3, len(rows) * (n_parts * ROW + 0.08) + 0.9)
        ax = new_axes(3.6 + text_width(map(str, rows)), height)

    step = 0.84 / n_parts
    for (row, part), cells in table.groupby(["group", "part"], observed=True):
        place = list(colors).index(part) if n_parts > 1 else 0
        y = rows.index(row) + (place - (n_parts - 1) / 2) * step
        _draw(ax, cells, y=y, height=0.72 * step, **{"color": colors[part], **kwargs})
    if table["called"].notna().any():
        ax.text(1.12, 1.0, "called", transform=ax.transAxes, va="bottom", ha="right", fontsize=FONT)

    label = "share of usage on target topics, out of fold"
    null = table.loc[table["background"], "share"]
    if len(null):
        fpr = float(record["params"].get("cell_fpr", CELL_FPR))
        ax.axvline(np.quantile(null, 1 - fpr), color="black", linestyle="--", linewidth=0.9, zorder=1)
        label += f"\n(dashed: exceeded by {fpr:.0%} of background cells)"
    ax.set_xlabel(label, fontsize=FONT)
    ax.set_yticks(range(len(rows)), [literal(row) for row in rows], fontsize=FONT)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    largest = float(table["share"].max()) or 1.0
    ax.set_xlim(-0.015 * largest, 1.02 * largest)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(axis="x", labelsize=FONT)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    for edge in np.arange(1, len(rows)) - 0.5:
        ax.axhline(edge, color=MISSING, linewidth=0.5, zorder=0)
    if len(colors) > 1:
        handles = [Line2D([], [], color=shade, linewidth=4, label=literal(part)) for part, shade in colors.items()]
        place_of: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3}
        ax.legend(handles=handles, ncols=min(len(handles), 4), frameon=False, fontsize=FONT, **place_of)
    return ax


def _read(adata: AnnData, key: str, names: list[str], *, split: str | None) -> tuple[pd.DataFrame, dict[Any, str]]:
    """Return share, group, part, call and role of each cell to draw, and a colour for each part of a group."""
    column = f"{key}_target_share"
    if column not in adata.obs:
        msg = (
            f"`key` must name a fit with a target share, got {key!r}. Present: {listed(adata.obs.columns)}. Run "
            "`bcnmf_sc.tl.bcnmf` with background topics and `cross_fit` first."
        )
        raise UserError(msg)
    groups = categories_of(adata, names[0] if len(names) == 1 else names) if names else None
    parts = None if split is None else categories_of(adata, split, "split")
    table = pd.DataFrame({"share": adata.obs[column].to_numpy(dtype=float)})
    for name, values in (("group", groups), ("part", parts)):
        table[name] = pd.Categorical(["all cells"] * len(table)) if values is None else values.array
    called, role = adata.obs.get(f"{key}_enriched"), adata.obs.get(f"{key}_role")
    table["called"] = np.nan if called is None else called.to_numpy(dtype=float)
    table["background"] = False if role is None else role.isin(["background", "both"]).to_numpy()
    table = table[table[["share", "group", "part"]].notna().all(axis=1)]
    if not len(table):
        msg = f"`groupby` and `split` must both have a value for a cell with a share, got {names!r} and {split!r}."
        raise UserError(msg)
    used = set(table["part"])
    colors = {"all cells": PLAIN} if parts is None else category_colors(adata, parts, split)
    return table, {part: shade for part, shade in colors.items() if part in used}


def _draw(ax: Axes, cells: pd.DataFrame, *, y: float, height: float, **options: Any) -> None:
    """Draw cells and their quantiles at a height, and write how many are called."""
    x = cells["share"].to_numpy()
    spread = height * (np.random.default_rng(0).uniform(size=len(x)) - 0.5)
    look = {"s": 3.0, "alpha": float(np.clip(120 / len(x), 0.06, 0.5)), "linewidths": 0, "rasterized": True}
    ax.scatter(x, y + spread, **{"zorder": 1, **look, **options})
    low, first, middle, third, high = np.quantile(x, (0.05, 0.25, 0.5, 0.75, 0.95))
    for ends, width in (((low, high), 1.0), ((first, third), 4.0)):
        ax.plot(ends, [y, y], color=options["color"], linewidth=width, solid_capstyle="butt", zorder=2)
    ax.plot([middle], [y], "o", color="white", mec="black", mew=0.8, ms=4, zorder=3)
    if cells["called"].notna().any():
        where: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "ha": "right"}
        ax.text(1.12, y, f"{cells['called'].mean():.0%}", fontsize=FONT, **where)
