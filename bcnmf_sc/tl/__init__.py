"""Tools: factorise, project, interpret."""

from ._factorize import bcnmf, nmf, project
from ._interpret import umap
from ._problem import RunOptions

__all__ = ["RunOptions", "bcnmf", "nmf", "project", "umap"]
