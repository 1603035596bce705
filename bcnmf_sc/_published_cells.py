"""Published single-cell data: found in a folder or downloaded, read from the publishers' own files.

Addresses, file names and layouts are those of public code that reads these files. No download was run from the place
where this was written; the checksums of Kang's files are those that several public projects state.
"""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData, concat
from anndata.utils import make_index_unique

from ._anndata import listed
from ._download import Remote, find, members, opened, read_matrix_market

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from scipy import sparse

_TENX = "https://cf.10xgenomics.com/samples/cell-exp/1.1.0"
_GEO = "https://ftp.ncbi.nlm.nih.gov/geo/series"
LEUKEMIA = {
    condition: Remote(name := f"{sample}_filtered_gene_bc_matrices.tar.gz", f"{_TENX}/{sample}/{name}")
    for condition, sample in (
        ("pre", "aml027_pre_transplant"),
        ("post", "aml027_post_transplant"),
        ("healthy", "frozen_bmmc_healthy_donor1"),
    )
}
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
"""Of the 24 lines in the two pools, by the first word of their name."""
MDD = tuple(
    Remote(name, f"{_GEO}/GSE213nnn/GSE213982/{part}/{name}")
    for part, name in (
        ("suppl", "GSE213982_combined_counts_matrix.mtx.gz"),
        ("suppl", "GSE213982_combined_counts_matrix_genes_rows.csv.gz"),
        ("suppl", "GSE213982_combined_counts_matrix_cells_columns.csv.gz"),
        ("soft", "GSE213982_family.soft.gz"),
    )
)
KANG = tuple(
    Remote(name, f"{_GEO}/GSE96nnn/GSE96583/suppl/{name}", sha256)
    for name, sha256 in (
        ("GSE96583_RAW.tar", "e5d41a3248a813f99d68fd5c9eb9773de7f46a83680a67f4a02d683b8955fe80"),
        ("GSE96583_batch2.genes.tsv.gz", "93aa4e9b530ef9d6411ca129b416324c5cc1cc5a01a1fa6ed4f4a845480ed3ca"),
        ("GSE96583_batch2.total.tsne.df.tsv.gz", "1d57e72e92ca8695250e88cc0f1c3fa8c0be1175d974f8b427c58f1274dc6c09"),
    )
)


