"""The report: what it says first, that it is whole and safe, and how it behaves in a browser."""

from __future__ import annotations

import ast
import base64
import inspect
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal

import bcnmf_sc as bc
from bcnmf_sc import cli
from bcnmf_sc._report import _answer
from bcnmf_sc._report._analysis import Analysis
from bcnmf_sc._report._cautions import Reason, reasons, verdict
from bcnmf_sc.tl._bcnmf.problem import CANNOT_TELL

if TYPE_CHECKING:
    from pathlib import Path

NASTY = "<script>alert('x')</script>&\"gene\""
SPLIT = {"background_key": "condition", "background": "ctrl <b>"}
QUICK = {"tol": 0.05, "progress": False}
SECTIONS = ["answer", "evidence", "diagnostics", "methods"]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The tags of a page in order, with their text, and what they stand in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.words: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []  # every tag is closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.tags if name == tag]

    def text(self, *tags: str) -> list[str]:
        return [word for tag, word in self.words if tag in tags]


def small(**options: int) -> ad.AnnData:
    adata = bc.datasets.simulated(n_target=160, n_background=120, n_genes=120, **options)
    adata.obs["condition"] = adata.obs["condition"].cat.rename_categories({"ctrl": "ctrl <b>"})
    adata.obs["donor"] = pd.Categorical([f"d{i % 3}" for i in range(adata.n_obs)])  # all in both conditions
    adata.obs["state"] = pd.Categorical(np.where(np.arange(adata.n_obs) // 3 % 2, "on <i>", "off"))
    return adata


@pytest.fixture(scope="module")
def full() -> ad.AnnData:
    """Everything has been run."""
    adata = small()
    bc.tl.bcnmf(adata, n_topics=2, n_background_topics=5, cross_fit=2, sample_key="donor", **SPLIT, **QUICK)
    leading = bc.get.top_genes(adata, "Topic 1", 1)["gene"][0]
    adata.var_names = [NASTY if name == leading else name for name in adata.var_names]
    bc.tl.background_check(adata, n_topics=2, n_background_topics=5, **SPLIT, **QUICK)
    bc.tl.select_alpha(adata, n_topics=2, alphas=(0, 0.3), n_restarts=2, n_folds=2, **SPLIT, **QUICK)
    sizes = {"n_topics": [2], "n_background_topics": [3]}
    bc.tl.select_n_topics(adata, n_folds=2, **sizes, **SPLIT, **QUICK)
    bc.tl.umap(adata)
    bc.tl.associate(adata, groupby="state", sample_key="donor")
    bc.tl.associate_genes(adata, groupby="state", sample_key="donor")
    bc.tl.enrich(adata, {"set <u>": adata.var_names[:40]}, n_genes=20)
    return adata


@pytest.fixture(scope="module")
def path(full, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    bc.report(full, path, title="IFN & <you>")
    return path


@pytest.fixture(scope="module")
def page(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain() -> ad.AnnData:
    """A fit and nothing else."""
    adata = small()
    bc.tl.bcnmf(adata, n_topics=3, key_added="mine", **SPLIT, **QUICK)
    return adata


def written(adata: ad.AnnData, tmp_path: Path, **options) -> Page:
    path = bc.report(adata, tmp_path / "report.html", overwrite=True, **options)
    return Page(path.read_text(encoding="utf-8"))


def said(page: Page) -> str:
    return " ".join(word for _, word in page.words)


def analysis(adata: ad.AnnData, key: str = "bcnmf") -> Analysis:
    return Analysis(adata, key, adata.uns[key], 10, None)


def cautions(adata: ad.AnnData, key: str = "bcnmf") -> list[str]:
    return [reason.text for reason in reasons(analysis(adata, key)) if reason.level != "good"]


# structure


def test_headings_landmarks_and_links(page):
    assert page.of("html")[0]["lang"] == "en"
    assert [len(page.of(tag)) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert page.text("title") == page.text("h1") == ["IFN & <you>"]
    assert [section["id"] for section in page.of("section")] == SECTIONS
    assert len(page.of("h2")) == len(SECTIONS)
    levels = [int(tag[1]) for tag, _, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))  # none is left out
    ids = [attributes["id"] for _, attributes, _ in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(section["aria-labelledby"] in ids for section in page.of("section"))
    links = [link["href"] for link in page.of("a")]
    assert links == ["#content", *(f"#{name}" for name in SECTIONS)]


def test_figures_have_words_and_are_part_of_the_file(page, full):
    images = page.of("img")
    # effects, donors, target share, three UMAPs, genes, associations; alpha, stability, loss
    assert [image["alt"].split()[0] for image in images if not image["alt"].startswith("Leading gene sets")] == [
        "Effect", "Share", "Target", "UMAP", "UMAP", "UMAP", "Heatmap", "Difference", "Held-out", "Stability", "Loss"
    ]  # fmt: skip
    assert all(len(image["alt"]) > 30 for image in images)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert len(page.text("figcaption")) == len(images)
    alts = {image["alt"].split()[0]: image["alt"] for image in images}
    assert f"Topic 1: {analysis(full).genes['Topic 1'][0]}" in alts["Heatmap"]
    called = bc.get.associations(full)
    called = called[(called["p_adjusted"] <= 0.05) & called["topic"].astype(str).str.startswith("Topic")]
    assert all(str(topic) in alts["Difference"] for topic in called["topic"])


def test_cells_are_pixels_and_text_is_outlines(page, full):
    for image in [image for image in page.of("img") if image["alt"].startswith("UMAP")]:
        drawn = base64.b64decode(image["src"].partition(",")[2]).decode()
        assert "<image" in drawn
        assert drawn.count("<use") < full.n_obs
        assert "font-family" not in drawn  # a reader's fonts do not matter


def test_tables_have_captions_and_headers_and_scroll_with_the_keyboard(page):
    tables = page.of("table")
    assert len(page.of("caption")) == len(tables) > 8
    bars = [table for table in tables if table.get("class") == "bars"]
    assert len(bars) == 1
    assert {cell.get("scope") for cell in page.of("th")} == {"col", "row"}
    scrolled = [attributes for _, attributes, _ in page.tags if attributes.get("class") == "scroll"]
    assert len(scrolled) == len(tables) - len(bars)
    assert all(box["tabindex"] == "0" and box["role"] == "group" and box["aria-label"] for box in scrolled)


def test_nothing_comes_from_outside_and_no_script_is_there(path, page):
    assert not page.of("script")
    assert not [name for _, attributes, _ in page.tags for name in attributes if name.startswith("on")]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|srcset|<iframe|<object", text)
    sources = [a[name] for _, a, _ in page.tags for name in ("src", "href", "action") if name in a]
    assert all(source.startswith(("#", "data:")) for source in sources)


def test_names_are_escaped(path, page):
    text = path.read_text(encoding="utf-8")
    for raw in (NASTY, "ctrl <b>", "on <i>", "set <u>", "<you>"):
        assert raw not in text
        assert any(raw in word for _, word in page.words), raw
    assert not {"b", "i", "u", "you"} & {tag for tag, _, _ in page.tags}


# content


def test_what_is_stored_is_shown(page, full):
    words = said(page)
    assert "Which gene programs do the 160 target cells" in words
    assert full.uns["bcnmf_alpha"]["reason"] in words
    assert full.uns["bcnmf_n_topics"]["reason"] in words
    assert all(meaning in words for meaning in full.uns["bcnmf_background_check"]["meaning"])
    for name in full.uns["bcnmf"]["params"]:
        assert name in page.text("dt")
    for topic, genes in bc.get.top_genes(full, "all", 10).groupby("topic", observed=True)["gene"]:
        assert topic in page.text("th")
        assert ", ".join(genes) in page.text("td")
        assert ", ".join(analysis(full).genes[topic]) in page.text("td")
    assert f"{full.obs.loc[full.obs['bcnmf_role'] == 'target', 'bcnmf_enriched'].mean():.1%}" in page.text("td")
    assert "arXiv:2602.22387" in " ".join(page.text("code"))
    assert bc.__version__ in page.text("dd")
    assert "bc.tl." not in words  # nothing is missing


def test_the_first_section_answers(page, full):
    """How many cells, which, by what, with what interval and how sure."""
    (head,) = [word for word in page.text("p") if word.startswith(("About ", "No difference"))]
    called = full.obs["bcnmf_enriched"].groupby(full.obs["bcnmf_role"].astype(str)).mean()
    assert any(f"Called: {_answer.percent(called['target'])} of case cells" in word for word in page.text("p"))
    assert "160 case cells" in head
    assert "Can I trust it?" in page.text("strong")
    bars = next(i for i, (tag, of, _) in enumerate(page.tags) if tag == "table" and of.get("class") == "bars")
    evidence = next(i for i, (_, of, _) in enumerate(page.tags) if of.get("id") == "evidence")
    assert bars < evidence
    assert set(full.obs["cell_type"].cat.categories) <= set(page.text("th"))
    topics = full.uns["bcnmf"]["topics"]
    for name in ("Topic 1", "Topic 2"):
        assert name in page.text("h4")
        assert _answer.effect(topics.loc[name]) in page.text("p")
        assert "95% CI" in _answer.effect(topics.loc[name])
        assert ", ".join(analysis(full).genes[name]) in page.text("p")
    assert not [word for word in page.text("h4") if word.startswith("Background")]


@pytest.mark.parametrize("slot", ["obsm['X_mine']", "varm['mine']"])
def test_values_that_are_not_finite_are_refused(plain, slot, tmp_path):
    adata = plain.copy()
    (adata.obsm["X_mine"] if slot.startswith("obsm") else adata.varm["mine"])[0, :2] = np.nan
    with pytest.raises(ValueError, match=re.escape(f"`adata.{slot}` must be finite, got 2 values")):
        bc.report(adata, tmp_path / "report.html", key="mine")
    assert not (tmp_path / "report.html").exists()


OTHER = {"background": "case"}, {"target": "all"}, {"layer": "counts"}


@pytest.mark.parametrize("change", OTHER, ids=str)
def test_steps_of_another_design_are_not_shown_as_of_this_fit(full, change, tmp_path):
    adata = full.copy()
    adata.layers["counts"] = adata.X
    design = SPLIT | change
    bc.tl.background_check(adata, n_topics=2, n_background_topics=5, **design, **QUICK)
    for name in ("bcnmf_alpha", "bcnmf_n_topics"):
        adata.uns[name]["design"] = adata.uns["bcnmf_background_check_design"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad")
    page = written(adata, tmp_path)
    words = said(page)
    for step in ("background check", "alpha", "n topics"):
        assert f"The stored {step} is for another design than this fit and is not shown." in words
    assert not any(meaning in words for meaning in adata.uns["bcnmf_background_check"]["meaning"])
    for name in ("bcnmf_alpha", "bcnmf_n_topics"):
        assert adata.uns[name]["reason"] not in words
    called = [ast.parse(call, mode="eval").body.func.attr for call in page.text("code") if call.startswith("bc.tl.")]
    assert called == ["background_check", "select_n_topics"]  # beside background topics alpha is 0 by design


def test_the_same_design_in_other_words_is_shown(full, tmp_path):
    adata = full.copy()
    bc.tl.background_check(adata, n_topics=2, n_background_topics=5, target="case", **SPLIT, **QUICK)
    assert "another design" not in said(written(adata, tmp_path))


def test_what_is_missing_is_named_with_the_call_that_adds_it(plain, tmp_path):
    page = written(plain, tmp_path, key="mine")
    calls = [word for word in page.text("code") if word.startswith("bc.tl.")]
    made = {}
    for call in calls:
        node = ast.parse(call, mode="eval").body
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        inspect.signature(getattr(bc.tl, node.func.attr)).bind(plain, **given)  # it could be made
        assert {given.get("groupby", "donor"), given.get("sample_key", "donor")} <= set(plain.obs)
        assert "mine" in (given.get("key"), given.get("key_added"))
        made[node.func.attr] = given
    assert set(made) == {
        "background_check",
        "select_alpha",
        "select_n_topics",
        "bcnmf",
        "umap",
        "associate",
        "associate_genes",
        "enrich",
        "consensus",
    }
    assert made["select_alpha"] == {"key_added": "mine", **SPLIT, "sample_key": "donor"}
    assert len(page.of("img")) == 3  # loadings, usage, loss


def test_only_columns_that_are_there_are_suggested(plain, tmp_path):
    adata = plain[:, :].copy()
    adata.obs = adata.obs[["condition", "mine_role"]]
    words = " ".join(word for word in written(adata, tmp_path, key="mine").text("code"))
    assert "groupby='condition'" in words
    assert "sample_key" not in words


def test_calls_that_are_named_add_what_was_missing(plain, tmp_path):
    adata = plain.copy()
    page = written(adata, tmp_path, key="mine")
    for call in page.text("code"):
        if call.startswith(("bc.tl.umap", "bc.tl.associate")):
            eval(call, {"bc": bc, "adata": adata})
    after = written(adata, tmp_path, key="mine")
    assert len(after.of("img")) == 3 + 2 + 1  # UMAPs by condition and by cell type, associations
    assert not [word for word in after.text("code") if "umap" in word or "associate" in word]


def test_methods_without_a_background_have_no_section_for_it(tmp_path):
    adata = small()
    bc.tl.nmf(adata, n_topics=2, **QUICK)
    page = written(adata, tmp_path, key="nmf")
    assert "Is this background suitable?" not in page.text("summary")
    assert "Can I trust it?" not in page.text("strong")
    assert "2 topics describe 280 cells." in page.text("p")
    assert any("280 cells of the fit" in word for word in page.text("p"))


def test_deltanmf_shows_shift_and_emergence(tmp_path):
    adata = bc.datasets.simulated_programs(n_control=150, n_case=120, n_genes=100)
    split = {"condition_key": "condition", "control": "ctrl"}
    bc.tl.deltanmf(adata, n_topics_control=3, n_topics_case=2, n_restarts=1, **split, **QUICK)
    page = written(adata, tmp_path, key="deltanmf")
    assert any("Do the 120 cases use the programs of the 150 controls" in word for word in page.text("p"))
    captions = page.text("caption")
    assert any(caption.startswith("Control topics") for caption in captions)
    assert any(caption.startswith("Case topics") for caption in captions)
    assert any(word.startswith("2 additional programs in cases; ") for word in page.text("p"))
    assert "Case topics were not tested" in said(page)
    assert "DeltaNMF" in " ".join(page.text("code"))


def test_projected_cells(plain, tmp_path):
    adata = small()
    bc.tl.project(adata, plain, key="mine")
    page = written(adata, tmp_path, key="mine")
    assert any("How much do these 280 cells use topics learned on other cells?" in x for x in page.text("p"))
    assert cautions(adata, "mine") == []
    assert "Topics, with the effects found on the cells of the fit" in page.text("h3")
    assert "Can I trust it?" not in page.text("strong")


def test_symbols_and_number_of_genes(plain, tmp_path):
    plain.var["symbol"] = [f"S{i}" for i in range(plain.n_vars)]
    page = written(plain, tmp_path, key="mine", gene_symbols="symbol", n_genes=3)
    top = bc.get.top_genes(plain, "Topic 1", 3, key="mine", gene_symbols="symbol")
    assert ", ".join(top["gene"]) in page.text("td")


def test_many_long_names(tmp_path):
    adata = small()
    adata.var_names = [f"G{i}".ljust(40, "W") for i in range(adata.n_vars)]
    bc.tl.nmf(adata, n_topics=20, max_iter=5, tol=1.0, progress=False)
    assert len(written(adata, tmp_path, key="nmf").of("img")) == 3


# warnings


def test_sound_analysis_has_no_warning(full, tmp_path):
    adata = full.copy()
    sound(adata)
    assert cautions(adata) == [CANNOT_TELL]  # as topics are called
    page = written(adata, tmp_path)
    assert "Green" in page.text("strong")
    assert "nothing that is stored speaks against it" in said(page)


def sound(adata: ad.AnnData) -> None:
    """Leave nothing to be warned of."""
    adata.uns["bcnmf_background_check"]["verdict"] = "good"
    adata.uns["bcnmf"]["converged"] = True
    columns = ["p_value", "called", "stability"]
    adata.uns["bcnmf"]["topics"].loc[["Topic 1", "Topic 2"], columns] = [1e-3, True, 0.9]


def scored(adata: ad.AnnData, *, n_donors: int | None, target: float, called: bool) -> str:
    """Return the headline where so many donors, called cells and called topics are found."""
    record = adata.uns["bcnmf"]
    record["topics"]["called"] = record["topics"]["kind"].eq("target") & called
    role = adata.obs["bcnmf_role"].astype(str).to_numpy()
    for side, share in (("target", target), ("background", 0.05)):
        cells = np.flatnonzero(role == side)
        adata.obs.loc[adata.obs_names[cells], "bcnmf_enriched"] = np.arange(len(cells)) < share * len(cells)
    record.pop("donors", None)
    record["params"].pop("sample_key", None)
    if n_donors is not None:
        sides = np.repeat(["target", "background"], n_donors)
        names = [f"d{i}" for i in range(2 * n_donors)]
        record["donors"] = pd.DataFrame({"donor": names, "condition": sides, "n_cells": 50})
        record["donors"][list(record["topics"].index)] = 0.1
    return _answer._of_scored_fit(analysis(adata))[0]


@pytest.mark.parametrize(
    ("n_donors", "target", "called", "words"),
    [
        (5, 0.998, True, "are affected, by 2 programs."),
        (5, 0.06, True, "too few cells are called"),
        (2, 0.998, False, "2 donors cannot decide whether other donors would."),
        (5, 0.998, False, "but the donors do not agree on any program."),
        (2, 0.05, False, "No difference seen between case and ctrl <b>; 2 donors cannot decide this."),
        (5, 0.05, False, "No difference found between case and ctrl <b>."),
        (None, 0.998, True, "in 2 programs; donors were not named."),
        (None, 0.998, False, "without donors no program can be called."),
    ],
)
def test_the_headline_contradicts_nothing(full, n_donors, target, called, words):
    head = scored(full.copy(), n_donors=n_donors, target=target, called=called)
    assert words in head
    assert ("No difference" in head) == (target < 0.1 and not called)


def test_what_is_left_for_chance_is_taken_off(full):
    head = scored(full.copy(), n_donors=5, target=0.525, called=True)
    assert head.startswith("About 50% of the 160 case cells are affected")  # (0.525 - 0.05) / 0.95


def test_light_is_the_worst_of_its_reasons():
    good, caution, bad, note = (Reason(level, "x", "") for level in ("good", "caution", "bad", "note"))
    assert verdict([good, note]) == "good"
    assert verdict([good, caution, note]) == "caution"
    assert verdict([caution, bad]) == "bad"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"log2_fold_change": 3.0, "ci_low": 2.0, "ci_high": 4.0}, "8.0-fold more (95% CI 4.0 to 16)"),
        ({"log2_fold_change": -1.0, "ci_low": -2.0, "ci_high": 1.0}, "2.0-fold less (95% CI 0.5 to 4.0)"),
        ({"log2_fold_change": 1.0, "ci_low": np.nan, "ci_high": np.nan}, "2.0-fold more, no interval"),
        ({"log2_enrichment": 1.0}, "2.0-fold more, no interval or test"),
        ({"kind": "target"}, ""),
    ],
)
def test_effects_in_words(row, words):
    assert _answer.effect(pd.Series(row)) == words


def changed(table: str, column: str, value: object):
    """Spoil a column of a table in `uns`."""

    def spoil(adata: ad.AnnData) -> None:
        tables = {"check": adata.uns["bcnmf_background_check"], "path": adata.uns["bcnmf_alpha"]["table"]}
        (tables | adata.uns["bcnmf"])[table][column] = value

    return spoil


SPOILED = {
    "rest": lambda a: a.uns["bcnmf"].update(converged=False),
    "worse": lambda a: a.uns["bcnmf"]["deviance_explained"].update(target=-0.1),
    "suppressed": lambda a: setattr(a, "var", a.var.assign(bcnmf_suppressed=True)),
    "collapsed": changed("topics", "usage_target", [0.3, 1e-5, 0.2, 0.1, 0.1, 0.1, 0.1]),
    "stable": changed("topics", "stability", 0.6),
    "donors": lambda a: (a.uns["bcnmf"]["params"].update(sample_key=None), a.uns["bcnmf"].pop("donors")),
    "two": lambda a: a.uns["bcnmf"].update(donors=a.uns["bcnmf"]["donors"].groupby("condition", observed=True).head(2)),
    "depth": lambda a: a.obsm["X_bcnmf"].__imul__(np.where(a.obs["bcnmf_role"] == "target", 2, 1)[:, None]),
    "scores": lambda a: setattr(a, "obs", a.obs.drop(columns="bcnmf_enriched")),
    "unchecked": lambda a: a.uns.pop("bcnmf_background_check"),
    "one": lambda a: setattr(
        a, "obs", a.obs.assign(bcnmf_enriched=(a.obs["donor"] == "d0") & (a.obs["bcnmf_role"] == "target"))
    ),
    "few": lambda a: setattr(a, "obs", a.obs.assign(bcnmf_role=["background"] * 5 + ["target"] * (a.n_obs - 5))),
    "bad": changed("check", "verdict", "bad"),
    "unit": changed("associations", "unit", "cell"),
    "contrast": changed("associations", "groupby", "condition"),
    "alpha": lambda a: a.uns["bcnmf"].update(
        alpha_effective=0.17, topics=a.uns["bcnmf"]["topics"].assign(kind="target")
    ),
    "ruined": changed("path", "degenerate", True),  # noqa: FBT003
}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("rest", "did not converge in"),
        ("worse", "worse than its mean profile"),
        ("suppressed", "120 genes are suppressed"),
        ("collapsed", "Collapsed topics, hardly used by any target cell: Topic 2."),
        ("stable", "Topics that do not return in other fits (cosine below 0.8): Topic 1 (0.60), Topic 2 (0.60)."),
        ("donors", "Donors are not named, so what sets donors apart may pass for an effect. 'donor' looks like"),
        ("two", "2 donors cannot decide that there is none"),
        ("depth", "times as many counts as a background cell"),
        ("scores", "nothing here is a test"),
        ("unchecked", "The background was not checked"),
        ("one", "called in only 1 of 3 donors of case: the effect is not general"),
        ("few", "Only 5 background cells"),
        ("bad", "Check of the background, background cells"),
        ("unit", "Topics were tested against state with every cell"),
        ("contrast", "Topics were tested against condition, the contrast"),
        ("alpha", "The fit used alpha 0.17; the stored path"),
        ("ruined", "Every alpha on the stored path"),
    ],
)
def test_each_warning(full, what, words):
    adata = full.copy()
    sound(adata)
    assert words not in " ".join(cautions(adata))
    SPOILED[what](adata)
    assert words in " ".join(cautions(adata))


