"""Fit the spatial model: start from joint NMF, climb the evidence lower bound, read the posterior off.

Random starts fail, so the start is the best of a few joint Poisson NMFs of all modalities side by side. Three things
make the climb short: the whitened inducing values are turned into the basis in which their posterior is about
independent (`rebase`); kernels move only every few passes, and between their moves the projections on the inducing
points are kept; and spots are put into an order of their own first, so that the order in which they come changes
nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse, special
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from tqdm.auto import tqdm

from .gpnsf import Block, Modality, Model, Params, Prior, moments
from .gpnsf_start import (
    Places,
    Values,
    default_points,
    feature_means,
    inducing_points,
    joint_nmf,
    morans_i,
    neighbours,
    reordered,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHORTEST, LONGEST = 1 / 20, 1.0
"""Bounds of the lengthscale, over the largest distance (taken as twice the radius)."""
VARIANCE_BOUNDS = (1e-2, 30.0)
PARAMETER_BOUNDS = (1e-2, 1e4)
LOADING_FLOOR = 1e-4
"""Smallest loading of a feature that is present at all, over its mean: at zero it could never rise again."""
SHRINK = 0.2
"""By how much the start's usage is drawn towards equal usage of all topics."""
PREDICT_ROWS = 4096
KERNEL_EVERY = 5
"""Passes from one move of the kernels to the next; in between, projections on the inducing points stay as they are."""
REBASE = (0, 10, 30, 80, 180, 400)
"""Passes before which the basis of the posterior is renewed."""
KEEP_VALUES = 2**26
"""Size up to which projections of all spots are kept in memory."""
WINDOW = 20
"""Passes that the bound is averaged over, to see whether it still rises."""


@dataclass(frozen=True)
class Shape:
    """What is modelled."""

    n_topics: int
    n_nonspatial: int = 0
    kernel: str = "matern32"
    n_inducing: int | None = None
    """Per slice."""
    nugget: float = 1e-3
    kl_weight: float = 1.0


@dataclass(frozen=True)
class Climb:
    """How the fit is run."""

    max_iter: int = 200
    """Passes over the spots."""
    tol: float = 2e-5
    batch_size: int | None = None
    learning_rate: float = 0.03
    n_samples: int = 1
    n_starts: int = 3
    max_time: float = np.inf
    device: str | None = None
    dtype: torch.dtype = torch.float32
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 25
    progress: bool = False


@dataclass(frozen=True)
class SpatialFactors:
    """What a fit ends with. Topics: spatial ones first, then the others."""

    usage: np.ndarray
    """Posterior mean of ``exp(h)``, spots x topics, divided by its mean over the spots."""
    usage_sd: np.ndarray
    """Its posterior standard deviation."""
    log_usage: np.ndarray
    log_usage_variance: np.ndarray
    """Posterior mean and variance of the logarithm of usage."""
    loadings: dict[str, np.ndarray]
    """Features x topics: size factor times usage times loadings is the rate."""
    parameters: dict[str, np.ndarray]
    """Dispersion or standard deviation per feature, of the modalities that have one."""
    lengthscale: np.ndarray
    """Per spatial topic, in the units of the coordinates."""
    variance: np.ndarray
    posterior: dict[str, Any]
    """What `predict` needs."""
    elbo: np.ndarray
    """Per pass: its number, the bound (mean over the batches), the learning rate."""
    n_iter: int
    converged: bool


# Fit ----------------------------------------------------------------------------------------------------------------


