"""Tests of `bcnmf_sc.pl` on tests, comparisons, compositions and images: what the artists show."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgba

from bcnmf_sc import get, pl, tl
from bcnmf_sc.pl._axes import MISSING, PALETTE, PLAIN


def stored(n_obs: int = 120, n_vars: int = 36, n_topics: int = 4, *, letters: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(rng.poisson(5.0, (n_obs, n_vars)).astype("float32"))
    adata.var_names = [f"G{i}".ljust(letters, "W") for i in range(n_vars)]
    adata.var["symbol"] = [f"S{i}" for i in range(n_vars)]
    donor = np.arange(n_obs) % 6
    adata.obs["donor"] = pd.Categorical([f"d{i}" for i in donor])
    adata.obs["condition"] = pd.Categorical(np.where(donor < 3, "ctrl", "stim"))
    adata.obs["depth"] = rng.normal(size=n_obs)
    usage = rng.gamma(1.0, 100.0, (n_obs, n_topics)) * np.exp(rng.normal(0, 0.2, (6, n_topics)))[donor]
    usage[:, 0] *= np.where(donor < 3, 1, 20)
    adata.obsm["X_bcnmf"] = usage.astype("float32")
    adata.varm["bcnmf"] = rng.dirichlet(np.full(n_vars, 0.2), n_topics).T.astype("float32")
    topics = pd.DataFrame(
        {"kind": "target", "log2_enrichment": 1.0},
        index=[f"Topic {k + 1}".ljust(letters, "W") for k in range(n_topics)],
    )
    adata.uns["bcnmf"] = {"topics": topics, "params": {"likelihood": "poisson"}}
    return adata


@pytest.fixture
def adata() -> ad.AnnData:
    return stored()


def texts(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def check_layout(figure) -> None:
    """Everything lies on the canvas, and no two tick labels of an axis share a pixel."""
    figure.canvas.draw()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            boxes = [x.get_window_extent() for x in axis.get_ticklabels() if x.get_text() and ax.axison]
            assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        if ax.axison and ax.get_label() != "<colorbar>":
            assert ax.get_position().width * width > 1
            assert ax.get_position().height * height > 1


# associations


@pytest.mark.parametrize("method", ["moderated", "t"])
def test_associations_draw_the_difference_with_its_interval(adata, method) -> None:
    tl.associate(adata, groupby="condition", sample_key="donor", method=method)
    table = get.associations(adata)
    ax = pl.associations(adata, "condition")
    (points,) = [c for c in ax.collections if len(c.get_offsets()) == 4]
    np.testing.assert_allclose(points.get_offsets(), np.column_stack([table["difference"], range(4)]))
    (bars,) = [c for c in ax.collections if len(c.get_offsets()) != 4]
    ends = np.array([segment[:, 0] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, table[["ci_low", "ci_high"]])
    full = [tuple(c) == to_rgba(PLAIN) for c in points.get_facecolors()]
    assert full == (table["p_adjusted"] <= 0.05).tolist()
    assert sum(full) > 0
    assert texts(ax.yaxis) == table["topic"].tolist()
    what = {"moderated": "log2 fold change of the share of usage", "t": "difference in share of usage"}[method]
    assert ax.get_xlabel().startswith(f"{what} (stim − ctrl)")
    assert "over samples" in ax.get_xlabel()


def test_associations_of_several_groups_have_a_legend(adata) -> None:
    adata.obs["kind"] = [f"k{int(d[1:]) % 3}" for d in adata.obs["donor"]]
    tl.associate(adata, groupby="kind", sample_key="donor")
    ax = pl.associations(adata, "kind", topics=["Topic 3", "Topic 1"])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["k0", "k1", "k2"]
    assert texts(ax.yaxis) == ["Topic 3", "Topic 1"]
    points = [c for c in ax.collections if len(c.get_offsets()) == 2]
    table = get.associations(adata).set_index(["group", "topic"])
    for group, drawn in zip(("k0", "k1", "k2"), points, strict=True):
        expected = [table.loc[(group, topic), "difference"] for topic in ("Topic 3", "Topic 1")]
        np.testing.assert_allclose(drawn.get_offsets()[:, 0], expected)


# tests of genes beside the heatmap


def test_gene_tests_lie_beside_their_rows(adata) -> None:
    tl.associate_genes(adata, groupby="condition", sample_key="donor")
    fig = pl.loadings(adata, n_genes=3, gene_test="condition", return_fig=True)
    heat, bars = fig.axes[:2]
    fig.canvas.draw()
    table = get.associations(adata, table="genes").set_index("gene").loc[texts(heat.yaxis)]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], table["signed_log10_p"])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() / 2 for bar in bars.patches], range(12), atol=1e-9)
    assert heat.get_ylim() == bars.get_ylim()
    np.testing.assert_allclose(heat.get_position().intervaly, bars.get_position().intervaly)
    assert len(fig.axes) == 4  # heatmap, genes, topics, colour bar
    assert "stim against\nctrl" in bars.get_xlabel()
    with pytest.raises(ValueError, match="`groupby` must be a tested column"):
        pl.loadings(adata, gene_test="donor", return_fig=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # that cells are no donors
def test_tests_of_topics_against_a_column_lie_beside_their_blocks(adata) -> None:
    tl.associate(adata, groupby="condition", sample_key="donor", method="t")
    fig = pl.loadings(adata, n_genes=3, test="condition", topics=["Topic 3", "Topic 1"], return_fig=True)
    bars = fig.axes[1]
    table = get.associations(adata, "condition").set_index("topic").loc[["Topic 3", "Topic 1"]]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], table["signed_log10_p"])
    dark = [to_hex(bar.get_facecolor()) == PLAIN for bar in bars.patches]
    assert dark == (table["p_adjusted"] <= 0.05).tolist() == [False, True]
    assert bars.get_xlabel().startswith("topics, signed")
    assert "stim against" in bars.get_xlabel()
    check_layout(fig)
    with pytest.raises(ValueError, match=r"`test` must be 'auto', .* got 'donor'. Tested: 'condition'"):
        pl.loadings(adata, test="donor", return_fig=True)
    adata.obs["kind"] = pd.Categorical(np.resize(list("abc"), adata.n_obs))
    tl.associate(adata, groupby="kind", reference="a")
    with pytest.raises(ValueError, match=r"`test` must be a column with one comparison, got 'kind' with 'b', 'c'"):
        pl.loadings(adata, test="kind", return_fig=True)


def test_gene_tests_of_several_groups_are_refused(adata) -> None:
    adata.obs["kind"] = [f"k{int(d[1:]) % 3}" for d in adata.obs["donor"]]
    tl.associate_genes(adata, groupby="kind", sample_key="donor")
    with pytest.raises(ValueError, match="`gene_test` must be a column with one comparison"):
        pl.loadings(adata, gene_test="kind", return_fig=True)


# usage by donor


def test_usage_shows_donors_and_boxes_over_them(adata) -> None:
    ax = pl.usage(adata, "condition", sample_key="donor", topics=["Topic 2", "Topic 1"])
    share = get.usage(adata, normalize=True)
    large = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(large) == 2
    boxes = [box.get_path().vertices[:4, 1] for box in ax.patches]
    at = 0
    for line, group in zip(large, ("ctrl", "stim"), strict=True):
        here = (adata.obs["condition"] == group).to_numpy()
        means = share[here].groupby(adata.obs["donor"][here], observed=True).mean()[["Topic 2", "Topic 1"]]
        np.testing.assert_allclose(line.get_ydata(), means.to_numpy().ravel(), rtol=1e-5)
        for topic in means:
            np.testing.assert_allclose(
                (boxes[at].min(), boxes[at].max()), np.percentile(means[topic], [25, 75]), rtol=1e-5
            )
            at += 1
    with pytest.raises(ValueError, match="`sample_key` must be a column"):
        pl.usage(adata, "condition", sample_key="mouse")


# gene frequency


def test_gene_frequency_counts_topics(adata) -> None:
    ax = pl.gene_frequency(adata, n_genes=12, n_shown=8, highlight=["S3"], gene_symbols="symbol")
    counts = get.top_genes(adata, n_genes=12)["gene"].value_counts()
    names = texts(ax.yaxis)
    widths = [bar.get_width() for bar in ax.patches]
    assert len(names) == 8
    assert widths == sorted(counts, reverse=True)[:8]
    assert [counts[f"G{name[1:]}"] for name in names] == widths
    everything = pl.gene_frequency(adata, n_genes=12, n_shown=None, highlight=["G3", "G5"])
    assert len(everything.patches) == len(counts)
    coloured = {
        name
        for name, bar in zip(texts(everything.yaxis), everything.patches, strict=True)
        if to_hex(bar.get_facecolor()) == PALETTE[3].lower() and bar.get_hatch()
    }
    assert coloured == {"G3", "G5"} & set(counts.index)
    assert coloured


# compare


def comparison() -> pd.DataFrame:
    rows = [("pca", np.nan, seed, 0.1, 0.02) for seed in range(3)]
    rows += [("cpca", alpha, seed, 0.2 * alpha, 0.03) for alpha in (1.0, 2.0) for seed in range(3)]
    rows += [("bcnmf_split", np.nan, seed, 0.5 + 0.1 * seed, 0.05) for seed in range(3)]
    table = pd.DataFrame(rows, columns=["method", "alpha", "seed", "ari", "ari_se"])
    table["auc_share"] = np.where(table["method"] == "bcnmf_split", 0.9, np.nan)
    return table


def test_compare_draws_medians_errors_and_seeds() -> None:
    ax = pl.compare(comparison())
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.1, 0.2, 0.4, 0.6])
    assert texts(ax.xaxis) == ["PCA", "cPCA, α 1", "cPCA, α 2", "bcNMF, split"]
    (errors,) = ax.collections
    spans = [segment[:, 1] for segment in errors.get_segments()]
    np.testing.assert_allclose(np.diff(spans, axis=1).ravel(), [0.04, 0.06, 0.06, 0.1])
    points = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points[3].get_ydata(), [0.5, 0.6, 0.7])
    assert ax.get_ylabel() == "adjusted Rand index"
    check_layout(ax.figure)


def test_compare_draws_no_errors_that_are_not_known() -> None:
    """As with `n_boot=0`; warnings are errors here."""
    ax = pl.compare(comparison().assign(ari_se=np.nan))
    assert not ax.collections
    assert len(ax.patches) == 4
    table = comparison()
    table.loc[table["method"] == "pca", "ari_se"] = np.nan
    (errors,) = pl.compare(table).collections
    assert [segment[0, 0] for segment in errors.get_segments()] == [1, 2, 3]


def test_compare_leaves_out_methods_without_the_score() -> None:
    ax = pl.compare(comparison(), score="auc_share", label="found")
    assert texts(ax.xaxis) == ["bcNMF, split"]
    assert ax.get_ylabel() == "found"
    with pytest.raises(ValueError, match="`score` must be a column with a score"):
        pl.compare(comparison(), score="seed")
    with pytest.raises(ValueError, match="`score` must have values"):
        pl.compare(comparison().assign(ari=np.nan))


# composition


@pytest.mark.parametrize("normalize", [True, False])
def test_composition_stacks_to_the_whole(adata, normalize) -> None:
    adata.obs["line"] = pd.Categorical([f"L{i % 4 if i % 6 < 3 else i % 2}" for i in range(120)])
    ax = pl.composition(adata, "condition", "line", normalize=normalize)
    counts = pd.crosstab(adata.obs["condition"], adata.obs["line"])
    tops = np.zeros(2)
    for k, line in enumerate(counts):
        bars = ax.containers[k].patches
        expected = counts[line] / (counts.sum(axis=1) if normalize else 1)
        np.testing.assert_allclose([bar.get_height() for bar in bars], expected)
        np.testing.assert_allclose([bar.get_y() for bar in bars], tops)
        tops += expected.to_numpy()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(counts)
    with pytest.raises(ValueError, match="`of` must be a categorical column"):
        pl.composition(adata, "condition", "depth")
    with pytest.raises(ValueError, match="`of` must be a column of"):
        pl.composition(adata, "condition", "x")


# bubbles and images


def test_bubbles_have_the_area_of_the_share(adata) -> None:
    ax = pl.bubbles(adata, "condition", topics=["Topic 2", "Topic 1"])
    usage = get.usage(adata)
    means = usage.groupby(adata.obs["condition"].to_numpy()).mean()
    shares = means.div(means.sum(axis=1), axis=0)[["Topic 2", "Topic 1"]]
    (points,) = ax.collections
    expected = shares.to_numpy().ravel()
    np.testing.assert_allclose(points.get_sizes() / 150, expected / expected.max(), rtol=1e-5)
    np.testing.assert_array_equal(points.get_offsets(), [[0, 0], [1, 0], [0, 1], [1, 1]])
    assert texts(ax.yaxis) == ["ctrl", "stim"]
    assert texts(ax.xaxis) == ["Topic 2", "Topic 1"]


def test_images_are_loadings_or_rebuilt_means(adata) -> None:
    adata.uns["image_shape"] = np.array([6, 6])
    fig = pl.images(adata, topics=["Topic 3", "Topic 2"], return_fig=True)
    W = get.loadings(adata)
    for ax, name in zip(fig.axes, ("Topic 3", "Topic 2"), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), W[name].to_numpy().reshape(6, 6))
        assert ax.get_title() == name
    fig = pl.images(adata, "condition", shape=(4, 9), n_columns=1, return_fig=True)
    means = get.usage(adata).groupby(adata.obs["condition"].to_numpy()).mean()
    rebuilt = means.div(means.sum(axis=1), axis=0).to_numpy() @ W.to_numpy().T
    assert [ax.get_title() for ax in fig.axes] == ["ctrl", "stim"]
    for ax, picture in zip(fig.axes, rebuilt, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), picture.reshape(4, 9), rtol=1e-5)
    with pytest.raises(ValueError, match=r"`shape` must be the rows and columns of images of 36 pixels, got \(5, 6\)"):
        pl.images(adata, shape=(5, 6), return_fig=True)
    del adata.uns["image_shape"]
    with pytest.raises(ValueError, match="got None"):
        pl.images(adata, return_fig=True)


# room


def drawn_with_long_names() -> dict[str, object]:
    adata = stored(n_obs=240, n_vars=225, n_topics=20, letters=40)
    adata.obs["group"] = [f"{int(d[1:]) % 3} group with a name of forty characters" for d in adata.obs["donor"]]
    adata.obs["line"] = [f"line {i % 19} with a name of forty characters" for i in range(240)]
    tl.associate(adata, groupby="group", sample_key="donor")
    tl.associate(adata, groupby="condition", sample_key="donor")
    tl.associate_genes(adata, groupby="condition", sample_key="donor")
    return {
        "associations": pl.associations(adata, "group").figure,
        "associations_one": pl.associations(adata, "condition").figure,
        "loadings": pl.loadings(adata, gene_test="condition", return_fig=True),
        "usage": pl.usage(adata, "condition", sample_key="donor").figure,
        "gene_frequency": pl.gene_frequency(adata, highlight=adata.var_names[:20]).figure,
        "composition": pl.composition(adata, "group", "line").figure,
        "composition_many": pl.composition(adata, "line", "group").figure,
        "bubbles": pl.bubbles(adata, "line").figure,
        "images": pl.images(adata, shape=(15, 15), return_fig=True),
        "images_groups": pl.images(adata, "group", shape=(15, 15), return_fig=True),
        "compare": pl.compare(comparison()).figure,
    }


def test_twenty_topics_and_names_of_forty_characters_do_not_meet() -> None:
    for figure in drawn_with_long_names().values():
        check_layout(figure)


def test_plots_take_axes_and_options(adata) -> None:
    tl.associate(adata, groupby="condition", sample_key="donor")
    for draw, options in (
        (lambda **k: pl.associations(adata, "condition", **k), {"ecolor": "red"}),
        (lambda **k: pl.gene_frequency(adata, **k), {"color": "red"}),
        (lambda **k: pl.compare(comparison(), **k), {"width": 0.1}),
        (lambda **k: pl.composition(adata, "condition", "donor", **k), {"width": 0.1}),
        (lambda **k: pl.bubbles(adata, "condition", **k), {"color": MISSING}),
    ):
        ax = plt.subplots()[1]
        assert draw(ax=ax, **options) is ax


# alpha_path


@pytest.fixture
def path(adata: ad.AnnData) -> ad.AnnData:
    table = pd.DataFrame({"alpha": [0.0, 0.3, 0.45, 0.6], "gain_ratio": [1.0, 1.4, 2.2, -80.0]})
    table["explained_target"] = [0.5, 0.4, 0.3, -7.0]
    table["explained_background"] = [0.5, 0.3, 0.1, -9.0]
    table["stability"] = [0.9, 0.95, 0.8, 0.5]
    table["degenerate"] = [False, False, False, True]
    adata.uns["bcnmf_alpha"] = {"alpha": 0.45, "reason": "because", "table": table}
    return adata


def test_alpha_path_draws_the_table_the_choice_and_hollow_ruins(path: ad.AnnData) -> None:
    fig = pl.alpha_path(path, linewidth=3, return_fig=True)
    table = path.uns["bcnmf_alpha"]["table"]
    ratio, explained, stable = fig.axes
    for ax, columns in (
        (ratio, ["gain_ratio"]),
        (explained, ["explained_target", "explained_background"]),
        (stable, ["stability"]),
    ):
        curves = [line for line in ax.lines if len(line.get_xdata()) == len(table)]
        for curve, points, column in zip(curves, ax.collections, columns, strict=True):
            np.testing.assert_array_equal(curve.get_xydata(), table[["alpha", column]])
            np.testing.assert_array_equal(points.get_offsets(), table[["alpha", column]])
            assert curve.get_linewidth() == 3
            faces = [to_hex(face) for face in points.get_facecolors()]
            assert faces[-1] == "#ffffff"
            assert set(faces[:-1]) == {to_hex(curve.get_color())} != {"#ffffff"}
        assert [line.get_xdata()[0] for line in ax.lines if line.get_ls() == "--"] == [0.45]
        assert ax.get_ylim()[0] >= -0.5  # how bad a ruin is does not squeeze the rest
    assert [text.get_text() for text in explained.get_legend().get_texts()] == ["target", "background"]
    assert len({line.get_ls() for line in explained.lines[:2]}) == 2  # told apart in grey
    assert "0.45" in fig.get_suptitle()
    check_layout(fig)


def test_alpha_path_without_restarts_and_without_a_path(path: ad.AnnData) -> None:
    path.uns["bcnmf_alpha"]["table"]["stability"] = np.nan
    assert len(pl.alpha_path(path, return_fig=True).axes) == 2
    del path.uns["bcnmf_alpha"]
    with pytest.raises(ValueError, match=r"'bcnmf_alpha' is not in `adata.uns`. Present: 'bcnmf'. Run .*select_alpha"):
        pl.alpha_path(path, return_fig=True)


# stability


def test_stability_has_a_bar_for_each_topic_that_has_one() -> None:
    adata = stored(n_topics=20, letters=40)
    table = adata.uns["bcnmf"]["topics"]
    table["stability"] = np.append(np.linspace(0.2, 1, 19), np.nan)
    table["n_members"] = 7
    ax = pl.stability(adata)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], np.linspace(0.2, 1, 19))
    assert texts(ax.yaxis) == [f"{name} (found 7 ×)" for name in table.index[:19]]
    assert ax.get_xlim() == (0, 1)
    check_layout(ax.figure)
    _, own = plt.subplots()
    assert pl.stability(adata, ax=own, height=0.2) is own
    assert own.patches[0].get_height() == pytest.approx(0.2)


def test_stability_errors(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"`key` must name a fit with the stability of its topics.*tl.consensus"):
        pl.stability(adata)
    adata.uns["bcnmf"]["topics"]["stability"] = np.nan
    with pytest.raises(ValueError, match=r"`key` must name a fit with the stability of its topics"):
        pl.stability(adata)


def test_bubbles_keep_the_order_of_the_categories(adata: ad.AnnData) -> None:
    adata.obs["condition"] = adata.obs["condition"].cat.reorder_categories(["stim", "ctrl"])
    assert texts(pl.bubbles(adata, "condition").yaxis) == ["stim", "ctrl"]
