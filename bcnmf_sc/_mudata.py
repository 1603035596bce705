"""Everything that is read from a MuData of cells, or from a MuData or an AnnData of spots in space. No mathematics."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ._anndata import check_format, check_names, forget, read_genes, read_matrix
from ._utils.checks import listed, stack_level
from ._utils.errors import UserError, UserTypeError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

logger = logging.getLogger(__name__)

Spatial = Any
"""An AnnData or a MuData."""
ALONE = "values"
"""Name of the one modality of an AnnData."""
DIMENSIONS = (2, 3)
FEWEST_PLACES = 3


@dataclass(frozen=True)
class SpotModality:
    """One modality, read and checked, in the order of the spots of the whole."""

    name: str
    adata: AnnData
    order: np.ndarray
    """Row of each spot."""
    features: np.ndarray
    matrix: sparse.csr_array
    observation: Any
    size: np.ndarray
    size_name: str
    weight: float
    layer: str | None


def no_pull() -> AbstractContextManager[Any]:
    """As a context, make and read a MuData without copies of its modalities' columns, which mudata 0.4 never makes."""
    import mudata

    override = getattr(mudata, "set_options", None) or mudata.settings.override
    return override(pull_on_update=False)


def read_modalities(
    mdata: Spatial,
    likelihood: str | Mapping[str, str],
    size_factors: str | Mapping[str, str | None] | None,
    weights: Mapping[str, float] | None,
    layer: str | Mapping[str, str | None] | None,
    mask_var: str | None,
) -> list[SpotModality]:
    """Read all modalities. Raises before anything is done."""
    parts = {ALONE: mdata} if isinstance(mdata, AnnData) else dict(getattr(mdata, "mod", {}))
    if not parts:
        msg = f"`mdata` must be a MuData with modalities or an AnnData, got {type(mdata).__name__}."
        raise UserTypeError(msg)
    if isinstance(likelihood, Mapping):
        if not likelihood:
            msg = "`likelihood` must name at least one modality, got an empty mapping."
            raise UserError(msg)
        check_modalities("likelihood", likelihood, parts)
        parts = {name: parts[name] for name in likelihood}
    for argument, given in (("size_factors", size_factors), ("weights", weights), ("layer", layer)):
        check_modalities(argument, given, parts)
    if not mdata.obs_names.is_unique:
        msg = "`mdata.obs_names` must be unique."
        raise UserError(msg)
    read = []
    for name, adata in parts.items():
        check_names(adata)
        order = order_of(mdata, name, adata, argument="mdata", what="spots")
        read.append(
            _read_modality(
                name,
                adata,
                order,
                kind=likelihood if isinstance(likelihood, str) else likelihood[name],
                size=size_factors.get(name, "library") if isinstance(size_factors, Mapping) else size_factors,
                layer=layer.get(name) if isinstance(layer, Mapping) else layer,
                mask_var=mask_var,
                weight=float((weights or {}).get(name, 1.0)),
                obs=mdata.obs,
            )
        )
    if not all(each.weight > 0 for each in read):
        msg = "`weights` must be above 0; leave a modality out of `likelihood` to leave it out of the fit."
        raise UserError(msg)
    return read


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
    if not np.isfinite(x).all():
        msg = f"{where} must be finite, got {int((~np.isfinite(x)).sum())} values that are NaN or infinite."
        raise UserError(msg)
    if x.min(initial=0) < 0:
        msg = f"{where} must be non-negative, got {x.min():g}. Scaled or centred data? Use counts or their logarithms."
        raise UserError(msg)
    if not len(x):
        msg = f"{where} holds nothing but zeros in the {len(features)} features used. Check `layer` and `mask_var`."
        raise UserError(msg)
    whole = bool((x == np.round(x)).all())
    if kind == "auto":
        sparse_name = any(word in name.lower() for word in ("atac", "peak"))
        kind = "bernoulli" if (x == 1).all() or sparse_name else "nb" if whole else "gaussian"
    model = OBSERVATIONS[kind]
    if kind == "bernoulli" and (x != 1).any():
        msg = f"{where} holds values other than 0 and 1; all above 0 are made 1 for `likelihood='bernoulli'`."
        warnings.warn(msg, stacklevel=stack_level())
        matrix.data = np.ones_like(x)
    elif model.counts and not whole:
        msg = (
            f"{where} holds {int((x != np.round(x)).sum())} values that are not whole numbers, but "
            f"`likelihood={kind!r}` models counts. Name the layer of counts with `layer=`, or use 'gaussian'."
        )
        warnings.warn(msg, stacklevel=stack_level())
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
            logger.info("%d spots are empty in %r: they tell nothing there.", int((total == 0).sum()), name)
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
        msg = f"`size_factors` {size!r} must be finite numbers of at least 0, not all 0, got {got}."
        raise UserError(msg)
    if (np.asarray(matrix.sum(1)).ravel()[column == 0] > 0).any():
        msg = f"`size_factors` {size!r} must be above 0 wherever a spot has values, got 0."
        raise UserError(msg)
    return column


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


