"""Read and check all input of a fit from an AnnData, once and in a fixed order. No mathematics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd

from ._depth import LARGEST_LOG, looks_logged
from ._methods import METHODS
from ._stored import CELL_FIELDS, added, question, write
from ._utils.checks import listed, matrix_values, random_seed, warn_of_fractions, whole_number
from ._utils.errors import UserError, UserTypeError
from .engine.likelihoods import Gaussian, as_likelihood
from .engine.rows.open import row_source
from .engine.rows.sources import check_compressed
from .engine.rows.summary import Groups, summarise

if TYPE_CHECKING:
    from anndata import AnnData

    from .engine.likelihoods import Likelihood
    from .engine.rows.sources import RowSource

logger = logging.getLogger(__name__)
MaskVar = str | np.ndarray | Literal["auto"] | None
T = TypeVar("T")
LONGEST_KEY = 200
"""Bytes; a file's name may have 255, and the key comes with more before and after it."""
WORDS = ("background_key", "background", "target")


@dataclass(frozen=True)
class Design:
    """Target and background cells."""

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
        """Role of each cell in the fit."""
        codes = self.target + 2 * self.background.astype(int)
        names = np.array(["projected", "target", "background", "both"])
        return pd.Categorical(names[codes], categories=["target", "background", "both", "projected"])


@dataclass(frozen=True)
class Reading:
    """Arguments of a fit that select its input, as given by the caller."""

    key: str
    """Key of the results, ``key_added``."""
    copy: bool
    background_key: str | None = None
    """If None, `cells` are the target."""
    background: str | Sequence[str] | Mapping[str, float] = ()
    target: str | Sequence[str] | None = None
    words: tuple[str, str, str] = WORDS
    """Names of the three arguments above."""
    partial: bool = False
    """Whether categories may be absent, as long as some cell has a role."""
    apart: bool = False
    """Whether target and background must not overlap."""
    needs_target: bool = True
    writes: tuple[str, ...] = ()
    """Columns of cells that the fit will write, after the key; none where no fit is stored."""
    cells: np.ndarray | None = None
    sample_key: str | None = None
    strata_key: str | None = None
    likelihood: str | Likelihood | Mapping[str, str | Likelihood] | None = None
    """If None, values may have any sign."""
    weights: Mapping[str, float] | None = None
    confounders: Sequence[str] = ()
    columns: Sequence[str] = ()
    """Further columns of ``obs``, which a formula names."""
    layer: str | Mapping[str, str | None] | None = None
    mask_var: MaskVar | Mapping[str, MaskVar] = "auto"
    exclude_genes: Sequence[str] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of topics by argument name: at least 1, and at most the number of cells and of genes."""
    n_background_topics: Any = 0
    """0 also if the number is to be selected."""
    random_state: int = 0
    run: Mapping[str, Any] = field(default_factory=dict)
    """Run options, of which ``batch_size``, ``n_threads``, ``client`` and ``device`` are used here."""


@dataclass(frozen=True)
class Data:
    """Checked input of a fit, from an AnnData."""

    adata: AnnData
    asked: Reading
    design: Design
    samples: pd.Categorical | None
    """Donor of each cell."""
    labels: pd.Categorical | None
    """Label of each cell within which cells are compared."""
    confounders: dict[str, pd.Categorical]
    source: RowSource
    likelihood: Likelihood
    estimated: bool
    """Whether to estimate the likelihood's parameters."""
    genes: np.ndarray
    """Indices of the genes used."""
    expressed: np.ndarray
    """Bool per gene used: whether any cell has a value."""
    sums: np.ndarray
    """Gene sums, with a row for the target and one for each background."""
    mass: np.ndarray
    """The same for the values' mass (`Likelihood.mass`)."""
    whole: bool
    """Whether all values are whole numbers."""
    logged: bool
    """Whether they look log-normalised."""
    params: dict[str, Any]
    """Parameters of the input to store."""

    @property
    def counted(self) -> dict[str, slice]:
        """Genes used whose values are modelled as counts, by the name of their modality ("" for an AnnData)."""
        return {"": slice(None)} if self.likelihood.counts else {}

    def store(self, **result: Any) -> Any:
        """Write a factorisation; return the copy if one was requested."""
        adata = self.adata.copy() if self.asked.copy else self.adata
        write(adata, self.asked.key, used=self.genes, **result)
        return adata if self.asked.copy else None

    def note(self, notes: Mapping[str, Any]) -> AnnData | None:
        """Write entries of `uns`, named by the key and a suffix; return the copy if one was requested."""
        adata = self.adata.copy() if self.asked.copy else self.adata
        for name, value in notes.items():  # one by one: `update` would be lost on a view
            adata.uns[self.asked.key + name] = value
        added(*(f"uns.{self.asked.key}{name}" for name in notes))
        return adata if self.asked.copy else None

    @property
    def question(self) -> dict[str, list[str]]:
        """Which cells and values were asked about, to be stored."""
        given = {name: getattr(self.asked, name) for name in ("background_key", "target", "layer")}
        return question(given | {"background": list(self.design.backgrounds)}, self.adata.obs)


