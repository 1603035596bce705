"""Tests of `bcnmf_sc.pl`: what the artists show, not how the picture looks."""

from __future__ import annotations

import itertools

import anndata as ad
import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from bcnmf_sc import get, pl
from bcnmf_sc.pl._axes import MISSING, PLAIN


def stored(n_obs: int = 60, n_vars: int = 30, n_topics: int = 4, *, letters: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((n_obs, n_vars), dtype="float32"))
    adata.var_names = [f"G{i}".ljust(letters, "W") for i in range(n_vars)]
    adata.var["symbol"] = [f"S{i // 2}" for i in range(n_vars)]
    adata.obs["condition"] = pd.Categorical(np.where(np.arange(n_obs) % 3 == 0, "ctrl", "stim"))
    adata.obs["bcnmf_role"] = pd.Categorical(np.where(np.arange(n_obs) % 3 == 0, "background", "target"))
    adata.obs["depth"] = rng.normal(size=n_obs)
    adata.obsm["X_bcnmf"] = rng.gamma(1.0, 100.0, (n_obs, n_topics)).astype("float32")
    adata.obsm["X_bcnmf_umap"] = rng.normal(size=(n_obs, 2)).astype("float32")
    adata.varm["bcnmf"] = rng.dirichlet(np.full(n_vars, 0.2), n_topics).T.astype("float32")
    topics = pd.DataFrame(index=[f"Topic {k + 1}" for k in range(n_topics)])
    topics["kind"] = "target"
    topics["log2_enrichment"] = np.linspace(-1, 2, n_topics)
    topics["p_value"] = np.nan
    topics["called"] = False
    iteration = np.arange(10, 110, 10)
    loss = pd.DataFrame({"iteration": iteration, "target": 5e6 / iteration + 1e7, "background": 1e6 / iteration + 1e6})
    loss["change"] = np.append(np.nan, 1.0 / iteration[1:] ** 2)
    stored = {"topics": topics, "loss": loss, "params": {"tol": 1e-4}, "n_iter": 100, "converged": True}
    adata.uns["bcnmf"] = stored
    return adata


@pytest.fixture
def adata() -> ad.AnnData:
    return stored()


def labels_overlap(labels: list) -> bool:
    """Whether any two of the texts share a pixel, as last drawn."""
    boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
    assert boxes
    return any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def inside(figure) -> bool:
    """Draw, and tell whether everything lies on the canvas."""
    figure.canvas.draw()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def handle_color(handle) -> tuple[float, ...]:
    return tuple(handle.get_facecolor()[0][:3])


