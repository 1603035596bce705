"""Contrastive PCA against its formula in dense form, on every kind of source."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from bcnmf_sc.engine.cpca import covariances, cpca
from bcnmf_sc.engine.rows.moments import log_normalized, moments
from bcnmf_sc.engine.rows.open import row_source

N_CELLS, N_GENES = 150, 20


@pytest.fixture
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(0.5, 2.0, (N_CELLS, N_GENES))).astype(np.float32)


@pytest.fixture
def groups() -> tuple[np.ndarray, np.ndarray]:
    at = np.arange(N_CELLS)
    return at < 90, at >= 80  # ten cells are both


def test_covariances_are_numpys(counts, groups, array_type) -> None:
    means, covs = covariances(row_source(array_type(counts), block_rows=17), *groups)
    for mean, cov, cells in zip(means, covs, groups, strict=True):
        np.testing.assert_allclose(mean, counts[cells].mean(0))
        np.testing.assert_allclose(cov, np.cov(counts[cells].T), atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 3.0])
def test_components_are_leading_eigenvectors_of_the_contrast(counts, groups, alpha, array_type) -> None:
    (found,) = cpca(row_source(array_type(counts), block_rows=31), *groups, alphas=[alpha], n_components=3)
    target, background = (counts[cells].astype(np.float64) for cells in groups)
    matrix = np.cov(target.T) - alpha * np.cov(background.T)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix)[::-1][:3])
    np.testing.assert_allclose(matrix @ found.loadings, found.loadings * found.eigenvalues, atol=1e-10)
    np.testing.assert_allclose(found.loadings.T @ found.loadings, np.eye(3), atol=1e-12)
    assert (found.loadings[np.abs(found.loadings).argmax(0), range(3)] > 0).all()
    np.testing.assert_allclose(found.scores, (counts - target.mean(0)) @ found.loadings, atol=1e-5)


def test_alpha_zero_is_pca(counts, groups) -> None:
    from sklearn.decomposition import PCA

    (found,) = cpca(row_source(counts), *groups, alphas=[0.0], n_components=4)
    theirs = PCA(4, svd_solver="full").fit(counts[groups[0]])
    np.testing.assert_allclose(found.eigenvalues, theirs.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(found.loadings.T @ theirs.components_.T), np.eye(4), atol=1e-4)


def test_several_alphas_are_the_single_ones(counts, groups) -> None:
    source = row_source(sparse.csr_matrix(counts), block_rows=40)
    together = cpca(source, *groups, alphas=[0.5, 2.0], n_components=2)
    for part in together:
        (alone,) = cpca(source, *groups, alphas=[part.alpha], n_components=2)
        np.testing.assert_allclose(part.scores, alone.scores)


def test_values_that_are_not_finite_are_refused(counts, groups) -> None:
    counts[3, 4] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        cpca(row_source(counts), *groups, alphas=[1.0], n_components=2)


@pytest.mark.parametrize("log", [True, False])
def test_moments_of_units(counts, array_type, log) -> None:
    counts[5] = 0  # a cell without counts
    code = np.arange(N_CELLS) % 4 - 1
    found = moments(row_source(array_type(counts), block_rows=13), code, 3, log_normalize=log)
    x = counts.astype(np.float64)
    linear = np.nan_to_num(1e4 * x / np.maximum(x.sum(1, keepdims=True), 1e-300)) if log else x
    value = np.log1p(linear) if log else x
    for unit in range(3):
        cells = code == unit
        np.testing.assert_allclose(found.linear[unit], linear[cells].sum(0))
        np.testing.assert_allclose(found.value[unit], value[cells].sum(0))
        np.testing.assert_allclose(found.square[unit], (value[cells] ** 2).sum(0))


def test_log_normalized_is_scanpys(counts) -> None:
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(log_normalized(counts.astype(np.float64)), adata.X, rtol=1e-5)
    ours = log_normalized(sparse.csr_array(counts.astype(np.float64)))
    assert sparse.issparse(ours)
    np.testing.assert_allclose(ours.toarray(), adata.X, rtol=1e-5)
