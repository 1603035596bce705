"""Around the spatial model: places, inducing points, neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from bcnmf_sc.engine.gpnsf.observations import OBSERVATIONS
from bcnmf_sc.engine.gpnsf.space import Places, default_points, inducing_points, morans_i, neighbours, similarity
from bcnmf_sc.engine.gpnsf.start import Values, feature_means, first_parameter, joint_nmf


def test_inducing_points():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(200, 2))
    z, point = inducing_points(places, 20)
    assert z.shape == (20, 2)
    assert (point == -1).all()
    twice = np.concatenate([places, places[:5]])
    z, point = inducing_points(twice, 300)
    assert z.shape == (200, 2)
    np.testing.assert_array_equal(z[point], twice)


def test_places_and_not_spots_decide_the_default_number_of_points():
    places = np.random.default_rng(0).normal(size=(700, 2))
    assert default_points(places) == 300
    assert default_points(np.repeat(places[:400], 2, axis=0)) == 400


def test_start_finds_loadings():
    rng = np.random.default_rng(0)
    size, usage = rng.gamma(5, 0.2, 300), rng.gamma(0.5, 2.0, (300, 3))
    values, rates = [], []
    for name, n_features, weight in (("poisson", 20, 1.0), ("gaussian", 15, 0.5)):
        rates.append(size[:, None] * (usage @ rng.gamma(0.3, 2.0, (n_features, 3)).T))
        values.append(Values(name, sparse.csr_array(rng.poisson(rates[-1]) * 1.0), OBSERVATIONS[name], size, weight))
    H, W = joint_nmf(values, 3)
    assert H.min() >= 0
    np.testing.assert_allclose(H.mean(0), 1)
    for each, rate in zip(values, rates, strict=True):
        found, flat = size[:, None] * (H @ W[each.name].T), size[:, None] * feature_means(each)
        assert ((rate - found) ** 2).sum() < 0.1 * ((rate - flat) ** 2).sum()


def test_morans_i_equals_its_formula():
    rng = np.random.default_rng(0)
    places, slices = rng.normal(size=(40, 2)), np.repeat([0, 1], 20)
    weights = neighbours(places, slices, 4)
    x = np.column_stack([places[:, 0], rng.normal(size=40), np.ones(40)])
    w, z = weights.toarray(), x - x.mean(0)
    assert not w[:20, 20:].any()
    np.testing.assert_allclose(w.sum(1), 1)
    assert not w.diagonal().any()
    expected = [40 / w.sum() * (c @ w @ c) / (c @ c) for c in z.T[:2]]
    np.testing.assert_allclose(morans_i(x, weights), [*expected, 0])
    assert expected[0] > 0.3 > abs(expected[1])


def test_similarity_rows_sum_to_one_and_doubt_counts_as_distance():
    rng = np.random.default_rng(0)
    usage = rng.gamma(2, size=(50, 3))
    sd = np.full((50, 3), 0.01)
    weights = similarity(usage, sd, 6)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert weights.nnz == 50 * 7
    assert (weights.diagonal() >= weights.max(1).toarray().ravel() - 1e-12).all()
    target = int(weights[[0]].indices[1])
    sd[target] = 3.0
    assert similarity(usage, sd, 6)[0, target] < weights[0, target]


def test_places_do_not_depend_on_unit_or_origin():
    rng = np.random.default_rng(0)
    x, s = rng.normal(size=(30, 3)), np.repeat([0, 1], 15)
    one, two = Places.of(x, s), Places.of(7 * x + 3, s)
    np.testing.assert_allclose(one.scaled, two.scaled)
    assert np.linalg.norm(one.scaled, axis=1).max() == pytest.approx(1)
    np.testing.assert_array_equal(s[one.order], s)


@pytest.mark.parametrize("hides", [False, True])
def test_parameters_start_from_moments_about_the_rates(monkeypatch, hides):
    monkeypatch.setattr("bcnmf_sc.engine.gpnsf.start.START_ROWS", 700)
    rng = np.random.default_rng(0)
    usage, W = rng.gamma(3, size=(4000, 2)), rng.gamma(5, size=(3, 2))
    size, theta = rng.gamma(20, 1 / 20, 4000), np.array([0.5, 3.0, 20.0])
    rate = size[:, None] * (usage @ W.T)
    counts = rng.poisson(rate * rng.gamma(theta, 1 / theta, rate.shape)).astype(float)
    noisy = rate + rng.normal(size=rate.shape) * [0.1, 0.5, 2.0]
    hidden = rng.random(rate.shape) < 0.3 if hides else np.zeros(rate.shape, bool)
    for name, x, truth, close in (("nb", counts, theta, 0.25), ("gaussian", noisy, [0.1, 0.5, 2.0], 0.05)):
        matrix = sparse.csr_array(np.where(hidden, 0.0, x))
        values = Values(name, matrix, OBSERVATIONS[name], size, hidden=sparse.csr_array(hidden) if hides else None)
        np.testing.assert_allclose(first_parameter(values, usage, W), truth, rtol=close)
