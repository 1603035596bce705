"""Draw topic usage by group."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from .. import get
from .._stored import pick_topics, stored
from .._utils.errors import UserError
from ._axes import (
    MISSING,
    ROW_TOPICS,
    add_legend,
    categories_of,
    in_rows,
    label_of,
    label_topics,
    new_axes,
    obs_column,
    shown,
    text_width,
)
from ._colors import category_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save


@shown
def usage(
    adata: AnnData,
    groupby: str | Sequence[str] | None = None,
    *,
    key: str = "bcnmf",
    sample_key: str | None = None,
    topics: Topics = "target",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw box plots of each topic's share of usage by group, over the group's donors or over all of its cells.

    The box spans the quartiles with a line at the median; the whiskers extend to 1.5 times its height. Cells are
    rasterised points with a fixed horizontal jitter. With `sample_key`, a large point is the mean over a donor's cells,
    which is what :func:`bcnmf_sc.tl.associate` compares, and the box is over these points.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    groupby
        Column of `adata.obs` with the groups (categories, strings or booleans), or a list of columns. None for the
        cells' role in the factorisation, `adata.obs[key + "_role"]`. Cells without a value are left out.
    key
        The `key_added` under which the factorisation was stored.
    sample_key
        Column of `adata.obs` with the donors; None draws boxes over cells.
    topics
        Topics to draw: "target", "background" or "all"; a name; or a list of names or positions, in this order.
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
        Passed to `matplotlib.axes.Axes.boxplot`.

    Returns
    -------
    The axes if `show` is False, a list of them for more than 22 topics, which are drawn in rows; else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.pl.usage(adata, groupby="condition")
    """
    share = get.usage(adata, key=key, normalize=True)
    names = pick_topics(stored(adata, key), topics)
    column = f"{key}_role" if groupby is None else label_of(groupby)
    groups = categories_of(adata, column if groupby is None else groupby)
    used = set(groups.dropna())
    colors = {category: c for category, c in category_colors(adata, groups, column).items() if category in used}
    if not colors:
        msg = f"`groupby` must have a value for at least one cell, got {column!r} with none."
        raise UserError(msg)

    donors = None if sample_key is None else obs_column(adata, sample_key, "sample_key").astype("category")

    n_groups, n_topics = len(colors), len(names)
    inches = min(20.0, max(4.0, min(n_topics, ROW_TOPICS) * (0.14 * n_groups + 0.12)) + 0.8)
    if ax is None and n_topics > ROW_TOPICS:
        row = partial(usage, adata, groupby, key=key, sample_key=sample_key, **kwargs)
        return in_rows(row, names, size=(inches, 2.2 + text_width(names)), legend=map(str, colors))
    if ax is None:
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
