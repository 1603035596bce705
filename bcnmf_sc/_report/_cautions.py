"""Warnings about a stored analysis, as sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._stored import question
from ..tl._bcnmf.folds import FEW_BACKGROUND, FEW_DONORS
from ..tl._bcnmf.problem import LIKE_ALL, MAX_SUPPRESSED
from ..tl._bcnmf.select import COLLAPSED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData

SIDES = ["target", "background"]


def cautions(adata: AnnData, key: str, record: Mapping[str, Any]) -> list[str]:
    """Return the warnings, one sentence each."""
    return [*_of_fit(adata, key, record), *_of_topics(record), *_of_background(adata, key, record), *_of_tests(record)]


def of_this_design(adata: AnnData, key: str, step: str) -> Any:
    """Return what a step before the fit has stored beside it, unless that was asked about other cells or values."""
    found = adata.uns.get(f"{key}_{step}")
    design = found.get("design") if isinstance(found, dict) else adata.uns.get(f"{key}_{step}_design")
    same = design is None or question(design, adata.obs) == question(adata.uns[key].get("params", {}), adata.obs)
    return found if same else None


def _of_fit(adata: AnnData, key: str, record: Mapping[str, Any]) -> Iterator[str]:
    params = record.get("params", {})
    if not record.get("converged", True):
        yield f"The fit did not converge in {int(record['n_iter'])} iterations. Raise max_iter, or lower alpha."
    explained = record.get("deviance_explained", {})
    if explained.get("target", 0) < 0:
        yield "The topics describe the target worse than its mean profile: the contrast removed too much. Lower alpha."
    suppressed = adata.var.get(f"{key}_suppressed")
    if suppressed is not None and suppressed.sum() > MAX_SUPPRESSED * params.get("n_genes", len(suppressed)):
        yield f"{int(suppressed.sum())} genes are suppressed at this alpha and belong to no topic. Lower alpha."
    path = of_this_design(adata, key, "alpha")
    if path is not None and not (record["topics"]["kind"] == "background").any() and "alpha_effective" in record:
        used, chosen = float(record["alpha_effective"]), float(path["alpha"])
        if abs(used - chosen) > 1e-6 * max(1.0, chosen):
            yield f"The fit used alpha {used:g}, while the stored path over alpha chose {chosen:g}."
    if path is not None and path["table"]["degenerate"].all():
        yield "Every alpha on the stored path degrades the fit."


def _of_topics(record: Mapping[str, Any]) -> Iterator[str]:
    topics = record["topics"]
    if "usage_target" in topics:
        gone = topics.index[(topics["kind"] == "target") & (topics["usage_target"] < COLLAPSED)]
        if len(gone):
            yield f"Collapsed topics, hardly used by any target cell: {', '.join(map(str, gone))}."
    if "called" in topics:
        found = topics[topics["kind"] == "target"]
        few = _few_donors(record)
        unnamed = record.get("params", {}).get("unnamed_donors")
        if unnamed:
            yield (
                f"obs['{unnamed}'] looks like the donors, and the fit was not told (sample_key). No topic was tested: "
                "what sets donors apart would be called, and called cells may be those of some donors."
            )
        elif not found["called"].astype(bool).any():
            yield (
                f"No target topic is called, but {few} in a condition cannot decide this: see the effects with their "
                "intervals, and tl.power for how many donors would."
                if few
                else "No target topic is called: out of fold, none is used significantly more in the target than in "
                "the background."
            )
        if unnamed:
            return
        called = found[found["called"].astype(bool)]
        if "profile_cosine" in called:
            like = called.index[called["profile_cosine"] >= LIKE_ALL]
            if len(like):
                yield (
                    f"Called topics with nearly the mean profile of all target cells: {', '.join(map(str, like))}. "
                    "Ambient RNA or a difference in depth would look like this."
                )
        if found["p_value"].isna().all():
            yield "Topics could not be tested by donor: a condition has fewer than two donors."
        elif not record.get("params", {}).get("sample_key"):
            yield (
                "Topics were called over cells (no sample_key). Cells of one donor are not independent, so these "
                "p-values overstate the evidence."
            )


def _few_donors(record: Mapping[str, Any]) -> str:
    """Name the donors of the smaller condition where they are fewer than 3; nothing where they are not known."""
    if "donors" not in record:
        return ""
    fewest = int(record["donors"]["condition"].astype(str).value_counts().reindex(SIDES, fill_value=0).min())
    return "" if fewest >= FEW_DONORS else "1 donor" if fewest == 1 else f"{fewest} donors"


def _of_background(adata: AnnData, key: str, record: Mapping[str, Any]) -> Iterator[str]:
    role = adata.obs.get(f"{key}_role")
    projected = role is not None and bool((role == "projected").all())  # learned on other cells
    if role is not None and not projected and "background_key" in record.get("params", {}):
        n = int(role.isin(["background", "both"]).sum())
        if n < FEW_BACKGROUND:
            yield f"Only {n} background cells: topics and calls that depend on them are unreliable."
    for step in ("background_check", "alpha", "n_topics"):
        if f"{key}_{step}" in adata.uns and of_this_design(adata, key, step) is None:
            yield f"The stored {step.replace('_', ' ')} is for another design than this fit and is not shown."
    checks = of_this_design(adata, key, "background_check")
    if checks is not None:
        for verdict in ("bad", "caution"):
            for row in checks[checks["verdict"].astype(str) == verdict].to_dict("records"):
                yield f"Background check, {row['check']} ({verdict}): {row['meaning']}"


def _of_tests(record: Mapping[str, Any]) -> Iterator[str]:
    params = record.get("params", {})
    trained = (record["topics"]["kind"] == "background").any()
    for name, what in (("associations", "Topics"), ("gene_associations", "Genes")):
        tests = record.get(name)
        if tests is None:
            continue
        by_cell = tests.loc[tests["unit"].astype(str) == "cell", "groupby"].astype(str).unique()
        if len(by_cell):
            yield (
                f"{what} were tested against {', '.join(by_cell)} with every cell as an observation: the p-values "
                "overstate the evidence. Name the donors with sample_key."
            )
        contrast = str(params.get("background_key"))
        if name == "associations" and trained and contrast in tests["groupby"].astype(str).to_numpy():
            yield (
                f"Topics were tested against {contrast}, the contrast that trained the background topics: shares "
                "differ there even without an effect. Use p_value and called in the table of topics instead."
            )
