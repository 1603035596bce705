"""Tests by donor: who is compared with whom, over which units."""

from .tests import Method, Summary, Units, likelihood_ratio, pairing

__all__ = ["Method", "Summary", "Units", "likelihood_ratio", "pairing"]
