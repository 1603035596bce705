import gzip
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata.tests.helpers import assert_equal
from scipy import sparse

import bcnmf_sc as bc
from bcnmf_sc.pp import _biotypes

CONDITIONS = {"background_key": "condition", "background": "ctrl"}


@pytest.fixture
def human():
    """Six genes with versioned ids as names and symbols in a column; no biotypes."""
    names = [f"ENSG0000000000{i}.{i}" for i in range(1, 7)]
    var = pd.DataFrame({"symbol": ["A1", "B2", "C3", "D4", "E5", "F6"]}, index=names)
    return ad.AnnData(np.ones((3, 6), dtype=np.float32), var=var)


GTF = "#!genome-build test\n" + "".join(
    f"1\tx\t{feature}\t1\t9\t.\t+\t.\t"
    f'gene_id "ENSG0000000000{i}.9"; gene_version "9"; {name} {key} "{biotype}"; note "a #1 \'gene";\n'
    for i, biotype, key, name in [
        (1, "protein_coding", "gene_type", 'gene_name "A1";'),
        (2, "lncRNA", "gene_type", 'gene_name "B2";'),
        (3, "protein_coding", "gene_biotype", 'gene_name "C3";'),
        (4, "protein_coding", "gene_biotype", ""),
    ]
    for feature in ("gene", "transcript")
)


@pytest.fixture
def gtf(tmp_path):
    path = tmp_path / "genes.gtf.gz"
    path.write_bytes(gzip.compress(GTF.encode()))
    return path


# --- protein_coding ---


def test_protein_coding_from_recognised_column(adata):
    before = adata.copy()
    assert bc.pp.protein_coding(adata) is None
    np.testing.assert_array_equal(adata.var["protein_coding"], adata.var["gene_biotype"] == "protein_coding")
    assert adata.var["protein_coding"].dtype == bool
    assert adata.uns["protein_coding"]["n_protein_coding"] == 450
    del adata.var["protein_coding"], adata.uns["protein_coding"]
    assert_equal(adata, before)


def test_protein_coding_skips_a_column_without_biotypes(human, gtf):
    """10x writes "Gene Expression" into feature_type, which is no biotype."""
    human.var["feature_type"] = "Gene Expression"
    human.var["biotype"] = ["protein_coding", "lncRNA"] * 3
    bc.pp.protein_coding(human)
    assert human.uns["protein_coding"]["source"] == "var['biotype']"
    bc.pp.protein_coding(human, annotation=gtf)  # what is named comes before what is recognised
    assert human.uns["protein_coding"]["source"] == "genes.gtf.gz"


def test_protein_coding_from_bool_column(human):
    human.var["coding"] = [True, False, True, True, False, False]
    bc.pp.protein_coding(human, column="coding")
    assert human.var["protein_coding"].tolist() == human.var["coding"].tolist()


@pytest.mark.parametrize("compressed", [True, False])
def test_protein_coding_from_gtf(human, gtf, compressed, caplog):
    if not compressed:
        gtf = gtf.with_suffix("")
        gtf.write_text(GTF)
    with caplog.at_level(logging.INFO, logger="bcnmf_sc"):
        bc.pp.protein_coding(human, annotation=str(gtf))
    assert human.var["protein_coding"].tolist() == [True, False, True, True, False, False]
    assert human.uns["protein_coding"] == {
        "source": gtf.name,
        "matched_by": "gene_id",
        "n_matched": 4,
        "n_genes": 6,
        "n_protein_coding": 3,
    }
    assert "4 of 6 genes known (by gene_id), 3 protein coding" in caplog.text


def test_protein_coding_by_symbol(human, gtf):
    """Names the GTF knows only as symbols; a gene line without a symbol matches nothing."""
    human.var_names = human.var["symbol"]
    del human.var["symbol"]
    bc.pp.protein_coding(human, annotation=gtf)
    assert human.var["protein_coding"].tolist() == [True, False, True, False, False, False]
    assert human.uns["protein_coding"]["matched_by"] == "gene_name"


