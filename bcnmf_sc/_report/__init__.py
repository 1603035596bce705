"""The report: one self-contained HTML page from an analysed AnnData.

`_answer` and `_cautions` make the first part, `_content` the other sections, from what `_analysis` reads; `_page`
renders them as HTML with the template `page.html.jinja`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._anndata import check_anndata
from .._methods import METHODS, method_of
from .._stored import gene_labels, stored, stored_slot
from .._utils.checks import listed, whole_number
from .._utils.errors import UserError
from .._utils.files import check_place, replacing

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from anndata import AnnData


def report(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    key: str = "bcnmf",
    title: str | None = None,
    n_genes: int = 10,
    gene_symbols: str | None = None,
    groupby: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the results of a factorisation to one self-contained HTML page.

    The page opens with the answer: how many cells are affected and which, by which programs, with their specific genes
    and effects, and how far to trust it, as a traffic light with its reasons. Then follow the evidence, diagnostics and
    methods. It shows what is stored in `adata` and fits nothing; a list says which calls would add more. Figures are
    embedded with text alternatives; the page uses neither scripts nor the network.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation; it is not modified, and may be backed by a file.
    path
        The file to write.
    key
        The `key_added` under which the factorisation was stored. What `tl.background_check`, `tl.select_alpha` and
        `tl.select_n_topics` stored under the same name is shown with it.
    title
        Heading of the page; made from `key` by default.
    n_genes
        Number of leading genes to list for each topic.
    gene_symbols
        Column of `adata.var` that names the genes instead of `adata.var_names`.
    groupby
        Column of `adata.obs` with the cell types by which called cells are counted. By default the `strata_key` of the
        fit, or the first column that is named like it (cell_type, annotation, leiden, cluster, ...).
    overwrite
        Whether to replace an existing file.

    Returns
    -------
    The path of the page.

    Raises
    ------
    ValueError
        `key`, `gene_symbols` or `groupby` is not found, `n_genes` is below 1, `path` exists and `overwrite` is not set,
        or no file can be written there.
    OSError
        The page could not be written, as on a full disk. An existing file is left unchanged.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated()
    >>> bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = bc.report(adata, Path(folder) / "report.html")
    ...     page.read_text(encoding="utf-8")[:15]
    '<!DOCTYPE html>'
    """
    record = stored(adata, key)
    method = method_of(record)
    if method.report is None:
        shown = ", ".join(f"`{other.name}`" for other in METHODS if other.report)
        msg = f"`key` must name a fit of {shown}, got {key!r}, which is of `{method.name}`. Draw it with `bcnmf_sc.pl`."
        raise UserError(msg)
    usage = stored_slot(adata, "obsm", f"X_{key}")
    check_anndata(adata)
    for name, values in ((f"obsm['X_{key}']", usage), (f"varm[{key!r}]", stored_slot(adata, "varm", key))):
        if n_invalid := np.size(values) - int(np.isfinite(np.asarray(values, float)).sum()):
            msg = f"`adata.{name}` must be finite, got {n_invalid} values that are NaN or infinite. Fit anew."
            raise UserError(msg)
    gene_labels(adata, gene_symbols)
    whole_number("n_genes", n_genes, 1)
    if groupby is not None and groupby not in adata.obs:
        msg = f"`groupby` must be a column of `adata.obs`, got {groupby!r}. Present: {listed(adata.obs)}."
        raise UserError(msg)
    target = check_place(path, "path")
    if target.exists() and not overwrite:
        msg = f"`path` must name a new file, got {str(path)!r}, which exists. Set `overwrite=True` to replace it."
        raise UserError(msg)
    from ._content import sections
    from ._page import render

    heading = title or f"Factorisation {key!r}"
    made = sections(adata, key, record, n_genes=n_genes, gene_symbols=gene_symbols, groupby=groupby)
    text = render(heading, made)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def summary(
    adata: AnnData, *, key: str = "bcnmf", gene_symbols: str | None = None, groupby: str | None = None
) -> list[str]:
    """Return the answer of the report in a few lines of text."""
    from ._analysis import Analysis
    from ._answer import in_words

    return in_words(Analysis(adata, key, stored(adata, key), 8, gene_symbols, groupby))
