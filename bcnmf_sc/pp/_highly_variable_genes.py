"""Select highly variable genes over target and background together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .._anndata import check_names, matrix_name, read_design, read_matrix
from .._utils.checks import matrix_values, one_of, warn_of_fractions, whole_number
from .._utils.errors import UserError, UserTypeError
from ._genes import LEAST, flag_column, logger, n_expressed, write_var

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


Flavor: TypeAlias = Literal["seurat", "cell_ranger", "seurat_v3"]


def highly_variable_genes(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None = None,
    n_top_genes: int = 3000,
    layer: str | None = None,
    flavor: Flavor = "seurat",
    copy: bool = False,
) -> AnnData | None:
    """Mark highly variable genes over target and background together, by scanpy's method.

    The cells of both conditions are pooled, each counted once, so a gene may be selected because it varies within a
    condition or because it differs between them; both matter to a contrast. Scanpy's `batch_key` is not used, because
    it prefers genes that vary in *every* batch and so ranks target-only programs last: in simulations it selected about
    half as many genes of target-only programs as pooling did.

    The counts are not modified: for the flavors "seurat" and "cell_ranger" a temporary copy of the used cells and genes
    is scaled to 10,000 counts per cell and log-transformed, as in the paper.

    Parameters
    ----------
    adata
        Counts. A dask array is read into memory as a sparse matrix. Genes without a count in the used cells are never
        selected, nor are genes for which `.var["protein_coding"]` is False, if that column exists.
    background_key
        Column of `.obs` with the conditions.
    background
        Category or categories of the background; of a mapping (category to alpha) the keys.
    target
        Category or categories of the target. `None` takes all others, "all" takes every cell with a condition.
    n_top_genes
        Number of genes to mark; all eligible genes if there are fewer.
    layer
        Layer with the counts; `None` for `.X`.
    flavor
        Scanpy's method. "seurat_v3" works on the counts directly and requires scikit-misc.
    copy
        Return a modified copy instead of changing `adata`.

    Returns
    -------
    `None`, or a modified copy if `copy=True`. Sets the fields:

    `.var["highly_variable"]` : bool array
        Whether the gene was selected.
    `.var["highly_variable_rank"]` : float array
        Rank by scanpy's method, from 0; NaN for ineligible genes.
    `.var["highly_variable_target"]`, `.var["highly_variable_background"]` : bool arrays
        Whether the gene is among the top `n_top_genes` by that condition's cells alone.
    `.var["highly_variable_nbatches"]` : int array
        Number of conditions (of the two) in which it is.
    `.var["means"]`, `.var["dispersions"]`, `.var["dispersions_norm"]` : float arrays
        Scanpy's statistics over target and background together; NaN for ineligible genes. With the flavor
        "seurat_v3" the last two are `variances` and `variances_norm`.
    `.uns["hvg"]` : dict
        `flavor`, `n_top_genes`, `background_key`, `background`, `target`, `layer`.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.pp.highly_variable_genes(adata, background_key="condition", background="ctrl", n_top_genes=200)
    >>> int(adata.var["highly_variable"].sum())
    200
    """
    check_names(adata)
    in_target, in_background, record = conditions_of(adata, background_key, background=background, target=target)
    columns = choose_genes(
        counts_of(adata, layer),
        in_target=in_target,
        in_background=in_background,
        n_top_genes=n_top_genes,
        flavor=flavor,
        eligible=flag_column(adata),
    )
    out = adata.copy() if copy else adata
    write_var(out, columns, hvg={"flavor": flavor, "n_top_genes": n_top_genes, **record, "layer": layer or "X"})
    return out if copy else None


def conditions_of(
    adata: AnnData,
    key: str,
    *,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[str, object]]:
    """Return masks of the target and background cells, and their names for the record."""
    design = read_design(adata, key, background, target)
    if target is None:
        names = ["not background"]
    else:
        names = [str(target)] if isinstance(target, str) or not isinstance(target, Iterable) else list(map(str, target))
    record: dict[str, object] = {"background_key": key, "background": list(design.backgrounds), "target": names}
    return design.target, design.background, record


def counts_of(adata: AnnData, layer: str | None, *, whole: bool = False) -> NDArray[np.number] | sparse.csr_matrix:
    """Check the counts of all cells and return them unchanged; CSC and dask arrays as CSR (a copy, for row access).

    Values that are not whole numbers bring a warning; if ``whole``, an error.
    """
    counts = read_matrix(adata, layer)
    where = matrix_name(layer)
    if hasattr(counts, "map_blocks"):
        counts = counts.rechunk({1: -1}).map_blocks(sparse.csr_matrix, dtype=counts.dtype).compute()
    if sparse.issparse(counts):
        counts = counts.tocsr()
        values = counts.data
    elif isinstance(counts, np.ndarray):
        values = counts
    else:
        rule = "a NumPy array, a SciPy sparse matrix in memory or a dask array"
        msg = f"{where} must be {rule}, got {type(counts).__name__}."
        raise UserTypeError(msg)
    matrix_values(where, values.size - int(np.isfinite(values).sum()), values.min(initial=0))
    if values.dtype.kind == "f":
        n_fractional = int((values != np.rint(values)).sum())
        if whole and n_fractional:
            msg = f"{where} must hold counts, got {n_fractional} values that are not whole numbers. Name a `layer`."
            raise UserError(msg)
        used = "genes are selected by counts"
        warn_of_fractions(where, n_fractional, values.max(initial=0), used, adata.layers.keys())
    return counts


# --- highly variable genes -------------------------------------------------------------------------------------------


def choose_genes(
    counts: NDArray[np.number] | sparse.csr_matrix,
    *,
    in_target: NDArray[np.bool_],
    in_background: NDArray[np.bool_],
    n_top_genes: int,
    flavor: Flavor,
    eligible: NDArray[np.bool_],
) -> pd.DataFrame:
    """Compute the columns for `.var`, in the order of the genes, from a copy of the data needed."""
    whole_number("n_top_genes", n_top_genes, 1)
    one_of("flavor", flavor, get_args(Flavor))
    used = in_target | in_background
    counts = counts[used]
    eligible = eligible & (n_expressed(counts, axis=0) > 0)
    if eligible.sum() < LEAST:
        msg = (
            f"`adata` must have at least {LEAST} eligible genes, got {eligible.sum()}. A gene needs a count in "
            "a target or background cell and, if `adata.var['protein_coding']` exists, True there."
        )
        raise UserError(msg)
    if n_top_genes >= eligible.sum():
        logger.info("`n_top_genes` %d is not below the %d eligible genes: all are kept.", n_top_genes, eligible.sum())

    import scanpy as sc  # slow to import

    chosen = counts[:, eligible].astype(np.float32)  # astype copies
    work = AnnData(sparse.csr_matrix(chosen) if sparse.issparse(chosen) else chosen)  # scanpy fails on csr_array
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some cells have zero counts", category=UserWarning)
        if flavor != "seurat_v3":
            sc.pp.normalize_total(work, target_sum=1e4)
            sc.pp.log1p(work)
    joint = _statistics(work, flavor)
    ranks = {
        name: _statistics(work[mask[used]], flavor)["rank"].to_numpy()
        for name, mask in (("target", in_target), ("background", in_background))
    }
    position = joint["rank"].rank(method="first").to_numpy() - 1  # constant genes follow, in their order

    columns = pd.DataFrame(index=range(len(eligible)))
    columns["highly_variable"] = _spread(position < n_top_genes, eligible, fill=False)
    columns["highly_variable_rank"] = _spread(position, eligible, fill=np.nan)
    for name, rank in ranks.items():
        columns[f"highly_variable_{name}"] = _spread(rank < n_top_genes, eligible, fill=False)
    columns["highly_variable_nbatches"] = columns[["highly_variable_target", "highly_variable_background"]].sum(axis=1)
    for name in joint.columns.drop("rank"):
        columns[name] = _spread(joint[name].to_numpy(dtype=float), eligible, fill=np.nan)
    return columns


def _statistics(work: AnnData, flavor: Flavor) -> pd.DataFrame:
    """Return scanpy's table for these cells, with the rank of every gene; constant genes come last (infinity)."""
    import scanpy as sc

    mean = np.asarray(work.X.mean(axis=0)).ravel()
    largest = work.X.max(axis=0)
    largest = largest.toarray().ravel() if sparse.issparse(largest) else largest
    varies = largest > mean * (1 + 1e-6)
    score = "variances_norm" if flavor == "seurat_v3" else "dispersions_norm"
    names = ["means", score.removesuffix("_norm"), score]
    table = pd.DataFrame(np.nan, index=work.var_names, columns=names)
    if varies.sum() >= LEAST:
        part = work[:, varies].copy()
        try:
            found = sc.pp.highly_variable_genes(part, n_top_genes=1, flavor=flavor, check_values=False, inplace=False)
        except ImportError as error:
            error.add_note("`flavor='seurat_v3'` needs scikit-misc: `pip install scikit-misc`. 'seurat' does not.")
            raise
        except ValueError as error:
            msg = (
                f"`flavor` {flavor!r} does not suit these data: scanpy failed on {part.n_obs} cells and {part.n_vars} "
                f"genes with '{error}'. Try `flavor='seurat'`, or remove genes that are in few cells."
            )
            raise UserError(msg) from error
        table.loc[varies, names] = found[names].to_numpy(dtype=float)
    table["rank"] = np.inf
    scored = table[score].notna()
    table.loc[scored, "rank"] = table.loc[scored, score].rank(ascending=False, method="first") - 1
    return table


def _spread(values: NDArray[np.generic], eligible: NDArray[np.bool_], *, fill: object) -> NDArray[np.generic]:
    out = np.full(len(eligible), fill, dtype=values.dtype)
    out[eligible] = values
    return out
