"""Choose the cells and genes to model. Everything here leaves the counts as counts; nothing is factorised."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from . import _biotypes as biotypes
from ._anndata import check_anndata, check_names, listed, read_design, read_matrix, stack_level
from ._similarity import gene_similarity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ._biotypes import Annotation

__all__ = ["gene_similarity", "highly_variable_genes", "protein_coding", "recipe"]

logger = logging.getLogger(__name__)

Flavor: TypeAlias = Literal["seurat", "cell_ranger", "seurat_v3"]

_LEAST = 2  # cells, genes


def protein_coding(
    adata: AnnData, *, column: str | None = None, annotation: Annotation | None = None, copy: bool = False
) -> AnnData | None:
    """Mark the genes that code for a protein, from a source that is named and checked.

    The first of these that applies is used: `column`; `annotation`; a column of `.var` called `gene_biotype`,
    `gene_type`, `biotype`, `feature_biotype` or `feature_type` that has "protein_coding" among its values; the
    GENCODE annotation, downloaded once into the cache (about 30 MB; human, or mouse where the gene ids begin with
    ENSMUSG). Names are matched exactly, ids without their version suffix.
    Genes that the source does not know are not protein coding. A source that knows fewer than half of the genes is
    the wrong source, and an error.

    Parameters
    ----------
    adata
        Genes in `.var_names`, or in a column of `.var` such as `gene_ids`, as ids or symbols.
    column
        Column of `.var` to use: biotypes ("protein_coding", ...), or True and False.
    annotation
        Path of a GTF file (`.gtf`, `.gtf.gz`) or of a CSV or TSV table (possibly compressed), or a DataFrame. A table
        needs a column of biotypes (one of the names above) and one or more columns of gene ids or symbols; of a
        DataFrame the index counts too. "human" and "mouse" name the two downloads.
    copy
        Return a changed copy and leave `adata` alone.

    Returns
    -------
    `None`, or a changed copy with `copy=True`. Fields set:

    `.var["protein_coding"]` : bool array
        Whether the gene codes for a protein.
    `.uns["protein_coding"]` : dict
        `source`, `matched_by` (which names were matched), `n_matched`, `n_genes`, `n_protein_coding`.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.pp.protein_coding(adata)
    >>> int(adata.var["protein_coding"].sum()), adata.uns["protein_coding"]["source"]
    (450, "var['gene_biotype']")
    """
    _check_adata(adata)
    flags, record = biotypes.protein_coding(adata, column=column, annotation=annotation)
    out = adata.copy() if copy else adata
    _write_var(out, pd.DataFrame({"protein_coding": flags}, index=out.var_names))
    out.uns["protein_coding"] = record
    return out if copy else None


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
    """Mark the genes that vary most over target and background together, by scanpy's method.

    The cells of both conditions are pooled, each counted once, so a gene may be chosen because it varies in either
    condition or because it differs between them; both matter to a contrast. Scanpy's `batch_key` is not used, because
    it prefers genes that vary in *every* batch, and a program that only the target has would come last: of the genes
    of simulated target-only programs it chose about half as many as the pooled cells did.

    The counts are left as they are: for the flavors "seurat" and "cell_ranger" a copy of the used cells and genes is
    scaled to 10,000 counts per cell and logarithmised, as in the paper, and dropped.

    Parameters
    ----------
    adata
        Counts. Genes without a count in the used cells are never chosen, nor are genes for which
        `.var["protein_coding"]` is False, if that column exists.
    background_key
        Column of `.obs` that holds the conditions.
    background
        Category or categories of the background; of a mapping (category to alpha) the keys.
    target
        Category or categories of the target. `None` takes all others, "all" takes every cell with a condition.
    n_top_genes
        How many genes to mark. All eligible ones when there are no more than that.
    layer
        Layer that holds the counts; `None` for `.X`.
    flavor
        Scanpy's method. "seurat_v3" works on the counts directly and needs the package scikit-misc.
    copy
        Return a changed copy and leave `adata` alone.

    Returns
    -------
    `None`, or a changed copy with `copy=True`. Fields set:

    `.var["highly_variable"]` : bool array
        The genes chosen.
    `.var["highly_variable_rank"]` : float array
        Position in scanpy's order, from 0; NaN for genes that could not be chosen.
    `.var["highly_variable_target"]`, `.var["highly_variable_background"]` : bool arrays
        Whether the gene is among the first `n_top_genes` by that condition's cells alone.
    `.var["highly_variable_nbatches"]` : int array
        In how many of the two conditions it is.
    `.var["means"]`, `.var["dispersions"]`, `.var["dispersions_norm"]` : float arrays
        Scanpy's statistics over target and background together; NaN for genes that could not be chosen. With the flavor
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
    _check_adata(adata)
    in_target, in_background, record = _conditions(adata, background_key, background=background, target=target)
    columns = _highly_variable(
        _counts(adata, layer),
        in_target=in_target,
        in_background=in_background,
        n_top_genes=n_top_genes,
        flavor=flavor,
        eligible=_flag_column(adata),
    )
    out = adata.copy() if copy else adata
    _write_var(out, columns)
    out.uns["hvg"] = {"flavor": flavor, "n_top_genes": n_top_genes, **record, "layer": layer or "X"}
    return out if copy else None


