"""Draw maps of spatial topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._spots import read_places, stored_fit
from .._stored import pick_topics
from .._utils.checks import listed, one_of, whole_number
from .._utils.errors import UserError
from ._axes import literal, new_panels, shown

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData

    from .._stored import Topics
    from ._axes import Save

PANEL = 2.4  # inches


@shown
def spatial_topics(
    mdata: AnnData | MuData,
    *,
    key: str = "gpnsf",
    topics: Topics = "target",
    quantity: Literal["usage", "sd", "both"] = "both",
    sample: str | None = None,
    dimensions: tuple[int, int] = (0, 1),
    ncols: int = 4,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> list[Axes] | Any:
    """Draw maps of topic usage over space, with its standard deviation below.

    There is one map per topic; the y axis points down, as in scanpy's and squidpy's images. Colours range from zero
    to the 99th percentile of each map.

    Parameters
    ----------
    mdata
        MuData or AnnData with a stored spatial fit.
    key
        Name of the fit.
    topics
        Topics to draw: "target", "background" or "all"; a name; or a list of names or positions, in this order.
    quantity
        What to draw: the usage, its posterior standard deviation, or both.
    sample
        Slice to draw; may be None if there is only one.
    dimensions
        Which two of the coordinates to draw.
    ncols
        Topics per row.
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
        Passed to `matplotlib.axes.Axes.scatter`; `size` too, scanpy's name for the area of a spot.

    Returns
    -------
    The list of axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> mdata = bc.datasets.simulated_spatial()
    >>> bc.tl.gpnsf(mdata, n_topics=4, max_iter=60, tol=0.01)
    >>> bc.pl.spatial_topics(mdata, topics=["Topic 1", "Topic 2"])
    """
    record = stored_fit(mdata, key)
    one_of("quantity", quantity, ("usage", "sd", "both"))
    whole_number("ncols", ncols, 1)
    rows = ["usage", "sd"] if quantity == "both" else [quantity]
    names = pick_topics(record, topics)
    coordinates, slices, samples = read_places(mdata, record["params"])
    if (sample is None and len(samples) > 1) or (sample is not None and sample not in samples):
        msg = f"`sample` must name one of the slices, got {sample!r}. Present: {listed(samples)}."
        raise UserError(msg)
    here = slices == (0 if sample is None else samples.index(sample))
    x, y = coordinates[here][:, list(dimensions)].T
    values = {"usage": mdata.obsm["X_" + key], "sd": mdata.obsm[f"X_{key}_sd"]}

    ratio = float(np.clip(np.ptp(y) / max(np.ptp(x), 1e-12), 0.4, 2.5))
    n_columns = min(ncols, len(names))
    n_rows = -(-len(names) // n_columns) * len(rows)
    size = (PANEL * n_columns + 0.4, (PANEL * ratio + 0.5) * n_rows)
    axes = new_panels(size, ax, n_rows=n_rows, n_columns=n_columns)
    for panel in axes.flat:
        panel.set_axis_off()
    spacing = PANEL * 72 / max(np.sqrt(len(x) / ratio), 1)  # spacing of spots in points, if they lay on a grid
    options = {
        "s": float(np.clip(spacing**2, 0.5, 60)),
        "linewidths": 0,
        "rasterized": True,
        "cmap": "viridis",
    } | {"s" if name == "size" else name: value for name, value in kwargs.items()}
    drawn_on = []
    for i, what in enumerate(rows):
        for j, name in enumerate(names):
            panel = axes[j // n_columns * len(rows) + i, j % n_columns]
            drawn_on.append(panel)
            shade = np.asarray(values[what])[here, list(record["topics"].index).index(name)]
            limits = {"vmin": 0.0, "vmax": float(np.quantile(shade, 0.99))}
            drawn = panel.scatter(x, y, c=shade, **(limits | options))
            panel.figure.colorbar(drawn, ax=panel, shrink=0.8, label="usage" if what == "usage" else "sd of usage")
            panel.set_axis_on()
            panel.set(aspect="equal", xticks=[], yticks=[])
            panel.invert_yaxis()
            if i == 0:
                moran = record["topics"].loc[name, "moran_i"]
                panel.set_title(f"{literal(name)}\nMoran's I {moran:.2f}", fontsize=9)
    return drawn_on
