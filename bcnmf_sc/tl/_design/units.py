"""Tests of many features at once: who is compared with whom, what counts as one observation, which test."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from ..._anndata import in_order
from ..._utils.checks import listed, one_of, stack_level
from ..._utils.errors import UserError
from .design import Design
from .tests import Summary, adjust, likelihood_ratio, pairing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

    from .design import Contrast

Method = Literal["auto", "moderated", "t", "paired_t", "logistic"]
METHODS = ("auto", "moderated", "t", "paired_t", "logistic")
REST = "rest"
COLUMNS = [
    "feature",
    "groupby",
    "group",
    "reference",
    "test",
    "scale",
    "unit",
    "n_group",
    "n_reference",
    "mean_group",
    "mean_reference",
    "difference",
    "ci_low",
    "ci_high",
    "cohen_d",
    "log2_ratio",
    "statistic",
    "p_value",
    "p_adjusted",
    "signed_log10_p",
    "separated",
]
"""Of the table of tests; "feature" becomes "topic" or "gene"."""


@dataclass
class Units:
    """Who is compared with whom, and what counts as one observation."""

    groupby: str
    contrasts: list[tuple[str, str, np.ndarray]]
    """Name of the group, of the reference, and per cell 1 (group), 0 (reference), -1 (neither)."""
    sample: pd.Categorical | None
    """Sample of each cell, or None where cells are the units."""
    pair: np.ndarray | None
    """Number of each cell's pair."""
    method: str
    sample_key: str | None
    design: Design | None = None
    """A formula's; its contrast is the only one."""

    @property
    def moderated(self) -> bool:
        """Whether units are compared on a log scale by linear models, all features together."""
        return self.method == "moderated"

    @classmethod
    def read(
        cls,
        adata: AnnData,
        key: str,
        *,
        groupby: str | None,
        design: str | None,
        contrast: Contrast | None,
        groups: str | Sequence[str] | None,
        reference: str | None,
        sample_key: str | None,
        pair_key: str | None,
        method: str,
        cells: str | np.ndarray | None,
        used: np.ndarray,
    ) -> Units:
        one_of("method", method, METHODS)
        if (groupby is None) == (design is None):
            msg = f"`groupby` or `design` must be given, one of them, got {groupby!r} and {design!r}."
            raise UserError(msg)
        keep = used & _cells(adata, key, cells)
        sample_key = pair_key if sample_key is None else sample_key
        if method == "auto":
            method = "t" if sample_key is None else "moderated"
        if sample_key is None and (method in ("moderated", "paired_t") or design is not None):
            what = f"`method={method!r}`" if design is None else f"`design={design!r}`"
            msg = f"{what} needs `sample_key` or `pair_key`, the donors: cells are neither independent nor in pairs."
            raise UserError(msg)
        sample = None if sample_key is None else _categories(adata, "sample_key", sample_key)
        if design is not None:
            given = {"contrast": contrast, "sample_key": sample_key, "pair_key": pair_key}
            return cls._of_formula(adata, design, method, keep, given, groups=groups, reference=reference)
        assert groupby is not None
        if contrast is not None:
            msg = f"`contrast` must come with `design`, got {contrast!r}. For `groupby` name `groups` and `reference`."
            raise UserError(msg)
        contrasts = _comparisons(adata, key, groupby, keep, groups=groups, reference=reference)
        pair = None
        if sample is None:
            warnings.warn(
                "The cells are the units of these tests. Cells of one donor are no independent observations, so the "
                "p-values overstate the evidence. Name the donors with `sample_key`.",
                UserWarning,
                stacklevel=stack_level(),
            )
        else:
            for _, _, side in contrasts:
                side[sample.codes < 0] = -1
        if pair_key is not None:
            pair = _categories(adata, "pair_key", pair_key).codes.astype(np.intp)
            assert sample is not None  # the pair stands for it
            both = np.unique(np.column_stack([sample.codes, pair])[sample.codes >= 0], axis=0)
            if len(np.unique(both[:, 0])) < len(both):
                msg = f"Each {sample_key!r} must belong to one {pair_key!r}, but some belong to several."
                raise UserError(msg)
        return cls(groupby, contrasts, sample, pair, method, sample_key)

    @classmethod
    def _of_formula(
        cls, adata: AnnData, formula: str, method: str, keep: np.ndarray, given: dict[str, Any], **simple: Any
    ) -> Units:
        wrong = [name for name, value in simple.items() if value is not None]
        if wrong or method != "moderated":
            what = f"`{wrong[0]}`" if wrong else f"`method={method!r}`"
            msg = f"{what} must come with `groupby`, got `design={formula!r}`. Say what to compare in `contrast`."
            raise UserError(msg)
        if given["pair_key"] is not None:
            _categories(adata, "pair_key", given["pair_key"])
        design = Design.formula(adata.obs, formula, **given, used=keep)
        contrasts = [(design.group, design.reference, design.of_cells())]
        return cls(design.column, contrasts, None, None, method, given["sample_key"], design)

    def test(
        self,
        names: Sequence[str],
        observed: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
        of_cells: Callable[[np.ndarray], Iterator[tuple[slice, np.ndarray]]],
        of_groups: Callable[[np.ndarray], Summary] | None = None,
        *,
        floor: float,
        scale: str,
        shown: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Make the table: every feature, every comparison.

        ``observed(unit, n_units)`` gives the values of the units (compared, and on the scale of ratios),
        ``of_cells(side)`` those of the cells in the comparison, some features at a time, ``of_groups(side)`` their
        moments. ``scale`` names that of the values compared. The table is of the features ``shown``, all by default:
        the others lend their variances.
        """
        blocks = []
        for group, reference, side in self.contrasts:
            record: dict[str, Any] = {"feature": names, "groupby": self.groupby, "group": group, "reference": reference}
            record["scale"] = scale
            if self.moderated:
                record |= self._moderated(group, reference, side, observed)
            elif self.sample is None:
                self._check(np.bincount(side[side >= 0], minlength=2).min(), group, reference)
                if of_groups is None:
                    values = next(of_cells(side))[1]
                    summary = Summary.of(values, values, side[side >= 0])
                else:
                    summary = of_groups(side)
                record |= self._independent(
                    summary, lambda side=side: ((p, v, side[side >= 0]) for p, v in of_cells(side))
                )
            else:
                record |= self._by_sample(group, reference, side, observed)
            linear = record.pop("linear")
            record["log2_ratio"] = np.log2((linear[1] + floor) / (linear[0] + floor))
            blocks.append(pd.DataFrame(record))
        table = pd.concat(blocks, ignore_index=True)
        if shown is not None:
            table = table[table["feature"].isin(shown)].reset_index(drop=True)
        p = table["p_value"].to_numpy()
        sign = np.where(table["difference"] < 0, -1.0, 1.0)
        table["p_adjusted"] = adjust(p)
        table["signed_log10_p"] = -sign * np.log10(np.maximum(p, np.finfo(float).tiny))
        return table[COLUMNS]

    def _moderated(self, group: str, reference: str, side: np.ndarray, observed: Any) -> dict[str, Any]:
        """Compare units by a linear model of all features, with moderated variances."""
        design = self.design
        if design is None:
            assert self.sample is not None
            design = Design.two_groups(
                side, self.sample, names=(group, reference), column=self.groupby, block=self.pair
            )
            self._check(min(design.n), group, reference)
        values, linear = observed(design.unit, len(design.units))
        effects = design.effects(values)
        low, high = effects.interval()
        means = [_mean(linear[design.side == s]) for s in (0, 1)] if max(design.n) else [linear.mean(0)] * 2
        if not max(design.n):
            means[0] = np.full_like(means[1], np.nan)
        return {
            "test": "moderated t",
            "unit": "sample",
            "n_group": design.n[0] if max(design.n) else len(design.units),
            "n_reference": design.n[1],
            "mean_group": means[1],
            "mean_reference": means[0],
            "difference": effects.estimate,
            "ci_low": low,
            "ci_high": high,
            "cohen_d": effects.estimate / effects.deviation,
            "statistic": effects.statistic,
            "p_value": effects.p_value,
            "separated": False,
            "linear": means,
        }

    def _by_sample(self, group: str, reference: str, side: np.ndarray, observed: Any) -> dict[str, Any]:
        """Reduce the cells to one observation for each sample and side, and test these."""
        assert self.sample is not None
        sample = self.sample.codes.astype(np.intp)
        asked = self.pair is not None or self.method == "paired_t"
        pair = sample if self.pair is None else self.pair
        here = [np.unique(pair[(side == s) & (pair >= 0)]) for s in (1, 0)]
        tested, paired, left_out = pairing(here, (group, reference), asked=asked)
        if paired and self.method != "paired_t":
            what = "some donors have cells in both groups" if self.pair is None else "`pair_key` is given"
            msg = (
                f"`method={self.method!r}` takes the units for independent, but {what}. Use 'paired_t' or 'moderated'."
            )
            raise UserError(msg)
        if self.method == "paired_t" and not len(tested):
            both_in = f"both in {group!r} and {reference!r}"
            msg = f"`method='paired_t'` needs pairs, but no {self.sample_key!r} has cells {both_in}."
            raise UserError(msg)
        if left_out:
            warnings.warn(left_out, UserWarning, stacklevel=stack_level())
        self._check(min(len(np.intersect1d(part, tested)) for part in here), group, reference, pairs=paired)
        side = np.where(np.isin(pair, tested), side, -1)
        both = np.where(side >= 0, 2 * sample + side, -1)
        present, unit = np.unique(both, return_inverse=True)
        unit = unit.reshape(-1) - int(present[0] < 0)
        values, linear = observed(unit, len(present) - int(present[0] < 0))
        first = np.unique(unit[unit >= 0], return_index=True)[1]
        at = np.flatnonzero(unit >= 0)[first]  # a cell of each unit
        side_of = side[at]
        if not paired:
            summary = Summary.of(values, linear, side_of)
            return self._independent(summary, lambda: iter([(slice(0, values.shape[1]), values, side_of)]))

        pair_of = pair[at]
        of_pair = [[(pair_of == p) & (side_of == s) for p in tested] for s in (0, 1)]
        low, high = (np.stack([values[units].mean(0) for units in of_side]) for of_side in of_pair)
        means = [np.stack([linear[units].mean(0) for units in of_side]).mean(0) for of_side in of_pair]
        change = high - low
        flat = change.var(0) <= (1e-12 * np.abs(high).max(0)) ** 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no variance, or nearly none
            test = stats.ttest_rel(high, low)
            interval = test.confidence_interval(0.95)
            d = change.mean(0) / change.std(0, ddof=1)
        nan = np.where(flat, np.nan, 1.0)
        return {
            "test": "paired t",
            "unit": "pair",
            "n_group": len(tested),
            "n_reference": len(tested),
            "mean_group": high.mean(0),
            "mean_reference": low.mean(0),
            "difference": change.mean(0),
            "ci_low": interval.low * nan,
            "ci_high": interval.high * nan,
            "cohen_d": d * nan,
            "statistic": test.statistic * nan,
            "p_value": test.pvalue * nan,
            "separated": False,
            "linear": means,
        }

    def _independent(self, summary: Summary, observations: Any) -> dict[str, Any]:
        """Test two groups of independent observations."""
        result = summary.welch()
        nan = np.where(summary.flat, np.nan, 1.0)
        separated: Any = False
        name = "Welch t"
        if self.method == "logistic":
            name = "logistic"
            n_features = len(summary.difference)
            statistic, p, separated = (
                np.full(n_features, np.nan),
                np.full(n_features, np.nan),
                np.zeros(n_features, bool),
            )
            for part, values, side in observations():
                for k in range(values.shape[1]):
                    at = part.start + k
                    statistic[at], p[at], separated[at] = likelihood_ratio(values[:, k], side)
            result |= {"statistic": statistic, "p_value": p}
        return {
            "test": name,
            "unit": "cell" if self.sample is None else "sample",
            "n_group": int(summary.n[1]),
            "n_reference": int(summary.n[0]),
            "mean_group": summary.mean[1],
            "mean_reference": summary.mean[0],
            "difference": summary.difference,
            "ci_low": (summary.difference - result["half"]) * nan,
            "ci_high": (summary.difference + result["half"]) * nan,
            "cohen_d": summary.cohen_d(),
            "statistic": result["statistic"] * nan,
            "p_value": result["p_value"] * nan,
            "separated": separated,
            "linear": summary.linear,
        }

    def _check(self, n: int, group: str, reference: str, *, pairs: bool = False) -> None:
        if n < 2:  # noqa: PLR2004
            what = (
                "complete pairs"
                if pairs
                else f"{'cells' if self.sample is None else f'of {self.sample_key!r}'} in each group"
            )
            msg = f"{group!r} against {reference!r} of `groupby={self.groupby!r}` needs at least 2 {what}, got {n}."
            raise UserError(msg)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over units; NaN where there are none."""
    return values.mean(0) if len(values) else np.full(values.shape[1], np.nan)


def _cells(adata: AnnData, key: str, cells: str | np.ndarray | None) -> np.ndarray:
    if cells is None:
        return np.ones(adata.n_obs, bool)
    if isinstance(cells, str) and cells == "target" and "target" not in adata.obs:
        return adata.obs[f"{key}_role"].isin(["target", "both"]).to_numpy()
    if isinstance(cells, str) and cells not in adata.obs:
        msg = f"`cells` must be a bool column of `adata.obs`, 'target' or a bool array, got {cells!r}."
        raise UserError(msg)
    mask = np.asarray(adata.obs[cells] if isinstance(cells, str) else in_order("cells", cells, adata.obs_names))
    if mask.dtype != bool or mask.shape != (adata.n_obs,):
        msg = f"`cells` must be a bool for each of the {adata.n_obs} cells, got {mask.dtype} {mask.shape}."
        raise UserError(msg)
    return mask


def _categories(adata: AnnData, argument: str, name: str) -> pd.Categorical:
    if name not in adata.obs:
        present = listed(adata.obs.columns)
        msg = f"`{argument}` must be a column of `adata.obs`, got {name!r}. Present: {present}."
        raise UserError(msg)
    column = adata.obs[name]
    if argument == "groupby" and pd.api.types.is_float_dtype(column):
        msg = f"`groupby` must be a column of groups, got {name!r} with numbers. Cut it into groups with `pandas.qcut`."
        raise UserError(msg)
    return pd.Categorical(column)


def _comparisons(
    adata: AnnData,
    key: str,
    groupby: str,
    keep: np.ndarray,
    *,
    groups: str | Sequence[str] | None,
    reference: str | None,
) -> list[tuple[str, str, np.ndarray]]:
    """Return each group, its reference and the side of each cell."""
    column = _categories(adata, "groupby", groupby)
    codes = np.where(keep, column.codes, -1)
    present = [str(name) for code, name in enumerate(column.categories) if (codes == code).any()]
    code_of = {str(name): code for code, name in enumerate(column.categories)}
    if len(present) < 2:  # noqa: PLR2004
        msg = f"`groupby` must tell at least 2 groups apart, got {groupby!r} with {listed(present)}."
        raise UserError(msg)
    reference = _reference(adata, key, groupby, present, reference)
    tested = [groups] if isinstance(groups, str) else [name for name in present if name != reference]
    if groups is not None and not isinstance(groups, str):
        tested = [str(name) for name in groups]
    unknown = [name for name in tested if name not in present]
    if unknown or not tested or reference in tested:
        msg = (
            f"`groups` must be groups of {groupby!r} with cells, other than the reference {reference!r}, got "
            f"{groups!r}. Present: {listed(present)}."
        )
        raise UserError(msg)
    contrasts = []
    for name in tested:
        side = np.full(adata.n_obs, -1)
        side[(codes >= 0) if reference == REST else (codes == code_of[reference])] = 0
        side[codes == code_of[name]] = 1
        contrasts.append((name, reference, side))
    return contrasts


def _reference(adata: AnnData, key: str, groupby: str, present: list[str], reference: str | None) -> str:
    if reference is not None:
        if reference != REST and str(reference) not in present:
            groups = f"{listed(present)}, 'rest'"
            msg = f"`reference` must be a group of {groupby!r} with cells, got {reference!r}. Present: {groups}."
            raise UserError(msg)
        return str(reference)
    params = adata.uns[key].get("params", {})
    if str(params.get("background_key", "")) == groupby:
        background = [str(name) for name in np.atleast_1d(params["background"])]
        if len(background) == 1 and background[0] in present:
            return background[0]
    return present[0] if len(present) == 2 else REST  # noqa: PLR2004