def fit(
    coordinates: np.ndarray,
    slice: np.ndarray,
    values: Sequence[Values],
    shape: Shape,
    *,
    random_state: int = 0,
    climb: Climb = Climb(),
) -> SpatialFactors:
    """Find topics whose usage varies smoothly over space, and what else there is.

    Parameters
    ----------
    coordinates
        Spots x dimensions.
    slice
        Number of each spot's slice, from 0.
    values
        The modalities, over the same spots.
    shape
        What to model.
    random_state
        Seed of the start, of the batches and of the draws.
    climb
        How to run.
    """
    places = Places.of(np.asarray(coordinates, np.float64), slice)
    order = places.order
    values = [reordered(each, order) for each in values]
    scaled, slice = places.scaled[order], slice[order]
    H, W = joint_nmf(values, shape.n_topics + shape.n_nonspatial, random_state=random_state, n_starts=climb.n_starts)
    device = torch.device(climb.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, params = _begin(scaled, slice, values, shape, (H, W), device=device, dtype=climb.dtype)
    state = _climb(model, params, values, shape.kl_weight, random_state, climb)
    return _finish(model, state, places, shape)


def _begin(
    scaled: np.ndarray,
    slice: np.ndarray,
    values: Sequence[Values],
    shape: Shape,
    start: tuple[np.ndarray, dict[str, np.ndarray]],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Model, Params]:
    """Set the model up, and its parameters at the start."""
    H, W = start
    H = H / H.mean(0)
    log_usage = np.log((1 - SHRINK) * H + SHRINK * H.mean(1, keepdims=True) + 1e-2)
    n_frozen = 0 if values[0].frozen is None else values[0].frozen.shape[1]
    if n_frozen:  # the usage of topics in given units keeps them
        log_usage[:, :n_frozen] += np.log(np.maximum(start[0].mean(0)[:n_frozen], 1e-6))
    if shape.n_nonspatial:  # the smoothest topics are the spatial ones
        smooth = morans_i(log_usage[:, n_frozen:], neighbours(scaled, slice, 8))
        by_smoothness = np.concatenate([np.arange(n_frozen), n_frozen + np.argsort(-smooth, kind="stable")])
        log_usage, W = log_usage[:, by_smoothness], {name: w[:, by_smoothness] for name, w in W.items()}
    spatial, free = np.split(log_usage, [shape.n_topics], axis=1)

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=dtype, device=device)

    points, point = [], np.full(len(slice), -1)
    n_slices = int(slice.max()) + 1
    for s in range(n_slices):
        here = slice == s
        n_points = default_points(int(here.sum())) if shape.n_inducing is None else shape.n_inducing
        z, point[here] = inducing_points(scaled[here], n_points)
        points.append(z)
    prior = Prior(shape.kernel, tuple(tensor(z) for z in points), nugget=shape.nugget)
    n_topics, n_dims = shape.n_topics, scaled.shape[1]
    params: Params = {
        "log_length": tensor(np.full(n_topics, np.log(0.2))),
        "log_variance": tensor(np.zeros(n_topics)),
        "offset": tensor([spatial[slice == s].mean(0) for s in range(n_slices)]),
        "slope": tensor(np.zeros((n_slices, n_topics, n_dims))),
    }
    for s, z in enumerate(points):
        here = np.flatnonzero(slice == s)
        k = min(len(here), max(2, math.ceil(len(here) / len(z))))
        near = NearestNeighbors(n_neighbors=k).fit(scaled[here]).kneighbors(z, return_distance=False)
        rise = tensor(spatial[here][near].mean(1)) - params["offset"][s]
        params[f"basis{s}"] = torch.eye(len(z), dtype=dtype, device=device).repeat(n_topics, 1, 1)
        params[f"m{s}"] = torch.linalg.solve_triangular(prior.cholesky(params, s), rise.T[..., None], upper=False)[
            ..., 0
        ]
        params[f"log_d{s}"] = tensor(np.full((n_topics, len(z)), np.log(0.1)))
    if shape.n_nonspatial:
        level = free.mean(0)
        level[: max(0, n_frozen - n_topics)] = 0  # loadings that are given keep their units
        params["free_mean"] = tensor((free - level).T)
        params["free_log_sd"] = tensor(np.full(free.T.shape, -1.0))
        W = {name: w * np.concatenate([np.ones(n_topics), np.exp(level)]) for name, w in W.items()}
    modalities = []
    for each in values:
        modality = _modality(each, tensor)
        modalities.append(modality)
        over = np.divide(
            W[each.name],
            feature_means(each)[:, None],
            out=np.zeros_like(W[each.name]),
            where=feature_means(each)[:, None] > 0,
        )
        params[f"F_{each.name}"] = tensor(over[:, :n_frozen])
        params[f"V_{each.name}"] = tensor(np.maximum(over[:, n_frozen:], LOADING_FLOOR))
        params[f"aux_{each.name}"] = tensor(np.log(_first_parameter(each)))
    return Model(
        prior, tensor(scaled), torch.as_tensor(slice, device=device), torch.as_tensor(point, device=device), modalities
    ), params


def _modality(values: Values, tensor: Any) -> Modality:
    matrix = values.matrix
    matrix.sum_duplicates()
    hidden = sparse.csr_array(matrix.shape) if values.hidden is None else sparse.csr_array(values.hidden)
    log_factorials = np.zeros(matrix.shape[0])
    if values.observation.counts:
        log_factorials = np.asarray(matrix._with_data(special.gammaln(matrix.data + 1)).sum(1)).ravel()
    device = tensor(0.0).device

    def whole(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array.astype(np.int64), device=device)

    return Modality(
        values.name,
        values.observation,
        matrix.shape[1],
        whole(matrix.indptr),
        whole(matrix.indices),
        tensor(matrix.data),
        tensor(values.size),
        tensor(feature_means(values)),
        values.weight,
        whole(hidden.indptr),
        whole(hidden.indices),
        tensor(log_factorials),
    )


