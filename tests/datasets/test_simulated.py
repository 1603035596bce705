import anndata as ad
import numpy as np
import pytest
from anndata.tests.helpers import assert_equal
from scipy import sparse
from sklearn.metrics import roc_auc_score

import bcnmf_sc as bc
from bcnmf_sc.datasets import _simulated


@pytest.fixture(scope="module")
def simulated():
    return bc.datasets.simulated()


@pytest.fixture(scope="module")
def digits():
    return bc.datasets.digits()


def _columns(adata, kind):
    return (adata.uns["truth"]["kind"] == kind).to_numpy()


def test_simulated_counts(simulated):
    counts = simulated.X
    assert sparse.isspmatrix_csr(counts)
    assert counts.dtype == np.float32
    assert counts.indices.dtype == np.int32
    assert counts.has_canonical_format
    assert (counts.data > 0).all()
    assert (counts.data == np.rint(counts.data)).all()
    assert simulated.obs_names.is_unique
    assert simulated.var_names.is_unique
    assert simulated.var_names[0] == "Gene 1"


def test_simulated_truth_explains_the_counts(simulated):
    loadings, usage = simulated.varm["true_loadings"], simulated.obsm["true_usage"]
    np.testing.assert_allclose(loadings.sum(axis=0), 1.0)
    np.testing.assert_allclose(usage.sum(axis=1), simulated.obs["library_size"])
    assert len(simulated.uns["truth"]) == loadings.shape[1] == usage.shape[1]
    # Without donor effect and dispersion the counts are Poisson about usage times loadings
    plain = bc.datasets.simulated(theta=np.inf, donor_effect=0.0)
    mean = plain.obsm["true_usage"] @ plain.varm["true_loadings"].T
    assert ((plain.X.toarray() - mean) ** 2 / mean).mean() == pytest.approx(1.0, abs=0.05)


def test_simulated_theta_is_the_inverse_dispersion():
    adata = bc.datasets.simulated(theta=2.0, donor_effect=0.0)
    mean = adata.obsm["true_usage"] @ adata.varm["true_loadings"].T
    squares = (adata.X.toarray() - mean) ** 2
    assert squares.mean() == pytest.approx((mean + mean**2 / 2.0).mean(), rel=0.1)


def test_simulated_salient_programs_are_target_only_and_hidden(simulated):
    obs, salient = simulated.obs, _columns(simulated, "salient")
    active = simulated.obsm["true_usage"][:, salient] > 0
    np.testing.assert_array_equal(active.any(axis=1), obs["subgroup"] != "none")
    assert not active[obs["condition"] == "ctrl"].any()
    names = np.array(["none", *simulated.uns["truth"]["program"][salient]])
    np.testing.assert_array_equal(names[np.where(active.any(axis=1), active.argmax(axis=1) + 1, 0)], obs["subgroup"])
    target = obs[obs["condition"] == "case"]
    share = (target["subgroup"] != "none").groupby(target["cell_type"], observed=True).mean()
    assert share.between(0.3, 0.7).all()
    # nothing but the programs gives the subgroup away, and no gene is silent outside it
    assert abs(roc_auc_score(target["subgroup"] != "none", target["library_size"]) - 0.5) < 0.1
    special = simulated.varm["true_loadings"][:, salient].any(axis=1)
    assert (simulated.X[(obs["condition"] == "ctrl").to_numpy()][:, special].sum(axis=0) > 0).all()


def test_simulated_subgroup_can_be_found(simulated):
    """Usage refitted on the true loadings (Poisson) separates the subgroup, so a good method can."""
    target = simulated[simulated.obs["condition"] == "case"]
    counts, loadings = target.X.toarray(), target.varm["true_loadings"]
    usage = np.outer(counts.sum(axis=1), np.full(loadings.shape[1], 1.0 / loadings.shape[1]))
    for _ in range(100):
        usage *= (counts / (usage @ loadings.T)) @ loadings
    share = usage[:, _columns(simulated, "salient")].sum(axis=1) / usage.sum(axis=1)
    assert roc_auc_score(target.obs["subgroup"] != "none", share) > 0.95


