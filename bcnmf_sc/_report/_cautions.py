"""What speaks for and against trusting a stored analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .. import get
from ..tl._bcnmf.folds import FEW_BACKGROUND, FEW_DONORS
from ..tl._bcnmf.problem import CANNOT_TELL, LIKE_ALL, MAX_SUPPRESSED
from ..tl._bcnmf.select import COLLAPSED
from ._analysis import LEAST_CELLS, SIDES, is_excess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._analysis import Analysis

MANY = 5
"""Donors in each condition from which on it matters little that none is in both."""
DEPTHS = (1.5, 3.0)
"""Ratios of the depths of target and background up to which they are alike, and from which on they are not."""
GENERAL = 2 / 3
"""Share of the target's donors with called cells from which on an effect is general."""
STABLE = (0.8, 0.5)
"""Stability from which on a topic is stable, and below which it is not."""
OWN_CHECKS = ("background donors", "shared donors", "depth", "held-out gain ratio")
"""Background checks that the report reads from the fit itself, or states as a result."""
APART = (
    "much worse than the background itself. Either the effect is very broad, or the two hold different cells: compare "
    "their cell types."
)
Level = Literal["good", "caution", "bad", "note"]


@dataclass(frozen=True)
class Reason:
    """Why to trust a result or not; a note does not bear on it."""

    level: Level
    about: str
    text: str


def verdict(found: list[Reason]) -> Level:
    """Return the light: the worst of the reasons."""
    levels: tuple[Level, ...] = ("bad", "caution", "good")
    return next(level for level in levels if level == "good" or any(reason.level == level for reason in found))


def reasons(of: Analysis) -> list[Reason]:
    """Return what speaks for and against the results, and notes on steps that are stored beside them."""
    found = [*_of_donors(of), *_of_fit(of), *_of_topics(of)]
    if of.says.contrast:
        found += [*_of_cells(of), *_of_background(of)]
    return [*found, *_of_tests(of)]


def fewest_donors(of: Analysis) -> int | None:
    """Return the number of donors of the smaller condition; None where donors are not named."""
    if "donors" in of.record:
        counts = of.record["donors"]["condition"].astype(str).value_counts().reindex(SIDES, fill_value=0)
        return int(counts.min())
    if of.method.name == "deltanmf" and of.params.get("sample_key"):
        return int(of.record["shift"][["n_case", "n_control"]].min(axis=None))
    return min(map(len, of.donors.values())) if of.donors else None


def _of_donors(of: Analysis) -> Iterator[Reason]:
    if of.role is None or not of.groups or not of.cells(SIDES[0]).any():
        return
    n = fewest_donors(of)
    if n is None and of.params.get("by_cell"):
        text = "Cells are the units, as was asked for: what sets donors apart may pass for an effect."
        yield Reason("caution", "donors", text)
    elif n is None:
        column = of.sample.get("sample_key")
        hint = f"{column!r} looks like their column: fit again with sample_key={column!r}." if column else ""
        text = "Donors are not named, so what sets donors apart may pass for an effect."
        if of.params.get("unnamed_donors"):
            text = "Donors are not named, so no topic was tested, and called cells may be those of some donors."
        yield Reason("bad", "donors", f"{text} {hint}".strip())
    elif n < FEW_DONORS:
        few = "1 donor" if n == 1 else f"{n} donors"
        text = f"{few} in a condition: a large effect shows, but {few} cannot decide that there is none. "
        yield Reason("bad" if n == 1 else "caution", "donors", text + "See tl.power for how many would.")
    else:
        named = of.donors
        counts = " and ".join(f"{len(d)} of {of.name[side]}" for side, d in named.items()) or f"at least {n} a side"
        apart = bool(named) and not set.intersection(*named.values())
        if apart and n < MANY:
            text = f"No donor is in both conditions, and there are {counts}: what sets single donors apart weighs much."
            yield Reason("caution", "donors", text)
        else:
            allowed = ", none in both, which the test by donor allows for" if apart else ""
            yield Reason("good", "donors", f"donors named: {counts}{allowed}")


def _of_fit(of: Analysis) -> Iterator[Reason]:
    record = of.record
    if "converged" in record:
        n = int(record["n_iter"])
        text = f"The fit did not converge in {n} iterations. Raise max_iter." if not record["converged"] else ""
        yield (
            Reason("caution", "convergence", text)
            if text
            else Reason("good", "convergence", f"converged in {n} iterations")
        )
    if record.get("deviance_explained", {}).get("target", 0) < 0:
        text = "The topics describe the target worse than its mean profile: the contrast removed too much. Lower alpha."
        yield Reason("bad", "fit", text)
    suppressed = of.adata.var.get(f"{of.key}_suppressed")
    if suppressed is not None and suppressed.sum() > MAX_SUPPRESSED * of.params.get("n_genes", len(suppressed)):
        text = f"{int(suppressed.sum())} genes are suppressed at this alpha and belong to no topic. Lower alpha."
        yield Reason("caution", "fit", text)
    path = of.step("alpha") if of.says.contrast else None
    if path is None:
        return
    if not of.trained and "alpha_effective" in record:
        used, chosen = float(record["alpha_effective"]), float(path["alpha"])
        if abs(used - chosen) > 1e-6 * max(1.0, chosen):
            yield Reason("note", "alpha", f"The fit used alpha {used:g}; the stored path over alpha chose {chosen:g}.")
    if path["table"]["degenerate"].all():
        yield Reason("note" if of.trained else "caution", "alpha", "Every alpha on the stored path degrades the fit.")


