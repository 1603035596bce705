"""DeltaNMF from AnnData to AnnData: recovery, units, tables, options, and what is refused."""

from __future__ import annotations

import logging
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning
from statsmodels.stats.multitest import multipletests

import bcnmf_sc as bc
from bcnmf_sc import cli
from bcnmf_sc.tl._deltanmf import data
from bcnmf_sc.tl._design import moderated

HOW = {"condition_key": "condition", "control": "ctrl"}
SMALL = HOW | {"n_topics_control": 4, "n_topics_case": 2, "sample_key": "donor", "cross_fit": None}


def matched(truth, found):
    """Cosine of each true column with the found one that is matched to it, and which that is."""
    cosine = (truth / np.linalg.norm(truth, axis=0)).T @ (found / np.maximum(np.linalg.norm(found, axis=0), 1e-30))
    rows, columns = linear_sum_assignment(-cosine)
    return cosine[rows, columns], columns


@pytest.fixture
def small():
    return bc.datasets.simulated_programs(500, 400, 240, n_shared=4, n_new=2, frac_active=0.3, strength=0.3)


@pytest.fixture
def embedding(small):
    return pd.DataFrame(small.varm["embedding"], index=small.var_names)


@pytest.fixture(scope="module")
def hard():
    adata = bc.datasets.simulated_programs()
    bc.tl.deltanmf(adata, **HOW, n_topics_control=8, n_topics_case=3, sample_key="donor", cross_fit=None)
    return adata


def test_hard_set_is_recovered(hard):
    W, truth = hard.varm["deltanmf"], hard.varm["true_loadings"]
    cosine, order = matched(truth[:, 8:], W[:, 8:])
    assert cosine.mean() >= 0.98
    assert cosine.min() >= 0.965
    assert matched(truth[:, :8], W[:, :8])[0].mean() >= 0.99
    case = (hard.obs["condition"] == "case").to_numpy()
    true_usage, usage = hard.obsm["true_usage"][case, 8:], hard.obsm["X_deltanmf"][case, 8:][:, order]
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(true_usage.T, usage.T, strict=True)]
    assert np.mean(correlation) >= 0.985


def test_cells_without_new_programs_use_no_case_topics(hard):
    case = (hard.obs["condition"] == "case").to_numpy()
    share = bc.get.usage(hard, key="deltanmf", normalize=True).to_numpy()[:, 8:].sum(1)
    none = hard.obsm["true_usage"][:, 8:].sum(1) == 0
    assert share[case & none].mean() < 0.015
    assert abs(share[case & none].mean() - share[~case].mean()) < 0.005
    assert share[case & ~none].mean() > 0.2


def test_cases_without_new_programs_use_no_case_topics():
    adata = bc.datasets.simulated_programs(1500, 1000, 800, n_shared=5, n_new=2, frac_active=0)
    bc.tl.deltanmf(adata, **HOW, n_topics_control=5, n_topics_case=2, sample_key="donor", cross_fit=None)
    assert adata.uns["deltanmf"]["emergence"]["usage_case"].sum() < 0.03


def test_fields(small, tmp_path):
    before = small.copy()
    assert bc.tl.deltanmf(small, **SMALL) is None
    assert (small.X != before.X).nnz == 0
    H, W, record = small.obsm["X_deltanmf"], small.varm["deltanmf"], small.uns["deltanmf"]
    assert (H.shape, H.dtype) == ((900, 6), np.float32)
    assert (W.shape, W.dtype) == ((240, 6), np.float32)
    np.testing.assert_allclose(W.sum(0), 1, atol=1e-5)
    assert small.obs["deltanmf_role"].value_counts().to_dict() == {"control": 500, "case": 400, "projected": 0}
    assert small.var["deltanmf_deviation"].gt(0).all()
    assert set(record) == {
        "params", "topics", "shift", "emergence", "loss", "n_iter", "converged", "deviance_explained", "mse",
    }  # fmt: skip
    names = ["Control 1", "Control 2", "Control 3", "Control 4", "Case 1", "Case 2"]
    assert record["topics"].index.tolist() == names
    assert record["topics"]["kind"].tolist() == ["control"] * 4 + ["case"] * 2
    small.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    for table in ("topics", "shift", "emergence", "loss"):
        pd.testing.assert_frame_equal(back.uns["deltanmf"][table], record[table], check_names=False)
    assert bc.get.top_genes(back, n_genes=3, key="deltanmf")["topic"].nunique() == 6
    assert bc.pl.loadings(back, key="deltanmf")["topics"].get_xlabel() == "log2 enrichment"
    assert [t.get_text() for t in bc.pl.usage(back, key="deltanmf").get_xticklabels()] == names
    assert len(bc.pl.loss(back, key="deltanmf")) == 3


