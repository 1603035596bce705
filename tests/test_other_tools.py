"""What others make of the results: scanpy, MuData, and readers of h5ad files in R and of other versions."""

from __future__ import annotations

import anndata
import h5py
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import read_h5ad
from anndata.io import read_elem

import bcnmf_sc as bc
from bcnmf_sc import _stored, cli
from bcnmf_sc._mudata import no_pull

HOW = {"background_key": "condition", "background": "ctrl"}
ENCODINGS = {
    "anndata": "0.1.0",
    "array": "0.2.0",
    "categorical": "0.2.0",
    "csc_matrix": "0.1.0",
    "csr_matrix": "0.1.0",
    "dataframe": "0.2.0",
    "dict": "0.1.0",
    "numeric-scalar": "0.2.0",
    "string": "0.2.0",
    "string-array": "0.2.0",
}
"""Of anndata's specification of files: those that anndata since 0.8 and the readers in R (zellkonverter, anndataR)
know. Not `null` (anndata 0.12) nor nullable strings, which anndata writes with pandas 3 unless it is told otherwise."""
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # few cells, few iterations
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # scanpy's plots
]


@pytest.fixture(autouse=True, scope="module")
def mudata_of_today():
    with no_pull():
        yield


@pytest.fixture(scope="module")
def fitted():
    """Everything that the functions on one AnnData write."""
    adata = bc.datasets.simulated(n_target=150, n_background=150, n_genes=80)
    bc.pp.highly_variable_genes(adata, n_top_genes=60, **HOW)
    few = {"n_topics": 3, "max_iter": 20}
    bc.tl.bcnmf(adata, n_background_topics=2, cross_fit=2, **few, **HOW)
    bc.tl.nmf(adata, **few)
    bc.tl.bcnmf(adata, likelihood="zinb", key_added="zinb", target="case", **few, **HOW)
    bc.tl.consensus(adata, n_restarts=4, key_added="consensus", **few, **HOW)
    bc.tl.cpca(adata, alphas=[0, 1], n_components=2, **HOW)
    bc.tl.deltanmf(adata, condition_key="condition", control="ctrl", max_iter=20)
    bc.tl.select_alpha(adata, alphas=[0.0, 0.3], **few, **HOW)
    bc.tl.background_check(adata, **HOW)
    bc.tl.associate(adata, groupby="cell_type")
    bc.tl.associate_genes(adata, groupby="condition")
    bc.tl.enrich(adata, {"first": list(adata.var_names[:20]), "second": list(adata.var_names[20:40])})
    later = adata.copy()
    bc.tl.project(later, adata, key_added="projected")
    return later


@pytest.fixture(scope="module")
def spatial():
    mdata = bc.datasets.simulated_spatial()
    bc.tl.gpnsf(mdata, n_topics=2, max_iter=3)
    return mdata


@pytest.fixture
def files(fitted, spatial, tmp_path):
    """By the tools' own methods and by the command line's."""
    paths = {name: tmp_path / name for name in ("own.h5ad", "own.h5mu", "cli.h5ad", "cli.h5mu")}
    own, ours = fitted.copy(), fitted.copy()
    for adata in (own, ours):
        adata.obs["batch"] = ["first", "second", "third"] * 100  # becomes a categorical
    with anndata.settings.override(allow_write_nullable_strings=False):
        own.write_h5ad(paths["own.h5ad"])
        spatial.write_h5mu(paths["own.h5mu"])
        cli.write_data(paths["cli.h5ad"], ours)
        cli.write_data(paths["cli.h5mu"], spatial)
    return paths


# -- scanpy ------------------------------------------------------------------------------------------------------------


def test_scanpy_reads_usage_and_loadings(fitted):
    table = sc.get.obs_df(fitted, keys=["bcnmf_role", "bcnmf_target_share"], obsm_keys=[("X_bcnmf", 0)])
    np.testing.assert_array_equal(table["X_bcnmf-0"], bc.get.usage(fitted)["Topic 1"])
    np.testing.assert_array_equal(table["bcnmf_target_share"], fitted.obs["bcnmf_target_share"])
    loadings = sc.get.var_df(fitted, varm_keys=[("bcnmf", 1)])
    np.testing.assert_array_equal(loadings["bcnmf-1"], bc.get.loadings(fitted)["Topic 2"])


