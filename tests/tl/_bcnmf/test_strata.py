"""Strata: like is compared with like, so that neither composition nor depth is taken for a program."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bcnmf_sc as bc
from bcnmf_sc.tl._bcnmf import strata

ROLES = {"background_key": "condition", "background": "ctrl", "n_topics": 2, "n_background_topics": 6, "tol": 1e-3}
ROLES["sample_key"] = "cells"


def three_types(seed=0, n=600):
    """Usage of three background topics by cells of three types, and who is background."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=n)
    usage = rng.dirichlet([1, 1, 1], n) * 0.2 + np.eye(3)[kind]
    return usage * rng.lognormal(size=(n, 1)), kind, rng.random(n) < 0.5


def agree(a, b):
    """Say whether two partitions are the same."""
    pairs = np.unique(np.column_stack([a, b]), axis=0)
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))


def test_strata_are_of_proportions_and_hold_background_cells(monkeypatch):
    monkeypatch.setattr(strata, "N_STRATA", 3)
    usage, kind, background = three_types()
    usage[:4] = 0
    found, unmatched = strata.usage_strata(usage, background)
    assert agree(found[4:], kind[4:])
    assert unmatched[:4].all()  # they use no background topic
    assert unmatched[4:].mean() < 0.03
    assert set(found) == set(found[4:][background[4:]]) == {0, 1, 2}
    again, _ = strata.usage_strata(usage * 7, background)
    np.testing.assert_array_equal(again, found)


def test_cells_that_only_the_target_has_are_said_to_be_unmatched():
    usage, kind, background = three_types()
    background &= kind != 2
    found, unmatched = strata.usage_strata(usage, background)
    assert unmatched[kind == 2].all()
    assert unmatched[kind != 2].mean() < 0.03
    assert set(found) == set(found[background])


def test_strata_are_as_many_as_the_background_allows():
    usage, _, background = three_types()
    few = np.flatnonzero(background)[:70]
    for n, expected in ((70, 2), (49, 1), (1, 1)):
        mask = np.zeros(len(usage), bool)
        mask[few[:n]] = True
        assert len(set(strata.usage_strata(usage, mask)[0])) == expected
    same = np.ones((200, 3))
    assert (strata.usage_strata(same, np.ones(200, bool))[0] == 0).all()


def test_labels_are_strata_and_cells_without_join_the_nearest():
    usage, kind, background = three_types()
    labels = kind.copy()
    labels[::10] = -1  # unknown
    labels[(kind == 2) & ~background] = 3  # a label of the target alone
    found, unmatched = strata.usage_strata(usage, background, labels=labels)
    assert agree(found, kind)
    np.testing.assert_array_equal(unmatched, ~np.isin(labels, [0, 1, 2]))
    # labels hold where usage says otherwise
    swapped = np.where(np.arange(len(kind)) == np.flatnonzero(kind == 0)[0], 1, kind)
    assert agree(strata.usage_strata(usage, background, labels=swapped)[0], swapped)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_blocks_are_of_one_stratum_and_fold_and_of_similar_depth(share):
    rng = np.random.default_rng(0)
    stratum, fold, depth = rng.integers(-1, 3, 500), rng.integers(-1, 4, 500), rng.normal(size=500)
    target = rng.random(500) < share
    target[(stratum == 2) & (fold == 0)] = True  # a stratum without background cells is one block
    block = strata.comparable_blocks(stratum, fold, depth, target)
    np.testing.assert_array_equal(block == -1, (stratum < 0) | (fold < 0))
    table = pd.DataFrame({"stratum": stratum, "fold": fold, "depth": depth, "target": target, "block": block})
    table = table[block >= 0]
    of_block = table.groupby("block")
    assert (of_block[["stratum", "fold"]].nunique() == 1).all(axis=None)
    assert of_block.size().min() >= strata.BLOCK
    assert of_block["target"].nunique().value_counts().to_dict()[1] == 1
    for (kind, one), group in table.groupby(["stratum", "fold"]):
        if kind == 2 and one == 0:
            assert group["block"].nunique() == 1
        ends = group.groupby("block")["depth"].agg(["min", "max"]).sort_values("min")
        assert (ends["max"].to_numpy()[:-1] < ends["min"].to_numpy()[1:]).all()
    expected = strata.BLOCK if share == 0.5 else 10  # as many as it takes for one of the target
    assert of_block.size().median() <= expected + 1
    assert (strata.comparable_blocks(np.full(9, -1), np.zeros(9, int), np.zeros(9), np.ones(9, bool)) == -1).all()


