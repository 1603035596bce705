"""The command line: read an h5ad, call a function of the package, write an h5ad.

A subcommand for a function of `tl` is made from its signature and docstring, so a new argument turns up here by itself;
a new function takes one line in `GENERATED`. Heavy imports wait until a subcommand is run.
"""

from __future__ import annotations

import inspect
import os
import signal
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from ._options import PATH, options

if TYPE_CHECKING:
    from types import FrameType

    from anndata import AnnData
    from matplotlib.figure import Figure

SIGNALLED = 128
"""Exit code of a process that a signal ended, less the signal's number."""
GENERATED = {
    "fit": ("bcnmf", "Find topics of the target cells that the background cells do not have."),
    "deltanmf": ("deltanmf", "Find topics of the controls, then those that the cases have beside them."),
    "project": ("project", "Compute the usage of new cells on the topics of a fitted file."),
    "gpnsf": ("gpnsf", "Find topics whose usage varies smoothly over space (h5mu or h5ad)."),
}
"""Subcommand: function of `tl`, and what it does (said here so that `--help` need not import it)."""
DEMO_FILES = ("demo.h5ad", "topics.png", "usage.png", "loss.png")
DEMO_KEYS = {"NMF": "nmf", "bcNMF": "bcnmf"}


# From a signature to a subcommand -----------------------------------------------------------------------------------


def command(name: str, function: Callable[..., Any], summary: str) -> click.Command:
    """Make the subcommand of a function of `tl` that changes its AnnData: IN.h5ad, function, OUT.h5ad."""
    made = options(function)
    files = {str(option.name) for option in made if option.type is PATH}
    arguments = inspect.signature(function).parameters
    multimodal = "mdata" in arguments

    def run(source: Path, output: Path, *, force: bool, **values: Any) -> None:
        check_output(output, [source, *(values[file] for file in files)], force=force)
        adata = read(source, multimodal=multimodal)
        values |= {file: read(values[file]) for file in files}
        # how to run: what was not said is left to the function
        function(adata, **{key: value for key, value in values.items() if value is not None or key in arguments})
        write(output, partial(write_data, data=adata))
        key = values.get("key_added") or values.get("key")
        click.echo("\n".join([f"Wrote {output}", "", *describe(adata, key)]))

    metavar = "IN.h5mu|IN.h5ad" if multimodal else "IN.h5ad"
    first = click.Argument(["source"], type=PATH, metavar=metavar)
    out = click.Option(
        ["-o", "--output"], type=PATH, required=True, metavar=metavar.replace("IN", "OUT"), help="File to write."
    )
    force = click.Option(["--force"], is_flag=True, help="Overwrite the output where it exists.")
    return click.Command(name, params=[first, *made, out, force], callback=run, help=summary)


# Files --------------------------------------------------------------------------------------------------------------


def read(path: Path, *, backed: Literal["r"] | None = None, multimodal: bool = False) -> Any:
    """Read an h5ad, or an h5mu where it may be `multimodal`, or say in one line why it is none."""
    import anndata
    import h5py

    if not path.is_file():
        _refuse(f"{path} is a folder, no file." if path.is_dir() else f"{path} does not exist.")
    if not os.access(path, os.R_OK):
        _refuse(f"{path} may not be read: no permission.")
    if not h5py.is_hdf5(path):
        _refuse(f"{path} is no h5ad file (it is no HDF5).")
    try:
        with h5py.File(path, "r") as file:
            kind, slots = str(file.attrs.get("encoding-type", "anndata")), sorted(file)
    except OSError as error:
        _refuse(f"{path} cannot be read: {'it is truncated' if 'truncated' in str(error) else _one_line(error)}.")
    if multimodal and kind.lower() == "mudata" and {"mod", "obs"} <= set(slots):
        return _read_h5mu(path, backed=backed)
    if kind != "anndata" or not {"obs", "var"} <= set(slots):
        holds = kind if kind != "anndata" else ", ".join(slots[:8]) or "nothing"
        _refuse(f"{path} is HDF5, but no AnnData. It holds: {holds}.")
    try:
        return anndata.read_h5ad(path, backed=backed)
    except Exception as error:  # noqa: BLE001 (a damaged file can end in anything)
        _refuse(f"{path} cannot be read as AnnData: {_one_line(error)}")


