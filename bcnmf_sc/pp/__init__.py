"""Select the cells and genes to model. Counts stay counts, and nothing is factorised."""

from ._highly_variable_genes import highly_variable_genes
from ._match_depth import match_depth
from ._protein_coding import protein_coding
from ._recipe import recipe
from ._similarity import gene_similarity

__all__ = ["gene_similarity", "highly_variable_genes", "match_depth", "protein_coding", "recipe"]
