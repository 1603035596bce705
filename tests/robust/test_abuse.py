"""Every public function meets odd data, and gives the result of the plain twin, or an error of ours and no change.

One list of functions, one strategy of oddities. `BCNMF_SC_ABUSE` sets the number of examples of each function, and of
problems in `test_soak.py`, to look for new defects (``BCNMF_SC_ABUSE=300 pytest tests/robust/test_abuse.py``).
"""

from __future__ import annotations

import inspect
import os
import pickle
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

import bcnmf_sc as bc

PACKAGE = Path(bc.__file__).parent
FUNCTIONS = {
    f"{part}.{name}": getattr(getattr(bc, part), name)
    for part in ("tl", "pp", "get", "metrics", "pl")
    for name in getattr(bc, part).__all__
    if inspect.isfunction(getattr(getattr(bc, part), name))
}
FEW = {"n_topics": 2, "max_iter": 4, "tol": 1e-9, "progress": False}


# --- oddities --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd:
    """What is odd: the values, the numbers they are written in, what holds them, the groups, the names."""

    values: str = "plain"
    dtype: str = "float32"
    storage: str = "csr"
    groups: str = "category"
    names: str = "plain"


def counts(values: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    n_cells, n_genes = {"one cell": (1, 12), "one gene": (24, 1), "two cells": (2, 12)}.get(values, (24, 12))
    x = rng.poisson(rng.gamma(2.0, 1.0, (n_cells, 3)) @ rng.gamma(0.7, 1.0, (3, n_genes))).astype(float)
    x[0, 0] += 1
    if values == "empty rows":
        x[[1, 5, 13]] = 0
    elif values == "empty columns":
        x[:, [0, 4]] = 0
    elif values == "huge":
        x = x * 1e6
    elif values == "zeros":
        x[:] = 0
    elif values == "no target":
        x[::2] = 0
    elif values == "no background":
        x[1::2] = 0
    elif values in ("nan", "inf", "negative", "fraction"):
        x[2, 3] = {"nan": np.nan, "inf": np.inf, "negative": -3, "fraction": 0.5}[values]
    return x


VALUES = (
    "plain", "empty rows", "empty columns", "huge", "zeros", "no target", "no background", "nan", "inf", "negative",
    "fraction", "one cell", "one gene", "two cells",
)  # fmt: skip
DTYPES = (
    "float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
    "longdouble",
)  # fmt: skip


def dask_array(matrix: Any) -> Any:
    from dask import array

    return array.from_array(matrix, chunks=(max(1, matrix.shape[0] // 2), matrix.shape[1]), asarray=False)


def unsorted(x: np.ndarray) -> sparse.csr_matrix:
    m = sparse.csr_matrix(x)
    for start, stop in zip(m.indptr[:-1], m.indptr[1:], strict=True):
        m.indices[start:stop], m.data[start:stop] = m.indices[start:stop][::-1].copy(), m.data[start:stop][::-1].copy()
    m.has_sorted_indices = False
    return m


def duplicated(x: np.ndarray) -> sparse.csr_matrix:
    """Every value above 1 comes as two entries."""
    m = sparse.coo_matrix(x)
    split = np.asarray(m.data > 1) & (m.data.dtype != bool)
    one = np.ones(split.sum(), m.data.dtype)
    data = np.concatenate([m.data, one])
    data[: m.nnz][split] -= one
    row, col = (np.concatenate([part, part[split]]) for part in (m.row, m.col))
    order = np.argsort(row, kind="stable")
    indptr = np.append(0, np.cumsum(np.bincount(row, minlength=x.shape[0])))
    return sparse.csr_matrix((data[order], col[order], indptr), shape=x.shape)


def explicit_zeros(x: np.ndarray) -> sparse.csr_matrix:
    m = sparse.csr_matrix(np.ones(x.shape, x.dtype))
    m.data[:] = x.ravel()
    return m


def long_indices(x: np.ndarray) -> sparse.csr_matrix:
    m = sparse.csr_matrix(x)
    m.indptr, m.indices = m.indptr.astype(np.int64), m.indices.astype(np.int64)
    return m


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def read_only_csr(x: np.ndarray) -> sparse.csr_matrix:
    m = sparse.csr_matrix(x)
    for part in (m.data, m.indices, m.indptr):
        part.flags.writeable = False
    return m


MATRICES: Mapping[str, Callable[[np.ndarray], Any]] = {
    "csr": sparse.csr_matrix,
    "csr array": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "csc array": sparse.csc_array,
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "read-only": read_only,
    "read-only csr": read_only_csr,
    "unsorted": unsorted,
    "duplicates": duplicated,
    "explicit zeros": explicit_zeros,
    "int64 indices": long_indices,
    "dask": dask_array,
    "dask csr": lambda x: dask_array(sparse.csr_matrix(x)),
    "view": sparse.csr_matrix,
    "layer": sparse.csr_matrix,
    "raw": sparse.csr_matrix,
    "backed": sparse.csr_matrix,
    "backed csc": sparse.csc_matrix,
    "backed dense": np.asarray,
}
ON_DISK = ("dask", "dask csr", "backed", "backed csc", "backed dense")
GROUPS = ("category", "unused levels", "string", "arrow", "bool", "int", "missing", "one level", "hostile", "ordered")
NAMES = ("plain", "obs twice", "var twice", "hostile", "numbers")
HOSTILE = [
    "a/b",
    "<script>alert(1)</script>",
    "$\\frac{$",
    'it\'s "x"',
    "line\nbreak",
    "🧬",
    "",
    " ",
    "../up",
    "_100 %_^",
]


def labels(kind: str, n: int) -> tuple[pd.Series, str]:
    """The conditions, and the background's name."""
    is_background = np.arange(n) % 2 == 1
    if kind == "bool":
        return pd.Series(is_background), "True"
    if kind == "int":
        return pd.Series(is_background.astype(int)), "1"
    words = np.where(is_background, "ctrl", "case").astype(object)
    if kind == "hostile":
        words = np.where(is_background, HOSTILE[0], HOSTILE[2]).astype(object)
    if kind == "one level":
        words[:] = "ctrl"
    if kind == "missing" and n > 2:
        words[2] = np.nan
    background = HOSTILE[0] if kind == "hostile" else "ctrl"
    kinds: dict[str, Any] = {
        "string": object,
        "arrow": "string",
        "unused levels": pd.CategoricalDtype(["zzz", "ctrl", "unused", "case"]),
        "ordered": pd.CategoricalDtype(["case", "ctrl"], ordered=True),
    }
    return pd.Series(words).astype(kinds.get(kind, "category")), background


def tables(odd: Odd, n_cells: int, n_genes: int) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    column, background = labels(odd.groups, n_cells)
    obs_names, var_names = [f"cell {i}" for i in range(n_cells)], [f"gene {i}" for i in range(n_genes)]
    if odd.names == "obs twice" and n_cells > 1:
        obs_names[1] = obs_names[0]
    elif odd.names == "var twice" and n_genes > 1:
        var_names[1] = var_names[0]
    elif odd.names == "hostile":
        var_names[: len(HOSTILE)] = HOSTILE[:n_genes]
        obs_names[: len(HOSTILE)] = HOSTILE[:n_cells]
    elif odd.names == "numbers":
        obs_names, var_names = [str(i) for i in range(n_cells)], [str(i) for i in range(n_genes)]
    obs = pd.DataFrame({"condition": column.to_numpy() if odd.groups == "string" else column})
    obs["donor"] = [f"d{i // 4}" for i in range(n_cells)]
    obs["kind"] = np.array(["a", "b", "b"])[np.arange(n_cells) % 3]
    obs["score"] = np.linspace(0, 1, n_cells)
    biotype = np.where(np.arange(n_genes) % 4 == 3, "lncRNA", "protein_coding")
    return obs.set_axis(obs_names), pd.DataFrame({"gene_biotype": biotype}, index=var_names), background


@pytest.fixture(scope="module", autouse=True)
def _folder():
    """Backed data lie in files."""
    with tempfile.TemporaryDirectory() as folder:
        FOLDER.append(Path(folder))
        yield
        FOLDER.clear()


FOLDER: list[Path] = []


def dress(odd: Odd, prepare: Callable[[ad.AnnData, dict[str, Any]], Any]) -> tuple[ad.AnnData, ad.AnnData, dict]:
    """The odd AnnData, its plain twin, both with what `prepare` stores, and the arguments that name the contrast."""
    x = counts(odd.values)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        cast = x.astype(odd.dtype)
    if odd.dtype == "float16" and odd.storage not in ("dense", "fortran", "read-only", "dask", "backed dense"):
        cast = x  # SciPy has no such sparse matrix
    if odd.dtype != "bool" and not np.array_equal(cast.astype(float), x, equal_nan=True):
        cast = x.astype("float64")
    obs, var, background = tables(odd, *x.shape)
    plain_names = tables(Odd(odd.values, groups=odd.groups), *x.shape) if "twice" in odd.names else (obs, var)
    twin = ad.AnnData(sparse.csr_matrix(cast.astype(np.float32)), obs=plain_names[0].copy(), var=plain_names[1].copy())
    missing = twin.obs["condition"].isna()
    twin.obs["condition"] = twin.obs["condition"].astype(str).mask(missing).astype("category")
    twin.obsm["spatial"] = np.stack(np.divmod(np.arange(twin.n_obs), 5), 1).astype(float)
    arguments = {"background_key": "condition", "background": background}
    prepare(twin, arguments)
    parts = {slot: {k: deepcopy(v) for k, v in getattr(twin, slot).items()} for slot in ("obsm", "varm", "uns")}
    more = {axis: getattr(twin, axis).drop(columns=own) for axis, own in (("obs", obs), ("var", var))}
    obs, var = (
        table.assign(**{name: more[axis][name].to_numpy() for name in more[axis]})
        for axis, table in (("obs", obs), ("var", var))
    )
    for name in more["obs"].select_dtypes("category"):
        obs[name] = obs[name].astype(more["obs"][name].dtype)
    matrix = MATRICES[odd.storage](cast)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not unique", UserWarning)
        if odd.storage == "view":
            rows, columns = np.append(np.arange(x.shape[0]), 0), np.append(np.arange(x.shape[1]), 0)
            parts = {
                slot: {k: v[rows if slot == "obsm" else columns] if slot != "uns" else v for k, v in found.items()}
                for slot, found in parts.items()
            }
            whole = ad.AnnData(matrix[rows][:, columns], obs=obs.iloc[rows], var=var.iloc[columns], **parts)
            adata = whole[: x.shape[0], : x.shape[1]]
        else:
            adata = ad.AnnData(matrix, obs=obs, var=var, **parts)
    if odd.storage == "layer":
        adata.layers["counts"], adata.X = adata.X, None
        twin.layers["counts"] = twin.X
        arguments["layer"] = "counts"
    elif odd.storage == "raw":
        adata.raw = adata.copy()
    elif odd.storage.startswith("backed"):
        path = FOLDER[0] / "backed.h5ad"
        path.unlink(missing_ok=True)
        with warnings.catch_warnings(), ad.settings.override(allow_write_nullable_strings=True):
            warnings.simplefilter("ignore", UserWarning)
            adata.write_h5ad(path)
            adata = ad.read_h5ad(path, backed="r")
    return adata, twin, arguments


# --- functions -------------------------------------------------------------------------------------------------------


def nothing(adata: ad.AnnData, how: dict[str, Any]) -> None:
    """No call comes before."""


def fitted(adata: ad.AnnData, how: dict[str, Any], **more: Any) -> None:
    bc.tl.bcnmf(adata, **how, **{**FEW, "alpha": 0.1, **more})


def split(adata: ad.AnnData, how: dict[str, Any]) -> None:
    fitted(adata, how, n_background_topics=2, alpha=0.0, cross_fit=2)


def by_donor(adata: ad.AnnData, how: dict[str, Any]) -> None:
    fitted(adata, how, n_background_topics=2, alpha=0.0, cross_fit=2, sample_key="donor")


def then(*calls: Callable[[ad.AnnData], Any]) -> Callable[[ad.AnnData, dict[str, Any]], None]:
    """After a fit, these."""

    def prepare(adata: ad.AnnData, how: dict[str, Any]) -> None:
        fitted(adata, how)
        for call in calls:
            call(adata)

    return prepare


def placed(adata: ad.AnnData) -> None:
    adata.obsm["X_bcnmf_umap"] = np.arange(2.0 * adata.n_obs).reshape(-1, 2)


def associated(adata: ad.AnnData) -> None:
    bc.tl.associate(adata, groupby="kind")


def enriched(adata: ad.AnnData) -> None:
    bc.tl.enrich(adata, {"first": adata.var_names[:6], "last": adata.var_names[6:]}, n_genes=4)


def chosen(adata: ad.AnnData, how: dict[str, Any]) -> None:
    bc.tl.select_alpha(adata, **how, **{**FEW, "alphas": [0.0, 0.1], "n_restarts": 2, "n_folds": 2})


def again(adata: ad.AnnData, how: dict[str, Any]) -> None:
    bc.tl.consensus(adata, **how, **FEW, n_restarts=2)


SPATIAL = {"n_topics": 2, "max_iter": 2, "progress": False, "device": "cpu", "n_inducing": 8}


def spatial(adata: ad.AnnData, how: dict[str, Any]) -> None:
    bc.tl.gpnsf(adata, layer=how.get("layer"), **SPATIAL)


def reference(adata: ad.AnnData) -> ad.AnnData:
    """The fit that was stored in the AnnData, without the data."""
    parts = {slot: dict(getattr(adata, slot)) for slot in ("varm", "uns")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not unique", UserWarning)
        return ad.AnnData(sparse.csr_matrix(adata.shape, dtype=np.float32), adata.obs, adata.var, **parts)


def points(adata: ad.AnnData) -> np.ndarray:
    """Numbers for the scores, as they are written in the matrix."""
    x = adata.layers.get("counts", adata.X)
    x = x.to_memory() if hasattr(x, "to_memory") else x.compute() if hasattr(x, "compute") else x
    return (x.toarray() if sparse.issparse(x) else np.asarray(x))[:, :3]


@dataclass(frozen=True)
class Row:
    call: Callable[[ad.AnnData, dict[str, Any]], Any]
    prepare: Callable[[ad.AnnData, dict[str, Any]], Any] = nothing
    examples: int = 3
    memory: bool = False
    """Needs the matrix in memory, and says so."""
    subsets: bool = False
    """Takes cells and genes out."""


def layer(how: dict[str, Any]) -> dict[str, Any]:
    return {"layer": how.get("layer")}


def control(how: dict[str, Any]) -> dict[str, Any]:
    return {"condition_key": how["background_key"], "control": how["background"], **layer(how)}


ROWS: dict[str, Row] = {
    "tl.bcnmf": Row(lambda a, how: fitted(a, how), examples=9),
    "tl.bcnmf split": Row(lambda a, how: split(a, how)),
    "tl.bcnmf gaussian": Row(lambda a, how: fitted(a, how, likelihood="gaussian"), examples=4),
    "tl.bcnmf nb": Row(lambda a, how: fitted(a, how, likelihood="nb"), examples=4),
    "tl.bcnmf zinb": Row(lambda a, how: fitted(a, how, likelihood="zinb"), examples=4),
    "tl.nmf": Row(lambda a, how: bc.tl.nmf(a, **layer(how), **FEW)),
    "tl.project": Row(lambda a, how: bc.tl.project(a, reference(a), key_added="new", **layer(how)), fitted),
    "tl.update": Row(lambda a, how: bc.tl.update(a, reference(a), max_iter=3, progress=False, **layer(how)), fitted),
    "tl.associate": Row(lambda a, how: bc.tl.associate(a, groupby="condition", sample_key="donor"), fitted),
    "tl.associate_genes": Row(lambda a, how: bc.tl.associate_genes(a, groupby="condition", **layer(how)), fitted),
    "tl.background_check": Row(
        lambda a, how: bc.tl.background_check(
            a, **how, **{**FEW, "n_background_topics": 2, "sample_key": "donor", "confounders": ["kind"]}
        )
    ),
    "tl.consensus": Row(again),
    "tl.cpca": Row(lambda a, how: bc.tl.cpca(a, **how, n_components=2)),
    "tl.deltanmf": Row(
        lambda a, how: bc.tl.deltanmf(a, **control(how), n_topics_control=2, n_topics_case=1, max_iter=4)
    ),
    "tl.enrich": Row(lambda a, how: enriched(a), fitted),
    "tl.power": Row(lambda a, how: bc.tl.power(a), by_donor, examples=2),
    "tl.select_alpha": Row(chosen),
    "tl.select_n_topics": Row(
        lambda a, how: bc.tl.select_n_topics(
            a, **how, **{**FEW, "n_topics": [2], "n_background_topics": [1], "n_folds": 2}
        )
    ),
    "tl.umap": Row(lambda a, how: bc.tl.umap(a, n_neighbors=5), fitted, examples=1),
    "tl.gpnsf": Row(spatial, examples=1),
    "tl.gpnsf_predict": Row(lambda a, how: bc.tl.gpnsf_predict(a, np.zeros((2, 2))).X, spatial, examples=1),
    "tl.enhance": Row(lambda a, how: bc.tl.enhance(a), spatial, examples=2),
    "pp.gene_similarity": Row(
        lambda a, how: bc.pp.gene_similarity(pd.DataFrame(points(a)), n_neighbors=1).graph.toarray()
    ),
    "pp.highly_variable_genes": Row(
        lambda a, how: bc.pp.highly_variable_genes(a, **how, n_top_genes=4), examples=5, memory=True
    ),
    "pp.match_depth": Row(lambda a, how: bc.pp.match_depth(a, **how), examples=5, memory=True, subsets=True),
    "pp.protein_coding": Row(lambda a, how: bc.pp.protein_coding(a)),
    "pp.recipe": Row(
        lambda a, how: bc.pp.recipe(a, **how, n_top_genes=4, min_genes=1, min_cells=1),
        examples=5,
        memory=True,
        subsets=True,
    ),
    "get.associations": Row(lambda a, how: bc.get.associations(a), then(associated)),
    "get.donors": Row(lambda a, how: bc.get.donors(a), by_donor, examples=2),
    "get.enrichment": Row(lambda a, how: bc.get.enrichment(a), then(enriched)),
    "get.obs_df": Row(lambda a, how: bc.get.obs_df(a, topics=[0], columns=["condition"]), fitted),
    "get.loadings": Row(lambda a, how: bc.get.loadings(a), fitted),
    "get.top_genes": Row(lambda a, how: bc.get.top_genes(a, n_genes=3, by="specificity"), fitted),
    "get.topics": Row(lambda a, how: bc.get.topics(a), fitted),
    "get.usage": Row(lambda a, how: bc.get.usage(a, normalize=True), fitted),
    "metrics.proportions": Row(lambda a, how: bc.metrics.proportions(points(a))),
    "metrics.ari_bootstrap": Row(
        lambda a, how: bc.metrics.ari_bootstrap(points(a), a.obs["condition"], n_boot=2, groups=a.obs["donor"])
    ),
    "metrics.auc": Row(lambda a, how: bc.metrics.auc(points(a), a.obs["condition"])),
    "metrics.contrast_ratio": Row(lambda a, how: bc.metrics.contrast_ratio(points(a)[::2], points(a)[1::2])),
    "metrics.leakage": Row(lambda a, how: bc.metrics.leakage(points(a), a.obs["condition"], n_folds=2)),
    "metrics.matched_cosine": Row(lambda a, how: bc.metrics.matched_cosine(points(a), points(a)[:, :2])),
    "metrics.compare": Row(
        lambda a, how: bc.metrics.compare(
            a,
            **how,
            labels="kind",
            methods=["pca", "cpca", "nmf"],
            n_topics=2,
            n_seeds=1,
            n_boot=2,
            max_iter=3,
        ).drop(columns="seconds"),
        examples=2,
    ),
    "pl.alpha_path": Row(lambda a, how: bc.pl.alpha_path(a), chosen, examples=1),
    "pl.associations": Row(lambda a, how: bc.pl.associations(a, "kind"), then(associated), examples=1),
    "pl.bubbles": Row(lambda a, how: bc.pl.bubbles(a, "condition"), fitted),
    "pl.compare": Row(
        lambda a, how: bc.pl.compare(pd.DataFrame({"method": ["a/b"], "alpha": [np.nan], "ari": [0.5]})), examples=1
    ),
    "pl.composition": Row(lambda a, how: bc.pl.composition(a, "condition", "kind"), examples=4),
    "pl.donors": Row(lambda a, how: bc.pl.donors(a), by_donor, examples=1),
    "pl.enrichment": Row(lambda a, how: bc.pl.enrichment(a), then(enriched), examples=1),
    "pl.gene_frequency": Row(lambda a, how: bc.pl.gene_frequency(a), fitted),
    "pl.images": Row(lambda a, how: bc.pl.images(a, shape=(3, a.n_vars // 3)), fitted, examples=1),
    "pl.lengthscales": Row(lambda a, how: bc.pl.lengthscales(a), spatial, examples=1),
    "pl.loadings": Row(lambda a, how: bc.pl.loadings(a, n_genes=3), fitted),
    "pl.loss": Row(lambda a, how: bc.pl.loss(a), fitted, examples=1),
    "pl.spatial_topics": Row(lambda a, how: bc.pl.spatial_topics(a), spatial, examples=1),
    "pl.stability": Row(lambda a, how: bc.pl.stability(a), again, examples=1),
    "pl.target_share": Row(lambda a, how: bc.pl.target_share(a, ["kind", "condition"]), by_donor, examples=1),
    "pl.topics_forest": Row(lambda a, how: bc.pl.topics_forest(a), by_donor, examples=1),
    "pl.umap": Row(lambda a, how: bc.pl.umap(a, color="condition"), then(placed), examples=4),
    "pl.usage": Row(lambda a, how: bc.pl.usage(a, "condition", sample_key="donor"), fitted),
}


# --- what must hold --------------------------------------------------------------------------------------------------


def slots(adata: ad.AnnData) -> dict[str, Any]:
    """Every field but the matrices, by its name."""
    found: dict[str, Any] = {}
    for slot in ("obs", "var"):
        table = getattr(adata, slot)
        found |= {f".{slot}_names": table.index.to_numpy()} | {f".{slot}[{name}]": table[name] for name in table}
    for slot in ("obsm", "varm", "uns"):
        found |= {f".{slot}[{name}]": value for name, value in getattr(adata, slot).items()}
    return found


def held(matrix: Any) -> list[np.ndarray]:
    """The arrays that make up a matrix."""
    if hasattr(matrix, "to_memory") or hasattr(matrix, "compute"):
        return held(points_of(matrix))
    if sparse.issparse(matrix):
        return [matrix.data, matrix.indices, matrix.indptr]
    return [] if matrix is None else [np.asarray(matrix)]


def points_of(matrix: Any) -> Any:
    return matrix.to_memory() if hasattr(matrix, "to_memory") else matrix.compute()


def data(adata: ad.AnnData) -> list[np.ndarray]:
    """The arrays of X, the layer and raw."""
    raw = [] if adata.raw is None else held(adata.raw.X)
    return [part.copy() for part in [*held(adata.X), *held(adata.layers.get("counts")), *raw]]


def alike(a: Any, b: Any, where: str) -> None:
    """The same result, numbers to about 1e-5 of the largest."""
    if isinstance(a, Mapping):
        assert set(a) == set(b), where
        for key in a:
            if key not in ("mask_var", "layer", "layers"):
                alike(a[key], b[key], f"{where}[{key}]")
    elif isinstance(a, pd.DataFrame):
        assert list(a.columns) == list(b.columns), where
        for i in range(a.shape[1]):
            alike(a.iloc[:, i], b.iloc[:, i], f"{where}[{a.columns[i]}]")
    elif isinstance(a, plt.Axes | plt.Figure) or a is None:
        assert type(a) is type(b), where
    elif isinstance(a, str | bool):
        assert a == b, where
    elif isinstance(a, list | tuple) and any(not np.isscalar(x) for x in a):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            alike(one, other, f"{where}[{i}]")
    else:
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, where
        if a.dtype.kind in "fiub" and b.dtype.kind in "fiub":
            size = np.abs(b[np.isfinite(b)]).max(initial=0) if b.size else 0
            np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2e-3, atol=2e-4 * size, err_msg=where)
        else:
            assert [str(x) for x in a.ravel()] == [str(x) for x in b.ravel()], where


OF_OTHERS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)


def check_error(error: BaseException) -> None:
    """An error is one that we raise, about an argument, a slot or a value."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert isinstance(error, ValueError | TypeError | KeyError), repr(error)
    assert Path(last.filename).is_relative_to(PACKAGE), f"{error!r} at {last}"
    assert str(last.line).startswith("raise"), f"{error!r} at {last}"
    assert "`" in str(error) or "sparse matrix on disk" in str(error), error


def outcome(
    row: Row, adata: ad.AnnData, how: dict[str, Any], *, draw: bool = False
) -> tuple[Any, BaseException | None]:
    """What a call returns, or the error it ends in; warnings are for the user, or none."""
    error, result = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = row.call(adata, how)
            if draw and plt.get_fignums():
                plt.gcf().canvas.draw()
        except Exception as e:  # noqa: BLE001 (any may come: which one is the question)
            error = e
    plt.close("all")
    if error is not None:
        check_error(error)
    for warning in caught:
        if issubclass(warning.category, OF_OTHERS) and "bcnmf_sc" not in warning.filename:
            continue  # old versions of others, among themselves
        assert warning.category in (UserWarning, ConvergenceWarning, ad.ImplicitModificationWarning), str(warning)
    return result, error


def meet(name: str, odd: Odd) -> bool:
    """Call the function on the odd data and on the plain twin, and compare; whether there were two results."""
    row = ROWS[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata, twin, how = dress(odd, row.prepare)
    except (ValueError, TypeError) as error:  # what comes before refuses these values
        check_error(error)
        return False
    expected, refused = outcome(row, twin, how)
    before, matrices = {k: deepcopy(v) for k, v in slots(adata).items()}, data(adata)
    result, error = outcome(row, adata, how, draw=True)
    now = slots(adata)
    if not ROWS[name].subsets or error is not None:
        for one, other in zip(data(adata), matrices, strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        np.testing.assert_array_equal(points(adata), points(twin))
    if error is not None:
        assert set(now) == set(before)
        for slot, value in before.items():
            alike(now[slot], value, slot)
            assert pickle.dumps(np.asarray(now[slot]).dtype) == pickle.dumps(np.asarray(value).dtype)
        may = "twice" in odd.names or odd.storage in ("backed csc",) or (row.memory and odd.storage in ON_DISK)
        may = may or (odd.groups == "int" and name.startswith("pl."))  # a column of numbers is a scale there
        assert refused is not None or may, f"refused: {error!r}"
        return False
    assert refused is None, f"the plain twin alone is refused: {refused!r}"
    plain = slots(twin)
    assert set(now) == set(plain)
    if "twice" not in odd.names:
        alike(result, expected, "result")
    for slot, value in plain.items():
        if "twice" not in odd.names and not slot.endswith("_names"):
            alike(now[slot], value, slot)
        if slot in INPUT and not row.subsets:
            pd.testing.assert_series_equal(now[slot], before[slot])
    usage = now.get(".obsm[X_bcnmf]")
    if usage is not None:
        assert np.isfinite(usage).all()
        assert (usage >= 0).all()
    return True


INPUT = (".obs[condition]", ".obs[donor]", ".obs[kind]", ".obs[score]", ".var[gene_biotype]")


def or_plain(kinds: Collection[str]) -> st.SearchStrategy[str]:
    """Half of them plain (the first): of data that are odd in every way, most are refused, and nothing is compared."""
    return st.one_of(st.just(next(iter(kinds))), st.sampled_from(list(kinds)))


ODD = st.builds(
    Odd,
    values=or_plain(VALUES),
    dtype=or_plain(DTYPES),
    storage=st.sampled_from(list(MATRICES)),
    groups=or_plain(GROUPS),
    names=or_plain(NAMES),
).filter(lambda odd: odd != Odd())  # the first example would be the twin itself
ACCEPTED = Odd("empty rows", "int32", "unsorted", "unused levels", "hostile")
"""What every function takes."""


def test_every_public_function_is_listed():
    assert {name.split()[0] for name in ROWS} == set(FUNCTIONS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
def test_odd_data(name):
    n = int(os.environ.get("BCNMF_SC_ABUSE", ROWS[name].examples))
    phases = [Phase.explicit] + [Phase.generate, Phase.shrink] * (n > 1)
    checks = list(HealthCheck)
    compared = []

    @seed(zlib.crc32(name.encode()))
    @settings(
        max_examples=max(n - 1, 1),
        phases=phases,
        database=None,
        suppress_health_check=checks,
    )
    @example(ACCEPTED)
    @given(ODD)
    def test(odd: Odd) -> None:
        compared.append(meet(name, odd))

    test()
    assert compared[0], "refused what every function takes"
