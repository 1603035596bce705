"""Real faults: killed processes, full disks, signals in each phase, data that change or vanish while they are read.

Processes that are killed or stopped are forked off a server that has imported everything, so that each costs little.
"""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata.tests.helpers import assert_equal

import bcnmf_sc as bc
from bcnmf_sc import _anndata, cli
from bcnmf_sc._utils import files
from bcnmf_sc.engine.bcnmf import solver
from bcnmf_sc.engine.deltanmf import stages as deltanmf
from bcnmf_sc.engine.rows import open as open_rows
from bcnmf_sc.engine.rows import sources
from bcnmf_sc.tl._bcnmf import folds
from bcnmf_sc.tl._bcnmf import problem as _problem

HOW = {"background_key": "condition", "background": "ctrl", "n_topics": 3, "max_iter": 30, "tol": 0}
FIT = ["--background-key", "condition", "--background", "ctrl", "-k", "3", "--tol", "0", "--n-threads", "1"]
PRELOADED = ["bcnmf_sc.cli", "bcnmf_sc.tl", "bcnmf_sc.engine.gpnsf.fit", "bcnmf_sc._report._page", "mudata", "pooch"]
PRELUDE = """
import os, signal, sys
end = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(end, 1), os.dup2(end, 2)
sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
import anndata as ad, numpy as np, resource
import bcnmf_sc as bc
from bcnmf_sc import cli
from bcnmf_sc._utils import files
from bcnmf_sc.engine import checkpoint
from bcnmf_sc.engine.bcnmf import solver
"""
# resource_tracker and the server's pipes are the standard library's
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals and mounts are POSIX's"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # few cells, few iterations
]


class Child:
    """Code in a process of its own, whose output goes to a file."""

    def __init__(self, code: str, folder: Path, **names: object) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = folder / f"log{time.monotonic_ns()}"
        self.log.touch()
        scope = {"log": str(self.log)} | names
        self.process = context.Process(target=exec, args=(PRELUDE + textwrap.dedent(code), scope))
        self.process.start()

    def end(self) -> tuple[int, str]:
        """Wait, and return exit code and output."""
        self.process.join(60)
        assert self.process.exitcode is not None, "the child hangs"
        text = self.log.read_text()
        self.log.unlink()
        return self.process.exitcode, text

    def until(self, condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture
def small():
    return bc.datasets.simulated(n_target=60, n_background=40, n_genes=80)


@pytest.fixture
def source(small, tmp_path):
    small.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


# -- killed ------------------------------------------------------------------------------------------------------------


def kill_often(code: str, path: Path, logs: Path, check, n_kills: int = 8, **scope: object) -> None:
    """Kill, at random moments, a process that writes a file again and again; `check` must find it whole each time."""
    rng = random.Random(0)
    cut_short = 0
    for _ in range(n_kills):
        before = stamp(path)
        child = Child(code, logs, path=str(path), **scope)
        child.until(lambda: stamp(path) != before)  # noqa: B023
        time.sleep(rng.uniform(0, 0.03))
        child.process.kill()
        assert child.end()[0] == -signal.SIGKILL
        left = [name for name in names(path.parent) if name.endswith(".tmp")]
        assert len(left) <= 1, "what an earlier process left should be gone"
        cut_short += len(left)
        check(path)
    assert cut_short >= 2, "most kills should be in the midst of writing"
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"")
    assert not [name for name in names(path.parent) if name.endswith(".tmp")]


def test_checkpoint_of_a_killed_process(tmp_path, logs):
    code = """
    import itertools
    for i in itertools.count():
        checkpoint.Checkpoint(files.Path(path), "x").write(lambda: {"a": np.full(200_000, i)}, 1)
    """

    def whole(path):
        with np.load(path) as stored:
            assert (stored["a"] == stored["a"][0]).all()

    kill_often(code, tmp_path / "state.npz", logs, whole)


def test_h5ad_of_a_killed_process(tmp_path, logs):
    code = """
    import functools, itertools
    both = [ad.AnnData(np.full((1000, 300), i, "f4")) for i in range(2)]
    for i in itertools.count():
        cli.write(files.Path(path), functools.partial(cli.write_data, data=both[i % 2]))
    """

    def whole(path):
        written = ad.read_h5ad(path)
        assert written.shape == (1000, 300)
        assert np.ptp(written.X) == 0

    kill_often(code, tmp_path / "out.h5ad", logs, whole)


