"""Designs, linear models and moderation against limma, statsmodels and formulas written out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import optimize, stats
from scipy.special import polygamma

from bcnmf_sc.tl._design import Design, unit_means
from bcnmf_sc.tl._design.linear import learn_covariance, least_squares, moderated, residual_likelihood
from bcnmf_sc.tl._design.moderation import fit_prior, squeeze, trigamma_inverse

SPREAD = np.array([0.21, 1.4, 0.08, 0.55, 3.1, 0.34, 0.9, 0.13])


# moderation


@pytest.mark.parametrize("x", [1e-9, 1e-3, 0.1, 1.0, 50.0, 1e9])
def test_trigamma_is_inverted(x) -> None:
    assert polygamma(1, trigamma_inverse(x)) == pytest.approx(x, rel=1e-6)


def test_moderation_is_that_of_limma() -> None:
    """Values by ``fitFDist`` and ``squeezeVar`` of inmoose 0.9.1, a port of limma."""
    assert fit_prior(SPREAD, 4) == pytest.approx((0.4115427659378556, 3.1235480415392156), rel=1e-12)
    expected = [0.2983728878, 0.9665792328, 0.225375556, 0.4892889864, 1.9211597256, 0.3713702196, 0.6858202643]
    variance, df = squeeze(SPREAD, 4)
    np.testing.assert_allclose(variance[:7], expected, rtol=1e-9)
    assert df == pytest.approx(4 + 3.1235480415392156)
    alike = np.array([1.0, 1.1, 0.9, 1.05, 0.97])
    assert fit_prior(alike, 10) == (pytest.approx(1.004), np.inf)
    np.testing.assert_allclose(squeeze(alike, 10)[0], 1.004)
    assert squeeze(alike, 10)[1] == 50
    zero = np.array([0.0, 0.5, 0.7, 1.2, 0.1, 0.4])
    assert fit_prior(zero, 3) == pytest.approx((0.0035256876448582996, 0.441343977426791), rel=1e-12)


@pytest.mark.parametrize(("df", "prior_df"), [(2, 4.0), (4, 10.0), (18, 3.0)])
def test_prior_is_found_again(df, prior_df) -> None:
    rng = np.random.default_rng(0)
    variance = 2.0 * rng.f(df, prior_df, 20000)
    found, found_df = fit_prior(variance, df)
    assert found == pytest.approx(2.0, rel=0.1)
    assert found_df == pytest.approx(prior_df, rel=0.15)


def test_features_without_variance_have_no_part_in_the_prior() -> None:
    with_nan = np.append(SPREAD, np.nan)
    assert fit_prior(with_nan, 4) == fit_prior(SPREAD, 4)
    variance, df = squeeze(with_nan, 4)
    assert np.isnan(variance[-1])
    assert df == squeeze(SPREAD, 4)[1]
    assert fit_prior(np.array([0.7]), 4) == (0.7, 0.0)
    assert squeeze(np.array([0.7]), 4) == (pytest.approx([0.7]), 4)


# linear models


def two_groups(n: int = 4, n_features: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(2 * n), np.repeat([0.0, 1.0], n)])
    return rng.normal(size=(2 * n, n_features)) * rng.uniform(0.3, 2, n_features), X


def test_moderated_t_of_two_groups_is_written_out() -> None:
    y, X = two_groups()
    effects = moderated(y, X, np.array([0.0, 1.0]))
    low, high = y[:4], y[4:]
    s2 = (low.var(0, ddof=1) + high.var(0, ddof=1)) / 2
    prior, prior_df = fit_prior(s2, 6)
    df = min(6 + prior_df, 4 * 6)  # eight features are worth four
    post = (prior_df * prior + 6 * s2) / (prior_df + 6) if np.isfinite(prior_df) else np.full(8, prior)
    t = (high.mean(0) - low.mean(0)) / np.sqrt(post * (1 / 4 + 1 / 4))
    np.testing.assert_allclose(effects.statistic, t, rtol=1e-10)
    np.testing.assert_allclose(effects.p_value, 2 * stats.t.sf(abs(t), df), rtol=1e-10)
    half = stats.t.isf(0.025, df) * np.sqrt(post / 2)
    np.testing.assert_allclose(effects.interval()[1] - effects.estimate, half, rtol=1e-10)


def test_least_squares_are_those_of_statsmodels_with_any_covariance() -> None:
    rng = np.random.default_rng(1)
    y, X = two_groups()
    X = np.column_stack([X, rng.normal(size=8)])
    root = rng.normal(size=(8, 8))
    covariance = root @ root.T + np.eye(8)
    contrast = np.array([0.0, 1.0, -0.5])
    estimate, unscaled, variance, df = least_squares(y, X, contrast, covariance)
    assert df == 5
    for k in range(3):
        fit = sm.GLS(y[:, k], X, covariance).fit()
        assert estimate[k] == pytest.approx(contrast @ fit.params)
        assert variance[k] == pytest.approx(fit.scale)
        assert variance[k] * unscaled == pytest.approx(contrast @ fit.cov_params() @ contrast)


def test_residual_likelihood_is_that_of_contrasts_that_hold_no_effect() -> None:
    """Differences of it are those of the normal density of ``K'y`` with ``K'X = 0``, each variance at its best."""
    y, X = two_groups(3, 1)
    K = np.linalg.svd(X)[0][:, 2:]
    found = []
    for correlation in (0.0, 0.3, 0.8):
        covariance = np.eye(6) + correlation * (np.kron(np.ones((2, 2)), np.eye(3)) - np.eye(6))
        inner = K.T @ covariance @ K

        def loss(log_variance, inner=inner):
            return -stats.multivariate_normal(np.zeros(4), np.exp(log_variance) * inner).logpdf(K.T @ y[:, 0])

        best = optimize.minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-9})
        found.append((residual_likelihood(y, X, covariance), -best.fun))
    ours, theirs = np.diff(np.array(found), axis=0).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("truth", [0.0, 0.5, 0.8])
def test_correlation_of_blocks_is_found(truth) -> None:
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(40), 2)
    X = np.column_stack([np.ones(80), np.tile([0.0, 1.0], 40)])
    y = np.sqrt(truth) * rng.normal(size=(40, 12))[block] + np.sqrt(1 - truth) * rng.normal(size=(80, 12))
    assert learn_covariance(y, X, block=block)[0, 1] == pytest.approx(truth, abs=0.12)


def test_few_blocks_do_not_make_an_extreme_correlation() -> None:
    """One pair whose two units agree by chance, beside four donors."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(6, 12))
    y[1] = y[0] + 1e-3 * rng.normal(size=12)
    X = np.column_stack([np.ones(6), np.tile([0.0, 1.0], 3)])
    covariance = learn_covariance(y, X, block=np.array([0, 0, 1, 2, 3, 4]))
    assert 0.2 < covariance[0, 1] < 0.8
    assert covariance[2, 3] == 0


