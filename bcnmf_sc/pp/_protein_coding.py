"""Mark protein-coding genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from .._anndata import check_names
from . import _biotypes as biotypes
from ._genes import write_var

if TYPE_CHECKING:
    from anndata import AnnData

    from ._biotypes import Annotation


def protein_coding(
    adata: AnnData, *, column: str | None = None, annotation: Annotation | None = None, copy: bool = False
) -> AnnData | None:
    """Mark protein-coding genes, from a source that is checked and recorded.

    The first of these that applies is used: `column`; `annotation`; a column of `.var` called `gene_biotype`,
    `gene_type`, `biotype`, `feature_biotype` or `feature_type` that has "protein_coding" among its values; the
    GENCODE annotation, downloaded once into the cache (about 30 MB; human, or mouse where the gene ids begin with
    ENSMUSG). Names are matched exactly, ids without their version suffix.
    Genes missing from the source are marked as not protein coding. It is an error if the source contains fewer than
    half of the genes.

    Parameters
    ----------
    adata
        Genes in `.var_names`, or in a column of `.var` such as `gene_ids`, as ids or symbols.
    column
        Column of `.var` to use: biotypes ("protein_coding", ...), or True and False.
    annotation
        Path of a GTF file (`.gtf`, `.gtf.gz`) or of a CSV or TSV table (possibly compressed), or a DataFrame. A table
        needs a column of biotypes (one of the names above) and one or more columns of gene ids or symbols, among them
        the index of a DataFrame. "human" and "mouse" download GENCODE's annotation.
    copy
        Return a modified copy instead of changing `adata`.

    Returns
    -------
    `None`, or a modified copy if `copy=True`. Sets the fields:

    `.var["protein_coding"]` : bool array
        Whether the gene is protein coding.
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
    check_names(adata)
    flags, record = biotypes.protein_coding(adata, column=column, annotation=annotation)
    out = adata.copy() if copy else adata
    write_var(out, pd.DataFrame({"protein_coding": flags}, index=out.var_names), protein_coding=record)
    return out if copy else None
