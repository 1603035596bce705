"""The command line: same results as the Python call, exit codes, files."""

from __future__ import annotations

import compileall
import hashlib
import inspect
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence  # noqa: TC003 (the hints are read)
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import anndata as ad
import click
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from anndata.tests.helpers import assert_equal

import bcnmf_sc as bc
from bcnmf_sc import _anndata, cli
from bcnmf_sc._mudata import no_pull
from bcnmf_sc.cli import files
from bcnmf_sc.cli.demo import DEMO_FILES
from bcnmf_sc.cli.options import collect as collect_option
from bcnmf_sc.cli.options import options

FIT = ["--background-key", "condition", "--background", "ctrl", "-k", "3", "--max-iter", "200", "--tol", "0.01"]


def call(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(x) for x in argv])
    return end.value.code


@pytest.fixture
def refused(capsys):
    """Run a command that must end with code 1, one line on stderr, and no traceback; return the line."""

    def run(*argv: object) -> str:
        assert call(*argv) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def small() -> AnnData:
    return bc.datasets.simulated(n_target=60, n_background=40, n_genes=80)


@pytest.fixture
def source(small, tmp_path):
    path = tmp_path / "in.h5ad"
    small.write_h5ad(path)
    return path


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same(first: AnnData, second: AnnData, key: str = "bcnmf") -> None:
    np.testing.assert_array_equal(first.obsm["X_" + key], second.obsm["X_" + key])
    np.testing.assert_array_equal(first.varm[key], second.varm[key])
    assert first.obs[key + "_role"].astype(str).tolist() == second.obs[key + "_role"].astype(str).tolist()
    pd.testing.assert_frame_equal(first.uns[key]["topics"], second.uns[key]["topics"], check_names=False)


