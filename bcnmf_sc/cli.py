"""The command line: read an h5ad, call a function of the package, write an h5ad.

A subcommand for a function of `tl` is made from its signature and its docstring (`command`), so a new argument turns up here by
itself; a new function takes one line in `GENERATED`. Heavy imports wait until a subcommand is run.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
import time
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

INTERRUPTED = 130
GENERATED = {
    "fit": ("bcnmf", "Find topics of the target cells that the background cells do not have."),
    "project": ("project", "Compute the usage of new cells on the topics of a fitted file."),
}
"""Subcommand: function of `tl`, and what it does (said here so that `--help` need not import it)."""
SHORT = {"n_topics": "-k"}
SKIPPED = {"copy", "init"}
DEMO_FILES = ("demo.h5ad", "topics.png", "usage.png", "loss.png")


# From a signature to options -----------------------------------------------------------------------------------------------


class Value(click.ParamType):
    """A number or a text, or one of some words; ``none`` stands for `None` where that differs from leaving the option out."""

    name = "value"

    def __init__(self, kinds: Sequence[type], words: Sequence[str], *, none: bool) -> None:
        self.kinds, self.words, self.none = kinds, words, none

    @property
    def metavar(self) -> str:
        """What the help shows in place of a value."""
        shown = [*self.words, *(["none"] if self.none else []), *({str: "TEXT"}.get(k, "NUMBER") for k in self.kinds)]
        return "|".join(shown)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the first thing that the text can be read as."""
        if value in self.words:
            return value
        if self.none and str(value).lower() == "none":
            return None
        for kind in self.kinds:
            try:
                return kind(value)
            except ValueError:
                continue
        rule = "a whole number" if self.kinds == [int] else "a number" if self.kinds else ""
        self.fail(f"must be {' or '.join([*map(repr, self.words), *filter(None, [rule])])}, got {value!r}.", param, ctx)


def options(function: Callable[..., Any]) -> list[click.Option]:
    """Make an option of every argument of a function of `tl` that a command line can hold, AnnData ones as file names.

    Left out are the first argument (the file), `copy`, `init` and arguments that can only be arrays.
    """
    from anndata import AnnData

    from . import _anndata

    names = {"AnnData": AnnData, "Mapping": Mapping, "Sequence": Sequence, "MaskVar": _anndata.MaskVar}
    hints = typing.get_type_hints(function, localns=names)
    texts = _parameter_texts(function)
    made = []
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            group = typing.get_args(hints[name])[0]
            helps = _field_texts(group)
            made += [_option(field, hint, None, helps[field]) for field, hint in typing.get_type_hints(group).items()]
        elif name not in SKIPPED:
            made.append(_option(name, hints[name], parameter.default, texts.get(name, "")))
    return [option for option in made if option is not None]


def _option(name: str, hint: Any, default: Any, text: str) -> click.Option | None:
    members = _members(hint)
    required = default is inspect.Parameter.empty
    flag = "--" + name.replace("_", "-")
    more: dict[str, Any] = {"required": True} if required else {"default": default, "show_default": default is not None}
    if any(getattr(m, "__name__", "") == "AnnData" for m in members):
        return click.Option([flag], type=click.Path(path_type=Path), metavar="FILE", help=text, **more)
    if bool in members:
        return click.Option([f"{flag}/--no-{flag[2:]}"], help=text, **more)
    several = [m for m in members if typing.get_origin(m) is Sequence]
    inner = members + [x for m in several for x in _members(typing.get_args(m)[0])]
    kinds: list[type] = [kind for kind in (int, float, str) if kind in inner]
    words = [] if str in inner else [w for m in inner if typing.get_origin(m) is Literal for w in typing.get_args(m)]
    if not kinds and not words:
        if required:
            msg = f"No option can hold the argument {name!r} of type {hint}."
            raise TypeError(msg)
        return None
    value = Value(kinds, words, none=types.NoneType in members and default is not None and not required)
    metavar = value.metavar
    if several:
        mapping = any(typing.get_origin(m) is Mapping for m in members)
        scalar = any(kind in members for kind in kinds)
        more |= {"multiple": True, "callback": lambda _, __, given: _collect(given, mapping=mapping, scalar=scalar)}
        metavar, text = metavar + "[=NUMBER]" * mapping, text + " Repeat the option for several."
    return click.Option([flag, *filter(None, [SHORT.get(name)])], type=value, metavar=metavar, help=text, **more)


