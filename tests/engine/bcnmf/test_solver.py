"""The updates against independent implementations, and what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from numba.core import caching
from scipy import optimize, sparse
from sklearn.decomposition import non_negative_factorization
from threadpoolctl import threadpool_info

from bcnmf_sc.engine import Gaussian, NegativeBinomial, Poisson, Run, fit, row_source, transform
from bcnmf_sc.engine.bcnmf.solver import State, extrapolation, initial_loadings, iterate, loadings_terms, normalise
from bcnmf_sc.engine.kernels._loops import MAX_BETA, jit
from bcnmf_sc.engine.kernels.block import Pass, Rows
from bcnmf_sc.engine.kernels.cpu import sweep

LIKELIHOODS = [Gaussian(), Poisson()]
K = 4


@pytest.fixture
def problem():
    """Counts of 60 target and 40 background cells x 50 genes, half of them zero, as float64, and the masks."""
    rng = np.random.default_rng(1)
    mean = rng.gamma(0.5, 2.0, (100, K)) @ rng.gamma(0.5, 1.0, (K, 50))
    x = rng.poisson(mean).astype(np.float64)
    x[:, 7] = 0  # a gene without counts
    x[3] = 0  # a cell without counts
    is_target = np.arange(100) < 60
    return x, is_target.astype(float), (~is_target).astype(float)


def loadings(seed, n_genes=50):
    W = initial_loadings(n_genes, K, seed)
    return W / W.sum(0)


def run(n_iter, **kwargs):
    return Run(max_iter=n_iter, tol=0, accelerate=False, **kwargs)


def paper(x, target, background, W, n_iter, likelihood):
    """The updates as printed (sections 4.1 and S1.1), dense, rows as cells; `background` holds alpha."""
    X, Y, alpha = x[target > 0], x[background > 0], background.max()
    H_X, H_Y = (np.repeat(A.sum(1, keepdims=True) / K, K, axis=1) for A in (X, Y))
    tiny = 1e-300
    for _ in range(n_iter):
        if likelihood.name == "gaussian":
            H_X = H_X * (X @ W) / (H_X @ W.T @ W + tiny)
            H_Y = H_Y * (Y @ W) / (H_Y @ W.T @ W + tiny)
            up = X.T @ H_X + alpha * W @ H_Y.T @ H_Y
            W = W * up / (W @ H_X.T @ H_X + alpha * Y.T @ H_Y + tiny)
        else:
            H_X = H_X * ((X / (H_X @ W.T + tiny)) @ W) / W.sum(0)
            H_Y = H_Y * ((Y / (H_Y @ W.T + tiny)) @ W) / W.sum(0)
            up = (X / (H_X @ W.T + tiny)).T @ H_X + alpha * H_Y.sum(0)
            W = W * up / (H_X.sum(0) + alpha * (Y / (H_Y @ W.T + tiny)).T @ H_Y)
    return W


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equals_the_papers_formulas(problem, likelihood, alpha, array_type):
    x, target, background = problem
    x = np.delete(x, 7, axis=1)
    start = loadings(0, 49)
    source = row_source(array_type(x), dtype=np.float64)
    ours = fit(source, likelihood, K, target=target, background=alpha * background, run=run(15))
    theirs = paper(x, target, alpha * background if alpha else background * 1e-300, start, 15, likelihood)
    np.testing.assert_allclose(ours.W, theirs / theirs.sum(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("likelihood", "loss"), list(zip(LIKELIHOODS, ["frobenius", "kullback-leibler"], strict=True)))
@pytest.mark.parametrize(("dtype", "tol"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_without_contrast_is_scikit_learns_nmf(problem, likelihood, loss, dtype, tol):
    x, target, _ = problem
    X = np.delete(np.delete(x[target > 0], 3, axis=0), 7, axis=1)
    everything = np.ones(len(X))
    start = loadings(0, 49)
    usage = np.repeat(X.sum(1, keepdims=True) / K, K, axis=1)
    _, theirs, _ = non_negative_factorization(
        X, W=usage, H=start.T.copy(), n_components=K, init="custom", solver="mu", beta_loss=loss, tol=0, max_iter=12
    )
    source = row_source(sparse.csr_matrix(X), dtype=dtype)
    ours = fit(source, likelihood, K, target=everything, background=0 * everything, run=run(12)).W
    np.testing.assert_allclose(ours, theirs.T / theirs.sum(1), atol=tol)


def losses(x, H, W, likelihood):
    return likelihood.loss(x, np.maximum(H @ W.T, 1e-300)).sum(1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, 20.0])
def test_each_step_majorises_and_minimises(problem, likelihood, alpha):
    x, target, background = problem
    source = row_source(sparse.csr_matrix(x), dtype=np.float64)
    W = loadings(3)
    rows = Rows.of(target, alpha * background, K, source.dtype, prev=False, loss=False)
    rows.H[:] = np.random.default_rng(0).gamma(1.0, 5.0, rows.H.shape)
    used = (rows.target > 0) | (rows.background > 0)
    for _ in range(20):
        before = rows.H.copy()
        sums = source.reduce(partial(sweep, todo=Pass(W, np.ones(K)), likelihood=likelihood), rows)
        fell = losses(x, before, W, likelihood) - losses(x, rows.H, W, likelihood)
        assert (fell[used] >= -1e-9 * (1 + abs(losses(x, before, W, likelihood)[used]))).all(), (
            "a usage step raised a loss"
        )
        weight = rows.target - rows.background
        up, down = loadings_terms(W, sums, likelihood)
        new = up / np.maximum(down, 1e-300)
        contrast, new_contrast = (weight @ losses(x, rows.H, V, likelihood) for V in (W, new))
        if np.isfinite(new_contrast):  # a suppressed gene's loss has no bound
            assert new_contrast <= contrast + 1e-9 * abs(contrast), "the loadings step raised the contrast"
        W, scale = normalise(new, x.any(0))
        rows.H *= scale


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_parts(problem, likelihood):
    x, target, background = problem
    W = loadings(0)
    for source in (row_source(x), row_source(sparse.csr_matrix(x))):
        rows = Rows.of(target, 0.25 * background, K, source.dtype, prev=False, loss=True)
        todo = Pass(W.astype(np.float32), np.ones(K), cold=True, loss=True)
        sums = source.reduce(partial(sweep, todo=todo, likelihood=likelihood), rows)
        cells = losses(x, rows.H.astype(float), W, likelihood)
        expected = [target @ cells, background @ cells, 0.25 * background @ cells]
        np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)
        np.testing.assert_allclose(rows.loss, cells, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_permutations_commute(problem, likelihood):
    x, target, background = problem
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(x.shape[0]), rng.permutation(x.shape[1])
    start = loadings(0)
    go = partial(fit, likelihood=likelihood, n_topics=K, run=run(30))
    plain = go(row_source(x, dtype=np.float64), target=target, background=0.3 * background, start=start)
    moved = go(
        row_source(x[cells][:, genes], dtype=np.float64),
        target=target[cells],
        background=0.3 * background[cells],
        start=start[genes],
    )
    np.testing.assert_allclose(moved.W, plain.W[genes], atol=1e-10)
    np.testing.assert_allclose(moved.H, plain.H[cells], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("accelerate", [False, True])
def test_rows_source_blocks_and_threads_do_not_matter(problem, likelihood, accelerate):
    x, target, background = problem
    how = Run(max_iter=40, tol=0, accelerate=accelerate)

    def go(matrix, **kwargs):
        source = row_source(matrix, **kwargs)
        return fit(source, likelihood, K, target=target, background=0.3 * background, run=how)

    csr = sparse.csr_matrix(x)
    plain = go(csr, block_rows=9, n_threads=1)
    for threads in (2, 5):
        same = go(csr, block_rows=9, n_threads=threads)
        assert np.array_equal(same.W, plain.W), "bits depend on the threads"
        assert np.array_equal(same.H, plain.H)
    for other in (
        go(csr),
        go(csr, block_rows=1),
        go(csr.tocsc()),
        go(x),
        go(x, block_rows=7),
        go(np.asfortranarray(x)),
    ):
        np.testing.assert_allclose(other.W, plain.W, atol=1e-5)
        np.testing.assert_allclose(other.H, plain.H, rtol=1e-2, atol=1e-2 * plain.H.mean())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_single_precision_follows_double(problem, likelihood):
    x, target, background = problem
    single, double = (
        fit(row_source(x, dtype=dtype), likelihood, K, target=target, background=0.2 * background, run=run(300)).W
        for dtype in (np.float32, np.float64)
    )
    np.testing.assert_allclose(single, double, atol=1e-4)


def test_a_cell_in_both_conditions_counts_in_both(problem):
    x, _, background = problem
    both = np.ones(len(x))
    twice = np.vstack([x, x[background > 0]])
    go = partial(fit, likelihood=Poisson(), n_topics=K, run=run(25))
    overlap = go(row_source(x, dtype=np.float64), target=both, background=0.4 * background)
    copied = go(
        row_source(twice, dtype=np.float64),
        target=np.append(both, np.zeros(40)),
        background=np.append(0 * both, np.full(40, 0.4)),
    )
    np.testing.assert_allclose(overlap.W, copied.W, atol=1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_result_is_normalised_and_empty_rows_are_zero(problem, likelihood):
    x, target, background = problem
    source = row_source(sparse.csr_matrix(x))
    weights = {"target": target, "background": 0.3 * background, "expressed": x.any(0)}
    f = fit(source, likelihood, K, **weights, run=Run(max_iter=60))
    np.testing.assert_allclose(f.W.sum(0), 1, atol=1e-6)
    assert (f.W[7] == 0).all()
    assert (np.delete(f.W, 7, axis=0) > 0).all(), "an expressed gene is locked at zero"
    assert (f.H[3] == 0).all()
    assert (np.delete(f.H, 3, axis=0) > 0).all()
    assert np.isfinite(f.W).all()


@pytest.mark.parametrize("accelerate", [False, True])
def test_frozen_topics_stay_to_the_bit(problem, accelerate):
    x, target, background = problem
    source = row_source(sparse.csr_matrix(x))
    frozen = fit(source, Poisson(), 2, target=background, background=0 * background, run=run(50)).W
    how = Run(max_iter=50, accelerate=accelerate)
    f = fit(source, Poisson(), 3, target=target, background=0 * background, frozen=frozen, run=how)
    assert np.array_equal(f.W[:, :2], frozen)
    assert f.W.shape == (50, 5)
    alone = fit(source, Poisson(), 3, target=target, background=0 * background, run=how)
    assert f.cell_loss[target > 0].sum() < alone.cell_loss[target > 0].sum()


def test_usage_is_the_best_fit_of_each_cell(problem):
    x, *_ = problem
    W = loadings(2) ** 3
    H, cell_loss = transform(row_source(x, dtype=np.float64), Gaussian(), W)
    best = np.array([optimize.nnls(W, row)[1] ** 2 / 2 for row in x])
    np.testing.assert_allclose(cell_loss, best, rtol=2e-3, atol=1e-12)
    H, cell_loss = transform(row_source(sparse.csr_matrix(x), dtype=np.float64), Poisson(), W)
    for i in (0, 1, 50):
        best = optimize.minimize(
            lambda h, i=i: losses(x[i : i + 1], h[None], W, Poisson())[0],
            np.full(K, x[i].sum()),
            bounds=[(1e-9, None)] * K,
            method="L-BFGS-B",
            options={"ftol": 1e-14},
        ).fun
        assert best * (1 - 1e-3) <= cell_loss[i] <= best * 1.001
        np.testing.assert_allclose(cell_loss[i], losses(x[i : i + 1], H[i : i + 1], W, Poisson())[0], rtol=1e-6)


def test_usage_does_not_depend_on_the_other_cells(problem):
    x, *_ = problem
    W = loadings(2)
    for matrix in (x, sparse.csr_matrix(x)):
        whole, _ = transform(row_source(matrix), Poisson(), W)
        part, _ = transform(row_source(matrix[40:55]), Poisson(), W)
        np.testing.assert_allclose(part, whole[40:55], rtol=1e-3, atol=1e-3)


def test_seed_decides(problem):
    x, target, background = problem
    source = row_source(x)
    go = partial(fit, source, Poisson(), K, target=target, background=background * 0.2, run=run(5))
    assert np.array_equal(go(random_state=3).W, go(random_state=3).W)
    assert not np.array_equal(go(random_state=3).W, go(random_state=4).W)


def test_acceleration_ends_where_plain_updates_end(problem):
    x, target, background = problem
    start = loadings(0)
    ends = {}
    for accelerate in (False, True):
        how = Run(max_iter=20_000, tol=1e-6, accelerate=accelerate)
        source = row_source(x, dtype=np.float64)
        ends[accelerate] = fit(source, Poisson(), K, target=target, background=0.2 * background, start=start, run=how)
        assert ends[accelerate].converged
    assert ends[True].n_iter < ends[False].n_iter
    np.testing.assert_allclose(ends[True].W, ends[False].W, atol=1e-3)


def test_time_is_bounded_and_loss_is_recorded(problem):
    x, target, background = problem
    f = fit(row_source(x), Poisson(), K, target=target, background=0.2 * background, run=Run(max_time=0.0))
    assert f.n_iter == 1  # of none there is nothing to show
    assert not f.converged
    f = fit(row_source(x), Poisson(), K, target=target, background=0.2 * background, run=run(25))
    assert f.loss[:, 0].tolist() == [1, 10, 20]
    np.testing.assert_allclose(f.loss[:, 3], f.loss[:, 1] - 0.2 * f.loss[:, 2])


def test_shapes_are_checked_before_the_kernels_run(problem):
    x, target, background = problem
    source = row_source(x)
    for wrong in ({"target": target[:-1]}, {"start": np.ones((10, K))}, {"frozen": np.ones((3, 2))}):
        weights = {"target": target, "background": background} | wrong
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must have shape"):
            fit(source, Poisson(), K, **weights)
    with pytest.raises(ValueError, match="`W` must have shape"):
        transform(source, Poisson(), np.ones((51, K)))
    broken = sparse.csr_matrix(x)
    broken.indices[0] = 50
    broken.has_canonical_format = True
    with pytest.raises(ValueError, match="must have `indices` from 0 to 49, got 50: it is corrupt"):
        row_source(broken)


def test_a_start_with_zeros_is_floored(problem):
    x, target, background = problem
    start = loadings(0)
    start[5] = 0
    f = fit(
        row_source(sparse.csr_matrix(x)),
        Poisson(),
        K,
        target=target,
        background=0.2 * background,
        start=start,
        run=run(9),
    )
    assert np.isfinite(f.W).all()
    assert (f.W[5] > 0).all()


def test_fits_side_by_side_leave_the_thread_limits_alone(problem):
    x, target, background = problem
    x @ x.T  # loads the library whose limit is looked at
    before = {lib["prefix"]: lib["num_threads"] for lib in threadpool_info()}
    go = partial(fit, likelihood=Gaussian(), n_topics=K, target=target, background=background * 0.1, run=run(30))
    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda _: go(row_source(x)).W, range(5)))
    assert all(np.array_equal(W, results[0]) for W in results)
    assert {lib["prefix"]: lib["num_threads"] for lib in threadpool_info()} == before


def test_later_cells_go_on_from_the_earlier_ones(problem):
    x, target, background = problem
    first = np.arange(len(x)) % 2 == 0
    go = partial(fit, likelihood=Poisson(), n_topics=K, run=Run(max_iter=3000, tol=1e-6))
    cut = {"target": target, "background": 0.1 * background}
    half = go(row_source(x[first], dtype=np.float64), **{k: v[first] for k, v in cut.items()})
    later = row_source(x[~first], dtype=np.float64)
    rest = {k: v[~first] for k, v in cut.items()}
    both = go(later, **rest, start=half.W, prior=half.weight)
    alone = go(later, **rest, start=half.W)
    whole = go(row_source(x, dtype=np.float64), **cut, start=half.W)
    assert abs(both.W - whole.W).max() < 0.8 * min(abs(half.W - whole.W).max(), abs(alone.W - whole.W).max())
    # With nothing new to learn from, nothing changes.
    nothing = go(later, target=0 * rest["target"], background=0 * rest["target"], start=half.W, prior=half.weight)
    np.testing.assert_allclose(nothing.W, half.W, atol=1e-6)


@pytest.mark.parametrize(("last_move", "ahead"), [(0.1, True), (-0.1, False)])
def test_extrapolation_begins_anew_where_the_step_leads_back(problem, last_move, ahead):
    x, target, _ = problem
    source, expressed = row_source(x, dtype=np.float64), x.any(0)
    W = normalise(loadings(3), expressed)[0]

    def state(W_prev, momentum):
        rows = Rows.of(target, 0 * target, K, source.dtype, prev=True, loss=False)
        return State(W, W_prev, np.ones(K), rows, Poisson(), ratio=False, momentum=momentum)

    plain = state(W, 1.0)
    iterate(source, plain, expressed, run=Run())
    moved = state(W - last_move * (plain.W - W), 5.0)
    iterate(source, moved, expressed, run=Run())
    assert moved.momentum > 5 if ahead else moved.momentum == 1


@pytest.mark.parametrize(("before", "again"), [(1e9, False), (1.0, True)])
def test_extrapolation_begins_anew_where_the_loss_has_risen(problem, before, again):
    x, target, _ = problem
    source, expressed = row_source(x, dtype=np.float64), x.any(0)
    W = normalise(loadings(3), expressed)[0]
    rows = Rows.of(target, 0 * target, K, source.dtype, prev=True, loss=False)
    state = State(W, W, np.ones(K), rows, Poisson(), ratio=True, momentum=5.0, loss=[[0, before, 0, before, 1]])
    iterate(source, state, expressed, run=Run(check_every=1))
    assert state.momentum == 1 if again else state.momentum > 5


@pytest.mark.parametrize("likelihood", [Poisson(), Gaussian(), NegativeBinomial(2.0)], ids=lambda each: each.name)
def test_loss_falls_and_lower_than_by_plain_updates(problem, likelihood):
    """Without a contrast. A single check may be higher, after which the extrapolation begins anew."""
    x, *_ = problem
    every, none, found = np.ones(len(x)), np.zeros(len(x)), {}
    for accelerate in (False, True):
        run = Run(max_iter=150, tol=0, accelerate=accelerate)
        found[accelerate] = fit(row_source(x), likelihood, K, target=every, background=none, run=run).loss[:, 1]
        assert np.diff(found[accelerate]).max() <= (2e-4 if accelerate else 1e-7) * found[accelerate][-1]
    assert found[True][-1] < found[False][-1]


@pytest.mark.parametrize("likelihood", [Poisson(), Gaussian(), NegativeBinomial(2.0)], ids=lambda each: each.name)
def test_usage_ends_where_plain_updates_end(problem, likelihood):
    x, *_ = problem
    W = np.where(x.any(0)[:, None], loadings(3), 0)
    loss = transform(row_source(x, dtype=np.float64), likelihood, W, tol=1e-9)[1]
    h = np.maximum(x.sum(1, keepdims=True) / K, 1e-9) * np.ones((1, K))
    for _ in range(20_000):
        mu = np.maximum(h @ W.T, 1e-30)
        h *= (likelihood.p(x, mu) @ W) / np.maximum((np.ones_like(mu) * likelihood.n(x, mu)) @ W, 1e-30)
    mu = np.maximum(h @ W.T, 1e-30)
    np.testing.assert_allclose(loss, likelihood.loss(x, mu).sum(1), rtol=1e-6, atol=1e-6)


def test_loops_compile_where_nothing_can_be_kept_on_disk(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert jit(lambda x: x + 1)(2) == 3


def test_compiled_and_loaded_loops_give_the_same_bits(tmp_path):
    code = """if True:
        import hashlib, numpy as np
        from scipy import sparse
        from bcnmf_sc.engine import Poisson, Run, fit, row_source
        rng = np.random.default_rng(0)
        x = sparse.csr_array(rng.gamma(0.5, size=(100, 90)) * (rng.random((100, 90)) < 0.5))
        fitted = fit(row_source(x), Poisson(), 3, target=np.ones(100), background=np.zeros(100), run=Run(max_iter=3))
        print(hashlib.sha256(fitted.H.tobytes()).hexdigest())
    """
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True) for _ in range(2)]
    assert list(tmp_path.rglob("*.nbc"))
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_extrapolation_does_less_where_a_contrast_stirs(problem, alpha):
    x, target, background = problem
    source, expressed = row_source(x, dtype=np.float64), x.any(0)
    W = normalise(loadings(3), expressed)[0]
    rows = Rows.of(target, alpha * background, K, source.dtype, prev=True, loss=False)
    state = State(W, W, np.ones(K), rows, Poisson(), ratio=not alpha, calmest=1e-9)
    iterate(source, state, expressed, run=Run())
    assert state.max_beta == (MAX_BETA / 2 if alpha else MAX_BETA)


def test_weight_of_the_loadings_is_in_their_units(problem):
    """Once the loadings sum to 1, the weight of a Poisson fit is the usage that takes up their scale."""
    x, target, _ = problem
    source, expressed = row_source(x, dtype=np.float64), x.any(0)
    W = normalise(loadings(3), expressed)[0]
    rows = Rows.of(target, 0 * target, K, source.dtype, prev=False, loss=False)
    state = State(W, W, np.ones(K), rows, Poisson(), ratio=True)
    iterate(source, state, expressed, run=run(1))
    usage = state.rows.H[target > 0] * state.scale
    np.testing.assert_allclose(state.weight, np.broadcast_to(usage.sum(0), W.shape))
    assert abs(state.scale - 1).max() > 0.05


def test_loadings_sum_to_one_over_expressed_genes():
    expressed = np.arange(50) > 20
    W, scale = normalise(loadings(0), expressed)
    np.testing.assert_allclose(W.sum(0), 1)
    assert (W[~expressed] == 0).all()
    np.testing.assert_allclose(scale, loadings(0)[expressed].sum(0))


@pytest.mark.parametrize("cap", [0.9, 0.2])
def test_extrapolation_is_capped(cap):
    momentum, betas = 1.0, []
    for _ in range(100):
        beta, momentum = extrapolation(momentum, cap)
        betas.append(beta)
    assert betas[0] == 0
    assert np.diff(betas).min() >= 0
    assert betas[-1] == cap