class TestResults:
    def test_fit_equals_the_call(self, source, tmp_path, capsys):
        before, out = digest(source), tmp_path / "out.h5ad"
        assert call("fit", source, *FIT, "-o", out) == 0
        expected = ad.read_h5ad(source)
        bc.tl.bcnmf(expected, background_key="condition", background="ctrl", n_topics=3, max_iter=200, tol=0.01)
        assert_same(ad.read_h5ad(out), expected)
        assert digest(source) == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]
        assert "Topic 3" in capsys.readouterr().out

    def test_a_likelihood_with_its_parameters(self, small, tmp_path):
        source, out = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
        small.write_h5ad(source)
        run = ["--background-key", "condition", "--background", "ctrl", "-k", "2", "--tol", "0.05", "--no-progress"]
        assert call("fit", source, "-o", out, *run, "--likelihood", "zinb:dispersion=2,dropout=1e-1") == 0
        fitted = ad.read_h5ad(out)
        assert fitted.uns["bcnmf"]["params"]["likelihood"] == "zinb"
        assert (fitted.var["bcnmf_dispersion"] == 2).all()
        assert (fitted.var["bcnmf_dropout"] == np.float32(0.1)).all()

    def test_a_category_that_looks_like_a_weight(self, small, tmp_path):
        small.obs["given"] = small.obs["condition"].astype(str).map({"ctrl": "dose=0", "case": "dose=1"})
        source, out = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
        small.write_h5ad(source)
        run = ["--background-key", "given", "--background", "dose=0", "-k", "2", "--max-iter", "3", "--tol", "0"]
        assert call("fit", source, "-o", out, *run) == 0
        assert ad.read_h5ad(out).uns["bcnmf"]["params"]["background"].tolist() == ["dose=0"]

    def test_names_that_a_terminal_would_act_on(self, small, tmp_path, capsys):
        small.obs["given"] = small.obs["condition"].cat.rename_categories({"ctrl": "\x1b[2J\u202ectrl\nbcnmf"})
        run = {"background_key": "given", "background": "\x1b[2J\u202ectrl\nbcnmf", "n_topics": 2, "max_iter": 3}
        bc.tl.bcnmf(small, **run, tol=0, key_added="\x1b]0;title\x07")
        small.write_h5ad(tmp_path / "in.h5ad")
        assert call("info", tmp_path / "in.h5ad") == 0
        shown = capsys.readouterr().out
        assert all(letter.isprintable() or letter == "\n" for letter in shown)
        assert r"\x1b]0;title\x07" in shown
        assert r"\x1b[2J\u202ectrl\nbcnmf" in shown
        assert call("report", tmp_path / "in.h5ad", "-o", tmp_path / "a.html", "--key", "\x1b[2J") == 1
        assert "\x1b" not in capsys.readouterr().err

    def test_every_kind_of_option(self, small, tmp_path):
        small.layers["raw"] = small.X.copy()
        small.var["some"] = np.arange(small.n_vars) % 2 == 0
        source, out = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
        small.write_h5ad(source)
        given = ["--background-key", "donor", "--background", "ctrl 1=0.2", "--background", "ctrl 2=.1"]
        given += ["--target", "case 1", "--target", "case 2", "--alpha-scale", "sum", "--likelihood", "gaussian"]
        given += ["--layer", "raw", "--mask-var", "some", "--random-state", "3", "--key-added", "mine", "-k", "2"]
        given += ["--no-accelerate", "--no-progress", "--n-threads", "1", "--batch-size", "30", "--tol", "1e-2"]
        assert call("fit", source, "-o", out, *given) == 0
        bc.tl.bcnmf(
            small,
            background_key="donor",
            background={"ctrl 1": 0.2, "ctrl 2": 0.1},
            target=["case 1", "case 2"],
            n_topics=2,
            alpha_scale="sum",
            likelihood="gaussian",
            layer="raw",
            mask_var="some",
            random_state=3,
            key_added="mine",
            accelerate=False,
            progress=False,
            n_threads=1,
            batch_size=30,
            tol=1e-2,
        )
        assert_same(ad.read_h5ad(out), small, "mine")

    def test_mask_none_is_all_genes(self, small, tmp_path):
        small.var["highly_variable"] = np.arange(small.n_vars) < 20
        source, out = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
        small.write_h5ad(source)
        for word, n_genes in (("auto", 20), ("none", 80)):
            assert call("fit", source, *FIT, "--mask-var", word, "-o", out, "--force") == 0
            assert ad.read_h5ad(out).uns["bcnmf"]["params"]["n_genes"] == n_genes

    def test_modalities(self, small, tmp_path):
        mudata = pytest.importorskip("mudata")
        other = small[:, :30].copy()
        other.var_names = [f"other {name}" for name in other.var_names]
        source, out = tmp_path / "in.h5mu", tmp_path / "out.h5mu"
        with no_pull():
            both = mudata.MuData({"rna": small, "other": other})
            both.obs["condition"] = small.obs["condition"]
            both.write_h5mu(source)
        assert call("fit", source, *FIT, "-o", out) == 0
        with no_pull():
            fitted = mudata.read_h5mu(out)
        bc.tl.bcnmf(both, background_key="condition", background="ctrl", n_topics=3, max_iter=200, tol=0.01)
        np.testing.assert_array_equal(fitted.obsm["X_bcnmf"], both.obsm["X_bcnmf"])
        assert fitted["other"].varm["bcnmf"].shape == (30, 3)

    def test_project_equals_the_call(self, source, small, tmp_path):
        fitted, out = tmp_path / "fit.h5ad", tmp_path / "out.h5ad"
        assert call("fit", source, *FIT, "-o", fitted) == 0
        assert call("project", source, "--reference", fitted, "-o", out, "--key-added", "new") == 0
        bc.tl.project(small, ad.read_h5ad(fitted), key_added="new")
        assert_same(ad.read_h5ad(out), small, "new")

    def test_info(self, source, tmp_path, capsys):
        assert call("info", source) == 0
        assert "No factorisation" in capsys.readouterr().out
        out = tmp_path / "out.h5ad"
        call("fit", source, *FIT, "-o", out)
        capsys.readouterr()
        assert call("info", out) == 0
        text = capsys.readouterr().out
        for word in ("100 cells x 80 genes", "background_key", "condition", "converged", "alpha_effective", "deviance"):
            assert word in text
        assert [line.split()[:2] for line in text.splitlines() if line.strip().startswith("Topic")][2] == ["Topic", "3"]

    def test_demo(self, tmp_path, capsys):
        folder = tmp_path / "demo"
        assert call("demo", "-o", folder, "--seeds", "1") == 0
        text, err = capsys.readouterr()
        assert "Warning" not in err  # a newcomer's first command
        assert sorted(p.name for p in folder.iterdir()) == sorted(DEMO_FILES)
        assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in DEMO_FILES if name.endswith("png"))
        assert text.endswith(f"Open it: {folder / 'report.html'}\n")
        assert "cells are affected, by 2 programs." in (folder / "report.html").read_text(encoding="utf-8")
        adata = ad.read_h5ad(folder / "demo.h5ad")
        assert {"X_nmf", "X_bcnmf"} <= set(adata.obsm)
        rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if re.match(r"(bc)?NMF +-?\d", line)}
        assert set(rows) == {"NMF", "bcNMF"}
        assert f"(median ARI {rows['bcNMF']} against {rows['NMF']})" in text
        assert call("demo", "-o", folder, "--seeds", "1") == 1
        assert "--force" in capsys.readouterr().err


