"""What holds for the package as a whole: signatures, fields promised and written, imports, docs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from anndata.tests.helpers import assert_equal

import bcnmf_sc as bc

ROOT = Path(__file__).parents[1]
PACKAGE = Path(bc.__file__).parent
PARTS = {name: getattr(bc, name) for name in bc.__all__ if inspect.ismodule(getattr(bc, name))}
PUBLIC = {name: getattr(bc, name) for name in bc.__all__ if name not in PARTS}
PUBLIC |= {f"{part}.{name}": getattr(module, name) for part, module in PARTS.items() for name in module.__all__}
FUNCTIONS = {name: function for name, function in PUBLIC.items() if inspect.isfunction(function)}
MULTIMODAL = ("tl.gpnsf", "tl.gpnsf_predict", "tl.enhance", "pl.spatial_topics", "pl.lengthscales")
SPLIT = {"background_key": "condition", "background": "ctrl"}
FEW = {"n_topics": 3, "max_iter": 30, "tol": 0.05}
QUICK = {**FEW, "alpha": 0.1}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len(positional) <= 3
    flags = [
        p.name for p in positional if isinstance(p.default, bool) or p.name in ("copy", "key", "key_added", "layer")
    ]
    assert not flags, "keyword-only"
    part = name.split(".")[0]
    if part in ("pp", "tl", "pl", "get", "report"):
        # what is not made from an AnnData says so: a table, embeddings of genes, or modalities of the same spots
        first = {"pl.compare": "table", "pp.gene_similarity": "embeddings"} | dict.fromkeys(MULTIMODAL, "mdata")
        assert next(iter(parameters)) == first.get(name, "adata")
    if part in ("pp", "tl") and name not in ("tl.gpnsf_predict", "tl.power") and {"adata", "mdata"} & set(parameters):
        assert parameters["copy"].default is False
    if "random_state" in parameters:
        assert parameters["random_state"].default == 0


def test_public_api_is_the_one_on_record():
    """Names, signatures and fields: a change shows in the diff of the record (``python tests/public_api.py``)."""
    spec = importlib.util.spec_from_file_location("public_api", ROOT / "tests" / "public_api.py")
    public_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public_api)
    assert public_api.described().splitlines() == (ROOT / "tests" / "public_api.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_names_every_parameter_once(name):
    text = inspect.getdoc(FUNCTIONS[name])
    section = re.search(r"\nParameters\n-+\n(.*?)(?:\n\n\w+\n-+\n|\Z)", text, re.DOTALL)[1]
    heads = [word.strip(" *") for line in section.splitlines() if line[:1].strip() for word in line.split(",") if word]
    assert sorted(heads) == sorted(inspect.signature(FUNCTIONS[name]).parameters)
    for heading in ("Returns", "Examples"):
        assert f"\n{heading}\n{'-' * len(heading)}\n" in text


def test_all_lists_what_a_module_offers():
    """Nothing that is defined in a public module without an underscore is left out of its `__all__`."""
    for part in ("pp", "pl", "get", "datasets"):
        here = [(n, x) for n, x in vars(PARTS[part]).items() if inspect.isfunction(x)]
        own = [n for n, x in here if x.__module__.startswith(f"bcnmf_sc.{part}")]
        assert {n for n in own if not n.startswith("_")} <= set(PARTS[part].__all__)
    for part, module in PARTS.items():
        assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n[0].isupper(), n)), part


def test_every_name_is_in_the_docs():
    """And the docs list no name that is not there."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(?:   |\.\. autoclass:: bcnmf_sc\.)(\w+\.\w+|report|settings)$", text, re.MULTILINE))
    for part in re.findall(r"^\.\. automodule:: bcnmf_sc\.(\w+)$", text, re.MULTILINE):
        listed |= {f"{part}.{name}" for name in PARTS[part].__all__}
    assert listed == set(PUBLIC)


def test_every_plot_has_a_picture():
    """In the gallery, with words for those who do not see it."""
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    pictures = re.findall(r"^```{figure} (images/gallery/(\w+)\.png)\n:alt: (.{20,})$", page, re.MULTILINE)
    assert {name for _, name, _ in pictures} == set(bc.pl.__all__)
    assert all((ROOT / "docs" / path).read_bytes()[:4] == b"\x89PNG" for path, _, _ in pictures)
    assert set(re.findall(r"bc\.pl\.(\w+)\(", page)) == set(bc.pl.__all__)


