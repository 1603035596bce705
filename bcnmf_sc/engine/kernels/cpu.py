"""The main pass over a block of cells: usage steps, then the sums for the loadings' step.

`sweep` is the only entry point. Sparse counts under Poisson and sparse values under Gaussian use a fused pass: ratio,
usage step and loadings' sums of a cell while its row is in cache, O(non-zeros x topics). Everything else uses matrix
products on sub-blocks of cells; the only cells x genes arrays are of `SUB_BLOCK` cells. For sparse counts under NB and
ZINB, the term p uses the same loops over non-zeros.
"""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from ._loops import MAX_BETA, TINY, USAGE_FLOOR, gaussian_rows, overdispersed_n, poisson_rows, ratio_pulls, ratio_sums
from .block import CSR, Block, Floats, Matrix, Pass, Rows, Sums, extrapolated

if TYPE_CHECKING:
    from scipy import sparse

    from ..likelihoods import Likelihood
    from .torch import TorchBlock
SUB_BLOCK = 128
"""Cells per matrix product."""
FLUSH = 4096
"""Cells after which sums in single precision are added to those in double precision."""


def sweep(block: Block | TorchBlock, rows: Any, todo: Pass, likelihood: Likelihood) -> Any:
    """Do usage steps for a block's cells, in place, and gather the sums for the loadings' step.

    ``H <- H * (p W) / (n W)``; then, at the new usage, ``P = p' diag(a) H`` and ``N = n' diag(a) H`` for the target's
    weights a and the background's b, and the loss. Returns `Sums`, which for a block on a device stay on the device.
    """
    if not isinstance(block, CSR | np.ndarray):  # on a device
        from . import torch as torch_kernels

        return torch_kernels.sweep(block, rows, todo, likelihood)
    total = Sums.zeros()
    if isinstance(block, CSR) and likelihood.kernel in FUSED:
        _sweep_fused(block, rows, todo, likelihood, total)
        return total
    n_rows = len(rows.target)
    counts_terms = isinstance(block, CSR) and likelihood.kernel == "overdispersed"
    terms = (_Overdispersed if counts_terms else _Products)(block, todo.W, likelihood, total)
    for start in range(0, n_rows, SUB_BLOCK):
        part = slice(start, min(start + SUB_BLOCK, n_rows))
        used = np.flatnonzero((rows.target[part] > 0) | (rows.background[part] > 0))
        if used.size:
            terms.look_at(start + used)
            _sweep_products(rows[part], used, todo, terms)
        if part.stop % FLUSH == 0 or part.stop == n_rows:
            terms.flush()
    return total


# -- sub-blocks of cells, any likelihood, sparse or dense --------------------------------------------------------------


def _sweep_products(rows: Rows, used: np.ndarray, todo: Pass, terms: _Terms) -> None:
    total, likelihood = terms.total, terms.likelihood
    h = _start(terms, rows, used, todo)
    active, last, momentum = np.arange(len(h)), h.copy(), np.ones(len(h))
    for step in range(todo.steps):
        now = h[active]
        up, down = terms.pulls(active, now)
        new = now * (up / np.maximum(down, TINY))
        np.maximum(new, USAGE_FLOOR * new.mean(1, keepdims=True), out=new)
        h[active] = new
        moving = np.abs(new - now).sum(1) > todo.tol * new.sum(1)
        turned = ((new - now) * (now - last[active])).sum(1) < 0
        momentum[active[turned]] = 1.0
        active, new = active[moving], new[moving]
        if not active.size or step + 1 == todo.steps:
            break
        beta, momentum[active] = _extrapolation(momentum[active])
        beta = beta[:, None].astype(h.dtype)
        h[active], last[active] = extrapolated(new, last[active], beta, ratio=True), new
    rows.H[used] = h
    target, background = rows.target[used], rows.background[used]
    if todo.sums:
        terms.gather(h, target, background)
    if todo.loss or (todo.evidence and target.any()):
        x, mu = terms.matrix(), _expected(h, todo.W)
    if todo.loss:
        cells = _loss(x, mu, likelihood)
        total.loss += [target @ cells, (background > 0) @ cells, background @ cells]
        if len(rows.loss):
            rows.loss[used] = cells
    if todo.evidence and target.any():
        total.add("evidence", _evidence(x, mu, target, likelihood))