def test_a_killed_fit_is_taken_up(small, tmp_path, logs):
    code = """
    adata = bc.datasets.simulated(n_target=60, n_background=40, n_genes=80)
    bc.tl.bcnmf(adata, **how, checkpoint=path, checkpoint_every=1)
    """
    how, path = HOW | {"max_iter": 150, "n_threads": 1}, tmp_path / "state"
    for _ in range(2):
        before = stamp(path)
        child = Child(code, logs, path=str(path), how=how | {"max_iter": 100_000})
        child.until(lambda: stamp(path) != before)  # noqa: B023
        child.process.kill()
        assert child.end()[0] == -signal.SIGKILL
    n_iter = int(np.load(path)["n_iter"])
    how["max_iter"] = max(150, n_iter + 5)
    whole = small.copy()
    bc.tl.bcnmf(small, **how, checkpoint=path)
    bc.tl.bcnmf(whole, **how)
    assert_equal(small, whole)
    assert names(tmp_path) == ["state"]


def test_files_of_running_processes_are_left_alone(tmp_path, logs):
    """Two processes may write to one path at a time."""
    path = tmp_path / "page"
    code = """
    import time
    with files.replacing(path) as temporary:
        temporary.touch()
        time.sleep(60)
    """
    child = Child(code, logs, path=str(path))
    child.until(lambda: names(tmp_path))
    theirs = names(tmp_path)
    with files.replacing(path) as temporary:
        temporary.write_text("ours")
    assert names(tmp_path) == sorted([*theirs, "page"])
    child.process.kill()
    child.end()


# -- asked to stop -----------------------------------------------------------------------------------------------------


