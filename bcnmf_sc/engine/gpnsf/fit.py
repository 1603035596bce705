"""Fit the spatial model: start from joint NMF, maximise the evidence lower bound, compute the posterior.

Random starts fail, so the start is the best of a few joint Poisson NMFs of all modalities. Two things speed up
convergence: the whitened inducing values are rotated into a basis in which their posterior is about independent
(`rebase`); and kernels are updated only every few passes, with the projections on the inducing points kept in between.
Spots are first put into a canonical order, so that their input order does not change the result.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..._utils.progress import progress_bar
from ..checkpoint import Checkpoint
from ..rows.torch_source import cuda_device
from .model import Prior, SpatialModel, lognormal_moments
from .space import Places
from .start import LOADING_FLOOR, PARAMETER_BOUNDS, Shape, Values, begin, joint_nmf, reordered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from .observations import Params, SpotValues

SHORTEST, LONGEST = 1 / 20, 1.0
"""Bounds of the lengthscale relative to the largest distance (taken as twice the radius)."""
VARIANCE_BOUNDS = (1e-2, 30.0)
PREDICT_ROWS = 4096
KERNEL_EVERY = 5
"""Passes between updates of the kernels; in between, the projections on the inducing points are constant."""
REBASE = (0, 10, 30, 80, 180, 400)
"""Passes before which the basis of the posterior is recomputed."""
KEEP_VALUES = 2**26
"""Largest size at which the projections of all spots are kept in memory."""
AT_ONCE, BATCH = 1000, 400
"""Batch sizes: a pass over many spots should take many steps, as a full batch takes one step per pass."""
WINDOW = 20
"""Passes over which the bound is averaged to judge convergence."""
CHANCE = 2.0
"""Standard errors by which the averages may decrease by chance."""
ADAM = ("step", "exp_avg", "exp_avg_sq")
"""Adam's state for a parameter."""


@dataclass(frozen=True)
class Climb:
    """Run options of the fit."""

    max_iter: int = 200
    """Maximum number of passes over the spots."""
    tol: float = 2e-5
    """Stop when the relative increase of the smoothed bound is smaller."""
    batch_size: int | None = None
    """Batch size; by default all spots at once up to `AT_ONCE`, else `BATCH`."""
    learning_rate: float = 0.03
    n_samples: int = 1
    n_starts: int = 3
    max_time: float = np.inf
    device: str | None = None
    dtype: torch.dtype = torch.float32
    checkpoint: str | PathLike[str] | None = None
    checkpoint_every: int = 25
    progress: bool = False


@dataclass(frozen=True)
class SpatialFactors:
    """Result of a fit. Spatial topics come first, then the others."""

    usage: np.ndarray
    """Posterior mean of ``exp(h)``, spots x topics, divided by its mean over the spots."""
    usage_sd: np.ndarray
    """Its posterior standard deviation."""
    loadings: dict[str, np.ndarray]
    """Loadings, features x topics: the rate is size factor times usage times loadings."""
    parameters: dict[str, np.ndarray]
    """Dispersion or standard deviation per feature, for the modalities that have one."""
    lengthscale: np.ndarray
    """Lengthscale per spatial topic, in the units of the coordinates."""
    variance: np.ndarray
    posterior: dict[str, Any]
    """State needed by `predict`."""
    elbo: np.ndarray
    """Per pass: its index, the bound (mean over the batches), the learning rate."""
    n_iter: int
    gain: float
    """Relative increase of the smoothed bound at the end; negative if it decreased."""
    converged: bool


def fit_spatial(
    coordinates: np.ndarray,
    slice: np.ndarray,
    values: Sequence[Values],
    shape: Shape,
    *,
    random_state: int = 0,
    climb: Climb = Climb(),
) -> SpatialFactors:
    """Fit topics whose usage varies smoothly over space, and non-spatial topics.

    Parameters
    ----------
    coordinates
        Spots x dimensions.
    slice
        Index of each spot's slice, from 0.
    values
        The modalities of the same spots.
    shape
        Structure of the model.
    random_state
        Seed of the initialisation, the batches and the draws.
    climb
        Run options.
    """
    on_cpu = climb.device is None or climb.device == "cpu"
    device = torch.device("cpu" if on_cpu else cuda_device(str(climb.device)))  # before any work
    places = Places.of(np.asarray(coordinates, np.float64), slice)
    order = places.order
    values = [reordered(each, order) for each in values]
    scaled, slice = places.scaled[order], slice[order]
    H, W = joint_nmf(values, shape.n_topics + shape.n_nonspatial, random_state=random_state, n_starts=climb.n_starts)
    model, params = begin(scaled, slice, values, shape, (H, W), device=device, dtype=climb.dtype)
    state = _climb(model, params, values, shape.kl_weight, random_state, climb)
    return _finish(model, state, places, shape, climb.tol)


