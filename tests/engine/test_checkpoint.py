"""Interrupted fits end where uninterrupted ones do."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from scipy import sparse

from bcnmf_sc.engine import NegativeBinomial, Poisson, Run, fit, row_source


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.5, 2.0, (80, 3)) @ rng.gamma(0.5, 1.0, (3, 40)))
    target = (np.arange(80) < 50).astype(float)
    return sparse.csr_matrix(x), {"target": target, "background": 0.2 * (1 - target)}


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(1.0)])
@pytest.mark.parametrize("accelerate", [True, False])
def test_resumed_equals_uninterrupted_to_the_bit(problem, tmp_path, likelihood, accelerate):
    x, weights = problem
    how = {"tol": 0, "accelerate": accelerate}
    refine = likelihood.name == "nb"
    whole = fit(row_source(x), likelihood, 3, **weights, refine=refine, run=Run(max_iter=60, **how))
    path = tmp_path / "state.npz"
    first = Run(max_iter=23, checkpoint=path, checkpoint_every=10, **how)
    fit(row_source(x), likelihood, 3, **weights, refine=refine, run=first)
    resumed = fit(row_source(x), likelihood, 3, **weights, refine=refine, run=Run(max_iter=60, checkpoint=path, **how))
    assert np.array_equal(resumed.W, whole.W)
    assert np.array_equal(resumed.H, whole.H)
    assert np.array_equal(resumed.loss, whole.loss)
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_a_finished_fit_is_taken_up_again(problem, tmp_path):
    x, weights = problem
    run = Run(max_iter=8, tol=0, checkpoint=tmp_path / "state.npz")
    first, again = (fit(row_source(x), Poisson(), 3, **weights, run=run) for _ in range(2))
    for name in ("W", "H", "weight", "loss"):
        assert np.array_equal(getattr(again, name), getattr(first, name)), name


@pytest.mark.parametrize("change", ["data", "likelihood", "parameter", "refine"])
def test_the_state_of_other_data_or_another_likelihood_is_refused(problem, tmp_path, change):
    x, weights = problem
    run = Run(max_iter=5, tol=0, checkpoint=tmp_path / "state.npz")
    fit(row_source(x), NegativeBinomial(2.0), 3, **weights, run=run)
    other = x.copy()
    other.data[0] += 1
    likelihood = {"likelihood": Poisson(), "parameter": NegativeBinomial(3.0)}.get(change, NegativeBinomial(2.0))
    with pytest.raises(ValueError, match="belongs to another fit"):
        fit(
            row_source(other if change == "data" else x),
            likelihood,
            3,
            **weights,
            refine=change == "refine",
            run=Run(max_iter=9, tol=0, checkpoint=tmp_path / "state.npz"),
        )


@pytest.mark.parametrize("kind", ["counts", "values"])
def test_the_state_of_data_with_equal_margins_is_refused(problem, tmp_path, kind):
    """Sums of cells and genes do not tell data apart: here two cells swap one value in two genes."""
    x, weights = problem
    x = x.toarray() if kind == "counts" else np.log1p(x.toarray())
    path = tmp_path / "state.npz"
    fit(row_source(sparse.csr_matrix(x)), Poisson(), 3, **weights, run=Run(max_iter=5, tol=0, checkpoint=path))
    more = Run(max_iter=7, tol=0, checkpoint=path)
    shuffled = sparse.coo_matrix(x)
    order = np.random.default_rng(0).permutation(shuffled.nnz)
    shuffled = sparse.coo_matrix((shuffled.data[order], (shuffled.row[order], shuffled.col[order])), x.shape)
    # the same data, by whatever source, in whatever blocks and order
    for same in (x, sparse.csc_array(x), sparse.csr_matrix(shuffled), np.asfortranarray(x)):
        for rows in (None, 7):
            fit(row_source(same, block_rows=rows), Poisson(), 3, **weights, run=more)
    other = x.copy()
    (cell, gene), (last_cell, last_gene) = np.argwhere(x >= x[x > 0].min())[[0, -1]]
    moved = min(x[cell, gene], x[last_cell, last_gene])
    other[[cell, last_cell], [gene, last_gene]] -= moved
    other[[cell, last_cell], [last_gene, gene]] += moved
    np.testing.assert_allclose(other.sum(0), x.sum(0), rtol=1e-12)
    np.testing.assert_allclose(other.sum(1), x.sum(1), rtol=1e-12)
    with pytest.raises(ValueError, match="belongs to another fit"):
        fit(row_source(sparse.csr_matrix(other)), Poisson(), 3, **weights, run=more)


@pytest.fixture
def heeded():
    """Interrupts as on a terminal, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_interrupt_is_held_back_until_the_state_is_saved(problem, tmp_path):
    x, weights = problem
    path = tmp_path / "state.npz"
    long = Run(max_iter=10**6, tol=0, checkpoint=path, checkpoint_every=10**6)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="resumes it"):
        fit(row_source(x), Poisson(), 3, **weights, run=long)
    assert time.monotonic() - started < 60
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    n_iter = int(np.load(path)["n_iter"])
    more = n_iter + 7
    resumed = fit(row_source(x), Poisson(), 3, **weights, run=Run(max_iter=more, tol=0, checkpoint=path))
    assert resumed.n_iter == more
    whole = fit(row_source(x), Poisson(), 3, **weights, run=Run(max_iter=min(more, 400), tol=0))
    if more <= 400:
        assert np.array_equal(resumed.W, whole.W)


def test_other_and_broken_files_are_refused(problem, tmp_path):
    x, weights = problem
    path = tmp_path / "state.npz"
    how = Run(max_iter=5, tol=0, checkpoint=path)
    fit(row_source(x), Poisson(), 3, **weights, run=how)
    with pytest.raises(ValueError, match="belongs to another fit"):
        fit(row_source(x), Poisson(), 3, **weights, random_state=1, run=how)
    content = path.read_bytes()
    with np.load(path) as arrays:  # as of another version
        np.savez(path, **{name: arrays[name] for name in arrays.files if name != "n_iter"})
    for broken in (path.read_bytes(), content[: len(content) // 2], b"no checkpoint", b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="not a complete checkpoint"):
            fit(row_source(x), Poisson(), 3, **weights, run=how)
    with pytest.raises(ValueError, match="an existing folder"):
        fit(row_source(x), Poisson(), 3, **weights, run=Run(checkpoint=tmp_path / "none" / "state.npz"))
