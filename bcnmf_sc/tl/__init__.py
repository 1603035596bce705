"""Tools: factorise, project, choose, interpret."""

from ._associate import associate, associate_genes
from ._background import background_check
from ._casecontrol import DeltaOptions
from ._consensus import consensus
from ._cpca import cpca
from ._deltanmf import deltanmf
from ._enrich import enrich
from ._factorize import bcnmf, nmf
from ._interpret import umap
from ._problem import RunOptions
from ._project import project, update
from ._select import select_alpha, select_n_topics
from ._spatial import SpatialRunOptions, enhance, gpnsf, gpnsf_predict

__all__ = [
    "DeltaOptions",
    "RunOptions",
    "SpatialRunOptions",
    "associate",
    "associate_genes",
    "background_check",
    "bcnmf",
    "consensus",
    "cpca",
    "deltanmf",
    "enhance",
    "enrich",
    "gpnsf",
    "gpnsf_predict",
    "nmf",
    "project",
    "select_alpha",
    "select_n_topics",
    "umap",
    "update",
]
