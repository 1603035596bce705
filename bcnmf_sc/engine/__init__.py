"""The engine: arrays in, arrays out, independent of AnnData."""

from .bcnmf.solver import Factors, Run, fit, transform
from .joint import Joint
from .likelihoods import (
    LIKELIHOODS,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    as_likelihood,
)
from .rows.open import row_source
from .rows.sources import RowSource

__all__ = [
    "LIKELIHOODS",
    "Factors",
    "Gaussian",
    "Joint",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "RowSource",
    "Run",
    "ZeroInflatedNegativeBinomial",
    "as_likelihood",
    "fit",
    "row_source",
    "transform",
]