def test_usage_is_in_scaled_counts_and_depends_on_the_cell_alone(small):
    bc.tl.deltanmf(small, **SMALL)
    total = np.asarray(small.X.sum(1)).ravel()
    H, W = small.obsm["X_deltanmf"], small.varm["deltanmf"].astype(float)
    size = small.uns["deltanmf"]["params"]["library_size"]
    assert size == np.median(total)
    assert H.sum(1).mean() == pytest.approx(size, rel=0.1)
    # the residual is orthogonal to every topic in use, in the units of the fit
    deviation = small.var["deltanmf_deviation"].to_numpy(dtype=float)
    A = small.X.toarray() * (size / total)[:, None] / deviation
    slope = (A - H @ (W / deviation[:, None]).T) @ (W / deviation[:, None])
    scale = np.linalg.norm(W / deviation[:, None], axis=0) * np.linalg.norm(A, axis=1)[:, None]
    assert (slope / scale).max() < 1e-3
    assert np.abs((slope / scale)[H > 1]).max() < 1e-3


def test_control_topics_are_those_of_one_stage_to_the_bit(small):
    bc.tl.deltanmf(small, **SMALL)
    bc.tl.deltanmf(small, **SMALL | {"n_topics_case": 0}, key_added="one")
    np.testing.assert_array_equal(small.varm["one"], small.varm["deltanmf"][:, :4])
    assert "emergence" not in small.uns["one"]
    controls = small[small.obs["condition"] == "ctrl"].copy()
    bc.tl.deltanmf(controls, **SMALL | {"n_topics_case": 0}, min_cells=0)
    assert controls.uns["deltanmf"]["shift"].empty
    assert controls.obsm["X_deltanmf"].shape == (500, 4)


def test_control_topics_can_be_given(small):
    bc.tl.deltanmf(small, **SMALL)
    bc.tl.deltanmf(small, **SMALL, init="deltanmf", reuse_control=True, key_added="again")
    np.testing.assert_allclose(small.varm["again"], small.varm["deltanmf"], atol=1e-5)
    W = small.varm["deltanmf"][:, :4]
    bc.tl.deltanmf(small, **SMALL, init=W * [1, 10, 0.1, 3], key_added="warm")
    np.testing.assert_allclose(small.varm["warm"][:, :4], W, atol=1e-3)
    with pytest.raises(ValueError, match="`init` must be given where `reuse_control`"):
        bc.tl.deltanmf(small, **SMALL, reuse_control=True)
    with pytest.raises(ValueError, match=r"240 genes used x 3 topics, got shape \(240, 4\)"):
        bc.tl.deltanmf(small, **SMALL | {"n_topics_control": 3}, init="deltanmf")


@pytest.mark.parametrize("kind", [np.asarray, sparse.csc_matrix])
def test_kind_of_matrix_does_not_matter(small, kind):
    bc.tl.deltanmf(small, **SMALL)
    other = small.copy()
    other.X = kind(small.X.toarray())
    bc.tl.deltanmf(other, **SMALL, key_added="other")
    np.testing.assert_allclose(other.varm["other"], small.varm["deltanmf"], atol=1e-5)


def test_cells_in_neither_are_projected_and_change_nothing(small):
    bc.tl.deltanmf(small, **SMALL)
    twice = anndata.concat([small, small[:50]], index_unique="-", merge="same")
    twice.obs["condition"] = [*small.obs["condition"].astype(str), *["other"] * 50]
    bc.tl.deltanmf(twice, **SMALL | {"case": "case"})
    np.testing.assert_allclose(twice.varm["deltanmf"], small.varm["deltanmf"], atol=1e-5)
    np.testing.assert_allclose(twice.obsm["X_deltanmf"][900:], twice.obsm["X_deltanmf"][:50], atol=1e-3)
    assert (twice.obs["deltanmf_role"][900:] == "projected").all()


