"""How deep cells were sequenced, as far as the stored values can tell, and whether these look log-normalised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

LARGEST_LOG = 20.0
"""Above the log of any total to which counts are scaled."""
EVEN = 0.01
"""Coefficient of variation of cells' totals below which the cells were scaled to one total."""
MEASURED = 500
"""Cells of each side on which depth is measured where the sums of the fit do not tell; as many show how values were
made."""


def looks_logged(adata: AnnData, layer: str | None) -> bool:
    """Say whether values that are fractional, non-negative and small look like logs of normalised counts.

    Either scanpy's `log1p` has left its record, or ``expm1`` brings all cells to one total, as `normalize_total` does.
    """
    if layer is None and "log1p" in adata.uns:
        return True
    values = _rows(adata, _reader(layer), np.arange(adata.n_obs))
    return _even(_totals(values.expm1())) and not _even(_totals(values))


def depth_ratio(
    adata: AnnData, target: np.ndarray, background: np.ndarray, *, layer: str | None, logged: bool
) -> float:
    """Return the mean depth of target cells over that of background cells; NaN where it cannot be seen.

    For values that are no counts. Depth is a sum of counts: of the layer ``"counts"`` or of `raw`. Without these, it is
    the sum of the values, or of their ``expm1`` if they look ``logged``; but normalised values, which all have one
    total, show no depth.
    """
    sides = [np.flatnonzero(target), np.flatnonzero(background)]
    others = [_reader("counts")] if "counts" in adata.layers else []
    others += [lambda cells: cells.raw.X] if adata.raw is not None else []
    for reader in others:
        counts = [_rows(adata, reader, side) for side in sides]
        if all((each.data >= 0).all() and (each.data == np.rint(each.data)).all() for each in counts):
            return _ratio([_totals(each) for each in counts])
    values = [_rows(adata, _reader(layer), side) for side in sides]
    totals = [_totals(each.expm1() if logged else each) for each in values]
    return float("nan") if _even(np.concatenate(totals)) else _ratio(totals)


def _reader(layer: str | None) -> Callable[[AnnData], Any]:
    return lambda cells: cells.X if layer is None else cells.layers[layer]


def _rows(adata: AnnData, reader: Callable[[AnnData], Any], cells: np.ndarray) -> sparse.csr_array:
    """Read the values of some of the cells, evenly spaced, over all genes."""
    some = cells[np.unique(np.linspace(0, len(cells) - 1, MEASURED).astype(int))]
    values = reader(adata[some])
    return sparse.csr_array(values.compute() if hasattr(values, "compute") else values, dtype=np.float64)


def _totals(values: sparse.csr_array) -> np.ndarray:
    return np.asarray(values.sum(1)).ravel()


def _ratio(totals: Sequence[np.ndarray]) -> float:
    target, background = (each.mean() for each in totals)
    return float(target / background) if background > 0 else float("nan")


def _even(totals: np.ndarray) -> bool:
    """Say whether all cells that are not empty have about the same total."""
    totals = totals[totals > 0]
    return len(totals) > 1 and bool(totals.std() < EVEN * totals.mean())