def leukemia(folder: str | os.PathLike[str] | None = None) -> AnnData:
    """Read bone marrow cells of a leukemia patient before and after a stem cell transplant, and of a healthy donor.

    Section 2.4 of the bcNMF paper: patient AML027 of Zheng et al. 2017 (Nature Communications 8, 14049,
    doi:10.1038/ncomms14049) and the frozen marrow of healthy donor 1 from the same platform, filtered matrices of Cell
    Ranger 1.1 as 10x Genomics distributes them. Each condition is one sample of one person: what sets the samples apart
    (time, handling, depth) cannot be told from the transplant. The paper counts about 12,000 healthy cells, more than
    this file is known to have; which sample that was is not said.

    Parameters
    ----------
    folder
        Where 10x's three files lie: ``aml027_pre_transplant_filtered_gene_bc_matrices.tar.gz``, the same with
        ``aml027_post_transplant`` and with ``frozen_bmmc_healthy_donor1``, packed or unpacked. `None` looks in the
        folder that the environment variable ``BCNMF_SC_DATA`` names, else in the cache, and downloads what is missing.

    Returns
    -------
    AnnData, cells × genes, with:

    `.X` : CSR float32 matrix
        Counts.
    `.obs["condition"]` : categorical
        "pre", "post" or "healthy".
    `.var["gene_ids"]` : str
        Ensembl ids. The names are symbols, repeated ones with a number behind them.

    Raises
    ------
    ValueError
        A file is missing from `folder`, cannot be read, or its matrix does not fit its tables.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    10x Genomics publishes these data under CC BY 4.0. No checksum is known: what is checked is the size that the server
    announces, the archive's own check sums and that each matrix fits its tables. Checked so far on files of the same
    layout (`stand_in`), not on the real ones.

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
            samples[condition] = _triplet(open_file, path.name)
    return _join(samples)


def mixseq(folder: str | os.PathLike[str] | None = None) -> AnnData:
    """Read 24 pooled cancer cell lines under idasanutlin and under its vehicle: MIX-seq of McFarland et al. 2020.

    Section 2.5 of the bcNMF paper. Idasanutlin blocks MDM2 and so activates p53, in the 7 lines whose TP53 is intact;
    24 hours, experiment 1 (Nature Communications 11, 4296, doi:10.1038/s41467-020-17440-w). All cells of the files are
    returned, also those that the authors call doublets, empty or of low quality: for an analysis keep
    ``adata.obs["cell_quality"] == "normal"``. (The paper counts 3,771 treated and 3,439 vehicle cells; the authors'
    tables hold 3,097 and 2,831, of which 2,808 and 2,623 are normal.)

    Parameters
    ----------
    folder
        Where the authors' files lie: ``Idasanutlin_24hr_expt1.zip`` and ``DMSO_24hr_expt1.zip``, packed or unpacked.
        `None` looks in the folder that the environment variable ``BCNMF_SC_DATA`` names, else in the cache, and
        downloads what is missing from figshare.

    Returns
    -------
    AnnData, cells × genes, with:

    `.X` : CSR float32 matrix
        Counts.
    `.obs["condition"]` : categorical
        "idasanutlin" or "DMSO".
    `.obs["cell_line"]`, `.obs["depmap_id"]`, `.obs["cell_quality"]` : categorical
        The authors' classification of the cell by its SNPs; missing where they give none.
    `.obs["tp53"]` : categorical
        "wild type" or "mutant", of the line; missing for lines outside the two pools.
    `.var["gene_ids"]` : str
        First column of the authors' gene table. The names are its last column, made unique.

    Raises
    ------
    ValueError
        A file is missing from `folder`, cannot be read, or its matrix does not fit its tables.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    The data are on figshare (doi:10.6084/m9.figshare.10298696), whose usual licence is CC BY 4.0. No checksum is known:
    what is checked is the size that the server announces, the archive's own check sums and that each matrix fits its
    tables. Checked so far on the authors' real classification tables with simulated counts, not on their matrices.

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
            sample = _triplet(open_file, path.name)
            calls = pd.read_csv(open_file("classifications.csv"), dtype={"barcode": str})
        _need(calls, ["barcode", "singlet_ID", "cell_quality", "DepMap_ID"], f"classifications.csv of {path.name}")
        calls = calls.drop_duplicates("barcode").set_index("barcode").reindex(sample.obs_names)
        if calls["singlet_ID"].isna().all():
            msg = f"classifications.csv of {path.name} must name the matrix's barcodes, got none of them."
            raise ValueError(msg)
        sample.obs["cell_line"] = calls["singlet_ID"]
        sample.obs["depmap_id"] = calls["DepMap_ID"]
        sample.obs["cell_quality"] = calls["cell_quality"]
        samples[condition] = sample
    adata = _join(samples)
    status = {line: name for name, lines in TP53.items() for line in lines.split()}
    of_cell = adata.obs["cell_line"].astype(object).str.split("_").str[0].map(status)
    adata.obs["tp53"] = pd.Categorical(of_cell, categories=["mutant", "wild type"])
    for column in ("cell_line", "depmap_id", "cell_quality"):
        adata.obs[column] = adata.obs[column].astype("category")
    return adata


