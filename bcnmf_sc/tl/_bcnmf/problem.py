"""What every factorisation does around the engine: read and check a problem, set alpha, record how the fit ended."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from ... import _anndata
from ..._utils.checks import listed, stack_level, whole_number
from ..._utils.errors import UserError
from ...engine import LIKELIHOODS, Factors, Joint, Likelihood, RowSource, Run, row_source, transform
from ...engine.bcnmf.ensemble import Model, shares_of
from ...engine.rows.summary import Groups, summarise
from .._run import RunOptions, all_gone_through, check_run

if TYPE_CHECKING:
    from anndata import AnnData

    from ..._anndata import Design, MaskVar

logger = logging.getLogger(__name__)
MAX_SUPPRESSED = 0.1
"""Share of suppressed genes from which on a fit warns."""
VANISHED = 1e-8
"""Loading below which a gene counts for nothing."""
PARAMETERS = {"nb": ("dispersion",), "zinb": ("dispersion", "dropout")}
"""Arguments that only some likelihoods have."""
ROUNDING = 1e-6
"""Share of the values' mass below which a deviance in single precision says nothing."""
SAFE_ALPHA = 0.5
"""Effective alpha up to which a fit is accelerated by default."""


@dataclass(frozen=True)
class Contrast:
    """Alpha in its two scales, per background, and what follows from it before any fit."""

    weight: np.ndarray
    """Background weight per cell."""
    effective: dict[str, float]
    on_sums: dict[str, float]
    suppressed: np.ndarray | None
    """Bool per gene used; known after the fit only where the likelihood is none of counts."""

    @classmethod
    def of(
        cls, design: Design, effective: dict[str, float], on_sums: dict[str, float], suppressed: np.ndarray | None
    ) -> Contrast:
        """Give the cells of each background its weight."""
        weight = np.zeros(len(design.target))
        for name, cells in design.backgrounds.items():
            weight[cells] = on_sums[name]
        return cls(weight, effective, on_sums, suppressed)

    @property
    def total(self) -> float:
        """The effective alpha of all backgrounds."""
        return float(sum(self.effective.values()))

    def suppressed_at(self, W: np.ndarray) -> np.ndarray:
        """Bool per gene used: as known before the fit, else those whose loadings have vanished."""
        return W.max(1) < VANISHED if self.suppressed is None else self.suppressed


