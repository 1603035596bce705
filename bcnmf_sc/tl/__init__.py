"""Tools: factorise, project."""

from ._factorize import bcnmf, nmf, project
from ._problem import RunOptions

__all__ = ["RunOptions", "bcnmf", "nmf", "project"]
