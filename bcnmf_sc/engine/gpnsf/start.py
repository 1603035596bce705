"""Initialise the spatial model by the best of a few joint NMFs of all modalities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse, special
from sklearn.neighbors import NearestNeighbors

from .. import likelihoods
from ..bcnmf.solver import Run
from ..bcnmf.solver import fit as fit_nmf
from ..bcnmf.solver import transform as transform_nmf
from ..rows.open import row_source
from .model import Modality, Prior, SpatialModel
from .space import default_points, inducing_points, morans_i, neighbours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .observations import Observation, Params


PARAMETER_BOUNDS = (1e-2, 1e4)
FIRST_DISPERSIONS = (0.05, 100.0)
START_ROWS = 4096
LOADING_FLOOR = 1e-4
"""Smallest loading of a feature with values, relative to its mean: it could never increase from zero."""
SHRINK = 0.2
"""Shrinkage of the initial usage towards equal usage of all topics."""


@dataclass(frozen=True)
class Shape:
    """Structure of the model."""

    n_topics: int
    n_nonspatial: int = 0
    kernel: str = "matern32"
    n_inducing: int | None = None
    """Per slice."""
    nugget: float = 1e-3
    kl_weight: float = 1.0


@dataclass(frozen=True)
class Values:
    """Input of one modality."""

    name: str
    matrix: sparse.csr_array
    """Spots x features, non-negative."""
    observation: Observation
    size: np.ndarray
    """Size factor per spot; 0 for a spot that is not informative."""
    weight: float = 1.0
    hidden: sparse.csr_array | None = None
    """Spots x features: the entries to hide (whatever values are stored)."""
    frozen: np.ndarray | None = None
    """Fixed loadings of the first topics, features x any number (the same in all modalities)."""


def reordered(values: Values, order: np.ndarray) -> Values:
    """Reorder the spots, and set hidden values to zero."""
    hidden = None if values.hidden is None else values.hidden[order]
    matrix = sparse.csr_array(values.matrix)[order]
    if hidden is not None:  # hidden values are ignored
        matrix = sparse.csr_array(matrix - matrix.multiply(_pattern(sparse.csr_array(hidden))))
        matrix.eliminate_zeros()
    return replace(values, matrix=matrix, size=values.size[order], hidden=hidden)


def joint_nmf(
    values: Sequence[Values], n_topics: int, *, random_state: int = 0, n_starts: int = 3, max_iter: int = 200
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the best of a few joint Poisson NMFs of all modalities: usage per unit of size, loadings per modality.

    Modalities are first scaled to a common size factor. Hidden entries are imputed by their expectation from size and
    feature mean.
    """
    common = np.mean([each.size for each in values], axis=0)
    parts = []
    for each in values:
        matrix = sparse.csr_array(each.matrix, dtype=np.float64)
        if each.hidden is not None:
            matrix = matrix + expected(each)
        factor = np.divide(common, each.size, out=np.zeros_like(common), where=each.size > 0)
        parts.append(sparse.diags_array(factor * each.weight) @ matrix)
    stacked = sparse.csr_array(sparse.hstack(parts, format="csr"))
    source = row_source(stacked)
    ends = np.cumsum([each.matrix.shape[1] for each in values])[:-1]
    use = (common > 0).astype(float)
    frozen = None
    if values[0].frozen is not None:
        frozen = np.concatenate([each.weight * np.asarray(each.frozen) for each in values])
    n_frozen = 0 if frozen is None else frozen.shape[1]
    norm = np.ones(0) if frozen is None else np.maximum(frozen.sum(0), 1e-12)
    if frozen is not None and n_frozen == n_topics:
        W = frozen / norm
        H, _ = transform_nmf(source, likelihoods.Poisson(), W)
    else:
        fits = [
            fit_nmf(
                source,
                likelihoods.Poisson(),
                n_topics - n_frozen,
                target=use,
                background=np.zeros_like(use),
                frozen=None if frozen is None else frozen / norm,
                expressed=np.asarray(stacked.sum(0)).ravel() > 0,
                random_state=int(seed),
                run=Run(max_iter=max_iter, tol=1e-3, check_every=max_iter),
            )
            for seed in np.random.default_rng(random_state).integers(2**31, size=n_starts)
        ]
        best = min(fits, key=lambda f: float(f.cell_loss @ use))
        W, H = best.W, best.H
    H = np.divide(H, common[:, None], out=np.zeros(H.shape), where=common[:, None] > 0)
    H[common == 0] = H[common > 0].mean(0)
    scale = np.maximum(H.mean(0), 1e-12)
    scale[:n_frozen] = norm  # restore the units of the frozen loadings
    pieces = np.split(W * scale, ends)
    loadings = {each.name: piece / each.weight for each, piece in zip(values, pieces, strict=True)}
    H = H / scale
    return H, loadings