@dataclass
class _ClimbState:
    """State between passes."""

    params: Params
    optimiser: torch.optim.Adam
    generator: torch.Generator
    elbo: list[list[float]] = field(default_factory=list)

    @property
    def bounds(self) -> list[float]:
        """The bound of each pass."""
        return [row[1] for row in self.elbo]


def _groups(params: Params, values: Sequence[Values], learning_rate: float) -> list[dict[str, Any]]:
    """Return the parameters to optimise: kernels at half the learning rate, fixed parameters excluded."""
    fixed = {f"F_{each.name}" for each in values}
    fixed |= {name for name in params if name.startswith("basis")}
    fixed |= {f"aux_{each.name}" for each in values if not each.observation.parameter}
    kernel = ("log_length", "log_variance")
    learnt = [p for name, p in params.items() if name not in fixed and name not in kernel and p.numel()]
    return [
        {"params": learnt, "lr": learning_rate, "share": 1.0},
        {"params": [params[name] for name in kernel], "lr": learning_rate / 2, "share": 0.5},
    ]


def _climb(
    model: SpatialModel, params: Params, values: Sequence[Values], kl_weight: float, random_state: int, climb: Climb
) -> _ClimbState:
    """Maximise the bound with Adam, in passes over the spots."""
    groups = _groups(params, values, climb.learning_rate)
    for group in groups:
        for p in group["params"]:
            p.requires_grad_()
    state = _ClimbState(
        params, torch.optim.Adam(groups, betas=(0.9, 0.99)), torch.Generator().manual_seed(random_state)
    )
    n_spots, device = len(model.place), model.place.device
    asked = climb.batch_size or (n_spots if n_spots <= AT_ONCE else BATCH)
    size = min(asked, n_spots)
    every = torch.arange(n_spots, device=device)
    whole: list[SpotValues] | None = [each.values_of(every) for each in model.modalities] if size == n_spots else None
    checkpoint = Checkpoint.open(climb.checkpoint, *_identity(params, values, kl_weight, random_state, climb))
    _restore(checkpoint, state)
    deadline = time.monotonic() + climb.max_time
    n_points = max(len(z) for z in model.prior.inducing)
    keep = params["log_length"].numel() * n_points * n_spots <= KEEP_VALUES
    kept: list[tuple[int, Tensor, Tensor]] | None = None
    with (
        checkpoint,
        progress_bar(
            show=climb.progress, initial=len(state.elbo), total=climb.max_iter, desc="gpnsf", unit="it"
        ) as bar,
    ):
        while len(state.elbo) < climb.max_iter and not at_rest(state.bounds, climb.tol) and time.monotonic() < deadline:
            done = len(state.elbo)
            share = learning_rate_share(done, climb.max_iter)
            for group in state.optimiser.param_groups:
                group["lr"] = climb.learning_rate * group["share"] * share
            if done in REBASE:
                rebase(model, state)
            move = done % KERNEL_EVERY == 0
            if move or done in REBASE:
                kept = None
            if keep and not move and kept is None:
                with torch.no_grad():
                    kept = model.projections(params, every)
            for p in state.optimiser.param_groups[1]["params"]:
                p.requires_grad_(move)
            total = _pass(model, state, whole, kept, size=size, kl_weight=kl_weight, n_samples=climb.n_samples)
            if not math.isfinite(total):
                msg = "The evidence lower bound is not finite. Lower `learning_rate`, or look for extreme values."
                raise FloatingPointError(msg)
            state.elbo.append([done + 1, total, climb.learning_rate * share])
            checkpoint.write(partial(_save, state), len(state.elbo), climb.checkpoint_every)
            bar.set_postfix(elbo=f"{total:.4e}", refresh=False)
            bar.update()
        checkpoint.write(partial(_save, state), len(state.elbo))
    return state