def recipe(
    adata: AnnData,
    *,
    background_key: str,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None = None,
    min_genes: int = 200,
    min_cells: int = 3,
    n_top_genes: int = 3000,
    annotation: Annotation | None = None,
    layer: str | None = None,
    flavor: Flavor = "seurat",
    copy: bool = False,
) -> AnnData | None:
    """Prepare counts as the paper does: filter cells and genes, protein-coding genes, highly variable genes.

    Cells with few genes, then genes in few of the remaining cells, are removed; the rest is marked in `.var`, not
    removed, and target and background are treated alike throughout. Unlike the paper's recipe, counts stay counts:
    the count likelihoods model library size and the noise of small counts themselves, and scaled or logarithmised
    values have lost both. Normalisation is used for the choice of variable genes only.

    Nothing is downloaded: without `annotation` and without a column of biotypes in `.var`, the restriction to
    protein-coding genes is left out with a note in the log.

    Parameters
    ----------
    adata
        Counts.
    background_key
        Column of `.obs` that holds the conditions.
    background
        Category or categories of the background; of a mapping (category to alpha) the keys.
    target
        Category or categories of the target. `None` takes all others, "all" takes every cell with a condition.
    min_genes
        Cells in which fewer genes have a count are removed. 0 keeps all.
    min_cells
        Genes with a count in fewer of the remaining cells are removed. 0 keeps all.
    n_top_genes
        How many highly variable genes to mark.
    annotation
        As in `protein_coding`.
    layer
        Layer that holds the counts; `None` for `.X`.
    flavor
        As in `highly_variable_genes`.
    copy
        Return a changed copy and leave `adata` alone.

    Returns
    -------
    `None`, or a changed copy with `copy=True`. Cells and genes are removed, and the fields of `protein_coding` (where
    the biotypes are known) and `highly_variable_genes` are set.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.pp.recipe(adata, background_key="condition", background="ctrl", min_genes=50, n_top_genes=200)
    >>> int(adata.var["highly_variable"].sum()), bool(adata.var.query("highly_variable")["protein_coding"].all())
    (200, True)
    """
    _check_adata(adata)
    _conditions(adata, background_key, background=background, target=target)
    _check_at_least("min_genes", min_genes, 0)
    _check_at_least("min_cells", min_cells, 0)
    counts = _counts(adata, layer)
    n_genes = _n_expressed(counts, axis=1)
    cells = n_genes >= min_genes
    counts = counts[cells]
    genes = _n_expressed(counts, axis=0) >= min_cells
    if min(cells.sum(), genes.sum()) < _LEAST:
        msg = (
            f"`min_genes` and `min_cells` must leave at least {_LEAST} cells and genes, got {cells.sum()} cells and "
            f"{genes.sum()} genes with {min_genes} and {min_cells}. A median cell has counts in "
            f"{np.median(n_genes):.0f} genes."
        )
        raise ValueError(msg)

    kept = adata[cells, genes]
    in_target, in_background, record = _conditions(kept, background_key, background=background, target=target)
    columns = pd.DataFrame(index=kept.var_names)
    coding = None
    if annotation is not None or biotypes.biotype_column(kept) is not None:
        columns["protein_coding"], coding = biotypes.protein_coding(kept, column=None, annotation=annotation)
    elif "protein_coding" not in kept.var:
        logger.info(
            "No biotypes in `adata.var` (%s) and no `annotation`: all genes stay eligible.",
            ", ".join(biotypes.COLUMNS),
        )
    variable = _highly_variable(
        counts[:, genes],
        in_target=in_target,
        in_background=in_background,
        n_top_genes=n_top_genes,
        flavor=flavor,
        eligible=_flag_column(kept) if coding is None else columns["protein_coding"].to_numpy(),
    )
    columns = columns.join(variable.set_axis(kept.var_names))
    out = adata.copy() if copy else adata
    out._inplace_subset_obs(cells)
    out._inplace_subset_var(genes)
    _write_var(out, columns)
    if coding is not None:
        out.uns["protein_coding"] = coding
    out.uns["hvg"] = {"flavor": flavor, "n_top_genes": n_top_genes, **record, "layer": layer or "X"}
    logger.info("Kept %d of %d cells and %d of %d genes.", cells.sum(), len(cells), genes.sum(), len(genes))
    return out if copy else None


