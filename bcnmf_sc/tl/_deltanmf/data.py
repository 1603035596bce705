"""What DeltaNMF does around the engine: options, counts with what scales them, a fit put back into counts, tables."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from ..._utils.checks import one_of, whole_number
from ..._utils.errors import UserError, UserTypeError
from ...engine.bcnmf.ensemble import shares_of
from ...engine.deltanmf.hals import share_moments
from ...engine.deltanmf.stages import Scaled, unit, usage
from ...engine.rows.summary import Groups
from .._design import OFFSET, Design, adjust, unit_means
from .._run import DeltaOptions, RunOptions, check_run, did_you_mean, run_settings

if TYPE_CHECKING:
    from ..._anndata import Data
    from ...engine import Run
    from ...engine.rows.sources import RowSource

logger = logging.getLogger(__name__)

PER_MILLION = 1e6
LEAST_DEVIATION = 1 / 3
"""Of a gene in the controls, as a share of its deviation over all cells: a gene that next to no control expresses would
otherwise outweigh all others in the cases."""
ACTIVE = 0.95
"""Quantile of the controls' usage above which a cell counts as active."""
FLOOR = 1e-6
"""Added to both sides of a ratio of shares: that of two vanishing ones says nothing."""


@dataclass(frozen=True)
class Asked:
    """The options, checked."""

    library: str
    scale: str
    min_cells: int
    exclude_genes: tuple[str, ...]
    n_restarts: int
    start: str
    reuse_control: bool
    run: RunOptions

    @classmethod
    def of(cls, options: DeltaOptions) -> Asked:
        """Check them; fill in the defaults."""
        given: dict[str, Any] = dict(options)
        run = {name: given.pop(name) for name in list(given) if name in RunOptions.__annotations__}
        defaults = {
            "library": "median",
            "scale": "control",
            "min_cells": 3,
            "exclude_genes": (),
            "n_restarts": 3,
            "start": "consensus",
            "reuse_control": False,
        }
        if unknown := sorted(set(given) - set(defaults)):
            msg = f"Unknown argument {unknown[0]!r}.{did_you_mean(unknown[0], DeltaOptions)} "
            msg += f"Options: {', '.join([*defaults, *RunOptions.__annotations__])}."
            raise UserTypeError(msg)
        values: dict[str, Any] = defaults | {name: value for name, value in given.items() if value is not None}
        one_of("library", values["library"], ("median", "tpm", "none"))
        one_of("scale", values["scale"], ("control", "pooled", "separate", "none"))
        one_of("start", values["start"], ("consensus", "best"))
        whole_number("min_cells", values["min_cells"], 0)
        whole_number("n_restarts", values["n_restarts"], 1)
        check_run(run, RunOptions)
        genes = values["exclude_genes"]
        values["exclude_genes"] = (genes,) if isinstance(genes, str) else tuple(genes)
        return cls(**values, run=run)  # type: ignore[arg-type]

    @property
    def params(self) -> dict[str, Any]:
        """What to record of them."""
        names = ("library", "scale", "min_cells", "n_restarts", "start", "reuse_control")
        return {name: getattr(self, name) for name in names} | {"exclude_genes": list(self.exclude_genes)}

    def run_of(self, stage: str) -> Run:
        """How to run a stage, with a checkpoint of its own."""
        settings = run_settings(self.run, accelerate=False)
        return (
            settings if settings.checkpoint is None else replace(settings, checkpoint=f"{settings.checkpoint}.{stage}")
        )


