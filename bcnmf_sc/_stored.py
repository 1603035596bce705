"""Write fits to an AnnData, and read them back with checks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from ._methods import fields_written, method_of
from ._utils.checks import listed, stack_level
from ._utils.errors import UserError
from ._utils.files import uninterrupted
from .engine.likelihoods import LIKELIHOODS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from .engine.likelihoods import Likelihood

logger = logging.getLogger(__name__)
Topics: TypeAlias = str | Sequence[str | int] | None
PARAMETERS = tuple(dict.fromkeys(each.name for kind in LIKELIHOODS.values() for each in fields(kind)))
"""Names of the parameters of all likelihoods."""
CELL_FIELDS = fields_written("obs")
GENE_FIELDS = tuple(dict.fromkeys([*fields_written("var"), *PARAMETERS]))
"""Suffixes that a fit of any kind may write to obs and var."""
FORMAT = 1
"""Version of the stored format, raised when an earlier package would misread it; records without one are the first."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


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
    notes: Mapping[str, Any] = NOTHING,
) -> None:
    """Write a factorisation to the slots named by its key, and notes to those named by the key and a suffix."""
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
    for name, note in notes.items():
        adata.uns[key + name] = note
    added(f"obsm.X_{key}", f"varm.{key}", *written, *(f"uns.{key}{name}" for name in ("", *notes)))


def added(*fields: str) -> None:
    """List the fields that a function has written, each as "obs.bcnmf_role", at the level "info"."""
    slots: dict[str, list[str]] = {}
    for each in fields:
        slot, name = each.split(".", 1)
        slots.setdefault(slot, []).append(f".{slot}[{name!r}]")
    logger.info("added %s", ",\n      ".join(", ".join(names) for names in slots.values()))


def forget(data: Any, key: str) -> None:
    """Remove the results of an earlier fit of any kind under the key from an AnnData, or the top level of a MuData.

    Usage, loadings and the record, which every fit writes, are left to be overwritten. Columns that the record does not
    list belong to the user.
    """
    for slot, name in (each.split(".", 1) for each in written_under(data, key)):
        if slot == "obsm":
            data.obsm.pop(name, None)
        elif name in getattr(data, slot):
            setattr(data, slot, getattr(data, slot).drop(columns=name))


def written_under(data: Any, key: str) -> list[str]:
    """Return what the record of a fit says it wrote, as "obs.bcnmf_role"; nothing where there is no such record."""
    record = data.uns.get(key)
    if not hasattr(record, "keys") or not {"params", "topics"} <= set(record):
        return []
    names = [*(f"obs.{key}_{name}" for name in CELL_FIELDS), *(f"var.{key}_{name}" for name in GENE_FIELDS)]
    names += [f"obsm.X_{key}_{name}" for name in fields_written("obsm")]  # earlier versions kept no list
    return [*map(str, record["params"].get("written", names)), f"obsm.X_{key}_umap"]  # which is of the fit's topics