@torch.no_grad()
def rebase(model: SpatialModel, state: _ClimbState) -> None:
    """Rotate the whitened inducing values into a basis in which their posterior is about independent.

    With Fisher information ``D`` of the data on log usage, the posterior covariance of ``v`` is about ``(I + A D
    A')^-1``. Its eigenvectors become the basis, so that a diagonal covariance and one learning rate for all directions
    suffice.
    """
    params = state.params
    every = torch.arange(len(model.place), device=model.place.device)
    grams = [
        p.new_zeros(p.shape[0], p.shape[1], p.shape[1]) for name, p in params.items() if re.fullmatch(r"m\d+", name)
    ]
    for spots in every.split(PREDICT_ROWS):
        parts = model.projections(params, spots)
        information = model.information(params, spots, parts)[:, : params["log_length"].numel()].T
        for s, here, a in parts:
            grams[s] += (a * information[:, here][:, None]) @ a.mT
    for s, gram in enumerate(grams):
        value, turn = torch.linalg.eigh(gram)
        params[f"basis{s}"].copy_(params[f"basis{s}"] @ turn)
        m = params[f"m{s}"]
        for each in [m, *([state.optimiser.state[m]["exp_avg"]] if m in state.optimiser.state else [])]:
            each.copy_((each[:, None] @ turn)[:, 0])
        params[f"log_d{s}"].copy_(-0.5 * torch.log1p(value.clamp_min(0)))


def _pass(
    model: SpatialModel,
    state: _ClimbState,
    whole: list[SpotValues] | None,
    kept: list[tuple[int, Tensor, Tensor]] | None,
    *,
    size: int,
    kl_weight: float,
    n_samples: int,
) -> float:
    """Do one pass over all spots, in batches unless ``whole`` holds them all; return the mean bound."""
    n_spots, device = len(model.place), model.place.device
    n_topics = sum(state.params[name].shape[0] for name in ("log_length", "free_mean") if name in state.params)
    order = torch.arange(n_spots) if whole else torch.randperm(n_spots, generator=state.generator)
    total = 0.0
    for batch in torch.split(order, size):
        shape = (n_samples, len(batch), n_topics)
        noise = torch.randn(shape, generator=state.generator, dtype=model.place.dtype).to(device)
        spots = batch.to(device)
        state.optimiser.zero_grad()
        with torch.set_grad_enabled(state.params["log_length"].requires_grad):
            if kept is None:
                parts = model.projections(state.params, spots)
            else:
                parts = kept if whole else model.select(kept, spots)
        bound = model.elbo(state.params, spots, noise, kl_weight=kl_weight, blocks=whole, projections=parts)
        (-bound / n_spots).backward()
        state.optimiser.step()
        _bound(state.params)
        total += float(bound.detach()) * len(spots) / n_spots
    return total


def learning_rate_share(done: int, max_iter: int) -> float:
    """Return the factor on the learning rate after some passes: half a cosine, down to a twentieth."""
    return 0.05 + 0.95 * (1 + math.cos(math.pi * done / max_iter)) / 2


def gain(elbo: Sequence[float]) -> float:
    """Compute the relative increase of the smoothed bound over the last passes; infinite at the start."""
    if len(elbo) < 3 * WINDOW:
        return math.inf
    now, before = np.mean(elbo[-WINDOW:]), np.mean(elbo[-2 * WINDOW : -WINDOW])
    return float((now - before) / abs(now))


def at_rest(elbo: Sequence[float], tol: float) -> bool:
    """Whether the smoothed bound rises by less than ``tol`` and does not fall by more than chance or ``tol`` explains.

    The bound is a random estimate: at convergence it falls as often as it rises.
    """
    rise = gain(elbo)
    if not tol or not math.isfinite(rise):
        return False
    now, before = elbo[-WINDOW:], elbo[-2 * WINDOW : -WINDOW]
    noise = math.sqrt((np.var(now, ddof=1) + np.var(before, ddof=1)) / WINDOW) / abs(float(np.mean(now)))
    return -max(tol, CHANCE * noise) < rise < tol


@torch.no_grad()
def _bound(params: Params) -> None:
    """Clip parameters to their bounds."""
    params["log_length"].clamp_(math.log(2 * SHORTEST), math.log(2 * LONGEST))
    params["log_variance"].clamp_(math.log(VARIANCE_BOUNDS[0]), math.log(VARIANCE_BOUNDS[1]))
    for name, value in params.items():
        if name.startswith("V_"):
            value.clamp_(min=LOADING_FLOOR)
        elif name.startswith("aux_"):
            value.clamp_(math.log(PARAMETER_BOUNDS[0]), math.log(PARAMETER_BOUNDS[1]))


def _save(state: _ClimbState) -> dict[str, Any]:
    """Return arrays from which `_restore` resumes the fit."""
    moments = state.optimiser.state_dict()["state"]
    content = {name: p.detach() for name, p in state.params.items()} | {"generator": state.generator.get_state()}
    content |= {f"adam{i}_{name}": x for i, each in moments.items() for name, x in each.items()}
    return {name: x.cpu().numpy() for name, x in content.items()} | {"elbo": state.elbo}


