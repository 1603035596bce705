"""DeltaNMF's two stages: descent, invariances, recovery, and the pass over cells against formulas written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, sparse

from bcnmf_sc.engine import Run, row_source
from bcnmf_sc.engine.deltanmf import stages as delta
from bcnmf_sc.engine.deltanmf.hals import StagePass, share_moments, sweep
from bcnmf_sc.engine.rows.summary import Groups

QUIET = Run(progress=False, check_every=1, tol=1e-4, max_iter=60)


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    W = rng.gamma(0.3, size=(60, 6))
    H = rng.gamma(0.5, size=(140, 6))
    H[:80, 4:] = 0
    return rng.poisson(3 * H @ W.T).astype(float)


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(1)
    S = rng.random((60, 60)) * (rng.random((60, 60)) < 0.2)
    return sparse.csr_array(np.maximum(S, S.T))


def scaled(counts, part=slice(None), dtype=np.float64, **how):
    cells = np.zeros(len(counts))
    cells[part] = np.random.default_rng(2).uniform(0.5, 2, len(counts))[part]
    genes = np.where(np.arange(60) == 7, 0.0, np.random.default_rng(3).uniform(0.3, 3, 60))
    matrix = how.pop("kind", sparse.csr_matrix)(counts)
    return delta.Scaled(row_source(matrix, dtype=dtype, **how), cells, genes)


def stages(counts, graph=None, run=QUIET, kind=sparse.csr_matrix, dtype=np.float64, n_case=2, **how):
    strengths = {name: how.pop(name, 0.0) for name in ("rel_alpha", "rel_gamma")}
    first = delta.fit_stage(scaled(counts, slice(80), dtype, kind=kind, **how), 4, similarity=graph, run=run,
                            rel_alpha=strengths["rel_alpha"])  # fmt: skip
    data = scaled(counts, slice(80, None), dtype, kind=kind, **how)
    return first, delta.fit_stage(data, n_case, held=first.W, similarity=graph, run=run, **strengths)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("residual", [False, True])
def test_pass_solves_each_cell_and_gathers_its_sums(counts, kind, residual):
    data = scaled(counts, slice(20, None), kind=kind)
    rng = np.random.default_rng(4)
    W = rng.random((60, 4))
    A = data.cells[:, None] * counts * data.genes
    H = np.zeros((140, 4))
    if residual:
        H[20:, :2] = rng.random((120, 2))
        A = np.maximum(A - H[:, :2] @ W[:, :2].T, 0)
    rows = data.rows(H, loss=True)
    sums = data.sweep(rows, W, np.ones(4), n_frozen=2, residual=residual, steps=2000, tol=1e-13, cold=True)
    first = 2 if residual else 0
    expected = np.array([optimize.nnls(W[:, first:], a)[0] for a in A[20:]])
    np.testing.assert_allclose(rows.H[20:, first:], expected, atol=1e-7)
    np.testing.assert_array_equal(rows.H[:20], 0)
    rest = A[20:] - expected @ W[:, first:].T
    np.testing.assert_allclose(rows.loss[20:], (rest**2).sum(1) / 2, rtol=1e-7, atol=1e-9)
    assert sums.loss == pytest.approx((rest**2).sum() / 2)
    np.testing.assert_allclose(sums.p, A[20:].T @ rows.H[20:, 2:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sums.n, rows.H.T @ rows.H, rtol=1e-9)


def test_a_block_without_cells_of_the_stage_costs_and_adds_nothing(counts):
    data = scaled(counts, slice(80, None), block_rows=20)
    blocks = [block for _, block in data.source.blocks()]
    rows = data.rows(np.zeros((140, 3)))[:20]
    sums = sweep(blocks[0], rows, StagePass(np.ones((60, 3)), np.ones(3), np.ones(60)))
    assert sums.p.shape == ()


@pytest.mark.parametrize(
    "strengths", [{}, {"rel_alpha": 0.3}, {"rel_gamma": 0.3}, {"rel_alpha": 3.0, "rel_gamma": 3.0}], ids=str
)
def test_the_objective_never_rises(counts, graph, strengths):
    for stage in stages(counts, graph, **strengths):
        loss, objective = stage.loss[:, 1], stage.loss[:, 2]
        assert len(objective) > 3
        assert (np.diff(objective) <= 1e-12 * objective[0]).all()
        if not strengths:
            np.testing.assert_array_equal(loss, objective)


def test_strengths_are_shares_of_the_error_at_the_start(counts, graph):
    _, stage = stages(counts, graph, rel_alpha=0.2, rel_gamma=0.05)
    _, loss, objective, a, g, _ = stage.loss[0]
    assert objective == pytest.approx(1.25 * loss)
    assert a > 0
    assert g > 0
    # without gamma, and without anything to be orthogonal to
    first, _ = stages(counts, graph, rel_alpha=0.2)
    assert first.loss[0, 2] == pytest.approx(1.2 * first.loss[0, 1])


def test_one_column_step_reaches_what_a_general_optimiser_finds(counts, graph):
    """The penalised problem of one column, usage fixed, against L-BFGS on the same objective."""
    rng = np.random.default_rng(5)
    held, H = delta.unit(rng.random((60, 2))), rng.random((140, 3))
    w0 = delta.unit(rng.random((60, 1)))[:, 0]
    penalties = replace(delta.Penalties.of(graph, held), a=30.0, g=200.0)
    target = counts - H[:, :2] @ held.T

    def objective(w):
        norm = np.linalg.norm(w)
        return ((target - np.outer(H[:, 2], w)) ** 2).sum() / 2 + penalties.value(w / norm)

    def by_hand(w):
        v = w / np.linalg.norm(w)
        L = np.diag(graph.sum(1)) - graph.toarray()
        smooth, overlap = v @ L @ v, ((held.T @ v) ** 2).sum()
        return ((target - np.outer(H[:, 2], w)) ** 2).sum() / 2 + 15 * smooth + 100 * overlap

    assert objective(w0) == pytest.approx(by_hand(w0))
    w, scale = w0, 1.0
    for _ in range(400):
        curvature = scale**2 * (H[:, 2] @ H[:, 2])
        slope = curvature * w - scale * target.T @ H[:, 2]
        new = delta.column_step(w, (slope, curvature), penalties)
        scale *= np.linalg.norm(new)
        w = new / np.linalg.norm(new)
    best = optimize.minimize(objective, w0, method="L-BFGS-B", bounds=[(0, None)] * 60, options={"maxiter": 500})
    assert objective(w * scale) <= best.fun * (1 + 1e-6)


def test_a_column_step_never_leads_up():
    """Also where the whole step would: columns that nearly vanish turn far."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(3000):
        S = rng.random((12, 12)) * (rng.random((12, 12)) < 0.3) * 10 ** rng.uniform(-1, 2)
        held = delta.unit(rng.random((12, 4)) ** rng.integers(1, 6))
        a, g, curvature, size = 10 ** rng.uniform(-3, 4, 4)
        penalties = replace(delta.Penalties.of(sparse.csr_array(np.maximum(S, S.T)), held), a=a, g=g)
        w = delta.unit(rng.random((12, 1)) ** rng.integers(1, 8))[:, 0]
        slope = curvature * w - size * rng.normal(size=12)

        def rise(new, w=w, slope=slope, curvature=curvature, penalties=penalties):
            d, norm = new - w, np.linalg.norm(new)
            return slope @ d + curvature / 2 * (d @ d) + penalties.value(new / norm) - penalties.value(w)

        assert rise(delta.column_step(w, (slope, curvature), penalties)) <= 1e-12 * (1 + penalties.value(w))
        more, bound = penalties.slope(w)
        whole = np.maximum(w - (slope + more) / (curvature + bound), 0)
        refused += whole.any() and rise(whole) > 1e-9
    assert refused > 2  # else nothing was tested


