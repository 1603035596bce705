"""Read, check, write and describe the files of the command line."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


SHOWN = ("log2_fold_change", "ci_low", "ci_high", "p_adjusted", "called", "spatial_importance")
"""Columns of the table of topics that a command prints."""
MOST_ROWS = 10

# Files --------------------------------------------------------------------------------------------------------------


def read(path: Path, *, backed: Literal["r"] | None = None, multimodal: bool = False) -> Any:
    """Read an h5ad file (or an h5mu file if `multimodal`), or exit with one line saying why it cannot be read."""
    import anndata
    import h5py

    if not path.is_file():
        refuse(f"{path} is a folder, not a file." if path.is_dir() else f"{path} does not exist.")
    if not os.access(path, os.R_OK):
        refuse(f"{path} cannot be read: permission denied.")
    if not h5py.is_hdf5(path):
        refuse(f"{path} is not an h5ad file (not HDF5).")
    try:
        with h5py.File(path, "r") as file:
            kind, slots = str(file.attrs.get("encoding-type", "anndata")), sorted(file)
    except OSError as error:
        refuse(f"{path} cannot be read: {'it is truncated' if 'truncated' in str(error) else one_line(error)}.")
    if multimodal and kind.lower() == "mudata" and {"mod", "obs"} <= set(slots):
        return _read_h5mu(path, backed=backed)
    if kind != "anndata" or not {"obs", "var"} <= set(slots):
        holds = kind if kind != "anndata" else ", ".join(slots[:8]) or "nothing"
        refuse(f"{path} is an HDF5 file but not an AnnData. It contains: {holds}.")
    try:
        return anndata.read_h5ad(path, backed=backed)
    except Exception as error:  # noqa: BLE001 (a damaged file can end in anything)
        refuse(f"{path} cannot be read as AnnData: {one_line(error)}")


def _read_h5mu(path: Path, *, backed: Literal["r"] | None) -> Any:
    try:
        import mudata
    except ImportError:
        refuse(f"{path} is an h5mu file. Install mudata to read it: pip install 'bcnmf-sc[multimodal]'.")
    try:
        from .._mudata import no_pull

        with no_pull():
            return mudata.read_h5mu(path, backed=backed)
    except Exception as error:  # noqa: BLE001 (a damaged file can end in anything)
        refuse(f"{path} cannot be read as MuData: {one_line(error)}")


def check_output(path: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Exit if the output could not or should not be written, before any work."""
    from .._utils.files import check_place

    check_place(path, "output")
    if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
        refuse(f"The output {path} is also an input. Name another file.")
    if path.exists() and not force:
        refuse(f"{path} exists. Use --force to overwrite it.")


def check_folder(folder: Path, *, force: bool) -> None:
    """Exit if results could not or should not be written to a folder, before any work."""
    from .._utils.files import check_place

    if not folder.exists():
        check_place(folder, "output")
        return
    check_place(folder / "x", "output")
    if any(folder.iterdir()) and not force:
        refuse(f"{folder} is not empty. Use --force to overwrite what is in it.")


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Save under a temporary name, then rename: `path` is either complete or unchanged."""
    from .._utils.files import replacing

    with replacing(path) as temporary:
        save(temporary)


def write_data(path: Path, data: Any) -> None:
    """Write an AnnData to an h5ad, or a MuData to an h5mu, as their own methods do."""
    import anndata
    import h5py

    from .._utils.files import for_hdf5

    if isinstance(data, anndata.AnnData):
        data.strings_to_categoricals()
    with for_hdf5(path) as file:
        if hasattr(data, "write_h5mu"):
            data.write_h5mu(file)
            return
        with h5py.File(file, "w") as group:
            anndata.io.write_elem(group, "/", data)
            for slot in ("X", "raw"):  # `write_h5ad` writes nothing if there is none
                if getattr(data, slot) is None and slot in group:
                    del group[slot]


def describe(adata: AnnData, key: str | None = None) -> list[str]:
    """Describe a stored factorisation, or each of them, in lines of text."""
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
        lines += [*textwrap.indent(table, "  ").split("\n"), ""]
    return [printable(line) for line in lines]


def brief(data: Any, key: str | None = None) -> list[str]:
    """Describe a fit in a few lines: how it ended, and its topics of interest."""
    from .._methods import method_of

    lines = []
    for name, stored in data.uns.items():
        if not isinstance(stored, Mapping) or not {"params", "topics"} <= set(stored) or key not in (None, name):
            continue
        topics, kinds = stored["topics"], method_of(stored).kinds
        counts = ", ".join(f"{n} {kind}" for kind, n in topics["kind"].value_counts(sort=False).items())
        end = ""
        if "converged" in stored:
            end = f"; {'converged' if stored['converged'] else 'not converged'} in {int(stored['n_iter'])} iterations"
        lines.append(f"{name}: {counts} topics{end}.")
        shown = topics[topics["kind"].isin(kinds)]
        shown = shown[[c for c in shown if c in SHOWN or c.startswith(("usage_", "mean_share"))]]
        lines += shown.head(MOST_ROWS).to_string(float_format="{:.3g}".format, index_names=False).split("\n")
        if len(shown) > MOST_ROWS:
            lines.append(f"... and {len(shown) - MOST_ROWS} more: see bcnmf-sc info.")
    return [printable(line) for line in lines]


def printable(line: str) -> str:
    """Return a line that a terminal shows and does not act on: of a file, a name may hold escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def categories(data: Any, column: str | None) -> list[str]:
    """Return the values of a column of the cells, as they are written; none where there is no such column."""
    from .._mudata import obs_column

    found = obs_column(data, column)
    return [] if found is None else [str(value) for value in found.dropna().unique()]


class _Stored(dict[str, Any]):
    """Part of a stored fit; exits if an entry is read that it lacks, as in a file with a flipped bit."""

    def __init__(self, entries: Mapping[str, Any], path: Path) -> None:
        super().__init__({k: _Stored(v, path) if isinstance(v, Mapping) else v for k, v in entries.items()})
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        refuse(f"{self.path} is damaged: the stored fit lacks {name!r}. Use another copy of the file, or fit again.")


def heed_damage(path: Path, data: Any) -> None:
    """Make reading a part that a stored fit lacks an error of the file, not of the package."""
    for name, entry in data.uns.items():
        if isinstance(entry, Mapping) and "topics" in entry:
            data.uns[name] = _Stored(entry, path)


def _shown(value: Any) -> str:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return "none" if value is None else str(value)
    return ", ".join(map(str, value))


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line."""
    # str() of a KeyError is the repr of its message
    return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())


def refuse(message: str) -> NoReturn:
    """Exit with a message and code 1."""
    raise click.ClickException(printable(message))
