"""Donors that `obs` knows and the call does not name."""

import numpy as np
import pandas as pd
import pytest

import bcnmf_sc as bc
from bcnmf_sc._anndata import Design
from bcnmf_sc.tl._bcnmf.donors import unnamed_donors

ASK = {"background_key": "group", "background": "b", "n_topics": 3, "n_background_topics": 8, "tol": 1e-2}
ROLES = Design(np.arange(120) < 60, {"b": np.arange(120) >= 60})
NESTED, CROSSED = np.arange(120) // 15, np.arange(120) % 4


@pytest.fixture(scope="module")
def healthy():
    """Twelve donors that differ, none of them treated, in two groups drawn at random."""
    adata = bc.datasets.simulated(600, 600, 200, n_salient=0, n_donors=6, donor_effect=0.5)
    drawn = np.random.default_rng(0).permutation(adata.obs["donor"].unique())
    adata.obs["group"] = np.where(adata.obs["donor"].isin(drawn[:6]), "a", "b")
    return adata


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("donor", NESTED, True),
        ("Patient_ID", CROSSED, True),
        ("orig.ident", NESTED.astype(str), True),
        ("SampleName", NESTED, True),
        ("donor_age", NESTED, False),
        ("facs_sample", NESTED, False),
        ("cluster", NESTED, False),
        ("sample", np.arange(120) // 60, False),  # the condition by another name
        ("sample", np.arange(120), False),  # a name for each cell
        ("subject", NESTED + 0.5, False),
    ],
)
def test_columns_that_look_like_donors(name, values, found):
    obs = pd.DataFrame({"type": pd.Categorical(CROSSED), name: values})
    assert unnamed_donors(obs, ROLES) == (name if found else None)


def test_the_surest_name_is_taken():
    obs = pd.DataFrame({"sample": NESTED, "donor_id": CROSSED, "ident": NESTED})
    assert unnamed_donors(obs, ROLES) == "donor_id"


def test_unused_values_and_other_cells_do_not_count():
    none = np.zeros(120, bool)
    few = Design(np.arange(120) < 15, {"b": none})
    assert unnamed_donors(pd.DataFrame({"donor": pd.Categorical(NESTED)}), few) is None


def test_no_topic_is_called_for_donors_that_are_not_named(healthy, cautions):
    with pytest.warns(UserWarning, match=r"`adata\.obs\['donor'\]` looks like the donors") as said:
        adata = bc.tl.bcnmf(healthy, **ASK, copy=True)
    assert "`sample_key='donor'`" in str(said[0].message)
    topics = bc.get.topics(adata)
    assert not topics["called"].any()
    assert topics["p_value"].isna().all()
    assert topics.loc[topics["kind"] == "target", "log2_fold_change"].notna().all()
    assert adata.uns["bcnmf"]["params"]["unnamed_donors"] == "donor"
    (said,) = [one for one in cautions(adata) if "donor" in one]
    assert "no topic was tested" in said
    assert "'donor' looks like their column" in said


def test_cells_are_the_units_where_it_is_said(healthy, cautions):
    """And then topics are called, which is why it has to be said."""
    bc.tl.bcnmf(healthy, **ASK, sample_key="cells", key_added="by_cell")
    assert bc.get.topics(healthy, key="by_cell")["called"].any()
    assert "unnamed_donors" not in healthy.uns["by_cell"]["params"]
    assert any(one.startswith("Cells are the units, as was asked for") for one in cautions(healthy, "by_cell"))


def test_named_donors_are_not_called(healthy):
    bc.tl.bcnmf(healthy, **ASK, sample_key="donor", key_added="by_donor")
    assert not bc.get.topics(healthy, key="by_donor")["called"].any()


def test_the_check_of_the_background_asks_for_donors(healthy):
    small = healthy[:, :60].copy()
    ask = {"background_key": "group", "background": "b", "n_topics": 2, "n_background_topics": 2, "tol": 1e-1}
    bc.tl.background_check(small, **ask)
    checks = small.uns["bcnmf_background_check"].set_index("check")
    assert checks.loc["donors not named", "verdict"] == "bad"
    bc.tl.background_check(small, **ask, sample_key="cells")
    assert "donors not named" not in set(small.uns["bcnmf_background_check"]["check"])