@pytest.mark.parametrize("scale", ["control", "pooled", "separate", "none"])
@pytest.mark.parametrize("library", ["median", "tpm", "none"])
def test_scaling(small, scale, library):
    bc.tl.deltanmf(small, **SMALL, scale=scale, library=library, tol=1e-3)
    total = np.asarray(small.X.sum(1)).ravel()
    size = {"median": np.median(total), "tpm": 1e6, "none": None}[library]
    x = small.X.toarray() if size is None else small.X.toarray() * (size / total)[:, None]
    control = (small.obs["condition"] == "ctrl").to_numpy()
    pooled, own = x.std(0, ddof=1), x[control].std(0, ddof=1)
    expected = {"pooled": pooled, "none": np.ones(240)}.get(scale, np.maximum(own, pooled / 3))
    np.testing.assert_allclose(small.var["deltanmf_deviation"], expected, rtol=1e-4)
    cosine = matched(small.varm["true_loadings"], small.varm["deltanmf"])[0]
    assert cosine.min() > (0.8 if scale == "none" else 0.9)


def test_genes_that_controls_lack_are_kept(small):
    counts = small.X.toarray()
    counts[:500, 3] = 0
    small.X = sparse.csr_matrix(counts)
    bc.tl.deltanmf(small, **SMALL)
    total = counts.sum(1)
    pooled = (counts * (np.median(total) / total)[:, None]).std(0, ddof=1)
    assert small.var["deltanmf_deviation"].iloc[3] == pytest.approx(pooled[3], rel=1e-4)
    assert small.varm["deltanmf"][3, :4].max() == 0


def test_genes_left_out(small):
    counts = small.X.toarray()
    counts[5:, 0] = 0
    counts[:5, 0] = [1, 1, 1, 1, 0]
    small.X = sparse.csr_matrix(counts)
    out = ["Gene 2", "Gene 3", "no such gene"]
    for least, kept in ((4, True), (5, False)):
        bc.tl.deltanmf(small, **SMALL, min_cells=least, exclude_genes=out, tol=1e-2)
        W = small.varm["deltanmf"]
        assert (W[1:3] == 0).all()
        assert np.isfinite(small.var["deltanmf_deviation"].iloc[0]) == kept
        assert small.uns["deltanmf"]["params"]["n_genes"] == 237 + kept
    part = small[:, ~small.var_names.isin(["Gene 1", *out])].copy()
    bc.tl.deltanmf(part, **SMALL, tol=1e-2)
    bc.tl.deltanmf(small, **SMALL, exclude_genes=["Gene 1", *out], tol=1e-2)
    np.testing.assert_array_equal(small.varm["deltanmf"][3:], part.varm["deltanmf"])


