"""Files that are cut short, changed by a bit, or something else: refused in a line, and nothing in them is run."""

from __future__ import annotations

import ast
import io
import pickle
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import sparse

import bcnmf_sc as bc
from bcnmf_sc import cli
from bcnmf_sc.engine import NegativeBinomial, Poisson, Run, fit, row_source

PACKAGE = Path(bc.__file__).parent
SPLIT = ["--background-key", "condition", "--background", "ctrl", "-k", "2", "--max-iter", "3"]


class Payload:
    """What writes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def foreign(payload: Payload) -> dict[str, bytes]:
    """Content of files that are no state of a fit and no h5ad, some with code in them."""
    packed, array, objects, evil = (io.BytesIO() for _ in range(4))
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "x")
    np.save(array, np.ones(3))
    np.savez(objects, identity=np.array([payload], dtype=object))
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"identity": payload}))
        archive.writestr("archive/version", "3\n")
    return {
        "empty": b"",
        "text": b"cells,genes\n1,2\n",
        "html": b"<!doctype html><title>404</title>",
        "zip": packed.getvalue(),
        "npy": array.getvalue(),
        "pickle": pickle.dumps(payload),
        "npz of objects": objects.getvalue(),
        "torch of objects": evil.getvalue(),
    }


KINDS = tuple(foreign(Payload(Path("never"))))


def test_nothing_that_could_run_code_is_read():
    """No pickle in the package: arrays without objects."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            safe = {(k.arg, ast.unparse(k.value)) for k in call.keywords}
            assert name not in ("eval", "exec", "pd.read_pickle", "joblib.load", "torch.load"), (path, call.lineno)
            assert name != "np.load" or ("allow_pickle", "False") in safe, (path, call.lineno)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def problem():
    x = np.random.default_rng(0).poisson(2.0, (8, 5)).astype(float)
    target = (np.arange(8) < 5).astype(float)
    return row_source(sparse.csr_matrix(x), n_threads=1), {"target": target, "background": 0.2 * (1 - target)}


def resumed(problem, path, n_iter=7):
    source, weights = problem
    return fit(source, Poisson(), 2, **weights, run=Run(max_iter=n_iter, tol=0, checkpoint=path))


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_checkpoints_are_refused_and_not_run(problem, tmp_path, kind):
    path = tmp_path / "state"
    path.write_bytes(foreign(Payload(tmp_path / "run"))[kind])
    with pytest.raises(ValueError, match=r"`checkpoint` .* is not a complete checkpoint"):
        resumed(problem, path)
    spots = ad.AnnData(np.random.default_rng(0).poisson(2.0, (9, 4)).astype(np.float32))
    spots.obsm["spatial"] = np.stack(np.divmod(np.arange(9.0), 3), 1)
    with pytest.raises(ValueError, match=r"`checkpoint` .* is not a complete checkpoint"):
        bc.tl.gpnsf(spots, n_topics=2, max_iter=2, progress=False, device="cpu", checkpoint=path)
    assert not (tmp_path / "run").exists()
    assert "gpnsf" not in spots.uns


def test_payloads_would_run_if_unpickled(tmp_path):
    """So that the tests above have something to see."""
    pickle.loads(foreign(Payload(tmp_path / "run"))["pickle"])
    assert (tmp_path / "run").exists()


CRAFTED = {
    "negative": ("W", lambda x: -x),
    "not finite": ("H", lambda x: x * np.nan),
    "of type <U": ("scale", lambda x: x.astype(str)),
    "of type float64": ("n_iter", lambda x: np.float64(np.inf)),
    "n_iter with values that are negative": ("n_iter", lambda x: np.int64(-5)),
    "loss of shape": ("loss", lambda x: x[:, :2]),
    "change with values": ("change", lambda x: np.float64(np.nan)),
    "one dispersion or one for each": ("likelihood_dispersion", lambda x: np.ones(3)),
}


