"""`tl.associate` and `tl.associate_genes` against SciPy and statsmodels on the values themselves."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, sparse, stats

import bcnmf_sc as bc
from bcnmf_sc.tl._design import likelihood_ratio, linear


def stored(n_donors: int = 8, n_cells: int = 30, n_topics: int = 3, *, seed: int = 0) -> ad.AnnData:
    """Donors a and b in turn, with donor effects on the usage; counts of 12 genes."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    usage = rng.gamma(2.0, size=(len(donor), n_topics)) * np.exp(rng.normal(0, 0.4, (n_donors, n_topics)))[donor]
    W = rng.dirichlet(np.ones(12), n_topics).T
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(50 * usage @ W.T).astype("float32")))
    adata.var_names = [f"G{i}" for i in range(12)]
    adata.obs["donor"] = pd.Categorical([f"d{i}" for i in donor])
    adata.obs["diagnosis"] = pd.Categorical(np.where(donor % 2 == 0, "sick", "well"))
    adata.obs["time"] = pd.Categorical(np.where(np.arange(len(donor)) % 2 == 0, "before", "after"))
    adata.obs["bcnmf_role"] = pd.Categorical(np.where(donor < 4, "target", "background"))
    adata.obsm["X_bcnmf"] = usage.astype("float32")
    adata.varm["bcnmf"] = W.astype("float32")
    topics = pd.DataFrame({"kind": "target"}, index=[f"Topic {k + 1}" for k in range(n_topics)])
    adata.uns["bcnmf"] = {"topics": topics, "params": {"likelihood": "poisson"}}
    return adata


@pytest.fixture
def adata() -> ad.AnnData:
    return stored()


def donor_means(adata: ad.AnnData, *more: str) -> pd.DataFrame:
    share = bc.get.usage(adata, normalize=True).astype(float)
    return share.groupby([adata.obs[name].astype(str) for name in ("donor", *more)]).mean()


def moderated(y: pd.DataFrame, X: np.ndarray, contrast: list[float], **how) -> linear.Effects:
    """Return effects of log2 shares, each donor with equal numbers of cells."""
    return linear.moderated(np.log2(y.to_numpy() + 1e-3), X, np.array(contrast, float), **how)


def test_donors_are_compared_on_a_log_scale_with_moderated_variances(adata) -> None:
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor")
    table = bc.get.associations(adata)
    means = donor_means(adata)
    well = np.arange(8) % 2
    effects = moderated(means, np.column_stack([np.ones(8), well]), [0, 1])
    assert table[["test", "scale", "unit"]].drop_duplicates().to_numpy().tolist() == [
        ["moderated t", "log2 share", "sample"]
    ]
    assert table[["n_group", "n_reference"]].to_numpy().tolist() == [[4, 4]] * 3
    expected = {
        "difference": effects.estimate,
        "ci_low": effects.interval()[0],
        "ci_high": effects.interval()[1],
        "p_value": effects.p_value,
        "statistic": effects.statistic,
        "cohen_d": effects.estimate / effects.deviation,
        "mean_group": means[well == 1].mean(),
        "mean_reference": means[well == 0].mean(),
    }
    for column, values in expected.items():
        np.testing.assert_allclose(table[column], values, rtol=1e-5, err_msg=column)
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor", topics="Topic 2")  # variances of all topics
    one = bc.get.associations(adata).iloc[0]
    assert (one["topic"], one["p_value"]) == ("Topic 2", table["p_value"][1])
    assert one["p_adjusted"] == one["p_value"]