def test_shift_table(small):
    bc.tl.deltanmf(small, **SMALL)
    table = small.uns["deltanmf"]["shift"]
    share = small.obsm["X_deltanmf"][:, :4] / small.obsm["X_deltanmf"][:, :4].sum(1, keepdims=True)
    means = pd.DataFrame(share).groupby(small.obs["donor"].to_numpy(), observed=True).mean()
    n = small.obs["donor"].value_counts().loc[means.index].to_numpy(float)
    case = means.index.str.startswith("case").astype(float)
    y, X, contrast = np.log2(means.to_numpy() + 1e-3), np.column_stack([np.ones(8), case]), np.array([0.0, 1.0])
    effects = moderated(y, X, contrast, n=n)
    np.testing.assert_allclose(table["log2_fold_change"], effects.estimate, rtol=1e-3)
    np.testing.assert_allclose(table[["ci_low", "ci_high"]].T, effects.interval(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(table["p_value"], effects.p_value, rtol=1e-3)
    np.testing.assert_allclose(table["p_adjusted"], multipletests(effects.p_value, method="fdr_bh")[1], rtol=1e-3)
    np.testing.assert_allclose(table["usage_case"], share[500:].mean(0), rtol=1e-4)
    assert table[["test", "unit"]].drop_duplicates().to_numpy().tolist() == [["moderated t", "donor"]]
    assert table[["n_case", "n_control"]].to_numpy().tolist() == [[4, 4]] * 4
    # the donors of both conditions are the same
    small.obs["donor"] = [name.split()[1] for name in small.obs["donor"]]
    bc.tl.deltanmf(small, **SMALL)
    paired = moderated(y, X, contrast, n=n, block=np.tile(np.arange(4), 2))
    np.testing.assert_allclose(small.uns["deltanmf"]["shift"]["p_value"], paired.p_value, rtol=1e-3)


def test_shifts_are_scored_by_topics_that_have_not_seen_the_donor(small, monkeypatch):
    """Folds are of whole donors, and no cell is scored by a fit that has seen its donor; the fit itself is the same."""
    parts = []
    real = data.CaseControl.part
    monkeypatch.setattr(data.CaseControl, "part", lambda *args: parts.append(args[2]) or real(*args))
    plain = bc.tl.deltanmf(small, **SMALL, copy=True)
    assert not parts
    bc.tl.deltanmf(small, **SMALL | {"cross_fit": 2}, n_threads=1)
    for learned, scored in (parts[:2], parts[2:]):
        np.testing.assert_array_equal(learned, ~scored)
        donors = small.obs["donor"]
        assert not set(donors[learned]) & set(donors[scored])
        assert small.obs["condition"][scored].nunique() == 2
    assert (parts[1] ^ parts[3]).all()
    np.testing.assert_array_equal(small.varm["deltanmf"], plain.varm["deltanmf"])
    np.testing.assert_array_equal(small.obsm["X_deltanmf"], plain.obsm["X_deltanmf"])
    pd.testing.assert_frame_equal(small.uns["deltanmf"]["emergence"], plain.uns["deltanmf"]["emergence"])
    table, old = small.uns["deltanmf"]["shift"], plain.uns["deltanmf"]["shift"]
    assert not np.allclose(table["p_value"], old["p_value"])
    np.testing.assert_allclose(table["usage_case"], old["usage_case"], atol=0.05)  # topics are matched
    assert small.uns["deltanmf"]["params"]["cross_fit"] == 2


def test_shifts_of_one_donor_a_side_are_not_tested(small):
    small.obs["donor"] = small.obs["condition"]
    bc.tl.deltanmf(small, **SMALL | {"cross_fit": 5}, tol=1e-2)
    assert small.uns["deltanmf"]["shift"]["p_value"].isna().all()
    with pytest.raises(ValueError, match="`cross_fit` must be a whole number of at least 2, got 1"):
        bc.tl.deltanmf(small, **SMALL | {"cross_fit": 1})


def test_a_shift_is_seen_and_the_cell_as_unit_is_told(caplog):
    adata = bc.datasets.simulated_programs(600, 600, 300, n_shared=4, n_new=1, shift=3.0)
    with caplog.at_level(logging.WARNING):
        bc.tl.deltanmf(adata, **HOW, n_topics_control=4, n_topics_case=1)
    assert "Name the donors with `sample_key`" in caplog.text
    table = adata.uns["deltanmf"]["shift"]
    assert table["unit"].unique().tolist() == ["cell"]
    order = matched(adata.varm["true_loadings"][:, :4], adata.varm["deltanmf"][:, :4])[1]
    assert table["log2_enrichment"].idxmax() == f"Control {order[0] + 1}"
    assert table["p_adjusted"].iloc[order[0]] < 1e-6


def test_emergence_table(small):
    bc.tl.deltanmf(small, **SMALL)
    table = small.uns["deltanmf"]["emergence"]
    share = bc.get.usage(small, key="deltanmf", normalize=True).to_numpy()[:, 4:]
    np.testing.assert_allclose(table["usage_control"], share[:500].mean(0), rtol=1e-4)
    np.testing.assert_allclose(table["active_control"], 0.05, atol=0.003)
    above = share[500:] > np.quantile(share[:500], 0.95, axis=0)
    np.testing.assert_allclose(table["active_case"], above.mean(0), atol=0.003)
    assert (table["log2_enrichment"] > 2).all()
    W = small.varm["deltanmf"] / np.linalg.norm(small.varm["deltanmf"], axis=0)
    cosine = W[:, :4].T @ W[:, 4:]
    assert table["closest_control"].tolist() == [f"Control {k + 1}" for k in cosine.argmax(0)]
    np.testing.assert_allclose(table["cosine"], cosine.max(0), rtol=1e-4)


def test_similarity_in_every_form_and_order(small, embedding):
    how = SMALL | {"rel_alpha": 0.1, "tol": 1e-3}
    graph, genes = bc.pp.gene_similarity(embedding, n_neighbors=8)
    bc.tl.deltanmf(small, **how, similarity=(graph, genes), key_added="pair")
    order = np.random.default_rng(0).permutation(240)
    dense = graph.toarray()
    small.varp["similar"] = sparse.csr_matrix(graph)
    forms = {
        "shuffled": (graph[order][:, order], genes[order]),
        "array": (dense[order][:, order], genes[order].tolist()),
        "frame": pd.DataFrame(dense, index=genes, columns=genes),
        "varp": "similar",
        "more": (sparse.block_diag([graph, np.ones((2, 2))]), [*genes, "x", "y"]),
    }
    for name, form in forms.items():
        bc.tl.deltanmf(small, **how, similarity=form, key_added=name)
        np.testing.assert_allclose(small.varm[name], small.varm["pair"], atol=1e-6)
        assert small.uns[name]["params"]["n_genes_in_similarity"] == 240
    bc.tl.deltanmf(small, **SMALL, tol=1e-3, key_added="without")
    assert np.abs(small.varm["without"] - small.varm["pair"]).max() > 1e-4
    bc.tl.deltanmf(small, **how | {"rel_alpha": 0.0}, similarity=(graph, genes), key_added="zero")
    np.testing.assert_array_equal(small.varm["zero"], small.varm["without"])


def test_a_similarity_of_some_genes_is_counted(small, embedding):
    graph, genes = bc.pp.gene_similarity(embedding.iloc[:100])
    bc.tl.deltanmf(small, **SMALL, rel_alpha=0.1, similarity=(graph, genes), tol=1e-3)
    assert small.uns["deltanmf"]["params"]["n_genes_in_similarity"] == 100


def bad_similarities():
    S = np.full((3, 3), 0.5)
    names = ["Gene 1", "Gene 2", "Gene 3"]

    def changed(*at_values):
        T = S.copy()
        for i, j, value in at_values:
            T[i, j] = value
        return T

    return {
        "no overlap": ((S, ["ENSG1", "ENSG2", "ENSG3"]), "got none. Ids in `similarity`: 'ENSG1'.*'Gene 1', 'Gene 2'"),
        "asymmetric": ((changed((0, 1, 0.9)), names), "must be symmetric"),
        "negative": ((changed((0, 1, -0.5), (1, 0, -0.5)), names), "must be non-negative, got -0.5"),
        "nan": ((sparse.csr_array(changed((0, 1, np.nan))), names), "must be finite, got 1 value"),
        "shape": ((S[:2], names), r"for each of its 3 genes, got shape \(2, 3\)"),
        "twice": ((S, ["Gene 1", "Gene 1", "Gene 2"]), "must be unique, got 'Gene 1'"),
        "frame": (pd.DataFrame(S, index=names, columns=names[::-1]), "same genes as index and columns"),
        "key": ("absent", "'absent' is not in `adata.varp`"),
    }


@pytest.mark.parametrize("case", bad_similarities())
def test_bad_similarities(small, case):
    similarity, message = bad_similarities()[case]
    with pytest.raises(ValueError, match=message):
        bc.tl.deltanmf(small, **SMALL, rel_alpha=0.1, similarity=similarity)
    assert "deltanmf" not in small.uns
    with pytest.raises(TypeError, match="must be a DataFrame, a pair"):
        bc.tl.deltanmf(small, **SMALL, similarity=np.eye(3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"condition_key": "no"}, "`condition_key` 'no' is not in `adata.obs`"),
        ({"control": "no"}, "`control` must name categories .*got 'no'"),
        ({"case": "no"}, "`case` must name categories .*got 'no'"),
        ({"case": "ctrl"}, "`case` must name other categories than `control`"),
        ({"control": ["ctrl", "case"]}, "There are no case cells: .*is in `control`"),
        ({"n_topics_control": 0}, "`n_topics_control` must be a whole number of at least 1"),
        ({"n_topics_control": 300}, "`n_topics_control` must be a whole number from 0 to 240"),
        ({"n_topics_case": -1}, "`n_topics_case` must be"),
        ({"rel_alpha": 0.1}, "`similarity` must be given"),
        ({"rel_gamma": -1.0}, "`rel_gamma` must be a finite number of at least 0"),
        ({"rel_gamma": np.nan}, "`rel_gamma` must be a finite number"),
        ({"sample_key": "no"}, "`sample_key` 'no' is not in"),
        ({"library": "mean"}, "`library` must be one of 'median', 'tpm', 'none', got 'mean'"),
        ({"scale": "case"}, "`scale` must be"),
        ({"min_cells": 10_000}, "At least 2 genes must have counts in 10000 cells, got 0"),
        ({"exclude_genes": ["x"]}, "`exclude_genes` must name genes"),
        ({"key_added": "a/b"}, "`key_added` must be"),
    ],
)
def test_bad_arguments(small, wrong, message):
    before = small.copy()
    with pytest.raises(ValueError, match=message):
        bc.tl.deltanmf(small, **SMALL | wrong)
    assert list(small.uns) == list(before.uns)
    assert list(small.obs) == list(before.obs)


