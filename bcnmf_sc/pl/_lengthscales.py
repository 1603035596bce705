"""Draw the lengthscale of each spatial topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._spots import correlation, stored_fit
from ._axes import FONT, PALETTE, literal, new_axes, shown

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData

    from ._axes import Save


@shown
def lengthscales(
    mdata: AnnData | MuData,
    *,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw the prior correlation of each spatial topic against distance.

    The dot marks the lengthscale. Topics with little usage are drawn as thin lines.

    Parameters
    ----------
    mdata
        MuData or AnnData with a stored spatial fit.
    key
        Name of the fit.
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
        Passed to `matplotlib.axes.Axes.plot`.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> mdata = bc.datasets.simulated_spatial()
    >>> bc.tl.gpnsf(mdata, n_topics=4, max_iter=60, tol=0.01)
    >>> bc.pl.lengthscales(mdata)
    """
    record = stored_fit(mdata, key)
    table = record["topics"]
    table = table[table["kind"] == "spatial"]
    if ax is None:
        ax = new_axes(5.0, 3.4)
    kernel = str(record["params"]["kernel"])
    distance = np.linspace(0, 3 * table["lengthscale"].max(), 200)
    top = max(table["spatial_importance"].max(), 1e-12)
    for k, (name, row) in enumerate(table.iterrows()):
        width = 0.8 + 2 * row["spatial_importance"] / top
        options = {"color": PALETTE[k % len(PALETTE)], "linewidth": width, "label": literal(name)}
        options["linestyle"] = ("-", "--", ":")[k // len(PALETTE) % 3]
        (line,) = ax.plot(distance, correlation(kernel, distance / row["lengthscale"]), **(options | kwargs))
        ax.plot(row["lengthscale"], correlation(kernel, np.ones(1))[0], marker="o", color=line.get_color())
    ax.set(
        xlabel="distance, in units of the coordinates",
        ylabel="correlation of log usage",
        ylim=(0, 1.02),
        xlim=(0, None),
    )
    ax.legend(frameon=False, fontsize=FONT, ncols=1 + len(table) // 12)
    return ax
