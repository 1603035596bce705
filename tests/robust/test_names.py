"""Names with slashes, quotes, tags, formulas, line breaks and emoji: in files, in the report, in plots."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text

import bcnmf_sc as bc

NAMES = [
    "a/b",
    "<b>bold</b>",
    "$\\frac{$",
    'it\'s "x"',
    "line\nbreak",
    "🧬",
    " ",
    "../up",
    "_100 %",
    "a & b",
    "{{ 7 * 7 }}",
]
CONDITIONS = {"ctrl": "x/<i>$y$", "case": "🧬 $\\frac{$ 'z'"}
HOW = {"background_key": "con/dition $a$", "background": CONDITIONS["ctrl"]}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Glyph .* missing from"),  # the font has no emoji
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture(scope="module")
def fitted() -> ad.AnnData:
    adata = bc.datasets.simulated(n_target=60, n_background=50, n_genes=40)
    adata.var_names = NAMES + list(adata.var_names[len(NAMES) :])
    adata.obs_names = NAMES + list(adata.obs_names[len(NAMES) :])
    adata.obs["group $b$"] = adata.obs["condition"].cat.rename_categories(CONDITIONS)
    adata.obs = adata.obs.rename(columns={"condition": HOW["background_key"]})
    adata.obs[HOW["background_key"]] = adata.obs["group $b$"].to_numpy()
    adata.obs["donor"] = adata.obs["donor"].astype(str) + "/<i>"
    bc.tl.bcnmf(adata, **HOW, n_topics=2, max_iter=30, alpha=0.1, key_added="k <i>$e$")
    bc.tl.associate(adata, groupby="group $b$", sample_key="donor", key="k <i>$e$")
    bc.tl.enrich(adata, {name: adata.var_names[i : i + 8] for i, name in enumerate(NAMES)}, n_genes=8, key="k <i>$e$")
    adata.obsm["X_k <i>$e$_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    return adata


KEYS = ["a/b", "/", "", ".", "..", "a\\b", ".zgroup", "\ud800", "x" * 201, "a\0b", 3, None]


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda a, **k: bc.tl.bcnmf(a, **HOW, **k),
        lambda a, **k: bc.tl.nmf(a, **k),
        lambda a, **k: bc.tl.cpca(a, **HOW, **k),
        lambda a, **k: bc.tl.consensus(a, **HOW, **k),
        lambda a, **k: bc.tl.select_alpha(a, **HOW, **k),
        lambda a, **k: bc.tl.select_n_topics(a, **HOW, **k),
        lambda a, **k: bc.tl.background_check(a, **HOW, **k),
        lambda a, **k: bc.tl.gpnsf(a, **k),
        lambda a, **k: bc.tl.deltanmf(a, condition_key=HOW["background_key"], control=HOW["background"], **k),
    ],
    ids=["bcnmf", "nmf", "cpca", "consensus", "select_alpha", "select_n_topics", "check", "gpnsf", "deltanmf"],
)
def test_a_key_that_a_file_could_not_hold_is_refused(fitted, call, key):
    """A slash would nest groups in the file, and be lost when it is read."""
    with pytest.raises(ValueError, match=r"`key_added` must be a name without '/'"):
        call(fitted, key_added=key)


@pytest.mark.filterwarnings("ignore:Writing element|.*slash.*:FutureWarning")
def test_names_survive_a_file(fitted, tmp_path):
    adata = fitted.copy()
    del adata.obs[HOW["background_key"]]  # AnnData will not write a column with a slash
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    key = "k <i>$e$"
    for call in (
        lambda a: bc.get.usage(a, key=key),
        lambda a: bc.get.loadings(a, key=key),
        lambda a: bc.get.top_genes(a, key=key),
        lambda a: bc.get.associations(a, key=key).astype({"topic": str}),
        lambda a: bc.get.enrichment(a, key=key).astype({"topic": str}),
        lambda a: a.uns[key]["alphas"],
    ):
        pd.testing.assert_frame_equal(call(again), call(adata), check_dtype=False, check_names=False)
    assert again.uns[key]["params"]["background_key"] == HOW["background_key"]
    assert list(again.uns[key]["params"]["background"]) == [HOW["background"]]


def test_names_in_the_report_are_text(fitted, tmp_path):
    bc.report(fitted, tmp_path / "r.html", key="k <i>$e$", title="<script>alert(1)</script>{{ 7 * 7 }}")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert "{{ 7 * 7 }}" in text  # not filled in
    assert not re.findall(r"<script|<b>|<i>", text)


def shown(figure) -> set[str]:
    """Every text of a figure once it is drawn, with the dollar signs that begin no formula."""
    figure.canvas.draw()
    return {text.get_text().replace(r"\$", "$") for text in figure.findobj(Text)}


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda a, key: bc.pl.loadings(a, n_genes=40, test="group $b$", key=key, return_fig=True), NAMES),
        (lambda a, key: bc.pl.gene_frequency(a, n_genes=40, n_shown=None, key=key).figure, NAMES),
        (lambda a, key: bc.pl.enrichment(a, n_sets=20, key=key).figure, NAMES),
        (lambda a, key: bc.pl.usage(a, "group $b$", key=key).figure, [*CONDITIONS.values(), "group $b$"]),
        (lambda a, key: bc.pl.umap(a, color="group $b$", key=key).figure, [*CONDITIONS.values(), "group $b$"]),
        (lambda a, key: bc.pl.bubbles(a, "group $b$", key=key).figure, [*CONDITIONS.values(), "group $b$"]),
        (lambda a, key: bc.pl.composition(a, "group $b$", "donor").figure, [*CONDITIONS.values(), "group $b$"]),
        (lambda a, key: bc.pl.images(a, "group $b$", key=key, shape=(5, 8), return_fig=True), [*CONDITIONS.values()]),
        (lambda a, key: bc.pl.associations(a, "group $b$", key=key).figure, []),
        (lambda a, key: bc.pl.loss(a, key=key, return_fig=True), []),
    ],
    ids=range(10),
)
def test_names_in_plots_are_no_formulas(fitted, draw, words):
    found = shown(draw(fitted, "k <i>$e$"))
    plt.close("all")
    assert set(words) <= found
