"""What every factorisation does around the engine: open a problem, set alpha, record how the fit ended."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from ... import _anndata, _mudata
from ..._stored import NOTHING
from ..._utils.checks import stack_level
from ..._utils.errors import UserError
from ...engine import Factors, Run, transform
from ...engine.bcnmf.ensemble import Model, shares_of
from .._run import RunOptions, all_gone_through, check_run

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from ..._anndata import Data, Design, Reading

LIKE_ALL = 0.85
"""Cosine of a topic with the mean profile of the target's cells from which on it may be that of all cells."""
MAX_SUPPRESSED = 0.1
"""Share of suppressed genes from which on a fit warns."""
VANISHED = 1e-8
"""Loading below which a gene counts for nothing."""
ROUNDING = 1e-6
"""Share of the values' mass below which a deviance in single precision says nothing."""
DEEPER = 1.5
"""Ratio of the mean depths of target and background from which on a fit warns."""
CANNOT_TELL = (
    "No computation on these data can exclude that ambient RNA, or a batch that coincides with the condition, is the "
    "cause."
)
"""What is said wherever something of the target is found."""
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
    """A factorisation to be solved."""

    data: Data

    @classmethod
    def read(cls, adata: AnnData | MuData, asked: Reading, *, several: bool = False) -> Problem:
        """Read and check all that a fit needs; if ``several``, the modalities of a MuData, too."""
        check_run(asked.run, RunOptions)
        data = _mudata.read(adata, asked) if several else _anndata.read(adata, asked)
        return Problem(data)

    def contrast(self, alphas: Mapping[str, float], scale: str, *, pooled: bool) -> Contrast:
        """Set each background's weight; warn where it suppresses many genes.

        ``alpha_effective = alpha * mass(Y) / mass(X)``; backgrounds that are pooled share one alpha as one background
        would.
        """
        target_mass, *background_mass = self.data.mass
        masses = dict(zip(self.data.design.backgrounds, background_mass, strict=True))
        ratio = {name: float(mass.sum() / target_mass.sum()) for name, mass in masses.items()}
        together = sum(ratio.values())
        on_sums = dict(alphas)
        if scale == "effective":
            on_sums = {name: alpha / (together if pooled else ratio[name]) for name, alpha in alphas.items()}
        effective = {name: alpha * ratio[name] for name, alpha in on_sums.items()}
        suppressed = self._suppressed(masses, on_sums, sum(effective.values()), pooled=pooled)
        return Contrast.of(self.data.design, effective, on_sums, suppressed)

    def _suppressed(
        self, masses: Mapping[str, np.ndarray], alphas: Mapping[str, float], total: float, *, pooled: bool
    ) -> np.ndarray | None:
        """Genes that die for certain: known before a fit where ``p`` is ``x / mu``."""
        if not self.data.likelihood.counts:
            return None
        pressure = sum((alphas[name] * mass for name, mass in masses.items()), np.zeros(len(self.data.genes)))
        fold = np.divide(self.data.mass[0], pressure, out=np.full(len(pressure), np.inf), where=pressure > 0)
        suppressed, in_target = fold < 1, self.data.mass[0] > 0
        n_lost, n_genes = int((suppressed & in_target).sum()), int(in_target.sum())
        if n_lost > MAX_SUPPRESSED * n_genes:
            # With all alphas multiplied by it, the gene that is MAX_SUPPRESSED of the way up is just not suppressed.
            factor = np.sort(fold[in_target])[int(MAX_SUPPRESSED * n_genes)]
            less = f"an effective alpha of {factor * total:.2g}" if pooled else f"{factor:.2g} times the alphas"
            msg = (
                f"{n_lost} of the target's {n_genes} genes are suppressed at this alpha: the background outweighs "
                f"them, and their loadings vanish (`adata.var['{self.data.asked.key}_suppressed']`). At {less} or "
                f"less, no more than {MAX_SUPPRESSED:.0%} would be."
            )
            warnings.warn(msg, UserWarning, stacklevel=stack_level())
        return suppressed

    def deviance_explained(self, factors: Factors) -> dict[str, float]:
        """Share of the deviance from one topic, the mean profile of the part, that the topics explain."""
        explained = {}
        parts = {
            "target": (self.data.design.target, self.data.sums[0], self.data.mass[0]),
            "background": (self.data.design.background, self.data.sums[1:].sum(0), self.data.mass[1:]),
        }
        for part, (cells, profile, mass) in parts.items():
            if cells.any():
                _, null = transform(self.data.source, factors.likelihood, (profile / profile.sum())[:, None])
                loss, most = factors.cell_loss[cells].sum(), null[cells].sum()
                # a single cell is its own profile, and a single topic the mean: what is left is rounding
                found = float(1 - loss / most) if most > ROUNDING * mass.sum() else 0.0
                explained[part] = found if abs(found) > ROUNDING else 0.0
        return explained

    def model(
        self, contrast: Contrast, n_topics: int, n_background_topics: int, basis: Literal["split", "shared"]
    ) -> Model:
        """Return what is to be fitted."""
        return Model(
            likelihood=self.data.likelihood,
            n_topics=n_topics,
            target=self.data.design.target.astype(float),
            background=self.data.design.background,
            contrast=contrast.weight,
            expressed=self.data.expressed,
            n_background_topics=n_background_topics,
            basis=basis,
            refine=self.data.estimated,
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
            "params": params | self.data.params,
            "topics": self._topics(factors, n_topics),
            "loss": pd.DataFrame(factors.loss, columns=["iteration", "target", "background", "contrast", "change"]),
            "n_iter": factors.n_iter,
            "converged": factors.converged,
            "deviance_explained": explained,
            "weight": factors.weight[factors.W.any(axis=1)].astype(np.float32),  # the genes with loadings
        }
        if self.data.design.backgrounds:
            record["alpha_effective"] = contrast.total
            record["alphas"] = pd.DataFrame({"effective": contrast.effective, "sum": contrast.on_sums})
        _warn_of_fit(factors, explained, run)
        return record

    def _topics(self, factors: Factors, n_topics: int) -> pd.DataFrame:
        """Describe the topics: their usage, and in a contrast how much they look like all of the target together."""
        table = topics_table(self.data.design, factors.H, n_topics)
        if self.data.design.backgrounds:
            table["profile_cosine"] = _cosine(factors.W, self.data.sums[0])
        return table

    def write(
        self,
        factors: Factors,
        contrast: Contrast,
        record: dict[str, Any],
        cells: Mapping[str, np.ndarray] = NOTHING,
        notes: Mapping[str, Any] = NOTHING,
    ) -> Any:
        """Write the result; return the copy, if one is asked for."""
        genes: dict[str, np.ndarray] = {}
        if self.data.design.backgrounds:
            genes["suppressed"] = contrast.suppressed_at(factors.W)
        for name, values in factors.likelihood.parameters().items():
            genes[name] = np.broadcast_to(values, len(self.data.genes))
        cells = {"role": self.data.design.role} | dict(cells)
        return self.data.store(W=factors.W, H=factors.H, cells=cells, genes=genes, record=record, notes=notes)


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


