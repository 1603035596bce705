"""Everything that is read from an AnnData and written to it. No mathematics."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ._utils.checks import listed, stack_level
from ._utils.errors import UserError, UserTypeError
from ._utils.files import uninterrupted
from .engine.likelihoods import LIKELIHOODS
from .engine.rows.sources import check_compressed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from .engine.likelihoods import Likelihood
    from .engine.rows.summary import Summary

CELL_FIELDS = ("role", "target_share", "enriched", "pvalue", "size_factor")
"""What a fit of any kind may write to obs, after its key: all write the role, those that score cells more."""
GENE_FIELDS = ("suppressed", "dispersion", "dropout", "deviation", "sd")
"""The same of var."""
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
        found: dict[str, np.ndarray] = {}
        matched: dict[str, Any] = {}
        for name in wanted:
            # By value, else by how it is written: numbers and booleans come as text from a command line.
            match = next((x for x in present if x == name), next((x for x in present if str(x) == str(name)), None))
            if match is not None:
                alike = [x for x in present if str(x) == str(match)]
                if len(alike) > 1 or any(x == match and text != str(name) for text, x in matched.items()):
                    two = " and ".join(map(repr, alike if len(alike) > 1 else [name, *matched.values()][:2]))
                    msg = (
                        f"`{argument}` must name categories of `adata.obs[{background_key!r}]` that can be told apart, "
                        f"got {two}. Call `.astype(str)` on the column, or rename one."
                    )
                    raise UserError(msg)
                matched[str(name)] = match
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
        mask = pd.Series(np.asarray(in_order("mask_var", mask_var, adata.var_names)))
    if len(mask) != adata.n_vars or mask.isna().any() or not pd.api.types.is_bool_dtype(mask.infer_objects()):
        got = f"{len(mask)} values of {mask.dtype}"
        msg = f"`mask_var` must be True or False for each of the {adata.n_vars} genes, got {got}."
        raise UserError(msg)
    return np.flatnonzero(mask.to_numpy(dtype=bool))


def in_order(argument: str, values: Any, names: pd.Index) -> Any:
    """Return a Series in the order of cells or genes, by their names; anything else as it is."""
    if not isinstance(values, pd.Series):
        return values
    missing = names[~names.isin(values.index)]
    if len(missing) or values.index.has_duplicates:
        what = f"none for {listed(missing, 3)}" if len(missing) else "several for one name"
        msg = (
            f"`{argument}` as a Series must have one value by name, got {what}. Pass its `.to_numpy()` to go by place."
        )
        raise UserError(msg)
    return values.reindex(names)


def read_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``X`` or a layer, cells x genes, as it is stored."""
    if layer is not None and layer not in adata.layers:
        msg = f"`layer` {layer!r} is not in `adata.layers`. Present: {listed(adata.layers.keys())}."
        raise UserError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"`adata.X` is empty. Name the `layer` that holds the data. Present: {listed(adata.layers.keys())}."
        raise UserError(msg)
    check_compressed(matrix, "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`")
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


def check_finite(n_invalid: int, layer: str | None) -> str:
    """Refuse NaN and infinity; return what the matrix is called."""
    where = "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"
    if n_invalid:
        msg = f"{where} must be finite, got {n_invalid} values that are NaN or infinite. Drop or impute them first."
        raise UserError(msg)
    return where


def check_values(summary: Summary, likelihood: Likelihood, adata: AnnData, layer: str | None) -> None:
    """Refuse values that no likelihood can have; warn of values that counts do not have."""
    where = check_finite(summary.n_invalid, layer)
    if summary.smallest < 0:
        low = summary.smallest
        msg = f"{where} must be non-negative, got {low:g}. Scaled or centred data? Use counts or their logarithms."
        raise UserError(msg)
    if likelihood.counts and summary.n_fractional:
        looks = "log-normalised" if summary.largest < 30 else "normalised"  # noqa: PLR2004 (log1p of any count is below)
        msg = (
            f"{where} holds {summary.n_fractional} values that are not whole numbers, but "
            f"`likelihood={likelihood.name!r}` models counts. Is it {looks}? Name the layer of counts with `layer=` "
            f"(present: {listed(adata.layers.keys())}), or use `likelihood='gaussian'`."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())


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
    written = [*(f"obs.{key}_{name}" for name in cells), *(f"var.{key}_{name}" for name in genes)]
    adata.uns[key] = record | {"params": recorded(record["params"] | {"written": written})}


