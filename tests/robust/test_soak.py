"""Many small problems of every kind against the formulas of the updates, written out dense and in double precision."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import sparse

from bcnmf_sc.engine import Gaussian, NegativeBinomial, Poisson, Run, ZeroInflatedNegativeBinomial, fit, row_source

N_PROBLEMS = int(os.environ.get("BCNMF_SC_ABUSE", "20"))
"""Of each likelihood."""
TINY = 1e-300


@dataclass
class Problem:
    """What a fit is made from, drawn from a seed."""

    x: np.ndarray
    target: np.ndarray
    background: np.ndarray
    start: np.ndarray
    frozen: np.ndarray
    likelihood: object
    dtype: type
    sparse: bool
    accelerate: bool

    @classmethod
    def draw(cls, name: str, seed: int) -> Problem:
        rng = np.random.default_rng([seed, *name.encode()])
        n, g, k = rng.integers(1, 41), rng.integers(1, 31), rng.integers(1, 9)
        x = rng.poisson(rng.gamma(0.5, rng.choice([1, 10]), (n, 3)) @ rng.gamma(0.5, 1.0, (3, g))).astype(float)
        if name == "gaussian":
            x *= rng.gamma(2.0, 0.5, x.shape)
        is_target = rng.random(n) < rng.choice([0.3, 0.7, 1.0])
        is_target[0] = True
        alpha = rng.choice([0, 0.3, 1, 1e3])
        both = rng.random(n) < 0.2
        left_out = rng.random(n) < 0.1
        left_out[0] = False
        background = alpha * ((~is_target | both) & ~left_out)
        frozen = rng.dirichlet(np.ones(g), rng.integers(1, 4)).T if rng.random() < 0.3 else np.zeros((g, 0))
        theta, pi = rng.gamma(2.0, 1.0, g).astype(np.float32) + 0.1, rng.uniform(0.05, 0.6, g).astype(np.float32)
        likelihood = {
            "gaussian": Gaussian(),
            "poisson": Poisson(),
            "nb": NegativeBinomial(theta),
            "zinb": ZeroInflatedNegativeBinomial(theta, pi),
        }[name]
        return cls(
            x,
            (is_target & ~left_out).astype(float),
            background.astype(float),
            rng.random((g, k)) + 0.01,
            frozen,
            likelihood,
            [np.float32, np.float64][rng.integers(2)],
            bool(rng.integers(2)),
            bool(rng.integers(2)),
        )


def terms(name: str, x: np.ndarray, mu: np.ndarray, likelihood) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, n and the loss of every value."""
    if name == "gaussian":
        return x, mu, (x - mu) ** 2 / 2
    log = x * np.log(np.where(x > 0, x, mu) / mu)
    if name == "poisson":
        return x / mu, np.ones_like(mu), log - x + mu
    theta = np.asarray(likelihood.dispersion, float)
    n, loss = (x + theta) / (mu + theta), log - (x + theta) * np.log((x + theta) / (mu + theta))
    if name == "zinb":
        pi, q = np.asarray(likelihood.dropout, float), (theta / (theta + mu)) ** theta
        omega = (1 - pi) * q / (pi + (1 - pi) * q)
        n = np.where(x > 0, n, omega * theta / (mu + theta))
        loss = np.where(x > 0, loss, -np.log(pi + (1 - pi) * q))
    return x / mu, n, loss


def reference(name: str, problem: Problem, n_iter: int) -> tuple[np.ndarray, np.ndarray]:
    """Loadings after some iterations, and the losses of target and background of each."""
    a, b, x = problem.target, problem.background, problem.x
    used = (a > 0) | (b > 0)
    a, b, x = a[used], b[used], x[used]
    expressed, n_frozen = problem.x.any(0), problem.frozen.shape[1]

    def normalised(W):
        W = W * expressed[:, None]
        scale = np.maximum(W.sum(0), 1e-30)
        return np.where(expressed[:, None], np.maximum(W / scale, 1e-10), 0), scale

    free = normalised(problem.start)[0]
    W = W_before = np.hstack([problem.frozen, free])
    H = H_before = None
    momentum, losses, calmest, scale = 1.0, [], np.inf, np.ones(W.shape[1])
    cap = 0.9 if b.any() else 0.95

    def extrapolated(now, before, beta):
        if b.any():
            return now + beta * np.maximum(now - before, 0)
        top, bottom = (1 + beta) * now + (1 - beta) * before, (1 - beta) * now + (1 + beta) * before
        return now * np.minimum(top / np.maximum(bottom, TINY), 2)

    for _ in range(n_iter):
        ahead = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        beta = min((momentum - 1) / ahead, cap) if problem.accelerate else 0.0
        at = extrapolated(W, W_before, beta)
        if H is None:
            h = np.repeat(x.sum(1, keepdims=True), W.shape[1], 1) / W.shape[1]
            H_before = h if problem.accelerate else None
        else:
            h = H * scale
            if problem.accelerate:
                h, H_before = extrapolated(h, H_before, beta), h
        p, n, _ = terms(name, x, np.maximum(h @ at.T, TINY), problem.likelihood)
        h = h * (p @ at) / np.maximum(n @ at, TINY)
        H = np.maximum(h, 1e-8 * h.mean(1, keepdims=True))
        p, n, loss = terms(name, x, np.maximum(H @ at.T, TINY), problem.likelihood)
        losses.append([a @ loss.sum(1), (b > 0) @ loss.sum(1)])
        up = at * ((a[:, None] * p + b[:, None] * n).T @ H)
        down = (a[:, None] * n + b[:, None] * p).T @ H
        new, scale = normalised((up / np.maximum(down, TINY))[:, n_frozen:])
        new, scale = np.hstack([problem.frozen, new]), np.append(np.ones(n_frozen), scale)
        change = np.linalg.norm(new - W) / np.linalg.norm(W[:, n_frozen:])
        reversed_ = (
            np.vdot(new - at, W - W_before) < 0 if b.any() else len(losses) > 1 and losses[-1][0] > losses[-2][0]
        )
        momentum = 1.0 if reversed_ else ahead
        calmest = min(calmest, change)
        if b.any() and change > 4 * calmest:
            cap /= 2
        W_before, W = W, new
    return W, np.array(losses)


