"""Read and check a MuData for joint fits of its modalities, and store the results. No mathematics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from . import _anndata
from ._anndata import Data, Reading, read_matrix
from ._stored import CELL_FIELDS, GENE_FIELDS, forget, write
from ._utils.checks import listed, number
from ._utils.errors import UserError, UserTypeError
from ._utils.files import uninterrupted
from .engine import LIKELIHOODS, Joint, as_likelihood

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mudata import MuData


def no_pull() -> AbstractContextManager[Any]:
    """As a context, make and read a MuData without copies of its modalities' columns, which mudata 0.4 never makes."""
    import mudata

    override = getattr(mudata, "set_options", None) or mudata.settings.override
    return override(pull_on_update=False)


@dataclass(frozen=True)
class Modalities(Data):
    """Jointly fitted modalities: the features used, concatenated into one AnnData."""

    mdata: MuData
    used: dict[str, np.ndarray]
    """Indices of the features used, per modality."""
    own: dict[str, Any]
    """Parameters of the modalities to store."""

    @property
    def counted(self) -> dict[str, slice]:
        """Features used whose values are modelled as counts, by modality."""
        ends = np.cumsum([0, *map(len, self.used.values())]).tolist()
        kinds = zip(self.used, self.own["likelihood"], ends, ends[1:], strict=False)
        return {name: slice(start, stop) for name, kind, start, stop in kinds if LIKELIHOODS[kind].counts}

    @uninterrupted()
    def store(self, **result: Any) -> Any:
        """Write usage and cell columns to the top level, loadings and gene columns to each modality."""
        key, copy = self.asked.key, self.asked.copy
        mdata = self.mdata.copy() if copy else self.mdata
        write(self.adata, key, used=self.genes, **result)
        forget_joint(mdata, key, list(self.used))
        mdata.obsm["X_" + key] = self.adata.obsm["X_" + key]
        for name in CELL_FIELDS:
            if f"{key}_{name}" in self.adata.obs:
                mdata.obs[f"{key}_{name}"] = self.adata.obs[f"{key}_{name}"]
        mdata.uns.update(self.adata.uns)
        record = mdata.uns[key]
        written = record["params"]["written"]
        record["params"] |= self.own | {"written": [each for each in written if each.startswith("obs.")]}
        W, start = self.adata.varm[key], 0
        for name, used in self.used.items():
            part, here = mdata[name], slice(start, start + len(used))
            start = here.stop
            record["topics"]["share_" + name] = W[here].sum(0)
            loadings = np.zeros((part.n_vars, W.shape[1]), np.float32)
            loadings[used] = W[here]
            part.varm[key] = loadings
            for field in GENE_FIELDS:
                column = f"{key}_{field}"
                values = self.adata.var[column].iloc[here] if column in self.adata.var else pd.Series(dtype=float)
                if values.notna().any():
                    full = np.zeros(part.n_vars, bool) if values.dtype == bool else np.full(part.n_vars, np.nan, "f4")
                    full[used] = values
                    part.var[column] = full
        for name, kind in zip(self.used, self.own["likelihood"], strict=True):
            own = [each for each in written if each.startswith("var.") and each[4:] in mdata[name].var]
            params = record["params"] | {"likelihood": kind, "written": own}
            mdata[name].uns[key] = {"params": params, "topics": record["topics"].copy()}
        return mdata if copy else None