def forget(data: Any, key: str) -> None:
    """Remove what an earlier fit of any kind wrote under the key to an AnnData, or to the whole of a MuData.

    Usage, loadings and the record, which every fit writes, are left to be written over. A column that no record names
    is the user's.
    """
    for slot, name in (each.split(".", 1) for each in written_under(data, key)):
        if slot == "obsm":
            data.obsm.pop(name, None)
        elif name in getattr(data, slot):
            setattr(data, slot, getattr(data, slot).drop(columns=name))


def written_under(data: Any, key: str) -> list[str]:
    """Return what the record of a fit says it wrote, as "obs.bcnmf_role"; nothing where there is no such record."""
    record: Any = getattr(data, "uns", {}).get(key)
    if not hasattr(record, "keys") or not {"params", "topics"} <= set(record):
        return []
    if "written" in record["params"]:
        return [str(each) for each in record["params"]["written"]]
    names = [*(f"obs.{key}_{name}" for name in CELL_FIELDS), *(f"var.{key}_{name}" for name in GENE_FIELDS)]
    return [*names, f"obsm.X_{key}_sd", f"obsm.X_{key}_umap"]  # earlier versions kept no list


def check_inputs(data: Any, key: str, *, scored: bool, **columns: str | None) -> None:
    """Refuse a key that cannot be stored, or under which a fit would replace or remove an obs column that it reads."""
    check_key(key)
    lost = {*written_under(data, key), *(f"obs.{key}_{name}" for name in CELL_FIELDS[: None if scored else 1])}
    for argument, column in columns.items():
        if f"obs.{column}" in lost:
            msg = f"`key_added` must be a name under which `{argument}` {column!r} is not replaced, got {key!r}."
            raise UserError(msg)


def add_written(record: Mapping[str, Any], name: str) -> None:
    """Note in the record of a fit what a later step wrote of it, so that the next fit removes it."""
    params = record["params"]
    if "written" in params:
        params["written"] = list(dict.fromkeys([*map(str, params["written"]), name]))


def recorded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as they are stored: which package wrote them and in which format, and without those of None.

    In an h5ad, None makes the whole file unreadable for anndata before 0.12 and for readers in R.
    """
    given = {name: value for name, value in params.items() if value is not None}
    return given | {"version": version("bcnmf-sc"), "format": FORMAT}


def asked(params: Mapping[str, Any], obs: pd.DataFrame) -> dict[str, list[str]]:
    """Return which cells and values a call with a background was asked about, to be stored and compared."""

    def words(value: Any) -> list[str]:
        return sorted(map(str, [value] if isinstance(value, str) or not isinstance(value, Iterable) else value))

    given = {name: params.get(name) for name in ("background_key", "background", "target", "layer")}
    said = {name: words(value) for name, value in given.items() if value is not None}
    if "target" not in said and params.get("background_key") in obs:  # all the rest
        said["target"] = sorted(
            {str(x) for x in obs[params["background_key"]].dropna().unique()} - {*said["background"]}
        )
    return said


def check_format(record: Mapping[str, Any], key: str) -> None:
    """Refuse what a later package has written in a format that this one does not know."""
    params = record.get("params", {})
    if int(params.get("format", FORMAT)) > FORMAT:
        msg = (
            f"`key` {key!r} must be of a format up to {FORMAT}, got {int(params['format'])}, written by bcnmf_sc "
            f"{params.get('version')}. This is bcnmf_sc {version('bcnmf-sc')}: update it."
        )
        raise UserError(msg)


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


def aligned_loadings(adata: AnnData, reference: AnnData, key: str) -> np.ndarray:
    """Return the loadings of a stored factorisation for the genes of another AnnData (zero where it lacks them)."""
    W = pd.DataFrame(np.asarray(stored_slot(reference, "varm", key)), index=reference.var_names)
    W = W[(W > 0).any(axis=1)]
    shared = W.index.intersection(adata.var_names)
    share = len(shared) / len(W)
    if share < 0.5:  # noqa: PLR2004
        msg = (
            f"`adata` must share at least half of the {len(W)} genes of the factorisation {key!r}, got {len(shared)} "
            f"({share:.0%}). Names here: {listed(adata.var_names[:3])}; there: {listed(W.index[:3])}."
        )
        msg += _where_names_match(adata, reference, W.index)
        raise UserError(msg)
    if share < 1:
        warnings.warn(
            f"{len(W) - len(shared)} of the {len(W)} genes of the factorisation {key!r} are not in `adata`.",
            UserWarning,
            stacklevel=stack_level(),
        )
    return W.reindex(adata.var_names, fill_value=0.0).to_numpy()


def _where_names_match(adata: AnnData, reference: AnnData, genes: pd.Index) -> str:
    """Say which column of ``var``, here or there, holds the other side's names of half of the genes, if any does."""
    there = reference.var.loc[genes]
    sides = {
        "adata": {column: genes.isin(adata.var[column].astype(str)).mean() for column in adata.var},
        "reference": {column: there[column].astype(str).isin(adata.var_names).mean() for column in there},
    }
    for name, share in sides.items():
        for column in share:
            if share[column] >= 0.5:  # noqa: PLR2004
                where = f"{name}.var[{column!r}]"
                return f" `{where}` holds matching names: set `{name}.var_names = {where}`."
    return ""


