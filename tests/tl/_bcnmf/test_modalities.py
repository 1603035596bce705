"""Several modalities of the same cells: one usage, loadings and a likelihood for each."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc
from bcnmf_sc._mudata import no_pull
from bcnmf_sc.engine import Gaussian, Joint, Poisson, Run, fit, row_source
from bcnmf_sc.likelihoods import NegativeBinomial, ZeroInflatedNegativeBinomial

mudata = pytest.importorskip("mudata")
ASK = {"background_key": "condition", "background": "ctrl", "n_topics": 2, "n_background_topics": 6, "tol": 1e-3}
QUICK = ASK | {"tol": 1e-2, "cross_fit": 2}


@pytest.fixture(autouse=True)
def _quiet():
    with no_pull():
        yield


@pytest.fixture
def mdata(adata):
    """Simulated counts, their genes dealt out to two modalities; the cells of the second in another order."""
    first = np.arange(adata.n_vars) % 3 > 0
    protein = adata[::-1, ~first].copy()
    protein.obs = protein.obs[[]]
    return mudata.MuData({"rna": adata[:, first].copy(), "protein": protein})


def hidden(mdata) -> np.ndarray:
    return (mdata["rna"].obs["subgroup"] != "none").to_numpy()


def test_one_likelihood_is_the_fit_of_all_features(adata, mdata):
    """Modalities of equal weight and likelihood: as if they were one."""
    mdata.obs["condition"] = mdata["rna"].obs["condition"]
    bc.tl.bcnmf(mdata, **ASK)
    names = [name.split(":")[-1] for part in mdata.mod.values() for name in part.var_names]
    together = adata[:, names].copy()
    bc.tl.bcnmf(together, **ASK, sample_key="cells")
    np.testing.assert_array_equal(mdata.obsm["X_bcnmf"], together.obsm["X_bcnmf"])
    stacked = np.vstack([mdata[name].varm["bcnmf"] for name in mdata.mod])
    np.testing.assert_array_equal(stacked, together.varm["bcnmf"])
    for column in ("role", "target_share", "enriched", "pvalue"):
        assert (mdata.obs[f"bcnmf_{column}"] == together.obs[f"bcnmf_{column}"]).all()


def test_mixed_likelihoods_find_the_subgroup(mdata, tmp_path):
    mdata["protein"].layers["log"] = mdata["protein"].X.log1p()
    likelihood = {"rna": "poisson", "protein": "gaussian"}
    more = {"likelihood": likelihood, "layer": {"protein": "log"}, "weights": {"protein": 0.5}}
    assert bc.tl.bcnmf(mdata, **QUICK, **more) is None
    case = (mdata["rna"].obs["condition"] == "case").to_numpy()
    assert roc_auc_score(hidden(mdata)[case], mdata.obs["bcnmf_target_share"][case]) > 0.95
    topics = bc.get.topics(mdata)
    assert topics["called"].tolist() == [True] * 2 + [False] * 6
    np.testing.assert_allclose(topics["share_rna"] + topics["share_protein"], 1, atol=1e-5)
    assert bc.get.usage(mdata).shape == (1000, 8)
    assert set(bc.get.top_genes(mdata["protein"], n_genes=3)["gene"]) <= set(mdata["protein"].var_names)
    assert mdata["protein"].uns["bcnmf"]["params"]["likelihood"] == "gaussian"
    assert mdata.uns["bcnmf"]["params"]["weights"] == [1.0, 0.5]
    mdata.write_h5mu(tmp_path / "a.h5mu")
    back = mudata.read_h5mu(tmp_path / "a.h5mu")
    np.testing.assert_array_equal(back["rna"].varm["bcnmf"], mdata["rna"].varm["bcnmf"])


def test_copy_and_chosen_modalities(mdata):
    cheap = {"likelihood": {"rna": "poisson"}, "cross_fit": None, "key_added": "x"}
    made = bc.tl.bcnmf(mdata, **ASK, **cheap, copy=True)
    assert "X_x" in made.obsm
    assert "X_x" not in mdata.obsm
    assert "x" in made["rna"].varm
    assert "x" not in made["protein"].varm


@pytest.mark.filterwarnings("ignore:.* of the background's cells have more than")  # as they are noise
def test_weight_decides_whom_the_usage_follows(mdata):
    """A modality of noise spoils the answer unless it weighs next to nothing."""
    rng = np.random.default_rng(0)
    protein = mdata["protein"]
    protein.X = sparse.csr_matrix(rng.permuted(protein.X.toarray() * 20, axis=0))
    case = (mdata["rna"].obs["condition"] == "case").to_numpy()
    auc = {}
    for weight in (1.0, 0.01):
        bc.tl.bcnmf(mdata, **QUICK, weights={"protein": weight})
        auc[weight] = roc_auc_score(hidden(mdata)[case], mdata.obs["bcnmf_target_share"][case])
    assert auc[0.01] > 0.95
    assert auc[1.0] < 0.8


def test_joint_of_equal_parts_is_the_part():
    """In every method, dense and sparse; a weight multiplies."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.7, (60, 30)).astype(np.float32)
    part = np.repeat([0, 1], [12, 18])
    everyone, weight = np.ones(60), np.where(np.arange(60) < 20, 0.3, 0.0)
    for kind in (Poisson(), Gaussian(), NegativeBinomial(2.0)):
        joint = Joint((kind, kind), (1.0, 1.0), part)
        for matrix in (x, sparse.csr_array(x)):
            sides = {"target": everyone, "background": weight, "run": Run(max_iter=20)}
            one, two = (fit(row_source(matrix), each, 3, **sides) for each in (kind, joint))
            np.testing.assert_allclose(one.W, two.W, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(one.cell_loss, two.cell_loss, rtol=1e-3)
        heavy = Joint((kind, kind), (1.0, 3.0), part)
        factor = np.where(part == 1, 3.0, 1.0)
        mu = rng.random((60, 30)).astype(np.float32) + 0.1
        for method in ("p", "n", "loss"):
            np.testing.assert_allclose(getattr(heavy, method)(x, mu), factor * getattr(kind, method)(x, mu), rtol=1e-5)
        np.testing.assert_allclose(heavy.mass(x), factor * kind.mass(x))


def test_parameters_are_refined_by_modality():
    """From each modality's own genes, as its likelihood alone would."""
    rng = np.random.default_rng(0)
    x, mu = rng.poisson(2.0, (50, 9)).astype(np.float32), np.full((50, 9), 2.0, np.float32)
    part, kind = np.repeat([0, 1, 0], 3), NegativeBinomial(2.0)
    joint = Joint((Poisson(), kind), (1.0, 1.0), part, (False, True))
    evidence = np.stack([values.sum(0) for values in joint.evidence(x, mu)])
    own = np.stack([values.sum(0) for values in kind.evidence(x[:, part == 1], mu[:, part == 1])])
    refined = joint.refined(evidence, 50.0)
    found = refined.parameters()["dispersion"]
    np.testing.assert_allclose(found[part == 1], kind.refined(own, 50.0).dispersion)
    assert np.isnan(found[part == 0]).all()
    genes = np.array([8, 4, 3, 4])
    np.testing.assert_array_equal(refined.at(genes).parameters()["dispersion"], found[genes])


def test_parameters_are_written_to_their_modality(mdata):
    rough = QUICK | {"tol": 0.05, "n_background_topics": 0}
    bc.tl.bcnmf(mdata, **rough, likelihood={"rna": NegativeBinomial(5.0), "protein": "poisson"})
    assert (mdata["rna"].var["bcnmf_dispersion"] == 5).all()
    assert "bcnmf_dispersion" not in mdata["protein"].var
    zinb = ZeroInflatedNegativeBinomial(dispersion=5.0, dropout=0.1)
    bc.tl.bcnmf(mdata, **rough, likelihood={"rna": "nb", "protein": zinb})
    assert mdata["rna"].var["bcnmf_dispersion"].nunique() > 10
    assert (mdata["protein"].var["bcnmf_dispersion"] == 5).all()
    assert (mdata["protein"].var["bcnmf_dropout"] == np.float32(0.1)).all()
    assert "bcnmf_dropout" not in mdata["rna"].var


def test_a_fit_of_fewer_modalities_leaves_nothing_of_the_last_in_the_others(mdata):
    rough = QUICK | {"tol": 0.05, "n_background_topics": 0}
    bc.tl.bcnmf(mdata, **rough, likelihood={"rna": "poisson", "protein": "nb"})
    protein = mdata["protein"]
    assert {"bcnmf_suppressed", "bcnmf_dispersion"} <= set(protein.var)
    bc.tl.bcnmf(mdata, **rough, likelihood={"rna": "poisson"})
    assert not [name for slot in (protein.uns, protein.varm, protein.var) for name in slot if name.startswith("bcnmf")]
    assert mdata["rna"].varm["bcnmf"].any()
    # a fit of the modality by itself is not of the whole
    bc.tl.nmf(protein, n_topics=2, tol=0.05, key_added="bcnmf")
    bc.tl.bcnmf(mdata, **rough, likelihood={"rna": "poisson"})
    assert protein.varm["bcnmf"].shape[1] == 2
    assert "bcnmf" in protein.uns


SIDES = {"background_key": "condition", "background": "ctrl"}
FOR_AN_ANNDATA = {
    "nmf": lambda mdata, _: bc.tl.nmf(mdata),
    "cpca": lambda mdata, _: bc.tl.cpca(mdata, **SIDES),
    "deltanmf": lambda mdata, _: bc.tl.deltanmf(mdata, condition_key="condition", control="ctrl"),
    "consensus": lambda mdata, _: bc.tl.consensus(mdata, **SIDES),
    "project": lambda mdata, adata: bc.tl.project(mdata, adata),
    "update": lambda mdata, adata: bc.tl.update(mdata, adata),
    "enrich": lambda mdata, _: bc.tl.enrich(mdata, {"set": ["Gene 1"]}),
    "associate_genes": lambda mdata, _: bc.tl.associate_genes(mdata, groupby="condition", sample_key="donor"),
    "get.loadings": lambda mdata, _: bc.get.loadings(mdata),
}


@pytest.mark.parametrize("call", FOR_AN_ANNDATA)
def test_what_takes_no_mudata_says_what_does(adata, mdata, call):
    mdata.uns["bcnmf"] = {"topics": pd.DataFrame({"kind": ["target"]}, index=["Topic 1"]), "params": {}}
    mdata.obsm["X_bcnmf"] = np.ones((mdata.n_obs, 1), np.float32)
    for name in ("condition", "donor"):
        mdata.obs[name] = adata.obs[name]
    message = r"must be an AnnData, got MuData.* `bcnmf_sc\.tl\.bcnmf` and `bcnmf_sc\.tl\.gpnsf`.* `mdata\['rna'\]`"
    with pytest.raises(TypeError, match=message):
        FOR_AN_ANNDATA[call](mdata, adata)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"likelihood": {"atac": "poisson"}},
            "`likelihood` must name modalities, got 'atac'. Present: 'rna', 'protein'",
        ),
        ({"weights": {"atac": 1.0}}, "`weights` must name modalities"),
        ({"weights": {"rna": 0.0}}, r"`weights\['rna'\]` must be a finite number above 0, got 0.0"),
        ({"likelihood": {"rna": "normal"}}, "`likelihood` must be one of.*got 'normal'"),
        ({"likelihood": NegativeBinomial([1.0, 2.0])}, "`dispersion` must be .* for each of 333 genes"),
        ({"likelihood": {"rna": "nb"}, "dispersion": 2.0}, "likelihood=bc.likelihoods.NegativeBinomial"),
        ({"device": "cuda"}, "`device` must be None for a MuData"),
        ({"layer": "log"}, "`layer` 'log' is not in `adata.layers`"),
        ({"background_key": "state"}, "`background_key` 'state' is not in"),
    ],
)
def test_bad_input(mdata, more, message):
    with pytest.raises(ValueError, match=message):
        bc.tl.bcnmf(mdata, **ASK | more)
    assert not mdata.uns
    assert not list(mdata.obsm.keys() - {"rna", "protein"})


