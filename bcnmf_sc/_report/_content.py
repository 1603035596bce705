"""The sections of a report: each from what is stored, or the call that would store it."""

from __future__ import annotations

import platform
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import get, pl
from .._methods import method_of
from ..pl._axes import LEVEL
from ._cautions import cautions, of_this_design
from ._page import Code, Facts, Items, Missing, Part, Section, Text, picture, table, written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData

    from .._methods import Method, Report

TOPICS = "Topics: mean share of usage, and out-of-fold tests where available"
BEST_SETS = 5
"""Gene sets shown per topic."""
BEST_GENES = 30
"""Tested genes shown per comparison."""
CONSENSUS = (
    "Dylan Kotliar et al. Identifying gene expression programs of cell-type identity and cellular activity with "
    "single-cell RNA-Seq. eLife 8:e43803 (2019)."
)
PACKAGES = ("bcnmf-sc", "anndata", "numpy", "scipy", "pandas", "torch", "scanpy", "matplotlib")


@dataclass(frozen=True)
class Analysis:
    """The stored analysis, as the sections read it."""

    adata: AnnData
    key: str
    record: Mapping[str, Any]
    n_genes: int
    gene_symbols: str | None

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
    def example(self) -> dict[str, str]:
        """A column to test: the contrast itself only if it did not train background topics."""
        trained = (self.record["topics"]["kind"] == "background").any()
        column = self.params["background_key"] if self.says.contrast and not trained else "diagnosis"
        return {"groupby": str(column), "sample_key": str(self.params.get("sample_key") or "donor")}

    def call(self, function: str, **arguments: Any) -> str:
        """Format a call, with the key if it is not the default."""
        name = "key" if function in ("associate", "associate_genes", "enrich", "umap") else "key_added"
        given = ({name: self.key} if self.key != "bcnmf" else {}) | arguments
        return f"bc.tl.{function}({', '.join(['adata', *(f'{name}={value!r}' for name, value in given.items())])})"


def sections(
    adata: AnnData, key: str, record: Mapping[str, Any], *, n_genes: int, gene_symbols: str | None
) -> list[Section]:
    """Return the sections in the order of the page."""
    of = Analysis(adata, key, record, n_genes, gene_symbols)
    titles: dict[str, tuple[str, Callable[[Analysis], list[Part]]]] = {
        "question": ("Question", _question),
        "warnings": ("Warnings", _warnings),
        "background": ("Background check", _background),
        "alpha": ("Choice of alpha and topics", _choices),
        "topics": ("Topics", _topics),
        "usage": ("Usage", _usage),
        "tests": ("Tests", _tests),
        "enrichment": ("Enrichment", _enrichment),
        "stability": ("Stability", _stability),
        "fit": ("The fit", _fit),
        "parameters": ("Parameters", _parameters),
        "versions": ("Versions", _versions),
        "citation": ("How to cite", _citation),
    }
    plain = () if of.says.contrast else ("background", "alpha")
    return [Section(name, title, made(of)) for name, (title, made) in titles.items() if name not in plain]


