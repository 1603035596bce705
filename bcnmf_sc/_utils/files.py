"""Atomic writes: a file is either complete or unchanged after a full disk, Ctrl-C or a kill."""

from __future__ import annotations

import glob
import io
import os
import platform
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
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
    if not place.parent.is_dir():
        why = f"lie in an existing folder, got {str(place)!r}. Create {str(place.parent)!r} first."
    elif place.exists() and not place.is_file():
        why = f"name a file, got {str(place)!r}, which is {'a folder' if place.is_dir() else 'a device'}."
    elif not os.access(place.parent, os.W_OK):
        why = f"lie in a writable folder, got {str(place)!r}."
    else:
        return place
    msg = f"`{argument}` must {why}"
    raise UserError(msg)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` unless an error is raised.

    A killed process leaves its temporary file behind; the next process that writes to the same path removes it.
    """
    place = Path(path).resolve()  # keep a symbolic link
    ours = f".{place.name}.{platform.node()}."
    for left in place.parent.glob(glob.escape(ours) + "*.tmp"):
        if not _runs(left.name.removeprefix(ours).removesuffix(".tmp")):
            left.unlink(missing_ok=True)
    temporary = place.with_name(f"{ours}{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(place)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        kept = " The previous file is unchanged." if place.exists() else ""
        msg = f"{str(path)!r} could not be written: {reason}.{kept}"
        raise OSError(msg) from error
    finally:
        temporary.unlink(missing_ok=True)


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