def read(adata: AnnData, asked: Reading) -> Data:
    """Read and check all input of a fit, once and in a fixed order. Raises before any work is done."""
    check_key(asked.key)
    random_seed(asked.random_state)
    check_backed(adata, copy=asked.copy)
    check_names(adata)
    check_columns(adata.uns, asked)
    design = _design_of(adata, asked)
    samples = None if asked.sample_key is None else read_samples(adata, asked.sample_key)
    labels = None if asked.strata_key is None else read_samples(adata, asked.strata_key, "strata_key")
    confounders = {name: read_samples(adata, name, "confounders") for name in asked.confounders}
    layer, mask_var, likelihood = alone(asked.layer), alone(asked.mask_var), alone(asked.likelihood)
    alone(None if asked.weights is None else {})
    given = Gaussian() if likelihood is None else as_likelihood(likelihood)
    genes = read_genes(adata, mask_var, asked.exclude_genes)
    _check_sizes(asked, design, len(genes))
    matrix = read_matrix(adata, layer)

    model, refine = given.started(len(genes)), given.estimated
    source = row_source(
        matrix,
        genes=genes,
        block_rows=asked.run.get("batch_size"),
        n_threads=asked.run.get("n_threads"),
        client=asked.run.get("client"),
        device=asked.run.get("device"),
    )
    member = np.column_stack([design.target, *design.backgrounds.values(), np.ones(adata.n_obs, bool)])
    groups = source.place(Groups, member, np.zeros(adata.n_obs))
    summary = source.reduce(partial(summarise, likelihood=model), groups)
    matrix_values(matrix_name(layer), summary.n_invalid, 0 if likelihood is None else summary.smallest)
    if likelihood is not None:
        if model.counts:
            use = f"`likelihood={model.name!r}` models counts ('gaussian' accepts any value)"
            warn_of_fractions(matrix_name(layer), summary.n_fractional, summary.largest, use, adata.layers.keys())
        for name, cells, found in zip([asked.words[2], *design.backgrounds], member.T, summary.mass, strict=False):
            if cells.any() and not found.any():
                where = f"in the {len(genes)} genes used. Check `layer` and `mask_var`."
                msg = f"The {name!r} cells contain only zeros {where}"
                raise UserError(msg)
    small = summary.n_fractional > 0 and summary.smallest >= 0 and summary.largest < LARGEST_LOG
    n_empty_cells = int((source.gather(groups, "total") == 0).sum())
    sums, mass, expressed = summary.sums[:-1], summary.mass[:-1], summary.mass[-1] > 0
    n_empty_genes = int((~expressed).sum())
    if n_empty_cells or n_empty_genes:
        logger.info(
            "%d cells and %d genes contain only zeros: their usage and loadings are zero.", n_empty_cells, n_empty_genes
        )
    params = {
        "likelihood": model.name,
        **asked.sizes,
        "layer": layer,
        "mask_var": mask_var if mask_var is None or isinstance(mask_var, str) else "array",
        "random_state": asked.random_state,
        "n_genes": len(genes),
        "n_empty_cells": n_empty_cells,
        "n_empty_genes": n_empty_genes,
    }
    return Data(
        adata,
        asked,
        design,
        samples,
        labels,
        confounders,
        source,
        model,
        refine,
        genes,
        expressed,
        sums,
        mass,
        summary.n_fractional == 0,
        small and looks_logged(adata, layer),
        params,
    )