@pytest.fixture
def heeded():
    """Interrupts as on a terminal, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_call(monkeypatch, place, name: str, number: int, act) -> list[int]:
    """Do something at the beginning of some call of a function."""
    function, calls = getattr(place, name), []

    @functools.wraps(function)
    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            act()
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, counted)
    return calls


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


PHASED = HOW | {"n_background_topics": 2, "cross_fit": 2, "checkpoint_every": 5, "n_threads": 1}
PHASES = {
    "reading": (_anndata, "summarise", 1),
    "reading a file": (sources.ReadSource, "_chunk", 2),
    "start": (solver, "initial_loadings", 1),
    "background topics": (solver, "iterate", 5),
    "iteration": (solver, "sweep", 50),
    "last pass": (solver, "transform", 2),
    "scoring": (folds, "cross_fit", 1),
    "deviance": (_problem, "transform", 1),
}


@pytest.fixture(scope="module")
def whole_fit():
    """What the fits that are interrupted must come to."""
    adata = bc.datasets.simulated(n_target=60, n_background=40, n_genes=80)
    bc.tl.bcnmf(adata, **PHASED)
    return adata


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_in_each_phase_of_a_fit(phase, source, whole_fit, tmp_path, monkeypatch):
    """Nothing is changed, and the same call ends as if it had not been interrupted."""
    adata = ad.read_h5ad(source, backed="r" if phase == "reading a file" else None)
    with monkeypatch.context() as patched:
        calls = at_call(patched, *PHASES[phase], ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            bc.tl.bcnmf(adata, **PHASED, checkpoint=tmp_path / "state")
        assert len(calls) >= PHASES[phase][-1]
    left = adata if phase != "reading a file" else adata.to_memory()
    assert_equal(left, ad.read_h5ad(source))
    assert not set(names(tmp_path)) - {"in.h5ad", "state"}
    assert (tmp_path / "state").exists() == (phase in ("iteration", "last pass", "scoring", "deviance"))
    bc.tl.bcnmf(adata, **PHASED, checkpoint=tmp_path / "state")
    assert_equal(adata if phase != "reading a file" else adata.to_memory(), whole_fit)


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_while_results_are_stored(small, monkeypatch):
    """They are then all there."""
    whole = small.copy()
    bc.tl.bcnmf(whole, **HOW)
    calls = at_call(monkeypatch, type(small.varm), "__setitem__", 1, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        bc.tl.bcnmf(small, **HOW)
    assert calls
    assert_equal(small, whole)


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_while_deltanmf_looks_for_a_start(tmp_path, monkeypatch):
    """Short fits from several starts have no state to save: the call ends at once."""
    adata = bc.datasets.simulated(n_target=60, n_background=40, n_genes=80)
    calls = at_call(monkeypatch, deltanmf, "descend", 1, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        bc.tl.deltanmf(adata, condition_key="condition", control="ctrl", checkpoint=tmp_path / "state")
    assert len(calls) == 1
    assert names(tmp_path) == []


def test_a_second_signal_is_not_held_back(monkeypatch):
    number, seen = signal.SIGTERM, []
    before = signal.signal(number, lambda *_: seen.append(1))
    try:
        with files.Held() as held:
            signal.raise_signal(number)
            assert (held.number, seen) == (number, [])
            signal.raise_signal(number)
            assert seen == [1]
        signal.raise_signal(number)
        assert seen == [1, 1]
    finally:
        signal.signal(number, before)


def test_a_run_under_nohup_stays(logs):
    code = """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with cli._heeding_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
    """
    assert Child(code, logs).end() == (0, "True\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["reading", "fit", "writing"])
def test_command_asked_to_stop(phase, number, source, tmp_path, logs):
    """Schedulers of a cluster send SIGTERM some time before they kill; it does what Ctrl-C does."""
    code = """
    place, name, at = {
        "reading": (ad, "read_h5ad", 1), "fit": (solver, "iterate", 20), "writing": (files._Patient, "write", 20)
    }[phase]
    calls, function = [], getattr(place, name)
    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)
    setattr(place, name, counted)
    cli.main(argv)
    """
    state, out = tmp_path / "state", tmp_path / "out.h5ad"
    run = ["--checkpoint", str(state), "--checkpoint-every", "1000", "--max-iter", "60"]
    argv = ["fit", str(source), *FIT, *run, "-o", str(out)]
    code, text = Child(code, logs, phase=phase, number=int(number), argv=argv).end()
    assert code == 128 + number
    assert "Traceback" not in text
    assert "Interrupted; no incomplete file is left." in text
    assert ("20 iterations. The same call resumes it" in text) == (phase == "fit")
    assert names(tmp_path) == sorted(["in.h5ad"] + ["state"] * (phase != "reading"))
    if phase == "fit":
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert not end.value.code
        whole = ad.read_h5ad(source)
        bc.tl.bcnmf(whole, **HOW | {"max_iter": 60})
        np.testing.assert_array_equal(ad.read_h5ad(out).varm["bcnmf"], whole.varm["bcnmf"])


# -- full disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """Mount a disk of some size, which takes root."""
    folders = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir(exist_ok=True)
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True
        )
        if made.returncode:
            pytest.skip(f"a disk can be mounted by root only: {made.stderr.decode().strip()}")
        folders.append(folder)
        return folder

    if not shutil.which("mount"):
        pytest.skip("no `mount` here")
    yield mount
    for folder in folders:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["disk", "limit"])
def full(request, tmp_path):
    """A folder without much room, and how a child comes to feel it: of the file system, or of the process."""
    if request.param == "disk":
        return request.getfixturevalue("mounted")("size=200k"), ""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder, "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks for path in folder.iterdir())


LARGE = {
    "checkpoint": "checkpoint.Checkpoint(files.Path(path), 'x').write(lambda: {'a': np.ones(10**5)}, 1)",
    "report": """
        adata = bc.datasets.simulated(n_target=60, n_background=40, n_genes=80)
        bc.tl.bcnmf(adata, background_key="condition", background="ctrl", n_topics=3, max_iter=3)
        bc.report(adata, path, overwrite=True)
    """,
    "h5ad": "cli.write(files.Path(path), lambda to: cli.write_data(to, ad.AnnData(np.ones((300, 300)))))",
    "h5ad of strings": """
        adata = ad.AnnData(np.ones((2000, 2), "f4"))
        adata.obs["text"] = [f"cell number {i} of many" for i in range(2000)]
        adata.obs.index = adata.obs["text"].to_numpy()
        cli.write(files.Path(path), lambda to: cli.write_data(to, adata))
    """,
    "h5mu": """
        import mudata
        data = mudata.MuData({"rna": ad.AnnData(np.ones((300, 300)))})
        cli.write(files.Path(path), lambda to: cli.write_data(to, data))
    """,
}


@pytest.mark.parametrize("what", LARGE)
def test_full_disk(what, full, logs):
    """One clear error; the former file is whole, and what was half written is gone."""
    folder, limit = full
    path = folder / "file"
    path.write_text("precious")
    (folder / "filler").write_bytes(bytes(120_000))
    before = used(folder)
    code = limit + "import warnings; warnings.simplefilter('ignore')\ntry:\n"
    code += textwrap.indent(textwrap.dedent(LARGE[what]), "    ")
    code += "\nexcept OSError as error:\n    print(error)\nelse:\n    print('it was written')\n"
    exit_code, text = Child(code, logs, path=str(path)).end()
    assert exit_code == 0
    # an archive that NumPy before 2.2 leaves open complains when it is deleted
    text = re.sub(r"Exception ignored in: <function ZipFile.__del__.*?closed file\n", "", text, flags=re.DOTALL)
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith(f"{str(path)!r} could not be written: ")
    assert "No space left on device" in text or "File too large" in text
    assert text.rstrip().endswith("The previous file is unchanged.")
    assert path.read_text() == "precious"
    assert used(folder) == before
    assert names(folder) == ["file", "filler"]


def test_full_disk_ends_the_command_with_one_line(source, tmp_path):
    """HDF5 would print hundreds, and crash at the end of the process."""
    out = tmp_path / "out.h5ad"
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    code += "from bcnmf_sc.cli import main; main(sys.argv[1:])"
    argv = ["fit", source, *FIT, "--max-iter", "3", "-o", out]
    done = subprocess.run([sys.executable, "-c", code, *argv], check=False, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Warning: ")]
    assert errors == [f"Error: {str(out)!r} could not be written: File too large."]
    assert done.returncode == 1
    assert names(tmp_path) == ["in.h5ad"]


def test_full_disk_under_compiled_code(mounted, tmp_path):
    """What was compiled is used all the same."""
    folder = mounted("size=16k")
    (folder / "filler").write_bytes(bytes(16_000))
    code = (
        "from bcnmf_sc.engine.kernels._loops import jit\n@jit\ndef double(x):\n    return 2 * x\nprint(double(4.0))\n"
    )
    (tmp_path / "loop.py").write_text(code)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run(
        [sys.executable, tmp_path / "loop.py"], check=False, capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.returncode) == ("8.0\n", 0), done.stderr


def test_without_compiled_code_the_reason_is_said(source, tmp_path):
    argv = ["fit", source, *FIT, "-o", tmp_path / "out.h5ad"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "bcnmf_sc.cli", *argv], check=False, capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.returncode) == ("", 1)
    assert re.fullmatch("Error: The environment variable `NUMBA_DISABLE_JIT` must be .*\n", done.stderr), done.stderr


# -- places that cannot be written to ----------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path, mounted):
    if os.geteuid():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        return folder
    return mounted("size=10k,ro")


def places(tmp_path: Path, read_only: Path) -> dict[str, Path]:
    def linked(name: str, to: Path) -> Path:
        (tmp_path / name).symlink_to(to)
        return tmp_path / name

    return {
        "a writable folder": read_only / "file",
        "a folder.": tmp_path,
        "a device.": Path("/dev/null"),
        "lie in an existing folder": tmp_path / "none" / "file",
        "lie in an existing folder.* is not a folder": linked("dangling", tmp_path / "none" / "file"),
        "lie in a writable folder": linked("read-only", read_only / "file"),
        "name a file that can be written.*(levels of symbolic links|loop)": linked("loop", tmp_path / "loop"),
        "name a file that can be written.*name too long": tmp_path / ("x" * 250),
    }


def test_places_are_looked_at_before_any_work(small, tmp_path, read_only, monkeypatch):
    bc.tl.bcnmf(small, **HOW)
    monkeypatch.setattr(_anndata, "row_source", lambda *_, **__: pytest.fail("the data were read before"))
    for message, path in places(tmp_path, read_only).items():
        with pytest.raises(ValueError, match=rf"(?i)`checkpoint` must .*{message}"):
            bc.tl.bcnmf(small, **HOW, checkpoint=path)
        with pytest.raises(ValueError, match=rf"(?i)`path` must .*{message}"):
            bc.report(small, path)
    assert Path("/dev/null").is_char_device()


def test_command_into_a_place_that_cannot_be(source, tmp_path, read_only, monkeypatch, capsys):
    monkeypatch.setattr(ad, "read_h5ad", lambda *_, **__: pytest.fail("read before the output was checked"))
    for message, path in places(tmp_path, read_only).items():
        with pytest.raises(SystemExit) as end:
            cli.main(["fit", str(source), *FIT, "--force", "-o", str(path)])
        assert end.value.code == 1
        assert re.fullmatch(rf"(?i)Error: `output` must .*{message}.*\n", capsys.readouterr().err)
    assert Path("/dev/null").is_char_device()
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    with files.replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "new"
    assert names(tmp_path / "far") == ["file"]


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode & 0o777


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_what_is_replaced_keeps_its_permissions(mode, source, tmp_path):
    out, state = tmp_path / "out.h5ad", tmp_path / "state"
    for path in (out, state):
        cli.write(path, lambda temporary: temporary.write_bytes(b""))
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask(), "a new file gets what any new file gets"
    out.chmod(mode)
    state.unlink()
    before = owner_and_mode(out)
    argv = ["fit", str(source), *FIT, "--max-iter", "3", "--checkpoint", str(state), "-o", str(out), "--force"]
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert not end.value.code
    assert owner_and_mode(out) == before
    state.chmod(mode)
    with pytest.raises(SystemExit):
        cli.main([*argv, "--max-iter", "6"])
    assert owner_and_mode(state) == before


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_nobody_else_reads_what_replaces_a_private_file(tmp_path):
    path = tmp_path / "file"
    path.touch(mode=0o600)
    with files.replacing(path) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_text("new")
    assert owner_and_mode(path)[2] == 0o600


def test_a_group_that_cannot_be_kept_gets_no_more_than_everybody(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o664)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with files.replacing(path) as temporary:
        temporary.write_text("new")
    assert owner_and_mode(path)[2] == 0o644


def test_a_prepared_link_is_not_followed(tmp_path, monkeypatch):
    """In a folder that others write to, a link under the name of a temporary file must not lead to a private file."""
    private = tmp_path / "private"
    private.write_text("secret")
    foreseen = f".out.{platform.node()}.{os.getpid()}.tmp"
    (tmp_path / foreseen).symlink_to(private)
    with files.replacing(tmp_path / "out") as temporary:
        assert not temporary.is_symlink()
        temporary.write_text("new")
    assert ((tmp_path / "out").read_text(), private.read_text()) == ("new", "secret")
    assert (tmp_path / foreseen).is_symlink()

    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")  # even one that was guessed
    (tmp_path / foreseen).rename(tmp_path / f".out.{platform.node()}.{os.getpid()}.0.tmp")
    with pytest.raises(OSError, match="File exists"), files.replacing(tmp_path / "out") as temporary:
        temporary.write_text("newer")
    assert ((tmp_path / "out").read_text(), private.read_text()) == ("new", "secret")


def test_a_file_that_others_put_in_the_place_of_ours_is_not_taken(tmp_path):
    (tmp_path / "out").write_text("old")

    def swap(temporary: Path) -> None:
        temporary.unlink()
        temporary.write_text("theirs")

    with pytest.raises(OSError, match="another process has replaced its temporary file"):
        cli.write(tmp_path / "out", swap)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_leftovers_that_are_no_files_of_ours_stay(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    stem = f".out.{platform.node()}.{gone.pid}"
    (tmp_path / f"{stem}.a.tmp").mkdir()
    (tmp_path / f"{stem}.b.tmp").symlink_to(tmp_path)
    for left in (f"{stem}.c.tmp", f"{stem}.tmp"):
        (tmp_path / left).touch()
    with files.replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [f"{stem}.a.tmp", f"{stem}.b.tmp", "out"]


# -- data that change --------------------------------------------------------------------------------------------------


def stored(adata, path: Path):
    """An AnnData whose matrix lies in a file."""
    if path.suffix == ".zarr":
        import zarr

        array = zarr.open(str(path), mode="w", shape=adata.shape, chunks=(100, 80), dtype="f4")
        array[:] = adata.X
        return ad.AnnData(array, adata.obs, adata.var)
    adata.write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


def overwrite(path: Path) -> None:
    other = ad.read_h5ad(path)
    other.X = other.X[::-1]
    copy = path.with_name("other.h5ad")
    other.write_h5ad(copy)
    path.write_bytes(copy.read_bytes())


DAMAGE = {
    "cut short": ("h5ad", lambda path: os.truncate(path, path.stat().st_size // 3)),
    "overwritten": ("h5ad", overwrite),
    "part gone": ("zarr", lambda path: max(path.rglob("*0")).unlink()),
    "gone": ("zarr", shutil.rmtree),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_data_that_change_while_they_are_read(damage, tmp_path, monkeypatch):
    """A file cut short reads as zeros: the fit would end, with a wrong result."""
    monkeypatch.setattr(open_rows, "READ_VALUES", 2000)
    kind, act = DAMAGE[damage]
    dense = bc.datasets.simulated(n_target=600, n_background=400, n_genes=80)
    dense.X = dense.X.toarray()
    adata = stored(dense, tmp_path / f"in.{kind}")
    at_call(monkeypatch, solver, "iterate", 4, lambda: act(tmp_path / f"in.{kind}"))
    with pytest.raises(OSError, match=r"Cells \d+ to \d+ (have changed since the fit began|cannot be read)"):
        bc.tl.bcnmf(adata, **HOW)
    assert "bcnmf" not in adata.uns
    assert "X_bcnmf" not in adata.obsm


def test_an_open_file_may_be_removed_or_replaced(small, tmp_path, monkeypatch):
    adata = stored(small, tmp_path / "in.h5ad")
    bc.tl.bcnmf(small, **HOW)

    def replace():
        (tmp_path / "other").write_bytes(b"another file")
        (tmp_path / "other").replace(tmp_path / "in.h5ad")

    calls = at_call(monkeypatch, solver, "iterate", 4, replace)
    bc.tl.bcnmf(adata, **HOW)
    assert len(calls) > 4
    np.testing.assert_allclose(adata.varm["bcnmf"], small.varm["bcnmf"], atol=1e-6)


# -- downloads ---------------------------------------------------------------------------------------------------------


CONTENT = np.random.default_rng(0).bytes(600_000)


@pytest.fixture
def server():
    """Serve a file, of which at first only a half comes if `stalls` is set."""

    class Handler(http.server.BaseHTTPRequestHandler):
        stalls = threading.Event()

        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            try:
                self.wfile.write(CONTENT[start : len(CONTENT) // 2])
                while self.stalls.is_set():
                    time.sleep(0.01)
                self.wfile.write(CONTENT[max(start, len(CONTENT) // 2) :])
            except OSError:  # the other side was killed
                self.close_connection = True

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}/file.bin", Handler.stalls
        Handler.stalls.clear()
        made.shutdown()
        thread.join()


DOWNLOAD = """
from bcnmf_sc._utils.download import download
os.environ["BCNMF_SC_DATA"] = cache
try:
    download(url, "file.bin")
except OSError as error:
    print(error)
"""


def test_killed_in_a_download(server, tmp_path, logs):
    url, stalls = server
    stalls.set()
    child = Child(DOWNLOAD, logs, cache=str(tmp_path), url=url)
    child.until(lambda: any(path.stat().st_size for path in tmp_path.iterdir()))
    child.process.kill()
    child.end()
    assert "file.bin" not in names(tmp_path)
    stalls.clear()
    assert Child(DOWNLOAD, logs, cache=str(tmp_path), url=url).end()[0] == 0
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_download_to_a_full_disk(server, full, logs):
    folder, limit = full
    exit_code, text = Child(limit + DOWNLOAD, logs, cache=str(folder), url=server[0]).end()
    assert exit_code == 0
    assert "No space left on device" in text or "File too large" in text
    assert "file.bin could not be downloaded" in text
    assert names(folder) == []