def test_pairs_and_single_donors_are_used_together(adata) -> None:
    some = adata[~(adata.obs["donor"].isin(["d0", "d1"]) & (adata.obs["time"] == "after")).to_numpy()].copy()
    bc.tl.associate(some, groupby="time", sample_key="donor", reference="before")
    table = bc.get.associations(some)
    assert table[["n_group", "n_reference"]].to_numpy().tolist() == [[6, 8]] * 3
    means = donor_means(some, "time")
    after = (means.index.get_level_values("time") == "after").astype(float)
    block = pd.Categorical(means.index.get_level_values("donor")).codes
    effects = moderated(means, np.column_stack([np.ones(14), after]), [0, 1], block=block)
    np.testing.assert_allclose(table["p_value"], effects.p_value, rtol=1e-4)
    alone = moderated(means, np.column_stack([np.ones(14), after]), [0, 1])
    assert (effects.error < alone.error).all()  # donors differ more than times do


def test_designs_adjust_for_covariates_and_take_continuous_ones(adata) -> None:
    donor = adata.obs["donor"].astype(str).str[1:].astype(int).to_numpy()
    adata.obs["age"] = np.array([30.0, 41, 35, 60, 52, 44, 38, 70])[donor]
    adata.obs["sex"] = np.where(donor % 4 < 2, "f", "m")
    means, first = donor_means(adata), adata.obs.drop_duplicates("donor")
    X = np.column_stack([np.ones(8), np.arange(8) % 2, first["age"], first["sex"] == "m"]).astype(float)
    bc.tl.associate(adata, design="~ diagnosis + age + sex", sample_key="donor")
    table = bc.get.associations(adata, "diagnosis")
    np.testing.assert_allclose(table["p_value"], moderated(means, X, [0, 1, 0, 0]).p_value, rtol=1e-4)
    assert table[["group", "reference", "n_group"]].drop_duplicates().to_numpy().tolist() == [["well", "sick", 4]]
    bc.tl.associate(adata, design="~ diagnosis + age + sex", contrast="age", sample_key="donor")
    slope = bc.get.associations(adata, "age")
    np.testing.assert_allclose(slope["difference"], moderated(means, X, [0, 0, 1, 0]).estimate, rtol=1e-4)
    assert slope[["group", "n_group", "n_reference"]].drop_duplicates().to_numpy().tolist() == [["slope", 8, 0]]
    assert slope[["mean_reference", "log2_ratio"]].isna().all(axis=None)
    assert len(bc.get.associations(adata)) == 6


def test_donors_are_the_units_of_welchs_test(adata) -> None:
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor", method="t")
    table = bc.get.associations(adata)
    means = donor_means(adata, "diagnosis").reset_index(level=1)
    for k in range(3):
        name = f"Topic {k + 1}"
        row = table.iloc[k]
        sick, well = (means.loc[means["diagnosis"] == group, name] for group in ("sick", "well"))
        test = stats.ttest_ind(well, sick, equal_var=False)
        low, high = test.confidence_interval()
        assert (row["topic"], row["group"], row["reference"]) == (name, "well", "sick")
        assert (row["test"], row["unit"], row["n_group"], row["n_reference"]) == ("Welch t", "sample", 4, 4)
        expected = [test.statistic, test.pvalue, low, high, well.mean(), sick.mean(), well.mean() - sick.mean()]
        columns = ["statistic", "p_value", "ci_low", "ci_high", "mean_group", "mean_reference", "difference"]
        np.testing.assert_allclose(row[columns].astype(float), expected, rtol=1e-5)
        assert row["cohen_d"] == pytest.approx(row["difference"] / np.sqrt((well.var() + sick.var()) / 2), rel=1e-5)
        assert row["log2_ratio"] == pytest.approx(np.log2(well.mean() / sick.mean()), abs=1e-4)
        assert row["signed_log10_p"] == pytest.approx(-np.sign(row["difference"]) * np.log10(test.pvalue), rel=1e-5)
    np.testing.assert_allclose(table["p_adjusted"], stats.false_discovery_control(table["p_value"]))


