"""Data sets with known ground truth: simulated, bundled, and published ones, read from a folder or downloaded."""

from ._digits import digits
from ._kang import kang
from ._leukemia import leukemia
from ._mdd import mdd
from ._mice_protein import mice_protein
from ._mixseq import mixseq
from ._simulated import simulated
from ._simulated_programs import simulated_programs
from ._simulated_spatial import simulated_spatial
from ._stand_in import stand_in

__all__ = [
    "digits",
    "kang",
    "leukemia",
    "mdd",
    "mice_protein",
    "mixseq",
    "simulated",
    "simulated_programs",
    "simulated_spatial",
    "stand_in",
]