def alone(value: T | Mapping[str, T]) -> T:
    """Return an argument for an AnnData, which has no modalities."""
    if isinstance(value, Mapping):
        msg = "`weights` and mappings of modalities must only be used with a MuData, got an AnnData."
        raise UserError(msg)
    return value


def check_columns(uns: Mapping[str, Any], asked: Reading) -> None:
    """Raise where the fit would replace or remove a column of cells that it reads."""
    record = uns.get(asked.key)
    params = record.get("params", {}) if record is not None and hasattr(record, "keys") else {}
    known = [f"obs.{asked.key}_{name}" for name in CELL_FIELDS] if params else []  # earlier versions kept no list
    lost = {*params.get("written", known), *(f"obs.{asked.key}_{name}" for name in asked.writes)}
    for argument, column in ((asked.words[0], asked.background_key), ("sample_key", asked.sample_key)):
        if asked.writes and f"obs.{column}" in lost:
            msg = f"`key_added` must be a name under which `{argument}` {column!r} is not replaced, got {asked.key!r}."
            raise UserError(msg)


def _design_of(adata: AnnData, asked: Reading) -> Design:
    if asked.background_key is not None:
        names, words = (asked.background_key, asked.background, asked.target), asked.words
        rules = {name: getattr(asked, name) for name in ("partial", "apart", "needs_target")}
        return read_design(adata, *names, words=words, **rules)
    every = np.ones(adata.n_obs, bool)
    cells = every if asked.cells is None else np.asarray(in_order("cells", asked.cells, adata.obs_names))
    if cells.shape != (adata.n_obs,) or cells.dtype != bool or (asked.needs_target and not cells.any()):
        got = f"{cells.dtype} {cells.shape}"
        msg = f"`cells` must be a bool for each of the {adata.n_obs} cells, at least one True, got {got}."
        raise UserError(msg)
    return Design(cells, {})


def _check_sizes(asked: Reading, design: Design, n_genes: int) -> None:
    """Raise if there are too few cells or genes for the requested topics."""
    if n_genes < 2:  # noqa: PLR2004
        msg = f"At least 2 genes must be used, got {n_genes}. See `mask_var`."
        raise UserError(msg)
    for name, n in asked.sizes.items():
        cells, who = (design.target, "target cells") if name == "n_topics" else (np.ones_like(design.target), "cells")
        whole_number(name, n, 1, min(int(cells.sum()), n_genes), f"the smaller of {who} and genes used")
    most = min(int(design.background.sum()), n_genes)
    why = "the smaller of background cells and genes used"
    whole_number("n_background_topics", asked.n_background_topics, 0, most, why)


def read_design(
    adata: AnnData,
    background_key: str,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None,
    words: tuple[str, str, str] = WORDS,
    *,
    partial: bool = False,
    apart: bool = False,
    needs_target: bool = True,
) -> Design:
    """Split the cells by an obs column; see `Reading` for the other rules."""
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
            # Match by value, else by text: a command line passes numbers and booleans as text.
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
    if apart and (is_target & np.any(list(backgrounds.values()), axis=0)).any():
        msg = f"`{words[2]}` must name other categories than `{words[1]}`, got {target!r} and {background!r}."
        raise UserError(msg)
    if needs_target and not (partial or is_target.any()):
        msg = (
            f"There are no {words[2]} cells: every category of `adata.obs[{background_key!r}]` ({listed(present)}) is "
            f"in `{words[1]}`. Name fewer, or pass `{words[2]}='all'`."
        )
        raise UserError(msg)
    return Design(is_target, backgrounds)


