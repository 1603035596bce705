"""The engine: arrays in, arrays out. It knows nothing of AnnData."""

from .likelihoods import LIKELIHOODS, Gaussian, Likelihood, Poisson
from .solver import Factors, Run, fit, transform
from .sources import RowSource, row_source

__all__ = [
    "LIKELIHOODS",
    "Factors",
    "Gaussian",
    "Likelihood",
    "Poisson",
    "RowSource",
    "Run",
    "fit",
    "row_source",
    "transform",
]