def test_rank_test_is_van_elterens():
    rng = np.random.default_rng(1)
    values = np.column_stack([rng.normal(size=300), rng.integers(3, size=300)])  # without and with ties
    target, block = rng.random(300) < 0.4, rng.integers(-1, 20, 300)
    values[target] += 0.3
    found = strata.stratified_rank_test(values, target, block)
    for k in range(2):
        top = bottom = 0.0
        for one in range(20):
            x, t = values[block == one, k], target[block == one]
            n, m = len(x), t.sum()
            ranks = stats.rankdata(x)
            top += (ranks[t].sum() - m * (n + 1) / 2) / (n + 1)
            bottom += m * (n - m) / n * ranks.var(ddof=1) / (n + 1) ** 2
        assert found[k] == pytest.approx(top / np.sqrt(bottom), rel=1e-9)
    whole = strata.stratified_rank_test(values, target, np.zeros(300, int))
    for k in range(2):
        options = {"use_continuity": False, "method": "asymptotic"}
        p = stats.mannwhitneyu(values[target, k], values[~target, k], **options).pvalue
        assert 2 * stats.norm.sf(whole[k]) == pytest.approx(p, rel=1e-9)


def test_rank_test_says_nothing_where_there_is_nothing_to_compare():
    values, target = np.random.default_rng(0).random((20, 1)), np.arange(20) < 10
    assert np.isnan(strata.stratified_rank_test(values, target, np.where(target, 0, 1))).all()
    assert np.isnan(strata.stratified_rank_test(np.ones((20, 1)), target, np.zeros(20, int))).all()
    assert np.isnan(strata.stratified_rank_test(values, target, np.full(20, -1))).all()


@pytest.mark.parametrize("slope", [-0.5, 0.5])
def test_shares_are_set_against_background_cells_other_than_the_cell(slope):
    rng = np.random.default_rng(0)
    n = 120
    stratum, background, depth = rng.integers(-1, 3, n), rng.random(n) < 0.6, rng.normal(6, 0.5, n)
    share = rng.beta(3 + np.maximum(stratum, 0), 9) * np.exp(slope * (depth - 6))
    found = strata.standardised_shares(share, background, stratum, depth)
    y, null = np.log(share + strata.OFFSET), background & (stratum >= 0)
    centred = [v - pd.Series(v[null]).groupby(stratum[null]).mean().reindex(stratum).to_numpy() for v in (depth, y)]
    if slope < 0:  # a slope upwards is left alone
        y = y - depth * (centred[0][null] @ centred[1][null]) / (centred[0][null] @ centred[0][null])

    groups = pd.Series(y[null]).groupby(stratum[null])
    within = groups.var(ddof=0).mul(groups.size()).sum() / (null.sum() - 3)
    between = (groups.size() * (groups.mean() - y[null].mean()) ** 2).sum() / null.sum() - within * 2 / null.sum()
    assert between > 0

    def expected(values, i, prior):
        others = null & (stratum == stratum[i]) & (np.arange(n) != i)
        return (values[others].sum() + prior * values[null].mean()) / (others.sum() + prior), others.sum() + prior

    inside = np.flatnonzero(stratum >= 0)
    residual = np.zeros(n)
    for i in inside:
        mean, size = expected(y, i, within / between)
        residual[i] = (y[i] - mean) / np.sqrt(1 + 1 / size)
    scaled = [residual[i] / np.sqrt(expected(residual**2, i, strata.PRIOR)[0]) for i in inside]
    np.testing.assert_allclose(found[inside], scaled, rtol=1e-8)
    assert np.isnan(found[stratum < 0]).all()
    assert np.isnan(strata.standardised_shares(share, np.zeros(n, bool), stratum, depth)).all()


def called(share, background, stratum, depth):
    scores = strata.standardised_shares(share, background, stratum, depth)
    return strata.empirical_pvalues(scores, scores[background]) <= 0.05


