"""Everything that is read from an AnnData and written to it. No mathematics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ._utils.checks import listed, matrix_values, warn_of_fractions
from ._utils.errors import UserError, UserTypeError
from ._utils.files import uninterrupted
from .engine.rows.sources import check_compressed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from .engine.likelihoods import Likelihood
    from .engine.rows.summary import Summary

CELL_FIELDS = ("role", "target_share", "enriched", "pvalue", "size_factor")
GENE_FIELDS = ("suppressed", "dispersion", "dropout", "deviation", "sd")
"""What a fit of any kind may write to obs and var, after its key."""
FORMAT = 1
"""Of what is written. Raised when an earlier package would misread it; what has none is the first."""
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
    words: tuple[str, str, str] = ("background_key", "background", "target"),
    *,
    partial: bool = False,
) -> Design:
    """Split the cells by an obs column; ``words`` are what the caller's arguments are called.

    If ``partial``, categories may be absent, as long as some cell has a part.
    """
    check_anndata(adata)
    if background_key not in adata.obs:
        msg = f"`{words[0]}` {background_key!r} is not in `adata.obs`. Present: {listed(adata.obs.columns)}."
        raise UserError(msg)
    column = pd.Categorical(adata.obs[background_key])
    present = [name for code, name in enumerate(column.categories) if (column.codes == code).any()]

    def cells_of(argument: str, value: Any) -> dict[str, np.ndarray]:
        wanted = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
        found = {}
        for name in wanted:
            # By value, else by how it is written: numbers and booleans come as text from a command line.
            match = next((x for x in present if x == name), next((x for x in present if str(x) == str(name)), None))
            if match is not None:
                found[str(name)] = np.asarray(column == match)
            elif partial:
                found[str(name)] = np.zeros(len(column), bool)
        missing = [name for name in wanted if str(name) not in found]
        if missing or not wanted:
            got = listed(missing) if missing else "none"
            msg = (
                f"`{argument}` must name categories of `adata.obs[{background_key!r}]`, got {got}. "
                f"Present: {listed(present)}."
            )
            raise UserError(msg)
        return found

    backgrounds = cells_of(words[1], background)
    labelled = column.codes >= 0
    if isinstance(target, str) and target == "all" and "all" not in present:
        is_target = labelled
    elif target is None:
        is_target = labelled & ~np.any(list(backgrounds.values()), axis=0)
    else:
        is_target = np.any(list(cells_of(words[2], target).values()), axis=0)
    if partial and not is_target.any() and not np.any(list(backgrounds.values())):
        wanted = f"{words[1]} {listed(backgrounds)} or {words[2]} {target!r}"
        msg = f"No cell of `adata.obs[{background_key!r}]` is of {wanted}. Present: {listed(present)}."
        raise UserError(msg)
    if not partial and not is_target.any():
        msg = (
            f"No {words[2]} cells are left: every category of `adata.obs[{background_key!r}]` ({listed(present)}) is "
            f"in `{words[1]}`. Name fewer, or pass `{words[2]}='all'`."
        )
        raise UserError(msg)
    return Design(is_target, backgrounds)


def read_samples(adata: AnnData, sample_key: str) -> pd.Categorical:
    """Return the donor of each cell."""
    if sample_key not in adata.obs:
        msg = f"`sample_key` {sample_key!r} is not in `adata.obs`. Present: {listed(adata.obs.columns)}."
        raise UserError(msg)
    return pd.Categorical(adata.obs[sample_key])


def read_genes(adata: AnnData, mask_var: MaskVar) -> np.ndarray:
    """Return the numbers of the genes to use."""
    if mask_var is None or (isinstance(mask_var, str) and mask_var == "auto" and "highly_variable" not in adata.var):
        return np.arange(adata.n_vars)
    if isinstance(mask_var, str):
        name = "highly_variable" if mask_var == "auto" else mask_var
        if name not in adata.var:
            msg = f"`mask_var` {name!r} is not in `adata.var`. Present: {listed(adata.var.columns)}."
            raise UserError(msg)
        mask = adata.var[name]
    else:
        mask = mask_var.reindex(adata.var_names) if isinstance(mask_var, pd.Series) else pd.Series(np.asarray(mask_var))
    if len(mask) != adata.n_vars or mask.isna().any() or not pd.api.types.is_bool_dtype(mask.infer_objects()):
        got = f"{len(mask)} values of {mask.dtype}"
        msg = f"`mask_var` must be True or False for each of the {adata.n_vars} genes, got {got}."
        raise UserError(msg)
    return np.flatnonzero(mask.to_numpy(dtype=bool))


def read_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``X`` or a layer, cells x genes, as it is stored."""
    if layer is not None and layer not in adata.layers:
        msg = f"`layer` {layer!r} is not in `adata.layers`. Present: {listed(adata.layers.keys())}."
        raise UserError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"`adata.X` is empty. Name the `layer` that holds the data. Present: {listed(adata.layers.keys())}."
        raise UserError(msg)
    check_compressed(matrix, matrix_name(layer))
    return matrix


