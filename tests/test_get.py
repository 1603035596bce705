"""Tests of `bcnmf_sc.get`: labelled tables out of an AnnData that holds a factorisation."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from bcnmf_sc import get

LOADINGS = np.array(
    # Topic 1, 2, 3
    [
        [0.50, 0.50, 0.40],  # shared: leads by loading, never by specificity
        [0.30, 0.02, 0.02],
        [0.00, 0.00, 0.00],  # not used
        [0.10, 0.10, 0.48],
        [0.10, 0.38, 0.10],
    ],
    dtype="float32",
)
USAGE = np.array([[1, 2, 1], [0, 0, 0], [3, 0, 0], [0, 5, 5]], dtype="float32")
NAMES = ["Topic 1", "Topic 2", "Topic 3"]


@pytest.fixture
def adata() -> ad.AnnData:
    return stored()


def stored(n_topics: int = 3, key: str = "bcnmf") -> ad.AnnData:
    adata = ad.AnnData(np.ones((4, 5), dtype="float32"))
    adata.obs_names = [f"cell{i}" for i in range(4)]
    adata.var_names = [f"gene{i}" for i in range(5)]
    adata.var["symbol"] = ["ACTB", "IFIT1", "XIST", None, "ACTB"]
    adata.obsm[f"X_{key}"] = USAGE[:, :n_topics].copy()
    adata.varm[key] = LOADINGS[:, :n_topics].copy()
    adata.uns["pca"] = {"variance": np.ones(2)}
    adata.uns[key] = {"topics": pd.DataFrame({"kind": "target", "usage_target": 0.3}, index=NAMES[:n_topics])}
    return adata


def test_usage_is_labelled_and_a_copy(adata: ad.AnnData) -> None:
    table = get.usage(adata)
    assert table.columns.tolist() == NAMES
    assert table.index.equals(adata.obs_names)
    assert table.to_numpy().dtype == np.float32
    table.iloc[:] = -1
    np.testing.assert_array_equal(adata.obsm["X_bcnmf"], USAGE)


def test_normalized_usage_holds_proportions_and_leaves_empty_cells_at_zero(adata: ad.AnnData) -> None:
    table = get.usage(adata, normalize=True)
    np.testing.assert_allclose(table.sum(axis=1), [1, 0, 1, 1])
    np.testing.assert_allclose(table.loc["cell0"], [0.25, 0.5, 0.25])


def test_loadings_keep_all_genes_and_are_a_copy(adata: ad.AnnData) -> None:
    table = get.loadings(adata)
    assert table.columns.tolist() == NAMES
    assert table.index.equals(adata.var_names)
    np.testing.assert_array_equal(table, LOADINGS)
    table.iloc[:] = -1
    np.testing.assert_array_equal(adata.varm["bcnmf"], LOADINGS)


def test_gene_symbols_label_genes_and_fall_back_to_names(adata: ad.AnnData) -> None:
    assert get.loadings(adata, gene_symbols="symbol").index.tolist() == ["ACTB", "IFIT1", "XIST", "gene3", "ACTB"]
    top = get.top_genes(adata, n_genes=2, gene_symbols="symbol", topics="Topic 3")
    assert top["gene"].tolist() == ["gene3", "ACTB"]


def test_top_genes_by_loading(adata: ad.AnnData) -> None:
    top = get.top_genes(adata, n_genes=2)
    assert top.columns.tolist() == ["topic", "rank", "gene", "loading", "specificity"]
    assert top["topic"].tolist() == [name for name in NAMES for _ in range(2)]
    assert top["rank"].tolist() == [1, 2] * 3
    assert top["gene"].tolist() == ["gene0", "gene1", "gene0", "gene4", "gene3", "gene0"]
    np.testing.assert_allclose(top["loading"], [0.5, 0.3, 0.5, 0.38, 0.48, 0.4])


def test_top_genes_by_specificity_follow_the_documented_formula(adata: ad.AnnData) -> None:
    top = get.top_genes(adata, n_genes=1, by="specificity").set_index("topic")
    assert top["gene"].tolist() == ["gene1", "gene4", "gene3"]
    floor = 0.1 / 4  # four genes used
    expected = np.log2([(0.3 + floor) / (0.02 + floor), (0.38 + floor) / (0.1 + floor), (0.48 + floor) / (0.1 + floor)])
    np.testing.assert_allclose(top["specificity"], expected, rtol=1e-6)


def test_score_is_loading_times_specificity(adata: ad.AnnData) -> None:
    top, every = get.top_genes(adata, n_genes=3, by="score"), get.top_genes(adata, n_genes=None)
    for topic, found in top.groupby("topic", observed=True):
        table = every[every["topic"] == topic].set_index("gene")
        table["score"] = table["loading"] * table["specificity"].clip(lower=0)
        expected = table.sort_values(["score", "loading"], ascending=False, kind="stable")
        assert found["gene"].tolist() == expected.index[:3].tolist()
    assert top.groupby("topic", observed=True)["gene"].first().tolist() == ["gene1", "gene4", "gene3"]


def test_specificity_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    w = rng.choice([0.0, 0.1, 0.2, 0.3], size=(50, 4))
    w = w[(w > 0).any(axis=1)]
    got = get._specificity(w)
    floor = 0.1 / len(w)
    for g, row in enumerate(w):
        for k in range(4):
            others = max(np.delete(row, k))
            assert got[g, k] == pytest.approx(np.log2((row[k] + floor) / (others + floor)))


def test_top_genes_lists_only_used_genes_and_keeps_topic_order(adata: ad.AnnData) -> None:
    top = get.top_genes(adata, n_genes=None, topics=["Topic 3", "Topic 1"])
    assert len(top) == 8
    assert "gene2" not in set(top["gene"])
    assert top["topic"].cat.categories.tolist() == ["Topic 3", "Topic 1"]
    assert top["topic"].unique().tolist() == ["Topic 3", "Topic 1"]
    assert len(get.top_genes(adata, n_genes=100)) == 12


def test_ties_keep_the_order_of_genes(adata: ad.AnnData) -> None:
    assert get.top_genes(adata, n_genes=4, topics="Topic 1")["gene"].tolist() == ["gene0", "gene1", "gene3", "gene4"]


def test_one_topic_has_no_specificity() -> None:
    adata = stored(1)
    assert get.top_genes(adata)["specificity"].isna().all()
    with pytest.raises(ValueError, match="`by` must be 'loading'"):
        get.top_genes(adata, by="specificity")
    with pytest.raises(ValueError, match="got 'score'"):
        get.top_genes(adata, by="score")


def test_topics_is_a_copy(adata: ad.AnnData) -> None:
    table = get.topics(adata)
    assert table.index.tolist() == NAMES
    table["kind"] = "changed"
    assert set(adata.uns["bcnmf"]["topics"]["kind"]) == {"target"}


def test_other_keys_and_names_of_topics() -> None:
    adata = stored(key="nmf")
    adata.uns["nmf"]["topics"].index = ["a", "b", "c"]
    assert get.usage(adata, key="nmf").columns.tolist() == ["a", "b", "c"]
    assert get.top_genes(adata, n_genes=1, key="nmf", topics="b")["gene"].tolist() == ["gene0"]


def test_round_trip_through_h5ad(adata: ad.AnnData, tmp_path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(get.usage(read), get.usage(adata))
    pd.testing.assert_frame_equal(get.loadings(read), get.loadings(adata))
    pd.testing.assert_frame_equal(get.top_genes(read), get.top_genes(adata))


@pytest.mark.parametrize("function", [get.usage, get.loadings, get.top_genes, get.topics])
def test_missing_key_says_what_is_there_and_what_to_run(adata: ad.AnnData, function) -> None:
    del adata.uns["bcnmf"]
    with pytest.raises(ValueError, match="is not a factorisation") as error:
        function(adata, key="x")
    assert str(error.value) == (
        "`key` 'x' is not a factorisation in `adata.uns`. Present: none. Run `bcnmf_sc.tl.bcnmf` first."
    )


def test_key_of_something_else(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"`key` 'pca' is not a factorisation in `adata.uns`. Present: 'bcnmf'"):
        get.topics(adata, key="pca")


def test_dropped_matrix(adata: ad.AnnData) -> None:
    del adata.obsm["X_bcnmf"]
    with pytest.raises(ValueError, match=r"'X_bcnmf' is not in `adata.obsm`. Present: none"):
        get.usage(adata)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_genes": 0}, "`n_genes` must be a whole number of at least 1, got 0"),
        ({"by": "rank"}, "`by` must be .*'score'.*, got 'rank'"),
        ({"topics": "Topic 9"}, "`topics` must be 'target'.*Present: 'Topic 1', 'Topic 2', 'Topic 3'"),
        ({"topics": ["Topic 1", "Topic 1"]}, "each once"),
        ({"topics": []}, "`topics` must be 'target'"),
        ({"topics": 7}, "a list of names or positions of topics, each once, got 7"),
        ({"topics": [3]}, "got .3."),
        ({"topics": "background"}, "got 'background'. Present: kinds 'target'"),
        (
            {"gene_symbols": "ensembl"},
            "`gene_symbols` must be a column of `adata.var`, got 'ensembl'. Present: 'symbol'",
        ),
    ],
)
def test_bad_arguments(adata: ad.AnnData, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get.top_genes(adata, **arguments)


def test_scores_beside_columns_of_obs(adata: ad.AnnData) -> None:
    adata.obs["cell_kind"] = np.resize(["a", "b"], adata.n_obs)
    adata.uns["bcnmf"]["topics"]["kind"] = ["target", "background", "target"]
    share = get.usage(adata, normalize=True)
    table = get.obs_df(adata, columns="cell_kind")
    assert table.columns.tolist() == ["cell_kind", "Topic 1", "Topic 3"]
    pd.testing.assert_frame_equal(table[["Topic 1", "Topic 3"]], share[["Topic 1", "Topic 3"]])
    pd.testing.assert_frame_equal(get.obs_df(adata, topics=[1, 0], normalize=False), get.usage(adata).iloc[:, [1, 0]])
    for words, names in (
        ("background", ["Topic 2"]),
        ("all", list(share)),
        (None, list(share)),
        ("Topic 2", ["Topic 2"]),
        (["Topic 3", 0], ["Topic 3", "Topic 1"]),
    ):
        assert get.obs_df(adata, topics=words).columns.tolist() == names
    with pytest.raises(ValueError, match=r"`columns` must be columns of `adata.obs`, got 'sex'"):
        get.obs_df(adata, columns=["cell_kind", "sex"])