def _collect(given: Sequence[Any], *, mapping: bool, scalar: bool) -> Any:
    """What an option that may be repeated stands for: nothing, one value, a list, or with ``NAME=NUMBER`` a mapping."""
    if mapping:
        pairs = [re.fullmatch(r"(.+)=([-+.\w]+)", value) for value in given]
        numbers = {p[1]: float(p[2]) for p in pairs if p and _is_number(p[2])}
        if numbers and len(numbers) < len(given):
            msg = f"Give every value as NAME=NUMBER, each name once, or none of them, got {', '.join(map(repr, given))}."
            raise click.BadParameter(msg)
        if numbers:
            return numbers
    return given[0] if scalar and len(given) == 1 else list(given) or None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _members(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    return [hint]


def _parameter_texts(function: Callable[..., Any]) -> dict[str, str]:
    """The paragraph of each parameter in a numpydoc docstring."""
    section = inspect.cleandoc(function.__doc__ or "").partition("Parameters\n----------\n")[2]
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in re.split(r"\n\S.*\n-{3,}\n", section)[0].splitlines():
        if line[:1].strip():
            names = [name.strip(" *") for name in line.partition(":")[0].split(",")]
        else:
            texts |= {name: f"{texts.get(name, '')} {line.strip()}".strip() for name in names}
    return {name: _plain(text) for name, text in texts.items()}


def _field_texts(group: type) -> dict[str, str]:
    """The text below each field of a TypedDict."""
    body = typing.cast("ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]).body
    return {
        field.target.id: _plain(inspect.cleandoc(text.value.value))
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _plain(text: str) -> str:
    text = re.sub(r" ?\[\w+\]_", "", text)
    return re.sub(r"(?::\w+:)?`+([^`]*)`+", r"\1", text)


def command(name: str, function: Callable[..., Any], summary: str) -> click.Command:
    """Make the subcommand of a function of `tl` that changes its AnnData: IN.h5ad → function → OUT.h5ad."""
    made = options(function)
    files = {str(option.name) for option in made if isinstance(option.type, click.Path)}
    given = inspect.signature(function).parameters

    def run(source: Path, output: Path, *, force: bool, **values: Any) -> None:
        check_output(output, [source, *(values[file] for file in files)], force=force)
        adata = read(source)
        values |= {file: read(values[file]) for file in files}
        # an option of how to run that was not given is left to the function
        function(adata, **{key: value for key, value in values.items() if value is not None or key in given})
        write(output, adata.write_h5ad)
        click.echo("\n".join([f"Wrote {output}.", "", *describe(adata, values.get("key_added") or values.get("key"))]))

    first = click.Argument(["source"], type=click.Path(path_type=Path), metavar="IN.h5ad")
    out = click.Option(
        ["-o", "--output"], type=click.Path(path_type=Path), required=True, metavar="OUT.h5ad", help="File to write."
    )
    force = click.Option(["--force"], is_flag=True, help="Overwrite the output where it exists.")
    return click.Command(name, params=[first, *made, out, force], callback=run, help=summary)


# Files ---------------------------------------------------------------------------------------------------------------------


def read(path: Path, *, backed: Literal["r"] | None = None) -> AnnData:
    """Read an h5ad, or say in one line why it is none."""
    import anndata
    import h5py

    if not path.is_file():
        raise click.ClickException(f"{path} is a folder, no file." if path.is_dir() else f"{path} does not exist.")
    if not os.access(path, os.R_OK):
        raise click.ClickException(f"{path} may not be read: no permission.")
    if not h5py.is_hdf5(path):
        raise click.ClickException(f"{path} is no h5ad file (it is no HDF5).")
    try:
        with h5py.File(path, "r") as file:
            kind, slots = str(file.attrs.get("encoding-type", "anndata")), set(file)
    except OSError as error:
        why = "it is truncated; copy it again" if "truncated" in str(error) else _one_line(error)
        raise click.ClickException(f"{path} cannot be read: {why}.") from error
    if kind != "anndata" or not {"obs", "var"} <= slots:
        holds = kind if kind != "anndata" else ", ".join(sorted(slots)[:8]) or "nothing"
        raise click.ClickException(f"{path} is HDF5, but no AnnData. It holds: {holds}.")
    try:
        return anndata.read_h5ad(path, backed=backed)
    except Exception as error:
        raise click.ClickException(f"{path} cannot be read as AnnData: {_one_line(error)}") from error


def check_output(path: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output that could not or should not be written, before any work."""
    folder = path.parent
    if not folder.is_dir():
        raise click.ClickException(f"The folder {folder} of the output does not exist. Make it first.")
    if not os.access(folder, os.W_OK):
        raise click.ClickException(f"The folder {folder} of the output may not be written to: no permission.")
    if path.is_dir():
        raise click.ClickException(f"The output {path} is a folder. Name a file.")
    if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise click.ClickException(f"The output {path} is the input. Name another file.")
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists. Use --force to overwrite it.")


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Save under a temporary name beside it, then rename: `path` is either whole or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save(temporary)
        temporary.replace(path)
    except OSError as error:
        raise click.ClickException(f"{path} could not be written: {_one_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def describe(adata: AnnData, key: str | None = None) -> list[str]:
    """Lines that say what one factorisation, or every one in the file, holds."""
    lines = []
    for name, stored in adata.uns.items():
        if not isinstance(stored, Mapping) or not {"params", "topics"} <= set(stored) or key not in (None, name):
            continue
        lines += [name, "  params"]
        lines += [f"    {parameter:<18}{_shown(value)}" for parameter, value in stored["params"].items()]
        if "converged" in stored:
            verdict = "yes" if stored["converged"] else "no"
            lines.append(f"  {'converged':<20}{verdict}, after {int(stored['n_iter'])} iterations")
        if "alpha_effective" in stored:
            lines.append(f"  {'alpha_effective':<20}{stored['alpha_effective']:.4g}")
        if "deviance_explained" in stored:
            parts = ", ".join(f"{part} {value:.3f}" for part, value in stored["deviance_explained"].items())
            lines.append(f"  {'deviance explained':<20}{parts}")
        table = stored["topics"].to_string(float_format="{:.4g}".format, index_names=False)
        lines += ["  topics", textwrap.indent(table, "    "), ""]
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, str) or not hasattr(value, "__len__") else ", ".join(map(str, value))


def _one_line(error: BaseException | Warning) -> str:
    # str() of a KeyError is the repr of its message
    return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())


# Commands ------------------------------------------------------------------------------------------------------------------


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
        rows = [(name, summary) for name, (_, summary) in GENERATED.items()]
        rows += [(name, made.get_short_help_str(100)) for name, made in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; bad input ends with one line, a bug with its traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted; no incomplete file is left.", err=True)
            ctx.exit(INTERRUPTED)
        except (ValueError, KeyError, TypeError, OSError) as error:
            if not _is_ours(error):
                raise
            raise click.ClickException(_one_line(error)) from error


def _is_ours(error: Exception) -> bool:
    """Whether a ``raise`` of this package made the error: then it is about the input, otherwise it is a bug."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(__file__).parent) and (last.line or "").startswith("raise")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bcnmf-sc", prog_name="bcnmf-sc")
def cli() -> None:
    """Background-contrastive non-negative matrix factorisation of single-cell data: h5ad in, h5ad out.

    Exit codes: 0 done, 1 bad input, 2 wrong usage.
    """


@cli.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE.h5ad")
def info(source: Path) -> None:
    """Show the factorisations that a file holds."""
    adata = read(source, backed="r")
    lines = describe(adata) or ["No factorisation is stored. Run `bcnmf-sc fit` on it."]
    click.echo("\n".join([f"{source}: {adata.n_obs} cells x {adata.n_vars} genes", "", *lines]))
    adata.file.close()


@cli.command()
@click.option("-o", "--output", "folder", default="bcnmf_demo", type=click.Path(path_type=Path), show_default=True)
@click.option("--seeds", default=5, type=click.IntRange(min=1), show_default=True, help="Starts of each method.")
@click.option("--force", is_flag=True, help="Overwrite files of an earlier demo.")
def demo(folder: Path, *, seeds: int, force: bool) -> None:
    """Fit NMF and bcNMF to bundled images, and compare how well they find what is hidden in them."""
    for name in DEMO_FILES:
        check_output(folder / name if folder.exists() else folder, [], force=force)
    import pandas as pd
    from tqdm.auto import tqdm

    from . import datasets, tl

    begin = time.monotonic()
    adata = datasets.digits()
    is_target = (adata.obs["condition"] == "target").to_numpy()
    how: dict[str, Any] = {"n_topics": 2, "likelihood": "gaussian", "progress": False}
    contrast: dict[str, Any] = {"background_key": "condition", "background": "background", "alpha": 2.0}
    scores = []
    for seed in tqdm(range(seeds)[::-1], delay=2, desc="demo", unit="seed"):  # seed 0 last: it is the one that stays
        tl.nmf(adata, cells=is_target, random_state=seed, **how)
        tl.bcnmf(adata, alpha_scale="sum", random_state=seed, **contrast, **how)
        scores += [{"method": name, "seed": seed} | _score(adata, key, is_target) for name, key in _DEMO_KEYS.items()]

    click.echo(f"{is_target.sum()} photographs with a handwritten 0 or 1 (target), {(~is_target).sum()} without.")
    click.echo(f"Two topics, squared error, {seeds} seeds: median (range) over the target images.\n")
    table = pd.DataFrame(scores).set_index(["method", "seed"])
    shown = table.groupby("method", sort=False).agg(lambda x: f"{x.median():.2f} ({x.min():.2f}-{x.max():.2f})")
    click.echo(shown.to_string(index_names=False))
    ari = table["ARI with the digit"].unstack("method")
    ahead, medians = int((ari["bcNMF"] > ari["NMF"]).sum()), ari.median()
    click.echo(f"\nbcNMF finds the digit better than NMF in {ahead} of {seeds} seeds", nl=False)
    click.echo(f" (median ARI {medians['bcNMF']:.2f} against {medians['NMF']:.2f}).")

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"The folder {folder} could not be made: {_one_line(error)}") from error
    write(folder / DEMO_FILES[0], adata.write_h5ad)
    for name, figure in zip(DEMO_FILES[1:], _demo_figures(adata), strict=True):
        write(folder / name, lambda path, figure=figure: figure.savefig(path, format="png", dpi=150))
    written = ", ".join(DEMO_FILES)
    click.echo(f"Wrote {written} (seed 0) to {folder} in {time.monotonic() - begin:.0f} s.")


_DEMO_KEYS = {"NMF": "nmf", "bcNMF": "bcnmf"}


def _score(adata: AnnData, key: str, cells: Any) -> dict[str, float]:
    """How well the shares of usage tell the hidden digit: split in two without labels, and by the best single topic."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, roc_auc_score

    from . import get

    share = get.usage(adata, key=key, normalize=True)[cells].to_numpy()
    digit = adata.obs["digit"][cells].astype(str).to_numpy()
    halves = KMeans(2, n_init=10, random_state=0).fit_predict(share)
    auc = [roc_auc_score(digit == "1", topic) for topic in share.T]
    best = max(max(x, 1 - x) for x in auc)
    return {"ARI with the digit": adjusted_rand_score(digit, halves), "best topic's AUC": best}


def _demo_figures(adata: AnnData) -> list[Figure]:
    """Topics as images, usage by digit, and loss, NMF beside bcNMF."""
    import matplotlib.pyplot as plt

    from . import get, pl

    plt.switch_backend("Agg")
    topics, axes = plt.subplots(2, 2, figsize=(5, 5.4), layout="constrained")
    usage, boxes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    loss, lines = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, (name, key) in enumerate(_DEMO_KEYS.items()):
        for ax, (topic, image) in zip(axes[i], get.loadings(adata, key=key).items(), strict=True):
            ax.imshow(image.to_numpy().reshape(adata.uns["image_shape"]), cmap="Greys")
            ax.set(title=f"{name}, {topic}", xticks=[], yticks=[])
        pl.usage(adata, groupby="digit", key=key, ax=boxes[i])
        pl.loss(adata, key=key, ax=lines[i])
        boxes[i].set_title(name)
        lines[i].set_title(name)
    return [topics, usage, loss]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends with `SystemExit`, whose code is 0 (done), 1 (bad input) or 2 (wrong usage)."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"Warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for developers
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        cli.main(args=None if argv is None else list(argv), prog_name="bcnmf-sc")


if __name__ == "__main__":
    sys.exit(main())
