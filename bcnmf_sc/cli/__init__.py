"""The command line: read an h5ad, call a function of the package, write an h5ad.

Subcommands for functions of `pp` and `tl` are generated from their signatures and docstrings, so new arguments and new
methods appear by themselves; any other function takes one line in `GENERATED`. Heavy imports wait until a subcommand
runs.
"""

from __future__ import annotations

import inspect
import signal
import threading
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .._methods import METHODS
from .._utils.errors import UserError
from .analyse import make_analyse, results
from .demo import demo
from .export import export
from .files import (
    brief,
    categories,
    check_output,
    describe,
    heed_damage,
    one_line,
    printable,
    read,
    refuse,
    write,
    write_data,
)
from .options import PATH, Numbered, options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

SIGNALLED = 128
"""Exit code of a process ended by a signal, minus the signal's number."""
GENERATED = (
    {
        "hvg": ("pp.highly_variable_genes", "Mark highly variable genes over target and background together."),
        "check": ("tl.background_check", "Check whether a background is suitable, before a fit."),
        "select": ("tl.select_n_topics", "Choose the numbers of target and background topics."),
        "select-alpha": ("tl.select_alpha", "Choose the strength of the contrast of a fit without background topics."),
    }
    | {method.command: (f"tl.{method.name}", method.summary) for method in METHODS if method.command}
    | {
        "associate": ("tl.associate", "Test topics against a column, by donor where donors are named."),
        "associate-genes": ("tl.associate_genes", "Test genes against a column."),
        "enrich": ("tl.enrich", "Find the gene sets of each topic."),
        "umap": ("tl.umap", "Compute the UMAP of the topics."),
        "project": ("tl.project", "Compute the usage of new cells on the topics of a fitted file."),
        "update": ("tl.update", "Go on with a fit when more cells come."),
    }
)
"""Subcommand: function, and its summary (given here so that `--help` need not import it)."""
ANALYSE = "Run all of it with defaults: an h5ad in, a folder with h5ad, tables and report out."
FITS = {method.command for method in METHODS} | {"project", "update"}
"""Subcommands that store a factorisation."""


# From a signature to a subcommand -----------------------------------------------------------------------------------


def command(name: str, function: Callable[..., Any], summary: str, *, multimodal: bool = False) -> click.Command:
    """Make the subcommand for a function that modifies its AnnData: IN.h5ad, function, OUT.h5ad."""
    made = options(function)
    files = {str(option.name) for option in made if option.type is PATH}
    arguments = inspect.signature(function).parameters

    def run(source: Path, output: Path, *, force: bool, **values: Any) -> None:
        check_output(output, [source, *(values[file] for file in files)], force=force)
        adata = read(source, multimodal=multimodal)
        values |= {file: read(values[file]) for file in files}
        present = categories(adata, values.get("background_key"))
        values = {k: v.among(present) if isinstance(v, Numbered) else v for k, v in values.items()}
        # run options: those not given are left to the function
        function(adata, **{key: value for key, value in values.items() if value is not None or key in arguments})
        write(output, partial(write_data, data=adata))
        key = str(values.get("key_added") or values.get("key") or "")
        found = brief(adata, key) if name in FITS else results(name, adata, key)
        click.echo("\n".join([printable(f"Wrote {output}"), *found]))

    metavar = "IN.h5mu|IN.h5ad" if multimodal else "IN.h5ad"
    first = click.Argument(["source"], type=PATH, metavar=metavar)
    out = click.Option(
        ["-o", "--output"], type=PATH, required=True, metavar=metavar.replace("IN", "OUT"), help="File to write."
    )
    force = click.Option(["--force"], is_flag=True, help="Overwrite the output where it exists.")
    return click.Command(name, params=[first, *made, out, force], callback=run, help=summary)


# Commands -----------------------------------------------------------------------------------------------------------


