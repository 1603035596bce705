"""The hot pass over a block of cells: usage steps, then the sums that the loadings' step needs.

`sweep` is the only entry. Sparse counts under Poisson and sparse values under Gaussian go through a fused numba pass:
ratio, usage step and loadings' sums of a cell while its row is in cache, O(non-zeros x topics). Everything else goes
through sub-blocks of cells with matrix products; the only cells x genes arrays ever made are of `SUB_BLOCK` cells.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numba
import numpy as np
from scipy import sparse

from ._vector import add_outer, add_pull

if TYPE_CHECKING:
    from .likelihoods import Likelihood
    from .torch_kernels import TorchBlock

Floats = np.ndarray
SUB_BLOCK = 128
"""Cells per matrix product."""
USAGE_FLOOR = 1e-8
"""Smallest usage as a share of the cell's mean usage: an entry at zero could never rise again."""
MAX_BETA = 0.9
"""Cap of the extrapolation."""
TINY = 1e-30
"""Smallest divisor."""


class CSR(NamedTuple):
    """Rows of a sparse matrix; ``indptr`` are positions in ``indices`` and ``values``, which may hold further rows."""

    indptr: np.ndarray
    indices: np.ndarray
    values: Floats
    n_genes: int


Block: TypeAlias = CSR | np.ndarray
"""Rows of the data, sparse or dense."""
Matrix: TypeAlias = sparse.csr_array | np.ndarray
"""The same as arrays that multiply."""


@dataclass(frozen=True)
class Pass:
    """What is sent to every block of cells."""

    W: Floats
    """Loadings, genes x topics."""
    scale: Floats
    """Factors per topic by which the usage is still to be multiplied since W was last normalised."""
    beta: float = 0.0
    """Extrapolation of the usage along its last move."""
    steps: int = 1
    """Usage steps per cell, at most."""
    tol: float = 0.0
    """A cell's steps end when its usage moves by less than this share of it."""
    cold: bool = False
    """Start from the cell's total spread evenly over the topics instead of from its present usage."""
    sums: bool = True
    """Gather the sums for the loadings' step."""
    loss: bool = False
    """Gather the loss, at W and the new usage."""
    evidence: bool = False
    """Gather what the likelihood's own parameters are refined from, over the target's cells."""


