"""The report: one self-contained HTML page from an analysed AnnData.

`_content` defines the sections, `_page` renders them as HTML, `page.html.jinja` is the template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._anndata import check_anndata
from .._methods import METHODS, method_of
from .._stored import gene_labels, stored, stored_slot
from .._utils.checks import whole_number
from .._utils.errors import UserError
from .._utils.files import check_place, replacing

if TYPE_CHECKING:
    import os

    from anndata import AnnData


def report(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    key: str = "bcnmf",
    title: str | None = None,
    n_genes: int = 10,
    gene_symbols: str | None = None,
) -> None:
    """Write the results of a factorisation to one self-contained HTML page.

    The page covers the question, the background check, the choice of alpha and of the numbers of topics, the topics
    with their genes, usage, tests, enrichment, stability, warnings, parameters, versions and how to cite. It shows what
    is stored in `adata` and computes nothing: each missing part is listed with the call that adds it. Figures are
    embedded with text alternatives; the page uses neither scripts nor the network.

    Parameters
    ----------
    adata
        Annotated data with a stored factorisation; it is not modified, and may be backed by a file.
    path
        The file to write; an existing file is replaced.
    key
        The `key_added` under which the factorisation was stored. What `tl.background_check`, `tl.select_alpha` and
        `tl.select_n_topics` stored under the same name is shown with it.
    title
        Heading of the page; made from `key` by default.
    n_genes
        Number of leading genes to list for each topic.
    gene_symbols
        Column of `adata.var` that names the genes instead of `adata.var_names`.

    Returns
    -------
    `None`. The page is written to `path`.

    Raises
    ------
    ValueError
        `key` or `gene_symbols` is not found, `n_genes` is below 1, or no file can be written to `path`.
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
    ...     page = Path(folder) / "report.html"
    ...     bc.report(adata, page)
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
    target = check_place(path, "path")
    from ._content import sections
    from ._page import render

    heading = title or f"Factorisation {key!r}"
    made = sections(adata, key, record, n_genes=n_genes, gene_symbols=gene_symbols)
    text = render(heading, made)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
