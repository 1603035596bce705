"""Negative binomial counts, with and without dropout."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from bcnmf_sc.engine import NegativeBinomial, Poisson, Run, ZeroInflatedNegativeBinomial, fit, row_source, transform
from bcnmf_sc.engine.bcnmf.ensemble import match
from bcnmf_sc.engine.kernels import cpu as kernels
from bcnmf_sc.engine.kernels.block import Pass, Rows
from bcnmf_sc.engine.kernels.cpu import sweep
from bcnmf_sc.engine.likelihoods import LIKELIHOODS
from bcnmf_sc.engine.rows.sources import to_block

K = 4


def counts(seed, n_cells=600, n_genes=150, theta=0.7, dropout=0.0):
    """Overdispersed counts of K programs, and the programs."""
    rng = np.random.default_rng(seed)
    W = rng.gamma(0.25, 1.0, (n_genes, K)) + 1e-3
    W /= W.sum(0)
    H = rng.dirichlet(np.full(K, 0.3), n_cells) * rng.lognormal(np.log(400), 0.3, (n_cells, 1))
    mean = H @ W.T
    x = rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape)).astype(float)
    return x * (rng.random(x.shape) >= dropout), W, mean


@pytest.mark.parametrize("theta", [0.3, 2.0, 50.0])
def test_losses_are_the_negative_log_likelihoods(theta):
    x, mu = np.meshgrid(np.arange(8.0), [0.1, 1.0, 7.5])
    nb = NegativeBinomial(theta)
    log_p = partial(stats.nbinom.logpmf, n=theta)
    at = lambda m: -log_p(x, p=theta / (theta + m))  # noqa: E731
    np.testing.assert_allclose(nb.loss(x, mu), at(mu) - at(np.maximum(x, 1e-300)), atol=1e-9)
    pi = 0.2
    zinb = ZeroInflatedNegativeBinomial(theta, pi)
    p = np.exp(-at(mu))
    nll = -np.log(np.where(x == 0, pi + (1 - pi) * p, (1 - pi) * p))
    best = np.where(x == 0, 0.0, -np.log1p(-pi) + at(np.maximum(x, 1e-300)))
    np.testing.assert_allclose(zinb.loss(x, mu), nll - best, atol=1e-9)


@pytest.mark.parametrize("name", ["nb", "zinb"])
def test_terms_with_parameters_per_gene_equal_autograd(name):
    rng = np.random.default_rng(0)
    theta, pi = torch.tensor(rng.gamma(1, 2, 6)), torch.tensor(rng.random(6) * 0.9)
    likelihood = NegativeBinomial(theta) if name == "nb" else ZeroInflatedNegativeBinomial(theta, pi)
    x = torch.tensor(rng.poisson(1.0, (20, 6)).astype(float))
    mu = torch.tensor(rng.gamma(1, 2, (20, 6)), requires_grad=True)
    if name == "nb":
        distribution = torch.distributions.NegativeBinomial(theta, probs=mu / (mu + theta))
        log_p = distribution.log_prob(x)
    else:
        log_nb = torch.distributions.NegativeBinomial(theta, probs=mu / (mu + theta)).log_prob(x)
        log_p = torch.where(x == 0, torch.log(pi + (1 - pi) * log_nb.exp()), torch.log1p(-pi) + log_nb)
    (gradient,) = torch.autograd.grad(-log_p.sum(), mu)
    terms = likelihood.n(x, mu.detach()) - likelihood.p(x, mu.detach())
    np.testing.assert_allclose(terms, gradient, atol=1e-9)


@pytest.mark.parametrize("likelihood", [NegativeBinomial(0.8), ZeroInflatedNegativeBinomial(0.8, 0.15)])
def test_sparse_dense_and_formulas_agree(likelihood):
    x, *_ = counts(0, 90, 30)
    n = len(x)
    target, background = (np.arange(n) < 50).astype(float), 0.3 * (np.arange(n) >= 40)
    W = np.random.default_rng(1).dirichlet(np.ones(30), K).T
    results = []
    for matrix in (x, sparse.csr_matrix(x)):
        source = row_source(matrix, dtype=np.float64, block_rows=37)
        rows = Rows.of(target, background, K, source.dtype, prev=False, loss=True)
        todo = Pass(W, np.ones(K), cold=True, loss=True, evidence=True)
        results.append((source.reduce(partial(sweep, todo=todo, likelihood=likelihood), rows), rows))
    start = np.repeat(x.sum(1, keepdims=True) / K, K, axis=1)
    mu = start @ W.T
    H = start * (likelihood.p(x, mu) @ W) / (likelihood.n(x, mu) @ W)
    mu = H @ W.T
    for sums, rows in results:
        np.testing.assert_allclose(rows.H, np.maximum(H, 0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(sums.p_x, likelihood.p(x, mu).T @ (target[:, None] * H), rtol=1e-8)
        np.testing.assert_allclose(sums.n_y, likelihood.n(x, mu).T @ (background[:, None] * H), rtol=1e-8)
        np.testing.assert_allclose(rows.loss, likelihood.loss(x, mu).sum(1), rtol=1e-8)
        for ours, theirs in zip(sums.evidence, likelihood.evidence(x, mu), strict=True):
            np.testing.assert_allclose(ours, target @ theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "gaussian"])
def test_large_blocks_and_many_steps(name, dtype, monkeypatch):
    """Sums that pass into double precision on the way; cells that come to rest one by one, or are left out."""
    rng = np.random.default_rng(0)
    x = counts(0, 700, 30)[0] * (rng.random((700, 30)) < 0.5)
    theta, pi = rng.uniform(0.3, 5, 30), rng.random(30) * 0.5
    likelihood = LIKELIHOODS[name](*{"nb": (theta,), "zinb": (theta, pi)}.get(name, ()))
    target, background = (np.arange(700) % 3 == 0).astype(float), 0.3 * (np.arange(700) % 3 == 1)
    W = rng.dirichlet(np.ones(30), K).T.astype(dtype)
    monkeypatch.setattr(kernels, "FLUSH", 256)
    steps, close = (20, {"rtol": 1e-9}) if dtype == np.float64 else (3, {"rtol": 1e-3, "atol": 1e-2})
    (ours, rows), (theirs, same) = (
        (kernels.sweep(block, rows, todo, likelihood), rows)
        for todo in [Pass(W, np.ones(K), cold=True, steps=steps, tol=1e-3, loss=True)]
        for block in (to_block(sparse.csr_matrix(x), None, dtype), x.astype(dtype))
        for rows in [Rows.of(target, background, K, dtype, prev=False, loss=True)]
    )
    assert (rows.H[np.arange(700) % 3 == 2] == 0).all()
    np.testing.assert_allclose(rows.H, same.H, **close)
    np.testing.assert_allclose(rows.loss, same.loss, **close)
    n_x, n_y = (W @ n if name == "gaussian" else n for n in (theirs.n_x, theirs.n_y))
    np.testing.assert_allclose(ours.p_x, theirs.p_x, **close)
    np.testing.assert_allclose(ours.p_y, theirs.p_y, **close)
    np.testing.assert_allclose(W @ ours.n_x if name == "gaussian" else ours.n_x, n_x, **close)
    np.testing.assert_allclose(W @ ours.n_y if name == "gaussian" else ours.n_y, n_y, **close)


@pytest.mark.parametrize("likelihood", [NegativeBinomial(0.5), ZeroInflatedNegativeBinomial(0.5, 0.2)])
def test_usage_steps_never_raise_the_loss(likelihood):
    x, _, _ = counts(3, 60, 40)
    source = row_source(sparse.csr_matrix(x), dtype=np.float64)
    W = np.random.default_rng(2).dirichlet(np.ones(40), K).T
    rows = Rows.of(np.ones(60), np.zeros(60), K, source.dtype, prev=False, loss=True)
    before = np.full(60, np.inf)
    for step in range(25):
        todo = Pass(W, np.ones(K), cold=step == 0, loss=True, sums=False)
        source.reduce(partial(sweep, todo=todo, likelihood=likelihood), rows)
        assert (rows.loss <= before * (1 + 1e-10) + 1e-10).all()
        before = rows.loss.copy()


def test_evidence_is_the_slope_and_curvature_of_the_log_likelihood():
    x, mu = np.meshgrid(np.arange(8.0), [0.1, 1.0, 7.5])
    log_p = lambda log_theta: stats.nbinom.logpmf(x, n=np.exp(log_theta), p=1 / (1 + mu / np.exp(log_theta)))  # noqa: E731
    at, step = np.log(1.7), 1e-3
    slope, curvature = NegativeBinomial(1.7).evidence(x, mu)
    below, here, above = (log_p(at + by) for by in (-step, 0, step))
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(curvature, (above - 2 * here + below) / step**2, rtol=1e-3, atol=1e-4)


def test_dispersion_goes_uphill_where_newton_would_not():
    """A step of one in the logarithm, at most, towards the likelier side; downwards curved or not."""
    evidence = np.array([[3.0, -3.0, 0.2, 50.0], [1.0, 1.0, -1.0, -1.0]])
    found = NegativeBinomial(np.full(4, 2.0)).refined(evidence, 10).dispersion
    np.testing.assert_allclose(found, 2 * np.exp([1, -1, 0.2, 1]), rtol=1e-6)


@pytest.mark.parametrize("theta", [1e-2, 1e4, 1e8])
def test_zinb_in_single_precision_at_any_dispersion(theta):
    """At a large dispersion it is a zero-inflated Poisson; ``1 + mu / theta`` alone would round to 1."""
    x, *_ = counts(0, 60, 30)
    likelihood = ZeroInflatedNegativeBinomial(theta, 0.3)
    everything = np.ones(60)
    W = [
        fit(
            row_source(sparse.csr_matrix(x), dtype=dtype), likelihood, K,
            target=everything, background=0 * everything, run=Run(max_iter=10, tol=0),
        ).W
        for dtype in (np.float32, np.float64)
    ]  # fmt: skip
    np.testing.assert_allclose(*W, rtol=1e-2, atol=1e-5)


def test_target_loss_falls_without_contrast():
    x, *_ = counts(1)
    everything = np.ones(len(x))
    for likelihood in (NegativeBinomial(0.7), ZeroInflatedNegativeBinomial(0.7, 0.1)):
        how = Run(max_iter=60, tol=0, accelerate=False)
        f = fit(row_source(sparse.csr_matrix(x)), likelihood, K, target=everything, background=0 * everything, run=how)
        assert (np.diff(f.loss[:, 1]) <= 1e-6 * f.loss[0, 1]).all()


def test_programs_are_recovered_better_than_by_poisson_and_dispersion_is_found():
    poisson, overdispersed, ratios = [], [], []
    for seed in range(5):
        x, truth, mean = counts(seed, theta=0.5)
        everything = np.ones(len(x))
        go = partial(
            fit, row_source(sparse.csr_matrix(x)), n_topics=K, target=everything, background=0 * everything,
            run=Run(max_iter=400, tol=1e-4),
        )  # fmt: skip
        poisson.append(match(truth, go(likelihood=Poisson()).W)[1].mean())
        found = go(likelihood=NegativeBinomial(1.0), refine=True)
        overdispersed.append(match(truth, found.W)[1].mean())
        ratios.append((found.likelihood.dispersion / 0.5)[mean.mean(0) > 0.5])
    assert np.median(overdispersed) > np.median(poisson)
    assert np.mean(np.array(overdispersed) > np.array(poisson)) >= 0.8
    off = abs(np.concatenate(ratios) - 1)
    assert np.median(off) < 0.15
    assert np.mean(off < 0.25) > 0.7


def test_dropout_is_found():
    x, _, mean = counts(0, n_cells=1500, theta=2.0, dropout=0.3)
    everything = np.ones(len(x))
    f = fit(
        row_source(sparse.csr_matrix(x)), ZeroInflatedNegativeBinomial(1.0, 0.1), K,
        target=everything, background=0 * everything, refine=True, run=Run(max_iter=400, tol=1e-4),
    )  # fmt: skip
    informative = mean.mean(0) > 5
    assert abs(np.median(f.likelihood.dropout[informative]) - 0.3) < 0.06


def test_usage_at_the_end_is_under_the_parameters_found():
    x, *_ = counts(0, 60)
    source, everything = row_source(sparse.csr_matrix(x)), np.ones(60)
    how = {"target": everything, "background": 0 * everything, "run": Run(max_iter=20, tol=0)}
    found = fit(source, NegativeBinomial(100.0), K, refine=True, **how)
    np.testing.assert_array_equal(found.H, transform(source, found.likelihood, found.W)[0])


def test_projection_uses_the_parameters():
    x, W, _ = counts(0, 50)
    source = row_source(sparse.csr_matrix(x))
    one, other = (transform(source, NegativeBinomial(theta), W)[0] for theta in (0.1, 100.0))
    assert not np.allclose(one, other, rtol=0.05)