def test_bad_values(small):
    with pytest.raises(TypeError, match=r"Unknown argument 'minn_cells'\. Did you mean `min_cells`\? Options: library"):
        bc.tl.deltanmf(small, **SMALL, minn_cells=3)
    for value, message in ((np.nan, "must be finite"), (-1.0, "must be non-negative")):
        wrong = small.copy()
        wrong.X[3, wrong.X[3].indices[0]] = value
        with pytest.raises(ValueError, match=message):
            bc.tl.deltanmf(wrong, **SMALL)
    empty = small[:0].copy()
    with pytest.raises(ValueError, match="`control` must name categories"):
        bc.tl.deltanmf(empty, **SMALL)
    blank = small.copy()
    blank.X = sparse.csr_matrix(blank.shape, dtype=np.float32)
    with pytest.raises(ValueError, match="contain only zeros"):
        bc.tl.deltanmf(blank, **SMALL)


def test_cells_without_counts_get_zeros(small):
    counts = small.X.toarray()
    counts[[2, 700]] = 0
    small.X = sparse.csr_matrix(counts)
    bc.tl.deltanmf(small, **SMALL)
    assert (small.obsm["X_deltanmf"][[2, 700]] == 0).all()
    assert np.isfinite(small.obsm["X_deltanmf"]).all()