# --- reading and writing ---------------------------------------------------------------------------------------------


def _check_adata(adata: AnnData) -> None:
    check_anndata(adata)
    check_names(adata)


def _check_at_least(name: str, value: float, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or value < least:
        msg = f"`{name}` must be an integer of at least {least}, got {value!r}."
        raise ValueError(msg)


def _write_var(adata: AnnData, columns: pd.DataFrame) -> None:
    """Add columns to `.var`; setting the whole frame makes a view actual without a warning."""
    adata.var = adata.var.assign(**{name: columns[name].to_numpy() for name in columns})


def _conditions(
    adata: AnnData,
    key: str,
    *,
    background: str | Sequence[str] | Mapping[str, float],
    target: str | Sequence[str] | None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[str, object]]:
    """Masks of the target and background cells, and their names for the record."""
    design = read_design(adata, key, background, target)
    if target is None:
        names = ["not background"]
    else:
        names = [str(target)] if isinstance(target, str) or not isinstance(target, Iterable) else list(map(str, target))
    record: dict[str, object] = {"background_key": key, "background": list(design.backgrounds), "target": names}
    return design.target, design.background, record


def _counts(adata: AnnData, layer: str | None) -> NDArray[np.number] | sparse.csr_matrix:
    """Check the counts of all cells and give them as they are, or CSC as CSR (a copy, for row access)."""
    counts = read_matrix(adata, layer)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if sparse.issparse(counts):
        counts = counts.tocsr()
        values = counts.data
    elif isinstance(counts, np.ndarray):
        values = counts
    else:
        msg = f"`{where}` must be a NumPy array or a SciPy sparse matrix in memory, got {type(counts).__name__}."
        raise TypeError(msg)
    if values.size and not np.isfinite(values.min() + values.max()):
        msg = f"`{where}` must be finite, got NaN or infinity."
        raise ValueError(msg)
    if values.size and values.min() < 0:
        msg = f"`{where}` must be counts, got {values.min():g}. Scaled data? Name the counts by `layer`."
        raise ValueError(msg)
    if values.dtype.kind == "f" and np.any(values != np.rint(values)):
        msg = f"`{where}` holds values that are not whole numbers (log-normalised?). Name the counts by `layer`."
        warnings.warn(msg, UserWarning, stacklevel=stack_level())
    return counts


def _n_expressed(counts: NDArray[np.number] | sparse.csr_matrix, *, axis: int) -> NDArray[np.int64]:
    return np.asarray((counts > 0).sum(axis=axis)).ravel()


def _flag_column(adata: AnnData) -> NDArray[np.bool_]:
    if "protein_coding" not in adata.var:
        return np.ones(adata.n_vars, dtype=bool)
    return adata.var["protein_coding"].astype("boolean").fillna(value=False).to_numpy(dtype=bool)


# --- highly variable genes -------------------------------------------------------------------------------------------


def _highly_variable(
    counts: NDArray[np.number] | sparse.csr_matrix,
    *,
    in_target: NDArray[np.bool_],
    in_background: NDArray[np.bool_],
    n_top_genes: int,
    flavor: Flavor,
    eligible: NDArray[np.bool_],
) -> pd.DataFrame:
    """Columns for `.var`, in the order of the genes, computed from a copy of what is needed."""
    _check_at_least("n_top_genes", n_top_genes, 1)
    if flavor not in get_args(Flavor):
        msg = f"`flavor` must be one of {listed(get_args(Flavor))}, got {flavor!r}."
        raise ValueError(msg)
    used = in_target | in_background
    counts = counts[used]
    eligible = eligible & (_n_expressed(counts, axis=0) > 0)
    if eligible.sum() < _LEAST:
        msg = (
            f"`adata` must have at least {_LEAST} genes to choose from, got {eligible.sum()}. A gene needs a count in "
            "a target or background cell and, where `adata.var['protein_coding']` exists, True there."
        )
        raise ValueError(msg)
    if n_top_genes >= eligible.sum():
        logger.info("`n_top_genes` %d is no less than the %d eligible genes: all kept.", n_top_genes, eligible.sum())

    import scanpy as sc  # slow to import

    chosen = counts[:, eligible].astype(np.float32)  # astype copies
    work = AnnData(sparse.csr_matrix(chosen) if sparse.issparse(chosen) else chosen)  # scanpy stumbles over csr_array
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
    position = joint["rank"].rank(method="first").to_numpy() - 1  # genes that do not vary follow, in their order

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
    """Scanpy's table for these cells, with the rank of every gene; genes that do not vary come last (infinity)."""
    import scanpy as sc

    mean = np.asarray(work.X.mean(axis=0)).ravel()
    largest = work.X.max(axis=0)
    largest = largest.toarray().ravel() if sparse.issparse(largest) else largest
    varies = largest > mean * (1 + 1e-6)
    score = "variances_norm" if flavor == "seurat_v3" else "dispersions_norm"
    names = ["means", score.removesuffix("_norm"), score]
    table = pd.DataFrame(np.nan, index=work.var_names, columns=names)
    if varies.sum() >= _LEAST:
        part = work[:, varies].copy()
        try:
            found = sc.pp.highly_variable_genes(part, n_top_genes=1, flavor=flavor, check_values=False, inplace=False)
        except ImportError as error:
            error.add_note("`flavor='seurat_v3'` needs scikit-misc: `pip install scikit-misc`. 'seurat' does not.")
            raise
        except ValueError as error:
            msg = (
                f"`flavor` {flavor!r} does not fit these data: scanpy stopped at {part.n_obs} cells and {part.n_vars} "
                f"genes with '{error}'. Try `flavor='seurat'`, or remove genes that are in few cells."
            )
            raise ValueError(msg) from error
        table.loc[varies, names] = found[names].to_numpy(dtype=float)
    table["rank"] = np.inf
    scored = table[score].notna()
    table.loc[scored, "rank"] = table.loc[scored, score].rank(ascending=False, method="first") - 1
    return table


def _spread(values: NDArray[np.generic], eligible: NDArray[np.bool_], *, fill: object) -> NDArray[np.generic]:
    out = np.full(len(eligible), fill, dtype=values.dtype)
    out[eligible] = values
    return out
