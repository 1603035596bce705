"""Background topics, target share and cross-fitting: what is found, and what is not invented."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc
from bcnmf_sc._anndata import Design as Roles
from bcnmf_sc.engine.bcnmf.ensemble import OutOfFold
from bcnmf_sc.tl._bcnmf.folds import Likeness, call_topics, make_folds
from bcnmf_sc.tl._bcnmf.strata import comparable_blocks, stratified_rank_test
from bcnmf_sc.tl._design import Design, moderated

SPLIT = {"background_key": "condition", "background": "ctrl", "n_topics": 2, "n_background_topics": 6, "tol": 1e-3}
SPLIT["sample_key"] = "cells"


def alike(n):
    """Cells that may all be compared."""
    return Likeness(np.zeros(n, int), np.zeros(n, bool), np.zeros(n))


def spiked(adata):
    return (adata.obs["subgroup"] != "none").to_numpy()


@pytest.mark.parametrize("basis", ["split", "shared"])
def test_hidden_subgroup_is_found_and_called(adata, basis, tmp_path):
    bc.tl.bcnmf(adata, **SPLIT, basis=basis)
    share, called = adata.obs["bcnmf_target_share"], adata.obs["bcnmf_enriched"]
    hidden = spiked(adata)
    case = (adata.obs["condition"] == "case").to_numpy()
    assert roc_auc_score(hidden[case], share[case]) > 0.95
    assert called[hidden].mean() > 0.9
    assert called[~hidden].mean() < 0.1
    topics = adata.uns["bcnmf"]["topics"]
    assert topics["kind"].tolist() == ["target"] * 2 + ["background"] * 6
    assert topics["called"].tolist()[:2] == [True] * 2
    assert topics.loc[topics["kind"] == "target", ["p_value", "p_adjusted"]].notna().all(axis=None)
    assert topics["stability"].notna().all()
    assert (topics["direction"] == "gained").tolist()[:2] == [True] * 2
    assert adata.obsm["X_bcnmf"].shape == (1000, 8)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(back.uns["bcnmf"]["topics"], topics)


def test_true_programs_are_recovered_where_nmf_at_equal_numbers_is_not(adata):
    truth = adata.varm["true_loadings"][:, (adata.uns["truth"]["kind"] == "salient").to_numpy()]

    def cosine(W):
        a, b = (M / np.linalg.norm(M, axis=0) for M in (truth, W))
        return (a.T @ b).max(1).min()

    bc.tl.bcnmf(adata, **SPLIT, cross_fit=None)
    assert cosine(adata.varm["bcnmf"][:, :2]) > 0.9
    bc.tl.nmf(adata, n_topics=2, tol=1e-3)
    assert cosine(adata.varm["nmf"]) < 0.6
    assert "bcnmf_target_share" not in adata.obs


def test_nothing_is_invented_where_target_is_background():
    called, above, auc = 0, [], []
    for seed in range(6):
        adata = bc.datasets.simulated(n_target=4, n_background=500, n_genes=300, random_state=seed)
        adata = adata[adata.obs["condition"] == "ctrl"].copy()
        half = np.random.default_rng(seed).random(adata.n_obs) < 0.5
        adata.obs["half"] = np.where(half, "a", "b")
        options = SPLIT | {"background_key": "half", "background": "b", "n_background_topics": 4, "random_state": seed}
        bc.tl.bcnmf(adata, **options)
        called += adata.uns["bcnmf"]["topics"]["called"].sum()
        above.append(adata.obs["bcnmf_enriched"][half].mean())
        auc.append(roc_auc_score(half, adata.obs["bcnmf_target_share"]))
    assert called <= 1
    assert np.mean(above) < 0.09
    assert 0.42 < np.mean(auc) < 0.58


def test_pvalues_are_ranks_among_unseen_background_cells(adata):
    bc.tl.bcnmf(adata, **SPLIT)
    p, adjusted = adata.obs["bcnmf_pvalue"].to_numpy(), adata.obs["bcnmf_padj"].to_numpy()
    case = (adata.obs["condition"] == "case").to_numpy()
    np.testing.assert_allclose(np.sort(p[~case]) * 401, 1 + np.arange(1, 401), rtol=1e-5)
    assert (adata.obs["bcnmf_enriched"] == (p <= np.float32(0.05))).all()
    np.testing.assert_allclose(adjusted[case], stats.false_discovery_control(p[case]), rtol=1e-5)
    assert np.isnan(adjusted[~case]).all()


def test_score_of_a_cell_does_not_depend_on_itself(adata):
    """Change one cell's counts: under cross-fitting, the models that score its fold stay to the bit."""
    bc.tl.bcnmf(adata, **SPLIT, key_added="before")
    other = bc.datasets.simulated()
    counts = other.X.toarray()
    counts[5] = counts[5][::-1]
    other.X = sparse.csr_matrix(counts)
    bc.tl.bcnmf(other, **SPLIT, key_added="after")
    same = adata.obs["before_target_share"].to_numpy() == other.obs["after_target_share"].to_numpy()
    design = bc._anndata.read_design(adata, "condition", "ctrl", None)
    from bcnmf_sc.engine.bcnmf.ensemble import spawn

    fold = make_folds(design, None, 5, spawn(0, 3)[0])
    mates = fold == fold[5]
    mates[5] = False
    assert same[mates].all()
    assert not same[fold != fold[5]].all()


