"""Compiled loops over the non-zeros of cells, one cell at a time while its row is in cache.

Arrays only; `cpu` documents their use.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import numba
import numpy as np

from ..._utils.errors import UserError
from ._vector import add_outer, add_pull

USAGE_FLOOR = 1e-8
"""Smallest usage as a share of the cell's mean usage: an entry could never increase from zero."""
MAX_BETA = 0.95
"""Cap of the extrapolation."""
MOST_AHEAD = 2
"""Largest factor by which an extrapolation increases an entry: more of it makes the loss rise at times."""
TINY = 1e-30
"""Smallest divisor."""
MOST = 1e30
"""Largest ``1 / q`` of a zero-inflated count; larger values are treated as infinite."""

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    msg = "The environment variable `NUMBA_DISABLE_JIT` must be 0 or unset, got 1: fits run compiled code only."
    raise UserError(msg)
_compiled: Any = partial(
    numba.njit, fastmath={"reassoc", "contract", "arcp", "nsz"}, nogil=True, boundscheck=False, error_model="numpy"
)
inlined = _compiled(forceinline=True)
"""Compile a part of a loop inline into its caller.

A call would use the separately compiled part in the process that compiles both, but a copy optimised for the loop in a
process that loads the loop from disk: their last bits differ.
"""


def jit(function):
    """Compile a loop on its first call, and cache it on disk if possible."""
    compiled = _compiled(function)
    with suppress(RuntimeError):  # neither the package's folder nor the user's is writable
        compiled.enable_caching()
        save = compiled._cache.save_overload
        compiled._cache.save_overload = partial(_save_if_possible, save)
    return compiled


def _save_if_possible(save, *args):
    """Keep compiled code on disk; on a full one, the next process compiles again."""
    with suppress(OSError):
        save(*args)


@inlined
def _ahead(now, before, less, more, tiny):
    """`extrapolated` for one number, with ``1 - beta`` and ``1 + beta``, by the ratio of the last step."""
    return now * min((more * now + less * before) / max(less * now + more * before, tiny), MOST_AHEAD)


@inlined
def _begin(h, values, begin, end, H, H_prev, i, scale, beta, ratio, cold, loss):
    """`_start` for one cell: writes h, returns the cell's total."""
    total = values.dtype.type(0)
    if cold or loss:
        for at in range(begin, end):
            total += values[at]
    n_topics = H.shape[1]
    zero, tiny = h.dtype.type(0), h.dtype.type(TINY)
    less, more = h.dtype.type(1) - beta, h.dtype.type(1) + beta
    for k in range(n_topics):
        now = total / n_topics if cold else H[i, k] * scale[k]
        h[k] = now
        if H_prev.shape[0] > 0:
            if ratio:
                h[k] = _ahead(now, H_prev[i, k], less, more, tiny)
            else:
                h[k] += beta * max(now - H_prev[i, k], zero)
            H_prev[i, k] = now
    return total


@inlined
def _finish_step(h, up, down, last, n_topics):
    """Update ``h <- h * up / down``, floored; return its relative change, and whether the step reversed."""
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


@inlined
def _go_ahead(h, last, momentum, n_topics):
    """`_extrapolation` for one cell, in place; returns the momentum to go on with."""
    ahead = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    beta = min((momentum - 1) / ahead, MAX_BETA)
    less, more, tiny = h.dtype.type(1 - beta), h.dtype.type(1 + beta), h.dtype.type(TINY)
    for k in range(n_topics):
        now = h[k]
        h[k] = _ahead(now, last[k], less, more, tiny)
        last[k] = now
    return ahead


@inlined
def _tail(indices, values, begin, end, tail_indices, tail_values):
    """Return the end of complete groups of four; the remainder is padded with zeros to a group of four."""
    by_four = begin + (end - begin) // 4 * 4
    for k in range(4):
        inside = by_four + k < end
        tail_indices[k] = indices[by_four + k] if inside else 0
        tail_values[k] = values[by_four + k] if inside else values.dtype.type(0)
    return by_four


@inlined
def _pull(W, h, up, indices, values, begin, end, tail_indices, tail_values):
    """``up = sum of x / (W h) * W[j]`` over a cell's non-zeros."""
    width, tiny = W.shape[1], W.dtype.type(TINY)
    by_four = _tail(indices, values, begin, end, tail_indices, tail_values)
    for k in range(width):
        up[k] = W.dtype.type(0)
    for at in range(begin, by_four, 4):
        add_pull(W, h, up, indices, values, at, width, tiny)
    if by_four < end:
        add_pull(W, h, up, tail_indices, tail_values, 0, width, tiny)


