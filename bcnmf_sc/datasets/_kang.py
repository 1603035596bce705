"""PBMCs with and without interferon beta (Kang et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from .._utils.checks import listed
from .._utils.download import Remote, find, members, opened, read_matrix_market
from .._utils.errors import UserError
from ._layouts import GEO, gene_table, join, need, read_lines, sample_of

if TYPE_CHECKING:
    import os

    from anndata import AnnData

KANG = tuple(
    Remote(name, f"{GEO}/GSE96nnn/GSE96583/suppl/{name}", sha256)
    for name, sha256 in (
        ("GSE96583_RAW.tar", "e5d41a3248a813f99d68fd5c9eb9773de7f46a83680a67f4a02d683b8955fe80"),
        ("GSE96583_batch2.genes.tsv.gz", "93aa4e9b530ef9d6411ca129b416324c5cc1cc5a01a1fa6ed4f4a845480ed3ca"),
        ("GSE96583_batch2.total.tsne.df.tsv.gz", "1d57e72e92ca8695250e88cc0f1c3fa8c0be1175d974f8b427c58f1274dc6c09"),
    )
)


def kang(folder: str | os.PathLike[str] | None = None) -> AnnData:
    """Read PBMCs of 8 lupus patients, with and without 6 hours of interferon-β: Kang et al. 2018, GSE96583.

    Batch 2 of Nature Biotechnology 36, 89 (doi:10.1038/nbt.4042), 29,065 cells. Every donor was measured in both
    conditions, so donor and condition are not confounded. All cells are returned, including doublets and cells without
    a type: for an analysis keep cells with ``adata.obs["demuxlet"] == "singlet"`` and a cell type.

    Parameters
    ----------
    folder
        Folder with GEO's files: ``GSE96583_RAW.tar`` (packed or unpacked), ``GSE96583_batch2.genes.tsv.gz`` and
        ``GSE96583_batch2.total.tsne.df.tsv.gz``. `None` looks in the folder that the environment variable
        ``BCNMF_SC_DATA`` names, else in the cache, and downloads missing files (77 MB).

    Returns
    -------
    AnnData, cells × genes, with:

    `.X` : CSR float32 matrix
        Counts.
    `.obs["condition"]`, `.obs["donor"]`, `.obs["sample"]` : categorical
        "ctrl" or "stim"; the patient; both combined.
    `.obs["cell_type"]`, `.obs["demuxlet"]` : categorical
        The authors' cell types, missing if not annotated; "singlet", "doublet" or "ambs".
    `.var["gene_ids"]` : str
        Ensembl ids. The names are symbols, made unique by a numeric suffix.

    Raises
    ------
    ValueError
        A file is missing from `folder`, cannot be read, is not the published file, or is inconsistent with the others.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    GEO states no licence. A download is verified against the SHA-256 given by several public projects; files that are
    already present are not verified. So far tested on files of the same layout (`stand_in`), not on the real files.

    Examples
    --------
    >>> import tempfile
    >>> import bcnmf_sc as bc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adata = bc.datasets.kang(bc.datasets.stand_in("kang", folder))
    >>> sorted(adata.obs["condition"].unique())
    ['ctrl', 'stim']
    """
    raw, genes, cells = find(KANG, folder)
    with opened(genes) as stream:
        var = gene_table(stream)
    with opened(cells) as stream:
        labels = pd.read_csv(stream, sep="\t", index_col=0, dtype={"ind": str})
    need(labels, ["ind", "stim", "cell", "multiplets"], cells.name)
    samples, seen = {}, pd.Index([])
    with members(raw) as open_file:
        for condition, number, lane in (("ctrl", "GSM2560248", "2.1"), ("stim", "GSM2560249", "2.2")):
            barcodes = read_lines(open_file(f"{number}_barcodes.tsv"))
            name = f"{number}_{lane}.mtx"
            counts = read_matrix_market(open_file(name), name, (len(var), len(barcodes)))
            # a barcode of both runs ends in -11 in the table if it belongs to the second
            names = barcodes.where(~barcodes.isin(seen), barcodes.str.replace("-1$", "-11", regex=True))
            if missing := names.difference(labels.index).tolist():
                msg = f"{cells.name} must have a row for each barcode of {name}, got none for {listed(missing)}."
                raise UserError(msg)
            samples[condition] = sample_of(counts, labels.loc[names], var)
            seen = seen.union(barcodes)
    adata = join(samples, prefix=False)
    if wrong := (adata.obs["stim"].astype(str) != adata.obs["condition"].astype(str)).sum():
        msg = f"{cells.name} must agree with {raw.name} on the stimulated cells, got {wrong} cells that differ."
        raise UserError(msg)
    found = pd.DataFrame({"condition": adata.obs["condition"], "donor": adata.obs["ind"].astype("category")})
    found["sample"] = (adata.obs["stim"].astype(str) + adata.obs["ind"].astype(str)).astype("category")
    found["cell_type"] = adata.obs["cell"].astype("category")
    found["demuxlet"] = adata.obs["multiplets"].astype("category")
    adata.obs = found
    return adata
