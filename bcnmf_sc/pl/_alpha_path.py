"""Draw the path over alpha of `select_alpha`."""

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
"""Lower limit of a panel: how poor a degenerate fit is does not matter."""


def alpha_path(adata: AnnData, *, key: str = "bcnmf", **kwargs: Any) -> Figure:
    """Draw the held-out scores of each alpha, and the alpha selected.

    Draws the results of :func:`bcnmf_sc.tl.select_alpha`: the gain ratio on which the selection is based, the deviance
    explained in target and background, and the stability of the topics if restarts were run. Hollow points are
    degenerate fits; the dashed line marks the selected alpha.

    Parameters
    ----------
    adata
        Annotated data with the results of :func:`bcnmf_sc.tl.select_alpha`.
    key
        The `key_added` under which they were stored.
    **kwargs
        Passed to `matplotlib.axes.Axes.plot` for every curve.

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
