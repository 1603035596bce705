"""Filter cells and genes and select genes, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """Prepare counts as in the paper: filter cells and genes, then select protein-coding, highly variable genes.

    Cells with few genes, then genes in few of the remaining cells, are removed; the selected genes are only marked in
    `.var`. Target and background are treated alike throughout. Unlike in the paper's recipe, counts stay counts: the
    count likelihoods model library size and the noise of small counts themselves, and both are lost in scaled or
    log-transformed values. Normalisation is used only to select variable genes.

    Nothing is downloaded: without `annotation` and without a column of biotypes in `.var`, all genes stay eligible,
    with a note in the log.

    Parameters
    ----------
    adata
        Counts.
    background_key
        Column of `.obs` with the conditions.
    background
        Category or categories of the background; of a mapping (category to alpha) the keys.
    target
        Category or categories of the target. `None` takes all others, "all" takes every cell with a condition.
    min_genes
        Cells with counts in fewer genes are removed. 0 keeps all.
    min_cells
        Genes with counts in fewer of the remaining cells are removed. 0 keeps all.
    n_top_genes
        Number of highly variable genes to mark.
    annotation
        See `protein_coding`.
    layer
        Layer with the counts; `None` for `.X`.
    flavor
        See `highly_variable_genes`.
    copy
        Return a modified copy instead of changing `adata`.

    Returns
    -------
    `None`, or a modified copy if `copy=True`. Removes cells and genes, and sets the fields of `protein_coding` (if
    biotypes are available) and `highly_variable_genes`.

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
    notes: dict[str, Any] = {} if coding is None else {"protein_coding": coding}
    notes["hvg"] = {"flavor": flavor, "n_top_genes": n_top_genes, **record, "layer": layer or "X"}
    write_var(out, columns, **notes)
    logger.info("Kept %d of %d cells and %d of %d genes.", cells.sum(), len(cells), genes.sum(), len(genes))
    return out if copy else None