def test_scanpy_draws_and_clusters_usage(fitted):
    adata = fitted.copy()
    axes = sc.pl.embedding(adata, basis="X_bcnmf", color=["bcnmf_role", "bcnmf_target_share"], show=False)
    shown = axes[0].collections[0].get_offsets()
    assert {tuple(row) for row in shown} == {tuple(row) for row in adata.obsm["X_bcnmf"][:, :2].astype(float)}
    assert axes[0].get_title() == "bcnmf_role"
    plt.close("all")
    for key in ("bcnmf", "deltanmf"):
        sc.pp.neighbors(adata, use_rep=f"X_{key}", key_added=f"near_{key}")
        near = adata.obsp[f"near_{key}_connectivities"]
        assert near.shape == (300, 300)
        assert near.getnnz(axis=1).min() > 0


# -- MuData ------------------------------------------------------------------------------------------------------------


def test_mudata_keeps_usage_when_updated(spatial, tmp_path):
    spatial.write_h5mu(tmp_path / "a.h5mu")
    back = mudata.read_h5mu(tmp_path / "a.h5mu")
    back.update()
    few = back[:50].copy()
    np.testing.assert_array_equal(back.obsm["X_gpnsf"], spatial.obsm["X_gpnsf"])
    np.testing.assert_array_equal(few.obsm["X_gpnsf"], spatial.obsm["X_gpnsf"][:50])
    pd.testing.assert_frame_equal(
        bc.get.loadings(back["rna"], key="gpnsf"), bc.get.loadings(spatial["rna"], key="gpnsf")
    )


# -- files -------------------------------------------------------------------------------------------------------------


def elements(file: h5py.File) -> dict[str, h5py.Group | h5py.Dataset]:
    """Every group and dataset, but for the arrays within a sparse matrix, which have no encoding of their own."""
    found: dict[str, h5py.Group | h5py.Dataset] = {}
    file.visititems(lambda name, each: found.update({name: each}))
    within = ("csr_matrix", "csc_matrix")
    return {name: each for name, each in found.items() if each.parent.attrs.get("encoding-type") not in within}


@pytest.mark.parametrize("name", ["own.h5ad", "cli.h5ad", "own.h5mu", "cli.h5mu"])
def test_files_hold_what_readers_in_r_know(files, name):
    with h5py.File(files[name]) as file:
        found = elements(file)
        assert any("uns" in key for key in found)
        for key, each in found.items():
            if name.endswith("h5mu") and key in ("mod", "mod/rna", "mod/atac"):  # MuData's own
                continue
            encoding = each.attrs.get("encoding-type")
            if name.endswith("h5mu") and encoding is None:
                assert key in ("obsmap", "varmap") or key.startswith(("obsmap/", "varmap/", "axis")), key
                continue
            assert each.attrs["encoding-version"] == ENCODINGS[encoding], key
            if isinstance(each, h5py.Dataset):
                text = h5py.check_string_dtype(each.dtype)
                assert (text is not None) == encoding.startswith("string"), key
                assert text is None or text.encoding == "utf-8"
                assert each.shape is not None, "an empty value, as of None"
                assert each.dtype.kind in "fiubO", key
                assert (each.shape == ()) == (encoding in ("numeric-scalar", "string")), key
            elif encoding == "dataframe":
                columns = [*each.attrs["column-order"], each.attrs["_index"]]
                assert set(columns) == set(each), key


def test_names_can_be_keys_of_a_file(fitted):
    """A '/' would open a group within, and R has no other keys than text."""

    def look(stored, where):
        for key, value in stored.items():
            assert isinstance(key, str), where
            assert "/" not in key, where
            if hasattr(value, "items") and not isinstance(value, pd.DataFrame):
                look(value, f"{where}/{key}")
            elif isinstance(value, pd.DataFrame):
                assert all(isinstance(column, str) and "/" not in column for column in value.columns), f"{where}/{key}"
            else:
                assert isinstance(value, str | bool | int | float | np.generic | np.ndarray | list), f"{where}/{key}"

    look(fitted.uns, "uns")