@dataclass
class Rows:
    """What belongs to a block's cells."""

    target: Floats
    """Target weight a: 1 or 0."""
    background: Floats
    """Background weight b: alpha or 0. Cells with neither weight are left alone."""
    H: Floats
    """Usage, cells x topics; a sweep changes it."""
    H_prev: Floats
    """Usage one pass ago, where usage is extrapolated; else without rows."""
    loss: np.ndarray
    """Loss of each cell (float64), where it is asked for; else without rows."""

    @classmethod
    def of(
        cls, target: np.ndarray, background: np.ndarray, n_topics: int, dtype: np.dtype, *, prev: bool, loss: bool
    ) -> Rows:
        """Make the rows of all cells of a source."""
        n = len(target)
        H = np.zeros((n, n_topics), dtype)
        H_prev = np.zeros((n if prev else 0, n_topics), dtype)
        return cls(target.astype(dtype), background.astype(dtype), H, H_prev, np.zeros(n if loss else 0))

    def __getitem__(self, part: slice) -> Rows:
        """Return views of some of the cells."""
        return Rows(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


@dataclass
class Sums:
    """What a sweep gathers under the target's (x) and the background's (y) weights (float64). Adds up over blocks."""

    p_x: np.ndarray
    p_y: np.ndarray
    n_x: np.ndarray
    n_y: np.ndarray
    loss: np.ndarray
    """Loss of the target, of the background, and of the background weighted by alpha."""
    evidence: np.ndarray
    """`Likelihood.evidence`, summed over the target's cells; anything x genes."""

    @classmethod
    def zeros(cls) -> Sums:
        """Nothing gathered yet: zeros of no shape, which cost nothing to add."""
        p_x, p_y, n_x, n_y, evidence = (np.zeros(()) for _ in range(5))
        return cls(p_x, p_y, n_x, n_y, np.zeros(3), evidence)

    def add(self, name: str, values: np.ndarray) -> None:
        """Add to one of the sums, in double precision."""
        total = getattr(self, name)
        if not total.shape:
            setattr(self, name, np.asarray(values, np.float64))
        elif np.shape(values):
            total += values

    def __iadd__(self, other: Sums) -> Sums:
        """Add another block's."""
        for name in self.__dataclass_fields__:
            self.add(name, getattr(other, name))
        return self


def sweep(block: Block | TorchBlock, rows: Any, todo: Pass, likelihood: Likelihood) -> Any:
    """Take usage steps for a block's cells, in place, and gather the sums for the loadings' step.

    ``H <- H * (p W) / (n W)``; then, at the new usage, ``P = p' diag(a) H`` and ``N = n' diag(a) H`` for the target's
    weights a and the background's b, and the loss. Returns `Sums`; those of a block on a device stay there.
    """
    if not isinstance(block, CSR | np.ndarray):  # it lies on a device
        from . import torch_kernels

        return torch_kernels.sweep(block, rows, todo, likelihood)
    total = Sums.zeros()
    if isinstance(block, CSR) and likelihood.name in FUSED:
        _sweep_fused(block, rows, todo, likelihood, total)
        return total
    n_rows = len(rows.target)
    for start in range(0, n_rows, SUB_BLOCK):
        part = slice(start, min(start + SUB_BLOCK, n_rows))
        used = np.flatnonzero((rows.target[part] > 0) | (rows.background[part] > 0))
        if used.size:
            x = _matrix(block, part)
            x = x if len(used) == x.shape[0] else x[used]
            _sweep_products(x, rows[part], used, todo, likelihood, total)
    return total


# -- sub-blocks of cells, any likelihood, sparse or dense --------------------------------------------------------------


def _matrix(block: Block, part: slice) -> Matrix:
    if not isinstance(block, CSR):
        return block[part]
    indptr = block.indptr[part.start : part.stop + 1]
    here = slice(indptr[0], indptr[-1])
    return sparse.csr_array(
        (block.values[here], block.indices[here], (indptr - indptr[0]).astype(np.int32)),
        shape=(part.stop - part.start, block.n_genes),
    )


def _sweep_products(x: Matrix, rows: Rows, used: np.ndarray, todo: Pass, likelihood: Likelihood, total: Sums) -> None:
    W = todo.W
    x = x.astype(W.dtype, copy=False)
    h = _start(np.asarray(x.sum(1)).reshape(-1, 1), rows, used, todo)
    linear = likelihood.n_kind == "mu"
    x_w: Any = x @ W if linear else None
    gram = W.T @ W if linear else None
    active, last, momentum = np.arange(len(h)), h.copy(), np.ones(len(h))
    for step in range(todo.steps):
        now = h[active]
        if x_w is not None:
            up, down = x_w[active], now @ gram
        else:
            p, n = _terms(x if len(active) == len(h) else x[active], _expected(now, W), likelihood)
            up, down = p @ W, (W.sum(0) if n is None else n @ W)
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
        h[active], last[active] = new + beta[:, None].astype(W.dtype) * np.maximum(new - last[active], 0), new
    rows.H[used] = h
    target, background = rows.target[used], rows.background[used]
    mu: Any = _expected(h, W) if todo.loss or not linear else None
    if todo.sums:
        p, n = (x, None) if linear else _terms(x, mu, likelihood)
        for part, weight in (("x", target), ("y", background)):
            if weight.any():
                total.add("p_" + part, p.T @ (weight[:, None] * h))
                total.add("n_" + part, _n_sum(weight, h, n, likelihood))
    if todo.loss:
        cells = _loss(x, mu, likelihood)
        total.loss += [target @ cells, (background > 0) @ cells, background @ cells]
        if len(rows.loss):
            rows.loss[used] = cells
    if todo.evidence and target.any():
        total.add("evidence", _evidence(x, mu, target, likelihood))


def _expected(h: Floats, W: Floats) -> Floats:
    """``mu = h W'``, which is divided by."""
    mu: Floats = h @ W.T
    return np.maximum(mu, TINY, out=mu)


def _n_sum(weight: Floats, h: Floats, n: Floats | None, likelihood: Likelihood) -> Floats:
    """``n' diag(weight) H`` in the form that `Likelihood.n_kind` allows."""
    if likelihood.n_kind == "one":
        return weight @ h
    return (h if n is None else n).T @ (weight[:, None] * h)


def _extrapolation(momentum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nesterov's rule, as the solver has it for whole passes, for the steps of each cell."""
    ahead = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    return np.minimum((momentum - 1) / ahead, MAX_BETA), ahead


def _start(totals: Floats, rows: Rows, used: np.ndarray, todo: Pass) -> Floats:
    """Usage from which the steps begin; moves `Rows.H_prev` on."""
    n_topics = todo.W.shape[1]
    h = np.repeat(totals / n_topics, n_topics, axis=1) if todo.cold else rows.H[used] * todo.scale.astype(todo.W.dtype)
    if not len(rows.H_prev):
        return h
    before, rows.H_prev[used] = rows.H_prev[used], h
    return h + todo.W.dtype.type(todo.beta) * np.maximum(h - before, 0)


def _terms(x: Matrix, mu: Floats, likelihood: Likelihood) -> tuple[Matrix, Floats | None]:
    """P and n (`None` where it is one) of a block; for sparse x, p is sparse and n is mended at the non-zeros."""
    if isinstance(x, np.ndarray):
        return likelihood.p(x, mu), None if likelihood.n_kind == "one" else likelihood.n(x, mu)
    cells, mu_x, here = _at_values(x, mu, likelihood)
    n = likelihood.n(mu.dtype.type(0), mu)
    n[cells, x.indices] = here.n(x.data, mu_x)
    p = copy(x)  # with its structure
    p.data = here.p(x.data, mu_x)
    return p, n


def _loss(x: Matrix, mu: Floats, likelihood: Likelihood) -> np.ndarray:
    """Loss of every cell (float64)."""
    if isinstance(x, np.ndarray):
        return likelihood.loss(x, mu).sum(1, dtype=np.float64)
    cells, mu_x, here = _at_values(x, mu, likelihood)
    zero = mu.dtype.type(0)
    loss = likelihood.loss(zero, mu).sum(1, dtype=np.float64)
    return loss + np.bincount(cells, here.loss(x.data, mu_x) - here.loss(zero, mu_x), minlength=len(loss))


def _evidence(x: Matrix, mu: Floats, weight: Floats, likelihood: Likelihood) -> np.ndarray:
    """`Likelihood.evidence` summed over cells."""
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
    W = np.zeros((todo.W.shape[0], -(-n_topics // 8) * 8), todo.W.dtype)  # whole vector registers
    W[:, :n_topics] = todo.W
    run = FUSED[likelihood.name]
    down = W.sum(0) if likelihood.n_kind == "one" else W.T @ W
    # A part without cells in this block, as is usual in sorted data, needs no sums.
    weights = {"x": rows.target, "y": rows.background}
    present = {part: todo.sums and bool(weight.any()) for part, weight in weights.items()}
    p = {part: np.zeros(W.shape if here else (0, 0), W.dtype) for part, here in present.items()}
    run(
        block.indptr, block.indices, block.values, W, down, rows.target, rows.background, rows.H, rows.H_prev,
        todo.scale.astype(W.dtype), W.dtype.type(todo.beta), todo.steps, todo.tol, todo.cold, todo.sums, todo.loss,
        p["x"], p["y"], total.loss, rows.loss,
    )  # fmt: skip
    for part, here in present.items():
        if here:
            total.add("p_" + part, p[part][:, :n_topics])
            total.add("n_" + part, _n_sum(weights[part], rows.H, None, likelihood))


_jit = numba.njit(
    fastmath={"reassoc", "contract", "arcp", "nsz"}, nogil=True, boundscheck=False, error_model="numpy", cache=True
)


@_jit
def _begin(h, values, begin, end, H, H_prev, i, scale, beta, cold, loss):
    """`_start` for one cell: writes h, returns the cell's total."""
    total = values.dtype.type(0)
    if cold or loss:
        for at in range(begin, end):
            total += values[at]
    n_topics = H.shape[1]
    for k in range(n_topics):
        now = total / n_topics if cold else H[i, k] * scale[k]
        h[k] = now
        if H_prev.shape[0] > 0:
            h[k] += beta * max(now - H_prev[i, k], h.dtype.type(0))
            H_prev[i, k] = now
    return total


@_jit
def _finish_step(h, up, down, last, n_topics):
    """``h <- h * up / down``, floored; by what share the usage moved, and whether back where it came from."""
    zero = h.dtype.type(0)
    moved, total, along = zero, zero, zero
    for k in range(n_topics):
        new = h[k] * (up[k] / max(down[k], h.dtype.type(TINY)))
        moved += abs(new - h[k])
        along += (new - h[k]) * (h[k] - last[k])
        total += new
        h[k] = new
    floor = h.dtype.type(USAGE_FLOOR) * total / n_topics
    for k in range(n_topics):
        h[k] = max(h[k], floor)
    return moved / max(total, h.dtype.type(TINY)), along < zero


@_jit
def _go_ahead(h, last, momentum, n_topics):
    """`_extrapolation` for one cell, in place; returns the momentum to go on with."""
    ahead = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    beta = h.dtype.type(min((momentum - 1) / ahead, MAX_BETA))
    for k in range(n_topics):
        now = h[k]
        h[k] = now + beta * max(now - last[k], h.dtype.type(0))
        last[k] = now
    return ahead


@_jit
def _poisson_rows(
    indptr, indices, values, W, down, target, background, H, H_prev,
    scale, beta, steps, tol, cold, sums, loss, p_x, p_y, losses, cell_loss,
):  # fmt: skip
    n_topics, width = H.shape[1], W.shape[1]
    zero, tiny = W.dtype.type(0), W.dtype.type(TINY)
    h = np.zeros(width, W.dtype)
    last = np.empty(width, W.dtype)
    up = np.empty(width, W.dtype)
    tail_indices, tail_values = np.zeros(4, indices.dtype), np.zeros(4, values.dtype)  # a row's last few
    for i in range(len(indptr) - 1):
        a, b = target[i], background[i]
        if a == 0 and b == 0:
            continue
        begin, end = indptr[i], indptr[i + 1]
        by_four = begin + (end - begin) // 4 * 4
        for k in range(4):
            inside = by_four + k < end
            tail_indices[k] = indices[by_four + k] if inside else 0
            tail_values[k] = values[by_four + k] if inside else zero
        total = _begin(h, values, begin, end, H, H_prev, i, scale, beta, cold, loss)
        last[:] = h
        momentum = 1.0
        for step in range(steps):
            for k in range(width):
                up[k] = zero
            for at in range(begin, by_four, 4):
                add_pull(W, h, up, indices, values, at, width, tiny)
            if by_four < end:
                add_pull(W, h, up, tail_indices, tail_values, 0, width, tiny)
            moved, turned = _finish_step(h, up, down, last, n_topics)
            if moved <= tol or step + 1 == steps:
                break
            momentum = _go_ahead(h, last, 1.0 if turned else momentum, n_topics)
        for k in range(n_topics):
            H[i, k] = h[k]
        if sums:
            for part in range(2):
                weight = a if part == 0 else b
                p = p_x if part == 0 else p_y
                if weight == 0:
                    continue
                for at in range(begin, by_four, 4):
                    add_outer(W, h, p, indices, values, at, width, tiny, weight)
                if by_four < end:
                    add_outer(W, h, p, tail_indices, tail_values, 0, width, tiny, weight)
        if loss:
            deviance = -np.float64(total)
            for k in range(n_topics):
                deviance += h[k] * down[k]
            for at in range(begin, end):
                if values[at] > 0:
                    w0 = W[np.uint64(indices[at])]
                    m0 = tiny
                    for k in range(width):
                        m0 += h[k] * w0[k]
                    deviance += values[at] * np.log(values[at] / m0)
            losses[0] += a * deviance
            losses[1] += deviance if b > 0 else 0.0
            losses[2] += b * deviance
            if len(cell_loss) > 0:
                cell_loss[i] = deviance


@_jit
def _gaussian_rows(
    indptr, indices, values, W, gram, target, background, H, H_prev,
    scale, beta, steps, tol, cold, sums, loss, p_x, p_y, losses, cell_loss,
):  # fmt: skip
    n_topics, width = H.shape[1], W.shape[1]
    zero = W.dtype.type(0)
    h = np.zeros(width, W.dtype)
    last = np.empty(width, W.dtype)
    up = np.empty(width, W.dtype)
    down = np.empty(width, W.dtype)
    for i in range(len(indptr) - 1):
        a, b = target[i], background[i]
        if a == 0 and b == 0:
            continue
        begin, end = indptr[i], indptr[i + 1]
        _begin(h, values, begin, end, H, H_prev, i, scale, beta, cold, loss)
        for k in range(width):
            up[k] = zero
        for at in range(begin, end):
            w, x = W[np.uint64(indices[at])], values[at]
            for k in range(width):
                up[k] += x * w[k]
        last[:] = h
        momentum = 1.0
        for step in range(steps):
            for k in range(width):
                down[k] = zero
            for m in range(n_topics):
                row, hm = gram[m], h[m]
                for k in range(width):
                    down[k] += hm * row[k]
            moved, turned = _finish_step(h, up, down, last, n_topics)
            if moved <= tol or step + 1 == steps:
                break
            momentum = _go_ahead(h, last, 1.0 if turned else momentum, n_topics)
        for k in range(n_topics):
            H[i, k] = h[k]
        if sums:
            for part in range(2):
                weight = a if part == 0 else b
                p = p_x if part == 0 else p_y
                if weight == 0:
                    continue
                for at in range(begin, end):
                    q, x = p[np.uint64(indices[at])], weight * values[at]
                    for k in range(width):
                        q[k] += x * h[k]
        if loss:  # |x|^2 - 2 x W h + h W'W h, in double precision: the terms nearly cancel
            squares = 0.0
            for at in range(begin, end):
                squares += np.float64(values[at]) * values[at]
            for k in range(n_topics):
                row = gram[k]
                inner = 0.0
                for m in range(n_topics):
                    inner += np.float64(row[m]) * h[m]
                squares += h[k] * (inner - 2.0 * up[k])
            squares /= 2
            losses[0] += a * squares
            losses[1] += squares if b > 0 else 0.0
            losses[2] += b * squares
            if len(cell_loss) > 0:
                cell_loss[i] = squares


FUSED = {"poisson": _poisson_rows, "gaussian": _gaussian_rows}
"""Likelihoods for which sparse rows need one fused pass."""