def test_protein_coding_by_ids_in_var(human, gtf):
    human.var["gene_ids"] = human.var_names
    human.var_names = ["p", "q", "r", "s", "t", "u"]
    bc.pp.protein_coding(human, annotation=gtf)
    assert human.uns["protein_coding"]["matched_by"] == "gene_id (var['gene_ids'])"
    assert human.var["protein_coding"].sum() == 3


@pytest.mark.parametrize("kind", ["csv", "tsv.gz", "DataFrame"])
def test_protein_coding_from_table(human, tmp_path, kind):
    table = pd.DataFrame(
        {"Gene": list("XYABCD"), "gene_name": ["A1", "A1", "B2", "C3", "D4", "Z9"], "start": range(6)}
    ).assign(gene_type=["lncRNA", "protein_coding", "lncRNA", "protein_coding", "lncRNA", "protein_coding"])
    human.var_names = human.var["symbol"].to_list()
    if kind == "DataFrame":
        annotation = table.set_index("gene_name")
    else:
        annotation = tmp_path / f"genes.{kind}"
        table.to_csv(annotation, sep="," if kind == "csv" else "\t", index=False)
    bc.pp.protein_coding(human, annotation=annotation)
    assert human.var["protein_coding"].tolist() == [True, False, True, False, False, False]
    assert human.uns["protein_coding"]["n_matched"] == 4


def test_protein_coding_copy_and_view(adata):
    out = bc.pp.protein_coding(adata, copy=True)
    assert "protein_coding" in out.var
    assert "protein_coding" not in adata.var
    view = adata[:, 100:]
    bc.pp.protein_coding(view)
    assert not view.is_view
    assert view.var["protein_coding"].sum() == (view.var["gene_biotype"] == "protein_coding").sum()
    assert "protein_coding" not in adata.var


def test_protein_coding_round_trip(human, gtf, tmp_path):
    bc.pp.protein_coding(human, annotation=gtf)
    human.write_h5ad(tmp_path / "a.h5ad")
    assert_equal(ad.read_h5ad(tmp_path / "a.h5ad"), human)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"column": "no"}, ValueError, r"`column` must be a column of `adata.var`, got 'no'. Present: 'symbol'"),
        ({"column": "symbol"}, ValueError, "must contain the biotype 'protein_coding', got 'A1', 'B2'"),
        ({"annotation": "no.gtf"}, ValueError, r"`annotation` must be a file.*got 'no.gtf'"),
        ({"annotation": 3}, TypeError, "`annotation` must be a path.*got int"),
        ({"annotation": pd.DataFrame({"symbol": ["A1"]})}, ValueError, "must have a column of biotypes .*'symbol'"),
        (
            {"annotation": pd.DataFrame({"symbol": ["a1", "b2", "C3"], "biotype": "protein_coding"})},
            ValueError,
            r"at least half of the genes, got 1 of 6.*A1, B2, C3.*a1, b2, C3",
        ),
        (
            {"annotation": pd.DataFrame({"symbol": ["A1", "B2", "C3"], "biotype": "mRNA"})},
            ValueError,
            "must contain the biotype 'protein_coding', got 'mRNA'",
        ),
    ],
)
def test_protein_coding_rejects(human, arguments, error, match):
    before = human.copy()
    with pytest.raises(error, match=match):
        bc.pp.protein_coding(human, **arguments)
    assert_equal(human, before)


def test_protein_coding_rejects_truncated_file(human, gtf):
    gtf.write_bytes(gtf.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"`annotation` must be a readable GTF, CSV or TSV file.*cut short"):
        bc.pp.protein_coding(human, annotation=gtf)


def test_protein_coding_rejects_gtf_without_genes(human, tmp_path):
    path = tmp_path / "transcripts.gtf"
    path.write_text("".join(line for line in GTF.splitlines(keepends=True) if "\tgene\t" not in line))
    with pytest.raises(ValueError, match="must contain gene lines with gene_biotype or gene_type, got none"):
        bc.pp.protein_coding(human, annotation=path)


def test_duplicate_names(human):
    human.var_names = ["a", "a", "b", "c", "d", "e"]
    with pytest.raises(ValueError, match=r"`adata.var_names` must be unique, got 'a' more than once"):
        bc.pp.protein_coding(human)