class Group(click.Group):
    """A group whose subcommands are created on demand, and which shows user errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of the subcommands, in the order of the help."""
        return ["analyse", *GENERATED, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a subcommand, creating it if needed."""
        if cmd_name == "analyse":
            return make_analyse()
        if cmd_name not in GENERATED:
            return super().get_command(ctx, cmd_name)
        dotted, summary = GENERATED[cmd_name]
        module, name = dotted.split(".")
        function = getattr(import_module(f"..{module}", __package__), name)
        multimodal = any(method.multimodal for method in METHODS if method.command == cmd_name)
        return command(cmd_name, function, summary, multimodal=multimodal)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without creating them."""
        with formatter.section("Commands"):
            written = [(name, made.get_short_help_str(100)) for name, made in sorted(self.commands.items())]
            generated = [(name, summary) for name, (_, summary) in GENERATED.items()]
            formatter.write_dl([("analyse", ANALYSE), *generated, *written])

    def invoke(self, ctx: click.Context) -> Any:
        """Run; bad input exits with one line, a bug with its traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            with suppress(OSError):  # the terminal may be gone
                click.echo(f"Interrupted; no incomplete file is left. {error}".rstrip(), err=True)
            ctx.exit(SIGNALLED + getattr(error, "number", signal.SIGINT))
        except (UserError, OSError) as error:
            refuse(one_line(error))


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bcnmf-sc", prog_name="bcnmf-sc")
def cli() -> None:
    """Background-contrastive non-negative matrix factorisation of single-cell data: h5ad in, h5ad out.

    Exit codes: 0 done, 1 bad input, 2 wrong usage, 129 hung up, 130 interrupted (Ctrl-C), 143 terminated.
    """


@cli.command()
@click.argument("source", type=PATH, metavar="FILE.h5ad")
def info(source: Path) -> None:
    """Show the factorisations stored in a file."""
    adata = read(source, backed="r", multimodal=True)
    heed_damage(source, adata)
    lines = describe(adata)
    lines = lines or ["No factorisation is stored. `bcnmf-sc fit` makes one."]
    click.echo("\n".join([printable(f"{source}: {adata.n_obs} cells x {adata.n_vars} genes"), "", *lines]))
    adata.file.close()


@cli.command("report")
@click.argument("source", type=PATH, metavar="IN.h5ad")
@click.option("-o", "--output", type=PATH, required=True, metavar="OUT.html", help="File to write.")
@click.option("--key", default="bcnmf", show_default=True, help="Name of the factorisation.")
@click.option("--title", help="Heading of the page.")
@click.option("--n-genes", default=10, type=click.IntRange(min=1), show_default=True, help="Genes to list per topic.")
@click.option("--gene-symbols", help="Column of adata.var that names the genes.")
@click.option("--groupby", help="Column of adata.obs with the cell types by which called cells are counted.")
@click.option("--force", is_flag=True, help="Overwrite the output where it exists.")
def report_(source: Path, output: Path, *, force: bool, **values: Any) -> None:
    """Write the results in a fitted file to one self-contained HTML page."""
    check_output(output, [source], force=force)
    adata = read(source, backed="r")
    from .. import report

    heed_damage(source, adata)
    report(adata, output, overwrite=force, **values)
    adata.file.close()
    click.echo(f"Wrote {output}")


for each in (export, demo):
    cli.add_command(each)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; raises `SystemExit` with the codes listed in `bcnmf-sc --help`."""
    seen = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = " ".join(str(message).split())
        if line not in seen:  # several fits may give the same warning
            click.echo(f"Warning: {printable(line)}", err=True)
        seen.add(line)

    with _heeding_signals(), warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for developers
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        raise SystemExit(cli.main(args=None if argv is None else list(argv), prog_name="bcnmf-sc"))


@contextmanager
def _heeding_signals() -> Iterator[None]:
    """Handle SIGTERM, which cluster schedulers send before they kill, and a closed terminal like Ctrl-C."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        from .._utils.files import Stopped

        raise Stopped(number=number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, heeded in before.items():
        if heeded is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, heeded in before.items():
            signal.signal(number, heeded)