def check_anndata(adata: object, argument: str = "adata") -> None:
    """Refuse what is no AnnData; of a MuData say what takes it."""
    from anndata import AnnData

    if isinstance(adata, AnnData):
        return
    msg = f"`{argument}` must be an AnnData, got {type(adata).__name__}."
    if hasattr(adata, "mod"):
        msg += (
            " Fits that take a MuData are `bcnmf_sc.tl.bcnmf` and `bcnmf_sc.tl.gpnsf`; to anything else pass one "
            f"modality, as `mdata[{next(iter(adata.mod), 'rna')!r}]`."
        )
    raise UserTypeError(msg)


def check_names(adata: AnnData, argument: str = "adata") -> None:
    """Refuse names that stand twice: tables of the result could not be read by name."""
    for axis, index in (("obs", adata.obs_names), ("var", adata.var_names)):
        if index.duplicated().any():  # `is_unique` of a slice is wrong in pandas 2.2
            twice = index[index.duplicated()].unique()
            msg = (
                f"`{argument}.{axis}_names` must be unique, got {listed(twice)} more than once. "
                f"Call `{argument}.{axis}_names_make_unique()`."
            )
            raise UserError(msg)


def matrix_name(layer: str | None) -> str:
    """Return what ``X`` or a layer is called in messages."""
    return "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"


def check_values(summary: Summary, likelihood: Likelihood, layer: str | None) -> None:
    """Refuse values that no likelihood can have; warn of values that counts do not have."""
    where = matrix_name(layer)
    matrix_values(where, summary.n_invalid, summary.smallest)
    if likelihood.counts:
        use = f"`likelihood={likelihood.name!r}` models counts and 'gaussian' takes any"
        warn_of_fractions(where, summary.n_fractional, summary.largest, use)


@uninterrupted()
def write(
    adata: AnnData,
    key: str,
    *,
    used: np.ndarray,
    W: np.ndarray,
    H: np.ndarray,
    cells: Mapping[str, Any],
    genes: Mapping[str, np.ndarray],
    record: dict[str, Any],
) -> None:
    """Write a factorisation into the slots that carry its key."""
    forget(adata, key)
    loadings = np.zeros((adata.n_vars, W.shape[1]), np.float32)
    loadings[used] = W
    adata.obsm["X_" + key] = np.asarray(H, np.float32)
    adata.varm[key] = loadings
    for name, values in cells.items():
        adata.obs[f"{key}_{name}"] = values
    for name, values in genes.items():
        column = (
            np.zeros(adata.n_vars, values.dtype) if values.dtype == bool else np.full(adata.n_vars, np.nan, np.float32)
        )
        column[used] = values
        adata.var[f"{key}_{name}"] = column
    adata.uns[key] = record | {"params": recorded(record["params"])}


def forget(data: Any, key: str) -> None:
    """Remove what an earlier fit of any kind wrote under the key to an AnnData, or to the whole of a MuData.

    Usage, loadings and the record, which every fit writes, are left to be written over.
    """
    for axis, names in (("obs", CELL_FIELDS), ("var", GENE_FIELDS)):
        table = getattr(data, axis)
        stale = [f"{key}_{name}" for name in names if f"{key}_{name}" in table]
        if stale:
            setattr(data, axis, table.drop(columns=stale))
    data.obsm.pop(f"X_{key}_sd", None)


def recorded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as they are stored: which package wrote them and in which format, and without those of None.

    In an h5ad, None makes the whole file unreadable for anndata before 0.12 and for readers in R.
    """
    given = {name: value for name, value in params.items() if value is not None}
    return given | {"version": version("bcnmf-sc"), "format": FORMAT}


def check_key(key: object) -> None:
    """Refuse names that cannot be stored in a file."""
    if not isinstance(key, str) or key in ("", ".") or "/" in key or "\0" in key:
        msg = f"`key_added` must be a name without '/' (a file could not hold it), got {key!r}."
        raise UserError(msg)


def check_backed(adata: AnnData, *, copy: bool) -> None:
    """Refuse what is no AnnData, and what one backed by a file cannot do: be copied, take results as a view."""
    check_anndata(adata)
    if adata.isbacked and adata.is_view:
        msg = "`adata` must not be a view of an AnnData that is backed by a file. Call `adata.to_memory()` first."
        raise UserError(msg)
    if adata.isbacked and copy:
        msg = (
            "`copy` must be False for an AnnData that is backed by a file, got True. Results are written to `adata` in "
            "memory; the file stays as it is. Store them with `adata.copy(new_file)`, or call `adata.to_memory()`."
        )
        raise UserError(msg)