class TestBadInput:
    def test_no_such_file(self, tmp_path, refused):
        assert "does not exist" in refused("fit", tmp_path / "none.h5ad", *FIT, "-o", tmp_path / "out.h5ad")
        assert "folder" in refused("info", tmp_path)

    @pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
    def test_truncated(self, source, tmp_path, refused, share):
        cut = tmp_path / "cut.h5ad"
        whole = source.read_bytes()
        cut.write_bytes(whole[: int(share * len(whole))])
        message = refused("fit", cut, *FIT, "-o", tmp_path / "out.h5ad")
        assert "cut.h5ad" in message
        assert ("truncated" if share else "not HDF5") in message
        refused("info", cut)
        refused("project", source, "--reference", cut, "-o", tmp_path / "out.h5ad")
        assert not (tmp_path / "out.h5ad").exists()

    def test_text_as_h5ad(self, tmp_path, refused):
        path = tmp_path / "text.h5ad"
        path.write_text("gene,cell\n1,2\n" * 100)
        assert "not HDF5" in refused("info", path)

    def test_other_hdf5(self, tmp_path, refused):
        path = tmp_path / "other.h5ad"
        with h5py.File(path, "w") as file:
            file["table"] = np.ones(3)
        assert "an HDF5 file but not an AnnData. It contains: table" in refused("info", path)
        with h5py.File(path, "w") as file:
            file.attrs["encoding-type"] = "MuData"
        assert "It contains: MuData" in refused("info", path)

    def test_damaged_anndata(self, source, refused):
        with h5py.File(source, "r+") as file:
            del file["X/indptr"]
        assert "cannot be read as AnnData" in refused("fit", source, *FIT, "-o", source.with_name("out.h5ad"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["--background-key", "nonsense", "--background", "ctrl"], "'nonsense' is not in `adata.obs`"),
            (["--background-key", "condition", "--background", "nonsense"], "'nonsense'"),
            (["--background-key", "condition", "--background", "ctrl", "-k", "0"], "`n_topics`"),
            (["--background-key", "condition", "--background", "ctrl", "--layer", "x"], "`layer` 'x'"),
            (["--background-key", "condition", "--background", "ctrl", "--alpha", "-1"], "`alpha`"),
        ],
    )
    def test_argument(self, source, tmp_path, refused, given, message):
        line = refused("fit", source, *given, "-o", tmp_path / "out.h5ad")
        assert message in line
        assert '"' not in line  # no repr of a KeyError
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad"]

    def test_bug_keeps_its_traceback(self, source, tmp_path, monkeypatch):
        """An error that no `raise` of the package made is not about the input, whatever its type."""
        for name, bug in (
            ("read_design", lambda *_: {}["x"]),
            ("read_genes", lambda *_: int("x")),
            ("check_names", None),
        ):
            with monkeypatch.context() as patch, pytest.raises((KeyError, ValueError, TypeError)):  # noqa: PT012
                patch.setattr(_anndata, name, bug)
                cli.main(["fit", str(source), *FIT, "-o", str(tmp_path / "out.h5ad")])
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad"]

    def test_warnings_are_one_line_each(self, source, tmp_path, capsys):
        assert call("fit", source, *FIT[:6], "--max-iter", "1", "--no-progress", "-o", tmp_path / "out.h5ad") == 0
        lines = capsys.readouterr().err.splitlines()
        assert any("after 1 iterations" in line for line in lines)
        assert all(line.startswith("Warning: ") for line in lines)


