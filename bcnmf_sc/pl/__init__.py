"""Draw the results that `bcnmf_sc.tl` stored in an AnnData.

The functions compute nothing new. Each follows scanpy's conventions: the figure is shown, unless `show=False` asks for
its axes or `return_fig=True` for the figure; `save` writes it to a file; `ax` draws on given axes. Figures grow with
the table drawn, so that labels do not overlap. A condition has the same colour in all of them.
"""

from ._alpha_path import alpha_path
from ._associations import associations
from ._bubbles import bubbles
from ._compare import compare
from ._composition import composition
from ._donors import donors
from ._enrichment import enrichment
from ._gene_frequency import gene_frequency
from ._images import images
from ._lengthscales import lengthscales
from ._loadings import loadings
from ._loss import loss
from ._spatial_topics import spatial_topics
from ._stability import stability
from ._target_share import target_share
from ._topics_forest import topics_forest
from ._umap import umap
from ._usage import usage

__all__ = [
    "alpha_path",
    "associations",
    "bubbles",
    "compare",
    "composition",
    "donors",
    "enrichment",
    "gene_frequency",
    "images",
    "lengthscales",
    "loadings",
    "loss",
    "spatial_topics",
    "stability",
    "target_share",
    "topics_forest",
    "umap",
    "usage",
]
