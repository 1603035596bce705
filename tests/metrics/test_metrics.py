"""`bcnmf_sc.metrics`: numbers against independent implementations, and one comparison of methods."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc
from bcnmf_sc import metrics
from bcnmf_sc.metrics import _compare


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_auc_is_sklearns(rng) -> None:
    labels = rng.integers(2, size=80)
    score = np.round(rng.normal(size=80) + labels, 1)  # with ties
    assert metrics.auc(score, labels) == pytest.approx(roc_auc_score(labels, score))
    assert metrics.auc(-score, labels) == pytest.approx(1 - roc_auc_score(labels, score))


def test_auc_of_a_table_is_the_best_column_in_either_direction(rng) -> None:
    labels = np.array(["a"] * 40 + ["b"] * 40)
    table = np.column_stack([rng.normal(size=80), -5.0 * (labels == "b") + rng.normal(size=80)])
    assert metrics.auc(table, labels) == pytest.approx(roc_auc_score(labels == "b", -table[:, 1]))
    three = np.repeat(["a", "b", "c"], 30)
    table = rng.normal(size=(90, 2)) + 9 * np.array([[1, 0], [0, 1], [0, 0]]).repeat(30, 0)
    best = [max(roc_auc_score(three == x, sign * table[:, k]) for k in (0, 1) for sign in (1, -1)) for x in "abc"]
    assert metrics.auc(table, three) == pytest.approx(np.mean(best))


def test_ari_standard_error_is_that_of_resamples_and_repeats(rng) -> None:
    labels = np.repeat([0, 1], 60)
    usage = rng.gamma(2.0, size=(120, 2)) + 1.5 * np.eye(2)[labels]
    found = metrics.ari_bootstrap(usage, labels, n_boot=15)
    assert len(found.samples) == 15
    assert found.se == pytest.approx(np.std(found.samples, ddof=1))
    assert 0 < found.se < 0.3
    assert found.ari == metrics.ari_bootstrap(usage, labels, n_boot=0).ari
    np.testing.assert_array_equal(found.samples, metrics.ari_bootstrap(usage, labels, n_boot=15).samples)
    assert np.isnan(metrics.ari_bootstrap(usage, labels, n_boot=0).se)
    one = metrics.ari_bootstrap(usage, labels, n_boot=3, groups=np.zeros(len(labels)))
    assert np.isnan(one.se)  # every resample is the same cells
    assert one.ari == metrics.ari_bootstrap(usage, labels, n_boot=0).ari


def test_ari_clusters_on_one_thread(rng, monkeypatch) -> None:
    """Small clusterings on all threads take up to a hundred times as long where other work shares the machine."""
    from sklearn import cluster
    from threadpoolctl import threadpool_info

    threads = []

    class KMeans(cluster.KMeans):
        def fit_predict(self, *args, **kwargs):
            threads.append(max(pool["num_threads"] for pool in threadpool_info()))
            return super().fit_predict(*args, **kwargs)

    monkeypatch.setattr(cluster, "KMeans", KMeans)
    metrics.ari_bootstrap(rng.random((40, 2)), np.arange(40) % 2, n_boot=2)
    assert threads == [1, 1, 1]


def test_ari_by_donor_is_less_sure_where_donors_differ(rng) -> None:
    donor = np.repeat(np.arange(8), 40)
    labels = rng.integers(2, size=320)
    swapped = np.where(donor < 5, labels, 1 - labels)  # what separates in five donors is reversed in three
    usage = rng.gamma(5.0, size=(320, 2)) + 40 * np.eye(2)[swapped]
    by_cell = metrics.ari_bootstrap(usage, labels)
    by_donor = metrics.ari_bootstrap(usage, labels, groups=donor)
    assert by_cell.ari == by_donor.ari
    assert by_donor.se > 2 * by_cell.se


def test_proportions_make_depth_irrelevant(rng) -> None:
    labels = np.repeat([0, 1], 50)
    usage = (0.2 + 0.6 * np.eye(2)[labels]) * rng.lognormal(0, 2, size=(100, 1))
    assert metrics.ari_bootstrap(usage, labels, n_boot=0).ari == 1
    assert metrics.ari_bootstrap(usage, labels, n_boot=0, normalize=False).ari < 0.9
    with pytest.raises(ValueError, match="`usage` must be non-negative"):
        metrics.ari_bootstrap(usage - 5, labels)


def test_matched_cosine(rng) -> None:
    W = rng.gamma(0.5, size=(50, 4))
    assert metrics.matched_cosine(W[:, [3, 1, 0, 2]] * [1, 5, 2, 7], W) == pytest.approx(1)
    assert metrics.matched_cosine(W[:, :2], W) == pytest.approx(1)
    # the greedy match takes (0, 0) first and is worse
    one = np.array([[1, 0.0], [0, 1], [0, 0]])
    other = np.array([[1.0, 0.8], [0, 0], [0.1, 0.6]])
    cosine = (one / np.linalg.norm(one, axis=0)).T @ (other / np.linalg.norm(other, axis=0))
    assert metrics.matched_cosine(one, other) == pytest.approx(
        max(cosine[0, 0] + cosine[1, 1], cosine[0, 1] + cosine[1, 0]) / 2
    )
    with pytest.raises(ValueError, match="same genes"):
        metrics.matched_cosine(W, W[:-1])


def test_contrast_ratio(rng) -> None:
    x, y = 3 * rng.normal(size=(4000, 2)), rng.normal(size=(4000, 2))
    assert metrics.contrast_ratio(x, y) == pytest.approx(9, rel=0.1)
    assert metrics.contrast_ratio(y, y) == 1
    assert metrics.contrast_ratio(y, np.ones((5, 2))) == np.inf


def test_leakage_sees_a_batch_and_only_a_batch(rng) -> None:
    batch = np.tile(["a", "b", "c"], 80)
    usage = rng.gamma(2.0, size=(240, 4))
    assert 0.35 < metrics.leakage(usage, batch) < 0.65
    usage[:, 0] += 6.0 * (batch == "b")
    assert metrics.leakage(usage, batch) > 0.7
    usage[:, 1] += 6.0 * (batch == "a")
    assert metrics.leakage(usage, batch) > 0.9


def test_leakage_across_donors_does_not_learn_donors(rng) -> None:
    donor = np.repeat(np.arange(12), 20)
    batch = donor % 2
    usage = rng.gamma(50.0, size=(240, 12)) + 200 * np.eye(12)[donor]  # donors differ, batches do not
    assert metrics.leakage(usage, batch) > 0.95
    assert metrics.leakage(usage, batch, groups=donor, n_folds=3) < 0.7
    with pytest.raises(ValueError, match="at least `n_folds=9` groups each"):
        metrics.leakage(usage, batch, groups=donor, n_folds=9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auc([1.0, 2], [1, 1]), "at least 2 different labels"),
        (lambda: metrics.auc([1.0, 2, 3], [1, 2, 3]), "must be two for a single score"),
        (lambda: metrics.auc([1.0, np.nan], [0, 1]), "finite numbers"),
        (lambda: metrics.auc([1.0, 2], [0, np.nan]), "1 of them missing"),
        (lambda: metrics.auc([1.0, 2], [0, 1, 1]), "each of the 2 cells, got 3"),
        (
            lambda: metrics.ari_bootstrap(np.ones((3, 2)), [0, 1, 1], n_clusters=4),
            "`n_clusters` must be a whole",
        ),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_compare_runs_all_methods_on_a_copy() -> None:
    adata = bc.datasets.simulated(200, 150, 200, n_types=3, random_state=1)
    adata.obs["batch"] = np.tile(["x", "y"], 175)
    before = adata.copy()
    table = metrics.compare(
        adata,
        background_key="condition",
        background="ctrl",
        labels="subgroup",
        nuisance="batch",
        n_topics=3,
        n_background_topics=5,
        n_seeds=2,
        n_boot=3,
        alphas=[1.0],
        max_iter=60,
        tol=1e-2,
    )
    assert adata.obs.equals(before.obs)
    assert not adata.obsm.keys() - before.obsm.keys()
    assert not set(adata.layers) - {None}  # which is X from anndata 0.13 on
    assert list(table["method"].unique()) == ["pca", "cpca", "nmf", "bcnmf", "bcnmf_split", "bcnmf_shared"]
    assert table.groupby("method").size().eq(2).all()
    assert table["auc_share"].notna().equals(table["method"].isin(["bcnmf_split", "bcnmf_shared"]))
    assert table["leakage"].between(0.3, 0.75).all()
    assert table.loc[table["method"] == "cpca", "alpha"].eq(1).all()
    # what the table says of a method is what that method gives by hand
    target = (adata.obs["condition"] == "case").to_numpy()
    bc.tl.nmf(adata, cells=target, n_topics=3, max_iter=60, tol=1e-2, random_state=1)
    usage = bc.get.usage(adata, key="nmf", normalize=True).to_numpy()[target]
    labels = adata.obs["subgroup"].to_numpy()[target]
    row = table[(table["method"] == "nmf") & (table["seed"] == 1)].iloc[0]
    found = metrics.ari_bootstrap(usage, labels, n_boot=3, random_state=1)
    assert row["ari"] == pytest.approx(found.ari)
    assert row["ari_se"] == pytest.approx(found.se)
    assert row["auc"] == pytest.approx(metrics.auc(usage, labels))


def test_compare_measures_leakage_on_donors_left_out() -> None:
    """Donors that differ, each in one batch: batches that differ in nothing else are told apart by cell alone."""
    adata = bc.datasets.simulated(300, 300, 150, n_donors=6, donor_effect=0.5, n_types=2, random_state=0)
    donors = sorted(adata.obs.loc[adata.obs["condition"] == "case", "donor"].unique())
    adata.obs["batch"] = np.where(adata.obs["donor"].isin(donors[::2]), "x", "y")
    how = {"background_key": "condition", "background": "ctrl", "labels": "cell_type", "nuisance": "batch"}
    how |= {"methods": "pca", "n_topics": 8, "n_seeds": 1, "n_boot": 0}
    by_cell, by_donor = (metrics.compare(adata, sample_key=key, **how) for key in (None, "donor"))
    assert by_cell["leakage"].item() > 0.8
    assert by_donor["leakage"].item() < 0.6
    assert [table["n_folds"].item() for table in (by_cell, by_donor)] == [5, 3]
    assert "n_folds" not in metrics.compare(adata, **how | {"nuisance": None})
    same = metrics.compare(adata, **how | {"nuisance": "donor"}, sample_key="donor")
    assert same["leakage"].item() > 0.8
    assert same["n_folds"].item() == 5


def test_compare_says_which_fits_did_not_converge(adata) -> None:
    how = {"background_key": "condition", "background": "ctrl", "labels": "cell_type", "n_seeds": 1, "n_boot": 0}
    table = metrics.compare(adata, **how, methods=["pca", "nmf"], n_topics=3, max_iter=3)
    assert table["converged"].tolist() == [True, False]


def test_compare_gives_pca_log_normalised_counts() -> None:
    import scanpy as sc

    adata = bc.datasets.simulated(150, 100, 100, n_types=2, random_state=0)
    adata.obs["deep"] = adata.obs["library_size"] > adata.obs["library_size"].median()
    how = {"background_key": "condition", "background": "ctrl", "labels": "deep", "n_topics": 1, "n_boot": 0}
    table = metrics.compare(adata, methods="pca", n_seeds=1, cells="all", **how)
    counts = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    for data in (adata, counts):
        sc.pp.pca(data, n_comps=1)
    log, raw = (metrics.auc(data.obsm["X_pca"], data.obs["deep"]) for data in (adata, counts))
    assert table["auc"].iloc[0] == pytest.approx(log, abs=1e-3)
    assert abs(log - raw) > 0.05


def test_compare_errors(adata, monkeypatch) -> None:
    monkeypatch.setattr(_compare, "_Runs", lambda *_: pytest.fail("a method was run"))
    adata.obs["lane"] = np.where(np.arange(1000) < 4, "rare", "often")
    adata.obs["site"] = adata.obs["donor"] == adata.obs["donor"].iloc[0]
    adata.obs["vague"] = adata.obs["donor"].where(np.arange(1000) > 2)
    how = {"background_key": "condition", "background": "ctrl"}
    for wrong, message in (
        ({"labels": "x"}, "`labels` must be a column"),
        ({"labels": "condition"}, "at least 2 labels to score"),
        ({"labels": "donor", "methods": ["umap"]}, "`methods` must be of"),
        ({"labels": "donor", "cells": "some"}, "`cells` must be 'target' or 'all'"),
        ({"labels": "donor", "nuisance": "lab"}, "`nuisance` must be a column"),
        ({"labels": "donor", "nuisance": "lane"}, "at least 5 cells each .* got 'lane' with 'rare' with 4. Merge rare"),
        ({"labels": "donor", "nuisance": "condition"}, "got 'condition' with 1 labels"),
        ({"labels": "subgroup", "nuisance": "site", "sample_key": "donor"}, "at least 2 donors each"),
        (
            {"labels": "subgroup", "sample_key": "vague"},
            "must name a donor for every scored cell, got 'vague' with 3 missing",
        ),
        ({"labels": "donor", "n_seeds": 0}, "`n_seeds` must be a whole number of at least 1, got 0"),
        ({"labels": "subgroup", "sample_key": "site"}, "at least 2 donors with target cells and 2 with .* 2 and 1"),
        ({"labels": "subgroup", "sample_key": "site", "cross_fit": None}, "at least 2 donors with target cells"),
        ({"labels": "subgroup", "cross_fit": 1}, "`cross_fit` must be a whole number of at least 2, got 1"),
        ({"labels": "donor", "n_boot": -1}, "`n_boot` must be a whole number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.compare(adata, **how, **wrong)
    with pytest.raises(TypeError, match="Unknown argument 'bogus': neither `compare`"):
        metrics.compare(adata, **how, labels="donor", methods=["pca"], bogus=3)
    taken = {"checkpoint": "c.npz", "copy": True, "key_added": "mine", "random_state": 5, "basis": "split"}
    for name, value in taken.items():
        with pytest.raises(TypeError, match=f"`compare` sets '{name}' for each of its fits. Do not pass it."):
            metrics.compare(adata, **how, labels="donor", **{name: value})
    with pytest.raises(pytest.fail.Exception, match="a method was run"):  # one donor is enough where none is left out
        metrics.compare(adata, **how, labels="subgroup", sample_key="site", methods="nmf")