def _question(of: Analysis) -> list[Part]:
    role = of.adata.obs.get(f"{of.key}_role")
    n = {} if role is None else role.value_counts().to_dict()
    kinds = of.record["topics"]["kind"].value_counts(sort=False).to_dict()
    column = next(iter(of.groups.values()), "")
    side = written(list(of.groups.values())[-1]) if of.groups else ""
    if set(n) and n.get("projected", 0) == of.adata.n_obs:
        asked = f"How much do these {of.adata.n_obs} cells use topics learned on other cells?"
    else:
        chosen = of.params.get(of.method.sides[2]) if of.method.sides else None
        who = (
            f"all labelled cells of {column!r}"
            if isinstance(chosen, str) and chosen == "all"
            else f"{column!r} is " + (f"not {side}" if chosen is None else written(chosen))
        )
        cells = defaultdict(int, {"target": of.adata.n_obs} if role is None else n)
        cells |= {name: cells[name] + cells["both"] for name in ("target", "background")}
        asked = of.says.question.format_map(cells | {"column": column, "side": side, "who": who})
    facts = [
        ("data", f"{of.adata.n_obs} cells × {of.adata.n_vars} genes"),
        ("genes used", written(of.params.get("n_genes", of.adata.n_vars))),
        ("topics", ", ".join(f"{count} {kind}" for kind, count in kinds.items())),
    ]
    if "likelihood" in of.params:
        facts.append(("likelihood", str(of.params["likelihood"])))
    if "alpha_effective" in of.record:
        facts.append(("alpha (effective)", written(float(of.record["alpha_effective"]))))
    if 0 < n.get("projected", 0) < of.adata.n_obs:
        facts.append(("projected", f"{n['projected']} cells in neither group, scored on the same topics"))
    parts: list[Part] = [Text(asked), Facts(facts)]
    sample = of.params.get("sample_key")
    if sample and sample in of.adata.obs and role is not None:
        counts = pd.crosstab(of.adata.obs[sample].astype(str), role.astype(str))
        parts.append(table(counts.rename_axis(index=sample, columns=None), f"Cells of each {sample}"))
    return parts


def _warnings(of: Analysis) -> list[Part]:
    found = cautions(of.adata, of.key, of.record)
    return [Items(found)] if found else [Text("No warnings for the stored results.")]


def _background(of: Analysis) -> list[Part]:
    found = of_this_design(of.adata, of.key, "background_check")
    if found is None:
        return [Missing("The background was not checked.", of.call("background_check", **of.data))]
    return [table(found, "Is this background suitable?")]


def _choices(of: Analysis) -> list[Part]:
    parts: list[Part] = []
    alpha = of_this_design(of.adata, of.key, "alpha")
    if alpha is None:
        used = written(float(of.record["alpha_effective"])) if "alpha_effective" in of.record else "as given"
        parts.append(Missing(f"No path over alpha is stored; alpha was {used}.", of.call("select_alpha", **of.data)))
    else:
        values = ", ".join(written(float(a)) for a in alpha["table"]["alpha"])
        alt = f"Held-out gain ratio and deviance explained at alpha {values}; {float(alpha['alpha']):g} was chosen."
        parts.append(Text(str(alpha["reason"])))
        parts.append(picture(partial(pl.alpha_path, of.adata, key=of.key), alt, "Path over alpha"))
        parts.append(table(alpha["table"], "Path over alpha", fold=True))
    topics = of_this_design(of.adata, of.key, "n_topics")
    auto = of.record.get("selection")
    for found in (topics, auto):
        if found is not None:
            parts += [Text(str(found["reason"])), table(found["table"], "Numbers of topics tried", fold=True)]
    if topics is None and auto is None:
        text = "The numbers of topics were given, not selected from the data."
        parts.append(Missing(text, of.call("select_n_topics", **of.data)))
    return parts


def _topics(of: Analysis) -> list[Part]:
    found = get.topics(of.adata, key=of.key)
    show: dict[str, Any] = {"n_genes": of.n_genes, "key": of.key, "gene_symbols": of.gene_symbols}
    leading = {"by loading": get.top_genes(of.adata, "all", **show)}
    if len(found) > 1:
        leading["by specificity"] = get.top_genes(of.adata, "all", by="specificity", **show)
    genes = pd.DataFrame(
        {
            how: long.groupby("topic", observed=True)["gene"].agg(lambda names: ", ".join(map(str, names)))
            for how, long in leading.items()
        }
    )
    genes.index = pd.Index([str(name) for name in genes.index], name="topic")
    first = "; ".join(f"{topic}: {names.split(', ')[0]}" for topic, names in genes.iloc[:, 0].items())
    target = found.index[found["kind"].isin(of.method.kinds)].tolist()  # the others are in the tables
    drawn = partial(pl.loadings, of.adata, topics=target, **(show | {"n_genes": min(of.n_genes, 5)}))
    parts: list[Part] = [
        table(found.rename_axis("topic"), TOPICS, fold=False),
        table(genes, f"The {of.n_genes} leading genes of each topic", fold=False),
        picture(
            drawn,
            f"Heatmap of the loadings. Leading gene of each topic: {first}.",
            f"Leading genes and loadings of {len(target)} topics",
        ),
    ]
    for name, caption in of.says.tables.items():
        if name in of.record:
            parts.append(table(of.record[name].rename_axis("topic"), caption))
    return parts