def test_simulated_donors_are_nested_and_mildly_different(simulated):
    assert (simulated.obs.groupby("donor", observed=False)["condition"].nunique() == 1).all()
    assert simulated.obs["donor"].value_counts().min() == 400 // 3

    def effects(donor_effect):
        adata = bc.datasets.simulated(donor_effect=donor_effect, theta=np.inf, median_library_size=5000.0)
        usage, loadings = adata.obsm["true_usage"], adata.varm["true_loadings"]
        rows = [(adata.obs["donor"] == donor).to_numpy() for donor in ("case 1", "ctrl 3")]
        expected = np.array([usage[mask].sum(axis=0) @ loadings.T for mask in rows])
        seen = np.array([np.asarray(adata.X[mask].sum(axis=0)).ravel() for mask in rows])
        strong = (expected > 500).all(axis=0)
        return np.log(seen[:, strong] / expected[:, strong])

    some = effects(0.2)
    np.testing.assert_allclose(some.std(axis=1), 0.2, rtol=0.15)
    assert abs(np.corrcoef(some)[0, 1]) < 0.2  # each donor has an effect of its own
    assert (effects(0.0).std(axis=1) < 0.05).all()


def test_simulated_biotypes_spare_the_programs(simulated):
    lnc = (simulated.var["gene_biotype"] == "lncRNA").to_numpy()
    assert lnc.sum() == 50
    assert not simulated.varm["true_loadings"][lnc][:, _columns(simulated, "salient")].any()


def test_simulated_seed_decides():
    assert_equal(bc.datasets.simulated(random_state=3), bc.datasets.simulated(random_state=3))
    assert (bc.datasets.simulated(random_state=3).X != bc.datasets.simulated(random_state=4).X).nnz


def test_simulated_without_optional_programs():
    adata = bc.datasets.simulated(30, 20, 50, n_types=1, n_shared=0, n_salient=0, n_donors=1)
    assert adata.varm["true_loadings"].shape == (50, 1)
    assert set(adata.obs["subgroup"]) == {"none"}


def test_simulated_makes_no_dense_matrix(monkeypatch):
    """Blocks of the size of a few cells give the same layout and law, so the block is all that is dense."""
    shapes = []
    csr_matrix = sparse.csr_matrix
    monkeypatch.setattr(_simulated, "BLOCK_ELEMENTS", 5_000)
    monkeypatch.setattr(
        _simulated.sparse, "csr_matrix", lambda block: (shapes.append(block.shape), csr_matrix(block))[1]
    )
    adata = bc.datasets.simulated()
    assert adata.shape == (1000, 500)
    assert max(rows for rows, _ in shapes) == 10
    assert sum(rows for rows, _ in shapes) == 1000


@pytest.mark.parametrize("name", ["simulated", "digits"])
def test_round_trip(name, tmp_path, request):
    adata = request.getfixturevalue(name)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert_equal(ad.read_h5ad(tmp_path / "a.h5ad"), adata)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_target": 0}, ValueError, "`n_target` must be a whole number of at least 1, got 0"),
        ({"n_genes": 39}, ValueError, "`n_genes` must be a whole number of at least 40, got 39"),
        ({"n_genes": 50, "n_types": 20}, ValueError, "`n_genes` must be a whole number of at least 96"),
        ({"n_types": 2.0}, TypeError, "`n_types` must be a whole number of at least 1, got 2.0"),
        ({"n_donors": 401}, ValueError, r"`n_donors` must be a whole number from 1 to 400 \(the smaller .*\), got 401"),
        ({"frac_active": 1.5}, ValueError, "`frac_active` must be a number from 0 to 1, got 1.5"),
        ({"salient_strength": np.nan}, ValueError, "`salient_strength` must be a finite number of at least 0, got nan"),
        ({"theta": 0}, ValueError, "`theta` must be a number above 0, got 0"),
    ],
)
def test_simulated_rejects(arguments, error, match):
    with pytest.raises(error, match=match):
        bc.datasets.simulated(**arguments)


def test_digits_layout(digits):
    assert digits.shape == (600, 256)
    assert digits.X.dtype == np.float32
    assert digits.X.min() >= 0
    assert digits.X.max() <= 1
    image = digits.X[0].reshape(digits.uns["image_shape"])
    assert image[digits.var["row"], digits.var["col"]].tolist() == digits.X[0].tolist()
    np.testing.assert_array_equal(digits.obs["digit"] == "none", digits.obs["condition"] == "background")


