"""The engine: arrays in, arrays out. It knows nothing of AnnData."""

from .likelihoods import (
    LIKELIHOODS,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from .solver import Factors, Run, fit, transform
from .sources import RowSource, row_source

__all__ = [
    "LIKELIHOODS",
    "Factors",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "RowSource",
    "Run",
    "ZeroInflatedNegativeBinomial",
    "fit",
    "row_source",
    "transform",
]