def _usage(of: Analysis) -> list[Part]:
    parts: list[Part] = []
    obs, role = of.adata.obs, f"{of.key}_role"
    sample = of.params.get("sample_key")
    if role in obs:
        means = get.usage(of.adata, key=of.key, normalize=True).groupby(obs[role].astype(str)).mean().T
        text = "; ".join(f"{group}: mostly {column.idxmax()} ({column.max():.0%})" for group, column in means.items())
        drawn = partial(pl.usage, of.adata, key=of.key, sample_key=sample if sample in obs else None)
        alt = f"Box plots of each topic's share of usage by role of the cells. Mean shares: {text}."
        parts.append(picture(drawn, alt, "Share of usage by role in the fit"))
    share = f"{of.key}_target_share"
    if share in obs:
        by = obs.groupby(obs[role].astype(str))
        summary = pd.DataFrame(
            {
                "cells": by.size(),
                "median target share": by[share].median(),
                "cells called": by[f"{of.key}_enriched"].mean().map("{:.1%}".format),
            }
        ).rename_axis("role")
        parts.append(table(summary, "Out-of-fold target share, and the share of cells called target-enriched"))
    elif of.says.contrast:
        trained = int((of.record["topics"]["kind"] == "background").sum())
        why = "cross-fitting was off" if trained else "cells are not scored without background topics"
        text = f"No target share is stored: {why}."
        topics = {"n_topics": int(of.params["n_topics"]), "n_background_topics": trained or "auto"}
        call = of.call("bcnmf", **of.data, **topics)
        parts.append(Missing(text, call))
    if f"X_{of.key}_umap" not in of.adata.obsm:
        parts.append(Missing("No UMAP of the usage is stored.", of.call("umap")))
        return parts
    for color in (role, share):
        if color in obs:
            drawn = partial(pl.umap, of.adata, key=of.key, color=color)
            parts.append(picture(drawn, f"UMAP of the topic proportions, coloured by {color}.", f"UMAP by {color}"))
    return parts


def _tests(of: Analysis) -> list[Part]:
    parts: list[Part] = []
    columns = ["topic", "group", "reference", "test", "unit", "n_group", "n_reference"]
    columns += ["mean_group", "mean_reference", "difference", "ci_low", "ci_high", "p_value", "p_adjusted"]
    if "associations" in of.record:
        for groupby in get.associations(of.adata, key=of.key)["groupby"].astype(str).unique():
            found = get.associations(of.adata, groupby, key=of.key)
            low = found[found["p_adjusted"] <= LEVEL]
            names = ", ".join(f"{t} ({g})" for t, g in zip(low["topic"], low["group"], strict=True)) or "none"
            alt = f"Difference in share of usage by {groupby} with 95 % intervals. Adjusted p at most 0.05: {names}."
            drawn = partial(pl.associations, of.adata, groupby, key=of.key)
            parts.append(picture(drawn, alt, f"Topics against {groupby}"))
            parts.append(table(found[columns].set_index("topic"), f"Topics against {groupby}", fold=True))
    else:
        parts.append(Missing("Topics were not tested against a column.", of.call("associate", **of.example)))
    if "gene_associations" in of.record:
        genes = get.associations(of.adata, key=of.key, table="genes")
        for (groupby, group), found in genes.groupby(["groupby", "group"], sort=False, observed=True):
            best = found.sort_values("p_value", kind="stable").head(BEST_GENES)
            keep = ["gene", "reference", "test", "n_group", "n_reference", "log2_ratio", "p_value", "p_adjusted"]
            caption = f"Genes against {groupby}: {group}, the {len(best)} of {len(found)} with the smallest p"
            parts.append(table(best[keep].set_index("gene"), caption))
    else:
        parts.append(Missing("Genes were not tested.", of.call("associate_genes", **of.example)))
    return parts


