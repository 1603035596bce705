"""Draw the results that `bcnmf_sc.tl` stored in an AnnData.

Each function draws and computes nothing new, shows nothing and saves nothing. It returns the `Axes`, or the `Figure`
where it fills several axes. Tall and wide tables make tall and wide figures, so that labels keep apart.
"""

from ._choices import alpha_path, stability
from ._enrichment import enrichment
from ._loadings import loadings
from ._spatial import lengthscales, spatial_topics
from ._statistics import associations, bubbles, compare, composition, gene_frequency, images
from ._topics import loss, umap, usage

__all__ = [
    "alpha_path",
    "associations",
    "bubbles",
    "compare",
    "composition",
    "enrichment",
    "gene_frequency",
    "images",
    "lengthscales",
    "loadings",
    "loss",
    "spatial_topics",
    "stability",
    "umap",
    "usage",
]