@inlined
def _outer(W, h, p, indices, values, begin, end, tail_indices, tail_values, weight):
    """``p[j] += weight * x / (W h) * h`` for a cell's non-zeros."""
    width, tiny = W.shape[1], W.dtype.type(TINY)
    by_four = _tail(indices, values, begin, end, tail_indices, tail_values)
    for at in range(begin, by_four, 4):
        add_outer(W, h, p, indices, values, at, width, tiny, weight)
    if by_four < end:
        add_outer(W, h, p, tail_indices, tail_values, 0, width, tiny, weight)


@jit
def poisson_rows(
    indptr, indices, values, W, down, target, background, H, H_prev,
    scale, beta, ratio, steps, tol, cold, sums, loss, p_x, p_y, losses, cell_loss,
):  # fmt: skip
    n_topics, width = H.shape[1], W.shape[1]
    tiny = W.dtype.type(TINY)
    h = np.zeros(width, W.dtype)
    last = np.empty(width, W.dtype)
    up = np.empty(width, W.dtype)
    tail_indices, tail_values = np.zeros(4, indices.dtype), np.zeros(4, values.dtype)
    for i in range(len(indptr) - 1):
        a, b = target[i], background[i]
        if a == 0 and b == 0:
            continue
        begin, end = indptr[i], indptr[i + 1]
        total = _begin(h, values, begin, end, H, H_prev, i, scale, beta, ratio, cold, loss)
        last[:] = h
        momentum = 1.0
        for step in range(steps):
            _pull(W, h, up, indices, values, begin, end, tail_indices, tail_values)
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
                _outer(W, h, p, indices, values, begin, end, tail_indices, tail_values, weight)
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


@jit
def gaussian_rows(
    indptr, indices, values, W, gram, target, background, H, H_prev,
    scale, beta, ratio, steps, tol, cold, sums, loss, p_x, p_y, losses, cell_loss,
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
        _begin(h, values, begin, end, H, H_prev, i, scale, beta, ratio, cold, loss)
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


@jit
def ratio_pulls(indptr, indices, values, W, cells, H, up):
    """``up[c] = sum of x / (W h) * W[j]`` over the non-zeros of each of ``cells``, whose usage stands in ``H[c]``."""
    tail_indices, tail_values = np.zeros(4, indices.dtype), np.zeros(4, values.dtype)
    for c in range(len(cells)):
        begin, end = indptr[cells[c]], indptr[cells[c] + 1]
        _pull(W, H[c], up[c], indices, values, begin, end, tail_indices, tail_values)


@jit
def ratio_sums(indptr, indices, values, W, cells, H, weight, p):
    """``p += (x / mu)' diag(weight) H`` over the non-zeros of ``cells``."""
    tail_indices, tail_values = np.zeros(4, indices.dtype), np.zeros(4, values.dtype)
    for c in range(len(cells)):
        if weight[c] > 0:
            begin, end = indptr[cells[c]], indptr[cells[c] + 1]
            _outer(W, H[c], p, indices, values, begin, end, tail_indices, tail_values, weight[c])


@jit
def overdispersed_n(ratio, over_q, indptr, indices, values, cells, theta, odds):
    """Write a negative binomial's n over ``ratio = mu / theta``, in place.

    At zeros, it is divided by ``1 + odds over_q``: the odds of a dropout times ``1 / q``. ``over_q`` without rows
    stands for no dropouts.
    """
    one, most = ratio.dtype.type(1), ratio.dtype.type(MOST)
    for c in range(ratio.shape[0]):
        row, begin, end = ratio[c], indptr[cells[c]], indptr[cells[c] + 1]
        if len(over_q) > 0:
            rise = over_q[c]
            for at in range(begin, end):
                if values[at] > 0:
                    rise[indices[at]] = 0
            for j in range(len(row)):
                row[j] = one / ((one + row[j]) * (one + odds[j] * min(rise[j], most)))
        else:
            for j in range(len(row)):
                row[j] = one / (one + row[j])
        for at in range(begin, end):
            j = indices[at]
            row[j] *= one + values[at] / theta[j]
