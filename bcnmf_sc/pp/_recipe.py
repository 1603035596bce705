"""Filter cells and genes, then choose genes, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._anndata import check_names
from .._utils.checks import whole_number
from .._utils.errors import UserError
from . import _biotypes as biotypes
from ._genes import LEAST, flag_column, logger, n_expressed, write_var
from ._highly_variable_genes import Flavor, choose_genes, conditions_of, counts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from ._biotypes import Annotation


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
    check_names(adata)
    conditions_of(adata, background_key, background=background, target=target)
    whole_number("min_genes", min_genes, 0)
    whole_number("min_cells", min_cells, 0)
    counts = counts_of(adata, layer)
    n_genes = n_expressed(counts, axis=1)
    cells = n_genes >= min_genes
    counts = counts[cells]
    genes = n_expressed(counts, axis=0) >= min_cells
    if min(cells.sum(), genes.sum()) < LEAST:
        msg = (
            f"`min_genes` and `min_cells` must leave at least {LEAST} cells and genes, got {cells.sum()} cells and "
            f"{genes.sum()} genes with {min_genes} and {min_cells}. A median cell has counts in "
            f"{np.median(n_genes):.0f} genes."
        )
        raise UserError(msg)

    kept = adata[cells, genes]
    in_target, in_background, record = conditions_of(kept, background_key, background=background, target=target)
    columns = pd.DataFrame(index=kept.var_names)
    coding = None
    if annotation is not None or biotypes.biotype_column(kept) is not None:
        columns["protein_coding"], coding = biotypes.protein_coding(kept, column=None, annotation=annotation)
    elif "protein_coding" not in kept.var:
        logger.info(
            "No biotypes in `adata.var` (%s) and no `annotation`: all genes stay eligible.",
            ", ".join(biotypes.COLUMNS),
        )
    variable = choose_genes(
        counts[:, genes],
        in_target=in_target,
        in_background=in_background,
        n_top_genes=n_top_genes,
        flavor=flavor,
        eligible=flag_column(kept) if coding is None else columns["protein_coding"].to_numpy(),
    )
    columns = columns.join(variable.set_axis(kept.var_names))
    out = adata.copy() if copy else adata
    out._inplace_subset_obs(cells)
    out._inplace_subset_var(genes)
    write_var(out, columns)
    if coding is not None:
        out.uns["protein_coding"] = coding
    out.uns["hvg"] = {"flavor": flavor, "n_top_genes": n_top_genes, **record, "layer": layer or "X"}
    logger.info("Kept %d of %d cells and %d of %d genes.", cells.sum(), len(cells), genes.sum(), len(genes))
    return out if copy else None