def read(mdata: AnnData | MuData, asked: Reading) -> Data:
    """Read and check every modality, then all together; or an AnnData. Raises before any work is done."""
    if isinstance(mdata, AnnData) or not hasattr(mdata, "mod"):
        return _anndata.read(mdata, asked)
    for option in ("device", "checkpoint", "client"):
        if asked.run.get(option) is not None:
            msg = f"`{option}` must be None for a MuData, got {asked.run[option]!r}."
            raise UserError(msg)
    names = list(asked.likelihood) if isinstance(asked.likelihood, Mapping) else list(mdata.mod)
    if not names:
        msg = f"`likelihood` must name at least one modality. Present: {listed(mdata.mod)}."
        raise UserError(msg)
    for argument in ("likelihood", "weights", "layer", "mask_var"):
        check_modalities(argument, getattr(asked, argument), mdata.mod)
    weight = read_weights(asked.weights, names)
    kinds = [as_likelihood(of(asked.likelihood, name)) for name in names]
    _anndata.check_columns(mdata.uns, asked)
    parts: dict[str, Data] = {}
    for name, kind in zip(names, kinds, strict=True):
        part = mdata[name]
        order = order_of(mdata, name, part, argument="adata", what="cells")
        part = part if np.array_equal(order, np.arange(part.n_obs)) else part[order]
        own = {"layer": of(asked.layer, name), "mask_var": of(asked.mask_var, name, "auto")}
        try:
            parts[name] = _anndata.read(part, Reading(asked.key, copy=False, likelihood=kind, run=asked.run, **own))
        except ValueError as error:
            error.add_note(f"In the modality {name!r}.")
            raise
    blocks = [in_memory(read_matrix(part.adata, part.params["layer"]))[:, part.genes] for part in parts.values()]
    asked_for = (asked.background_key, asked.sample_key, asked.strata_key, *asked.confounders, *asked.columns)
    columns = {column: obs_column(mdata, column) for column in asked_for}
    if any(sparse.issparse(block) for block in blocks):
        matrix = sparse.csr_matrix(sparse.hstack(blocks), dtype=np.float32)
    else:
        matrix = np.hstack(blocks, dtype=np.float32)
    features = [f"{name}:{gene}" for name, part in parts.items() for gene in part.adata.var_names[part.genes]]
    adata = AnnData(
        matrix,
        obs=pd.DataFrame({name: x for name, x in columns.items() if x is not None}, index=mdata.obs_names),
        var=pd.DataFrame(index=features),
    )
    joint, per_gene = kinds[0], any(np.ndim(value) for kind in kinds for value in kind.parameters().values())
    if per_gene or any(kind != joint for kind in kinds) or set(weight.values()) != {1.0}:
        of_gene = np.repeat(np.arange(len(parts)), [len(part.genes) for part in parts.values()])
        started, estimated = zip(*((part.likelihood, part.estimated) for part in parts.values()), strict=True)
        joint = Joint(started, tuple(weight.values()), of_gene, estimated)
    recorded = {
        "modalities": names,
        "likelihood": [kind.name for kind in kinds],
        "weights": list(weight.values()),
        "layer": ["X" if part.params["layer"] is None else part.params["layer"] for part in parts.values()],
        "mask_var": ["none" if part.params["mask_var"] is None else part.params["mask_var"] for part in parts.values()],
    }
    whole = _anndata.read(adata, replace(asked, likelihood=joint, weights=None, layer=None, mask_var=None))
    return Modalities(
        **vars(whole) | {"logged": any(part.logged for part in parts.values())},
        mdata=mdata,
        used={name: part.genes for name, part in parts.items()},
        own=recorded,
    )


def of(given: Any, name: str, default: Any = None) -> Any:
    """Return an argument's value for a modality."""
    return given.get(name, default) if isinstance(given, Mapping) else given


def in_memory(matrix: Any) -> Any:
    """Return the values as a NumPy array or a SciPy matrix."""
    for method in ("to_memory", "compute"):
        matrix = getattr(matrix, method)() if hasattr(matrix, method) else matrix
    return matrix.tocsr() if sparse.issparse(matrix) else np.asarray(matrix)


def read_weights(weights: Any, names: Iterable[str]) -> dict[str, float]:
    """Return the weight of each modality, 1 where none is given."""
    if weights is not None and not isinstance(weights, Mapping):
        msg = f"`weights` must be a mapping of modalities to numbers, such as {{'rna': 2.0}}, or None, got {weights!r}."
        raise UserTypeError(msg)
    for name, weight in (weights or {}).items():
        why = ": to leave out a modality, name only the others in `likelihood`"
        number(f"weights[{name!r}]", weight, closed="right", why=why)
    return {name: float((weights or {}).get(name, 1.0)) for name in names}


def forget_joint(mdata: Any, key: str, modalities: Sequence[str]) -> None:
    """Remove the results of an earlier fit under the same key from the top level and from all modalities."""
    forget(mdata, key)
    for name, part in getattr(mdata, "mod", {}).items():
        record = part.uns.get(key)
        joint = hasattr(record, "keys") and "modalities" in record.get("params", {})
        if name in modalities or joint:  # keep a fit of another modality alone under the same name
            forget(part, key)
        if name not in modalities and joint:
            del part.uns[key]
            part.varm.pop(key, None)


def check_modalities(argument: str, given: object, parts: Mapping[str, Any]) -> None:
    """Raise if a mapping has keys that are not modalities."""
    unknown = [name for name in given if name not in parts] if isinstance(given, Mapping) else []
    if unknown:
        msg = f"`{argument}` must name modalities, got {listed(unknown)}. Present: {listed(parts)}."
        raise UserError(msg)


def order_of(mdata: Any, name: str, part: AnnData, *, argument: str, what: str) -> np.ndarray:
    """Return the row in a modality of each cell or spot of the MuData."""
    order = part.obs_names.get_indexer(mdata.obs_names)
    if (order < 0).any():
        msg = (
            f"`{argument}` must have the same {what} in all modalities, got {int((order < 0).sum())} of {mdata.n_obs} "
            f"without {name!r}. Keep those with all modalities (`muon.pp.intersect_obs`), or name other modalities in "
            "`likelihood`."
        )
        raise UserError(msg)
    return order


def obs_column(mdata: Any, name: str | None) -> pd.Series | None:
    """Return a column of ``obs``, of the top level or else of the first modality that has it, or `None`."""
    tables = [mdata.obs, *(part.obs for part in getattr(mdata, "mod", {}).values())]
    found = next((table[name] for table in tables if name is not None and name in table), None)
    return None if found is None else found.reindex(mdata.obs_names)
