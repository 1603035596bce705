"""How much the package says: the level of one logger, and one message for what was written."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import bcnmf_sc as bc
from bcnmf_sc._utils import progress

LOGGER = logging.getLogger("bcnmf_sc")


@pytest.fixture(autouse=True)
def _as_before():
    level, handlers = LOGGER.level, LOGGER.handlers[:]
    yield
    LOGGER.setLevel(level)
    LOGGER.handlers[:] = handlers


def test_levels_are_scanpys():
    assert bc.settings.verbosity == 1
    for value, level in (("error", 40), (1, 30), ("Info", 20), (3, 15), (4, 10)):
        bc.settings.verbosity = value
        assert LOGGER.level == level
    assert bc.settings.verbosity == 4
    for wrong in ("loud", 5, True, None):
        with pytest.raises(ValueError, match="`verbosity` must be a number from 0 to 4 or one of 'error', 'warning'"):
            bc.settings.verbosity = wrong
    assert bc.settings.verbosity == 4


def test_each_field_written_is_named(caplog):
    adata = bc.datasets.simulated(60, 40, 50)
    bc.settings.verbosity = "info"
    before = adata.copy()
    bc.tl.nmf(adata, n_topics=2, max_iter=5, tol=0.0, progress=False)
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("added")]
    for slot in ("obs", "var", "obsm", "varm", "uns"):
        new = set(getattr(adata, slot)) - set(getattr(before, slot))
        assert {f".{slot}[{name!r}]" in said for name in new} <= {True}
    caplog.clear()
    bc.settings.verbosity = "warning"
    bc.tl.nmf(adata, n_topics=2, max_iter=5, tol=0.0, progress=False)
    assert not caplog.records


def test_messages_go_to_stderr_where_nothing_else_listens():
    code = (
        "import bcnmf_sc as bc; from bcnmf_sc import _stored; _stored.added('obs.a');"
        "bc.settings.verbosity = 2; _stored.added('obs.b', 'obs.c', 'uns.d')"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stderr == "added .obs['b'], .obs['c'],\n      .uns['d']\n"
    assert not ran.stdout


def test_a_notebook_without_widgets_shows_progress(monkeypatch, capsys):
    """As text: nothing but the session says that someone looks."""
    assert progress.progress_bar(range(3), show=True).disable

    class Shell:
        config = {"IPKernelApp": {}}  # noqa: RUF012

    class IPython:
        get_ipython = staticmethod(Shell)

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert not progress.progress_bar(range(3), show=True).disable
    assert progress.progress_bar(range(3), show=False).disable