# the file


def test_calls_ask_for_the_same_data(plain, tmp_path):
    other = plain.copy()
    other.layers["counts"] = other.X.copy()
    case = next(name for name in other.obs["condition"].unique() if name != "ctrl")
    bc.tl.bcnmf(
        other, n_topics=2, n_background_topics=2, cross_fit=None, target=case, layer="counts", key_added="off",
        **SPLIT, **QUICK,
    )  # fmt: skip
    text = said(written(other, tmp_path, key="off"))
    assert "cross-fitting was off" in text
    assert f"target={case!r}, layer='counts'" in text


def test_spatial_fits_are_refused(plain, tmp_path):
    other = plain.copy()
    other.uns["mine"]["posterior"] = {}
    with pytest.raises(ValueError, match=r"must name a fit of `nmf`.*of `gpnsf`"):
        bc.report(other, tmp_path / "report.html", key="mine")


def test_same_page_from_a_file_a_second_time_and_from_the_command_line(full, path, tmp_path, capsys):
    first = path.read_bytes()
    full.write_h5ad(tmp_path / "in.h5ad")
    backed = ad.read_h5ad(tmp_path / "in.h5ad", backed="r")
    bc.report(backed, tmp_path / "backed.html", title="IFN & <you>")
    backed.file.close()
    assert (tmp_path / "backed.html").read_bytes() == first
    arguments = ["report", str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "cli.html"), "--title", "IFN & <you>"]
    for code in (0, 1):  # the second time it exists
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == code
    assert (tmp_path / "cli.html").read_bytes() == first
    assert "--force" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments[:3], str(tmp_path / "other.html"), "--key", "none"])
    assert end.value.code == 1
    assert "`key` 'none' is not a factorisation" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