def _enrichment(of: Analysis) -> list[Part]:
    if "enrichment" not in of.record:
        return [Missing("No gene sets were tested.", of.call("enrich", gene_sets="sets.gmt"))]
    found = get.enrichment(of.adata, "all", key=of.key)
    best = found[found["n_overlap"] > 0].groupby(["topic", "method"], sort=False, observed=True).head(BEST_SETS)
    keep = ["topic", "gene_set", "method", "n_overlap", "set_size", "score", "p_value", "p_adjusted", "genes"]
    best = best[keep].assign(genes=best["genes"].astype(str).str.replace(";", ", "))
    n_sets, n_used = found["gene_set"].nunique(), int(found["universe"].max())
    text = (
        f"{n_sets} gene sets were tested, among the {n_used} genes used. P-values rank sets; genes are not independent."
    )
    return [Text(text), table(best.set_index("topic"), f"The {BEST_SETS} leading gene sets of each topic")]


def _stability(of: Analysis) -> list[Part]:
    topics = of.record["topics"]
    if "stability" not in topics or topics["stability"].isna().all():
        text = "The stability of these topics over random starts is not stored."
        sizes = {name: int(of.params[name]) for name in of.params if name.startswith("n_topics")}
        other = {} if of.says.again == "consensus" else {"random_state": 1, "key_added": f"{of.key}_again"}
        again = of.data | sizes | other
        return [Missing(text, of.call(of.says.again, **again))]
    values = topics["stability"].dropna()
    source = "restarts" if "n_members" in topics else "cross-validation fits"
    alt = f"Stability of each topic over {source}: " + ", ".join(f"{t} {v:.2f}" for t, v in values.items()) + "."
    caption = f"Stability: mean cosine similarity to the matching topic in {source}"
    return [picture(partial(pl.stability, of.adata, key=of.key), alt, caption)]


def _fit(of: Analysis) -> list[Part]:
    facts = []
    if "converged" in of.record:
        how = "converged after" if of.record["converged"] else "NOT converged after"
        facts.append(("loadings", f"{how} {int(of.record['n_iter'])} iterations"))
    for part, share in sorted(of.record.get("deviance_explained", {}).items()):
        facts.append((f"deviance explained, {str(part).replace('_', ' ')}", written(float(share))))
    suppressed = of.adata.var.get(f"{of.key}_suppressed")
    if suppressed is not None:
        facts.append(
            ("suppressed genes", f"{int(suppressed.sum())} of {written(of.params.get('n_genes', len(suppressed)))}")
        )
    parts: list[Part] = [Facts(facts)] if facts else []
    if "loss" in of.record:
        alt = "Loss on target and background, and change of the loadings, by iteration."
        parts.append(picture(partial(pl.loss, of.adata, key=of.key), alt, "Convergence of the fit"))
    if "alphas" in of.record:
        caption = "Weight of each background, on the effective scale and on the scale of the sums"
        parts.append(table(of.record["alphas"].rename_axis("background"), caption))
    return parts


def _parameters(of: Analysis) -> list[Part]:
    return [Facts([(str(name), written(value)) for name, value in sorted(of.params.items())])]


def _versions(of: Analysis) -> list[Part]:
    facts = [("bcnmf_sc of the fit", written(of.params.get("version", "not stored")))]
    facts += [(f"{name} of this report", version(name)) for name in PACKAGES]
    return [Facts([*facts, ("Python of this report", platform.python_version())])]


def _citation(of: Analysis) -> list[Part]:
    papers = [of.says.paper]
    papers += [CONSENSUS] if "n_members" in of.record["topics"] else []
    made = written(of.params.get("version", version("bcnmf-sc")))
    text = "\n".join([*papers, f"bcnmf_sc {made}: the software used for these results."])
    return [Text("Cite the method and the software:"), Code(text, "Citation")]