def _cosine(W: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Compute the cosine of each column with a profile; 0 for empty ones."""
    size = np.linalg.norm(W, axis=0) * np.linalg.norm(profile)
    return np.divide(profile @ W, size, out=np.zeros(W.shape[1]), where=size > 0)


def default_alpha(n_background_topics: int | Literal["auto"], basis: str) -> float:
    """Return the effective alpha of a fit for which none is given."""
    if n_background_topics == 0:
        return 0.3
    return 0.5 if basis == "shared" else 0.0


def warn_of_logs(data: Data) -> None:
    """Say that a contrast of log-normalised values finds depth."""
    if data.logged and not data.likelihood.counts:
        msg = (
            "The values look log-normalised. That does not remove the effect of sequencing depth: a background "
            "measured at another depth produces topics of depth. Use counts (`layer=`) with the default likelihood."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())


def warn_of_depth(data: Data) -> None:
    """Say that target and background differ in depth, which is not removed in full."""
    n_target, n_background = data.design.target.sum(), data.design.background.sum()
    for name, genes in data.counted.items():
        target, background = data.sums[0, genes].sum() / n_target, data.sums[1:, genes].sum() / n_background
        ratio = float(target / background) if background > 0 else np.inf
        if max(ratio, 1 / ratio if ratio else np.inf) >= DEEPER:
            msg = (
                f"A target cell has {ratio:.2g} times as many counts as a background cell in the genes used"
                + (f" of {name!r}" if name else "")
                + ". Topics and cells can be called because of depth alone. Thin the deeper side with "
                "`bcnmf_sc.pp.match_depth` before the fit."
            )
            warnings.warn(msg, UserWarning, stacklevel=stack_level())


def one_alpha(background: Any) -> None:
    """Refuse alphas of single backgrounds where all have one."""
    if isinstance(background, Mapping):
        msg = "`background` must name categories here, got a mapping: its alphas would not be used."
        raise UserError(msg)


def _warn_of_fit(factors: Factors, explained: dict[str, float], run: Run) -> None:
    if not factors.converged and not all_gone_through(run, factors.n_iter):
        msg = (
            f"The loadings still moved by {factors.change:.1e} an iteration after {factors.n_iter} iterations. Raise "
            "`max_iter`, or `tol` if that is close enough. With a strong contrast the fit may not converge at all: "
            "lower `alpha`."
        )
        warnings.warn(msg, ConvergenceWarning, stacklevel=stack_level())
    if explained.get("target", 0) < 0:
        msg = (
            f"The topics describe the target worse than its mean profile does (deviance explained: "
            f"{explained['target']:.2f}): the contrast took too much. Lower `alpha`."
        )
        warnings.warn(msg, UserWarning, stacklevel=stack_level())