def test_cells_as_units_are_warned_of(adata) -> None:
    with pytest.warns(UserWarning, match="The cells are the units"):
        bc.tl.associate(adata, groupby="diagnosis")
    row = bc.get.associations(adata).iloc[0]
    share = bc.get.usage(adata, normalize=True)["Topic 1"].astype(float)
    sick = (adata.obs["diagnosis"] == "sick").to_numpy()
    assert row["p_value"] == pytest.approx(stats.ttest_ind(share[~sick], share[sick], equal_var=False).pvalue, rel=1e-4)
    assert (row["unit"], row["n_group"]) == ("cell", 120)


def test_donors_on_both_sides_are_pairs(adata) -> None:
    bc.tl.associate(adata, groupby="time", sample_key="donor", reference="before", method="paired_t")
    row = bc.get.associations(adata).iloc[1]
    wide = donor_means(adata, "time")["Topic 2"].unstack()
    test = stats.ttest_rel(wide["after"], wide["before"])
    assert (row["test"], row["unit"], row["n_group"]) == ("paired t", "pair", 8)
    low, high = test.confidence_interval()
    expected = [test.pvalue, low, high, (wide["after"] - wide["before"]).mean()]
    np.testing.assert_allclose(row[["p_value", "ci_low", "ci_high", "difference"]].astype(float), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="some donors have cells in both groups"):
        bc.tl.associate(adata, groupby="time", sample_key="donor", method="t")


def test_donors_on_one_side_are_left_out_beside_pairs(adata) -> None:
    some = adata[~(adata.obs["donor"].isin(["d0", "d1", "d2"]) & (adata.obs["time"] == "after")).to_numpy()].copy()
    with pytest.warns(UserWarning, match="3 pairs have no cells in one of 'after' and 'before'"):
        bc.tl.associate(some, groupby="time", sample_key="donor", reference="before", method="paired_t")
    row = bc.get.associations(some).iloc[1]
    wide = donor_means(some, "time")["Topic 2"].unstack().dropna()
    assert (row["test"], row["n_group"], row["n_reference"]) == ("paired t", 5, 5)
    assert row["p_value"] == pytest.approx(stats.ttest_rel(wide["after"], wide["before"]).pvalue, rel=1e-4)


def test_one_donor_on_both_sides_is_left_out_and_the_others_are_independent(adata) -> None:
    label = adata.obs["diagnosis"].astype(str).to_numpy()
    label[:10] = "well"  # of d0, who is sick
    adata.obs["diagnosis"] = label
    with pytest.warns(UserWarning, match="One donor alone has cells in both 'well' and 'sick'.* It is left out"):
        bc.tl.associate(adata, groupby="diagnosis", sample_key="donor", method="t")
    row = bc.get.associations(adata).iloc[0]
    means = donor_means(adata)["Topic 1"]
    test = stats.ttest_ind(means[["d1", "d3", "d5", "d7"]], means[["d2", "d4", "d6"]], equal_var=False)
    assert (row["test"], row["n_group"], row["n_reference"]) == ("Welch t", 4, 3)
    assert row["p_value"] == pytest.approx(test.pvalue, rel=1e-4)
    with (
        pytest.raises(ValueError, match="at least 2 complete pairs, got 1"),
        pytest.warns(UserWarning, match="7 pairs"),
    ):
        bc.tl.associate(adata, groupby="diagnosis", sample_key="donor", method="paired_t")


def test_pairs_of_samples_and_incomplete_ones(adata) -> None:
    adata.obs["patient"] = [f"p{int(d[1:]) // 2}" for d in adata.obs["donor"]]
    how = {"groupby": "diagnosis", "sample_key": "donor", "method": "paired_t"}
    bc.tl.associate(adata, **how, pair_key="patient")
    row = bc.get.associations(adata).iloc[0]
    means = donor_means(adata)["Topic 1"]
    well, sick = ([means[f"d{2 * p + i}"] for p in range(4)] for i in (1, 0))
    assert row["p_value"] == pytest.approx(stats.ttest_rel(well, sick).pvalue, rel=1e-4)
    without = adata[adata.obs["donor"] != "d0"].copy()
    with pytest.warns(UserWarning, match="1 pairs have no cells in one of"):
        bc.tl.associate(without, **how, pair_key="patient")
    assert bc.get.associations(without)["n_group"].eq(3).all()
    adata.obs["wrong"] = np.arange(adata.n_obs) % 5
    with pytest.raises(ValueError, match="must belong to one 'wrong'"):
        bc.tl.associate(adata, **how, pair_key="wrong")