def _of_topics(of: Analysis) -> Iterator[Reason]:
    topics = of.topics
    if "emergence" in of.record:
        yield Reason("caution", "topics", "Case topics were not tested on cells that the fit has not seen.")
    if "usage_target" in topics:
        gone = topics.index[topics["usage_target"] < COLLAPSED]
        if len(gone):
            text = f"Collapsed topics, hardly used by any target cell: {', '.join(map(str, gone))}. Lower n_topics."
            yield Reason("caution", "topics", text)
    called = topics[topics["called"].astype(bool)] if "called" in topics else topics[:0]
    if "profile_cosine" in called:
        like = called.index[called["profile_cosine"] >= LIKE_ALL]
        if len(like):
            text = f"Called topics with nearly the mean profile of all target cells: {', '.join(map(str, like))}. "
            yield Reason("caution", "topics", text + "Ambient RNA or a difference in depth would look like this.")
    if len(called):
        yield Reason("note", "causes", CANNOT_TELL)
    if "stability" not in topics or topics["stability"].isna().all():
        return
    values = (topics[topics["called"].astype(bool)] if "called" in topics else topics)["stability"].dropna()
    weak = values[values < STABLE[0]]
    if not len(values):  # no topic is claimed
        return
    if not len(weak):
        yield Reason("good", "stability", f"topics return in other fits, with a cosine of at least {values.min():.2f}")
        return
    shown = ", ".join(f"{name} ({value:.2f})" for name, value in weak.items())
    level: Level = "bad" if (values < STABLE[1]).all() else "caution"
    yield Reason(level, "stability", f"Topics that do not return in other fits (cosine below {STABLE[0]}): {shown}.")


def _of_cells(of: Analysis) -> Iterator[Reason]:
    if of.role is None or not of.cells(SIDES[0]).any():  # learned on other cells
        return
    if of.enriched is None:
        text = "Cells and topics were not scored on cells that the fit has not seen: nothing here is a test."
        yield Reason("bad", "scores", text)
    by_donor = of.called_by(str(of.params.get("sample_key")))
    if by_donor is not None and is_excess(*of.rates):
        shares = by_donor.loc[by_donor["n"] >= LEAST_CELLS, "target"]
        with_effect = sum(is_excess(share, of.rates[1]) for share in shares)
        if with_effect < GENERAL * len(shares):
            text = f"More cells than by chance are called in only {with_effect} of {len(shares)} donors of "
            yield Reason("caution", "donors", f"{text}{of.name['target']}: the effect is not general.")
    n = int(of.cells(SIDES[1]).sum())
    if n < FEW_BACKGROUND:
        text = f"Only {n} background cells: topics and calls that depend on them are unreliable."
        yield Reason("bad", "background", text)
    usage = get.usage(of.adata, key=of.key).sum(axis=1).to_numpy()
    depths = [usage[of.cells(side)].mean() if of.cells(side).any() else np.nan for side in SIDES]
    ratio = depths[0] / depths[1] if depths[1] > 0 else np.nan
    if str(of.params.get("likelihood")) == "gaussian" or not np.isfinite(ratio) or ratio == 0:
        return
    fold = max(ratio, 1 / ratio)
    if fold <= DEPTHS[0]:
        yield Reason("good", "depth", f"depth alike, {ratio:.2g} counts in a target cell for 1 in a background cell")
    else:
        text = f"A target cell holds {ratio:.2g} times as many counts as a background cell: part of a difference may "
        yield Reason("caution" if fold < DEPTHS[1] else "bad", "depth", text + "be one of depth.")


def _of_background(of: Analysis) -> Iterator[Reason]:
    for step in ("background_check", "alpha", "n_topics"):
        if f"{of.key}_{step}" in of.adata.uns and of.step(step) is None:
            text = f"The stored {step.replace('_', ' ')} is for another design than this fit and is not shown."
            yield Reason("note", step.replace("_", " "), text)
    checks = of.step("background_check")
    if checks is None:
        if of.role is not None and of.cells(SIDES[1]).any():
            yield Reason("caution", "background", "The background was not checked. Run tl.background_check.")
        return
    poor = checks[checks["verdict"].astype(str).isin(["bad", "caution"]) & ~checks["check"].isin(OWN_CHECKS)]
    for row in poor.to_dict("records"):
        size = str(row["check"]).endswith("cells")
        level: Level = "bad" if size and str(row["verdict"]) == "bad" else "caution"
        text = APART if row["check"] == "target explained by background topics" else str(row["meaning"])
        few = "few, " if size else ""
        yield Reason(level, "background", f"Check of the background, {row['check']}: {few}{text}")
    if not len(poor):
        suits = ", suitable" if (checks["verdict"].astype(str) == "good").all() else ""
        yield Reason("good", "background", f"background checked{suits}")


def _of_tests(of: Analysis) -> Iterator[Reason]:
    for name, what in (("associations", "Topics"), ("gene_associations", "Genes")):
        tests = of.record.get(name)
        if tests is None:
            continue
        by_cell = tests.loc[tests["unit"].astype(str) == "cell", "groupby"].astype(str).unique()
        if len(by_cell):
            text = f"{what} were tested against {', '.join(by_cell)} with every cell as an observation: the p-values "
            yield Reason("note", "tests", f"{text}overstate the evidence. Name the donors with sample_key.")
        contrast = str(of.params.get("background_key"))
        if name == "associations" and of.trained and contrast in tests["groupby"].astype(str).to_numpy():
            text = f"Topics were tested against {contrast}, the contrast that trained the background topics: shares "
            text += "differ there even without an effect. Trust the effects of the programs above instead."
            yield Reason("note", "tests", text)
