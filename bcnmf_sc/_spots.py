"""Read and check the input of spatial fits, a MuData or an AnnData of spots. No mathematics."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ._anndata import Reading, check_backed, check_key, check_names, read_genes, read_matrix
from ._mudata import check_modalities, in_memory, obs_column, of, order_of, read_weights
from ._stored import check_format
from ._utils.checks import listed, matrix_values, random_seed, stack_level, warn_of_fractions, whole_number
from ._utils.errors import UserError, UserTypeError

logger = logging.getLogger(__name__)

Spatial = Any
"""An AnnData or a MuData."""
ALONE = "values"
"""Name of the single modality of an AnnData."""
DIMENSIONS = (2, 3)
FEWEST_PLACES = 3


@dataclass(frozen=True)
class SpotModality:
    """One modality, read and checked, in the order of all spots."""

    name: str
    adata: AnnData
    order: np.ndarray
    """Row of each spot in the modality."""
    features: np.ndarray
    matrix: sparse.csr_array
    observation: Any
    size: np.ndarray
    size_name: str
    weight: float
    layer: str | None


@dataclass(frozen=True)
class Spots:
    """Checked input of a spatial fit, from a MuData or an AnnData."""

    modalities: list[SpotModality]
    slices: np.ndarray
    """Index of each spot's slice."""
    slice_names: list[str]
    coordinates: np.ndarray


def read(
    mdata: Spatial, asked: Reading, size_factors: str | Mapping[str, str | None] | None, spatial_key: str
) -> Spots:
    """Read and check all input of a spatial fit, once and in a fixed order. Raises before any work is done."""
    check_key(asked.key)
    random_seed(asked.random_state)
    for name, n in asked.sizes.items():
        whole_number(name, n, 1 if name == "n_topics" else 0)
    if isinstance(mdata, AnnData):
        check_backed(mdata, copy=asked.copy)
    parts = {ALONE: mdata} if isinstance(mdata, AnnData) else dict(getattr(mdata, "mod", {}))
    if not parts:
        msg = f"`mdata` must be a MuData with modalities or an AnnData, got {type(mdata).__name__}."
        raise UserTypeError(msg)
    if isinstance(asked.likelihood, Mapping):
        if not asked.likelihood:
            msg = "`likelihood` must name at least one modality, got an empty mapping."
            raise UserError(msg)
        check_modalities("likelihood", asked.likelihood, parts)
        parts = {name: parts[name] for name in asked.likelihood}
    for argument, given in (("size_factors", size_factors), ("weights", asked.weights), ("layer", asked.layer)):
        check_modalities(argument, given, parts)
    weight = read_weights(asked.weights, parts)
    if not mdata.obs_names.is_unique:
        msg = "`mdata.obs_names` must be unique."
        raise UserError(msg)
    modalities = []
    for name, adata in parts.items():
        check_names(adata)
        order = order_of(mdata, name, adata, argument="mdata", what="spots")
        modalities.append(
            _read_modality(
                name,
                adata,
                order,
                kind=of(asked.likelihood, name),
                size=of(size_factors, name, "library"),
                layer=of(asked.layer, name),
                mask_var=asked.mask_var,  # type: ignore[arg-type]
                weight=weight[name],
                obs=mdata.obs,
            )
        )
    most = min(mdata.n_obs, sum(len(each.features) for each in modalities))
    if (n_all := sum(asked.sizes.values())) > most:
        msg = f"`n_topics` and `n_nonspatial` must sum to at most {most} (spots or features), got {n_all}."
        raise UserError(msg)
    slices, names = read_slices(mdata, asked.sample_key)
    return Spots(modalities, slices, names, read_coordinates(mdata, spatial_key, slices=slices, names=names))


def _read_modality(
    name: str,
    adata: AnnData,
    order: np.ndarray,
    *,
    kind: str,
    size: str | None,
    layer: str | None,
    mask_var: str | None,
    weight: float,
    obs: pd.DataFrame,
) -> SpotModality:
    from .engine.gpnsf.observations import OBSERVATIONS

    where = f"`mdata[{name!r}]`" if name != ALONE else "`adata`"
    features = read_genes(adata, mask_var)
    raw = in_memory(read_matrix(adata, layer))
    matrix = sparse.csr_array(raw[order][:, features], dtype=np.float64)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    x = matrix.data
    matrix_values(where, int((~np.isfinite(x)).sum()), x.min(initial=0))
    if not len(x):
        msg = f"{where} contains only zeros in the {len(features)} features used. Check `layer` and `mask_var`."
        raise UserError(msg)
    n_fractional = int((x != np.round(x)).sum())
    if kind == "auto":
        sparse_name = any(word in name.lower() for word in ("atac", "peak"))
        kind = "bernoulli" if (x == 1).all() or sparse_name else "gaussian" if n_fractional else "nb"
    model = OBSERVATIONS[kind]
    if kind == "bernoulli" and (x != 1).any():
        msg = f"{where} contains values other than 0 and 1; values above 0 are set to 1 for `likelihood='bernoulli'`."
        warnings.warn(msg, stacklevel=stack_level())
        matrix.data = np.ones_like(x)
    elif model.counts:
        use = f"`likelihood={kind!r}` models counts ('gaussian' accepts any value)"
        warn_of_fractions(where, n_fractional, x.max(), use, adata.layers.keys())
    factors = _size_factors(name, size, matrix, adata, order, obs)
    return SpotModality(
        name, adata, order, features, matrix, model, factors, "none" if size is None else size, weight, layer
    )


