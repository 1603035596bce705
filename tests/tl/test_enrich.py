"""`tl.enrich` against SciPy's Fisher test and decoupler's own call."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bcnmf_sc as bc

SETS = {"first": [f"G{i}" for i in range(12)], "wide": [f"G{i}" for i in range(0, 60, 2)], "none": ["A", "B"]}


@pytest.fixture
def adata() -> ad.AnnData:
    """Ten genes of topic 1 are of the first set; ten genes of the matrix are not used."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((5, 70), "float32"))
    adata.var_names = [f"G{i}" for i in range(70)]
    adata.var["symbol"] = [f"S{i // 2}" for i in range(70)]
    W = rng.gamma(0.5, size=(70, 2)) + 1e-3
    W[:10, 0] += 10
    W[60:] = 0
    adata.varm["bcnmf"] = (W / W.sum(0)).astype("float32")
    adata.obsm["X_bcnmf"] = np.ones((5, 2), "float32")
    adata.uns["bcnmf"] = {"topics": pd.DataFrame({"kind": "target"}, index=["Topic 1", "Topic 2"])}
    return adata


def test_over_representation_is_fishers_test_in_the_genes_used(adata) -> None:
    bc.tl.enrich(adata, SETS, n_genes=15)
    table = bc.get.enrichment(adata)
    assert table["gene_set"].unique().tolist() == ["first", "wide"]  # too few genes of "none"
    assert len(table) == 4
    for row in table.itertuples():
        top = set(bc.get.top_genes(adata, n_genes=15, topics=row.topic)["gene"])
        genes = set(SETS[row.gene_set])
        a, b, c = len(top & genes), len(genes - top), len(top - genes)
        assert (row.n_overlap, row.set_size, row.universe, row.n_genes) == (a, len(genes), 60, 15)
        expected = stats.fisher_exact([[a, b], [c, 60 - a - b - c]], alternative="greater").pvalue
        assert row.p_value == pytest.approx(expected)
        assert row.score == pytest.approx(a / (15 * len(genes) / 60))
        assert set(row.genes.split(";")) - {""} == top & genes
    np.testing.assert_allclose(table["p_adjusted"], stats.false_discovery_control(table["p_value"]))
    assert table.iloc[0]["gene_set"] == "first"
    assert table.iloc[0]["p_value"] < 1e-5


def test_the_universe_is_not_the_matrix(adata) -> None:
    adata.varm["bcnmf"][30:] = 0
    bc.tl.enrich(adata, SETS, n_genes=15)
    table = bc.get.enrichment(adata, "Topic 1")
    assert table["universe"].eq(30).all()
    assert table.set_index("gene_set")["set_size"].to_dict() == {"first": 12, "wide": 15}


def test_gene_sets_from_file_and_table_are_those_of_the_mapping(adata, tmp_path) -> None:
    file = tmp_path / "sets.gmt"
    file.write_text("".join("\t".join([name, "http://x", *genes]) + "\n" for name, genes in SETS.items()) + "\n")
    net = pd.DataFrame([(name, gene) for name, genes in SETS.items() for gene in genes], columns=["source", "target"])
    tables = []
    marked = tmp_path / "marked.gmt"
    marked.write_text(file.read_text(), encoding="utf-8-sig")  # as spreadsheets do
    for form in (SETS, file, str(file), marked, net, net.astype("category")):
        bc.tl.enrich(adata, form, n_genes=15)
        tables.append(bc.get.enrichment(adata))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_symbols_that_stand_twice_count_once(adata) -> None:
    bc.tl.enrich(adata, {"s": [f"S{i}" for i in range(6)]}, gene_symbols="symbol", n_genes=8)
    row = bc.get.enrichment(adata, "Topic 1").iloc[0]
    assert (row["universe"], row["set_size"]) == (30, 6)
    assert row["n_overlap"] == len(set(row["genes"].split(";"))) == 5


def test_by_specificity_ranks_otherwise(adata) -> None:
    adata.varm["bcnmf"][20:30] = 1  # leads both topics
    sets = {"shared": [f"G{i}" for i in range(20, 30)]}
    bc.tl.enrich(adata, sets, n_genes=12)
    assert bc.get.enrichment(adata, "Topic 1")["n_overlap"].item() >= 10
    bc.tl.enrich(adata, sets, n_genes=12, by="specificity")
    assert bc.get.enrichment(adata, "Topic 1")["n_overlap"].item() < 3


