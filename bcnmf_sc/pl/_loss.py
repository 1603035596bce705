"""Draw the convergence of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._stored import stored
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, PALETTE, PLAIN, add_title, literal, new_panels, shown

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._axes import Save


@shown
def loss(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> dict[str, Axes] | Any:
    """Draw the convergence of a fit: the loss on target and background, and the change of the loadings, by iteration.

    The background's loss has its own panel, if there is a background. Neither loss has to decrease monotonically:
    convergence is judged by the change of the loadings, relative to the tolerance (dashed line).

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation.
    key
        The `key_added` under which it was stored.
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
        Passed to `matplotlib.axes.Axes.plot` for every panel.

    Returns
    -------
    A dict of axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> bc.pl.loss(adata)
    """
    record = stored(adata, key)
    if "loss" not in record:
        msg = f"`key` must name a fit with a stored loss, got {key!r}. Present: {listed(record)}."
        raise UserError(msg)
    table = record["loss"]
    titles = {"target": "loss on target", "background": "loss on background", "change": "change of loadings"}
    panels = [name for name in titles if name == "target" or np.any(np.nan_to_num(table.get(name, 0.0)) != 0)]
    axes = new_panels((3.2 * len(panels), 2.8), ax, n_columns=len(panels))
    for panel, name in zip(axes[0], panels, strict=True):
        drawn = table.loc[table[name] > 0] if name == "change" else table
        panel.plot(drawn["iteration"], drawn[name], **{"color": PALETTE[0], "marker": ".", "markersize": 4, **kwargs})
        panel.set_title(titles[name])
        panel.set_xlabel("iteration")
        panel.xaxis.get_major_locator().set_params(integer=True)
        if name == "change":
            panel.set_yscale("log")
            tol = record.get("params", {}).get("tol")
            if tol:
                panel.axhline(tol, color=PLAIN, linestyle="--", linewidth=1, label=f"tolerance {tol:g}")
                panel.legend(frameon=False, fontsize=FONT)
        else:
            panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    if "converged" in record:
        ended = "converged" if record["converged"] else "not converged"
        n_iter = record.get("n_iter", table["iteration"].iloc[-1])
        add_title(f"{literal(key)}: {ended} after {n_iter} iterations", axes, ax)
    return dict(zip(panels, axes[0], strict=True))