def mdd(
    folder: str | os.PathLike[str] | None = None,
    *,
    cell_types: str | Sequence[str] | None = ("Ast", "Oli"),
    donors: Sequence[str] | None = None,
) -> AnnData:
    """Read nuclei of the prefrontal cortex of donors with and without major depression: Maitra et al. 2023, GSE213982.

    Section 2.6 of the bcNMF paper (data: Nature Communications 14, 2912, doi:10.1038/s41467-023-38530-5). The matrix
    holds 160,711 nuclei; only those asked for are kept while it is read. Diagnoses are read from GEO's record of the
    series, which has those of the female donors; nuclei of donors without one are left out. The paper takes four female
    cases and four female controls, aged 40 to 60 and of Caucasian descent: age and descent are in the data's
    publication (supplementary table 1) and not in GEO's record, so name the donors in `donors`.

    Parameters
    ----------
    folder
        Where GEO's files lie: ``GSE213982_combined_counts_matrix.mtx.gz``, the same ending in ``_genes_rows.csv.gz``
        and ``_cells_columns.csv.gz``, and ``GSE213982_family.soft.gz``. `None` looks in the folder that the environment
        variable ``BCNMF_SC_DATA`` names, else in the cache, and downloads what is missing.
    cell_types
        Of the authors' broad cell types ("Ast", "End", "ExN", "InN", "Mic", "Oli", "OPC"), those to keep. None for all.
    donors
        Names of donors to keep, such as "F1"; None for all with a diagnosis.

    Returns
    -------
    AnnData, nuclei × genes, with:

    `.X` : CSR float32 matrix
        Counts.
    `.obs["diagnosis"]` : categorical
        "Case" (major depression) or "Control".
    `.obs["donor"]`, `.obs["sample"]`, `.obs["cell_type"]`, `.obs["subtype"]` : categorical
        The donor; the sample, where a donor was sequenced twice ("M24_2"); the authors' types and clusters.

    Raises
    ------
    ValueError
        A file is missing from `folder` or cannot be read, the matrix does not fit its tables, or nothing is left.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    GEO states no licence; the data's article is under CC BY 4.0. No checksum is known: what is checked is the size that
    the server announces, the files' own check sums and that the matrix fits its tables. Checked so far on files of the
    same layout (`stand_in`), not on the real ones.

    Examples
    --------
    >>> import tempfile
    >>> import bcnmf_sc as bc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adata = bc.datasets.mdd(bc.datasets.stand_in("mdd", folder))
    >>> adata.obs.groupby("diagnosis", observed=True)["donor"].nunique().to_dict()
    {'Case': 4, 'Control': 4}
    """
    matrix, genes, cells, record = find(MDD, folder)
    with opened(cells) as stream:
        obs = _mdd_cells(stream, cells.name)
    with opened(genes) as stream:
        table = pd.read_csv(stream, dtype=str)
    _need(table, ["x"], genes.name)
    with opened(record) as stream:
        diagnosis = _geo_characteristic(stream, "group")
    obs["diagnosis"] = pd.Categorical(obs["donor"].map(diagnosis), categories=["Case", "Control"])
    keep = obs["diagnosis"].notna().to_numpy()
    for argument, column, chosen in (("cell_types", "cell_type", cell_types), ("donors", "donor", donors)):
        if chosen is not None:
            names = [chosen] if isinstance(chosen, str) else list(chosen)
            if unknown := [name for name in names if name not in set(obs.loc[obs["diagnosis"].notna(), column])]:
                present = listed(sorted(set(obs.loc[obs["diagnosis"].notna(), column])), 60)
                msg = f"`{argument}` must be among those with a diagnosis, got {listed(unknown)}. Present: {present}."
                raise ValueError(msg)
            keep &= obs[column].isin(names).to_numpy()
    if not keep.any():
        msg = "`cell_types` and `donors` must leave some nuclei, got none."
        raise ValueError(msg)
    with opened(matrix) as stream:
        counts = read_matrix_market(stream, matrix.name, (len(table), len(obs)), keep=keep)
    obs = obs[keep].copy()
    for column in ("donor", "sample", "cell_type", "subtype"):
        obs[column] = obs[column].astype("category")
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=make_index_unique(pd.Index(table["x"].to_numpy()))))


