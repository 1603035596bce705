"""Colours of categories: one per condition in all plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.colors import to_hex

from .._methods import method_of
from ._axes import PALETTE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from anndata import AnnData


def category_colors(adata: AnnData, column: pd.Series, name: str | None) -> dict[Any, str]:
    """Return a colour per category of a column of obs.

    Those that scanpy stored in `uns`, if any; else a colour-blind-safe palette as far as it goes, the reference of a
    stored fit first, so that controls have the same colour whatever they are called. The roles of cells in a fit have
    the colours of its conditions.
    """
    categories = list(column.cat.categories)
    for key, _, sides in _fits(adata):
        if name == f"{key}_role" and f"{name}_colors" not in adata.uns:
            of_side = side_colors(adata, key)
            others = iter(PALETTE[2:])
            return {role: of_side.get(str(role)) or next(others) for role in categories}
        if name == sides[0]:
            categories.sort(key=lambda category: str(category) not in sides[1])
            break
    colors = list(adata.uns.get(f"{name}_colors", ()))
    if len(colors) >= len(categories):
        categories = list(column.cat.categories)  # scanpy's order
    else:
        colors = _palette(len(categories))
    found = {category: to_hex(colors[i % len(colors)]) for i, category in enumerate(categories)}
    return {category: found[category] for category in column.cat.categories}


def side_colors(adata: AnnData, key: str) -> dict[str, str]:
    """Return the colours of the target and the background of a fit: those of its conditions."""
    found = {"target": PALETTE[1], "background": PALETTE[0]}
    for fit, params, (column, reference) in _fits(adata):
        if fit == key and column in adata.obs:
            colors = category_colors(adata, adata.obs[column].astype("category"), column)
            target = _names(params.get("target")) or [str(name) for name in colors if str(name) not in reference]
            for side, names in (("target", target), ("background", reference)):
                of_side = [color for name, color in colors.items() if str(name) in names]
                found[side] = of_side[0] if of_side else found[side]
    return found


def _fits(adata: AnnData) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, list[str]]]]:
    """Yield key, arguments, and column and reference categories of each stored fit that compares conditions."""
    for key, record in adata.uns.items():
        if not hasattr(record, "keys") or not {"params", "topics"} <= set(record):
            continue
        params, words = record["params"], method_of(record).sides
        if words is not None and words[0] in params:
            yield str(key), params, (str(params[words[0]]), _names(params.get(words[1])))


def _names(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else [str(name) for name in value]


def _palette(n: int) -> list[str]:
    if n <= len(PALETTE):
        return list(PALETTE)
    from scanpy.pl.palettes import default_20, default_28, default_102

    return next((palette for palette in (default_20, default_28) if len(palette) >= n), default_102)