class TestOutput:
    def test_existing(self, source, tmp_path, refused):
        out = tmp_path / "out.h5ad"
        out.write_text("precious")
        assert "--force" in refused("fit", source, *FIT, "-o", out)
        assert out.read_text() == "precious"
        assert call("fit", source, *FIT, "-o", out, "--force") == 0
        assert "bcnmf" in ad.read_h5ad(out).uns

    def test_is_input(self, source, tmp_path, refused):
        before = digest(source)
        (tmp_path / "link.h5ad").symlink_to(source)
        for out in (source, tmp_path / "." / "in.h5ad", tmp_path / "link.h5ad"):
            assert "is also an input" in refused("fit", source, *FIT, "-o", out, "--force")
        other = tmp_path / "new.h5ad"
        other.write_bytes(source.read_bytes())
        assert "is also an input" in refused("project", other, "--reference", source, "-o", source, "--force")
        assert digest(source) == before

    def test_folder(self, source, tmp_path, refused, monkeypatch):
        monkeypatch.setattr(ad, "read_h5ad", lambda *_, **__: pytest.fail("read before the output was checked"))
        assert "is not a folder" in refused("fit", source, *FIT, "-o", tmp_path / "none" / "out.h5ad")
        assert "is not a folder" in refused("fit", source, *FIT, "-o", source / "out.h5ad")
        assert "is a folder" in refused("fit", source, *FIT, "-o", tmp_path, "--force")
        monkeypatch.setattr(files.os, "access", lambda _, mode: mode != os.W_OK)
        assert "a writable folder" in refused("fit", source, *FIT, "-o", tmp_path / "out.h5ad")

    @pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("bug"), KeyboardInterrupt()])
    def test_failed_write_leaves_nothing(self, source, tmp_path, monkeypatch, error):
        out = tmp_path / "out.h5ad"
        out.write_text("precious")

        def half(group, key, data):
            group["half"] = 1
            assert len(list(tmp_path.glob("*.tmp"))) == 1
            raise error

        monkeypatch.setattr(ad.io, "write_elem", half)
        with pytest.raises((SystemExit, RuntimeError)) as end:
            cli.main([*map(str, ["fit", source, *FIT, "-o", out, "--force"])])
        expected = {OSError: 1, KeyboardInterrupt: 130}.get(type(error))
        assert getattr(end.value, "code", None) == expected
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]
        assert out.read_text() == "precious"

    def test_demo_folder_is_a_file(self, source, refused):
        assert "is not a folder" in refused("demo", "-o", source)


