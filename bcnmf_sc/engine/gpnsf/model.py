"""Gaussian-process non-negative spatial factorisation: the model, as plain functions of its parameters.

Spot ``i`` and feature ``j`` of modality ``r`` have the rate

    size_i^(r) * sum_k exp(h_ik) W_jk^(r)
    h_k(s) ~ GP(offset_k + slope_k's,  variance_k kappa(d / length_k) + nugget [i = j])

so the topics' usage ``exp(h)`` is shared by all modalities, each with its own loadings ``W`` and observation model.
The variational posterior is over the values of ``h`` at inducing points ``Z``, in whitened form: with ``L L' = K_ZZ +
(nugget + jitter) I`` they are ``offset + slope'Z + L B v``, B orthogonal, ``q(v) = N(m, C C')``, C diagonal, and with
``A = (L B)^-1 K_ZS``

    mean = offset + slope's + A'm,    variance = max(nugget + variance_k - sum A^2, 1e-6) + sum (C'A)^2,
    KL   = (|C|^2 + |m|^2 - M) / 2 - sum log C_ii.

The prior of v is standard normal for any B. B is chosen such that a diagonal C suffices for the posterior
(`fit.rebase`).

Slices have separate inducing points, offsets and slopes and share everything else; there is no covariance between
slices. Sums over entries are restricted to non-zeros where the observation model allows it. Nothing here seeds, fits
or depends on a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .observations import Observation, Params, SpotValues

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
LARGEST_LOG_USAGE = 10.0
SMALLEST_VARIANCE = 1e-6


def exponential(d: Tensor) -> Tensor:
    """Matérn-1/2 with its distance halved, ``exp(-d / 2)``: rough."""
    return torch.exp(-d / 2)


def matern32(d: Tensor) -> Tensor:
    """Matérn-3/2: once differentiable."""
    d = math.sqrt(3) * d
    return (1 + d) * torch.exp(-d)


def rbf(d: Tensor) -> Tensor:
    """Squared exponential, ``exp(-d^2 / 2)``: smooth."""
    return torch.exp(-(d * d) / 2)


KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {"matern32": matern32, "exponential": exponential, "rbf": rbf}
"""Correlation at a distance in units of the lengthscale."""


@dataclass(frozen=True)
class Prior:
    """Gaussian processes of the spatial topics, and their posterior at any position."""

    kernel: str
    inducing: tuple[Tensor, ...]
    """Inducing points of each slice, points x dimensions."""
    nugget: float = 1e-3
    """Variance specific to a position."""
    jitter: float = 1e-5
    """Added to the diagonal of ``K_ZZ``, times the kernel's variance, to stabilise the Cholesky factor."""

    def covariance(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """Covariance between positions without the nugget, topics x positions x positions."""
        d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        length, variance = params["log_length"].exp(), params["log_variance"].exp()
        return variance[:, None, None] * KERNELS[self.kernel](d / length[:, None, None])

    def cholesky(self, params: Params, s: int) -> Tensor:
        """``L``, topics x inducing points x inducing points."""
        z = self.inducing[s]
        k = self.covariance(params, z, z)
        ridge = self.nugget + self.jitter * params["log_variance"].exp()
        return torch.linalg.cholesky(k + ridge[:, None, None] * torch.eye(len(z), dtype=z.dtype, device=z.device))

    def projection(self, params: Params, s: int, x: Tensor, point: Tensor | None = None) -> Tensor:
        """Return ``A``, topics x inducing points x positions of slice ``s``.

        ``point`` is the index of the inducing point at a position, or -1: the two then share their nugget.
        """
        k = self.covariance(params, self.inducing[s], x)
        if point is not None:
            here = (point >= 0).nonzero()[:, 0]
            common = torch.zeros(k.shape[1:], dtype=k.dtype, device=k.device)
            common[point[here], here] = self.nugget
            k = k + common
        # (L B)^-1 is small, and one product with it then serves many positions
        inverse = torch.linalg.solve_triangular(self.cholesky(params, s).mT, params[f"basis{s}"], upper=True).mT
        return inverse @ k

    def marginals(self, params: Params, s: int, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of log usage at positions of slice ``s`` with projection ``a``, by topic."""
        mean = (params["offset"][s] + x @ params["slope"][s].T).T + (params[f"m{s}"][:, None] @ a)[:, 0]
        prior = self.nugget + params["log_variance"].exp()[:, None]
        c2 = torch.exp(2 * params[f"log_d{s}"])
        explained, posterior = (torch.stack([torch.ones_like(c2), c2], 1) @ (a * a)).unbind(1)
        return mean, (prior - explained).clamp_min(SMALLEST_VARIANCE) + posterior

    def kl(self, params: Params) -> Tensor:
        """KL divergence of the posterior at the inducing points from the prior, over all slices and topics."""
        total = params["offset"].new_zeros(())
        for s in range(len(self.inducing)):
            m, log_d = params[f"m{s}"], params[f"log_d{s}"]
            total = total + 0.5 * (torch.exp(2 * log_d).sum() + (m * m).sum() - m.numel()) - log_d.sum()
        return total


def kl_free(mean: Tensor, log_sd: Tensor) -> Tensor:
    """KL divergence of independent normals from standard normals."""
    return (0.5 * (torch.exp(2 * log_sd) + mean * mean - 1) - log_sd).sum()


@dataclass(frozen=True)
class Modality:
    """Values of one modality, spots x features (CSR), with their observation model."""

    name: str
    observation: Observation
    n_features: int
    indptr: Tensor
    cols: Tensor
    x: Tensor
    size: Tensor
    """Size factor per spot. A spot with 0 is not informative."""
    scale: Tensor
    """Mean value per feature at size factor 1: the unit of the loadings, zero for features without values."""
    weight: float
    hidden_indptr: Tensor
    hidden_cols: Tensor
    log_factorials: Tensor
    """Sum of ``log x!`` per spot."""

    def values_of(self, spots: Tensor) -> SpotValues:
        """Return the values of some spots."""
        rows, at = _entries(self.indptr, spots)
        hidden_rows, hidden_at = _entries(self.hidden_indptr, spots)
        constant = self.log_factorials[spots].sum()
        return SpotValues(
            self.size[spots], rows, self.cols[at], self.x[at], hidden_rows, self.hidden_cols[hidden_at], constant
        )

    def loadings(self, params: Params) -> Tensor:
        """``W``, features x topics."""
        return self.scale[:, None] * torch.cat([params[f"F_{self.name}"], params[f"V_{self.name}"]], 1)

    def parameter(self, params: Params) -> Tensor:
        """Return the observation model's parameter per feature."""
        return params[f"aux_{self.name}"].exp()


def _entries(indptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each entry of some rows of a CSR matrix its row's index among these, and its index in all entries."""
    start, count = indptr[rows], indptr[rows + 1] - indptr[rows]
    which = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count)
    first = torch.cumsum(count, 0) - count
    return which, torch.arange(len(which), device=rows.device) + (start - first)[which]


@dataclass(frozen=True)
class SpatialModel:
    """Positions of the spots and their observations."""

    prior: Prior
    place: Tensor
    """Scaled coordinates, spots x dimensions."""
    slice: Tensor
    """Index of each spot's slice."""
    point: Tensor
    """Index of the inducing point of its slice that a spot is, -1 for none."""
    modalities: Sequence[Modality]

    def projections(self, params: Params, spots: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """For each slice with some of the spots: its index, their indices in ``spots``, and their projection."""
        parts, slices = [], self.slice[spots]
        for s in range(len(self.prior.inducing)):
            here = (slices == s).nonzero()[:, 0]
            if len(here):
                point = self.point[spots[here]]
                known = point if bool((point >= 0).any()) else None
                parts.append((s, here, self.prior.projection(params, s, self.place[spots[here]], known)))
        return parts

    def select(self, kept: Sequence[tuple[int, Tensor, Tensor]], spots: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Select `projections` of some spots from those of all; the spots of a slice must be contiguous."""
        parts, slices = [], self.slice[spots]
        for s, all_of_slice, a in kept:
            here = (slices == s).nonzero()[:, 0]
            if len(here):
                parts.append((s, here, a.index_select(2, spots[here] - all_of_slice[0])))
        return parts

    def log_usage(
        self, params: Params, spots: Tensor, projections: Sequence[tuple[int, Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the log usage of all topics in some spots, spots x topics."""
        parts = self.projections(params, spots) if projections is None else projections
        each = [self.prior.marginals(params, s, self.place[spots[here]], a) for s, here, a in parts]
        mean, variance = (torch.cat(both, 1) for both in zip(*each, strict=True))
        if len(parts) > 1:
            back = torch.argsort(torch.cat([here for _, here, _ in parts]))
            mean, variance = mean[:, back], variance[:, back]
        if "free_mean" in params:
            mean = torch.cat([mean, params["free_mean"][:, spots]])
            variance = torch.cat([variance, torch.exp(2 * params["free_log_sd"][:, spots])])
        return mean.T, variance.T

    def information(
        self, params: Params, spots: Tensor, projections: Sequence[tuple[int, Tensor, Tensor]] | None
    ) -> Tensor:
        """Fisher information of the values on the log usage in some spots, spots x topics, at the posterior mean."""
        e = torch.exp(self.log_usage(params, spots, projections)[0].clamp_max(LARGEST_LOG_USAGE))
        total = torch.zeros_like(e)
        for each in self.modalities:
            W, size = each.loadings(params), each.size[spots][:, None]
            rate = (size * (e @ W.T)).clamp_min(SMALLEST_VARIANCE)
            known = each.observation.information(rate, each.parameter(params))
            total = total + each.weight * (size * e) ** 2 * (known @ (W * W))
        return total

    def elbo(
        self,
        params: Params,
        spots: Tensor,
        noise: Tensor,
        *,
        kl_weight: float = 1.0,
        blocks: Sequence[SpotValues] | None = None,
        projections: Sequence[tuple[int, Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Estimate the evidence lower bound of all spots from some of them.

        Unbiased over uniform draws of ``spots`` and standard normal ``noise`` (draws x spots x topics). ``blocks`` are
        those of the spots, if already available.
        """
        share = len(self.place) / len(spots)
        blocks = [modality.values_of(spots) for modality in self.modalities] if blocks is None else blocks
        mean, variance = self.log_usage(params, spots, projections)
        sd = variance.sqrt()
        parts = [(each, each.loadings(params), each.parameter(params)) for each in self.modalities]
        fit = mean.new_zeros(())
        for draw in noise:
            e = torch.exp((mean + sd * draw).clamp_max(LARGEST_LOG_USAGE))
            for (modality, W, parameter), block in zip(parts, blocks, strict=True):
                fit = fit + modality.weight * modality.observation.log_prob(block, e, W, parameter)
        kl = self.prior.kl(params)
        if "free_mean" in params:
            kl = kl + share * kl_free(params["free_mean"][:, spots], params["free_log_sd"][:, spots])
        return share / len(noise) * fit - kl_weight * kl


def lognormal_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the usage ``exp(h)``, h normal, from the moments of h."""
    usage = torch.exp((mean + variance / 2).clamp_max(LARGEST_LOG_USAGE))
    return usage, usage * torch.sqrt(torch.expm1(variance.clamp_max(LARGEST_LOG_USAGE)))
