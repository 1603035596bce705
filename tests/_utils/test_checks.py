"""Arguments are refused by the same rules, in the same words, by all public functions."""

from __future__ import annotations

import numpy as np
import pytest

import bcnmf_sc as bc
from bcnmf_sc._utils.checks import number, one_of, random_seed, seed_32, whole_number
from bcnmf_sc._utils.errors import UserError, UserTypeError

SPLIT = {"background_key": "condition", "background": "ctrl"}
COUNTS = {
    "tl.bcnmf": ("n_topics", SPLIT),
    "tl.nmf": ("n_topics", {}),
    "tl.consensus": ("n_restarts", SPLIT),
    "tl.select_alpha": ("n_folds", SPLIT),
    "tl.background_check": ("n_topics", SPLIT),
    "tl.cpca": ("n_components", SPLIT),
    "tl.deltanmf": ("n_topics_case", {"condition_key": "condition", "control": "ctrl"}),
    "tl.gpnsf": ("n_topics", {}),
    "pp.recipe": ("min_genes", SPLIT),
    "pp.highly_variable_genes": ("n_top_genes", SPLIT),
}
SEEDED = ("tl.bcnmf", "tl.nmf", "tl.consensus", "tl.select_alpha", "tl.select_n_topics", "tl.background_check")


def call(name, *args, **kwargs):
    part, function = name.split(".")
    return getattr(getattr(bc, part), function)(*args, **kwargs)


@pytest.fixture(scope="module")
def adata():
    adata = bc.datasets.simulated(n_target=40, n_background=30, n_genes=100)
    adata.obsm["spatial"] = np.random.default_rng(0).random((70, 2))
    return adata


@pytest.mark.parametrize("value", [True, np.True_, 2.5, 2.0, "2", None, -1])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers_everywhere(adata, name, value):
    argument, more = COUNTS[name]
    with pytest.raises(UserError, match=rf"`{argument}` must be a whole number .*, got {value!r}"):
        call(name, adata, **more, **{argument: value})
    with pytest.raises(ValueError, match="`n_target` must be a whole number"):
        bc.datasets.simulated(n_target=value)


@pytest.mark.parametrize("seed", [2**63, -1, 1.0, True, None])
@pytest.mark.parametrize("name", [*SEEDED, "tl.deltanmf", "tl.gpnsf"])
def test_seeds_can_be_stored(adata, name, seed):
    split = {} if name in ("tl.nmf", "tl.gpnsf") else SPLIT
    split = {"condition_key": "condition", "control": "ctrl"} if name == "tl.deltanmf" else split
    with pytest.raises(UserError, match="`random_state` must be a whole number from 0 to 9223372036854775807, got"):
        call(name, adata, **split, random_state=seed)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_largest_seed_goes_all_the_way(adata, tmp_path):
    from anndata import read_h5ad

    seed = 2**63 - 1
    few = {"n_topics": 2, "max_iter": 3, "progress": False, "random_state": seed}
    work = adata.copy()
    bc.tl.consensus(work, **SPLIT, **few, n_restarts=2, density=2.0)
    bc.tl.umap(work, random_state=seed, n_neighbors=5)
    bc.metrics.ari_bootstrap(work.obsm["X_bcnmf"], work.obs["condition"], n_boot=2, random_state=seed)
    bc.metrics.leakage(work.obsm["X_bcnmf"], work.obs["condition"], random_state=seed)
    bc.tl.gpnsf(work, **few)
    work.write(tmp_path / "x.h5ad")
    assert int(read_h5ad(tmp_path / "x.h5ad").uns["bcnmf"]["params"]["random_state"]) == seed


def test_genes_are_counted_as_topics_are(adata):
    work = adata.copy()
    bc.tl.nmf(work, n_topics=2, max_iter=3, tol=0, progress=False, key_added="bcnmf")
    for value in (2.5, True, 0):
        with pytest.raises(UserError, match="`n_genes` must be a whole number of at least 1"):
            bc.get.top_genes(work, n_genes=value)


@pytest.mark.parametrize(
    ("value", "how", "rule"),
    [
        (-1, {}, "a finite number of at least 0"),
        (np.inf, {}, "a finite number of at least 0"),
        (np.nan, {"most": np.inf}, "a number of at least 0"),
        (2, {"most": 1}, "a number from 0 to 1"),
        (0, {"most": 1, "closed": "neither"}, "a number above 0 and below 1"),
        (1, {"most": 1, "closed": "neither"}, "a number above 0 and below 1"),
        (0, {"closed": "right"}, "a finite number above 0"),
        (2, {"most": 1, "closed": "right"}, "a number above 0 and at most 1"),
    ],
)
def test_number(value, how, rule):
    with pytest.raises(UserError, match=f"`x` must be {rule}, got {value!r}"):
        number("x", value, **how)


def test_what_passes():
    number("x", np.float32(0.5))
    number("x", np.inf, most=np.inf)
    number("x", 1, most=1, closed="right")
    whole_number("x", np.int32(3), 3, 3)
    random_seed(2**63 - 1)
    assert seed_32(7) == 7
    assert seed_32(2**32 + 7) == 7


def test_wrong_types_are_type_errors_too():
    for wrong in (True, "1", None, [1]):
        with pytest.raises(UserTypeError, match="`x` must be"):
            number("x", wrong)
    with pytest.raises(UserError, match="`x` must be 'a' or 'b', got 'c'"):
        one_of("x", "c", ("a", "b"))
    with pytest.raises(UserError, match="`x` must be one of 'a', 'b', 'c', got None"):
        one_of("x", None, ("a", "b", "c"))
