"""Likelihoods with parameters, for ``likelihood=`` where a name alone is not enough.

``bc.tl.bcnmf(adata, ..., likelihood=bc.likelihoods.NegativeBinomial(dispersion=2.0))``
"""

from .engine.likelihoods import *  # noqa: F403 (a new likelihood is one file: that one)
from .engine.likelihoods import __all__ as __all__
