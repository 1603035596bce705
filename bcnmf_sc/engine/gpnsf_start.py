"""Around the spatial model: scaled places, inducing points, the start by joint NMF, neighbours of spots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse, special
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from . import likelihoods
from .gpnsf import Modality, Model, Prior
from .solver import Run
from .solver import fit as fit_nmf
from .solver import transform as transform_nmf
from .sources import row_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .gpnsf import Observation, Params

POINTS_FROM = 20_000
"""Spots of a slice that inducing points are chosen from, at most."""
ALL_PLACES, FEWER_POINTS = 600, 300
"""Places of a slice up to which each is an inducing point where nothing else is asked for, and their number above."""


PARAMETER_BOUNDS = (1e-2, 1e4)
FIRST_DISPERSIONS = (0.05, 100.0)
START_ROWS = 4096
LOADING_FLOOR = 1e-4
"""Smallest loading of a feature that is present at all, over its mean: at zero it could never rise again."""
SHRINK = 0.2
"""By how much the start's usage is drawn towards equal usage of all topics."""


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
class Values:
    """One modality as it comes."""

    name: str
    matrix: sparse.csr_array
    """Spots x features, non-negative."""
    observation: Observation
    size: np.ndarray
    """Size factor per spot; 0 for a spot that tells nothing."""
    weight: float = 1.0
    hidden: sparse.csr_array | None = None
    """Spots x features: the entries that are to be left out (whatever is stored in it)."""
    frozen: np.ndarray | None = None
    """Loadings of the first topics, features x any number (the same in all modalities), held fixed."""
    parameter: np.ndarray | None = None
    """The observation model's parameter per feature, held fixed; estimated by default."""


def reordered(values: Values, order: np.ndarray) -> Values:
    """Values in another order of the spots, hidden ones set to zero."""
    hidden = None if values.hidden is None else values.hidden[order]
    matrix = sparse.csr_array(values.matrix)[order]
    if hidden is not None:  # what is hidden is not looked at
        matrix = sparse.csr_array(matrix - matrix.multiply(_pattern(sparse.csr_array(hidden))))
        matrix.eliminate_zeros()
    return Values(
        values.name,
        matrix,
        values.observation,
        values.size[order],
        values.weight,
        hidden,
        values.frozen,
        values.parameter,
    )


# Places -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """Coordinates on a scale of their own: each slice centred, all divided by the radius of the widest."""

    scaled: np.ndarray
    slice: np.ndarray
    centre: np.ndarray
    """Slices x dimensions."""
    radius: float
    order: np.ndarray
    """The order in which the spots are worked on: it depends on where they are, not on how they come."""

    @classmethod
    def of(cls, coordinates: np.ndarray, slice: np.ndarray) -> Places:
        """Scale and order places."""
        n_slices = int(slice.max()) + 1
        centre = np.stack([coordinates[slice == s].mean(0) for s in range(n_slices)])
        moved = coordinates - centre[slice]
        distance = np.linalg.norm(moved, axis=1)
        radius = float(distance.max()) or 1.0
        order = np.lexsort([*moved.T[::-1], np.round(distance / radius, 9), slice])
        return cls(moved / radius, slice, centre, radius, order)


