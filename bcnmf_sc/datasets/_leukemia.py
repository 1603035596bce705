"""Leukemia and healthy bone marrow (Zheng et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._utils.download import Remote, find, members
from ._layouts import join, triplet

if TYPE_CHECKING:
    import os

    from anndata import AnnData


_TENX = "https://cf.10xgenomics.com/samples/cell-exp/1.1.0"
LEUKEMIA = {
    condition: Remote(name := f"{sample}_filtered_gene_bc_matrices.tar.gz", f"{_TENX}/{sample}/{name}")
    for condition, sample in (
        ("pre", "aml027_pre_transplant"),
        ("post", "aml027_post_transplant"),
        ("healthy", "frozen_bmmc_healthy_donor1"),
    )
}


def leukemia(folder: str | os.PathLike[str] | None = None) -> AnnData:
    """Read bone marrow cells of a leukemia patient before and after a stem cell transplant, and of a healthy donor.

    Section 2.4 of the bcNMF paper: patient AML027 of Zheng et al. 2017 (Nature Communications 8, 14049,
    doi:10.1038/ncomms14049) and the frozen marrow of healthy donor 1 from the same platform, filtered matrices of Cell
    Ranger 1.1 as 10x Genomics distributes them. Each condition is one sample of one person, so differences between
    samples (time, handling, depth) are confounded with the transplant. The paper reports about 12,000 healthy cells,
    more than this file is known to have; it does not say which sample it used.

    Parameters
    ----------
    folder
        Folder with 10x's three files: ``aml027_pre_transplant_filtered_gene_bc_matrices.tar.gz``, the same with
        ``aml027_post_transplant`` and with ``frozen_bmmc_healthy_donor1``, packed or unpacked. `None` looks in the
        folder that the environment variable ``BCNMF_SC_DATA`` names, else in the cache, and downloads missing files.

    Returns
    -------
    AnnData, cells × genes, with:

    `.X` : CSR float32 matrix
        Counts.
    `.obs["condition"]` : categorical
        "pre", "post" or "healthy".
    `.var["gene_ids"]` : str
        Ensembl ids. The names are symbols, made unique by a numeric suffix.

    Raises
    ------
    ValueError
        A file is missing from `folder`, cannot be read, or its matrix does not match its tables.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    10x Genomics publishes these data under CC BY 4.0. No checksum is known: a download is verified by the size that the
    server announces, the archive's own checksums, and the match of each matrix with its tables. So far tested on files
    of the same layout (`stand_in`), not on the real files.

    Examples
    --------
    >>> import tempfile
    >>> import bcnmf_sc as bc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adata = bc.datasets.leukemia(bc.datasets.stand_in("leukemia", folder))
    >>> list(adata.obs["condition"].cat.categories)
    ['pre', 'post', 'healthy']
    """
    samples = {}
    for condition, path in zip(LEUKEMIA, find(list(LEUKEMIA.values()), folder), strict=True):
        with members(path) as open_file:
            samples[condition] = triplet(open_file, path.name)
    return join(samples)
