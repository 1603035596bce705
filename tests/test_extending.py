"""The changes that `docs/extending.md` shows, applied to a copy of the package: they apply, and what they add works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bcnmf_sc as bc

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
"""The diff under each heading of the page."""
TOUCHED = {
    "A likelihood": {"engine/likelihoods.py"},
    "A plot": {"pl/_similarity.py", "pl/__init__.py"},
    "A factorisation method": {
        "_methods.py",
        "engine/mixture/__init__.py",
        "engine/mixture/fit.py",
        "tl/_mixture/__init__.py",
        "tl/_mixture/fit.py",
    },
}
"""All the files of the package that each of them may touch."""


def extended(name: str, folder: Path) -> Path:
    """Return a copy of the package with an example's diff applied."""
    shutil.copytree(Path(bc.__file__).parent, folder / "bcnmf_sc", ignore=shutil.ignore_patterns("__pycache__"))
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}  # not the repository that it may lie in
    command = ["git", "apply", "--whitespace=error", "-"]
    subprocess.run(command, cwd=folder, env=alone, input=DIFFS[name], text=True, check=True)
    return folder


def run(folder: Path, code: str) -> None:
    """Run code with the package of a folder; its assertions are ours."""
    here = f"import bcnmf_sc as bc; assert bc.__file__.startswith({str(folder)!r})\n"
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", here + code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DIFFS)
def test_a_change_touches_what_the_page_says(name):
    assert set(re.findall(r"^\+\+\+ b/bcnmf_sc/(.*)$", DIFFS[name], re.MULTILINE)) == TOUCHED[name]


def test_every_example_is_on_the_page():
    assert set(DIFFS) == set(TOUCHED)


LIKELIHOOD = """
import numpy as np
import pytest
import torch
from scipy import sparse

from bcnmf_sc.cli.options import likelihood
from bcnmf_sc.engine import LIKELIHOODS, Poisson

Beta = bc.likelihoods.BetaDivergence
assert LIKELIHOODS["beta"] is Beta
for power in (1.001, 1.5, 1.9):
    x = torch.tensor([0.0, 0.5, 3.0, 20.0], dtype=torch.float64)
    mu = torch.tensor([0.3, 1.0, 3.0, 5.0], dtype=torch.float64, requires_grad=True)
    beta = Beta(power)
    (gradient,) = torch.autograd.grad(beta.loss(x, mu).sum(), mu)
    mu = mu.detach()
    torch.testing.assert_close(beta.n(x, mu) - beta.p(x, mu), gradient)
    assert (beta.p(x, mu) >= 0).all() and (beta.n(x, mu) >= 0).all() and beta.p(x, mu)[0] == 0
np.testing.assert_allclose(Beta(1 + 1e-9).loss(3.0, np.ones(1)), Poisson().loss(3.0, np.ones(1)), rtol=1e-5)

adata = bc.datasets.simulated(n_target=120, n_background=80, n_genes=60)
sparse_counts = adata.copy()
sparse_counts.X = sparse.csr_matrix(adata.X)
dense = adata.copy()
dense.X = sparse_counts.X.toarray()
for data in (sparse_counts, dense):
    bc.tl.nmf(data, n_topics=3, likelihood="beta", tol=0.0, max_iter=40, accelerate=False)
    assert data.uns["nmf"]["params"]["likelihood"] == "beta"
    assert (data.var["nmf_power"] == 1.5).all()
    assert (np.diff(data.uns["nmf"]["loss"]["target"]) < 0).all()
np.testing.assert_allclose(sparse_counts.varm["nmf"], dense.varm["nmf"], atol=1e-4)
new = adata[:20].copy()
bc.tl.project(new, dense, key="nmf")
np.testing.assert_allclose(new.obsm["X_nmf"], dense.obsm["X_nmf"][:20], rtol=1e-2, atol=0.1)

how = {"background_key": "condition", "background": "ctrl", "n_topics": 2, "max_iter": 5, "tol": 0.0}
bc.tl.bcnmf(adata, **how, n_background_topics=2, cross_fit=2, likelihood=likelihood("beta:power=1.2"))
assert np.allclose(adata.var["bcnmf_power"], 1.2)
assert adata.obs["bcnmf_target_share"].notna().any()
with pytest.raises(TypeError, match=r"`likelihood=bc.likelihoods.BetaDivergence\\(power=1.2\\)`"):
    bc.tl.nmf(adata, power=1.2)
for wrong in (1.0, 2.5, "estimate"):
    with pytest.raises(ValueError, match="`power` must be a number between 1 and 2, got"):
        Beta(wrong)
"""


PLOT = """
import numpy as np

adata = bc.datasets.simulated(n_target=60, n_background=40, n_genes=50)
bc.tl.nmf(adata, n_topics=3, max_iter=20, tol=0.0)
ax = bc.pl.similarity(adata, key="nmf", cmap="Greys", show=False)
shown = ax.images[0].get_array()
assert shown.shape == (3, 3) and np.allclose(np.diag(shown), 1) and (shown < 1 + 1e-6).all()
assert [label.get_text() for label in ax.get_yticklabels()] == ["Topic 1", "Topic 2", "Topic 3"]
assert "similarity" in bc.pl.__all__
"""

METHOD = """
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd

adata = bc.datasets.simulated(n_target=120, n_background=80, n_genes=150)
adata.write_h5ad("in.h5ad")


def cli(*argv):
    command = [sys.executable, "-P", "-m", "bcnmf_sc.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


assert "mixture" in bc.tl.__all__
assert "mixture " in cli("--help") and "Find topics of which every cell has exactly one." in cli("--help")
assert "Seed of the topics to start from." in cli("mixture", "--help")
assert "Topic 3" in cli("mixture", "in.h5ad", "-k", "3", "-o", "out.h5ad")
bc.tl.mixture(adata, n_topics=3)
fitted = anndata.read_h5ad("out.h5ad")
np.testing.assert_array_equal(fitted.obsm["X_mixture"], adata.obsm["X_mixture"])
np.testing.assert_allclose(fitted.varm["mixture"].sum(0), 1, rtol=1e-5)
assert ((fitted.obsm["X_mixture"] > 0).sum(1) == 1).all() and fitted.uns["mixture"]["converged"]
blocks = adata.copy()
blocks.X = blocks.X.toarray()
bc.tl.mixture(blocks, n_topics=3)
np.testing.assert_allclose(blocks.varm["mixture"], adata.varm["mixture"], atol=1e-6)

cli("report", "out.h5ad", "--key", "mixture", "-o", "report.html")
page = open("report.html", encoding="utf-8").read()
assert "Which single gene program describes each of the 200 cells best?" in page
assert "Kamal Nigam" in page and "bc.tl.mixture(" in page

adata.obs["side"] = pd.Categorical(adata.obs["condition"] == "ctrl").rename_categories({True: "a", False: "b"})
split = {"background_key": "condition", "background": "ctrl", "labels": "side", "cells": "all"}
table = bc.metrics.compare(adata, **split, methods=["nmf", "mixture"], n_topics=3, n_seeds=2, n_boot=2, max_iter=20)
assert table["method"].tolist() == ["nmf", "nmf", "mixture", "mixture"]
assert table["ari"].notna().all() and table["converged"].tolist()[2:] == [True, True]
"""


@pytest.mark.parametrize(
    ("name", "code"), [("A likelihood", LIKELIHOOD), ("A plot", PLOT), ("A factorisation method", METHOD)]
)
def test_an_example_works(name, code, tmp_path):
    run(extended(name, tmp_path), code)