@torch.no_grad()
def _restore(checkpoint: Checkpoint, state: _ClimbState) -> None:
    """Resume from the state of an earlier call."""
    learnt = list(enumerate(p for group in state.optimiser.param_groups for p in group["params"]))
    shapes: dict[str, tuple[int, ...] | None] = {name: tuple(p.shape) for name, p in state.params.items()}
    shapes |= {f"adam{i}_{name}": tuple(p.shape) * (name != "step") for i, p in learnt for name in ADAM}
    stored = checkpoint.read(shapes | {"generator": tuple(state.generator.get_state().shape), "elbo": (None, 3)})
    if stored is not None:
        for name, p in state.params.items():
            p.copy_(torch.as_tensor(stored[name]))
        moments = {i: {name: torch.as_tensor(stored[f"adam{i}_{name}"]) for name in ADAM} for i, _ in learnt}
        state.optimiser.load_state_dict(state.optimiser.state_dict() | {"state": moments})
        state.generator.set_state(torch.as_tensor(stored["generator"]))
        state.elbo = stored["elbo"].tolist()


def _identity(
    params: Params, values: Sequence[Values], kl_weight: float, random_state: int, climb: Climb
) -> Iterator[Any]:
    """Yield the data that identify a fit; its other arguments are reflected in its start."""
    yield [random_state, climb.max_iter, climb.batch_size or 0, climb.n_samples]
    yield [kl_weight, climb.learning_rate]
    for each in values:
        yield from (each.name, each.observation.name, each.weight, each.size)
        yield from (each.matrix.data, each.matrix.indices, each.matrix.indptr)
    for name in sorted(params):
        yield params[name].detach().cpu().numpy()


@torch.no_grad()
def _finish(model: SpatialModel, state: _ClimbState, places: Places, shape: Shape, tol: float) -> SpatialFactors:
    """Compute the posterior of all spots, in their input order."""
    params = state.params
    spots = torch.arange(len(model.place), device=model.place.device).split(PREDICT_ROWS)
    mean, variance = (
        torch.cat(parts) for parts in zip(*(model.log_usage(params, part) for part in spots), strict=True)
    )
    usage, sd = lognormal_moments(mean.double(), variance.double())
    scale = usage.mean(0)
    back = np.argsort(places.order)

    def array(x: Tensor) -> np.ndarray:
        return x.detach().cpu().numpy()

    posterior: dict[str, Any] = {
        name: array(p)
        for name, p in params.items()
        if name[:2] not in ("V_", "F_") and name[:4] not in ("aux_", "free")
    }
    posterior |= {f"z{s}": array(z) for s, z in enumerate(model.prior.inducing)}
    posterior |= {"kernel": shape.kernel, "nugget": shape.nugget, "centre": places.centre, "radius": places.radius}
    posterior["scale"] = array(scale)
    return SpatialFactors(
        usage=array(usage / scale)[back],
        usage_sd=array(sd / scale)[back],
        loadings={each.name: array(each.loadings(params).double() * scale) for each in model.modalities},
        parameters={
            each.name: array(each.parameter(params)) for each in model.modalities if each.observation.parameter
        },
        lengthscale=array(params["log_length"].exp()) * places.radius,
        variance=array(params["log_variance"].exp()),
        posterior=posterior,
        elbo=np.array(state.elbo).reshape(-1, 3),
        n_iter=len(state.elbo),
        gain=gain(state.bounds),
        converged=at_rest(state.bounds, tol),
    )


@torch.no_grad()
def predict(posterior: Mapping[str, Any], coordinates: np.ndarray, slice: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Compute the posterior mean and standard deviation of usage at any positions of a slice, positions x topics.

    Non-spatial topics have their prior there.
    """
    params = {
        name: torch.as_tensor(np.asarray(p), dtype=torch.float64) for name, p in posterior.items() if name != "kernel"
    }
    n_slices = len(params["centre"])
    prior = Prior(
        str(posterior["kernel"]), tuple(params[f"z{s}"] for s in range(n_slices)), nugget=float(params["nugget"])
    )
    x = (torch.as_tensor(np.asarray(coordinates), dtype=torch.float64) - params["centre"][slice]) / params["radius"]
    parts = [
        prior.marginals(params, slice, part, prior.projection(params, slice, part)) for part in x.split(PREDICT_ROWS)
    ]
    mean, variance = (torch.cat(each, 1).T for each in zip(*parts, strict=True))
    scale = params["scale"]
    n_free = len(scale) - mean.shape[1]
    if n_free:
        mean = torch.cat([mean, mean.new_zeros(len(x), n_free)], 1)
        variance = torch.cat([variance, variance.new_ones(len(x), n_free)], 1)
    usage, sd = lognormal_moments(mean, variance)
    return (usage / scale).numpy(), (sd / scale).numpy()