def texts(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# umap


def test_umap_draws_every_cell_in_the_colours_of_the_legend(adata: ad.AnnData) -> None:
    ax = pl.umap(adata, color="condition")
    points = next(each for each in ax.collections if len(each.get_offsets()) == adata.n_obs)
    assert points.get_rasterized()
    drawn = pd.DataFrame(np.column_stack([points.get_offsets(), points.get_facecolors()[:, :3]])).round(5)
    legend = ax.get_legend()
    colors = dict(
        zip((t.get_text() for t in legend.get_texts()), map(handle_color, legend.legend_handles), strict=True)
    )
    assert list(colors) == ["ctrl", "stim"]
    assert len(set(colors.values())) == 2
    shades = [colors[name] for name in adata.obs["condition"]]
    expected = pd.DataFrame(np.column_stack([adata.obsm["X_bcnmf_umap"], shades])).round(5)
    by = list(range(5))
    np.testing.assert_allclose(drawn.sort_values(by), expected.sort_values(by), atol=1e-4)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UMAP1", "UMAP2")


def test_umap_takes_what_scanpy_takes(adata: ad.AnnData) -> None:
    adata.X[:, 3] = np.arange(adata.n_obs)
    panels = pl.umap(adata, color=["condition", "Topic 1", "G3"], ncols=2, size=9, frameon=False)
    assert [ax.get_title() for ax in panels] == ["condition", "Topic 1, share of usage", "G3"]
    np.testing.assert_array_equal(panels[2].collections[0].get_array(), np.arange(adata.n_obs))
    assert {c.get_sizes()[0] for ax in panels for c in ax.collections if len(c.get_offsets()) > 2} == {9}
    chosen = pl.umap(adata, color="condition", groups="stim", title="stimulated", legend_loc="on data")
    assert chosen.get_title() == "stimulated"
    mask = (adata.obs["condition"] == "ctrl").to_numpy()
    drawn = pl.umap(adata, color="depth", mask_obs=mask).collections[-1].get_array()
    np.testing.assert_allclose(np.sort(np.ma.compressed(drawn)), np.sort(adata.obs["depth"][mask]))
    assert "condition_colors" not in adata.uns
    pl.umap(adata, color="condition", palette=["#123456", "#abcdef"])
    assert list(adata.uns["condition_colors"]) == ["#123456", "#abcdef"]  # and the next plot has them
    own = sc.pl.embedding(adata, basis="bcnmf_umap", color="condition", show=False)
    assert own.get_xlabel() == "bcnmf_umap1"


def test_umap_uses_scanpys_colours_and_does_not_touch_the_data(adata: ad.AnnData) -> None:
    adata.uns["condition_colors"] = np.array(["#123456", "#abcdef"])
    before = adata.copy()
    ax = pl.umap(adata, color="condition")
    assert {tuple(c) for c in ax.collections[0].get_facecolors()} == {to_rgba("#123456"), to_rgba("#abcdef")}
    pl.umap(adata, color="bcnmf_role")
    assert set(adata.uns) == set(before.uns)
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_umap_by_topic_shows_its_share_with_the_highest_on_top(adata: ad.AnnData) -> None:
    ax = pl.umap(adata, color="Topic 2")
    values = ax.collections[0].get_array()
    np.testing.assert_allclose(values, np.sort(get.usage(adata, normalize=True)["Topic 2"]))
    assert ax.get_title() == "Topic 2, share of usage"


def test_umap_by_number_with_missing_values(adata: ad.AnnData) -> None:
    adata.obs.iloc[:5, adata.obs.columns.get_loc("depth")] = np.nan
    ax = pl.umap(adata, color="depth")
    ax.figure.canvas.draw()
    (points,) = ax.collections
    drawn = dict(zip(map(tuple, points.get_offsets()), points.get_facecolors(), strict=True))
    grey = [
        np.allclose(drawn[tuple(place)], to_rgba("lightgray")) for place in adata.obsm["X_bcnmf_umap"].astype(float)
    ]
    assert grey == [True] * 5 + [False] * 55


def test_umap_by_category_with_missing_values_booleans_and_unused(adata: ad.AnnData) -> None:
    adata.obs["condition"] = adata.obs["condition"].cat.add_categories("never")
    adata.obs.iloc[:5, adata.obs.columns.get_loc("condition")] = np.nan
    legend = pl.umap(adata, color="condition").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["ctrl", "stim", "NA"]
    adata.obs["flag"] = adata.obs["depth"] > 0
    legend = pl.umap(adata, color="flag").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["False", "True"]


def test_umap_takes_axes_and_options_for_scatter(adata: ad.AnnData) -> None:
    _, ax = plt.subplots()
    assert pl.umap(adata, ax=ax, size=3, alpha=0.4) is ax
    assert ax.collections[0].get_sizes().tolist() == [3]
    assert ax.collections[0].get_alpha() == 0.4
    assert ax.get_legend() is None
    assert len(ax.figure.axes) == 1


@pytest.mark.parametrize("n_categories", [8, 9, 25, 60])
def test_umap_gives_every_category_its_own_colour_and_room(n_categories: int) -> None:
    adata = stored(n_obs=180)
    adata.obs["cluster"] = pd.Categorical([f"cluster {i % n_categories} of forty characters or so" for i in range(180)])
    ax = pl.umap(adata, color="cluster")
    legend = ax.get_legend()
    assert len({*map(handle_color, legend.legend_handles)}) == n_categories
    assert inside(ax.figure)
    assert not labels_overlap(legend.get_texts())
    assert ax.get_position().width * ax.figure.get_figwidth() > 3


def test_umap_errors(adata: ad.AnnData) -> None:
    with pytest.raises(
        ValueError, match=r"`color` must be a column of `adata.obs`, a topic or a gene, got 'x'.*'Topic 4'"
    ):
        pl.umap(adata, color="x")
    del adata.obsm["X_bcnmf_umap"]
    with pytest.raises(
        ValueError, match=r"'X_bcnmf_umap' is not in `adata.obsm`. Present: 'X_bcnmf'. Run `bcnmf_sc.tl.umap`"
    ):
        pl.umap(adata)


# loadings


def test_loadings_heatmap_holds_each_topics_top_genes(adata: ad.AnnData) -> None:
    fig = pl.loadings(adata, n_genes=3, return_fig=True)
    ax = fig.axes[0]
    top = get.top_genes(adata, n_genes=3)
    assert texts(ax.yaxis) == top["gene"].tolist()
    assert texts(ax.xaxis) == get.topics(adata).index.tolist()
    expected = get.loadings(adata).loc[top["gene"]].to_numpy()
    np.testing.assert_array_equal(ax.images[0].get_array(), expected)


def test_loadings_of_chosen_topics_with_symbols_by_specificity(adata: ad.AnnData) -> None:
    chosen = ["Topic 4", "Topic 1"]
    how = {"topics": chosen, "by": "specificity"}
    ax = pl.loadings(adata, n_genes=6, gene_symbols="symbol", cmap="magma", **how)["heatmap"]
    top = get.top_genes(adata, n_genes=6, **how)
    assert texts(ax.xaxis) == chosen
    assert texts(ax.yaxis) == adata.var.loc[top["gene"], "symbol"].tolist()
    np.testing.assert_array_equal(ax.images[0].get_array(), get.loadings(adata).loc[top["gene"], chosen])
    assert ax.images[0].get_cmap().name == "magma"


def test_loadings_bars_show_enrichment_until_there_are_p_values(adata: ad.AnnData) -> None:
    ax = pl.loadings(adata, return_fig=True).axes[1]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], adata.uns["bcnmf"]["topics"]["log2_enrichment"])
    assert ax.get_xlabel() == "log2 enrichment"
    assert texts(ax.yaxis) == get.topics(adata).index.tolist()

    table = adata.uns["bcnmf"]["topics"]
    table["p_value"] = [1e-3, 0.1, np.nan, 0.0]  # enrichment -1, 0, 1, 2
    table["called"] = [True, False, np.nan, True]
    ax = pl.loadings(adata, return_fig=True).axes[1]
    widths = np.array([bar.get_width() for bar in ax.patches])
    np.testing.assert_allclose(widths[:3], [-3, 1, 0])
    assert 300 < widths[3] < np.inf
    faces = [bar.get_facecolor() for bar in ax.patches]
    assert faces[0] == faces[3] == to_rgba(PLAIN)
    assert faces[1] == faces[2] == to_rgba(MISSING)
    assert ax.get_xlabel().startswith("signed")