class _Terms:
    """Products with p and n for the updates, one sub-block of cells at a time."""

    def __init__(self, block: Block, W: Floats, likelihood: Any, total: Sums) -> None:
        self.block, self.W, self.likelihood, self.total = block, W, likelihood, total

    def look_at(self, cells: np.ndarray) -> None:
        """Move on to these cells of the block, in ascending order."""
        self.cells = cells

    def matrix(self) -> Matrix:
        """Return the cells' values."""
        if not isinstance(self.block, CSR):
            return self.block[self.cells].astype(self.W.dtype, copy=False)
        first, stop = self.cells[0], self.cells[-1] + 1
        x = self.block.matrix(slice(first, stop), self.W.dtype)
        return x if len(self.cells) == x.shape[0] else x[self.cells - first]

    @abstractmethod
    def pulls(self, some: np.ndarray, h: Floats) -> tuple[Floats, Floats]:
        """``p W`` and ``n W`` of some of the cells at usage h."""

    @abstractmethod
    def gather(self, h: Floats, target: Floats, background: Floats) -> None:
        """Gather ``p' diag(weight) h`` and ``n' diag(weight) h``."""

    def flush(self) -> None:
        """Add the sums gathered in single precision to the total."""


class _Products(_Terms):
    """Matrix products only, for any likelihood."""

    def __init__(self, block: Block, W: Floats, likelihood: Likelihood, total: Sums) -> None:
        super().__init__(block, W, likelihood, total)
        self.linear = likelihood.n_kind == "mu"
        self.gram = W.T @ W if self.linear else None

    def look_at(self, cells: np.ndarray) -> None:
        super().look_at(cells)
        self.x = self.matrix()
        self.x_w: Any = self.x @ self.W if self.linear else None

    def pulls(self, some: np.ndarray, h: Floats) -> tuple[Floats, Floats]:
        if self.gram is not None:
            return self.x_w[some], h @ self.gram
        p, n = self._p_n(self.x if len(some) == self.x.shape[0] else self.x[some], h)
        return p @ self.W, (self.W.sum(0) if n is None else n @ self.W)

    def gather(self, h: Floats, target: Floats, background: Floats) -> None:
        p, n = (self.x, None) if self.linear else self._p_n(self.x, h)
        for part, weight in (("x", target), ("y", background)):
            if weight.any():
                self.total.add("p_" + part, p.T @ (weight[:, None] * h))
                self.total.add("n_" + part, _n_sum(weight, h, n, self.likelihood))

    def _p_n(self, x: Matrix, h: Floats) -> tuple[Matrix, Floats | None]:
        """Compute p and n (`None` if it is one); for sparse x, p is sparse and n is corrected at the non-zeros."""
        mu, likelihood = _expected(h, self.W), self.likelihood
        if isinstance(x, np.ndarray):
            return likelihood.p(x, mu), None if likelihood.n_kind == "one" else likelihood.n(x, mu)
        cells, mu_x, here = _at_values(x, mu, likelihood)
        n = likelihood.n(mu.dtype.type(0), mu)
        n[cells, x.indices] = here.n(x.data, mu_x)
        p = copy(x)  # with the sparsity structure of x
        p.data = here.p(x.data, mu_x)
        return p, n


