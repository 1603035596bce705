"""Observation models: the expected log-likelihood of a modality's values at given rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

Params = dict[str, Tensor]
"""``log_length``, ``log_variance``: topics. ``offset``: slices x topics. ``slope``: slices x topics x dimensions. Per
slice s ``m{s}``, ``log_d{s}`` (log diagonal of C): topics x inducing points; ``basis{s}`` (orthogonal, held fixed).
Non-spatial topics: ``free_mean``, ``free_log_sd``: topics x spots. Per modality r ``V_{r}`` (features x free topics:
loadings over feature means), ``F_{r}`` (likewise, of topics held fixed) and ``aux_{r}`` (log of the observation model's
parameter per feature)."""
TINY = 1e-30


class SpotValues(NamedTuple):
    """Values of one modality in some spots."""

    size: Tensor
    """Size factor per spot."""
    rows: Tensor
    cols: Tensor
    x: Tensor
    """The non-zeros."""
    hidden_rows: Tensor
    hidden_cols: Tensor
    """Hidden entries; none of them is among the non-zeros."""
    constant: Tensor
    """Sum of ``log x!`` over the non-zeros."""


class Observation(Protocol):
    """Interface of an observation model."""

    name: ClassVar[str]
    counts: ClassVar[bool]
    parameter: ClassVar[str]
    """Name of its parameter per feature; empty for none."""

    def log_prob(self, block: SpotValues, e: Tensor, W: Tensor, parameter: Tensor) -> Tensor:
        """Log-likelihood of the observed entries at usage ``e`` and loadings ``W``."""
        ...

    def information(self, rate: Tensor, parameter: Tensor) -> Tensor:
        """Fisher information of an entry on its rate."""
        ...


class PoissonObservation:
    """Counts with the rate as mean and variance."""

    name: ClassVar[str] = "poisson"
    counts: ClassVar[bool] = True
    parameter: ClassVar[str] = ""

    def log_prob(self, block: SpotValues, e: Tensor, W: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        return (block.x * torch.log(_rates(block, e, W))).sum() - _total_rate(block, e, W) - block.constant

    def information(self, rate: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        return 1 / rate


class BernoulliObservation:
    """Whether at least one of a Poisson number of events was seen: ``P(x = 1) = 1 - exp(-rate)``."""

    name: ClassVar[str] = "bernoulli"
    counts: ClassVar[bool] = True
    parameter: ClassVar[str] = ""

    def log_prob(self, block: SpotValues, e: Tensor, W: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        # log P(1) - log P(0) = log(exp(r) - 1) at the ones, log P(0) = -r everywhere
        rate = _rates(block, e, W)
        return (rate + torch.log(-torch.expm1(-rate))).sum() - _total_rate(block, e, W)

    def information(self, rate: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        return 1 / torch.expm1(rate)


class NegativeBinomialObservation:
    """Counts with the rate as mean and variance ``rate + rate^2 / theta``."""

    name: ClassVar[str] = "nb"
    counts: ClassVar[bool] = True
    parameter: ClassVar[str] = "dispersion"

    def log_prob(self, block: SpotValues, e: Tensor, W: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        over = block.size[:, None] * (e @ (W / parameter[:, None]).T)  # rate / theta
        none = torch.log1p(over) @ parameter  # minus the log-likelihood of a spot of zeros
        hidden = torch.log1p(over[block.hidden_rows, block.hidden_cols]) * parameter[block.hidden_cols]
        theta, rate = parameter[block.cols], _take(over, block.rows * over.shape[1] + block.cols)
        # log of rate / (rate + theta), from rate / theta
        seen = block.x * (torch.log(rate.clamp_min(TINY)) - torch.log1p(rate))
        counts = torch.lgamma(block.x + theta) - torch.lgamma(theta)
        return (seen + counts).sum() - none.sum() + hidden.sum() - block.constant

    def information(self, rate: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        return 1 / (rate + rate * rate / parameter)


class GaussianObservation:
    """Measurements with the rate as mean and a standard deviation per feature."""

    name: ClassVar[str] = "gaussian"
    counts: ClassVar[bool] = False
    parameter: ClassVar[str] = "sd"

    def log_prob(self, block: SpotValues, e: Tensor, W: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        x = torch.zeros(len(e), len(W), dtype=e.dtype, device=e.device)
        x[block.rows, block.cols] = block.x
        each = -0.5 * ((x - block.size[:, None] * (e @ W.T)) / parameter) ** 2 - torch.log(parameter)
        hidden = each[block.hidden_rows, block.hidden_cols].sum()
        n_hidden = len(block.hidden_rows)
        return each.sum() - hidden - 0.5 * math.log(2 * math.pi) * (each.numel() - n_hidden)

    def information(self, rate: Tensor, parameter: Tensor) -> Tensor:  # noqa: D102
        return (parameter**-2).expand_as(rate)


OBSERVATIONS: Mapping[str, Observation] = {
    each.name: each()
    for each in (NegativeBinomialObservation, BernoulliObservation, PoissonObservation, GaussianObservation)
}


class _Take(torch.autograd.Function):
    """Gather distinct entries of a matrix by flat index: without duplicates, the gradient needs no addition."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrix: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.shape = matrix.shape  # type: ignore[attr-defined]
        return matrix.reshape(-1)[place]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors  # type: ignore[attr-defined]
        out = grad.new_zeros(ctx.shape.numel())  # type: ignore[attr-defined]
        out[place] = grad
        return out.reshape(ctx.shape), None  # type: ignore[attr-defined]


def _take(matrix: Tensor, place: Tensor) -> Tensor:
    taken: Tensor = _Take.apply(matrix, place)  # type: ignore[no-untyped-call]
    return taken


def _rates(block: SpotValues, e: Tensor, W: Tensor) -> Tensor:
    """Rates of the non-zeros."""
    n_features = len(W)
    if len(block.x) * e.shape[1] > 2 * len(e) * n_features:  # dense enough that the whole product is cheaper
        rate = _take(e @ W.T, block.rows * n_features + block.cols)
    else:
        rate = (e.index_select(0, block.rows) * W.index_select(0, block.cols)).sum(1)
    return (block.size[block.rows] * rate).clamp_min(TINY)


def _total_rate(block: SpotValues, e: Tensor, W: Tensor) -> Tensor:
    """Sum of the rates of all observed entries."""
    total = block.size @ (e @ W.sum(0))
    if len(block.hidden_rows):
        hidden = (e[block.hidden_rows] * W[block.hidden_cols]).sum(1)
        total = total - block.size[block.hidden_rows] @ hidden
    return total