def test_the_contrast_that_trained_background_topics_is_warned_of(adata) -> None:
    adata.uns["bcnmf"]["topics"]["kind"] = ["target", "target", "background"]
    adata.obs["side"] = adata.obs["bcnmf_role"].astype(str)
    with pytest.warns(UserWarning, match="is the contrast of the fit"):
        bc.tl.associate(adata, groupby="side", sample_key="donor")
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor")  # donors of both roles on both sides
    adata.uns["bcnmf"]["topics"]["kind"] = "target"
    bc.tl.associate(adata, groupby="side", sample_key="donor")


def test_several_groups_are_each_compared_with_the_rest(adata) -> None:
    adata.obs["kind"] = [f"k{int(d[1:]) % 3}" for d in adata.obs["donor"]]
    bc.tl.associate(adata, groupby="kind", sample_key="donor")
    table = bc.get.associations(adata)
    assert table["group"].unique().tolist() == ["k0", "k1", "k2"]
    assert table["reference"].eq("rest").all()
    assert table.groupby("group")[["n_group", "n_reference"]].first().to_numpy().tolist() == [[3, 5], [3, 5], [2, 6]]
    np.testing.assert_allclose(table["p_adjusted"], stats.false_discovery_control(table["p_value"]))  # over all nine
    bc.tl.associate(adata, groupby="kind", sample_key="donor", groups="k2", reference="k0", topics=["Topic 3"])
    table = bc.get.associations(adata)
    assert table[["topic", "group", "reference"]].to_numpy().tolist() == [["Topic 3", "k2", "k0"]]


def test_the_background_is_the_reference(adata) -> None:
    adata.uns["bcnmf"]["params"] |= {"background_key": "diagnosis", "background": ["well"]}
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor")
    assert bc.get.associations(adata)["reference"].eq("well").all()


def test_logistic_regression_is_statsmodels(adata) -> None:
    import statsmodels.api as sm

    with pytest.warns(UserWarning, match="The cells are the units"):
        bc.tl.associate(adata, groupby="diagnosis", method="logistic")
    table = bc.get.associations(adata)
    share = bc.get.usage(adata, normalize=True).astype(float)
    label = (adata.obs["diagnosis"] == "well").to_numpy(float)
    for k in range(3):
        fit = sm.Logit(label, sm.add_constant(share.iloc[:, k].to_numpy())).fit(disp=False)
        assert table["p_value"][k] == pytest.approx(fit.llr_pvalue, rel=1e-4)
        # near the null, likelihood ratio and Wald agree
        assert table["p_value"][k] == pytest.approx(fit.pvalues[1], rel=0.3)
    assert not table["separated"].any()


