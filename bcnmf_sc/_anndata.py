"""Everything that is read from an AnnData and written to it. No mathematics."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from .engine.likelihoods import Likelihood
    from .engine.sources import Summary

MaskVar = str | np.ndarray | Literal["auto"] | None


@dataclass(frozen=True)
class Design:
    """Which cells are target, which background."""

    target: np.ndarray
    """Bool per cell."""
    backgrounds: dict[str, np.ndarray]
    """Bool per cell, for each background category."""

    @property
    def background(self) -> np.ndarray:
        """Cells of any background."""
        return np.any([*self.backgrounds.values(), np.zeros_like(self.target)], axis=0)

    @property
    def role(self) -> pd.Categorical:
        """What each cell is in the fit."""
        codes = self.target + 2 * self.background.astype(int)
        names = np.array(["projected", "target", "background", "both"])
        return pd.Categorical(names[codes], categories=["target", "background", "both", "projected"])


def read_design(
    adata: AnnData,
    background_key: str,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None,
) -> Design:
    """Split the cells by an obs column."""
    if background_key not in adata.obs:
        msg = f"`background_key` {background_key!r} is not in `adata.obs`. Present: {_names(adata.obs.columns)}."
        raise KeyError(msg)
    column = adata.obs[background_key]
    labels = column.astype(str).where(column.notna()).to_numpy()  # a missing label is no category
    present = sorted({x for x in labels if isinstance(x, str)})

    def categories(argument: str, value: str | Sequence[str] | Mapping[str, float]) -> list[str]:
        wanted = [value] if isinstance(value, str) else [str(x) for x in value]
        missing = [x for x in wanted if x not in present]
        if missing or not wanted:
            found = f"got {_names(missing)}" if missing else "got none"
            msg = f"`{argument}` must name categories of `adata.obs[{background_key!r}]`, {found}. Present: {_names(present)}."
            raise ValueError(msg)
        return wanted

    chosen = categories("background", [background] if isinstance(background, (bool, int, float)) else background)
    backgrounds = {name: labels == name for name in chosen}
    is_background = np.any(list(backgrounds.values()), axis=0)
    if isinstance(target, str) and target == "all" and "all" not in present:
        is_target = np.isin(labels.astype(str), present)
    elif target is None:
        is_target = np.isin(labels.astype(str), present) & ~is_background
    else:
        is_target = np.isin(labels.astype(str), categories("target", target))
    if not is_target.any():
        msg = (
            f"No target cells are left: every category of `adata.obs[{background_key!r}]` ({_names(present)}) is in "
            "`background`. Name fewer, or pass `target='all'`."
        )
        raise ValueError(msg)
    return Design(is_target, backgrounds)


def read_genes(adata: AnnData, mask_var: MaskVar) -> np.ndarray:
    """Return the numbers of the genes to use."""
    if mask_var is None or (isinstance(mask_var, str) and mask_var == "auto" and "highly_variable" not in adata.var):
        return np.arange(adata.n_vars)
    if isinstance(mask_var, str):
        name = "highly_variable" if mask_var == "auto" else mask_var
        if name not in adata.var:
            msg = f"`mask_var` {name!r} is not in `adata.var`. Present: {_names(adata.var.columns)}."
            raise KeyError(msg)
        mask = adata.var[name]
    else:
        mask = pd.Series(np.asarray(mask_var))
    if len(mask) != adata.n_vars or mask.isna().any() or not pd.api.types.is_bool_dtype(mask.infer_objects()):
        msg = f"`mask_var` must be True or False for each of the {adata.n_vars} genes, got {len(mask)} values of {mask.dtype}."
        raise ValueError(msg)
    return np.flatnonzero(mask.to_numpy(dtype=bool))


def read_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``X`` or a layer, cells x genes, as it is stored."""
    if layer is not None and layer not in adata.layers:
        msg = f"`layer` {layer!r} is not in `adata.layers`. Present: {_names(adata.layers.keys())}."
        raise KeyError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"`adata.X` is empty. Name the `layer` that holds the data. Present: {_names(adata.layers.keys())}."
        raise ValueError(msg)
    return matrix


