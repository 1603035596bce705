"""Interrupt and resume long fits: named arrays and numbers in a file that is written atomically."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._utils.errors import UserError
from .._utils.files import Held, Stopped, check_place, replacing

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path


@dataclass
class Checkpoint:
    """A file with the state of one fit. Without a path, it does nothing.

    As a context manager, it defers Ctrl-C, or another signal to stop that Python handles, until the iteration is done
    and saved, so that the state on disk is complete.
    """

    path: Path | None
    identity: str
    """Fingerprint of the fit that the file belongs to: its data, start and weights."""
    _held: Held = field(default_factory=Held, repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, *what: Any) -> Checkpoint:
        """Set up a checkpoint of the fit that `what` describes."""
        if path is None:
            return cls(None, "")
        place = check_place(path, "checkpoint")
        digest = hashlib.sha256()
        for part in what:
            digest.update(np.ascontiguousarray(part).tobytes())
        return cls(place, digest.hexdigest())

    def write(self, content: Callable[[], Mapping[str, Any]], n_iter: int, every: int = 1) -> None:
        """Write arrays and numbers, at a fixed interval of iterations, over the previous ones.

        If the fit was asked to stop, write in any case, and stop here.
        """
        if self.path is None or n_iter == 0 or (n_iter % every and not self._held.number):
            return
        with replacing(self.path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, identity=np.array(self.identity), **content())
        if self._held.number:
            msg = (
                f"The fit was interrupted after {n_iter} iterations. The same call resumes it from {str(self.path)!r}."
            )
            raise Stopped(msg, self._held.number)

    def read(
        self, shapes: Mapping[str, tuple[int | None, ...] | None], positive: Collection[str] = ()
    ) -> dict[str, Any] | None:
        """Return the last state written; None if there is no file yet.

        Parameters
        ----------
        shapes
            Arrays needed, with the shape that each must have; None for any, also of one dimension.
        positive
            Those of them that must be finite and at least 0.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                stored = {name: arrays[name] for name in ("identity", *shapes)}
            identity = str(stored.pop("identity"))
        except Exception as error:  # a damaged or foreign file can raise anything
            if isinstance(error, OSError) and error.errno:  # from the system, not from the content
                msg = f"`checkpoint` {str(self.path)!r} cannot be read: {error.strerror}."
                raise OSError(msg) from error
            msg = (
                f"`checkpoint` {str(self.path)!r} is not a complete checkpoint of this version. Name another file, or "
                "remove it."
            )
            raise UserError(msg) from error
        if identity != self.identity:
            msg = (
                f"`checkpoint` {str(self.path)!r} belongs to another fit (other data, weights, topics or seed). "
                "Name another file, or remove it."
            )
            raise UserError(msg)
        for name, shape in shapes.items():  # the kernels do not look
            found = stored[name]
            if shape is not None and not _has_shape(found, shape):
                what = f"{name} of shape {found.shape}, not {shape}"
            elif found.dtype.kind not in "fiu" or (name == "n_iter" and found.dtype.kind == "f"):
                what = f"{name} of type {found.dtype}"
            elif name in positive and not (np.isfinite(found).all() and (found >= 0).all()):
                what = f"{name} with values that are negative or not finite"
            else:
                continue
            msg = f"`checkpoint` {str(self.path)!r} holds {what}. Name another file, or remove it."
            raise UserError(msg)
        return {name: array if array.ndim else array.item() for name, array in stored.items()}

    def __enter__(self) -> Self:
        """Defer Ctrl-C."""
        if self.path is not None:
            self._held.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore Ctrl-C."""
        self._held.__exit__()


def _has_shape(array: np.ndarray, shape: tuple[int | None, ...]) -> bool:
    return array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