def test_the_command_line_writes_what_anndata_writes(files):
    with h5py.File(files["own.h5ad"]) as own, h5py.File(files["cli.h5ad"]) as ours:
        names, ours_names = [], []
        own.visit(names.append)
        ours.visit(ours_names.append)
        assert ours_names == names
        assert dict(ours.attrs) == dict(own.attrs)
        for name in names:
            assert dict(ours[name].attrs).keys() == dict(own[name].attrs).keys()
            if isinstance(own[name], h5py.Dataset):
                np.testing.assert_array_equal(ours[name][()], own[name][()])
    with h5py.File(files["own.h5mu"]) as own, h5py.File(files["cli.h5mu"]) as ours:
        assert dict(ours.attrs) == dict(own.attrs)
        np.testing.assert_array_equal(read_elem(ours["obsm/X_gpnsf"]), read_elem(own["obsm/X_gpnsf"]))
    assert files["cli.h5mu"].read_bytes()[:6] == b"MuData"


# -- versions ----------------------------------------------------------------------------------------------------------

READERS = {
    "get.usage": lambda new, old: bc.get.usage(new),
    "get.loadings": lambda new, old: bc.get.loadings(new),
    "get.top_genes": lambda new, old: bc.get.top_genes(new),
    "get.topics": lambda new, old: bc.get.topics(new),
    "get.associations": lambda new, old: bc.get.associations(new),
    "pl.usage": lambda new, old: bc.pl.usage(new, groupby="condition"),
    "pl.loadings": lambda new, old: bc.pl.loadings(new),
    "pl.loss": lambda new, old: bc.pl.loss(new),
    "tl.project": lambda new, old: bc.tl.project(old, new, copy=True),
    "tl.update": lambda new, old: bc.tl.update(old, new, copy=True),
    "tl.associate": lambda new, old: bc.tl.associate(new, groupby="condition", copy=True),
    "tl.umap": lambda new, old: bc.tl.umap(new, copy=True),
    "report": lambda new, old: bc.report(new, "report.html"),
}


@pytest.mark.parametrize("reader", READERS)
def test_results_of_a_later_package_are_refused(fitted, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new, old = fitted.copy(), fitted.copy()
    new.uns["bcnmf"]["params"] |= {"format": _stored.FORMAT + 1, "version": "99.0"}
    with pytest.raises(
        ValueError, match=r"`key` 'bcnmf' must be of a format up to 1, got 2, written by bcnmf_sc 99\.0"
    ):
        READERS[reader](new, old)
    plt.close("all")
    assert list(tmp_path.iterdir()) == []


def test_spatial_results_of_a_later_package_are_refused(spatial):
    new = spatial.copy()
    new.uns["gpnsf"]["params"] |= {"format": 2}
    with pytest.raises(ValueError, match="must be of a format up to 1, got 2"):
        bc.tl.gpnsf_predict(new, np.zeros((1, 2)))
    new["rna"].uns["gpnsf"]["params"] |= {"format": 2}
    with pytest.raises(ValueError, match="must be of a format up to 1, got 2"):
        bc.get.loadings(new["rna"], key="gpnsf")


def test_results_without_a_format_are_the_first(fitted, tmp_path):
    old = fitted.copy()
    for key in ("bcnmf", "nmf"):
        del old.uns[key]["params"]["format"]
        old.uns[key]["params"]["layer"] = None  # as they once were
    old.write_h5ad(tmp_path / "old.h5ad")
    back = read_h5ad(tmp_path / "old.h5ad")
    pd.testing.assert_frame_equal(bc.get.usage(back), bc.get.usage(fitted))
    bc.tl.project(back, back, key="nmf", key_added="again")
    assert back.uns["again"]["params"]["format"] == _stored.FORMAT
    bc.report(back, tmp_path / "report.html")
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_everything_written_says_its_format(fitted, spatial):
    written = [record for record in fitted.uns.values() if isinstance(record, dict) and "params" in record]
    written += [part.uns["gpnsf"] for part in (spatial, spatial["rna"], spatial["atac"])]
    assert len(written) == 10
    for record in written:
        assert record["params"]["format"] == _stored.FORMAT
        assert record["params"]["version"] == bc.__version__
        assert None not in record["params"].values()
