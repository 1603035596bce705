"""The spatial model against gpytorch, dense formulas, scipy's distributions, finite differences and itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from bcnmf_sc.engine.gpnsf import fit as gpnsf_fit
from bcnmf_sc.engine.gpnsf.fit import Climb, fit_spatial, predict
from bcnmf_sc.engine.gpnsf.model import KERNELS, Prior, SpatialModel, kl_free, lognormal_moments
from bcnmf_sc.engine.gpnsf.observations import OBSERVATIONS, SpotValues
from bcnmf_sc.engine.gpnsf.space import Places
from bcnmf_sc.engine.gpnsf.start import Shape, Values, begin, joint_nmf, modality_tensors, reordered

F64 = torch.float64


def whitened(n_points=12, n_topics=3, n_dims=2, *, kernel="matern32", turned=True, nugget=1e-3, seed=0):
    """A prior with inducing points, and random parameters of its posterior."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    z = torch.rand(n_points, n_dims, generator=g, dtype=F64) * 2 - 1
    basis = torch.linalg.qr(normal(n_topics, n_points, n_points))[0] if turned else torch.eye(n_points, dtype=F64)
    params = {
        "log_length": math.log(0.4) + 0.3 * normal(n_topics),
        "log_variance": 0.3 * normal(n_topics),
        "offset": normal(1, n_topics),
        "slope": normal(1, n_topics, n_dims),
        "m0": normal(n_topics, n_points),
        "log_d0": -1 + 0.3 * normal(n_topics, n_points),
        "basis0": basis.expand(n_topics, n_points, n_points).clone(),
    }
    return Prior(kernel, (z,), nugget=nugget), params, torch.rand(30, n_dims, generator=g, dtype=F64) * 2 - 1