def test_loadings_step_is_plain_coordinate_descent_with_the_scale_moved_into_the_usage(counts):
    data = scaled(counts, slice(80, None))
    A = data.cells[:, None] * counts * data.genes
    rng = np.random.default_rng(7)
    H = np.where(data.cells[:, None] > 0, rng.random((140, 4)), 0)
    held = delta.unit(rng.random((60, 1)))
    state = delta.begin(data, held, rng.random((60, 3)), H=H)
    sums = data.sweep(state.rows, state.W, state.scale, n_frozen=1, steps=0)
    W = state.W.copy()
    for _ in range(delta.ROUNDS):
        for j in (1, 2, 3):
            W[:, j] = np.maximum(W[:, j] + (A - H @ W.T).T @ H[:, j] / (H[:, j] @ H[:, j]), 0)
    delta.loadings_step(state, sums)
    np.testing.assert_allclose(state.W * state.scale, W, rtol=1e-7, atol=1e-9)
    # the next pass takes up the usage at its new scale
    loss = data.sweep(state.rows, state.W, state.scale, steps=0).loss
    assert loss == pytest.approx(((A - H @ W.T) ** 2).sum() / 2)


def test_held_topics_are_returned_to_the_bit(counts, graph):
    first, second = stages(counts, graph, rel_alpha=0.1, rel_gamma=0.1, dtype=np.float32)
    np.testing.assert_array_equal(second.W[:, :4], first.W)
    np.testing.assert_allclose(np.linalg.norm(second.W, axis=0), 1)
    assert (second.W[7] == 0).all()  # a gene with factor zero


