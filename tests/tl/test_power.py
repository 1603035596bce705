"""`tl.power` against simulated studies that are tested as `tl.bcnmf` tests them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import bcnmf_sc as bc
from bcnmf_sc.tl._design import moderated

DEVIATION = np.array([0.6, 0.9, 0.7, 0.5, 0.8, 0.6, 0.7, 0.65])


def study(n: int, rng: np.random.Generator, effect: float = 0.0) -> np.ndarray:
    """Log2 shares of n donors a side, target first; the first topic differs."""
    y = -5 + DEVIATION * rng.normal(size=(2 * n, len(DEVIATION)))
    y[:n, 0] += effect
    return y


def stored(y: np.ndarray) -> ad.AnnData:
    names = [f"Topic {k + 1}" for k in range(y.shape[1])]
    n = len(y) // 2
    donors = pd.DataFrame(2**y - 1e-3, columns=names)
    donors.insert(0, "n_cells", 100)
    donors.insert(0, "condition", ["target"] * n + ["background"] * n)
    donors.insert(0, "donor", [f"d{i}" for i in range(2 * n)])
    adata = ad.AnnData(np.zeros((2, 2), "float32"))
    topics = pd.DataFrame({"kind": "target"}, index=pd.Index(names, name="topic"))
    adata.uns["bcnmf"] = {"topics": topics, "donors": donors, "params": {}}
    return adata


def test_studies_of_the_size_asked_for_have_the_power_asked_for() -> None:
    rng = np.random.default_rng(0)
    pilot = stored(study(60, rng))  # large, so that it knows the deviations
    row = bc.tl.power(pilot, fold_change=3.0, power=0.8).loc["Topic 1"]
    assert row["deviation"] == pytest.approx(DEVIATION[0], rel=0.15)
    n = int(row["n_donors"])
    found = {}
    for size in (n - 1, n):
        X, hits = np.column_stack([np.ones(2 * size), np.repeat([1.0, 0.0], size)]), []
        for _ in range(400):
            y = study(size, rng, row["log2_fold_change"])
            hits.append(moderated(y, X, np.array([0.0, 1.0])).p_value[0] < 0.05)
        found[size] = np.mean(hits)
    assert found[n] == pytest.approx(0.8, abs=0.1)
    assert found[n - 1] < found[n] + 0.03


def test_power_grows_with_effect_and_donors_and_is_symmetric() -> None:
    adata = stored(study(4, np.random.default_rng(1)))
    small, large = (bc.tl.power(adata, fold_change=change) for change in (1.5, 4.0))
    assert (large["n_donors"] < small["n_donors"]).all()
    assert (large["power_now"] > small["power_now"]).all()
    assert (bc.tl.power(adata, power=0.95)["n_donors"] > bc.tl.power(adata, power=0.5)["n_donors"]).all()
    assert (bc.tl.power(adata, p_value=0.005)["n_donors"] > bc.tl.power(adata)["n_donors"]).all()
    assert small["n_now"].eq(4).all()
    loss = bc.tl.power(adata, fold_change=0.5, topics=["Topic 3", "Topic 1"])
    assert loss.index.tolist() == ["Topic 3", "Topic 1"]
    assert (loss["log2_fold_change"] < 0).all()
    assert np.isfinite(loss["n_donors"]).all()


def test_what_no_study_shows_has_no_number() -> None:
    adata = stored(study(4, np.random.default_rng(1)))
    assert bc.tl.power(adata, fold_change=1.001)["n_donors"].isna().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fold_change": 1.0}, "`fold_change` must be above 0 and other than 1"),
        ({"fold_change": -2.0}, "`fold_change` must be above 0"),
        ({"power": 1.0}, "`power` must be between 0 and 1"),
        ({"p_value": 0.0}, "`p_value` must be between 0 and 1"),
        ({"topics": "Topic 99"}, "`topics` must be 'target', 'background', 'all', a name"),
    ],
)
def test_errors(wrong, message) -> None:
    adata = stored(study(3, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=message):
        bc.tl.power(adata, **wrong)
    donors = adata.uns["bcnmf"]["donors"]
    adata.uns["bcnmf"]["donors"] = donors[donors["condition"] == "target"]
    with pytest.raises(ValueError, match="must have two conditions and 2 donors in one of them, got 3 and 0"):
        bc.tl.power(adata)
    del adata.uns["bcnmf"]["donors"]
    with pytest.raises(ValueError, match=r"'donors' is not in .* Run `bcnmf_sc.tl.bcnmf` with `sample_key`"):
        bc.tl.power(adata)