def test_loadings_bars_lie_beside_their_blocks(adata: ad.AnnData) -> None:
    fig = pl.loadings(adata, n_genes=5, return_fig=True)
    fig.canvas.draw()
    heat, bars = fig.axes[:2]
    for k, bar in enumerate(bars.patches):
        assert 5 * k - 0.5 < bar.get_y() < bar.get_y() + bar.get_height() < 5 * k + 4.5
    assert heat.get_ylim() == bars.get_ylim()
    np.testing.assert_allclose(heat.get_position().intervaly, bars.get_position().intervaly)


def test_loadings_without_a_test(adata: ad.AnnData) -> None:
    assert len(pl.loadings(adata, test=None, return_fig=True).axes) == 2  # heatmap and colour bar
    with pytest.raises(ValueError, match=r"`test` must be a column with values.*got 'p_value'.*Present: 'log2_enrich"):
        pl.loadings(adata, test="p_value", return_fig=True)
    with pytest.raises(ValueError, match="`test` must be 'auto'"):
        pl.loadings(adata, test="t", return_fig=True)
    adata.uns["bcnmf"]["topics"] = adata.uns["bcnmf"]["topics"][["kind"]]
    assert len(pl.loadings(adata, return_fig=True).axes) == 2


@pytest.mark.parametrize("n_genes", [1, 10])
def test_twenty_topics_with_long_gene_names_do_not_overlap(n_genes: int) -> None:
    adata = stored(n_vars=400, n_topics=20, letters=40)
    fig = pl.loadings(adata, n_genes=n_genes, return_fig=True)
    assert inside(fig)
    for axis in (fig.axes[0].yaxis, fig.axes[0].xaxis, fig.axes[1].yaxis, fig.axes[1].xaxis):
        assert not labels_overlap(axis.get_ticklabels())
    between = [*fig.axes[0].get_yticklabels()[:1], *fig.axes[1].get_yticklabels()[:1], fig.axes[2].yaxis.label]
    assert not labels_overlap(between)
    assert fig.axes[0].get_position().width * fig.get_figwidth() > 2


