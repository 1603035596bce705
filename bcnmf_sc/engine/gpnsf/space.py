"""Positions: scaled coordinates, inducing points, neighbours, spatial autocorrelation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

POINTS_FROM = 20_000
"""Maximum number of spots per slice from which inducing points are chosen."""
ALL_PLACES, FEWER_POINTS = 600, 300
"""By default, every position is an inducing point up to the first number, and above it there are the second."""


@dataclass(frozen=True)
class Places:
    """Standardised coordinates: each slice centred, all divided by the largest radius."""

    scaled: np.ndarray
    slice: np.ndarray
    centre: np.ndarray
    """Slices x dimensions."""
    radius: float
    order: np.ndarray
    """Order in which the spots are processed, determined by their positions and not by their input order."""

    @classmethod
    def of(cls, coordinates: np.ndarray, slice: np.ndarray) -> Places:
        """Scale and order positions."""
        n_slices = int(slice.max()) + 1
        centre = np.stack([coordinates[slice == s].mean(0) for s in range(n_slices)])
        moved = coordinates - centre[slice]
        distance = np.linalg.norm(moved, axis=1)
        radius = float(distance.max()) or 1.0
        order = np.lexsort([*moved.T[::-1], np.round(distance / radius, 9), slice])
        return cls(moved / radius, slice, centre, radius, order)


def inducing_points(places: np.ndarray, n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose inducing points, and return the index of the inducing point at each position (-1 for none).

    If there are no more positions than requested points, every position is one. Otherwise they are k-means centres,
    initialised by farthest-first traversal.
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
    """Default number of inducing points of a slice; several spots at one position count once."""
    n_places = len(np.unique(places, axis=0))
    return n_places if n_places <= ALL_PLACES else FEWER_POINTS


def neighbours(places: np.ndarray, slice: np.ndarray, n_neighbours: int) -> sparse.csr_array:
    """Nearest neighbours of each spot in its slice, excluding itself: rows of equal weights that sum to 1."""
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
    """Weights of the k spots most similar in posterior usage and of the spot itself: spots x spots, rows sum to 1.

    Spots are compared on the square root of usage, which equalises the error over topics; the uncertainty of a
    neighbour's usage adds to the distance. Weights decrease with the distance relative to that of half the neighbours.
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
