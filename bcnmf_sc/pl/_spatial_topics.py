"""Draw maps of spatial topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._spots import read_places, stored_fit
from .._stored import pick_topics
from .._utils.checks import listed, one_of
from .._utils.errors import UserError
from ._axes import literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.figure import Figure
    from mudata import MuData

PANEL = 2.4  # inches


def spatial_topics(
    mdata: AnnData | MuData,
    *,
    key: str = "gpnsf",
    topics: str | Sequence[str] | None = None,
    show: Literal["usage", "sd", "both"] = "both",
    sample: str | None = None,
    dimensions: tuple[int, int] = (0, 1),
    **kwargs: Any,
) -> Figure:
    """Draw maps of topic usage over space, with its standard deviation below.

    There is one column per topic; the y axis points down, as in scanpy's and squidpy's images. Colours range from zero
    to the 99th percentile of each map.

    Parameters
    ----------
    mdata
        MuData or AnnData with a stored spatial fit.
    key
        Name of the fit.
    topics
        Names of the topics to draw, in this order; None for all.
    show
        What to draw: the usage, its posterior standard deviation, or both.
    sample
        Slice to draw; may be None if there is only one.
    dimensions
        Which two of the coordinates to draw.
    **kwargs
        Passed to `matplotlib.axes.Axes.scatter`.

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> mdata = bc.datasets.simulated_spatial()
    >>> bc.tl.gpnsf(mdata, n_topics=4, max_iter=60, tol=0.01)
    >>> fig = bc.pl.spatial_topics(mdata, topics=["Topic 1", "Topic 2"])
    """
    from matplotlib import pyplot as plt

    record = stored_fit(mdata, key)
    one_of("show", show, ("usage", "sd", "both"))
    rows = ["usage", "sd"] if show == "both" else [show]
    names = pick_topics(record["topics"].index, topics)
    coordinates, slices, samples = read_places(mdata, record["params"])
    if (sample is None and len(samples) > 1) or (sample is not None and sample not in samples):
        msg = f"`sample` must name one of the slices, got {sample!r}. Present: {listed(samples)}."
        raise UserError(msg)
    here = slices == (0 if sample is None else samples.index(sample))
    x, y = coordinates[here][:, list(dimensions)].T
    values = {"usage": mdata.obsm["X_" + key], "sd": mdata.obsm[f"X_{key}_sd"]}

    ratio = float(np.clip(np.ptp(y) / max(np.ptp(x), 1e-12), 0.4, 2.5))
    size = (PANEL * len(names) + 0.4, (PANEL * ratio + 0.5) * len(rows))
    fig, axes = plt.subplots(len(rows), len(names), figsize=size, squeeze=False, layout="constrained")
    spacing = PANEL * 72 / max(np.sqrt(len(x) / ratio), 1)  # spacing of spots in points, if they lay on a grid
    options = {
        "s": float(np.clip(spacing**2, 0.5, 60)),
        "linewidths": 0,
        "rasterized": True,
        "cmap": "viridis",
    } | kwargs
    for i, what in enumerate(rows):
        for j, name in enumerate(names):
            ax = axes[i, j]
            shade = np.asarray(values[what])[here, list(record["topics"].index).index(name)]
            limits = {"vmin": 0.0, "vmax": float(np.quantile(shade, 0.99))}
            drawn = ax.scatter(x, y, c=shade, **(limits | options))
            fig.colorbar(drawn, ax=ax, shrink=0.8, label="usage" if what == "usage" else "sd of usage")
            ax.set(aspect="equal", xticks=[], yticks=[])
            ax.invert_yaxis()
            if i == 0:
                moran = record["topics"].loc[name, "moran_i"]
                ax.set_title(f"{literal(name)}\nMoran's I {moran:.2f}", fontsize=9)
    return fig