@pytest.mark.parametrize("message", CRAFTED)
def test_crafted_checkpoints_are_refused(problem, tmp_path, message):
    """Of the right fit and shape, with what no fit can have come to."""
    path = tmp_path / "state"
    source, weights = problem

    def go_on(n_iter):
        likelihood = NegativeBinomial(np.float32(2.0))
        return fit(source, likelihood, 2, **weights, run=Run(max_iter=n_iter, tol=0, checkpoint=path))

    go_on(12)
    with np.load(path) as stored:
        content = dict(stored)
    name, spoil = CRAFTED[message]
    np.savez(tmp_path / "other.npz", **content | {name: spoil(content[name])})
    (tmp_path / "other.npz").replace(path)
    with pytest.raises(ValueError, match=rf"`checkpoint` .*{message}"):
        go_on(14)
    np.savez(tmp_path / "other.npz", **content | {"n_iter": np.int64(2**62)})
    (tmp_path / "other.npz").replace(path)
    assert go_on(14).n_iter == 2**62, "further than was asked for: nothing is left to do"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of a fit that is cut short
@pytest.mark.parametrize("spatial", [False, True])
def test_changed_bits_of_a_checkpoint_are_seen(problem, tmp_path, spatial):
    """Or change nothing, such as a date."""
    path = tmp_path / "state"
    spots = ad.AnnData(np.random.default_rng(0).poisson(2.0, (9, 4)).astype(np.float32))
    spots.obsm["spatial"] = np.stack(np.divmod(np.arange(9.0), 3), 1)

    def go_on(n_iter: int = 7) -> list[np.ndarray]:
        if not spatial:
            found = resumed(problem, path, n_iter)
            return [found.W, found.H, found.loss]
        adata = spots.copy()
        how = {"max_iter": 2, "tol": 0.0, "progress": False, "device": "cpu", "n_inducing": 4}
        bc.tl.gpnsf(adata, n_topics=2, checkpoint=path, **how)
        return [adata.obsm["X_gpnsf"], adata.varm["gpnsf"]]

    go_on(5)
    whole = path.read_bytes()
    expected = go_on()
    refused = 0
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:  # the exponent of a number in each part
        inside = [
            whole.index(archive.read(i)) + i.file_size // 8 * 4 + 3 for i in archive.infolist() if i.file_size > 7
        ]
    for at in [*inside, *np.random.default_rng(0).choice(len(whole), 1 if spatial else 30, replace=False)]:
        content = bytearray(whole)
        content[at] ^= 1 << 5
        path.write_bytes(content)
        try:
            found = go_on()
        except ValueError as error:
            assert "is not a complete checkpoint" in str(error), at  # noqa: PT017 (either is right)
            refused += 1
        else:
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)), at
    assert refused >= len(inside)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        go_on()


@pytest.mark.parametrize("name", ["H", "H_prev", "W", "scale"])
def test_arrays_of_other_shapes_are_refused(problem, tmp_path, name):
    """The kernels do not look: they would read what lies behind."""
    path = tmp_path / "state.npz"
    resumed(problem, path, 5)
    with np.load(path) as arrays:
        stored = dict(arrays)
    stored[name] = stored[name][:1]
    np.savez(path, **stored)
    with pytest.raises(ValueError, match=rf"`checkpoint` .* holds {name} of shape"):
        resumed(problem, path)


# --- h5ad ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> bytes:
    adata = bc.datasets.simulated(n_target=30, n_background=20, n_genes=40)
    path = tmp_path_factory.mktemp("damage") / "whole.h5ad"
    bc.tl.nmf(adata, n_topics=2, max_iter=200, tol=0.1)
    adata.write_h5ad(path)
    return path.read_bytes()