def test_digits_are_maxima_of_digit_and_photograph():
    """With the photographs at zero only the digits are left; they bound every composite from below."""
    alone, composite = bc.datasets.digits(background_scale=0.0), bc.datasets.digits()
    target = (composite.obs["condition"] == "target").to_numpy()
    assert not alone.X[~target].any()
    digit, image = alone.X[target], composite.X[target]
    assert (image >= digit).all()
    covered = image > digit
    assert 0.3 < covered.mean() < 1
    assert image[covered].max() <= 0.8 + 1e-6
    assert composite.X[~target].max() <= 0.8 + 1e-6
    # an enlarged 1 has its ink in the middle, a 0 has a hole there
    label = composite.obs["digit"][target]
    middle = digit.reshape(-1, 16, 16)[:, 6:10, 6:10].mean(axis=(1, 2))
    assert roc_auc_score(label == "1", middle) > 0.95


def test_digits_use_each_patch_once(digits):
    background = digits.X[(digits.obs["condition"] == "background").to_numpy()]
    assert len(np.unique(background, axis=0)) == len(background)
    # where the digit's corners are blank, targets show their own patch
    corners = np.array([0, 15, 240, 255])
    alone = bc.datasets.digits(background_scale=0.0)
    blank = (alone.X[:, corners] == 0).all(axis=1)
    assert len(np.unique(digits.X[blank][:, corners], axis=0)) > 0.95 * blank.sum()


def test_digits_photographs_have_one_law(digits):
    corners = np.array([0, 15, 240, 255])
    target = (digits.obs["condition"] == "target").to_numpy()
    blank = (bc.datasets.digits(background_scale=0.0).X[:, corners] == 0).all(axis=1)
    value = digits.X[:, corners].mean(axis=1)
    assert abs(roc_auc_score(target[blank], value[blank]) - 0.5) < 0.1


def test_digits_choice_and_seed():
    adata = bc.datasets.digits((3, 8, 9), n_background=7, random_state=1)
    assert set(adata.obs["digit"]) == {"3", "8", "9", "none"}
    assert (adata.obs["condition"] == "background").sum() == 7
    assert_equal(adata, bc.datasets.digits((3, 8, 9), n_background=7, random_state=1))
    assert (adata.X != bc.datasets.digits((3, 8, 9), n_background=7, random_state=2).X).any()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"digits": ()}, "`digits` must be one or more of 0 to 9"),
        ({"digits": (0, 10)}, "`digits` must be one or more of 0 to 9"),
        ({"n_background": 0}, "`n_background` must be a whole number of at least 1, got 0"),
        ({"n_background": 10**6}, "`n_background` must give at most"),
        ({"background_scale": 1.2}, "`background_scale` must be a number from 0 to 1"),
    ],
)
def test_digits_rejects(arguments, match):
    with pytest.raises(ValueError, match=match):
        bc.datasets.digits(**arguments)


def _nmf(target, background, alpha, seed, n_iter=300):
    """Write out the Gaussian updates of the paper (alpha on its scale) in float64."""
    rng = np.random.default_rng(seed)
    w = rng.random((target.shape[1], 2))
    w /= w.sum(axis=0)
    h_x, h_y = (rng.random((len(x), 2)) * x.sum(axis=1, keepdims=True) for x in (target, background))
    for _ in range(n_iter):
        h_x = np.maximum(h_x * (target @ w) / (h_x @ (w.T @ w)), 1e-10)
        h_y = np.maximum(h_y * (background @ w) / (h_y @ (w.T @ w)), 1e-10)
        up = target.T @ h_x + alpha * w @ (h_y.T @ h_y)
        down = w @ (h_x.T @ h_x) + alpha * background.T @ h_y
        w = np.maximum(w * up / down, 1e-10)
        scale = w.sum(axis=0)
        w, h_x, h_y = w / scale, h_x * scale, h_y * scale
    return h_x / h_x.sum(axis=1, keepdims=True)


def test_digits_need_the_contrast():
    """The purpose of the set: at K = 2 NMF does not see the digit and the contrast (alpha 2, as the paper) does."""
    scores = []
    for seed in range(5):
        adata = bc.datasets.digits(random_state=seed)
        target = (adata.obs["condition"] == "target").to_numpy()
        is_one = adata.obs["digit"][target] == "1"
        pixels = adata.X.astype(float)
        auc = [roc_auc_score(is_one, _nmf(pixels[target], pixels[~target], a, seed)[:, 0]) for a in (0.0, 2.0)]
        scores.append([max(a, 1 - a) for a in auc])
    nmf, contrast = np.median(scores, axis=0)
    assert contrast > 0.95
    assert nmf < contrast - 0.05
