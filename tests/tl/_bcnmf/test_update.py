"""Going on with a stored factorisation when more cells come."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import bcnmf_sc as bc

HOW = {"background_key": "condition", "background": "ctrl", "target": "case", "n_topics": 3, "tol": 1e-5}


@pytest.fixture
def halves(adata):
    early, late = adata[::2].copy(), adata[1::2].copy()
    bc.tl.bcnmf(early, **HOW)
    return early, late


def cosine(A, B):
    return float(np.min((A * B).sum(0) / np.linalg.norm(A, axis=0) / np.linalg.norm(B, axis=0)))


def test_close_to_a_fit_of_all(adata, halves):
    early, late = halves
    bc.tl.update(late, early, tol=1e-5)
    bc.tl.bcnmf(adata, **HOW, init=early.varm["bcnmf"])
    updated, alone, whole = late.varm["bcnmf"], early.varm["bcnmf"], adata.varm["bcnmf"]
    assert cosine(updated, whole) > 0.995
    assert cosine(updated, whole) > cosine(alone, whole)  # the new cells count
    H = late.obsm["X_bcnmf"]
    np.testing.assert_allclose(H.sum(1), np.asarray(late.X.sum(1)).ravel(), rtol=1e-3)
    np.testing.assert_allclose(H, adata.obsm["X_bcnmf"][1::2], atol=0.12 * H.max())
    record = late.uns["bcnmf"]
    assert record["params"]["updated"]
    assert record["weight"].shape == early.uns["bcnmf"]["weight"].shape


def test_old_cells_weigh(halves):
    """A few new cells move the loadings a little; without the stored sums they would have it all."""
    early, late = halves
    few = late[::13].copy()
    bc.tl.update(few, early)
    alone = few.copy()
    bc.tl.bcnmf(alone, **HOW, init=early.varm["bcnmf"])
    assert cosine(few.varm["bcnmf"], early.varm["bcnmf"]) > 0.99
    assert cosine(alone.varm["bcnmf"], early.varm["bcnmf"]) < 0.9


def test_genes_without_counts(adata, halves):
    """What loadings rest on is kept of the genes that have some."""
    _, late = halves
    early = adata[::2].copy()
    early.X = sparse.csr_matrix(early.X.multiply(~np.isin(np.arange(early.n_vars), [0, 7])))
    bc.tl.bcnmf(early, **HOW)
    few = late[::13].copy()
    bc.tl.update(few, early)
    assert cosine(few.varm["bcnmf"], early.varm["bcnmf"]) > 0.99


def test_a_second_update_goes_on_from_the_first(halves):
    early, late = halves
    parts = late[::2].copy(), late[1::2].copy()
    bc.tl.update(parts[0], early)
    bc.tl.update(parts[1], parts[0])
    weights = [part.uns["bcnmf"]["weight"].sum() for part in (early, *parts)]
    assert weights[0] < weights[1] < weights[2]


def test_order_of_genes_does_not_matter(halves):
    early, late = halves
    other = late[:, np.random.default_rng(0).permutation(late.n_vars)].copy()
    bc.tl.update(late, early)
    bc.tl.update(other, early)
    np.testing.assert_allclose(other[:, late.var_names].varm["bcnmf"], late.varm["bcnmf"], atol=1e-5)


@pytest.mark.parametrize("condition", ["case", "ctrl"])
def test_one_condition_only(halves, condition):
    """Cells come plate by plate."""
    early, late = halves
    part = late[late.obs["condition"] == condition].copy()
    bc.tl.update(part, early)
    assert cosine(part.varm["bcnmf"], early.varm["bcnmf"]) > 0.9
    assert part.uns["bcnmf"]["alpha_effective"] == early.uns["bcnmf"]["alpha_effective"]
    assert part.obs["bcnmf_role"].unique().tolist() == [{"case": "target", "ctrl": "background"}[condition]]
    other = {"case": "usage_background", "ctrl": "usage_target"}[condition]
    assert part.uns["bcnmf"]["topics"][other].isna().all()
    rest = late[late.obs["condition"] != condition].copy()
    bc.tl.update(rest, part)  # what was absent is not forgotten
    assert rest.uns["bcnmf"]["alphas"]["sum"].tolist() == early.uns["bcnmf"]["alphas"]["sum"].tolist()


def test_refused(halves):
    early, late = halves
    before = late.copy()
    with pytest.raises(ValueError, match=r"`adata` must hold all .* genes .*, got 200 missing: "):
        bc.tl.update(late[:, 200:].copy(), early)
    with pytest.raises(ValueError, match="'nothing'"):
        bc.tl.update(late, early, key="nothing")
    late.obs["condition"] = "other"
    with pytest.raises(ValueError, match=r"No cell of .*'condition'.* is of background 'ctrl' or target 'case'"):
        bc.tl.update(late, early)
    late.obs["condition"] = before.obs["condition"]
    split = early.copy()
    bc.tl.bcnmf(split, **HOW | {"tol": 1e-2}, n_background_topics=3, cross_fit=None, key_added="split")
    with pytest.raises(ValueError, match="without background topics"):
        bc.tl.update(late, split, key="split")
    bc.tl.consensus(split, **HOW | {"tol": 1e-2}, n_restarts=2, key_added="consensus")
    with pytest.raises(ValueError, match=r"must be a factorisation by `bcnmf_sc\.tl\.bcnmf`"):
        bc.tl.update(late, split, key="consensus")
    bc.tl.nmf(split, n_topics=3, key_added="nmf", tol=1e-2)
    with pytest.raises(ValueError, match=r"must be a factorisation by `bcnmf_sc\.tl\.bcnmf`"):
        bc.tl.update(late, split, key="nmf")
    assert "bcnmf" not in late.uns
    assert "bcnmf" not in late.varm


def test_copy(halves):
    early, late = halves
    changed = bc.tl.update(late, early, copy=True)
    assert "bcnmf" in changed.varm
    assert "bcnmf" not in late.varm
