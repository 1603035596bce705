"""Tests by donor: designs, linear models with moderated variances, and the two-group tests of the paper's protocol."""

from .design import OFFSET, Contrast, Design, design_columns, unit_means
from .linear import INDEPENDENT, moderated
from .tests import Summary, adjust, likelihood_ratio
from .units import Method, Units

__all__ = [
    "INDEPENDENT",
    "OFFSET",
    "Contrast",
    "Design",
    "Method",
    "Summary",
    "Units",
    "adjust",
    "design_columns",
    "likelihood_ratio",
    "moderated",
    "unit_means",
]
