"""Who is compared with whom, over which units: the linear model behind every test by donor."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..._utils.checks import listed, stack_level
from ..._utils.errors import UserError
from ...engine.rows.moments import member_matrix
from .linear import moderated

if TYPE_CHECKING:
    from .linear import Effects

Contrast = str | tuple[str, Any, Any] | Mapping[str, float]
OFFSET = 1e-3
"""Added to shares before logarithms: a topic of a thousandth of the usage or less counts as absent."""
BLOCK = re.compile(r"\+?\s*\(\s*1\s*\|\s*`?([^)`]+?)`?\s*\)")
"""A random intercept, as in ``(1 | patient)``."""
NAME = re.compile(r"`([^`]+)`|(?<![\w.])([A-Za-z_]\w*)(?![\w.]|\s*[(=])")
"""A column in a formula: no function, module or keyword argument."""
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
DONOR, BLOCKED = "__donor__", "__block__"
"""Columns beside those that a formula names."""


@dataclass(frozen=True)
class Design:
    """A linear model over units, each the cells of a donor in a condition, and one contrast of it."""

    unit: np.ndarray
    """Number of each cell's unit; -1 for cells that are left out."""
    units: pd.DataFrame
    """A row per unit: ``donor``, ``condition``, ``n_cells``."""
    X: np.ndarray
    """Units x coefficients."""
    contrast: np.ndarray
    """Weight of each coefficient."""
    block: np.ndarray | None
    """Number of each unit's block, such as its patient; None where all units are independent."""
    column: str
    group: str
    reference: str
    side: np.ndarray
    """Of each unit 1 (group), 0 (reference) or -1."""

    @classmethod
    def two_groups(
        cls,
        side: np.ndarray,
        sample: pd.Categorical,
        *,
        names: tuple[str, str] = ("target", "background"),
        column: str = "",
        block: np.ndarray | None = None,
    ) -> Design:
        """Compare two groups of cells (``side`` 1 and 0; -1 for neither) by donor.

        Donors on both sides, or with others in a ``block`` (a number per cell), are correlated units.
        """
        frame = pd.DataFrame({"donor": sample.codes, "side": side, "block": sample.codes if block is None else block})
        used = (side >= 0) & (frame >= 0).all(axis=1).to_numpy()
        unit, units = _number(frame, used)
        in_group = units["side"].to_numpy()
        return cls(
            unit,
            pd.DataFrame(
                {
                    "donor": sample.categories.astype(str)[units["donor"]],
                    "condition": np.array([names[1], names[0]])[in_group],
                    "n_cells": np.bincount(unit[unit >= 0], minlength=len(units)),
                }
            ),
            np.column_stack([np.ones(len(units)), in_group]),
            np.array([0.0, 1.0]),
            _blocks(units["block"].to_numpy()),
            column,
            *names,
            in_group,
        )

    @classmethod
    def formula(
        cls,
        obs: pd.DataFrame,
        formula: str,
        contrast: Contrast | None,
        *,
        sample_key: str,
        pair_key: str | None = None,
        used: np.ndarray,
    ) -> Design:
        """Read a formula over columns of ``obs`` and a contrast of its coefficients.

        Units are the donors, once for each of the values that the formula's columns take within a donor.
        """
        terms, columns, pair_key = _named(obs, formula, pair_key)
        frame = pd.DataFrame({name: _readable(obs[name]) for name in columns})
        frame.insert(0, DONOR, pd.Categorical(obs[sample_key].astype(object)))
        block = sample_key if pair_key is None else pair_key
        frame.insert(1, BLOCKED, pd.Categorical(obs[block].astype(object)))
        known = frame.notna().all(axis=1).to_numpy()
        lost = sorted(set(frame[DONOR][used & frame[DONOR].notna()]) - set(frame[DONOR][used & known]), key=str)
        if lost:
            msg = f"{listed(lost)} of {sample_key!r} lack a value of {listed(columns)}; they are left out."
            warnings.warn(msg, UserWarning, stacklevel=stack_level())
        unit, units = _number(frame, used & known)
        if len(units) > max((unit >= 0).sum() / 2, units[DONOR].nunique()):
            msg = (
                f"`design` must have columns that describe donors, got {listed(columns)}, which differ from cell to "
                f"cell within {sample_key!r}."
            )
            raise UserError(msg)
        for name in units:
            if isinstance(units[name].dtype, pd.CategoricalDtype):
                units[name] = units[name].cat.remove_unused_categories()
        matrix = _matrix(terms, units)
        weights, column, group, reference, side = _contrast(matrix, units, contrast, columns)
        X = np.asarray(matrix, np.float64)
        if not np.allclose(weights @ np.linalg.pinv(X) @ X, weights, atol=1e-6):
            msg = (
                f"`contrast` must be estimable, got {contrast!r}: in these {len(X)} units it cannot be told from other "
                f"columns of {formula!r}."
            )
            raise UserError(msg)
        return cls(
            unit,
            pd.DataFrame(
                {
                    "donor": units[DONOR].astype(str).to_numpy(),
                    "condition": units[column].astype(str).to_numpy() if column in units else "",
                    "n_cells": np.bincount(unit[unit >= 0], minlength=len(units)),
                }
            ),
            X,
            weights,
            _blocks(pd.Categorical(units[BLOCKED]).codes),
            column,
            group,
            reference,
            side,
        )

    @property
    def n(self) -> tuple[int, int]:
        """Units in the group and in the reference."""
        return int((self.side == 1).sum()), int((self.side == 0).sum())

    @property
    def df(self) -> int:
        """Residual degrees of freedom."""
        return len(self.X) - int(np.linalg.matrix_rank(self.X))

    def of_cells(self) -> np.ndarray:
        """Side of each cell."""
        return np.where(self.unit >= 0, self.side[self.unit], -1)

    def effects(self, y: np.ndarray) -> Effects:
        """Estimate the contrast of each column of ``y`` (units x features), with variances moderated over them all."""
        n = self.units["n_cells"].to_numpy(np.float64)
        return moderated(y, self.X, self.contrast, block=self.block, n=n)


