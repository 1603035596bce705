"""Gene similarity: built from embeddings, checked, and aligned to the genes of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from .._utils.checks import matrix_values, number, whole_number
from .._utils.errors import UserError, UserTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GeneSimilarity", "align", "gene_similarity"]

CHUNK = 1024
"""Number of genes whose similarity to all others is held at a time."""
ASYMMETRY = 1e-5
"""Asymmetry due to rounding that is tolerated, relative to the largest entry."""


class GeneSimilarity(NamedTuple):
    """A gene similarity with gene names, as returned by `pp.gene_similarity` and used by `tl.deltanmf`."""

    graph: sparse.csr_array
    """Genes x genes, symmetric, at least 0, zero on the diagonal."""
    genes: pd.Index
    """Name of each row and column."""


Similarity = GeneSimilarity | tuple[Any, Any] | pd.DataFrame
"""Accepted forms of a similarity."""


def gene_similarity(
    embeddings: pd.DataFrame | np.ndarray,
    genes: Sequence[str] | None = None,
    *,
    n_neighbors: int = 15,
    min_similarity: float = 0.0,
) -> GeneSimilarity:
    """Build a sparse gene similarity graph from gene embeddings, such as those of a foundation model.

    The similarity is the cosine of two genes' embeddings. Each gene is linked to its ``n_neighbors`` most similar genes
    among those with a similarity above ``min_similarity``; a pair is kept if either gene selects the other. The full
    genes × genes matrix is never held in memory.

    Parameters
    ----------
    embeddings
        Genes × dimensions: a DataFrame with the genes' ids as index, or an array together with `genes`.
    genes
        Gene ids of the rows, if `embeddings` is an array.
    n_neighbors
        Number of neighbours per gene, at least 1.
    min_similarity
        Cosine, from 0 to 1, that a pair must exceed.

    Returns
    -------
    The graph (CSR, symmetric, without diagonal) and the ids of its rows, for the argument `similarity` of
    :func:`bcnmf_sc.tl.deltanmf`.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> adata = bc.datasets.simulated_programs(300, 200, 300, n_shared=4, n_new=1)
    >>> similarity = bc.pp.gene_similarity(adata.varm["embedding"], adata.var_names, n_neighbors=10)
    >>> similarity.graph.shape
    (300, 300)
    """
    if isinstance(embeddings, pd.DataFrame):
        names = embeddings.index if genes is None else pd.Index(genes)
    elif genes is None:
        msg = "`genes` must name the rows of `embeddings` if that is an array."
        raise UserError(msg)
    else:
        names = pd.Index(genes)
    vectors = np.asarray(embeddings, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(names) or not len(names):  # noqa: PLR2004
        msg = f"`embeddings` must have a row for each of {len(names)} genes, got shape {vectors.shape}."
        raise UserError(msg)
    if not np.isfinite(vectors).all():
        bad = names[~np.isfinite(vectors).all(1)]
        msg = f"`embeddings` must be finite, got NaN or infinity for {len(bad)} genes, such as {bad[0]!r}. Drop them."
        raise UserError(msg)
    _check_unique(names, "genes")
    whole_number("n_neighbors", n_neighbors, 1)
    number("min_similarity", min_similarity, most=1)

    n_genes = len(names)
    keep = min(int(n_neighbors), n_genes - 1)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    rows, columns, values = [], [], []
    for start in range(0, n_genes, CHUNK):
        cosine = vectors[start : start + CHUNK] @ vectors.T
        here = np.arange(len(cosine))
        cosine[here, here + start] = -1
        nearest = np.argpartition(-cosine, keep - 1, axis=1)[:, :keep] if keep else np.zeros((len(cosine), 0), int)
        rows.append(np.repeat(here + start, keep))
        columns.append(nearest.ravel())
        values.append(np.take_along_axis(cosine, nearest, 1).ravel())
    similar = np.concatenate(values)
    strong = similar > min_similarity
    pairs = np.concatenate(rows)[strong], np.concatenate(columns)[strong]
    graph = sparse.csr_array((np.minimum(similar[strong], 1), pairs), shape=(n_genes, n_genes))
    return GeneSimilarity(sparse.csr_array(graph.maximum(graph.T)), names)


def align(similarity: Any, genes: pd.Index) -> tuple[sparse.csr_array, int]:
    """Align a similarity to `genes`; return it (float64, without diagonal) and the number of its genes found there.

    Genes missing from it have no similar genes.
    """
    matrix, names = _parts(similarity)
    if matrix.shape != (len(names), len(names)):
        msg = f"`similarity` must have a row and a column for each of its {len(names)} genes, got shape {matrix.shape}."
        raise UserError(msg)
    _check_unique(names, "similarity")
    graph = sparse.coo_array(matrix).astype(np.float64)
    n_invalid = int((~np.isfinite(graph.data)).sum())
    matrix_values("`similarity`", n_invalid, graph.data.min(initial=0.0), "Set negative values to 0.")
    graph = sparse.csr_array(graph)
    if abs(graph - graph.T).max() > ASYMMETRY * graph.max():
        msg = "`similarity` must be symmetric, got different values for the two orders of a pair. Use `S.maximum(S.T)`."
        raise UserError(msg)
    at = genes.get_indexer(names)
    known = at >= 0
    if not known.any():
        msg = (
            f"`similarity` must share genes with `adata`, got none. Ids in `similarity`: {_some(names)}; "
            f"in `adata.var_names`: {_some(genes)}."
        )
        raise UserError(msg)
    graph = sparse.coo_array(graph[known][:, known])
    pairs = graph.row != graph.col
    where = at[known][graph.row[pairs]], at[known][graph.col[pairs]]
    return sparse.csr_array((graph.data[pairs], where), shape=(len(genes), len(genes))), int(known.sum())


def _parts(similarity: Any) -> tuple[Any, pd.Index]:
    if isinstance(similarity, pd.DataFrame):
        if not similarity.index.equals(similarity.columns):
            msg = "`similarity` must have the same genes as index and columns, in the same order."
            raise UserError(msg)
        return similarity.to_numpy(), similarity.index
    if isinstance(similarity, tuple) and len(similarity) == 2:  # noqa: PLR2004
        matrix, names = similarity
        return matrix if sparse.issparse(matrix) else np.asarray(matrix), pd.Index(names)
    msg = (
        "`similarity` must be a DataFrame, a pair of matrix and gene ids, or the name of an entry of `adata.varp`, got "
        f"{type(similarity).__name__}."
    )
    raise UserTypeError(msg)


def _check_unique(names: pd.Index, argument: str) -> None:
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        msg = f"The ids of `{argument}` must be unique, got {_some(repeated)} more than once."
        raise UserError(msg)


def _some(names: pd.Index) -> str:
    return ", ".join(repr(str(name)) for name in names[:3])