def test_long_topic_names_in_loadings(adata: ad.AnnData) -> None:
    table = adata.uns["bcnmf"]["topics"]
    table.index = [f"interferon response of plasma cells ({k})" for k in range(4)]
    fig = pl.loadings(adata, n_genes=2, return_fig=True)
    assert inside(fig)
    assert not labels_overlap(fig.axes[0].get_xticklabels())
    assert not labels_overlap(fig.axes[1].get_yticklabels())


# usage


def test_usage_boxes_hold_the_quartiles_of_each_group(adata: ad.AnnData) -> None:
    ax = pl.usage(adata, groupby="condition", topics=["Topic 3", "Topic 1"])
    share = get.usage(adata, normalize=True)
    expected = [
        np.percentile(share.loc[(adata.obs["condition"] == group).to_numpy(), topic], [25, 75])
        for group in ("ctrl", "stim")
        for topic in ("Topic 3", "Topic 1")
    ]
    boxes = [box.get_path().vertices[:4, 1] for box in ax.patches]
    np.testing.assert_allclose([(box.min(), box.max()) for box in boxes], expected, rtol=1e-5)
    assert texts(ax.xaxis) == ["Topic 3", "Topic 1"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ctrl", "stim"]


def test_usage_points_are_all_cells_and_repeat(adata: ad.AnnData) -> None:
    first, second = (
        [line.get_xydata() for line in pl.usage(adata).lines if line.get_marker() == "."] for _ in range(2)
    )
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))
    shares = get.usage(adata, normalize=True).to_numpy()
    np.testing.assert_allclose(np.sort(np.concatenate(first)[:, 1]), np.sort(shares.ravel()))
    at = np.round(first[0][:, 0]).astype(int)
    np.testing.assert_array_equal(at, np.tile(np.arange(4), 20))
    assert all(line.get_rasterized() for line in pl.usage(adata).lines if line.get_marker() == ".")


def test_usage_does_not_move_the_global_seed(adata: ad.AnnData) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    pl.usage(adata)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_usage_groups_by_role_by_default_and_leaves_out_missing(adata: ad.AnnData) -> None:
    adata.obs["bcnmf_role"] = adata.obs["bcnmf_role"].cat.add_categories("projected")
    adata.obs.iloc[:7, adata.obs.columns.get_loc("bcnmf_role")] = np.nan
    ax = pl.usage(adata)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["background", "target"]
    assert sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == ".") == 53 * 4


