"""Whatever holds the cells, and however they are cut, the result is the same."""

from __future__ import annotations

import threading
from functools import partial

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pytest
import scanpy as sc
import zarr
from anndata.experimental import read_elem_lazy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from threadpoolctl import threadpool_info

import bcnmf_sc as bc
from bcnmf_sc.engine import Gaussian, Poisson, Run, fit, row_source
from bcnmf_sc.engine.bcnmf import solver
from bcnmf_sc.engine.deltanmf import hals
from bcnmf_sc.engine.rows import moments, sources
from bcnmf_sc.engine.rows import open as open_rows
from bcnmf_sc.engine.rows.sources import MemorySource, ReadSource, to_block
from bcnmf_sc.engine.rows.summary import Groups, summarise

K, N_CELLS, N_GENES = 3, 90, 24
GENES = np.setdiff1d(np.arange(N_GENES), [0, 5, 6, 23])


@pytest.fixture(scope="module")
def x():
    """Counts with empty cells, one of them the last, and an empty gene."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (N_CELLS, K)) @ rng.gamma(0.5, 1.0, (K, N_GENES))).astype(np.float32)
    counts[[3, 40, 41, -1]] = 0
    counts[:, 7] = 0
    return counts


@pytest.fixture(autouse=True)
def small_work(monkeypatch):
    monkeypatch.setattr(open_rows, "READ_VALUES", 200)
    monkeypatch.setattr(solver, "USAGE_STEPS", 20)  # blocks of single cells are slow


def on_disk(x, kind, dtype, folder):
    """Write as a file of some kind; return what is opened lazily from it."""
    matrix = x.astype(dtype)
    where, what = kind.split()
    values = matrix if what == "dense" else sparse.csr_matrix(matrix)
    if where == "h5ad":
        ad.AnnData(values).write_h5ad(folder / "x.h5ad")
        return sc.read_h5ad(folder / "x.h5ad", backed="r").X
    if where == "zarr":
        group = zarr.open_group(str(folder / "x.zarr"), mode="w", zarr_format=2)
        ad.io.write_elem(group, "X", values)
        return group["X"] if what == "dense" else ad.io.sparse_dataset(group["X"])
    ad.AnnData(values).write_h5ad(folder / "x.h5ad")
    elem = h5py.File(folder / "x.h5ad")["X"]
    return read_elem_lazy(elem, chunks=(17, N_GENES))


def go(source, likelihood=Poisson(), n_iter=6):  # noqa: B008 (frozen)
    n = source.shape[0]
    target = np.arange(n) < 2 * n // 3
    run = Run(max_iter=n_iter, tol=0)
    return fit(source, likelihood, K, target=target.astype(float), background=0.3 * ~target, run=run)


@pytest.mark.parametrize(
    ("dtype", "genes", "likelihood"),
    [(np.float32, None, Gaussian()), (np.float64, GENES, Poisson()), (np.int64, None, Poisson())],
    ids=["float32-gaussian", "float64-masked", "int64"],
)
@pytest.mark.parametrize("kind", ["h5ad csr", "h5ad dense", "zarr csr", "zarr dense", "lazy csr", "lazy dense"])
def test_from_disk_as_from_memory(x, kind, dtype, genes, likelihood, tmp_path):
    lazy = row_source(on_disk(x, kind, dtype, tmp_path), genes=genes, block_rows=5, n_threads=2)
    assert isinstance(lazy, ReadSource)
    assert len(lazy._cuts) > 4
    plain = go(row_source(x if "dense" in kind else sparse.csr_matrix(x), genes=genes), likelihood)
    read = go(lazy, likelihood)
    np.testing.assert_allclose(read.W, plain.W, atol=1e-5)
    np.testing.assert_allclose(read.H, plain.H, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["h5ad csr", "zarr csr", "lazy csr"])
def test_same_blocks_same_bits(x, kind, tmp_path):
    lazy = row_source(on_disk(x, kind, np.float64, tmp_path), n_threads=3)
    lazy._cuts, lazy._block_rows = [0, 30, 60, 90], 10
    read, plain = go(lazy), go(row_source(sparse.csr_matrix(x), block_rows=10, n_threads=1))
    assert np.array_equal(read.W, plain.W)
    assert np.array_equal(read.H, plain.H)


def in_chunks(x, cuts, *, dense, columns=None):
    chunks = (tuple(np.diff([0, *sorted(cuts), len(x)]).tolist()), columns or (x.shape[1],))
    array = da.from_array(x, chunks=chunks)
    return array if dense else array.map_blocks(sparse.csr_matrix, dtype=x.dtype, meta=sparse.csr_matrix((0, 0)))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, N_CELLS), max_size=6),
    block_rows=st.none() | st.integers(1, 40),
    n_threads=st.integers(1, 4),
    kind=st.sampled_from(["dense", "csr", "memory dense", "memory csr", "memory csc"]),
    masked=st.booleans(),
)
def test_any_partition_source_and_threads(x, cuts, block_rows, n_threads, kind, masked):
    genes = GENES if masked else None
    if kind.startswith("memory"):
        matrix = {"dense": np.asarray, "csr": sparse.csr_array, "csc": sparse.csc_matrix}[kind.split()[1]](x)
    else:
        matrix = in_chunks(x, cuts, dense=kind == "dense")
    source = row_source(matrix, genes=genes, block_rows=block_rows, n_threads=n_threads)
    assert isinstance(source, MemorySource if kind.startswith("memory") else ReadSource)
    plain = go(row_source(x, genes=genes, n_threads=1))
    np.testing.assert_allclose(go(source).W, plain.W, atol=1e-5)


def test_dask_chunks_over_genes(x):
    matrix = in_chunks(x, [30, 31], dense=False, columns=(10, 14))
    np.testing.assert_allclose(go(row_source(matrix)).W, go(row_source(x)).W, atol=1e-5)


def test_what_cannot_be_read(x, tmp_path):
    ad.AnnData(sparse.csc_matrix(x)).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match="must be CSR to be read by cells, got CSC"):
        row_source(sc.read_h5ad(tmp_path / "x.h5ad", backed="r").X)
    with pytest.raises(ValueError, match="`client` must come with a dask array, got ndarray"):
        row_source(x, client=object())
    with pytest.raises(TypeError, match="array of cells x genes"):
        row_source([[1.0]])
    array = in_chunks(x, [40], dense=True)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        row_source(array[array.sum(1) > 0])


def test_an_error_while_reading_ends_the_fit(x):
    def read(start, stop):
        if start >= 60:
            msg = "no more"
            raise OSError(msg)
        return x[start:stop]

    source = ReadSource(read, [0, 30, 60, 90], N_GENES, genes=None, dtype=np.float32, block_rows=7, n_threads=2)
    with pytest.raises(OSError, match="no more"):
        go(source)


@pytest.mark.parametrize("dense", [False, True])
def test_passes_that_copy_see_large_blocks_in_pieces(x, dense, monkeypatch):
    """Dask workers hold large blocks; the sums are those of small ones, and what is left in the rows too."""
    block = to_block(x if dense else sparse.csr_matrix(x), None, np.float32)
    member = np.arange(N_CELLS)[:, None] % 2 == np.arange(2)
    code, found = np.arange(N_CELLS) % 3 - 1, []
    for size in (2**20, 50):
        monkeypatch.setattr(sources, "BLOCK_VALUES", size)
        monkeypatch.setattr(sources, "cut", partial(sources.cut, block_values=size))
        rows = [Groups(member, np.zeros(N_CELLS)) for _ in range(2)]
        parts = [
            summarise(block, rows[0], likelihood=Poisson()),
            hals.share_moments(block, rows[1], divide=True),
            moments._moments(block, moments.Membership(code), n_units=2, log=True),
        ]
        found.append([value for each in parts for value in vars(each).values()] + [each.total for each in rows])
        monkeypatch.undo()
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_threads_are_as_many_as_asked_and_limits_come_back(x, n_threads, lazy):
    matrix = in_chunks(x, range(0, 90, 10), dense=False) if lazy else sparse.csr_matrix(x)
    source = row_source(matrix, block_rows=2, n_threads=n_threads)
    np.ones((2, 2)) @ np.ones((2, 2))  # loads the library whose limit is looked at
    before = {lib["prefix"]: lib["num_threads"] for lib in threadpool_info()}
    workers, limits = set(), set()

    def look(block, rows):
        workers.add(threading.get_ident())
        limits.update(lib["num_threads"] for lib in threadpool_info())
        return np.zeros(1)

    source.reduce(look, np.zeros(N_CELLS))
    assert len(workers) <= n_threads
    assert threading.get_ident() not in workers
    assert limits == {1}
    assert {lib["prefix"]: lib["num_threads"] for lib in threadpool_info()} == before


class TestBackedAnnData:
    """`tl` on an AnnData whose matrix stays in its file."""

    @pytest.fixture
    def backed(self, adata, tmp_path, monkeypatch):
        monkeypatch.setattr(open_rows, "READ_VALUES", 20_000)
        adata.write_h5ad(tmp_path / "a.h5ad")
        backed = sc.read_h5ad(tmp_path / "a.h5ad", backed="r")
        yield backed
        backed.file.close()

    def test_end_to_end(self, adata, backed, tmp_path):
        how = {"background_key": "condition", "background": "ctrl", "n_topics": 4, "max_iter": 200}
        call = partial(bc.tl.bcnmf, **how, mask_var=np.arange(adata.n_vars) % 3 > 0, tol=1e-3)
        call(adata)
        call(backed)
        np.testing.assert_allclose(backed.varm["bcnmf"], adata.varm["bcnmf"], atol=1e-5)
        np.testing.assert_allclose(backed.obsm["X_bcnmf"], adata.obsm["X_bcnmf"], rtol=1e-2, atol=0.1)
        bc.tl.project(backed, adata, key_added="again")
        backed.write_h5ad(tmp_path / "b.h5ad")
        stored = ad.read_h5ad(tmp_path / "b.h5ad")
        np.testing.assert_array_equal(stored.varm["bcnmf"], backed.varm["bcnmf"])
        np.testing.assert_array_equal(stored.obsm["X_again"], backed.obsm["X_again"])
        assert stored.uns["bcnmf"]["n_iter"] == adata.uns["bcnmf"]["n_iter"]

    def test_says_what_it_cannot_do(self, backed):
        how = {"background_key": "condition", "background": "ctrl", "n_topics": 4}
        with pytest.raises(ValueError, match="`copy` must be False for a file-backed"):
            bc.tl.bcnmf(backed, **how, copy=True)
        with pytest.raises(ValueError, match="view of a file-backed"):
            bc.tl.bcnmf(backed[:500], **how)
        with pytest.raises(ValueError, match="`client` must come with a dask array"):
            bc.tl.bcnmf(backed, **how, client=object())
