"""Find protein-coding genes from a column, a GTF file, a table, or GENCODE's annotation."""

from __future__ import annotations

import logging
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pandas as pd

from .._utils.checks import listed
from .._utils.download import download
from .._utils.errors import UserError, UserTypeError

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Annotation: TypeAlias = str | Path | pd.DataFrame

COLUMNS = ("gene_biotype", "gene_type", "biotype", "feature_biotype", "feature_type")
_ID_COLUMNS = ("gene_id", "gene_ids", "ensembl_gene_id", "ensembl_id", "ensembl", "gene_name", "symbol", "gene_symbol")
_GENCODE = {
    "human": "https://ftp.ebi.ac.uk/pub/databases/gencode/Gencode_human/release_46/gencode.v46.basic.annotation.gtf.gz",
    "mouse": "https://ftp.ebi.ac.uk/pub/databases/gencode/Gencode_mouse/release_M35/gencode.vM35.basic.annotation.gtf.gz",
}
_PANDAS_ERRORS = (pd.errors.ParserError, pd.errors.EmptyDataError)
_GTF_CHUNK = 200_000  # lines
_LEAST_KNOWN = 0.5  # share of the genes that a source of biotypes must contain


def protein_coding(
    adata: AnnData, *, column: str | None, annotation: Annotation | None
) -> tuple[NDArray[np.bool_], dict[str, object]]:
    """Return whether each gene is protein coding, and a record of the source."""
    if column is not None and column not in adata.var:
        msg = f"`column` must be a column of `adata.var`, got {column!r}. Present: {listed(adata.var.columns)}."
        raise UserError(msg)
    if column is None and annotation is None:
        column = biotype_column(adata)
    if column is not None:
        flags, known = _flags(adata.var[column], f"adata.var[{column!r}]")
        source, matched_by = f"var[{column!r}]", "column"
        if known.mean() < _LEAST_KNOWN:
            msg = f"`adata.var[{column!r}]` must cover at least half of the genes, got {known.sum()} of {len(known)}."
            raise UserError(msg)
    else:
        table, source = _annotation_table(adata, annotation)
        flags, known, matched_by = _match(adata, table, source)
    record: dict[str, object] = {
        "source": source,
        "matched_by": matched_by,
        "n_matched": int(known.sum()),
        "n_genes": adata.n_vars,
        "n_protein_coding": int(flags.sum()),
    }
    logger.info(
        "%s: %d of %d genes known (by %s), %d protein coding.",
        source, known.sum(), adata.n_vars, matched_by, flags.sum(),
    )  # fmt: skip
    return flags, record


def biotype_column(adata: AnnData) -> str | None:
    """Find the first recognised column that contains biotypes (10x's `feature_type` holds "Gene Expression")."""
    for name in COLUMNS:
        if name in adata.var and "protein_coding" in set(adata.var[name].astype(str)):
            return name
    return None


