"""Draw the scores of several methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, MISSING, PALETTE, PLAIN, literal, new_axes, shown, text_width

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ._axes import Save

METHOD_NAMES = {
    "pca": "PCA",
    "cpca": "cPCA",
    "nmf": "NMF",
    "bcnmf": "bcNMF",
    "bcnmf_split": "bcNMF, split",
    "bcnmf_shared": "bcNMF, shared",
}
BOUNDS = {"ari": 1.0, "ami": 1.0, "silhouette": 1.0, "auc": 1.0, "auc_share": 1.0}
"""Largest value of a score."""


@shown
def compare(
    table: pd.DataFrame,
    *,
    score: str = "ari",
    label: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw a score of several methods: the median over seeds as a bar, each seed as a point (paper, Fig. 3c).

    The points show the variation over initialisations, the error bar (the median bootstrap standard error) the
    sampling variation over cells or donors.

    Parameters
    ----------
    table
        Table returned by :func:`bcnmf_sc.metrics.compare`.
    score
        Column to draw. `ari` has error bars.
    label
        Label of the axis; the name of the score by default.
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
        Passed to `matplotlib.axes.Axes.bar`.

    Returns
    -------
    The axes if `show` is False, else None.

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
    >>> bc.pl.compare(table)
    """
    if score not in table or score in ("method", "alpha", "n_topics", "seed", "n_folds"):
        msg = f"`score` must be a column with a score, got {score!r}. Present: {listed(table.columns)}."
        raise UserError(msg)
    drawn = table[table[score].notna()]
    if not len(drawn):
        msg = f"`score` must have values, got {score!r} with none."
        raise UserError(msg)
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
        error = np.array([runs[i][1][f"{score}_se"].median() for i in known], float)
        at = np.array([middle[i] for i in known], float)
        most = BOUNDS.get(score, np.inf)
        up = np.minimum(error, np.maximum(most - at, 0))  # an error bar must not leave what is possible
        ax.errorbar(known, at, yerr=np.array([error, up]), fmt="none", ecolor="black", elinewidth=1, capsize=3)
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