def test_logistic_regression_arrives_where_newton_steps_lead_off() -> None:
    """A hundred skewed features, against a general optimiser."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        label = (rng.random(50) < 0.3).astype(int)
        x = np.exp(rng.normal(size=50) * 4 + label * rng.choice([0, 3, 6]))
        statistic, _, separated = likelihood_ratio(x, label)
        if separated:
            continue
        z = (x - x.mean()) / x.std()

        def loss(b, z=z, label=label):
            return (np.logaddexp(0, b[0] + b[1] * z) - label * (b[0] + b[1] * z)).sum()

        best = min(optimize.minimize(loss, start, method="Nelder-Mead").fun for start in ([0, 0], [0, 1]))
        share = label.mean()
        null = len(label) * (share * np.log(share) + (1 - share) * np.log(1 - share))
        assert statistic >= 2 * (-best - null) - 0.05


def test_logistic_regression_survives_separation() -> None:
    x = np.arange(10.0)
    label = (x > 4).astype(int)
    statistic, p, separated = likelihood_ratio(x, label)
    assert separated
    assert statistic == pytest.approx(2 * 10 * np.log(2))
    assert p == pytest.approx(stats.chi2.sf(statistic, 1))
    # ties at the border: the limit of the likelihood, approached by a steep curve
    x = np.array([0.0, 1, 2, 2, 2, 2, 3, 4])
    label = np.array([0, 0, 0, 0, 1, 0, 1, 1])
    statistic, _, separated = likelihood_ratio(x, label)
    probability = 1 / (1 + np.exp(-(60 * (x - 2) + np.log(1 / 3))))
    steep = np.sum(np.log(np.where(label == 1, probability, 1 - probability)))
    null = 8 * (3 / 8 * np.log(3 / 8) + 5 / 8 * np.log(5 / 8))
    assert separated
    assert statistic == pytest.approx(2 * (steep - null), rel=1e-6)
    assert likelihood_ratio(-x, label)[0] == pytest.approx(statistic)
    nearly = likelihood_ratio(np.where(np.arange(8) == 7, 1.9, x), label)
    assert not nearly[2]
    assert np.isnan(likelihood_ratio(np.ones(8), label)[1])


def test_cells_without_usage_or_label_are_left_out_and_cells_can_be_chosen(adata) -> None:
    adata.obsm["X_bcnmf"][:3] = 0
    adata.obs.iloc[5:9, adata.obs.columns.get_loc("diagnosis")] = np.nan
    with pytest.warns(UserWarning, match="units"):
        bc.tl.associate(adata, groupby="diagnosis")
    table = bc.get.associations(adata)
    assert (table["n_group"] + table["n_reference"]).eq(240 - 7).all()
    half = np.arange(240) < 120
    adata.obs["half"] = half
    counts = []
    for cells in (half, "half", "target"):
        with pytest.warns(UserWarning, match="units"):
            bc.tl.associate(adata, groupby="diagnosis", cells=cells)
        counts.append(bc.get.associations(adata)[["n_group", "p_value"]])
    assert counts[0].equals(counts[1])
    assert counts[0].equals(counts[2])


def test_tables_add_up_by_groupby_and_round_trip(adata, tmp_path) -> None:
    adata.obs["time/point"] = adata.obs["time"]
    bc.tl.associate(adata, groupby="time/point", sample_key="donor")
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor")
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor", topics="Topic 1")
    bc.tl.associate_genes(adata, groupby="time/point", sample_key="donor")
    assert len(bc.get.associations(adata)) == 4
    assert len(bc.get.associations(adata, "diagnosis")) == 1
    del adata.obs["time/point"]  # h5ad forbids such columns, but a table may name them
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    for table in ("topics", "genes"):
        one, other = (bc.get.associations(x, "time/point", table=table) for x in (adata, read))
        pd.testing.assert_frame_equal(one, other, check_dtype=False)
    bc.tl.associate(read, groupby="diagnosis", sample_key="donor")
    assert len(bc.get.associations(read)) == 6


def test_copy_leaves_the_data_alone(adata) -> None:
    done = bc.tl.associate(adata, groupby="diagnosis", sample_key="donor", copy=True)
    assert "associations" not in adata.uns["bcnmf"]
    assert "associations" in done.uns["bcnmf"]


def test_no_variance_gives_no_p_value(adata) -> None:
    adata.obsm["X_bcnmf"][:] = [1, 2, 1]
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor")
    bc.tl.associate(adata, groupby="time", sample_key="donor")
    table = bc.get.associations(adata)
    assert table["p_value"].isna().all()
    assert table["p_adjusted"].isna().all()
    np.testing.assert_allclose(table["difference"], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groupby": "x"}, "`groupby` must be a column"),
        ({"sample_key": "x"}, "`sample_key` must be a column"),
        ({"pair_key": "x"}, "`pair_key` must be a column"),
        ({"reference": "x"}, "`reference` must be a group of"),
        ({"groups": "x"}, "`groups` must be groups"),
        ({"groups": "well", "reference": "well"}, "`groups` must be groups"),
        ({"method": "anova"}, "`method` must be"),
        ({"design": "~ diagnosis"}, "`groupby` or `design` must be given, one of them"),
        ({"groupby": None}, "`groupby` or `design` must be given, one of them"),
        ({"contrast": ("diagnosis", "sick", "well")}, "`contrast` must come with `design`"),
        ({"groupby": None, "design": "~ diagnosis", "reference": "sick"}, "`reference` must come with `groupby`"),
        ({"groupby": None, "design": "~ diagnosis", "method": "t"}, "`method='t'` must come with `groupby`"),
        ({"groupby": None, "design": "~ diagnosis", "sample_key": None}, "`design='~ diagnosis'` needs `sample_key`"),
        ({"method": "moderated", "sample_key": None}, "`method='moderated'` needs `sample_key`"),
        ({"method": "paired_t", "sample_key": None}, "needs `sample_key` or `pair_key`"),
        ({"method": "paired_t"}, "needs pairs, but no 'donor'"),
        ({"cells": "x"}, "`cells` must be a bool column"),
        ({"cells": np.ones(3, bool)}, "`cells` must be a bool for each"),
        ({"groupby": "donor", "groups": "d1", "reference": "d2"}, "needs at least 2 of 'donor' in each group, got 1"),
        ({"groupby": "depth"}, "`groupby` must be a column of groups"),
        ({"groupby": "one"}, "must tell at least 2 groups apart"),
        ({"key": "nmf"}, "`key` 'nmf'"),
        ({"topics": "Topic 9"}, "`topics` must be"),
    ],
)
def test_errors(adata, wrong, message) -> None:
    adata.obs["depth"] = np.linspace(0, 1, adata.n_obs)
    adata.obs["one"] = "same"
    with pytest.raises(ValueError, match=message):
        bc.tl.associate(adata, **({"groupby": "diagnosis", "sample_key": "donor"} | wrong))
    assert "associations" not in adata.uns["bcnmf"]


# genes


def test_genes_by_donor_are_pseudobulk(adata) -> None:
    bc.tl.associate_genes(adata, groupby="diagnosis", sample_key="donor", genes=["G3", "G0"])
    found = bc.get.associations(adata, table="genes")
    bc.tl.associate_genes(adata, groupby="diagnosis", sample_key="donor", genes=["G3", "G0"], method="t")
    table = bc.get.associations(adata, table="genes")
    counts = pd.DataFrame(adata.X.toarray().astype(float), columns=adata.var_names)
    counts = counts.groupby(adata.obs["donor"].to_numpy()).sum()
    log = np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e4)
    sick = adata.obs.groupby("donor", observed=True)["diagnosis"].first() == "sick"
    for row, gene in zip(table.itertuples(), ["G3", "G0"], strict=True):
        test = stats.ttest_ind(log.loc[~sick, gene], log.loc[sick, gene], equal_var=False)
        assert row.gene == gene
        assert row.p_value == pytest.approx(test.pvalue, rel=1e-6)
        mean = np.expm1(log[gene])
        assert row.log2_ratio == pytest.approx(np.log2(mean[~sick].mean() / mean[sick].mean()), abs=1e-3)
    well = 1 - sick.to_numpy().astype(float)
    X = np.column_stack([np.ones(8), well])
    effects = linear.moderated(log.to_numpy() / np.log(2), X, np.array([0.0, 1.0]))
    at = [3, 0]  # variances are moderated over all twelve genes
    np.testing.assert_allclose(found["difference"], effects.estimate[at], rtol=1e-6)
    np.testing.assert_allclose(found["p_value"], effects.p_value[at], rtol=1e-6)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("method", ["t", "logistic"])
def test_genes_by_cell_from_any_array(adata, method, kind) -> None:
    from statsmodels.discrete.discrete_model import Logit

    dense = adata.X.toarray()
    adata.layers["counts"] = kind(dense)
    adata.X = None
    with pytest.warns(UserWarning, match="units"):
        bc.tl.associate_genes(adata, groupby="diagnosis", layer="counts", method=method)
    table = bc.get.associations(adata, table="genes")
    assert table["gene"].tolist() == adata.var_names.tolist()
    log = np.log1p(1e4 * dense / dense.sum(1, keepdims=True)).astype(float)
    well = (adata.obs["diagnosis"] == "well").to_numpy()
    welch = stats.ttest_ind(log[well], log[~well], equal_var=False)
    np.testing.assert_allclose(table["ci_low"], welch.confidence_interval().low, rtol=1e-4, atol=1e-6)
    if method == "t":
        np.testing.assert_allclose(table["p_value"], welch.pvalue, rtol=1e-4)
    else:
        p = [Logit(well.astype(float), np.column_stack([np.ones(240), x])).fit(disp=False).llr_pvalue for x in log.T]
        np.testing.assert_allclose(table["p_value"], p, rtol=1e-3)


def test_genes_as_they_are_for_likelihoods_of_other_values(adata) -> None:
    adata.uns["bcnmf"]["params"]["likelihood"] = "gaussian"
    bc.tl.associate_genes(adata, groupby="diagnosis", sample_key="donor")
    row = bc.get.associations(adata, table="genes").iloc[4]
    means = pd.DataFrame(adata.X.toarray()).groupby(adata.obs["donor"].to_numpy()).mean()
    assert row["mean_reference"] == pytest.approx(means.loc[["d0", "d2", "d4", "d6"], 4].mean(), rel=1e-5)


def test_genes_tested_are_those_used_and_errors(adata) -> None:
    adata.varm["bcnmf"][3] = 0
    bc.tl.associate_genes(adata, groupby="diagnosis", sample_key="donor")
    assert bc.get.associations(adata, table="genes")["gene"].tolist() == [f"G{i}" for i in range(12) if i != 3]
    with pytest.raises(ValueError, match="`genes` must be names in"):
        bc.tl.associate_genes(adata, groupby="diagnosis", genes=["G0", "TP53"])


def test_get_associations_errors(adata) -> None:
    with pytest.raises(ValueError, match=r"'associations' is not in .* Run `bcnmf_sc.tl.associate` first"):
        bc.get.associations(adata)
    bc.tl.associate(adata, groupby="diagnosis", sample_key="donor")
    with pytest.raises(ValueError, match="`groupby` must be a tested column"):
        bc.get.associations(adata, "time")
    with pytest.raises(ValueError, match="`table` must be 'topics' or 'genes'"):
        bc.get.associations(adata, table="cells")


# under the null


def null_p_values(n_simulations: int, *, sample_key: str | None) -> np.ndarray:
    """P-values of one topic where donors differ and groups do not: one from each of many data sets."""
    found = []
    for seed in range(n_simulations):
        adata = stored(10, 20, seed=seed)
        with pytest.warns(UserWarning, match="units") if sample_key is None else _nothing():
            bc.tl.associate(adata, groupby="diagnosis", sample_key=sample_key, topics="Topic 1")
        found.append(bc.get.associations(adata)["p_value"].iloc[0])
    return np.array(found)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_p_values_under_the_null_are_uniform_by_donor_and_not_by_cell() -> None:
    by_donor, by_cell = (null_p_values(150, sample_key=key) for key in ("donor", None))
    assert stats.kstest(by_donor, "uniform").pvalue > 0.01
    assert (by_donor < 0.05).mean() < 0.1
    assert stats.kstest(by_cell, "uniform").pvalue < 1e-10
    assert (by_cell < 0.05).mean() > 0.3