@pytest.fixture
def server(serve, tmp_path, monkeypatch):
    """Serve tmp_path/www as the place of the two annotations, with an empty cache in tmp_path/cache."""
    (tmp_path / "www").mkdir()
    address, seen = serve(tmp_path / "www")
    monkeypatch.setattr(_biotypes, "_GENCODE", {kind: f"{address}/{kind}.gtf.gz" for kind in ("human", "mouse")})
    monkeypatch.setenv("BCNMF_SC_DATA", str(tmp_path / "cache"))
    return seen


def test_protein_coding_downloads_once(human, gtf, server, tmp_path):
    gtf.rename(tmp_path / "www" / "human.gtf.gz")
    bc.pp.protein_coding(human)
    assert human.uns["protein_coding"]["source"] == "human.gtf.gz"
    assert (tmp_path / "cache" / "human.gtf.gz").exists()
    bc.pp.protein_coding(human, annotation="human")
    assert server == ["/human.gtf.gz"]


def test_protein_coding_takes_mouse_for_mouse_ids(human, server, tmp_path):
    (tmp_path / "www" / "mouse.gtf.gz").write_bytes(gzip.compress(GTF.replace("ENSG", "ENSMUSG").encode()))
    human.var_names = human.var_names.str.replace("ENSG", "ENSMUSG")
    bc.pp.protein_coding(human)
    assert server == ["/mouse.gtf.gz"]
    assert human.var["protein_coding"].sum() == 3


def test_protein_coding_without_network(human, server, tmp_path):
    """Nothing is there to download: the error names the file, where from, and where to put it."""
    before = human.copy()
    with pytest.raises(
        OSError, match=r"human.gtf.gz could not be downloaded from http.*put it at .*cache.human.gtf.gz"
    ):
        bc.pp.protein_coding(human)
    assert_equal(human, before)
    assert not list((tmp_path / "cache").glob("human*"))


# --- highly_variable_genes ---


def _scanpy(adata, flavor, n_top_genes, batch=None):
    normal = adata.copy()
    sc.pp.normalize_total(normal, target_sum=1e4)
    sc.pp.log1p(normal)
    return sc.pp.highly_variable_genes(normal, flavor=flavor, n_top_genes=n_top_genes, inplace=False, batch_key=batch)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_hvg_is_scanpys_over_both_conditions(adata, flavor):
    adata.obs["condition"] = adata.obs["condition"].cat.add_categories("other")
    adata.obs.loc[adata.obs_names[:100], "condition"] = "other"
    adata.obs.loc[adata.obs_names[100:120], "condition"] = None
    before = adata.copy()
    bc.pp.highly_variable_genes(adata, **CONDITIONS, target="case", n_top_genes=150, flavor=flavor)
    assert_equal(adata.X, before.X)
    used = before[before.obs["condition"].isin(["case", "ctrl"])]
    expected = _scanpy(used, flavor, 150)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected["highly_variable"])
    for name in ("means", "dispersions", "dispersions_norm"):
        np.testing.assert_allclose(adata.var[name], expected[name], rtol=1e-5, atol=1e-7)
    assert adata.var["highly_variable_rank"][adata.var["highly_variable"]].max() == 149
    for condition, column in (("case", "target"), ("ctrl", "background")):
        alone = _scanpy(used[used.obs["condition"] == condition], flavor, 150)
        np.testing.assert_array_equal(adata.var[f"highly_variable_{column}"], alone["highly_variable"])
    both = adata.var["highly_variable_target"].astype(int) + adata.var["highly_variable_background"]
    np.testing.assert_array_equal(adata.var["highly_variable_nbatches"], both)
    assert adata.uns["hvg"] == {
        "flavor": flavor,
        "n_top_genes": 150,
        "background_key": "condition",
        "background": ["ctrl"],
        "target": ["case"],
        "layer": "X",
    }


def test_hvg_keeps_target_only_genes_better_than_batch_key(adata):
    """Why the conditions are pooled: the docstring's claim, on the genes of the target-only programs."""
    salient = adata.varm["true_loadings"][:, (adata.uns["truth"]["kind"] == "salient").to_numpy()].any(axis=1)
    bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=75)
    batch = _scanpy(adata, "seurat", 75, batch="condition")["highly_variable"].to_numpy()
    assert adata.var["highly_variable"][salient].mean() > 1.3 * batch[salient].mean()


