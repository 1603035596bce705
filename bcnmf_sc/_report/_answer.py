"""The answer: how many cells are affected, which, by what, and how far to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import get
from ..tl._bcnmf.folds import FEW_DONORS
from ._analysis import LEAST_CELLS, SIDES, is_excess
from ._cautions import Reason, fewest_donors, reasons, verdict
from ._page import LIGHTS, Answer, Bars, Card, Cards, Part, Text, written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._analysis import Analysis

MOST_CARDS = 6
"""Programs on cards; the others are in the table of topics."""
MOST_BARS = 8
MOST_DOUBTS = 4
"""Reasons of a light in a summary."""
FEW_GENES = 5
"""Genes of a topic that is not called."""
ALIKE = 0.1
"""Range of shares below which groups are alike."""


def answer(of: Analysis) -> list[Part]:
    """Return the first part of the page."""
    found = reasons(of)
    lines: list[str]
    if of.projected:
        head, lines = f"How much do these {of.adata.n_obs} cells use topics learned on other cells?", []
    elif of.method.name == "deltanmf":
        head, lines = _of_cases(of)
    elif not of.says.contrast:
        head, lines = f"{len(of.topics)} topics describe {written(int(of.cells(SIDES[0]).sum()))} cells.", []
    elif of.enriched is None:
        head, lines = _of_plain_fit(of)
    else:
        head, lines = _of_scored_fit(of)
    light = None if of.projected or not of.groups else verdict(found)
    column = of.types or str(of.params.get("sample_key") or "")
    bars = affected(of, column) if column and of.enriched is not None and not of.projected else None
    return [Answer(head, lines, light, _ordered(found) if light else [], bars), *_programs(of)]


def in_words(of: Analysis) -> list[str]:
    """Return the answer in a few lines of text."""
    lines = []
    for part in answer(of):
        if isinstance(part, Answer):
            lines.append(part.head)
            if part.light:
                doubts = [reason.text for reason in part.reasons if reason.level != "good"]
                lines.append(f"Trust: {LIGHTS[part.light].lower()}. {doubts[0] if doubts else ''}".strip())
                lines += [f"  also: {doubt}" for doubt in doubts[1:MOST_DOUBTS]]
        elif isinstance(part, Cards):
            lines.append(f"{part.title}:")
            lines += [f"  {card.name}: {card.effect}; {', '.join(card.genes)}" for card in part.cards]
    return lines


def gained(of: Analysis) -> list[str]:
    """Return the called target topics, those with the largest gain in usage first."""
    topics = of.topics
    if "called" not in topics:
        return []
    of_called = topics[topics["called"].astype(bool)]
    found = {str(name): shares(of, str(name)) for name in of_called.index}
    return sorted(found, key=lambda name: found[name]["background"] - found[name]["target"])


def shares(of: Analysis, name: str) -> dict[str, float]:
    """Return the mean shares of a topic on both sides: of the donors out of fold where they are known."""
    if "donors" in of.record and of.method.kinds == ("target",):
        by = of.record["donors"].groupby(of.record["donors"]["condition"].astype(str))[name].mean()
        return {side: float(by.get(side, np.nan)) for side in SIDES}
    row = of.record["topics"].loc[name]
    return {
        side: float(row[f"usage_{side}"])
        for side in ("target", "background", "case", "control")
        if f"usage_{side}" in row
    }


def _of_scored_fit(of: Analysis) -> tuple[str, list[str]]:
    target, background = of.rates
    case, control = of.name["target"], of.name["background"]
    n, more, called, donors = (
        int(of.cells("target").sum()),
        is_excess(target, background),
        gained(of),
        fewest_donors(of),
    )
    affected_share = max(target - background, 0.0) / (1 - background) if background < 1 else 0.0
    programs = "one program" if len(called) == 1 else f"{len(called)} programs"
    few = donors is not None and donors < FEW_DONORS
    count = "" if donors is None else "1 donor" if donors == 1 else f"{donors} donors"
    about = f"About {percent(affected_share)} of the {n:,} {case} cells"
    if called and more and donors is None:
        head = f"{about} differ from comparable {control} cells, in {programs}; donors were not named."
    elif called and more:
        head = f"{about} are affected, by {programs}."
    elif called:
        head = f"{programs.capitalize()} used more by {case}; too few cells are called to say which are affected."
    elif more and donors is None:
        head = f"{about} differ from comparable {control} cells; without donors no program can be called."
    elif more and few:
        head = f"{about} differ from comparable {control} cells; {count} cannot decide whether other donors would."
    elif more:
        head = f"{about} differ from comparable {control} cells, but the donors do not agree on any program."
    elif few:
        head = f"No difference seen between {case} and {control}; {count} cannot decide this."
    else:
        head = f"No difference found between {case} and {control}."
    level = float(of.params.get("cell_fpr", 0.05))
    lines = [
        f"Called: {percent(target)} of {case} cells, {percent(background)} of {control} cells. A cell is called if it "
        f"uses the target topics more than {percent(1 - level)} of comparable {control} cells do, under topics that "
        f"have not seen it; chance calls {percent(level)}."
    ]
    if more:
        lines += [line for column in (of.types, of.params.get("sample_key")) if (line := spread(of, column))]
    topics = of.record["topics"]
    lost = topics[(topics["kind"] == "background") & topics["called"].astype(bool)]
    if len(lost):
        words = ", ".join(f"{name} ({effect(row)})" for name, row in lost.iterrows())
        lines.append(f"Programs that {control} has too and that change: {words}.")
    return head, lines


def _of_plain_fit(of: Analysis) -> tuple[str, list[str]]:
    case, control = of.name["target"], of.name["background"]
    topics, why = of.topics, "cross-fitting was off" if of.trained else "the fit has no background topics"
    n = len(topics)
    head = (
        f"{'One topic' if n == 1 else f'{n} topics'} of {case} cells in contrast to {control} cells; no test was made."
    )
    lines = [
        f"Which cells are affected was not asked: {why}, so nothing was scored on cells that the fit has not seen."
    ]
    if "log2_enrichment" in topics:
        low, high = topics["log2_enrichment"].min(), topics["log2_enrichment"].max()
        lines.append(
            f"In the fit itself, {case} cells use the topics from {times(low)} to {times(high)} than {control} cells."
        )
    return head, lines


def _of_cases(of: Analysis) -> tuple[str, list[str]]:
    shift, emerged = of.record["shift"], of.record.get("emergence")
    low = shift[shift["p_adjusted"] <= 0.05] if "p_adjusted" in shift else shift.iloc[:0]  # noqa: PLR2004
    n_new = 0 if emerged is None else len(emerged)
    head = (
        f"{n_new or 'No'} additional {'program' if n_new == 1 else 'programs'} in cases; {len(low)} of {len(shift)} "
        "programs of controls are used in another proportion."
    )
    rows = [f"{name}: {effect(row)}" for name, row in low.iterrows()]
    lines = ["Changed programs of controls: " + "; ".join(rows) + "."] if rows else []
    return head, lines


# Who


def affected(of: Analysis, column: str) -> Bars | None:
    """Return the share of called cells in each group of the target, beside that of the background."""
    table = of.called_by(column)
    if table is None:
        return None
    paired = bool(table["background"].notna().any())
    if not paired:
        table = table.assign(background=of.rates[1])
    shown = table[table["n"] >= min(LEAST_CELLS, table["n"].max())].head(MOST_BARS)
    rows = [
        (str(name), f"{int(row.n):,}", float(row.target), float(row.background))
        for name, row in zip(shown.index, shown.itertuples(), strict=True)
    ]
    left = len(table) - len(shown)
    case, control = of.name["target"], of.name["background"]
    caption = f"Called cells by {column}: {case} (bar) and {'' if paired else 'all '}{control} cells (line)"
    return Bars(caption + (f"; {left} more below" if left else ""), column, rows, case, control, paired)


def by_group(of: Analysis, column: str) -> pd.DataFrame | None:
    """Return the same as a table of words, with all groups."""
    table = of.called_by(column)
    if table is None:
        return None
    case, control = of.name["target"], of.name["background"]
    said = {f"{case} cells": table["n"].astype(int), f"{case} called": table["target"].map(percent)}
    if table["background"].notna().any():
        said[f"{control} called"] = table["background"].map(percent)
    return pd.DataFrame(said).rename_axis(column)


def spread(of: Analysis, column: Any) -> str:
    """Say in which groups of the target most and fewest cells are called."""
    table = None if column is None else of.called_by(str(column))
    if table is None:
        return ""
    table = table[table["n"] >= LEAST_CELLS]
    if len(table) < 2:  # noqa: PLR2004
        return ""
    high, low = table.iloc[0], table.iloc[-1]
    what = "donors" if column == of.params.get("sample_key") else f"groups of {column}"
    if high["target"] - low["target"] < ALIKE:
        return f"Alike in all {len(table)} {what}: {percent(low['target'])} to {percent(high['target'])} called."
    background = of.rates[1]
    n_none = sum(not is_excess(share, background) for share in table["target"])
    return (
        f"Most in {table.index[0]} ({percent(high['target'])} called), fewest in {table.index[-1]} "
        f"({percent(low['target'])}) of {len(table)} {what}"
        + (f"; no more than chance in {n_none} of them." if n_none else ".")
    )


# By what


def _programs(of: Analysis) -> list[Part]:
    called = gained(of)
    topics = of.topics
    if called:
        names, left = called[:MOST_CARDS], len(called) - MOST_CARDS
        title = "Programs, the largest gain first"
    else:
        by = next((c for c in ("log2_fold_change", "log2_enrichment", "usage_target") if c in topics), "")
        order = np.argsort(-topics[by].fillna(-np.inf).to_numpy(), kind="stable") if by else np.arange(len(topics))
        names, left = [str(name) for name in topics.index[order][:MOST_CARDS]], len(topics) - MOST_CARDS
        title = "No program is called; the largest differences" if "called" in topics else "Topics and their genes"
    if of.projected:
        title = "Topics, with the effects found on the cells of the fit"
    cards = [Card(name, *_words(of, name)) for name in names]
    parts: list[Part] = [Cards(title, cards)]
    if left > 0:
        parts.append(Text(f"{left} more in the table of topics below."))
    return parts


def _words(of: Analysis, name: str) -> tuple[str, list[str], list[str]]:
    """Return the effect of a topic, its genes, and more about it."""
    shift = of.record.get("shift")
    row = (shift if shift is not None and name in shift.index else of.record["topics"]).loc[name]
    more = []
    if (best := best_set(of, name)) is not None:
        more.append(best)
    if len(sides := shares(of, name)) > 1 and ("donors" in of.record or "called" not in row):
        said = [f"{percent(share)} in {of.name.get(side, f'{side}s')}" for side, share in sides.items()]
        more.append("Mean share of usage: " + ", ".join(said))
    if of.types and (where := _mostly(of, name)):
        more.append(where)
    if "called" in row and not bool(row["called"]):
        p = float(row["p_adjusted"]) if "p_adjusted" in row else np.nan
        more.append("Not called" + (f" (adjusted p {p:.2g})" if np.isfinite(p) else ""))
    few = None if bool(row.get("called", True)) else FEW_GENES
    return effect(row), list(of.genes.get(name, []))[:few], more


def _mostly(of: Analysis, name: str) -> str:
    """Say which group of the target uses a topic most."""
    if of.role is None or not of.cells("target").any():
        return ""
    cells = of.cells("target")
    share = get.usage(of.adata, key=of.key, normalize=True)[name].to_numpy()[cells]
    group = of.adata.obs[of.types].astype(str).to_numpy(dtype=object)[cells]
    by = pd.Series(share).groupby(group).agg(["size", "mean"])
    by = by[by["size"] >= min(LEAST_CELLS, by["size"].max())]["mean"]
    return f"Most used by {by.idxmax()}" if by.max() > 0 and len(by) > 1 else ""


def best_set(of: Analysis, name: str) -> str | None:
    """Return the most significant gene set of a topic in words; None without one."""
    table = of.record.get("enrichment")
    if table is None:
        return None
    found = table[(table["topic"].astype(str) == name) & (table["p_adjusted"] <= 0.05)]  # noqa: PLR2004
    if not len(found):
        return None
    best = found.sort_values("p_value", kind="stable").iloc[0]
    return f"Gene set: {str(best['gene_set']).replace('_', ' ')} (adjusted p {float(best['p_adjusted']):.1g})"


# Words


def effect(row: Any) -> str:
    """Write an effect with its interval: of the donors where they are known, else of the fit."""
    tested = "log2_fold_change" in row and np.isfinite(row["log2_fold_change"])
    value = row["log2_fold_change"] if tested else row.get("log2_enrichment", np.nan)
    if not np.isfinite(value):
        return ""
    ends = [row["ci_low"], row["ci_high"]] if tested and "ci_low" in row else [np.nan]
    if not np.all(np.isfinite(ends)):
        return f"{times(value)}, no interval" + ("" if tested else " or test")
    low, high = (ends[0], ends[1]) if value >= 0 else (-ends[1], -ends[0])
    return f"{times(value)} (95% CI {_number(2.0**low)} to {_number(2.0**high)})"


def times(log2: float) -> str:
    """Write a log2 ratio as a fold change."""
    return f"{_number(2.0 ** abs(log2))}-fold {'more' if log2 >= 0 else 'less'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"  # noqa: PLR2004


def percent(share: float) -> str:
    """Write a share in percent, with a decimal near 0 and 1."""
    if not np.isfinite(share):
        return "–"
    if 0 < share < 0.001:  # noqa: PLR2004
        return "<0.1%"
    return f"{share:.0%}" if 0.1 <= share <= 0.9 else f"{share:.1%}".replace(".0%", "%")  # noqa: PLR2004


def _ordered(found: Sequence[Reason]) -> list[Reason]:
    return [reason for level in ("bad", "caution", "good") for reason in found if reason.level == level]