@dataclass(frozen=True)
class CaseControl:
    """Counts with all that scales them."""

    data: Data
    control: np.ndarray
    """Bool per cell."""
    case: np.ndarray
    cells: np.ndarray
    """Factor per cell; zero for cells without counts."""
    deviation: np.ndarray
    """Of each gene used, in scaled counts; zero where the gene is left out."""
    case_deviation: np.ndarray
    """The same in the second stage."""
    params: dict[str, Any]

    @classmethod
    def of(cls, data: Data, asked: Asked) -> CaseControl:
        """Scale what was read. Raises before anything is done."""
        control, case = data.design.background, data.design.target
        member = np.column_stack([control, case])
        groups = data.source.place(Groups, member, np.zeros(len(control)))
        divide = asked.library != "none"
        found = data.source.reduce(partial(share_moments, divide=divide), groups)
        total = data.source.gather(groups, "total")
        size = {"median": float(np.median(total[(control | case) & (total > 0)])), "tpm": PER_MILLION, "none": 1.0}[
            asked.library
        ]
        cells = np.divide(size if divide else 1.0, total if divide else 1.0, out=np.zeros(len(total)), where=total > 0)

        sizes = member.sum(0)
        pooled, own, of_case = (size * found.deviation(groups, sizes) for groups in ([0, 1], [0], [1]))
        own, of_case = (np.where(x > 0, np.maximum(x, LEAST_DEVIATION * pooled), pooled) for x in (own, of_case))
        ones = np.ones_like(pooled)
        first, second = {
            "control": (own, own),
            "pooled": (pooled, pooled),
            "separate": (own, of_case),
            "none": (ones, ones),
        }[asked.scale]
        keep = (found.n_cells >= max(asked.min_cells, 1)) & (pooled > 0)
        if keep.sum() < 2:  # noqa: PLR2004
            msg = f"At least 2 genes must have counts in {asked.min_cells} cells, got {keep.sum()}. Lower `min_cells`."
            raise UserError(msg)
        params = {name: data.params[name] for name in ("layer", "random_state")} | {
            "n_genes": int(keep.sum()),
            "library_size": size,
        }
        return cls(data, control, case, cells, np.where(keep, first, 0), np.where(keep, second, 0), params)

    @property
    def role(self) -> pd.Categorical:
        """What each cell is in the fit."""
        names = np.where(self.control, "control", np.where(self.case, "case", "projected"))
        return pd.Categorical(names, categories=["control", "case", "projected"])

    def stage(self, name: Literal["control", "case", "all"]) -> Scaled:
        """Scaled data of a stage; of all cells, as the second stage scales them."""
        member = {"control": self.control, "case": self.case, "all": np.ones_like(self.case)}[name]
        deviation = self.deviation if name == "control" else self.case_deviation
        genes = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        return Scaled(self.data.source, np.where(member, self.cells, 0.0), genes)

    def scaled_loadings(self, loadings: np.ndarray) -> np.ndarray:
        """Turn loadings in counts into those of the first stage."""
        return unit(
            np.divide(loadings, self.deviation[:, None], out=np.zeros_like(loadings), where=self.deviation[:, None] > 0)
        )

    def part(self, source: RowSource, cells: np.ndarray) -> CaseControl:
        """Restrict the data to some of the cells, which are scaled as before."""
        return replace(
            self,
            data=replace(self.data, source=source),
            control=self.control & cells,
            case=self.case & cells,
            cells=np.where(cells, self.cells, 0.0),
        )

    def in_counts(self, W: np.ndarray, n_control: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return loadings in counts, whose columns sum to 1, the usage of all cells in counts, and their loss."""
        deviation = np.repeat([self.deviation, self.case_deviation], [n_control, W.shape[1] - n_control], axis=0).T
        loadings = W * deviation
        sums = loadings.sum(0)
        H, loss = usage(self.stage("all"), W)
        if not np.array_equal(self.deviation, self.case_deviation):
            H_control, loss_control = usage(self.stage("control"), W)
            H, loss = np.where(self.control[:, None], H_control, H), np.where(self.control, loss_control, loss)
        return loadings / sums, H * sums, loss

    def result(self, W: np.ndarray, n_control: int) -> Result:
        """Put a fit back into counts, with the usage of all cells."""
        loadings, H, loss = self.in_counts(W, n_control)
        explained, mse = {}, {}
        for name, member in (("control", self.control), ("case", self.case)):
            if not member.any():
                continue
            data = self.stage("control" if name == "control" else "case")
            profile = (self.data.sums[1:].sum(0) if name == "control" else self.data.sums[0]) * (data.genes > 0)
            null = usage(data, unit((profile * data.genes)[:, None]))[1].sum()
            explained[name] = float(1 - loss[member].sum() / null)
            mse[name] = float(2 * loss[member].sum() / (member.sum() * (self.deviation > 0).sum()))
            if name == "case" and W.shape[1] > n_control:
                without = usage(data, W[:, :n_control])[1].sum()
                explained["case_by_control_topics"] = float(1 - without / null)
        return Result(W, loadings, H, shares_of(H), shares_of(H[:, :n_control]), explained, mse, n_control)


@dataclass(frozen=True)
class Result:
    """A fit in counts."""

    W: np.ndarray
    """As it was fitted."""
    loadings: np.ndarray
    """Genes used x topics, columns sum to 1."""
    H: np.ndarray
    share: np.ndarray
    """Of each topic in a cell's usage."""
    control_share: np.ndarray
    """Of each control topic in the usage of control topics."""
    explained: dict[str, float]
    mse: dict[str, float]
    n_control: int

    @property
    def names(self) -> list[str]:
        """Names of the topics."""
        n_case = self.W.shape[1] - self.n_control
        return [f"Control {k + 1}" for k in range(self.n_control)] + [f"Case {k + 1}" for k in range(n_case)]

    def topics(self, data: CaseControl) -> pd.DataFrame:
        """One row per topic: its mean share of all usage in cases and controls."""
        kinds = [name.split()[0].lower() for name in self.names]
        table = pd.DataFrame({"kind": kinds}, index=pd.Index(self.names, name="topic"))
        return table.join(_means(self.share, data, table.index)) if data.case.any() else table


def shift_table(share: np.ndarray, data: CaseControl, donors: pd.Categorical | None) -> pd.DataFrame:
    """Use of the control topics, as shares among them, in cases against controls."""
    names = pd.Index([f"Control {k + 1}" for k in range(share.shape[1])], name="topic")
    if not data.case.any():
        return pd.DataFrame(index=names)
    table = _means(share, data, names)
    table.insert(2, "difference", table["usage_case"] - table["usage_control"])
    side = np.where(data.case, 1, np.where(data.control, 0, -1))
    if donors is None:
        logger.warning("The shift table tests cells, which overstates the evidence. Name the donors with `sample_key`.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a topic that no cell uses: p is NaN
            p = stats.ttest_ind(share[data.case], share[data.control], equal_var=False).pvalue
        n = (int(data.case.sum()), int(data.control.sum()))
    else:
        design = Design.two_groups(side, donors, names=("case", "control"))
        n, p = design.n, np.full(len(names), np.nan)
        if min(n) > 0:
            effects = design.effects(np.log2(unit_means(share, design.unit, len(design.units)) + OFFSET))
            table["log2_fold_change"] = effects.estimate
            table["ci_low"], table["ci_high"] = effects.interval()
            p = effects.p_value if min(n) > 1 else p
    table["p_value"] = p
    table["p_adjusted"] = adjust(p)
    table["test"] = "Welch t" if donors is None else "moderated t"
    table["unit"] = "cell" if donors is None else "donor"
    table["n_case"], table["n_control"] = n
    return table


def emergence_table(result: Result, data: CaseControl, n_control: int) -> pd.DataFrame:
    """Use of the case topics in cases, and in controls that are projected on them."""
    names = pd.Index(result.names[n_control:], name="topic")
    share = result.share[:, n_control:]
    table = _means(share, data, names)
    threshold = np.quantile(share[data.control], ACTIVE, axis=0)
    table["active_case"] = (share[data.case] > threshold).mean(0)
    table["active_control"] = (share[data.control] > threshold).mean(0)
    cosine = unit(result.loadings[:, :n_control]).T @ unit(result.loadings[:, n_control:])
    table["closest_control"] = [result.names[k] for k in cosine.argmax(0)]
    table["cosine"] = cosine.max(0)
    return table


def _means(share: np.ndarray, data: CaseControl, names: pd.Index) -> pd.DataFrame:
    case, control = (share[member].mean(0, dtype=np.float64) for member in (data.case, data.control))
    ratio = np.log2((case + FLOOR) / (control + FLOOR))
    return pd.DataFrame({"usage_case": case, "usage_control": control, "log2_enrichment": ratio}, index=names)
