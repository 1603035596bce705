"""`cpu.sweep` in torch: the same pass over a block of cells, on the device of the block.

Sparse values under Poisson and Gaussian use sparse products only, for a block at once. Everything else uses matrix
products on pieces of a block, corrected at the non-zeros; no cells x genes tensor is larger than a piece.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ._loops import MAX_BETA, MOST_AHEAD, TINY, USAGE_FLOOR
from .block import Pass, Sums

if TYPE_CHECKING:
    from ..likelihoods import Likelihood

with warnings.catch_warnings():  # torch warns once per process that sparse CSR tensors are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)

GATHERED = 2**16
"""Values at a time for which loadings and usage are gathered if there is no sampled product."""
STILL_GOING = 0.75
"""Drop converged cells when the share of cells still moving falls below this."""
WHOLE = {"ratio", "linear"}
"""Kernels (`Likelihood.kernel`) that need sparse products only of sparse cells."""


# -- data on the device ------------------------------------------------------------------------------------------------


@dataclass
class SparseCells:
    """Cells of a sparse matrix."""

    indptr: Tensor
    indices: Tensor
    """int32, as ``indptr``: a block holds fewer than 2^31 values."""
    values: Tensor
    n_genes: int

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.indptr) - 1

    def __getitem__(self, part: slice | Tensor) -> SparseCells:
        """Return a range of the cells as views, or the cells of the given indices as copies."""
        if isinstance(part, slice):
            indptr = self.indptr[part.start : part.stop + 1]
            begin, end = indptr[[0, -1]].tolist()
            return SparseCells(indptr - begin, self.indices[begin:end], self.values[begin:end], self.n_genes)
        lengths = torch.diff(self.indptr)[part]
        indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])
        at = torch.repeat_interleave(self.indptr[part] - indptr[:-1], lengths)
        at += torch.arange(len(at), device=at.device, dtype=at.dtype)
        return SparseCells(indptr, self.indices[at], self.values[at], self.n_genes)

    @cached_property
    def cells(self) -> Tensor:
        """The cell of each value."""
        numbers = torch.arange(len(self), device=self.indptr.device, dtype=torch.int32)
        return torch.repeat_interleave(numbers, torch.diff(self.indptr), output_size=len(self.values))

    @cached_property
    def positions(self) -> Tensor:
        """Index of each value in a dense, flat array (int64); for pieces only."""
        return self.cells.to(torch.int64) * self.n_genes + self.indices

    @cached_property
    def _by_gene(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transposed matrix: ``indptr``, the cell of each value, and the permutation of the values."""
        genes, order = torch.sort(self.indices, stable=True)
        edges = torch.arange(self.n_genes + 1, device=genes.device, dtype=genes.dtype)
        indptr = torch.searchsorted(genes, edges, out_int32=True)
        del genes, edges
        order = order.to(torch.int32)
        numbers = torch.arange(len(self), device=order.device, dtype=torch.int32)
        cells = torch.repeat_interleave(numbers, torch.diff(self.indptr), output_size=len(self.values))
        return indptr, cells.index_select(0, order), order

    def times(self, values: Tensor, M: Tensor) -> Tensor:
        """Return ``A M`` for A with these values at the non-zeros, or for a dense A."""
        if values.ndim > 1:
            return values @ M
        return _csr(self.indptr, self.indices, values, (len(self), self.n_genes)) @ M

    def transposed_times(self, values: Tensor, M: Tensor) -> Tensor:
        """Return ``A' M`` likewise."""
        if values.ndim > 1:
            return values.T @ M
        indptr, cells, order = self._by_gene
        return _csr(indptr, cells, values.index_select(0, order), (self.n_genes, len(self))) @ M

    def sampled(self, h: Tensor, W: Tensor) -> Tensor:
        """``h W'`` at the non-zeros."""
        if has_sampled_product(h.device.type, h.dtype):
            pattern = _csr(self.indptr, self.indices, self.values, (len(self), self.n_genes))
            return torch.sparse.sampled_addmm(pattern, h, W.T, beta=0.0, alpha=1.0).values()
        out = torch.empty_like(self.values)
        for start in range(0, len(out), GATHERED):
            part = slice(start, start + GATHERED)
            torch.sum(h.index_select(0, self.cells[part]) * W.index_select(0, self.indices[part]), 1, out=out[part])
        return out

    def per_cell(self, values: Tensor) -> Tensor:
        """Return sums over each cell's values (float64)."""
        return self.times(values.double(), values.new_ones((self.n_genes, 1), dtype=torch.float64))[:, 0]

    def totals(self) -> Tensor:
        """Sum of each cell."""
        return self.times(self.values, self.values.new_ones((self.n_genes, 1)))