def test_ranked_is_decouplers(adata) -> None:
    dc = pytest.importorskip("decoupler")
    bc.tl.enrich(adata, SETS, method="gsea", n_perms=200)
    table = bc.get.enrichment(adata).pivot(index="topic", columns="gene_set", values="score")
    matrix = bc.get.loadings(adata).iloc[:60].T.astype(float)
    matrix = matrix[sorted(matrix.columns)]
    net = pd.DataFrame([(name, gene) for name, genes in SETS.items() for gene in genes], columns=["source", "target"])
    score, _ = dc.mt.gsea(matrix, net, tmin=5, times=200, seed=1)
    # decoupler shuffles the genes before it ranks, so permutations differ: the normalised scores agree only about
    np.testing.assert_allclose(table[score.columns], score, rtol=0.15)
    found = bc.get.enrichment(adata, "Topic 1")
    assert found.iloc[0]["gene_set"] == "first"
    assert found.iloc[0]["p_value"] == pytest.approx(1 / 201, rel=0.01)  # decoupler 2.3 says 1 / 200 itself
    assert found["p_value"].min() > 0


def test_ranked_repeats_with_its_seed_and_stands_beside_the_other(adata, tmp_path) -> None:
    pytest.importorskip("decoupler")
    bc.tl.enrich(adata, SETS, n_genes=15)
    tables = []
    for seed in (0, 0, 1):
        bc.tl.enrich(adata, SETS, method="gsea", n_perms=50, random_state=seed)
        tables.append(bc.get.enrichment(adata))
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert tables[0].groupby("method").size().to_dict() == {"ora": 4, "gsea": 4}
    adata.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(bc.get.enrichment(ad.read_h5ad(tmp_path / "a.h5ad")), tables[2], check_dtype=False)


def test_without_decoupler_the_extra_is_named(adata, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "decoupler", None)
    bc.tl.enrich(adata, SETS, n_genes=15)
    with pytest.raises(ImportError) as error:
        bc.tl.enrich(adata, SETS, method="gsea")
    assert "bcnmf-sc[enrich]" in error.value.__notes__[0]


def test_get_enrichment_filters_and_tells_what_is_missing(adata) -> None:
    with pytest.raises(ValueError, match=r"Run `bcnmf_sc.tl.enrich` first"):
        bc.get.enrichment(adata)
    bc.tl.enrich(adata, SETS, n_genes=15)
    assert bc.get.enrichment(adata, max_p_adjusted=1e-3)["gene_set"].tolist() == ["first"]
    with pytest.raises(ValueError, match="`topics` must be 'target', 'background', 'all', a name"):
        bc.get.enrichment(adata, "Topic 9")


@pytest.mark.parametrize(
    ("sets", "how", "message"),
    [
        (SETS, {"method": "x"}, "`method` must be"),
        (SETS, {"n_genes": 60}, "`n_genes` must be smaller than the 60 genes used"),
        ({"none": ["A", "B"]}, {}, r"got 1 sets, the largest with 0 of them.*`gene_symbols`"),
        (SETS, {"max_size": 5, "n_genes": 9}, "`gene_sets` must hold sets"),
        (pd.DataFrame({"a": []}), {}, "'source' and 'target'"),
    ],
)
def test_errors(adata, sets, how, message) -> None:
    with pytest.raises(ValueError, match=message):
        bc.tl.enrich(adata, sets, **how)


def test_errors_of_form(adata, tmp_path) -> None:
    with pytest.raises(TypeError, match="got a string for 'a'"):
        bc.tl.enrich(adata, {"a": "TP53"})
    (tmp_path / "x.gmt").write_text("name only\n")
    with pytest.raises(ValueError, match="line 1 of"):
        bc.tl.enrich(adata, tmp_path / "x.gmt")
    (tmp_path / "x.gmt").write_text("a\thttp://x\tG1\nb\thttp://x\tG2\na\thttp://x\tG3\n")
    with pytest.raises(ValueError, match="must name each set once, got 'a' again in line 3 of"):
        bc.tl.enrich(adata, tmp_path / "x.gmt")