class _Overdispersed(_Terms):
    """Sparse counts under NB and ZINB: p by the loops over non-zeros, n in a reused buffer."""

    def __init__(self, block: Any, W: Floats, likelihood: Any, total: Sums) -> None:
        super().__init__(block, W, likelihood, total)
        n_genes = len(W)
        self.csr = block.indptr, block.indices, block.values
        self.theta = np.broadcast_to(likelihood.dispersion, n_genes).astype(W.dtype)
        pi = np.broadcast_to(getattr(likelihood, "dropout", 0.0), n_genes).astype(np.float64)
        self.odds = (pi / (1 - pi)).astype(W.dtype)
        self.padded, self.over_theta = padded(W), W.T / self.theta
        self.n = np.empty((SUB_BLOCK, n_genes), W.dtype)
        self.over_q = np.empty((SUB_BLOCK if self.odds.any() else 0, n_genes), W.dtype)
        self.usage = np.zeros((SUB_BLOCK, self.padded.shape[1]), W.dtype)
        self.up = np.empty_like(self.usage)
        self.p_sums: dict[str, Floats] = {}
        self.n_sums: dict[str, Floats] = {}

    def pulls(self, some: np.ndarray, h: Floats) -> tuple[Floats, Floats]:
        up, cells = self.up[: len(h)], self.cells[some]
        ratio_pulls(*self.csr, self.padded, cells, self._with_padding(h), up)
        return up[:, : h.shape[1]], self._n_at(cells, h) @ self.W

    def gather(self, h: Floats, target: Floats, background: Floats) -> None:
        n, usage = self._n_at(self.cells, h), self._with_padding(h)
        for part, weight in (("x", target), ("y", background)):
            if weight.any():
                if part not in self.p_sums:
                    self.p_sums[part], self.n_sums[part] = np.zeros_like(self.padded), np.zeros_like(self.W.T)
                ratio_sums(*self.csr, self.padded, self.cells, usage, weight, self.p_sums[part])
                self.n_sums[part] += (weight[:, None] * h).T @ n

    def flush(self) -> None:
        for part, p in self.p_sums.items():
            self.total.add("p_" + part, p[:, : self.W.shape[1]])
            self.total.add("n_" + part, self.n_sums[part].T)
            p[:], self.n_sums[part][:] = 0, 0

    def _with_padding(self, h: Floats) -> Floats:
        usage = self.usage[: len(h)]
        usage[:, : h.shape[1]] = h
        return usage

    def _n_at(self, cells: np.ndarray, h: Floats) -> Floats:
        n, over_q = self.n[: len(h)], self.over_q[: len(h)]
        np.matmul(h, self.over_theta, out=n)
        if len(over_q):  # (1 + mu / theta)^theta, accurate for any dispersion
            np.log1p(n, out=over_q)
            over_q *= self.theta
            with np.errstate(over="ignore"):
                np.exp(over_q, out=over_q)
        overdispersed_n(n, over_q, *self.csr, cells, self.theta, self.odds)
        return n


def _expected(h: Floats, W: Floats) -> Floats:
    """Compute ``mu = h W'``, bounded away from zero."""
    mu: Floats = h @ W.T
    return np.maximum(mu, TINY, out=mu)


def _n_sum(weight: Floats, h: Floats, n: Floats | None, likelihood: Likelihood) -> Floats:
    """Compute ``n' diag(weight) H`` in the form allowed by `Likelihood.n_kind`."""
    if likelihood.n_kind == "one":
        return weight @ h
    return (h if n is None else n).T @ (weight[:, None] * h)