def test_neither_composition_nor_depth_calls_cells():
    """Shares depend on type and depth alone, and the target has other types and other depths."""
    n, rates = 4000, []
    background = np.arange(n) < n // 2
    for seed in range(10):
        rng = np.random.default_rng(seed)
        kind = np.where(background, rng.choice(3, n, p=[0.8, 0.15, 0.05]), rng.choice(3, n, p=[0.2, 0.3, 0.5]))
        depth = rng.normal(np.where(background, 7.0, 6.5), 0.4)
        share = np.exp(kind + np.array([0.3, 0.3, 0.6])[kind] * rng.normal(size=n) - depth / 2)
        everywhere, flat = np.zeros(n, int), np.zeros(n)
        calls = [called(share, background, *how) for how in ((everywhere, flat), (everywhere, depth), (kind, flat))]
        calls += [share > np.quantile(share[background], 0.95), called(share, background, kind, depth)]
        rates.append([call[~background].mean() for call in calls])
        assert 0.04 < calls[-1][background].mean() <= 0.05
    *others, last = np.mean(rates, axis=0)
    assert min(others) > 0.09
    assert 0.04 < last < 0.06


def test_small_strata_do_not_call_more():
    """Cells are called at the level also where strata hold a handful of background cells."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(30):
        stratum, background = rng.integers(40, size=600), rng.random(600) < 0.4
        share = np.exp(rng.normal(-3, 0.5, 600))
        rates.append(called(share, background, stratum, np.zeros(600))[~background].mean())
    assert 0.035 < np.mean(rates) < 0.06


def test_pvalues():
    p = strata.empirical_pvalues(np.array([3.0, 1.0, 0.0, np.nan]), np.array([1.0, 2.0, np.nan]))
    np.testing.assert_allclose(p, [1 / 3, 1.0, 1.0, np.nan])
    p = np.array([0.01, 0.02, np.nan, 0.5, 0.001])
    among = np.array([True, True, True, True, False])
    expected = [*stats.false_discovery_control([0.01, 0.02, 0.5]), np.nan]
    np.testing.assert_allclose(strata.adjusted_pvalues(p, among), [expected[0], expected[1], np.nan, *expected[2:]])
    assert np.isnan(strata.adjusted_pvalues(p, np.zeros(5, bool))).all()


def donors(seed=0, n_cells=400, effect=1.0, parts=((0.7, 0.2, 0.1), (0.2, 0.3, 0.5))):
    """Shares of cells of four donors a side: target donors have other proportions of three types."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(8), n_cells)
    target = unit < 4
    stratum = np.where(target, rng.choice(3, len(unit), p=parts[1]), rng.choice(3, len(unit), p=parts[0]))
    values = np.array([0.01, 0.05, 0.2])[stratum] * rng.lognormal(sigma=0.3, size=len(unit))
    return np.where(target, effect, 1)[:, None] * values[:, None], stratum, unit, target


def ratio(means):
    return float(means[:4].mean() / means[4:].mean())


@pytest.mark.parametrize("effect", [1.0, 3.0])
def test_standardised_means_differ_by_the_program_not_by_composition(effect):
    values, stratum, unit, target = donors(effect=effect)
    plain = np.array([values[unit == k].mean() for k in range(8)])
    means, n = strata.standardised_means(values, stratum, unit, 8, target)
    assert ratio(plain) > 2.5 * effect
    assert ratio(means) == pytest.approx(effect, rel=0.05)
    assert (n < 400).all()
    assert (n > 100).all()


@pytest.mark.parametrize("effect", [1.0, 3.0])
def test_a_donor_that_lacks_a_stratum_is_compared_by_the_others(effect):
    values, stratum, unit, target = donors(effect=effect)
    keep = ~((stratum == 2) & np.isin(unit, [0, 1, 4]))
    means, n = strata.standardised_means(values[keep], stratum[keep], unit[keep], 8, target[keep])
    assert ratio(means) == pytest.approx(effect, rel=0.05)
    ratios = means[:4] / means[4:]
    np.testing.assert_allclose(ratios, effect, rtol=0.2)
    full = strata.standardised_means(values, stratum, unit, 8, target)[1]
    assert (n[[0, 1, 4]] < full[[0, 1, 4]]).all()


def test_standardised_means_of_one_stratum_are_means():
    values, _, unit, target = donors()
    stratum = np.zeros(len(unit), int)
    unit[:100], stratum[100:110] = -1, -1
    means, n = strata.standardised_means(values, stratum, unit, 9, target)
    used = (unit >= 0) & (stratum >= 0)
    np.testing.assert_allclose(means[:8, 0], [values[used & (unit == k)].mean() for k in range(8)])
    np.testing.assert_allclose(n, [(used & (unit == k)).sum() for k in range(9)])
    assert np.isnan(means[8]).all()
    one_side, _ = strata.standardised_means(values, stratum, unit, 9, np.zeros(len(unit), bool))
    np.testing.assert_allclose(one_side, means)
    nobody, n = strata.standardised_means(values, stratum, np.full(len(unit), -1), 2, target)
    assert np.isnan(nobody).all()
    assert (n == 0).all()