def test_usage_takes_axes_and_options_for_boxplot(adata: ad.AnnData) -> None:
    _, ax = plt.subplots()
    assert pl.usage(adata, "condition", ax=ax, widths=0.1) is ax
    assert np.ptp(ax.patches[0].get_path().vertices[:4, 0]) == pytest.approx(0.1)


@pytest.mark.parametrize("own_axes", [True, False])
@pytest.mark.parametrize("n_groups", [1, 2, 12])
def test_usage_of_twenty_topics_keeps_labels_apart(n_groups: int, own_axes: bool) -> None:  # noqa: FBT001
    adata = stored(n_obs=240, n_topics=20)
    adata.obs["group"] = [f"group {i % n_groups} with a name of forty characters" for i in range(240)]
    ax = pl.usage(adata, "group", ax=None if own_axes else plt.subplots(figsize=(4, 3))[1])
    assert inside(ax.figure) or not own_axes
    assert not labels_overlap(ax.get_xticklabels())
    assert not labels_overlap(ax.get_legend().get_texts())
    assert len(ax.patches) == 20 * n_groups


def test_usage_errors(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"`groupby` must be a column of `adata.obs`, got 'x'"):
        pl.usage(adata, "x")
    with pytest.raises(ValueError, match="`groupby` must be a categorical column, got 'depth' with numbers"):
        pl.usage(adata, "depth")
    with pytest.raises(ValueError, match=r"`topics` must be 'target', .* got 'Topic 9'"):
        pl.usage(adata, topics="Topic 9")
    adata.obs["empty"] = pd.Categorical([None] * adata.n_obs, categories=["a"])
    with pytest.raises(ValueError, match="`groupby` must have a value for at least one cell"):
        pl.usage(adata, "empty")


# loss


def test_loss_panels_hold_the_stored_table(adata: ad.AnnData) -> None:
    fig = pl.loss(adata, linewidth=3, return_fig=True)
    table = adata.uns["bcnmf"]["loss"]
    target, background, change = fig.axes
    for ax, name in ((target, "target"), (background, "background")):
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), table[["iteration", name]])
        assert ax.lines[0].get_linewidth() == 3
        assert name in ax.get_title()
    np.testing.assert_array_equal(change.lines[0].get_xydata(), table[["iteration", "change"]].iloc[1:])
    assert change.get_yscale() == "log"
    assert set(change.lines[1].get_ydata()) == {1e-4}
    assert "converged after 100 iterations" in fig.get_suptitle()
    assert inside(fig)


@pytest.mark.parametrize("value", [0.0, np.nan, None])
def test_loss_without_background_or_tolerance(adata: ad.AnnData, value: float | None) -> None:
    stored = adata.uns["bcnmf"]
    stored["converged"] = False
    stored["params"] = {}
    stored["loss"] = (
        stored["loss"].drop(columns="background") if value is None else stored["loss"].assign(background=value)
    )
    fig = pl.loss(adata, return_fig=True)
    assert [ax.get_title() for ax in fig.axes] == ["loss on target", "change of loadings"]
    assert len(fig.axes[1].lines) == 1
    assert "not converged" in fig.get_suptitle()


# all


@pytest.mark.parametrize("function", [pl.umap, pl.loadings, pl.usage, pl.loss])
def test_missing_key(adata: ad.AnnData, function) -> None:
    with pytest.raises(ValueError, match=r"`key` 'x' is not a factorisation .* Present: 'bcnmf'. Run `bcnmf_sc.tl"):
        function(adata, key="x")


@pytest.mark.parametrize("function", [pl.umap, pl.loadings, pl.usage, pl.loss])
def test_nothing_is_shown(adata: ad.AnnData, function, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    function(adata)


def test_plots_survive_a_round_trip_through_h5ad(adata: ad.AnnData, tmp_path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert texts(pl.loadings(read, return_fig=True).axes[0].yaxis) == texts(
        pl.loadings(adata, return_fig=True).axes[0].yaxis
    )
    pl.umap(read, color="condition")
    pl.usage(read)
    pl.loss(read, return_fig=True)
