"""Target and background at one depth: binomial thinning of the deeper side."""

import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

import bcnmf_sc as bc

SIDES = {"background_key": "condition", "background": "ctrl"}


@pytest.fixture
def deep(adata):
    """Controls at three times the depth of cases, and ten cells in neither."""
    adata.X[(adata.obs["condition"] == "ctrl").to_numpy()] *= 3
    adata.obs["condition"] = adata.obs["condition"].astype(str)
    adata.obs.loc[adata.obs_names[:10], "condition"] = "other"
    return adata


def depth(adata, layer=None, genes=slice(None)):
    values = adata.layers[layer] if layer else adata.X
    total = np.asarray(values[:, genes].sum(1)).ravel()
    return {side: total[(adata.obs["condition"] == side).to_numpy()].mean() for side in ("case", "ctrl")}


def test_the_deeper_side_alone_is_thinned_to_the_depth_of_the_other(deep):
    before = deep.copy()
    assert bc.pp.match_depth(deep, **SIDES, target="case") is None
    found = depth(deep)
    assert found["ctrl"] == pytest.approx(found["case"], rel=0.02)
    rest = (deep.obs["condition"] != "ctrl").to_numpy()
    np.testing.assert_array_equal(deep.X[rest].toarray(), before.X[rest].toarray())
    assert deep.X.dtype == before.X.dtype
    assert deep.X.format == before.X.format
    x, y = deep.X[~rest].toarray(), before.X[~rest].toarray()
    assert (x <= y).all()
    assert (x == np.floor(x)).all()
    kept = depth(before)["case"] / depth(before)["ctrl"]
    # binomial: as many as expected in every cell, with the variance of independent draws
    z = (x.sum(1) - kept * y.sum(1)) / np.sqrt(kept * (1 - kept) * y.sum(1))
    assert abs(z.mean()) < 0.2
    assert 0.85 < z.std() < 1.15


def test_the_seed_alone_decides(deep, array_type):
    one = bc.pp.match_depth(deep, **SIDES, copy=True)
    other = deep.copy()
    other.X = array_type(deep.X.toarray())
    bc.pp.match_depth(other, **SIDES)
    assert type(other.X) is type(array_type(np.eye(2)))
    np.testing.assert_array_equal(one.to_df(), other.to_df())
    assert not np.array_equal(one.to_df(), bc.pp.match_depth(deep, **SIDES, random_state=1, copy=True).to_df())


def test_a_layer_and_the_genes_over_which_depth_is_measured(deep):
    deep.layers["counts"] = deep.X.copy()
    few = np.arange(deep.n_vars) < 100
    deep.var["highly_variable"] = few
    before = deep.X.copy()
    bc.pp.match_depth(deep, **SIDES, target="case", layer="counts")
    np.testing.assert_array_equal(deep.X.toarray(), before.toarray())
    found = depth(deep, "counts", few)
    assert found["ctrl"] == pytest.approx(found["case"], rel=0.03)
    everywhere = depth(deep, "counts")  # all genes were thinned
    assert everywhere["ctrl"] < 0.5 * depth(deep)["ctrl"]


def test_a_view_becomes_an_anndata_of_its_own(deep):
    part = deep[10:, :200]
    before = deep.X.copy()
    bc.pp.match_depth(part, **SIDES)
    assert not part.is_view
    np.testing.assert_array_equal(deep.X.toarray(), before.toarray())


def test_what_is_refused(deep, tmp_path):
    with pytest.raises(ValueError, match="`target` must name other categories than `background`"):
        bc.pp.match_depth(deep, **SIDES, target="all")
    shared = AnnData(sparse.csr_matrix(deep.X * 0.5), obs=deep.obs)
    with pytest.raises(ValueError, match=r"must hold counts, got \d+ values that are not whole numbers"):
        bc.pp.match_depth(shared, **SIDES)
    empty = AnnData(sparse.diags((deep.obs["condition"] != "ctrl").to_numpy(float)) @ deep.X, obs=deep.obs)
    with pytest.raises(ValueError, match="background cells contain only zeros"):
        bc.pp.match_depth(empty, **SIDES)
    deep.write_h5ad(tmp_path / "deep.h5ad")
    backed = read_h5ad(tmp_path / "deep.h5ad", backed="r")
    with pytest.raises(TypeError, match="in memory"):
        bc.pp.match_depth(backed, **SIDES)
    backed.file.close()
