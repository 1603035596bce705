"""Published single-cell data, read from the publishers' own files in a folder or downloaded.

Addresses, file names and layouts follow public code that reads these files; the downloads themselves are untested. The
checksums of Kang's files are those given by several public projects.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData, concat
from anndata.utils import make_index_unique

from .._utils.download import read_matrix_market
from .._utils.errors import UserError

if TYPE_CHECKING:
    from scipy import sparse
GEO = "https://ftp.ncbi.nlm.nih.gov/geo/series"


def triplet(open_file: Any, name: str) -> AnnData:
    """Read counts, barcodes and genes in the layout of Cell Ranger 1 and 2."""
    var, barcodes = gene_table(open_file("genes.tsv")), read_lines(open_file("barcodes.tsv"))
    counts = read_matrix_market(open_file("matrix.mtx"), f"matrix.mtx of {name}", (len(var), len(barcodes)))
    return sample_of(counts, pd.DataFrame(index=barcodes), var)


def gene_table(stream: IO[bytes]) -> pd.DataFrame:
    """Read gene ids as the index, and symbols from the last column, which may be the only one."""
    table = pd.read_csv(stream, sep="\t", header=None, dtype=str, na_filter=False)
    return pd.DataFrame({"symbol": table.iloc[:, -1].to_numpy()}, index=table.iloc[:, 0].to_numpy())


def read_lines(stream: IO[bytes]) -> pd.Index:
    return pd.Index(stream.read().decode().split())


def sample_of(counts: sparse.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> AnnData:
    if not (var.index.is_unique and obs.index.is_unique):
        msg = "Gene ids and barcodes of a sample must be unique, got repeated ones."
        raise UserError(msg)
    return AnnData(counts, obs=obs, var=var)


def join(samples: dict[str, AnnData], *, prefix: bool = True) -> AnnData:
    """Concatenate conditions on their common genes; genes are named by symbols."""
    for condition, sample in samples.items():
        if prefix:
            sample.obs_names = f"{condition}_" + sample.obs_names
    adata = concat(samples, label="condition", merge="first")
    adata.obs["condition"] = pd.Categorical(adata.obs["condition"], categories=list(samples))
    adata.var["gene_ids"] = adata.var_names.to_numpy()
    adata.var_names = make_index_unique(pd.Index(adata.var.pop("symbol").to_numpy()))
    return adata


def need(table: pd.DataFrame, columns: list[str], name: str) -> None:
    if lacking := [column for column in columns if column not in table]:
        msg = f"{name} must have the columns {', '.join(columns)}, got a table without {', '.join(lacking)}."
        raise UserError(msg)
