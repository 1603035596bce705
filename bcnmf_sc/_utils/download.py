"""Published files: locate them, download them, and read them without unpacking."""

from __future__ import annotations

import gzip
import os
import tarfile
import warnings
import zipfile
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mminfo, mmread

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Opener = Callable[[str], Any]

BLOCK = 1 << 16
"""Chunk size of a download, in bytes."""
_DAMAGE = (
    EOFError,
    OSError,
    UnicodeDecodeError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    pd.errors.EmptyDataError,
    pd.errors.ParserError,
)
_SUFFIXES = (".tar.gz", ".tar", ".zip")


class Remote(NamedTuple):
    """A publisher's file."""

    name: str
    url: str
    sha256: str | None = None
    """None if no checksum is known."""


def data_folder() -> Path:
    """Return the download folder: `BCNMF_SC_DATA` if set, else pooch's cache."""
    return Path(os.environ.get("BCNMF_SC_DATA") or _pooch().os_cache("bcnmf_sc"))


def _pooch() -> Any:
    """Import pooch (and with it requests), which only downloads need."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # in a notebook without ipywidgets
        import pooch
    return pooch


def download(url: str, file_name: str, sha256: str | None = None) -> Path:
    """Return the path of a file, downloading it into the cache (`BCNMF_SC_DATA`, else pooch's) if it is missing.

    A broken download is resumed as long as each attempt makes progress. A download that is shorter than the announced
    size, or has the wrong checksum, leaves no file behind. A file that is already there is used without a check.
    """
    folder = data_folder()
    path = folder / file_name
    if path.is_file():
        return path
    by_hand = f"Fetch it by hand and put it at {path}, or set the environment variable `BCNMF_SC_DATA` to the folder"
    try:
        return Path(_pooch().retrieve(url, sha256, fname=file_name, path=folder, downloader=_persistent))
    except OSError as error:  # requests' exceptions are OSErrors too
        reason = " ".join(str(error).split())
        msg = f"{file_name} could not be downloaded from {url}: {reason}. {by_hand} that holds it."
        raise OSError(msg) from error
    except ValueError as error:  # pooch's, of a checksum
        msg = f"{file_name} from {url} is not the published file: {error} Nothing was kept. {by_hand} that holds it."
        raise UserError(msg) from error


def _persistent(url: str, output_file: str, _: Any) -> None:
    """Download as pooch does, with a progress bar, resuming a broken connection as long as it makes progress."""
    from .progress import progress_bar

    def from_the_start(response: Any, *_: Any, **__: Any) -> None:
        if response.status_code == 200:  # noqa: PLR2004 (the whole file, though a part was asked for)
            handle.seek(0)
            handle.truncate()

    with Path(output_file).open("w+b") as handle:
        while True:
            before = handle.seek(0, os.SEEK_END)
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={before}-"} if before else {})
            bar = progress_bar(show=True, total=1, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[1])
            get = _pooch().HTTPDownloader(
                progressbar=bar, chunk_size=BLOCK, headers=headers, hooks={"response": from_the_start}
            )
            try:
                return get(url, handle, None)
            except OSError:
                if handle.tell() <= before:
                    raise


def find(files: Sequence[Remote], folder: str | os.PathLike[str] | None) -> list[Path]:
    """Return the paths of a publisher's files: in the given folder, else cached or downloaded.

    An archive may also be present unpacked, as a folder with its name minus the suffix.
    """
    if folder is None:
        cache = data_folder()
        return [_present(cache, file) or download(file.url, file.name, file.sha256) for file in files]
    found = [_present(Path(folder), file) for file in files]
    if missing := [file for file, path in zip(files, found, strict=True) if path is None]:
        wanted = ", ".join(f"{file.name} (from {file.url})" for file in missing)
        msg = f"`folder` must hold the publisher's files, got {str(folder)!r} without {wanted}."
        raise UserError(msg)
    return [path for path in found if path is not None]


def _present(folder: Path, file: Remote) -> Path | None:
    stem = next((file.name.removesuffix(end) for end in _SUFFIXES if file.name.endswith(end)), file.name)
    for path in (folder / file.name, folder / stem):
        if path.exists():
            return path
    return None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        what = str(error).partition("\n")[0]
        msg = f"{path.name} must be readable, got {str(path)!r}: {what}. Was the download cut short? Fetch it again."
        raise UserError(msg) from error


def _decompressed(stream: Any, name: str) -> Any:
    return gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else stream


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressing it if it ends in ``.gz``."""
    with _readable(path), path.open("rb") as raw:
        yield _decompressed(raw, path.name)


@contextmanager
def members(path: Path) -> Iterator[Opener]:
    """Yield a function that opens a file by name, at any depth of an archive or a folder.

    Nothing is unpacked, so no member can be written anywhere; an archive with a member outside its own folder is
    rejected as a whole. Names are given without ``.gz``; compressed files are decompressed.
    """
    open_member: Opener
    with _readable(path), ExitStack() as stack:
        if path.is_dir():
            files = {str(p.relative_to(path)): p for p in sorted(path.rglob("*")) if p.is_file()}
            names, open_member = list(files), lambda name: files[name].open("rb")
        elif zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            names, open_member = [info.filename for info in archive.infolist() if not info.is_dir()], archive.open
        else:
            tar = stack.enter_context(tarfile.open(path))
            regular = {member.name: member for member in tar.getmembers() if member.isreg()}
            names, open_member = list(regular), lambda name: cast("IO[bytes]", tar.extractfile(regular[name]))
        yield _opener(path, names, lambda name: stack.enter_context(open_member(name)))


def _opener(path: Path, names: list[str], open_member: Opener) -> Opener:
    outside = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        msg = f"{path.name} must contain files of its own folder only, got the member {outside[0]!r}. It was not read."
        raise UserError(msg)

    def open_file(name: str) -> Any:
        found = [full for full in names if PurePosixPath(full).name.removesuffix(".gz") == name]
        if len(found) != 1:
            got = f"{len(found)} in {str(path)!r}"
            msg = f"{path.name} must hold one file {name!r}, got {got}. Present: {', '.join(names[:8]) or 'nothing'}."
            raise UserError(msg)
        stream = open_member(found[0])
        return _decompressed(stream, found[0])

    return open_file


def read_matrix_market(
    stream: IO[bytes], name: str, shape: tuple[int, int], *, keep: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Read a Matrix Market file of genes x cells counts as cells x genes; its size must match `shape`.

    `keep` selects the cells to keep.
    """
    start = stream.readline(40)
    if not start.startswith(b"%%MatrixMarket matrix coordinate"):
        msg = f"{name} must be a sparse Matrix Market file, got one that begins with {start!r}."
        raise UserError(msg)
    try:
        found = _through_scipy(mminfo, stream)[:2]
        with warnings.catch_warnings():  # on the kind of sparse result, for which older versions have no argument
            warnings.simplefilter("ignore", DeprecationWarning)
            entries = _through_scipy(mmread, stream) if found == shape else None
    except (ValueError, OverflowError) as error:
        what = str(error).rstrip(".")
        msg = f"{name} must be a complete Matrix Market file, got: {what}. Was the download cut short? Fetch it again."
        raise UserError(msg) from error
    if entries is None:
        wanted, got = (f"{n} x {m}" for n, m in (shape, found))
        msg = f"{name} must match its gene and cell tables, {wanted}, got {got}."
        raise UserError(msg)
    entries.data = entries.data.astype(np.float32)
    counts = entries.T.tocsr()
    return sparse.csr_matrix(counts if keep is None else counts[keep])


def _through_scipy(reader: Callable[[Any], Any], stream: IO[bytes]) -> Any:
    """Read a stream with SciPy; stream errors are raised afterwards, since inside SciPy they would end the process."""
    errors: list[BaseException] = []

    def read(size: int = -1) -> bytes:
        try:
            return stream.read(size)
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)
            return b""

    stream.seek(0)
    try:
        return reader(SimpleNamespace(read=read))
    finally:
        if errors:
            raise errors[0]
