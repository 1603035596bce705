"""Loaders of published data, on small files of the publishers' layout and, where they are, on the real files."""

import numpy as np
import pytest

import bcnmf_sc as bc
from bcnmf_sc.datasets import _mice_protein as _published

UCI = """\ufeffMouseID,A_N,B_N,C_N,Genotype,Treatment,Behavior,class
1_1,-0.5,1,,Control,Saline,C/S,c-CS-s
1_2,,3,,Control,Saline,C/S,c-CS-s
1_3,1.5,5,2,Control,Saline,C/S,c-CS-s
2_1,,2,4,Ts65Dn,Saline,S/C,t-SC-s
2_2,,4,5,Ts65Dn,Saline,S/C,t-SC-s
3_1,2.5,6,1,Control,Saline,S/C,c-SC-s
4_1,3.5,6,1,Ts65Dn,Memantine,C/S,t-CS-m
"""
OPENML = UCI.removeprefix("\ufeff").replace(",,", ",?,").replace(",,", ",?,").replace("c-CS-s", "'c-CS-s'")


@pytest.fixture(params=[UCI, OPENML], ids=["UCI", "OpenML"])
def table(request, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(request.param, encoding="utf-8")
    return path


def test_mice_layout_labels_and_scale(table):
    adata = bc.datasets.mice_protein(table, max_missing=0.5)
    assert adata.obs_names.tolist() == ["1_1", "1_2", "1_3", "2_1", "2_2", "3_1", "4_1"]
    assert adata.obs["mouse"].tolist() == ["1", "1", "1", "2", "2", "3", "4"]
    assert adata.obs["genotype"].tolist()[2:4] == ["Control", "Ts65Dn"]
    assert adata.obs["behaviour"].tolist()[2:4] == ["C/S", "S/C"]
    assert adata.obs["class"].cat.categories.tolist() == ["c-CS-s", "c-SC-s", "t-CS-m", "t-SC-s"]
    assert adata.obs["condition"].isna().tolist() == [False] * 6 + [True]
    assert adata.obs["condition"].tolist()[:6] == ["background"] * 3 + ["target"] * 3
    assert adata.var["n_missing"].to_dict() == {"A_N": 3, "B_N": 0, "C_N": 2}
    assert adata.X.dtype == np.float32
    # A: the mouse's median (0.5) for 1_2; mouse 2 has no value at all, so the protein's median, 2
    values = adata.X * (adata.var["maximum"] - adata.var["minimum"]).to_numpy() + adata.var["minimum"].to_numpy()
    np.testing.assert_allclose(values[:, 0], [-0.5, 0.5, 1.5, 2, 2, 2.5, 3.5], atol=1e-6)
    np.testing.assert_allclose(values[:2, 2], [2, 2], atol=1e-6)
    np.testing.assert_allclose([adata.X.min(0), adata.X.max(0)], [[0] * 3, [1] * 3])


def test_mice_drops_proteins_with_many_missing(table):
    assert bc.datasets.mice_protein(table, max_missing=0.3).var_names.tolist() == ["B_N", "C_N"]
    assert bc.datasets.mice_protein(table).var_names.tolist() == ["B_N"]
    with pytest.raises(ValueError, match="`max_missing` must be a number from 0 to 1, got 2"):
        bc.datasets.mice_protein(table, max_missing=2)


@pytest.mark.parametrize(("text", "match"), [("", "readable CSV"), ("MouseID,A_N\n1_1,2\n", "without Genotype, Treat")])
def test_mice_rejects_other_files(tmp_path, text, match):
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        bc.datasets.mice_protein(path)
    with pytest.raises(ValueError, match="`path` must be a file"):
        bc.datasets.mice_protein(tmp_path / "none.csv")


@pytest.fixture
def server(serve, tmp_path, monkeypatch):
    """Serve tmp_path/www as the place of the download, with an empty cache in tmp_path/cache."""
    (tmp_path / "www").mkdir()
    address, seen = serve(tmp_path / "www")
    monkeypatch.setattr(_published, "_MICE_URL", f"{address}/17928620")
    monkeypatch.setenv("BCNMF_SC_DATA", str(tmp_path / "cache"))
    return seen


def test_mice_downloads_once(server, tmp_path):
    (tmp_path / "www" / "17928620").write_text(OPENML)
    assert bc.datasets.mice_protein(max_missing=0.5).shape == (7, 3)
    assert bc.datasets.mice_protein(max_missing=0.5).shape == (7, 3)
    assert server == ["/17928620"]


def test_mice_put_there_by_hand(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "Data_Cortex_Nuclear.csv").write_text(UCI, encoding="utf-8")
    assert bc.datasets.mice_protein(max_missing=0.5).shape == (7, 3)
    assert server == []


@pytest.mark.usefixtures("server")
def test_mice_without_network():
    with pytest.raises(
        OSError, match=r"mice_protein.csv could not be downloaded from http.*put it at .*cache.mice_prot"
    ):
        bc.datasets.mice_protein()


@pytest.mark.data
def test_mice_real_file(data_folder, monkeypatch):
    monkeypatch.setenv("BCNMF_SC_DATA", str(data_folder))
    adata = bc.datasets.mice_protein()
    assert adata.shape == (1080, 72)
    assert adata.obs["mouse"].nunique() == 72
    assert adata.obs["condition"].value_counts().to_dict() == {"target": 270, "background": 135}
    assert adata.obs.loc[adata.obs["condition"] == "target", "mouse"].nunique() == 18
    assert np.isfinite(adata.X).all()
