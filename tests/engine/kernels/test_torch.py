"""The torch path against the CPU kernels. Runs on the CPU; on CUDA too where there is a card."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.utils._python_dispatch import TorchDispatchMode

from bcnmf_sc.engine import LIKELIHOODS, Run, fit, row_source, transform
from bcnmf_sc.engine.bcnmf import solver
from bcnmf_sc.engine.bcnmf.solver import initial_loadings
from bcnmf_sc.engine.kernels import cpu as kernels
from bcnmf_sc.engine.kernels import torch as torch_kernels
from bcnmf_sc.engine.kernels.block import Pass, Rows
from bcnmf_sc.engine.rows import torch_source
from bcnmf_sc.engine.rows.torch_source import TorchSource

K, N_CELLS, N_GENES = 4, 160, 60
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
)
NAMES = ["gaussian", "poisson", "nb", "zinb"]
MODES = {
    "at once": {},
    "blocks": {"block_rows": 37},
    "sent": {"block_rows": 37, "memory": 0},
    "partly sent": {"block_rows": 37, "memory": 40_000},
}


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return request.param


@pytest.fixture(params=["csr", "array"])
def kind(request):
    return {"csr": sparse.csr_matrix, "array": np.asarray}[request.param]


@pytest.fixture
def problem():
    """Overdispersed counts; a gene and a cell without counts; cells of both conditions and of none."""
    rng = np.random.default_rng(1)
    mean = rng.gamma(0.5, 2.0, (N_CELLS, K)) @ rng.gamma(0.5, 1.0, (K, N_GENES))
    x = rng.poisson(mean * rng.gamma(2.0, 0.5, mean.shape)).astype(np.float64)
    x[:, 7] = x[3] = 0
    number = np.arange(N_CELLS)
    return x, (number < 100).astype(float), ((number >= 90) & (number < 150)).astype(float)


def likelihood_of(name):
    rng = np.random.default_rng(0)
    per_gene = {"dispersion": rng.uniform(0.5, 5, N_GENES), "dropout": rng.uniform(0.01, 0.3, N_GENES)}
    kind = LIKELIHOODS[name]
    return kind(**{field.name: per_gene[field.name] for field in fields(kind)})


def tolerance(device):
    return 1e-5 if device == "cpu" else 1e-4


def both_fits(x, weights, name, device, mode="at once", **kwargs):
    """Fit by the CPU kernels and by torch."""
    target, background = weights
    weights = {"target": target, "background": background, "expressed": np.asarray(x.sum(0)).ravel() > 0}
    few = np.arange(N_CELLS) % 8 == 0  # many steps for each; `test_transform_of_some_cells` looks at them
    go = partial(fit, likelihood=likelihood_of(name), n_topics=K, project=few, **weights, **kwargs)
    source = row_source(x, n_threads=1)
    return go(source), go(TorchSource(source, device, **MODES[mode]))


def assert_same(ours, theirs, tol):
    np.testing.assert_allclose(theirs.W, ours.W, atol=tol)
    scale = ours.H.max(initial=1e-6)
    np.testing.assert_allclose(theirs.H / scale, ours.H / scale, atol=20 * tol)
    np.testing.assert_allclose(theirs.loss[:, 1:4], ours.loss[:, 1:4], rtol=10 * tol)
    np.testing.assert_allclose(theirs.cell_loss, ours.cell_loss, rtol=1e-2, atol=100 * tol * (1 + ours.cell_loss.max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("alpha", "mode"), [(0.0, "at once"), *((0.3, mode) for mode in MODES)])
def test_fit_equals_the_kernels(problem, name, alpha, mode, kind, device):
    x, target, background = problem
    run = Run(max_iter=25, tol=0, accelerate=False, check_every=5)
    ours, theirs = both_fits(kind(x), (target, alpha * background), name, device, mode, run=run)
    assert_same(ours, theirs, tolerance(device))


@pytest.mark.parametrize("name", NAMES)
def test_with_frozen_topics_and_acceleration(problem, name, kind, device):
    x, target, background = problem
    frozen = initial_loadings(N_GENES, 2, 5) * x.any(0)[:, None]
    run = Run(max_iter=20, tol=0, accelerate=True)
    ours, theirs = both_fits(
        kind(x), (target, 0.3 * background), name, device, "blocks", frozen=frozen / frozen.sum(0), run=run
    )
    assert_same(ours, theirs, tolerance(device))


@pytest.mark.parametrize("name", ["nb", "zinb"])
def test_with_estimated_parameters(problem, name, kind, device):
    x, target, background = problem
    ours, theirs = both_fits(
        kind(x), (target, 0.3 * background), name, device, "blocks", refine=True, run=Run(max_iter=20, tol=0)
    )
    np.testing.assert_allclose(theirs.W, ours.W, atol=2 * tolerance(device))
    np.testing.assert_allclose(theirs.loss[:, 1:4], ours.loss[:, 1:4], rtol=1e-4)
    for field in fields(ours.likelihood):
        estimates = (getattr(each.likelihood, field.name) for each in (theirs, ours))
        np.testing.assert_allclose(*estimates, rtol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_double_precision(problem, name, kind, device):
    x, target, background = problem
    go = partial(fit, likelihood=likelihood_of(name), n_topics=K, target=target, background=0.3 * background)
    run = Run(max_iter=20, tol=0, accelerate=False)
    ours = go(row_source(kind(x), dtype=np.float64, n_threads=1), run=run)
    theirs = go(TorchSource(row_source(kind(x), dtype=np.float64, n_threads=1), device, block_rows=50), run=run)
    np.testing.assert_allclose(theirs.W, ours.W, atol=1e-11)
    np.testing.assert_allclose(theirs.loss, ours.loss, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_sums_of_one_pass(problem, name, kind, device):
    """Every sum, also the evidence, and every field of the rows."""
    x, target, background = problem
    W = initial_loadings(N_GENES, K, 0).astype(np.float32)
    todo = Pass(W, np.linspace(0.5, 2, K), beta=0.5, loss=True, evidence=name in ("nb", "zinb"))
    rng = np.random.default_rng(2)
    h, h_prev = rng.gamma(1.0, 5.0, (2, N_CELLS, K)).astype(np.float32)
    got = []
    for source in (
        row_source(kind(x), n_threads=1),
        TorchSource(row_source(kind(x), n_threads=1), device, block_rows=41),
    ):
        rows = source.place(Rows, *(w.astype(np.float32) for w in (target, 0.3 * background)), h.copy(), h_prev.copy(),
                            np.full(N_CELLS, -1.0))  # fmt: skip
        sums = source.reduce(partial(kernels.sweep, todo=todo, likelihood=likelihood_of(name)), rows)
        got.append(vars(sums) | {field: source.gather(rows, field) for field in ("H", "H_prev", "loss")})
    for field, value in got[0].items():
        assert got[1][field].shape == value.shape
        np.testing.assert_allclose(
            got[1][field], value, rtol=2e-4, atol=2e-5 * np.abs(value).max(initial=1), err_msg=field
        )
    assert (got[1]["loss"][150:] == -1).all(), "cells without weights are left alone"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["at once", "partly sent"])
def test_transform_of_some_cells(problem, name, mode, kind, device):
    x = problem[0]
    W = initial_loadings(N_GENES, K, 0)
    W /= W.sum(0)
    cells = np.arange(N_CELLS) % 3 > 0
    H, loss = transform(row_source(kind(x), n_threads=1), likelihood_of(name), W, cells)
    H_torch, loss_torch = transform(
        TorchSource(row_source(kind(x), n_threads=1), device, **MODES[mode]), likelihood_of(name), W, cells
    )
    np.testing.assert_allclose(H_torch, H, atol=1e-3 * H.max())
    np.testing.assert_allclose(loss_torch, loss, rtol=1e-3, atol=1e-3)
    assert not H_torch[~cells].any()


def test_gathered_products(problem, monkeypatch, device):
    """Where torch has no sampled product."""
    x, target, background = problem
    monkeypatch.setattr(torch_kernels, "has_sampled_product", lambda *_: False)
    monkeypatch.setattr(torch_kernels, "GATHERED", 100)
    run = Run(max_iter=20, tol=0)
    ours, theirs = both_fits(sparse.csr_matrix(x), (target, 0.3 * background), "poisson", device, run=run)
    assert_same(ours, theirs, tolerance(device))


def test_pieces(problem, monkeypatch, kind, device):
    """A block may be many times larger than a dense temporary."""
    x, target, background = problem
    monkeypatch.setattr(torch_source, "PIECE_VALUES", dict.fromkeys(("cpu", "cuda"), 7 * N_GENES))
    ours, theirs = both_fits(kind(x), (target, 0.3 * background), "zinb", device, run=Run(max_iter=20, tol=0))
    assert_same(ours, theirs, tolerance(device))


@pytest.mark.parametrize("mode", ["at once", "blocks", "partly sent"])
@pytest.mark.parametrize("name", ["poisson", "nb"])
def test_out_of_memory(problem, name, mode, monkeypatch, caplog, device):
    """A pass that runs out of memory goes on in smaller blocks, and nothing is counted twice."""
    x, target, background = problem
    whole, seen = torch_kernels._terms, []

    def terms(x, *args):
        if len(x) > 20:
            msg = "CUDA out of memory (in a test)"
            raise torch.cuda.OutOfMemoryError(msg)
        seen.append(len(x))
        return whole(x, *args)

    monkeypatch.setattr(torch_kernels, "_terms", terms)
    with caplog.at_level(logging.INFO, logger="bcnmf_sc"):
        ours, theirs = both_fits(
            sparse.csr_matrix(x), (target, 0.3 * background), name, device, mode, run=Run(max_iter=20, tol=0)
        )
    assert_same(ours, theirs, tolerance(device))
    assert "Out of memory" in caplog.text
    assert max(seen) > 5, "blocks should not be smaller than need be"


class Small(TorchDispatchMode):
    """A device on which no tensor has room for more than some values."""

    def __init__(self, room):
        super().__init__()
        self.room, self.failed = room, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        held = {each.untyped_storage().data_ptr() for each in args if is_strided(each)}
        for each in out if isinstance(out, tuple | list) else [out]:
            if is_strided(each) and each.numel() > self.room and each.untyped_storage().data_ptr() not in held:
                self.failed.append(str(func))
                msg = f"CUDA out of memory (in a test, at {func})"
                raise torch.cuda.OutOfMemoryError(msg)
        return out


def is_strided(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


@pytest.mark.parametrize("name", NAMES)
def test_out_of_memory_in_any_operation(problem, name, kind, monkeypatch, caplog):
    """The first tensor that is too large, wherever it is made."""
    monkeypatch.setattr(solver, "USAGE_STEPS", 20)
    x, target, background = problem
    with Small(600) as small:
        ours, theirs = both_fits(
            kind(x), (target, 0.3 * background), name, "cpu", run=Run(max_iter=6, tol=0, accelerate=False)
        )
    assert len(small.failed) > 1
    assert_same(ours, theirs, 1e-5)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(small.failed)
    assert "Out of memory on cpu at cell 0: continuing with blocks of at most" in caplog.text


@pytest.mark.parametrize("mode", ["at once", "blocks", "sent"])
def test_out_of_memory_on_the_way_to_the_device(problem, mode, kind, monkeypatch, caplog):
    """The thread that sends the next block runs out of it."""
    x, target, background = problem
    sent, failed = TorchSource._sent, []

    def limited(self, *arrays):
        if threading.current_thread() is not threading.main_thread() and sum(array.size for array in arrays) > 400:
            failed.append(1)
            msg = "CUDA out of memory (in a test)"
            raise torch.cuda.OutOfMemoryError(msg)
        return sent(self, *arrays)

    monkeypatch.setattr(TorchSource, "_sent", limited)
    monkeypatch.setattr(torch_source, "SMALLEST", 50)
    weights, run = (target, 0.3 * background), Run(max_iter=6, tol=0, accelerate=False)
    ours, theirs = both_fits(kind(x), weights, "poisson", "cpu", mode, run=run)
    assert failed
    assert len(caplog.records) == len(failed)
    assert_same(ours, theirs, 1e-5)


def test_out_of_memory_for_good(problem, monkeypatch, device):
    x, target, background = problem

    def terms(*_):
        msg = "CUDA out of memory (in a test)"
        raise torch.cuda.OutOfMemoryError(msg)

    monkeypatch.setattr(torch_kernels, "_terms", terms)
    with pytest.raises(torch.cuda.OutOfMemoryError) as end:
        both_fits(sparse.csr_matrix(x), (target, background), "poisson", device, run=Run(max_iter=2))
    assert "does not have enough memory" in end.value.__notes__[0]


def test_checkpoint(problem, tmp_path, device):
    x, target, background = problem
    source = TorchSource(row_source(sparse.csr_matrix(x), n_threads=1), device)
    go = partial(fit, source, likelihood_of("poisson"), K, target=target, background=0.3 * background)
    whole = go(run=Run(max_iter=20, tol=0))
    for n_iter in (10, 20):
        resumed = go(run=Run(max_iter=n_iter, tol=0, checkpoint=tmp_path / "state"))
    np.testing.assert_allclose(resumed.W, whole.W, atol=tolerance(device) / 10)


@pytest.mark.parametrize("mode", MODES)
def test_from_chunks(problem, mode, device):
    """Data that are read in row chunks."""
    x, target, background = problem
    stored = pytest.importorskip("dask.array").from_array(x.astype(np.float32), chunks=(33, -1))
    go = partial(fit, likelihood=likelihood_of("poisson"), n_topics=K, target=target, background=0.3 * background)
    ours = go(row_source(x, n_threads=1), run=Run(max_iter=20, tol=0))
    theirs = go(TorchSource(row_source(stored, n_threads=1), device, **MODES[mode]), run=Run(max_iter=20, tol=0))
    np.testing.assert_allclose(theirs.W, ours.W, atol=tolerance(device))


def test_blocks_stay_where_there_is_room(problem, device):
    x, target, background = problem
    kept = {}
    for mode, how in MODES.items():
        source = TorchSource(row_source(sparse.csr_matrix(x), n_threads=1), device, **how)
        fit(source, likelihood_of("poisson"), K, target=target, background=background, run=Run(max_iter=2))
        kept[mode] = [part.stop for part, _ in source._kept]
    assert kept["at once"] == [N_CELLS]
    assert kept["blocks"] == [37, 74, 111, 148, N_CELLS]
    assert kept["sent"] == []
    assert 0 < len(kept["partly sent"]) < 5


@pytest.mark.parametrize("form", ["dense", "csr", "coo"])
def test_tensors_are_matrices(problem, form, device):
    x, target, background = problem
    dense = torch.from_numpy(x.astype(np.float32)).to(device)
    tensor = {"dense": lambda: dense, "csr": dense.to_sparse_csr, "coo": dense.to_sparse_coo}[form]()
    genes = np.arange(0, N_GENES, 2)
    for chosen in (None, genes):
        go = partial(fit, likelihood=LIKELIHOODS["poisson"](), n_topics=K, target=target, background=background)
        part = x if chosen is None else x[:, chosen]
        ours = go(row_source(part, n_threads=1), run=Run(max_iter=10, tol=0))
        theirs = go(row_source(tensor, genes=chosen, n_threads=1), run=Run(max_iter=10, tol=0))
        np.testing.assert_allclose(theirs.W, ours.W, atol=1e-6)


def test_read_only_data(problem, device):
    x = sparse.csr_matrix(problem[0].astype(np.float32))
    for part in (x.data, x.indices, x.indptr):
        part.flags.writeable = False
    source = TorchSource(row_source(x, n_threads=1), device, memory=0)
    H, _ = transform(source, likelihood_of("poisson"), initial_loadings(N_GENES, K, 0))
    assert np.isfinite(H).all()


def test_threads_are_as_before(problem):
    x, target, background = problem
    before = torch.get_num_threads()
    source = TorchSource(row_source(sparse.csr_matrix(x), n_threads=1), "cpu")
    with source.working():
        assert torch.get_num_threads() == 1
    fit(source, likelihood_of("poisson"), K, target=target, background=background, run=Run(max_iter=2))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["cuda:97", "mps", "gpu"])
def test_no_such_device(problem, device):
    with pytest.raises(ValueError, match=rf"`device` must be a device for fits, got '{device}'. Present: 'cpu'"):
        row_source(problem[0], device=device)


def test_device_cpu_is_the_kernels(problem):
    assert isinstance(row_source(problem[0], device="cpu"), type(row_source(problem[0])))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_device_cuda(problem):
    assert isinstance(row_source(problem[0], device="cuda"), TorchSource)


def test_torch_is_imported_only_for_devices():
    code = (
        "import sys, numpy as np\n"
        "from bcnmf_sc.engine import LIKELIHOODS, Run, fit, row_source\n"
        "x = np.random.default_rng(0).poisson(1.0, (20, 10))\n"
        "how = {'target': np.ones(20), 'background': np.zeros(20), 'run': Run(max_iter=2)}\n"
        "for name in LIKELIHOODS:\n"
        "    fit(row_source(x), LIKELIHOODS[name]().started(x.shape[1]), 2, **how)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