def test_an_existing_page_is_replaced_only_on_request(plain, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"`path` must name a new file, got .*overwrite=True"):
        bc.report(plain, path, key="mine")
    assert path.read_text() == "precious"
    assert bc.report(plain, path, key="mine", overwrite=True) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_data_are_not_touched(full, tmp_path):
    adata = full.copy()
    written(adata, tmp_path)
    assert_equal(adata, full)


def test_errors_come_before_any_work(plain, tmp_path):
    with pytest.raises(ValueError, match=r"`key` 'bcnmf' is not a factorisation.*Present: 'mine'"):
        bc.report(plain, tmp_path / "a.html")
    with pytest.raises(ValueError, match="`gene_symbols` must be a column"):
        bc.report(plain, tmp_path / "a.html", key="mine", gene_symbols="x")
    with pytest.raises(ValueError, match="`n_genes` must be a whole number of at least 1"):
        bc.report(plain, tmp_path / "a.html", key="mine", n_genes=0)
    with pytest.raises(ValueError, match=r"`groupby` must be a column of `adata.obs`, got 'x'. Present: 'condition'"):
        bc.report(plain, tmp_path / "a.html", key="mine", groupby="x")
    with pytest.raises(ValueError, match="`path` must lie in an existing folder"):
        bc.report(plain, tmp_path / "none" / "a.html", key="mine")
    assert list(tmp_path.iterdir()) == []