def dense(prior, params, x):
    """Posterior of log usage as the seed has it (equations 20, 21 and 28, put right): mean, covariance, KL per
    topic."""
    z, out = prior.inducing[0], []
    for k in range(len(params["log_length"])):
        length, variance = params["log_length"][k].exp(), params["log_variance"][k].exp()

        def cov(a, b, length=length, variance=variance):
            return variance * KERNELS[prior.kernel]((a[:, None] - b).norm(dim=2) / length)

        kuu = cov(z, z) + (prior.nugget + prior.jitter * variance) * torch.eye(len(z), dtype=F64)
        kuh, khh = cov(z, x), cov(x, x) + prior.nugget * torch.eye(len(x), dtype=F64)
        root = torch.linalg.cholesky(kuu) @ params["basis0"][k]
        delta, omega_root = root @ params["m0"][k], root @ torch.diag(params["log_d0"][k].exp())
        omega = omega_root @ omega_root.T
        alpha = torch.linalg.solve(kuu, kuh)
        mean = params["offset"][0, k] + x @ params["slope"][0, k] + alpha.T @ delta
        covariance = khh - alpha.T @ (kuu - omega) @ alpha
        quadratic = delta @ torch.linalg.solve(kuu, delta) + torch.trace(torch.linalg.solve(kuu, omega))
        kl = 0.5 * (torch.logdet(kuu) - torch.logdet(omega) - len(z) + quadratic)
        out.append((mean, covariance.diagonal(), kl))
    return [torch.stack(each) for each in zip(*out, strict=True)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_dims", [2, 3])
def test_whitened_form_equals_the_dense_formulas(kernel, n_dims):
    prior, params, x = whitened(kernel=kernel, n_dims=n_dims, nugget=1e-2)
    mean, variance = prior.marginals(params, 0, x, prior.projection(params, 0, x))
    mean_dense, variance_dense, kl_dense = dense(prior, params, x)
    torch.testing.assert_close(mean, mean_dense, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(variance, variance_dense, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prior.kl(params), kl_dense.sum(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_marginals_equal_gpytorch(kernel):
    gpytorch = pytest.importorskip("gpytorch")
    prior, params, x = whitened(kernel=kernel, n_topics=1, turned=False, nugget=1e-4)
    length, variance = params["log_length"].exp().item(), params["log_variance"].exp().item()

    class Oracle(gpytorch.models.ApproximateGP):
        def __init__(self):
            points = gpytorch.variational.CholeskyVariationalDistribution(len(prior.inducing[0]))
            ridge = prior.nugget + prior.jitter * variance
            strategy = gpytorch.variational.VariationalStrategy(
                self, prior.inducing[0], points, learn_inducing_locations=False, jitter_val=ridge
            )
            super().__init__(strategy)
            self.mean_module = gpytorch.means.LinearMean(2)
            base = (
                gpytorch.kernels.RBFKernel()
                if kernel == "rbf"
                else gpytorch.kernels.MaternKernel(nu={"exponential": 0.5}.get(kernel, 1.5))
            )
            self.covar_module = gpytorch.kernels.ScaleKernel(base)

        def forward(self, at):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(at), self.covar_module(at))

    oracle = Oracle().double()
    oracle.covar_module.base_kernel.lengthscale = 2 * length if kernel == "exponential" else length
    oracle.covar_module.outputscale = variance
    oracle.mean_module.weights.data = params["slope"][0, 0][:, None].clone()
    oracle.mean_module.bias.data = params["offset"][0].clone()
    held = oracle.variational_strategy._variational_distribution
    held.variational_mean.data = params["m0"][0].clone()
    held.chol_variational_covar.data = torch.diag(params["log_d0"][0].exp())
    oracle.variational_strategy.variational_params_initialized.fill_(1)
    oracle.eval()
    with torch.no_grad():
        expected = oracle(x)
        kl = oracle.variational_strategy.kl_divergence()
        mean, spread = prior.marginals(params, 0, x, prior.projection(params, 0, x))
    np.testing.assert_allclose(mean[0], expected.mean, atol=1e-6)
    # gpytorch adds to the variance at x all that it adds to the diagonal at Z; we add the nugget only
    np.testing.assert_allclose(spread[0] + prior.jitter * variance, expected.variance, atol=1e-6)
    np.testing.assert_allclose(prior.kl(params), kl, atol=1e-6)


def test_kl_is_zero_at_the_prior_and_positive_elsewhere():
    prior, params, x = whitened(nugget=0.2)
    assert prior.kl(params) > 0
    params["m0"].zero_()
    params["log_d0"].zero_()
    assert abs(prior.kl(params).item()) < 1e-12
    # and the marginals are the prior's there
    mean, variance = prior.marginals(params, 0, x, prior.projection(params, 0, x))
    torch.testing.assert_close(mean, (params["offset"][0] + x @ params["slope"][0].T).T)
    torch.testing.assert_close(variance, (prior.nugget + params["log_variance"].exp())[:, None].expand_as(variance))
    assert kl_free(torch.zeros(2, 5), torch.zeros(2, 5)) == 0
    assert kl_free(torch.zeros(2, 5), torch.full((2, 5), -0.1)) > 0


def test_the_seeds_divergence_is_none():
    """Equation 28 as printed has K in place of its inverse: its last term can be far below the true one."""
    prior, params, _ = whitened(n_topics=1, turned=False)
    params["log_d0"].zero_()
    k = prior.covariance(params, prior.inducing[0], prior.inducing[0])[0] + (prior.nugget + 1e-9) * torch.eye(
        12, dtype=F64
    )
    delta = torch.linalg.eigh(k)[1][:, 0]  # where K is smallest
    assert 0.5 * delta @ k @ delta < 0.01 * (0.5 * delta @ torch.linalg.solve(k, delta))


def test_a_spot_at_an_inducing_point_has_its_nugget_in_common():
    prior, params, _ = whitened(nugget=0.5)
    z = prior.inducing[0]
    mean, variance = prior.marginals(params, 0, z, prior.projection(params, 0, z, torch.arange(len(z))))
    root = prior.cholesky(params, 0) @ params["basis0"]
    torch.testing.assert_close(
        mean,
        (params["offset"][0] + z @ params["slope"][0].T).T + (root @ params["m0"][..., None])[..., 0],
        rtol=1e-4,
        atol=1e-4,
    )
    expected = ((root * params["log_d0"].exp()[:, None]) ** 2).sum(2)
    torch.testing.assert_close(variance, expected, rtol=1e-3, atol=1e-3)


def values_of(rng, size, x, hidden):
    x = np.where(hidden, 0, x)
    rows, cols = x.nonzero()
    hidden_rows, hidden_cols = hidden.nonzero()
    constant = sum(math.lgamma(v + 1) for v in x[rows, cols])
    index = [torch.as_tensor(i) for i in (rows, cols)]
    return SpotValues(
        torch.as_tensor(size), *index, torch.as_tensor(x[rows, cols]), torch.as_tensor(hidden_rows),
        torch.as_tensor(hidden_cols), torch.tensor(constant, dtype=F64),
    )  # fmt: skip


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("density", [0.05, 0.9])
def test_log_likelihood_equals_scipy(name, density):
    rng = np.random.default_rng(0)
    e, W, size = rng.gamma(2, size=(20, 3)), rng.gamma(1, size=(11, 3)), rng.gamma(2, size=20)
    x = np.round(rng.gamma(2, 2, (20, 11)) + 1) * (rng.random((20, 11)) < density)
    x = (x > 0).astype(float) if name == "bernoulli" else x
    hidden = rng.random(x.shape) < 0.2
    parameter = rng.gamma(3, size=11)
    size = size / 20 if name == "bernoulli" else size  # or scipy's P(1) is 1 to the last digit
    rate = size[:, None] * (e @ W.T)
    law = {
        "poisson": lambda: stats.poisson.logpmf(x, rate),
        "bernoulli": lambda: stats.bernoulli.logpmf(x, 1 - np.exp(-rate)),
        "nb": lambda: stats.nbinom.logpmf(x, parameter, parameter / (parameter + rate)),
        "gaussian": lambda: stats.norm.logpdf(x, rate, parameter),
    }[name]()
    args = [torch.as_tensor(a) for a in (e, W, parameter)]
    found = OBSERVATIONS[name].log_prob(values_of(rng, size, x, hidden), *args)
    np.testing.assert_allclose(found, law[~hidden].sum(), rtol=1e-9)
    # information is the variance of the score: expected square of d log p / d rate
    r = torch.linspace(0.1, 3, 11, dtype=F64, requires_grad=True)
    information = OBSERVATIONS[name].information(r, args[2]).detach().numpy()
    support = np.arange(0.0, 400)[:, None]
    r0 = r.detach().numpy()
    score, weight = {
        "poisson": lambda: (support / r0 - 1, stats.poisson.pmf(support, r0)),
        "bernoulli": lambda: (
            np.where(support[:2] > 0, np.exp(-r0) / (1 - np.exp(-r0)), -1),
            stats.bernoulli.pmf(support[:2], 1 - np.exp(-r0)),
        ),
        "nb": lambda: (
            support / r0 - (support + parameter) / (r0 + parameter),
            stats.nbinom.pmf(support, parameter, parameter / (parameter + r0)),
        ),
        "gaussian": lambda: (1 / parameter[None], np.ones((1, 11))),
    }[name]()
    np.testing.assert_allclose(information, (score**2 * weight).sum(0), rtol=1e-6)


def simulated(n_spots=60, n_slices=1, *, seed=0, n_dims=2, hidden=True):
    """Places without symmetry, and values of all four observation models."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n_spots, n_dims)) * [3.0, 1.0, 2.0][:n_dims] + 5
    slices = np.arange(n_spots) * n_slices // n_spots
    usage = np.exp(np.column_stack([np.sin(places[:, 0]), np.cos(places[:, 1]), places[:, 0] / 4]))
    values = []
    for i, (name, model) in enumerate(OBSERVATIONS.items()):
        size = rng.gamma(5, 0.2, n_spots)
        rate = 3 * size[:, None] * (usage @ rng.gamma(0.5, 1, (10 + i, 3)).T)
        x = rng.poisson(rate).astype(float)
        x = (x > 2).astype(float) if name == "bernoulli" else x
        mask = sparse.csr_array((rng.random(x.shape) < 0.1).astype(float)) if hidden else None
        values.append(Values(name, sparse.csr_array(x), model, size, weight=1 + 0.5 * i, hidden=mask))
    return places, slices, values


def begun(n_slices=1, *, n_nonspatial=1, n_inducing=15, dtype=F64, **more):
    """A model and its parameters at the start, in order of the spots."""
    places, slices, values = simulated(n_slices=n_slices, **more)
    where = Places.of(places, slices)
    values = [reordered(each, where.order) for each in values]
    shape = Shape(3 - n_nonspatial, n_nonspatial, n_inducing=n_inducing)
    start = joint_nmf(values, 3)
    device = torch.device("cpu")
    return begin(where.scaled[where.order], slices[where.order], values, shape, start, device=device, dtype=dtype)


@pytest.mark.parametrize("n_slices", [1, 2])
def test_minibatch_bound_is_unbiased(n_slices):
    """Over all batches of a partition, with the draws of each spot its own, the mean is the bound of all spots."""
    model, params = begun(n_slices)
    noise = torch.randn(2, 60, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    whole = model.elbo(params, torch.arange(60), noise, kl_weight=0.7)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    parts = [model.elbo(params, spots, noise[:, spots], kl_weight=0.7) for spots in order.split(12)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-9, atol=1e-9)
    # kept projections are the same projections
    kept = model.projections(params, torch.arange(60))
    spots = order[:12]
    again = model.elbo(params, spots, noise[:, spots], kl_weight=0.7, projections=model.select(kept, spots))
    torch.testing.assert_close(again, parts[0], rtol=1e-9, atol=1e-9)


def test_draws_average_to_the_expectation():
    """Over many draws the fit's term is E log p: for Poisson with one topic it is known."""
    prior, params, x = whitened(n_topics=1)
    n = len(x)
    counts = np.random.default_rng(0).poisson(2.0, (n, 4)).astype(float)
    values = Values("poisson", sparse.csr_array(counts), OBSERVATIONS["poisson"], np.ones(n))
    modality = modality_tensors(values, lambda a: torch.as_tensor(np.asarray(a), dtype=F64))
    params |= {
        "V_poisson": torch.full((4, 1), 0.7, dtype=F64),
        "F_poisson": torch.zeros(4, 0, dtype=F64),
        "aux_poisson": torch.zeros(4, dtype=F64),
    }
    params["offset"].zero_()
    params["slope"].zero_()
    params["log_d0"] -= 1
    model = SpatialModel(prior, x, torch.zeros(n, dtype=torch.long), torch.full((n,), -1), [modality])
    noise = torch.randn(4000, n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = model.elbo(params, torch.arange(n), noise) + prior.kl(params)
    mean, variance = (v[:, 0] for v in model.log_usage(params, torch.arange(n)))
    w = modality.loadings(params)[:, 0]
    rate = torch.exp(mean + variance / 2)
    x_t = torch.as_tensor(counts)
    expected = (x_t * (mean[:, None] + w.log())).sum() - (rate[:, None] * w).sum() - torch.lgamma(x_t + 1).sum()
    assert abs(found - expected) < 0.01 * abs(expected)


@pytest.mark.parametrize("n_inducing", [15, 1000])
def test_gradients_equal_finite_differences(n_inducing):
    model, params = begun(2, n_inducing=n_inducing)
    noise = torch.randn(1, 60, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    unused = {f"aux_{each.name}" for each in model.modalities if not each.observation.parameter}
    names = [n for n, p in params.items() if p.numel() and not n.startswith("basis") and n not in unused]
    for name in names:
        params[name].requires_grad_()
    model.elbo(params, torch.arange(60), noise).backward()
    g = torch.Generator().manual_seed(1)
    for name in names:
        direction = torch.randn(params[name].shape, generator=g, dtype=F64)
        slope = (params[name].grad * direction).sum().item()
        ends = []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                moved = params | {name: params[name] + step * direction}
                ends.append(model.elbo(moved, torch.arange(60), noise).item())
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-4), name


def test_no_covariance_across_slices():
    model, params = begun(2)
    spots = torch.arange(60)
    before = model.log_usage(params, spots)[0]
    with torch.no_grad():
        params["m1"] += 1.0
    after = model.log_usage(params, spots)[0]
    same = (before == after).all(1)
    assert same[model.slice == 0].all()
    assert not same[model.slice == 1].any()


def test_turning_the_basis_leaves_the_mean_and_makes_the_information_diagonal():
    model, params = begun()
    state = gpnsf_fit._ClimbState(params, torch.optim.Adam([params["m0"].requires_grad_()]), torch.Generator())
    spots = torch.arange(60)
    before = model.log_usage(params, spots)[0].detach()
    gpnsf_fit.rebase(model, state)
    mean = model.log_usage(params, spots)[0]
    torch.testing.assert_close(mean.detach(), before, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        ((_, _, a),) = model.projections(params, spots)
        d = model.information(params, spots, None)[:, :2].T
        gram = (a * d[:, None]) @ a.mT
        off = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
        assert off.abs().max() < 1e-8 * gram.abs().max()
        # the Laplace posterior, dense: (I + A D A')^-1
        spread = torch.linalg.inv(torch.eye(a.shape[1], dtype=F64) + gram)
        torch.testing.assert_close(
            torch.exp(2 * params["log_d0"]), spread.diagonal(dim1=1, dim2=2), rtol=1e-8, atol=1e-8
        )


QUICK = Climb(max_iter=12, dtype=F64, n_starts=1, device="cpu")


def test_the_order_of_spots_changes_nothing():
    places, slices, values = simulated(n_slices=2)
    one = fit_spatial(places, slices, values, Shape(2, 1, n_inducing=12), climb=QUICK)
    order = np.random.default_rng(0).permutation(60)
    moved = [reordered(v, order) for v in values]
    other = fit_spatial(places[order], slices[order], moved, Shape(2, 1, n_inducing=12), climb=QUICK)
    np.testing.assert_allclose(other.usage, one.usage[order], rtol=1e-8)
    np.testing.assert_allclose(other.elbo, one.elbo, rtol=1e-8)


def test_shift_and_unit_of_coordinates_change_nothing_and_rotation_hardly_anything():
    places, slices, values = simulated()
    one = fit_spatial(places, slices, values, Shape(3, n_inducing=12), climb=QUICK)
    moved = fit_spatial(places * 250 - 1e4, slices, values, Shape(3, n_inducing=12), climb=QUICK)
    np.testing.assert_allclose(moved.usage, one.usage, rtol=1e-4)
    np.testing.assert_allclose(moved.lengthscale, 250 * one.lengthscale, rtol=1e-4)
    c, s = np.cos(0.7), np.sin(0.7)
    turned = fit_spatial(places @ [[c, -s], [s, c]], slices, values, Shape(3, n_inducing=12), climb=QUICK)
    # the bound is the same to the last digit at the start; Adam's steps in the trend depend on the axes
    np.testing.assert_allclose(turned.elbo[0, 1], one.elbo[0, 1], rtol=1e-9)
    assert np.corrcoef(turned.usage.ravel(), one.usage.ravel())[0, 1] > 0.999


def test_same_seed_same_bits_and_no_global_seed():
    places, slices, values = simulated()
    state = torch.random.get_rng_state()
    fits = [fit_spatial(places, slices, values, Shape(2), random_state=seed, climb=QUICK) for seed in (0, 0, 1)]
    assert (fits[0].usage == fits[1].usage).all()
    assert not (fits[0].usage == fits[2].usage).all()
    assert (torch.random.get_rng_state() == state).all()


def test_the_bound_rises_and_batches_reach_the_same():
    places, slices, values = simulated(120)
    shape = Shape(3, n_inducing=40)
    whole = fit_spatial(places, slices, values, shape, climb=Climb(max_iter=120, tol=0, device="cpu"))
    assert whole.elbo[-5:, 1].mean() > whole.elbo[:2, 1].mean() + 0.02 * abs(whole.elbo[0, 1])
    batches = fit_spatial(places, slices, values, shape, climb=Climb(max_iter=40, tol=0, batch_size=40, device="cpu"))
    assert abs(batches.elbo[-5:, 1].mean() - whole.elbo[-5:, 1].mean()) < 0.01 * abs(whole.elbo[-1, 1])
    assert np.corrcoef(batches.usage.ravel(), whole.usage.ravel())[0, 1] > 0.98


def test_many_spots_go_in_batches(monkeypatch):
    places, slices, values = simulated()
    monkeypatch.setattr(gpnsf_fit, "AT_ONCE", 59)
    monkeypatch.setattr(gpnsf_fit, "BATCH", 25)
    how = {"max_iter": 4, "device": "cpu"}
    one, two, whole = (
        fit_spatial(places, slices, values, Shape(2), climb=Climb(**how, batch_size=size)) for size in (None, 25, 60)
    )
    assert (one.usage == two.usage).all()
    assert not (one.usage == whole.usage).all()


def test_gain_is_that_of_the_smoothed_bound():
    rise = np.concatenate([np.full(20, -200.0), np.full(20, -110.0), np.full(20, -100.0)])
    assert gpnsf_fit.gain(rise) == pytest.approx(0.1)
    assert gpnsf_fit.gain(rise[1:]) == np.inf
    places, slices, values = simulated()
    how = {"max_iter": 64, "device": "cpu", "n_starts": 1}
    assert fit_spatial(places, slices, values, Shape(2, n_inducing=12), climb=Climb(**how, tol=1.0)).n_iter == 60
    assert fit_spatial(places, slices, values, Shape(2, n_inducing=12), climb=Climb(**how, tol=0.0)).n_iter == 64


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (lambda n, noise: noise, True),
        (lambda n, noise: noise + n, False),
        (lambda n, noise: noise - n, False),
        (lambda n, noise: noise - 4e-2 * n, True),  # within chance
        (lambda n, noise: -1e-3 * n, True),  # within the tolerance
    ],
    ids=["flat", "rising", "falling", "falling by chance", "falling a little"],
)
def test_rest_is_where_the_bound_neither_rises_nor_falls(bound, expected):
    n = np.arange(100)
    noise = np.random.default_rng(1).permuted(np.linspace(-3, 3, 20).repeat(5).reshape(20, 5).T, axis=1).ravel()
    elbo = (-1e4 + bound(n, noise)).tolist()
    assert gpnsf_fit.at_rest(elbo, 2e-5) is expected
    assert gpnsf_fit.at_rest(elbo, 0) is False
    assert gpnsf_fit.at_rest(elbo[:59], 2e-5) is False


def test_what_is_hidden_is_not_looked_at():
    places, slices, values = simulated()
    spoiled = []
    for each in values:
        x = each.matrix.toarray()
        x[each.hidden.toarray() > 0] = 1.0 if each.name == "bernoulli" else 99.0
        spoiled.append(Values(each.name, sparse.csr_array(x), each.observation, each.size, each.weight, each.hidden))
    one, other = (fit_spatial(places, slices, v, Shape(3), climb=QUICK) for v in (values, spoiled))
    np.testing.assert_array_equal(one.usage, other.usage)


@pytest.mark.parametrize("batch", [None, 25])
def test_interrupted_and_taken_up_again(tmp_path, monkeypatch, batch):
    places, slices, values = simulated()
    shape, how = Shape(2, 1, n_inducing=12), {"max_iter": 14, "batch_size": batch, "device": "cpu"}
    whole = fit_spatial(places, slices, values, shape, climb=Climb(**how))
    path = tmp_path / "state"
    first = fit_spatial(places, slices, values, shape, climb=Climb(**how, checkpoint=path, max_time=0.0))
    assert first.n_iter == 0
    rate = gpnsf_fit.learning_rate_share

    def interrupt(done, max_iter):
        if done == 8:
            raise KeyboardInterrupt
        return rate(done, max_iter)

    with monkeypatch.context() as patch:
        patch.setattr(gpnsf_fit, "learning_rate_share", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit_spatial(places, slices, values, shape, climb=Climb(**how, checkpoint=path, checkpoint_every=6))
    assert len(np.load(path)["elbo"]) == 6
    resumed = fit_spatial(places, slices, values, shape, climb=Climb(**how, checkpoint=path))
    np.testing.assert_array_equal(resumed.elbo, whole.elbo)
    np.testing.assert_array_equal(resumed.usage, whole.usage)
    other = [Values(v.name, v.matrix, OBSERVATIONS["poisson"], v.size) for v in values]
    for changed, seed in ((values, 1), (other, 0)):
        with pytest.raises(ValueError, match="another fit"):
            fit_spatial(places, slices, changed, shape, random_state=seed, climb=Climb(**how, checkpoint=path))
    path.write_text("no checkpoint")
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        fit_spatial(places, slices, values, shape, climb=Climb(**how, checkpoint=path))


def test_prediction_at_the_spots_is_their_usage_and_far_away_the_prior():
    places, slices, values = simulated(n_slices=2)
    factors = fit_spatial(
        places, slices, values, Shape(2, 1, n_inducing=12), climb=Climb(max_iter=30, dtype=F64, device="cpu")
    )
    for s in (0, 1):
        mean, sd = predict(factors.posterior, places[slices == s], s)
        np.testing.assert_allclose(mean[:, :2], factors.usage[slices == s, :2], rtol=1e-6)
        np.testing.assert_allclose(sd[:, :2], factors.usage_sd[slices == s, :2], rtol=1e-6)
        assert np.ptp(mean[:, 2]) == 0
    variance = factors.variance + factors.posterior["nugget"]
    centre, radius = factors.posterior["centre"][0], factors.posterior["radius"]
    far = centre + radius * np.array([[30.0, 0.0]])
    mean, sd = predict(factors.posterior, far, 0)
    np.testing.assert_allclose((sd / mean)[0, :2], np.sqrt(np.expm1(variance)), rtol=1e-3)


def test_usage_moments_are_lognormal():
    mean, variance = torch.tensor([0.3, -1.0], dtype=F64), torch.tensor([0.5, 1.5], dtype=F64)
    law = stats.lognorm(np.sqrt(variance.numpy()), scale=np.exp(mean.numpy()))
    usage, sd = lognormal_moments(mean, variance)
    np.testing.assert_allclose(usage, law.mean())
    np.testing.assert_allclose(sd, law.std())


def test_frozen_loadings_stay():
    places, slices, values = simulated(hidden=False)
    rng = np.random.default_rng(0)
    given = [
        Values(v.name, v.matrix, v.observation, v.size, frozen=rng.gamma(1, 1, (v.matrix.shape[1], 2))) for v in values
    ]
    factors = fit_spatial(places, slices, given, Shape(3), climb=QUICK)
    for each in given:
        ratio = factors.loadings[each.name][:, :2] / each.frozen
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-8)
    alone = fit_spatial(places, slices, given, Shape(2), climb=QUICK)
    assert alone.usage.shape == (60, 2)