def test_folds_keep_donors_together_and_conditions_spread(adata):
    design = bc._anndata.read_design(adata, "condition", "ctrl", None)
    cells = make_folds(design, None, 5, 0)
    for mask in (design.target, design.background):
        counts = np.bincount(cells[mask])
        assert counts.max() - counts.min() <= 1
    donors = pd.Categorical(adata.obs["donor"])
    folds = make_folds(design, donors, 5, 0)
    assert (pd.Series(folds).groupby(np.asarray(donors)).nunique() == 1).all()
    assert sorted(set(folds[design.target])) == sorted(set(folds[design.background])) == [0, 1, 2]
    paired = pd.Categorical(np.arange(adata.n_obs) % 4)
    assert sorted(set(make_folds(design, paired, 5, 0))) == [0, 1, 2, 3]


@pytest.mark.parametrize("kinds", [(1, 3, 2), (3, 3, 3, 3, 3, 3, 1), (1, 1, 1, 3, 2), (1, 2, 1, 2, 2, 2)])
def test_every_fold_has_donors_of_either_side(kinds):
    """1: a donor with target cells, 2: with background cells, 3: with both."""
    kinds = np.repeat(kinds, 20)
    half = np.arange(len(kinds)) % 2 == 0
    target = (kinds == 1) | ((kinds == 3) & half)
    design = Roles(target, {"ctrl": ~target})
    donors = pd.Categorical(np.repeat(np.arange(len(kinds) // 20), 20))
    fold = make_folds(design, donors, 5, 0)
    assert fold.max() == min((kinds & 1 > 0).sum() // 20, (kinds & 2 > 0).sum() // 20, 5) - 1
    for one in range(fold.max() + 1):
        assert target[fold == one].any()
        assert (~target)[fold == one].any()


def test_one_donor_cannot_be_held_out():
    target = np.arange(60) < 40
    donors = pd.Categorical(np.repeat(["a", "b", "c"], 20))
    with pytest.raises(ValueError, match=r"at least 2 donors with target cells and 2 with background.*got 2 and 1"):
        make_folds(Roles(target, {"ctrl": ~target}), donors, 5, 0)


def test_cells_without_a_donor_are_scored_out_of_fold(adata):
    adata.obs["donor"] = adata.obs["donor"].astype(object)
    adata.obs.loc[adata.obs_names[::2], "donor"] = np.nan
    how = {"background_key": "condition", "background": "ctrl", "n_topics": 2, "n_background_topics": 5, "tol": 1e-2}
    bc.tl.bcnmf(adata, sample_key="donor", **how)
    controls = adata.obs[(adata.obs["condition"] == "ctrl")]
    missing = controls["donor"].isna()
    share = [controls.loc[part, "bcnmf_target_share"].median() for part in (missing, ~missing)]
    assert 0.5 < share[0] / share[1] < 2


@pytest.mark.parametrize("name", ["fdr_level", "cell_fpr"])
@pytest.mark.parametrize("level", [0, 1, 5, -0.1])
def test_levels(adata, name, level):
    options = {"background_key": "condition", "background": "ctrl", "n_background_topics": 2, name: level}
    with pytest.raises(ValueError, match=f"`{name}` must be a number above 0 and below 1, got {level}"):
        bc.tl.bcnmf(adata, **options)


def test_cell_fpr_sets_how_many_controls_would_be_called(adata):
    called = {}
    for level in (0.01, 0.2):
        bc.tl.bcnmf(adata, **SPLIT, cell_fpr=level)
        called[level] = adata.obs["bcnmf_enriched"][adata.obs["condition"] == "ctrl"].mean()
        assert level - 0.01 <= called[level] <= level


def test_by_donor(adata):
    bc.tl.bcnmf(adata, **SPLIT | {"sample_key": "donor"})
    assert adata.obs["bcnmf_enriched"][spiked(adata)].mean() > 0.8
    assert adata.uns["bcnmf"]["topics"]["p_value"][:2].max() < 0.2
    with pytest.raises(ValueError, match=r"`sample_key` 'patient' is not in `adata\.obs`"):
        bc.tl.bcnmf(adata, **SPLIT | {"sample_key": "patient"})


def test_folds_by_donor_call_no_cell_for_its_donor():
    """Donors that differ much: by cell, many cells without the programs are called; by donor, as many as by chance."""
    adata = bc.datasets.simulated(donor_effect=0.2)
    others = ((adata.obs["condition"] == "case") & (adata.obs["subgroup"] == "none")).to_numpy()
    called = {}
    for sample_key in ("cells", "donor"):
        bc.tl.bcnmf(adata, **SPLIT | {"n_topics": 4, "n_background_topics": 10, "sample_key": sample_key})
        called[sample_key] = adata.obs["bcnmf_enriched"][others].mean()
    assert called["cells"] > 0.15
    assert called["donor"] < 0.1
    assert adata.obs["bcnmf_enriched"][spiked(adata)].mean() > 0.9


@pytest.mark.filterwarnings("ignore:.* of the background's cells have more than")  # three topics for six programs
def test_warns_of_few_background_cells(adata):
    few = adata[np.r_[0:600, 600:660]].copy()
    with pytest.warns(UserWarning, match="Only 60 background cells"):
        bc.tl.bcnmf(few, **SPLIT | {"n_background_topics": 3})


def test_warns_where_shared_programs_have_no_background_topic(adata):
    """Four cell types and two shared programs: with five background topics, a target topic takes one of them."""
    with pytest.warns(UserWarning, match="of the background's cells have more than .* Raise `n_background_topics`"):
        bc.tl.bcnmf(adata, **SPLIT | {"n_topics": 4, "n_background_topics": 5})
    assert adata.obs["bcnmf_enriched"][spiked(adata)].mean() < 0.5
    bc.tl.bcnmf(adata, **SPLIT | {"n_topics": 4, "n_background_topics": "auto"})  # warns of nothing
    assert adata.obs["bcnmf_enriched"][spiked(adata)].mean() > 0.9


@pytest.mark.filterwarnings("ignore:A target cell has:UserWarning")  # CD34+ cells hold more counts
@pytest.mark.parametrize("spike", ["CD34+", "CD14+"])
def test_added_cells_are_found_and_nothing_where_nothing_was_added(data_folder, spike):
    """A part of `benchmarks/semi_synthetic.py`: of 55 monocytes in a third of it all cells are called, but no topic."""
    adata = anndata.read_h5ad(data_folder / "zheng_pbmc_facs.h5ad")[:: 3 if spike == "CD34+" else 2].copy()
    adata = adata[adata.obs["cell_type"].isin(["B cell", "NK cell", "T cell", spike])].copy()
    adata = adata[:, np.asarray((adata.X > 0).sum(0)).ravel() > 20].copy()
    new = (adata.obs["cell_type"] == spike).to_numpy()
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    adata.obs["role"] = np.where(new | half, "target", "background")
    ask = {"background_key": "role", "background": "background", "n_topics": 4, "n_background_topics": 10, "tol": 1e-3}
    others = half & ~new
    bc.tl.bcnmf(adata, **ask)
    share, called = adata.obs["bcnmf_target_share"].to_numpy(), adata.obs["bcnmf_enriched"].to_numpy()
    assert roc_auc_score(new[new | others], share[new | others]) > 0.97
    assert called[new].mean() > 0.9
    assert called[others].mean() < 0.08
    assert adata.uns["bcnmf"]["topics"]["called"].any()
    null = adata[~new].copy()
    bc.tl.bcnmf(null, **ask)
    assert not null.uns["bcnmf"]["topics"]["called"].any()
    assert null.obs["bcnmf_enriched"][others[~new]].mean() < 0.1  # 0.05 with a standard error of 0.014 in 465 cells


RPS27L = "ENSG00000185088"
"""A direct target of p53. The file has 1,000 genes; MDM2 and CDKN1A are not among them."""


@pytest.mark.filterwarnings("ignore:Only .* background cells")
def test_few_cells_treated_with_nutlin(data_folder):
    """31 treated cells against 52: the p53 target leads a target topic, and no background topic."""
    adata = anndata.read_h5ad(data_folder / "ngp_nutlin_83cells.h5ad")
    ask = {"background": "vehicle", "n_topics": 3, "n_background_topics": 3, "tol": 1e-3}
    with pytest.warns(UserWarning, match="Only 52 background cells"):
        bc.tl.bcnmf(adata, background_key="condition", **ask)
    rank = bc.get.loadings(adata).rank(ascending=False).loc[RPS27L]
    assert rank.iloc[:3].min() <= 10
    assert rank.iloc[3:].min() > 30
    share, treated = adata.obs["bcnmf_target_share"], (adata.obs["condition"] == "nutlin").to_numpy()
    assert roc_auc_score(treated, share) > 0.85
    # Untreated cells against untreated cells, 26 of them in the background: few are called.
    called = []
    for seed in range(10):
        null = adata[~treated].copy()
        half = np.random.default_rng(seed).permutation(null.n_obs) < 26
        null.obs["half"] = np.where(half, "a", "vehicle")
        bc.tl.bcnmf(null, background_key="half", **ask | {"tol": 1e-2, "random_state": seed})
        called.append(null.obs["bcnmf_enriched"][half].mean())
    assert np.mean(called) <= 0.1


def test_number_of_background_topics_is_chosen_and_recorded(adata):
    bc.tl.bcnmf(adata, **SPLIT | {"n_background_topics": "auto", "tol": 1e-2})
    selection = adata.uns["bcnmf"]["selection"]
    table = selection["table"]
    assert table["n_background_topics"].tolist() == [5, 10, 20, 40]
    best = table.loc[table["gain_ratio"].idxmax(), "n_background_topics"]
    assert selection["n_background_topics"] == best == (adata.uns["bcnmf"]["topics"]["kind"] == "background").sum()
    assert f"{best} background topics" in selection["reason"]


@pytest.mark.parametrize("n_programs", [1, 4])
def test_number_of_target_topics_is_that_of_the_programs(n_programs):
    adata = bc.datasets.simulated(600, 600, 300, n_types=3, n_shared=1, n_salient=n_programs)
    ask = {"background_key": "condition", "background": "ctrl", "n_background_topics": 6, "sample_key": "cells"}
    bc.tl.bcnmf(adata, **ask, n_topics="auto", cross_fit=None, tol=1e-3)
    selection = adata.uns["bcnmf"]["selection"]
    assert abs(selection["n_topics"] - n_programs) <= 1
    assert selection["n_topics"] == adata.uns["bcnmf"]["params"]["n_topics"]
    assert (adata.uns["bcnmf"]["topics"]["kind"] == "target").sum() == selection["n_topics"]
    assert selection["table"]["n_topics"].tolist() == [1, 2, 3, 4, 6, 8, 10]
    assert f"{selection['n_topics']} is the smallest number of target topics" in selection["reason"]


def test_both_numbers_are_chosen(adata, tmp_path):
    bc.tl.bcnmf(adata, **SPLIT | {"n_topics": "auto", "n_background_topics": "auto", "tol": 1e-2}, cross_fit=None)
    selection = adata.uns["bcnmf"]["selection"]
    assert selection["table"]["n_background_topics"].tolist()[:4] == [5, 10, 20, 40]
    assert set(selection["table"]["n_background_topics"][4:]) == {selection["n_background_topics"]}
    assert "Beside" not in selection["reason"]
    adata.write_h5ad(tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"n_background_topics": 0}, "`n_topics='auto'` must come with background topics"),
        ({"init": np.ones((500, 2))}, "`init` must come with a number of topics"),
        ({"alpha": "auto", "basis": "shared"}, "`alpha='auto'` must come with a number of topics"),
    ],
)
def test_number_of_target_topics_cannot_be_chosen_with_everything(adata, more, message):
    with pytest.raises(ValueError, match=message):
        bc.tl.bcnmf(adata, **SPLIT | {"n_topics": "auto"} | more)


def test_threads_and_seed(adata):
    small = adata[::2].copy()
    runs = {n: bc.tl.bcnmf(small, **SPLIT, n_threads=n, copy=True) for n in (1, 3)}
    for column in ("bcnmf_target_share", "bcnmf_pvalue"):
        np.testing.assert_array_equal(runs[1].obs[column], runs[3].obs[column])


def scored(n_donors: int = 8, n_cells: int = 10, *, seed: int = 0) -> tuple[OutOfFold, np.ndarray, pd.DataFrame]:
    """Usage of two target and four background topics; donors of their own level; the number of each cell's donor."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    usage = rng.gamma(3.0, size=(len(donor), 6)) * np.exp(rng.normal(0, 0.2, (n_donors, 6)))[donor]
    usage /= usage.sum(1, keepdims=True)
    topics = pd.DataFrame({"kind": ["target"] * 2 + ["background"] * 4}, index=[f"Topic {k}" for k in range(6)])
    return OutOfFold(usage[:, :2].sum(1), usage, np.zeros(len(donor), int), np.ones(6)), donor, topics


def test_topics_are_called_where_target_topics_are_gained_and_background_topics_change():
    scores, donor, topics = scored()
    target = donor < 4
    scores.usage[target] *= [20, 0.05, 20, 0.05, 1, 1]
    roles = Roles(target, {"ctrl": ~target})
    found = call_topics(
        topics, scores, roles, Design.two_groups(target.astype(int), pd.Categorical(donor)), 0.05, alike(80)
    )
    table = found["topics"]
    assert table["direction"].tolist()[:4] == ["gained", "lost"] * 2
    assert table["called"].tolist() == [True, False, True, True, False, False]
    means = pd.DataFrame(scores.usage).groupby(donor).mean()
    X = np.column_stack([np.ones(8), np.repeat([1.0, 0.0], 4)])
    effects = moderated(np.log2(means.to_numpy() + 1e-3), X, np.array([0.0, 1.0]))  # variances of all six
    np.testing.assert_allclose(table["log2_fold_change"], effects.estimate)
    np.testing.assert_allclose(table[["ci_low", "ci_high"]].T, effects.interval())
    np.testing.assert_allclose(table["p_value"], effects.p_value)
    families = [stats.false_discovery_control(effects.p_value[part]) for part in (slice(2), slice(2, None))]
    np.testing.assert_allclose(table["p_adjusted"], np.append(families[0], np.minimum(2 * families[1], 1)))
    donors = found["donors"]
    assert donors.columns.tolist() == ["donor", "condition", "n_cells", *topics.index]
    assert donors["condition"].tolist() == ["target"] * 4 + ["background"] * 4
    np.testing.assert_allclose(donors[list(topics.index)], means)


def test_donors_of_both_sides_are_blocks_and_single_ones_stay():
    scores, donor, topics = scored()
    target = donor < 2
    target[donor >= 4] = np.arange(40) % 2 == 0  # of eight donors four are on both sides
    roles = Roles(target, {"ctrl": ~target})
    design = Design.two_groups(target.astype(int), pd.Categorical(donor))
    donors = call_topics(topics, scores, roles, design, 0.05, alike(80))["donors"]
    assert len(donors) == 12
    assert donors["n_cells"].tolist() == [10] * 4 + [5] * 8
    assert len(set(design.block)) == 8


@pytest.mark.parametrize(("n_target", "tested"), [(2, True), (1, False)])
def test_few_donors_have_an_effect_with_its_interval(n_target, tested):
    scores, donor, topics = scored(n_target + 2)
    target = donor < n_target
    design = Design.two_groups(target.astype(int), pd.Categorical(donor))
    table = call_topics(topics, scores, Roles(target, {"ctrl": ~target}), design, 0.05, alike(len(donor)))["topics"]
    assert np.isfinite(table[["log2_fold_change", "ci_low", "ci_high"]]).all(axis=None)
    assert np.isfinite(table["p_value"]).all() == tested
    assert not table["called"].any()


def test_cells_are_the_units_where_no_donors_are_given():
    scores, donor, topics = scored()
    target = donor < 4
    scores.usage[target] *= [20, 0.05, 1, 1, 1, 1]
    found = call_topics(topics, scores, Roles(target, {"ctrl": ~target}), None, 0.05, alike(80))
    table = found["topics"]
    assert "donors" not in found
    block = comparable_blocks(np.zeros(80, int), scores.fold, np.zeros(80), target)
    expected = 2 * stats.norm.sf(np.abs(stratified_rank_test(scores.usage[:, :2], target, block)))
    np.testing.assert_allclose(table["p_value"][:2], expected)
    ratio = (scores.usage[target].mean(0) + 1e-3) / (scores.usage[~target].mean(0) + 1e-3)
    np.testing.assert_allclose(table["log2_fold_change"][:2], np.log2(ratio)[:2])
    assert table["called"].tolist() == [True] + [False] * 5
    assert table["direction"].tolist()[:2] == ["gained", "lost"]
    assert table["ci_low"].isna().all()
    assert table[["p_value", "log2_fold_change"]][2:].isna().all(axis=None)  # background topics make the strata


def test_designs_adjust_the_test_of_topics_and_are_recorded(adata, tmp_path):
    donor = adata.obs["donor"].astype("category").cat.codes.to_numpy()
    adata.obs["age"] = np.array([31.0, 50, 44, 28, 61, 39])[donor]
    bc.tl.bcnmf(adata, **SPLIT | {"sample_key": "donor"}, design="~ age + condition")
    topics, donors = bc.get.topics(adata), bc.get.donors(adata)
    age = adata.obs.drop_duplicates("donor").set_index("donor")["age"]
    X = np.column_stack([np.ones(6), (donors["condition"] == "target").to_numpy(float), age.loc[donors["donor"]]])
    y = np.log2(donors[list(topics.index)].to_numpy() + 1e-3)
    effects = moderated(y, X, np.array([0.0, 1.0, 0.0]), n=donors["n_cells"].to_numpy(float))
    np.testing.assert_allclose(topics["p_value"], effects.p_value, rtol=1e-6)
    assert adata.uns["bcnmf"]["params"]["design"] == "~ age + condition"
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(bc.get.donors(read), donors, check_dtype=False)
    pd.testing.assert_frame_equal(bc.get.topics(read), topics, check_dtype=False, check_names=False)
    with pytest.raises(ValueError, match="`design` must come with `sample_key`"):
        bc.tl.bcnmf(adata, **SPLIT, design="~ condition")
    with pytest.raises(ValueError, match=r"must be a column of the design.*Columns: 'age'"):
        bc.tl.bcnmf(adata, **SPLIT | {"sample_key": "donor"}, design="~ age")


BAD = {
    "negative": {"n_background_topics": -1},
    "more than background cells": {"n_background_topics": 401},
    "basis": {"basis": "both"},
    "one fold": {"cross_fit": 1},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(adata, case):
    with pytest.raises(ValueError, match=f"`{next(iter(BAD[case]))}` must be"):
        bc.tl.bcnmf(adata, **SPLIT | BAD[case])
    assert not [c for c in adata.obs if c.startswith("bcnmf")]


def test_kang_quality(data_folder, cautions):
    """One seed of `benchmarks/quality_kang.py`, by donor: two, both stimulated, of whom all programs are called."""
    adata = anndata.read_h5ad(data_folder / "kang_ifnb_muscat.h5ad")
    bc.tl.bcnmf(
        adata,
        background_key="condition",
        background="ctrl",
        n_topics=4,
        n_background_topics=10,
        sample_key="donor",
        tol=1e-3,
    )
    stim = (adata.obs["condition"] == "stim").to_numpy()
    assert roc_auc_score(stim, adata.obs["bcnmf_target_share"]) >= 0.99
    assert adata.obs["bcnmf_enriched"][stim].mean() >= 0.97
    assert adata.obs["bcnmf_enriched"][~stim].mean() <= 0.06
    leading = set(bc.get.top_genes(adata, n_genes=15, topics=["Topic 1", "Topic 2", "Topic 3", "Topic 4"])["gene"])
    assert {"ISG15", "IFIT3"} <= leading
    topics = bc.get.topics(adata).iloc[:4]
    assert topics["called"].all()
    assert (topics["direction"] == "gained").all()
    assert topics["ci_low"].min() > 1  # each doubles at least
    assert not [one for one in cautions(adata) if "topic" in one.lower() and "return in other fits" not in one]


@pytest.mark.parametrize("by_donor", [False, True])
def test_topics_are_not_tested_where_all_cells_are_on_both_sides(by_donor):
    scores, donor, topics = scored()
    everyone = np.ones(80, bool)
    design = Design.two_groups(np.zeros(80, int), pd.Categorical(donor)) if by_donor else None
    table = call_topics(topics, scores, Roles(everyone, {"ctrl": everyone}), design, 0.05, alike(len(donor)))["topics"]
    assert table[["p_value", "log2_fold_change"]].isna().all(axis=None)
    assert not table["called"].any()
    assert table["direction"].eq("").all()