def kang(folder: str | os.PathLike[str] | None = None) -> AnnData:
    """Read blood cells of 8 lupus patients, with and without 6 hours of interferon-β: Kang et al. 2018, GSE96583.

    Batch 2 of Nature Biotechnology 36, 89 (doi:10.1038/nbt.4042), 29,065 cells. Every donor was measured in both
    conditions, so donor and condition can be told apart. All cells are returned, also doublets and cells without a
    type: for an analysis keep ``adata.obs["demuxlet"] == "singlet"`` with a cell type.

    Parameters
    ----------
    folder
        Where GEO's files lie: ``GSE96583_RAW.tar`` (packed or unpacked), ``GSE96583_batch2.genes.tsv.gz`` and
        ``GSE96583_batch2.total.tsne.df.tsv.gz``. `None` looks in the folder that the environment variable
        ``BCNMF_SC_DATA`` names, else in the cache, and downloads what is missing (77 MB).

    Returns
    -------
    AnnData, cells × genes, with:

    `.X` : CSR float32 matrix
        Counts.
    `.obs["condition"]`, `.obs["donor"]`, `.obs["sample"]` : categorical
        "ctrl" or "stim"; the patient; both in one word.
    `.obs["cell_type"]`, `.obs["demuxlet"]` : categorical
        The authors' types, missing where they give none; "singlet", "doublet" or "ambs".
    `.var["gene_ids"]` : str
        Ensembl ids. The names are symbols, repeated ones with a number behind them.

    Raises
    ------
    ValueError
        A file is missing from `folder`, cannot be read or is not the published one, or does not fit the others.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    GEO states no licence. A download is checked against its SHA-256, as several public projects state it; files that
    lie there already are taken as they are. Checked so far on files of the same layout (`stand_in`), not on the real
    ones.

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
        var = _gene_table(stream)
    with opened(cells) as stream:
        labels = pd.read_csv(stream, sep="\t", index_col=0, dtype={"ind": str})
    _need(labels, ["ind", "stim", "cell", "multiplets"], cells.name)
    samples, seen = {}, pd.Index([])
    with members(raw) as open_file:
        for condition, number, lane in (("ctrl", "GSM2560248", "2.1"), ("stim", "GSM2560249", "2.2")):
            barcodes = _lines(open_file(f"{number}_barcodes.tsv"))
            name = f"{number}_{lane}.mtx"
            counts = read_matrix_market(open_file(name), name, (len(var), len(barcodes)))
            # a barcode of both runs ends in -11 in the table where it belongs to the second
            names = barcodes.where(~barcodes.isin(seen), barcodes.str.replace("-1$", "-11", regex=True))
            if missing := names.difference(labels.index).tolist():
                msg = f"{cells.name} must have a row for each barcode of {name}, got none for {listed(missing)}."
                raise ValueError(msg)
            samples[condition] = _adata(counts, labels.loc[names], var)
            seen = seen.union(barcodes)
    adata = _join(samples, prefix=False)
    if wrong := (adata.obs["stim"].astype(str) != adata.obs["condition"].astype(str)).sum():
        msg = f"{cells.name} must agree with {raw.name} on what was stimulated, got {wrong} cells that differ."
        raise ValueError(msg)
    found = pd.DataFrame({"condition": adata.obs["condition"], "donor": adata.obs["ind"].astype("category")})
    found["sample"] = (adata.obs["stim"].astype(str) + adata.obs["ind"].astype(str)).astype("category")
    found["cell_type"] = adata.obs["cell"].astype("category")
    found["demuxlet"] = adata.obs["multiplets"].astype("category")
    adata.obs = found
    return adata


def _triplet(open_file: Any, name: str) -> AnnData:
    """Read counts, barcodes and genes as Cell Ranger 1 and 2 write them."""
    var, barcodes = _gene_table(open_file("genes.tsv")), _lines(open_file("barcodes.tsv"))
    counts = read_matrix_market(open_file("matrix.mtx"), f"matrix.mtx of {name}", (len(var), len(barcodes)))
    return _adata(counts, pd.DataFrame(index=barcodes), var)


def _gene_table(stream: IO[bytes]) -> pd.DataFrame:
    """Ids in the index, and symbols: the last column, which may be the only one."""
    table = pd.read_csv(stream, sep="\t", header=None, dtype=str, na_filter=False)
    return pd.DataFrame({"symbol": table.iloc[:, -1].to_numpy()}, index=table.iloc[:, 0].to_numpy())


def _lines(stream: IO[bytes]) -> pd.Index:
    return pd.Index(stream.read().decode().split())


def _adata(counts: sparse.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> AnnData:
    if not (var.index.is_unique and obs.index.is_unique):
        msg = "Gene ids and barcodes of a sample must be unique, got repeated ones."
        raise ValueError(msg)
    return AnnData(counts, obs=obs, var=var)


def _join(samples: dict[str, AnnData], *, prefix: bool = True) -> AnnData:
    """Put conditions under each other, on the genes that all have; genes are named by symbols."""
    for condition, sample in samples.items():
        if prefix:
            sample.obs_names = f"{condition}_" + sample.obs_names
    adata = concat(samples, label="condition", merge="first")
    adata.obs["condition"] = pd.Categorical(adata.obs["condition"], categories=list(samples))
    adata.var["gene_ids"] = adata.var_names.to_numpy()
    adata.var_names = make_index_unique(pd.Index(adata.var.pop("symbol").to_numpy()))
    return adata


def _mdd_cells(stream: IO[bytes], name: str) -> pd.DataFrame:
    """Read words like ``F1.AAACCCACACCTCTGT-1.Mic.Mic1``: sample, barcode, type, cluster."""
    table = pd.read_csv(stream, dtype=str)
    _need(table, ["x"], name)
    found = table["x"].str.extract(r"^([^.]+)\.(.+)\.([^.]+)\.([^.]+)$")
    if found.isna().to_numpy().any():
        odd = table.loc[found.isna().any(axis=1), "x"].iloc[0]
        msg = f"{name} must hold words like 'F1.AAACCC-1.Mic.Mic1', got {odd!r}."
        raise ValueError(msg)
    found.columns = ["sample", "barcode", "cell_type", "subtype"]
    obs = found.drop(columns="barcode")
    obs.insert(0, "donor", obs["sample"].str.replace(r"_\d+$", "", regex=True))
    obs.index = pd.Index(table["x"].to_numpy())
    return obs


def _geo_characteristic(stream: IO[bytes], name: str) -> dict[str, str]:
    """Read a characteristic of each sample, by its title, from GEO's record of a series (SOFT)."""
    values: dict[str, str] = {}
    title = ""
    for line in stream:
        field, _, value = line.decode(errors="replace").partition(" = ")
        if field == "!Sample_title":
            title = value.strip()
        elif field.startswith("!Sample_characteristics") and re.match(rf"{name}\s*:", value, re.IGNORECASE):
            values[title] = value.partition(":")[2].strip().capitalize()
    if not values:
        msg = f"The record of the series must hold the characteristic {name!r} of its samples, got none."
        raise ValueError(msg)
    return values


def _need(table: pd.DataFrame, columns: list[str], name: str) -> None:
    if lacking := [column for column in columns if column not in table]:
        msg = f"{name} must have the columns {', '.join(columns)}, got it without {', '.join(lacking)}."
        raise ValueError(msg)
