"""Tests of `bcnmf_sc.pl.enrichment`: what the artists show."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from bcnmf_sc import pl


def stored(n_topics: int = 3, n_sets: int = 6, *, letters: int = 0, method: str = "ora") -> ad.AnnData:
    adata = ad.AnnData(np.ones((4, 5), "float32"))
    names = [f"Topic {k + 1}" for k in range(n_topics)]
    sets = [f"set {i}".ljust(letters, "W") for i in range(n_sets)]
    rng = np.random.default_rng(0)
    rows = [
        {"topic": topic, "gene_set": sets[(i + k) % n_sets], "method": method, "score": float(i + 1)}
        for k, topic in enumerate(names)
        for i in range(n_sets)
    ]
    table = pd.DataFrame(rows)
    table["p_value"] = np.tile(np.sort(rng.uniform(0, 0.2, n_sets)), n_topics)
    table["p_adjusted"] = np.tile(np.linspace(0.001, 0.2, n_sets), n_topics)
    adata.uns["bcnmf"] = {"topics": pd.DataFrame({"kind": "target"}, index=names), "enrichment": table}
    return adata


def test_a_dot_for_each_topic_and_leading_set():
    adata = stored()
    ax = pl.enrichment(adata, n_sets=2)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Topic 1", "Topic 2", "Topic 3"]
    sets = [label.get_text() for label in ax.get_yticklabels()]
    assert sets == ["set 0", "set 1", "set 2", "set 3"]
    (dots,) = ax.collections
    table = adata.uns["bcnmf"]["enrichment"].set_index(["topic", "gene_set"])
    for (x, y), size, score in zip(dots.get_offsets(), dots.get_sizes(), dots.get_array(), strict=True):
        row = table.loc[(f"Topic {int(x) + 1}", sets[int(y)])]
        assert size == pytest.approx(40 * -np.log10(row["p_adjusted"]))  # the largest, 3, has an area of 120
        assert score == row["score"]
    assert len(dots.get_offsets()) == 12


def test_only_the_topics_asked_for():
    ax = pl.enrichment(stored(), n_sets=1, topics=["Topic 3", "Topic 1"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Topic 3", "Topic 1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["set 2", "set 0"]


def test_a_rim_marks_what_is_significant():
    (dots,) = pl.enrichment(stored(n_topics=1)).collections
    rims = dots.get_edgecolors()[:, 3]
    assert rims.tolist() == [1, 1, 0, 0, 0]  # p of 0.001, 0.04, 0.08, ...


def test_the_method_is_named_where_both_have_run():
    adata = stored()
    both = [adata.uns["bcnmf"]["enrichment"], stored(method="gsea").uns["bcnmf"]["enrichment"].assign(score=-1.0)]
    adata.uns["bcnmf"]["enrichment"] = pd.concat(both, ignore_index=True)
    with pytest.raises(ValueError, match=r"`method` must be a method that was run, got None. Present: 'ora', 'gsea'"):
        pl.enrichment(adata)
    ax = pl.enrichment(adata, method="gsea")
    assert (ax.collections[0].get_array() == -1).all()
    assert ax.figure.axes[1].get_xlabel() == "normalised enrichment score"
    with pytest.raises(ValueError, match="`n_sets` must be a whole number of at least 1, got 0"):
        pl.enrichment(adata, method="ora", n_sets=0)


def test_what_must_run_first():
    adata = stored()
    del adata.uns["bcnmf"]["enrichment"]
    with pytest.raises(ValueError, match=r"Run `bcnmf_sc.tl.enrich` first"):
        pl.enrichment(adata)


@pytest.mark.parametrize(("n_topics", "n_sets", "letters"), [(1, 1, 0), (3, 6, 40), (20, 40, 40)])
def test_labels_keep_apart(n_topics, n_sets, letters):
    ax = pl.enrichment(stored(n_topics, n_sets, letters=letters), n_sets=3)
    figure = ax.figure
    figure.canvas.draw()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        for one, other in itertools.pairwise(boxes):
            assert not one.overlaps(other)
