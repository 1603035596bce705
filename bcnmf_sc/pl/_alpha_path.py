"""Draw the path over alpha of `select_alpha`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, PALETTE, PLAIN, add_title, new_panels, shown
from ._colors import side_colors

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._axes import Save

LOWEST = -0.5
"""Lower limit of a panel: how poor a degenerate fit is does not matter."""


@shown
def alpha_path(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> dict[str, Axes] | Any:
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
        Passed to `matplotlib.axes.Axes.plot` for every curve.

    Returns
    -------
    A dict of axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.select_alpha(
    ...     adata, background_key="condition", background="ctrl", n_topics=3, alphas=(0, 0.3), n_restarts=1, tol=1e-2
    ... )
    >>> bc.pl.alpha_path(adata)
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
    axes = new_panels((2.9 * len(panels), 2.7), ax, n_columns=len(panels))
    colors = {"": PALETTE[0]} | side_colors(adata, key)
    for panel, (label, curves) in zip(axes[0], panels.items(), strict=True):
        for i, (column, name) in enumerate(curves.items()):
            values = table[column].to_numpy(dtype=float)
            style: dict[str, Any] = {"color": colors[name], "ls": ("-", ":")[i], "label": name}
            panel.plot(alpha, values, **(style | kwargs))
            faces = np.where(ruined, "white", colors[name])
            panel.scatter(alpha, values, s=22, c=faces, edgecolors=colors[name], marker="os"[i], zorder=3)
        panel.axvline(float(choice["alpha"]), color=PLAIN, linestyle="--", linewidth=1, zorder=0)
        panel.set_xlabel("alpha (effective)", fontsize=FONT)
        panel.set_ylabel(label, fontsize=FONT)
        panel.tick_params(labelsize=FONT)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=max(panel.get_ylim()[0], LOWEST))
        if len(curves) > 1:
            panel.legend(frameon=False, fontsize=FONT)
    add_title(f"chosen: alpha {float(choice['alpha']):g}", axes, ax)
    return dict(zip((next(iter(curves)) for curves in panels.values()), axes[0], strict=True))