def unit_means(values: np.ndarray, unit: np.ndarray, n_units: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of the cells of each unit, units x features; cells of no unit (-1) are left out."""
    member = member_matrix(unit, n_units)
    inside = np.flatnonzero(unit >= 0)
    w = np.ones(len(inside)) if weights is None else weights[inside]
    sums = member[:, inside] @ (np.asarray(values[inside], np.float64) * w[:, None])
    return sums / np.bincount(unit[inside], weights=w, minlength=n_units)[:, None]


def design_columns(formula: str | None) -> tuple[str, ...]:
    """Return the columns that a formula names, its blocks included; none for no formula."""
    if formula is None:
        return ()
    _, columns, blocks = _parse(formula)
    return (*columns, *blocks)


def _number(frame: pd.DataFrame, used: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Return for each cell the number of its row among the distinct ones of the cells used, and these."""
    unit = np.full(len(frame), -1)
    groups = frame[used].groupby(list(frame), observed=True, sort=True)
    unit[used] = groups.ngroup().to_numpy()
    return unit, frame.iloc[[np.flatnonzero(unit == k)[0] for k in range(groups.ngroups)]].reset_index(drop=True)


def _blocks(block: np.ndarray) -> np.ndarray | None:
    return block if len(np.unique(block)) < len(block) else None


def _readable(column: pd.Series) -> Any:
    """Numbers as they are, everything else as categories of text."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.to_numpy(np.float64)
    known = column.astype(object).map(str, na_action="ignore")
    if isinstance(column.dtype, pd.CategoricalDtype):
        return pd.Categorical(known, categories=[str(name) for name in column.cat.categories])
    return pd.Categorical(known)


def _parse(formula: str) -> tuple[str, list[str], list[str]]:
    """Split a formula into its fixed part, the columns of this in their order, and the columns of blocks."""
    from formulaic import Formula  # slow to import
    from formulaic.errors import FormulaSyntaxError

    terms = BLOCK.sub("", formula).strip()
    msg = f"`design` must be a formula such as '~ condition + age + (1 | patient)', got {formula!r}."
    if not terms.startswith("~"):
        raise UserError(msg)
    try:
        Formula(terms)
    except FormulaSyntaxError as error:
        raise UserError(msg) from error
    names = [quoted or plain for quoted, plain in NAME.findall(QUOTED.sub("", terms))]
    return terms, [name for name in dict.fromkeys(names) if not iskeyword(name)], BLOCK.findall(formula)


def _named(obs: pd.DataFrame, formula: str, pair_key: str | None) -> tuple[str, list[str], str | None]:
    """Return the fixed part of a formula, its columns and that of its blocks, all of which are in ``obs``."""
    terms, columns, blocks = _parse(formula)
    named = sorted({*blocks, *([] if pair_key is None else [pair_key])})
    if len(named) > 1:
        msg = f"`design` and `pair_key` must name one column of blocks, got {listed(named)}."
        raise UserError(msg)
    missing = [name for name in [*columns, *named] if name not in obs]
    if missing or not columns:
        what = f"{listed(missing)} in {formula!r}" if missing else repr(formula)
        msg = f"`design` must name columns of `adata.obs`, got {what}. Present: {listed(obs.columns)}."
        raise UserError(msg)
    return terms, columns, named[0] if named else None


def _matrix(terms: str, units: pd.DataFrame) -> Any:
    from formulaic import model_matrix
    from formulaic.errors import FormulaicError

    try:
        return model_matrix(terms, units, context={}, output="pandas")
    except FormulaicError as error:
        msg = f"`design` must be a formula over columns of `adata.obs`, got {terms!r}: {error}"
        raise UserError(msg) from error


def _contrast(
    matrix: Any, units: pd.DataFrame, contrast: Contrast | None, columns: Sequence[str]
) -> tuple[np.ndarray, str, str, str, np.ndarray]:
    """Return the weights of the coefficients, what is compared, and the side of each unit.

    A contrast of values of a column is the difference that changing them makes to the fit, averaged over the units.
    """
    names = list(matrix.columns)
    nowhere = np.full(len(units), -1)
    if isinstance(contrast, Mapping):
        unknown = [name for name in contrast if name not in names]
        if unknown or not contrast:
            msg = f"`contrast` must weigh coefficients of the design, got {listed(unknown)}. Present: {listed(names)}."
            raise UserError(msg)
        weights = np.array([float(contrast.get(name, 0.0)) for name in names])
        text = " ".join(f"{float(weight):+g} {name}" for name, weight in contrast.items())
        return weights, text, text, "0", nowhere
    parts = (columns[0],) if contrast is None else (contrast,) if isinstance(contrast, str) else tuple(contrast)
    if len(parts) not in (1, 3) or parts[0] not in columns:
        msg = (
            "`contrast` must be a column of the design, (column, baseline, group to compare) or a mapping of "
            f"coefficients to weights, got {contrast!r}. Columns: {listed(columns)}; coefficients: {listed(names)}."
        )
        raise UserError(msg)
    column, values = parts[0], units[parts[0]]
    numeric = not isinstance(values.dtype, pd.CategoricalDtype)
    if len(parts) == 1 and numeric:
        return _change(matrix, units, column, values, values + 1), column, "slope", "0", nowhere
    levels = sorted(values.unique()) if numeric else list(values.cat.categories)
    if len(parts) == 1 and len(levels) == 2:  # noqa: PLR2004
        parts = (column, *levels)
    given = [float(name) if numeric else str(name) for name in parts[1:]]
    if len(given) != 2 or given[0] == given[1] or not set(given) <= set(levels):  # noqa: PLR2004
        present = listed(levels)
        msg = f"`contrast` must name two values of {column!r}, baseline first, got {contrast!r}. Present: {present}."
        raise UserError(msg)
    low, high = (pd.Series([value] * len(units)).astype(values.dtype) for value in given)
    side = np.where(values == given[1], 1, np.where(values == given[0], 0, -1))
    return _change(matrix, units, column, low, high), column, str(parts[2]), str(parts[1]), side


def _change(matrix: Any, units: pd.DataFrame, column: str, low: pd.Series, high: pd.Series) -> np.ndarray:
    """Mean change of the model matrix from one set of values of a column to another."""
    before, after = (matrix.model_spec.get_model_matrix(units.assign(**{column: values})) for values in (low, high))
    return np.asarray(after, np.float64).mean(0) - np.asarray(before, np.float64).mean(0)
