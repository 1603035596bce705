"""Depth is measured on counts, and values that look log-normalised are noticed."""

import numpy as np
import pytest
import scanpy as sc
from mudata import MuData
from scipy import sparse

import bcnmf_sc as bc
from bcnmf_sc._mudata import no_pull

SIDES = {"background_key": "condition", "background": "ctrl"}
QUICK = SIDES | {"n_topics": 2, "tol": 1e-1, "progress": False}
LOGGED = "The values look log-normalised"


@pytest.fixture(scope="module")
def halved():
    """Controls at half the depth of cases; few genes."""
    adata = bc.datasets.simulated(200, 150, 120)
    ctrl = (adata.obs["condition"] == "ctrl").to_numpy()
    thin = np.random.default_rng(0).binomial(adata.X.toarray().astype(int), np.where(ctrl, 0.5, 1.0)[:, None])
    adata.X = sparse.csr_matrix(thin.astype(np.float32))
    return adata


@pytest.fixture
def logged(halved):
    adata = halved.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def joined(adata, modalities):
    """Put modalities into a MuData with the conditions of an AnnData."""
    with no_pull():
        mdata = MuData(modalities)
        mdata.obs["condition"] = adata.obs["condition"]
    return mdata


def depth_row(adata, **how):
    bc.tl.background_check(adata, **QUICK | how, n_background_topics=2)
    return adata.uns["bcnmf_background_check"].set_index("check").loc["depth"]


def test_a_difference_in_depth_brings_a_warning(halved):
    with pytest.warns(UserWarning, match=r"has (1\.9|2|2\.1) times as many counts .* `bcnmf_sc.pp.match_depth`"):
        bc.tl.bcnmf(halved.copy(), **QUICK)
    bc.tl.bcnmf(bc.pp.match_depth(halved, **SIDES, copy=True), **QUICK)
    other = QUICK | {"background": "case"}
    with pytest.warns(UserWarning, match=r"has 0\.\d+ times as many counts"):
        bc.tl.bcnmf(halved.copy(), **other)


def test_a_difference_in_depth_of_one_modality_brings_a_warning(halved):
    protein = sc.AnnData(np.abs(np.random.default_rng(0).normal(3, 1, (halved.n_obs, 6))), obs=halved.obs[[]])
    mdata = joined(halved, {"rna": halved.copy(), "protein": protein})
    with pytest.warns(UserWarning, match="in the genes used of 'rna'"):
        bc.tl.bcnmf(mdata, **QUICK, likelihood={"protein": "gaussian", "rna": "poisson"})


@pytest.mark.parametrize("how", ["record", "totals", "layer", "modality"])
def test_logged_values_bring_a_warning_under_gaussian(logged, how):
    ask = QUICK | {"likelihood": "gaussian", "alpha": 0}
    if how == "record":  # not all genes, of which the totals would tell
        logged = logged[:, :60].copy()
    else:
        del logged.uns["log1p"]
    if how == "layer":
        logged.layers["logged"], logged.X = logged.X, None
        ask["layer"] = "logged"
    if how == "modality":
        logged = joined(logged, {"rna": logged})
    with pytest.warns(UserWarning, match=LOGGED) as caught:
        bc.tl.bcnmf(logged, **ask)
    assert [each.category for each in caught].count(UserWarning) == 1


@pytest.mark.parametrize("kind", ["intensities", "shares", "counts"])
def test_other_values_under_gaussian_bring_none(halved, kind):
    adata = halved.copy()
    adata.uns["log1p"] = {"base": None}
    if kind == "intensities":
        adata.uns.clear()
        adata.X = np.random.default_rng(0).gamma(2, 1, adata.shape)
    elif kind == "shares":
        adata.uns.clear()
        sc.pp.normalize_total(adata, target_sum=1)
    bc.tl.bcnmf(adata, **QUICK, likelihood="gaussian")


def test_background_check_measures_depth_on_counts(halved, logged):
    true = depth_row(halved.copy())
    assert 1.9 < true["value"] < 2.2
    assert true["verdict"] == "caution"
    assert "pp.match_depth" in true["meaning"]
    assert "not touched" not in true["meaning"]
    ask = {"likelihood": "gaussian"}
    with pytest.warns(UserWarning, match=LOGGED):
        unseen = depth_row(logged, **ask)
    assert np.isnan(unseen["value"])
    assert unseen["verdict"] == "caution"
    assert "cannot be seen in normalised values" in unseen["meaning"]
    logged.raw = halved
    logged.layers["counts"] = logged.X.copy()  # which it is not
    with pytest.warns(UserWarning, match=LOGGED):
        by_raw = depth_row(logged, **ask)
    logged.raw = None
    logged.layers["counts"] = halved.X
    with pytest.warns(UserWarning, match=LOGGED):
        by_layer = depth_row(logged, **ask)
    assert by_raw["value"] == by_layer["value"] == pytest.approx(true["value"], rel=1e-6)


def test_logs_without_normalisation_show_depth(halved):
    adata = halved.copy()
    sc.pp.log1p(adata)
    with pytest.warns(UserWarning, match=LOGGED):
        found = depth_row(adata, likelihood="gaussian")
    assert found["value"] == pytest.approx(depth_row(halved.copy())["value"], rel=1e-5)
