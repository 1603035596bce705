"""What is read from a MuData, or an AnnData, of spots in space. No mathematics."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._anndata import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

Spatial = Any
"""An AnnData or a MuData."""
DIMENSIONS = (2, 3)


def read_slices(mdata: Spatial, sample_key: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the number of each spot's slice, and the names of the slices."""
    if sample_key is None:
        return np.zeros(mdata.n_obs, dtype=int), ["all"]
    tables = [mdata.obs, *(part.obs.reindex(mdata.obs_names) for part in getattr(mdata, "mod", {}).values())]
    column = next((table[sample_key] for table in tables if sample_key in table), None)
    if column is None:
        msg = f"`sample_key` {sample_key!r} is not in `mdata.obs`. Present: {listed(mdata.obs.columns)}."
        raise ValueError(msg)
    codes = pd.Categorical(column).remove_unused_categories()
    if (codes.codes < 0).any():
        msg = (
            f"`sample_key` {sample_key!r} must name a slice for every spot, got {int((codes.codes < 0).sum())} without."
        )
        raise ValueError(msg)
    return codes.codes.astype(int), [str(x) for x in codes.categories]


def read_coordinates(mdata: Spatial, spatial_key: str, *, slices: np.ndarray, names: list[str]) -> np.ndarray:
    """Return the coordinates, checked."""
    found = mdata.obsm.get(spatial_key, None)
    for part in getattr(mdata, "mod", {}).values():
        if found is None and spatial_key in part.obsm:
            found = np.asarray(part.obsm[spatial_key])[part.obs_names.get_indexer(mdata.obs_names)]
    if found is None:
        msg = f"`spatial_key` {spatial_key!r} is not in `mdata.obsm`. Present: {listed(mdata.obsm.keys())}."
        raise ValueError(msg)
    try:
        places = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        places = np.full((mdata.n_obs, 2), np.nan)
    if places.ndim != 2 or places.shape[1] not in DIMENSIONS:  # noqa: PLR2004
        msg = f"`mdata.obsm[{spatial_key!r}]` must have 2 or 3 dimensions, got shape {places.shape}."
        raise ValueError(msg)
    missing = int((~np.isfinite(places).all(axis=1)).sum())
    if missing:
        msg = f"`mdata.obsm[{spatial_key!r}]` must be finite numbers, got {missing} spots without. Drop them first."
        raise ValueError(msg)
    n_places = len(np.unique(np.column_stack([slices, places]), axis=0))
    for s, name in enumerate(names):
        if len(np.unique(places[slices == s], axis=0)) < 3:  # noqa: PLR2004
            msg = f"`mdata.obsm[{spatial_key!r}]` must hold at least 3 places in each slice, got fewer in {name!r}."
            raise ValueError(msg)
    if n_places < len(places):
        msg = (
            f"{len(places) - n_places} spots lie at the place of another: they are taken as several looks at one "
            f"place. "
            "If they are from several slices, name them with `sample_key`."
        )
        warnings.warn(msg, stacklevel=4)
    return places


def read_places(mdata: Spatial, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the coordinates of a stored fit's spots, the number of each spot's slice, and the slices' names."""
    slices, names = read_slices(mdata, params["sample_key"])
    with warnings.catch_warnings(action="ignore"):  # the fit has warned
        return read_coordinates(mdata, str(params["spatial_key"]), slices=slices, names=names), slices, names


def stored_fit(mdata: Spatial, key: str) -> Mapping[str, Any]:
    """Return the record of a stored spatial fit."""
    record = mdata.uns.get(key)
    if not hasattr(record, "keys") or "posterior" not in record:
        present = listed(mdata.uns.keys())
        msg = f"`key` {key!r} is not a spatial fit in `mdata.uns`. Present: {present}. Run `bcnmf_sc.tl.gpnsf` first."
        raise ValueError(msg)
    return record
