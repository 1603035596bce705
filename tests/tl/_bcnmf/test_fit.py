"""From AnnData to AnnData: what is written, what is refused, what stays untouched."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata.tests.helpers import assert_equal
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

import bcnmf_sc as bc
from bcnmf_sc import _anndata

QUICK = {"background_key": "condition", "background": "ctrl", "n_topics": 3, "tol": 1e-2}


def state(adata):
    """All that must not change."""
    x = adata.X.toarray() if sparse.issparse(adata.X) else np.array(adata.X)
    return {
        "X": x,
        "layers": {k: v.copy() for k, v in adata.layers.items()},
        "keys": [sorted(map(str, slot)) for slot in (adata.obs, adata.var, adata.uns, adata.obsm, adata.varm)],
    }


def assert_same(before, adata):
    after = state(adata)
    np.testing.assert_array_equal(after["X"], before["X"])
    assert after["keys"] == before["keys"]


def test_fields(adata):
    before = state(adata)
    assert bc.tl.bcnmf(adata, **QUICK) is None
    np.testing.assert_array_equal(adata.X.toarray(), before["X"])
    H, W, record = adata.obsm["X_bcnmf"], adata.varm["bcnmf"], adata.uns["bcnmf"]
    assert (H.shape, H.dtype) == ((1000, 3), np.float32)
    assert (W.shape, W.dtype) == ((500, 3), np.float32)
    np.testing.assert_allclose(W.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(H.sum(1), np.asarray(adata.X.sum(1)).ravel(), rtol=1e-4)
    expected = adata.obs["condition"].map({"case": "target", "ctrl": "background"}).astype(str)
    assert adata.obs["bcnmf_role"].astype(str).equals(expected.rename("bcnmf_role"))
    assert adata.var["bcnmf_suppressed"].dtype == bool
    assert set(record) == {
        "params", "topics", "loss", "n_iter", "converged", "deviance_explained", "alpha_effective", "alphas", "weight",
    }  # fmt: skip
    assert record["topics"].index.tolist() == ["Topic 1", "Topic 2", "Topic 3"]
    share = H / H.sum(1, keepdims=True)
    is_target = (adata.obs["condition"] == "case").to_numpy()
    np.testing.assert_allclose(record["topics"]["usage_target"], share[is_target].mean(0), rtol=1e-4)
    np.testing.assert_allclose(record["topics"]["usage_background"], share[~is_target].mean(0), rtol=1e-4)
    assert record["alpha_effective"] == pytest.approx(0.3)
    total = adata.X.sum(1).A1 if hasattr(adata.X.sum(1), "A1") else np.asarray(adata.X.sum(1)).ravel()
    expected = 0.3 * total[is_target].sum() / total[~is_target].sum()
    assert record["alphas"]["sum"].tolist() == pytest.approx([expected])


def test_key_added_renames_everything(adata):
    bc.tl.bcnmf(adata, **QUICK, key_added="other")
    written = [str(k) for slot in (adata.obs, adata.var, adata.uns, adata.obsm, adata.varm) for k in slot]
    assert not any("bcnmf" in name for name in written)
    assert {"other", "X_other", "other_role", "other_suppressed"} <= set(written)


def test_copy(adata):
    before = state(adata)
    changed = bc.tl.bcnmf(adata, **QUICK, copy=True)
    assert_same(before, adata)
    bc.tl.bcnmf(adata, **QUICK)
    np.testing.assert_array_equal(changed.obsm["X_bcnmf"], adata.obsm["X_bcnmf"])


def test_round_trip_and_repeat_to_the_bit(adata, tmp_path):
    bc.tl.bcnmf(adata, **QUICK, layer=None, target="case")
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    again = bc.datasets.simulated()
    bc.tl.bcnmf(again, **QUICK, target="case", n_threads=1)
    for other in (back, again):
        np.testing.assert_array_equal(other.obsm["X_bcnmf"], adata.obsm["X_bcnmf"])
        np.testing.assert_array_equal(other.varm["bcnmf"], adata.varm["bcnmf"])
    pd.testing.assert_frame_equal(back.uns["bcnmf"]["topics"], adata.uns["bcnmf"]["topics"])
    assert back.uns["bcnmf"]["params"]["likelihood"] == "poisson"
    bc.get.topics(back)
    sc.pp.neighbors(back, use_rep="X_bcnmf")


def test_layer_and_mask(adata, array_type):
    counts = adata.X.toarray()
    adata.layers["counts"] = array_type(counts)
    adata.X = np.log1p(counts)
    adata.var["chosen"] = np.arange(500) % 2 == 0
    bc.tl.bcnmf(adata, **QUICK, layer="counts", mask_var="chosen")
    assert (adata.varm["bcnmf"][~adata.var["chosen"]] == 0).all()
    part = anndata.AnnData(sparse.csr_matrix(counts[:, ::2]), obs=adata.obs[["condition"]])
    bc.tl.bcnmf(part, **QUICK)
    np.testing.assert_allclose(part.varm["bcnmf"], adata.varm["bcnmf"][::2], atol=1e-5)
    adata.var["highly_variable"] = adata.var["chosen"]
    bc.tl.bcnmf(adata, **QUICK, layer="counts", key_added="hvg")
    np.testing.assert_array_equal(adata.varm["hvg"], adata.varm["bcnmf"])
    bc.tl.bcnmf(adata, **QUICK, layer="counts", mask_var=None, key_added="all")
    assert (adata.varm["all"][1::2] > 0).any()


def test_roles_and_projection(adata):
    labels = adata.obs["condition"].astype(str).to_numpy()
    labels[:50] = "other"
    labels[50:60] = np.nan
    adata.obs["group"] = pd.Categorical(np.where(labels == "nan", None, labels))
    options = QUICK | {"background_key": "group", "tol": 1e-3}
    bc.tl.bcnmf(adata, **options, target="case")
    role = adata.obs["bcnmf_role"]
    assert (role[:60] == "projected").all()
    # A cell's usage depends on the loadings and the cell alone: projection gives every cell its usage back.
    new = bc.datasets.simulated()[::-1, ::-1].copy()
    bc.tl.project(new, adata)
    np.testing.assert_allclose(new.obsm["X_bcnmf"][::-1], adata.obsm["X_bcnmf"], rtol=1e-3, atol=0.5)
    assert (new.obs["bcnmf_role"] == "projected").all()
    bc.tl.bcnmf(adata, **options, target="all")
    assert (adata.obs["bcnmf_role"].value_counts()[["target", "both", "projected"]].tolist()) == [590, 400, 10]


def test_several_backgrounds(adata):
    donors = adata.obs.loc[adata.obs["condition"] == "ctrl", "donor"].unique().tolist()
    adata.obs["group"] = np.where(adata.obs["condition"] == "case", "case", adata.obs["donor"].astype(str))
    bc.tl.bcnmf(adata, **QUICK | {"background_key": "group", "background": donors}, key_added="list")
    bc.tl.bcnmf(adata, **QUICK, key_added="one")
    np.testing.assert_array_equal(adata.varm["list"], adata.varm["one"])
    alphas = dict.fromkeys(donors, 0.0) | {donors[0]: 0.3}
    bc.tl.bcnmf(adata, **QUICK | {"background_key": "group", "background": alphas}, key_added="own")
    only = adata[adata.obs["group"].isin(["case", donors[0]])].copy()
    bc.tl.bcnmf(only, **QUICK | {"background_key": "group", "background": donors[0]}, alpha=0.3)
    np.testing.assert_allclose(only.varm["bcnmf"], adata.varm["own"], atol=1e-5)
    assert adata.uns["own"]["alphas"]["effective"].tolist() == pytest.approx(list(alphas.values()))


def test_alpha_scales_agree(adata):
    bc.tl.bcnmf(adata, **QUICK, alpha=0.4)
    on_sums = adata.uns["bcnmf"]["alphas"]["sum"].iloc[0]
    bc.tl.bcnmf(adata, **QUICK, alpha=on_sums, alpha_scale="sum", key_added="sum")
    np.testing.assert_allclose(adata.varm["sum"], adata.varm["bcnmf"], atol=1e-6)
    bc.tl.bcnmf(adata, **QUICK, alpha=0)
    bc.tl.nmf(adata, cells=(adata.obs["condition"] == "case").to_numpy(), n_topics=3, tol=1e-2)
    np.testing.assert_array_equal(adata.varm["nmf"], adata.varm["bcnmf"])
    np.testing.assert_array_equal(adata.obsm["X_nmf"], adata.obsm["X_bcnmf"])


def test_suppressed_genes_vanish_and_the_others_do_not(adata):
    counts = adata.X.toarray()
    ctrl = (adata.obs["condition"] == "ctrl").to_numpy()
    counts[np.ix_(~ctrl, np.arange(5))] = np.minimum(counts[np.ix_(~ctrl, np.arange(5))], 1)
    counts[np.ix_(ctrl, np.arange(5))] += 4
    adata.X = sparse.csr_matrix(counts)
    bc.tl.bcnmf(adata, **QUICK | {"tol": 1e-4, "max_iter": 3000}, alpha=0.5)
    suppressed = adata.var["bcnmf_suppressed"].to_numpy()
    assert suppressed[:5].all()
    mass = counts[~ctrl].sum(0), counts[ctrl].sum(0)
    np.testing.assert_array_equal(suppressed, 0.5 * mass[1] / mass[1].sum() > mass[0] / mass[0].sum())
    highest = adata.varm["bcnmf"].max(1)
    assert (highest[suppressed] < 1e-8).all()
    assert (highest[~suppressed] > 1e-6).all()


def test_warns_of_many_suppressed_genes_and_its_advice_holds(adata):
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 (several)
        bc.tl.bcnmf(adata, **QUICK | {"max_iter": 2}, alpha=1.2)
    text = next(str(w.message) for w in caught if "suppressed" in str(w.message))
    advised = float(text.split("alpha of ")[1].split()[0])
    bc.tl.bcnmf(adata, **QUICK, alpha=advised * 0.99)
    assert 0.05 < adata.var["bcnmf_suppressed"].mean() <= 0.1


def test_says_when_the_contrast_took_too_much(adata):
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 (several)
        bc.tl.bcnmf(adata, **QUICK | {"max_iter": 300}, alpha=3)
    assert any("worse than its mean profile" in str(w.message) for w in caught)
    assert adata.uns["bcnmf"]["deviance_explained"]["target"] < 0


def test_deviance_explained(adata):
    bc.tl.bcnmf(adata, **QUICK | {"tol": 1e-3}, alpha=0)
    few = adata.uns["bcnmf"]["deviance_explained"]
    bc.tl.bcnmf(adata, **QUICK | {"tol": 1e-3, "n_topics": 12}, alpha=0)
    many = adata.uns["bcnmf"]["deviance_explained"]
    assert 0 < few["target"] < many["target"] < 1
    bc.tl.bcnmf(adata, **QUICK | {"tol": 1e-3, "n_topics": 1}, alpha=0)
    assert adata.uns["bcnmf"]["deviance_explained"]["target"] == pytest.approx(0, abs=1e-4)


def test_empty_cells_and_genes_stay_in_place(adata):
    counts = adata.X.toarray()
    counts[[0, 999]] = 0
    counts[:, [3, 400]] = 0
    adata.X = sparse.csr_matrix(counts)
    bc.tl.bcnmf(adata, **QUICK)
    assert (adata.obsm["X_bcnmf"][[0, 999]] == 0).all()
    assert (adata.varm["bcnmf"][[3, 400]] == 0).all()
    assert np.isfinite(adata.obsm["X_bcnmf"]).all()
    assert adata.uns["bcnmf"]["params"]["n_empty_cells"] == 2
    assert adata.uns["bcnmf"]["params"]["n_empty_genes"] == 2


def spoil_x(value):
    def spoil(adata):
        adata.X[0, 0] = value

    return spoil


def rename(adata):
    adata.var_names = ["g"] * adata.n_vars


def all_zero_background(adata):
    counts = adata.X.toarray()
    counts[(adata.obs["condition"] == "ctrl").to_numpy()] = 0
    adata.X = sparse.csr_matrix(counts)


BAD = {
    "unknown key": (
        {"background_key": "cond"},
        None,
        ValueError,
        "`background_key` 'cond' is not in `adata.obs`.*'condition'",
    ),
    "unknown category": (
        {"background": "control"},
        None,
        ValueError,
        "`background` must name categories.*'control'.*'ctrl'",
    ),
    "no background": ({"background": []}, None, ValueError, "`background` must name categories"),
    "unknown target": ({"target": "drug"}, None, ValueError, "`target` must name categories.*'drug'"),
    "no target": ({"background": ["case", "ctrl"]}, None, ValueError, "There are no target cells"),
    "empty background": ({}, all_zero_background, ValueError, "'ctrl' cells contain only zeros"),
    "negative": ({}, spoil_x(-1), ValueError, "must be non-negative, got -1"),
    "nan": ({}, spoil_x(np.nan), ValueError, "must be finite, got 1 values"),
    "inf": ({}, spoil_x(np.inf), ValueError, "must be finite, got 1 values"),
    "no topics": ({"n_topics": 0}, None, ValueError, "`n_topics` must be a whole number from 1 to 500"),
    "too many topics": ({"n_topics": 501}, None, ValueError, "`n_topics` must be a whole number from 1 to 500"),
    "half a topic": ({"n_topics": 2.5}, None, ValueError, "`n_topics` must be a whole number"),
    "negative alpha": ({"alpha": -0.1}, None, ValueError, "`alpha` must be a finite number of at least 0, got -0.1"),
    "nan alpha": ({"background": {"ctrl": float("nan")}}, None, ValueError, "`alpha` must be a finite number"),
    "scale": ({"alpha_scale": "cells"}, None, ValueError, "`alpha_scale` must be 'effective' or 'sum', got 'cells'"),
    "dispersion": (
        {"likelihood": "nb", "dispersion": 2.0},
        None,
        TypeError,
        r"`dispersion` must be given to the likelihood.*`likelihood=bc.likelihoods.NegativeBinomial\(dispersion=2.0\)`",
    ),
    "dropout": (
        {"dispersion": 2.0, "dropout": 0.1},
        None,
        TypeError,
        r"ZeroInflatedNegativeBinomial\(dispersion=2.0, dropout=0.1\)`",
    ),
    "dispersions of some genes": (
        {"likelihood": bc.likelihoods.NegativeBinomial([1.0, 2.0])},
        None,
        ValueError,
        r"`dispersion` must be .* for each of 500 genes, got \(2,\)",
    ),
    "a class": (
        {"likelihood": bc.likelihoods.Poisson},
        None,
        ValueError,
        "`likelihood` must be one of.*or an object of",
    ),
    "checkpoint": (
        {"checkpoint": "no/such/folder/state"},
        None,
        ValueError,
        "`checkpoint` must lie in an existing folder",
    ),
    "likelihood": ({"likelihood": "normal"}, None, ValueError, "`likelihood` must be one of.*'poisson'.*got 'normal'"),
    "layer": ({"layer": "counts"}, None, ValueError, "`layer` 'counts' is not in `adata.layers`"),
    "mask": ({"mask_var": "hvg"}, None, ValueError, "`mask_var` 'hvg' is not in `adata.var`"),
    "short mask": ({"mask_var": np.ones(3, bool)}, None, ValueError, "`mask_var` must be True or False for each"),
    "one gene": ({"mask_var": np.arange(500) == 1}, None, ValueError, "At least 2 genes"),
    "start": ({"init": np.ones((3, 3))}, None, ValueError, "`init` must be finite, non-negative loadings of 500 genes"),
    "seed": ({"random_state": None}, None, ValueError, "`random_state` must be a whole number"),
    "device": ({"device": "cuda:97"}, None, ValueError, "Present: 'cpu'"),
    "way to run": ({"n_jobs": 2}, None, TypeError, "Unknown argument 'n_jobs'. Did you mean `n_threads`?"),
    "other word": ({"seed": 2}, None, TypeError, "Did you mean `random_state`?"),
    "misspelt": ({"max_itre": 2}, None, TypeError, "Did you mean `max_iter`?"),
    "batch_key": ({"batch_key": "donor"}, None, TypeError, "Did you mean `sample_key`?"),
    "names": ({}, rename, ValueError, "`adata.var_names` must be unique.*var_names_make_unique"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Changing the sparsity")
def test_bad_input_is_refused_and_nothing_is_touched(adata, case):
    arguments, spoil, error, message = BAD[case]
    if spoil is not None:
        spoil(adata)
    before = state(adata)
    with pytest.raises(error, match=message):
        bc.tl.bcnmf(adata, **QUICK | arguments)
    assert_same(before, adata)


def test_a_bad_checkpoint_is_refused_before_the_values_are_read(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(_anndata, "row_source", lambda *_, **__: pytest.fail("the values were read"))
    for path in (tmp_path / "none" / "state", tmp_path):
        with pytest.raises(ValueError, match=r"`checkpoint` must (lie in an existing folder|name a file)"):
            bc.tl.nmf(adata, n_topics=2, checkpoint=path)


def test_says_what_non_counts_look_like(adata):
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    with pytest.warns(UserWarning, match=r"Is it log-normalised\? Name the layer of counts .*'counts'"):
        bc.tl.bcnmf(adata, **QUICK)


def test_warns_without_convergence(adata):
    with pytest.warns(ConvergenceWarning, match="after 3 iterations"):
        bc.tl.bcnmf(adata, **QUICK | {"tol": 1e-9}, max_iter=3, alpha=0.1)
    assert adata.uns["bcnmf"]["converged"] is False


def test_projection_refuses_other_genes(adata):
    bc.tl.bcnmf(adata, **QUICK)
    new = bc.datasets.simulated()
    new.var["symbol"] = new.var_names.to_numpy()
    new.var_names = [f"ENSG{i}" for i in range(new.n_vars)]
    before = state(new)
    with pytest.raises(
        ValueError, match=r"at least half of the 500 genes .* got 0 .*`adata.var\['symbol'\]` holds matching"
    ):
        bc.tl.project(new, adata)
    assert_same(before, new)
    with pytest.raises(ValueError, match="'other' is not a factorisation"):
        bc.tl.project(new, adata, key="other")
    new.var_names = new.var["symbol"].to_numpy()
    adata.var["id"] = new.var_names.to_numpy()
    adata.var_names = [f"ENSG{i}" for i in range(new.n_vars)]
    with pytest.raises(ValueError, match=r"`reference.var\['id'\]` holds matching names: set `reference.var_names"):
        bc.tl.project(new, adata)
    adata.var_names = adata.var["id"].to_numpy()
    few = bc.datasets.simulated()[:, :300].copy()
    with pytest.warns(UserWarning, match="200 of the 500 genes"):
        bc.tl.project(few, adata)
    assert np.isfinite(few.obsm["X_bcnmf"]).all()


def test_views_and_integers(adata):
    whole = adata.copy()
    whole.X = whole.X.astype(np.int32)
    view = whole[:, :]
    assert view.is_view
    with pytest.warns(anndata.ImplicitModificationWarning):
        bc.tl.bcnmf(view, **QUICK)
    bc.tl.bcnmf(adata, **QUICK)
    np.testing.assert_array_equal(view.obsm["X_bcnmf"], adata.obsm["X_bcnmf"])


def test_kang(data_folder):
    adata = anndata.read_h5ad(data_folder / "kang_ifnb_muscat.h5ad")
    bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=10, alpha=0.2, tol=1e-3)
    assert adata.uns["bcnmf"]["deviance_explained"]["target"] > 0.3
    top = bc.get.top_genes(adata, n_genes=20)
    by_enrichment = adata.uns["bcnmf"]["topics"]["log2_enrichment"].idxmax()
    leading = set(top.loc[top["topic"] == by_enrichment, "gene"])
    assert len(leading & {"ISG15", "IFIT1", "IFIT3", "IFI6", "MX1", "LY6E", "ISG20", "IFIT2", "CXCL10"}) >= 3


def test_labels_of_any_type(adata):
    is_case = (adata.obs["condition"] == "case").to_numpy()
    bc.tl.bcnmf(adata, **QUICK, key_added="names")
    columns = {
        "flag": (is_case, False),
        "number": (np.where(is_case, 3, 7), 7),
        "real": (np.where(is_case, 3.0, 7.0), 7),
        "np": (np.where(is_case, 3, 7), np.int64(7)),
        "text": (np.where(is_case, "3", "7"), 7),
        "unused": (pd.Categorical(np.where(is_case, "a", "b"), categories=["a", "b", "never"]), ["b"]),
    }
    for name, (values, background) in columns.items():
        adata.obs[name] = values
        bc.tl.bcnmf(adata, **QUICK | {"background_key": name, "background": background}, key_added="other")
        np.testing.assert_array_equal(adata.varm["other"], adata.varm["names"])
    with pytest.raises(ValueError, match=r"`background` must name categories.*'never'"):
        bc.tl.bcnmf(adata, **QUICK | {"background_key": "unused", "background": "never"})


def test_a_second_fit_under_the_same_key_leaves_nothing_of_the_first(adata):
    bc.tl.bcnmf(adata, **QUICK, likelihood="nb")
    assert {"bcnmf_suppressed", "bcnmf_dispersion"} <= set(adata.var)
    bc.tl.nmf(adata, n_topics=3, tol=1e-2, key_added="bcnmf")
    assert not [name for name in adata.var if name.startswith("bcnmf")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # few iterations
def test_series_go_by_name(adata):
    cells = pd.Series(adata.obs["condition"] == "case")
    genes = pd.Series(np.arange(adata.n_vars) % 3 > 0, adata.var_names)
    whole = bc.tl.nmf(
        adata, cells=cells.to_numpy(), mask_var=genes.to_numpy(), n_topics=2, max_iter=3, tol=0, copy=True
    )
    turned = {"cells": cells[::-1], "mask_var": genes[::-1]}
    bc.tl.nmf(adata, **turned, n_topics=2, max_iter=3, tol=0)
    np.testing.assert_array_equal(adata.obsm["X_nmf"], whole.obsm["X_nmf"])
    assert (adata.obs["nmf_role"] == "target").equals(cells)
    for argument, series in turned.items():
        for bad, got in (
            (series.reset_index(drop=True), "got none for '"),
            (series[1:], "got none for '"),
            (pd.concat([series, series[:1]]), "got several for one name"),
        ):
            with pytest.raises(ValueError, match=f"`{argument}` as a Series must have one value by name, {got}"):
                bc.tl.nmf(adata, **{argument: bad}, n_topics=2)
    bc.tl.associate(whole, groupby="cell_type", key="nmf", cells=cells[::-1])
    bc.tl.associate(adata, groupby="cell_type", key="nmf", cells=cells.to_numpy())
    pd.testing.assert_frame_equal(bc.get.associations(whole, key="nmf"), bc.get.associations(adata, key="nmf"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_categories_that_are_written_alike_are_refused(adata):
    """By the names that are kept, a 1 and a '1' are the same: one of them became target."""
    dose = np.array([0, 1, "1"], object)[np.arange(adata.n_obs) % 3]
    adata.obs["dose"] = pd.Categorical(dose, categories=[0, 1, "1"])
    for how in ({"background": [1, "1"]}, {"background": 1}, {"background": 0, "target": ["1"]}):
        with pytest.raises(ValueError, match="that can be told apart, got 1 and '1'"):
            bc.tl.bcnmf(adata, background_key="dose", **how)
    adata.obs["number"] = np.arange(adata.n_obs) % 3
    with pytest.raises(ValueError, match=r"that can be told apart, got 1\.0 and 1"):
        bc.tl.bcnmf(adata, background_key="number", background=[1, 1.0])
    bc.tl.bcnmf(adata, background_key="number", background=[1, "1"], **FEW)  # one and the same
    assert adata.uns["bcnmf"]["params"]["background"] == ["1"]


@pytest.mark.parametrize("fit", ["bcnmf", "nmf"])
def test_more_topics_than_cells_to_learn_from_are_refused(adata, fit):
    few = np.arange(adata.n_obs) < 3
    adata.obs["few"] = np.where(few, "few", "rest")
    how = {"cells": few} if fit == "nmf" else {"background_key": "few", "background": "rest"}
    with pytest.raises(ValueError, match=r"`n_topics` must be .* from 1 to 3 \(the smaller of target cells and genes"):
        getattr(bc.tl, fit)(adata, n_topics=50, **how)


FEW = {"n_topics": 2, "max_iter": 2, "tol": 0}


@pytest.mark.filterwarnings("ignore::UserWarning")  # two iterations
def test_columns_of_the_user_stay(adata):
    """A fit removes what its own record says it wrote, and nothing else that is named alike."""
    adata.obs["bcnmf_enriched"] = adata.obs["condition"]
    adata.obs["x_pvalue"] = 0.5
    adata.var["gene_sd"] = adata.var["gene_deviation"] = 1.0
    adata.obsm["X_gene_sd"] = np.ones((adata.n_obs, 2))
    before = adata.copy()
    for _ in range(2):
        bc.tl.bcnmf(adata, background_key="bcnmf_enriched", background="ctrl", **FEW)
        bc.tl.nmf(adata, key_added="gene", **FEW)
        bc.tl.nmf(adata, key_added="x", **FEW)
    for name in before.obs:
        pd.testing.assert_series_equal(adata.obs[name], before.obs[name])
    for name in before.var:
        pd.testing.assert_series_equal(adata.var[name], before.var[name])
    np.testing.assert_array_equal(adata.obsm["X_gene_sd"], before.obsm["X_gene_sd"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_column_that_is_read_is_not_written_over(adata):
    adata.obs["bcnmf_role"] = adata.obs["bcnmf_enriched"] = adata.obs["condition"]
    scored = {"n_background_topics": 2, "cross_fit": 2}
    for column, how in (("bcnmf_role", {}), ("bcnmf_enriched", scored)):
        before = adata.copy()
        with pytest.raises(ValueError, match=f"`key_added` must be .* `background_key` '{column}' is not replaced"):
            bc.tl.bcnmf(adata, background_key=column, background="ctrl", **how, **FEW)
        assert_equal(adata, before)
        bc.tl.bcnmf(adata, background_key=column, background="ctrl", key_added=f"by_{column}", **how, **FEW)
    with pytest.raises(ValueError, match="`condition_key` 'bcnmf_role' is not replaced"):
        bc.tl.deltanmf(adata, condition_key="bcnmf_role", control="ctrl", key_added="bcnmf")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kept", [True, False], ids=["this version", "before there was a list"])
def test_a_second_fit_removes_what_the_first_wrote_also_from_a_file(adata, tmp_path, kept):
    bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_background_topics=2, cross_fit=2, **FEW)
    bc.tl.umap(adata)
    written = {"bcnmf_role", "bcnmf_target_share", "bcnmf_enriched", "bcnmf_pvalue"}
    assert written <= set(adata.obs)
    if not kept:
        del adata.uns["bcnmf"]["params"]["written"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    bc.tl.nmf(back, key_added="bcnmf", **FEW)
    assert written & set(back.obs) == {"bcnmf_role"}
    assert "bcnmf_suppressed" not in back.var
    assert "X_bcnmf_umap" not in back.obsm, "the map of other topics"


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_overdispersed_counts(adata, likelihood, tmp_path):
    bc.tl.bcnmf(adata, **QUICK, likelihood=likelihood)
    assert (adata.var["bcnmf_dispersion"] > 0).all()
    assert ("bcnmf_dropout" in adata.var) == (likelihood == "zinb")
    fixed = {
        "nb": bc.likelihoods.NegativeBinomial(dispersion=2.0),
        "zinb": bc.likelihoods.ZeroInflatedNegativeBinomial(dispersion=2.0, dropout=0.1),
    }[likelihood]
    bc.tl.bcnmf(adata, **QUICK, likelihood=fixed, key_added="fixed")
    assert (adata.var["fixed_dispersion"] == 2).all()
    assert adata.uns["fixed"]["params"]["likelihood"] == likelihood
    found = {name: adata.var["bcnmf_" + name].to_numpy() for name in fixed.parameters()}
    bc.tl.bcnmf(adata, **QUICK, likelihood=type(fixed)(**found), key_added="own")
    for name, values in found.items():
        np.testing.assert_array_equal(adata.var["own_" + name], values)
    adata.write_h5ad(tmp_path / "a.h5ad")
    new = bc.datasets.simulated()[:50].copy()
    bc.tl.project(new, anndata.read_h5ad(tmp_path / "a.h5ad"))
    np.testing.assert_allclose(new.obsm["X_bcnmf"], adata.obsm["X_bcnmf"][:50], rtol=1e-2, atol=0.5)
    del adata.var["bcnmf_dispersion"]
    with pytest.raises(ValueError, match=r"parameters in `reference\.var`, got 'bcnmf' with"):
        bc.tl.project(new, adata)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dispersion": 0}, "`dispersion` must be a number above 0, or 'estimate', got 0"),
        ({"dispersion": "guess"}, "got 'guess'"),
        ({"dispersion": True}, "got True"),
        ({"dispersion": np.nan}, "got nan"),
        ({"dropout": 1.5, "dispersion": 1.0}, "`dropout` must be a number between 0 and 1, or 'estimate', got 1.5"),
        ({"dispersion": 1.0}, "must all be numbers or all be 'estimate', got dispersion=1.0, dropout='estimate'"),
    ],
)
def test_parameters_that_a_likelihood_cannot_have(wrong, message):
    with pytest.raises(ValueError, match=message):
        bc.likelihoods.ZeroInflatedNegativeBinomial(**wrong)


def test_without_a_tolerance_all_iterations_are_what_was_asked_for(adata):
    """No warning, as of `gpnsf`; one if time ends the fit before."""
    small = adata[::5].copy()
    how = {"tol": 0, "max_iter": 4}
    bc.tl.bcnmf(small, **QUICK | how)
    bc.tl.nmf(small, n_topics=2, **how)
    bc.tl.deltanmf(small, condition_key="condition", control="ctrl", n_topics_control=2, n_topics_case=1, **how)
    for key, n_iter in (("bcnmf", 4), ("nmf", 4), ("deltanmf", 8)):
        assert (small.uns[key]["n_iter"], small.uns[key]["converged"]) == (n_iter, False)
    with pytest.warns(ConvergenceWarning, match="after 1 iterations"):
        bc.tl.nmf(small, n_topics=2, **how, max_time=0)
