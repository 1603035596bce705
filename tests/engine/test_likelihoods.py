"""Terms against automatic differentiation."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bcnmf_sc import likelihoods
from bcnmf_sc.engine import LIKELIHOODS
from bcnmf_sc.engine.likelihoods import LikelihoodName


def test_every_likelihood_is_shown_to_users():
    assert get_args(LikelihoodName) == tuple(LIKELIHOODS)
    shown = {getattr(likelihoods, name) for name in likelihoods.__all__}
    assert shown == {*LIKELIHOODS.values(), likelihoods.Likelihood}


@pytest.mark.parametrize("name", LIKELIHOODS)
@given(x=st.integers(0, 50), mu=st.floats(1e-3, 100))
def test_terms_are_the_gradient_of_the_loss(name, x, mu):
    likelihood = LIKELIHOODS[name]().started(1)
    at = torch.tensor([mu], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([float(x)], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(likelihood.loss(value, at).sum(), at)
    p, n = likelihood.p(value, at.detach()), likelihood.n(value, at.detach())
    assert p >= 0
    assert n >= 0
    assert float(n - p) == pytest.approx(float(gradient), rel=1e-9, abs=1e-9)
    assert x > 0 or float(p) == 0


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_loss_is_zero_at_a_perfect_fit_and_positive_elsewhere(name):
    likelihood = LIKELIHOODS[name]().started(1)
    x = np.array([1.0, 3.0, 20.0])
    np.testing.assert_allclose(likelihood.loss(x, x), 0, atol=1e-12)
    assert (likelihood.loss(x, x * 1.5) > 0).all()
