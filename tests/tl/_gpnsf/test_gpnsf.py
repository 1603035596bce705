"""`tl.gpnsf` and what follows it: fields, rules for bad input, prediction, enhancement, plots, command line."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

import bcnmf_sc as bc
from bcnmf_sc import cli
from bcnmf_sc._mudata import no_pull
from bcnmf_sc.engine.gpnsf import fit as gpnsf_fit

mudata = pytest.importorskip("mudata")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of fits that are cut short
QUICK = {"max_iter": 25, "n_inducing": 30, "progress": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def new_rules_of_mudata():
    with no_pull():
        yield


def simulated(**more):
    return bc.datasets.simulated_spatial(8, 30, 40, n_patterns=3, **more)


@pytest.fixture(scope="module")
def fitted():
    with no_pull():
        mdata = simulated(n_slices=2)
        bc.tl.gpnsf(mdata, n_topics=3, n_nonspatial=1, sample_key="slice", **QUICK)
    return mdata


def test_fields(fitted):
    mdata = simulated(n_slices=2)
    before = {name: part.X.copy() for name, part in mdata.mod.items()}
    changed = bc.tl.gpnsf(mdata, n_topics=3, n_nonspatial=1, sample_key="slice", copy=True, **QUICK)
    assert "gpnsf" not in mdata.uns
    assert set(changed.obsm) - set(mdata.obsm) == {"X_gpnsf", "X_gpnsf_sd"}
    for name, part in changed.mod.items():
        assert (before[name] != part.X).nnz == 0
        assert set(part.varm) == {"true_loadings", "gpnsf"}
        assert set(part.obs) == {"true_depth", "gpnsf_size_factor"}
        assert part.varm["gpnsf"].min() >= 0
    assert set(changed["rna"].var) == {"gpnsf_dispersion"}
    assert set(changed["atac"].var) == set()
    np.testing.assert_array_equal(changed.obsm["X_gpnsf"], fitted.obsm["X_gpnsf"])
    assert changed.obsm["X_gpnsf"].dtype == np.float32
    np.testing.assert_allclose(changed.obsm["X_gpnsf"].mean(0), 1, rtol=1e-4)
    assert (changed.obsm["X_gpnsf_sd"] > 0).all()
    record = changed.uns["gpnsf"]
    assert set(record) == {"params", "topics", "elbo", "n_iter", "converged", "posterior"}
    table = record["topics"]
    assert list(table["kind"]) == ["spatial"] * 3 + ["nonspatial"]
    assert table["lengthscale"].notna().sum() == 3
    np.testing.assert_allclose(table[["share_rna", "share_atac"]].sum(), 1)
    assert table["spatial_importance"].sum() < 1
    assert table["spatial_importance"].iloc[-1] == 0


def test_round_trip(fitted, tmp_path):
    path = tmp_path / "fitted.h5mu"
    fitted.write_h5mu(path)
    again = mudata.read_h5mu(path)
    pd.testing.assert_frame_equal(again.uns["gpnsf"]["topics"], fitted.uns["gpnsf"]["topics"], check_names=False)
    places = np.array([[0.0, 0.1], [0.3, 0.2]])
    one, two = (bc.tl.gpnsf_predict(m, places, sample="Slice 2") for m in (fitted, again))
    np.testing.assert_array_equal(one.X, two.X)


def test_patterns_are_found_and_beat_chance():
    mdata = bc.datasets.simulated_spatial(14, 80, 120, n_patterns=3, random_state=2)
    bc.tl.gpnsf(mdata, n_topics=3, size_factors="true_depth", max_iter=60, progress=False, device="cpu")
    e, h = mdata.obsm["true_usage"], mdata.obsm["X_gpnsf"]
    r = np.corrcoef(e.T, h.T)[:3, 3:]
    assert (r.max(1) > 0.85).all()
    assert len(set(r.argmax(1))) == 3
    inside = np.abs(np.log(h) - np.log(e[:, np.argsort(r.argmax(1))]))
    sd = mdata.obsm["X_gpnsf_sd"] / h
    assert 0.5 < np.mean(inside < 2 * sd) <= 1  # the standard deviation is of the size of the error


def test_anndata_is_one_modality():
    adata = simulated()["rna"].copy()
    adata.obsm["spatial"] = simulated().obsm["spatial"]
    bc.tl.gpnsf(adata, n_topics=3, **QUICK)
    assert adata.varm["gpnsf"].shape == (30, 3)
    assert bc.get.usage(adata, key="gpnsf").shape == (64, 3)
    assert list(bc.get.top_genes(adata, n_genes=2, key="gpnsf")["topic"].unique()) == ["Topic 1", "Topic 2", "Topic 3"]
    mdata = mudata.MuData({"rna": simulated()["rna"]})
    mdata.obsm["spatial"] = adata.obsm["spatial"]
    bc.tl.gpnsf(mdata, n_topics=3, **QUICK)
    np.testing.assert_array_equal(mdata.obsm["X_gpnsf"], adata.obsm["X_gpnsf"])


def test_a_file_is_read_and_not_copied(tmp_path):
    adata = simulated()["rna"].copy()
    adata.obsm["spatial"] = GRID
    adata.write_h5ad(tmp_path / "in.h5ad")
    backed = ad.read_h5ad(tmp_path / "in.h5ad", backed="r")
    with pytest.raises(ValueError, match="`copy` must be False"):
        bc.tl.gpnsf(backed, n_topics=2, copy=True, **QUICK)
    for each in (adata, backed):
        bc.tl.gpnsf(each, n_topics=2, **QUICK)
    np.testing.assert_array_equal(backed.obsm["X_gpnsf"], adata.obsm["X_gpnsf"])


@pytest.mark.parametrize("kind", [sparse.csc_matrix, sparse.coo_array, lambda x: x.toarray()])
def test_kinds_of_arrays(kind):
    one, two = simulated(), simulated()
    two["rna"].X = sparse.csr_matrix(kind(two["rna"].X)) if kind is sparse.coo_array else kind(two["rna"].X)
    for mdata in (one, two):
        bc.tl.gpnsf(mdata, n_topics=2, **(QUICK | {"max_iter": 3}))
    np.testing.assert_array_equal(one.obsm["X_gpnsf"], two.obsm["X_gpnsf"])


def test_modalities_may_stand_in_another_order():
    one, two = simulated(), simulated()
    order = np.random.default_rng(0).permutation(64)
    moved = mudata.MuData({"rna": two["rna"].copy(), "atac": two["atac"][order].copy()})
    moved.obsm["spatial"] = pd.DataFrame(two.obsm["spatial"], index=two.obs_names).loc[moved.obs_names].to_numpy()
    for mdata in (one, moved):
        bc.tl.gpnsf(mdata, n_topics=3, **QUICK)
        bc.tl.enhance(mdata, n_neighbors=5)
    usage = [pd.DataFrame(m.obsm["X_gpnsf"], index=m.obs_names).loc[one.obs_names] for m in (one, moved)]
    np.testing.assert_allclose(usage[0], usage[1], rtol=1e-4)
    layers = [m["atac"].to_df("gpnsf_enhanced").loc[one.obs_names] for m in (one, moved)]
    np.testing.assert_allclose(layers[0], layers[1], rtol=1e-2, atol=1e-4)
    sizes = [m["atac"].obs["gpnsf_size_factor"].loc[one.obs_names] for m in (one, moved)]
    np.testing.assert_array_equal(*sizes)


def test_likelihoods_are_told_from_the_values():
    mdata = simulated()
    protein, binary = mdata["rna"].copy(), mdata["atac"].copy()
    protein.var_names = "Protein of " + protein.var_names
    protein.X = np.log1p(protein.X.toarray())
    more = mudata.MuData({"rna": mdata["rna"], "protein": protein, "other": binary})
    more.obsm["spatial"] = mdata.obsm["spatial"]
    bc.tl.gpnsf(more, n_topics=2, **(QUICK | {"max_iter": 3}))
    assert more.uns["gpnsf"]["params"]["likelihood"] == ["nb", "gaussian", "bernoulli"]
    assert "gpnsf_sd" in more["protein"].var
    bc.tl.gpnsf(more, n_topics=2, likelihood={"protein": "gaussian", "rna": "poisson"}, **(QUICK | {"max_iter": 3}))
    assert more.uns["gpnsf"]["params"]["modalities"] == ["protein", "rna"]
    assert "gpnsf_dispersion" not in more["rna"].var  # of the fit before
    left = more["other"]  # which is not in this fit
    assert not [name for slot in (left.uns, left.varm, left.var, left.obs) for name in slot if name.startswith("gpnsf")]


def test_three_dimensions_and_spatial_key_of_a_modality():
    mdata = simulated()
    depth = np.random.default_rng(0).normal(size=(64, 1))
    mdata["rna"].obsm["where"] = np.hstack([mdata.obsm["spatial"], depth])
    bc.tl.gpnsf(mdata, n_topics=2, spatial_key="where", **QUICK)
    assert bc.tl.gpnsf_predict(mdata, np.zeros((1, 3))).shape == (1, 2)
    with pytest.raises(ValueError, match="places x 3"):
        bc.tl.gpnsf_predict(mdata, np.zeros((1, 2)))


# Bad input


def replaced(**obsm):
    mdata = simulated()
    for name, value in obsm.items():
        mdata.obsm[name] = value
    return mdata


def spoiled(modality, change):
    mdata = simulated()
    x = mdata[modality].X.toarray()
    change(x)
    mdata[modality].X = sparse.csr_matrix(x)
    return mdata


def put(value):
    def change(x):
        x[0, 0] = value

    return change


GRID = bc.datasets.simulated_spatial(8, 30, 40, n_patterns=3).obsm["spatial"]


@pytest.mark.parametrize(
    ("mdata", "arguments", "message"),
    [
        (lambda: replaced(spatial=np.where(np.arange(64)[:, None] == 3, np.nan, GRID)), {}, "got 1 spots with missing"),
        (lambda: replaced(spatial=GRID[:, :1]), {}, "2 or 3 dimensions"),
        (lambda: replaced(spatial=np.zeros((64, 2))), {}, "at least 3 positions"),
        (simulated, {"spatial_key": "nowhere"}, "'spatial', 'true_usage'"),
        (lambda: spoiled("rna", put(-1)), {}, "non-negative, got -1"),
        (lambda: spoiled("atac", put(np.nan)), {}, "1 values that are NaN"),
        (lambda: spoiled("rna", lambda x: x.fill(0)), {}, "contains only zeros"),
        (simulated, {"likelihood": "zinb"}, "`likelihood` must be"),
        (simulated, {"likelihood": {"protein": "nb"}}, "Present: 'rna', 'atac'"),
        (simulated, {"likelihood": {}}, "at least one modality"),
        (simulated, {"kernel": "cubic"}, "`kernel` must be"),
        (simulated, {"n_topics": 0}, "`n_topics` must be a whole number"),
        (simulated, {"n_topics": 60, "n_nonspatial": 10}, "at most 64"),
        (simulated, {"n_inducing": 0}, "`n_inducing`"),
        (simulated, {"sample_key": "donor"}, "Present: 'slice'"),
        (simulated, {"size_factors": "depth"}, "Present: 'true_depth'"),
        (simulated, {"weights": {"rna": -1}}, "weights"),
        (
            simulated,
            {"weights": {"atac": 0}},
            r"`weights\['atac'\]` must be a finite number above 0, got 0: to leave out a modality",
        ),
        (simulated, {"layer": "counts"}, "`layer` 'counts'"),
        (simulated, {"kl_weight": np.nan}, "`kl_weight`"),
        (simulated, {"mask_var": "best"}, "`mask_var` 'best'"),
        (simulated, {"key_added": "a/b"}, "`key_added`"),
        (simulated, {"learning_rate": -1}, "`learning_rate`"),
    ],
)
def test_bad_input_is_refused_before_anything_is_done(mdata, arguments, message):
    mdata = mdata()
    slots = set(mdata.obsm), set(mdata.uns)
    with pytest.raises(ValueError, match=message):
        bc.tl.gpnsf(mdata, **(QUICK | arguments))
    assert slots == (set(mdata.obsm), set(mdata.uns))


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="MuData"):
        bc.tl.gpnsf(np.ones((3, 3)))
    with pytest.raises(TypeError, match="Unknown argument 'epochs'"):
        bc.tl.gpnsf(simulated(), epochs=3)
    with pytest.raises(TypeError, match=r"`weights` must be a mapping of modalities to numbers.*got 2\.0"):
        bc.tl.gpnsf(simulated(), weights=2.0)


def test_modalities_with_different_spots_are_refused():
    mdata = simulated()
    less = mudata.MuData({"rna": mdata["rna"], "atac": mdata["atac"][:60].copy()})
    less.obsm["spatial"] = mdata.obsm["spatial"]
    with pytest.raises(ValueError, match="got 4 of 64 without 'atac'"):
        bc.tl.gpnsf(less, **QUICK)
    bc.tl.gpnsf(less, likelihood={"rna": "nb"}, n_topics=2, **(QUICK | {"max_iter": 2}))


def test_spots_without_a_slice_are_refused():
    mdata = simulated()
    mdata.obs["part"] = pd.Categorical(["a"] * 63 + [None])
    with pytest.raises(ValueError, match="got 1 missing"):
        bc.tl.gpnsf(mdata, sample_key="part", **QUICK)


def test_stated_rules_come_with_warnings():
    quick = QUICK | {"max_iter": 2, "n_topics": 2}
    peaks, counts = spoiled("atac", put(3)), spoiled("rna", put(0.5))
    with pytest.warns(UserWarning, match="other than 0 and 1; values above 0 are set to 1") as caught:
        bc.tl.gpnsf(peaks, **quick)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="1 values that are not whole"):
        bc.tl.gpnsf(counts, likelihood={"rna": "nb"}, **quick)
    twice = GRID.copy()
    twice[1] = twice[0]
    mdata = replaced(spatial=twice)
    with pytest.warns(UserWarning, match="1 spots share the position of another") as caught:
        bc.tl.gpnsf(mdata, **(quick | {"n_inducing": None}))
    assert caught[0].filename == __file__
    np.testing.assert_allclose(mdata.obsm["X_gpnsf"][0], mdata.obsm["X_gpnsf"][1], rtol=1e-5)


def test_more_inducing_points_than_spots_are_all_spots():
    one, two = simulated(), simulated()
    bc.tl.gpnsf(one, n_topics=2, **(QUICK | {"n_inducing": 64}))
    bc.tl.gpnsf(two, n_topics=2, **(QUICK | {"n_inducing": 10_000}))
    np.testing.assert_array_equal(one.obsm["X_gpnsf"], two.obsm["X_gpnsf"])


def test_an_empty_spot_takes_its_usage_from_its_neighbours():
    def empty(x):
        x[27] = 0

    mdata, zeros = spoiled("rna", empty), simulated()
    adata = mdata["rna"].copy()
    adata.obsm["spatial"] = zeros.obsm["spatial"]
    bc.tl.gpnsf(adata, n_topics=2, **(QUICK | {"max_iter": 60, "n_inducing": None}))
    assert adata.obs["gpnsf_size_factor"].iloc[27] == 0
    assert adata.uns["gpnsf"]["params"]["n_empty_spots"] == [1]
    usage, sd = adata.obsm["X_gpnsf"], adata.obsm["X_gpnsf_sd"] / adata.obsm["X_gpnsf"]
    around = usage[[26, 28, 19, 35]]
    assert (usage[27] > 0.5 * around.min(0)).all()
    assert (usage[27] < 2 * around.max(0)).all()
    assert (sd[27] > sd[[26, 28, 19, 35]].mean(0)).all()
    bc.tl.gpnsf(adata, n_topics=2, size_factors=None, **QUICK)
    assert (adata.obs["gpnsf_size_factor"] == 1).all()


def test_given_size_factors_must_fit_the_values():
    mdata = simulated()
    mdata["rna"].obs["depth"] = np.where(np.arange(64) == 0, 0.0, 1.0)
    with pytest.raises(ValueError, match="above 0 for all spots with values"):
        bc.tl.gpnsf(mdata, size_factors={"rna": "depth"}, **QUICK)


# What follows a fit


def test_prediction(fitted):
    places = fitted.obsm["spatial"][:64]
    at = bc.tl.gpnsf_predict(fitted, places, sample="Slice 1")
    np.testing.assert_allclose(at.X[:, :3], fitted.obsm["X_gpnsf"][:64, :3], rtol=1e-4)
    np.testing.assert_allclose(at.layers["sd"][:, :3], fitted.obsm["X_gpnsf_sd"][:64, :3], rtol=1e-3)
    peaks = bc.tl.gpnsf_predict(fitted, places, sample="Slice 1", modality="atac")
    assert list(peaks.var_names) == list(fitted["atac"].var_names[fitted["atac"].varm["gpnsf"].any(axis=1)])
    W = fitted["atac"].varm["gpnsf"]
    np.testing.assert_allclose(peaks.X, at.X @ W[W.any(axis=1)].T, rtol=1e-4)
    with pytest.raises(ValueError, match=r"`modality` must be .*'rna'.*, got 'adt'"):
        bc.tl.gpnsf_predict(fitted, places, sample="Slice 1", modality="adt")
    outside = bc.tl.gpnsf_predict(fitted, places + 50, sample="Slice 1")
    cv = [(x.layers["sd"] / x.X)[:, :3].mean() for x in (at, outside)]
    assert cv[1] > cv[0]
    for arguments, message in (
        ({}, "got None"),
        ({"sample": "Slice 3"}, "got 'Slice 3'"),
        ({"sample": "Slice 1", "modality": "adt"}, "'adt'"),
        ({"sample": "Slice 1", "key": "other"}, "Run `bcnmf_sc.tl.gpnsf` first"),
    ):
        with pytest.raises(ValueError, match=message):
            bc.tl.gpnsf_predict(fitted, places, **arguments)
    with pytest.raises(ValueError, match="finite"):
        bc.tl.gpnsf_predict(fitted, places * np.nan, sample="Slice 1")


def test_enhancement_comes_closer_to_the_truth():
    mdata = bc.datasets.simulated_spatial(14, 80, 120, n_patterns=3)
    bc.tl.gpnsf(mdata, n_topics=3, max_iter=60, progress=False, device="cpu")
    truth = mdata.obsm["true_usage"] @ mdata["atac"].varm["true_loadings"].T

    def agreement(x):
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth.T, x.T, strict=True) if a.std() and b.std()]
        return np.mean(r)

    raw = agreement(mdata["atac"].X.toarray())
    bc.tl.enhance(mdata)
    near = agreement(mdata["atac"].layers["gpnsf_enhanced"].toarray())
    bc.tl.enhance(mdata, method="model", key_added="model")
    model = agreement(mdata["atac"].layers["model"])
    assert raw + 0.08 < near < model
    np.testing.assert_allclose(mdata.obsp["gpnsf_similarity"].sum(1), 1, rtol=1e-5)
    assert mdata.obsp["gpnsf_similarity"].nnz == 196 * 51
    with pytest.raises(ValueError, match="got 'adt'"):
        bc.tl.enhance(mdata, modality="adt")


def test_plots(fitted):
    fig = bc.pl.spatial_topics(fitted, topics=["Topic 2", "Topic 4"], sample="Slice 2", s=7, return_fig=True)
    panels = [ax for ax in fig.axes if ax.yaxis_inverted()]
    assert len(panels) == 4
    drawn = panels[0].collections[0]
    np.testing.assert_allclose(drawn.get_array(), fitted.obsm["X_gpnsf"][64:, 1])
    np.testing.assert_allclose(drawn.get_offsets(), fitted.obsm["spatial"][64:])
    assert drawn.get_sizes()[0] == 7
    assert panels[0].get_title().startswith("Topic 2")
    assert len(bc.pl.spatial_topics(fitted, quantity="sd", sample="Slice 1")) == 4
    ax = bc.pl.lengthscales(fitted)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["Topic 1", "Topic 2", "Topic 3"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose([d.get_xdata()[0] for d in dots], fitted.uns["gpnsf"]["topics"]["lengthscale"][:3])
    for arguments, message in (
        ({"sample": None}, "got None"),
        ({"topics": "Topic 9"}, "Topic 9"),
        ({"quantity": "all"}, "`quantity` must be"),
        ({"show": "sd"}, "`show` must be True, False or None"),
    ):
        with pytest.raises(ValueError, match=message):
            bc.pl.spatial_topics(fitted, **({"sample": "Slice 1"} | arguments))


def test_simulation():
    one, two = (
        simulated(n_slices=2, n_nonspatial=1, pattern="sharp"),
        simulated(n_slices=2, n_nonspatial=1, pattern="sharp"),
    )
    assert (one["rna"].X != two["rna"].X).nnz == 0
    assert one.obsm["true_usage"].shape == (128, 4)
    np.testing.assert_allclose(one.obsm["true_usage"].mean(0), 1)
    rate = one["atac"].obs["true_depth"].to_numpy()[:, None] * (
        one.obsm["true_usage"] @ one["atac"].varm["true_loadings"].T
    )
    p = -np.expm1(-rate)
    assert abs(one["atac"].X.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    for arguments in ({"pattern": "round"}, {"n_slices": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            simulated(**arguments)


def test_command_line(tmp_path, capsys):
    mdata = simulated(n_slices=2)
    mdata.write_h5mu(tmp_path / "in.h5mu")
    argv = [
        "gpnsf",
        str(tmp_path / "in.h5mu"),
        "-k",
        "2",
        "--sample-key",
        "slice",
        "--max-iter",
        "5",
        "--n-inducing",
        "30",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main([*argv, "--device", "cpu", "-o", str(tmp_path / "out.h5mu")])
    assert end.value.code == 0
    assert "spatial_importance" in capsys.readouterr().out
    bc.tl.gpnsf(mdata, n_topics=2, sample_key="slice", **(QUICK | {"max_iter": 5}))
    out = mudata.read_h5mu(tmp_path / "out.h5mu")
    np.testing.assert_array_equal(out.obsm["X_gpnsf"], mdata.obsm["X_gpnsf"])
    with pytest.raises(SystemExit) as end:
        cli.main(["info", str(tmp_path / "out.h5mu")])
    assert end.value.code == 0
    assert "Topic 2" in capsys.readouterr().out
    adata = simulated()["rna"].copy()
    adata.obsm["spatial"] = GRID
    adata.write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(SystemExit) as end:
        cli.main(["gpnsf", str(tmp_path / "in.h5ad"), "-k", "2", "--max-iter", "3", "-o", str(tmp_path / "out.h5ad")])
    assert end.value.code == 0
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_gpnsf"].shape == (64, 2)


def test_no_warning_on_good_data():
    mdata = simulated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bc.tl.gpnsf(mdata, n_topics=2, progress=False)
    assert mdata.uns["gpnsf"]["converged"]


def test_a_fit_that_is_cut_short_says_so():
    mdata = simulated()
    with pytest.warns(ConvergenceWarning, match="did not converge in 9 passes") as caught:
        bc.tl.gpnsf(mdata, n_topics=2, **(QUICK | {"max_iter": 9}))
    assert caught[0].filename == __file__
    assert mdata.uns["gpnsf"]["converged"] is False


def test_all_passes_are_gone_through_without_a_warning_where_that_was_asked():
    mdata = simulated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bc.tl.gpnsf(mdata, n_topics=2, **(QUICK | {"max_iter": 4, "tol": 0}))
    assert mdata.uns["gpnsf"]["n_iter"] == 4
    assert mdata.uns["gpnsf"]["converged"] is False
    with pytest.warns(ConvergenceWarning, match="in 0 passes"):
        bc.tl.gpnsf(mdata, n_topics=2, **(QUICK | {"tol": 0, "max_time": 0}))


def test_a_falling_bound_is_no_rest(monkeypatch):
    monkeypatch.setattr(gpnsf_fit, "_pass", lambda _, state, *__, **___: -1e4 - 3.0 * len(state.elbo))
    mdata = simulated()
    with pytest.warns(ConvergenceWarning, match=r"in 70 passes \(share by which the bound still fell: 5\.9e-03\)"):
        bc.tl.gpnsf(mdata, n_topics=2, **(QUICK | {"max_iter": 70}))
    assert mdata.uns["gpnsf"]["converged"] is False


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"device": "cuda:97"}, "`device` must be a device for fits, got 'cuda:97'. Present: 'cpu'"),
        ({"checkpoint": "no/such/folder/state"}, "`checkpoint` must lie in an existing folder"),
    ],
    ids=["device", "checkpoint"],
)
def test_what_cannot_be_run_is_refused_before_a_start_is_made(monkeypatch, run, message):
    monkeypatch.setattr(gpnsf_fit, "joint_nmf", lambda *_, **__: pytest.fail("a start was made"))
    with pytest.raises(ValueError, match=message):
        bc.tl.gpnsf(simulated(), n_topics=2, **(QUICK | run))


def test_loadings_are_read_by_modality(fitted):
    for name, part in fitted.mod.items():
        W = bc.get.loadings(part, key="gpnsf")
        np.testing.assert_array_equal(W, part.varm["gpnsf"])
        assert list(W.columns) == list(fitted.uns["gpnsf"]["topics"].index), name
        genes = bc.get.top_genes(part, n_genes=3, key="gpnsf", by="specificity")
        share = W / W.sum()
        for topic, block in genes.groupby("topic", observed=True):  # in whatever units the loadings are
            others = share.drop(columns=topic).max(axis=1)
            score = np.log2(share[topic] + 0.1 / len(W)) - np.log2(others + 0.1 / len(W))
            assert list(block["gene"]) == list(score.nlargest(3).index)
    assert bc.get.usage(fitted, key="gpnsf").shape == (128, 4)


def test_coordinates_of_a_modality_that_lacks_spots_are_missing_and_no_others():
    mdata = simulated()
    less = mudata.MuData({"rna": mdata["rna"], "atac": mdata["atac"][:60].copy()})
    less["atac"].obsm["where"] = mdata.obsm["spatial"][:60]
    with pytest.raises(ValueError, match="got 4 spots with missing"):
        bc.tl.gpnsf(less, likelihood={"rna": "nb"}, spatial_key="where", n_topics=2, **QUICK)


def test_a_fit_of_another_kind_leaves_nothing_under_its_key():
    def left(*parts) -> set[str]:
        slots = [slot for part in parts for slot in (part.obs, part.var, part.obsm, part.varm, part.uns)]
        return {name for slot in slots for name in slot if "kept" in name}

    mdata = simulated()
    mdata.obs["side"] = np.where(np.arange(mdata.n_obs) % 2, "a", "b")
    contrast = {
        "background_key": "side",
        "background": "b",
        "n_topics": 2,
        "alpha": 0.0,
        "tol": 0.1,
        "key_added": "kept",
    }
    bc.tl.bcnmf(mdata, **contrast)
    assert "kept_suppressed" in mdata["rna"].var
    how = {"n_topics": 2, "key_added": "kept"} | QUICK | {"max_iter": 2}
    bc.tl.gpnsf(mdata, likelihood={"rna": "nb"}, **how)
    assert left(mdata["atac"]) == set()
    assert left(mdata["rna"]) == {"kept", "kept_dispersion", "kept_size_factor"}
    assert left(mdata) == {"X_kept", "X_kept_sd", "kept"}
    bc.tl.bcnmf(mdata, **contrast, likelihood={"rna": "poisson"})
    assert left(mdata["rna"]) == {"kept", "kept_suppressed"}
    assert left(mdata) == {"X_kept", "kept", "kept_role"}
    alone = mdata["rna"].copy()
    alone.obsm["spatial"] = mdata.obsm["spatial"]
    bc.tl.gpnsf(alone, **how)
    bc.tl.nmf(alone, n_topics=2, tol=0.1, key_added="kept")
    assert left(alone) == {"X_kept", "kept", "kept_role"}
