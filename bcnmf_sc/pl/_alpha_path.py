"""Draw what `select_alpha` found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt

from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, PALETTE, PLAIN

if TYPE_CHECKING:
    from anndata import AnnData
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
        raise UserError(msg)
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
