"""Draw the convergence of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt

from .._stored import stored
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import (
    FONT,
    PALETTE,
    PLAIN,
    literal,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure


def loss(adata: AnnData, *, key: str = "bcnmf", **kwargs: Any) -> Figure:
    """Draw the convergence of a fit: the loss on target and background, and the change of the loadings, by iteration.

    The background's loss has its own panel, if there is a background. Neither loss has to decrease monotonically:
    convergence is judged by the change of the loadings, relative to the tolerance (dashed line).

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
    **kwargs
        Passed to `matplotlib.axes.Axes.plot` for every panel.

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> fig = bc.pl.loss(adata)
    """
    record = stored(adata, key)
    if "loss" not in record:
        msg = f"`key` must name a fit with a stored loss, got {key!r}. Present: {listed(record)}."
        raise UserError(msg)
    table = record["loss"]
    titles = {"target": "loss on target", "background": "loss on background", "change": "change of loadings"}
    panels = [name for name in titles if name == "target" or np.any(np.nan_to_num(table.get(name, 0.0)) != 0)]
    fig, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.8), layout="constrained", squeeze=False)
    for ax, name in zip(axes[0], panels, strict=True):
        drawn = table.loc[table[name] > 0] if name == "change" else table
        ax.plot(drawn["iteration"], drawn[name], **{"color": PALETTE[0], "marker": ".", "markersize": 4, **kwargs})
        ax.set_title(titles[name])
        ax.set_xlabel("iteration")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if name == "change":
            ax.set_yscale("log")
            tol = record.get("params", {}).get("tol")
            if tol:
                ax.axhline(tol, color=PLAIN, linestyle="--", linewidth=1, label=f"tolerance {tol:g}")
                ax.legend(frameon=False, fontsize=FONT)
        else:
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    if "converged" in record:
        ended = "converged" if record["converged"] else "not converged"
        fig.suptitle(f"{literal(key)}: {ended} after {record.get('n_iter', table['iteration'].iloc[-1])} iterations")
    return fig
