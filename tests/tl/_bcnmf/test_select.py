"""Choices made from the data, and what they are made on."""

from __future__ import annotations

import numpy as np
import pytest

import bcnmf_sc as bc

ASK = {"background_key": "condition", "background": "ctrl", "tol": 1e-2}


def test_alpha_is_chosen_within_what_leaves_the_fit_sound(adata):
    bc.tl.select_alpha(adata, **ASK, n_topics=4, alphas=(0, 0.3, 0.6, 1.5, 3), n_restarts=2, n_folds=2)
    chosen = adata.uns["bcnmf_alpha"]
    table = chosen["table"].set_index("alpha")
    assert table["degenerate"].any(), "the path must end in ruin, or it was too short to tell"
    assert not table["degenerate"][chosen["alpha"]]
    sound = table[~table["degenerate"]]
    assert sound["gain_ratio"].idxmax() == chosen["alpha"]
    assert table["fitted_background"].iloc[0] > table["fitted_background"].iloc[-1]
    assert (table["stability"].between(0, 1)).all()
    assert f"{chosen['alpha']:g}" in chosen["reason"]


def test_numbers_of_topics_are_chosen(adata):
    bc.tl.select_n_topics(adata, **ASK, n_topics=(1, 2, 5), n_background_topics=(2, 8))
    chosen = adata.uns["bcnmf_n_topics"]
    table = chosen["table"]
    assert len(table) == 6
    assert chosen["n_background_topics"] == 8, "two topics are no home for four cell types and two programs"
    assert chosen["n_topics"] == 2, "two programs were put in"
    assert (table["gain_ratio"] > 1).all()


