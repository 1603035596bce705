"""Tools: factorise, project, test, enrich."""

from ._associate import associate, associate_genes
from ._cpca import cpca
from ._enrich import enrich
from ._factorize import bcnmf, nmf, project
from ._problem import RunOptions

__all__ = ["RunOptions", "associate", "associate_genes", "bcnmf", "cpca", "enrich", "nmf", "project"]
