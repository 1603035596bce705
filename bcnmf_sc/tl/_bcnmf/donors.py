"""Columns of `obs` that look like donors: to leave them out by mistake makes donors look like programs."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import pandas as pd

from ..._utils.checks import stack_level

if TYPE_CHECKING:
    from ..._anndata import Design as Roles

BY_CELL = "cells"
"""What ``sample_key`` says to take cells as the units."""
WORDS = (
    "donor",
    "patient",
    "subject",
    "individual",
    "participant",
    "person",
    "mouse",
    "animal",
    "ind",
    "sample",
    "ident",
)
"""Words of which one is the name of a column of donors, the surest first, ..."""
BESIDE = {"id", "name", "key", "label", "number", "no", "nr", "code", "uuid", "index", "orig"}
"""... and others that may stand beside it: ``donor_age`` and ``facs_sample`` are no donors."""
CELLS_EACH = 5
"""Cells of a donor on average, at least."""


def unnamed_donors(obs: pd.DataFrame, roles: Roles) -> str | None:
    """Return the column that looks like the donors of target and background cells, or `None`.

    Its name says so (``donor_id``, ``Patient``, ``orig.ident``), and it divides the cells of a condition into groups of
    several cells.
    """
    words = {column: _words(column) for column in obs.columns}
    telling = [column for word in WORDS for column, own in words.items() if word in own and own <= {word} | BESIDE]
    for column in telling:
        if not pd.api.types.is_float_dtype(obs[column]) and not pd.api.types.is_bool_dtype(obs[column]):
            numbers = [obs.loc[cells, column].value_counts() for cells in (roles.target, roles.background)]
            if any((n > 0).sum() > 1 and n[n > 0].mean() >= CELLS_EACH for n in numbers):
                return str(column)
    return None


def _words(name: object) -> set[str]:
    """Split a name at signs, digits and capitals: ``PatientID_2`` has the words patient and id."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", str(name))
    return {part.lower().removesuffix("s") for part in parts}


def warn_of_unnamed(column: str) -> None:
    """Say that no topic is called, since donors that look known are not named."""
    msg = (
        f"`adata.obs[{column!r}]` looks like the donors, and `sample_key` does not name it. Cells of one donor are not "
        "independent, and what sets donors apart would be called: no topic is called, and called cells may be those "
        f"of some donors. Pass `sample_key={column!r}`, or `sample_key={BY_CELL!r}` to take cells as the units."
    )
    warnings.warn(msg, UserWarning, stacklevel=stack_level())
