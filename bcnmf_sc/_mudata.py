"""Everything that is read from and written to a MuData. No mathematics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ._anndata import forget
from ._utils.checks import listed
from ._utils.errors import UserError, UserTypeError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def in_memory(matrix: Any) -> Any:
    """Return the values as an array or a SciPy matrix."""
    for method in ("to_memory", "compute"):
        matrix = getattr(matrix, method)() if hasattr(matrix, method) else matrix
    return matrix.tocsr() if sparse.issparse(matrix) else np.asarray(matrix)


def check_weights(weights: object) -> None:
    """Refuse weights that are not named by modality."""
    if weights is not None and not isinstance(weights, Mapping):
        msg = f"`weights` must be a mapping of modalities to numbers, as {{'rna': 2.0}}, or None, got {weights!r}."
        raise UserTypeError(msg)


def forget_joint(mdata: Any, key: str, modalities: Sequence[str]) -> None:
    """Remove what an earlier fit of the same key wrote to the whole, and to modalities, those of the new fit or not."""
    forget(mdata, key)
    for name, part in getattr(mdata, "mod", {}).items():
        record = part.uns.get(key)
        joint = hasattr(record, "keys") and "modalities" in record.get("params", {})
        if name in modalities or joint:  # a fit of another modality alone, under the same name, is none of ours
            forget(part, key)
        if name not in modalities and joint:
            del part.uns[key]
            part.varm.pop(key, None)


def check_modalities(argument: str, given: object, parts: Mapping[str, Any]) -> None:
    """Refuse a mapping of what are no modalities."""
    unknown = [name for name in given if name not in parts] if isinstance(given, Mapping) else []
    if unknown:
        msg = f"`{argument}` must name modalities, got {listed(unknown)}. Present: {listed(parts)}."
        raise UserError(msg)


def order_of(mdata: Any, name: str, part: AnnData, *, argument: str, what: str) -> np.ndarray:
    """Return the row in a modality of each cell or spot of the whole."""
    order = part.obs_names.get_indexer(mdata.obs_names)
    if (order < 0).any():
        msg = (
            f"`{argument}` must have the same {what} in all modalities, got {int((order < 0).sum())} of {mdata.n_obs} "
            f"without {name!r}. Keep those that have all (`muon.pp.intersect_obs`), or name other modalities in "
            "`likelihood`."
        )
        raise UserError(msg)
    return order


def obs_column(mdata: Any, name: str | None) -> pd.Series | None:
    """Return a column of ``obs``, of the whole or else of the first modality that has it; `None` where none has."""
    tables = [mdata.obs, *(part.obs for part in getattr(mdata, "mod", {}).values())]
    found = next((table[name] for table in tables if name is not None and name in table), None)
    return None if found is None else found.reindex(mdata.obs_names)