def test_weights_are_named_by_modality(mdata):
    with pytest.raises(TypeError, match=r"`weights` must be a mapping of modalities to numbers.*got 2\.0"):
        bc.tl.bcnmf(mdata, **ASK, weights=2.0)


def test_cells_must_be_in_all_modalities(mdata):
    fewer = mudata.MuData({"rna": mdata["rna"], "protein": mdata["protein"][10:].copy()})
    with pytest.raises(ValueError, match="same cells in all modalities, got 10 of 1000 without 'protein'"):
        bc.tl.bcnmf(fewer, **ASK)


def test_modalities_are_refused_for_an_anndata(adata):
    for more in ({"weights": {"rna": 1.0}}, {"likelihood": {"rna": "poisson"}}):
        with pytest.raises(ValueError, match="must only be used with a MuData"):
            bc.tl.bcnmf(adata, **ASK | more)


def test_lymphoma(data_folder):
    """Lymphoma against control, RNA and surface proteins together."""
    adata = anndata.read_h5ad(data_folder / "ctcl_eccite_rna_adt.h5ad")
    protein = anndata.AnnData(sparse.csr_matrix(np.asarray(adata.obsm["protein"], np.float32)))
    protein.obs_names, protein.var_names = adata.obs_names, [f"protein {name}" for name in adata.uns["protein_names"]]
    rna = anndata.AnnData(adata.X, obs=adata.obs, var=adata.var)
    mdata = mudata.MuData({"rna": rna, "protein": protein})
    ask = ASK | {"background": "control", "n_topics": 3, "n_background_topics": 5}
    bc.tl.bcnmf(mdata, **ask)
    lymphoma = (adata.obs["condition"] == "CTCL").to_numpy()
    assert roc_auc_score(lymphoma, mdata.obs["bcnmf_target_share"]) > 0.95
    called = mdata.obs["bcnmf_enriched"]  # 80 to 91 % over seeds, against similar ones of only 128 control cells
    assert called[lymphoma].mean() > 0.75
    assert called[~lymphoma].mean() < 0.07
    assert mdata["protein"].varm["bcnmf"].shape == (49, 8)