@dataclass
class DenseCells:
    """Cells of a dense matrix."""

    values: Tensor

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.values)

    def __getitem__(self, part: slice | Tensor) -> DenseCells:
        """Return some of the cells."""
        return DenseCells(self.values[part])

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.values.shape[1]

    def times(self, values: Tensor, M: Tensor) -> Tensor:
        """Return ``A M``."""
        return values @ M

    def transposed_times(self, values: Tensor, M: Tensor) -> Tensor:
        """Return ``A' M``."""
        return values.T @ M

    def totals(self) -> Tensor:
        """Sum of each cell."""
        return self.values.sum(1, keepdim=True)


Cells: TypeAlias = SparseCells | DenseCells


@dataclass(frozen=True)
class TorchBlock:
    """Rows of the data on a device."""

    cells: Cells
    piece: int
    """Largest number of cells x genes values of a dense temporary."""


@dataclass
class TorchRows:
    """`block.Rows` on a device."""

    target: Tensor
    background: Tensor
    H: Tensor
    H_prev: Tensor
    loss: Tensor

    def __getitem__(self, part: slice) -> TorchRows:
        """Return views of some of the cells."""
        return TorchRows(self.target[part], self.background[part], self.H[part], self.H_prev[part], self.loss[part])


@dataclass
class TorchSums:
    """`block.Sums` on a device (float64), additive over blocks without waiting for the device."""

    p_x: Tensor | None = None
    p_y: Tensor | None = None
    n_x: Tensor | None = None
    n_y: Tensor | None = None
    loss: Tensor | None = None
    evidence: Tensor | None = None

    def add(self, name: str, values: Tensor | None) -> None:
        """Add to one of the sums, in double precision."""
        total = getattr(self, name)
        if total is None:
            setattr(self, name, None if values is None else values.double())
        elif values is not None:
            total += values

    def __iadd__(self, other: TorchSums) -> TorchSums:
        """Add another block's."""
        for each in dataclasses.fields(self):
            self.add(each.name, getattr(other, each.name))
        return self

    def to_numpy(self) -> Sums:
        """Copy the sums to the host."""
        sums = Sums.zeros()
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None:
                sums.add(each.name, value.numpy(force=True))
        return sums