def test_says_when_it_has_not_converged(small):
    with pytest.warns(ConvergenceWarning, match="The case topics still moved by .* after 2 iterations"):
        bc.tl.deltanmf(small, **SMALL, init=small.varm["true_loadings"][:, :4], reuse_control=True, max_iter=2)
    assert small.uns["deltanmf"]["converged"] is False


def test_copy_seed_and_checkpoint(small, tmp_path):
    changed = bc.tl.deltanmf(small, **SMALL, copy=True)
    assert "deltanmf" not in small.uns
    how = SMALL | {"checkpoint": tmp_path / "state", "n_threads": 1}
    for _ in range(2):  # the second time from what the first left
        bc.tl.deltanmf(small, **how)
        np.testing.assert_array_equal(small.varm["deltanmf"], changed.varm["deltanmf"])
        np.testing.assert_array_equal(small.obsm["X_deltanmf"], changed.obsm["X_deltanmf"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.case", "state.control"]


def test_projection_is_refused_in_words(small):
    bc.tl.deltanmf(small, **SMALL)
    with pytest.raises(ValueError, match="of DeltaNMF"):
        bc.tl.project(small.copy(), small, key="deltanmf")


def test_command_line_equals_the_call(small, tmp_path, capsys):
    graph = bc.pp.gene_similarity(small.varm["embedding"], small.var_names).graph
    small.varp["similar"] = sparse.csr_matrix(graph)
    small.write_h5ad(tmp_path / "in.h5ad")
    argv = ["deltanmf", tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad", "--condition-key", "condition"]
    argv += [
        "--control",
        "ctrl",
        "--n-topics-control",
        "4",
        "--n-topics-case",
        "2",
        "--sample-key",
        "donor",
        "--cross-fit",
        "2",
    ]
    argv += ["--rel-alpha", "0.1", "--similarity", "similar", "--scale", "pooled", "--min-cells", "5", "--tol", "1e-3"]
    argv += ["--exclude-genes", "Gene 3", "--exclude-genes", "Gene 4", "--library", "tpm", "--n-restarts", "2"]
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in argv])
    assert end.value.code == 0
    assert "Case 2" in capsys.readouterr().out
    how = SMALL | {"cross_fit": 2}
    bc.tl.deltanmf(small, **how, rel_alpha=0.1, similarity="similar", scale="pooled", min_cells=5, tol=1e-3,
                   exclude_genes=["Gene 3", "Gene 4"], library="tpm", n_restarts=2)  # fmt: skip
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(out.varm["deltanmf"], small.varm["deltanmf"])
    pd.testing.assert_frame_equal(out.uns["deltanmf"]["shift"], small.uns["deltanmf"]["shift"], check_names=False)


class TestGeneSimilarity:
    def test_is_the_cosine_of_the_nearest(self):
        rng = np.random.default_rng(0)
        vectors = rng.normal(size=(50, 5))
        vectors[4] = 0
        graph, names = bc.pp.gene_similarity(vectors, [f"g{i}" for i in range(50)], n_neighbors=6, min_similarity=0.2)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -1)
        sixth = np.sort(cosine, axis=1)[:, -6][:, None]
        expected = np.where((cosine >= sixth) & (cosine > 0.2), cosine, 0)
        np.testing.assert_allclose(graph.toarray(), np.maximum(expected, expected.T), atol=1e-6)
        assert names[1] == "g1"
        assert graph[[4]].nnz == 0

    def test_chunks_do_not_matter(self, monkeypatch):
        vectors = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 5)), index=[f"g{i}" for i in range(50)])
        whole = bc.pp.gene_similarity(vectors).graph
        monkeypatch.setattr("bcnmf_sc.pp._similarity.CHUNK", 7)
        assert abs(bc.pp.gene_similarity(vectors).graph - whole).max() < 1e-6

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ({"genes": None}, "`genes` must name the rows"),
            ({"genes": ["a", "b"]}, r"a row for each of 2 genes, got shape \(3, 2\)"),
            ({"genes": ["a", "b", "a"]}, "unique, got 'a'"),
            ({"embeddings": [[1, 2], [np.nan, 1], [0, 1]]}, "NaN or infinity for 1 genes, such as 'b'"),
            ({"n_neighbors": 0}, "`n_neighbors` must be"),
            ({"min_similarity": 2}, "`min_similarity` must be a number from 0 to 1"),
        ],
    )
    def test_bad_input(self, argument, message):
        given = {"embeddings": np.eye(3)[:, :2], "genes": ["a", "b", "c"]} | argument
        with pytest.raises(ValueError, match=message):
            bc.pp.gene_similarity(np.asarray(given.pop("embeddings"), float), given.pop("genes"), **given)


