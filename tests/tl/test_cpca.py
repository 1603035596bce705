"""`tl.cpca`: what it writes, and that it does what it is for."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import bcnmf_sc as bc

CONTRAST = {"background_key": "condition", "background": "background"}


def test_fields_round_trip_and_nothing_else_is_touched(tmp_path) -> None:
    adata = bc.datasets.digits()
    before = adata.copy()
    bc.tl.cpca(adata, **CONTRAST, n_components=3)
    assert set(adata.obsm) - set(before.obsm) == {"X_cpca"}
    assert set(adata.varm) - set(before.varm) == {"cpca"}
    assert set(adata.uns) - set(before.uns) == {"cpca"}
    assert adata.obs.equals(before.obs)
    np.testing.assert_array_equal(adata.X, before.X)
    assert adata.obsm["X_cpca"].shape == (600, 3)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert read.uns["cpca"]["components"]["eigenvalue"].is_monotonic_decreasing


def test_scores_and_components_belong_together_and_unused_genes_are_zero() -> None:
    adata = bc.datasets.digits()
    adata.var["highly_variable"] = np.arange(256) % 3 > 0
    done = bc.tl.cpca(adata, **CONTRAST, alphas=[0.5, 2], n_components=2, copy=True)
    assert "X_cpca_2" not in adata.obsm
    used = adata.var["highly_variable"].to_numpy()
    target = (adata.obs["condition"] == "target").to_numpy()
    for name in ("cpca_0.5", "cpca_2"):
        assert not done.varm[name][~used].any()
        expected = (adata.X - adata.X[target].mean(0)) @ done.varm[name]
        np.testing.assert_allclose(done.obsm[f"X_{name}"], expected, atol=1e-4)


def test_it_finds_the_digits_that_pca_does_not_see() -> None:
    adata = bc.datasets.digits()
    bc.tl.cpca(adata, **CONTRAST, alphas=[0, 5], n_components=2)
    target = (adata.obs["condition"] == "target").to_numpy()
    ari = {
        alpha: bc.metrics.ari_bootstrap(
            adata.obsm[f"X_cpca_{alpha}"][target], adata.obs["digit"][target], n_boot=0, normalize=False
        ).ari
        for alpha in (0, 5)
    }
    assert ari[5] > 0.7
    assert ari[0] < ari[5] - 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alphas": -1}, "`alphas` must be a finite number of at least 0, got -1"),
        ({"alphas": [1, 1.0]}, "`alphas` must be one or more different numbers"),
        ({"alphas": []}, "`alphas` must be one or more different numbers"),
        ({"n_components": 0}, "`n_components` must be a whole number"),
        ({"key_added": "a/b"}, "`key_added` must be a name without"),
    ],
)
def test_errors(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        bc.tl.cpca(bc.datasets.digits(), **CONTRAST, **wrong)
