"""What holds for every call of `tl`: copies of a file are refused before any work, warnings name the caller's line."""

from __future__ import annotations

import inspect
import warnings

import anndata as ad
import numpy as np
import pytest

import bcnmf_sc as bc
from bcnmf_sc._mudata import no_pull

SIDES = {"background_key": "condition", "background": "ctrl"}
QUICK = {"max_iter": 3, "progress": False}
NEEDED = SIDES | {
    "condition_key": "condition",
    "control": "ctrl",
    "groupby": "condition",
    "gene_sets": {"a": ["Gene 1"]},
}
FUNCTIONS = {name: getattr(bc.tl, name) for name in bc.tl.__all__ if inspect.isfunction(getattr(bc.tl, name))}
COPYING = [name for name, function in FUNCTIONS.items() if "copy" in inspect.signature(function).parameters]


@pytest.fixture
def small():
    return bc.datasets.simulated(n_target=40, n_background=30, n_genes=40)


def test_all_that_write_are_meant():
    assert len(COPYING) == 16


@pytest.mark.parametrize("name", COPYING)
def test_a_copy_of_a_file_is_refused_before_any_value_is_read(small, tmp_path, name):
    small.X.data[:] = np.nan  # which a fit would refuse
    small.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    function = FUNCTIONS[name]
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty][1:]
    given = {argument: value for argument, value in (NEEDED | {"reference": small}).items() if argument in required}
    with pytest.raises(ValueError, match="`copy` must be False for a file-backed AnnData"):
        function(backed, **given, copy=True)
    backed.file.close()


def fractional(adata):
    adata.X.data[:] += 0.5
    return adata


def several(adata):
    mudata = pytest.importorskip("mudata")
    with no_pull():
        return mudata.MuData({"rna": fractional(adata)})


def donors(adata):
    """Two on both sides, one on one alone."""
    bc.tl.nmf(adata, n_topics=2, tol=0.1, key_added="bcnmf")
    case = (adata.obs["condition"] == "case").to_numpy()
    name = np.array(["a", "b"])[np.arange(adata.n_obs) % 2]
    adata.obs["donor"] = np.where(case & (np.arange(adata.n_obs) % 3 == 0), "c", name)
    return adata


def two_donors(adata):
    """Two in each condition."""
    adata.obs["donor"] = [f"{side} {i % 2}" for i, side in enumerate(adata.obs["condition"])]
    return adata


def spots(adata):
    adata.obsm["spatial"] = np.stack(np.divmod(np.arange(adata.n_obs), 7), 1).astype(float)
    return adata


# each ends in a warning of its own, from another depth of the package
WARNING = {
    "Only 30 background cells": lambda a: bc.tl.bcnmf(a, **SIDES, n_topics=2, n_background_topics=2, **QUICK),
    "share no donor": lambda a: bc.tl.bcnmf(
        two_donors(a), **SIDES, n_topics=2, n_background_topics=2, sample_key="donor", **QUICK
    ),
    "looks like the donors": lambda a: bc.tl.bcnmf(a, **SIDES, n_topics=2, n_background_topics=2, **QUICK),
    "The loadings still moved": lambda a: bc.tl.nmf(a, n_topics=2, **QUICK),
    "The case topics still moved": lambda a: bc.tl.deltanmf(
        a, condition_key="condition", control="ctrl", n_topics_control=2, n_topics_case=1, **QUICK
    ),
    "are suppressed at this alpha": lambda a: bc.tl.consensus(a, **SIDES, n_topics=2, n_restarts=2, alpha=2.0, **QUICK),
    "values that are not whole numbers": lambda a: bc.tl.nmf(fractional(a), n_topics=2, **QUICK),
    "but `likelihood='poisson'` models counts": lambda a: bc.tl.bcnmf(
        several(a), background_key="condition", background="ctrl", n_topics=2, **QUICK
    ),
    "The cells are the units": lambda a: bc.tl.associate(donors(a), groupby="condition"),
    "are not in `adata`": lambda a: bc.tl.project(a[:, :30].copy(), donors(a)),
    "values above 0 are set to 1": lambda a: bc.tl.gpnsf(
        spots(a), n_topics=2, likelihood="bernoulli", device="cpu", **QUICK
    ),
    "The fit did not converge": lambda a: bc.tl.gpnsf(spots(a), n_topics=2, **QUICK),
}


@pytest.mark.parametrize("message", WARNING)
def test_warnings_name_the_line_that_called(small, message):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of others, with their newest versions
        WARNING[message](small)
    assert any(message in str(each.message) for each in seen), [str(each.message) for each in seen]
    lines = {line for *_, line in WARNING[message].__code__.co_lines()}
    assert {each.filename for each in seen} == {__file__}
    assert {each.lineno for each in seen} <= lines