def test_a_stratum_of_one_side_has_no_weight():
    values, stratum, unit, target = donors()
    keep = target | (stratum != 2)
    changed = np.where((stratum == 2)[:, None], 100 * values, values)
    means = [
        strata.standardised_means(v[keep], stratum[keep], unit[keep], 8, target[keep])[0] for v in (values, changed)
    ]
    assert ratio(means[0]) == pytest.approx(1, rel=0.05)
    assert ratio(means[1]) < 3  # 100 times where nothing is shrunk


def composed(seed):
    """Simulated cells of which nothing is new, of the same types in other proportions."""
    adata = bc.datasets.simulated(1200, 1200, n_genes=300, frac_active=0, donor_effect=0, n_donors=1, random_state=seed)
    kind, case = adata.obs["cell_type"].cat.codes.to_numpy(), (adata.obs["condition"] == "case").to_numpy()
    part = np.where(case, np.array([6, 2, 1, 1])[kind], np.array([1, 1, 2, 6])[kind]) / 6
    return adata[np.random.default_rng(seed).random(adata.n_obs) < part].copy()


def test_composition_is_not_a_program():
    topics, cells = 0, []
    for seed in range(4):
        adata = composed(seed)
        case = (adata.obs["condition"] == "case").to_numpy()
        bc.tl.bcnmf(adata, **ROLES, random_state=seed)
        topics += adata.uns["bcnmf"]["topics"]["called"].sum()
        cells.append(adata.obs["bcnmf_enriched"][case].mean())
        share = adata.obs["bcnmf_target_share"].to_numpy()
        assert (share > np.quantile(share[~case], 0.95))[case].mean() > 0.1  # the share itself knows the types
    assert topics <= 1
    assert np.mean(cells) < 0.1


def test_labels_take_the_place_of_usage(adata):
    adata.obs["lot"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "odd", None))
    bc.tl.bcnmf(adata, **ROLES, key_added="free", cross_fit=3)
    bc.tl.bcnmf(adata, **ROLES, strata_key="lot", cross_fit=3)
    assert adata.uns["bcnmf"]["params"]["strata_key"] == "lot"
    pd.testing.assert_series_equal(adata.obs["bcnmf_target_share"], adata.obs["free_target_share"], check_names=False)
    assert not np.allclose(adata.obs["bcnmf_pvalue"], adata.obs["free_pvalue"])
    topics = adata.uns["bcnmf"]["topics"].iloc[:2]
    assert topics["unmatched"].between(0.4, 0.6).all()  # every other cell has no label
    with pytest.raises(ValueError, match=r"`strata_key` 'kind' is not in `adata\.obs`"):
        bc.tl.bcnmf(adata, **ROLES, strata_key="kind")


def test_empty_background_cells_are_left_out(adata):
    adata = adata.copy()
    empty = np.flatnonzero(adata.obs["condition"] == "ctrl")[::10]
    counts = adata.X.toarray()
    counts[empty] = 0
    adata.X = counts
    with pytest.warns(UserWarning, match="40 of 400 background cells hold nothing but zeros"):
        bc.tl.bcnmf(adata, **ROLES, cross_fit=3)
    p, case = adata.obs["bcnmf_pvalue"].to_numpy(), (adata.obs["condition"] == "case").to_numpy()
    assert np.isnan(p[empty]).all()
    assert np.isnan(p).sum() == 40
    assert not adata.obs["bcnmf_enriched"].iloc[empty].any()
    full = np.setdiff1d(np.flatnonzero(~case), empty)
    np.testing.assert_allclose(np.sort(p[full]) * 361, 1 + np.arange(1, 361), rtol=1e-5)


def test_cells_outside_are_compared_too(adata):
    rest = np.arange(adata.n_obs) % 10 == 0
    adata.obs["condition"] = adata.obs["condition"].where(~rest)
    bc.tl.bcnmf(adata, **ROLES, cross_fit=3)
    hidden = (adata.obs["subgroup"] != "none").to_numpy()
    assert adata.obs["bcnmf_enriched"][rest & hidden].mean() > 0.8
    assert adata.obs["bcnmf_pvalue"].notna().all()
    assert adata.obs["bcnmf_padj"][rest].isna().all()
