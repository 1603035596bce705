"""The stored analysis, as the sections of the report read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import get
from .._methods import method_of
from .._stored import question

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from anndata import AnnData

    from .._methods import Method, Report

SIDES = ["target", "background"]
TYPES = re.compile(r"(cell_?type|cell_?class|cell_?label|annotation|leiden|louvain|cluster|subset)", re.IGNORECASE)
"""Names of columns that hold cell types or clusters."""
DONORS = ("donor", "patient", "subject", "individual", "participant", "mouse", "animal", "sample")
"""Parts of the names of columns that hold donors, the surest first."""
MOST_GROUPS = 60
"""A column with more values does not describe groups of cells."""
EXCESS = (0.02, 1.5)
"""Least difference, and least ratio, of the shares of called cells that count as more than the background's."""
LEAST_CELLS = 20
"""Cells of a group below which its share of called cells says little."""
SUFFIX = re.compile(r"[_|.:]ENS[A-Z]*G\d+(\.\d+)?$")
"""An identifier that makes the symbol before it unique."""


@dataclass(frozen=True)
class Analysis:
    """The stored analysis, as the sections read it."""

    adata: AnnData
    key: str
    record: Mapping[str, Any]
    n_genes: int
    gene_symbols: str | None
    groupby: str | None = None

    @property
    def params(self) -> Mapping[str, Any]:
        """The arguments of the fit."""
        return self.record.get("params", {})

    @property
    def method(self) -> Method:
        """The method of the fit."""
        return method_of(self.record)

    @property
    def says(self) -> Report:
        """The method's texts for the report."""
        assert self.method.report is not None  # for type checkers: checked by `report`
        return self.method.report

    @property
    def trained(self) -> bool:
        """Whether the fit has background topics."""
        return bool((self.record["topics"]["kind"] == "background").any())

    @property
    def topics(self) -> pd.DataFrame:
        """The topics of interest."""
        table = self.record["topics"]
        return table[table["kind"].isin(self.method.kinds)]

    # Cells

    @property
    def role(self) -> pd.Series | None:
        """Role of each cell in the fit."""
        return self.adata.obs.get(f"{self.key}_role")

    @property
    def projected(self) -> bool:
        """Whether the topics were learned on other cells."""
        return self.role is not None and bool((self.role == "projected").all())

    @property
    def enriched(self) -> pd.Series | None:
        """Whether each cell is called."""
        return self.adata.obs.get(f"{self.key}_enriched")

    def cells(self, side: str) -> np.ndarray:
        """Bool per cell: of the target alone, or of the background."""
        assert self.role is not None  # for type checkers: every fit writes it
        role = self.role.astype(str)
        return (role == "target" if side == "target" else role.isin(["background", "both"])).to_numpy()

    @cached_property
    def name(self) -> dict[str, str]:
        """What target and background are called in the data."""
        if not self.groups or self.role is None:
            return {side: f"the {side}" for side in SIDES}
        column = self.adata.obs[next(iter(self.groups.values()))]
        values = {side: [str(v) for v in column[self.cells(side)].dropna().unique()] for side in SIDES}
        return {side: " + ".join(sorted(v)) if 0 < len(v) <= 3 else side for side, v in values.items()}  # noqa: PLR2004

    @property
    def donors(self) -> dict[str, set[str]]:
        """Donors of each side, where the fit named them."""
        column = self.params.get("sample_key")
        if not column or column not in self.adata.obs or self.role is None:
            return {}
        return {side: set(self.adata.obs[column][self.cells(side)].dropna().astype(str)) for side in SIDES}

    @cached_property
    def types(self) -> str | None:
        """Column of the cell types: the one given, the fit's strata, or one named like it."""
        given = self.groupby or self.params.get("strata_key")
        if given:
            return str(given) if given in self.adata.obs else None
        return next((name for name in self._groupings if TYPES.search(name)), None)

    @property
    def _groupings(self) -> list[str]:
        """Columns of obs, other than the fit's own, that name groups of cells."""
        obs = self.adata.obs
        own = {*self.params.get("written", ()), *(f"obs.{c}" for c in (*self.groups.values(),) if isinstance(c, str))}
        return [
            str(name)
            for name in obs
            if f"obs.{name}" not in own
            and not pd.api.types.is_numeric_dtype(obs[name])
            and 1 < obs[name].nunique() <= min(MOST_GROUPS, len(obs) // 2)
        ]

    @property
    def rates(self) -> tuple[float, float]:
        """Shares of called cells in the target and in the background."""
        assert self.enriched is not None  # for type checkers
        called = self.enriched.to_numpy(dtype=bool)
        target, background = (called[self.cells(side)].mean() if self.cells(side).any() else 0.0 for side in SIDES)
        return float(target), float(background)

    def called_by(self, column: str) -> pd.DataFrame | None:
        """Return the number of target cells and the shares of called cells by group, the largest share first."""
        if column not in self.adata.obs or self.enriched is None:
            return None
        group = self.adata.obs[column].astype(str).to_numpy(dtype=object)
        known = self.adata.obs[column].notna().to_numpy()
        called = self.enriched.to_numpy(dtype=bool)
        by = {}
        for side in SIDES:
            cells = self.cells(side) & known
            by[side] = pd.Series(called[cells]).groupby(group[cells]).agg(["size", "mean"])
        table = pd.DataFrame({"n": by["target"]["size"], "target": by["target"]["mean"]})
        table["background"] = by["background"]["mean"].reindex(table.index)
        return table.sort_values(["target", "n"], ascending=False, kind="stable") if len(table) else None

    # Suggested calls

    @property
    def groups(self) -> dict[str, Any]:
        """Column and names of the two groups of cells, as arguments of a call; empty for a fit without groups."""
        if self.method.sides is None or self.method.sides[0] not in self.params:
            return {}
        found = self.method.sides
        side = self.params[found[1]]
        values = [str(x) for x in ([side] if isinstance(side, str) else side)]
        return {found[0]: str(self.params[found[0]]), found[1]: values[0] if len(values) == 1 else values}

    @property
    def data(self) -> dict[str, Any]:
        """The groups, and the fit's other arguments about the data, as arguments of a call."""
        given = {name: self.params.get(name) for name in ("target", "layer", "likelihood")}
        more: dict[str, Any] = {k: v for k, v in given.items() if v is not None and str(v) != "poisson"}
        if not isinstance(more.get("target", ""), str):
            more["target"] = [str(x) for x in more["target"]]
        return self.groups | more

    @property
    def sample(self) -> dict[str, str]:
        """The column of the donors, as an argument: the fit's, or one named like it; empty if there is none."""
        named = self.params.get("sample_key") or self.params.get("unnamed_donors")
        likely = [name for part in DONORS for name in self._groupings if part in name.lower()]
        found = str(named) if named else next(iter(likely), None)
        return {"sample_key": found} if found is not None and found in self.adata.obs else {}

    @property
    def example(self) -> dict[str, str]:
        """A column to test, as arguments; empty if there is none: the contrast, unless it trained background topics."""
        columns = [str(self.params["background_key"])] if self.says.contrast and not self.trained else []
        columns += [name for name in self._groupings if name != self.sample.get("sample_key")]
        return {"groupby": columns[0]} | self.sample if columns else {}

    def call(self, function: str, **arguments: Any) -> str:
        """Format a call, with the key if it is not the default."""
        name = "key" if function in ("associate", "associate_genes", "enrich", "umap") else "key_added"
        given = ({name: self.key} if self.key != "bcnmf" else {}) | arguments
        return f"bc.tl.{function}({', '.join(['adata', *(f'{name}={value!r}' for name, value in given.items())])})"

    # Results

    def step(self, name: str) -> Any:
        """Return what a step before the fit has stored beside it, unless that was asked about other cells or values."""
        uns = self.adata.uns
        found = uns.get(f"{self.key}_{name}")
        design = found.get("design") if isinstance(found, dict) else uns.get(f"{self.key}_{name}_design")
        same = design is None or question(design, self.adata.obs) == question(self.params, self.adata.obs)
        return found if same else None

    @cached_property
    def genes(self) -> pd.Series:
        """The specific genes of each topic, as lists: by loading times specificity."""
        by: Any = "score" if len(self.record["topics"]) > 1 else "loading"
        long = get.top_genes(self.adata, "all", self.n_genes, key=self.key, by=by, gene_symbols=self.gene_symbols)
        if by == "score":
            long = long[(long["specificity"] > 0) & (long["loading"] > 0)]
        return long.groupby("topic", observed=True)["gene"].agg(
            lambda names: [SUFFIX.sub("", str(name)) for name in names]
        )


def is_excess(target: float, background: float) -> bool:
    """Return whether more cells are called in the target than chance calls."""
    return target - background >= EXCESS[0] and target >= EXCESS[1] * background
