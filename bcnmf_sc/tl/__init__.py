"""Tools: factorise, project, choose, interpret."""

from typing import TYPE_CHECKING

from .._methods import METHODS
from ._associate import associate, associate_genes
from ._bcnmf.background import background_check
from ._bcnmf.consensus import consensus
from ._bcnmf.project import project, update
from ._bcnmf.select import select_alpha, select_n_topics
from ._cpca import cpca
from ._enrich import enrich
from ._gpnsf.enhance import enhance
from ._gpnsf.predict import gpnsf_predict
from ._power import power
from ._run import DeltaOptions, RunOptions, SpatialRunOptions
from ._umap import umap

if TYPE_CHECKING:  # for editors and type checkers: at run time a method is its row
    from ._bcnmf.fit import bcnmf, nmf
    from ._deltanmf.fit import deltanmf
    from ._gpnsf.fit import gpnsf

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
    "power",
    "project",
    "select_alpha",
    "select_n_topics",
    "umap",
    "update",
]

globals().update({method.name: method.function for method in METHODS})
__all__ = sorted({*__all__, *(method.name for method in METHODS)})