def inducing_points(places: np.ndarray, n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose inducing points, and tell which of them each place is (-1 for none).

    Where there are no more places than points asked for, every place is one. Else they are k-means centres, started
    from places that each lie as far as possible from those before.
    """
    unique, which = np.unique(places, axis=0, return_inverse=True)
    if n_points >= len(unique):
        return unique, which.reshape(-1)
    chosen = places[np.linspace(0, len(places) - 1, min(len(places), POINTS_FROM)).astype(int)]
    first = [int(np.argmin((chosen**2).sum(1)))]
    nearest = np.full(len(chosen), np.inf)
    for _ in range(n_points - 1):
        nearest = np.minimum(nearest, ((chosen - chosen[first[-1]]) ** 2).sum(1))
        first.append(int(nearest.argmax()))
    centres = KMeans(n_points, init=chosen[first], n_init=1, max_iter=50, random_state=0).fit(chosen).cluster_centers_
    return centres, np.full(len(places), -1)


def default_points(places: np.ndarray) -> int:
    """Inducing points of a slice, where none are asked for; several spots at one place count once."""
    n_places = len(np.unique(places, axis=0))
    return n_places if n_places <= ALL_PLACES else FEWER_POINTS


# Start --------------------------------------------------------------------------------------------------------------


def joint_nmf(
    values: Sequence[Values], n_topics: int, *, random_state: int = 0, n_starts: int = 3, max_iter: int = 200
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Best of a few Poisson NMFs of all modalities side by side: usage per unit of size, and loadings per modality.

    Modality r is brought to a common size factor before. Entries that are hidden are filled in with what size and
    feature mean let expect.
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
    scale[:n_frozen] = norm  # the frozen loadings are back in their own units
    pieces = np.split(W * scale, ends)
    loadings = {each.name: piece / each.weight for each, piece in zip(values, pieces, strict=True)}
    H = H / scale
    return H, loadings


def expected(values: Values) -> sparse.csr_array:
    """Return what size and feature mean let expect of the hidden entries."""
    hidden = sparse.coo_array(values.hidden)
    mean = feature_means(values)
    filled = values.size[hidden.row] * mean[hidden.col]
    return sparse.csr_array((filled, (hidden.row, hidden.col)), shape=values.matrix.shape)


def feature_means(values: Values) -> np.ndarray:
    """Mean of each feature's observed values at size factor 1."""
    exposure = np.full(values.matrix.shape[1], values.size.sum())
    if values.hidden is not None:
        pattern = _pattern(values.hidden)
        exposure = exposure - pattern.T @ values.size
    return np.asarray(values.matrix.sum(0)).ravel() / np.maximum(exposure, 1e-12)


def _pattern(matrix: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(matrix.data)), matrix.indices, matrix.indptr), shape=matrix.shape)


def neighbours(places: np.ndarray, slice: np.ndarray, n_neighbours: int) -> sparse.csr_array:
    """Nearest spots of each spot in its slice, itself left out: rows of equal weights, summing to 1."""
    rows, cols = [], []
    for s in range(int(slice.max()) + 1):
        here = np.flatnonzero(slice == s)
        k = min(n_neighbours + 1, len(here))
        near = NearestNeighbors(n_neighbors=k).fit(places[here]).kneighbors(places[here], return_distance=False)
        rows.append(np.repeat(here, k))
        cols.append(here[near].ravel())
    row, col = np.concatenate(rows), np.concatenate(cols)
    row, col = row[row != col], col[row != col]
    weights = 1 / np.bincount(row, minlength=len(slice))[row]
    return sparse.csr_array((weights, (row, col)), shape=(len(slice), len(slice)))


def morans_i(values: np.ndarray, weights: sparse.csr_array) -> np.ndarray:
    """Moran's I of each column under given weights between spots."""
    centred = values - values.mean(0)
    below = (centred**2).sum(0)
    above = (centred * (weights @ centred)).sum(0)
    return np.asarray(np.divide(above, below, out=np.zeros(len(below)), where=below > 0) * len(values) / weights.sum())


def similarity(usage: np.ndarray, usage_sd: np.ndarray, n_neighbours: int) -> sparse.csr_array:
    """Spots alike in posterior usage, k for each spot and itself: spots x spots, rows sum to 1.

    Spots are compared on the square root of usage, which makes the error of all topics alike; what is uncertain about a
    neighbour's usage counts as distance. The weights fall with the distance over that of half the neighbours.
    """
    root = np.sqrt(usage)
    doubt = (usage_sd**2 / np.maximum(4 * usage, 1e-12)).sum(1)
    k = min(n_neighbours + 1, len(root))
    distance, near = NearestNeighbors(n_neighbors=k).fit(root).kneighbors(root)
    squared = distance**2 + np.where(near == np.arange(len(root))[:, None], 0.0, doubt[near])
    width = np.maximum(np.median(squared, axis=1, keepdims=True), 1e-12)
    weights = np.exp(-squared / (2 * width))
    weights /= weights.sum(1, keepdims=True)
    indptr = np.arange(0, near.size + 1, k)
    return sparse.csr_array((weights.ravel(), near.ravel(), indptr), shape=(len(root), len(root)))


# The model at its start -----------------------------------------------------------------------------------------------


def begin(
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
        level[: max(0, n_frozen - n_topics)] = 0  # loadings that are given keep their units
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
    return Model(
        prior, tensor(scaled), torch.as_tensor(slice, device=device), torch.as_tensor(point, device=device), modalities
    ), params


def modality_tensors(values: Values, tensor: Any) -> Modality:
    """Move one modality to where ``tensor`` puts arrays."""
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
    """Return the observation model's parameter at the start, by moments about the rates there."""
    n_features = values.matrix.shape[1]
    if values.parameter is not None or not values.observation.parameter:
        return np.ones(n_features) if values.parameter is None else np.asarray(values.parameter, np.float64)
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
