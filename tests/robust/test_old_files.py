"""Results of the first version open, are shown and tested again; what they lack is refused in one line.

``files/format_1.h5ad.xz`` was written at commit 8637285: `bcnmf` with three background topics by donor, `deltanmf`,
`background_check` and `associate` on simulated cells.
"""

import lzma
from pathlib import Path

import anndata
import pytest

import bcnmf_sc as bc

FILE = Path(__file__).parent / "files" / "format_1.h5ad.xz"
pytestmark = [
    pytest.mark.filterwarnings("ignore:'case' against 'ctrl' is the contrast of the fit"),
    pytest.mark.filterwarnings("ignore:Only 80 background cells", "ignore:.* of the background.s cells have more than"),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("old") / "a.h5ad"
    path.write_bytes(lzma.decompress(FILE.read_bytes()))
    return anndata.read_h5ad(path)


def test_it_is_shown(old, tmp_path):
    topics = bc.get.topics(old)
    assert topics.loc["Topic 1", "called"]
    assert "log2_fold_change" not in topics
    assert bc.get.top_genes(old)["gene"].isin(old.var_names).all()
    assert bc.get.topics(old, key="deltanmf").index.str.startswith("C").any()
    assert bc.pl.loadings(old) is not None
    bc.report(old, tmp_path / "report.html")
    assert "Topic 2" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_it_is_tested_again(old):
    before = bc.get.associations(old, "condition")
    bc.tl.associate(old, groupby="condition", sample_key="donor")
    after = bc.get.associations(old, "condition")
    assert set(before["test"]) == {"Welch t"}
    assert set(after["test"]) == {"moderated t"}
    assert (after["ci_low"] < after["ci_high"]).all()


def test_it_is_fitted_again(old):
    again = old[:, :].copy()
    ask = {"background_key": "condition", "background": "ctrl", "n_topics": 2, "n_background_topics": 3, "tol": 1e-2}
    bc.tl.bcnmf(again, **ask, sample_key="donor", cross_fit=2)
    assert bc.get.topics(again)["log2_fold_change"].notna().all()
    assert "associations" not in again.uns["bcnmf"]


LACKING = {"table": bc.get.donors, "power": bc.tl.power, "donors": bc.pl.donors, "forest": bc.pl.topics_forest}


@pytest.mark.parametrize("name", LACKING)
def test_what_it_lacks_is_refused_in_one_line(old, name):
    with pytest.raises(ValueError, match=r"Run `bcnmf_sc\.tl\.bcnmf`") as refused:
        LACKING[name](old)
    assert "\n" not in str(refused.value)
