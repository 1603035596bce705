"""What the data are thought to be: objects for ``likelihood=``, where a name does not say enough.

``bc.tl.bcnmf(adata, ..., likelihood=bc.likelihoods.NegativeBinomial(dispersion=2.0))``
"""

from .engine.likelihoods import *  # noqa: F403 (a new likelihood is one file: that one)
from .engine.likelihoods import __all__ as __all__
