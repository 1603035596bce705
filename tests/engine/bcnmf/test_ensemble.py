"""Choices from many fits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from bcnmf_sc.engine import Poisson, Run, row_source
from bcnmf_sc.engine.bcnmf.ensemble import Model, held_out_gain


@pytest.mark.parametrize("rare_in", ["target", "background"])
def test_genes_that_only_held_out_cells_have_explain_nothing(rare_in):
    """Single counts, as many genes have: what a fit of other cells explains does not grow by not having seen them."""
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.5, 4.0, (300, 3)) @ rng.gamma(0.4, 1.0, (3, 60)))
    is_target, fold = np.arange(300) < 200, np.arange(300) % 3
    where = np.flatnonzero(is_target == (rare_in == "target"))[:80]
    single = sparse.csr_array((np.ones(80), (where, np.arange(80))), shape=(300, 80))
    gains = []
    for counts in (sparse.csr_array(x), sparse.hstack([x, single], format="csr")):
        source = row_source(counts.astype(np.float32))
        model = Model(
            Poisson(), 2, is_target.astype(float), ~is_target, 0.0 * is_target, np.asarray(counts.sum(0)) > 0, 2
        )
        gains.append(held_out_gain(source, model, fold, 0, random_state=0, run=Run(max_iter=100, tol=1e-3)))
    plain, rare = gains
    assert rare.explained_target < plain.explained_target + 0.03
    assert rare.explained_background < plain.explained_background + 0.03