# in a browser


class Browser:
    """Chromium without a window, driven through its DevTools pipe."""

    FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    QUIET = ("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe")

    def __init__(self, program: str, profile: Path) -> None:
        reading, self.out = os.pipe()
        self.into, writing = os.pipe()
        command = [program, *self.FLAGS, *self.QUIET, f"--user-data-dir={profile}", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{reading} 4>&{writing}', "bash", *command]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(shell, pass_fds=(reading, writing), **quiet)
        os.close(reading)
        os.close(writing)
        self.numbers, self.rest, self.session, self.events = itertools.count(1), b"", None, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params):
        message = {"id": next(self.numbers), "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != message["id"]:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], 20)
            assert ready, "the browser does not answer"
            piece = os.read(self.into, 1 << 20)
            assert piece, "the browser ended"
            self.rest += piece
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def run(self, script: str):
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def show(self, path: Path, width: int) -> None:
        self.events.clear()
        screen = {"height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", width=width, **screen)
        self.send("Page.navigate", url=path.as_uri())
        for _ in range(200):
            if self.run("location.protocol === 'file:' && document.readyState === 'complete'"):
                return
            time.sleep(0.05)
        pytest.fail("The page did not load.")

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser; where `BCNMF_SC_TEST_BROWSER` names one it must work."""
    named = os.environ.get("BCNMF_SC_TEST_BROWSER")
    known = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    program = next((found for found in map(shutil.which, known) if found), None)
    if program is None:
        if named:
            pytest.fail(f"BCNMF_SC_TEST_BROWSER names {named!r}, which is no program here.")
        pytest.skip("No Chromium here. Install one to see the report in a browser.")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_fits_the_screen_and_asks_for_nothing(browser, path, width, scheme):
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.show(path, width)
    light = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    if width == 1280:
        assert browser.run("document.documentElement.scrollHeight") <= 5 * 900
        cards = (
            "Math.max(...[...document.querySelectorAll('.card, .light')].map(x => x.getBoundingClientRect().bottom))"
        )
        assert browser.run(cards) <= 900  # the answer is in the first screen
    assert browser.run("window.innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    loaded = browser.run("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert loaded
    assert all(loaded)
    drawn = "[...document.querySelectorAll('figure img')].filter(x => x.getClientRects().length)"
    assert browser.run(f"Math.min(...{drawn}.map(x => x.getBoundingClientRect().width / x.width))") >= 0.85
    inside = "box.left >= 0 && box.right <= innerWidth + 0.5"
    blocks = "[...document.querySelectorAll('p, h1, h2, pre, dl, .scroll')].map(x => x.getBoundingClientRect())"
    assert browser.run(f"{blocks}.every(box => {inside})")
    texts = (
        "[...document.querySelectorAll('p, td, th, dd, figcaption')].map(x => parseFloat(getComputedStyle(x).fontSize))"
    )
    smallest = browser.run(f"Math.min(...{texts})")
    assert smallest >= 12
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert path.as_uri() in asked
    assert not [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert browser.run("document.querySelectorAll('script').length") == 0


def test_keyboard_reaches_everything(browser, path, page):
    browser.show(path, 1280)
    here = "(x => x.getAttribute('href') || x.tagName + x.className)(document.activeElement)"
    browser.press("Tab", 9)
    assert browser.run(here) == "#content"
    assert browser.run("document.activeElement.getBoundingClientRect().left >= 0")  # seen once it has the focus
    browser.press("Enter", 13)
    assert browser.run("document.activeElement.id") == "content"
    reached = []
    for _ in range(120):
        browser.press("Tab", 9)
        reached.append(browser.run(here))
        if reached[-1] == "BODY":
            break
    boxes = [word for word in reached if word == "DIVscroll"]
    folds = [word for word in reached if word == "SUMMARY"]
    folded = len(page.of("details"))
    assert len(folds) == folded > 0
    tables = [("details" in parents, of) for tag, of, parents in page.tags if tag == "table"]
    assert len(boxes) == sum(not inside and of.get("class") != "bars" for inside, of in tables)
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter", 13)
    assert browser.run("document.querySelector('details').open")
