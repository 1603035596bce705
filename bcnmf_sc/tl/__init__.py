"""Tools: factorise, project, interpret."""

from ._factorize import bcnmf, nmf, project, update
from ._interpret import umap
from ._problem import RunOptions
from ._select import background_check, consensus, select_alpha, select_n_topics

__all__ = [
    "RunOptions",
    "background_check",
    "bcnmf",
    "consensus",
    "nmf",
    "project",
    "select_alpha",
    "select_n_topics",
    "umap",
    "update",
]