def _read_h5mu(path: Path, *, backed: Literal["r"] | None) -> Any:
    try:
        import mudata
    except ImportError:
        _refuse(f"{path} is an h5mu file. Install mudata to read it: pip install 'bcnmf-sc[multimodal]'.")
    try:
        with mudata.set_options(pull_on_update=False):
            return mudata.read_h5mu(path, backed=backed)
    except Exception as error:  # noqa: BLE001 (a damaged file can end in anything)
        _refuse(f"{path} cannot be read as MuData: {_one_line(error)}")


def check_output(path: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output that could not or should not be written, before any work."""
    if not path.parent.is_dir():
        _refuse(f"{path} cannot be written: {path.parent} is no folder. Make it first.")
    if not os.access(path.parent, os.W_OK):
        _refuse(f"{path} cannot be written: no permission in {path.parent}.")
    if path.exists() and not path.is_file():
        _refuse(f"The output {path} is a {'folder' if path.is_dir() else 'device'}. Name a file.")
    if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
        _refuse(f"The output {path} is an input. Name another file.")
    if path.exists() and not force:
        _refuse(f"{path} exists. Use --force to overwrite it.")


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Save under a temporary name beside it, then rename: `path` is either whole or as it was."""
    from .engine.files import replacing

    with replacing(path) as temporary:
        save(temporary)


def write_data(path: Path, data: Any) -> None:
    """Write an AnnData to an h5ad, or a MuData to an h5mu, as their own methods do."""
    import anndata
    import h5py

    from .engine.files import for_hdf5

    if isinstance(data, anndata.AnnData):
        data.strings_to_categoricals()
    with for_hdf5(path) as file:
        if hasattr(data, "write_h5mu"):
            data.write_h5mu(file)
            return
        with h5py.File(file, "w") as group:
            anndata.io.write_elem(group, "/", data)
            for slot in ("X", "raw"):  # where there is none, `write_h5ad` writes nothing
                if getattr(data, slot) is None and slot in group:
                    del group[slot]


def describe(adata: AnnData, key: str | None = None) -> list[str]:
    """Say what a stored factorisation holds, or each of them: lines of text."""
    lines = []
    for name, stored in adata.uns.items():
        if not isinstance(stored, Mapping) or not {"params", "topics"} <= set(stored) or key not in (None, name):
            continue
        facts = dict(stored["params"])
        if "converged" in stored:
            facts["converged"] = f"{'yes' if stored['converged'] else 'no'}, {int(stored['n_iter'])} iterations"
        if "alpha_effective" in stored:
            facts["alpha_effective"] = f"{stored['alpha_effective']:.4g}"
        if explained := stored.get("deviance_explained"):
            facts["deviance explained"] = ", ".join(f"{part} {share:.3f}" for part, share in explained.items())
        lines += [name, *(f"  {fact:<20}{_shown(value)}" for fact, value in facts.items())]
        table = stored["topics"].to_string(float_format="{:.4g}".format, index_names=False)
        lines += [textwrap.indent(table, "  "), ""]
    return lines


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Refuse a file in which a part of what a fit stored is not there, as where a bit of its name has changed."""
    try:
        yield
    except KeyError as error:
        _refuse(f"{path} is damaged: what is stored in it lacks {error}. Take another copy of it, or fit anew.")


def _shown(value: Any) -> str:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return "none" if value is None else str(value)
    return ", ".join(map(str, value))


def _one_line(error: BaseException) -> str:
    # str() of a KeyError is the repr of its message
    return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())


def _refuse(message: str) -> NoReturn:
    raise click.ClickException(message)


# Commands -----------------------------------------------------------------------------------------------------------


class Group(click.Group):
    """Subcommands that are made when asked for, and errors of ours in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the subcommands, in the order of the help."""
        return [*GENERATED, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make or look up a subcommand."""
        if cmd_name not in GENERATED:
            return super().get_command(ctx, cmd_name)
        from . import tl

        function, summary = GENERATED[cmd_name]
        return command(cmd_name, getattr(tl, function), summary)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without making them."""
        with formatter.section("Commands"):
            written = [(name, made.get_short_help_str(100)) for name, made in sorted(self.commands.items())]
            formatter.write_dl([(name, summary) for name, (_, summary) in GENERATED.items()] + written)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; bad input ends with one line, a bug with its traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            click.echo(f"Interrupted; no incomplete file is left. {error}".rstrip(), err=True)
            ctx.exit(SIGNALLED + getattr(error, "number", signal.SIGINT))
        except (ValueError, KeyError, TypeError, OSError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            if not (Path(last.filename).is_relative_to(Path(__file__).parent) and str(last.line).startswith("raise")):
                raise  # not from a `raise` of this package, so it is not about the input
            _refuse(_one_line(error))


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bcnmf-sc", prog_name="bcnmf-sc")
def cli() -> None:
    """Background-contrastive non-negative matrix factorisation of single-cell data: h5ad in, h5ad out.

    Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted (Ctrl-C), 143 terminated.
    """


@cli.command()
@click.argument("source", type=PATH, metavar="FILE.h5ad")
def info(source: Path) -> None:
    """Show the factorisations that a file holds."""
    adata = read(source, backed="r", multimodal=True)
    with whole(source):
        lines = describe(adata)
    lines = lines or ["No factorisation is stored. `bcnmf-sc fit` makes one."]
    click.echo("\n".join([f"{source}: {adata.n_obs} cells x {adata.n_vars} genes", "", *lines]))
    adata.file.close()


@cli.command("report")
@click.argument("source", type=PATH, metavar="IN.h5ad")
@click.option("-o", "--output", type=PATH, required=True, metavar="OUT.html", help="File to write.")
@click.option("--key", default="bcnmf", show_default=True, help="Name of the factorisation.")
@click.option("--title", help="Heading of the page.")
@click.option("--n-genes", default=10, type=click.IntRange(min=1), show_default=True, help="Genes named of a topic.")
@click.option("--gene-symbols", help="Column of `adata.var` that names the genes.")
@click.option("--force", is_flag=True, help="Overwrite the output where it exists.")
def report_(source: Path, output: Path, *, force: bool, **values: Any) -> None:
    """Write what a fitted file holds to one self-contained HTML page."""
    check_output(output, [source], force=force)
    adata = read(source, backed="r")
    from . import report

    with whole(source):
        write(output, partial(report, adata, **values))
    adata.file.close()
    click.echo(f"Wrote {output}")


@cli.command()
@click.option("-o", "--output", "folder", default=Path("bcnmf_demo"), type=PATH, metavar="FOLDER", show_default=True)
@click.option("--seeds", default=5, type=click.IntRange(min=1), show_default=True, help="Starts of each method.")
@click.option("--force", is_flag=True, help="Overwrite the files of an earlier demo.")
def demo(folder: Path, *, seeds: int, force: bool) -> None:
    """Fit NMF and bcNMF to bundled images, and compare how well they find what is hidden in them."""
    for name in DEMO_FILES:
        check_output(folder / name if folder.exists() else folder, [], force=force)
    import pandas as pd

    from . import datasets, tl
    from .engine.progress import progress_bar

    begin, adata = time.monotonic(), datasets.digits()
    target = (adata.obs["condition"] == "target").to_numpy()
    how: dict[str, Any] = {"n_topics": 2, "likelihood": "gaussian", "progress": False}
    contrast: dict[str, Any] = {"background_key": "condition", "background": "background", "alpha_scale": "sum"}
    scores = []
    for seed in progress_bar(range(seeds)[::-1], show=True, desc="demo", unit="seed", leave=False):  # seed 0 stays
        tl.nmf(adata, cells=target, random_state=seed, **how)
        with warnings.catch_warnings():  # what it warns of is the point here, and is printed below
            warnings.filterwarnings("ignore", "The topics describe the target worse", UserWarning)
            tl.bcnmf(adata, alpha=2.0, random_state=seed, **contrast, **how)
        scores += [{"method": name, "seed": seed} | _score(adata, key, target) for name, key in DEMO_KEYS.items()]
    table = pd.DataFrame(scores).set_index(["method", "seed"])
    shown = table.groupby("method", sort=False).agg(lambda x: f"{x.median():.2f} ({x.min():.2f}-{x.max():.2f})")
    ari = table["ARI"].unstack("method")
    ahead, middle = int((ari["bcNMF"] > ari["NMF"]).sum()), ari.median()

    folder.mkdir(exist_ok=True)
    write(folder / DEMO_FILES[0], partial(write_data, data=adata))
    for name, figure in zip(DEMO_FILES[1:], _demo_figures(adata), strict=True):
        write(folder / name, partial(figure.savefig, format="png", dpi=150))
    click.echo(
        f"Target: {target.sum()} images, a handwritten 0 or 1 on a photograph. Background: {(~target).sum()} bare\n"
        "photographs. Hidden: which digit it is. Two topics, squared error, alpha 2 on the paper's scale: strong\n"
        "enough that the two topics hold the digits and leave the photographs unexplained.\n"
        f"Median (range) over {seeds} seeds; ARI: 2-means on the shares of usage, AUC: the better topic.\n\n"
        f"{shown.to_string(index_names=False)}\n\n"
        f"bcNMF tells the digits apart better than NMF in {ahead} of {seeds} seeds "
        f"(median ARI {middle['bcNMF']:.2f} against {middle['NMF']:.2f}).\n"
        f"Wrote {', '.join(DEMO_FILES)} (seed 0) to {folder} in {time.monotonic() - begin:.0f} s.\n"
        f"See it all on one page: bcnmf-sc report {folder / DEMO_FILES[0]} -o report.html"
    )


def _score(adata: AnnData, key: str, cells: Any) -> dict[str, float]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, roc_auc_score

    from . import get

    share = get.usage(adata, key=key, normalize=True)[cells].to_numpy()
    is_one = (adata.obs["digit"] == "1").to_numpy()[cells]
    auc = [roc_auc_score(is_one, topic) for topic in share.T]
    halves = KMeans(2, n_init=10, random_state=0).fit_predict(share)
    return {"ARI": adjusted_rand_score(is_one, halves), "AUC": max(max(x, 1 - x) for x in auc)}


def _demo_figures(adata: AnnData) -> list[Figure]:
    """Draw the topics as images, their usage by digit, and how the contrastive fit went."""
    import matplotlib.pyplot as plt

    from . import get, pl

    plt.switch_backend("Agg")
    topics, axes = plt.subplots(2, 2, figsize=(5, 5.4), layout="constrained")
    usage, boxes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, (name, key) in enumerate(DEMO_KEYS.items()):
        for ax, (topic, image) in zip(axes[i], get.loadings(adata, key=key).items(), strict=True):
            ax.imshow(image.to_numpy().reshape(adata.uns["image_shape"]), cmap="Greys")
            ax.set(title=f"{name}, {topic}", xticks=[], yticks=[])
        pl.usage(adata, groupby="digit", key=key, ax=boxes[i]).set_title(name)
    figures = [topics, usage, pl.loss(adata)]
    for figure in figures:
        plt.close(figure)
    return figures


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; ends with `SystemExit`, whose code is as `bcnmf-sc --help` says."""
    seen = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = " ".join(str(message).split())
        if line not in seen:  # a loop over fits says it once
            click.echo(f"Warning: {line}", err=True)
        seen.add(line)

    with _heeding_sigterm(), warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for developers
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        raise SystemExit(cli.main(args=None if argv is None else list(argv), prog_name="bcnmf-sc"))


@contextmanager
def _heeding_sigterm() -> Iterator[None]:
    """Stop at a SIGTERM, which schedulers of a cluster send before they kill, as at Ctrl-C."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        from .engine.files import Stopped

        raise Stopped(number=number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
