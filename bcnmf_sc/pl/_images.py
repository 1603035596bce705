"""Draw topics as images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import get
from .._stored import pick_topics, stored
from .._utils.errors import UserError
from ._axes import FONT, literal, new_panels, shown, text_width
from ._bubbles import mean_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

    from .._stored import Topics
    from ._axes import Save


@shown
def images(
    adata: AnnData,
    groupby: str | Sequence[str] | None = None,
    *,
    key: str = "bcnmf",
    shape: tuple[int, int] | None = None,
    topics: Topics = "target",
    n_columns: int = 5,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> list[Axes] | Any:
    """Draw topics over pixels as images, or the mean image of each group reconstructed from them (Fig. 2c).

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation of images.
    groupby
        None draws the loadings of each topic; a column of `adata.obs`, or a list of columns, draws the mean usage of
        each group times the loadings of the chosen topics.
    key
        The `key_added` under which the factorisation was stored.
    shape
        Numbers of rows and columns of an image; `adata.uns["image_shape"]` by default.
    topics
        Topics to draw: "target", "background" or "all"; a name; or a list of names or positions, in this order.
    n_columns
        Number of images per row.
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
        Passed to `matplotlib.axes.Axes.imshow`.

    Returns
    -------
    The list of axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.digits()
    >>> bc.tl.nmf(adata, n_topics=3, likelihood="gaussian", tol=1e-2)
    >>> bc.pl.images(adata, key="nmf")
    >>> bc.pl.images(adata, "digit", key="nmf")
    """
    w = get.loadings(adata, key=key)
    names = pick_topics(stored(adata, key), topics)
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
    axes = new_panels((side * n_columns, 1.35 * n_rows), ax, n_rows=n_rows, n_columns=n_columns)
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        panel.imshow(picture.reshape(shape), **{"cmap": "Greys_r", "interpolation": "nearest", "vmin": 0, **kwargs})
        panel.set_title(literal(name), fontsize=FONT)
    return list(axes.flat[: len(pictures)])