class TestUsage:
    @pytest.mark.parametrize(
        "argv",
        [
            ["nonsense"],
            ["fit"],
            ["fit", "in.h5ad", "-o", "out.h5ad"],
            ["fit", "in.h5ad", *FIT],
            ["fit", "in.h5ad", *FIT, "-o", "out.h5ad", "--nonsense"],
            ["fit", "in.h5ad", *FIT, "-o", "out.h5ad", "-k", "2.5"],
            ["fit", "in.h5ad", *FIT, "-o", "out.h5ad", "--likelihood", "nonsense"],
            ["fit", "in.h5ad", *FIT, "-o", "out.h5ad", "--likelihood", "nb:size=2"],
            ["fit", "in.h5ad", *FIT, "-o", "out.h5ad", "--likelihood", "nb:dispersion=two"],
            ["fit", "in.h5ad", *FIT, "-o", "out.h5ad", "--likelihood", "nb:dispersion=-2"],
            ["demo", "--seeds", "0"],
        ],
    )
    def test_code_2(self, argv, capsys):
        assert call(*argv) == 2
        err = capsys.readouterr().err
        assert "Error: " in err
        assert "Traceback" not in err

    def test_help_and_version(self, capsys):
        for argv in ([], *([name] for name in cli.cli.list_commands(None))):
            assert call(*argv, "-h") == 0
        text = capsys.readouterr().out
        assert "Strength of the contrast" in text
        assert not re.findall(r"[`\\$]|\^\{|:\w+:|\*\*", text)  # no markup of docstrings
        assert call("--version") == 0
        assert bc.__version__ in capsys.readouterr().out

    def test_interrupt(self, source, tmp_path):
        """A real Ctrl-C in a real process, in the middle of a fit."""
        argv = [*FIT[:6], "--tol", "0", "--max-iter", "100000000", "-o", tmp_path / "out.h5ad"]
        # a shell that runs the tests in the background has interrupts ignored, and children inherit that
        heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{heed}; import sys; from bcnmf_sc.cli import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, "fit", source, *argv]
        terminal, end = os.openpty()  # a bar is for terminals only
        termios.tcsetwinsize(end, (24, 80))
        process = subprocess.Popen(command, stderr=end, stdout=subprocess.PIPE)
        os.close(end)
        err, deadline = b"", time.monotonic() + 60
        try:
            while b"fit:" not in err and time.monotonic() < deadline:  # the bar is there: the fit runs
                if select.select([terminal], [], [], 1)[0]:
                    err += os.read(terminal, 4096)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            while select.select([terminal], [], [], 0)[0]:
                err += os.read(terminal, 4096)
        except OSError:  # how a terminal says that there is no more
            pass
        finally:
            process.kill()
            process.communicate()
            os.close(terminal)
        assert b"fit:" in err
        err = err.decode().replace("\r\n", "\n")
        assert process.returncode == 130
        assert err.rstrip().endswith("Interrupted; no incomplete file is left.")
        assert "Traceback" not in err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad"]


