"""Draw the stability of topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import get
from .._utils.checks import listed
from .._utils.errors import UserError
from ._axes import FONT, MISSING, PLAIN, literal, new_axes, shown, text_width

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._axes import Save


@shown
def stability(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Save = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Any:
    """Draw the stability of each topic over restarts or cross-validation fits.

    Draws the column ``stability`` of the topics table: the mean cosine similarity, from 0 to 1, to the matching topic
    in the restarts (:func:`bcnmf_sc.tl.consensus`, which also stores how many of them found it) or in the
    cross-validation fits (:func:`bcnmf_sc.tl.bcnmf` with background topics and `cross_fit`). Topics without a
    stability, such as background topics, are left out.

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
        Passed to `matplotlib.axes.Axes.barh`.

    Returns
    -------
    The axes if `show` is False, else None.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.consensus(adata, background_key="condition", background="ctrl", n_topics=3, n_restarts=4, tol=1e-2)
    >>> bc.pl.stability(adata)
    """
    table = get.topics(adata, key=key)
    if "stability" not in table or table["stability"].isna().all():
        msg = (
            f"`key` must name a fit with the stability of its topics, got {key!r}. Present: {listed(table.columns)}. "
            "Run `bcnmf_sc.tl.consensus`, or `bcnmf_sc.tl.bcnmf` with `n_background_topics` and `cross_fit`."
        )
        raise UserError(msg)
    table = table[table["stability"].notna()]
    names = [str(name) for name in table.index]
    if "n_members" in table:
        names = [f"{name} (found {int(n)} ×)" for name, n in zip(names, table["n_members"], strict=True)]
    if ax is None:
        ax = new_axes(2.4 + text_width(names), max(1.4, 0.2 * len(names) + 0.7))
    ax.barh(range(len(names)), table["stability"], **{"height": 0.75, "color": MISSING, "edgecolor": PLAIN, **kwargs})
    ax.set_yticks(range(len(names)), list(map(literal, names)), fontsize=FONT)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("stability (cosine)", fontsize=FONT)
    ax.tick_params(axis="x", labelsize=FONT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