def _flags(values: pd.Series, where: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    known = values.notna().to_numpy()
    if pd.api.types.is_bool_dtype(values.dtype):
        return values.astype("boolean").fillna(value=False).to_numpy(dtype=bool), known
    flags = (values.astype(str) == "protein_coding").to_numpy()
    if not flags.any():
        msg = f"`{where}` must contain the biotype 'protein_coding', got {listed(pd.unique(values.dropna()), 5)}."
        raise UserError(msg)
    return flags, known


def _annotation_table(adata: AnnData, annotation: Annotation | None) -> tuple[pd.DataFrame, str]:
    """Return columns of gene names with a column `biotype`, and their source."""
    if isinstance(annotation, pd.DataFrame):
        return _name_columns(annotation.reset_index(), "`annotation`"), "DataFrame"
    if annotation is None or (isinstance(annotation, str) and annotation in _GENCODE):
        first = str(adata.var_names[0]) if adata.n_vars else ""
        url = _GENCODE[annotation or ("mouse" if first.startswith("ENSMUSG") else "human")]
        path = download(url, url.rsplit("/", 1)[1])
    elif isinstance(annotation, (str, Path)):
        path = Path(annotation)
        if not path.is_file():
            msg = f"`annotation` must be a file, 'human', 'mouse' or a DataFrame, got '{path}', which is not a file."
            raise UserError(msg)
    else:
        msg = f"`annotation` must be a path, 'human', 'mouse' or a DataFrame, got {type(annotation).__name__}."
        raise UserTypeError(msg)
    try:
        if re.search(r"\.gtf(\.gz)?$", path.name):
            return _read_gtf(path), path.name
        sep = "," if ".csv" in path.suffixes else "\t"
        return _name_columns(pd.read_csv(path, sep=sep, dtype=str), f"'{path}'"), path.name
    except (EOFError, OSError, UnicodeDecodeError, zlib.error, *_PANDAS_ERRORS) as error:
        msg = f"`annotation` must be a readable GTF, CSV or TSV file, got '{path}': {error}. Was it cut short?"
        raise UserError(msg) from error


def _read_gtf(path: Path) -> pd.DataFrame:
    lines = pd.read_csv(
        path, sep="\t", comment="#", header=None, usecols=[2, 8], names=["feature", "attributes"], dtype=str,
        quoting=3, chunksize=_GTF_CHUNK,
    )  # fmt: skip
    attributes = pd.concat([chunk.loc[chunk["feature"] == "gene", "attributes"] for chunk in lines])
    patterns = {
        "gene_id": r'gene_id "([^"]+)"',
        "gene_name": r'gene_name "([^"]+)"',
        "biotype": r'gene_(?:bio)?type "([^"]+)"',
    }
    table = pd.DataFrame({name: attributes.str.extract(p, expand=False) for name, p in patterns.items()})
    if table["biotype"].isna().all():
        msg = f"`annotation` must contain gene lines with gene_biotype or gene_type, got none in '{path}'."
        raise UserError(msg)
    return table


def _name_columns(table: pd.DataFrame, where: str) -> pd.DataFrame:
    lower = {str(column).lower(): column for column in table.columns}
    biotype = next((lower[name] for name in COLUMNS if name in lower), None)
    if biotype is None:
        msg = (
            f"{where} must have a column of biotypes ({', '.join(COLUMNS)}), "
            f"got {listed(table.columns)}. Rename the column."
        )
        raise UserError(msg)
    names = table.drop(columns=biotype).select_dtypes(exclude="number").astype("string")
    return names.assign(biotype=table[biotype])


def _match(adata: AnnData, table: pd.DataFrame, source: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_], str]:
    """Match genes to the table by the pair of names (theirs, ours) with the largest overlap."""
    ours = {"var_names": _without_version(pd.Series(adata.var_names.astype(str)))}
    for column in adata.var:
        if str(column).lower() in _ID_COLUMNS:
            ours[f"var[{column!r}]"] = _without_version(adata.var[column].astype(str).reset_index(drop=True))
    theirs = {name: _without_version(table[name]) for name in table.columns.drop("biotype")}
    hits = {(o, t): int(ours[o].isin(theirs[t].dropna()).sum()) for o in ours for t in theirs}
    (o, t), n = max(hits.items(), key=lambda item: item[1], default=(("var_names", ""), 0))
    if n < adata.n_vars * _LEAST_KNOWN:
        examples = "; ".join(f"{name}: {', '.join(values.dropna().head(3))}" for name, values in theirs.items())
        msg = (
            f"`annotation` must cover at least half of the genes, got {n} of {adata.n_vars} in {source}. "
            f"Genes of `adata`: {', '.join(ours[o].head(3))}. Genes of the annotation: {examples or 'none'}. "
            "Is it another species, or another kind of id?"
        )
        raise UserError(msg)
    is_coding = table["biotype"].astype(str) == "protein_coding"
    if not is_coding.any():
        biotypes = listed(pd.unique(table["biotype"].dropna()), 5)
        msg = f"`annotation` must contain the biotype 'protein_coding', got {biotypes}."
        raise UserError(msg)
    flags = ours[o].isin(theirs[t][is_coding].dropna()).to_numpy(dtype=bool)  # a symbol of two genes: either suffices
    known = ours[o].isin(theirs[t].dropna()).to_numpy(dtype=bool)
    return flags, known, t if o == "var_names" else f"{t} ({o})"


def _without_version(names: pd.Series) -> pd.Series:
    return names.str.replace(r"^(ENS[A-Z]*\d+)\.\d+$", r"\1", regex=True)