def _size_factors(
    name: str, size: str | None, matrix: sparse.csr_array, adata: AnnData, order: np.ndarray, obs: pd.DataFrame
) -> np.ndarray:
    if size is None:
        return np.ones(matrix.shape[0])
    if size == "library":
        total = np.asarray(matrix.sum(1)).ravel()
        if not (total > 0).all():
            logger.info("%d spots are empty in %r and carry no information there.", int((total == 0).sum()), name)
        return total / total[total > 0].mean()
    table = adata.obs.iloc[order] if size in adata.obs else obs
    if size not in table:
        msg = (
            f"`size_factors` must be 'library', None or a column of `obs`, got {size!r}. Present: {listed(adata.obs)}."
        )
        raise UserError(msg)
    column = pd.to_numeric(table[size], errors="coerce").to_numpy(np.float64)
    if not (np.isfinite(column).all() and (column >= 0).all() and column.any()):
        got = listed(table[size].unique(), 4)
        msg = f"`size_factors` {size!r} must be finite and non-negative, and not all 0, got {got}."
        raise UserError(msg)
    if (np.asarray(matrix.sum(1)).ravel()[column == 0] > 0).any():
        msg = f"`size_factors` {size!r} must be above 0 for all spots with values, got 0."
        raise UserError(msg)
    return column


def read_slices(mdata: Spatial, sample_key: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the index of each spot's slice, and the names of the slices."""
    if sample_key is None:
        return np.zeros(mdata.n_obs, dtype=int), ["all"]
    column = obs_column(mdata, sample_key)
    if column is None:
        msg = f"`sample_key` {sample_key!r} is not in `mdata.obs`. Present: {listed(mdata.obs.columns)}."
        raise UserError(msg)
    codes = pd.Categorical(column).remove_unused_categories()
    if (codes.codes < 0).any():
        msg = (
            f"`sample_key` {sample_key!r} must name a slice for every spot, got {int((codes.codes < 0).sum())} missing."
        )
        raise UserError(msg)
    return codes.codes.astype(int), [str(x) for x in codes.categories]


def read_coordinates(mdata: Spatial, spatial_key: str, *, slices: np.ndarray, names: list[str]) -> np.ndarray:
    """Return the checked coordinates."""
    found = mdata.obsm.get(spatial_key, None)
    for part in getattr(mdata, "mod", {}).values():
        if found is None and spatial_key in part.obsm:
            found = pd.DataFrame(np.asarray(part.obsm[spatial_key]), index=part.obs_names).reindex(mdata.obs_names)
    if found is None:
        msg = f"`spatial_key` {spatial_key!r} is not in `mdata.obsm`. Present: {listed(mdata.obsm.keys())}."
        raise UserError(msg)
    try:
        places = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        places = np.full((mdata.n_obs, 2), np.nan)
    if places.shape != (mdata.n_obs, places.shape[-1]) or places.shape[-1] not in DIMENSIONS:
        msg = f"`mdata.obsm[{spatial_key!r}]` must have 2 or 3 dimensions, got shape {places.shape}."
        raise UserError(msg)
    missing = int((~np.isfinite(places).all(axis=1)).sum())
    if missing:
        msg = f"`mdata.obsm[{spatial_key!r}]` must be finite, got {missing} spots with missing values. Drop them first."
        raise UserError(msg)
    n_places = len(np.unique(np.column_stack([slices, places]), axis=0))
    for s, name in enumerate(names):
        if len(np.unique(places[slices == s], axis=0)) < FEWEST_PLACES:
            where = f"`mdata.obsm[{spatial_key!r}]`"
            msg = f"{where} must have at least {FEWEST_PLACES} positions in each slice, got fewer in {name!r}."
            raise UserError(msg)
    if n_places < len(places):
        msg = (
            f"{len(places) - n_places} spots share the position of another: they are treated as replicate observations "
            "at one position. If they are from several slices, name the slices with `sample_key`."
        )
        warnings.warn(msg, stacklevel=stack_level())
    return places


def read_places(mdata: Spatial, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the coordinates of a stored fit's spots, the index of each spot's slice, and the slices' names."""
    slices, names = read_slices(mdata, params.get("sample_key"))
    with warnings.catch_warnings(action="ignore"):  # the fit has already warned
        return read_coordinates(mdata, str(params["spatial_key"]), slices=slices, names=names), slices, names


def stored_fit(mdata: Spatial, key: str) -> Mapping[str, Any]:
    """Return the record of a stored spatial fit."""
    record = mdata.uns.get(key)
    if not hasattr(record, "keys") or "posterior" not in record:
        present = listed(mdata.uns.keys())
        msg = f"`key` {key!r} is not a spatial fit in `mdata.uns`. Present: {present}. Run `bcnmf_sc.tl.gpnsf` first."
        raise UserError(msg)
    check_format(record, key)
    return record


def correlation(kernel: str, distance: np.ndarray) -> np.ndarray:
    """Compute a kernel's correlation at distances in units of the lengthscale."""
    import torch

    from .engine.gpnsf.model import KERNELS

    return KERNELS[kernel](torch.as_tensor(distance)).numpy()


def modality_of(mdata: Spatial, name: str) -> AnnData:
    """Return a modality by its name."""
    if isinstance(mdata, AnnData) and name == ALONE:
        return mdata
    parts = getattr(mdata, "mod", {})
    if name not in parts:
        present = [ALONE] if isinstance(mdata, AnnData) else parts
        msg = f"`modality` {name!r} was not found. Present: {listed(present)}."
        raise UserError(msg)
    return parts[name]