def _extrapolation(momentum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply Nesterov's rule, as the solver does between passes, to the steps of each cell."""
    ahead = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    return np.minimum((momentum - 1) / ahead, MAX_BETA), ahead


def _start(terms: _Terms, rows: Rows, used: np.ndarray, todo: Pass) -> Floats:
    """Return the usage from which the steps start; updates `Rows.H_prev`."""
    if todo.cold:
        n_topics = todo.W.shape[1]
        h = np.repeat(np.asarray(terms.matrix().sum(1)).reshape(-1, 1) / n_topics, n_topics, axis=1)
    else:
        h = rows.H[used] * todo.scale.astype(todo.W.dtype)
    if not len(rows.H_prev):
        return h
    before, rows.H_prev[used] = rows.H_prev[used], h
    return extrapolated(h, before, todo.W.dtype.type(todo.beta), ratio=todo.ratio)


def _loss(x: Matrix, mu: Floats, likelihood: Likelihood) -> np.ndarray:
    """Compute the loss of every cell (float64)."""
    if isinstance(x, np.ndarray):
        return likelihood.loss(x, mu).sum(1, dtype=np.float64)
    cells, mu_x, here = _at_values(x, mu, likelihood)
    zero = mu.dtype.type(0)
    loss = likelihood.loss(zero, mu).sum(1, dtype=np.float64)
    return loss + np.bincount(cells, here.loss(x.data, mu_x) - here.loss(zero, mu_x), minlength=len(loss))


def _evidence(x: Matrix, mu: Floats, weight: Floats, likelihood: Likelihood) -> np.ndarray:
    """Sum `Likelihood.evidence` over cells."""
    if isinstance(x, np.ndarray):
        return np.stack([weight @ part for part in likelihood.evidence(x, mu)])
    cells, mu_x, here = _at_values(x, mu, likelihood)
    zero = mu.dtype.type(0)
    totals = []
    for zeros, at_values, as_zeros in zip(
        likelihood.evidence(zero, mu), here.evidence(x.data, mu_x), here.evidence(zero, mu_x), strict=True
    ):
        mended = np.bincount(x.indices, weight[cells] * (at_values - as_zeros), minlength=x.shape[1])
        totals.append(weight @ zeros + mended)
    return np.stack(totals)


def _at_values(x: sparse.csr_array, mu: Floats, likelihood: Likelihood) -> tuple[np.ndarray, Floats, Likelihood]:
    """Return the cell of each value, its expectation, and its gene's likelihood."""
    cells = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    return cells, mu[cells, x.indices], likelihood.at(x.indices)


# -- fused passes over sparse rows -------------------------------------------------------------------------------------


def _sweep_fused(block: CSR, rows: Rows, todo: Pass, likelihood: Likelihood, total: Sums) -> None:
    n_topics = todo.W.shape[1]
    W = padded(todo.W)
    run = FUSED[likelihood.kernel]
    down = W.sum(0) if likelihood.n_kind == "one" else W.T @ W
    # A condition without cells in this block, as is common in sorted data, needs no sums.
    present = [part for part, weight in PARTS.items() if todo.sums and getattr(rows, weight).any()]
    p = {part: np.empty(W.shape if part in present else (0, 0), W.dtype) for part in PARTS}
    for start in range(0, len(rows.target), FLUSH):
        few = slice(start, min(start + FLUSH, len(rows.target)))
        here = rows[few]
        p["x"][:], p["y"][:] = 0, 0
        run(
            block.indptr[few.start : few.stop + 1], block.indices, block.values, W, down, here.target, here.background,
            here.H, here.H_prev, todo.scale.astype(W.dtype), W.dtype.type(todo.beta), todo.ratio, todo.steps, todo.tol,
            todo.cold, todo.sums, todo.loss, p["x"], p["y"], total.loss, here.loss,
        )  # fmt: skip
        for part in present:
            total.add("p_" + part, p[part][:, :n_topics])
            total.add("n_" + part, _n_sum(getattr(here, PARTS[part]), here.H, None, likelihood))


def padded(W: Floats) -> Floats:
    """Pad loadings with zero topics to whole vector registers."""
    wide = np.zeros((W.shape[0], -(-W.shape[1] // 8) * 8), W.dtype)
    wide[:, : W.shape[1]] = W
    return wide


PARTS = {"x": "target", "y": "background"}
"""The conditions' letters and weights."""
FUSED = {"ratio": poisson_rows, "linear": gaussian_rows}
"""Kernels (`Likelihood.kernel`) with a fused pass for sparse rows."""
