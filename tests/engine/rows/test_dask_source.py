"""Fits on a dask cluster of two worker processes."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from dataclasses import dataclass
from functools import partial

import anndata as ad
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from scipy import sparse
from threadpoolctl import threadpool_info, threadpool_limits

import bcnmf_sc as bc
from bcnmf_sc.engine import Gaussian, Poisson, Run, fit, row_source
from bcnmf_sc.engine.bcnmf import solver
from bcnmf_sc.engine.likelihoods import NegativeBinomial
from bcnmf_sc.engine.rows import dask_source
from bcnmf_sc.engine.rows.dask_source import DaskSource
from bcnmf_sc.engine.rows.sources import ReadSource

K, N_CELLS, N_GENES = 3, 300, 40
GENES = np.arange(1, N_GENES, 2)
# what distributed does with the event loop and its sockets when processes die is not ours
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def small_work(monkeypatch):
    monkeypatch.setattr(solver, "USAGE_STEPS", 20)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (N_CELLS, K)) @ rng.gamma(0.5, 1.0, (K, N_GENES))).astype(np.float32)
    counts[[3, 40, -1]] = 0
    return counts


@dataclass
class Counted:
    n: np.ndarray

    def __getitem__(self, cells):
        return Counted(self.n[cells])


def in_chunks(x, rows=60, columns=N_GENES, *, dense=False):
    array = da.from_array(x, chunks=(rows, columns))
    return array if dense else array.map_blocks(sparse.csr_matrix, dtype=x.dtype, meta=sparse.csr_matrix((0, 0)))


def go(source, likelihood=Poisson(), n_iter=5, **kwargs):  # noqa: B008 (frozen)
    target = np.arange(N_CELLS) < 200
    run = Run(max_iter=n_iter, tol=0, **kwargs)
    return fit(source, likelihood, K, target=target.astype(float), background=0.3 * ~target, run=run)


def assert_same(a, b):
    np.testing.assert_allclose(a.W, b.W, atol=1e-5)
    np.testing.assert_allclose(a.H, b.H, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-3)


@pytest.mark.parametrize(
    ("likelihood", "how", "genes"),
    [
        (Poisson(), {"rows": 11}, None),
        (Poisson(), {"rows": (1, 99, 0, 200)}, GENES),
        (Poisson(), {"rows": 300, "columns": 25}, GENES),  # one chunk: a worker without a part
        (Gaussian(), {"dense": True}, None),
        (NegativeBinomial(2.0), {"rows": 100}, None),
    ],
)
def test_as_in_memory(x, client, likelihood, how, genes):
    source = row_source(in_chunks(x, **how), genes=genes, block_rows=11, client=client)
    assert isinstance(source, DaskSource)
    assert_same(go(source, likelihood), go(row_source(sparse.csr_matrix(x), genes=genes), likelihood))


def test_bits_do_not_depend_on_the_worker(x, client):
    source = row_source(in_chunks(x), client=client)
    plain = go(source)
    addresses = list(client.nthreads())
    client.replicate(source._blocks)
    there = row_source(in_chunks(x), client=client)
    there._blocks = client.map(list, source._blocks, workers=addresses[:1], pure=False)
    again = go(there)
    assert np.array_equal(again.W, plain.W)
    assert np.array_equal(again.H, plain.H)


def killing(client, source, at):
    """Kill a worker in the midst of a pass."""
    reduce, passes = source.reduce, []
    pids = list(client.run(os.getpid).values())

    def killed(fn, rows):
        passes.append(1)
        if len(passes) == at:
            threading.Timer(0.01, os.kill, (pids[0], signal.SIGKILL)).start()
        return reduce(fn, rows)

    source.reduce = killed
    return pids[0]


@pytest.mark.parametrize("snapshot", [50, 4])
def test_a_worker_that_dies_costs_time_only(x, client, snapshot, monkeypatch):
    monkeypatch.setattr(dask_source, "SNAPSHOT_EVERY", snapshot)
    source = row_source(in_chunks(x), client=client)
    plain = go(source, n_iter=12)
    client.wait_for_workers(2)
    pid = killing(client, source, at=6)
    survived = go(source, n_iter=12)
    assert pid not in client.run(os.getpid).values()
    np.testing.assert_allclose(survived.W, plain.W, atol=1e-5)
    np.testing.assert_allclose(survived.H, plain.H, rtol=1e-4, atol=1e-4)


def test_a_repeated_step_starts_from_the_same_rows(x):
    parts = [dask_source._prepare(sparse.csr_matrix(part), (None, np.float32, 50)) for part in (x[:120], x[120:])]
    blocks = dask_source._join(parts)
    assert [(few.start, few.stop) for few, _ in blocks] == [
        (0, 50),
        (50, 100),
        (100, 120),
        (120, 170),
        (170, 220),
        (220, 270),
        (270, 300),
    ]

    def step(block, rows):
        rows.n += 1
        return np.array([rows.n.sum()])

    start = dask_source.WorkerPart(Counted(np.zeros(N_CELLS)))
    held = start
    for count in (1, 2, 3):
        for _ in range(2):
            new = dask_source._step(blocks, held, step)
            assert held.rows.n.tolist() == [count - 1] * N_CELLS
            assert new.rows.n.tolist() == [count] * N_CELLS
            assert new.sums == count * N_CELLS
        held = new
    assert pickle.loads(pickle.dumps(held)).spare is None


def test_what_dask_remembers_is_bounded(x, client, monkeypatch):
    monkeypatch.setattr(dask_source, "SNAPSHOT_EVERY", 4)
    source = row_source(in_chunks(x), client=client)

    def remembered(dask_scheduler):
        return len(dask_scheduler.tasks)

    sizes, reduce = [], source.reduce

    def counted(fn, rows):
        total = reduce(fn, rows)
        sizes.append(client.run_on_scheduler(remembered))
        return total

    source.reduce = counted
    go(source, n_iter=12)
    # what is let go is forgotten a little later; were nothing let go, the last passes would remember twice as much
    assert max(sizes[8:]) <= 1.5 * max(sizes[:4])


def test_checkpoint(x, client, tmp_path):
    source = row_source(in_chunks(x), client=client)
    whole = go(source, n_iter=6)
    go(source, n_iter=3, checkpoint=tmp_path / "state")
    rest = go(source, n_iter=6, checkpoint=tmp_path / "state")
    np.testing.assert_allclose(rest.W, whole.W, atol=1e-6)


def test_workers_use_one_thread_and_restore_it(client):
    def look():
        limits = []

        def note(block, rows):
            limits.extend(lib["num_threads"] for lib in threadpool_info())
            return np.zeros(1)

        before = [lib["num_threads"] for lib in threadpool_info()]
        dask_source._step([(slice(0, 1), np.zeros((1, 1)))], dask_source.WorkerPart(np.zeros(1)), note)
        return set(limits), before == [lib["num_threads"] for lib in threadpool_info()]

    assert {limit for limits, _ in client.run(look).values() for limit in limits} <= {1}
    assert all(same for _, same in client.run(look).values())


def test_the_cores_are_left_to_the_workers(x, client):
    source = row_source(in_chunks(x), client=client)
    np.ones((2, 2)) @ np.ones((2, 2))  # loads the library whose limit is looked at
    with threadpool_limits(2):
        with source.working():
            assert {lib["num_threads"] for lib in threadpool_info()} == {1}
        assert 2 in {lib["num_threads"] for lib in threadpool_info()}


def test_active_client_is_used(x, client):
    matrix = in_chunks(x)
    assert isinstance(row_source(matrix), ReadSource)
    with client.as_current():
        assert isinstance(row_source(matrix), DaskSource)


def test_nothing_else_in_the_call_changes(adata, client):
    how = {"background_key": "condition", "background": "ctrl", "n_topics": 4, "tol": 1e-2}
    lazy = ad.AnnData(
        da.from_array(adata.X.toarray(), chunks=(300, 500)).map_blocks(sparse.csr_matrix), adata.obs, adata.var
    )
    call = partial(bc.tl.bcnmf, **how, max_iter=1000)
    call(adata)
    call(lazy, client=client)
    np.testing.assert_allclose(lazy.varm["bcnmf"], adata.varm["bcnmf"], atol=1e-5)
    np.testing.assert_allclose(lazy.obsm["X_bcnmf"], adata.obsm["X_bcnmf"], rtol=1e-2, atol=0.1)
    assert lazy.uns["bcnmf"]["n_iter"] == adata.uns["bcnmf"]["n_iter"]
