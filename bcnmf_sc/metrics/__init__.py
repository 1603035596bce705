"""Score representations of cells against known labels: arrays in, numbers out.

`compare` runs several methods side by side and collects these scores in one table.
"""

from ._compare import compare
from ._scores import ari_bootstrap, auc, contrast_ratio, leakage, matched_cosine, proportions

__all__ = ["ari_bootstrap", "auc", "compare", "contrast_ratio", "leakage", "matched_cosine", "proportions"]
