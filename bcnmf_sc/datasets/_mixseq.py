"""Cell lines under idasanutlin and DMSO (McFarland et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from .._utils.download import Remote, find, members
from .._utils.errors import UserError
from ._layouts import join, need, triplet

if TYPE_CHECKING:
    import os

    from anndata import AnnData

MIXSEQ = {
    "idasanutlin": Remote("Idasanutlin_24hr_expt1.zip", "https://figshare.com/ndownloader/files/18716351"),
    "DMSO": Remote("DMSO_24hr_expt1.zip", "https://figshare.com/ndownloader/files/18716354"),
}
TP53 = {
    "wild type": "CCFSTTG1 COV434 DKMG LNCAPCLONEFGC NCIH226 RCC10RGB SNU1079",
    "mutant": (
        "BICR31 BICR6 BT474 BT549 CAOV3 COLO680N IALM LS1034 NCIH2347 RCM1 RERFLCAD1 SH10TC SKMEL2 SKMEL3 SQ1 TEN UMUC1"
    ),
}
"""TP53 status of the 24 lines in the two pools, by the first part of their name."""


def mixseq(folder: str | os.PathLike[str] | None = None) -> AnnData:
    """Read 24 pooled cancer cell lines treated with idasanutlin or vehicle: MIX-seq of McFarland et al. 2020.

    Section 2.5 of the bcNMF paper. Idasanutlin blocks MDM2 and so activates p53, in the 7 lines whose TP53 is intact;
    24 hours, experiment 1 (Nature Communications 11, 4296, doi:10.1038/s41467-020-17440-w). All cells of the files are
    returned, including those that the authors call doublets, empty or of low quality: for an analysis keep cells with
    ``adata.obs["cell_quality"] == "normal"``. (The paper reports 3,771 treated and 3,439 vehicle cells; the authors'
    tables hold 3,097 and 2,831, of which 2,808 and 2,623 are normal.)

    Parameters
    ----------
    folder
        Folder with the authors' files: ``Idasanutlin_24hr_expt1.zip`` and ``DMSO_24hr_expt1.zip``, packed or unpacked.
        `None` looks in the folder that the environment variable ``BCNMF_SC_DATA`` names, else in the cache, and
        downloads missing files from figshare.

    Returns
    -------
    AnnData, cells × genes, with:

    `.X` : CSR float32 matrix
        Counts.
    `.obs["condition"]` : categorical
        "idasanutlin" or "DMSO".
    `.obs["cell_line"]`, `.obs["depmap_id"]`, `.obs["cell_quality"]` : categorical
        The authors' classification of the cell by its SNPs; missing if not classified.
    `.obs["tp53"]` : categorical
        TP53 status of the line, "wild type" or "mutant"; missing for lines outside the two pools.
    `.var["gene_ids"]` : str
        First column of the authors' gene table. The names are its last column, made unique.

    Raises
    ------
    ValueError
        A file is missing from `folder`, cannot be read, or its matrix does not match its tables.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    The data are on figshare (doi:10.6084/m9.figshare.10298696), whose usual licence is CC BY 4.0. No checksum is known:
    a download is verified by the size that the server announces, the archive's own checksums, and the match of each
    matrix with its tables. So far tested on the authors' real classification tables with simulated counts, not on their
    matrices.

    Examples
    --------
    >>> import tempfile
    >>> import bcnmf_sc as bc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adata = bc.datasets.mixseq(bc.datasets.stand_in("mixseq", folder))
    >>> adata.obs.groupby("tp53", observed=True)["cell_line"].nunique().to_dict()
    {'mutant': 17, 'wild type': 7}
    """
    samples = {}
    for condition, path in zip(MIXSEQ, find(list(MIXSEQ.values()), folder), strict=True):
        with members(path) as open_file:
            sample = triplet(open_file, path.name)
            calls = pd.read_csv(open_file("classifications.csv"), dtype={"barcode": str})
        need(calls, ["barcode", "singlet_ID", "cell_quality", "DepMap_ID"], f"classifications.csv of {path.name}")
        calls = calls.drop_duplicates("barcode").set_index("barcode").reindex(sample.obs_names)
        if calls["singlet_ID"].isna().all():
            msg = f"classifications.csv of {path.name} must name the matrix's barcodes, got none of them."
            raise UserError(msg)
        sample.obs["cell_line"] = calls["singlet_ID"]
        sample.obs["depmap_id"] = calls["DepMap_ID"]
        sample.obs["cell_quality"] = calls["cell_quality"]
        samples[condition] = sample
    adata = join(samples)
    status = {line: name for name, lines in TP53.items() for line in lines.split()}
    of_cell = adata.obs["cell_line"].astype(object).str.split("_").str[0].map(status)
    adata.obs["tp53"] = pd.Categorical(of_cell, categories=["mutant", "wild type"])
    for column in ("cell_line", "depmap_id", "cell_quality"):
        adata.obs[column] = adata.obs[column].astype("category")
    return adata
