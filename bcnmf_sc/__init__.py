"""Background-contrastive non-negative matrix factorisation for single-cell data."""

from importlib.metadata import version

from . import datasets, get, metrics, pl, pp, tl
from ._report import report

__all__ = ["datasets", "get", "metrics", "pl", "pp", "report", "tl"]
__version__ = version("bcnmf-sc")
