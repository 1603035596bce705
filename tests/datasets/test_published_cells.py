"""Loaders of published single-cell data on stand-ins of the publishers' layouts, and where they are on real files."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal
from scipy.io import mmread, mmwrite

import bcnmf_sc as bc
from bcnmf_sc.datasets import _kang, _leukemia, _mdd, _mixseq

# of SciPy 1.18: only what `mmread` returns here, whose kind does not matter
pytestmark = pytest.mark.filterwarnings("ignore:The default value for `spmatrix` is changing:DeprecationWarning")

MODULES = {"kang": _kang, "leukemia": _leukemia, "mdd": _mdd, "mixseq": _mixseq}

NAMES = ["leukemia", "mixseq", "mdd", "kang"]


@pytest.fixture(scope="module", params=NAMES)
def written(request, tmp_path_factory):
    """Name of a data set and the folder with its stand-in."""
    return request.param, bc.datasets.stand_in(request.param, tmp_path_factory.mktemp(request.param))


def load(name, *args, **kwargs):
    return getattr(bc.datasets, name)(*args, **kwargs)


@pytest.fixture
def folders(tmp_path):
    """Write stand-ins, each into a folder of its name."""
    return lambda name: bc.datasets.stand_in(name, tmp_path / name)


def test_leukemia(folders):
    folder = folders("leukemia")
    adata = bc.datasets.leukemia(folder)
    assert adata.obs["condition"].value_counts().to_dict() == {"pre": 200, "post": 200, "healthy": 250}
    with tarfile.open(folder / "frozen_bmmc_healthy_donor1_filtered_gene_bc_matrices.tar.gz") as archive:
        stored = mmread(archive.extractfile("filtered_matrices_mex/hg19/matrix.mtx")).toarray().T
        first = archive.extractfile("filtered_matrices_mex/hg19/barcodes.tsv").readline().decode().strip()
    healthy = adata[adata.obs["condition"] == "healthy"]
    np.testing.assert_array_equal(healthy.X.toarray(), stored)
    assert healthy.obs_names[0] == f"healthy_{first}"
    assert adata.var["gene_ids"].iloc[0] == "ENSG00000000001"
    # the planted genes tell the conditions apart
    mean = adata[:, "HBB"].to_df()["HBB"].groupby(adata.obs["condition"], observed=True).mean()
    assert mean["pre"] > 3 * mean[["post", "healthy"]].max()


def test_genes_are_matched_by_id_and_named_by_symbol(folders):
    """A sample whose genes stand in another order, lack one, and share a symbol."""
    folder = folders("leukemia")
    expected = bc.datasets.leukemia(folder)
    path = folder / _leukemia.LEUKEMIA["post"].name
    unpacked = folder / path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(unpacked, filter="data")
    path.unlink()
    inner = unpacked / "filtered_matrices_mex" / "hg19"
    genes = pd.read_csv(inner / "genes.tsv", sep="\t", header=None)
    counts = mmread(inner / "matrix.mtx").tocsr()
    order = np.random.default_rng(0).permutation(len(genes))[:-1]
    genes.iloc[order].to_csv(inner / "genes.tsv", sep="\t", header=False, index=False)
    mmwrite(inner / "matrix.mtx", counts[order].tocoo())
    adata = bc.datasets.leukemia(folder)
    assert adata.n_vars == expected.n_vars - 1
    assert_equal(adata.X, expected[:, adata.var_names].X)
    assert adata.var["gene_ids"].tolist() == expected.var.loc[adata.var_names, "gene_ids"].tolist()


def test_repeated_symbols_are_numbered(folders):
    folder = folders("kang")
    table = folder / "GSE96583_batch2.genes.tsv.gz"
    genes = pd.read_csv(table, sep="\t", header=None)
    genes.loc[[3, 9], 1] = "TWICE"
    genes.to_csv(table, sep="\t", header=False, index=False)
    adata = bc.datasets.kang(folder)
    assert adata.var_names[[3, 9]].tolist() == ["TWICE", "TWICE-1"]
    assert adata.var["gene_ids"].iloc[[3, 9]].tolist() == genes.loc[[3, 9], 0].tolist()


def test_mixseq(folders):
    adata = bc.datasets.mixseq(folders("mixseq"))
    assert adata.obs["condition"].value_counts().to_dict() == {"idasanutlin": 400, "DMSO": 350}
    assert adata.obs.groupby("cell_line", observed=True)["tp53"].nunique().eq(1).all()
    assert set(adata.obs["cell_quality"]) == {"normal", "doublet", "low_quality"}
    p53 = adata[:, ["MDM2", "CDKN1A", "FDXR"]].to_df().sum(axis=1)
    mean = p53.groupby([adata.obs["condition"], adata.obs["tp53"]], observed=True).mean()
    assert mean[("idasanutlin", "wild type")] > 3 * mean.drop(("idasanutlin", "wild type")).max()


def test_mixseq_other_lines_have_no_status(folders):
    folder = folders("mixseq")
    inner = "DMSO_24hr_expt1"
    with zipfile.ZipFile(folder / f"{inner}.zip") as archive:
        archive.extractall(folder)
    (folder / f"{inner}.zip").unlink()
    table = folder / inner / "classifications.csv"
    calls = pd.read_csv(table)
    calls.loc[0, "singlet_ID"] = "A549_LUNG"
    calls.iloc[:-1].to_csv(table, index=False)
    obs = bc.datasets.mixseq(folder).obs
    assert obs.loc[obs["cell_line"] == "A549_LUNG", "tp53"].isna().tolist() == [True]
    assert obs["cell_line"].isna().sum() == obs["cell_quality"].isna().sum() == 1
    calls["barcode"] += "x"
    calls.to_csv(table, index=False)
    with pytest.raises(ValueError, match="must name the matrix's barcodes, got none"):
        bc.datasets.mixseq(folder)
    calls.drop(columns="cell_quality").to_csv(table, index=False)
    with pytest.raises(ValueError, match="without cell_quality"):
        bc.datasets.mixseq(folder)


def test_mdd(folders):
    folder = folders("mdd")
    adata = bc.datasets.mdd(folder)
    assert set(adata.obs["cell_type"]) == {"Ast", "Oli"}
    assert not adata.obs["donor"].isin(["M1"]).any()  # without a diagnosis in the record
    assert set(adata.obs.loc[adata.obs["diagnosis"] == "Case", "donor"]) == {"F2", "F4", "F6", "F8"}
    with gzip.open(folder / "GSE213982_combined_counts_matrix.mtx.gz") as stream:
        stored = mmread(stream).toarray().T
    cells = pd.read_csv(folder / "GSE213982_combined_counts_matrix_cells_columns.csv.gz")["x"]
    np.testing.assert_array_equal(adata.X.toarray(), stored[cells.isin(adata.obs_names)])
    chosen = bc.datasets.mdd(folder, cell_types="Mic", donors=["F1", "F2"])
    assert set(zip(chosen.obs["donor"], chosen.obs["cell_type"], strict=True)) == {("F1", "Mic"), ("F2", "Mic")}
    assert bc.datasets.mdd(folder, cell_types=None).n_obs == 8 * 90
    with pytest.raises(ValueError, match=r"`cell_types` must be among those .* got 'Neuron'. Present: 'Ast', 'Mic'"):
        bc.datasets.mdd(folder, cell_types="Neuron")
    with pytest.raises(ValueError, match="`donors` must be among those with a diagnosis, got 'M1'"):
        bc.datasets.mdd(folder, donors=["M1"])


def test_mdd_samples_of_one_donor_and_odd_words(folders):
    folder = folders("mdd")
    path = folder / "GSE213982_combined_counts_matrix_cells_columns.csv.gz"
    cells = pd.read_csv(path, index_col=0)
    cells.loc[0, "x"] = "F1_2.AAACCC-1.Oli.Oli1"
    cells.to_csv(path)
    first = bc.datasets.mdd(folder).obs.iloc[0]
    assert (first["donor"], first["sample"]) == ("F1", "F1_2")
    cells.loc[0, "x"] = "F1-AAACCC-1"
    cells.to_csv(path)
    with pytest.raises(ValueError, match=r"must hold names like .* got 'F1-AAACCC-1'"):
        bc.datasets.mdd(folder)


def test_kang(folders):
    folder = folders("kang")
    adata = bc.datasets.kang(folder)
    assert adata.obs["condition"].value_counts().to_dict() == {"ctrl": 240, "stim": 240}
    assert adata.obs_names.is_unique
    assert adata.obs_names.str.endswith("-11").sum() == 1  # the barcode of both runs
    table = pd.read_csv(folder / "GSE96583_batch2.total.tsne.df.tsv.gz", sep="\t", index_col=0, dtype={"ind": str})
    table = table.loc[adata.obs_names]
    assert adata.obs["donor"].tolist() == table["ind"].tolist()
    assert adata.obs["cell_type"].tolist() == table["cell"].tolist()
    assert set(adata.obs["demuxlet"]) == {"singlet", "doublet", "ambs"}
    assert adata.obs["sample"].iloc[0] == f"ctrl{table['ind'].iloc[0]}"
    mean = adata[:, "ISG15"].to_df()["ISG15"].groupby(adata.obs["condition"], observed=True).mean()
    assert mean["stim"] > 3 * mean["ctrl"]
    path = folder / "GSE96583_batch2.total.tsne.df.tsv.gz"
    table.iloc[1:].to_csv(path, sep="\t")
    with pytest.raises(ValueError, match=r"must have a row for each barcode of GSM2560248_2.1.mtx, got none for"):
        bc.datasets.kang(folder)
    table.assign(stim="ctrl").to_csv(path, sep="\t")
    with pytest.raises(ValueError, match=r"must agree with GSE96583_RAW.tar on the stimulated cells, got 240 cells"):
        bc.datasets.kang(folder)


def test_result_can_be_stored_and_fitted(written, tmp_path):
    name, folder = written
    adata = load(name, folder)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert adata.var_names.is_unique
    bc.pp.protein_coding(adata, annotation=folder / "gene_biotypes.csv")
    assert 0 < (~adata.var["protein_coding"]).sum() < 100
    assert (adata.X.data == np.rint(adata.X.data)).all()


def test_stand_in_refuses_to_overwrite_and_seed_decides(written, tmp_path):
    name, folder = written
    with pytest.raises(FileExistsError, match=r"`folder` must not contain .*, got"):
        bc.datasets.stand_in(name, folder)
    assert_equal(load(name, folder), load(name, bc.datasets.stand_in(name, tmp_path / "same")))
    other = load(name, bc.datasets.stand_in(name, tmp_path / "other", random_state=1))
    assert other.X.sum() != load(name, folder).X.sum()


def test_stand_in_rejects():
    with pytest.raises(ValueError, match="`name` must be one of 'leukemia', 'mixseq', 'mdd', 'kang', got 'x'"):
        bc.datasets.stand_in("x", ".")


def test_names_what_is_missing(written, tmp_path):
    name, _ = written
    with pytest.raises(ValueError, match=r"`folder` must hold the publisher's files, got .*\(from https://"):
        load(name, tmp_path)


def remotes(name):
    files = getattr(MODULES[name], name.upper())
    return list(files.values()) if isinstance(files, dict) else list(files)


def serve_at(monkeypatch, name, address, *, checksums=None):
    """Point the addresses of a data set somewhere else, and its checksums at what lies in a folder."""
    files = getattr(MODULES[name], name.upper())

    def moved(file):
        sha256 = hashlib.sha256((checksums / file.name).read_bytes()).hexdigest() if checksums else file.sha256
        return file._replace(url=f"{address}/{file.name}", sha256=sha256)

    new = {k: moved(f) for k, f in files.items()} if isinstance(files, dict) else tuple(map(moved, files))
    monkeypatch.setattr(MODULES[name], name.upper(), new)


def test_downloads_once_into_the_folder(written, serve, monkeypatch, tmp_path):
    name, folder = written
    address, seen = serve(folder)
    serve_at(monkeypatch, name, address, checksums=folder)
    monkeypatch.setenv("BCNMF_SC_DATA", str(tmp_path / "cache"))
    expected = load(name, folder)
    assert_equal(load(name), expected)
    assert_equal(load(name), expected)
    assert sorted(seen) == sorted(f"/{file.name}" for file in remotes(name))
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted(file.name for file in remotes(name))


def test_put_there_by_hand(written, monkeypatch):
    """Nothing is asked of the network: the addresses lead nowhere."""
    name, folder = written
    serve_at(monkeypatch, name, "http://127.0.0.1:9")
    monkeypatch.setenv("BCNMF_SC_DATA", str(folder))
    assert_equal(load(name), load(name, folder))


def test_offline(written, monkeypatch, tmp_path):
    name, _ = written
    serve_at(monkeypatch, name, "http://127.0.0.1:9")
    monkeypatch.setenv("BCNMF_SC_DATA", str(tmp_path))
    first = remotes(name)[0]
    with pytest.raises(OSError, match=r"could not be downloaded from http.*put it at .*BCNMF_SC_DATA") as raised:
        load(name)
    message = str(raised.value)
    assert message.startswith(first.name)
    assert first.url in message
    assert str(tmp_path / first.name) in message


def test_kang_is_checked_against_its_checksum(serve, monkeypatch, tmp_path, folders):
    serve_at(monkeypatch, "kang", serve(folders("kang"))[0])
    monkeypatch.setenv("BCNMF_SC_DATA", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"GSE96583_RAW.tar from .* is not the published file"):
        bc.datasets.kang()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.data
def test_mixseq_on_the_real_classifications(data_folder, folders):
    """The authors' own tables, with counts made up for their barcodes."""
    folder = folders("mixseq")
    for condition, file in _mixseq.MIXSEQ.items():
        table = data_folder / f"mixseq_{condition.lower()}_classifications.csv.gz"
        real = pd.read_csv(table)
        place = folder / file.name.removesuffix(".zip")
        (folder / file.name).unlink()
        place.mkdir()
        (place / "classifications.csv").write_bytes(gzip.decompress(table.read_bytes()))
        (place / "genes.tsv").write_text("ENSG1\tMDM2\nENSG2\tACTB\n")
        (place / "barcodes.tsv").write_text("\n".join(real["barcode"]))
        entries = "\n".join(f"2 {i + 1} 3" for i in range(len(real)))
        head = f"%%MatrixMarket matrix coordinate integer general\n2 {len(real)} {len(real)}\n"
        (place / "matrix.mtx").write_text(head + entries)
    obs = bc.datasets.mixseq(folder).obs
    assert obs["condition"].value_counts().to_dict() == {"idasanutlin": 3097, "DMSO": 2831}
    assert obs["tp53"].notna().all()
    assert obs.groupby("tp53", observed=True)["cell_line"].nunique().to_dict() == {"mutant": 17, "wild type": 7}
    normal = obs[obs["cell_quality"] == "normal"]
    assert normal["condition"].value_counts().to_dict() == {"idasanutlin": 2808, "DMSO": 2623}