def read_samples(adata: AnnData, column: str, argument: str = "sample_key") -> pd.Categorical:
    """Return the donor of each cell, or another column of obs."""
    if column not in adata.obs:
        msg = f"`{argument}` {column!r} is not in `adata.obs`. Present: {listed(adata.obs.columns)}."
        raise UserError(msg)
    return pd.Categorical(adata.obs[column])


def read_genes(adata: AnnData, mask_var: MaskVar, exclude: Sequence[str] = ()) -> np.ndarray:
    """Return the indices of the genes to use."""
    if len(exclude):
        out = adata.var_names.isin(exclude)
        if not out.any():
            msg = f"`exclude_genes` must name genes of `adata.var_names`, got {listed(exclude)}."
            raise UserError(msg)
        genes = read_genes(adata, mask_var)
        return genes[~out[genes]]
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
        msg = f"`{argument}` as a Series must have one value by name, got {what}. Its `.to_numpy()` goes by place."
        raise UserError(msg)
    return values.reindex(names)


def read_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``X`` or a layer, cells x genes, as stored."""
    present = [name for name in adata.layers if name is not None]  # None is `X` in anndata 0.13
    if layer is not None and layer not in present:
        msg = f"`layer` {layer!r} is not in `adata.layers`. Present: {listed(present)}."
        raise UserError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"`adata.X` is empty. Name the `layer` that holds the data. Present: {listed(present)}."
        raise UserError(msg)
    check_compressed(matrix, matrix_name(layer))
    return matrix


def matrix_name(layer: str | None) -> str:
    """Return the name of ``X`` or a layer for messages."""
    return "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"


def check_key(key: object) -> None:
    """Raise unless the name can be stored in every kind of file."""
    if (
        not isinstance(key, str)
        or key in ("", ".", "..", "zarr.json")
        or key.startswith(".z")
        or not {"/", "\\", "\0"}.isdisjoint(key)
        or len(key.encode(errors="replace")) > LONGEST_KEY
        or any("\ud800" <= letter <= "\udfff" for letter in key)  # surrogates cannot be encoded
    ):
        msg = f"`key_added` must be a name without '/' that h5ad and zarr can store, got {key!r}."
        raise UserError(msg)


def check_anndata(adata: object, argument: str = "adata") -> None:
    """Raise unless it is an AnnData; for a MuData, name the functions that accept it."""
    from anndata import AnnData

    if isinstance(adata, AnnData):
        return
    msg = f"`{argument}` must be an AnnData, got {type(adata).__name__}."
    if hasattr(adata, "mod"):
        fits = " and ".join(f"`bcnmf_sc.tl.{method.name}`" for method in METHODS if method.multimodal)
        first = next(iter(adata.mod), "rna")
        msg += (
            f" Fits that accept a MuData are {fits}; to other functions pass one modality, such as `mdata[{first!r}]`."
        )
    raise UserTypeError(msg)


def check_backed(adata: AnnData, *, copy: bool) -> None:
    """Raise unless results can be written to the AnnData: a file-backed one must be neither copied nor a view."""
    check_anndata(adata)
    if adata.isbacked and adata.is_view:
        msg = "`adata` must not be a view of a file-backed AnnData. Call `adata.to_memory()` first."
        raise UserError(msg)
    if adata.isbacked and copy:
        msg = (
            "`copy` must be False for a file-backed AnnData, got True. Results are written to `adata` in memory and "
            "the file is unchanged. Save them with `adata.copy(new_file)`, or call `adata.to_memory()`."
        )
        raise UserError(msg)


def check_names(adata: AnnData, argument: str = "adata") -> None:
    """Raise unless names are unique, as the result's tables are indexed by name."""
    check_anndata(adata, argument)
    for axis, index in (("obs", adata.obs_names), ("var", adata.var_names)):
        if index.duplicated().any():  # `is_unique` of a slice is wrong in pandas 2.2
            repeated = index[index.duplicated()].unique()
            msg = (
                f"`{argument}.{axis}_names` must be unique, got {listed(repeated)} more than once. "
                f"Call `{argument}.{axis}_names_make_unique()`."
            )
            raise UserError(msg)