class TestGenerator:
    @pytest.mark.parametrize(
        ("name", "skipped"),
        [("bcnmf", {"adata", "init", "copy", "client", "weights"}), ("project", {"adata", "copy", "client"})],
    )
    def test_options_are_the_arguments(self, name, skipped):
        function = getattr(bc.tl, name)
        arguments = set(inspect.signature(function).parameters)
        if "run" in arguments:
            arguments = arguments - {"run"} | set(bc.tl.RunOptions.__annotations__)
        made = options(function)
        assert {option.name for option in made} == arguments - skipped
        assert all(option.help for option in made)
        for option in made:
            parameter = inspect.signature(function).parameters.get(option.name)
            if parameter is None:  # how to run: not passed on unless given
                assert option.default is None
            elif parameter.default is parameter.empty:
                assert option.required
            else:
                assert option.default == parameter.default

    def test_any_function(self):
        class Options(TypedDict, total=False):
            """How.

            Parameters
            ----------
            fast
                Be `fast`.
            """

            fast: bool

        def tool(
            adata: AnnData,
            other: AnnData | None = None,
            *,
            grid: Sequence[float] = (0.5, 1.0),
            n: int | Literal["auto"] = "auto",
            weights: Mapping[str, float] | None = None,
            names: str | Sequence[str] | None = None,
            **run: Unpack[Options],
        ) -> None:
            """Do.

            Parameters
            ----------
            adata
                Cells.
            other
                More cells.
            grid, n
                Two of :math:`them` :cite:p:`li2026disentangling`.
            weights
                No option can hold it.
            names
                ``Names``.

                Second paragraph.

            Returns
            -------
            None
            """

        tool.__annotations__ |= {"run": Unpack[Options]}
        made = {option.name: option for option in options(tool)}
        assert set(made) == {"other", "grid", "n", "names", "fast"}
        assert made["n"].help == "Two of them."
        assert made["names"].help == "Names. Second paragraph. Repeat the option for several."
        assert made["fast"].help == "Be fast."
        run = click.Command("tool", params=list(made.values()), callback=lambda **values: values)

        def parse(*argv: str):
            return run.main(list(argv), standalone_mode=False)

        assert parse() == {"other": None, "grid": [0.5, 1.0], "n": "auto", "names": None, "fast": None}
        assert parse("--n", "5")["n"] == 5
        assert parse("--grid", "2")["grid"] == [2.0]
        assert parse("--names", "a=1")["names"] == "a=1"  # takes no mapping
        assert parse("--names", "a", "--names", "b")["names"] == ["a", "b"]
        assert parse("--no-fast")["fast"] is False

    def test_repeated_background(self):
        def collect(*given: str):
            return collect_option(given, mapping=True, scalar=True)

        assert collect("a") == "a"
        assert collect("a", "b") == ["a", "b"]
        assert collect("a=1", "b=.5") == {"a": 1.0, "b": 0.5}
        assert collect("dose=1=0.5") == {"dose=1": 0.5}
        assert collect("dose=high") == "dose=high"
        assert collect("dose=0").among(["dose=0", "dose=1"]) == ["dose=0"]
        assert collect("dose=0", "ctrl").among(["dose=0", "ctrl"]) == ["dose=0", "ctrl"]
        assert collect("dose=0").among(["dose"]) == {"dose": 0.0}
        with pytest.raises(click.BadParameter, match="All or none must be NAME=NUMBER"):
            collect("dose=0", "ctrl").among(["dose", "ctrl"])
        for wrong in (("a=1", "b"), ("a=1", "a=2")):
            with pytest.raises(click.BadParameter):
                collect(*wrong).among([])

    def test_every_option_has_a_text_of_its_own(self):
        for dotted, _ in cli.GENERATED.values():
            module, function = dotted.split(".")
            for option in options(getattr(getattr(bc, module), function)):
                assert len(option.help) > 5, (function, option.name)

    def test_help_needs_no_sources(self, tmp_path):
        """A copy of the package that holds compiled files only."""
        package = tmp_path / "bcnmf_sc"
        shutil.copytree(Path(bc.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        assert compileall.compile_dir(package, legacy=True, quiet=1)
        for path in package.rglob("*.py"):
            path.unlink()
        code = "from bcnmf_sc.cli import cli\nfor name in cli.list_commands(None): "
        code += "cli([name, '--help'], standalone_mode=False)"
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-P", "-c", code]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.count("Usage:") == len(cli.cli.list_commands(None))
        assert "Iterations at most" in ran.stdout
        assert "Genes with a count in fewer" in ran.stdout


def real_data(name: str, data_folder: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Return the file of a real data set and the arguments that its split asks for."""
    if name == "mice_protein.csv":
        path = tmp_path / "mice.h5ad"
        bc.datasets.mice_protein(data_folder / name).write_h5ad(path)
        return path, ["--background", "background", "--likelihood", "gaussian"]
    path = data_folder / name
    with h5py.File(path) as file:
        split = file["uns/suggested_split"][()].decode()
    return path, ["--background", re.search(r"background=(\w+)", split)[1]]


@pytest.mark.data
@pytest.mark.parametrize("name", ["kang_ifnb_muscat.h5ad", "aml027_pre_vs_healthy_pbmc.h5ad", "mice_protein.csv"])
def test_fit_real_data(name, data_folder, tmp_path):
    """Fitted from the shell, repeated to the bit, and opened in scanpy."""
    source, split = real_data(name, data_folder, tmp_path)
    given = ["--background-key", "condition", *split, "-k", "5", "--max-iter", "10", "--n-threads", "2"]
    outputs = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    for out in outputs:
        assert call("fit", source, *given, "-o", out) == 0
    assert digest(outputs[0]) == digest(outputs[1])

    before, adata = ad.read_h5ad(source), ad.read_h5ad(outputs[0])
    assert adata.obsm["X_bcnmf"].shape == (before.n_obs, 5)
    assert np.isfinite(adata.obsm["X_bcnmf"]).all()
    assert set(adata.obs["bcnmf_role"]) >= {"target", "background"}
    assert_equal(adata.X, before.X)
    sc.pp.neighbors(adata, use_rep="X_bcnmf")
    assert adata.obsp["connectivities"].shape == (before.n_obs, before.n_obs)