# -- the pass ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sweep(block: TorchBlock, rows: TorchRows, todo: Pass, likelihood: Likelihood) -> TorchSums:
    """Equivalent of `cpu.sweep`.

    ``rows`` are changed at the very end: running out of memory leaves them unchanged.
    """
    W = torch.as_tensor(todo.W).to(rows.H)
    scale = torch.as_tensor(todo.scale).to(rows.H)
    likelihood = _on_device(likelihood, W)
    cells, total, changes = block.cells, TorchSums(), []
    present = torch.stack([rows.target.any(), rows.background.any()]).tolist()  # often only one in sorted data
    parts = [part for part, here in zip("xy", present, strict=True) if here]
    whole = isinstance(cells, SparseCells) and likelihood.kernel in WHOLE
    step = len(cells) if whole else max(1, block.piece // cells.n_genes)
    for start in range(0, len(cells), step):
        part = slice(start, min(start + step, len(cells)))
        x = cells if part == slice(0, len(cells)) else cells[part]
        changes.append((part, *_sweep_piece(x, rows[part], (W, scale, todo, parts), likelihood, total)))
    for part, before, h, loss in changes:
        here = rows[part]
        used = _used(here)[:, None]
        if len(here.H_prev):
            here.H_prev.copy_(torch.where(used, before, here.H_prev))
        here.H.copy_(torch.where(used, h, here.H))
        if loss is not None and len(here.loss):
            here.loss.copy_(torch.where(used[:, 0], loss, here.loss))
    return total


def _extrapolated(now: Tensor, before: Tensor, beta: Any, *, ratio: bool) -> Tensor:
    """`block.extrapolated` for tensors."""
    if not ratio:
        return now + beta * (now - before).clamp_min(0)
    less, more = 1 - beta, 1 + beta
    factor = (more * now + less * before) / (less * now + more * before).clamp_min(TINY)
    return now * factor.clamp_max(MOST_AHEAD)


def _sweep_piece(
    x: Cells, rows: TorchRows, how: tuple[Tensor, Tensor, Pass, list[str]], likelihood: Likelihood, total: TorchSums
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the usage before (without extrapolation) and after, and the cells' loss; add to the sums."""
    W, scale, todo, parts = how
    n_topics = W.shape[1]
    before = (x.totals() / n_topics).expand(-1, n_topics) if todo.cold else rows.H * scale
    h = before
    if len(rows.H_prev):
        h = _extrapolated(before, rows.H_prev, todo.beta, ratio=todo.ratio)
    used = _used(rows)
    h = _step_from(x, h, W, likelihood) if todo.steps == 1 else _steps(x, h, W, todo, likelihood, used)

    mu = None
    if todo.sums and parts:
        p, n, mu = _terms(x, h, W, likelihood)
        weights = torch.stack([rows.target if part == "x" else rows.background for part in parts], 1)
        weighted = (weights[:, :, None] * h[:, None, :]).flatten(1)  # usage under both weights, concatenated
        if n is not None:
            n_sums = x.transposed_times(n, weighted)
        elif likelihood.n_kind == "one":  # in double precision, as a float32 sum over a block's cells is too coarse
            n_sums = weighted.sum(0, dtype=torch.float64)
        else:
            n_sums = h.double().T @ weighted.double()
        for name, both in (("p_", x.transposed_times(p, weighted)), ("n_", n_sums)):
            for part, one in zip(parts, both.split(n_topics, -1), strict=True):
                total.add(name + part, one)
        del p, n, weighted, n_sums, both
    loss = None
    if todo.loss:
        loss = torch.where(used, _loss(x, h, W, likelihood), 0.0)
        weights = torch.stack([rows.target, (rows.background > 0).to(W), rows.background])
        total.add("loss", weights.double() @ loss)
    if todo.evidence:
        mu = (h @ W.T).clamp_min_(TINY) if mu is None else mu
        total.add("evidence", _evidence(x, mu, rows.target, likelihood))
    return before, h, loss


def _used(rows: TorchRows) -> Tensor:
    return (rows.target > 0) | (rows.background > 0)


def _steps(x: Cells, h: Tensor, W: Tensor, todo: Pass, likelihood: Likelihood, used: Tensor) -> Tensor:
    """Return the usage after many steps, extrapolated per cell; a cell stops when it has converged."""
    data: Any = x.times(x.values, W) if likelihood.n_kind == "mu" else x
    down = _down(W, likelihood)
    done = h.clone(memory_format=torch.contiguous_format)
    active, going = torch.arange(len(h), device=h.device), used  # cells in memory, and those of them still moving
    last, momentum = h, torch.ones(len(h), dtype=torch.float64, device=h.device)
    for step in range(todo.steps):
        n_going = int(going.sum())
        if not n_going:
            break
        if n_going < STILL_GOING * len(going):  # drop converged cells
            done[active] = h
            keep = going.nonzero()[:, 0]
            active, going, h, last = active[keep], going[keep], h[keep], last[keep]
            momentum, data = momentum[keep], data[keep]
        new = _step(data, h, W, down, likelihood)
        moving = going & ((new - h).abs().sum(1) > todo.tol * new.sum(1))
        turned = ((new - h) * (h - last)).sum(1) < 0
        momentum = momentum.masked_fill(turned, 1.0)
        ahead = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        beta = ((momentum - 1) / ahead).clamp_max(MAX_BETA).to(h)
        if step + 1 < todo.steps:
            further = _extrapolated(new, last, beta[:, None], ratio=True)
            h = torch.where(moving[:, None], further, torch.where(going[:, None], new, h))
        else:
            h = torch.where(going[:, None], new, h)
        last, momentum, going = new, ahead, moving
    done[active] = h
    return done


def _step_from(x: Cells, h: Tensor, W: Tensor, likelihood: Likelihood) -> Tensor:
    """Do one step of every cell."""
    data = x.times(x.values, W) if likelihood.n_kind == "mu" else x
    return _step(data, h, W, _down(W, likelihood), likelihood)


def _down(W: Tensor, likelihood: Likelihood) -> Tensor:
    """Return the part of ``n W`` common to all cells."""
    return W.T @ W if likelihood.n_kind == "mu" else W.sum(0)


def _step(data: Any, h: Tensor, W: Tensor, down: Tensor, likelihood: Likelihood) -> Tensor:
    """``h * (p W) / (n W)``, floored; for a linear likelihood the data are ``x W``."""
    if likelihood.n_kind == "mu":
        up, down = data, h @ down
    else:
        p, n, _ = _terms(data, h, W, likelihood)
        up, down = data.times(p, W), down if n is None else n @ W
    new = h * (up / down.clamp_min(TINY))
    return torch.maximum(new, USAGE_FLOOR * new.mean(1, keepdim=True))


def _terms(x: Cells, h: Tensor, W: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return p (at the non-zeros, or dense), n (`None` if it is one, or linear) and mu, if computed."""
    if likelihood.n_kind == "mu":
        return x.values, None, None
    if isinstance(x, SparseCells) and likelihood.kernel in WHOLE:
        return likelihood.p(x.values, x.sampled(h, W).clamp_min_(TINY)), None, None
    mu = (h @ W.T).clamp_min_(TINY)
    if isinstance(x, DenseCells):
        return likelihood.p(x.values, mu), None if likelihood.n_kind == "one" else likelihood.n(x.values, mu), mu
    mu_x, here = mu.view(-1)[x.positions], likelihood.at(x.indices)
    n = None
    if likelihood.n_kind != "one":
        n = likelihood.n(mu.new_zeros(()), mu)
        n.view(-1)[x.positions] = here.n(x.values, mu_x)
    p = torch.zeros_like(mu)
    p.view(-1)[x.positions] = here.p(x.values, mu_x)
    return p, n, mu


def _loss(x: Cells, h: Tensor, W: Tensor, likelihood: Likelihood) -> Tensor:
    """Compute the loss of every cell (float64)."""
    if isinstance(x, SparseCells) and likelihood.kernel == "linear":
        # |x|^2 - 2 x W h + h W'W h in double precision: the terms nearly cancel
        fit = h.double() @ (W.T @ W).double() - 2 * x.times(x.values, W).double()
        return (x.per_cell(x.values**2) + (h * fit).sum(1)) / 2
    if isinstance(x, SparseCells) and likelihood.kernel == "ratio":
        mu_x = x.sampled(h, W).clamp_min_(TINY)
        return h.double() @ W.double().sum(0) + x.per_cell(likelihood.loss(x.values, mu_x) - mu_x)
    mu = (h @ W.T).clamp_min_(TINY)
    if isinstance(x, DenseCells):
        return likelihood.loss(x.values, mu).sum(1, dtype=torch.float64)
    mu_x, here = mu.view(-1)[x.positions], likelihood.at(x.indices)
    loss = likelihood.loss(mu.new_zeros(()), mu)
    loss.view(-1)[x.positions] = here.loss(x.values, mu_x)
    return loss.sum(1, dtype=torch.float64)


def _evidence(x: Cells, mu: Tensor, weight: Tensor, likelihood: Likelihood) -> Tensor:
    """Sum `Likelihood.evidence` over cells."""
    weight = weight.double()
    if isinstance(x, DenseCells):
        return torch.stack([weight @ part.double() for part in likelihood.evidence(x.values, mu)])
    mu_x, here = mu.view(-1)[x.positions], likelihood.at(x.indices)
    totals = []
    for zeros, at_values in zip(likelihood.evidence(mu.new_zeros(()), mu), here.evidence(x.values, mu_x), strict=True):
        part = zeros.double().expand(mu.shape).contiguous()
        part.view(-1)[x.positions] = at_values.double()
        totals.append(weight @ part)
    return torch.stack(totals)


# -- helpers -----------------------------------------------------------------------------------------------------------


def _on_device(likelihood: Likelihood, like: Tensor) -> Likelihood:
    """Move the likelihood's per-gene parameters to a tensor's device and type."""
    arrays = {
        each.name: torch.tensor(value).to(like)
        for each in dataclasses.fields(likelihood)
        if np.ndim(value := getattr(likelihood, each.name))
    }
    return dataclasses.replace(likelihood, **arrays) if arrays else likelihood


def _csr(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)


@cache
def has_sampled_product(device: str, dtype: torch.dtype) -> bool:
    """Whether torch supports ``h W'`` at the non-zeros of a CSR tensor here (on a CPU this needs MKL)."""
    index = torch.tensor([0, 1], dtype=torch.int32, device=device)
    one = torch.ones(1, 1, device=device, dtype=dtype)
    try:
        torch.sparse.sampled_addmm(_csr(index, index[:1], one[0], (1, 1)), one, one, beta=0.0)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True