def fields(adata) -> dict[str, object]:
    """Every field of an AnnData by its name, as the docstrings write it."""
    found = {f".{slot}[{key}]": getattr(adata, slot)[[key]] for slot in ("obs", "var") for key in getattr(adata, slot)}
    for slot in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        found |= {f".{slot}[{key}]": value for key, value in getattr(adata, slot).items()}
    return found


def promised(function, key: str) -> set[str]:
    """Fields that a docstring says to be written, for a key."""
    text = inspect.getdoc(function).split("\nReturns\n", 1)[1].split("\nExamples\n")[0]
    words = re.findall(r"`\.(\w+)\[([^\]]+)\]`", text)  # .obs[key_added + "_role"]
    parts = [(slot, re.findall(r'"(\w+)"|(key_added|key)', name)) for slot, name in words]
    return {f".{slot}[{''.join(text or key for text, _ in name)}]" for slot, name in parts}


def calls(name):
    adata = bc.datasets.simulated(n_target=80, n_background=60, n_genes=80)
    if name in ("tl.umap", "tl.project", "tl.update"):
        bc.tl.bcnmf(adata, **SPLIT, **QUICK)
    reference = adata.copy()
    arguments = {
        "pp.protein_coding": {},
        "pp.highly_variable_genes": {**SPLIT, "n_top_genes": 40},
        "tl.bcnmf": {**SPLIT, **QUICK, "likelihood": "zinb", "key_added": "x"},
        "tl.nmf": {**FEW, "likelihood": "zinb", "key_added": "x"},
        "tl.umap": {"key": "bcnmf"},
    }
    return adata, reference, arguments[name]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a fit that is cut short
@pytest.mark.parametrize(
    ("name", "key", "conditional"),
    [
        ("pp.protein_coding", "", set()),
        ("pp.highly_variable_genes", "", set()),
        ("tl.umap", "bcnmf", set()),
        ("tl.nmf", "x", set()),
        # with background topics, or with `alpha="auto"`, only
        (
            "tl.bcnmf",
            "x",
            {".obs[x_target_share]", ".obs[x_enriched]", ".obs[x_pvalue]", ".obs[x_padj]", ".uns[x_alpha]"},
        ),
    ],
)
def test_fields_written_are_the_fields_promised(name, key, conditional):
    adata, before, arguments = calls(name)
    assert PUBLIC[name](adata, **arguments) is None
    was, now = fields(before), fields(adata)
    assert set(now) - set(was) == promised(PUBLIC[name], key) - conditional
    for field, value in was.items():  # nothing else is touched
        assert_equal(now[field], value)
    assert_equal(adata.X, before.X)


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, the relative ones by their full name."""
    parent = ("bcnmf_sc", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parent[: len(parent) + 1 - node.level]) + "." if node.level else ""
            found |= {f"{base}{node.module or ''}".rstrip(".")}
            found |= {f"{base}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names}
    return found


ENGINE = sorted((PACKAGE / "engine").rglob("*.py"))


def test_engine_is_looked_at_whole():
    """The files that the next test sees are those that the package has, however deep they lie."""
    assert {"solver.py", "likelihoods.py", "hals.py"} <= {path.name for path in ENGINE}
    assert len(ENGINE) == len([path for path in PACKAGE.rglob("*.py") if "engine" in path.parts])


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_engine_knows_no_anndata(path):
    named = imports(path)
    assert not {name.split(".")[0] for name in named} & {
        "anndata",
        "pandas",
        "scanpy",
        "matplotlib",
        "mudata",
        "seaborn",
    }
    ours = {name for name in named if name.startswith("bcnmf_sc.")}
    assert all(name.startswith(("bcnmf_sc.engine", "bcnmf_sc._utils")) for name in ours)


def test_layers_go_one_way():
    """`_anndata` knows of the engine's likelihoods and sources at most; nothing imports what stands above it."""
    everything = ("_anndata", "_mudata", "get", "engine", "tl", "pp", "pl", "datasets", "metrics", "_report", "cli")
    above = {
        "_utils": everything,
        "engine": ("_anndata", "_mudata", "get", "tl", "pp", "pl", "datasets", "metrics", "_report", "cli"),
        "_stored.py": (
            "_anndata",
            "_mudata",
            "_spots",
            "get",
            "tl",
            "pp",
            "pl",
            "datasets",
            "metrics",
            "_report",
            "cli",
        ),
        "_anndata.py": ("_mudata", "_spots", "get", "tl", "pp", "pl", "datasets", "metrics", "_report", "cli"),
        "get.py": ("tl", "pp", "pl", "metrics", "_report", "cli"),
        "pp": ("tl", "pl", "engine", "metrics", "_report", "cli"),
        "datasets": ("tl", "pl", "engine", "metrics", "_report", "cli"),
        "tl": ("pl", "metrics", "_report", "cli"),
        "pl": ("tl", "engine", "metrics", "_report", "cli"),
    }
    for name, parts in above.items():
        paths = [PACKAGE / name] if name.endswith(".py") else sorted((PACKAGE / name).rglob("*.py"))
        assert paths
        for path in paths:
            upward = [x for x in imports(path) if x.startswith(tuple(f"bcnmf_sc.{part}" for part in parts))]
            assert not upward, f"{path.relative_to(PACKAGE)} imports {upward}"
    assert not [path for path in PACKAGE.rglob("_[a-z]*.py") if "bcnmf_sc.metrics" in imports(path)]


