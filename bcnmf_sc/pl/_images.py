"""Draw topics as images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt

from .. import get
from .._stored import pick_topics
from .._utils.errors import UserError
from ._axes import (
    FONT,
    literal,
    text_width,
)
from ._bubbles import mean_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.figure import Figure


def images(
    adata: AnnData,
    groupby: str | None = None,
    *,
    key: str = "bcnmf",
    shape: tuple[int, int] | None = None,
    topics: str | Sequence[str] | None = None,
    n_columns: int = 5,
    **kwargs: Any,
) -> Figure:
    """Draw topics over pixels as images, or the mean image of each group reconstructed from them (Fig. 2c).

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation of images.
    groupby
        None draws the loadings of each topic; a column of `adata.obs` draws the mean usage of each group times the
        loadings of the chosen topics.
    key
        The `key_added` under which the factorisation was stored.
    shape
        Numbers of rows and columns of an image; `adata.uns["image_shape"]` by default.
    topics
        Names of the topics, in this order; None for all.
    n_columns
        Number of images per row.
    **kwargs
        Passed to `matplotlib.axes.Axes.imshow`.

    Returns
    -------
    The figure.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.digits()
    >>> bc.tl.nmf(adata, n_topics=3, likelihood="gaussian", tol=1e-2)
    >>> fig = bc.pl.images(adata, key="nmf")
    >>> fig = bc.pl.images(adata, "digit", key="nmf")
    """
    w = get.loadings(adata, key=key)
    names = pick_topics(w.columns, topics)
    if shape is None:
        shape = tuple(int(side) for side in adata.uns.get("image_shape", ()))  # type: ignore[assignment]
    if not shape or np.prod(shape) != adata.n_vars:
        msg = f"`shape` must be the rows and columns of images of {adata.n_vars} pixels, got {shape or None}."
        raise UserError(msg)
    if groupby is None:
        pictures = {str(name): w[name].to_numpy() for name in names}
    else:
        rebuilt = mean_usage(adata, groupby, key)[names].to_numpy() @ w[names].to_numpy().T
        groups = mean_usage(adata, groupby, key).index
        pictures = {str(group): picture for group, picture in zip(groups, rebuilt, strict=True)}
    n_columns = min(n_columns, len(pictures))
    n_rows = -(-len(pictures) // n_columns)
    side = max(1.1, text_width(pictures) + 0.1)
    fig, axes = plt.subplots(
        n_rows, n_columns, figsize=(side * n_columns, 1.35 * n_rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        ax.imshow(picture.reshape(shape), **{"cmap": "Greys_r", "interpolation": "nearest", "vmin": 0, **kwargs})
        ax.set_title(literal(name), fontsize=FONT)
    return fig
