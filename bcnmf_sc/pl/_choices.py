"""How alpha was chosen, and how far starts and folds agree on the topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt

from .. import get
from .._anndata import listed
from ._axes import FONT, MISSING, PALETTE, PLAIN, literal, new_axes, text_width

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = -0.5
"""Below this a curve leaves its panel: how bad a ruined fit is does not matter."""


def alpha_path(adata: AnnData, *, key: str = "bcnmf", **kwargs: Any) -> Figure:
    """Draw what each alpha does to cells that were held out, and which alpha was chosen.

    Draws what :func:`bcnmf_sc.tl.select_alpha` stored: the gain ratio that decides, the deviance explained of target
    and background behind it, and the stability of the topics over restarts where there were any. Hollow points are fits
    that this alpha ruins; the dashed line is the choice.

    Parameters
    ----------
    adata
        Annotated data with a stored choice of alpha.
    key
        The `key_added` under which it was stored.
    **kwargs
        Passed to `matplotlib.axes.Axes.plot` of every curve.

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.select_alpha(
    ...     adata, background_key="condition", background="ctrl", n_topics=3, alphas=(0, 0.3), n_restarts=1, tol=1e-2
    ... )
    >>> fig = bc.pl.alpha_path(adata)
    """
    if f"{key}_alpha" not in adata.uns:
        msg = (
            f"{key + '_alpha'!r} is not in `adata.uns`. Present: {listed(adata.uns)}. "
            "Run `bcnmf_sc.tl.select_alpha` first."
        )
        raise ValueError(msg)
    choice = adata.uns[f"{key}_alpha"]
    table = choice["table"]
    panels: dict[str, dict[str, str]] = {
        "held-out gain ratio": {"gain_ratio": ""},
        "deviance explained\n(held out)": {"explained_target": "target", "explained_background": "background"},
    }
    if table["stability"].notna().any():
        panels["stability of topics\n(over restarts)"] = {"stability": ""}
    alpha, ruined = table["alpha"].to_numpy(dtype=float), table["degenerate"].to_numpy(dtype=bool)
    fig, axes = plt.subplots(1, len(panels), figsize=(2.9 * len(panels), 2.7), layout="constrained", squeeze=False)
    for ax, (label, curves) in zip(axes[0], panels.items(), strict=True):
        for i, (column, name) in enumerate(curves.items()):
            values = table[column].to_numpy(dtype=float)
            style: dict[str, Any] = {"color": PALETTE[i], "ls": ("-", ":")[i], "label": name}
            ax.plot(alpha, values, **(style | kwargs))
            faces = np.where(ruined, "white", PALETTE[i])
            ax.scatter(alpha, values, s=22, c=faces, edgecolors=PALETTE[i], marker="os"[i], zorder=3)
        ax.axvline(float(choice["alpha"]), color=PLAIN, linestyle="--", linewidth=1, zorder=0)
        ax.set_xlabel("alpha (effective)", fontsize=FONT)
        ax.set_ylabel(label, fontsize=FONT)
        ax.tick_params(labelsize=FONT)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_ylim(bottom=max(ax.get_ylim()[0], LOWEST))
        if len(curves) > 1:
            ax.legend(frameon=False, fontsize=FONT)
    fig.suptitle(f"chosen: alpha {float(choice['alpha']):g}", fontsize=FONT + 1)
    return fig


def stability(adata: AnnData, *, key: str = "bcnmf", ax: Axes | None = None, **kwargs: Any) -> Axes:
    """Draw how well each topic is found again, by other starts or without a fold of the cells.

    Draws the column ``stability`` of the topics table, a cosine from 0 to 1: of a topic to its like in the restarts
    (:func:`bcnmf_sc.tl.consensus`, which also stores how many of them found it) or in the fits without a fold
    (:func:`bcnmf_sc.tl.bcnmf` with background topics and `cross_fit`). Topics without one, such as background topics,
    are left out.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
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
    >>> bc.tl.consensus(adata, background_key="condition", background="ctrl", n_topics=3, n_restarts=4, tol=1e-2)
    >>> ax = bc.pl.stability(adata)
    """
    table = get.topics(adata, key=key)
    if "stability" not in table or table["stability"].isna().all():
        msg = (
            f"`key` must name topics with a stability, got {key!r}. Present: {listed(table.columns)}. Run "
            "`bcnmf_sc.tl.consensus`, or `bcnmf_sc.tl.bcnmf` with `n_background_topics` and `cross_fit`."
        )
        raise ValueError(msg)
    table = table[table["stability"].notna()]
    names = [str(name) for name in table.index]
    if "n_members" in table:
        names = [f"{name} (found {int(n)} ×)" for name, n in zip(names, table["n_members"], strict=True)]
    if ax is None:
        ax = new_axes(2.4 + text_width(names), max(1.4, 0.2 * len(names) + 0.7))
    ax.barh(range(len(names)), table["stability"], **{"height": 0.75, "color": MISSING, "edgecolor": PLAIN, **kwargs})
    ax.set_yticks(range(len(names)), list(map(literal, names)), fontsize=FONT)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("stability (cosine)", fontsize=FONT)
    ax.tick_params(axis="x", labelsize=FONT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
