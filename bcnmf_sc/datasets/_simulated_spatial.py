"""Simulated spatial multi-omics with known topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist

from .._mudata import no_pull
from .._utils.checks import number, one_of, random_seed, whole_number

if TYPE_CHECKING:
    from mudata import MuData


def simulated_spatial(
    n_side: int = 14,
    n_genes: int = 80,
    n_peaks: int = 120,
    *,
    n_patterns: int = 4,
    n_nonspatial: int = 0,
    n_slices: int = 1,
    pattern: Literal["smooth", "sharp"] = "smooth",
    lengthscale: float = 0.3,
    counts: float = 150.0,
    accessibility: float = 0.06,
    theta: float = 5.0,
    depth_sd: float = 0.4,
    random_state: int = 0,
) -> MuData:
    r"""Simulate RNA and ATAC of the same spots, with topics that vary over space in known patterns.

    Spots lie on a square grid from -1 to 1. With the usage :math:`e_{ik}` of topic :math:`k`, of mean 1, and a
    log-normal depth :math:`\nu_i` of each spot and modality,

    .. math::
        x^\text{rna}_{ij} \sim \mathrm{NB}\big(\nu_i \textstyle\sum_k e_{ik} w_{jk},\; \theta\big), \qquad
        P(x^\text{atac}_{ij} = 1) = 1 - \exp\big(-\nu_i \textstyle\sum_k e_{ik} w_{jk}\big) .

    Parameters
    ----------
    n_side
        Number of spots along a side of the grid.
    n_genes, n_peaks
        Number of features.
    n_patterns
        Number of topics that vary over space.
    n_nonspatial
        Number of topics that vary independently of position; they come after the spatial ones.
    n_slices
        Number of slices, with common loadings and separate patterns.
    pattern
        ``"smooth"``: the logarithm of usage is a Gaussian process of variance 1 with the Matérn-3/2 kernel.
        ``"sharp"``: squares, discs and stripes with sharp edges, 20 times higher inside.
    lengthscale
        Lengthscale of the smooth patterns.
    counts
        Mean RNA count per spot, over all genes.
    accessibility
        Mean rate of a peak, about its share of ones.
    theta
        Dispersion of the RNA counts (variance μ + μ²/θ).
    depth_sd
        Standard deviation of the logarithm of the depth; 0 for equal depth.
    random_state
        Seed; the result is determined by it and the other arguments.

    Returns
    -------
    MuData with modalities ``rna`` and ``atac`` (CSR float32) and:

    ``.obsm["spatial"]`` : float array, n_obs x 2
        Coordinates.
    ``.obsm["true_usage"]`` : float array, n_obs x topics
        Usage; columns have mean 1.
    ``.obs["slice"]`` : categorical
        The slice.
    ``[modality].varm["true_loadings"]`` : float array, n_vars x topics
        Loadings: depth times usage times loadings is the rate.
    ``[modality].obs["true_depth"]`` : float
        Depth.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> mdata = bc.datasets.simulated_spatial()
    >>> mdata.shape, list(mdata.mod)
    ((196, 200), ['rna', 'atac'])
    """
    for name, value, least in (
        ("n_side", n_side, 3),
        ("n_genes", n_genes, 2),
        ("n_peaks", n_peaks, 2),
        ("n_patterns", n_patterns, 1),
        ("n_nonspatial", n_nonspatial, 0),
        ("n_slices", n_slices, 1),
    ):
        whole_number(name, value, least)
    sizes = {"lengthscale": lengthscale, "counts": counts, "accessibility": accessibility, "theta": theta}
    for name, size in sizes.items():
        number(name, size, 1e-6)
    number("depth_sd", depth_sd)
    one_of("pattern", pattern, ("smooth", "sharp"))
    random_seed(random_state)
    from mudata import MuData

    rng = np.random.default_rng(random_state)
    side = np.linspace(-1, 1, n_side)
    grid = np.stack([x.ravel() for x in np.meshgrid(side, side)], axis=1)
    logs = [_patterns(rng, grid, n_patterns, pattern=pattern, lengthscale=lengthscale) for _ in range(n_slices)]
    n_obs = n_slices * len(grid)
    usage = np.exp(np.hstack([np.concatenate(logs), rng.normal(size=(n_obs, n_nonspatial))]))
    usage /= usage.mean(axis=0)
    slices = np.repeat(np.arange(n_slices), len(grid))
    obs_names = [f"Spot {i + 1}" for i in range(n_obs)]

    modalities: dict[str, AnnData] = {}
    for name, n_vars, level in (("rna", n_genes, counts), ("atac", n_peaks, accessibility * n_peaks)):
        loadings = _loadings(rng, n_vars, usage.shape[1])
        loadings *= level / (usage @ loadings.T).sum(axis=1).mean()
        depth = rng.lognormal(-(depth_sd**2) / 2, depth_sd, n_obs)
        rate = depth[:, None] * (usage @ loadings.T)
        x = (
            rng.poisson(rate * rng.gamma(theta, 1 / theta, rate.shape))
            if name == "rna"
            else rng.random(rate.shape) < -np.expm1(-rate)
        )
        label = "Gene" if name == "rna" else "Peak"
        modalities[name] = AnnData(
            sparse.csr_matrix(x.astype(np.float32)),
            obs=pd.DataFrame({"true_depth": depth}, index=obs_names),
            var=pd.DataFrame(index=[f"{label} {j + 1}" for j in range(n_vars)]),
            varm={"true_loadings": loadings},
        )
    with no_pull():
        mdata = MuData(modalities)
    mdata.obs["slice"] = pd.Categorical([f"Slice {s + 1}" for s in slices])
    mdata.obsm["spatial"] = np.tile(grid, (n_slices, 1))
    mdata.obsm["true_usage"] = usage
    return mdata


def _patterns(rng: np.random.Generator, grid: np.ndarray, n: int, *, pattern: str, lengthscale: float) -> np.ndarray:
    """Draw the logarithm of usage, spots x patterns."""
    if pattern == "smooth":
        d = np.sqrt(3) * cdist(grid, grid) / lengthscale
        root = np.linalg.cholesky((1 + d) * np.exp(-d) + 1e-6 * np.eye(len(grid)))
        return root @ rng.normal(size=(len(grid), n))
    centres = rng.uniform(-0.8, 0.8, (n, 2))
    shapes: list[Any] = [
        lambda away: np.abs(away).max(axis=1) < 0.35,  # noqa: PLR2004
        lambda away: np.linalg.norm(away, axis=1) < 0.4,  # noqa: PLR2004
        lambda away: np.abs(away[:, 0]) < 0.15,  # noqa: PLR2004
    ]
    inside = np.column_stack([shapes[k % 3](grid - centre) for k, centre in enumerate(centres)])
    return np.where(inside, np.log(20.0), 0.0)


def _loadings(rng: np.random.Generator, n_vars: int, n_topics: int) -> np.ndarray:
    """Draw loadings: each feature mostly in one topic, and a little in all."""
    loadings = 0.15 * rng.gamma(0.3, 1.0, (n_vars, n_topics))
    loadings[np.arange(n_vars), rng.integers(0, n_topics, n_vars)] += rng.gamma(2.0, 1.0, n_vars)
    return loadings * rng.lognormal(0.0, 0.6, (n_vars, 1))