def test_consensus_is_more_stable_than_its_members(adata, tmp_path):
    bc.tl.consensus(adata, **ASK, n_topics=4, n_restarts=6)
    topics = adata.uns["bcnmf"]["topics"]
    np.testing.assert_allclose(adata.varm["bcnmf"].sum(0), 1, atol=1e-5)
    assert topics["n_members"].sum() <= 24
    assert topics["stability"].between(0.5, 1).all()
    twice = bc.tl.consensus(adata, **ASK, n_topics=4, n_restarts=6, copy=True)
    np.testing.assert_array_equal(twice.varm["bcnmf"], adata.varm["bcnmf"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="`density` 1e-09 leaves"):
        bc.tl.consensus(adata, **ASK, n_topics=4, n_restarts=3, density=1e-9)


def test_alpha_auto_is_the_choice_of_select_alpha(adata, tmp_path):
    bc.tl.bcnmf(adata, **ASK, n_topics=4, alpha="auto")
    bc.tl.select_alpha(adata, **ASK, n_topics=4, n_restarts=1, key_added="asked")
    chosen, asked = adata.uns["bcnmf_alpha"], adata.uns["asked_alpha"]
    assert chosen["alpha"] == asked["alpha"] == adata.uns["bcnmf"]["alpha_effective"]
    assert chosen["reason"] == asked["reason"]
    bc.tl.bcnmf(adata, **ASK, n_topics=4, alpha=chosen["alpha"], key_added="given")
    np.testing.assert_array_equal(adata.varm["bcnmf"], adata.varm["given"])
    adata.write_h5ad(tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    "more",
    [{"background": {"ctrl": 0.3}}, {"alpha_scale": "sum"}, {"n_background_topics": 5}],
    ids=["mapping", "paper's scale", "split"],
)
def test_alpha_auto_is_refused_where_there_is_nothing_to_choose(adata, more):
    with pytest.raises(ValueError, match=r"`alpha.*'auto'"):
        bc.tl.bcnmf(adata, **ASK | more, alpha="auto")
    assert not adata.uns.keys() - {"truth"}


def test_consensus_beside_background_topics(adata):
    bc.tl.consensus(adata, **ASK, n_topics=2, n_background_topics=6, n_restarts=4)
    topics = adata.uns["bcnmf"]["topics"]
    assert topics["kind"].tolist() == ["target"] * 2 + ["background"] * 6
    truth = adata.varm["true_loadings"][:, (adata.uns["truth"]["kind"] == "salient").to_numpy()]
    assert bc.metrics.matched_cosine(adata.varm["bcnmf"][:, :2], truth) > 0.9
    assert (topics["stability"][:2] > 0.95).all()
    assert (topics["usage_target"] > 10 * topics["usage_background"])[:2].all()


def test_background_check_tells_good_from_bad(adata, tmp_path):
    adata.obs["batch"] = np.where(adata.obs["condition"] == "case", "one", "two")
    adata.obs["random"] = np.random.default_rng(0).choice(["x", "y"], adata.n_obs)
    bc.tl.background_check(adata, **ASK, sample_key="donor", confounders=["batch", "random"], n_background_topics=6)
    good = adata.uns["bcnmf_background_check"].set_index("check")
    assert good.loc["held-out gain ratio", "verdict"] == "good"
    assert good.loc["confounded with batch", "verdict"] == "bad"
    assert good.loc["confounded with random", "verdict"] == "good"
    assert good.loc["shared donors", "verdict"] == "caution"
    assert good.loc["target cells", ["value", "verdict"]].tolist() == [600, "good"]
    design = {"background_key": ["condition"], "background": ["ctrl"], "target": ["case"]}
    assert adata.uns["bcnmf_background_check_design"] == design
    adata.write_h5ad(tmp_path / "a.h5ad")
    # The same cells on both sides: nothing in the target that the background does not have.
    ctrl = adata[adata.obs["condition"] == "ctrl"].copy()
    ctrl.obs["half"] = np.where(np.arange(ctrl.n_obs) % 2, "a", "b")
    null = ASK | {"background_key": "half", "background": "b"}
    bc.tl.background_check(ctrl, **null, n_background_topics=6, n_topics=2)
    nothing = ctrl.uns["bcnmf_background_check"].set_index("check")
    assert nothing.loc["target cells", ["value", "verdict"]].tolist() == [200, "caution"]
    assert nothing.loc["held-out gain ratio", "value"] < good.loc["held-out gain ratio", "value"] / 5


@pytest.mark.parametrize("function", ["select_alpha", "select_n_topics", "consensus", "background_check"])
def test_a_checkpoint_is_refused_where_many_fits_are_made(adata, tmp_path, function):
    with pytest.raises(ValueError, match=r"`checkpoint` must be None where many fits are made, got '.*state'"):
        getattr(bc.tl, function)(adata, **ASK, checkpoint=tmp_path / "state")
    assert not adata.uns.keys() - {"truth"}
    assert not list(tmp_path.iterdir())


def test_with_alpha_auto_the_checkpoint_is_of_the_fit(adata, tmp_path):
    small = adata[::4].copy()
    how = ASK | {"n_topics": 3, "tol": 1e-1}
    bc.tl.bcnmf(small, **how, alpha="auto", checkpoint=tmp_path / "state", key_added="kept")
    chosen = small.uns["kept_alpha"]["alpha"]
    # the same fit finds it finished
    bc.tl.bcnmf(small, **how, alpha=chosen, checkpoint=tmp_path / "state", key_added="again")
    np.testing.assert_array_equal(small.varm["again"], small.varm["kept"])
    assert chosen == small.uns["again"]["alpha_effective"]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("select_alpha", {"alphas": ()}, "`alphas` must name at least one number"),
        ("select_alpha", {"alphas": (-1,)}, "`alphas` must be a finite number of at least 0, got -1"),
        ("select_alpha", {"n_folds": 1}, "`n_folds` must be a whole number of at least 2"),
        ("select_n_topics", {"n_topics": ()}, "`n_topics` must name"),
        (
            "select_n_topics",
            {"n_background_topics": (0,)},
            "`n_background_topics` must be a whole number of at least 1",
        ),
        ("consensus", {"alpha": -1}, "`alpha` must be a finite number of at least 0, got -1"),
        ("consensus", {"alpha": "auto"}, "`alpha` must be a finite number of at least 0, got 'auto'"),
        ("consensus", {"background": {"ctrl": 0.1}}, "`background` must name categories here, got a mapping"),
        ("background_check", {"background": {"ctrl": 0.1}}, "`background` must name categories here, got a mapping"),
        ("background_check", {"alpha": -1}, "`alpha` must be a finite number of at least 0, got -1"),
        ("select_alpha", {"background": {"ctrl": 0.1}}, "`background` must name categories here, got a mapping"),
        ("select_n_topics", {"background": {"ctrl": 0.1}}, "`background` must name categories here, got a mapping"),
        ("consensus", {"n_restarts": 1}, "`n_restarts` must be a whole number of at least 2"),
        ("consensus", {"n_background_topics": 401}, "`n_background_topics` must be a whole number from 0 to 400"),
        ("background_check", {"n_background_topics": 401}, "`n_background_topics` must be .* from 0 to 400"),
        ("select_n_topics", {"n_background_topics": (5, 401)}, "`n_background_topics` must be .* from 0 to 400"),
        ("background_check", {"confounders": ["lab"]}, "'lab' is not in `adata.obs`"),
    ],
)
def test_bad_input(adata, function, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(bc.tl, function)(adata, **ASK | arguments)
    assert not adata.uns.keys() - {"truth"}


def test_default_numbers_are_those_that_small_data_can_hold():
    small = bc.datasets.simulated(n_target=30, n_background=24, n_genes=40)[:, :30].copy()
    how = ASK | {"tol": 0.1, "n_folds": 2}
    bc.tl.select_n_topics(small, **how)
    table = small.uns["bcnmf_n_topics"]["table"]
    assert set(table["n_topics"]) == {2, 4, 8}
    assert set(table["n_background_topics"]) == {5, 10}
    few = small[:, :5].copy()
    few.X = few.X.toarray() + 1  # no cell is empty
    bc.tl.select_n_topics(few, **how)
    assert set(few.uns["bcnmf_n_topics"]["table"]["n_topics"]) == {2, 4}
    assert set(few.uns["bcnmf_n_topics"]["table"]["n_background_topics"]) == {5}
    for name in ("n_topics", "n_background_topics"):  # what is asked for is refused
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number .*got 40"):
            bc.tl.select_n_topics(small, **how | {name: (2, 40)})
