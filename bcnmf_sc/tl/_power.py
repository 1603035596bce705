"""How many donors a study needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from .. import get
from .._stored import pick_topics, stored
from .._utils.errors import UserError
from ._design import INDEPENDENT, OFFSET, moderated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MOST = 1000
"""Donors a side that are tried."""


def power(
    adata: AnnData,
    *,
    key: str = "bcnmf",
    fold_change: float = 2.0,
    power: float = 0.8,
    p_value: float = 0.05,
    topics: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Compute how many donors a side would show a fold change of each topic's usage.

    Takes the deviation :math:`s` of donors within a condition from this study, or from a pilot, moderated over all
    topics as in the test itself. With :math:`n` donors a side and a difference :math:`\delta` of log shares, the test's
    t has the noncentral distribution with noncentrality :math:`\delta / (s \sqrt{2 / n})` and :math:`2 n - 2` degrees
    of freedom plus those of the moderation.

    Parameters
    ----------
    adata
        Annotated data on which `bcnmf` has run with background topics, ``cross_fit`` and ``sample_key``, with at least
        2 donors in one condition.
    key
        Name of the factorisation.
    fold_change
        Of the share of usage, against the background's mean share; below 1 for a loss.
    power
        Probability with which the test is to find it.
    p_value
        Two-sided level of the test. For ten target topics of which one differs, ask for 0.05 / 10.
    topics
        Topics: "target", "background" or "all"; a name; or a list of names. All by default.

    Returns
    -------
    A row per topic: ``share`` (geometric mean in the background's donors); ``deviation`` of donors, in log2 shares;
    ``log2_fold_change`` that the fold change comes to, with the offset of 0.001 that the test adds to shares;
    ``n_donors`` needed in each condition, NaN where 1,000 do not do; ``n_now``, the smaller number of donors here, and
    ``power_now`` with so many in each condition.

    Raises
    ------
    ValueError
        An argument is not as said above, or there is no table of donors.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated(donor_effect=0.1)
    >>> adata.obs["donor"] = adata.obs["donor"].str[-1]  # as if the same three had given cases and controls
    >>> roles = {"background_key": "condition", "background": "ctrl", "sample_key": "donor"}
    >>> bc.tl.bcnmf(adata, **roles, n_topics=2, n_background_topics=5, tol=1e-2)
    >>> bc.tl.power(adata, fold_change=1.5).columns.tolist()
    ['share', 'deviation', 'log2_fold_change', 'n_donors', 'n_now', 'power_now']
    """
    if not (np.isfinite(fold_change) and fold_change > 0 and fold_change != 1):
        msg = f"`fold_change` must be above 0 and other than 1, got {fold_change}."
        raise UserError(msg)
    for name, value in (("power", power), ("p_value", p_value)):
        if not 0 < value < 1:
            msg = f"`{name}` must be between 0 and 1, got {value}."
            raise UserError(msg)
    table = get.donors(adata, key=key)
    names = list(get.topics(adata, key=key).index)
    chosen = pick_topics(stored(adata, key), topics)
    target = (table["condition"] == "target").to_numpy(dtype=float)
    n_sides = int(target.sum()), int((1 - target).sum())
    if len(table) < 3 or min(n_sides) < 1:  # noqa: PLR2004
        msg = f"`adata` must have two conditions and 2 donors in one of them, got {n_sides[0]} and {n_sides[1]} donors."
        raise UserError(msg)
    y = np.log2(table[names].to_numpy(np.float64) + OFFSET)
    X = np.column_stack([np.ones(len(y)), target])
    effects = moderated(y, X, np.array([0.0, 1.0]), n=table["n_cells"].to_numpy(np.float64))
    prior_df = max(effects.df - (len(y) - 2), 0)
    share = np.maximum(2 ** y[target == 0].mean(0) - OFFSET, 0)
    delta = np.log2((fold_change * share + OFFSET) / (share + OFFSET))

    n = np.arange(2, MOST + 1)[:, None]
    reached = _power(delta, effects.deviation, n, prior_df, p_value)
    enough = reached >= power
    needed = np.where(enough.any(0), n[enough.argmax(0), 0], np.nan)
    n_now = max(min(n_sides), 2)
    found = {
        "share": share,
        "deviation": effects.deviation,
        "log2_fold_change": delta,
        "n_donors": needed,
        "n_now": min(n_sides),
        "power_now": reached[n_now - 2] if min(n_sides) > 1 else np.nan,
    }
    return pd.DataFrame(found, index=pd.Index(names, name="topic")).loc[chosen]


def _power(delta: np.ndarray, deviation: np.ndarray, n: np.ndarray, prior_df: float, level: float) -> np.ndarray:
    """Power of the two-sided moderated t with n donors a side."""
    df = np.minimum(2 * n - 2 + prior_df, INDEPENDENT * (2 * n - 2))
    shift = np.abs(delta) / (deviation * np.sqrt(2 / n))
    # beyond ten deviations the test cannot miss, and the noncentral distribution loses its digits
    return np.asarray(stats.nct.sf(stats.t.isf(level / 2, df), df, np.minimum(shift, 10.0)))