def stored(adata: AnnData, key: str) -> dict[str, Any]:
    """Return the record of a stored factorisation."""
    record = adata.uns.get(key)
    if not hasattr(record, "keys") or "topics" not in record:
        present = [name for name, entry in adata.uns.items() if hasattr(entry, "keys") and "topics" in entry]
        msg = (
            f"`key` {key!r} is not a factorisation in `adata.uns`. Present: {listed(present)}. "
            "Run `bcnmf_sc.tl.bcnmf` first."
        )
        raise UserError(msg)
    check_format(record, key)
    return record


def stored_slot(adata: AnnData, attribute: Literal["obsm", "varm"], name: str, *, call: str = "tl.bcnmf") -> np.ndarray:
    """Return ``adata.<attribute>[name]``, or raise the error that names the call writing it."""
    if attribute == "varm":  # which a MuData has in its modalities
        check_anndata(adata)
    slots = getattr(adata, attribute)
    if name not in slots:
        msg = f"{name!r} is not in `adata.{attribute}`. Present: {listed(slots.keys())}. Run `bcnmf_sc.{call}` first."
        raise UserError(msg)
    return slots[name]


def pick_topics(names: Iterable[str], chosen: str | Sequence[str] | None) -> list[str]:
    """Return `chosen` as a list, checked against the topics there are; all of them for None."""
    names = list(names)
    if chosen is None:
        return names
    picked = [chosen] if isinstance(chosen, str) else list(chosen)
    unknown = [topic for topic in picked if topic not in names]
    if unknown or not picked or len(set(picked)) < len(picked):
        msg = f"`topics` must be names of topics, each once, got {chosen!r}. Present: {listed(names)}."
        raise UserError(msg)
    return picked


def gene_labels(adata: AnnData, gene_symbols: str | None) -> pd.Index:
    """Return the genes' names, or their symbols where a column of them is named."""
    if gene_symbols is None:
        return adata.var_names
    if gene_symbols not in adata.var:
        present = listed(adata.var.columns)
        msg = f"`gene_symbols` must be a column of `adata.var`, got {gene_symbols!r}. Present: {present}."
        raise UserError(msg)
    symbols = adata.var[gene_symbols]
    missing = symbols.isna().to_numpy()
    labels = np.where(missing, adata.var_names.to_numpy(dtype=object), symbols.to_numpy(dtype=object))
    return pd.Index(labels, name=gene_symbols)


def stored_likelihood(adata: AnnData, reference: AnnData, key: str, used: np.ndarray) -> Likelihood:
    """Return the likelihood of a stored factorisation, with its parameters for the genes used here."""
    params = reference.uns[key].get("params", {})
    if "likelihood" not in params:
        msg = f"`key` must name a factorisation under a likelihood, got {key!r}, of DeltaNMF: fit all cells together."
        raise UserError(msg)
    kind = LIKELIHOODS[str(params["likelihood"])]
    columns = {"theta": f"{key}_dispersion", "pi": f"{key}_dropout"}
    parameters = {
        name: reference.var[columns[name]].reindex(adata.var_names[used]).to_numpy(np.float32)
        for name in (field.name for field in fields(kind))  # type: ignore[arg-type]
    }
    return kind(**parameters)