def _first_parameter(values: Values) -> np.ndarray:
    """Where the observation model's parameter starts: dispersion 5, or the standard deviation of the values."""
    n_features = values.matrix.shape[1]
    if values.parameter is not None:
        return np.asarray(values.parameter, np.float64)
    if values.observation.parameter == "sd":
        mean = np.asarray(values.matrix.mean(0)).ravel()
        square = np.asarray(values.matrix.multiply(values.matrix).mean(0)).ravel()
        return np.clip(np.sqrt(np.maximum(square - mean**2, 0.0)), *PARAMETER_BOUNDS)
    return np.full(n_features, 5.0)


@dataclass
class _State:
    """All that a pass hands to the next."""

    params: Params
    optimiser: torch.optim.Adam
    generator: torch.Generator
    elbo: list[list[float]] = field(default_factory=list)
    converged: bool = False


def _groups(params: Params, values: Sequence[Values], learning_rate: float) -> list[dict[str, Any]]:
    """Parameters to learn: the kernels at half the rate, and what is held fixed not at all."""
    fixed = {f"F_{each.name}" for each in values}
    fixed |= {name for name in params if name.startswith("basis")}
    fixed |= {f"aux_{each.name}" for each in values if not each.observation.parameter or each.parameter is not None}
    kernel = ("log_length", "log_variance")
    learnt = [p for name, p in params.items() if name not in fixed and name not in kernel and p.numel()]
    return [
        {"params": learnt, "lr": learning_rate, "share": 1.0},
        {"params": [params[name] for name in kernel], "lr": learning_rate / 2, "share": 0.5},
    ]


def _climb(  # noqa: PLR0912, PLR0915 (one loop, read from top to bottom)
    model: Model, params: Params, values: Sequence[Values], kl_weight: float, random_state: int, climb: Climb
) -> _State:
    """Adam on the bound, in passes over the spots."""
    groups = _groups(params, values, climb.learning_rate)
    for group in groups:
        for p in group["params"]:
            p.requires_grad_()
    state = _State(params, torch.optim.Adam(groups, betas=(0.9, 0.99)), torch.Generator().manual_seed(random_state))
    n_spots, device = len(model.place), model.place.device
    n_topics = params["log_length"].numel() + (params["free_mean"].shape[0] if "free_mean" in params else 0)
    size = n_spots if climb.batch_size is None else min(climb.batch_size, n_spots)
    every = torch.arange(n_spots, device=device)
    whole: list[Block] | None = [each.block(every) for each in model.modalities] if size == n_spots else None
    checkpoint = _Checkpoint.of(climb, params, random_state)
    checkpoint.restore(state)
    deadline = time.monotonic() + climb.max_time
    kernel = state.optimiser.param_groups[1]["params"]
    n_points = max(len(z) for z in model.prior.inducing)
    keep = params["log_length"].numel() * n_points * n_spots <= KEEP_VALUES
    kept: list[tuple[int, Tensor, Tensor]] | None = None
    with tqdm(
        initial=len(state.elbo),
        total=climb.max_iter,
        disable=None if climb.progress else True,
        delay=2,
        desc="gpnsf",
        unit="it",
    ) as bar:
        while len(state.elbo) < climb.max_iter and not state.converged and time.monotonic() < deadline:
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
            for p in kernel:
                p.requires_grad_(move)
            order = every if whole else torch.randperm(n_spots, generator=state.generator).to(device)
            total = 0.0
            for spots in torch.split(order, size):
                noise = torch.randn(
                    climb.n_samples, len(spots), n_topics, generator=state.generator, dtype=model.place.dtype
                ).to(device)
                state.optimiser.zero_grad()
                with torch.set_grad_enabled(move):
                    if kept is None:
                        parts = model.projections(params, spots)
                    else:
                        parts = kept if whole else model.select(kept, spots)
                bound = model.elbo(params, spots, noise, kl_weight=kl_weight, blocks=whole, projections=parts)
                (-bound / n_spots).backward()
                state.optimiser.step()
                _bound(params)
                total += float(bound.detach()) * len(spots) / n_spots
            if not math.isfinite(total):
                msg = "The evidence lower bound is not finite. Lower `learning_rate`, or look for extreme values."
                raise FloatingPointError(msg)
            state.elbo.append([done + 1, total, climb.learning_rate * share])
            state.converged = settled([row[1] for row in state.elbo], climb.tol)
            if len(state.elbo) % climb.checkpoint_every == 0:
                checkpoint.save(state)
            bar.set_postfix(elbo=f"{total:.4e}", refresh=False)
            bar.update()
    checkpoint.save(state)
    return state


