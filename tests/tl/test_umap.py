import numpy as np
import pytest
from anndata.tests.helpers import assert_equal

import bcnmf_sc as bc


@pytest.fixture
def fitted():
    adata = bc.datasets.simulated(n_target=120, n_background=80)
    bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=4, max_iter=100, tol=1e-2)
    return adata


def test_umap_writes_one_field_and_repeats_to_the_bit(fitted):
    before = fitted.copy()
    bc.tl.umap(fitted)
    written = fitted.obsm["X_bcnmf_umap"]
    assert written.shape == (200, 2)
    assert written.dtype == np.float32
    assert np.isfinite(written).all()
    again = bc.tl.umap(fitted, copy=True)
    np.testing.assert_array_equal(again.obsm["X_bcnmf_umap"], written)
    del fitted.obsm["X_bcnmf_umap"]
    assert_equal(fitted, before)


def test_umap_sees_proportions_only_and_passes_arguments_on(fitted):
    plain = bc.tl.umap(fitted, copy=True).obsm["X_bcnmf_umap"]
    wide = bc.tl.umap(fitted, copy=True, min_dist=0.9).obsm["X_bcnmf_umap"]
    assert not np.array_equal(plain, wide)
    fitted.obsm["X_bcnmf"] *= np.float32(2.0) ** np.random.default_rng(0).integers(-3, 4, (200, 1)).astype(np.float32)
    np.testing.assert_array_equal(bc.tl.umap(fitted, copy=True).obsm["X_bcnmf_umap"], plain)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"key": "x"}, "`key` 'x' is not a factorisation"),
        ({"n_neighbors": 1}, "`n_neighbors` must be a whole number from 2 to 199"),
        ({"n_neighbors": 200}, "`n_neighbors` must be a whole number from 2 to 199"),
        ({"random_state": None}, "`random_state` must be a whole number"),
    ],
)
def test_umap_rejects(fitted, arguments, match):
    with pytest.raises(ValueError, match=match):
        bc.tl.umap(fitted, **arguments)