class TestSimulatedPrograms:
    def test_truth_explains_the_counts(self):
        adata = bc.datasets.simulated_programs(2000, 1000, 200, n_shared=3, n_new=2, theta=np.inf)
        mean = adata.obsm["true_usage"] @ adata.varm["true_loadings"].T * adata.obs["library_size"].to_numpy()[:, None]
        np.testing.assert_allclose(adata.varm["true_loadings"].sum(0), 1)
        np.testing.assert_allclose(adata.obsm["true_usage"].sum(1), 1)
        assert ((adata.X.toarray() - mean) ** 2 / np.maximum(mean, 1e-12)).mean() == pytest.approx(1, abs=0.05)
        case = (adata.obs["condition"] == "case").to_numpy()
        new = adata.obsm["true_usage"][:, 3:]
        assert (new[~case] == 0).all()
        assert (new[case] > 0).mean() == pytest.approx(0.15, abs=0.03)
        assert new[case][new[case] > 0].mean() == pytest.approx(0.2, abs=0.02)
        assert adata.uns["truth"]["kind"].tolist() == ["shared"] * 3 + ["new"] * 2
        assert set(adata.obs["donor"][case]) == {f"case {i}" for i in range(1, 5)}

    def test_default_is_the_hard_set(self, hard):
        assert hard.shape == (5000, 1500)
        assert 0.16 < hard.X.nnz / np.prod(hard.shape) < 0.2

    def test_seed(self):
        first, second, other = (bc.datasets.simulated_programs(50, 40, 100, n_shared=3, n_new=1, random_state=s).X
                                for s in (0, 0, 1))  # fmt: skip
        assert (first != second).nnz == 0
        assert (first != other).nnz > 0

    @pytest.mark.parametrize(
        "wrong", [{"n_genes": 20}, {"strength": 0.7}, {"theta": 0}, {"n_donors": 0}, {"n_new": -1}]
    )
    def test_bad_input(self, wrong):
        with pytest.raises(ValueError, match=re.escape(f"`{next(iter(wrong))}` must be")):
            bc.datasets.simulated_programs(**{"n_control": 50, "n_case": 40} | wrong)
