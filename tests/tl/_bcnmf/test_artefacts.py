"""Ambient RNA and batches look like programs: what they look like is said where they could be taken for one."""

import numpy as np
import pytest
from scipy import sparse

import bcnmf_sc as bc

SPLIT = {"background_key": "half", "background": "b", "n_topics": 2, "n_background_topics": 4, "progress": False}
SPLIT["sample_key"] = "cells"


@pytest.fixture(scope="module")
def halves():
    """The same kinds of cells on both sides."""
    adata = bc.datasets.simulated(500, 500, 200, frac_active=0)
    adata.obs["half"] = np.where(np.random.default_rng(0).random(adata.n_obs) < 0.5, "a", "b")
    return adata


def spread(adata, **how):
    bc.tl.background_check(adata, **SPLIT | how, tol=1e-1)
    return adata.uns["bcnmf_background_check"].set_index("check").loc["genome-wide difference"]


def test_a_small_change_of_all_genes_is_told_from_a_program(halves):
    none = spread(halves)
    assert none["verdict"] == "good"
    assert none["value"] < 1.05
    batch = halves.copy()
    factor = np.exp(0.25 * np.random.default_rng(1).normal(size=batch.n_vars))
    rate = batch.X.toarray() * np.where((batch.obs["half"] == "a").to_numpy()[:, None], factor, 1)
    batch.X = sparse.csr_matrix(np.floor(rate + np.random.default_rng(2).random(rate.shape)).astype(np.float32))
    found = spread(batch)
    assert found["verdict"] == "caution"
    assert found["value"] == pytest.approx(np.exp(0.25 * 0.6745), abs=0.04)  # the median change of a gene
    assert "batch" in found["meaning"]
    program = bc.datasets.simulated(500, 500, 200, frac_active=0.4)
    assert spread(program, background_key="condition", background="ctrl")["verdict"] == "good"


def test_the_check_says_what_it_cannot_exclude(halves):
    spread(halves)
    table = halves.uns["bcnmf_background_check"].set_index("check")
    assert "can exclude that ambient RNA, or a batch" in table.loc["held-out gain ratio", "meaning"]


def test_called_topics_that_look_like_all_cells_are_named(halves, cautions):
    halves = halves.copy()
    halves.uns.clear()
    bc.tl.bcnmf(halves, **SPLIT, cross_fit=2, tol=1e-1)
    record = halves.uns["bcnmf"]
    topics, W = record["topics"], halves.varm["bcnmf"].astype(float)
    profile = halves.to_df()[(halves.obs["half"] == "a").to_numpy()].mean().to_numpy()
    expected = W.T @ profile / np.linalg.norm(W, axis=0) / np.linalg.norm(profile)
    np.testing.assert_allclose(topics["profile_cosine"], expected, rtol=1e-4)
    topics["called"] = False
    topics["profile_cosine"] = [0.95, 0.5, *[0.1] * 4]
    assert not any("mean profile of all" in word for word in cautions(halves))
    topics["called"] = [True, True, *[False] * 4]
    words = cautions(halves)
    (like,) = [word for word in words if "mean profile of all target cells" in word]
    assert "Topic 1" in like
    assert "Topic 2" not in like
    topics["profile_cosine"] = 0.5
    assert not any("mean profile of all" in word for word in cautions(halves))