@pytest.mark.parametrize("kind", ["csc", "dense", "int", "csr_array", "view", "layer"])
def test_hvg_does_not_depend_on_how_counts_are_held(adata, kind):
    expected = bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=100, copy=True).var
    layer = None
    if kind == "csc":
        adata.X = sparse.csc_matrix(adata.X)
    elif kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "int":
        adata.X = adata.X.astype(np.int64)
    elif kind == "csr_array":
        adata.X = sparse.csr_array(adata.X)
    elif kind == "view":
        adata = ad.concat([adata, adata], index_unique="-", merge="same")[:1000]
        assert adata.is_view
    else:
        layer = "counts"
        adata.layers["counts"] = adata.X.copy()
        adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    before = adata.copy()
    bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=100, layer=layer)
    pd.testing.assert_frame_equal(adata.var[expected.columns], expected, rtol=1e-4)
    assert_equal(adata.X, before.X)
    assert adata.X.dtype == before.X.dtype
    if layer:
        assert_equal(adata.layers["counts"], before.layers["counts"])


def test_hvg_takes_protein_coding_genes_only(adata):
    bc.pp.protein_coding(adata)
    coding = adata[:, adata.var["protein_coding"]].copy()
    for one in (adata, coding):
        bc.pp.highly_variable_genes(one, **CONDITIONS, n_top_genes=100)
    assert not adata.var["highly_variable"][~adata.var["protein_coding"]].any()
    assert adata.var["means"][~adata.var["protein_coding"]].isna().all()
    # the others take no part in the normalisation either
    assert set(adata.var_names[adata.var["highly_variable"]]) == set(coding.var_names[coding.var["highly_variable"]])


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_hvg_keeps_all_when_more_are_asked_for(adata, flavor, caplog):
    counts = adata.X.toarray()
    counts[:, 0] = 0  # never seen: cannot be chosen
    counts[:, 1] = 1  # varies after normalisation only
    adata.X = counts
    with caplog.at_level(logging.INFO, logger="bcnmf_sc"):
        bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=5000, flavor=flavor)
    assert adata.var["highly_variable"].tolist() == [False] + [True] * 499
    assert np.isnan(adata.var["highly_variable_rank"].iloc[0])
    assert "`n_top_genes` 5000 is not below the 499 eligible genes" in caplog.text


def test_hvg_takes_cells_without_counts(adata):
    """They add nothing: no warning (here an error) and no NaN."""
    adata.X = sparse.vstack([sparse.csr_matrix((2, adata.n_vars), dtype=np.float32), adata.X[2:]], format="csr")
    bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=100)
    assert adata.var["highly_variable"].sum() == 100
    assert np.isfinite(adata.var["means"]).all()


def test_hvg_overlap_counts_cells_once(adata):
    """Target "all" contains the background; the pooled cells are the same as for target against background."""
    disjoint = bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=100, copy=True)
    bc.pp.highly_variable_genes(adata, **CONDITIONS, target="all", n_top_genes=100)
    pd.testing.assert_series_equal(adata.var["highly_variable"], disjoint.var["highly_variable"])
    alone = _scanpy(adata, "seurat", 100)["highly_variable"]
    np.testing.assert_array_equal(adata.var["highly_variable_target"], alone)


def test_hvg_several_backgrounds(adata):
    donors = ["ctrl 1", "ctrl 2"]
    var = [
        bc.pp.highly_variable_genes(
            adata, background_key="donor", background=b, target=t, n_top_genes=100, copy=True
        ).var
        for b, t in (
            (donors, ["case 1", "case 2", "case 3"]),
            (dict.fromkeys(donors, 0.5), ["case 1", "case 2", "case 3"]),
            (donors, None),
        )
    ]
    assert_equal(var[0], var[1])
    assert not var[0]["means"].equals(var[2]["means"])  # None takes "ctrl 3" as target


def test_hvg_round_trip_and_overwrite(adata, tmp_path):
    bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=100)
    bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=50)
    assert adata.var["highly_variable"].sum() == 50
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert_equal(back.var, adata.var)
    assert list(back.uns["hvg"]["background"]) == ["ctrl"]


