"""Each step on the command line, and all of them in one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import bcnmf_sc as bc
from bcnmf_sc import cli
from bcnmf_sc._mudata import no_pull
from bcnmf_sc.cli.export import for_cellxgene

if TYPE_CHECKING:
    from pathlib import Path

SPLIT = ["--background-key", "condition", "--background", "ctrl"]
QUICK = ["--tol", "0.05", "--no-progress"]


def call(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(x) for x in argv])
    return end.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def source(folder) -> Path:
    adata = bc.datasets.simulated(n_target=120, n_background=90, n_genes=80)
    adata.obs["donor"] = pd.Categorical([f"d{i % 3}" for i in range(adata.n_obs)])  # all in both conditions
    path = folder / "in.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def sets(folder, source) -> Path:
    names = ad.read_h5ad(source).var_names
    path = folder / "sets.gmt"
    path.write_text(f"first\tx\t{chr(9).join(names[:30])}\nlast\tx\t{chr(9).join(names[-30:])}\n")
    return path


@pytest.fixture(scope="module")
def fitted(folder, source) -> Path:
    """One fit by donor, cross-fitted, with a UMAP."""
    fit, path = folder / "fit.h5ad", folder / "fitted.h5ad"
    sizes = ["-k", "2", "--n-background-topics", "5", "--cross-fit", "2", "--sample-key", "donor"]
    assert call("fit", source, *SPLIT, *sizes, *QUICK, "-o", fit) == 0
    assert call("umap", fit, "-o", path) == 0
    return path


def printed(capsys: pytest.CaptureFixture[str], most: int = 15) -> str:
    text = capsys.readouterr().out
    assert text.count("\n") <= most
    assert not re.findall(r"[`\\$]|\*\*", text)
    return text


# steps


def test_hvg(source, tmp_path, capsys):
    assert call("hvg", source, *SPLIT, "--n-top-genes", "20", "-o", tmp_path / "out.h5ad") == 0
    assert ad.read_h5ad(tmp_path / "out.h5ad").var["highly_variable"].sum() == 20
    assert "20 of 80 genes" in printed(capsys)


def test_check(source, tmp_path, capsys):
    how = ["-k", "2", "--n-background-topics", "3", "--sample-key", "donor"]
    assert call("check", source, *SPLIT, *how, *QUICK, "-o", tmp_path / "out.h5ad") == 0
    table = ad.read_h5ad(tmp_path / "out.h5ad").uns["bcnmf_background_check"]
    text = printed(capsys)
    assert all(check in text for check in table["check"])


def test_select(source, tmp_path, capsys):
    grid = ["-k", "2", "--n-background-topics", "3", "--n-folds", "2"]
    assert call("select", source, *SPLIT, *grid, *QUICK, "-o", tmp_path / "out.h5ad") == 0
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["bcnmf_n_topics"]["reason"] in printed(capsys)


def test_associate(fitted, tmp_path, capsys):
    run = ["associate", fitted, "--groupby", "cell_type", "--sample-key", "donor", "-o", tmp_path / "out.h5ad"]
    assert call(*run) == 0
    table = bc.get.associations(ad.read_h5ad(tmp_path / "out.h5ad"))
    expected = ad.read_h5ad(fitted)
    bc.tl.associate(expected, groupby="cell_type", sample_key="donor")
    pd.testing.assert_frame_equal(table, bc.get.associations(expected), check_categorical=False, check_dtype=False)
    n = int((table["p_adjusted"] <= 0.05).sum())
    assert f"{n} of {len(table)} tests have an adjusted p" in printed(capsys)


def test_enrich(fitted, sets, tmp_path, capsys):
    run = ["enrich", fitted, "--gene-sets", sets, "--by", "score", "--n-genes", "20", "-o", tmp_path / "out.h5ad"]
    assert call(*run) == 0
    assert set(bc.get.enrichment(ad.read_h5ad(tmp_path / "out.h5ad"))["gene_set"]) == {"first", "last"}
    assert "Topic 1" in printed(capsys)
    assert call(*run[:3], sets.with_name("none.gmt"), *run[4:], "--force") == 1
    assert "none.gmt" in capsys.readouterr().err


def test_update(source, tmp_path, capsys):
    first, second = tmp_path / "first.h5ad", tmp_path / "second.h5ad"
    assert call("fit", source, *SPLIT, "-k", "2", "--n-background-topics", "0", *QUICK, "-o", first) == 0
    assert call("update", source, "--reference", first, *QUICK, "-o", second) == 0
    assert ad.read_h5ad(second).obsm["X_bcnmf"].shape == (210, 2)
    assert "bcnmf: 2 target topics; " in printed(capsys)


def test_fit_says_little(fitted, source, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    capsys.readouterr()
    assert call("fit", source, *SPLIT, "-k", "2", "--n-background-topics", "30", *QUICK, "-o", out) == 0
    assert "Background 1" not in printed(capsys)
    assert call("info", fitted) == 0
    assert "Background 1" in capsys.readouterr().out


# exports


def test_export_tables(fitted, tmp_path, capsys):
    out = tmp_path / "tables"
    assert call("export", fitted, "--to", "csv", "-o", out) == 0
    adata = ad.read_h5ad(fitted)
    assert sorted(path.name for path in out.iterdir()) == ["cells.csv", "donors.csv", "genes.csv", "topics.csv"]
    genes, cells = (pd.read_csv(out / f"{name}.csv", index_col=0) for name in ("genes", "cells"))
    np.testing.assert_allclose(genes, bc.get.loadings(adata).loc[genes.index], rtol=1e-6)
    np.testing.assert_allclose(cells["Topic 1"], bc.get.usage(adata, normalize=True)["Topic 1"], rtol=1e-5)
    assert cells["bcnmf_enriched"].tolist() == adata.obs["bcnmf_enriched"].tolist()
    assert pd.read_csv(out / "topics.csv", index_col=0).index.tolist() == bc.get.topics(adata).index.tolist()
    assert len(pd.read_csv(out / "donors.csv")) == 6
    capsys.readouterr()
    assert call("export", fitted, "--to", "csv", "-o", out) == 1
    assert "is not empty. Use --force" in capsys.readouterr().err
    assert call("export", fitted, "--to", "csv", "-o", out, "--force") == 0


def test_export_for_cellxgene(fitted, tmp_path):
    adata = ad.read_h5ad(fitted)
    adata.obs["_hidden"] = 1
    adata.var["feature_name"] = "x"
    adata.obsm["X_wrong"] = np.full((adata.n_obs, 2), np.nan)
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert call("export", tmp_path / "in.h5ad", "--to", "cellxgene", "-o", tmp_path / "out.h5ad") == 0
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(out.raw.X.toarray(), adata.X.toarray())
    assert 0 < out.X.max() < np.log1p(1e4)
    assert out.uns["default_embedding"] == "X_bcnmf_umap"
    assert set(out.obsm) == {"X_bcnmf", "X_bcnmf_umap"}
    assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in out.obsm.values())
    assert "author_cell_type" in out.obs  # cell_type is derived from ontology terms
    assert not [name for name in out.obs if name.startswith("_") or name == "cell_type"]
    assert "feature_name" not in out.var
    assert not out.varm


def test_export_reads_the_layer_of_the_fit(fitted):
    adata = ad.read_h5ad(fitted)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X * 0.5
    adata.uns["bcnmf"]["params"]["layer"] = "counts"
    np.testing.assert_array_equal(for_cellxgene(adata, "bcnmf").raw.X.toarray(), adata.layers["counts"].toarray())


def test_export_gene_programs(fitted, tmp_path):
    mudata = pytest.importorskip("mudata")
    out = tmp_path / "programs"
    assert call("export", fitted, "--to", "gene-programs", "-o", out) == 0
    with no_pull():
        mdata = mudata.read_h5mu(out / "programs.h5mu")
    rna, prog = mdata["rna"], mdata["prog"]
    adata = ad.read_h5ad(fitted)
    assert prog.varm["loadings"].shape == (prog.n_vars, rna.n_vars)  # what its evaluations ask for
    np.testing.assert_allclose(prog.varm["loadings"], adata.varm["bcnmf"].T, rtol=1e-6)
    np.testing.assert_allclose(prog.X, bc.get.usage(adata, normalize=True), rtol=1e-6)
    assert list(prog.uns["var_names"]) == list(rna.var_names)
    assert list(prog.var_names) == bc.get.topics(adata).index.tolist()
    loadings = pd.read_csv(out / "loadings.tsv", sep="\t", index_col=0)
    assert loadings.shape[0] == prog.n_vars


def test_export_says_what_is_missing(source, tmp_path, capsys):
    assert call("export", source, "--to", "csv", "-o", tmp_path / "out") == 1
    assert "`key` 'bcnmf' is not a factorisation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# all of it


def test_analyse(source, sets, tmp_path, capsys):
    out = tmp_path / "out"
    adata = ad.read_h5ad(source)
    adata.layers["counts"] = adata.X.copy()
    adata.X.data = np.log1p(adata.X.data)
    adata.write_h5ad(tmp_path / "log.h5ad")
    how = ["-k", "2", "--n-background-topics", "5", "--cross-fit", "2", "--sample-key", "donor", "--gene-sets", sets]
    run = ["analyse", tmp_path / "log.h5ad", *SPLIT, *how, *QUICK, "-o", out]
    assert call(*run) == 0
    names = {path.name for path in out.iterdir()}
    assert {"result.h5ad", "report.html", "topics.csv", "genes.csv", "cells.csv", "donors.csv"} <= names
    shown = capsys.readouterr()
    assert "reading layer 'counts'" in shown.err
    assert "Checking the background" in shown.err
    lines = shown.out.splitlines()
    assert len(lines) <= 15
    assert lines[1].startswith("Trust: ")
    assert lines[-1] == f"Open the report: {out / 'report.html'}"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert lines[0] in page
    result = ad.read_h5ad(out / "result.h5ad")
    assert result.uns["bcnmf"]["params"]["layer"] == "counts"
    assert "bcnmf_background_check" in result.uns
    assert "X_bcnmf_umap" in result.obsm
    assert "enrichment" in result.uns["bcnmf"]
    before = page
    assert call(*run) == 1
    assert "is not empty. Use --force" in capsys.readouterr().err
    assert (out / "report.html").read_text(encoding="utf-8") == before


def test_analyse_chooses_genes_only_where_none_are(monkeypatch):
    from bcnmf_sc.cli import analyse

    chosen = []
    monkeypatch.setattr(bc.pp, "highly_variable_genes", lambda *_, **how: chosen.append(how["n_top_genes"]))
    adata = bc.datasets.simulated(n_target=20, n_background=20, n_genes=60)
    design, fit = {"background_key": "condition"}, {"mask_var": "auto", "likelihood": "poisson"}
    analyse._select_genes(adata, design, fit)
    assert chosen == []  # few genes
    monkeypatch.setattr(analyse, "MOST_GENES", 50)
    analyse._select_genes(adata, design, fit | {"mask_var": None})
    assert chosen == []
    analyse._select_genes(adata, design, fit)
    assert chosen == [50]
    assert adata.var["protein_coding"].any()  # its biotypes are known
    adata.var["highly_variable"] = True
    analyse._select_genes(adata, design, fit)
    assert chosen == [50]


def test_analyse_refuses_before_any_work(source, tmp_path, capsys, monkeypatch):
    adata = ad.read_h5ad(source)
    adata.X.data = np.log1p(adata.X.data)
    adata.write_h5ad(tmp_path / "log.h5ad")
    monkeypatch.setattr(bc.tl, "background_check", lambda *_, **__: pytest.fail("work was begun"))
    for argv, message in (
        ([tmp_path / "log.h5ad", *SPLIT], "X does not hold counts, and no layer"),
        ([source, *SPLIT, "--gene-sets", tmp_path / "none.gmt"], "does not exist"),
        ([source, *SPLIT, "--groupby", "nonsense"], "--groupby must name a column, got 'nonsense'"),
    ):
        assert call("analyse", *argv, "-o", tmp_path / "out") == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_key_error_of_the_package_is_no_damage(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(bc.get, "topics", lambda *_, **__: {}["x"])
    with pytest.raises(KeyError, match="x"):
        cli.main(["report", str(fitted), "-o", str(tmp_path / "out.html")])
    assert list(tmp_path.iterdir()) == []
