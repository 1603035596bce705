"""Prefrontal cortex in major depressive disorder (GSE213982)."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING

import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from .._utils.checks import listed
from .._utils.download import Remote, find, opened, read_matrix_market
from .._utils.errors import UserError
from ._layouts import GEO, need

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

MDD = tuple(
    Remote(name, f"{GEO}/GSE213nnn/GSE213982/{part}/{name}")
    for part, name in (
        ("suppl", "GSE213982_combined_counts_matrix.mtx.gz"),
        ("suppl", "GSE213982_combined_counts_matrix_genes_rows.csv.gz"),
        ("suppl", "GSE213982_combined_counts_matrix_cells_columns.csv.gz"),
        ("soft", "GSE213982_family.soft.gz"),
    )
)


def mdd(
    folder: str | os.PathLike[str] | None = None,
    *,
    cell_types: str | Sequence[str] | None = ("Ast", "Oli"),
    donors: Sequence[str] | None = None,
) -> AnnData:
    """Read nuclei of the prefrontal cortex of donors with and without major depression: Maitra et al. 2023, GSE213982.

    Section 2.6 of the bcNMF paper (data: Nature Communications 14, 2912, doi:10.1038/s41467-023-38530-5). The matrix
    holds 160,711 nuclei; only the requested ones are kept while it is read. Diagnoses are read from GEO's record of the
    series, which lists those of the female donors; nuclei of donors without a diagnosis are left out. The bcNMF paper
    uses four female cases and four female controls, aged 40 to 60 and of Caucasian descent: age and descent are in the
    data's publication (supplementary table 1) and not in GEO's record, so name the donors in `donors`.

    Parameters
    ----------
    folder
        Folder with GEO's files: ``GSE213982_combined_counts_matrix.mtx.gz``, the same ending in ``_genes_rows.csv.gz``
        and ``_cells_columns.csv.gz``, and ``GSE213982_family.soft.gz``. `None` looks in the folder that the environment
        variable ``BCNMF_SC_DATA`` names, else in the cache, and downloads missing files.
    cell_types
        Broad cell types of the authors to keep ("Ast", "End", "ExN", "InN", "Mic", "Oli", "OPC"); None for all.
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
        The donor; the sample, as some donors were sequenced twice ("M24_2"); the authors' cell types and clusters.

    Raises
    ------
    ValueError
        A file is missing from `folder` or cannot be read, the matrix does not match its tables, or no nuclei are left.
    OSError
        A download failed; the message names the file, its address and where to put it by hand.

    Notes
    -----
    GEO states no licence; the data's article is under CC BY 4.0. No checksum is known: a download is verified by the
    size that the server announces, the files' own checksums, and the match of the matrix with its tables. So far tested
    on files of the same layout (`stand_in`), not on the real files.

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
    need(table, ["x"], genes.name)
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
                raise UserError(msg)
            keep = keep & obs[column].isin(names).to_numpy()  # what pandas 3 gives may not be written to
    if not keep.any():
        msg = "`cell_types` and `donors` must leave some nuclei, got none."
        raise UserError(msg)
    with opened(matrix) as stream:
        counts = read_matrix_market(stream, matrix.name, (len(table), len(obs)), keep=keep)
    obs = obs[keep].copy()
    for column in ("donor", "sample", "cell_type", "subtype"):
        obs[column] = obs[column].astype("category")
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=make_index_unique(pd.Index(table["x"].to_numpy()))))


def _mdd_cells(stream: IO[bytes], name: str) -> pd.DataFrame:
    """Parse names like ``F1.AAACCCACACCTCTGT-1.Mic.Mic1``: sample, barcode, type, cluster."""
    table = pd.read_csv(stream, dtype=str)
    need(table, ["x"], name)
    found = table["x"].str.extract(r"^([^.]+)\.(.+)\.([^.]+)\.([^.]+)$")
    if found.isna().to_numpy().any():
        odd = table.loc[found.isna().any(axis=1), "x"].iloc[0]
        msg = f"{name} must hold names like 'F1.AAACCC-1.Mic.Mic1', got {odd!r}."
        raise UserError(msg)
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
        raise UserError(msg)
    return values
