"""The benchmark scripts are not run here, but what they import exists."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("[!_]*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_imports(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    names = runpy.run_path(str(script), run_name="imported")
    assert names["main"].__module__ == "imported"
    assert len(names["__doc__"]) > 100  # what is compared, and what the bars are


def test_every_script_is_listed_once():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `python benchmarks/(\w+\.py)", page, re.MULTILINE)) == [
        path.name for path in SCRIPTS
    ]
    assert re.findall(r"^## (.+)", page, re.MULTILINE)[:4] == ["Speed", "bcNMF", "DeltaNMF", "GPNSF"]
