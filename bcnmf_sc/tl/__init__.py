"""Tools: factorise, project."""

from ._factorize import RunOptions, bcnmf, nmf, project

__all__ = ["RunOptions", "bcnmf", "nmf", "project"]
