"""Draw the effect of each topic, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import get
from .._stored import pick_topics, stored
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, MISSING, PLAIN, literal, new_axes, shown, text_width
from ._colors import side_colors

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save


@shown
def topics_forest(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    topics: Topics = "target",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw how much more the target uses each topic than the background, with 95 % intervals.

    A point is the log2 fold change of the donors' mean shares, out of fold, and its line the interval, as
    :func:`bcnmf_sc.tl.bcnmf` stored them. Called topics are drawn in colour, others in grey; an interval that crosses
    the dashed line at 0 is compatible with no change. Where cells were the units there is a point and no interval.

    Parameters
    ----------
    adata
        Annotated data on which :func:`bcnmf_sc.tl.bcnmf` has run with background topics and `cross_fit`.
    key
        The `key_added` under which it was stored.
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
        Passed to `matplotlib.axes.Axes.plot` for the points.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(donor_effect=0.1)
    >>> adata.obs["donor"] = adata.obs["donor"].str[-1]  # as if the same three had given cases and controls
    >>> roles = {"background_key": "condition", "background": "ctrl", "sample_key": "donor"}
    >>> bc.tl.bcnmf(adata, **roles, n_topics=2, n_background_topics=5, tol=1e-2)
    >>> bc.pl.topics_forest(adata)
    """
    table = get.topics(adata, key=key)
    if "log2_fold_change" not in table:
        msg = (
            f"`key` must name topics with effects, got {key!r}. Present: {listed(table.columns)}. Run "
            "`bcnmf_sc.tl.bcnmf` with background topics, `cross_fit` and `sample_key`."
        )
        raise UserError(msg)
    table = table.loc[pick_topics(stored(adata, key), topics)]
    names = [str(name) for name in table.index]
    colors = side_colors(adata, key)
    if ax is None:
        ax = new_axes(3.0 + text_width(names), max(1.4, 0.22 * len(names) + 0.8))
    ax.axvline(0, color=PLAIN, linewidth=0.8, linestyle="--", zorder=0)
    for row, (low, effect, high, called, of) in enumerate(
        table[["ci_low", "log2_fold_change", "ci_high", "called", "kind"]].itertuples(index=False)
    ):
        color = colors[of] if called else MISSING
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [row, row], color=color, linewidth=1.5, solid_capstyle="butt")
        ax.plot([effect], [row], **{"marker": "o", "color": color, "markersize": 5, "linestyle": "none", **kwargs})
    ax.set_yticks(range(len(names)), list(map(literal, names)), fontsize=FONT)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("log2 fold change, target over background", fontsize=FONT)
    ax.tick_params(axis="x", labelsize=FONT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
