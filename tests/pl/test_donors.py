"""Effects and donors as drawn: the artists show the numbers that are stored."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

import bcnmf_sc as bc
from bcnmf_sc.pl._axes import MISSING

ROLES = {"background_key": "condition", "background": "ctrl"}


@pytest.fixture(scope="module")
def fitted():
    adata = bc.datasets.simulated(200, 200, 150, n_donors=4, donor_effect=0.1)
    bc.tl.bcnmf(adata, **ROLES, sample_key="donor", n_topics=2, n_background_topics=4, tol=1e-2, progress=False)
    return adata


def test_forest_draws_each_effect_and_its_interval(fitted):
    table = bc.get.topics(fitted)
    ax = bc.pl.topics_forest(fitted, topics="all")
    lines = ax.get_lines()[1:]  # the first is at no change
    drawn = {tuple(line.get_ydata()): line for line in lines}
    for row, topic in enumerate(table.itertuples()):
        np.testing.assert_allclose(drawn[(row, row)].get_xdata(), [topic.ci_low, topic.ci_high])
        np.testing.assert_allclose(drawn[(row,)].get_xdata(), [topic.log2_fold_change])
        assert (to_hex(drawn[(row,)].get_color()).upper() == MISSING) == (not topic.called)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table.index)


def test_forest_is_of_target_topics_by_default(fitted):
    ax = bc.pl.topics_forest(fitted)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Topic 1", "Topic 2"]
    with pytest.raises(ValueError, match=r"`topics` must be 'target', .* got 'case'"):
        bc.pl.topics_forest(fitted, topics="case")


def test_forest_needs_effects():
    adata = bc.datasets.simulated(60, 40, 50)
    bc.tl.bcnmf(adata, **ROLES, n_topics=2, tol=1e-2, progress=False)
    with pytest.raises(ValueError, match="`key` must name topics with effects, got 'bcnmf'"):
        bc.pl.topics_forest(adata)


def test_donors_are_points_at_their_shares(fitted):
    table = bc.get.donors(fitted)
    ax = bc.pl.donors(fitted)
    heights = np.sort(np.concatenate([points.get_offsets()[:, 1] for points in ax.collections]))
    np.testing.assert_allclose(heights, np.sort(np.maximum(table[["Topic 1", "Topic 2"]].to_numpy().ravel(), 1e-4)))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["background", "target"]
    assert ax.get_yscale() == "log"


@pytest.mark.filterwarnings("ignore:5% of the background")  # three background topics are few
def test_a_donor_on_both_sides_is_joined():
    adata = bc.datasets.simulated(160, 160, 120, n_donors=4)
    adata.obs["patient"] = [f"P{i % 4}" for i in range(adata.n_obs)]
    bc.tl.bcnmf(adata, **ROLES, sample_key="patient", n_topics=1, n_background_topics=3, tol=1e-2, progress=False)
    table = bc.get.donors(adata).set_index(["donor", "condition"])["Topic 1"].unstack()
    ax = bc.pl.donors(adata, topics="Topic 1")
    joined = sorted(tuple(line.get_ydata()) for line in ax.get_lines())
    expected = sorted(map(tuple, np.maximum(table[["target", "background"]].to_numpy(), 1e-4)))
    np.testing.assert_allclose(sorted(map(sorted, joined)), sorted(map(sorted, expected)))
