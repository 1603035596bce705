"""Atomic writes: a file is either complete or unchanged after a full disk, Ctrl-C or a kill."""

from __future__ import annotations

import glob
import io
import os
import platform
import secrets
import signal
import stat
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to stop."""


class Stopped(KeyboardInterrupt):
    """Raised for Ctrl-C, or another signal to stop, once it is safe to stop."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Held:
    """Context manager that defers signals to stop that Python handles; a second signal takes effect at once."""

    def __init__(self) -> None:
        self.number = 0
        """Number of the signal received; 0 for none."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Start deferring signals."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if callable(before):  # neither ignored nor handled by the system
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            self._before[signal.Signals(number)](number, frame)
        self.number = number

    def __exit__(self, *error: object) -> None:
        """Restore the signal handlers."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


@contextmanager
def uninterrupted() -> Iterator[Held]:
    """Run a block without interruption; a signal to stop takes effect after it."""
    with Held() as held:
        try:
            yield held
        finally:
            if held.number:
                raise Stopped(number=held.number)


def check_place(path: str | os.PathLike[str], argument: str) -> Path:
    """Raise if no file could be written to a path, before any work; `argument` is its name for the caller."""
    place = Path(path)
    try:
        end = place.resolve()  # follow links
        if end.is_symlink():  # in a loop, which raises here from Python 3.13 on
            end.stat()
        if not end.parent.is_dir():
            why = f"lie in an existing folder, got {str(place)!r}: {str(end.parent)!r} is not a folder."
        elif end.exists() and not end.is_file():
            why = f"name a file, got {str(place)!r}, which is {'a folder' if end.is_dir() else 'a device'}."
        elif not os.access(end.parent, os.W_OK):
            why = f"lie in a writable folder, got {str(place)!r}."
        else:
            with _temporary(end):  # shows what no rule foretells: long names, quotas, disks mounted read-only
                return place
    except (OSError, RuntimeError, ValueError) as error:  # loops of links before Python 3.13; a NUL in the name
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        why = f"name a file that can be written, got {str(place)!r}: {reason}."
    msg = f"`{argument}` must {why}"
    raise UserError(msg)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` unless an error is raised.

    The new file keeps the permissions of the one it replaces, and its owner where allowed. A killed process leaves its
    temporary file behind; the next process that writes to the same path removes it.
    """
    place = Path(path).resolve()  # keep a symbolic link
    _remove_leftovers(place)
    try:
        with _temporary(place) as (temporary, file):
            yield temporary
            os.fsync(file.fileno())
            if not os.path.samestat(os.fstat(file.fileno()), temporary.lstat()):
                msg = "another process has replaced its temporary file"
                raise OSError(msg)
            file.close()
            if place.exists():
                _take_permissions(temporary, place)
            temporary.replace(place)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        kept = " The previous file is unchanged." if place.exists() else ""
        msg = f"{str(path)!r} could not be written: {reason}.{kept}"
        raise OSError(msg) from error


@contextmanager
def _temporary(place: Path) -> Iterator[tuple[Path, io.FileIO]]:
    """Make an empty file beside `place`, under a name that nobody could prepare a link under; it is gone at the end."""
    temporary = place.with_name(f"{_stem(place)}{os.getpid()}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(temporary, flags, 0o600 if place.exists() else 0o666), "r+b", buffering=0) as file:  # noqa: PTH123 (a descriptor)
        try:
            yield temporary, file
        finally:
            file.close()
            temporary.unlink(missing_ok=True)


def _stem(place: Path) -> str:
    """Return how the names of the temporary files of this machine begin."""
    return f".{place.name}.{platform.node()}."


def _remove_leftovers(place: Path) -> None:
    """Remove the temporary files of processes that run no longer: ours, and files only."""
    for left in place.parent.glob(glob.escape(_stem(place)) + "*.tmp"):
        pid = left.name.removeprefix(_stem(place)).partition(".")[0]
        with suppress(OSError):  # another process was quicker, or it is not ours to remove
            found = left.lstat()
            if stat.S_ISREG(found.st_mode) and not _runs(pid) and found.st_uid == os.geteuid():
                left.unlink()


def _take_permissions(temporary: Path, place: Path) -> None:
    """Give a file the permissions of another, and its owner and group where we may."""
    before = place.stat()
    mode = before.st_mode & 0o777
    if os.name == "posix":
        for owner in (before.st_uid, -1):
            with suppress(PermissionError):
                os.chown(temporary, owner, before.st_gid)
                break
        else:  # the group is another: it may do what everybody may
            mode = mode & 0o707 | (mode & 0o007) << 3
    temporary.chmod(mode)


def _runs(pid: str) -> bool:
    """Whether a process may still be running on this machine."""
    if os.name != "posix" or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # owned by another user
        return True
    return True


@contextmanager
def for_hdf5(path: Path) -> Iterator[io.FileIO]:
    """Yield a file that hides write errors from the HDF5 library, which crashes on them.

    After the first error or signal to stop nothing more is written; it is raised at the end.
    """
    with uninterrupted() as held, _Patient(path, held) as file:
        try:
            yield file
        finally:  # whatever HDF5 did with it
            if file.error is not None:
                raise file.error


class _Patient(io.FileIO):
    def __init__(self, path: Path, held: Held) -> None:
        super().__init__(path, "w+b")
        self.held = held
        self.error: OSError | None = None

    def __fspath__(self) -> str:
        return str(self.name)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and self.error is None and not self.held.number:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell()
