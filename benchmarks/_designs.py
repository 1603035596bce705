"""Designs with a known answer that several scripts use: who is target, who is background, and who is truly new.

A design is an AnnData with ``obs["role"]`` (``target``, ``background``) and ``obs["new"]`` (bool: cells that have what
the background has not).
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
from scipy import sparse
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARED_TYPES = ("B cell", "NK cell", "T cell")
"""Cell types of the Zheng data that are dealt out to target and background."""
ROLES = {"background_key": "role", "background": "background", "progress": False}
BY_CELL = ROLES | {"sample_key": "cells"}
"""What every fit of a design is told."""
WEAK = {"n_background": 800, "n_types": 8, "n_shared": 4, "frac_active": 0.2, "salient_strength": 0.15}
"""Options of `simulated`: many shared programs, and few cells with a weak one of their own."""


def kang(folder: Path, _seed: int = 0) -> anndata.AnnData:
    """Stimulated PBMC against control PBMC: every target cell is new."""
    adata = anndata.read_h5ad(folder / "kang_ifnb_muscat.h5ad")
    return _design(adata, (adata.obs["condition"] == "stim").to_numpy())


def kang_null(folder: Path, seed: int = 0) -> anndata.AnnData:
    """One random half of the control PBMC against the other: nothing is new."""
    adata = anndata.read_h5ad(folder / "kang_ifnb_muscat.h5ad")
    adata = adata[adata.obs["condition"] == "ctrl"].copy()
    return _design(adata, np.random.default_rng(seed).random(adata.n_obs) < 0.5, np.zeros(adata.n_obs, bool))


def zheng(folder: Path, seed: int = 0, *, spike: str | None = None) -> anndata.AnnData:
    """Random halves of sorted B, NK and T cells, and all cells of another type added to the target: these are new."""
    adata = anndata.read_h5ad(folder / "zheng_pbmc_facs.h5ad")
    kinds = adata.obs["cell_type"].astype(str)
    adata = adata[kinds.isin([*SHARED_TYPES, spike]).to_numpy()].copy()
    new = (adata.obs["cell_type"] == spike).to_numpy()
    return _design(adata, new | (np.random.default_rng(seed).random(adata.n_obs) < 0.5), new)


def simulated(seed: int = 0, **options: float) -> anndata.AnnData:
    """`bcnmf_sc.datasets.simulated`: some target cells carry a program that the background has not."""
    adata = bc.datasets.simulated(random_state=seed, **options)
    new = (adata.obs["subgroup"] != "none").to_numpy()
    return _design(adata, (adata.obs["condition"] == "case").to_numpy(), new)


def _design(adata: anndata.AnnData, target: np.ndarray, new: np.ndarray | None = None) -> anndata.AnnData:
    adata.obs["role"] = np.where(target, "target", "background")
    adata.obs["new"] = target if new is None else new
    return adata


def more_of(adata: anndata.AnnData, which: str, seed: int) -> anndata.AnnData:
    """Deal shared cells out anew, two of a type to the target for one to the background; all others one for one."""
    rng = np.random.default_rng(seed)
    kind = adata.obs["cell_type"].astype(str).str.contains(which).to_numpy()
    target = rng.random(adata.n_obs) < np.where(kind, 2 / 3, 1 / 2)
    adata.obs["role"] = np.where(target | adata.obs["new"].to_numpy(), "target", "background")
    return adata


def thinned(adata: anndata.AnnData, role: str, part: float, *, seed: int, cells: float = 1.0) -> anndata.AnnData:
    """Keep each count of one side's cells, or of some of these, with a probability."""
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(adata.X)
    # backwards, since halves are dealt by the first draws of the same seed: no background cell would be below 0.5
    chosen = (adata.obs["role"] == role).to_numpy() & (rng.random(adata.n_obs)[::-1] < cells)
    here = np.repeat(chosen, np.diff(counts.indptr))
    counts.data[here] = rng.binomial(counts.data[here].astype(int), part)
    counts.eliminate_zeros()
    adata.X = counts
    return adata


def soaked(adata: anndata.AnnData, part: float, *, seed: int) -> anndata.AnnData:
    """Replace a part of every target cell's counts by ambient RNA, which has the mean profile of the target."""
    rng = np.random.default_rng(seed)
    counts, target = sparse.csr_matrix(adata.X), (adata.obs["role"] == "target").to_numpy()
    profile = np.asarray(counts[target].sum(0)).ravel()
    total = np.asarray(counts.sum(1)).ravel() * target
    adata = thinned(adata, "target", 1 - part, seed=seed)
    ambient = rng.poisson(part * np.outer(total, profile / profile.sum())).astype(np.float32)
    adata.X = sparse.csr_matrix(adata.X + sparse.csr_matrix(ambient))
    return adata


def batched(adata: anndata.AnnData, deviation: float, *, seed: int) -> anndata.AnnData:
    """Multiply each gene's counts in the target by a factor of its own, as a batch would; log-normal."""
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(adata.X)
    here = np.repeat((adata.obs["role"] == "target").to_numpy(), np.diff(counts.indptr))
    factor = np.exp(deviation * rng.normal(size=adata.n_vars))[counts.indices[here]]
    own = counts.data[here].astype(int)
    counts.data[here] = rng.binomial(own, np.minimum(factor, 1)) + rng.poisson(own * np.maximum(factor - 1, 0))
    counts.eliminate_zeros()
    adata.X = counts
    return adata


def doubled(adata: anndata.AnnData, part: float, *, seed: int) -> anndata.AnnData:
    """Add to some of the target cells the counts of another one each: doublets."""
    rng = np.random.default_rng(seed)
    target = np.flatnonzero(adata.obs["role"] == "target")
    hit = rng.choice(target, int(part * len(target)), replace=False)
    counts = sparse.lil_matrix(adata.X)
    counts[hit] = adata.X[hit] + adata.X[rng.choice(target, len(hit))]
    adata.X = counts.tocsr()
    return adata


def scores(adata: anndata.AnnData) -> dict[str, float]:
    """What the out-of-fold share and the call are worth: AUC, and the shares of new and of other cells called.

    New cells are compared with the target's other cells; where all of the target is new, with the background.
    """
    share, call = (adata.obs[f"bcnmf_{name}"].to_numpy() for name in ("target_share", "enriched"))
    new, target = adata.obs["new"].to_numpy(), (adata.obs["role"] == "target").to_numpy()
    if not new.any():
        return {"AUC": roc_auc_score(target, share), "called others": float(call[target].mean())}
    rest = target & ~new if (target & ~new).any() else ~target
    both = new | rest
    return {
        "AUC": roc_auc_score(new[both], share[both]),
        "called new": float(call[new].mean()),
        "called others": float(call[rest].mean()),
    }


def spread(values: Sequence[float]) -> str:
    """Median and range, for a table."""
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def arguments(text: str, **numbers: int | str) -> argparse.Namespace:
    """Read the command line: the data folder, and options with their defaults. Silences warnings of the fits."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("BCNMF_SC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default, help="folder of the real data")
    for name, number in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(number), default=number)
    warnings.simplefilter("ignore")
    return parser.parse_args()