@dataclass(frozen=True)
class Problem:
    """A factorisation to be solved: what is read from the AnnData, checked."""

    design: Design
    source: RowSource
    likelihood: Likelihood
    refine: bool
    """Whether the likelihood's parameters are to be estimated."""
    genes: np.ndarray
    """Numbers of the genes used."""
    expressed: np.ndarray
    """Bool per gene used: those with a value in any cell."""
    sums: np.ndarray
    """Gene sums, a row for the target and one for each background."""
    mass: np.ndarray
    """The same of the values' mass (`Likelihood.mass`)."""
    params: dict[str, Any]
    """What to record of it."""

    @classmethod
    def read(
        cls,
        adata: AnnData,
        design: Design,
        *,
        likelihood: str | Likelihood,
        n_topics: int | None,
        layer: str | None,
        mask_var: MaskVar,
        n_background_topics: int | Literal["auto"] = 0,
        random_state: int = 0,
        dispersion: float | Literal["estimate"] = "estimate",
        dropout: float | Literal["estimate"] = "estimate",
        run: RunOptions,
    ) -> Problem:
        """Read and check all that a fit needs. Raises before anything is done."""
        check_run(run, RunOptions)
        whole_number("random_state", random_state, 0)
        model, refine = _model(likelihood, dispersion, dropout)
        _anndata.check_names(adata)
        matrix = _anndata.read_matrix(adata, layer)
        genes = _anndata.read_genes(adata, mask_var)
        if len(genes) < 2:  # noqa: PLR2004
            msg = f"At least 2 genes must be used, got {len(genes)}. See `mask_var`."
            raise UserError(msg)
        if n_topics is not None:
            most = min(int(design.target.sum()), len(genes))
            whole_number("n_topics", n_topics, 1, most, "the smaller of target cells and genes used")
        if n_background_topics != "auto":
            most = min(int(design.background.sum()), len(genes))
            why = "the smaller of background cells and genes used"
            whole_number("n_background_topics", n_background_topics, 0, most, why)

        source = row_source(
            matrix,
            genes=genes,
            block_rows=run.get("batch_size"),
            n_threads=run.get("n_threads"),
            client=run.get("client"),
            device=run.get("device"),
        )
        every = np.ones(adata.n_obs, bool)
        member = np.column_stack([design.target, *design.backgrounds.values(), every])
        groups = source.place(Groups, member, np.zeros(adata.n_obs))
        summary = source.reduce(partial(summarise, likelihood=model), groups)
        _anndata.check_values(summary, model, adata, layer)
        for name, cells, mass in zip(["target", *design.backgrounds], member.T, summary.mass, strict=False):
            if cells.any() and not mass.any():
                msg = (
                    f"The {name!r} cells hold nothing but zeros in the {len(genes)} genes used. "
                    "Check `layer` and `mask_var`."
                )
                raise UserError(msg)
        n_empty_cells = int((source.gather(groups, "total") == 0).sum())
        expressed = summary.mass[-1] > 0
        n_empty_genes = int((~expressed).sum())
        if n_empty_cells or n_empty_genes:
            logger.info("%d cells and %d genes hold nothing but zeros: they get zeros.", n_empty_cells, n_empty_genes)
        params = {
            "likelihood": model.name,
            "n_topics": n_topics,
            "layer": layer,
            "mask_var": mask_var if mask_var is None or isinstance(mask_var, str) else "array",
            "random_state": random_state,
            "n_genes": len(genes),
            "n_empty_cells": n_empty_cells,
            "n_empty_genes": n_empty_genes,
        }
        return cls(design, source, model, refine, genes, expressed, summary.sums[:-1], summary.mass[:-1], params)

    def contrast(self, alphas: Mapping[str, float], scale: str, *, pooled: bool, key: str) -> Contrast:
        """Set each background's weight; warn where it suppresses many genes.

        ``alpha_effective = alpha * mass(Y) / mass(X)``; backgrounds that are pooled share one alpha as one background
        would.
        """
        target_mass, *background_mass = self.mass
        masses = dict(zip(self.design.backgrounds, background_mass, strict=True))
        ratio = {name: float(mass.sum() / target_mass.sum()) for name, mass in masses.items()}
        together = sum(ratio.values())
        on_sums = dict(alphas)
        if scale == "effective":
            on_sums = {name: alpha / (together if pooled else ratio[name]) for name, alpha in alphas.items()}
        effective = {name: alpha * ratio[name] for name, alpha in on_sums.items()}
        suppressed = self._suppressed(masses, on_sums, sum(effective.values()), pooled=pooled, key=key)
        return Contrast.of(self.design, effective, on_sums, suppressed)

    def _suppressed(
        self, masses: Mapping[str, np.ndarray], alphas: Mapping[str, float], total: float, *, pooled: bool, key: str
    ) -> np.ndarray | None:
        """Genes that die for certain: known before a fit where ``p`` is ``x / mu``."""
        if not self.likelihood.counts:
            return None
        pressure = sum((alphas[name] * mass for name, mass in masses.items()), np.zeros(len(self.genes)))
        fold = np.divide(self.mass[0], pressure, out=np.full(len(pressure), np.inf), where=pressure > 0)
        suppressed, in_target = fold < 1, self.mass[0] > 0
        n_lost, n_genes = int((suppressed & in_target).sum()), int(in_target.sum())
        if n_lost > MAX_SUPPRESSED * n_genes:
            # With all alphas multiplied by it, the gene that is MAX_SUPPRESSED of the way up is just not suppressed.
            factor = np.sort(fold[in_target])[int(MAX_SUPPRESSED * n_genes)]
            less = f"an effective alpha of {factor * total:.2g}" if pooled else f"{factor:.2g} times the alphas"
            msg = (
                f"{n_lost} of the target's {n_genes} genes are suppressed at this alpha: the background outweighs "
                f"them, and their loadings vanish (`adata.var[{key + '_suppressed'!r}]`). At {less} or less, no "
                f"more than {MAX_SUPPRESSED:.0%} would be."
            )
            warnings.warn(msg, UserWarning, stacklevel=stack_level())
        return suppressed

    def check_start(self, init: np.ndarray | None, n_topics: int) -> np.ndarray | None:
        """Return the loadings to start from, if any are given."""
        if init is None:
            return None
        start = np.asarray(init, np.float64)
        if start.shape != (len(self.genes), n_topics) or not np.isfinite(start).all() or (start < 0).any():
            msg = (
                f"`init` must be finite, non-negative loadings of {len(self.genes)} genes used x {n_topics} topics, "
                f"got shape {start.shape}. Cut an array over all genes down to those of `mask_var`."
            )
            raise UserError(msg)
        return start

    def deviance_explained(self, factors: Factors) -> dict[str, float]:
        """Share of the deviance from one topic, the mean profile of the part, that the topics explain."""
        explained = {}
        parts = {
            "target": (self.design.target, self.sums[0], self.mass[0]),
            "background": (self.design.background, self.sums[1:].sum(0), self.mass[1:]),
        }
        for part, (cells, profile, mass) in parts.items():
            if cells.any():
                _, null = transform(self.source, factors.likelihood, (profile / profile.sum())[:, None])
                loss, most = factors.cell_loss[cells].sum(), null[cells].sum()
                # a single cell is its own profile: what is left is rounding
                explained[part] = float(1 - loss / most) if most > ROUNDING * mass.sum() else 0.0
        return explained

    def model(
        self, contrast: Contrast, n_topics: int, n_background_topics: int, basis: Literal["split", "shared"]
    ) -> Model:
        """Return what is to be fitted."""
        return Model(
            likelihood=self.likelihood,
            n_topics=n_topics,
            target=self.design.target.astype(float),
            background=self.design.background,
            contrast=contrast.weight,
            expressed=self.expressed,
            n_background_topics=n_background_topics,
            basis=basis,
            refine=self.refine,
        )

    def record(
        self, factors: Factors, contrast: Contrast, params: dict[str, Any], n_topics: int, *, run: Run
    ) -> dict[str, Any]:
        """Return what goes into `uns`."""
        if not np.isfinite(factors.W).all():
            msg = "The fit ended in loadings that are not finite; nothing is written. Lower `alpha`, or check `init`."
            raise FloatingPointError(msg)
        explained = self.deviance_explained(factors)
        record = {
            "params": params | self.params,
            "topics": topics_table(self.design, factors.H, n_topics),
            "loss": pd.DataFrame(factors.loss, columns=["iteration", "target", "background", "contrast", "change"]),
            "n_iter": factors.n_iter,
            "converged": factors.converged,
            "deviance_explained": explained,
            "weight": factors.weight[factors.W.any(axis=1)].astype(np.float32),  # the genes with loadings
        }
        if self.design.backgrounds:
            record["alpha_effective"] = contrast.total
            record["alphas"] = pd.DataFrame({"effective": contrast.effective, "sum": contrast.on_sums})
        _warn_of_fit(factors, explained, run)
        return record

    def write(
        self,
        adata: AnnData,
        key: str,
        factors: Factors,
        contrast: Contrast,
        record: dict[str, Any],
        cells: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """Write the result."""
        genes: dict[str, np.ndarray] = {}
        if self.design.backgrounds:
            genes["suppressed"] = contrast.suppressed_at(factors.W)
        for name, attribute in (("dispersion", "theta"), ("dropout", "pi")):
            if hasattr(factors.likelihood, attribute):
                genes[name] = np.broadcast_to(getattr(factors.likelihood, attribute), len(self.genes))
        _anndata.write(
            adata,
            key,
            used=self.genes,
            W=factors.W,
            H=factors.H,
            cells={"role": self.design.role} | dict(cells),
            genes=genes,
            record=record,
        )


def topics_table(design: Design, H: np.ndarray, n_topics: int) -> pd.DataFrame:
    """One row per topic, background topics last: its mean share of the usage in target and background."""
    share = shares_of(H)
    n_shared = H.shape[1] - n_topics
    names = [f"Topic {k + 1}" for k in range(n_topics)] + [f"Background {k + 1}" for k in range(n_shared)]
    table = pd.DataFrame(
        {"kind": ["target"] * n_topics + ["background"] * n_shared}, index=pd.Index(names, name="topic")
    )

    def mean(cells: np.ndarray) -> np.ndarray | float:
        return share[cells].mean(0) if cells.any() else np.nan

    table["usage_target"] = mean(design.target)
    if design.backgrounds:
        table["usage_background"] = mean(design.background)
        floor = 1e-6  # the ratio of two vanishing shares says nothing
        table["log2_enrichment"] = np.log2((table["usage_target"] + floor) / (table["usage_background"] + floor))
    return table


def default_alpha(n_background_topics: int | Literal["auto"], basis: str) -> float:
    """Return the effective alpha of a fit for which none is given."""
    if n_background_topics == 0:
        return 0.3
    return 0.5 if basis == "shared" else 0.0


def check_alpha(value: Any, where: str = "") -> None:
    """Refuse what is no strength of a contrast."""
    if isinstance(value, str) or not (np.isscalar(value) and np.isfinite(value) and value >= 0):  # type: ignore[operator]
        msg = f"`alpha` must be a finite number of at least 0, got {value!r}{where}."
        raise UserError(msg)


def one_alpha(background: Any) -> None:
    """Refuse alphas of single backgrounds where all have one."""
    if isinstance(background, Mapping):
        msg = "`background` must name categories here, got a mapping: its alphas would not be used."
        raise UserError(msg)


def check_parameters(likelihoods: Iterable[str], dispersion: Any, dropout: Any) -> None:
    """Refuse unknown likelihoods, and parameters that none of them has."""
    names = list(likelihoods)
    for name in names:
        if name not in LIKELIHOODS:
            msg = f"`likelihood` must be one of {', '.join(map(repr, LIKELIHOODS))}, got {name!r}."
            raise UserError(msg)
    for argument, value in (("dispersion", dispersion), ("dropout", dropout)):
        if value != "estimate" and not any(argument in PARAMETERS.get(name, ()) for name in names):
            having = " or ".join(repr(name) for name, own in PARAMETERS.items() if argument in own)
            msg = (
                f"`{argument}` is a parameter of the likelihood {having}, got {value!r} with {listed(names)}. "
                "Leave it out, or name another `likelihood`."
            )
            raise UserError(msg)


def _model(likelihood: str | Likelihood, dispersion: Any, dropout: Any) -> tuple[Likelihood, bool]:
    """Return the likelihood, and whether its parameters are to be estimated."""
    if not isinstance(likelihood, str):
        return likelihood, isinstance(likelihood, Joint) and likelihood.estimate
    check_parameters([likelihood], dispersion, dropout)
    values = {"dispersion": dispersion, "dropout": dropout}
    asked = {argument: values[argument] for argument in PARAMETERS.get(likelihood, ())}
    estimate = [value for value in asked.values() if isinstance(value, str)]
    given: dict[str, Any] = {}
    for argument, value in asked.items():
        name, most = {"dispersion": ("theta", np.inf), "dropout": ("pi", 1.0)}[argument]
        if isinstance(value, str):
            if value != "estimate":
                msg = f"`{argument}` must be a number or 'estimate', got {value!r}."
                raise UserError(msg)
            continue
        if not 0 < value < most:
            msg = f"`{argument}` must lie between 0 and {most}, got {value!r}."
            raise UserError(msg)
        given[name] = float(value)
    if estimate and given:
        msg = "`dispersion` and `dropout` must both be numbers or both 'estimate'."
        raise UserError(msg)
    return LIKELIHOODS[likelihood](**given), bool(estimate)


def _warn_of_fit(factors: Factors, explained: dict[str, float], run: Run) -> None:
    if not factors.converged and not all_gone_through(run, factors.n_iter):
        msg = (
            f"The loadings still moved by {factors.change:.1e} an iteration after {factors.n_iter} iterations. Raise "
            "`max_iter`, or `tol` if that is close enough. With a strong contrast there may be no point of rest: "
            "lower `alpha`."
        )
        warnings.warn(msg, ConvergenceWarning, stacklevel=stack_level())
    if explained.get("target", 0) < 0:
        msg = (
            f"The topics describe the target worse than its mean profile does (deviance explained: "
            f"{explained['target']:.2f}): the contrast took too much. Lower `alpha`."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())