def test_hvg_warns_of_normalised_values(adata):
    sc.pp.normalize_total(adata)
    with pytest.warns(
        UserWarning, match=r"`adata.X` contains \d+ values that are not whole numbers, .* normalised"
    ) as record:
        bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=100)
    assert record[0].filename == __file__


def _spoil(value):
    def spoil(adata):
        adata.X.data[0] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "arguments", "error", "match"),
    [
        (
            None,
            {"background_key": "no"},
            ValueError,
            "`background_key` 'no' is not in `adata.obs`. Present: 'condition'",
        ),
        (
            None,
            {"background": "no"},
            ValueError,
            r"`background` must name categories.*got 'no'. Present: 'case', 'ctrl'",
        ),
        (None, {"background": []}, ValueError, "`background` must name categories.*got none"),
        (None, {"target": ["case", "no"]}, ValueError, "`target` must name categories.*got 'no'"),
        (None, {"background": ["case", "ctrl"]}, ValueError, "There are no target cells.*target='all'"),
        (None, {"n_top_genes": 0}, ValueError, "`n_top_genes` must be a whole number of at least 1, got 0"),
        (None, {"layer": "no"}, ValueError, "`layer` 'no' is not in `adata.layers`. Present: none"),
        (None, {"flavor": "no"}, ValueError, "`flavor` must be one of 'seurat', 'cell_ranger', 'seurat_v3', got 'no'"),
        (_spoil(np.nan), {}, ValueError, "`adata.X` must be finite"),
        (_spoil(np.inf), {}, ValueError, "`adata.X` must be finite"),
        (_spoil(-1), {}, ValueError, "`adata.X` must be non-negative, got -1"),
        (lambda a: a.X.data.fill(0), {}, ValueError, "at least 2 eligible genes, got 0"),
        (lambda a: a.var.insert(0, "protein_coding", value=False), {}, ValueError, "at least 2 eligible genes"),
    ],
)
@pytest.mark.parametrize("function", [bc.pp.highly_variable_genes, bc.pp.recipe])
def test_rejects_and_leaves_alone(adata, function, spoil, arguments, error, match):
    if spoil:
        spoil(adata)
        if "protein_coding" in adata.var:
            del adata.var["gene_biotype"]
    before = adata.copy()
    if function is bc.pp.recipe:
        arguments = {"min_genes": 0, "min_cells": 0, **arguments}
    with pytest.raises(error, match=match):
        function(adata, **{**CONDITIONS, **arguments})
    assert_equal(adata, before)


def test_hvg_rejects_backed(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(TypeError, match="in memory"):
        bc.pp.highly_variable_genes(backed, **CONDITIONS)
    backed.file.close()


def test_hvg_seurat_v3(adata):
    bc.pp.highly_variable_genes(adata, **CONDITIONS, n_top_genes=100, flavor="seurat_v3")
    expected = sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=100, inplace=False)
    np.testing.assert_array_equal(adata.var["highly_variable"], expected["highly_variable"])
    np.testing.assert_allclose(adata.var["variances_norm"], expected["variances_norm"], rtol=1e-5)


