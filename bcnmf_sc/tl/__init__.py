"""Tools: factorise, project, interpret."""

from ._casecontrol import DeltaOptions
from ._deltanmf import deltanmf
from ._factorize import bcnmf, nmf, project
from ._interpret import umap
from ._problem import RunOptions
from ._select import background_check, consensus, select_alpha, select_n_topics

__all__ = [
    "DeltaOptions",
    "RunOptions",
    "background_check",
    "bcnmf",
    "consensus",
    "deltanmf",
    "nmf",
    "project",
    "select_alpha",
    "select_n_topics",
    "umap",
]