@torch.no_grad()
def rebase(model: Model, state: _State) -> None:
    """Turn the whitened inducing values into a basis in which their posterior is about independent; set its spread.

    With information ``D`` of the data on log usage, the posterior of ``v`` has about the covariance ``(I + A D
    A')^-1``: its eigenvectors become the basis, so that a diagonal does for the covariance, and one rate of learning
    for every direction.
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


def learning_rate_share(done: int, max_iter: int) -> float:
    """Share of the learning rate after some passes: half a cosine, down to a twentieth."""
    return 0.05 + 0.95 * (1 + math.cos(math.pi * done / max_iter)) / 2


def settled(elbo: Sequence[float], tol: float) -> bool:
    """Whether the bound, smoothed over passes, gained less than a share ``tol`` of its size over the last ones."""
    if len(elbo) < 3 * WINDOW:
        return False
    now, before = np.mean(elbo[-WINDOW:]), np.mean(elbo[-2 * WINDOW : -WINDOW])
    return bool(now - before < tol * abs(now))


@torch.no_grad()
def _bound(params: Params) -> None:
    """Bring parameters back into their bounds."""
    params["log_length"].clamp_(math.log(2 * SHORTEST), math.log(2 * LONGEST))
    params["log_variance"].clamp_(math.log(VARIANCE_BOUNDS[0]), math.log(VARIANCE_BOUNDS[1]))
    for name, value in params.items():
        if name.startswith("V_"):
            value.clamp_(min=LOADING_FLOOR)
        elif name.startswith("aux_"):
            value.clamp_(math.log(PARAMETER_BOUNDS[0]), math.log(PARAMETER_BOUNDS[1]))


@dataclass(frozen=True)
class _Checkpoint:
    """A file with the state of one fit; without a path it does nothing."""

    path: Path | None
    identity: str

    @classmethod
    def of(cls, climb: Climb, params: Params, random_state: int) -> _Checkpoint:
        """Set up the checkpoint of the fit that starts here."""
        if climb.checkpoint is None:
            return cls(None, "")
        path = Path(climb.checkpoint)
        if not path.parent.is_dir():
            msg = f"`checkpoint` must lie in a folder that exists, got {str(path)!r}."
            raise ValueError(msg)
        digest = hashlib.sha256(
            repr((random_state, climb.max_iter, climb.batch_size, climb.learning_rate, climb.n_samples)).encode()
        )
        for name in sorted(params):
            digest.update(name.encode() + params[name].detach().cpu().numpy().tobytes())
        return cls(path, digest.hexdigest())

    def save(self, state: _State) -> None:
        """Write the state, then put it in the place of the last one."""
        if self.path is None:
            return
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")
        try:
            torch.save(
                {
                    "identity": self.identity,
                    "params": {name: p.detach() for name, p in state.params.items()},
                    "optimiser": state.optimiser.state_dict(),
                    "generator": state.generator.get_state(),
                    "elbo": state.elbo,
                    "converged": state.converged,
                },
                unfinished,
            )
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    def restore(self, state: _State) -> None:
        """Take up what an earlier call left, if it was the same fit."""
        if self.path is None or not self.path.exists():
            return
        try:
            stored = torch.load(self.path, weights_only=True, map_location="cpu")
            identity = stored["identity"]
        except Exception as error:
            msg = f"`checkpoint` {str(self.path)!r} is no checkpoint of `gpnsf`. Name another file, or delete it."
            raise ValueError(msg) from error
        if identity != self.identity:
            msg = f"`checkpoint` {str(self.path)!r} belongs to another fit. Name another file, or delete it."
            raise ValueError(msg)
        with torch.no_grad():
            for name, p in state.params.items():
                p.copy_(stored["params"][name])
        state.optimiser.load_state_dict(stored["optimiser"])
        state.generator.set_state(stored["generator"])
        state.elbo, state.converged = stored["elbo"], stored["converged"]


@torch.no_grad()
def _finish(model: Model, state: _State, places: Places, shape: Shape) -> SpatialFactors:
    """Posterior of all spots, in the order in which they came."""
    params = state.params
    spots = torch.arange(len(model.place), device=model.place.device).split(PREDICT_ROWS)
    mean, variance = (
        torch.cat(parts) for parts in zip(*(model.log_usage(params, part) for part in spots), strict=True)
    )
    usage, sd = moments(mean.double(), variance.double())
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
        log_usage=array(mean - scale.log())[back],
        log_usage_variance=array(variance)[back],
        loadings={each.name: array(each.loadings(params).double() * scale) for each in model.modalities},
        parameters={
            each.name: array(each.parameter(params)) for each in model.modalities if each.observation.parameter
        },
        lengthscale=array(params["log_length"].exp()) * places.radius,
        variance=array(params["log_variance"].exp()),
        posterior=posterior,
        elbo=np.array(state.elbo).reshape(-1, 3),
        n_iter=len(state.elbo),
        converged=state.converged,
    )


@torch.no_grad()
def predict(posterior: Mapping[str, Any], coordinates: np.ndarray, slice: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of usage at any places of a slice, places x topics.

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
    usage, sd = moments(mean, variance)
    return (usage / scale).numpy(), (sd / scale).numpy()
