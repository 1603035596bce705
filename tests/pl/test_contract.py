"""What every plot does alike: scanpy's `ax`, `show`, `save` and `return_fig`. A plot missing from the table fails."""

from __future__ import annotations

import inspect
import itertools
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bcnmf_sc as bc

ROLES = {"background_key": "condition", "background": "ctrl"}
FEW = {"tol": 1e-2, "max_iter": 40, "progress": False}


@pytest.fixture(scope="module")
def adata():
    """An analysed AnnData: everything that a plot draws."""
    adata = bc.datasets.simulated(160, 120, 64)
    adata.obs["patient"] = pd.Categorical([f"P{i % 4}" for i in range(adata.n_obs)])
    with warnings.catch_warnings(action="ignore"):  # of fits that are cut short
        bc.tl.bcnmf(adata, **ROLES, sample_key="patient", n_topics=2, n_background_topics=3, **FEW)
        bc.tl.associate(adata, groupby="cell_type", sample_key="donor")
    bc.tl.enrich(adata, {"first": adata.var_names[:20], "last": adata.var_names[-20:]}, n_genes=10)
    path = {name: [0.5, 0.8] for name in ("gain_ratio", "explained_target", "explained_background", "stability")}
    table = pd.DataFrame({"alpha": [0.0, 0.3], **path, "degenerate": False})
    adata.uns["bcnmf_alpha"] = {"alpha": 0.3, "table": table}
    rng = np.random.default_rng(0)
    adata.obsm["X_bcnmf_umap"] = rng.normal(size=(adata.n_obs, 2)).astype("float32")
    return adata


@pytest.fixture(scope="module")
def mdata():
    mdata = bc.datasets.simulated_spatial(n_side=6)
    with warnings.catch_warnings(action="ignore"):
        bc.tl.gpnsf(mdata, n_topics=2, max_iter=3, tol=0.1, progress=False)
    return mdata


COMPARED = pd.DataFrame({"method": ["pca", "nmf"], "alpha": np.nan, "seed": 0, "ari": [0.2, 0.9], "ari_se": 0.3})
CALLS = {
    "alpha_path": lambda adata, mdata, **how: bc.pl.alpha_path(adata, **how),
    "associations": lambda adata, mdata, **how: bc.pl.associations(adata, "cell_type", **how),
    "bubbles": lambda adata, mdata, **how: bc.pl.bubbles(adata, "cell_type", **how),
    "compare": lambda adata, mdata, **how: bc.pl.compare(COMPARED, **how),
    "composition": lambda adata, mdata, **how: bc.pl.composition(adata, "condition", "cell_type", **how),
    "donors": lambda adata, mdata, **how: bc.pl.donors(adata, **how),
    "enrichment": lambda adata, mdata, **how: bc.pl.enrichment(adata, **how),
    "gene_frequency": lambda adata, mdata, **how: bc.pl.gene_frequency(adata, **how),
    "images": lambda adata, mdata, **how: bc.pl.images(adata, shape=(8, 8), **how),
    "lengthscales": lambda adata, mdata, **how: bc.pl.lengthscales(mdata, **how),
    "loadings": lambda adata, mdata, **how: bc.pl.loadings(adata, **how),
    "loss": lambda adata, mdata, **how: bc.pl.loss(adata, **how),
    "spatial_topics": lambda adata, mdata, **how: bc.pl.spatial_topics(mdata, **how),
    "stability": lambda adata, mdata, **how: bc.pl.stability(adata, **how),
    "target_share": lambda adata, mdata, **how: bc.pl.target_share(adata, "cell_type", **how),
    "topics_forest": lambda adata, mdata, **how: bc.pl.topics_forest(adata, **how),
    "umap": lambda adata, mdata, **how: bc.pl.umap(adata, color="condition", **how),
    "usage": lambda adata, mdata, **how: bc.pl.usage(adata, "condition", **how),
}
OWN = {"ax": None, "show": None, "save": None, "return_fig": False}


