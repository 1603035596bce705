"""Tools: factorise, project, interpret."""

from ._factorize import bcnmf, nmf, project, update
from ._interpret import umap
from ._problem import RunOptions
from ._select import background_check, consensus, select_alpha, select_n_topics
from ._spatial import SpatialRunOptions, enhance, gpnsf, gpnsf_predict

__all__ = [
    "RunOptions",
    "SpatialRunOptions",
    "background_check",
    "bcnmf",
    "consensus",
    "enhance",
    "gpnsf",
    "gpnsf_predict",
    "nmf",
    "project",
    "select_alpha",
    "select_n_topics",
    "umap",
    "update",
]
