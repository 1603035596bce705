"""What is released: the sdist, the wheel that is built from it, the versions they need."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import Distribution, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
# an environment that has the dependencies; the wheel is not installed but comes first on the path
RUN = """
import sys
from importlib import import_module
from importlib.metadata import entry_points
import bcnmf_sc as bc
parts = [part for part in bc.__all__ if part not in ("report", "settings")]
print(bc.__file__, *(import_module(f"bcnmf_sc.{part}").__name__ for part in parts))
(script,) = entry_points(group="console_scripts", name="bcnmf-sc")
sys.argv = ["bcnmf-sc", "--version"]
script.load()()
"""


def build(target: str, source: Path, folder: Path) -> Path:
    """Build one file of `source` into `folder`, with the build backend of pyproject.toml."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    archive = build("sdist", ROOT, folder / "dist")
    assert archive.stat().st_size < 8_000_000
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel, built where there is no git and no tag, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    archive = build("wheel", sdist, folder / "dist")
    assert archive.name.endswith("-py3-none-any.whl")
    assert archive.stat().st_size < 1_000_000
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder / "unpacked")
    return folder / "unpacked"


def files(folder: Path) -> set[str]:
    kept = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix() for path in kept}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    """Code, `py.typed` and the template of the report, but no tests."""
    (info,) = wheel.glob("*.dist-info")
    assert {path.name for path in wheel.iterdir()} == {"bcnmf_sc", info.name}
    assert files(wheel / "bcnmf_sc") == files(ROOT / "bcnmf_sc")
    assert {"py.typed", "_report/page.html.jinja"} <= files(wheel / "bcnmf_sc")
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    metadata = Distribution.at(info).metadata
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"all", "dask", "enrich", "multimodal"} <= set(metadata.get_all("Provides-Extra"))


def test_sdist_holds_what_packagers_need(sdist):
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "constraints.txt"} <= files(sdist)
    assert files(sdist / "tests") >= {"conftest.py", "test_package.py"}
    assert not (sdist / ".github").exists()


def test_wheel_runs_outside_the_checkout(sdist, wheel, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    imported, version = ran.stdout.splitlines()
    assert imported.startswith(f"{wheel / 'bcnmf_sc'}{os.sep}")
    assert version == f"bcnmf-sc, version {sdist.name.removeprefix('bcnmf_sc-')}"


def test_python_versions_agree():
    """Classifiers, continuous integration and documentation name the same versions of Python."""
    named = [found for line in PROJECT["classifiers"] if (found := re.search(r"Python :: (3\.\d+)$", line))]
    versions = sorted(found[1] for found in named)
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if workflow.exists():  # not in an sdist
        assert sorted(set(re.findall(r'python: "(3\.\d+)"', workflow.read_text(encoding="utf-8")))) == versions
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert ", ".join(versions) in (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")


def test_what_is_imported_is_declared():
    """And of what every installation brings, nothing is declared that is not imported."""
    named = {
        name.split(".")[0]
        for path in (ROOT / "bcnmf_sc").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    } - set(sys.stdlib_module_names)
    packaged = packages_distributions()
    imported = {packaged.get(name, [name])[0].lower().replace("_", "-") for name in named}
    core, extras = (
        {re.match(r"[\w-]+", line)[0] for line in lines}
        for lines in (
            PROJECT["dependencies"],
            [x for name in ("dask", "enrich", "multimodal") for x in PROJECT["optional-dependencies"][name]],
        )
    )
    assert core <= imported <= core | extras


def test_settings_name_files_that_are_there():
    """A folder that moved would leave its exceptions, and what is mutated, behind in silence."""
    mutmut, lint = SETTINGS["tool"]["mutmut"], SETTINGS["tool"]["ruff"]["lint"]
    named = [*mutmut["only_mutate"], *mutmut["pytest_add_cli_args_test_selection"], *lint["per-file-ignores"]]
    assert not [pattern for pattern in named if not any(ROOT.glob(pattern))]


def test_extras_are_documented():
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    table = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE))))
    assert table == set(PROJECT["optional-dependencies"])


def test_the_article_is_cited_alike():
    numbers = {
        name: set(re.findall(r"\b\d{4}\.\d{5}\b", (ROOT / name).read_text(encoding="utf-8")))
        for name in ("CITATION.cff", "README.md", "docs/citation.md")
    }
    assert all(numbers.values())
    assert len(set.union(*numbers.values())) == 1, numbers