def forget_joint(mdata: Spatial, key: str, modalities: Sequence[str]) -> None:
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


def order_of(mdata: Spatial, name: str, part: AnnData, *, argument: str, what: str) -> np.ndarray:
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


def obs_column(mdata: Spatial, name: str | None) -> pd.Series | None:
    """Return a column of ``obs``, of the whole or else of the first modality that has it; `None` where none has."""
    tables = [mdata.obs, *(part.obs for part in getattr(mdata, "mod", {}).values())]
    found = next((table[name] for table in tables if name is not None and name in table), None)
    return None if found is None else found.reindex(mdata.obs_names)


def read_slices(mdata: Spatial, sample_key: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the number of each spot's slice, and the names of the slices."""
    if sample_key is None:
        return np.zeros(mdata.n_obs, dtype=int), ["all"]
    column = obs_column(mdata, sample_key)
    if column is None:
        msg = f"`sample_key` {sample_key!r} is not in `mdata.obs`. Present: {listed(mdata.obs.columns)}."
        raise UserError(msg)
    codes = pd.Categorical(column).remove_unused_categories()
    if (codes.codes < 0).any():
        msg = (
            f"`sample_key` {sample_key!r} must name a slice for every spot, got {int((codes.codes < 0).sum())} without."
        )
        raise UserError(msg)
    return codes.codes.astype(int), [str(x) for x in codes.categories]


def read_coordinates(mdata: Spatial, spatial_key: str, *, slices: np.ndarray, names: list[str]) -> np.ndarray:
    """Return the coordinates, checked."""
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
        msg = f"`mdata.obsm[{spatial_key!r}]` must be finite numbers, got {missing} spots without. Drop them first."
        raise UserError(msg)
    n_places = len(np.unique(np.column_stack([slices, places]), axis=0))
    for s, name in enumerate(names):
        if len(np.unique(places[slices == s], axis=0)) < FEWEST_PLACES:
            where = f"`mdata.obsm[{spatial_key!r}]`"
            msg = f"{where} must hold at least {FEWEST_PLACES} places in each slice, got fewer in {name!r}."
            raise UserError(msg)
    if n_places < len(places):
        msg = (
            f"{len(places) - n_places} spots lie at the place of another: they are taken as several looks at one "
            "place. If they are from several slices, name them with `sample_key`."
        )
        warnings.warn(msg, stacklevel=stack_level())
    return places


def read_places(mdata: Spatial, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the coordinates of a stored fit's spots, the number of each spot's slice, and the slices' names."""
    slices, names = read_slices(mdata, params.get("sample_key"))
    with warnings.catch_warnings(action="ignore"):  # the fit has warned
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


def modality_of(mdata: Spatial, name: str) -> AnnData:
    """Return a modality by its name."""
    if isinstance(mdata, AnnData) and name == ALONE:
        return mdata
    parts = getattr(mdata, "mod", {})
    if name not in parts:
        present = [ALONE] if isinstance(mdata, AnnData) else parts
        msg = f"`modality` {name!r} is not there. Present: {listed(present)}."
        raise UserError(msg)
    return parts[name]
