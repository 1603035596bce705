"""The sections of a report: the answer, the evidence for it, diagnostics, methods."""

from __future__ import annotations

import platform
import textwrap
from collections import defaultdict
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import get, pl
from ..pl._axes import LEVEL
from ._analysis import Analysis
from ._answer import MOST_CARDS, answer, by_group, gained
from ._cautions import reasons
from ._page import WIDEST, Code, Facts, Fold, Items, Missing, Part, Row, Section, Text, picture, table, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._page import Picture

TOPICS = "Mean share of usage, and out-of-fold tests where available"
BEST_SETS = 5
"""Gene sets shown per topic."""
DRAWN_SETS = 3
BEST_GENES = 30
"""Tested genes shown per comparison."""
MOST_DRAWN = 4
"""Topics side by side in a narrow figure."""
HEAT_ROWS = 20
"""Rows of the heatmap of loadings."""
CONSENSUS = (
    "Dylan Kotliar et al. Identifying gene expression programs of cell-type identity and cellular activity with "
    "single-cell RNA-Seq. eLife 8:e43803 (2019)."
)
PACKAGES = ("bcnmf-sc", "anndata", "numpy", "scipy", "pandas", "torch", "scanpy", "matplotlib")


def sections(
    adata: AnnData,
    key: str,
    record: Mapping[str, Any],
    *,
    n_genes: int,
    gene_symbols: str | None,
    groupby: str | None = None,
) -> list[Section]:
    """Return the sections in the order of the page."""
    of = Analysis(adata, key, record, n_genes, gene_symbols, groupby)
    return [
        Section("answer", "In short", answer(of)),
        Section("evidence", "Evidence", _evidence(of)),
        Section("diagnostics", "Diagnostics", _diagnostics(of)),
        Section("methods", "Methods", _methods(of)),
    ]


# Evidence -----------------------------------------------------------------------------------------------------------


def _evidence(of: Analysis) -> list[Part]:
    parts: list[Part] = [Text(_question(of)), Row([*_figures(of), *_tests_drawn(of)])]
    columns = [] if of.enriched is None else dict.fromkeys([of.types, of.params.get("sample_key")])
    found = [(name, by_group(of, name)) for name in columns if name]
    tables: list[Part] = [table(words, f"Called cells by {name}") for name, words in found if words is not None]
    if tables:
        parts.append(Fold("Called cells by " + " and by ".join(name for name, w in found if w is not None), tables))
    kinds = of.record["topics"]["kind"]
    parts += [
        Fold(f"All {(kinds == kind).sum()} {kind} topics", _topics(of, kind)) for kind in dict.fromkeys(map(str, kinds))
    ]
    for name, text in of.says.tables.items():
        if name in of.record:
            parts.append(Fold(text, [table(of.record[name].rename_axis("topic"), text)]))
    if "enrichment" in of.record:
        parts.append(Fold("Gene sets", _enrichment(of)))
    if tests := _tests(of):
        parts.append(Fold("Tests against columns of obs", tests))
    return parts


def _question(of: Analysis) -> str:
    n = {} if of.role is None else of.role.value_counts().to_dict()
    if of.projected:
        return f"How much do these {of.adata.n_obs} cells use topics learned on other cells?"
    column = next(iter(of.groups.values()), "")
    side = written(list(of.groups.values())[-1]) if of.groups else ""
    chosen = of.params.get(of.method.sides[2]) if of.method.sides else None
    who = (
        f"all labelled cells of {column!r}"
        if isinstance(chosen, str) and chosen == "all"
        else f"{column!r} is " + (f"not {side}" if chosen is None else written(chosen))
    )
    cells = defaultdict(int, {"target": of.adata.n_obs} if of.role is None else n)
    cells |= {name: cells[name] + cells["both"] for name in ("target", "background")}
    return of.says.question.format_map(cells | {"column": column, "side": side, "who": who})