def check_names(adata: AnnData) -> None:
    """Refuse names that stand twice: tables of the result could not be read by name."""
    for axis, index in (("obs", adata.obs_names), ("var", adata.var_names)):
        if not index.is_unique:
            twice = index[index.duplicated()].unique()
            msg = f"`adata.{axis}_names` must be unique, got {_names(twice)} more than once. Call `adata.{axis}_names_make_unique()`."
            raise ValueError(msg)


def check_values(summary: Summary, likelihood: Likelihood, adata: AnnData, layer: str | None) -> None:
    """Refuse values that no likelihood can have; warn of values that counts do not have."""
    where = "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"
    if summary.n_invalid:
        msg = f"{where} must be finite, got {summary.n_invalid} values that are NaN or infinite. Drop or impute them first."
        raise ValueError(msg)
    if summary.smallest < 0:
        msg = f"{where} must be non-negative, got {summary.smallest:g}. Scaled or centred data? Use counts or their logarithms."
        raise ValueError(msg)
    if likelihood.counts and summary.n_fractional:
        looks = "log-normalised" if summary.largest < 30 else "normalised"  # noqa: PLR2004 (log1p of any count is below)
        msg = (
            f"{where} holds {summary.n_fractional} values that are not whole numbers, but `likelihood={likelihood.name!r}` "
            f"models counts. Is it {looks}? Name the layer of counts with `layer=` (present: {_names(adata.layers.keys())}), "
            "or use `likelihood='gaussian'`."
        )
        warnings.warn(msg, UserWarning, stacklevel=4)


def write(
    adata: AnnData,
    key: str,
    *,
    genes: np.ndarray,
    W: np.ndarray,
    H: np.ndarray,
    role: pd.Categorical | None,
    suppressed: np.ndarray | None,
    record: dict[str, Any],
) -> None:
    """Write a factorisation into the slots that carry its key."""
    loadings = np.zeros((adata.n_vars, W.shape[1]), np.float32)
    loadings[genes] = W
    adata.obsm["X_" + key] = np.asarray(H, np.float32)
    adata.varm[key] = loadings
    if role is not None:
        adata.obs[key + "_role"] = pd.Categorical(role)
    if suppressed is not None:
        flags = np.zeros(adata.n_vars, bool)
        flags[genes] = suppressed
        adata.var[key + "_suppressed"] = flags
    adata.uns[key] = record


def aligned_loadings(adata: AnnData, reference: AnnData, key: str) -> np.ndarray:
    """Loadings of a stored factorisation for the genes of another AnnData (zero where it lacks them)."""
    W = pd.DataFrame(np.asarray(reference.varm[key]), index=reference.var_names)
    W = W[(W > 0).any(axis=1)]
    shared = W.index.intersection(adata.var_names)
    share = len(shared) / len(W)
    if share < 0.5:  # noqa: PLR2004
        msg = (
            f"`adata` must share at least half of the {len(W)} genes of the factorisation {key!r}, got {len(shared)} "
            f"({share:.0%}). Names here: {_names(adata.var_names[:3])}; there: {_names(W.index[:3])}."
        )
        column = next((c for c in adata.var if W.index.isin(adata.var[c].astype(str)).mean() >= 0.5), None)  # noqa: PLR2004
        if column is not None:
            msg += f" `adata.var[{column!r}]` holds matching names: set `adata.var_names = adata.var[{column!r}]`."
        raise ValueError(msg)
    if share < 1:
        warnings.warn(
            f"{len(W) - len(shared)} of the {len(W)} genes of the factorisation {key!r} are not in `adata`.",
            UserWarning,
            stacklevel=3,
        )
    return W.reindex(adata.var_names, fill_value=0.0).to_numpy()


def stored(adata: AnnData, key: str) -> dict[str, Any]:
    """Return the record of a stored factorisation."""
    if key not in adata.uns or key not in adata.varm or "topics" not in adata.uns[key]:
        msg = f"`key` {key!r} is not a factorisation in `adata.uns`. Present: {_names(adata.uns.keys())}. Run `bcnmf_sc.tl.bcnmf` first."
        raise KeyError(msg)
    return adata.uns[key]


def _names(items: Any, most: int = 8) -> str:
    items = list(items)
    shown = ", ".join(repr(str(x)) for x in items[:most])
    return (shown or "none") + (f" and {len(items) - most} more" if len(items) > most else "")
