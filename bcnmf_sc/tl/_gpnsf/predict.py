"""Usage and rates of a spatial fit at other places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from ..._spots import modality_of, stored_fit
from ..._utils.checks import listed, one_of
from ..._utils.errors import UserError

if TYPE_CHECKING:
    from mudata import MuData


def gpnsf_predict(
    mdata: AnnData | MuData,
    coordinates: np.ndarray,
    *,
    sample: str | None = None,
    modality: str | None = None,
    key: str = "gpnsf",
) -> AnnData:
    """Predict usage, or the rates of a modality's features, at any places of a slice, with its uncertainty.

    Far from all spots the prediction goes back to the topic's trend and its standard deviation to the prior's.
    Non-spatial topics have their prior everywhere.

    Parameters
    ----------
    mdata
        MuData or AnnData with a stored spatial fit.
    coordinates
        Places x dimensions, in the units of the fit.
    sample
        The slice they are in; may be left out where there is one.
    modality
        Predict the rates of this modality's features at size factor 1; by default the usage of the topics.
    key
        Name of the fit.

    Returns
    -------
    AnnData of places x topics, or places x features used:

    ``.X`` : float32 array
        Posterior mean.
    ``.layers["sd"]`` : float32 array
        Posterior standard deviation, of the rate and not of a value that would be observed.
    ``.obsm["spatial"]`` : float array
        The places.

    Examples
    --------
    >>> import numpy as np
    >>> import bcnmf_sc as bc
    >>> mdata = bc.datasets.simulated_spatial()
    >>> bc.tl.gpnsf(mdata, n_topics=4, max_iter=60, tol=0.01)
    >>> between = bc.tl.gpnsf_predict(mdata, np.array([[0.1, 0.2], [0.3, -0.5]]))
    >>> between.shape, bool((between.layers["sd"] > 0).all())
    ((2, 4), True)
    """
    from ...engine.gpnsf.fit import predict

    record = stored_fit(mdata, key)
    names = [str(x) for x in record["params"]["slices"]]
    if (sample is None and len(names) > 1) or (sample is not None and str(sample) not in names):
        msg = f"`sample` must name one of the slices, got {sample!r}. Present: {listed(names)}."
        raise UserError(msg)
    places = np.asarray(coordinates, dtype=np.float64)
    n_dims = np.asarray(record["posterior"]["centre"]).shape[1]
    if places.ndim != 2 or places.shape[1] != n_dims or not np.isfinite(places).all():  # noqa: PLR2004
        msg = f"`coordinates` must be finite numbers, places x {n_dims}, got shape {places.shape}."
        raise UserError(msg)
    if modality is not None:
        one_of("modality", modality, tuple(map(str, record["params"]["modalities"])))
    mean, sd = predict(record["posterior"], places, 0 if sample is None else names.index(str(sample)))
    features = record["topics"].index
    if modality is not None:
        adata = modality_of(mdata, modality)
        W = np.asarray(adata.varm[key], np.float64)
        used = W.any(axis=1)
        features, W = adata.var_names[used], W[used]
        mean, sd = mean @ W.T, np.sqrt(sd**2 @ (W**2).T)
    obs = pd.DataFrame(index=[f"Place {i + 1}" for i in range(len(places))])
    var = pd.DataFrame(index=pd.Index(np.asarray(features, dtype=str)))
    layers = {"sd": sd.astype(np.float32)}
    return AnnData(mean.astype(np.float32), obs=obs, var=var, layers=layers, obsm={"spatial": places})