def recorded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for storage, with the package version and format, and without those that are None.

    In an h5ad, None makes the whole file unreadable to anndata before 0.12 and to readers in R.
    """
    given = {name: value for name, value in params.items() if value is not None}
    return given | {"version": version("bcnmf-sc"), "format": FORMAT}


def question(params: Mapping[str, Any], obs: pd.DataFrame) -> dict[str, list[str]]:
    """Return which cells and values a call with a background was asked about, to be stored and compared."""

    def words(value: Any) -> list[str]:
        return sorted(map(str, [value] if isinstance(value, str) or not isinstance(value, Iterable) else value))

    given = {name: params.get(name) for name in ("background_key", "background", "target", "layer")}
    said = {name: words(value) for name, value in given.items() if value is not None}
    if "target" not in said and params.get("background_key") in obs:  # all the rest
        values = {str(value) for value in obs[params["background_key"]].dropna().unique()}
        said["target"] = sorted(values - {*said["background"]})
    return said


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


def check_format(record: Mapping[str, Any], key: str) -> None:
    """Raise if a later version of the package wrote a format that this one does not know."""
    params = record.get("params", {})
    if int(params.get("format", FORMAT)) > FORMAT:
        msg = (
            f"`key` {key!r} must be of a format up to {FORMAT}, got {int(params['format'])}, written by bcnmf_sc "
            f"{params.get('version')}. This is bcnmf_sc {version('bcnmf-sc')}: update it."
        )
        raise UserError(msg)


def stored_slot(adata: AnnData, attribute: Literal["obsm", "varm"], name: str, *, call: str = "tl.bcnmf") -> np.ndarray:
    """Return ``adata.<attribute>[name]``, or raise an error naming the call that writes it."""
    slots = getattr(adata, attribute)
    if name not in slots:
        msg = f"{name!r} is not in `adata.{attribute}`. Present: {listed(slots.keys())}. Run `bcnmf_sc.{call}` first."
        raise UserError(msg)
    return slots[name]


def stored_likelihood(adata: AnnData, reference: AnnData, key: str, used: np.ndarray) -> Likelihood:
    """Return the likelihood of a stored factorisation, with its parameters for the genes used here."""
    params = reference.uns[key].get("params", {})
    if "likelihood" not in params:
        msg = f"`key` must name a factorisation with a likelihood, got {key!r} of DeltaNMF: fit all cells together."
        raise UserError(msg)
    name = str(params["likelihood"])
    columns = {each.name: f"{key}_{each.name}" for each in fields(LIKELIHOODS[name])} if name in LIKELIHOODS else None
    if columns is None or not set(columns.values()) <= set(reference.var):
        msg = (
            f"`key` must name a factorisation with a likelihood among {listed(LIKELIHOODS)} and its parameters in "
            f"`reference.var`, got {key!r} with {name!r}."
        )
        raise UserError(msg)
    parameters = {
        parameter: reference.var[column].reindex(adata.var_names[used]).to_numpy(np.float32)
        for parameter, column in columns.items()
    }
    return LIKELIHOODS[name](**parameters)


def aligned_loadings(adata: AnnData, reference: AnnData, key: str) -> np.ndarray:
    """Return the loadings of a stored factorisation for the genes of another AnnData (zero for missing genes)."""
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
    """Suggest a column of ``var``, of either object, that matches the other's names for half of the genes, if any."""
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


def pick_topics(record: Mapping[str, Any], chosen: Topics, among: Iterable[str] | None = None) -> list[str]:
    """Return the names of the chosen topics, checked against the stored ones, or the part of them that is `among`."""
    table, names = record["topics"], [str(name) for name in record["topics"].index]
    allowed = names if among is None else [name for name in names if name in {*map(str, among)}]
    kinds = table["kind"].astype(str).to_numpy() if "kind" in table else np.full(len(names), "target")
    if chosen is None or (isinstance(chosen, str) and chosen == "all"):
        return allowed
    kind = isinstance(chosen, str) and chosen not in names
    picked: list[Any]
    if kind:
        wanted = np.isin(kinds, method_of(record).kinds)
        wanted = wanted if wanted.any() else kinds != "background"  # of a modality, whose record names no method
        of_kind = {each: kinds == each for each in kinds} | {"target": wanted, "background": ~wanted}
        kind = chosen in of_kind
        chosen_kind = of_kind.get(str(chosen), np.zeros(len(names), bool))
        picked = [name for name, take in zip(names, chosen_kind, strict=True) if take and name in allowed]
    else:
        alone = isinstance(chosen, str) or not isinstance(chosen, Iterable)  # a number alone is a misplaced `n_genes`
        picked = [chosen] if alone else [names[int(i)] if _position(i, names) else i for i in chosen]
    unknown = [topic for topic in picked if topic not in allowed]
    if unknown or not picked or len(set(picked)) < len(picked):
        rule = "'target', 'background', 'all', a name, or a list of names or positions of topics, each once"
        present = f"kinds {listed(dict.fromkeys(kinds))}" if kind else listed(allowed)
        msg = f"`topics` must be {rule}, got {chosen!r}. Present: {present}."
        raise UserError(msg)
    return picked


def _position(value: object, names: Sequence[str]) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(0 <= value < len(names))


def gene_labels(adata: AnnData, gene_symbols: str | None) -> pd.Index:
    """Return the genes' names, or their symbols from the given column."""
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