def test_modules_share_what_has_a_public_name():
    for path in PACKAGE.rglob("*.py"):
        for name in imports(path):
            place, _, last = name.rpartition(".")
            folder = PACKAGE.parent.joinpath(*place.split("."))
            private = last.startswith("_") and not last.startswith("__")
            ours = name.startswith("bcnmf_sc") and not (folder / f"{last}.py").exists() and not (folder / last).exists()
            assert not (private and ours), f"{path.name} imports {name}"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_silent_and_light():
    heavy = ["torch", "dask.array", "distributed", "mudata", "gpytorch", "pooch", "requests", "jinja2"]
    heavy = [name for name in heavy if importlib.util.find_spec(name.split(".")[0])]
    code = (
        "import sys, logging, scanpy; before = set(sys.modules); handlers = logging.root.handlers[:]\n"
        "import bcnmf_sc\n"
        f"print([n for n in {heavy!r} if n in sys.modules and n not in before], logging.root.handlers == handlers)"
    )
    assert run(code) == "[] True\n"
    assert run("import sys, bcnmf_sc; print('torch' in sys.modules)") == "False\n"


def test_every_test_file_has_tests():
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert re.search(r"^\s*def test_", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_no_module_is_too_long():
    """Few, deep modules, none above 500 lines."""
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_quickstart_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a report
    (code,) = code_blocks(ROOT / page)
    result: dict[str, object] = {}
    exec(compile(code, page, "exec"), result)
    assert "bcnmf" in result["adata"].uns


def test_random_halves_as_the_docs_have_them(capsys):
    """The last block of the page on backgrounds runs, and finds as little as the page says."""
    page = ROOT / "docs" / "choosing_a_background.md"
    printed = re.findall(r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[-1]
    exec(compile(code_blocks(page)[-1], str(page), "exec"), {})
    number = r"[-\d.]+"
    now, then = ([float(x) for x in re.findall(number, text)] for text in (capsys.readouterr().out, printed))
    assert re.split(number, printed)[0] == "AUC "
    assert now == pytest.approx(then, abs=1.5)  # of the called cells, percent
    assert 0.44 < now[0] < 0.56
    assert now[2] == then[2] == 0


def test_random_donors_as_the_docs_have_them(capsys):
    page = ROOT / "docs" / "choosing_a_background.md"
    printed = re.findall(r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0]
    with pytest.warns(UserWarning, match="looks like the donors"):
        exec(compile(code_blocks(page)[-2], str(page), "exec"), {})
    number = r"\d+(?= topics|%)"
    now, then = ([int(x) for x in re.findall(number, text)] for text in (capsys.readouterr().out, printed))
    assert now[::2] == then[::2] == [3, 0, 0]
    assert now[1::2] == pytest.approx(then[1::2], abs=4)  # percent of cells


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a fit that is cut short
@pytest.mark.parametrize(("name", "more"), [("tl.nmf", {}), ("tl.bcnmf", {**SPLIT, "n_background_topics": "auto"})])
def test_parts_of_the_record_are_those_promised(name, more):
    adata = bc.datasets.simulated(n_target=80, n_background=60, n_genes=80)
    PUBLIC[name](adata, key_added="x", **FEW, **more)
    text = inspect.getdoc(PUBLIC[name]).split("``.uns[key_added]`` : dict\n")[1].split("\n``.uns")[0]
    said = set(re.findall(r"``(\w+)``", text.split("\n\n")[0]))
    assert set(adata.uns["x"]) <= said
    if more:
        assert set(adata.uns["x"]["selection"]) <= said
        assert {"p_value", "called", "stability"} <= said & set(adata.uns["x"]["topics"])