def test_penalties_see_directions_only(graph):
    rng = np.random.default_rng(6)
    data = delta.Scaled(row_source(rng.random((30, 60)), dtype=np.float64), np.ones(30), np.ones(60))
    start, how = rng.random((60, 3)), {"similarity": graph, "rel_alpha": 0.5, "rel_gamma": 0.5, "run": QUIET}
    held = delta.unit(rng.random((60, 2)))
    one = delta.fit_stage(data, 3, held=held, start=start, **how)
    two = delta.fit_stage(data, 3, held=held, start=start * [1e-3, 1.0, 1e4], **how)
    np.testing.assert_allclose(two.W, one.W, atol=1e-9)
    np.testing.assert_allclose(two.loss[:, 2], one.loss[:, 2], rtol=1e-9)


def test_no_strength_is_no_similarity(counts, graph):
    for with_graph, without in zip(stages(counts, graph), stages(counts), strict=True):
        np.testing.assert_array_equal(with_graph.W, without.W)


def test_the_diagonal_of_the_similarity_does_not_matter(counts, graph):
    more = sparse.csr_array(graph + sparse.diags_array(np.full(60, 5.0)))
    for one, two in zip(stages(counts, graph, rel_alpha=0.1), stages(counts, more, rel_alpha=0.1), strict=True):
        np.testing.assert_allclose(two.W, one.W, atol=1e-9)


@pytest.mark.parametrize("how", [{"kind": np.asarray}, {"block_rows": 7}, {"n_threads": 3}], ids=str)
def test_neither_kind_nor_blocks_nor_threads_matter(counts, how):
    for one, two in zip(stages(counts), stages(counts, **how), strict=True):
        np.testing.assert_allclose(two.W, one.W, atol=1e-5)
    if "n_threads" in how:
        for one, two in zip(stages(counts, n_threads=1), stages(counts, **how), strict=True):
            np.testing.assert_array_equal(two.W, one.W)


def test_single_precision_follows_double(counts):
    for one, two in zip(stages(counts), stages(counts, dtype=np.float32), strict=True):
        np.testing.assert_allclose(two.W, one.W, atol=1e-4)


def test_checkpoint_gives_the_same_result(counts, graph, tmp_path):
    how = {"rel_alpha": 0.2, "rel_gamma": 0.1}
    data, held = scaled(counts, slice(80, None)), stages(counts)[0].W
    whole = delta.fit_stage(data, 2, held=held, similarity=graph, run=QUIET, **how)
    assert whole.n_iter > 6
    run = replace(QUIET, checkpoint=tmp_path / "state", checkpoint_every=2)
    part = delta.fit_stage(data, 2, held=held, similarity=graph, run=replace(run, max_iter=5), **how)
    assert part.n_iter == 5
    resumed = delta.fit_stage(data, 2, held=held, similarity=graph, run=run, **how)
    np.testing.assert_array_equal(resumed.W, whole.W)
    np.testing.assert_array_equal(resumed.loss, whole.loss)
    with pytest.raises(ValueError, match="belongs to another fit"):
        delta.fit_stage(data, 2, held=held, similarity=graph, run=run, rel_alpha=0.1, rel_gamma=0.1)


def test_share_moments(counts):
    member = np.column_stack([np.arange(140) < 80, np.arange(140) >= 100])
    for kind in (sparse.csr_matrix, np.asarray):
        source = row_source(kind(counts), block_rows=33)
        groups = source.place(Groups, member, np.zeros(140))
        total = counts.sum(1)
        for divide in (True, False):
            found = source.reduce(lambda block, rows, divide=divide: share_moments(block, rows, divide=divide), groups)
            x = counts / total[:, None] if divide else counts
            sizes = member.sum(0)
            np.testing.assert_allclose(found.deviation([0], sizes), x[:80].std(0, ddof=1), rtol=1e-5, atol=1e-8)
            both = x[member.any(1)]
            np.testing.assert_allclose(found.deviation([0, 1], sizes), both.std(0, ddof=1), rtol=1e-5, atol=1e-8)
            np.testing.assert_array_equal(found.n_cells, (counts[member.any(1)] > 0).sum(0))
        np.testing.assert_allclose(groups.total, total)


def test_starts(counts):
    data = scaled(counts, slice(80))
    how = {"n_restarts": 3, "random_state": 0}
    consensus, best = (delta.short_fits(data, 4, consensus=c, **how) for c in (True, False))
    assert not np.array_equal(consensus, best)
    assert (np.diag(delta.unit(consensus).T @ best) > 0.6).all()
    again = delta.short_fits(data, 4, consensus=True, **how)
    np.testing.assert_array_equal(again, consensus)


def test_shapes_are_checked(counts):
    data = scaled(counts)
    with pytest.raises(ValueError, match=r"`held` must have shape \(60, 2\), got \(59, 2\)"):
        delta.fit_stage(data, 2, held=np.ones((59, 2)))
    with pytest.raises(ValueError, match=r"`start` must have shape \(60, 2\)"):
        delta.fit_stage(data, 2, start=np.ones((60, 3)))
    with pytest.raises(ValueError, match=r"`cells` must have shape"):
        delta.fit_stage(replace(data, cells=np.ones(3)), 2)