@pytest.mark.parametrize("name", ["gaussian", "poisson", "nb", "zinb"])
def test_equals_the_formulas(name):
    worst = 0.0
    for seed in range(N_PROBLEMS):
        problem = Problem.draw(name, seed)
        with np.errstate(all="ignore"):
            W, losses = reference(name, problem, 3)
        matrix = sparse.csr_matrix(problem.x) if problem.sparse else problem.x
        found = fit(
            row_source(matrix, dtype=problem.dtype, n_threads=1),
            problem.likelihood,
            problem.start.shape[1],
            target=problem.target,
            background=problem.background,
            start=problem.start,
            frozen=problem.frozen,
            expressed=problem.x.any(0),
            run=Run(max_iter=3, tol=0, accelerate=problem.accelerate, check_every=1),
        )
        off = np.abs(found.W - W).max() / max(W.max(), TINY)
        size = (problem.x**2 if name == "gaussian" else problem.x).sum()  # a loss may be the little that is left of it
        off_loss = np.abs(found.loss[:, 1:3] - losses).max() / max(np.abs(losses).max(), 0.01 * size, TINY)
        assert np.isfinite(found.H).all(), (seed, problem)
        assert max(off, off_loss) < 1e-4, (seed, off, off_loss, problem)
        worst = max(worst, off, off_loss)
    assert worst > 0  # float32 is among them


@pytest.mark.parametrize(
    "likelihood", [Gaussian(), Poisson(), NegativeBinomial(2.0), ZeroInflatedNegativeBinomial(1.0, 0.1)]
)
@pytest.mark.parametrize("holder", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize(("alpha", "accelerate"), [(0.0, True), (1.0, False), (1e3, True)])
def test_extremes_stay_finite(likelihood, holder, alpha, accelerate):
    """No counts, one count, counts of a million, as many topics as cells and genes, one cell, one gene."""
    rng = np.random.default_rng(0)
    plain = rng.poisson(1.0, (12, 7)).astype(float)
    one = np.zeros((12, 7))
    one[3, 2] = 1
    cases = {
        "zeros": np.zeros((12, 7)),
        "one count": one,
        "one large count": one * 1e6,
        "huge": plain * 1e6,
        "huge beside small": np.where(rng.random((12, 7)) < 0.1, 1e6, plain),
        "one cell": plain[:1],
        "one gene": plain[:, :1],
        "background of nothing": plain * (np.arange(12) < 6)[:, None],
        "target of nothing": plain * (np.arange(12) >= 6)[:, None],
    }
    for i, (name, x) in enumerate(cases.items()):
        target = (np.arange(len(x)) < max(len(x) // 2, 1)).astype(float)
        # every case meets 1 and 20 topics, but not with every alpha
        for n_topics in ((1, 20)[(i + accelerate) % 2],) if "BCNMF_SC_ABUSE" not in os.environ else (1, 20):
            found = fit(
                row_source(holder(x), n_threads=1),
                likelihood,
                n_topics,
                target=target,
                background=alpha * (1 - target),
                expressed=x.any(0),
                run=Run(max_iter=15, tol=0, accelerate=accelerate),
            )
            for part in ("W", "H", "weight"):
                assert np.isfinite(getattr(found, part)).all(), (name, n_topics, part)
                assert (getattr(found, part) >= 0).all(), (name, n_topics, part)
            if x[target > 0].any():
                assert np.allclose(found.W.sum(0), 1, atol=1e-5), (name, n_topics)
            assert not found.H[~x.any(1)].any(), (name, n_topics)


def test_loss_of_an_empty_gene_at_a_large_mean():
    """Of a zero at a mean 10^8 times the dispersion: ``theta log(1 + mu / theta)``."""
    loss = NegativeBinomial(np.float32(0.01)).loss(np.float32(0), np.float32(1e6))
    np.testing.assert_allclose(loss, 0.01 * np.log1p(1e8), rtol=1e-5)