def test_hvg_seurat_v3_says_what_it_needs(adata, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skmisc.loess", None)
    with pytest.raises(ImportError) as caught:
        bc.pp.highly_variable_genes(adata, **CONDITIONS, flavor="seurat_v3")
    assert "pip install scikit-misc" in caught.value.__notes__[-1]


# --- recipe ---


def test_recipe_is_its_steps(adata):
    counts = adata.X.tolil()
    counts[:5] = 0
    counts[:5, :10] = 1  # cells of 10 genes
    counts[:, 400] = 0
    counts[:6, 400] = 1  # a gene in 6 cells, of which one is kept
    adata.X = counts.tocsr().astype(np.float32)
    by_hand = adata.copy()
    out = bc.pp.recipe(adata, **CONDITIONS, min_genes=50, min_cells=2, n_top_genes=100, copy=True)
    assert_equal(adata, by_hand)
    assert bc.pp.recipe(adata, **CONDITIONS, min_genes=50, min_cells=2, n_top_genes=100) is None
    assert_equal(adata, out)

    assert "Cell 5" not in adata.obs_names
    assert "Cell 6" in adata.obs_names
    assert "Gene 401" not in adata.var_names
    sc.pp.filter_cells(by_hand, min_genes=50)
    sc.pp.filter_genes(by_hand, min_cells=2)
    assert_equal(adata.X, by_hand.X)  # still counts
    bc.pp.protein_coding(by_hand)
    bc.pp.highly_variable_genes(by_hand, **CONDITIONS, n_top_genes=100)
    assert_equal(adata.var, by_hand.var.drop(columns="n_cells"))
    assert adata.uns["hvg"] == by_hand.uns["hvg"]
    assert adata.uns["protein_coding"] == by_hand.uns["protein_coding"]


def test_recipe_without_biotypes(adata, monkeypatch, caplog):
    del adata.var["gene_biotype"]
    monkeypatch.setattr(_biotypes, "download", lambda *_: pytest.fail("the recipe must not download"))
    with caplog.at_level(logging.INFO, logger="bcnmf_sc"):
        bc.pp.recipe(adata, **CONDITIONS, min_genes=50, n_top_genes=100)
    assert "protein_coding" not in adata.var
    assert adata.var["highly_variable"].sum() == 100
    assert "all genes stay eligible" in caplog.text


def test_recipe_with_annotation(adata):
    table = adata.var.rename_axis("gene_name")
    del adata.var["gene_biotype"]
    bc.pp.recipe(adata, **CONDITIONS, min_genes=50, n_top_genes=100, annotation=table)
    assert adata.uns["protein_coding"]["source"] == "DataFrame"
    assert not adata.var["highly_variable"][~adata.var["protein_coding"]].any()


def test_recipe_keeps_a_given_choice(adata):
    """`var["protein_coding"]` that the user made holds where there is no source of biotypes."""
    del adata.var["gene_biotype"]
    adata.var["protein_coding"] = np.arange(adata.n_vars) < 60
    bc.pp.recipe(adata, **CONDITIONS, min_genes=50)
    assert adata.var["highly_variable"].sum() == 60


def test_recipe_on_view(adata):
    view = adata[::2]
    bc.pp.recipe(view, **CONDITIONS, min_genes=150, n_top_genes=100)
    assert view.n_obs < 500
    assert adata.n_obs == 1000
    assert "highly_variable" not in adata.var


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"min_genes": 500},
            r"must leave at least 2 cells and genes, got 0 cells and 0 genes with 500 and 3. A median",
        ),
        ({"min_cells": 1001}, "must leave at least 2 cells and genes, got .* and 0 genes"),
        ({"min_genes": -1}, "`min_genes` must be a whole number of at least 0, got -1"),
        ({"min_genes": 50, "annotation": "no.csv"}, "`annotation` must be a file"),
    ],
)
def test_recipe_rejects(adata, arguments, match):
    before = adata.copy()
    with pytest.raises(ValueError, match=match):
        bc.pp.recipe(adata, **CONDITIONS, **{"min_genes": 50, **arguments})
    assert_equal(adata, before)


def test_recipe_rejects_filtering_a_condition_away(adata):
    counts = adata.X.tolil()
    counts[600:, 50:] = 0
    adata.X = counts.tocsr()
    before = adata.copy()
    with pytest.raises(ValueError, match="`background` must name categories"):
        bc.pp.recipe(adata, **CONDITIONS, min_genes=60)
    assert_equal(adata, before)


def test_highly_variable_genes_of_a_dask_array_are_those_of_the_matrix(adata):
    """Dense or sparse chunks, cut along both axes."""
    array = pytest.importorskip("dask.array")
    own = adata.copy()
    bc.pp.highly_variable_genes(own, **CONDITIONS, n_top_genes=100)
    dense = array.from_array(np.asarray(sparse.csr_matrix(adata.X).todense()), chunks=(300, 200))
    rows = array.from_array(sparse.csr_matrix(adata.X), chunks=(300, adata.n_vars), asarray=False)
    for matrix in (dense, rows):
        lazy = ad.AnnData(matrix, obs=adata.obs, var=adata.var)
        bc.pp.highly_variable_genes(lazy, **CONDITIONS, n_top_genes=100)
        pd.testing.assert_frame_equal(lazy.var, own.var)
        assert lazy.X is matrix or isinstance(lazy.X, array.Array)
