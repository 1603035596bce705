"""Several modalities of the same cells: put side by side for one fit, the result taken apart again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ... import _anndata
from ..._mudata import check_modalities, check_weights, forget_joint, in_memory, obs_column, order_of
from ..._utils.checks import listed
from ..._utils.errors import UserError
from ..._utils.files import uninterrupted
from ...engine import Joint
from .problem import PARAMETERS, Problem, check_parameters

if TYPE_CHECKING:
    from mudata import MuData

    from .._run import RunOptions


@dataclass(frozen=True)
class Modalities:
    """Modalities of a MuData that are fitted together."""

    mdata: MuData
    adata: AnnData
    """Their features used, side by side, with the columns of ``obs`` that are asked for."""
    likelihood: str | Joint
    """One name where one likelihood of all features, unweighted, is the same."""
    used: dict[str, np.ndarray]
    """Numbers of the features used, per modality."""
    params: dict[str, Any]

    @classmethod
    def of(cls, data: AnnData | MuData, *, weights: Mapping[str, float] | None, **how: Any) -> Modalities | None:
        """Return those of a MuData, and `None` for an AnnData, which cannot have weights or mappings of them."""
        if hasattr(data, "mod"):
            return cls.read(data, weights=weights, **how)
        if weights is not None or any(isinstance(how[name], Mapping) for name in ("likelihood", "layer", "mask_var")):
            msg = "`weights`, and mappings of modalities, must only come with a MuData, got an AnnData."
            raise UserError(msg)
        return None

    @classmethod
    def read(
        cls,
        mdata: MuData,
        *,
        columns: tuple[str | None, ...],
        likelihood: str | Mapping[str, str],
        weights: Mapping[str, float] | None,
        layer: str | Mapping[str, str | None] | None,
        mask_var: Any,
        dispersion: float | Literal["estimate"],
        dropout: float | Literal["estimate"],
        run: RunOptions,
    ) -> Modalities:
        """Read and check every modality. Raises before anything is done."""
        for option in ("device", "checkpoint", "client"):
            if run.get(option) is not None:
                msg = f"`{option}` must be None for a MuData, got {run[option]!r}."
                raise UserError(msg)
        names = list(likelihood) if isinstance(likelihood, Mapping) else list(mdata.mod)
        if not names:
            msg = f"`likelihood` must name at least one modality. Present: {listed(mdata.mod)}."
            raise UserError(msg)
        asked = {"likelihood": likelihood, "weights": weights, "layer": layer, "mask_var": mask_var}
        for argument, given in asked.items():
            check_modalities(argument, given, mdata.mod)
        likelihoods = {name: likelihood[name] if isinstance(likelihood, Mapping) else likelihood for name in names}
        check_parameters(likelihoods.values(), dispersion, dropout)
        check_weights(weights)
        weight = {name: float((weights or {}).get(name, 1.0)) for name in names}
        if not all(0 < value < np.inf for value in weight.values()):
            msg = f"`weights` must be above 0, got {weights!r}. Leave a modality out by naming others in `likelihood`."
            raise UserError(msg)
        problems, blocks = [], []
        for name in names:
            part = mdata[name]
            order = order_of(mdata, name, part, argument="adata", what="cells")
            part = part if np.array_equal(order, np.arange(part.n_obs)) else part[order]
            options = {
                argument: given.get(name, "auto" if argument == "mask_var" else None)
                if isinstance(given, Mapping)
                else given
                for argument, given in (("likelihood", likelihood), ("layer", layer), ("mask_var", mask_var))
            }
            own = PARAMETERS.get(likelihoods[name], ())
            options |= {
                argument: given if argument in own else "estimate"
                for argument, given in (("dispersion", dispersion), ("dropout", dropout))
            }
            try:
                problem = Problem.read(
                    part,
                    _anndata.Design(np.ones(part.n_obs, bool), {}),
                    n_topics=None,
                    run=run,
                    **options,  # type: ignore[arg-type]
                )
            except ValueError as error:
                error.add_note(f"In the modality {name!r}.")
                raise
            problems.append(problem)
            blocks.append(in_memory(_anndata.read_matrix(part, options["layer"]))[:, problem.genes])
        obs = {column: obs_column(mdata, column) for column in columns}
        is_sparse = any(sparse.issparse(block) for block in blocks)
        genes = [f"{name}:{g}" for name, p in zip(names, problems, strict=True) for g in mdata[name].var_names[p.genes]]
        adata = AnnData(
            sparse.csr_matrix(sparse.hstack(blocks), dtype=np.float32)
            if is_sparse
            else np.hstack(blocks, dtype=np.float32),
            obs=pd.DataFrame({name: x for name, x in obs.items() if x is not None}, index=mdata.obs_names),
            var=pd.DataFrame(index=genes),
        )
        kinds = [problem.likelihood for problem in problems]
        joint: str | Joint = kinds[0].name
        if len({kind.name for kind in kinds}) > 1 or set(weight.values()) != {1.0}:
            number = np.repeat(np.arange(len(names)), [len(problem.genes) for problem in problems])
            refine = any(problem.refine for problem in problems)
            joint = Joint(tuple(kinds), tuple(weight.values()), number, estimate=refine)
        params = {
            "modalities": names,
            "likelihood": [kind.name for kind in kinds],
            "weights": list(weight.values()),
            "layer": ["X" if p.params["layer"] is None else p.params["layer"] for p in problems],
            "mask_var": ["none" if p.params["mask_var"] is None else p.params["mask_var"] for p in problems],
        }
        return cls(mdata, adata, joint, {n: p.genes for n, p in zip(names, problems, strict=True)}, params)

    @uninterrupted()
    def write(self, key: str, *, copy: bool) -> MuData | None:
        """Take the stored result apart: usage and cells to the whole, loadings and genes to each modality."""
        mdata = self.mdata.copy() if copy else self.mdata
        forget_joint(mdata, key, list(self.used))
        mdata.obsm["X_" + key] = self.adata.obsm["X_" + key]
        for name in _anndata.CELL_FIELDS:
            if f"{key}_{name}" in self.adata.obs:
                mdata.obs[f"{key}_{name}"] = self.adata.obs[f"{key}_{name}"]
        for name in (key, key + "_alpha"):
            if name in self.adata.uns:
                mdata.uns[name] = self.adata.uns[name]
        record = mdata.uns[key]
        of_genes = [each for each in record["params"]["written"] if each.startswith("var.")]
        of_cells = [each for each in record["params"]["written"] if each.startswith("obs.")]
        record["params"] |= self.params | {"written": of_cells}
        W, start = self.adata.varm[key], 0
        for name, used in self.used.items():
            part, here = mdata[name], slice(start, start + len(used))
            start = here.stop
            record["topics"]["share_" + name] = W[here].sum(0)
            loadings = np.zeros((part.n_vars, W.shape[1]), np.float32)
            loadings[used] = W[here]
            part.varm[key] = loadings
            for field in _anndata.GENE_FIELDS:
                column = f"{key}_{field}"
                values = self.adata.var[column].iloc[here] if column in self.adata.var else pd.Series(dtype=float)
                if values.notna().any():
                    full = np.zeros(part.n_vars, bool) if values.dtype == bool else np.full(part.n_vars, np.nan, "f4")
                    full[used] = values
                    part.var[column] = full
        for name, kind in zip(self.used, self.params["likelihood"], strict=True):
            written = [each for each in of_genes if each.removeprefix("var.") in mdata[name].var]
            params = record["params"] | {"likelihood": kind, "written": written}
            mdata[name].uns[key] = {"params": params, "topics": record["topics"].copy()}
        return mdata if copy else None
