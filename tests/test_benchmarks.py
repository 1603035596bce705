"""The benchmark scripts are not run here, but what they import exists."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_imports(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    names = runpy.run_path(str(script), run_name="imported")
    assert names["main"].__module__ == "imported"
    assert len(names["__doc__"]) > 100  # what is compared, and what the bars are