def _figures(of: Analysis) -> Iterable[Picture]:
    """Draw the programs on cards: effects, donors, cells, gene sets, genes."""
    record, obs, key = of.record, of.adata.obs, of.key
    topics, role, share = of.topics, f"{of.key}_role", f"{of.key}_target_share"
    chosen = (gained(of) or [str(name) for name in topics.index])[:MOST_CARDS]
    chosen = [str(name) for name in topics.index if str(name) in chosen]  # in the order of the topics
    if of.says.contrast and "log2_fold_change" in topics and topics["log2_fold_change"].notna().any():
        words = "; ".join(f"{name} {value:.2g}" for name, value in topics["log2_fold_change"].items())
        alt = f"Effect of each target topic with its 95 % interval. Log2 fold changes: {words}."
        high = min(4.5, 0.22 * len(topics) + 1.0)
        draw = partial(pl.topics_forest, of.adata, key=key)
        yield picture(draw, alt, "Effect of each target topic; colour: called", size=(WIDEST, high))
    if "donors" in record:
        alt = f"Share of usage of each donor on {', '.join(chosen[:MOST_DRAWN])}, in target and background."
        draw = partial(pl.donors, of.adata, topics=chosen[:MOST_DRAWN], key=key)
        yield picture(draw, alt, "Each donor's mean share of usage: the units of the test", size=(WIDEST, 2.7))
    elif of.role is not None:
        means = get.usage(of.adata, key=key, normalize=True)[chosen].groupby(obs[role].astype(str)).mean().T
        text = "; ".join(f"{group}: mostly {column.idxmax()} ({column.max():.0%})" for group, column in means.items())
        alt = f"Box plots of each topic's share of usage by role of the cells. Mean shares: {text}."
        draw = partial(pl.usage, of.adata, key=key, topics=chosen)
        yield picture(draw, alt, "Share of usage by role in the fit", size=(WIDEST, 2.7))
    if share in obs and of.types in obs and of.says.contrast:
        alt = (
            f"Target share of the cells of each {of.types}, by condition, with the threshold of the background's cells."
        )
        draw = partial(pl.target_share, of.adata, of.types, key=key)
        yield picture(draw, alt, "Which cells: target share, out of fold", size=(WIDEST, 3.2))
    if f"X_{key}_umap" in of.adata.obsm:
        column = str(of.params.get("background_key", role))
        for color, what in ((column, column), (share, "target share, out of fold"), (of.types, of.types)):
            if color in obs:
                alt = f"UMAP of the topic proportions, coloured by {color}."
                draw = partial(pl.umap, of.adata, key=key, color=color)
                yield picture(draw, alt, f"UMAP of the topics by {what}", size=(WIDEST, 2.7))
    if "enrichment" in record:
        found = get.enrichment(of.adata, key=key)
        tested = [name for name in chosen if name in set(found.loc[found["p_adjusted"] <= LEVEL, "topic"].astype(str))]
        if tested:
            best = found[found["topic"].isin(tested)].groupby("topic", observed=True, sort=False).head(1)
            words = "; ".join(f"{t}: {s}" for t, s in zip(best["topic"], best["gene_set"], strict=True))
            method = str(found["method"].iloc[0])
            draw = partial(_draw_sets, of.adata, key=key, method=method, n_sets=DRAWN_SETS, topics=tested)
            n_sets = found.loc[found["topic"].isin(tested), "gene_set"].nunique()
            size = (WIDEST, 1.9 + 0.3 * min(n_sets, DRAWN_SETS * len(tested)))
            yield picture(draw, f"Leading gene sets. {words}.", "Leading gene sets of the programs", size=size)
    first = "; ".join(f"{name}: {of.genes[name][0]}" for name in chosen if of.genes.get(name))
    most = max((len(of.genes.get(name, ())) for name in chosen), default=1)
    genes: dict[str, Any] = {"n_genes": max(1, min(most, HEAT_ROWS // len(chosen))), "topics": chosen}
    genes |= {"by": "score" if len(of.record["topics"]) > 1 else "loading", "test": None}
    heat = partial(pl.loadings, of.adata, key=key, gene_symbols=of.gene_symbols, **genes)
    yield picture(heat, f"Heatmap of the loadings. Leading gene of each topic: {first}.", "Specific genes", size=None)


def _draw_sets(adata: AnnData, *, ax: Axes, **given: Any) -> Axes:
    """Draw gene sets with their long names in several lines."""
    pl.enrichment(adata, ax=ax, **given)
    labels = [textwrap.fill(label.get_text().replace("_", " "), 22) for label in ax.get_yticklabels()]
    ax.set_yticks(ax.get_yticks(), labels)
    return ax


def _tests_drawn(of: Analysis) -> Iterable[Picture]:
    if "associations" not in of.record:
        return
    for groupby in get.associations(of.adata, key=of.key)["groupby"].astype(str).unique():
        found = get.associations(of.adata, groupby, key=of.key)
        names = [str(name) for name in of.topics.index if str(name) in set(found["topic"].astype(str))][:MOST_CARDS]
        found = found[found["topic"].astype(str).isin(names)]
        if not names:
            continue
        low = found[found["p_adjusted"] <= LEVEL]
        words = ", ".join(f"{t} ({g})" for t, g in zip(low["topic"], low["group"], strict=True)) or "none"
        alt = f"Difference in share of usage by {groupby} with 95 % intervals. Adjusted p at most 0.05: {words}."
        draw = partial(pl.associations, of.adata, groupby, key=of.key, topics=names)
        high = min(5.0, 1.2 + 0.14 * len(found))
        yield picture(draw, alt, f"Topics against {groupby}", size=(WIDEST, high))


def _topics(of: Analysis, kind: str) -> list[Part]:
    found = get.topics(of.adata, key=of.key)
    found = found[found["kind"].astype(str) == kind].drop(columns="kind").dropna(axis=1, how="all")
    genes = pd.DataFrame({"specific genes": [", ".join(of.genes.get(name, [])) for name in found.index]})
    genes.index = pd.Index([str(name) for name in found.index], name="topic")
    if len(of.record["topics"]) > 1:
        names = list(genes.index)
        long = get.top_genes(of.adata, names, of.n_genes, key=of.key, gene_symbols=of.gene_symbols)
        most = long.groupby("topic", observed=True)["gene"].agg(lambda x: ", ".join(map(str, x)))
        genes["genes with the largest loadings"] = most.reindex(genes.index).to_numpy()
    caption = f"The {of.n_genes} leading genes by loading times specificity, and by loading"
    return [table(genes, caption), table(found.rename_axis("topic"), TOPICS)]


def _enrichment(of: Analysis) -> list[Part]:
    found = get.enrichment(of.adata, "all", key=of.key)
    best = found[found["n_overlap"] > 0].groupby(["topic", "method"], sort=False, observed=True).head(BEST_SETS)
    best = best[best["topic"].isin(of.topics.index)]
    keep = ["topic", "gene_set", "method", "n_overlap", "set_size", "score", "p_value", "p_adjusted", "genes"]
    best = best[keep].assign(genes=best["genes"].astype(str).str.replace(";", ", "))
    n_sets, n_used = found["gene_set"].nunique(), int(found["universe"].max())
    text = (
        f"{n_sets} gene sets were tested, among the {n_used} genes used. P-values rank sets; genes are not independent."
    )
    return [Text(text), table(best.set_index("topic"), f"The {BEST_SETS} leading gene sets of each topic of interest")]


def _tests(of: Analysis) -> list[Part]:
    parts: list[Part] = []
    columns = ["topic", "group", "reference", "test", "unit", "n_group", "n_reference"]
    columns += ["mean_group", "mean_reference", "difference", "ci_low", "ci_high", "p_value", "p_adjusted"]
    notes = [reason.text for reason in reasons(of) if reason.about == "tests"]
    if notes:
        parts.append(Items(notes))
    if "associations" in of.record:
        found = get.associations(of.adata, key=of.key)
        for groupby in found["groupby"].astype(str).unique():
            rows = found[found["groupby"].astype(str) == groupby]
            parts.append(table(rows[columns].set_index("topic"), f"Topics against {groupby}"))
    if "gene_associations" in of.record:
        genes = get.associations(of.adata, key=of.key, table="genes")
        for (groupby, group), found in genes.groupby(["groupby", "group"], sort=False, observed=True):
            best = found.sort_values("p_value", kind="stable").head(BEST_GENES)
            keep = ["gene", "reference", "test", "n_group", "n_reference", "log2_ratio", "p_value", "p_adjusted"]
            caption = f"Genes against {groupby}: {group}, the {len(best)} of {len(found)} with the smallest p"
            parts.append(table(best[keep].set_index("gene"), caption))
    return parts


# Diagnostics --------------------------------------------------------------------------------------------------------


def _diagnostics(of: Analysis) -> list[Part]:
    folds = {
        "Cells": _cells(of),
        "Is this background suitable?": _background(of),
        "Choice of alpha and of the numbers of topics": _choices(of),
        "Stability": _stability(of),
        "Convergence": _fit(of),
    }
    notes = [reason.text for reason in reasons(of) if reason.level == "note" and reason.about != "tests"]
    parts: list[Part] = [Items(notes)] if notes else []
    return parts + [Fold(title, found) for title, found in folds.items() if found]


def _cells(of: Analysis) -> list[Part]:
    n = {} if of.role is None else of.role.value_counts().to_dict()
    kinds = of.record["topics"]["kind"].value_counts(sort=False).to_dict()
    facts = [
        ("data", f"{of.adata.n_obs} cells × {of.adata.n_vars} genes"),
        ("genes used", written(of.params.get("n_genes", of.adata.n_vars))),
        ("topics", ", ".join(f"{count} {kind}" for kind, count in kinds.items())),
        *((f"{role} cells", written(int(count))) for role, count in n.items() if count),
    ]
    parts: list[Part] = [Facts(facts)]
    sample = of.params.get("sample_key")
    if sample and sample in of.adata.obs and of.role is not None:
        counts = pd.crosstab(of.adata.obs[sample].astype(str), of.role.astype(str))
        parts.append(table(counts.rename_axis(index=sample, columns=None), f"Cells of each {sample}"))
    if of.enriched is not None and of.role is not None:
        by = of.adata.obs.groupby(of.role.astype(str))
        summary = {
            "cells": by.size(),
            "median target share": by[f"{of.key}_target_share"].median(),
            "cells called": by[f"{of.key}_enriched"].mean().map("{:.1%}".format),
        }
        caption = "Out-of-fold target share, and the share of cells called target-enriched"
        parts.append(table(pd.DataFrame(summary).rename_axis("role"), caption))
    return parts


def _background(of: Analysis) -> list[Part]:
    found = of.step("background_check") if of.says.contrast else None
    return [] if found is None else [table(found, "Checks before the fit")]


def _choices(of: Analysis) -> list[Part]:
    parts: list[Part] = []
    alpha = of.step("alpha") if of.says.contrast else None
    if alpha is not None:
        values = ", ".join(written(float(a)) for a in alpha["table"]["alpha"])
        alt = f"Held-out gain ratio and deviance explained at alpha {values}; {float(alpha['alpha']):g} was chosen."
        parts.append(Text(str(alpha["reason"])))
        parts.append(
            picture(partial(pl.alpha_path, of.adata, key=of.key), alt, "Path over alpha", size=None, narrow=True)
        )
        parts.append(table(alpha["table"], "Path over alpha"))
    elif of.trained and float(of.record.get("alpha_effective", 1)) == 0:
        parts.append(Text("Background topics take the place of alpha, which is 0 by design."))
    elif "alpha_effective" in of.record:
        parts.append(Text(f"Alpha was {written(float(of.record['alpha_effective']))}, as given or by default."))
    selected = [of.step("n_topics") if of.says.contrast else None, of.record.get("selection")]
    for found in selected:
        if found is not None:
            parts += [Text(str(found["reason"])), table(found["table"], "Numbers of topics tried")]
    if all(found is None for found in selected):
        parts.append(Text("The numbers of topics were given, not selected from the data."))
    return parts


def _stability(of: Analysis) -> list[Part]:
    topics = of.record["topics"]
    if "stability" not in topics or topics["stability"].isna().all():
        return []
    values = topics["stability"].dropna()
    source = "restarts" if "n_members" in topics else "cross-validation fits"
    alt = f"Stability of each topic over {source}: " + ", ".join(f"{t} {v:.2f}" for t, v in values.items()) + "."
    caption = f"Mean cosine similarity to the matching topic in {source}"
    high = max(2.0, 0.17 * len(values) + 0.8)
    return [picture(partial(pl.stability, of.adata, key=of.key), alt, caption, size=(WIDEST, high))]


def _fit(of: Analysis) -> list[Part]:
    facts = []
    if "converged" in of.record:
        how = "converged after" if of.record["converged"] else "did not converge in"
        facts.append(("loadings", f"{how} {int(of.record['n_iter'])} iterations"))
    for part, share in sorted(of.record.get("deviance_explained", {}).items()):
        facts.append((f"deviance explained, {str(part).replace('_', ' ')}", written(float(share))))
    suppressed = of.adata.var.get(f"{of.key}_suppressed")
    if suppressed is not None:
        n = written(of.params.get("n_genes", len(suppressed)))
        facts.append(("suppressed genes", f"{int(suppressed.sum())} of {n}"))
    parts: list[Part] = [Facts(facts)] if facts else []
    if "loss" in of.record:
        alt = "Loss on target and background, and change of the loadings, by iteration."
        parts.append(
            picture(partial(pl.loss, of.adata, key=of.key), alt, "Convergence of the fit", size=None, narrow=True)
        )
    if "alphas" in of.record and float(of.record.get("alpha_effective", 1)) > 0:
        caption = "Weight of each background, on the effective scale and on the scale of the sums"
        parts.append(table(of.record["alphas"].rename_axis("background"), caption))
    return parts


# Methods ------------------------------------------------------------------------------------------------------------


def _methods(of: Analysis) -> list[Part]:
    papers = [of.says.paper]
    papers += [CONSENSUS] if "n_members" in of.record["topics"] else []
    made = written(of.params.get("version", version("bcnmf-sc")))
    cite = "\n".join([*papers, f"bcnmf_sc {made}: the software used for these results."])
    facts = [("bcnmf_sc of the fit", written(of.params.get("version", "not stored")))]
    facts += [(f"{name} of this report", version(name)) for name in PACKAGES]
    facts.append(("Python of this report", platform.python_version()))
    folds: dict[str, list[Part]] = {
        "What can be added": _missing(of),
        "Parameters": [Facts([(str(name), written(value)) for name, value in sorted(of.params.items())])],
        "Versions": [Facts(facts)],
        "How to cite": [Text("Cite the method and the software:"), Code(cite, "Citation")],
    }
    return [Fold(title, found) for title, found in folds.items() if found]


def _missing(of: Analysis) -> list[Part]:
    """Name each part that is not stored, with the call that adds it; only columns that the data have."""
    record = of.record
    calls: list[tuple[str, str, dict[str, Any]]] = []
    if of.says.contrast and not of.projected:
        sizes = {"n_topics": int(of.params["n_topics"])} if "n_topics" in of.params else {}
        donors = of.sample
        if of.enriched is None:
            scored = of.data | sizes | {"n_background_topics": "auto"} | donors
            calls.append(("Cells and topics scored on cells that the fit has not seen:", "bcnmf", scored))
        if of.step("background_check") is None:
            calls.append(("A check of the background:", "background_check", of.data | donors))
        if not of.trained and of.step("alpha") is None:
            calls.append(("A choice of alpha:", "select_alpha", of.data | donors))
        if of.step("n_topics") is None and "selection" not in record:
            calls.append(("A choice of the numbers of topics:", "select_n_topics", of.data | donors))
    if f"X_{of.key}_umap" not in of.adata.obsm:
        calls.append(("A UMAP of the topics:", "umap", {}))
    if of.example and "associations" not in record:
        calls.append(("Tests of topics against a column:", "associate", of.example))
    if of.example and "gene_associations" not in record:
        calls.append(("Tests of genes against a column:", "associate_genes", of.example))
    if "enrichment" not in record:
        calls.append(("Gene sets:", "enrich", {"gene_sets": "sets.gmt", "by": "score"}))
    if not of.projected and ("stability" not in record["topics"] or record["topics"]["stability"].isna().all()):
        sizes = {name: int(of.params[name]) for name in of.params if name.startswith("n_topics")}
        other = {} if of.says.again == "consensus" else {"random_state": 1, "key_added": f"{of.key}_again"}
        calls.append(("The stability of the topics over random starts:", of.says.again, of.data | sizes | other))
    return [Missing(text, of.call(function, **arguments)) for text, function, arguments in calls]