@pytest.mark.parametrize("ratio", [0.0, 100.0])
def test_units_of_few_cells_weigh_less_where_that_shows(ratio) -> None:
    rng = np.random.default_rng(0)
    n = np.tile([5.0, 500.0], 20)
    y = rng.normal(size=(40, 12)) * np.sqrt(1 + ratio / n)[:, None]
    X = np.column_stack([np.ones(40), np.repeat([0.0, 1.0], 20)])
    variance = np.diag(learn_covariance(y, X, n=n))
    assert variance.mean() == pytest.approx(1)
    if ratio:
        assert variance[0] / variance[1] > 8
    else:
        assert variance[0] / variance[1] < 1.3
    np.testing.assert_array_equal(learn_covariance(y, X, n=np.full(40, 7.0)), np.eye(40))


def test_p_values_are_uniform_where_nothing_differs() -> None:
    """Three donors a side, unequal cells, a covariate that goes with the group."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(300):
        group = np.repeat([0.0, 1.0], 4)
        age = rng.normal(size=8) + group
        n = rng.integers(20, 400, 8).astype(float)
        sd = np.sqrt(4 / rng.chisquare(4, 12))
        y = sd * rng.normal(size=(8, 12)) * np.sqrt(1 + 20 / n)[:, None] + age[:, None]
        X = np.column_stack([np.ones(8), group, age])
        p.append(moderated(y, X, np.array([0.0, 1.0, 0.0]), n=n).p_value)
    assert 0.035 < np.mean(np.array(p) < 0.05) < 0.065
    assert stats.kstest(np.array(p).ravel(), "uniform").statistic < 0.03


def test_a_design_without_residual_gives_effects_alone() -> None:
    effects = moderated(np.array([[1.0, 2.0], [4.0, 4.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(effects.estimate, [3.0, 2.0])
    assert np.isnan(effects.p_value).all()
    assert np.isnan(effects.interval()[0]).all()


# designs


def obs(n_donors: int = 8, n_cells: int = 6) -> pd.DataFrame:
    donor = np.repeat(np.arange(n_donors), n_cells)
    return pd.DataFrame(
        {
            "donor": [f"d{i}" for i in donor],
            "condition": pd.Categorical(np.where(donor % 2, "sick", "well"), categories=["well", "sick"]),
            "sex": np.where(donor % 4 < 2, "f", "m"),
            "age": 20.0 + 5 * donor + (donor % 3),
            "time": np.where(np.arange(len(donor)) % n_cells < 2, "before", "after"),
            "n_counts": np.arange(len(donor), dtype=float),
            "smoker": donor > 5,
            "odd name": donor % 3,
        }
    )


def read(formula: str, contrast=None, table: pd.DataFrame | None = None, **how) -> Design:
    table = obs() if table is None else table
    return Design.formula(table, formula, contrast, sample_key="donor", used=np.ones(len(table), bool), **how)


@pytest.mark.parametrize(
    ("formula", "contrast", "weights"),
    [
        ("~ condition + age + sex", None, {"condition[T.sick]": 1}),
        ("~ condition + age + sex", "condition", {"condition[T.sick]": 1}),
        ("~ condition + age + sex", ("condition", "well", "sick"), {"condition[T.sick]": 1}),
        ("~ condition + age + sex", ("condition", "sick", "well"), {"condition[T.sick]": -1}),
        ("~ condition + age + sex", "age", {"age": 1}),
        ("~ condition + age", ("age", 25, 35), {"age": 10}),
        ("~ condition + smoker", ("smoker", False, True), {"smoker[T.True]": 1}),
        ("~ condition + np.log(age) + C(sex)", None, {"condition[T.sick]": 1}),
        ("~ condition + bs(age, df=3)", None, {"condition[T.sick]": 1}),
        ("~ condition + `odd name`", "odd name", {"Q('odd name')": 1}),
    ],
)
def test_contrasts_are_those_of_statsmodels(formula, contrast, weights) -> None:
    table = obs().replace({"age": {35.0 + 0: 35.0}})
    if contrast == ("age", 25, 35):
        table["age"] = np.where(np.arange(len(table)) // 6 % 2, 25, 35)
        table["age"] = table["age"].where(np.arange(len(table)) // 6 > 1, 30)
    design = read(formula, contrast, table)
    donors = table.drop_duplicates("donor").reset_index(drop=True)
    y = np.random.default_rng(0).normal(size=(8, 5))
    effects = design.effects(y)
    named = formula.replace("`odd name`", "Q('odd name')")
    for k in range(5):
        fit = smf.ols("y " + named, donors.assign(y=y[:, k])).fit()
        expected = sum(weight * fit.params[name] for name, weight in weights.items())
        assert effects.estimate[k] == pytest.approx(expected, rel=1e-8)


def test_interactions_are_averaged_over_the_units_and_coefficients_can_be_weighed() -> None:
    table = obs()
    y = np.random.default_rng(0).normal(size=(8, 2))
    donors = table.drop_duplicates("donor").reset_index(drop=True)
    fit = smf.ols("y ~ condition * age", donors.assign(y=y[:, 0])).fit()
    cross = "condition[T.sick]:age"
    expected = fit.params["condition[T.sick]"] + donors["age"].mean() * fit.params[cross]
    average = read("~ condition * age", ("condition", "well", "sick"), table).effects(y)
    assert average.estimate[0] == pytest.approx(expected)
    weighed = read("~ condition * age", {cross: 2.0}, table)
    assert weighed.effects(y).estimate[0] == pytest.approx(2 * fit.params[cross])
    assert (weighed.column, weighed.reference) == (f"+2 {cross}", "0")
    assert (weighed.side == -1).all()


def test_units_are_donors_and_samples_of_one_donor_are_a_block() -> None:
    design = read("~ condition + age")
    assert design.units["donor"].tolist() == [f"d{i}" for i in range(8)]
    assert design.units["n_cells"].tolist() == [6] * 8
    assert design.block is None
    assert design.n == (4, 4)
    np.testing.assert_array_equal(design.of_cells(), np.repeat([0, 1] * 4, 6))
    paired = read("~ time + age", ("time", "before", "after"))
    assert paired.units["n_cells"].tolist() == [4, 2] * 8
    assert paired.units["condition"].tolist() == ["after", "before"] * 8
    np.testing.assert_array_equal(paired.block, np.repeat(np.arange(8), 2))
    table = obs()
    table["patient"] = [f"p{int(d[1:]) // 2}" for d in table["donor"]]
    for how in ({"formula": "~ condition + (1 | patient)"}, {"formula": "~ condition", "pair_key": "patient"}):
        np.testing.assert_array_equal(read(**how, table=table).block, np.repeat(np.arange(4), 2))


def test_cells_without_a_value_are_left_out_and_donors_named() -> None:
    table = obs()
    table.loc[table["donor"] == "d3", "age"] = np.nan
    table.loc[0, "donor"] = np.nan
    with pytest.warns(UserWarning, match="'d3' of 'donor' lack a value of 'condition', 'age'; they are left out"):
        design = read("~ condition + age", table=table)
    assert len(design.units) == 7
    assert (design.unit == -1).sum() == 7
    assert design.units["n_cells"].tolist() == [5, 6, 6, 6, 6, 6, 6]


def test_two_groups_of_cells() -> None:
    sample = pd.Categorical(np.repeat(["a", "b", "c"], 4))
    side = np.array([1, 1, -1, 0] * 3)
    design = Design.two_groups(side, sample)
    assert design.units.to_numpy().tolist()[:2] == [["a", "background", 1], ["a", "target", 2]]
    np.testing.assert_array_equal(design.unit, [1, 1, -1, 0, 3, 3, -1, 2, 5, 5, -1, 4])
    np.testing.assert_array_equal(design.block, [0, 0, 1, 1, 2, 2])
    values = np.arange(24.0).reshape(12, 2)
    np.testing.assert_allclose(unit_means(values, design.unit, 6)[1], values[:2].mean(0))
    weights = np.linspace(0.1, 2, 12)
    expected = np.average(values[4:6], axis=0, weights=weights[4:6])
    np.testing.assert_allclose(unit_means(values, design.unit, 6, weights)[3], expected)


@pytest.mark.parametrize(
    ("formula", "contrast", "message"),
    [
        ("condition", None, "`design` must be a formula such as"),
        ("y ~ condition", None, "`design` must be a formula such as"),
        ("~ condition +* age", None, "`design` must be a formula such as"),
        ("~ 1", None, "`design` must name columns of `adata.obs`"),
        (
            "~ condition + weight",
            None,
            "`design` must name columns .*, got 'weight' in .* Present: 'donor'",
        ),
        ("~ condition + (1 | patient)", None, "must name columns of `adata.obs`, got 'patient'"),
        ("~ condition + n_counts", None, "`design` must have columns that describe donors"),
        ("~ condition + age", "sex", r"`contrast` must be a column of the design, \(column, baseline"),
        ("~ condition + age", ("condition", "well"), "`contrast` must be a column of the design"),
        ("~ condition + age", ("condition", "well", "ill"), "baseline first, .* Present: 'well', 'sick'"),
        ("~ condition + age", {"sex": 1}, "`contrast` must weigh coefficients .* Present: 'Intercept', 'condition"),
        ("~ condition + donor", None, "`contrast` must be estimable"),
        ("~ condition + nothing(age)", None, "`design` must be a formula over columns .*nothing"),
    ],
)
def test_errors(formula, contrast, message) -> None:
    with pytest.raises(ValueError, match=message):
        read(formula, contrast)
    with pytest.raises(ValueError, match="must name one column of blocks, got 'donor', 'sex'"):
        read("~ condition + (1 | donor)", pair_key="sex")