def command(*words: object) -> tuple[int, str]:
    """Run it; an error of another kind than one line for the user comes through."""
    result = CliRunner().invoke(cli.cli, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_files_are_no_h5ad(tmp_path, kind):
    path = tmp_path / "in.h5ad"
    path.write_bytes(foreign(Payload(tmp_path / "run"))[kind])
    for words in (["info", path], ["fit", path, "-o", tmp_path / "out.h5ad", *SPLIT]):
        code, text = command(*words)
        assert (code, text) == (1, f"Error: {path} is not an h5ad file (not HDF5).\n")
    assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]


@pytest.mark.filterwarnings("ignore")
def test_changed_bits_of_an_h5ad(stored, tmp_path):
    """Ends in a result or in one line; HDF5 has no checksums here, so a changed value may be read."""
    codes = set()
    for at in np.random.default_rng(1).integers(len(stored), size=15):
        content = bytearray(stored)
        content[at] ^= 1 << int(at % 8)
        path = tmp_path / f"{at}.h5ad"
        path.write_bytes(content)
        code, text = command("fit", path, "-o", tmp_path / "out.h5ad", "--force", *SPLIT)
        assert code in (0, 1), (at, text)
        assert code == 0 or (text.startswith("Error: ") and text.count("\n") == 1), (at, text)
        codes.add(code)
    assert codes == {0, 1}


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("indices", 10**6, "`adata.X` must have `indices` from 0 to 39, got 1000000"),
        ("indices", -1, "`adata.X` must have `indices` from 0 to 39, got -1"),
        ("indptr", 10**6, "`adata.X` must have `indptr` that increases"),
        ("data", np.nan, "`adata.X` must be finite, got 1 values"),
    ],
)
def test_a_broken_matrix_is_not_followed(part, value, message):
    """SciPy and the kernels would read beyond the arrays."""
    adata = bc.datasets.simulated(n_target=30, n_background=20, n_genes=40)
    getattr(adata.X, part)[7] = value
    how = {"background_key": "condition", "background": "ctrl"}
    for call in (
        lambda: bc.tl.bcnmf(adata, **how, n_topics=2),
        lambda: bc.tl.cpca(adata, **how),
        lambda: bc.pp.highly_variable_genes(adata, **how) if part != "data" else bc.tl.nmf(adata),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("part", ["params/background", "topics", "n_iter"])
def test_a_name_that_has_changed_is_said_to_be_missing(tmp_path, part):
    """A bit is enough: HDF5 finds what it looks for by name."""
    adata = bc.datasets.simulated(n_target=30, n_background=20, n_genes=40)
    how = {"background_key": "condition", "background": "ctrl", "max_iter": 200, "tol": 0.1}
    bc.tl.bcnmf(adata, n_topics=2, **how)
    path = tmp_path / "in.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:
        file["uns/bcnmf"].move(part, part[:-1] + "_")
    code, text = command("report", path, "-o", tmp_path / "out.html")
    name = part.split("/")[-1]
    damaged = f"Error: {path} is damaged: the stored fit lacks '{name}'"
    assert code == 1
    assert text.startswith("Error: `key` 'bcnmf' is not a factorisation" if name == "topics" else damaged)
    assert text.count("\n") == 1
    assert not (tmp_path / "out.html").exists()
    if name == "n_iter":
        code, text = command("info", path)
        assert (code, text.count("\n")) == (1, 1)
        assert text.startswith(damaged)


@pytest.mark.parametrize("part", ["params", "params/likelihood", "topics"])
def test_a_reference_that_lacks_a_part_is_refused(stored, tmp_path, part):
    path = tmp_path / "in.h5ad"
    path.write_bytes(stored)
    damaged = tmp_path / "damaged.h5ad"
    damaged.write_bytes(stored)
    with h5py.File(damaged, "a") as file:
        file["uns/nmf"].move(part, part[:-1] + "_")
    code, text = command("project", path, "--reference", damaged, "--key", "nmf", "-o", tmp_path / "out.h5ad")
    assert (code, text.count("\n")) == (1, 1)
    assert text.startswith("Error: `key`")
    assert "'nmf'" in text