def test_every_plot_is_in_the_table():
    assert set(CALLS) == set(bc.pl.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_signature_has_scanpys_arguments(name):
    parameters = inspect.signature(getattr(bc.pl, name)).parameters
    assert {own: parameters[own].default for own in OWN} == OWN
    assert all(parameters[own].kind is inspect.Parameter.KEYWORD_ONLY for own in OWN)
    if "topics" in parameters:
        assert parameters["topics"].default == "target"


@pytest.fixture
def shown(monkeypatch):
    """The figures open at each `plt.show`, on a backend that could show them."""
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(plt.get_fignums()))
    monkeypatch.setattr(mpl, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    return calls


def axes_of(drawn) -> list[Axes]:
    several = list(drawn.values()) if isinstance(drawn, dict) else drawn if isinstance(drawn, list) else [drawn]
    assert several
    assert all(isinstance(ax, Axes) for ax in several)
    return several


@pytest.mark.parametrize("name", CALLS)
def test_shown_saved_or_handed_back(name, adata, mdata, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(bc.settings, "autoshow", True)
    call = CALLS[name]
    figure = call(adata, mdata, return_fig=True)
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == [figure.number]  # one figure, no more
    assert not shown
    plt.close("all")

    assert call(adata, mdata) is None
    assert [len(figures) for figures in shown] == [1]
    plt.close("all")

    axes_of(call(adata, mdata, show=False, save=tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert not plt.get_fignums()  # what is saved is closed, as in scanpy
    assert len(shown) == 1


def test_show_overrules_the_settings(adata, shown):
    assert not bc.settings.autoshow  # in the tests
    assert bc.pl.loss(adata, show=True) is None
    assert len(shown) == 1
    assert bc.pl.loss(adata) is not None


@pytest.mark.parametrize("name", CALLS)
def test_drawn_on_given_axes(name, adata, mdata, shown, monkeypatch):
    monkeypatch.setattr(bc.settings, "autoshow", True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    drawn = axes_of(CALLS[name](adata, mdata, ax=left))
    assert {ax.figure for ax in drawn} == {figure}
    assert drawn == [left] or not left.axison  # or the panels lie in its place
    figure.canvas.draw()
    assert all(ax.get_position().x1 <= right.get_position().x1 - right.get_position().width for ax in drawn)
    assert plt.get_fignums() == [figure.number]
    assert not shown  # the caller's figure is shown by the caller
    assert not right.has_data()


@pytest.fixture
def scanpys():
    """Scanpy's settings, put back afterwards."""
    before = sc.settings.figdir, sc.settings.autoshow
    yield sc.settings
    sc.settings.figdir, sc.settings.autoshow = before


def test_where_a_figure_is_saved(adata, tmp_path, scanpys, caplog):
    scanpys.figdir = tmp_path / "figures"
    bc.pl.usage(adata, save=True)
    bc.pl.usage(adata, save="_all")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"usage.pdf", "usage_all.pdf"}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2  # since nobody named the place
    for save, message in (
        (tmp_path / "no" / "a.png", "`save` must lie in an existing folder"),
        ("a.docx", "`save` must end in a suffix that matplotlib can write, got 'a.docx'. Known: .*'svg'"),
    ):
        with pytest.raises(ValueError, match=message):
            bc.pl.usage(adata, save=save)
    assert not plt.get_fignums()  # refused before anything is drawn
    with pytest.raises(ValueError, match="`show` must be True, False or None, got 'usage'"):
        bc.pl.usage(adata, show="usage")


def test_autoshow_is_scanpys_unless_set(monkeypatch, scanpys):
    monkeypatch.setattr(bc.settings, "autoshow", None)
    for value in (True, False):
        scanpys.autoshow = value
        assert bc.settings.autoshow is value
    with pytest.raises(TypeError, match="`autoshow` must be True, False or None, got 'no'"):
        bc.settings.autoshow = "no"


def test_panels_need_axes_with_a_place_in_a_grid(adata):
    with pytest.raises(ValueError, match="`ax` must be made by"):
        bc.pl.loss(adata, ax=plt.figure().add_axes((0, 0, 1, 1)))


def test_one_colour_per_condition(adata):
    """Whatever the plot, and whichever comes first in the alphabet; scanpy's colours where it stored some."""
    other = adata.copy()
    other.obs["condition"] = other.obs["condition"].cat.reorder_categories(["case", "ctrl"])
    for data, expected in ((other, ("#0072b2", "#e69f00")), (other.copy(), ("#abcdef", "#123456"))):
        if expected[0] == "#abcdef":
            data.uns["condition_colors"] = np.array(["#123456", "#abcdef"])  # of case and ctrl
        names = {"ctrl": "background", "case": "target"}
        for ax, title in (
            (bc.pl.usage(data, "condition"), names.keys()),
            (bc.pl.usage(data), names.values()),
            (bc.pl.donors(data), names.values()),
            (bc.pl.target_share(data), names.keys()),
            (bc.pl.umap(data, color="condition"), names.keys()),
            (bc.pl.composition(data, "cell_type", "condition"), names.keys()),
        ):
            legend = ax.get_legend()
            colors = dict(zip([text.get_text() for text in legend.get_texts()], legend.legend_handles, strict=True))
            assert tuple(_color(colors[name]) for name in title) == expected, ax


def _color(handle) -> str:
    color = handle.get_color() if hasattr(handle, "get_color") else handle.get_facecolor()
    return mpl.colors.to_hex(color[0] if np.ndim(color) == 2 else color)


@pytest.mark.parametrize("plot", ["usage", "donors"])
def test_many_topics_are_drawn_in_rows(plot):
    n = 24
    names = [f"Topic {k + 1}" for k in range(n)]
    rng = np.random.default_rng(0)
    adata = bc.datasets.simulated(40, 40, 40)
    adata.obsm["X_bcnmf"] = rng.gamma(1.0, 1.0, (adata.n_obs, n)).astype("float32")
    donors = pd.DataFrame(rng.uniform(0.01, 0.1, (4, n)), columns=names)
    donors.insert(0, "donor", list("abcd"))
    donors.insert(1, "condition", ["target", "background"] * 2)
    donors.insert(2, "n_cells", 20)
    topics = pd.DataFrame({"kind": ["target"] * 4 + ["background"] * 20}, index=names)
    adata.uns["bcnmf"] = {"params": {**ROLES}, "topics": topics, "donors": donors}
    given = () if plot == "donors" else ("condition",)
    assert isinstance(getattr(bc.pl, plot)(adata, *given), Axes)  # the four target topics
    rows = getattr(bc.pl, plot)(adata, *given, topics="all")
    labels = [label.get_text() for ax in rows for label in ax.get_xticklabels()]
    assert labels == names
    assert len({ax.get_ylim() for ax in rows}) == len({ax.get_xlim() for ax in rows}) == 1
    rows[0].figure.canvas.draw()
    for ax in rows:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


# target_share


def test_target_share_draws_cells_quantiles_threshold_and_calls(adata):
    ax = bc.pl.target_share(adata, "cell_type", sort=False)
    obs, share = adata.obs, adata.obs["bcnmf_target_share"]
    types = [label.get_text() for label in ax.get_yticklabels()]
    assert types == list(obs["cell_type"].cat.categories)
    groups = [(kind, condition) for kind in types for condition in obs["condition"].cat.categories]
    drawn = sorted((np.median(c.get_offsets()[:, 1].data), c.get_offsets()[:, 0].data) for c in ax.collections)
    for (kind, condition), (_, x) in zip(groups, drawn, strict=True):
        cells = (obs["cell_type"] == kind) & (obs["condition"] == condition)
        np.testing.assert_allclose(np.sort(x), np.sort(share[cells]))
    boxes = [line for line in ax.lines if line.get_linewidth() == 4]
    first = (obs["cell_type"] == types[0]) & (obs["condition"] == obs["condition"].cat.categories[0])
    lowest = min(boxes, key=lambda line: line.get_ydata()[0])
    np.testing.assert_allclose(lowest.get_xdata(), share[first].quantile([0.25, 0.75]))
    (threshold,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert threshold.get_xdata()[0] == pytest.approx(share[obs["condition"] == "ctrl"].quantile(0.95))
    called = obs.groupby(["cell_type", "condition"], observed=True)["bcnmf_enriched"].mean()
    written = [text.get_text() for text in ax.texts if text.get_text() != "called"]
    assert sorted(written) == sorted(f"{value:.0%}" for value in called)


def test_target_share_takes_lists_and_other_splits(adata):
    ax = bc.pl.target_share(adata, ["cell_type", "patient"], split="condition")
    assert len(ax.get_yticks()) == adata.obs.groupby(["cell_type", "patient"], observed=True).ngroups
    medians = adata.obs.groupby("cell_type", observed=True)["bcnmf_target_share"]
    alone = bc.pl.target_share(adata, "condition")  # the groups are the parts: a line each
    assert [text.get_text() for text in alone.get_yticklabels()] == ["case", "ctrl"]
    assert len(alone.collections) == 2
    assert len(bc.pl.target_share(adata).get_yticks()) == 1
    assert medians.ngroups == len(bc.pl.bubbles(adata, ["cell_type"]).get_yticks())
    for arguments, message in (
        ({"groupby": "nothing"}, "`groupby` must be a column"),
        ({"split": "bcnmf_pvalue"}, "`split` must be a categorical column"),
    ):
        with pytest.raises(ValueError, match=message):
            bc.pl.target_share(adata, **arguments)
    bare = adata.copy()
    del bare.obs["bcnmf_target_share"]
    with pytest.raises(ValueError, match=r"`key` must name a fit with a target share, got 'bcnmf'.*cross_fit"):
        bc.pl.target_share(bare)