def expected(values: Values) -> sparse.csr_array:
    """Return the expectation of the hidden entries from size and feature mean."""
    hidden = sparse.coo_array(values.hidden)
    mean = feature_means(values)
    filled = values.size[hidden.row] * mean[hidden.col]
    return sparse.csr_array((filled, (hidden.row, hidden.col)), shape=values.matrix.shape)


def feature_means(values: Values) -> np.ndarray:
    """Compute the mean of each feature's observed values at size factor 1."""
    exposure = np.full(values.matrix.shape[1], values.size.sum())
    if values.hidden is not None:
        pattern = _pattern(values.hidden)
        exposure = exposure - pattern.T @ values.size
    return np.asarray(values.matrix.sum(0)).ravel() / np.maximum(exposure, 1e-12)


def _pattern(matrix: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(matrix.data)), matrix.indices, matrix.indptr), shape=matrix.shape)


def begin(
    scaled: np.ndarray,
    slice: np.ndarray,
    values: Sequence[Values],
    shape: Shape,
    start: tuple[np.ndarray, dict[str, np.ndarray]],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[SpatialModel, Params]:
    """Set up the model and its initial parameters."""
    H, W = start
    H = H / H.mean(0)
    log_usage = np.log((1 - SHRINK) * H + SHRINK * H.mean(1, keepdims=True) + 1e-2)
    n_frozen = 0 if values[0].frozen is None else values[0].frozen.shape[1]
    if n_frozen:  # the usage of topics with given loadings keeps its units
        log_usage[:, :n_frozen] += np.log(np.maximum(start[0].mean(0)[:n_frozen], 1e-6))
    if shape.n_nonspatial:  # the smoothest topics become the spatial ones
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
        n_points = default_points(scaled[here]) if shape.n_inducing is None else shape.n_inducing
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
        level[: max(0, n_frozen - n_topics)] = 0  # given loadings keep their units
        params["free_mean"] = tensor((free - level).T)
        params["free_log_sd"] = tensor(np.full(free.T.shape, -1.0))
        log_usage[:, n_topics:] -= level
        W = {name: w * np.concatenate([np.ones(n_topics), np.exp(level)]) for name, w in W.items()}
    modalities = []
    for each in values:
        modality = modality_tensors(each, tensor)
        modalities.append(modality)
        over = np.divide(
            W[each.name],
            feature_means(each)[:, None],
            out=np.zeros_like(W[each.name]),
            where=feature_means(each)[:, None] > 0,
        )
        params[f"F_{each.name}"] = tensor(over[:, :n_frozen])
        params[f"V_{each.name}"] = tensor(np.maximum(over[:, n_frozen:], LOADING_FLOOR))
        params[f"aux_{each.name}"] = tensor(np.log(first_parameter(each, np.exp(log_usage), W[each.name])))
    return SpatialModel(
        prior, tensor(scaled), torch.as_tensor(slice, device=device), torch.as_tensor(point, device=device), modalities
    ), params


def modality_tensors(values: Values, tensor: Any) -> Modality:
    """Convert one modality's arrays with ``tensor``."""
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


def first_parameter(values: Values, usage: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Return the initial parameter of the observation model, by moments about the initial rates."""
    n_features = values.matrix.shape[1]
    if not values.observation.parameter:
        return np.ones(n_features)
    seen, square, excess, rates = (np.zeros(n_features) for _ in range(4))
    for first in range(0, len(usage), START_ROWS):
        rows = slice(first, first + START_ROWS)
        rate = values.size[rows, None] * (usage[rows] @ W.T)
        known = np.ones(rate.shape) if values.hidden is None else 1 - _pattern(values.hidden[rows]).toarray()
        residual = known * (values.matrix[rows].toarray() - rate) ** 2
        seen += known.sum(0)
        square += residual.sum(0)
        excess += (residual - known * rate).sum(0)
        rates += (known * rate**2).sum(0)
    if values.observation.parameter == "sd":
        return np.clip(np.sqrt(square / np.maximum(seen, 1)), *PARAMETER_BOUNDS)
    return np.clip(rates / np.maximum(excess, 1e-12), *FIRST_DISPERSIONS)
