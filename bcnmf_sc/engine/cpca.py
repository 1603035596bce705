"""Contrastive PCA (Abid et al. 2018), a baseline: leading eigenvectors of ``cov(X) - alpha cov(Y)``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy import linalg, sparse

from .._utils.errors import UserError
from .rows.moments import as_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .kernels.block import Block
    from .rows.sources import RowSource


@dataclass(frozen=True)
class Components:
    """Result of contrastive PCA at one alpha."""

    alpha: float
    loadings: np.ndarray
    """Genes x components, orthonormal columns, leading first; the entry of largest magnitude is positive."""
    eigenvalues: np.ndarray
    """Target variance along each component minus alpha times the background's."""
    scores: np.ndarray
    """Cells x components: projections of all cells, centred at the target's mean."""


@dataclass
class Cells:
    """Per-cell data: groups, and space for scores."""

    member: np.ndarray
    """Cells x groups, bool."""
    scores: np.ndarray
    """Cells x components."""

    def __getitem__(self, part: slice) -> Cells:
        """Return views of some of the cells."""
        return Cells(self.member[part], self.scores[part])


@dataclass
class Second:
    """Sums and sums of products over the cells of each group, additive over blocks."""

    sums: np.ndarray
    """Groups x genes."""
    products: np.ndarray
    """Groups x genes x genes."""

    def __iadd__(self, other: Second) -> Self:
        """Add those of another block."""
        self.sums += other.sums
        self.products += other.products
        return self


@dataclass
class Nothing:
    """Empty result of a pass that only writes to the cells."""

    def __iadd__(self, other: Nothing) -> Self:
        """Stay nothing."""
        return self


def covariances(source: RowSource, *groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute means (groups x genes) and covariances (groups x genes x genes) of groups of cells, in one pass.

    Memory beyond the data is a few times genes x genes; sparse rows stay sparse.
    """
    member = np.column_stack(groups)
    second = source.reduce(_second, source.place(Cells, member, np.zeros((len(member), 0))))
    n = member.sum(0).astype(np.float64)
    means = second.sums / n[:, None]
    covs = second.products
    for cov, mean, cells in zip(covs, means, n, strict=True):
        cov -= cells * np.outer(mean, mean)
        cov /= cells - 1
    return means, covs


def cpca(
    source: RowSource, target: np.ndarray, background: np.ndarray, *, alphas: Sequence[float], n_components: int
) -> list[Components]:
    """Run contrastive PCA at several alphas, with one pass for the covariances and one for the scores.

    Parameters
    ----------
    source
        Cells x genes.
    target, background
        Bool per cell. Without background cells, every alpha gives a PCA of the target.
    alphas
        Weights of the background's covariance; 0 is PCA of the target.
    n_components
        Number of leading components.
    """
    contrastive = bool(background.any())
    means, covs = covariances(source, target, background) if contrastive else covariances(source, target)
    if not np.isfinite(covs).all():
        msg = "The values must be finite, but their covariances are not. Drop or impute NaN and infinite values first."
        raise UserError(msg)
    n_genes = means.shape[1]
    found = []
    for alpha in alphas:
        matrix = covs[0] - alpha * covs[1] if contrastive else covs[0]
        values, vectors = linalg.eigh(matrix, subset_by_index=(n_genes - n_components, n_genes - 1))
        values, vectors = values[::-1], vectors[:, ::-1]
        leading = vectors[np.abs(vectors).argmax(0), np.arange(n_components)]
        found.append((values, vectors * np.where(leading < 0, -1.0, 1.0)))
    V = np.concatenate([vectors for _, vectors in found], axis=1)
    rows = source.place(Cells, np.zeros((len(target), 0), bool), np.zeros((len(target), V.shape[1])))
    source.reduce(partial(_project, V=V, offset=means[0] @ V), rows)
    scores = np.split(source.gather(rows, "scores"), len(found), axis=1)
    return [
        Components(float(alpha), vectors, values, part)
        for alpha, (values, vectors), part in zip(alphas, found, scores, strict=True)
    ]


def _second(block: Block, rows: Cells) -> Second:
    x = as_matrix(block)
    sums = rows.member.T.astype(np.float64) @ x
    products = np.stack([_gram(x[cells]) for cells in rows.member.T])
    return Second(sums, products)


def _gram(x: Any) -> np.ndarray:
    product = x.T @ x
    return product.toarray() if sparse.issparse(product) else product


def _project(block: Block, rows: Cells, *, V: np.ndarray, offset: np.ndarray) -> Nothing:
    rows.scores[:] = as_matrix(block) @ V - offset
    return Nothing()
