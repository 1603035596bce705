"""Spatial topics of MuData and AnnData: read and check, run the spatial model, write back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.exceptions import ConvergenceWarning

from ... import _spots
from ..._anndata import Reading
from ..._mudata import forget_joint
from ..._spots import modality_of
from ..._stored import added, recorded
from ..._utils.checks import number, one_of, stack_level, whole_number
from ..._utils.files import uninterrupted
from .._run import SpatialRunOptions, check_run

if TYPE_CHECKING:
    from mudata import MuData

    from ..._spots import Spatial, SpotModality, Spots
    from ...engine.gpnsf.fit import SpatialFactors

MORAN_NEIGHBOURS = 8


def gpnsf(
    mdata: AnnData | MuData,
    *,
    n_topics: int = 10,
    n_nonspatial: int = 0,
    likelihood: str | Mapping[str, str] = "auto",
    size_factors: str | Mapping[str, str | None] | None = "library",
    weights: Mapping[str, float] | None = None,
    layer: str | Mapping[str, str | None] | None = None,
    mask_var: str | None = "auto",
    spatial_key: str = "spatial",
    sample_key: str | None = None,
    kernel: Literal["matern32", "exponential", "rbf"] = "matern32",
    n_inducing: int | None = None,
    kl_weight: float = 1.0,
    random_state: int = 0,
    key_added: str = "gpnsf",
    copy: bool = False,
    **run: Unpack[SpatialRunOptions],
) -> AnnData | MuData | None:
    r"""Find topics whose usage varies smoothly over space, from modalities of the same spots :cite:p:`gao2026gpnsf`.

    Value :math:`x_{ij}` of spot :math:`i` and feature :math:`j` in modality :math:`r` has the rate

    .. math:: \nu_i^{(r)} \textstyle\sum_k e^{h_{ik}} w_{jk}^{(r)}, \qquad
        h_k(s) \sim \mathrm{GP}\big(\beta_{0k} + s^\top \beta_{1k},\; \gamma_k\, \kappa(d / l_k) + \gamma_0 1_{i=j}\big)

    All modalities share the usage :math:`e^{h}`; each has its own loadings :math:`w \ge 0`, size factors :math:`\nu`
    and observation model. The posterior of :math:`h` is found by variational inference on inducing points; so every
    usage comes with a standard deviation, and usage at places without a spot can be had (`gpnsf_predict`). Patterns
    with sharp edges are a known weakness: the prior is smooth.

    Parameters
    ----------
    mdata
        Spots x features: a MuData whose modalities have the same spots, or an AnnData. Values are only read.
    n_topics
        Number of spatial topics.
    n_nonspatial
        Number of topics, beside the spatial ones, whose usage varies from spot to spot with a standard normal prior.
    likelihood
        Per modality: ``"nb"`` (negative binomial, a dispersion for each feature is estimated), ``"poisson"``,
        ``"bernoulli"`` (0 or 1 with P(1) = 1 - exp(-rate); larger counts are made 1, with a warning) or
        ``"gaussian"`` (non-negative measurements, a standard deviation for each feature). One name for all, or a
        mapping of modalities, which are then the ones used. ``"auto"``: Bernoulli where all values are 0 or 1 or the
        modality is called ``atac`` or ``peaks``, negative binomial for other whole numbers, Gaussian else.
    size_factors
        ``"library"``: a spot's total over the features used, divided by the mean; a spot that is empty in a modality
        then tells nothing there, and takes its usage from its neighbours. `None`: all 1; an empty spot is then a
        finding. Else a column of ``obs``. Totals are depth only where depth varies for technical reasons: where all
        topics rise and fall together they carry the signal, and `None` is right. One for all, or a mapping of
        modalities.
    weights
        Weight of each modality's log-likelihood, above 0; 1 by default.
    layer
        Layer to read instead of ``X``; one for all, or a mapping of modalities.
    mask_var
        Features to use: a bool column of ``var``. ``"auto"`` uses ``highly_variable`` where it is present, `None` uses
        all.
    spatial_key
        Coordinates in ``obsm``, in 2 or 3 dimensions. Spots at one place are several looks at one place.
    sample_key
        Column of ``obs`` that tells slices apart: they share loadings and kernels, but no covariance reaches across
        them. Their coordinates need no common origin, but a common unit.
    kernel
        Correlation over distance: ``"matern32"`` (once differentiable), ``"exponential"``
        (``exp(-d / 2l)``, rough) or ``"rbf"`` (``exp(-d^2 / 2l^2)``, very smooth).
    n_inducing
        Inducing points per slice, centres of k-means; every place where it has no more. By default all places up to
        600, 300 above. The fewer, the smoother the finest pattern that can be found.
    kl_weight
        Weight of the prior; 1 is the evidence lower bound.
    random_state
        Seed of the start, of the batches and of the draws.
    key_added
        Name under which the results are stored.
    copy
        Return a changed copy instead of changing ``mdata``.
    **run
        How to run: see `SpatialRunOptions`.

    Returns
    -------
    `None`, or a changed copy with ``copy=True``. Fields set, in an AnnData all in that one object:

    ``.obsm["X_" + key_added]`` : float32 array, n_obs x topics
        Posterior mean of the usage, divided by its mean over the spots; spatial topics first.
    ``.obsm["X_" + key_added + "_sd"]`` : float32 array, n_obs x topics
        Its posterior standard deviation.
    ``[modality].varm[key_added]`` : float32 array, n_vars x topics
        Loadings: size factor times usage times loadings is the rate. Features not used are zero.
    ``[modality].obs[key_added + "_size_factor"]`` : float32
        Size factor.
    ``[modality].var[key_added + "_dispersion"]``, ``[modality].var[key_added + "_sd"]`` : float32
        Parameter of the negative binomial or Gaussian; NaN for features not used.
    ``[modality].uns[key_added]`` : dict
        ``params`` and ``topics`` once more, so that `get.loadings`, `get.top_genes` and `pl.loadings` take the
        modality.
    ``.uns[key_added]`` : dict
        ``params``; ``topics`` (a row per topic: kind; lengthscale in the units of the coordinates and variance of the
        kernel; Moran's I of the usage; spatial importance, the share of the variation of all rates over the spots, each
        rate over the root of its mean, that a spatial topic carries; mean coefficient of variation of the posterior;
        share of each modality's expected values); ``elbo`` (per pass: the bound, the learning rate); ``n_iter``;
        ``converged``; ``posterior`` (what `gpnsf_predict` needs).

    Raises
    ------
    ValueError
        An argument, a slot or a value of the data is not as said above. Nothing has been changed then.

    Examples
    --------
    >>> import bcnmf_sc as bc
    >>> mdata = bc.datasets.simulated_spatial()
    >>> bc.tl.gpnsf(mdata, n_topics=4, max_iter=60, tol=0.01)
    >>> mdata.obsm["X_gpnsf"].shape, mdata["atac"].varm["gpnsf"].shape
    ((196, 4), (120, 4))
    """
    from ...engine.gpnsf import fit as gpnsf_fit
    from ...engine.gpnsf.model import KERNELS
    from ...engine.gpnsf.observations import OBSERVATIONS
    from ...engine.gpnsf.start import Shape, Values

    check_run(run, SpatialRunOptions)
    one_of("kernel", kernel, KERNELS)
    if n_inducing is not None:
        whole_number("n_inducing", n_inducing, 1)
    number("kl_weight", kl_weight)
    for name, kind in likelihood.items() if isinstance(likelihood, Mapping) else [("", likelihood)]:
        one_of(f"likelihood[{name!r}]" if name else "likelihood", kind, ("auto", *OBSERVATIONS))
    asked = Reading(
        key_added,
        copy,
        sample_key=sample_key,
        likelihood=likelihood,
        weights=weights,
        layer=layer,
        mask_var=mask_var,
        sizes={"n_topics": n_topics, "n_nonspatial": n_nonspatial},
        random_state=random_state,
    )
    spots = _spots.read(mdata, asked, size_factors, spatial_key)
    modalities = spots.modalities

    shape = Shape(n_topics, n_nonspatial, kernel, n_inducing, kl_weight=float(kl_weight))
    values = [Values(each.name, each.matrix, each.observation, each.size, each.weight) for each in modalities]
    climb = gpnsf_fit.Climb(**({"progress": True} | {k: v for k, v in run.items() if v is not None}))  # type: ignore[arg-type]
    factors = gpnsf_fit.fit_spatial(
        spots.coordinates, spots.slices, values, shape, random_state=random_state, climb=climb
    )

    if not factors.converged and (climb.tol or factors.n_iter < climb.max_iter):  # with 0, no rest was asked for
        moved = "fell" if factors.gain < 0 else "rose"
        msg = (
            f"The fit did not converge in {factors.n_iter} passes (share by which the bound still {moved}: "
            f"{abs(factors.gain):.1e}). Raise `max_iter`, over which the step falls, or `tol` if that is close enough."
        )
        warnings.warn(msg, ConvergenceWarning, stacklevel=stack_level())
    mdata = mdata.copy() if copy else mdata
    params = {
        "modalities": [each.name for each in modalities],
        "likelihood": [each.observation.name for each in modalities],
        "size_factors": [each.size_name for each in modalities],
        "weights": [each.weight for each in modalities],
        "layers": ["X" if each.layer is None else each.layer for each in modalities],
        "n_empty_spots": [int((each.matrix.sum(1) == 0).sum()) for each in modalities],
        "mask_var": mask_var,
        "n_topics": n_topics,
        "n_nonspatial": n_nonspatial,
        "spatial_key": spatial_key,
        "sample_key": sample_key,
        "slices": spots.slice_names,
        "kernel": kernel,
        "n_inducing": "auto" if n_inducing is None else n_inducing,
        "kl_weight": float(kl_weight),
        "random_state": random_state,
        "max_iter": climb.max_iter,
        "learning_rate": climb.learning_rate,
        "batch_size": climb.batch_size,
    }
    _write(mdata, key_added, factors, modalities, _topics(factors, spots), recorded(params))
    return mdata if copy else None


# Writing ------------------------------------------------------------------------------------------------------------


def _topics(factors: SpatialFactors, spots: Spots) -> pd.DataFrame:
    """One row per topic."""
    from ...engine.gpnsf.space import morans_i, neighbours

    usage, n_spatial = factors.usage, len(factors.lengthscale)
    spatial = np.arange(usage.shape[1]) < n_spatial
    variation, shares = np.zeros(usage.shape[1]), {}
    for each in spots.modalities:
        W = factors.loadings[each.name]
        mean = np.maximum(usage.mean(0) @ W.T, 1e-12)
        variation += each.weight * usage.var(0) * (W**2 / mean[:, None]).sum(0)
        expected = (each.size @ usage) * W.sum(0)
        shares[f"share_{each.name}"] = expected / expected.sum()
    fill = np.full(usage.shape[1] - n_spatial, np.nan)
    return pd.DataFrame(
        {
            "kind": np.where(spatial, "spatial", "nonspatial"),
            "lengthscale": np.concatenate([factors.lengthscale, fill]).astype(np.float64),
            "variance": np.concatenate([factors.variance, fill]).astype(np.float64),
            "moran_i": morans_i(usage, neighbours(spots.coordinates, spots.slices, MORAN_NEIGHBOURS)),
            "spatial_importance": np.where(spatial, variation / variation.sum(), 0.0),
            "posterior_cv": (factors.usage_sd / np.maximum(usage, 1e-12)).mean(0),
            **shares,
        },
        index=pd.Index([f"Topic {k + 1}" for k in range(usage.shape[1])], name="topic"),
    )


@uninterrupted()
def _write(
    mdata: Spatial,
    key: str,
    factors: SpatialFactors,
    modalities: list[SpotModality],
    topics: pd.DataFrame,
    params: dict[str, Any],
) -> None:
    forget_joint(mdata, key, [each.name for each in modalities])
    mdata.obsm["X_" + key] = factors.usage.astype(np.float32)
    mdata.obsm[f"X_{key}_sd"] = factors.usage_sd.astype(np.float32)
    written = [f"obsm.X_{key}_sd"]
    for each in modalities:
        adata = modality_of(mdata, each.name)
        loadings = np.zeros((adata.n_vars, topics.shape[0]), np.float32)
        loadings[each.features] = factors.loadings[each.name]
        adata.varm[key] = loadings
        size = np.full(adata.n_obs, np.nan, np.float32)
        size[each.order] = each.size
        adata.obs[f"{key}_size_factor"] = size
        own = [f"obs.{key}_size_factor"]
        if each.observation.parameter:
            column = np.full(adata.n_vars, np.nan, np.float32)
            column[each.features] = factors.parameters[each.name]
            adata.var[f"{key}_{each.observation.parameter}"] = column
            own.append(f"var.{key}_{each.observation.parameter}")
        written += own if adata is mdata else []
        # for what reads loadings out of an AnnData
        adata.uns[key] = {"params": params | {"written": own}, "topics": topics.copy()}
    mdata.uns[key] = {
        "params": params | {"written": written},
        "topics": topics,
        "elbo": pd.DataFrame(factors.elbo, columns=["iteration", "elbo", "learning_rate"]),
        "n_iter": factors.n_iter,
        "converged": factors.converged,
        "posterior": factors.posterior,
    }
    added(f"obsm.X_{key}", f"varm.{key}", *written, *own, f"uns.{key}")
